//! The part of the status that the page shows. Nothing else of it is sent: no client, no pid, no path, and no reason of
//! a death, of a reload or of a warning, which are texts of methods and of files. `/healthz` has those of warnings.

use serde::Serialize;

use super::super::serving::{Wording, unready, warnings};
use super::history::LiveRates;
use crate::proto::control::{AppStatus, LeavingStatus, Status, WorkerState, WorkerStatus};
use crate::proto::text::Escaped;

/// The daemon.
#[derive(Serialize)]
pub(super) struct LiveView<'a> {
    name: String,
    version: String,
    generation: u64,
    uptime: f64,
    is_reloading: bool,
    /// Why new clients should go elsewhere.
    unready: Option<String>,
    /// Why no client is accepted.
    paused: Option<&'a str>,
    warnings: Vec<String>,
    figures: LiveFigures,
    totals: LiveTotals,
    workers: Vec<WorkerView<'a>>,
}

/// The current figures. Times are in seconds.
#[derive(Serialize)]
struct LiveFigures {
    ready: usize,
    wanted: u32,
    clients: u64,
    max_clients: u64,
    /// Requests and errors a second.
    requests: Option<f64>,
    errors: Option<f64>,
    p50: Option<f64>,
    p99: Option<f64>,
    /// Requests that workers and apps execute.
    executing: u64,
    /// Requests that wait for an app or for asynchronous methods.
    waiting: u64,
    /// Connections in the accept queues.
    queue: u64,
}

/// Totals since the start of the daemon.
#[derive(Serialize)]
struct LiveTotals {
    requests: u64,
    errors: u64,
    refused: u64,
    moved: u64,
    lost: u64,
    deaths: u64,
}

/// A worker.
#[derive(Serialize)]
struct WorkerView<'a> {
    seat: u32,
    id: Option<u64>,
    generation: u64,
    state: &'static str,
    /// Why it leaves, if it does.
    reason: Option<&'a str>,
    clients: u64,
    executing: Option<u64>,
    waiting: Option<u64>,
    busy: Option<f64>,
    requests: Option<f64>,
    p50: Option<f64>,
    p99: Option<f64>,
    /// Resident memory of the worker and its app, in bytes.
    memory: Option<u64>,
    uptime: Option<f64>,
    restarts: Option<u64>,
    app: Option<String>,
}

impl<'a> LiveView<'a> {
    pub(super) fn new(status: &'a Status, rates: LiveRates) -> LiveView<'a> {
        let leaving = status.leaving.iter().map(WorkerView::of_leaving);
        let quarantined = status.quarantined.iter();
        let quarantined =
            quarantined.map(|method| format!("method {} is quarantined", Escaped(method)));
        LiveView {
            name: Escaped(&status.name).to_string(),
            version: Escaped(&status.version).to_string(),
            generation: status.generation.0,
            uptime: status.uptime_seconds,
            is_reloading: status.reloading,
            unready: unready(status, Wording::Short),
            paused: status.paused.as_deref(),
            warnings: warnings(status, Wording::Short)
                .into_iter()
                .chain(quarantined)
                .collect(),
            figures: LiveFigures::new(status, rates),
            totals: LiveTotals {
                requests: status.requests_total,
                errors: status.errors_total,
                refused: status.refused_total,
                moved: status.moved_total,
                lost: status.lost_total,
                deaths: status.deaths_total,
            },
            workers: status
                .workers
                .iter()
                .map(WorkerView::of_seat)
                .chain(leaving)
                .collect(),
        }
    }
}

impl LiveFigures {
    fn new(status: &Status, rates: LiveRates) -> LiveFigures {
        let of_workers =
            |figure: fn(&WorkerStatus) -> u64| -> u64 { status.workers.iter().map(figure).sum() };
        let queues = status.listeners.iter().filter_map(|l| l.queue);
        let is_ready = |worker: &&WorkerStatus| worker.state == WorkerState::Ready;
        LiveFigures {
            ready: status.workers.iter().filter(is_ready).count(),
            wanted: status.count,
            clients: status.clients,
            max_clients: status.max_clients,
            requests: rates.requests,
            errors: rates.errors,
            p50: status.p50_seconds,
            p99: status.p99_seconds,
            executing: of_workers(|worker| worker.executing),
            waiting: of_workers(|worker| worker.waiting),
            queue: queues.map(u64::from).sum(),
        }
    }
}

impl<'a> WorkerView<'a> {
    fn of_seat(worker: &'a WorkerStatus) -> WorkerView<'a> {
        let app_memory = worker.app.as_ref().and_then(|app| app.rss_bytes);
        WorkerView {
            seat: worker.seat,
            id: worker.id.map(|id| id.0),
            generation: worker.generation.0,
            state: worker.state.as_str(),
            reason: None,
            clients: worker.clients,
            executing: Some(worker.executing),
            waiting: Some(worker.waiting),
            busy: worker.busy,
            requests: worker.requests_per_second,
            p50: worker.p50_seconds,
            p99: worker.p99_seconds,
            memory: worker
                .rss_bytes
                .map(|rss| rss.saturating_add(app_memory.unwrap_or(0))),
            uptime: worker.uptime_seconds,
            restarts: Some(worker.restarts),
            app: worker.app.as_ref().and_then(app_name),
        }
    }

    fn of_leaving(worker: &'a LeavingStatus) -> WorkerView<'a> {
        WorkerView {
            seat: worker.seat,
            id: Some(worker.id.0),
            generation: worker.generation.0,
            state: worker.state.as_str(),
            reason: Some(&worker.reason),
            clients: worker.clients,
            executing: None,
            waiting: None,
            busy: None,
            requests: None,
            p50: None,
            p99: None,
            memory: None,
            uptime: None,
            restarts: None,
            app: None,
        }
    }
}

/// Returns name and version of an app, as far as it has reported them.
fn app_name(app: &AppStatus) -> Option<String> {
    let words: Vec<String> = [&app.name, &app.version]
        .into_iter()
        .flatten()
        .map(|word| Escaped(word).to_string())
        .collect();
    (!words.is_empty()).then(|| words.join(" "))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::super::serving::tests::status;
    use super::*;

    fn shown(status: &Status) -> Value {
        let view = LiveView::new(status, LiveRates::default());
        serde_json::to_value(view).expect("JSON")
    }

    #[test]
    fn figures_are_sums_of_workers_and_listeners() {
        let listener = |queue: Value| json!({ "address": "a", "byte_order": "little", "accepted_total": 0, "queue": queue });
        let listeners = json!([
            listener(json!(3)),
            listener(Value::Null),
            listener(json!(4))
        ]);
        let mut status = status(
            &[("ready", 0.5), ("starting", 0.0)],
            &[("listeners", listeners)],
        );
        status.workers[0].executing = 2;
        status.workers[1].executing = 1;
        status.workers[1].waiting = 5;
        let figures = &shown(&status)["figures"];
        for (name, expected) in [
            ("ready", 1),
            ("wanted", 2),
            ("executing", 3),
            ("waiting", 5),
            ("queue", 7),
        ] {
            assert_eq!(figures[name], expected, "{name}");
        }
    }

    #[test]
    fn texts_of_apps_and_methods_are_escaped() {
        let app = json!({ "pid": 7, "name": "<img src=x onerror=alert(1)>\u{202e}", "version": "1\n\n", "concurrency": 1, "rss_bytes": 5 });
        let members = [
            ("quarantined", json!(["</script>\u{0}"])),
            ("missing", json!(["log: \n\nevent: x"])),
        ];
        let mut status = status(&[("ready", 0.0)], &members);
        status.workers[0].app = serde_json::from_value(app).expect("an app");
        status.workers[0].rss_bytes = Some(10);
        let view = shown(&status);
        assert_eq!(
            view["workers"][0]["app"],
            "<img src=x onerror=alert(1)>\\u{202e} 1\\n\\n"
        );
        assert_eq!(view["workers"][0]["memory"], 15);
        assert_eq!(
            view["warnings"],
            json!(["missing: log", "method </script>\\x00 is quarantined"])
        );
        let event = super::super::encode("update", &view);
        assert_eq!(event.matches('\n').count(), 3, "{event}");
    }

    #[test]
    fn no_reason_and_no_path_of_the_status_is_shown() {
        let secret = json!("SECRET");
        let reload = json!({ "at": 1, "verdict": "rejected", "message": "SECRET" });
        let missing = json!([
            "log: SECRET",
            "control socket /SECRET: no",
            "metrics on 192.0.2.1:1: SECRET",
            "SECRET"
        ]);
        let members = [
            ("missing", missing),
            ("config_stale", secret.clone()),
            ("config_file", json!("/SECRET")),
            ("app_cgroups", json!("/SECRET")),
            ("store_outage", secret.clone()),
            ("last_reload", reload),
            ("pid", json!(987_654)),
        ];
        let mut status = status(&[("ready", 0.0)], &members);
        status.workers[0].last_death = Some("SECRET".to_owned());
        status.workers[0].pid = Some(987_654);
        status.workers[0].unhealthy = Some("SECRET".to_owned());
        let view = shown(&status);
        let expected = [
            "missing: log",
            "missing: control socket",
            "missing: metrics",
            "missing: a part of the daemon",
            "the previous configuration is in force",
            "worker 0 is unhealthy",
        ];
        assert_eq!(view["warnings"], json!(expected));
        status.workers[0].state = WorkerState::Unhealthy;
        let unready = &shown(&status)["unready"];
        assert_eq!(*unready, json!("worker 0 is unhealthy"));
        for hidden in ["SECRET", "987654", "192.0.2.1"] {
            assert!(!view.to_string().contains(hidden), "{hidden}: {view}");
        }
    }
}
