//! A running server of a model.

use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use fdpassd::proto::names::Address;
use fdpassd::testing::{Running, Setup};
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, SysconfVar, sysconf};

use super::{Model, WORKERS};
use crate::common::cpu::Reading;
use crate::common::failure::{Context, Result};
use crate::common::{interrupt, launch};

/// The time within which a server must listen.
const START: Duration = Duration::from_secs(15);

/// A running server. Dropping it ends it.
pub(super) struct Instance {
    pub(super) model: Model,
    server: Server,
}

enum Server {
    Textbook(Textbook),
    Fdpassd(Box<Running>),
}

/// A process group of the C program.
struct Textbook {
    child: Child,
    address: SocketAddrV4,
}

impl Drop for Textbook {
    fn drop(&mut self) {
        let pid = Pid::from_raw(self.child.id().cast_signed());
        // Fails only if all of them have ended.
        let _ = killpg(pid, Signal::SIGKILL);
        let _ = self.child.wait();
        // Orphans are reparented to this process, which is their subreaper.
        while waitpid(Pid::from_raw(-pid.as_raw()), None).is_ok() {}
    }
}

/// CPU time: of the processes that run, and of those that have ended and were collected by the first one.
pub(super) struct CpuTime {
    running: Reading,
    collected: Duration,
}

impl CpuTime {
    pub(super) fn since(&self, before: &CpuTime) -> Result<Duration> {
        let running = self.running.since(&before.running)?;
        Ok(running + (self.collected - before.collected))
    }
}

impl Instance {
    /// Starts a server, and waits until it listens.
    pub(super) fn start(model: Model, textbooks: &Path, fdpassd: &Path) -> Result<Instance> {
        let server = match model {
            Model::Iterative => textbook(textbooks, "iterative")?,
            Model::Fork => textbook(textbooks, "fork")?,
            Model::Shared => textbook(textbooks, "shared")?,
            Model::Reuseport => textbook(textbooks, "reuseport")?,
            Model::RoundRobin => daemon(fdpassd, "round-robin")?,
            Model::LeastLoaded => daemon(fdpassd, "least-loaded")?,
        };
        Ok(Instance { model, server })
    }

    pub(super) fn address(&self) -> SocketAddrV4 {
        match &self.server {
            Server::Textbook(textbook) => textbook.address,
            Server::Fdpassd(daemon) => match daemon.address() {
                Address::Tcp(std::net::SocketAddr::V4(address)) => *address,
                other => unreachable!("{other} was not configured"),
            },
        }
    }

    /// Returns the daemon, if it is fdpassd.
    pub(super) fn fdpassd(&self) -> Option<&Running> {
        match &self.server {
            Server::Textbook(_) => None,
            Server::Fdpassd(daemon) => Some(daemon),
        }
    }

    fn pid(&self) -> Pid {
        let pid = match &self.server {
            Server::Textbook(textbook) => textbook.child.id(),
            Server::Fdpassd(daemon) => daemon.pid(),
        };
        Pid::from_raw(pid.cast_signed())
    }

    /// Reads the CPU time once the server is idle.
    pub(super) fn cpu_time(&self) -> Result<CpuTime> {
        let running = Reading::when_idle(self.pid())?;
        let path = format!("/proc/{}/stat", self.pid());
        let stat = std::fs::read_to_string(&path).context(&path)?;
        let fields = stat.rsplit_once(')').context(&path)?.1.split_whitespace();
        // Fields 16 and 17, cutime and cstime (proc(5)); the first one here is the third.
        let ticks = fields.skip(13).take(2).map(str::parse::<u64>);
        let ticks: u64 = ticks.sum::<std::result::Result<_, _>>().context(&path)?;
        let per_second = sysconf(SysconfVar::CLK_TCK).ok().flatten();
        let per_second = per_second.context("the length of a tick is unknown")?;
        let collected = Duration::from_secs_f64(ticks as f64 / per_second as f64);
        Ok(CpuTime { running, collected })
    }

    /// Kills a process of the server.
    pub(super) fn kill(&self, worker: u32) -> Result<()> {
        kill(Pid::from_raw(worker.cast_signed()), Signal::SIGKILL).context("cannot kill a worker")
    }
}

fn daemon(program: &Path, dispatch: &str) -> Result<Server> {
    let config = format!(
        "listen = [\"127.0.0.1:0\"]\nworkers.count = {WORKERS}\nworkers.dispatch = \"{dispatch}\"\n"
    );
    let daemon = Setup::new(program, &config).start();
    let daemon = daemon.context("fdpassd does not start")?;
    daemon.wait_for_workers();
    Ok(Server::Fdpassd(Box::new(daemon)))
}

fn textbook(program: &Path, model: &str) -> Result<Server> {
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|free| free.local_addr());
    let port = free.context("no free port")?.port();
    let arguments = [model, &port.to_string(), &WORKERS.to_string()].map(Into::into);
    let child = launch::program(&program.into(), &arguments)?
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .context("the C program does not start")?;
    let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
    let textbook = Textbook { child, address };
    let deadline = Instant::now() + START;
    while TcpStream::connect(address).is_err() {
        interrupt::check()?;
        if Instant::now() > deadline {
            return Err(format!("{model} does not listen after {START:?}").into());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(Server::Textbook(textbook))
}
