//! A drain that load balancers understand: a notice in which all are served, then connections are refused.

mod handover;
mod listeners;

use std::io::ErrorKind;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use fdpassd::proto::control::{DrainMode, Status};
use fdpassd::proto::names::Address;
use fdpassd::testing::{Client, Running};
use serde_json::json;

use crate::common::http::{get, metrics_address};
use crate::common::metrics::samples;
use crate::common::program::{Program, control_client, ctl, ctl_command};
use crate::common::{kernel, let_pass, ping_all, start, while_idle};

const BOTH: &str = "listen = [\"127.0.0.1:0\", \"unix:{dir}/rpc.sock\"]\nworkers.count = 2\n";
const METRICS: &str = "metrics.listen = \"127.0.0.1:0\"\n";

/// Returns how connect(2) fails, if it does.
fn refusal(address: &Address) -> Option<ErrorKind> {
    let error = match address {
        Address::Tcp(to) => TcpStream::connect(to).err(),
        Address::Unix(path) => UnixStream::connect(path).err(),
    };
    error.map(|e| e.kind())
}

#[track_caller]
fn assert_refused(addresses: &[Address]) {
    for address in addresses {
        let refused = Some(ErrorKind::ConnectionRefused);
        assert_eq!(refusal(address), refused, "{address}");
    }
}

#[track_caller]
fn assert_served(addresses: &[Address]) {
    let mut clients: Vec<Client> = addresses.iter().map(Client::connect).collect();
    ping_all(&mut clients);
}

#[track_caller]
fn wait_until_refused(daemon: &Running) -> Status {
    daemon.wait_until("all listeners refuse clients", |status| {
        status.listeners.iter().all(|listener| listener.refuses)
    })
}

/// Runs fdpassctl, which must succeed, and returns its output.
#[track_caller]
fn done(daemon: &Running, arguments: &[&str]) -> String {
    let said = ctl(daemon, arguments);
    assert_eq!(said.code, Some(0), "{arguments:?}: {}", said.err);
    said.out
}

#[test]
fn new_clients_are_served_in_the_notice_and_refused_after_it() {
    let daemon = start(&format!("{BOTH}{METRICS}"));
    daemon.wait_for_workers();
    let http = metrics_address(&daemon);
    let mut client = daemon.connect();
    ping_all(std::slice::from_mut(&mut client));

    assert_eq!(
        done(&daemon, &["drain", "--notice", "1h"]),
        "new clients are served for another 1h, then refused; 1 client is still connected\n"
    );
    let ready = get(&http, "/readyz");
    let (status, why) = ready.status_and_body();
    assert_eq!(status, 503);
    assert!(
        why.starts_with("the daemon is leaving: it will be drained in 3"),
        "{why}"
    );
    assert_eq!(get(&http, "/healthz").status_and_body(), (200, "ok\n"));
    assert_served(daemon.addresses());
    // The end of the notice is logged with the number of clients.
    let status = daemon.wait_until("those have left", |status| status.clients == 1);
    let drain = status.drain.expect("a drain is under way");
    assert_eq!((drain.mode, status.drained), (DrainMode::Refuse, false));
    assert!(
        drain
            .notice
            .is_some_and(|left| left > 60.0 && left <= 3600.0)
    );
    assert_eq!(status.paused, None);
    let shown = done(&daemon, &["status"]);
    assert!(shown.contains("\nLEAVING   in "), "{shown}");
    let now = samples(&daemon);
    assert_eq!(
        (now["fdpassd_draining"], now["fdpassd_accepting"]),
        (1.0, 1.0)
    );

    done(&daemon, &["drain", "--notice", "200ms"]);
    let status = wait_until_refused(&daemon);
    assert_refused(daemon.addresses());
    assert_eq!((status.drained, status.lost_total), (true, 0));
    assert_eq!(
        get(&http, "/readyz").status_and_body(),
        (503, "the daemon is drained\n")
    );
    let shown = done(&daemon, &["status"]);
    assert_eq!(shown.matches("refuses clients").count(), 2, "{shown}");
    let now = samples(&daemon);
    let up = format!(
        "fdpassd_listener_up{{listener=\"{}\"}}",
        daemon.addresses()[0]
    );
    assert_eq!((now["fdpassd_draining"], now[&up]), (1.0, 0.0));
    daemon.wait_for_log("the notice is over: new clients are refused; 1 client connected");
    assert_eq!(client.call("ping", 1).expect("it stays"), 1);
    while_idle(&daemon, || ());
    kernel::assert_waits(&[daemon.pid()], Duration::from_millis(500), 0.2);

    assert_eq!(done(&daemon, &["undrain"]), "clients are accepted again\n");
    // The same port, although it was port 0 that was bound.
    assert_served(daemon.addresses());
    assert_eq!(get(&http, "/readyz").status_and_body(), (200, "ok\n"));
    assert_eq!(samples(&daemon)["fdpassd_draining"], 0.0);
    assert_eq!(client.call("ping", 2).expect("it stays"), 2);
    for _ in 0..3 {
        done(&daemon, &["drain"]);
        assert_refused(daemon.addresses());
        done(&daemon, &["undrain"]);
        assert_served(daemon.addresses());
    }
}

#[test]
fn the_configured_notice_is_the_default() {
    let daemon = start(&format!("{BOTH}limits.drain-notice = \"1h\""));
    let said = done(&daemon, &["drain"]);
    assert!(
        said.starts_with("new clients are served for another 1h"),
        "{said}"
    );
    assert_served(daemon.addresses());
    // The notice is not given again, so it does not change.
    done(&daemon, &["drain"]);
    assert_served(daemon.addresses());
    assert!(
        daemon
            .status()
            .drain
            .is_some_and(|drain| drain.notice.is_some())
    );
    let said = done(&daemon, &["drain", "--notice", "0s"]);
    assert!(said.starts_with("new clients are refused; "), "{said}");
    assert_refused(daemon.addresses());
}

#[test]
fn an_undrain_cancels_a_notice() {
    let daemon = start(BOTH);
    let wait = ["drain", "--notice", "1h", "--wait"];
    let drain = Program::start(&mut ctl_command(&daemon, &wait));
    daemon.wait_until("the notice has begun", |status| status.drain.is_some());
    done(&daemon, &["undrain"]);
    let said = drain.finish();
    assert_eq!((said.code, said.out.as_str()), (Some(1), ""));
    assert!(
        said.err.contains("refused: clients are accepted again"),
        "{}",
        said.err
    );
    // In one piece: however late a program is that sends the second request, the notice might be over.
    let mut control = control_client(&daemon);
    let requests = [
        r#"{"in":"drain","params":{"notice":2}}"#,
        r#"{"in":"undrain"}"#,
    ];
    let frames = requests.map(|request| control.frame(request));
    control.send(frames.concat());
    for verb in ["drain", "undrain"] {
        assert_eq!(control.reply().name, verb);
    }
    let_pass(Duration::from_millis(2200));
    // The undrain has cancelled the notice, so no drain follows.
    assert!(!daemon.stderr().contains("the notice is over"));
    assert_served(daemon.addresses());
    let status = daemon.status();
    assert_eq!((status.drained, status.drain), (false, None));
}

#[test]
fn a_drain_that_is_under_way_gets_other_terms() {
    let daemon = start(BOTH);
    done(&daemon, &["drain"]);
    assert_refused(daemon.addresses());
    let said = ctl(&daemon, &["drain", "--notice", "5s"]);
    assert_eq!((said.code, said.out.as_str()), (Some(1), ""));
    assert!(
        said.err
            .contains("refused: the daemon is already drained, so it is too late for a notice"),
        "{}",
        said.err
    );
    let bad = daemon.ctl_with("drain", json!({ "notice": -1.0 }));
    assert_eq!(bad.expect_err("it is negative").code(), "bad_params");

    assert_eq!(
        done(&daemon, &["drain", "--queue"]),
        "new clients are not accepted; 0 clients are still connected\n"
    );
    let mut waiting: Vec<Client> = daemon.addresses().iter().map(Client::connect).collect();
    waiting
        .iter_mut()
        .for_each(|client| client.request("ping", 7));
    // A drain without terms changes nothing.
    done(&daemon, &["drain"]);
    let_pass(Duration::from_millis(200));
    assert!(!waiting.iter_mut().any(Client::has_something));
    assert_eq!(daemon.status().accepted_total, 0);
    done(&daemon, &["drain", "--refuse"]);
    for client in &mut waiting {
        assert_eq!(client.reply().value().expect("it is served"), 7);
    }
    assert_refused(daemon.addresses());
    done(&daemon, &["undrain"]);
    assert_served(daemon.addresses());
}

#[test]
fn clients_in_the_queue_are_served_before_others_are_refused() {
    // More than are leased in an iteration of the loop.
    const WAITING: u64 = 300;
    let daemon = start(BOTH);
    daemon.wait_for_workers();
    let mut first = daemon.connect();
    ping_all(std::slice::from_mut(&mut first));
    done(&daemon, &["drain", "--queue"]);
    let both = daemon.addresses().iter().cycle();
    let mut waiting: Vec<Client> = both
        .take(2 * WAITING as usize)
        .map(Client::connect)
        .collect();
    for (client, number) in waiting.iter_mut().zip(0_u64..) {
        client.request("ping", number);
    }
    assert_eq!(
        done(&daemon, &["drain", "--refuse"]),
        format!(
            "new clients are refused; {} clients are still connected\n",
            2 * WAITING + 1
        )
    );
    assert_refused(daemon.addresses());
    for (client, number) in waiting.iter_mut().zip(0_u64..) {
        assert_eq!(client.reply().value().expect("it is served"), number);
    }
    ping_all(&mut waiting);
    let status = daemon.status();
    assert_eq!(
        (status.accepted_total, status.lost_total),
        (2 * WAITING + 1, 0)
    );
}

#[test]
fn clients_beyond_a_reduced_backlog_are_served_as_well() {
    let config = |backlog: u32| {
        format!(
            "listen = [{{ address = \"127.0.0.1:0\", backlog = {backlog} }}, \
             {{ address = \"unix:{{dir}}/rpc.sock\", backlog = {backlog} }}]\nworkers.count = 1"
        )
    };
    let daemon = start(&config(50));
    daemon.wait_for_workers();
    done(&daemon, &["drain", "--queue"]);
    let both = daemon.addresses().iter().cycle();
    let mut waiting: Vec<Client> = both.take(60).map(Client::connect).collect();
    for (client, number) in waiting.iter_mut().zip(0_u64..) {
        client.request("ping", number);
    }
    daemon.reload_with(&config(2)).expect("it is applied");
    done(&daemon, &["drain", "--refuse"]);
    assert_refused(daemon.addresses());
    for (client, number) in waiting.iter_mut().zip(0_u64..) {
        assert_eq!(client.reply().value().expect("it is served"), number);
    }
    assert_eq!(daemon.status().lost_total, 0);
}

#[test]
fn clients_above_max_clients_are_closed_when_others_are_refused() {
    let daemon = start(&format!("{BOTH}limits.max-clients = 3"));
    daemon.wait_for_workers();
    done(&daemon, &["drain", "--queue"]);
    for address in daemon.addresses() {
        let mut waiting: Vec<Client> = (0..5).map(|_| Client::connect(address)).collect();
        waiting[0].request("ping", 1);
        done(&daemon, &["drain", "--refuse"]);
        assert_refused(std::slice::from_ref(address));
        assert_eq!(waiting[0].reply().value().expect("there was space"), 1);
        waiting[3..].iter_mut().for_each(Client::expect_end);
        daemon.wait_for_log(&format!(
            "2 clients waited at {address} and could not be accepted"
        ));
        drop(waiting);
        daemon.wait_until("they have left", |status| status.clients == 0);
        done(&daemon, &["drain", "--queue"]);
    }
}

#[test]
fn drain_wait_ends_when_the_notice_is_over_and_all_have_left() {
    let daemon = start(BOTH);
    let wait = ["drain", "--wait", "--notice", "300ms"];
    let left = "new clients are refused; the last client has left\n";
    // Without clients it still waits for the end of the notice.
    assert_eq!(done(&daemon, &wait), left);
    assert!(daemon.status().drained);
    done(&daemon, &["undrain"]);

    let mut client = daemon.connect();
    assert_eq!(client.call("ping", 1).expect("it is served"), 1);
    let mut drain = Program::start(&mut ctl_command(&daemon, &wait));
    wait_until_refused(&daemon);
    let_pass(Duration::from_millis(200));
    assert!(drain.is_running(), "one client is there");
    drop(client);
    let said = drain.finish();
    assert_eq!((said.code, said.out.as_str()), (Some(0), left));
}
