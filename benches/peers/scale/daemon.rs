//! The daemon with many clients, in a cgroup of its own if that is possible.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use fdpassd::proto::control::{Status, WorkerState};
use fdpassd::testing::{Running, ServiceManager, Setup};
use nix::time::ClockId;
use nix::unistd::Pid;

use crate::common::failure::{Context, Result};
use crate::common::interrupt;

/// The interval of looks at the status: each of them costs the master time.
const INTERVAL: Duration = Duration::from_millis(50);

/// The time within which the workers must be replaced.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A running daemon, with the service manager that keeps its clients over a restart.
pub(crate) struct Daemon {
    pub(crate) running: Running,
    manager: ServiceManager,
    program: PathBuf,
    cgroup: Option<Arc<Cgroup>>,
}

impl Daemon {
    pub(crate) fn start(program: &Path, workers: usize) -> Result<Daemon> {
        let manager = ServiceManager::new();
        let cgroup = Cgroup::new().map(Arc::new);
        let config = format!("workers.count = {workers}\nlimits.stall-timeout = \"10s\"");
        let setup = setup(&manager, program, &config, cgroup.as_deref());
        let running = setup.start().context("the daemon does not start")?;
        let daemon = Daemon {
            running,
            manager,
            program: program.to_owned(),
            cgroup,
        };
        daemon.settle(&[])?;
        Ok(daemon)
    }

    /// Has the next master continue.
    pub(crate) fn restart(mut self) -> Result<Daemon> {
        self.running.signal("TERM");
        self.running.wait();
        let setup = setup(&self.manager, &self.program, "", self.cgroup.as_deref());
        let running = setup.start_after(self.running);
        let running = running.context("the daemon does not start again")?;
        Ok(Daemon { running, ..self })
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.running.pid().cast_signed())
    }

    /// Returns the CPU time of the master.
    pub(crate) fn master_time(&self) -> Result<Duration> {
        let clock = ClockId::pid_cpu_clock_id(self.pid()).and_then(ClockId::now);
        Ok(clock.context("the master has no clock")?.into())
    }

    /// Returns the clock of the CPU time that all processes of the daemon have used, if there is one.
    pub(crate) fn clock(&self) -> Option<Arc<Cgroup>> {
        self.cgroup.clone()
    }

    /// Waits until there are as many ready workers as there must be, none of these pids among them, and no others.
    pub(crate) fn settle(&self, replaced: &[u32]) -> Result<Status> {
        let begin = Instant::now();
        loop {
            let status = self.running.status();
            let are_ready = status.workers.iter().all(|worker| {
                worker.state == WorkerState::Ready
                    && worker.pid.is_some_and(|pid| !replaced.contains(&pid))
            });
            if are_ready && status.leaving.is_empty() && !status.reloading {
                return Ok(status);
            }
            if begin.elapsed() > TIMEOUT {
                return Err(format!("the workers are not replaced after {TIMEOUT:?}").into());
            }
            interrupt::check()?;
            thread::sleep(INTERVAL);
        }
    }

    /// Fails if a client was lost.
    pub(crate) fn expect_clients(&self, clients: usize) -> Result<()> {
        let status = self.running.status();
        if status.lost_total > 0 || status.clients < clients as u64 {
            return Err(format!(
                "{} of {clients} clients, {} lost",
                status.clients, status.lost_total
            )
            .into());
        }
        Ok(())
    }
}

/// Returns the setup of a daemon that enters the cgroup before it begins.
fn setup(manager: &ServiceManager, program: &Path, config: &str, cgroup: Option<&Cgroup>) -> Setup {
    let Some(cgroup) = cgroup else {
        return manager.setup(program, config);
    };
    let procs = cgroup.directory.join("cgroup.procs");
    manager
        .setup("sh", config)
        .argument("-c")
        .argument("echo $$ > \"$0\" && exec \"$@\"")
        .argument(procs)
        .argument(program)
}

/// A cgroup of version 2, whose CPU time includes that of processes that have ended.
pub(crate) struct Cgroup {
    directory: PathBuf,
    stat: File,
}

impl Cgroup {
    /// Returns `None` if this user may not make one.
    fn new() -> Option<Cgroup> {
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
        let mut mounts = mounts.lines().map(|line| line.split(' '));
        let root = mounts.find_map(|mut words| {
            let path = words.nth(1)?;
            (words.next()? == "cgroup2").then(|| PathBuf::from(path))
        })?;
        let number = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let directory = root.join(format!("fdpassd-bench-{}-{number}", std::process::id()));
        fs::create_dir(&directory).ok()?;
        let stat = File::open(directory.join("cpu.stat"));
        let is_usable = File::options()
            .write(true)
            .open(directory.join("cgroup.procs"))
            .is_ok();
        match stat {
            Ok(stat) if is_usable => Some(Cgroup { directory, stat }),
            _ => {
                let _ = fs::remove_dir(&directory);
                None
            }
        }
    }

    /// Returns the CPU time that its processes have used.
    pub(crate) fn now(&self) -> Option<Duration> {
        let mut text = [0; 64];
        let length = self.stat.read_at(&mut text, 0).ok()?;
        let line = std::str::from_utf8(&text[..length]).ok()?.lines().next()?;
        let micros = line.strip_prefix("usage_usec ")?.parse().ok()?;
        Some(Duration::from_micros(micros))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // The processes may take a moment to be gone.
        for _ in 0..100 {
            if fs::remove_dir(&self.directory).is_ok() {
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}
