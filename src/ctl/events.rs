//! Events: those that are kept, and new ones by long poll.

use std::io::Write;
use std::time::Duration;

use serde_json::value::RawValue;

use super::args::EventsArguments;
use super::error::Error;
use super::figures::exact_instant;
use super::page::EventsPage;
use super::session::{Session, parse};
use super::style::{Paint, of_level};
use crate::proto::control::{Event, EventsAfter, MAX_WAIT, Verb, Version};
use crate::proto::text::Escaped;
use crate::rpc_client::{self, Deadline, RpcClient};

/// Prints the events that are kept, and with `--follow` new ones as well.
pub(super) fn show(
    arguments: &EventsArguments,
    session: &Session,
    out: &mut impl Write,
) -> Result<(), Error> {
    let mut daemon = session.connect()?;
    if arguments.follow {
        return follow(arguments.after, daemon, session, out);
    }
    let after = EventsAfter {
        after: arguments.after,
        wait: None,
    };
    let result = daemon.ask_with(Verb::Events, &after)?;
    write(&parse(&result)?, session, out)
}

/// Prints events until the daemon ends or standard output fails.
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
    let Version { name, pid, .. } = parse(&following.daemon.ask(Verb::Version)?)?;
    let mut is_new = false;
    loop {
        match following.next(session, out) {
            Ok(()) => is_new = false,
            // The daemon executes a new program, or has closed a connection that was not read.
            Err(Error::Connection(rpc_client::Error::Closed)) if !is_new => {
                let ended = || Error::Ended {
                    name: name.clone(),
                    pid,
                };
                following.daemon = reconnect(session, pid)?.ok_or_else(ended)?;
                is_new = true;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Connects again to the daemon with this pid, or returns `None` if it has ended.
fn reconnect(session: &Session, pid: u32) -> Result<Option<RpcClient>, rpc_client::Error> {
    let connected = session
        .connect_until(Deadline::new(session.timeout))
        .and_then(|mut daemon| {
            let version: Version = parse(&daemon.ask(Verb::Version)?)?;
            Ok((daemon, version.pid))
        });
    match connected {
        Ok((daemon, same)) => Ok((same == pid).then_some(daemon)),
        // A daemon that accepts a connection and closes it is about to end.
        Err(rpc_client::Error::NotRunning { .. } | rpc_client::Error::Closed) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The position in the events.
struct Following {
    daemon: RpcClient,
    after: Option<u64>,
    /// `None` for the events that are kept.
    wait: Option<Duration>,
}

impl Following {
    /// Prints the events that there are. If there are none, waits for the next ones.
    fn next(&mut self, session: &Session, out: &mut impl Write) -> Result<(), Error> {
        let wait = self.wait.unwrap_or_default();
        self.daemon.extend(Deadline::new(wait + session.timeout));
        let after = EventsAfter {
            after: self.after,
            wait: self.wait.map(|wait| wait.as_secs_f64()),
        };
        let result = self.daemon.ask_with(Verb::Events, &after)?;
        let page: EventsPage = parse(&result)?;
        write(&page, session, out)?;
        (self.after, self.wait) = (Some(page.last), Some(MAX_WAIT));
        out.flush().map_err(Error::Output)
    }
}

fn write(page: &EventsPage, session: &Session, out: &mut impl Write) -> Result<(), Error> {
    let paint = session.seen.paint();
    let gap = match page.gap() {
        None => Ok(()),
        Some(_) if session.json => writeln!(out, r#"{{"lost":{}}}"#, page.lost),
        Some(gap) => writeln!(out, "{gap}"),
    };
    let mut events = page.events.iter();
    let written = gap.and_then(|()| match session.json {
        true => events.try_for_each(|event| writeln!(out, "{}", event.get())),
        false => events.try_for_each(|event| writeln!(out, "{}", line(paint, event))),
    });
    written.map_err(Error::Output)
}

/// Returns a line such as `2026-11-24T12:00:01.123Z warn  worker_died      worker 17 (pid 4711, gen 3) was killed by signal 11`.
fn line(paint: Paint, raw: &RawValue) -> String {
    let Ok(Event {
        at,
        level,
        event,
        message,
        ..
    }) = parse(raw)
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
