//! What happened, and what happens, by long poll.

use std::io::Write;
use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::args::EventsArguments as Wanted;
use super::error::Error;
use super::figures::{are, exact_instant};
use super::style::{Paint, of_level};
use super::{Session, read};
use crate::proto::control::{Event, EventsAfter, MAX_WAIT, Verb, Version};
use crate::proto::text::Escaped;
use crate::rpc_client::{self, Deadline, RpcClient};

/// [`control::Events`](crate::proto::control::Events), with each event as it came: a newer daemon may know of more kinds.
#[derive(Debug, Deserialize)]
pub(super) struct EventsPage<'a> {
    #[serde(borrow)]
    pub(super) events: Vec<&'a RawValue>,
    pub(super) last: u64,
    pub(super) lost: u64,
    pub(super) workers: u32,
    pub(super) clients: u64,
}

/// Shows those that are kept, and with `--follow` those that come.
pub(super) fn show(wanted: &Wanted, session: &Session, out: &mut impl Write) -> Result<(), Error> {
    let mut daemon = session.daemon()?;
    if wanted.follow {
        return follow(wanted.after, daemon, session, out);
    }
    let result = daemon.ask_with(
        Verb::Events,
        &EventsAfter {
            after: wanted.after,
            wait: None,
        },
    )?;
    write(&read(&result)?, session, out)
}

/// Ends only with the daemon, or when nobody takes what is written.
fn follow(
    after: Option<u64>,
    daemon: RpcClient,
    session: &Session,
    out: &mut impl Write,
) -> Result<(), Error> {
    let mut following = Following {
        daemon,
        after,
        wait: None,
    };
    let Version { name, pid, .. } = read(&following.daemon.ask(Verb::Version)?)?;
    let mut is_new = false;
    loop {
        match following.next(session, out) {
            Ok(()) => is_new = false,
            // The daemon has become another program, or closed the connection because nobody took what was written.
            Err(Error::Connection(rpc_client::Error::Closed)) if !is_new => {
                following.daemon = again(session, pid)?.ok_or(Error::Ended {
                    name: name.clone(),
                    pid,
                })?;
                is_new = true;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Another connection to the daemon of that process, if it is still there.
fn again(session: &Session, pid: u32) -> Result<Option<RpcClient>, rpc_client::Error> {
    let asked = RpcClient::connect_control(&session.places(), Deadline::new(session.timeout))
        .and_then(|mut daemon| {
            let version: Version = read(&daemon.ask(Verb::Version)?)?;
            Ok((daemon, version.pid))
        });
    match asked {
        Ok((daemon, same)) => Ok((same == pid).then_some(daemon)),
        // It is on its way out when it takes a connection and closes it.
        Err(rpc_client::Error::NotRunning { .. } | rpc_client::Error::Closed) => Ok(None),
        Err(error) => Err(error),
    }
}

/// How far somebody has come.
struct Following {
    daemon: RpcClient,
    after: Option<u64>,
    /// None for those that are there already.
    wait: Option<Duration>,
}

impl Following {
    /// Shows what there is; if that is nothing, what comes within a while.
    fn next(&mut self, session: &Session, out: &mut impl Write) -> Result<(), Error> {
        let wait = self.wait.unwrap_or_default();
        self.daemon.extend(Deadline::new(wait + session.timeout));
        let asked = EventsAfter {
            after: self.after,
            wait: self.wait.map(|wait| wait.as_secs_f64()),
        };
        let result = self.daemon.ask_with(Verb::Events, &asked)?;
        let page: EventsPage = read(&result)?;
        write(&page, session, out)?;
        (self.after, self.wait) = (Some(page.last), Some(MAX_WAIT));
        out.flush().map_err(Error::Output)
    }
}

fn write(page: &EventsPage, session: &Session, out: &mut impl Write) -> Result<(), Error> {
    let paint = session.seen.paint();
    let lost = match (page.lost, session.json) {
        (0, _) => Ok(()),
        (lost, true) => writeln!(out, r#"{{"lost":{lost}}}"#),
        (lost, false) => writeln!(out, "{}", forgotten(lost)),
    };
    let mut events = page.events.iter();
    let written = lost.and_then(|()| match session.json {
        true => events.try_for_each(|event| writeln!(out, "{}", event.get())),
        false => events.try_for_each(|event| writeln!(out, "{}", line(paint, event))),
    });
    written.map_err(Error::Output)
}

/// `… 12 events are forgotten`.
pub(super) fn forgotten(lost: u64) -> String {
    format!("… {} forgotten", are(lost, "event"))
}

/// `2026-11-24T12:00:01.123Z warn  worker_died      worker 17 (pid 4711, gen 3) was killed by signal 11`.
fn line(paint: Paint, raw: &RawValue) -> String {
    let Ok(Event {
        at,
        level,
        event,
        message,
        ..
    }) = read(raw)
    else {
        return Escaped(raw.get()).to_string();
    };
    let word = paint
        .on(of_level(level), format_args!("{:5}", level.as_str()))
        .to_string();
    format!(
        "{} {word} {:15}  {}",
        exact_instant(at),
        event.as_str(),
        Escaped(message)
    )
}
