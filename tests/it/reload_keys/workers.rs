//! The keys of `[workers]`.

use std::collections::BTreeSet;

use fdpassd::proto::control::WorkerState;
use fdpassd::testing::eventually;
use nix::sys::signal::Signal;

use crate::common::faulty::{Execution, server, whoami};
use crate::common::kernel;

use super::{Row, check, comes_true};

pub(super) const WORKERS: &[Row] = &[
    Row {
        key: "count",
        configs: ["workers.count = 1", "workers.count = 3"],
        probe: |daemon, _, _| {
            // A worker that leaves a surplus seat is shown there until it has ended.
            let status = daemon.wait_for_workers();
            format!(
                "{} {}",
                status.workers.len(),
                kernel::children(daemon.pid()).len()
            )
        },
        shows: ["1 1", "3 3"],
    },
    Row {
        key: "dispatch",
        configs: [
            "limits.stall-timeout = \"1h\"\nworkers.dispatch = \"round-robin\"",
            "limits.stall-timeout = \"1h\"\nworkers.dispatch = \"least-loaded\"",
        ],
        probe: |daemon, _, _| {
            // One of the two workers has something to do.
            let execution = Execution::start(daemon);
            let mut next = [daemon.connect(), daemon.connect()];
            daemon.wait_until("both are there", |status| status.clients == 3);
            // Only now: a request of the first would be executing while the second is dispatched.
            next.iter_mut()
                .for_each(|client| client.request("whoami", ()));
            let _caller = execution.finish();
            let seats = next.each_mut().map(|client| server(client).seat);
            format!("{} {}", daemon.status().dispatch, seats[0] == seats[1])
        },
        shows: ["round-robin false", "least-loaded true"],
    },
    Row {
        key: "start",
        configs: ["workers.start = \"exec\"", "workers.start = \"fork\""],
        probe: |daemon, _, _| {
            let status = daemon.wait_for_workers();
            format!("{} {}", status.start, status.zygote.is_some())
        },
        shows: ["exec false", "fork true"],
    },
    Row {
        key: "start-timeout",
        configs: ["", "workers.start-timeout = \"6s\""],
        probe: |daemon, switch, is_second| {
            switch.set("hang:1");
            daemon.signal_worker(1, "KILL");
            let hanging = eventually("its successor hangs", || {
                let worker = daemon.status().workers.swap_remove(1);
                worker.pid.filter(|_| worker.state == WorkerState::Starting)
            });
            let line = format!("(pid {hanging}, gen ");
            let is_late = comes_true(is_second, || {
                let log = daemon.stderr();
                let mut lines = log.lines().filter(|text| text.contains(&line));
                lines.any(|text| text.contains(" is not ready after 6s; killing it"))
            });
            switch.set("");
            if !is_second {
                kernel::send(hanging, Signal::SIGKILL);
            }
            daemon.wait_for_workers();
            is_late
        },
        shows: ["false", "true"],
    },
    Row {
        key: "max-requests",
        configs: ["", "workers.max-requests = 2"],
        probe: |daemon, _, _| {
            let mut client = daemon.connect();
            let pids: BTreeSet<u32> = (0..12).map(|_| whoami(&mut client).pid).collect();
            (pids.len() > 3).to_string()
        },
        shows: ["false", "true"],
    },
    Row {
        key: "max-lifetime",
        configs: ["", "workers.max-lifetime = \"200ms\""],
        probe: |daemon, _, is_second| {
            let pids = daemon.worker_pids();
            comes_true(is_second, || daemon.worker_pids() != pids)
        },
        shows: ["false", "true"],
    },
];

#[test]
fn each_key_of_the_workers_has_its_effect() {
    check(WORKERS);
}
