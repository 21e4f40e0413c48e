//! The verbs that change something: what is asked of the daemon, and what is said when it is so.

use crate::proto::names::MAX_WORKERS;
use std::io::Write;
use std::path::PathBuf;

use clap::{Subcommand, ValueHint, value_parser};
use serde_json::value::RawValue;

use super::error::Error;
use super::figures::{are, counted, spaced_time};
use super::job::Job;
use super::progress::{Doing, Progress};
use super::{Session, read};
use crate::proto::control::{
    self, Drain, Hold, Kick, Kicked, Rebalance, Rebalanced, Recycle, Release, Reloaded, Scale,
    Settled, Stopped, UpgradeTo, Upgraded, Version,
};
use crate::proto::names::{ClientId, WorkerId};
use crate::proto::text::Escaped;
use crate::rpc_client::{self, RpcClient};

#[derive(Debug, Subcommand)]
pub(super) enum ChangeVerb {
    /// Apply the configuration file as it is now
    Reload {
        /// Apply it even if a file is empty and drops keys in force
        #[arg(long)]
        force: bool,
    },
    /// Set the number of workers until the next reload
    Scale {
        /// Number of workers, from 1 to 256
        #[arg(value_name = "COUNT", value_parser = value_parser!(u32).range(1..=i64::from(MAX_WORKERS)))]
        count: u32,
    },
    /// Replace a worker, or all workers, with new processes
    Recycle {
        /// The worker's id, or "all"
        #[arg(value_name = "WORKER|all", value_parser = recycled)]
        which: Recycle,
    },
    /// Take all clients off a worker and keep it running for inspection
    Hold {
        /// The worker's id
        #[arg(value_name = "WORKER")]
        worker: u64,
    },
    /// Return a held worker to service, or lift the quarantine of a method
    Release {
        /// The worker's id, or the method's name
        #[arg(value_name = "WORKER|METHOD", value_parser = released)]
        what: Release,
    },
    /// Stop accepting clients; connected clients stay
    Drain {
        /// Wait until the last client has left
        #[arg(long)]
        wait: bool,
    },
    /// Accept clients again
    Undrain,
    /// Spread busy clients over the workers
    Rebalance {
        /// Only show what would be done
        #[arg(long)]
        dry_run: bool,
    },
    /// Switch to the installed program in place and replace the workers
    Upgrade {
        /// Use another program (root or the daemon's user)
        #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
        binary: Option<PathBuf>,
    },
    /// Close a client
    Kick {
        /// Its number, as "fdpassctl clients" shows it
        #[arg(value_name = "CLIENT")]
        client: u64,
    },
    /// Reopen the log file after it was renamed
    ReopenLog,
    /// Shut the daemon down gracefully and wait until it has exited
    Stop {
        /// Only if systemd stops this unit; for its ExecStop=
        ///
        /// For any other job fdpassctl prints the job and keeps the clients.
        #[arg(long, value_name = "UNIT")]
        if_stopping: Option<String>,
    },
}

impl ChangeVerb {
    /// What the daemon is busy with until it answers; none if it answers at once.
    pub(super) fn doing(&self) -> Option<Doing> {
        match self {
            ChangeVerb::Reload { .. } => Some(Doing::Reload),
            ChangeVerb::Scale { count } => Some(Doing::Scale { count: *count }),
            ChangeVerb::Recycle { which } => Some(Doing::Recycle {
                one: which.worker.is_some(),
            }),
            ChangeVerb::Hold { worker } => Some(Doing::Hold { worker: *worker }),
            ChangeVerb::Drain { wait: true } => Some(Doing::Drain),
            ChangeVerb::Rebalance { .. } => Some(Doing::Rebalance),
            ChangeVerb::Upgrade { .. } => Some(Doing::Upgrade),
            ChangeVerb::Stop { .. } => Some(Doing::Stop),
            ChangeVerb::Kick { .. }
            | ChangeVerb::Release { .. }
            | ChangeVerb::Drain { wait: false }
            | ChangeVerb::Undrain
            | ChangeVerb::ReopenLog => None,
        }
    }

    /// Has it done.
    ///
    /// The version comes first: only of a daemon that answers can it be said that it goes on when the time is up.
    pub(super) fn perform(
        &self,
        session: &Session,
        out: &mut impl Write,
        err: &mut (impl Write + Send),
    ) -> Result<(), Error> {
        if let Some(job) = self.job_that_keeps_clients() {
            return writeln!(out, "clients are kept: {}", Escaped(job)).map_err(Error::Output);
        }
        let mut daemon = session.daemon()?;
        let Version { name, pid, .. } = read(&daemon.ask(control::Verb::Version)?)?;
        let doing = self.doing();
        let progress = doing
            .map(|doing| Progress::new(doing, session, &mut daemon))
            .transpose()?
            .flatten();
        let done = match progress {
            Some(progress) => progress.during(&mut daemon, err, |daemon| self.ask(daemon)),
            None => self.ask(&mut daemon),
        };
        let result = done.map_err(|error| match (error, doing.and_then(Doing::takes_long)) {
            (rpc_client::Error::Timeout(_), Some((doing, _))) => Error::StillGoing {
                name: name.clone(),
                pid,
                doing,
            },
            (error, _) => error.into(),
        })?;
        session.print(out, &result, |out| {
            writeln!(out, "{}", self.said(&name, &result)?).map_err(Error::Output)
        })
    }

    /// What systemd does with the unit of `--if-stopping`, unless that is its end.
    fn job_that_keeps_clients(&self) -> Option<Job> {
        let ChangeVerb::Stop {
            if_stopping: Some(unit),
        } = self
        else {
            return None;
        };
        Some(Job::read(unit)).filter(|job| *job != Job::Stop)
    }

    fn ask(&self, daemon: &mut RpcClient) -> Result<Box<RawValue>, rpc_client::Error> {
        match self {
            ChangeVerb::Reload { force: false } => daemon.ask(control::Verb::Reload),
            ChangeVerb::Reload { force } => daemon.ask_with(
                control::Verb::Reload,
                &control::ReloadParams { force: *force },
            ),
            ChangeVerb::Scale { count } => {
                daemon.ask_with(control::Verb::Scale, &Scale { count: *count })
            }
            ChangeVerb::Recycle { which } => daemon.ask_with(control::Verb::Recycle, which),
            ChangeVerb::Hold { worker } => daemon.ask_with(
                control::Verb::Hold,
                &Hold {
                    worker: WorkerId(*worker),
                },
            ),
            ChangeVerb::Release { what } => daemon.ask_with(control::Verb::Release, what),
            ChangeVerb::Drain { wait } => {
                daemon.ask_with(control::Verb::Drain, &Drain { wait: *wait })
            }
            ChangeVerb::Undrain => daemon.ask(control::Verb::Undrain),
            ChangeVerb::ReopenLog => daemon.ask(control::Verb::ReopenLog),
            ChangeVerb::Kick { client } => daemon.ask_with(
                control::Verb::Kick,
                &Kick {
                    client: ClientId(*client),
                },
            ),
            ChangeVerb::Rebalance { dry_run } => {
                daemon.ask_with(control::Verb::Rebalance, &Rebalance { dry_run: *dry_run })
            }
            ChangeVerb::Upgrade { binary } => daemon.ask_with(
                control::Verb::Upgrade,
                &UpgradeTo {
                    binary: binary.clone(),
                },
            ),
            // The reply comes just before the daemon ends; it is gone when it no longer holds the connection.
            ChangeVerb::Stop { .. } => {
                let result = daemon.ask(control::Verb::Stop)?;
                daemon.wait_for_end().map(|()| result)
            }
        }
    }

    /// The result, for people.
    fn said(&self, name: &str, result: &RawValue) -> Result<String, rpc_client::Error> {
        match self {
            ChangeVerb::Reload { .. } => read(result).map(applied),
            ChangeVerb::Rebalance { dry_run } => {
                read(result).map(|result| moves(&result, *dry_run))
            }
            ChangeVerb::Upgrade { .. } => read(result).map(|result| upgraded(name, &result)),
            ChangeVerb::Kick { .. } => read(result).map(|Kicked { client, peer }| {
                format!("client {client} ({}) is closed", Escaped(peer))
            }),
            ChangeVerb::Stop { .. } => read(result).map(|result| stopped(name, result)),
            _ => read(result).map(|result| self.settled(result)),
        }
    }

    fn settled(&self, Settled { workers, clients }: Settled) -> String {
        let ready = format!("{} ready", are(workers.into(), "worker"));
        match self {
            ChangeVerb::Recycle {
                which: Recycle {
                    worker: Some(worker),
                },
            } => {
                format!("worker {worker} is replaced; {ready}")
            }
            ChangeVerb::Recycle {
                which: Recycle { worker: None },
            } => format!("all workers are replaced; {ready}"),
            ChangeVerb::Hold { worker } => {
                format!("worker {worker} is held; its clients have moved to other workers")
            }
            ChangeVerb::Release {
                what: Release::Worker(id),
            } => format!("worker {id} is released"),
            ChangeVerb::Release {
                what: Release::Method(method),
            } => {
                format!("method \"{}\" is released and run again", Escaped(method))
            }
            ChangeVerb::Drain { wait: true } => {
                "new clients are not accepted; the last client has left".to_owned()
            }
            ChangeVerb::Drain { wait: false } => format!(
                "new clients are not accepted; {} still connected",
                are(clients, "client")
            ),
            ChangeVerb::Undrain => "clients are accepted again".to_owned(),
            ChangeVerb::ReopenLog => "log file reopened".to_owned(),
            _ => ready,
        }
    }
}

fn applied(
    Reloaded {
        generation,
        workers,
        seconds,
    }: Reloaded,
) -> String {
    let workers = counted(workers.into(), "worker");
    format!(
        "applied: generation {generation}, {workers} ready, in {}",
        spaced_time(seconds)
    )
}

fn moves(result: &Rebalanced, dry_run: bool) -> String {
    let moved = if dry_run { "would move" } else { "moved" };
    let line = |moves: &control::MovedLoad| {
        let (clients, share) = (counted(moves.clients, "client"), moves.load * 100.0);
        format!(
            "{clients} {moved} from worker {} to worker {}: {share:.0}% of a worker's time",
            moves.from, moves.to
        )
    };
    match result.moves.as_slice() {
        [] => "already balanced; nothing to move".to_owned(),
        moves => moves.iter().map(line).collect::<Vec<_>>().join("\n"),
    }
}

fn upgraded(
    name: &str,
    Upgraded {
        version,
        workers,
        clients,
        unchanged,
    }: &Upgraded,
) -> String {
    let (workers, clients) = (
        counted((*workers).into(), "worker"),
        counted(*clients, "client"),
    );
    let (name, version) = (Escaped(name), Escaped(version));
    match unchanged {
        true => format!(
            "{name} is still {version}: the program has not changed; {workers} ready, {clients} kept"
        ),
        false => format!("{name} is upgraded to {version}; {workers} ready, {clients} kept"),
    }
}

fn stopped(name: &str, Stopped { pid, killed }: Stopped) -> String {
    let killed = match killed {
        0 => String::new(),
        1 => "; 1 worker did not finish in time and was killed".to_owned(),
        many => format!("; {many} workers did not finish in time and were killed"),
    };
    format!("{} (pid {pid}) stopped{killed}", Escaped(name))
}

fn recycled(text: &str) -> Result<Recycle, String> {
    match text {
        "all" => Ok(Recycle { worker: None }),
        id => match id.parse() {
            Ok(id) => Ok(Recycle {
                worker: Some(WorkerId(id)),
            }),
            Err(_) => Err("expected a worker's id or \"all\"".to_owned()),
        },
    }
}

/// No method's name is a number.
fn released(text: &str) -> Result<Release, String> {
    Ok(text.parse().map_or_else(
        |_| Release::Method(text.to_owned()),
        |id| Release::Worker(WorkerId(id)),
    ))
}
