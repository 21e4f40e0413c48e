//! Streams of updates for the page, by server-sent events (WHATWG HTML, section 9.2).
//!
//! All streams share one query a second. A thread of a stream that finds it due makes it, and the others wait for its
//! result; so there is no thread and no timer when no stream is open. Each stream begins with a `history`, for the plots
//! and the list of events, and then has an `update` a second. If the daemon does not answer, the stream has the reason
//! as `trouble` instead.
//!
//! ```text
//! event: update
//! data: {"name":"fdpassd","workers":[…],…}
//! ```

mod events;
mod history;
mod view;

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

use self::events::{PageEvent, RecentEvents};
use self::history::{History, PlotPoint};
use self::view::LiveView;
use super::daemon::DaemonClient;
use super::http::HttpReply;
use crate::proto::control::{Events, Status};

/// The most streams at a time.
pub(super) const MAX_STREAMS: usize = 8;

/// The shortest time between two updates.
const INTERVAL: Duration = Duration::from_secs(1);

/// The state that all streams share.
#[derive(Debug)]
pub(super) struct Live {
    state: Mutex<LiveState>,
    published: Condvar,
}

#[derive(Debug)]
struct LiveState {
    streams: usize,
    /// Whether the thread of a stream is querying the daemon.
    is_querying: bool,
    /// The earliest time of the next query.
    next: Instant,
    /// The number of updates so far, and the last one.
    number: u64,
    update: Arc<str>,
    history: History,
    events: RecentEvents,
}

/// A stream. Its place is free again when it is dropped.
#[derive(Debug)]
pub(super) struct Watcher<'a> {
    live: &'a Live,
    /// The number of the last update that was sent.
    seen: u64,
    /// Whether this stream queries the daemon for all.
    is_querying: bool,
}

/// The first event of a stream.
#[derive(Serialize)]
struct LiveHistory<'a> {
    /// The period of the plots, in seconds.
    span: u64,
    points: Vec<PlotPoint<'a>>,
    events: Vec<&'a PageEvent>,
}

/// An update.
#[derive(Serialize)]
struct LiveUpdate<'a> {
    #[serde(flatten)]
    view: LiveView<'a>,
    point: Option<PlotPoint<'a>>,
    /// Events since the update before.
    events: Vec<&'a PageEvent>,
}

/// The reason why there is no update.
#[derive(Serialize)]
struct LiveTrouble<'a> {
    message: &'a str,
}

impl Default for Live {
    fn default() -> Live {
        Live {
            state: Mutex::new(LiveState {
                streams: 0,
                is_querying: false,
                next: Instant::now(),
                number: 0,
                update: "".into(),
                history: History::default(),
                events: RecentEvents::default(),
            }),
            published: Condvar::new(),
        }
    }
}

impl Live {
    /// Adds a sample to the history.
    pub(super) fn record(&self, status: &Status) {
        self.state().history.record(status, Instant::now());
    }

    /// Returns whether the history has no recent sample.
    pub(super) fn wants_sample(&self) -> bool {
        self.state().history.wants_sample(Instant::now())
    }

    /// Begins a stream; `None` if there are [`MAX_STREAMS`].
    pub(super) fn join(&self) -> Option<Watcher<'_>> {
        let mut state = self.state();
        if state.streams >= MAX_STREAMS {
            return None;
        }
        state.streams += 1;
        let is_current = state.next > Instant::now();
        Some(Watcher {
            live: self,
            // The last update is sent at once if it is current.
            seen: state.number - u64::from(is_current && state.number > 0),
            is_querying: false,
        })
    }

    fn state(&self) -> MutexGuard<'_, LiveState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watcher<'_> {
    /// Returns the first event of the stream.
    pub(super) fn history(&self) -> String {
        let state = self.live.state();
        let history = LiveHistory {
            span: history::SPAN.as_secs(),
            points: state.history.points(Instant::now()),
            events: state.events.iter().collect(),
        };
        encode("history", &history)
    }

    /// Waits for the next update, and returns it. Only the newest of several missed updates is sent.
    pub(super) fn next(&mut self, daemon: &DaemonClient) -> Arc<str> {
        let live = self.live;
        let mut state = live.state();
        while state.number <= self.seen {
            let wait = state.next.saturating_duration_since(Instant::now());
            if state.is_querying {
                let woken = live.published.wait(state);
                state = woken.unwrap_or_else(PoisonError::into_inner);
            } else if !wait.is_zero() {
                let woken = live.published.wait_timeout(state, wait);
                (state, _) = woken.unwrap_or_else(PoisonError::into_inner);
            } else {
                state.is_querying = true;
                state.next = Instant::now() + INTERVAL;
                let last = state.events.last();
                drop(state);
                self.is_querying = true;
                let answer = daemon.status_and_events(last, events::KEPT as u64);
                state = live.state();
                state.publish(answer, Instant::now());
                (self.is_querying, state.is_querying) = (false, false);
                live.published.notify_all();
            }
        }
        self.seen = state.number;
        Arc::clone(&state.update)
    }
}

impl Drop for Watcher<'_> {
    fn drop(&mut self) {
        let mut state = self.live.state();
        state.streams -= 1;
        // Only after a panic: another stream queries instead.
        if self.is_querying {
            state.is_querying = false;
            self.live.published.notify_all();
        }
    }
}

impl LiveState {
    /// Makes the next update of the daemon's answer.
    fn publish(&mut self, answer: Result<(Status, Option<Events>), HttpReply>, now: Instant) {
        self.number += 1;
        self.update = match answer {
            Ok((status, events)) => self.update(&status, events, now),
            Err(reply) => {
                let message = reply.text();
                encode("trouble", &LiveTrouble { message })
            }
        }
        .into();
    }

    fn update(&mut self, status: &Status, events: Option<Events>, now: Instant) -> String {
        self.history.record(status, now);
        let new = events.map_or(0, |events| self.events.add(events));
        let update = LiveUpdate {
            view: LiveView::new(status, self.history.rates()),
            point: self.history.newest(now),
            events: self.events.iter_last(new).collect(),
        };
        encode("update", &update)
    }
}

/// Encodes an event of a stream. JSON is one line: newlines in its texts are escaped.
fn encode(name: &str, data: &impl Serialize) -> String {
    let json = serde_json::to_string(data).expect("texts and numbers are JSON");
    format!("event: {name}\ndata: {json}\n\n")
}
