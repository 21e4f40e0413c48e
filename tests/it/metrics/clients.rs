//! Clients that are closed or have left, by reason, the reasons of a pause, and bytes.

use std::io::Write;
use std::path::Path;
use std::thread;

use fdpassd::proto::names::Address;
use fdpassd::testing::{Client, Running, ServiceManager, eventually};
use serde_json::json;

use crate::common::faulty::{self, Execution};
use crate::common::metrics::{samples, sum};
use crate::common::restart::{How, restart};
use crate::common::{FDPASSD, ping_of, start};

/// Both kinds of listeners.
const LISTEN: &str = "listen = [\"127.0.0.1:0\", \"unix:{dir}/rpc.sock\"]\nworkers.count = 2";

/// A configuration with these limits and one of frames. Only one timeout is short at a time: a test that is slow between
/// two steps would reach another one.
fn limited(limits: &str) -> String {
    format!("{LISTEN}\nlimits = {{ max-frame = \"64KiB\"{limits} }}")
}

fn closed(daemon: &Running, reason: &str) -> f64 {
    samples(daemon)[&format!("fdpassd_clients_closed_total{{reason=\"{reason}\"}}")]
}

/// Waits until this many clients were closed for a reason, and checks that each client that was accepted is either
/// connected or counted once.
#[track_caller]
fn expect_closed(daemon: &Running, reason: &str, count: u64) {
    let name = format!("fdpassd_clients_closed_total{{reason=\"{reason}\"}}");
    eventually(&format!("{count} clients are counted as {reason}"), || {
        let now = samples(daemon);
        let gone = sum(&now, "fdpassd_clients_closed_total");
        let all = gone + sum(&now, "fdpassd_clients");
        let is_so = now[&name] == count as f64 && all == now["fdpassd_clients_accepted_total"];
        is_so.then_some(())
    });
}

/// Kicks the only client.
fn kick_the_only_client(daemon: &Running) {
    let page = daemon.ctl("clients").expect("a page");
    let id = &page["clients"][0]["id"];
    daemon
        .ctl_with("kick", json!({ "client": id }))
        .expect("it is connected");
}

#[test]
fn each_client_that_is_gone_is_counted_under_its_reason() {
    let daemon = faulty::start(&limited(""));
    daemon.wait_for_workers();
    let apply = |limits: &str| {
        daemon.reload_with(&limited(limits)).expect("it is applied");
    };
    let mut client = daemon.connect();
    client.call("ping", 1).expect("a pong");
    drop(client);
    daemon.wait_until("it has left", |status| status.clients == 0);
    expect_closed(&daemon, "left", 1);
    let mut within_a_frame = daemon.connect();
    within_a_frame.send(b"\x09\0\0\0abc");
    within_a_frame.finish();
    assert_eq!(within_a_frame.replies().len(), 1);
    expect_closed(&daemon, "left", 2);

    let mut too_large = daemon.connect();
    too_large.send((1u32 << 20).to_le_bytes());
    assert_eq!(too_large.replies().len(), 1);
    expect_closed(&daemon, "too_large", 1);
    apply(", frame-timeout = \"100ms\"");
    let mut slow = daemon.connect();
    slow.send(b"\x09\0\0\0abc");
    assert_eq!(slow.replies().len(), 1);
    expect_closed(&daemon, "frame_timeout", 1);
    apply(", send-timeout = \"100ms\"");
    deaf(&daemon);
    expect_closed(&daemon, "send_timeout", 1);
    apply("");

    let mut idle = daemon.connect();
    idle.call("ping", 1).expect("a pong");
    kick_the_only_client(&daemon);
    idle.expect_end();
    expect_closed(&daemon, "kicked", 1);
    // Its worker closes it later, and finds that the connection has ended.
    let mut executing = Execution::start(&daemon);
    kick_the_only_client(&daemon);
    executing.let_go();
    daemon.wait_until("it is closed", |status| status.clients == 0);
    expect_closed(&daemon, "kicked", 2);

    let mut culprit = daemon.connect();
    for _ in 0..2 {
        culprit.call("abort", ()).expect_err("its worker ends");
    }
    culprit.request("abort", ());
    culprit.expect_end();
    expect_closed(&daemon, "crashes", 1);

    (0..2).for_each(|seat| daemon.kill_worker(seat));
    apply(", idle-timeout = \"100ms\"");
    daemon.connect().expect_end();
    expect_closed(&daemon, "idle", 1);
    assert_eq!(closed(&daemon, "left"), 2.0);
    assert_eq!(closed(&daemon, "lost"), 0.0);
}

/// A client that reads no reply, until it is closed.
fn deaf(daemon: &Running) {
    let client = Client::connect(&Address::Unix(daemon.directory().join("rpc.sock")));
    let frame = client.frame(ping_of(60_000));
    let mut writer = client.writer();
    thread::scope(|threads| {
        threads.spawn(move || (0..50).try_for_each(|_| writer.write_all(&frame)));
        daemon.wait_until("it is closed", |status| {
            status.requests_total > 0 && status.clients == 0
        });
    });
}

#[test]
fn clients_that_are_closed_for_lack_of_memory_are_counted() {
    let daemon =
        start("workers.count = 1\nlimits = { max-frame = \"64KiB\", buffers = \"256KiB\" }");
    let mut clients: Vec<Client> = (0..6).map(|_| daemon.connect()).collect();
    for client in &mut clients {
        let frame = client.frame(ping_of(60_000));
        client.send(&frame[..55_000]);
    }
    eventually("some are closed", || {
        (closed(&daemon, "overloaded") > 0.0).then_some(())
    });
    drop(clients);
    daemon.wait_until("the others have left", |status| status.clients == 0);
    // More may be closed before the others leave.
    eventually("each is counted once", || {
        let (overloaded, left) = (closed(&daemon, "overloaded"), closed(&daemon, "left"));
        (overloaded > 0.0 && overloaded + left == 6.0).then_some(())
    });
}

#[test]
fn bytes_are_counted_over_deaths_and_restarts() {
    let manager = ServiceManager::new();
    let mut daemon = manager
        .setup(FDPASSD, LISTEN)
        .start()
        .expect("the daemon serves");
    let (mut received, mut sent) = (0, 0);
    let mut clients: Vec<Client> = daemon.addresses().iter().map(Client::connect).collect();
    for round in 0..4 {
        for client in &mut clients {
            for length in [30, 500, 300_000] {
                let frame = client.frame(ping_of(length));
                client.send(&frame);
                received += frame.len();
                sent += 4 + client.receive().len();
            }
        }
        eventually("all bytes are counted", || {
            let now = samples(&daemon);
            let counted =
                ["received", "sent"].map(|way| now[&format!("fdpassd_{way}_bytes_total")]);
            (counted == [received as f64, sent as f64]).then_some(())
        });
        match round {
            0 => (0..2).for_each(|seat| daemon.kill_worker(seat)),
            1 => drop(daemon.reload().expect("it is applied")),
            2 => daemon = restart(&manager, daemon, How::Term, Path::new(FDPASSD)),
            _ => {}
        }
        daemon.wait_for_workers();
    }
}

#[test]
fn the_reason_of_a_pause_is_in_the_metrics_and_in_the_status() {
    let daemon = start("workers.count = 1\nlimits.max-clients = 1");
    daemon.wait_for_workers();
    let expect = |reason: Option<&str>| {
        eventually("the reason is shown", || {
            let now = samples(&daemon);
            let paused = now.iter().filter_map(|(name, value)| {
                let reason = name.strip_prefix("fdpassd_paused{reason=\"")?;
                (*value > 0.0).then(|| reason.trim_end_matches("\"}").to_owned())
            });
            (paused.collect::<Vec<_>>() == Vec::from_iter(reason)).then_some(())
        });
        let shown = daemon.status().pause.map(|pause| pause.as_str());
        assert_eq!(shown, reason);
    };
    expect(None);
    let mut client = daemon.connect();
    client.call("ping", 1).expect("a pong");
    expect(Some("full"));
    daemon.ctl("drain").expect("it is drained");
    expect(Some("drained"));
    daemon.ctl("undrain").expect("it is not any more");
    drop(client);
    expect(None);
}

#[test]
fn the_busy_share_of_each_worker_is_in_the_status() {
    let daemon = faulty::start("workers.count = 1");
    daemon.wait_for_workers();
    let share = |awaited: &str, is_so: fn(f64) -> bool| {
        daemon.wait_until(awaited, |status| status.workers[0].busy.is_some_and(is_so));
    };
    share("the worker is idle", |busy| busy < 0.05);
    let mut client = daemon.connect();
    thread::scope(|threads| {
        let busy = threads.spawn(|| client.call("spin", 3_000));
        share("the worker is busy", |busy| busy > 0.2);
        busy.join().expect("it ends").expect("a result");
    });
}
