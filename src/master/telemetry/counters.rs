//! Counts over the whole life of the daemon: the master's own, and those of workers that are gone.

use std::collections::BTreeMap;
use std::io;

use serde::{Deserialize, Serialize};

use crate::master::telemetry::by_kind::{By, Label};
use crate::master::telemetry::without_client::WithoutClient;
use crate::pool::Why;
use crate::proto::channel::MethodName;
use crate::proto::control::Verdict;
use crate::proto::rpc::is_method_name;
use crate::shm::own_metrics::{MAX_OWN_METRICS, OwnMetric};
use crate::shm::{BUCKETS, CloseReason, Counters};
use crate::sys::process::Exit;

/// Counts of the master itself.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Counts {
    /// Clients rejected because their address had too many.
    pub(crate) refused: u64,
    /// Clients leased again, by reason.
    pub(crate) moves: By<Reason>,
    /// Clients moved because of a death, by its cause.
    pub(crate) rescues: By<Cause>,
    /// Clients lost under an earlier master that did not count the reason.
    pub(crate) lost: u64,
    /// Clients that the master lost, by reason.
    pub(crate) losses: By<Loss>,
    /// Clients that were closed for another reason, or have left.
    pub(crate) closed: By<CloseReason>,
    /// Connections to listeners with the key `proxy` that ended without becoming clients, by reason.
    pub(crate) without_client: By<WithoutClient>,
    /// Workers that had been ready and ended without being asked to, by cause.
    pub(crate) deaths: By<Cause>,
    /// Workers that ended before they were ready, or could not be started.
    pub(crate) failed_starts: u64,
    /// Workers that were replaced or not wanted any more, by reason.
    pub(crate) retirements: By<Why>,
    /// Workers whose counters were rejected.
    pub(crate) rejected_counters: u64,
    /// Log lines that earlier masters could not write.
    pub(crate) log_errors: u64,
    pub(crate) stalls: u64,
    pub(crate) reruns: u64,
    pub(crate) closed_for_crashes: u64,
    pub(crate) kicked: u64,
    /// Workers that had to be killed because they did not finish in time.
    pub(crate) killed: u64,
    /// Reloads, by verdict.
    pub(crate) reloads: By<Verdict>,
    /// When the configuration in force was applied, in seconds since the Unix epoch.
    pub(crate) applied_at: u64,
}

impl Counts {
    /// Returns the lost clients by reason, with those that workers counted.
    pub(crate) fn lost(&self, by_workers: u64) -> By<Loss> {
        let mut lost = self.losses.clone();
        lost.add(Loss::Worker, by_workers);
        lost.add(Loss::Unknown, self.lost);
        lost
    }
}

/// Reasons why a client is leased again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// The worker died.
    Death,
    /// The worker must exit.
    Drain,
    /// The worker is stuck.
    Stall,
    /// The worker is held.
    Hold,
    /// The worker is unhealthy.
    Unhealthy,
    /// Another worker has less to do.
    Rebalance,
    /// The master was replaced, and all workers with it.
    Restart,
}

/// Reasons why a client is lost: closed by the daemon for a reason of its own, and not because of the client or an
/// operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loss {
    /// The state left by the worker contradicts itself, or the kernel did not count its bytes.
    Unrecoverable,
    /// There was no memory for the client's bytes.
    Memory,
    /// There was no descriptor for the client.
    Descriptors,
    /// The client did not fit into the store for the next master, or was not kept there.
    Store,
    /// The worker could not watch the client, read from it or write to it. Workers count these.
    Worker,
    /// An earlier master lost the client without counting the reason.
    Unknown,
}

/// Returns the reason under which the end of a client is counted. Those of headers do not occur there, unless a
/// broken worker has written them.
pub(crate) fn of_client(reason: CloseReason) -> CloseReason {
    let is_counted = CloseReason::ALL.iter().any(|(other, _)| *other == reason);
    if is_counted {
        reason
    } else {
        CloseReason::Left
    }
}

impl Loss {
    /// Returns why a client is lost that could not be recovered or leased again.
    pub(crate) fn from_error(error: &io::Error) -> Loss {
        match error.kind() {
            // `WouldBlock`: the kernel has not counted the bytes yet, and there is no time to wait for that.
            io::ErrorKind::InvalidData | io::ErrorKind::Unsupported | io::ErrorKind::WouldBlock => {
                Loss::Unrecoverable
            }
            _ => Loss::Memory,
        }
    }
}

/// Cause of a worker's death.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// The worker ran into a fault, or aborted.
    Crash,
    /// The worker exited.
    Exit,
    /// The kernel killed the worker because memory was out.
    Oom,
    /// The master killed the worker for a request that took too long, or for being stuck.
    Timeout,
    /// The worker was killed from outside.
    Signal,
    /// The master killed the worker because it did not finish in time.
    Late,
}

impl Cause {
    /// Returns the cause of a death from the exit status, from whether memory was out, and from the reason for which
    /// the master killed the worker, if it did.
    pub(crate) fn from_exit(
        exit: Exit,
        is_out_of_memory: bool,
        killed_for: Option<Cause>,
    ) -> Cause {
        match (exit, killed_for) {
            _ if is_out_of_memory => Cause::Oom,
            (Exit::Signal { .. }, Some(ours)) => ours,
            (Exit::Signal { .. }, None) if exit.is_own_doing() => Cause::Crash,
            (Exit::Signal { .. }, None) => Cause::Signal,
            (Exit::Status(_), _) => Cause::Exit,
        }
    }
}

impl Label for Reason {
    const ALL: &'static [(Reason, &'static str)] = &[
        (Reason::Death, "death"),
        (Reason::Drain, "drain"),
        (Reason::Stall, "stall"),
        (Reason::Hold, "hold"),
        (Reason::Unhealthy, "unhealthy"),
        (Reason::Rebalance, "rebalance"),
        (Reason::Restart, "restart"),
    ];
}

impl Label for Loss {
    const ALL: &'static [(Loss, &'static str)] = &[
        (Loss::Unrecoverable, "unrecoverable"),
        (Loss::Memory, "memory"),
        (Loss::Descriptors, "descriptors"),
        (Loss::Store, "store"),
        (Loss::Worker, "worker"),
        (Loss::Unknown, "unknown"),
    ];
}

impl Label for CloseReason {
    const ALL: &'static [(CloseReason, &'static str)] = &[
        (CloseReason::Left, "left"),
        (CloseReason::Idle, "idle"),
        (CloseReason::FrameTimeout, "frame_timeout"),
        (CloseReason::SendTimeout, "send_timeout"),
        (CloseReason::TooLarge, "too_large"),
        (CloseReason::Overloaded, "overloaded"),
        (CloseReason::Stopping, "stopping"),
        (CloseReason::Lost, "lost"),
        (CloseReason::Goaway, "goaway"),
    ];
}

impl Label for Cause {
    const ALL: &'static [(Cause, &'static str)] = &[
        (Cause::Crash, "crash"),
        (Cause::Exit, "exit"),
        (Cause::Oom, "oom"),
        (Cause::Timeout, "timeout"),
        (Cause::Signal, "signal"),
        (Cause::Late, "late"),
    ];
}

impl Label for Why {
    const ALL: &'static [(Why, &'static str)] = &[
        (Why::Reload, "reload"),
        (Why::Rollback, "rollback"),
        (Why::Scale, "scale"),
        (Why::NearRequestLimit, "max_requests"),
        (Why::Memory, "max_memory"),
        (Why::Panic, "panic"),
        (Why::Unresponsive, "unresponsive"),
        (Why::Lifetime, "max_lifetime"),
        (Why::Recycle, "recycle"),
        (Why::Surplus, "surplus"),
        (Why::Stop, "stop"),
    ];
}

impl Label for Verdict {
    const ALL: &'static [(Verdict, &'static str)] = &[
        (Verdict::Applied, "applied"),
        (Verdict::Rejected, "rejected"),
        (Verdict::RolledBack, "rolled_back"),
    ];
}

/// Work of a worker, or of all workers of a seat.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Totals {
    pub(crate) requests: u64,
    pub(crate) errors: u64,
    pub(crate) panics: u64,
    pub(crate) log_errors: u64,
    /// Clients that the worker closed because it could not watch them, read from them or write to them.
    #[serde(default)]
    pub(crate) lost: u64,
}

impl Totals {
    /// Returns the sum of these totals and a worker's counters.
    pub(crate) fn plus_counters(self, counters: &Counters) -> Totals {
        self.plus(Totals {
            requests: counters.requests(),
            errors: counters.errors(),
            panics: counters.panics,
            log_errors: counters.log_errors,
            lost: counters.lost,
        })
    }

    pub(crate) fn plus(self, other: Totals) -> Totals {
        Totals {
            requests: self.requests.saturating_add(other.requests),
            errors: self.errors.saturating_add(other.errors),
            panics: self.panics.saturating_add(other.panics),
            log_errors: self.log_errors.saturating_add(other.log_errors),
            lost: self.lost.saturating_add(other.lost),
        }
    }
}

/// Requests by method, and their durations.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Tally {
    /// Results and errors of each method.
    pub(crate) methods: BTreeMap<String, [u64; 2]>,
    /// Counts of the histogram, [`BUCKETS`] in number.
    pub(crate) buckets: Vec<u64>,
    /// Sum of the durations, in ns.
    pub(crate) sum: u64,
    /// Bytes read from clients.
    pub(crate) received: u64,
    /// Bytes written to clients.
    pub(crate) sent: u64,
    /// The metrics of the daemon's own, by their names.
    pub(crate) own: BTreeMap<String, OwnMetric>,
}

/// Requests for unknown methods, and for methods beyond [`MAX_METHODS`].
pub(crate) const OTHER: &str = "other";

/// Methods that are counted separately. Workers choose the names, which must not fill the master's memory.
const MAX_METHODS: usize = 256;

/// Metrics of the daemon's own that are counted, over all programs that it ever was. Further ones are left out.
const MAX_OWN: usize = 2 * MAX_OWN_METRICS;

impl Default for Tally {
    fn default() -> Tally {
        Tally {
            methods: BTreeMap::new(),
            buckets: vec![0; BUCKETS],
            sum: 0,
            received: 0,
            sent: 0,
            own: BTreeMap::new(),
        }
    }
}

impl Tally {
    /// Adds the counters of a worker.
    pub(crate) fn add(&mut self, counters: &Counters, methods: &[MethodName]) {
        // An earlier master may have written another number of buckets.
        self.buckets.resize(BUCKETS, 0);
        for (sum, count) in self.buckets.iter_mut().zip(&counters.durations) {
            *sum = sum.saturating_add(*count);
        }
        self.sum = self.sum.saturating_add(counters.duration_sum);
        self.received = self.received.saturating_add(counters.received);
        self.sent = self.sent.saturating_add(counters.sent);
        for (name, answered) in counters.by_method(methods) {
            self.add_method(name.unwrap_or(OTHER), answered);
        }
    }

    /// Adds the metrics of the daemon's own in a worker. A metric that has become another kind, or has other buckets in
    /// a newer worker, begins again, as Prometheus allows.
    pub(crate) fn add_own(&mut self, metrics: Vec<OwnMetric>) {
        for metric in metrics {
            let is_full = self.own.len() >= MAX_OWN;
            match self.own.get_mut(&metric.name) {
                Some(sums) => {
                    sums.help = metric.help;
                    if !sums.values.add(&metric.values) {
                        sums.values = metric.values;
                    }
                }
                None if is_full => {}
                None => drop(self.own.insert(metric.name.clone(), metric)),
            }
        }
    }

    /// Returns the number of all requests.
    pub(crate) fn requests(&self) -> u64 {
        self.methods
            .values()
            .flatten()
            .fold(0, |sum, count| sum.saturating_add(*count))
    }

    fn add_method(&mut self, name: &str, answered: [u64; 2]) {
        let is_separate = self.methods.contains_key(name)
            || (is_method_name(name) && self.methods.len() < MAX_METHODS);
        let sums = self
            .methods
            .entry(if is_separate { name } else { OTHER }.to_owned())
            .or_default();
        for (sum, count) in sums.iter_mut().zip(answered) {
            *sum = sum.saturating_add(count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shm::own_metrics::OwnValues;

    #[test]
    fn a_client_without_exact_byte_counts_is_unrecoverable() {
        use io::ErrorKind::{InvalidData, OutOfMemory, Unsupported, WouldBlock};
        for kind in [InvalidData, Unsupported, WouldBlock] {
            assert_eq!(
                Loss::from_error(&kind.into()),
                Loss::Unrecoverable,
                "{kind}"
            );
        }
        assert_eq!(Loss::from_error(&OutOfMemory.into()), Loss::Memory);
    }

    #[test]
    fn each_kind_is_counted_under_its_name() {
        let mut counts = By::<Cause>::default();
        counts.add(Cause::Oom, 2);
        counts.add(Cause::Late, 1);
        let counted: Vec<_> = counts.iter().filter(|(_, count)| *count > 0).collect();
        assert_eq!(
            (counted, counts.total(), counts[Cause::Oom]),
            (vec![("oom", 2), ("late", 1)], 3, 2)
        );
    }

    #[test]
    fn own_metrics_are_summed_by_name_and_bounded() {
        let metric = |name: &str, values| OwnMetric {
            name: name.to_owned(),
            help: String::new(),
            values,
        };
        let histogram = |bound, count| OwnValues::Histogram {
            bounds: vec![bound],
            counts: vec![count, 1],
            sum: 2.0,
        };
        let mut tally = Tally::default();
        for _ in 0..2 {
            tally.add_own(vec![
                metric("a", OwnValues::Counter(u64::MAX)),
                metric("b", histogram(1.0, 5)),
            ]);
        }
        assert_eq!(tally.own["a"].values, OwnValues::Counter(u64::MAX));
        let expected = OwnValues::Histogram {
            bounds: vec![1.0],
            counts: vec![10, 2],
            sum: 4.0,
        };
        assert_eq!(tally.own["b"].values, expected);
        tally.add_own(vec![metric("b", histogram(2.0, 7))]);
        assert_eq!(tally.own["b"].values, histogram(2.0, 7));
        let many = (0..1000).map(|number| metric(&format!("m{number}"), OwnValues::Counter(1)));
        tally.add_own(many.collect());
        assert_eq!(tally.own.len(), MAX_OWN);
        let json = serde_json::to_string(&tally).expect("JSON");
        let read: Tally = serde_json::from_str(&json).expect("the same");
        assert_eq!(read.own, tally.own);
    }

    #[test]
    fn a_death_has_one_cause() {
        let fault = Exit::Signal {
            number: 11,
            core: false,
        };
        let killed = Exit::Signal {
            number: 9,
            core: false,
        };
        for (exit, is_out_of_memory, killed_for, cause) in [
            (fault, false, None, Cause::Crash),
            (killed, false, None, Cause::Signal),
            (killed, true, Some(Cause::Timeout), Cause::Oom),
            (killed, false, Some(Cause::Timeout), Cause::Timeout),
            (killed, false, Some(Cause::Late), Cause::Late),
            // The process ended by itself first.
            (Exit::Status(3), false, Some(Cause::Late), Cause::Exit),
        ] {
            assert_eq!(
                Cause::from_exit(exit, is_out_of_memory, killed_for),
                cause,
                "{exit}"
            );
        }
    }

    #[test]
    fn the_number_of_counted_methods_is_bounded() {
        let mut tally = Tally::default();
        for number in 0..1000 {
            tally.add_method(&format!("m{number}"), [1, 1]);
        }
        tally.add_method("\n{}\"", [1, 0]);
        assert!(tally.methods.len() <= MAX_METHODS + 1);
        assert_eq!(tally.methods.values().map(|[ok, _]| ok).sum::<u64>(), 1001);
        assert_eq!(tally.methods["m0"], [1, 1]);
        assert!(!tally.methods.contains_key("\n{}\""));
    }
}
