//! A server started by the benchmark, from its first answer until it is dropped.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::catalogue::Server;

use super::cpu::Reading;
use super::failure::{Context, Result};
use super::load::{Load, Pace, Payload, Plan};
use super::recipe::{Recipe, fdpassd_config};
use super::{interrupt, launch};

/// The time within which a server must answer.
const START: Duration = Duration::from_secs(15);

/// The time within which a server must end.
const STOP: Duration = Duration::from_secs(5);

/// The interval of checks for the progress of another program.
const CHECK_INTERVAL: Duration = Duration::from_millis(10);

/// A running server. Dropping it ends its whole process group.
pub(crate) struct Running {
    pub(crate) server: Server,
    pub(crate) address: SocketAddrV4,
    child: Child,
    /// Whether the child was reaped: then its pid and its group may belong to other processes.
    reaped: bool,
    /// The server's working directory, with its configuration and log.
    directory: TempDir,
}

impl Running {
    /// Starts a server on a free port and waits until it has answered one request.
    pub(crate) fn start(server: Server, recipe: &Recipe) -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("fdpassd-bench-")
            .tempdir()
            .context("no temporary directory")?;
        let address = free_address()?;
        if server.is_fdpassd() {
            let text = fdpassd_config(address.port(), &directory.path().join("control.sock"))
                + &recipe.config;
            fs::write(directory.path().join("fdpassd.toml"), text)
                .context("cannot write fdpassd.toml")?;
        }
        recipe.write_files(directory.path(), address.port())?;
        let log = File::create(directory.path().join("log")).context("cannot write a log")?;
        let output = if server.logs_requests() {
            Stdio::null()
        } else {
            log.try_clone().context("a log")?.into()
        };
        let child = launch::program(recipe.program(), &recipe.arguments(address.port()))?
            .current_dir(directory.path())
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(log)
            .spawn()
            .context(format!("cannot start {}", server.title()))?;
        let mut running = Running {
            server,
            address,
            child,
            reaped: false,
            directory,
        };
        running.wait_until_it_answers()?;
        Ok(running)
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Returns a plan for scenarios to change: one connection, one small request at a time.
    pub(crate) fn plan(&self) -> Plan {
        Plan {
            to: self.address,
            connections: 1,
            depth: 1,
            per_connection: None,
            payload: Payload::Ping,
            method: self.server.method(),
            framing: self.server.framing(),
            check: self.server.check(),
        }
    }

    fn wait_until_it_answers(&mut self) -> Result<()> {
        let deadline = Instant::now() + START;
        while TcpStream::connect(self.address).is_err() {
            interrupt::check()?;
            if self.has_ended() {
                let status = self.reap().context("cannot wait for it")?;
                return Err(format!("it ended at once: {status}{}", self.last_log_line()).into());
            }
            if Instant::now() > deadline {
                return Err(
                    format!("it does not listen after {START:?}{}", self.last_log_line()).into(),
                );
            }
            std::thread::sleep(CHECK_INTERVAL);
        }
        let report = Load::new(self.plan())?.run(Pace::Requests(1))?;
        if let Some(why) = report.first_error {
            return Err(format!("its first answer: {why}{}", self.last_log_line()).into());
        }
        Reading::when_idle(self.pid()).map(drop)
    }

    /// Returns the last line of the log, for an error message.
    fn last_log_line(&self) -> String {
        let log = fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
        match log.lines().rev().find(|line| !line.trim().is_empty()) {
            Some(line) => format!("; its last log line: {line}"),
            None => String::new(),
        }
    }

    /// Returns whether the first process has ended. It is not reaped here, so its pid and its group stay its own.
    fn has_ended(&self) -> bool {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        !matches!(
            waitid(Id::Pid(self.pid()), flags),
            Ok(WaitStatus::StillAlive)
        )
    }

    /// Stops the server by SIGTERM. Returns an error if it does not end properly.
    pub(crate) fn stop(mut self) -> Result<()> {
        let in_time = self.terminate();
        let status = self.reap().context("cannot wait for it")?;
        // The peers die of the signal; fdpassd promises status 0.
        match self.server {
            _ if !in_time => Err(format!("still there {STOP:?} after SIGTERM").into()),
            server if server.is_fdpassd() && !status.success() => Err(format!(
                "ended badly after SIGTERM: {status}{}",
                self.last_log_line()
            )
            .into()),
            _ => Ok(()),
        }
    }

    /// Sends SIGTERM to the first process, and waits. Returns whether it ended.
    fn terminate(&self) -> bool {
        if !self.has_ended() {
            // Fails only if the process has just ended.
            let _ = kill(self.pid(), Signal::SIGTERM);
        }
        let deadline = Instant::now() + STOP;
        while !self.has_ended() {
            if Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(CHECK_INTERVAL);
        }
        true
    }

    /// Kills the remaining processes of the group (the first one if it did not end, and workers that outlived it), and
    /// reaps them. Orphans are reparented to this process, which is their subreaper.
    fn reap(&mut self) -> std::io::Result<ExitStatus> {
        if self.reaped {
            return self.child.wait();
        }
        // Fails only if the group has no process except the first one, already dead.
        let _ = killpg(self.pid(), Signal::SIGKILL);
        self.reaped = true;
        let status = self.child.wait();
        let group = Pid::from_raw(-self.pid().as_raw());
        while waitpid(group, None).is_ok() {}
        status
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.reaped {
            self.terminate();
            let _ = self.reap();
        }
    }
}

/// Returns a port that is free now. Another program is unlikely to take it before the server does.
fn free_address() -> Result<SocketAddrV4> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port")?;
    let port = listener.local_addr().context("no free port")?.port();
    Ok(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port))
}
