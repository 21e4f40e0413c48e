//! The last hour, for the plots of the page: samples of the status, which are taken only when the daemon is queried
//! anyway. So there are none while nothing watches or scrapes, and the plots have a gap there.
//!
//! A sample is kept every [`STEP`], and the last one in any case. An hour has at most [`MAX_SAMPLES`]; each takes about
//! 100 bytes and 4 for each worker: 100 KB with 8 workers, 0.9 MB with 256.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::proto::control::Status;
use crate::proto::names::MAX_WORKERS;

/// The period of the plots.
pub(super) const SPAN: Duration = Duration::from_secs(3600);

/// The least time between two samples that are kept. The percentiles of a sample cover 10 s, so none is left out.
const STEP: Duration = Duration::from_secs(5);

/// The least time between two samples: rates over less would be mostly chance.
const MIN_STEP: Duration = Duration::from_millis(500);

/// A longer time without a sample is a gap: more than the usual interval at which metrics are scraped.
const MAX_STEP: Duration = Duration::from_secs(90);

/// A status may be recorded after one that the daemon sent later, as several threads query it: by at most this time, in
/// seconds. A status that is older by more is that of an earlier daemon.
const MAX_LATE: f64 = 10.0;

/// The period of the current rates.
const RATE_SPAN: Duration = Duration::from_secs(10);

/// The most samples that are kept.
const MAX_SAMPLES: usize = (SPAN.as_secs() / STEP.as_secs()) as usize + 1;

/// Samples, the oldest first.
#[derive(Debug, Default)]
pub(super) struct History {
    kept: VecDeque<HistorySample>,
    /// The newest sample, if it is not kept.
    newest: Option<HistorySample>,
    /// Samples that were kept and are too old now.
    dropped: u64,
}

/// The needed figures of a status.
#[derive(Debug)]
struct HistorySample {
    at: Instant,
    /// The daemon's uptime, in seconds.
    uptime: f64,
    requests: u64,
    errors: u64,
    moved: u64,
    deaths: u64,
    p50: Option<f64>,
    p99: Option<f64>,
    /// The clients of each worker, by seat.
    clients: Box<[u32]>,
}

/// A point of all plots.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct PlotPoint {
    /// The number of the sample. A later point with the same number replaces an earlier one.
    number: u64,
    /// The time since the sample, in seconds.
    age: f64,
    /// Requests a second since the sample before; `None` after a gap.
    requests: Option<f64>,
    /// Of these, with an error.
    errors: Option<f64>,
    /// Percentiles of the 10 s before the sample.
    p50: Option<f64>,
    p99: Option<f64>,
    /// Clients that moved since the sample before.
    moved: Option<u64>,
    /// Workers that died since the sample before.
    deaths: Option<u64>,
    clients: Box<[u32]>,
}

/// Requests and errors a second over the last 10 s; `None` if there is no earlier sample in that time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct LiveRates {
    pub(super) requests: Option<f64>,
    pub(super) errors: Option<f64>,
}

impl History {
    /// Adds a sample, unless the last one is only just taken, or is of a later time.
    pub(super) fn record(&mut self, status: &Status, now: Instant) {
        let newest = self.samples().next_back();
        let is_late = newest.is_some_and(|newest| {
            let late = newest.uptime - status.uptime_seconds;
            late > 0.0 && late < MAX_LATE
        });
        if is_late || self.age(now).is_some_and(|age| age < MIN_STEP) {
            return;
        }
        let sample = HistorySample::new(status, now);
        let last = self.kept.back();
        if last.is_some_and(|last| now.duration_since(last.at) < STEP) {
            self.newest = Some(sample);
            return;
        }
        self.newest = None;
        self.kept.push_back(sample);
        let is_old = |sample: &HistorySample| now.duration_since(sample.at) > SPAN;
        while self.kept.len() > MAX_SAMPLES || self.kept.front().is_some_and(is_old) {
            self.kept.pop_front();
            self.dropped += 1;
        }
    }

    /// Returns whether a sample would be kept.
    pub(super) fn wants_sample(&self, now: Instant) -> bool {
        self.age(now).is_none_or(|age| age >= STEP)
    }

    /// Returns the points from a number on, the oldest first.
    pub(super) fn points_from(&self, first: u64, now: Instant) -> Vec<PlotPoint> {
        let (mut points, mut before) = (Vec::new(), None);
        for (number, sample) in (self.dropped..).zip(self.samples()) {
            if number >= first {
                points.push(PlotPoint::new(number, before, sample, now));
            }
            before = Some(sample);
        }
        points
    }

    /// Returns the number of the last point; 0 before the first.
    pub(super) fn last_number(&self) -> u64 {
        (self.dropped + self.samples().count() as u64).saturating_sub(1)
    }

    /// Returns the current rates.
    pub(super) fn rates(&self) -> LiveRates {
        let mut samples = self.samples().rev();
        let Some(newest) = samples.next() else {
            return LiveRates::default();
        };
        let is_near = |sample: &&HistorySample| newest.since(sample) <= RATE_SPAN;
        let Some(first) = samples.take_while(is_near).last() else {
            return LiveRates::default();
        };
        LiveRates {
            requests: newest.rate(first, |sample| sample.requests),
            errors: newest.rate(first, |sample| sample.errors),
        }
    }

    fn samples(&self) -> impl DoubleEndedIterator<Item = &HistorySample> {
        self.kept.iter().chain(&self.newest)
    }

    /// Returns the time since the last sample.
    fn age(&self, now: Instant) -> Option<Duration> {
        let newest = self.samples().next_back()?;
        Some(now.duration_since(newest.at))
    }
}

impl HistorySample {
    fn new(status: &Status, now: Instant) -> HistorySample {
        HistorySample {
            at: now,
            uptime: status.uptime_seconds,
            requests: status.requests_total,
            errors: status.errors_total,
            moved: status.moved_total,
            deaths: status.deaths_total,
            p50: status.p50_seconds,
            p99: status.p99_seconds,
            clients: clients_by_seat(status),
        }
    }

    fn since(&self, before: &HistorySample) -> Duration {
        self.at.duration_since(before.at)
    }

    /// Returns by how much a total has grown in a second since an earlier sample. A total that is smaller belongs to
    /// an earlier daemon.
    fn rate(&self, before: &HistorySample, total: fn(&HistorySample) -> u64) -> Option<f64> {
        let grown = total(self).checked_sub(total(before))?;
        Some(rounded(
            grown as f64 / self.since(before).as_secs_f64(),
            10.0,
        ))
    }
}

impl PlotPoint {
    fn new(
        number: u64,
        before: Option<&HistorySample>,
        sample: &HistorySample,
        now: Instant,
    ) -> PlotPoint {
        let before = before.filter(|before| sample.since(before) <= MAX_STEP);
        let rate = |total| before.and_then(|before| sample.rate(before, total));
        let grown = |total: fn(&HistorySample) -> u64| {
            before.and_then(|before| total(sample).checked_sub(total(before)))
        };
        PlotPoint {
            number,
            age: rounded(now.duration_since(sample.at).as_secs_f64(), 1000.0),
            requests: rate(|sample| sample.requests),
            errors: rate(|sample| sample.errors),
            p50: sample.p50,
            p99: sample.p99,
            moved: grown(|sample| sample.moved),
            deaths: grown(|sample| sample.deaths),
            clients: sample.clients.clone(),
        }
    }
}

/// Returns the number of clients of each seat. Those of a leaving worker count for the seat that it had.
fn clients_by_seat(status: &Status) -> Box<[u32]> {
    let seated = status.workers.iter().map(|w| (w.seat, w.clients));
    let leaving = status.leaving.iter().map(|w| (w.seat, w.clients));
    let mut clients = Vec::new();
    for (seat, count) in seated
        .chain(leaving)
        .filter(|(seat, _)| *seat < MAX_WORKERS)
    {
        let seat = seat as usize;
        if clients.len() <= seat {
            clients.resize(seat + 1, 0u32);
        }
        clients[seat] = clients[seat].saturating_add(count.try_into().unwrap_or(u32::MAX));
    }
    clients.into()
}

/// Returns a number in steps of `1 / parts`, whose text is short.
fn rounded(number: f64, parts: f64) -> f64 {
    (number * parts).round() / parts
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::super::serving::tests::status;
    use super::*;

    /// Returns a status with these totals.
    fn totals(requests: u64, deaths: u64) -> Status {
        let members = [
            ("requests_total", json!(requests)),
            ("errors_total", json!(requests / 10)),
            ("moved_total", json!(deaths * 3)),
            ("deaths_total", json!(deaths)),
        ];
        status(&[("ready", 0.0), ("ready", 0.0)], &members)
    }

    /// Returns a history with samples at these seconds; 100 requests are answered a second, and a worker dies each.
    fn sampled(begin: Instant, seconds: impl IntoIterator<Item = u64>) -> History {
        let mut history = History::default();
        for second in seconds {
            let now = begin + Duration::from_secs(second);
            history.record(&totals(100 * second, second), now);
        }
        history
    }

    /// Returns the last point, which has the last number.
    fn newest(history: &History, now: Instant) -> PlotPoint {
        let mut points = history.points_from(history.last_number(), now);
        assert_eq!(points.len(), 1);
        points.remove(0)
    }

    /// Returns the age and the rate of each point, seen at a second.
    fn seen(history: &History, now: Instant) -> Vec<(u64, Option<f64>)> {
        let points = history.points_from(0, now).into_iter();
        points.map(|p| (p.age as u64, p.requests)).collect()
    }

    #[test]
    fn samples_are_kept_every_five_seconds_and_the_newest() {
        let begin = Instant::now();
        let history = sampled(begin, 0..=12);
        let now = begin + Duration::from_secs(12);
        let rate = Some(100.0);
        assert_eq!(
            seen(&history, now),
            [(12, None), (7, rate), (2, rate), (0, rate)]
        );
        let point = newest(&history, now);
        assert_eq!(
            (point.number, point.moved, point.deaths),
            (3, Some(6), Some(2))
        );
        assert_eq!((point.errors, &*point.clients), (Some(10.0), &[0, 0][..]));
        assert_eq!(history.points_from(0, now).last(), Some(&point));
        assert_eq!(newest(&sampled(begin, [0, 5]), now).number, 1);
    }

    #[test]
    fn points_of_one_interval_have_the_same_number() {
        let begin = Instant::now();
        let mut history = History::default();
        let mut numbers = Vec::new();
        for second in 0..=11 {
            let now = begin + Duration::from_secs(second);
            history.record(&totals(0, 0), now);
            numbers.push(newest(&history, now).number);
        }
        assert_eq!(numbers, [0, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 3]);
    }

    #[test]
    fn a_time_without_samples_is_a_gap() {
        let begin = Instant::now();
        let history = sampled(begin, [0, 60, 150, 241, 301]);
        let now = begin + Duration::from_secs(301);
        let rate = Some(100.0);
        assert_eq!(
            seen(&history, now),
            [(301, None), (241, rate), (151, rate), (60, None), (0, rate)]
        );
        let after_gap = &history.points_from(0, now)[3];
        assert_eq!((after_gap.moved, after_gap.deaths), (None, None));
    }

    #[test]
    fn totals_of_an_earlier_daemon_are_a_gap() {
        let begin = Instant::now();
        let mut history = sampled(begin, [10]);
        let now = begin + Duration::from_secs(20);
        history.record(&totals(5, 0), now);
        assert_eq!(seen(&history, now), [(10, None), (0, None)]);
        assert_eq!(history.rates(), LiveRates::default());
    }

    #[test]
    fn the_history_is_an_hour_and_has_a_most_of_samples() {
        let begin = Instant::now();
        let history = sampled(begin, 0..3 * 3600);
        assert_eq!(history.kept.len(), MAX_SAMPLES);
        let now = begin + Duration::from_secs(3 * 3600 - 1);
        let points = history.points_from(0, now);
        assert!(points.len() <= MAX_SAMPLES + 1 && points[0].age <= 3605.0);
        let last = points.last().expect("a point").number;
        assert_eq!(last - points[0].number + 1, points.len() as u64);
        // A point after a long time is the only one.
        let mut history = history;
        history.record(&totals(0, 0), now + 2 * SPAN);
        assert_eq!(history.points_from(0, now + 2 * SPAN).len(), 1);
        assert!(size_of::<HistorySample>() <= 112);
    }

    #[test]
    fn a_status_that_is_recorded_late_is_no_sample() {
        let begin = Instant::now();
        let mut history = History::default();
        for (second, uptime, requests) in [(0, 100.0, 10), (1, 102.0, 30), (2, 101.5, 20)] {
            let mut status = totals(requests, 0);
            status.uptime_seconds = uptime;
            history.record(&status, begin + Duration::from_secs(second));
        }
        let now = begin + Duration::from_secs(2);
        assert_eq!(seen(&history, now), [(2, None), (1, Some(20.0))]);
        // An earlier daemon had a higher one.
        history.record(&totals(0, 0), now);
        assert_eq!(seen(&history, now), [(2, None), (0, None)]);
    }

    #[test]
    fn samples_at_the_same_moment_are_one() {
        let begin = Instant::now();
        let mut history = sampled(begin, [0]);
        let soon = begin + Duration::from_millis(3);
        history.record(&totals(50, 0), soon);
        assert_eq!(history.points_from(0, soon).len(), 1);
        assert!(!history.wants_sample(begin + Duration::from_secs(4)));
        assert!(history.wants_sample(begin + STEP) && History::default().wants_sample(begin));
    }

    #[test]
    fn current_rates_cover_the_last_ten_seconds() {
        let begin = Instant::now();
        let mut history = sampled(begin, [0, 5, 10, 15]);
        history.record(&totals(1500, 15), begin + Duration::from_secs(17));
        // 1500 - 1000 requests in 7 s.
        assert_eq!(history.rates().requests, Some(71.4));
        assert_eq!(sampled(begin, [0]).rates(), LiveRates::default());
        assert_eq!(sampled(begin, [0, 30]).rates(), LiveRates::default());
        assert_eq!(sampled(begin, [0, 1]).rates().requests, Some(100.0));
        assert_eq!(History::default().rates(), LiveRates::default());
    }

    #[test]
    fn clients_of_leaving_workers_count_for_their_seat() {
        let leaving = |seat: u64, clients: u64| {
            json!({
                "id": 9, "pid": 1, "seat": seat, "generation": 1, "state": "draining", "reason": "",
                "waits_for": "", "killed_in_seconds": null, "clients": clients
            })
        };
        let leaving = json!([
            leaving(2, 7),
            leaving(0, u64::MAX),
            leaving(4_000_000_000, 1)
        ]);
        let status = status(&[("ready", 0.0)], &[("leaving", leaving)]);
        assert_eq!(*clients_by_seat(&status), [u32::MAX, 0, 7]);
    }
}
