//! Events as the page shows them: kind and numbers. The sentences of the log are left out, because they have addresses
//! of clients, users, paths and texts of methods, which the metrics do not have either.

use std::collections::VecDeque;

use serde::Serialize;

use crate::proto::control::{About, Event, Events};
use crate::proto::log::LogLevel;
use crate::proto::text::Counted;

/// The most events that are kept for the page.
pub(super) const KEPT: usize = 50;

/// The last events.
#[derive(Debug, Default)]
pub(super) struct RecentEvents {
    kept: VecDeque<PageEvent>,
    /// The events that were added so far.
    added: u64,
    last: u64,
}

/// An event.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct PageEvent {
    id: u64,
    /// The time, in seconds since the Unix epoch.
    at: f64,
    level: LogLevel,
    /// The kind, for the marks in the plots.
    kind: &'static str,
    text: String,
}

impl RecentEvents {
    /// Adds events of the daemon.
    pub(super) fn add(&mut self, events: Events) {
        self.last = events.last;
        self.added += events.events.len() as u64;
        let new = events.events.len().min(KEPT);
        let newest = events.events[events.events.len() - new..].iter();
        self.kept.extend(newest.map(PageEvent::new));
        let old = self.kept.len().saturating_sub(KEPT);
        self.kept.drain(..old);
    }

    /// Returns the number of the last event; 0 before the first.
    pub(super) fn last(&self) -> u64 {
        self.last
    }

    /// Returns how many events were added so far. It is not the number of the last one: a daemon may count from 1 again.
    pub(super) fn added(&self) -> u64 {
        self.added
    }

    /// Returns the events, as far as they are kept, that were added after the first `added`, the oldest first.
    pub(super) fn after(&self, added: u64) -> impl Iterator<Item = &PageEvent> {
        let count = self.added.saturating_sub(added).min(KEPT as u64) as usize;
        self.kept.iter().skip(self.kept.len().saturating_sub(count))
    }
}

impl PageEvent {
    fn new(event: &Event) -> PageEvent {
        PageEvent {
            id: event.id,
            at: event.at,
            level: event.level,
            kind: event.event.as_str(),
            text: text(event),
        }
    }
}

/// Returns the kind of an event as words, and the numbers of its subject: `worker 7 died (seat 2, 3 clients)`.
fn text(event: &Event) -> String {
    let About {
        worker,
        seat,
        generation,
        client,
        clients,
        workers,
        ..
    } = event.about;
    let words = event.event.as_str().replace('_', " ");
    let words = match (words.strip_prefix("worker "), worker) {
        (Some(what), Some(id)) => format!("worker {id} {what}"),
        _ => words,
    };
    let numbers = [
        seat.map(|seat| format!("seat {seat}")),
        generation.map(|generation| format!("generation {generation}")),
        client.map(|client| format!("client {client}")),
        clients.map(|clients| Counted(clients, "client").to_string()),
        workers.map(|workers| Counted(workers, "worker").to_string()),
    ];
    let numbers: Vec<String> = numbers.into_iter().flatten().collect();
    match numbers.as_slice() {
        [] => words,
        numbers => format!("{words} ({})", numbers.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::control::Kind;
    use crate::proto::names::{ClientId, Generation, WorkerId};

    fn event(id: u64, kind: Kind, about: About) -> Event {
        Event {
            id,
            at: 1.5,
            level: LogLevel::Warn,
            event: kind,
            message: "client 3 (192.0.2.7:1) of uid 0: <b>&\u{202e}".to_owned(),
            about,
        }
    }

    fn events(ids: std::ops::RangeInclusive<u64>) -> Events {
        Events {
            last: *ids.end(),
            events: ids
                .map(|id| event(id, Kind::Drained, About::default()))
                .collect(),
            lost: 0,
            workers: 1,
            clients: 1,
        }
    }

    #[test]
    fn a_text_has_the_kind_and_numbers_and_no_sentence() {
        let worker = About {
            worker: Some(WorkerId(7)),
            pid: Some(4711),
            seat: Some(2),
            clients: Some(1),
            ..About::default()
        };
        let reload = About {
            generation: Some(Generation(4)),
            workers: Some(3),
            uid: Some(1000),
            asker: Some(4712),
            ..About::default()
        };
        let client = About {
            client: Some(ClientId(3)),
            ..About::default()
        };
        for (kind, about, expected) in [
            (Kind::WorkerDied, worker, "worker 7 died (seat 2, 1 client)"),
            (
                Kind::ReloadApplied,
                reload,
                "reload applied (generation 4, 3 workers)",
            ),
            (Kind::ClientKicked, client, "client kicked (client 3)"),
            (Kind::LogReopened, About::default(), "log reopened"),
        ] {
            assert_eq!(text(&event(1, kind, about)), expected);
        }
        for kind in Kind::ALL {
            let shown = PageEvent::new(&event(1, kind, About::default()));
            let shown = serde_json::to_string(&shown).expect("JSON");
            assert!(
                !shown.contains("192.0.2.7") && !shown.contains("uid"),
                "{shown}"
            );
        }
    }

    #[test]
    fn only_the_last_events_are_kept() {
        let ids = |recent: &RecentEvents, added| -> Vec<u64> {
            recent.after(added).map(|event| event.id).collect()
        };
        let mut recent = RecentEvents::default();
        recent.add(events(1..=2));
        assert_eq!((recent.last(), recent.added()), (2, 2));
        recent.add(events(3..=1000));
        assert_eq!(ids(&recent, 998), [999, 1000]);
        assert_eq!(ids(&recent, 0).len(), KEPT);
        recent.add(events(1..=1));
        assert_eq!((recent.last(), recent.added()), (1, 1001));
        assert_eq!(ids(&recent, 999), [1000, 1]);
        assert!(ids(&recent, 1001).is_empty());
    }
}
