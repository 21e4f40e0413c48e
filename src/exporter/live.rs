//! Streams of updates for the page, by server-sent events (WHATWG HTML, section 9.2).
//!
//! All streams share one query a second. A thread of a stream that finds it due makes it, and the others wait for its
//! result; so there is no thread and no timer when no stream is open. Each stream begins with a `history`, for the plots
//! and the list of events, and then has an `update` a second. If the daemon does not answer, the stream has the reason
//! as `trouble` instead.
//!
//! ```text
//! event: update
//! data: {"daemon":{"name":"fdpassd","workers":[…],…},"points":[…],"events":[…]}
//! ```
//!
//! A stream whose client reads slowly may miss updates. The next one then has the points and events of those as well.

mod events;
mod history;
mod view;

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::value::RawValue;

use self::events::{PageEvent, RecentEvents};
use self::history::{History, PlotPoint};
use self::view::LiveView;
use super::daemon::DaemonClient;
use super::http::HttpReply;
use super::page;
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
    /// Whether a sample was claimed and is not taken yet.
    is_sampling: bool,
    /// The earliest time of the next query.
    next: Instant,
    /// The number of updates so far, and the last one; `None` before the first.
    number: u64,
    update: Option<LastUpdate>,
    history: History,
    events: RecentEvents,
}

/// The part of the last update that all streams share.
#[derive(Clone, Debug)]
enum LastUpdate {
    /// The state of the daemon, as JSON.
    Daemon(Arc<RawValue>),
    /// Why there is none.
    Trouble(Arc<str>),
}

/// A stream. Its place is free again when it is dropped.
#[derive(Debug)]
pub(super) struct LiveStream<'a> {
    live: &'a Live,
    /// The number of the last update that was sent.
    seen: u64,
    /// The number of the last point that was sent. It may have changed since.
    point: u64,
    /// The number of events that were added before the last update that was sent.
    events: u64,
}

/// The right to query the daemon for all streams, until it is dropped.
struct LiveTurn<'a>(&'a Live);

/// The right to take a sample, until it is dropped.
#[derive(Debug)]
pub(super) struct SampleClaim<'a>(&'a Live);

/// The first event of a stream.
#[derive(Serialize)]
struct LiveHistory {
    /// The version of the page that this stream is for.
    page: &'static str,
    /// The period of the plots, in seconds.
    span: u64,
    points: Vec<PlotPoint>,
    events: Vec<PageEvent>,
}

/// An update.
#[derive(Serialize)]
struct LiveUpdate<'a> {
    daemon: &'a RawValue,
    /// Points since the update before. The first one replaces a point with the same number.
    points: Vec<PlotPoint>,
    /// Events since the update before.
    events: Vec<PageEvent>,
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
                is_sampling: false,
                next: Instant::now(),
                number: 0,
                update: None,
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

    /// Claims the next sample; `None` if there is a recent one, or if another thread takes it.
    pub(super) fn claim_sample(&self) -> Option<SampleClaim<'_>> {
        let mut state = self.state();
        if state.is_sampling || !state.history.wants_sample(Instant::now()) {
            return None;
        }
        state.is_sampling = true;
        Some(SampleClaim(self))
    }

    /// Begins a stream; `None` if there are [`MAX_STREAMS`].
    pub(super) fn join(&self) -> Option<LiveStream<'_>> {
        let mut state = self.state();
        if state.streams >= MAX_STREAMS {
            return None;
        }
        state.streams += 1;
        let is_current = state.next > Instant::now();
        Some(LiveStream {
            live: self,
            // The last update is sent at once if it is current.
            seen: state.number - u64::from(is_current && state.number > 0),
            point: 0,
            events: 0,
        })
    }

    /// Makes the next update for all streams. `last` is the number of the last event.
    fn query(&self, daemon: &DaemonClient, last: u64) {
        // Another stream has the next turn, also after a panic.
        let _turn = LiveTurn(self);
        let answer = daemon.status_and_events(last, events::KEPT as u64);
        self.state().publish(answer, Instant::now());
    }

    fn state(&self) -> MutexGuard<'_, LiveState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<'a> LiveStream<'a> {
    /// Returns the first event of the stream.
    pub(super) fn history(&mut self) -> String {
        let state = self.live.state();
        let (points, events) = self.take(&state);
        // Requests need the state, and encoding an hour takes long.
        drop(state);
        let history = LiveHistory {
            page: page::VERSION,
            span: history::SPAN.as_secs(),
            points,
            events,
        };
        encode("history", &history)
    }

    /// Waits for the next update, and returns it.
    pub(super) fn next(&mut self, daemon: &DaemonClient) -> String {
        let state = self.wait(daemon);
        self.seen = state.number;
        match state.update.clone() {
            Some(LastUpdate::Daemon(daemon)) => {
                let (points, events) = self.take(&state);
                drop(state);
                let update = LiveUpdate {
                    daemon: &daemon,
                    points,
                    events,
                };
                encode("update", &update)
            }
            Some(LastUpdate::Trouble(message)) => {
                encode("trouble", &LiveTrouble { message: &message })
            }
            None => String::new(),
        }
    }

    /// Waits until there is an update that was not sent. The thread that finds a query due makes it.
    fn wait(&self, daemon: &DaemonClient) -> MutexGuard<'a, LiveState> {
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
                live.query(daemon, last);
                state = live.state();
            }
        }
        state
    }

    /// Returns the points and events that were not sent.
    fn take(&mut self, state: &LiveState) -> (Vec<PlotPoint>, Vec<PageEvent>) {
        let points = state.history.points_from(self.point, Instant::now());
        let events = state.events.after(self.events).cloned().collect();
        self.point = state.history.last_number();
        self.events = state.events.added();
        (points, events)
    }
}

impl Drop for LiveStream<'_> {
    fn drop(&mut self) {
        self.live.state().streams -= 1;
    }
}

impl Drop for LiveTurn<'_> {
    fn drop(&mut self) {
        self.0.state().is_querying = false;
        self.0.published.notify_all();
    }
}

impl Drop for SampleClaim<'_> {
    fn drop(&mut self) {
        self.0.state().is_sampling = false;
    }
}

impl LiveState {
    /// Makes the next update of the daemon's answer.
    fn publish(&mut self, answer: Result<(Status, Option<Events>), HttpReply>, now: Instant) {
        self.number += 1;
        self.update = Some(match answer {
            Ok((status, events)) => {
                self.history.record(&status, now);
                if let Some(events) = events {
                    self.events.add(events);
                }
                let view = LiveView::new(&status, self.history.rates());
                let json =
                    serde_json::value::to_raw_value(&view).expect("texts and numbers are JSON");
                LastUpdate::Daemon(json.into())
            }
            Err(reply) => LastUpdate::Trouble(reply.text().into()),
        });
    }
}

/// Encodes an event of a stream. JSON is one line: newlines in its texts are escaped.
fn encode(name: &str, data: &impl Serialize) -> String {
    let json = serde_json::to_string(data).expect("texts and numbers are JSON");
    format!("event: {name}\ndata: {json}\n\n")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::serving::tests::status;
    use super::*;

    /// Makes an update with the event of this number.
    fn publish(live: &Live, event: u64, now: Instant) {
        let events = json!({
            "last": event, "lost": 0, "workers": 1, "clients": 0,
            "events": [{ "id": event, "at": event, "level": "warn", "event": "worker_died", "message": "" }]
        });
        let events = serde_json::from_value(events).expect("events");
        let status = status(&[("ready", 0.0)], &[("events_total", json!(event))]);
        live.state().publish(Ok((status, Some(events))), now);
    }

    /// Returns the numbers of the points and of the events of the next event of a stream, which must be there.
    fn numbers(event: &str) -> (Vec<u64>, Vec<u64>) {
        let (_, data) = event.split_once("data: ").expect("data");
        let data: Value = serde_json::from_str(data).expect("JSON");
        let all = |list: &str, name: &str| -> Vec<u64> {
            let list = data[list].as_array().expect("a list").iter();
            list.map(|item| item[name].as_u64().expect("a number"))
                .collect()
        };
        (all("points", "number"), all("events", "id"))
    }

    #[test]
    fn a_stream_that_misses_updates_gets_their_points_and_events() {
        let (live, begin) = (Live::default(), Instant::now());
        let daemon = DaemonClient::new("/nonexistent".into());
        let mut stream = live.join().expect("a place");
        assert_eq!(numbers(&stream.history()), (vec![], vec![]));
        for (event, seconds) in [(1, 0), (2, 1), (3, 5), (4, 10), (5, 11)] {
            publish(&live, event, begin + Duration::from_secs(seconds));
        }
        let expected = (vec![0, 1, 2, 3], vec![1, 2, 3, 4, 5]);
        assert_eq!(numbers(&stream.next(&daemon)), expected);
        publish(&live, 6, begin + Duration::from_secs(12));
        // The last point has changed since.
        assert_eq!(numbers(&stream.next(&daemon)), (vec![3], vec![6]));
        let mut other = live.join().expect("a place");
        let expected = (vec![0, 1, 2, 3], vec![1, 2, 3, 4, 5, 6]);
        assert_eq!(numbers(&other.history()), expected);
        // Events of a daemon that counts from 1 again are new.
        publish(&live, 1, begin + Duration::from_secs(13));
        assert_eq!(numbers(&other.next(&daemon)), (vec![3], vec![1]));
    }

    #[test]
    fn one_thread_at_a_time_takes_a_sample() {
        let live = Live::default();
        let claim = live.claim_sample().expect("there is no sample");
        assert!(live.claim_sample().is_none());
        drop(claim);
        let claim = live.claim_sample().expect("it was not taken");
        live.record(&status(&[("ready", 0.0)], &[]));
        drop(claim);
        assert!(live.claim_sample().is_none());
    }
}
