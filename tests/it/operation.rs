//! The operator changes the workers while it runs, and no client notices.

use std::time::Duration;

use fdpassd::proto::control::{Origin, Status, WorkerState};
use fdpassd::testing::{Client, Running, eventually};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::common::faulty::{self, Execution, whoami};
use crate::common::load::Load;
use crate::common::program::{Program, ctl, ctl_command, short_timeout};
use crate::common::{kernel, let_pass, start};

const BOTH: &str = r#"listen = ["127.0.0.1:0", "unix:{dir}/rpc.sock"]
"#;

#[test]
fn scaling_moves_clients_and_lasts_until_the_next_reload() {
    let config = format!("{BOTH}workers.count = 2");
    let daemon = start(&config);
    daemon.wait_for_workers();
    let mut idle: Vec<Client> = (0..50).map(|_| daemon.connect()).collect();
    let load = Load::start(&daemon, 6, 4);
    for (count, said) in [
        (4, "4 workers are ready\n"),
        (1, "1 worker is ready\n"),
        (3, "3 workers are ready\n"),
    ] {
        let scaled = ctl(&daemon, &["scale", &count.to_string()]);
        assert_eq!(
            (scaled.code, scaled.out.as_str()),
            (Some(0), said),
            "{}",
            scaled.err
        );
        // It is so when that is said, not some time later.
        let status = daemon.status();
        assert_eq!(
            (status.count, status.count_origin),
            (count, Origin::Runtime)
        );
        assert_eq!(
            (status.workers.len(), status.leaving.len()),
            (count as usize, 0)
        );
        assert!(
            status
                .workers
                .iter()
                .all(|worker| worker.state == WorkerState::Ready),
            "{:?}",
            status.workers
        );
        assert_eq!(
            kernel::children(daemon.pid()).len(),
            count as usize,
            "those that left are gone"
        );
        load.wait_for(20);
    }
    daemon
        .reload_with("workers.count = 0")
        .expect_err("it is rejected");
    assert_eq!(
        (daemon.status().count, daemon.status().count_origin),
        (3, Origin::Runtime)
    );
    daemon.reload_with(&config).expect("it is applied");
    let status = daemon.wait_until("the third has left", |status| status.workers.len() == 2);
    assert_eq!((status.count, status.count_origin), (2, Origin::Config));
    ping_all(&mut idle);
    load.wait_for(20);
    end(&daemon, load, 50);
}

#[test]
fn an_impossible_count_is_refused_by_tool_and_daemon() {
    let daemon = start("workers.count = 1");
    for count in [0, 257] {
        assert_eq!(ctl(&daemon, &["scale", &count.to_string()]).code, Some(64));
        let fault = daemon
            .ctl_with("scale", json!({ "count": count }))
            .expect_err("it is refused");
        assert_eq!(fault.code(), "refused", "{fault}");
        assert!(fault.message().contains("1 to 256 workers"), "{fault}");
    }
    for params in [
        json!({ "count": -1 }),
        json!({ "count": 1.5 }),
        json!({}),
        json!(2),
        json!({ "count": 2, "x": 1 }),
    ] {
        let fault = daemon.ctl_with("scale", params).expect_err("it is refused");
        assert_eq!(fault.code(), "bad_params", "{fault}");
    }
    let status = daemon.status();
    assert_eq!(
        (status.count, status.count_origin, status.workers.len()),
        (1, Origin::Config, 1)
    );
}

#[test]
fn two_signals_add_and_remove_a_worker_but_never_the_last() {
    let daemon = start("workers.count = 2");
    daemon.wait_for_workers();
    let load = Load::start(&daemon, 4, 2);
    let becomes = |count: usize| {
        daemon.wait_until("so many workers are ready", |status| {
            let is_ready = status
                .workers
                .iter()
                .all(|worker| worker.state == WorkerState::Ready);
            is_ready
                && (status.workers.len(), status.count as usize) == (count, count)
                && status.leaving.is_empty()
        })
    };
    for (signal, count) in [
        ("TTIN", 3),
        ("TTIN", 4),
        ("TTOU", 3),
        ("TTOU", 2),
        ("TTOU", 1),
    ] {
        daemon.signal(signal);
        assert_eq!(becomes(count).count_origin, Origin::Runtime);
        load.wait_for(10);
    }
    daemon.signal("TTOU");
    daemon.wait_for_log("SIGTTOU: there can be 1 to 256 workers, not 0");
    becomes(1);
    end(&daemon, load, 0);
}

#[test]
fn recycling_replaces_one_worker_or_all() {
    let daemon = start(&format!("{BOTH}workers.count = 3"));
    let before = daemon.wait_for_workers();
    let load = Load::start(&daemon, 6, 4);
    let recycled = before.workers[1].id.expect("it is ready").to_string();
    let said = ctl(&daemon, &["recycle", &recycled]);
    let expected = format!("worker {recycled} is replaced; 3 workers are ready\n");
    assert_eq!((said.code, said.out), (Some(0), expected), "{}", said.err);
    let after = daemon.status();
    let stayed = |a: &Status, b: &Status| -> Vec<bool> {
        a.workers
            .iter()
            .zip(&b.workers)
            .map(|(a, b)| a.pid == b.pid)
            .collect()
    };
    assert_eq!(
        (stayed(&before, &after), after.leaving.len()),
        (vec![true, false, true], 0)
    );
    load.wait_for(20);

    let said = ctl(&daemon, &["recycle", "all"]);
    assert_eq!(
        (said.code, said.out.as_str()),
        (Some(0), "all workers are replaced; 3 workers are ready\n")
    );
    let last = daemon.status();
    assert_eq!(
        (stayed(&after, &last), last.leaving.len()),
        (vec![false; 3], 0)
    );
    assert_eq!(
        (last.count_origin, kernel::children(daemon.pid()).len()),
        (Origin::Config, 3)
    );
    load.wait_for(20);
    end(&daemon, load, 0);
}

#[test]
fn an_unknown_worker_cannot_be_recycled_held_or_released() {
    let daemon = start("workers.count = 1");
    let id = daemon.wait_for_workers().workers[0]
        .id
        .expect("it is ready")
        .to_string();
    for (arguments, reason) in [
        (["recycle", "4711"], "there is no worker 4711"),
        (["hold", "4711"], "there is no worker 4711"),
        (["release", "4711"], "worker 4711 is not held"),
        (["release", &id], &format!("worker {id} is not held")),
        (
            ["release", "no_such"],
            "method \"no_such\" is not quarantined",
        ),
    ] {
        let said = ctl(&daemon, &arguments);
        assert_eq!(
            (said.code, said.out.as_str()),
            (Some(1), ""),
            "{arguments:?}"
        );
        assert!(
            said.err.contains("refused") && said.err.contains(reason),
            "{}",
            said.err
        );
    }
    for arguments in [["recycle", "-1"], ["recycle", "one"], ["hold", "all"]] {
        assert_eq!(ctl(&daemon, &arguments).code, Some(64), "{arguments:?}");
    }
}

#[test]
fn a_held_worker_has_no_clients_and_is_not_replaced() {
    let config = |timeout: &str| {
        let limits =
            format!("limits = {{ stall-timeout = \"200ms\", request-timeout = {timeout:?} }}");
        format!("{BOTH}{limits}\nworkers.count = 2")
    };
    let daemon = faulty::start(&config("1h"));
    daemon.wait_for_workers();
    let mut caller = daemon.connect();
    let held = whoami(&mut caller);
    // Half a frame and an unread reply move along.
    let mut halfway: Vec<Client> = (0..10).map(|_| daemon.connect()).collect();
    for client in &mut halfway {
        let whole = client.frame(r#"{"in":"whoami"}"#);
        client.send([&whole[..], &whole[..9]].concat());
        let _ = faulty::server(client);
    }
    let load = Load::start(&daemon, 4, 4);
    let execution = Execution::start_by(&daemon, caller);
    let mut asked = daemon.ctl_request("hold", json!({ "worker": held.worker }));
    let status = daemon.wait_until(
        "a successor serves and the held one has one client left",
        |status| {
            status.leaving.len() == 1
                && status.leaving[0].clients == 1
                && status
                    .workers
                    .iter()
                    .all(|worker| worker.state == WorkerState::Ready)
        },
    );
    assert_eq!(
        (status.leaving[0].pid, status.leaving[0].state),
        (held.pid, WorkerState::Held)
    );
    assert_eq!(
        status.leaving[0].waits_for,
        "method \"read_line\" to return"
    );
    for client in &mut halfway {
        let frame = client.frame(r#"{"in":"whoami"}"#);
        client.send(&frame[9..]);
        assert_ne!(faulty::server(client).pid, held.pid);
    }
    assert!(!asked.has_something(), "it is not empty yet");
    let mut caller = execution.finish();
    asked.reply().value().expect("it is held");
    assert_ne!(whoami(&mut caller).pid, held.pid);
    let is_left = |status: &Status| {
        let left: Vec<_> = status
            .leaving
            .iter()
            .map(|w| (w.pid, w.state, w.clients))
            .collect();
        left == [(held.pid, WorkerState::Held, 0)]
    };
    daemon.wait_until("it has nobody", is_left);

    // As a debugger stops it, and for longer than a stuck worker may live.
    kernel::stop(held.pid);
    assert_eq!(ctl(&daemon, &["recycle", "all"]).code, Some(0));
    assert_eq!(ctl(&daemon, &["scale", "1"]).code, Some(0));
    daemon.reload_with(&config("1s")).expect("it is applied");
    let_pass(Duration::from_millis(2_500));
    daemon.wait_until("all others are new, and the held one is there", is_left);
    assert_eq!(
        (kernel::state(held.pid), daemon.status().deaths_total),
        (Some('T'), 0)
    );
    assert_ne!(whoami(&mut daemon.connect()).pid, held.pid);
    kernel::send(held.pid, Signal::SIGCONT);

    let said = ctl(&daemon, &["release", &held.worker.to_string()]);
    assert_eq!(said.code, Some(0), "{}", said.err);
    daemon.wait_until("it is not needed any more", |status| {
        status.leaving.is_empty()
    });
    eventually("its process has ended", || {
        kernel::is_over(held.pid).then_some(())
    });
    assert_eq!(kernel::children(daemon.pid()).len(), 2);
    load.wait_for(20);
    end(&daemon, load, 11);
}

#[test]
fn holding_the_only_worker_starts_a_substitute() {
    let daemon = faulty::start("workers.count = 1");
    let held = whoami(&mut daemon.connect());
    let load = Load::start(&daemon, 4, 4);
    let said = ctl(&daemon, &["hold", &held.worker.to_string()]);
    let expected = format!(
        "worker {} is held; its clients have moved to other workers\n",
        held.worker
    );
    assert_eq!((said.code, said.out), (Some(0), expected), "{}", said.err);
    load.wait_for(20);
    assert_ne!(whoami(&mut daemon.connect()).pid, held.pid);
    // A second hold is refused, and it cannot be replaced either: it serves no client.
    for verb in ["hold", "recycle"] {
        let said = ctl(&daemon, &[verb, &held.worker.to_string()]);
        assert_eq!(said.code, Some(1));
        assert!(
            said.err.contains("does not serve at the moment"),
            "{}",
            said.err
        );
    }
    end(&daemon, load, 0);
    assert!(!kernel::is_over(held.pid));
}

#[test]
fn released_worker_serves_and_its_substitute_leaves() {
    let daemon = faulty::start("workers.count = 1");
    let held = whoami(&mut daemon.connect());
    assert_eq!(
        ctl(&daemon, &["hold", &held.worker.to_string()]).code,
        Some(0)
    );
    let mut client = daemon.connect();
    let substitute = whoami(&mut client);
    assert_ne!(substitute.pid, held.pid);
    let load = Load::start(&daemon, 4, 4);
    load.wait_for(20);
    let said = ctl(&daemon, &["release", &held.worker.to_string()]);
    assert_eq!(
        (said.code, said.out),
        (Some(0), format!("worker {} is released\n", held.worker)),
        "{}",
        said.err
    );
    eventually("the substitute has ended", || {
        kernel::is_over(substitute.pid).then_some(())
    });
    assert_eq!(
        whoami(&mut client).pid,
        held.pid,
        "the client has moved to it"
    );
    assert_eq!(whoami(&mut daemon.connect()).pid, held.pid);
    load.wait_for(20);
    end(&daemon, load, 1);
}

#[test]
fn a_drained_daemon_serves_only_existing_clients() {
    let daemon = start(&format!("{BOTH}workers.count = 2"));
    daemon.wait_for_workers();
    let load = Load::start(&daemon, 4, 4);
    load.wait_for(1);
    let said = ctl(&daemon, &["drain"]);
    assert_eq!(
        (said.code, said.out.as_str()),
        (
            Some(0),
            "new clients are not accepted; 4 clients are still connected\n"
        )
    );
    let knock = || -> Vec<Client> {
        let mut waiting: Vec<Client> = (0..10)
            .map(|i| Client::connect(&daemon.addresses()[i % 2]))
            .collect();
        waiting
            .iter_mut()
            .zip(0..)
            .for_each(|(client, i)| client.request("ping", i));
        waiting
    };
    let mut waiting = knock();
    // Neither workers that come nor those that go open the door.
    assert_eq!(ctl(&daemon, &["recycle", "all"]).code, Some(0));
    assert_eq!(ctl(&daemon, &["scale", "3"]).code, Some(0));
    let_pass(Duration::from_millis(300));
    load.wait_for(20);
    let status = daemon.status();
    assert_eq!((status.accepted_total, status.clients), (4, 4));
    assert_eq!(
        (status.drained, status.paused.as_deref()),
        (true, Some("the daemon is drained"))
    );
    assert_eq!(status.listeners[0].queue, Some(5));
    assert!(!waiting.iter_mut().any(Client::has_something));
    let said = ctl(&daemon, &["undrain"]);
    assert_eq!(
        (said.code, said.out.as_str()),
        (Some(0), "clients are accepted again\n")
    );
    assert!(!daemon.status().drained);
    for (client, i) in waiting.iter_mut().zip(0..) {
        assert_eq!(client.reply().value().expect("a result"), i);
    }
    ping_all(&mut knock());
    load.wait_for(20);
    end(&daemon, load, 10);
}

#[test]
fn a_listener_that_a_reload_brings_is_drained_like_the_others() {
    let daemon = start("workers.count = 1");
    assert_eq!(ctl(&daemon, &["drain"]).code, Some(0));
    daemon
        .reload_with("listen = [\"127.0.0.1:0\", \"unix:{dir}/new.sock\"]\nworkers.count = 1")
        .expect("it is applied");
    let mut waiting: Vec<Client> = addresses(&daemon)
        .iter()
        .map(|address| Client::connect(address))
        .collect();
    assert_eq!(waiting.len(), 2);
    waiting
        .iter_mut()
        .for_each(|client| client.request("ping", 1));
    let_pass(Duration::from_millis(300));
    assert_eq!(daemon.status().accepted_total, 0);
    assert_eq!(ctl(&daemon, &["undrain"]).code, Some(0));
    for client in &mut waiting {
        assert_eq!(client.reply().value().expect("a result"), 1);
    }
}

#[test]
fn drain_wait_ends_with_the_last_client() {
    let daemon = start("workers.count = 2");
    let (mut first, second) = (daemon.connect(), daemon.connect());
    daemon.wait_until("both are there", |status| status.clients == 2);
    let mut drain = Program::start(&mut ctl_command(&daemon, &["drain", "--wait"]));
    daemon.wait_until("it is drained", |status| {
        status.paused.as_deref() == Some("the daemon is drained")
    });
    drop(second);
    daemon.wait_until("one has left", |status| status.clients == 1);
    assert_eq!(first.call("ping", 1).expect("a result"), 1);
    let mut waiting = daemon.connect();
    waiting.request("ping", 2);
    let_pass(Duration::from_millis(200));
    assert!(drain.is_running(), "one client is there");
    drop(first);
    let said = drain.finish();
    assert_eq!(
        (said.code, said.out.as_str()),
        (
            Some(0),
            "new clients are not accepted; the last client has left\n"
        )
    );
    assert!(!waiting.has_something(), "it goes on being drained");
    assert_eq!(ctl(&daemon, &["undrain"]).code, Some(0));
    assert_eq!(waiting.reply().value().expect("a result"), 2);
    // Those who wait for it and give up leave it as it is; with --timeout that has a code of its own.
    let timeout = short_timeout(&daemon);
    let said = ctl(&daemon, &["drain", "--wait", "--timeout", &timeout]);
    assert_eq!(said.code, Some(75), "{}", said.err);
    daemon.wait_until("it is drained", |status| {
        status.paused.as_deref() == Some("the daemon is drained")
    });
}

#[test]
fn a_request_is_carried_out_after_its_client_has_hung_up() {
    let daemon = start("workers.count = 1");
    daemon.wait_for_workers();
    kernel::stop(daemon.pid());
    drop(daemon.ctl_request("drain", json!({ "wait": true })));
    drop(daemon.ctl_request("scale", json!({ "count": 2 })));
    daemon.signal("CONT");
    let is_drained = |status: &Status| status.paused.as_deref() == Some("the daemon is drained");
    daemon.wait_until("both are done", |status| {
        is_drained(status) && status.workers.len() == 2
    });
}

#[test]
fn an_undrain_answers_a_pending_drain() {
    let daemon = start("workers.count = 1");
    let mut client = daemon.connect();
    assert_eq!(client.call("ping", 1).expect("a result"), 1);
    let drain = Program::start(&mut ctl_command(&daemon, &["drain", "--wait"]));
    daemon.wait_until("it is drained", |status| {
        status.paused.as_deref() == Some("the daemon is drained")
    });
    assert_eq!(ctl(&daemon, &["undrain"]).code, Some(0));
    let said = drain.finish();
    assert_eq!((said.code, said.out.as_str()), (Some(1), ""));
    assert!(
        said.err.contains("refused: clients are accepted again"),
        "{}",
        said.err
    );
}

/// Ends the load: no client had an error, and none was closed except on request.
#[track_caller]
fn end(daemon: &Running, load: Load, others: u64) {
    let answered = load.finish();
    assert!(answered.iter().all(|count| *count > 0), "{answered:?}");
    let status = daemon.wait_until("the load has left", |status| status.clients <= others);
    assert_eq!(status.clients, others);
    assert_eq!(
        (status.errors_total, status.lost_total, status.deaths_total),
        (0, 0, 0)
    );
}

#[track_caller]
fn ping_all(clients: &mut [Client]) {
    for (client, number) in clients.iter_mut().zip(0..) {
        assert_eq!(client.call("ping", number).expect("a result"), number);
    }
}

#[track_caller]
fn addresses(daemon: &Running) -> Vec<fdpassd::proto::names::Address> {
    let parse = |address: &String| address.parse().expect("an address");
    daemon
        .status()
        .listeners
        .iter()
        .map(|listener| parse(&listener.address))
        .collect()
}
