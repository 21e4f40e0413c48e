//! Agent checks of load balancers: the line for each state of the daemon, and balancers that cannot delay others.
//! `tests/fleet/run` has a real one.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use fdpassd::proto::names::Address;
use fdpassd::testing::{Client, Running, ServiceManager, TIMEOUT, eventually};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::common::faulty::{self, Execution, example};
use crate::common::http::{
    HttpClient, agent_address, exporter, exporters, get, metrics_address, request,
};
use crate::common::program::control_socket;
use crate::common::restart::wait_for_confirmed_store;
use crate::common::{FDPASSD, kernel, start};

/// On a free port, without metrics.
const AGENT: &str = "workers.count = 2\nagent.listen = \"127.0.0.1:0\"\n";

/// All that comes in reply to a check.
#[track_caller]
fn check(address: &Address) -> String {
    HttpClient::connect(address).receive().expect("the end")
}

#[track_caller]
fn expect(address: &Address, line: &str) {
    eventually(line, || {
        (check(address) == format!("{line}\n")).then_some(())
    });
}

#[test]
fn a_drained_or_full_daemon_has_the_weight_zero() {
    let daemon = start(&format!("{AGENT}limits.max-clients = 1"));
    daemon.wait_for_workers();
    let address = agent_address(&daemon);
    expect(&address, "up 100%");
    let mut client = daemon.connect();
    client.call("ping", 1).expect("a pong");
    expect(&address, "up 0% #full");
    daemon
        .ctl_with("drain", json!({ "notice": 60 }))
        .expect("the notice has begun");
    expect(&address, "up 0% #leaving");
    daemon
        .ctl_with("drain", json!({ "notice": 0 }))
        .expect("it is drained");
    expect(&address, "up 0% #drained");
    assert_eq!(client.call("ping", 2).expect("it stays"), 2);
    daemon.ctl("undrain").expect("it is not any more");
    drop(client);
    expect(&address, "up 100%");
}

#[test]
fn the_weight_follows_the_load() {
    // A worker that is stuck is not ready.
    let daemon = faulty::start(&format!("{AGENT}limits.stall-timeout = \"20s\""));
    daemon.wait_for_workers();
    let address = agent_address(&daemon);
    expect(&address, "up 100%");
    let has_weight = |is_expected: fn(u32) -> bool| {
        let line = check(&address);
        if line.is_empty() {
            // The master had no CPU for a while.
            return None;
        }
        let weight = line
            .strip_prefix("up ")
            .and_then(|rest| rest.strip_suffix("%\n"));
        let weight = weight.unwrap_or_else(|| panic!("{line:?}"));
        let weight: u32 = weight.parse().expect("a number");
        assert!(
            weight.is_multiple_of(10) && (10..=100).contains(&weight),
            "{line:?}"
        );
        is_expected(weight).then_some(())
    };
    let mut clients: Vec<Client> = (0..2).map(|_| daemon.connect()).collect();
    let is_over = AtomicBool::new(false);
    thread::scope(|threads| {
        // One at each worker, until the weight has been seen. If it is not, they end nevertheless.
        for client in &mut clients {
            let (began, is_over) = (Instant::now(), &is_over);
            threads.spawn(move || {
                while !is_over.load(Ordering::Relaxed) && began.elapsed() < TIMEOUT {
                    client.call("spin", 1_000).expect("a result");
                }
            });
        }
        eventually("the weight falls", || has_weight(|weight| weight <= 40));
        is_over.store(true, Ordering::Relaxed);
    });
    eventually("the weight rises", || has_weight(|weight| weight == 100));
}

#[test]
fn a_daemon_without_a_ready_worker_is_down() {
    let (daemon, switch) = faulty::start_with_switch(AGENT);
    daemon.wait_for_workers();
    let address = agent_address(&daemon);
    switch.set("hang");
    (0..2).for_each(|seat| daemon.signal_worker(seat, "KILL"));
    expect(&address, "down #no worker is ready");
}

#[test]
fn an_unhealthy_daemon_has_the_weight_zero() {
    let (daemon, switch) = faulty::start_with_health(AGENT);
    daemon.wait_for_workers();
    let address = agent_address(&daemon);
    switch.set("no database");
    expect(&address, "up 0% #unhealthy");
    switch.set("");
    expect(&address, "up 100%");
}

#[test]
fn a_stop_is_down_and_a_restart_has_the_weight_zero() {
    let mut daemon = faulty::start(AGENT);
    let address = agent_address(&daemon);
    let execution = Execution::start(&daemon);
    daemon.signal("TERM");
    expect(&address, "down #stopping");
    drop(execution.finish());
    daemon.wait();

    let manager = ServiceManager::new();
    let config = format!("{AGENT}limits.restart-grace = \"1m\"");
    let daemon = manager
        .setup(example("faulty"), &config)
        .start()
        .expect("the daemon serves");
    wait_for_confirmed_store(&daemon);
    let address = agent_address(&daemon);
    let mut execution = Execution::start(&daemon);
    daemon.signal("TERM");
    expect(&address, "up 0% #restarting");
    execution.let_go();
    let mut before = daemon;
    before.wait();
    let daemon = manager
        .setup(Path::new(&example("faulty")), "")
        .start_after(before)
        .expect("the next master serves");
    daemon.wait_for_workers();
    expect(&agent_address(&daemon), "up 100%");
    assert_eq!(
        execution.into_client().reply().value().expect("a result"),
        "done\n"
    );
}

#[test]
fn a_daemon_that_does_not_answer_gets_no_line() {
    let daemon = start(AGENT);
    daemon.wait_for_workers();
    let address = agent_address(&daemon);
    expect(&address, "up 100%");
    kernel::stop(daemon.pid());
    let began = Instant::now();
    let mut balancers: Vec<HttpClient> = (0..4).map(|_| HttpClient::connect(&address)).collect();
    for balancer in &mut balancers {
        assert_eq!(balancer.receive().expect("the end"), "");
    }
    assert!(began.elapsed() >= Duration::from_secs(3));
    daemon.signal("CONT");
    expect(&address, "up 100%");
    let socket = control_socket(&daemon);
    fs::rename(&socket, socket.with_extension("away")).expect("it is our directory");
    assert_eq!(check(&address), "");
    fs::rename(socket.with_extension("away"), &socket).expect("it is our directory");
    expect(&address, "up 100%");
}

#[test]
fn bytes_of_a_balancer_do_not_destroy_the_line() {
    let daemon = start(AGENT);
    daemon.wait_for_workers();
    let address = agent_address(&daemon);
    let exporter = exporter(&daemon);
    for sent in ["node a\n".to_owned(), "x".repeat(100_000)] {
        for _ in 0..10 {
            // It answers without a wait for them, and soon closes the connection.
            kernel::stop(exporter);
            let mut balancer = HttpClient::connect(&address);
            balancer.send(&sent).expect("it is taken");
            kernel::send(exporter, Signal::SIGCONT);
            let line = balancer.receive().expect("a line, and the end");
            assert!(line.starts_with("up ") && line.ends_with("%\n"), "{line:?}");
        }
    }
}

/// Of both listeners: neither keeps the other from its clients.
#[test]
fn silent_balancers_and_http_clients_delay_no_other() {
    let daemon = start(&format!("{AGENT}metrics.listen = \"127.0.0.1:0\""));
    daemon.wait_for_workers();
    let (agent, metrics) = (agent_address(&daemon), metrics_address(&daemon));
    expect(&agent, "up 100%");
    let began = Instant::now();
    assert_eq!(get(&metrics, "/healthz").status, 200);
    let soon = Duration::from_secs(2) + 20 * began.elapsed();
    let silent = |address: &Address| -> Vec<HttpClient> {
        (0..50).map(|_| HttpClient::connect(address)).collect()
    };
    let mut hostile = silent(&metrics);
    for client in &mut hostile {
        drop(client.send("GET /metrics HTTP/1.1\r\nHost: loc"));
    }
    hostile.extend(silent(&agent));
    for _ in 0..5 {
        let asked = Instant::now();
        assert!(check(&agent).starts_with("up "));
        assert_eq!(get(&metrics, "/healthz").status, 200);
        assert!(asked.elapsed() < 2 * soon, "it took {:?}", asked.elapsed());
    }
    let tasks = fs::read_dir(format!("/proc/{}/task", exporter(&daemon)));
    let count = tasks.expect("it runs").count();
    assert!(count <= 1 + 2 * 16, "{count} threads");
    assert_eq!(daemon.call("ping", 1).expect("a result"), 1);
}

#[test]
fn reloads_start_move_and_end_the_listener() {
    let daemon = start("workers.count = 1");
    let unix = |name: &str| Address::Unix(daemon.directory().join(name));
    let reload = |keys: &str| {
        daemon
            .reload_with(&format!("workers.count = 1\n{keys}"))
            .expect("it is applied");
    };
    let both = "metrics.listen = \"unix:{dir}/metrics.sock\"\nagent.listen = \"unix:{dir}/a.sock\"";
    reload(both);
    let first = exporter(&daemon);
    expect(&unix("a.sock"), "up 100%");
    assert_eq!(get(&unix("metrics.sock"), "/healthz").status, 200);
    reload(&format!("{both}\nlimits.max-frame = \"64KiB\""));
    assert_eq!(exporter(&daemon), first, "nothing about it has changed");
    // Requests wait for the next process at the listener that stays.
    kernel::stop(first);
    let mut waiting = HttpClient::connect(&unix("metrics.sock"));
    waiting.send(request("/healthz")).expect("it is taken");
    reload(&both.replace("a.sock", "b.sock"));
    assert_eq!(waiting.answer().status, 200);
    expect(&unix("b.sock"), "up 100%");
    assert!(!daemon.directory().join("a.sock").exists());
    reload("agent.listen = \"unix:{dir}/b.sock\"");
    expect(&unix("b.sock"), "up 100%");
    assert!(!daemon.directory().join("metrics.sock").exists());
    reload("");
    assert!(!daemon.directory().join("b.sock").exists());
    eventually("no exporter is left", || {
        exporters(&daemon).is_empty().then_some(())
    });
}

#[test]
fn an_address_in_use_is_reported_and_a_lost_one_is_bound_again() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let occupied = taken.local_addr().expect("it is bound");
    let config = format!("agent.listen = \"{occupied}\"");
    let sentence = format!("cannot listen on {occupied} for agent checks: Address already in use");
    let error = Running::start(FDPASSD, &config).expect_err("it is taken");
    assert!(
        error.code() == Some(69) && error.stderr().contains(&sentence),
        "{error}"
    );
    let own = "agent.listen = \"unix:{dir}/agent.sock\"";
    let daemon = start(own);
    let fault = daemon.reload_with(&config).expect_err("it is taken");
    assert!(
        fault.code() == "rejected" && fault.message().contains(&sentence),
        "{fault}"
    );
    let path = daemon.directory().join("agent.sock");
    expect(&Address::Unix(path.clone()), "up 100%");
    fs::remove_file(&path).expect("it is our directory");
    let missing = format!("agent checks on unix:{}: its file is gone", path.display());
    assert_eq!(daemon.status().missing, [missing]);
    daemon.reload_with(own).expect("it is applied");
    expect(&Address::Unix(path), "up 100%");
    assert!(daemon.status().missing.is_empty());
}
