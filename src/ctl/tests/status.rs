//! The status of a daemon.

use super::*;

/// Returns the status of a daemon with three workers.
pub(in crate::ctl) fn status() -> Status {
    let ready = WorkerStatus {
        seat: 0,
        id: Some(WorkerId(1)),
        pid: Some(4712),
        generation: Generation(3),
        state: WorkerState::Ready,
        clients: 617,
        executing: 2,
        away: 0,
        app: None,
        requests_total: 12_345_678,
        errors_total: 40,
        panics_total: 0,
        log_errors_total: 0,
        parked_bytes: 0,
        requests_per_second: Some(1234.5),
        p50_seconds: Some(42e-6),
        p99_seconds: Some(1.3e-3),
        uptime_seconds: Some(273_600.0),
        restarts: 0,
        rss_bytes: Some(12 << 20),
        unhealthy: None,
        last_death: None,
    };
    let draining = WorkerStatus {
        seat: 1,
        id: Some(WorkerId(17)),
        pid: Some(9931),
        generation: Generation(2),
        state: WorkerState::Draining,
        clients: 617,
        requests_total: 98_765,
        requests_per_second: Some(0.5),
        p50_seconds: Some(0.25),
        p99_seconds: Some(12.0),
        uptime_seconds: Some(754.0),
        restarts: 3,
        rss_bytes: Some(8_900_000),
        unhealthy: None,
        last_death: Some("killed by signal 11 in method \"resize\"".to_owned()),
        ..ready.clone()
    };
    let waiting = WorkerStatus {
        seat: 2,
        id: None,
        pid: None,
        state: WorkerState::Waiting,
        clients: 0,
        executing: 0,
        requests_total: 0,
        requests_per_second: None,
        p50_seconds: None,
        p99_seconds: None,
        uptime_seconds: None,
        restarts: 5,
        rss_bytes: None,
        unhealthy: None,
        last_death: Some("exited with status 70".to_owned()),
        ..ready.clone()
    };
    Status {
        name: "fdpassd".to_owned(),
        version: "0.1.0".to_owned(),
        pid: 4711,
        uptime_seconds: 275_000.0,
        generation: Generation(3),
        config_file: Some("/etc/fdpassd.toml".into()),
        dispatch: "least-loaded".to_owned(),
        stopping: false,
        drained: false,
        paused: None,
        listeners: vec![
            listener("127.0.0.1:8080", OrderRule::Little, Some(0)),
            listener("unix:/run/fdpassd/rpc.sock", OrderRule::Auto, None),
        ],
        clients: 1234,
        max_clients: 65_536,
        accepted_total: 98_765,
        refused_total: 3,
        moved_total: 128,
        lost_total: 1,
        requests_total: 12_444_443,
        errors_total: 42,
        log_errors_total: 0,
        buffers: 64 << 20,
        memory_limit: None,
        app_cgroups: None,
        count: 3,
        count_origin: Origin::Config,
        reloading: false,
        last_reload: None,
        config_stale: None,
        missing: Vec::new(),
        restart_keeps_clients: true,
        store_outage: None,
        failed_starts_total: 0,
        deaths_total: 0,
        stalls_total: 0,
        reruns_total: 0,
        closed_for_crashes_total: 0,
        quarantined: Vec::new(),
        skew: None,
        workers: vec![ready, draining, waiting],
        leaving: Vec::new(),
    }
}

pub(super) fn listener(address: &str, byte_order: OrderRule, queue: Option<u32>) -> ListenerStatus {
    let queue_max = queue.map(|_| 4096);
    ListenerStatus {
        address: address.to_owned(),
        byte_order,
        queue,
        queue_max,
        accepted_total: 1,
        outage: None,
    }
}
