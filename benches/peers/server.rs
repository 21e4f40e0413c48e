//! A server that was started here: from the moment that it answers until it is dropped.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::catalogue::{Recipe, Server, fdpassd_config};
use crate::cpu::Reading;
use crate::failure::{Context, Result};
use crate::load::{Load, Order, Pace, Payload, Plan};
use crate::{interrupt, launch};

/// A server must answer after this time.
const START: Duration = Duration::from_secs(15);

/// A server must be gone after this time.
const STOP: Duration = Duration::from_secs(5);

/// How often it is looked whether another program has come so far.
const LOOK: Duration = Duration::from_millis(10);

/// A running server. Dropping it ends its whole process group.
pub(crate) struct Running {
    pub(crate) server: Server,
    pub(crate) address: SocketAddrV4,
    child: Child,
    /// Once it is, its pid and its group may be another's.
    reaped: bool,
    /// Its working directory, configuration and log.
    directory: TempDir,
}

impl Running {
    /// Starts it on a free port and waits until it has answered one request.
    pub(crate) fn start(server: Server, recipe: &Recipe) -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("fdpassd-bench-")
            .tempdir()
            .context("no temporary directory")?;
        let address = free_address()?;
        if server == Server::Fdpassd {
            let text = fdpassd_config(address.port(), &directory.path().join("control.sock"))
                + recipe.config();
            fs::write(directory.path().join("fdpassd.toml"), text)
                .context("cannot write fdpassd.toml")?;
        }
        let log = File::create(directory.path().join("log")).context("cannot write a log")?;
        let output = if server.chatters() {
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

    /// One connection, one request at a time, small ones: what a scenario changes as it likes.
    pub(crate) fn plan(&self) -> Plan {
        Plan {
            to: self.address,
            connections: 1,
            depth: 1,
            per_connection: None,
            payload: Payload::Ping,
            order: Order::Little,
            check: self.server.check(),
        }
    }

    fn wait_until_it_answers(&mut self) -> Result<()> {
        let deadline = Instant::now() + START;
        while TcpStream::connect(self.address).is_err() {
            interrupt::check()?;
            if self.has_ended() {
                let status = self.reap().context("cannot wait for it")?;
                return Err(format!("it ended at once: {status}{}", self.last_words()).into());
            }
            if Instant::now() > deadline {
                return Err(
                    format!("it does not listen after {START:?}{}", self.last_words()).into(),
                );
            }
            std::thread::sleep(LOOK);
        }
        let report = Load::new(self.plan())?.run(Pace::Requests(1))?;
        if let Some(why) = report.first_error {
            return Err(format!("its first answer: {why}{}", self.last_words()).into());
        }
        Reading::at_rest(self.pid()).map(drop)
    }

    /// The end of its log, for an error message.
    fn last_words(&self) -> String {
        let log = fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
        match log.lines().rev().find(|line| !line.trim().is_empty()) {
            Some(line) => format!("; its last words: {line}"),
            None => String::new(),
        }
    }

    /// Whether its first process has ended. It is not reaped, so its pid and its group stay its own.
    fn has_ended(&self) -> bool {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        !matches!(
            waitid(Id::Pid(self.pid()), flags),
            Ok(WaitStatus::StillAlive)
        )
    }

    /// Ends it as an operator would, and says so if it did not end well.
    pub(crate) fn stop(mut self) -> Result<()> {
        let in_time = self.terminate();
        let status = self.reap().context("cannot wait for it")?;
        // The peers just die of the signal; fdpassd promises a tidy end.
        match self.server {
            _ if !in_time => Err(format!("still there {STOP:?} after SIGTERM").into()),
            Server::Fdpassd if !status.success() => {
                Err(format!("ended badly after SIGTERM: {status}{}", self.last_words()).into())
            }
            _ => Ok(()),
        }
    }

    /// SIGTERM to the first process, and some patience; whether it ended.
    fn terminate(&self) -> bool {
        if !self.has_ended() {
            // Fails only if it has ended meanwhile.
            let _ = kill(self.pid(), Signal::SIGTERM);
        }
        let deadline = Instant::now() + STOP;
        while !self.has_ended() {
            if Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(LOOK);
        }
        true
    }

    /// Kills what is left of its group (itself if it would not go, workers that outlived it), and
    /// reaps it. Orphans come to this process, which is their subreaper.
    fn reap(&mut self) -> std::io::Result<ExitStatus> {
        if self.reaped {
            return self.child.wait();
        }
        // Fails only if nothing is left but the first process, already dead.
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

/// Free at this moment; nobody else is likely to take it before the server does.
fn free_address() -> Result<SocketAddrV4> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port")?;
    let port = listener.local_addr().context("no free port")?.port();
    Ok(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port))
}
