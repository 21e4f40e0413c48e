//! The metrics in the text format of Prometheus, version 0.0.4, from the master's tables and the shared memory.
//!
//! Totals include ended workers and earlier configurations. The label `worker` is the seat, so that there are few
//! values; no label is a process or a client.

mod clients;
mod own;
mod text;
mod workers;

use std::time::{Duration, Instant, SystemTime};

use self::text::{COUNTER, GAUGE, MetricsText};
use super::control::Snapshot;
use super::telemetry::counters::Tally;
use crate::proto::control::Verdict;
use crate::shm::{BUCKETS, upper};
use crate::sys::fd;

/// Returns the whole text.
pub(super) fn text(master: &Snapshot<'_>, now: Instant) -> String {
    let status = master.status(now);
    let mut text = MetricsText::default();
    write_daemon(&mut text, master);
    write_reloads(&mut text, master);
    workers::write(&mut text, master, &status);
    clients::write_clients(&mut text, master, &status);
    write_requests(&mut text, master);
    clients::write_listeners(&mut text, master, &status);
    text.into_string()
}

fn write_daemon(text: &mut MetricsText, master: &Snapshot<'_>) {
    let started = SystemTime::UNIX_EPOCH
        .elapsed()
        .unwrap_or(Duration::ZERO)
        .saturating_sub(master.started.elapsed());
    text.family("build_info", GAUGE, "Always 1; which program this is.");
    text.sample(
        "build_info",
        &[("name", &master.name), ("version", &master.version)],
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
        master.descriptors,
    );
    let help = "Log lines that could not be written, by master or workers.";
    text.counter(
        "log_lines_lost_total",
        help,
        master.telemetry.log_errors(&master.workers.totals()),
    );
    text.counter(
        "events_total",
        "Events shown by \"fdpassctl events\".",
        master.telemetry.events.last(),
    );
}

fn write_reloads(text: &mut MetricsText, master: &Snapshot<'_>) {
    text.gauge(
        "config_generation",
        "Number of the configuration in force.",
        master.settings.generation,
    );
    let is_stale = u8::from(master.settings.stale.is_some());
    text.gauge(
        "config_stale",
        "Whether a restart kept the previous configuration: that of the files was unusable.",
        is_stale,
    );
    let help = "Whether the service manager has confirmed that a restart keeps the clients.";
    text.gauge(
        "restart_keeps_clients",
        help,
        u8::from(master.keeps_clients),
    );
    let failed = master
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
        master.telemetry.counts.applied_at,
    );
    text.by(
        "reloads_total",
        "Requested reloads, by outcome.",
        "result",
        &master.telemetry.counts.reloads,
    );
}

fn write_requests(text: &mut MetricsText, master: &Snapshot<'_>) {
    let mut tally = master.telemetry.tally.clone();
    master.workers.all.values().for_each(|worker| {
        tally.add(worker.trusted.counters(), &worker.methods);
        tally.add_own(worker.own_metrics());
    });
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
    text.counter(
        "received_bytes_total",
        "Bytes that workers have read from clients.",
        tally.received,
    );
    text.counter(
        "sent_bytes_total",
        "Bytes that workers have written to clients.",
        tally.sent,
    );
    let help = "Requests that were executing when their worker died, and were run once more.";
    text.counter("requests_rerun_total", help, master.telemetry.counts.reruns);
    text.counter(
        "handler_panics_total",
        "Methods that panicked.",
        master.workers.totals().panics,
    );
    let quarantined = master.workers.crash_limits.quarantined().len();
    text.gauge(
        "methods_quarantined",
        "Methods that are not run any more.",
        quarantined,
    );
    tally
        .own
        .values()
        .for_each(|metric| own::write(text, metric));
}

/// Writes a histogram. Its buckets end at powers of two ns, where buckets of the shared memory end as well.
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
    // Requests whose replies are not sent yet are in no bucket.
    let all = tally.requests();
    text.sample("request_duration_seconds_bucket", &[("le", &"+Inf")], all);
    text.sample("request_duration_seconds_sum", &[], tally.sum as f64 / 1e9);
    text.sample("request_duration_seconds_count", &[], all);
}

/// The first and the last bucket end at 2 to the power of these ns: about a microsecond, and about a minute.
const MIN_BUCKET_EXPONENT: u32 = 10;
const MAX_BUCKET_EXPONENT: u32 = 36;
