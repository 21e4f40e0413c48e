//! The counters of a change in progress.

use std::fmt;

use super::args::ChangeVerb;
use super::figures::counted;
use super::page::EventsPage;
use super::session::parse;
use crate::proto::control::{Event, Kind, Recycle};
use crate::proto::names::Generation;
use crate::proto::text::Counted;

/// Counts what a change waits for. Displayed as one line: `reloading: 1 of 4 workers ready, 1 of 4 old workers gone`.
#[derive(Debug)]
pub(super) struct ChangeCounters<'a> {
    change: &'a ChangeVerb,
    /// The number of new workers; of a reload it is known when it has begun.
    wanted: Option<u32>,
    /// The generation that a reload starts.
    generation: Option<Generation>,
    /// Workers before the change.
    before: u32,
    /// Workers that have become ready since.
    became_ready: u32,
    /// Workers of those before that have ended since.
    gone: u32,
    /// Workers that are ready.
    ready: u32,
    clients: u64,
}

impl<'a> ChangeCounters<'a> {
    /// Begins to count for a change. `page` has the numbers before it.
    pub(super) fn new(change: &'a ChangeVerb, page: &EventsPage) -> ChangeCounters<'a> {
        let before = match change {
            ChangeVerb::Recycle {
                which: Recycle { worker: Some(_) },
            } => 1,
            _ => page.workers,
        };
        ChangeCounters {
            change,
            wanted: (!matches!(change, ChangeVerb::Reload { .. })).then_some(before),
            generation: None,
            before,
            became_ready: 0,
            gone: 0,
            ready: page.workers,
            clients: page.clients,
        }
    }

    pub(super) fn count(&mut self, page: &EventsPage) {
        (self.ready, self.clients) = (page.workers, page.clients);
        for event in page
            .events
            .iter()
            .filter_map(|raw| parse::<Event>(raw).ok())
        {
            let is_new = self.generation.is_some() && event.about.generation == self.generation;
            match event.event {
                Kind::ReloadBegun => {
                    (self.generation, self.wanted) = (event.about.generation, event.about.workers)
                }
                Kind::WorkerReady if is_new || self.generation.is_none() => self.became_ready += 1,
                Kind::WorkerFinished | Kind::WorkerDied if !is_new => self.gone += 1,
                _ => {}
            }
        }
    }

    /// Shows at most as many workers as are wanted: some may die and be replaced.
    fn write_replaced(&self, f: &mut fmt::Formatter<'_>, activity: &str) -> fmt::Result {
        let Some(wanted) = self.wanted else {
            return f.write_str(activity);
        };
        let (ready, gone) = (self.became_ready.min(wanted), self.gone.min(self.before));
        let [new, old] = [
            Counted(wanted, "worker"),
            Counted(self.before, "old worker"),
        ];
        write!(
            f,
            "{activity}: {ready} of {new} ready, {gone} of {old} gone"
        )
    }
}

impl fmt::Display for ChangeCounters<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let workers = |count: u32| counted(count.into(), "worker");
        let clients = counted(self.clients, "client");
        match self.change {
            ChangeVerb::Reload { .. } => self.write_replaced(f, "reloading"),
            ChangeVerb::Recycle { .. } => self.write_replaced(f, "replacing"),
            ChangeVerb::Upgrade { .. } => self.write_replaced(f, "upgrading"),
            ChangeVerb::Scale { count } => {
                write!(f, "scaling to {count}: {} ready", workers(self.ready))
            }
            ChangeVerb::Hold { worker } => {
                write!(f, "holding worker {worker}: its clients move to the others")
            }
            ChangeVerb::Rebalance { .. } => f.write_str("rebalancing: measuring load"),
            ChangeVerb::Stop { .. } => {
                let left = workers(self.before.saturating_sub(self.gone));
                write!(f, "stopping: {left} and {clients} left")
            }
            _ => write!(f, "draining: {clients} left"),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::value::{RawValue, to_raw_value};

    use super::*;
    use crate::ctl::args::drain::DrainArguments;
    use crate::proto::control::About;
    use crate::proto::log::LogLevel;
    use crate::proto::names::WorkerId;

    fn event(kind: Kind, generation: u64, workers: Option<u32>) -> Box<RawValue> {
        let about = About {
            generation: Some(Generation(generation)),
            workers,
            ..About::default()
        };
        let (level, message) = (LogLevel::Info, String::new());
        to_raw_value(&Event {
            id: 1,
            at: 0.0,
            level,
            event: kind,
            message,
            about,
        })
        .expect("JSON")
    }

    /// Returns the line at first, and after these events.
    fn lines(change: &ChangeVerb, events: &[Box<RawValue>]) -> [String; 2] {
        let page = |events, workers, clients| EventsPage {
            events,
            last: 1,
            lost: 0,
            workers,
            clients,
        };
        let mut counters = ChangeCounters::new(change, &page(Vec::new(), 3, 1234));
        let first = counters.to_string();
        counters.count(&page(events.iter().map(|event| &**event).collect(), 2, 1));
        [first, counters.to_string()]
    }

    #[test]
    fn a_reload_counts_workers_of_both_generations() {
        use Kind::*;
        let reload = ChangeVerb::Reload { force: false };
        let events = [
            event(ReloadBegun, 7, Some(4)),
            event(WorkerReady, 7, None),
            event(WorkerStarted, 7, None),
            event(WorkerReady, 6, None),
            event(WorkerFinished, 6, None),
            event(WorkerDied, 7, None),
            event(WorkerDied, 6, None),
        ];
        let last = "reloading: 1 of 4 workers ready, 2 of 3 old workers gone";
        assert_eq!(lines(&reload, &events), ["reloading", last]);
        // Workers that die and are replaced are not more than wanted.
        let more: Vec<_> = events
            .iter()
            .chain([&events[1]; 9])
            .chain([&events[4]; 9])
            .cloned()
            .collect();
        let last = "reloading: 4 of 4 workers ready, 3 of 3 old workers gone";
        assert_eq!(lines(&reload, &more)[1], last);
    }

    #[test]
    fn each_change_counts_what_it_waits_for() {
        let events = [
            event(Kind::WorkerReady, 6, None),
            event(Kind::WorkerFinished, 6, None),
        ];
        let recycle = |worker| ChangeVerb::Recycle {
            which: Recycle { worker },
        };
        for (change, first, last) in [
            (
                recycle(None),
                "replacing: 0 of 3 workers ready, 0 of 3 old workers gone",
                "replacing: 1 of 3 workers ready, 1 of 3 old workers gone",
            ),
            (
                recycle(Some(WorkerId(5))),
                "replacing: 0 of 1 worker ready, 0 of 1 old worker gone",
                "replacing: 1 of 1 worker ready, 1 of 1 old worker gone",
            ),
            (
                ChangeVerb::Upgrade { binary: None },
                "upgrading: 0 of 3 workers ready, 0 of 3 old workers gone",
                "upgrading: 1 of 3 workers ready, 1 of 3 old workers gone",
            ),
            (
                ChangeVerb::Scale { count: 2 },
                "scaling to 2: 3 workers ready",
                "scaling to 2: 2 workers ready",
            ),
            (
                ChangeVerb::Drain(DrainArguments::default()),
                "draining: 1,234 clients left",
                "draining: 1 client left",
            ),
            (
                ChangeVerb::Stop { if_stopping: None },
                "stopping: 3 workers and 1,234 clients left",
                "stopping: 2 workers and 1 client left",
            ),
            (
                ChangeVerb::Hold {
                    worker: WorkerId(5),
                },
                "holding worker 5: its clients move to the others",
                "holding worker 5: its clients move to the others",
            ),
            (
                ChangeVerb::Rebalance { dry_run: false },
                "rebalancing: measuring load",
                "rebalancing: measuring load",
            ),
        ] {
            assert_eq!(lines(&change, &events), [first, last]);
        }
    }
}
