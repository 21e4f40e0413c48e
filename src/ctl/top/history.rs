//! Rates, from the totals of the last seconds.

use std::collections::VecDeque;

use crate::proto::control::Status;

/// The totals of the last [`WINDOW`] seconds, or of what there is of them.
#[derive(Debug, Default)]
pub(crate) struct RecentTotals {
    pid: u32,
    samples: VecDeque<Sample>,
}

/// The totals at one time.
#[derive(Debug)]
struct Sample {
    /// The uptime of the daemon, in seconds.
    at: f64,
    requests: u64,
    errors: u64,
    accepted: u64,
    moved: u64,
    /// The requests of each seat.
    seats: Vec<(u32, u64)>,
}

impl RecentTotals {
    /// Adds the totals of a status. They begin again with another master, and with totals that have gone back.
    pub(crate) fn add(&mut self, status: &Status) {
        let sample = Sample {
            at: status.uptime_seconds,
            requests: status.requests_total,
            errors: status.errors_total,
            accepted: status.accepted_total,
            moved: status.moved_total,
            seats: requests_of_seats(status),
        };
        let continues = |last: &Sample| last.at < sample.at && last.requests <= sample.requests;
        if self.pid != status.pid || !self.samples.back().is_some_and(continues) {
            self.samples.clear();
        }
        self.pid = status.pid;
        // The oldest one is as old as the window or older.
        while self
            .samples
            .get(1)
            .is_some_and(|next| sample.at - next.at >= WINDOW)
        {
            self.samples.pop_front();
        }
        self.samples.push_back(sample);
    }

    /// Returns the requests a second.
    pub(crate) fn requests(&self) -> Option<f64> {
        self.rate(|sample| Some(sample.requests))
    }

    /// Returns the errors a second.
    pub(crate) fn errors(&self) -> Option<f64> {
        self.rate(|sample| Some(sample.errors))
    }

    /// Returns the new clients a second.
    pub(crate) fn accepted(&self) -> Option<f64> {
        self.rate(|sample| Some(sample.accepted))
    }

    /// Returns the moves of clients a second.
    pub(crate) fn moved(&self) -> Option<f64> {
        self.rate(|sample| Some(sample.moved))
    }

    /// Returns the requests a second in a seat.
    pub(crate) fn requests_in(&self, seat: u32) -> Option<f64> {
        self.rate(|sample| {
            let mut seats = sample.seats.iter();
            seats.find(|(of, _)| *of == seat).map(|(_, total)| *total)
        })
    }

    fn rate(&self, total: impl Fn(&Sample) -> Option<u64>) -> Option<f64> {
        let (first, last) = (self.samples.front()?, self.samples.back()?);
        let time = last.at - first.at;
        let more = total(last)?.saturating_sub(total(first)?);
        (time > 0.0).then(|| more as f64 / time)
    }
}

fn requests_of_seats(status: &Status) -> Vec<(u32, u64)> {
    let workers = status.workers.iter();
    workers
        .map(|worker| (worker.seat, worker.requests_total))
        .collect()
}

/// The time over which the daemon itself measures rates and percentiles, in seconds.
const WINDOW: f64 = 10.0;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ctl::tests::status;

    /// Adds a status with these totals at this time, in the second seat as well.
    fn add(history: &mut RecentTotals, pid: u32, at: f64, requests: u64) {
        let mut status = status();
        (status.pid, status.uptime_seconds, status.requests_total) = (pid, at, requests);
        status.workers[1].requests_total = requests / 2;
        history.add(&status);
    }

    #[test]
    fn rates_are_over_ten_seconds_or_what_there_is() {
        let mut history = RecentTotals::default();
        assert_eq!(history.requests(), None);
        add(&mut history, 1, 100.0, 1000);
        assert_eq!(history.requests(), None);
        add(&mut history, 1, 101.0, 1500);
        assert_eq!(history.requests(), Some(500.0));
        assert_eq!(history.requests_in(1), Some(250.0));
        assert_eq!(
            (history.errors(), history.requests_in(7)),
            (Some(0.0), None)
        );
        for second in 2..30 {
            add(&mut history, 1, 100.0 + f64::from(second), 1500);
        }
        assert_eq!(history.requests(), Some(0.0));
        assert!(history.samples.len() <= 12, "{}", history.samples.len());
    }

    #[test]
    fn another_master_begins_again() {
        let mut history = RecentTotals::default();
        add(&mut history, 1, 100.0, 1000);
        add(&mut history, 1, 101.0, 1500);
        add(&mut history, 2, 102.0, 1600);
        assert_eq!(history.requests(), None);
        add(&mut history, 2, 103.0, 1700);
        assert_eq!(history.requests(), Some(100.0));
        // Totals that have gone back, and a reply of the same moment.
        add(&mut history, 2, 104.0, 10);
        assert_eq!(history.requests(), None);
        add(&mut history, 2, 104.0, 20);
        assert_eq!(history.requests(), None);
    }
}
