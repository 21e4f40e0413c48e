//! Events: those that are kept, and new ones by long poll.

use std::borrow::Cow;
use std::io::{self, Write};
use std::time::Duration;

use serde_json::value::RawValue;

use super::args::EventsArguments;
use super::error::Error;
use super::figures::{self, clock, exact_instant};
use super::fold;
use super::page::EventsPage;
use super::session::{Session, parse};
use super::style::{FAINT, Paint, of_level};
use super::users::with_names;
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
    write(&parse(&result)?, session, &mut String::new(), out)
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
        day: String::new(),
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
    /// The day of the last event that was printed.
    day: String,
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
        write(&page, session, &mut self.day, out)?;
        (self.after, self.wait) = (Some(page.last), Some(MAX_WAIT));
        out.flush().map_err(Error::Output)
    }
}

/// Writes a page: on a terminal with a line for each day, and each event as wide as the terminal at most.
fn write(
    page: &EventsPage,
    session: &Session,
    day: &mut String,
    out: &mut impl Write,
) -> Result<(), Error> {
    let paint = session.seen.paint();
    let gap = match page.gap() {
        None => Ok(()),
        Some(_) if session.json => writeln!(out, r#"{{"lost":{}}}"#, page.lost),
        Some(gap) => writeln!(out, "{gap}"),
    };
    let mut events = page.events.iter();
    let digits = page.last.to_string().len();
    let written = gap.and_then(|()| match (session.json, paint.width()) {
        (true, _) => events.try_for_each(|event| writeln!(out, "{}", event.get())),
        (false, None) => events.try_for_each(|event| writeln!(out, "{}", line(paint, event))),
        (false, Some(width)) => {
            events.try_for_each(|event| write_wide(out, paint, (width, digits), day, event))
        }
    });
    written.map_err(Error::Output)
}

/// Returns a line such as `31 2026-11-24T12:00:01.123Z warn  worker_died      worker 17 (pid 4711, gen 3) was killed by signal 11`.
fn line(paint: Paint, raw: &RawValue) -> String {
    match parse::<Event>(raw) {
        Ok(event) => format!(
            "{} {} {}",
            event.id,
            exact_instant(event.at),
            what(paint, &event)
        ),
        Err(_) => Escaped(raw.get()).to_string(),
    }
}

/// Writes an event for a terminal of this width, with a number of at least `digits` digits and the time of the day, and
/// above the first event of a day the date.
fn write_wide(
    out: &mut impl Write,
    paint: Paint,
    (width, digits): (usize, usize),
    day: &mut String,
    raw: &RawValue,
) -> io::Result<()> {
    let Ok(event) = parse::<Event>(raw) else {
        let text = Escaped(raw.get()).to_string();
        return fold::write(out, Some(width), digits + 1, &text);
    };
    let on = figures::day(event.at);
    if on != *day {
        writeln!(out, "{}", paint.on(FAINT, &on))?;
        *day = on;
    }
    let begin = format!("{:digits$} {} ", event.id, clock(event.at));
    let text = format!("{begin}{}", what(paint, &event));
    fold::write(out, Some(width), begin.len() + MESSAGE, &text)
}

/// Returns `warn  worker_died      worker 17 (pid 4711, gen 3) was killed by signal 11`.
fn what(paint: Paint, event: &Event) -> String {
    let word = format!("{:5}", event.level.as_str());
    let word = paint.on(of_level(event.level), word).to_string();
    let message = match paint.width() {
        Some(_) => with_names(&event.message),
        None => Cow::Borrowed(event.message.as_str()),
    };
    let message = Escaped(message);
    format!("{word} {:15}  {message}", event.event.as_str())
}

/// The column of a message after the number and the time.
const MESSAGE: usize = 23;
