//! Reloads that start, move, change and end the exporter.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use fdpassd::testing::{Running, eventually};

use crate::common::http::{HttpClient, ask, exporter, exporters, get, metrics_address, request};
use crate::common::port::Reserved;
use crate::common::{FDPASSD, faulty, kernel, start};

use super::{TCP, unix};

#[test]
fn reloads_start_move_and_end_the_exporter() {
    let reserved = Reserved::new();
    let bound = reserved.address;
    let daemon = start("workers.count = 1");
    let reload = |metrics: &str| {
        daemon
            .reload_with(&format!("workers.count = 1\n{metrics}"))
            .expect("it is applied")
    };
    assert!(exporters(&daemon).is_empty());
    reload(&format!("metrics.listen = \"{bound}\""));
    let tcp = metrics_address(&daemon);
    assert_eq!(get(&tcp, "/healthz").status, 200);

    let first = exporter(&daemon);
    reload(&format!(
        "metrics.listen = \"{bound}\"\nlimits.max-frame = \"64KiB\""
    ));
    assert_eq!(
        (get(&tcp, "/healthz").status, exporter(&daemon)),
        (200, first),
        "nothing about it has changed"
    );

    // There and back again: what is given up is free at once.
    for _ in 0..5 {
        reload("metrics.listen = \"unix:{dir}/metrics.sock\"");
        assert_eq!(get(&unix(&daemon, "metrics.sock"), "/healthz").status, 200);
        std::net::TcpStream::connect(bound).expect_err("nobody listens there any more");
        reload(&format!("metrics.listen = \"{bound}\""));
        assert_eq!(get(&tcp, "/healthz").status, 200);
        assert!(!daemon.directory().join("metrics.sock").exists());
    }
    eventually("only one is left", || {
        (exporters(&daemon).len() == 1).then_some(())
    });
    reload("");
    std::net::TcpStream::connect(bound).expect_err("nobody listens there any more");
    eventually("none is left", || {
        exporters(&daemon).is_empty().then_some(())
    });
}

#[test]
fn an_address_that_cannot_be_bound_is_reported_with_its_place() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let occupied = taken.local_addr().expect("it is bound");
    let metrics = format!("metrics.listen = \"{occupied}\"");
    let sentence = format!("cannot listen on {occupied} for metrics: Address already in use");
    let error = Running::start(FDPASSD, &metrics).expect_err("it is taken");
    assert!(
        error.code() == Some(69) && error.stderr().contains(&sentence),
        "{error}"
    );

    let daemon = start(TCP);
    let (address, first) = (metrics_address(&daemon), exporter(&daemon));
    let fault = daemon.reload_with(&metrics).expect_err("it is taken");
    assert!(
        fault.code() == "rejected" && fault.message().contains(&sentence),
        "{fault}"
    );
    // Bound sockets are closed again if another one cannot be bound.
    let other =
        format!("listen = [\"{occupied}\"]\nmetrics.listen = \"unix:{{dir}}/metrics.sock\"");
    let fault = daemon.reload_with(&other).expect_err("it is taken");
    assert!(
        fault.code() == "rejected" && !daemon.directory().join("metrics.sock").exists(),
        "{fault}"
    );
    let same =
        "control.socket = \"{dir}/control.sock\"\nmetrics.listen = \"unix:{dir}/control.sock\"";
    let fault = daemon
        .reload_with(same)
        .expect_err("it is the control socket");
    assert!(
        fault.code() == "rejected"
            && fault
                .message()
                .contains("control.sock is the control socket, at "),
        "{fault}"
    );
    assert_eq!(
        (get(&address, "/readyz").status, exporter(&daemon)),
        (200, first)
    );
}

#[test]
fn a_configuration_that_is_rolled_back_leaves_it_where_it_was() {
    let (daemon, switch) = faulty::start_with_switch(TCP);
    let (address, first) = (metrics_address(&daemon), exporter(&daemon));
    switch.set("fail");
    let next = "workers = { count = 2, start-timeout = \"5s\" }\nmetrics.listen = \"unix:{dir}/metrics.sock\"";
    assert_eq!(
        daemon
            .reload_with(next)
            .expect_err("no worker is ready")
            .code(),
        "rolled_back"
    );
    assert!(!daemon.directory().join("metrics.sock").exists());
    assert_eq!(
        (get(&address, "/metrics").status, exporter(&daemon)),
        (200, first)
    );
}

#[test]
fn changed_hosts_apply_at_once_and_waiting_ones_are_answered() {
    let daemon = start(TCP);
    let (address, first) = (metrics_address(&daemon), exporter(&daemon));
    let ask_as = |host: &str| {
        ask(
            &address,
            format!("GET /healthz HTTP/1.1\r\nHost: {host}\r\n\r\n"),
        )
        .status
    };
    assert_eq!((ask_as("node1.example.org"), ask_as("node2")), (200, 403));
    kernel::stop(first);
    let mut waiting: Vec<HttpClient> = (0..20).map(|_| HttpClient::connect(&address)).collect();
    waiting
        .iter_mut()
        .for_each(|http_client| http_client.send(request("/healthz")).expect("it is taken"));
    daemon
        .reload_with(&TCP.replace("node1.example.org", "node2"))
        .expect("it is applied");
    for http_client in &mut waiting {
        assert_eq!(http_client.answer().status_and_body(), (200, "ok\n"));
    }
    assert_eq!((ask_as("node1.example.org"), ask_as("node2")), (403, 200));
    eventually("the one before is gone", || {
        kernel::is_over(first).then_some(())
    });
}

#[test]
fn a_stopped_exporter_delays_no_other_and_a_reload_ends_it() {
    let daemon = start(TCP);
    let (address, stopped) = (metrics_address(&daemon), exporter(&daemon));
    let mut client = daemon.connect();
    let mut serve = |rounds: u64| {
        let began = Instant::now();
        for round in 0..rounds {
            assert_eq!(client.call("ping", round).expect("a result"), round);
            assert_eq!(daemon.status().clients, 1);
            daemon.signal("USR1");
        }
        daemon.kill_worker(0);
        began.elapsed()
    };
    let usual = serve(100);
    kernel::stop(stopped);
    let mut http_clients: Vec<HttpClient> =
        (0..100).map(|_| HttpClient::connect(&address)).collect();
    http_clients
        .iter_mut()
        .for_each(|http_client| http_client.send(request("/metrics")).expect("it is taken"));
    let took = serve(100);
    assert!(
        took < 10 * usual + Duration::from_secs(2),
        "it took {took:?} instead of {usual:?}"
    );
    daemon
        .reload_with("metrics.listen = \"unix:{dir}/metrics.sock\"")
        .expect("it is applied");
    eventually("it is gone", || kernel::is_over(stopped).then_some(()));
    assert_eq!(get(&unix(&daemon, "metrics.sock"), "/healthz").status, 200);
}
