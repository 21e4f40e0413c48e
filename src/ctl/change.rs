//! The verbs that change something: the request, and the result in words.

use std::io::Write;

use serde_json::value::RawValue;

use super::args::ChangeVerb;
use super::error::Error;
use super::figures::{are, counted, in_letters, spaced_time};
use super::job::Job;
use super::progress::Progress;
use super::session::{Session, parse};
use super::status::within;
use crate::proto::control::{
    DrainMode, DrainResult, Hold, Kick, Kicked, MovedLoad, Rebalance, Rebalanced, Recycle, Release,
    ReloadParams, Reloaded, Reopened, Scale, Settled, Status, Stopped, UpgradeTo, Upgraded, Verb,
    Version,
};
use crate::proto::text::Escaped;
use crate::rpc_client::{self, Deadline, RpcClient};

/// Requests a change, shows its progress and prints the result.
///
/// Requests the version first: only of a daemon that answers is it certain that it continues after the timeout.
pub(super) fn perform(
    change: &ChangeVerb,
    session: &Session,
    out: &mut impl Write,
    err: &mut (impl Write + Send),
) -> Result<(), Error> {
    if let ChangeVerb::Stop {
        if_stopping: Some(unit),
    } = change
    {
        let job = Job::read(unit);
        if job != Job::Stop {
            return writeln!(out, "clients are kept: {}", Escaped(job)).map_err(Error::Output);
        }
    }
    let mut daemon = session.connect()?;
    let Version { name, pid, .. } = parse(&daemon.ask(Verb::Version)?)?;
    let done = match Progress::new(change, session, &mut daemon)? {
        Some(progress) => progress.during(&mut daemon, err, |daemon| request(change, daemon)),
        None => request(change, &mut daemon),
    };
    let result = done.map_err(|error| explain(error, change, &name, pid))?;
    session.print(out, &result, |out| {
        writeln!(out, "{}", describe(change, &name, &result)?).map_err(Error::Output)
    })
}

/// One run of a daemon, from its start on. Another one may give the same ids to other clients and workers.
#[derive(Clone, Copy, Debug)]
pub(super) struct DaemonRun {
    pid: u32,
    uptime_seconds: f64,
}

impl DaemonRun {
    pub(super) fn of(status: &Status) -> DaemonRun {
        DaemonRun {
            pid: status.pid,
            uptime_seconds: status.uptime_seconds,
        }
    }

    /// Returns whether a later status is one of this run. The pid alone does not show it: daemons in containers have
    /// the same one.
    pub(super) fn continues_in(&self, later: &Status) -> bool {
        self.pid == later.pid && self.uptime_seconds <= later.uptime_seconds
    }
}

/// Requests a change of this run of the daemon, on a connection of its own and without progress, and returns the result
/// in words. Calls `begins` just before it sends the request.
pub(super) fn make(
    change: &ChangeVerb,
    of: DaemonRun,
    session: &Session,
    begins: impl FnOnce(),
) -> Result<String, Error> {
    let mut daemon = session.connect_until(Deadline::new(session.timeout))?;
    let status: Status = parse(&daemon.ask(Verb::Status)?)?;
    let name = &status.name;
    if !of.continues_in(&status) {
        let text = format!("{name} was restarted after the question; nothing was changed");
        return Err(Error::Unable(text));
    }
    let usual = change.takes_long().map(|(_, usual)| usual);
    let timeout = usual.map_or(session.timeout, |usual| usual.max(session.timeout));
    daemon.extend(Deadline::new(timeout));
    begins();
    let result =
        request(change, &mut daemon).map_err(|error| explain(error, change, name, status.pid))?;
    Ok(describe(change, name, &result)?)
}

/// Returns the error of a change: of one that takes long, a timeout is not its end.
fn explain(error: rpc_client::Error, change: &ChangeVerb, name: &str, pid: u32) -> Error {
    match (error, change.takes_long()) {
        (rpc_client::Error::Timeout(_), Some((activity, _))) => Error::StillGoing {
            name: name.to_owned(),
            pid,
            activity,
        },
        (error, _) => error.into(),
    }
}

fn request(
    change: &ChangeVerb,
    daemon: &mut RpcClient,
) -> Result<Box<RawValue>, rpc_client::Error> {
    match *change {
        ChangeVerb::Reload { force: false } => daemon.ask(Verb::Reload),
        ChangeVerb::Reload { force } => daemon.ask_with(Verb::Reload, &ReloadParams { force }),
        ChangeVerb::Scale { count } => daemon.ask_with(Verb::Scale, &Scale { count }),
        ChangeVerb::Recycle { ref which } => daemon.ask_with(Verb::Recycle, which),
        ChangeVerb::Hold { worker } => daemon.ask_with(Verb::Hold, &Hold { worker }),
        ChangeVerb::Release { ref what } => daemon.ask_with(Verb::Release, what),
        ChangeVerb::Drain(ref drain) => daemon.ask_with(Verb::Drain, &drain.params()),
        ChangeVerb::Undrain => daemon.ask(Verb::Undrain),
        ChangeVerb::ReopenLog => daemon.ask(Verb::ReopenLog),
        ChangeVerb::Kick { client } => daemon.ask_with(Verb::Kick, &Kick { client }),
        ChangeVerb::Rebalance { dry_run } => {
            daemon.ask_with(Verb::Rebalance, &Rebalance { dry_run })
        }
        ChangeVerb::Upgrade { ref binary } => {
            let binary = binary.clone();
            daemon.ask_with(Verb::Upgrade, &UpgradeTo { binary })
        }
        // The daemon replies just before it exits, and closes the connection by that.
        ChangeVerb::Stop { .. } => {
            let result = daemon.ask(Verb::Stop)?;
            daemon.wait_for_end().map(|()| result)
        }
    }
}

/// Returns the result in words.
fn describe(
    change: &ChangeVerb,
    name: &str,
    result: &RawValue,
) -> Result<String, rpc_client::Error> {
    Ok(match change {
        ChangeVerb::Reload { .. } => {
            let result: Reloaded = parse(result)?;
            format!(
                "applied: generation {}, {} ready, in {}",
                result.generation,
                counted(result.workers.into(), "worker"),
                spaced_time(result.seconds)
            )
        }
        ChangeVerb::Drain(arguments) => describe_drain(arguments.wait, &parse(result)?),
        ChangeVerb::Rebalance { dry_run } => describe_moves(&parse(result)?, *dry_run),
        ChangeVerb::Upgrade { .. } => describe_upgrade(name, &parse(result)?),
        ChangeVerb::Kick { .. } => kick_in_words(result)?,
        ChangeVerb::Stop { .. } => {
            let Stopped { pid, killed } = parse(result)?;
            let killed = match killed {
                0 => String::new(),
                count => {
                    let workers = counted(count, "worker");
                    format!("; killed {workers} that did not finish in time")
                }
            };
            format!("{} (pid {pid}) stopped{killed}", Escaped(name))
        }
        ChangeVerb::ReopenLog => match parse::<Reopened>(result)?.reopened {
            true => "log file reopened".to_owned(),
            false => "the log is not a file: there is nothing to reopen".to_owned(),
        },
        _ => describe_settled(change, parse(result)?),
    })
}

/// Returns the result of `kick` in words.
pub(super) fn kick_in_words(result: &RawValue) -> Result<String, rpc_client::Error> {
    let Kicked {
        client,
        peer,
        goaway,
    } = parse(result)?;
    let done = match goaway {
        true => "gets a goaway and is closed",
        false => "is closed",
    };
    Ok(format!("client {client} ({}) {done}", Escaped(peer)))
}

fn describe_drain(has_waited: bool, result: &DrainResult) -> String {
    let happens = match result.mode {
        DrainMode::Refuse => "refused",
        DrainMode::Queue => "not accepted",
    };
    let new = match result.notice {
        Some(left) => format!(
            "new clients are served for another {}, then {happens}",
            in_letters(left.ceil())
        ),
        None => format!("new clients are {happens}"),
    };
    let connected = match has_waited {
        true => "the last client has left".to_owned(),
        false => format!("{} still connected", are(result.clients, "client")),
    };
    let moved = result
        .over
        .filter(|_| !has_waited)
        .map_or_else(String::new, |left| {
            format!("; those that want a goaway get it{}", within(left))
        });
    let waiting = result.waiting_at.iter().map(|address| {
        let address = Escaped(address);
        format!("\nnew clients wait at {address}, because systemd has bound the socket")
    });
    format!("{new}; {connected}{moved}{}", waiting.collect::<String>())
}

fn describe_settled(change: &ChangeVerb, Settled { workers, .. }: Settled) -> String {
    let ready = format!("{} ready", are(workers.into(), "worker"));
    match change {
        ChangeVerb::Recycle { which } => match which {
            Recycle { worker: Some(id) } => format!("worker {id} is replaced; {ready}"),
            Recycle { worker: None } => format!("all workers are replaced; {ready}"),
        },
        ChangeVerb::Hold { worker } => {
            format!("worker {worker} is held; its clients have moved to other workers")
        }
        ChangeVerb::Release { what } => match what {
            Release::Worker(id) => format!("worker {id} is released"),
            Release::Method(name) => {
                format!("method \"{}\" is released and run again", Escaped(name))
            }
        },
        ChangeVerb::Undrain => "clients are accepted again".to_owned(),
        _ => ready,
    }
}

fn describe_moves(result: &Rebalanced, dry_run: bool) -> String {
    let moved = if dry_run { "would move" } else { "moved" };
    let line = |moves: &MovedLoad| {
        let (clients, share) = (counted(moves.clients, "client"), moves.load * 100.0);
        format!(
            "{clients} {moved} from worker {} to worker {}: {share:.0}% of a worker's time",
            moves.from, moves.to
        )
    };
    let mut lines: Vec<String> = result.moves.iter().map(line).collect();
    match result.busy {
        0 if lines.is_empty() => lines.push("already balanced; nothing to move".to_owned()),
        0 => {}
        1 => lines.push("1 client stays, as its request is executing; try again".to_owned()),
        busy => lines.push(format!(
            "{} stay, as their requests are executing; try again",
            counted(busy, "client")
        )),
    }
    lines.join("\n")
}

fn describe_upgrade(name: &str, result: &Upgraded) -> String {
    let (name, version) = (Escaped(name), Escaped(&result.version));
    let workers = counted(result.workers.into(), "worker");
    let clients = counted(result.clients, "client");
    let outcome = match result.unchanged {
        true => format!("{name} is still {version}: the program has not changed"),
        false => format!("{name} is upgraded to {version}"),
    };
    format!("{outcome}; {workers} ready, {clients} kept")
}
