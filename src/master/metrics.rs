//! All figures in the text format of Prometheus, version 0.0.4, from the master's tables and the shared memory.
//!
//! Totals go on over deaths, respawns and reloads. The label `worker` is the seat, which there are a few of; nothing is
//! labelled by process or client.

mod text;

use std::time::{Duration, Instant, SystemTime};

use self::text::{COUNTER, GAUGE, MetricsText};
use super::Master;
use super::telemetry::counters::Tally;
use crate::proto::control::{ListenerStatus, Status, Verdict, WorkerState, WorkerStatus};
use crate::shm::{BUCKETS, upper};
use crate::sys::{clock, fd, socket};

/// A figure of a worker; none if it is not known.
type Figure = fn(&WorkerStatus, &Master) -> Option<f64>;

/// A figure of a listener, likewise.
type FigureOfListener = fn(&ListenerStatus) -> Option<u64>;

impl Master {
    /// The whole text.
    pub(super) fn metrics(&mut self, now: Instant) -> String {
        let status = self.status(now);
        let mut text = MetricsText::default();
        self.write_daemon(&mut text);
        self.write_reloads(&mut text);
        self.write_workers(&mut text, &status);
        self.write_clients(&mut text, &status);
        self.write_requests(&mut text);
        self.write_listeners(&mut text, &status);
        text.into_string()
    }

    fn write_daemon(&self, text: &mut MetricsText) {
        let started = SystemTime::UNIX_EPOCH
            .elapsed()
            .unwrap_or(Duration::ZERO)
            .saturating_sub(self.started.elapsed());
        text.family("build_info", GAUGE, "Always 1; which program this is.");
        text.sample(
            "build_info",
            &[("name", &self.name), ("version", &self.version)],
            1,
        );
        text.gauge(
            "start_time_seconds",
            "When the daemon was started, since the Unix epoch.",
            started.as_secs(),
        );
        if let Some(open) = fd::open() {
            text.gauge("open_fds", "Descriptors that the master has open.", open);
        }
        text.gauge(
            "max_fds",
            "Descriptors that the master may have open.",
            self.descriptors,
        );
        let help = "Log lines that could not be written, by master or workers.";
        text.counter("log_lines_lost_total", help, self.log_errors());
        text.counter(
            "events_total",
            "Events shown by \"fdpassctl events\".",
            self.telemetry.events.last(),
        );
    }

    fn write_reloads(&self, text: &mut MetricsText) {
        text.gauge(
            "config_generation",
            "Number of the configuration in force.",
            self.settings.generation,
        );
        let is_stale = u8::from(self.settings.stale.is_some());
        text.gauge(
            "config_stale",
            "Whether the configuration in force is older than the file.",
            is_stale,
        );
        let is_kept = self
            .handover
            .store
            .as_ref()
            .is_some_and(|store| store.canaries.is_confirmed());
        let help = "Whether the service manager has confirmed that a restart keeps the clients.";
        text.gauge("restart_keeps_clients", help, u8::from(is_kept));
        let failed = self
            .settings
            .last_reload
            .as_ref()
            .is_some_and(|reload| reload.verdict != Verdict::Applied);
        text.gauge(
            "config_last_reload_successful",
            "Whether the last reload was applied.",
            u8::from(!failed),
        );
        text.gauge(
            "config_last_reload_success_timestamp_seconds",
            "When the configuration in force was applied, since the Unix epoch.",
            self.telemetry.counts.applied_at,
        );
        text.by(
            "reloads_total",
            "Reloads that were asked for, by what came of them.",
            "result",
            &self.telemetry.counts.reloads,
        );
    }

    fn write_workers(&self, text: &mut MetricsText, status: &Status) {
        text.gauge(
            "workers_wanted",
            "Configured number of workers.",
            status.count,
        );
        text.family(
            "workers",
            GAUGE,
            "Workers, by where they are in their lives.",
        );
        let states = status.workers.iter().map(|worker| worker.state);
        let states: Vec<_> = states
            .chain(status.leaving.iter().map(|worker| worker.state))
            .collect();
        for state in WorkerState::ALL {
            let count = states.iter().filter(|other| **other == state).count();
            text.sample("workers", &[("state", &state.as_str())], count);
        }
        let old = self
            .workers
            .all
            .values()
            .filter(|worker| worker.generation != self.settings.generation)
            .count();
        text.gauge(
            "old_generation_workers",
            "Workers of another configuration than that in force.",
            old,
        );
        let starts = self
            .workers
            .seats
            .iter()
            .map(|seat| seat.spawned)
            .sum::<u64>();
        text.counter("worker_starts_total", "Workers that were started.", starts);
        let help =
            "Workers that had been ready and ended without being asked to, by what ended them.";
        text.by(
            "worker_deaths_total",
            help,
            "cause",
            &self.telemetry.counts.deaths,
        );
        let help = "Workers that ended before they were ready, or could not be started.";
        text.counter(
            "worker_failed_starts_total",
            help,
            self.telemetry.counts.failed_starts,
        );
        let help = "Workers whose counters could not be true and were left out from then on.";
        text.counter(
            "worker_counters_rejected_total",
            help,
            self.telemetry.counts.rejected_counters,
        );
        text.counter(
            "worker_stalls_total",
            "Times that a worker was stuck.",
            self.telemetry.counts.stalls,
        );

        let each: [(&str, &str, &str, Figure); 5] = [
            (
                "worker_clients",
                GAUGE,
                "Clients leased to the worker.",
                |w, _| Some(w.clients as f64),
            ),
            (
                "worker_requests_total",
                COUNTER,
                "Requests answered in this seat.",
                |w, _| Some(w.requests_total as f64),
            ),
            (
                "worker_parked_bytes",
                GAUGE,
                "Bytes of half requests and unread replies.",
                |w, _| Some(w.parked_bytes as f64),
            ),
            (
                "worker_resident_memory_bytes",
                GAUGE,
                "Resident memory of the worker.",
                |w, _| w.rss_bytes.map(|bytes| bytes as f64),
            ),
            (
                "worker_busy_ratio",
                GAUGE,
                "Share of the last seconds in which the worker worked.",
                |w, master| {
                    let worker = master.workers.all.get(&w.id?)?;
                    Some(worker.shm.header().busy(clock::monotonic()))
                },
            ),
        ];
        for (name, kind, help, figure) in each {
            text.family(name, kind, help);
            for worker in &status.workers {
                if let Some(value) = figure(worker, self) {
                    text.sample(name, &[("worker", &worker.seat)], value);
                }
            }
        }
    }

    fn write_clients(&self, text: &mut MetricsText, status: &Status) {
        text.family(
            "clients",
            GAUGE,
            "Clients there are: leased to a worker, or waiting for one.",
        );
        let waiting = self.clients.unleased.len() as u64;
        text.sample(
            "clients",
            &[("state", &"leased")],
            self.clients.count().saturating_sub(waiting),
        );
        text.sample("clients", &[("state", &"waiting")], waiting);
        text.gauge("clients_max", "Clients there may be.", self.clients.max);
        text.counter(
            "clients_accepted_total",
            "Clients that were accepted.",
            self.clients.next_id - 1,
        );
        text.family(
            "clients_rejected_total",
            COUNTER,
            "Of those, clients that were turned away at once.",
        );
        text.sample(
            "clients_rejected_total",
            &[("reason", &"per_address")],
            self.telemetry.counts.refused,
        );
        let (counts, lost) = (
            &self.telemetry.counts,
            self.telemetry.counts.lost(self.totals().lost),
        );
        text.family(
            "clients_closed_total",
            COUNTER,
            "Clients that the daemon closed: lost ones and misbehaving ones.",
        );
        for (reason, count) in [
            ("lost", lost.total()),
            ("crashes", counts.closed_for_crashes),
            ("kicked", counts.kicked),
        ] {
            text.sample("clients_closed_total", &[("reason", &reason)], count);
        }
        let help = "Clients that were closed for a reason of the daemon's own, by that reason.";
        text.by("clients_lost_total", help, "reason", &lost);
        text.by(
            "moves_total",
            "Clients that went to another worker, by what for.",
            "reason",
            &self.telemetry.counts.moves,
        );
        let help = "Clients that went to another worker because theirs died, by what it died of.";
        text.by(
            "rescues_total",
            help,
            "cause",
            &self.telemetry.counts.rescues,
        );
        if let Some(skew) = status.skew {
            text.gauge(
                "client_skew_ratio",
                "Most clients of a ready worker, divided by the mean.",
                skew.clients,
            );
            if let Some(busy) = skew.busy {
                text.gauge(
                    "load_skew_ratio",
                    "Highest busy ratio of a ready worker, divided by the mean.",
                    busy,
                );
            }
        }
    }

    fn write_requests(&self, text: &mut MetricsText) {
        let mut tally = self.telemetry.tally.clone();
        self.workers
            .all
            .values()
            .for_each(|worker| tally.add(worker.believed.counters(), &worker.methods));
        text.family("requests_total", COUNTER, "Requests that were answered.");
        for (method, answered) in &tally.methods {
            for (result, count) in ["ok", "error"].iter().zip(answered) {
                text.sample(
                    "requests_total",
                    &[("method", method), ("result", result)],
                    count,
                );
            }
        }
        write_durations(text, &tally);
        let help = "Requests that were executing when their worker died, and were run once more.";
        text.counter("requests_rerun_total", help, self.telemetry.counts.reruns);
        text.counter(
            "handler_panics_total",
            "Methods that panicked.",
            self.totals().panics,
        );
        let quarantined = self.workers.strikes.quarantined().len();
        text.gauge(
            "methods_quarantined",
            "Methods that are not run any more.",
            quarantined,
        );
    }

    fn write_listeners(&self, text: &mut MetricsText, status: &Status) {
        text.gauge(
            "accepting",
            "Whether new clients are being accepted.",
            u8::from(self.listeners.gate.pause.is_none()),
        );
        let each: [(&str, &str, &str, FigureOfListener); 4] = [
            (
                "listener_up",
                GAUGE,
                "Whether clients can connect to the listener.",
                |l| Some(l.outage.is_none().into()),
            ),
            (
                "listener_accepted_total",
                COUNTER,
                "Clients accepted at the listener.",
                |l| Some(l.accepted_total),
            ),
            (
                "listen_queue",
                GAUGE,
                "Clients waiting in the kernel.",
                |l| l.queue.map(u64::from),
            ),
            (
                "listen_queue_max",
                GAUGE,
                "Clients that can wait there.",
                |l| l.queue_max.map(u64::from),
            ),
        ];
        for (name, kind, help, figure) in each {
            text.family(name, kind, help);
            for listener in &status.listeners {
                if let Some(value) = figure(listener) {
                    text.sample(name, &[("listener", &listener.address)], value);
                }
            }
        }
        if let Some(overflows) = socket::listen_overflows() {
            let help = "Connections that the kernel dropped because a queue was full, of all listeners of this network namespace.";
            text.counter("listen_overflows_total", help, overflows);
        }
    }
}

/// As a histogram whose buckets end at powers of two of a nanosecond, where those of the shared memory end, too.
fn write_durations(text: &mut MetricsText, tally: &Tally) {
    let name = "request_duration_seconds";
    text.family(
        name,
        "histogram",
        "From a request's being read to its reply's being written.",
    );
    let (mut count, mut bucket) = (0u64, 0);
    for power in MIN_BUCKET_EXPONENT..=MAX_BUCKET_EXPONENT {
        while bucket < BUCKETS && upper(bucket) < 1 << power {
            count = count.saturating_add(tally.buckets.get(bucket).copied().unwrap_or_default());
            bucket += 1;
        }
        let le = (1u64 << power) as f64 / 1e9;
        text.sample("request_duration_seconds_bucket", &[("le", &le)], count);
    }
    // Those whose replies are not sent yet are in no bucket.
    let all = tally.requests();
    text.sample("request_duration_seconds_bucket", &[("le", &"+Inf")], all);
    text.sample("request_duration_seconds_sum", &[], tally.sum as f64 / 1e9);
    text.sample("request_duration_seconds_count", &[], all);
}

/// About a microsecond and about a minute: the first and the last bucket end at 2 to that many ns.
const MIN_BUCKET_EXPONENT: u32 = 10;
const MAX_BUCKET_EXPONENT: u32 = 36;
