//! Health and readiness over HTTP.

use fdpassd::testing::eventually;
use nix::sys::signal::Signal;

use crate::common::faulty::{self, Execution, Switch};
use crate::common::http::{Answer, exporter, get, metrics_address};
use crate::common::{kernel, start};

use super::TCP;

#[test]
fn a_drained_daemon_is_healthy_and_not_ready() {
    let daemon = start(TCP);
    let address = metrics_address(&daemon);
    daemon.ctl("drain").expect("it is drained");
    assert_eq!(
        get(&address, "/readyz").status_and_body(),
        (503, "the daemon is drained\n")
    );
    assert_eq!(get(&address, "/healthz").status_and_body(), (200, "ok\n"));
    daemon.ctl("undrain").expect("it is not any more");
    assert_eq!(get(&address, "/readyz").status_and_body(), (200, "ok\n"));
}

#[test]
fn health_and_readiness_fail_without_a_ready_worker() {
    let config = TCP.replace(
        "workers.count = 2",
        "workers = { count = 2, start-timeout = \"5m\" }",
    );
    let (daemon, switch): (_, Switch) = faulty::start_with_switch(&config);
    let address = metrics_address(&daemon);
    switch.set("hang");
    (0..2).for_each(|seat| daemon.signal_worker(seat, "KILL"));
    for path in ["/healthz", "/readyz"] {
        eventually("it is known that none is ready", || {
            (get(&address, path).status == 503).then_some(())
        });
        assert_eq!(
            get(&address, path).status_and_body(),
            (503, "no worker is ready\n")
        );
    }
    assert_eq!(get(&address, "/metrics").status, 200);
    switch.set("");
    kernel::children(daemon.pid())
        .iter()
        .filter(|pid| **pid != exporter(&daemon))
        .for_each(|pid| kernel::send(*pid, Signal::SIGKILL));
    eventually("one is ready again", || {
        (get(&address, "/healthz").status_and_body() == (200, "ok\n")).then_some(())
    });
    eventually("it can be sent clients again", || {
        (get(&address, "/readyz").status_and_body() == (200, "ok\n")).then_some(())
    });
}

#[test]
fn readiness_fails_during_a_stop() {
    let mut daemon = faulty::start(TCP);
    let (address, pid) = (metrics_address(&daemon), exporter(&daemon));
    let execution = Execution::start(&daemon);
    daemon.signal("TERM");
    let not_ready = |answer: &Answer| answer.status_and_body() == (503, "the daemon is stopping\n");
    eventually("it is told", || {
        Some(get(&address, "/readyz")).filter(not_ready)
    });
    assert_eq!(get(&address, "/metrics").status, 200);
    drop(execution.finish());
    assert_eq!(daemon.wait().code(), Some(0));
    eventually("the exporter is gone", || {
        kernel::is_over(pid).then_some(())
    });
}
