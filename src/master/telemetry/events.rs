//! The event log: each event becomes a log line, and is kept for a while for control clients.

use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, SystemTime};

use log::kv::{self, Key, Source, Value, VisitSource};
use log::{Level, Record};

use crate::proto::control::{About, Event, Kind, MAX_EVENTS};
use crate::proto::log::LogLevel;
use crate::proto::text::Escaped;
use crate::sys::socket::Credentials;

/// The most recent events.
#[derive(Debug, Default)]
pub(crate) struct EventLog {
    kept: VecDeque<Event>,
    /// Number of the last event; no event has 0.
    last: u64,
}

/// Events after some number.
#[derive(Debug, PartialEq)]
pub(crate) struct Since {
    pub(crate) events: Vec<Event>,
    /// Number of events before these that are not kept any more.
    pub(crate) lost: u64,
}

impl EventLog {
    /// Records an event and logs it. The level is that of the event's kind; the log line has the same sentence, with
    /// the subject as fields.
    pub(crate) fn note(&mut self, kind: Kind, about: About, message: impl fmt::Display) {
        let message = message.to_string();
        log_event(kind, &about, &message);
        self.record(kind, about, message);
    }

    /// Records an event that operators read elsewhere than in the log.
    pub(crate) fn record(&mut self, kind: Kind, about: About, message: impl fmt::Display) {
        self.last += 1;
        let at = SystemTime::UNIX_EPOCH
            .elapsed()
            .unwrap_or(Duration::ZERO)
            .as_secs_f64();
        let level = match level(kind) {
            Level::Error => LogLevel::Error,
            Level::Warn => LogLevel::Warn,
            Level::Info => LogLevel::Info,
            Level::Debug | Level::Trace => LogLevel::Debug,
        };
        if self.kept.len() == MAX_EVENTS {
            self.kept.pop_front();
        }
        let message = Escaped(message).to_string();
        self.kept.push_back(Event {
            id: self.last,
            at,
            level,
            event: kind,
            message,
            about,
        });
    }

    /// Continues the numbering after `last`, the last event of an earlier master.
    pub(crate) fn continue_after(&mut self, last: u64) {
        self.last = last.max(self.last);
    }

    /// Returns the number of the last event.
    pub(crate) fn last(&self) -> u64 {
        self.last
    }

    /// Returns the events with a higher number than `after`. A number that is not reached yet belongs to another life
    /// of the daemon, and counts as 0.
    pub(crate) fn since(&self, after: u64) -> Since {
        let after = if after > self.last { 0 } else { after };
        let forgotten = self.last - self.kept.len() as u64;
        let skip = after.saturating_sub(forgotten) as usize;
        Since {
            events: self.kept.iter().skip(skip).cloned().collect(),
            lost: forgotten.saturating_sub(after),
        }
    }
}

/// The origin of a request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asker {
    /// The verb or the signal.
    pub(crate) what: &'static str,
    /// The peer of the control socket; `None` for a signal, which has no known sender.
    pub(crate) who: Option<Credentials>,
}

impl Asker {
    pub(crate) fn from_signal(name: &'static str) -> Asker {
        Asker {
            what: name,
            who: None,
        }
    }

    /// Returns the subject of an event that this request caused.
    pub(crate) fn about(&self) -> About {
        About {
            uid: self.who.map(|who| who.uid),
            asker: self.who.map(|who| who.pid),
            ..About::default()
        }
    }
}

impl fmt::Display for Asker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.who {
            Some(who) => write!(f, "{} by uid {} (pid {})", self.what, who.uid, who.pid),
            None => f.write_str(self.what),
        }
    }
}

/// Logs an event, if its level is logged.
fn log_event(kind: Kind, about: &About, message: &str) {
    let fields = EventFields { kind, about };
    let args = format_args!("{message}");
    let record = Record::builder()
        .args(args)
        .level(level(kind))
        .target(TARGET)
        .key_values(&fields)
        .build();
    if record.level() <= log::max_level() {
        log::logger().log(&record);
    }
}

/// The fields of an event, in the form of the log.
struct EventFields<'a> {
    kind: Kind,
    about: &'a About,
}

impl Source for EventFields<'_> {
    fn visit<'kvs>(&'kvs self, visitor: &mut dyn VisitSource<'kvs>) -> Result<(), kv::Error> {
        let About {
            worker,
            pid,
            seat,
            generation,
            client,
            clients,
            workers,
            uid,
            asker,
        } = *self.about;
        visitor.visit_pair(Key::from_str("event"), Value::from(self.kind.as_str()))?;
        let numbers = [
            ("worker", worker.map(|id| id.0)),
            ("worker_pid", pid.map(u64::from)),
            ("seat", seat.map(u64::from)),
            ("generation", generation.map(|generation| generation.0)),
            ("client", client.map(|id| id.0)),
            ("clients", clients),
            ("workers", workers.map(u64::from)),
            ("uid", uid.map(u64::from)),
            ("asker", asker.map(u64::from)),
        ];
        numbers
            .into_iter()
            .filter_map(|(key, number)| Some((key, number?)))
            .try_for_each(|(key, number)| {
                visitor.visit_pair(Key::from_str(key), Value::from(number))
            })
    }
}

fn level(kind: Kind) -> Level {
    match kind {
        Kind::WorkerFailed
        | Kind::ReloadRejected
        | Kind::ReloadRolledBack
        | Kind::UpgradeRefused
        | Kind::StoreLost
        | Kind::MethodQuarantined => Level::Error,
        Kind::WorkerDied
        | Kind::ListenerEnded
        | Kind::WorkerStalled
        | Kind::WorkerUnhealthy
        | Kind::WorkerKilled
        | Kind::Limit
        | Kind::ClientGivenUp
        | Kind::Forbidden => Level::Warn,
        Kind::WorkerStarted => Level::Debug,
        _ => Level::Info,
    }
}

/// The target that the log's macros would set.
const TARGET: &str = "fdpassd::master";

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(since: &Since) -> Vec<u64> {
        since.events.iter().map(|event| event.id).collect()
    }

    #[test]
    fn forgotten_events_are_counted() {
        let mut events = EventLog::default();
        assert_eq!(
            events.since(0),
            Since {
                events: Vec::new(),
                lost: 0
            }
        );
        for _ in 0..MAX_EVENTS + 3 {
            events.note(Kind::Scaled, About::default(), "more\nworkers");
        }
        let last = events.last();
        assert_eq!(last, MAX_EVENTS as u64 + 3);
        let all = events.since(0);
        assert_eq!(
            (all.lost, all.events.len(), all.events[0].id),
            (3, MAX_EVENTS, 4)
        );
        assert_eq!(all.events[0].message, "more\\nworkers");
        assert_eq!(
            (
                numbers(&events.since(last - 2)),
                events.since(last - 2).lost
            ),
            (vec![last - 1, last], 0)
        );
        assert_eq!((events.since(2).lost, events.since(3).lost), (1, 0));
        assert_eq!(events.since(last).events, []);
        // From before a restart.
        assert_eq!(events.since(last + 1), all);
    }
}
