//! Workers are replaced, held and stopped while requests are away: an app finishes what it has begun.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use fdpassd::proto::control::WorkerState;
use fdpassd::testing::{Client, Running, TIMEOUT, eventually};
use serde_json::{Value, json};

use crate::app_deaths::{LISTEN, Shoppers, apps, config, end, journal, wait_until_begun};
use crate::common::metrics::samples;
use crate::common::program::ctl;
use crate::common::upgrade::upgrade;
use crate::common::{FDPASSD, start};

/// Sends an order that takes a while, and waits until an app has begun it. Returns the id of its worker as well; of an
/// order that is answered by then, that of any worker.
fn away(daemon: &Running, params: &Value) -> (Client, u64) {
    let mut client = daemon.connect();
    client.request("order", params);
    wait_until_begun(daemon, params["n"].as_u64().expect("a number"));
    let workers = daemon.status().workers;
    let busy = workers.iter().find(|worker| worker.away == 1);
    let worker = busy.or(workers.first()).and_then(|worker| worker.id);
    (client, worker.expect("it has one").0)
}

#[test]
fn replaced_workers_finish_the_requests_that_are_away() {
    let Some(config) = config(2, 4, "") else {
        return;
    };
    let daemon = start(&config);
    daemon.wait_for_workers();
    let scale = |count| json!({ "count": count });
    type Change<'a> = (&'a str, Box<dyn Fn(u64) + 'a>);
    let ctl = |verb, params: Value| drop(daemon.ctl_with(verb, params).expect("it is done"));
    let changes: [Change<'_>; 7] = [
        ("reload", Box::new(|_| drop(daemon.reload()))),
        (
            "recycle",
            Box::new(|id| ctl("recycle", json!({"worker": id}))),
        ),
        ("scale", Box::new(|_| ctl("scale", scale(1)))),
        ("scale again", Box::new(|_| ctl("scale", scale(2)))),
        (
            "hold",
            Box::new(|id| {
                ctl("hold", json!({"worker": id}));
                ctl("release", json!({"worker": id}));
            }),
        ),
        (
            "drain",
            Box::new(|_| {
                ctl("drain", json!({ "mode": "refuse" }));
                ctl("undrain", json!({}));
            }),
        ),
        (
            "upgrade",
            Box::new(|_| {
                upgrade(&daemon, Some(Path::new(FDPASSD))).expect("the program is fit");
            }),
        ),
    ];
    for (number, (name, change)) in (1..).zip(changes) {
        let (mut client, worker) = away(&daemon, &json!({"n": number, "ms": 1_000}));
        change(worker);
        let result = client.reply().value();
        assert_eq!(result.expect(name), number, "{name}");
        assert_eq!(client.call("price", json!({"n": 0})).expect(name), 0);
        daemon.wait_for_workers();
    }
    let status = daemon.status();
    assert_eq!((status.errors_total, status.deaths_total), (0, 0));
    end(daemon, 7);
}

/// The clients of one worker are moved although each of them nearly always has a request away.
#[test]
fn a_rebalancing_moves_clients_between_two_requests() {
    // None of them moves because its worker is stuck.
    let more = "workers.dispatch = \"round-robin\"\nworkers.rebalance = \"manual\"\n\
                limits.stall-timeout = \"1h\"\n";
    let Some(config) = config(2, 8, more) else {
        return;
    };
    let daemon = start(&config);
    daemon.wait_for_workers();
    let pid = |client: &mut Client| client.call("pid", ()).expect("a pid");
    let clients = (0..10).map(|_| {
        let mut client = daemon.connect();
        (pid(&mut client), client)
    });
    let first = pid(&mut daemon.connect());
    let (crowd, _idle): (Vec<_>, Vec<_>) = clients.partition(|(app, _)| *app == first);
    let mut crowd: Vec<Client> = crowd.into_iter().map(|(_, client)| client).collect();
    let is_over = AtomicBool::new(false);
    let order = &|client: &mut Client| {
        let (filling, began) = ("z".repeat(200_000), Instant::now());
        for number in 1.. {
            let params = json!({"n": number, "ms": 5, "filling": filling});
            let result = client.call("order", params).expect("an answer");
            assert_eq!(result, number);
            // They keep the worker busy, by which it is compared, however slow its app is.
            for _ in 0..20 {
                client.call("ping", &filling).expect("a pong");
            }
            if is_over.load(Ordering::Relaxed) || began.elapsed() > 2 * TIMEOUT {
                break;
            }
        }
    };
    thread::scope(|scope| {
        for client in &mut crowd {
            scope.spawn(move || order(client));
        }
        eventually("clients have moved", || {
            let _ = daemon.ctl("rebalance");
            (daemon.status().moved_total > 0).then_some(())
        });
        is_over.store(true, Ordering::Relaxed);
    });
    let status = daemon.status();
    let apps = crowd.iter_mut().map(pid);
    let moved = apps.filter(|app| *app != first).count();
    assert_eq!(moved as u64, status.moved_total);
    assert_eq!((status.errors_total, status.deaths_total), (0, 0));
    end(daemon, 10);
}

#[test]
fn rolls_under_load_cause_no_error() {
    let Some(config) = config(2, 16, LISTEN) else {
        return;
    };
    let daemon = start(&config);
    daemon.wait_for_workers();
    let shoppers = Shoppers::start(&daemon, 32);
    for round in 0..9 {
        shoppers.wait_for(200);
        match round % 3 {
            0 => drop(daemon.reload().expect("it is applied")),
            1 => drop(daemon.ctl("recycle").expect("they are replaced")),
            _ => drop(upgrade(&daemon, Some(Path::new(FDPASSD))).expect("the program is fit")),
        }
        daemon.wait_for_workers();
    }
    let outcome = shoppers.finish(&journal(&daemon));
    assert!(
        outcome.requests >= 1800 && outcome.crashed == 0,
        "{outcome:?}"
    );
    assert_eq!(daemon.status().deaths_total, 0);
    end(daemon, 32);
}

#[test]
fn a_stop_waits_for_the_requests_that_are_away() {
    let Some(config) = config(1, 2, "") else {
        return;
    };
    let mut daemon = start(&config);
    let (mut client, _) = away(&daemon, &json!({"n": 7, "ms": 1_000}));
    client.request("order", json!({"n": 8}));
    daemon.signal("INT");
    assert_eq!(client.reply().value().expect("it had begun"), 7);
    assert_eq!(client.reply().value().expect("it had arrived"), 8);
    client.expect_end();
    daemon.wait();
    assert!(apps(daemon.directory()).is_empty());
}

#[test]
fn a_retiring_worker_is_killed_with_its_app_after_drain_timeout() {
    let Some(config) = config(1, 4, "limits.drain-timeout = \"200ms\"\n") else {
        return;
    };
    let daemon = start(&config);
    let (mut order, worker) = away(&daemon, &json!({"n": 1, "ms": 60_000}));
    let first = apps(daemon.directory());
    let mut price = daemon.connect();
    // In the first attempt, it waits for a file that never exists.
    price.request("price", json!({"n": 2, "ms": 100, "until": "/none"}));
    for number in [1, 2] {
        wait_until_begun(&daemon, number);
    }
    daemon
        .ctl_with("recycle", json!({ "worker": worker }))
        .expect("it is replaced");
    let fault = order.reply().value().expect_err("it took too long");
    assert_eq!(fault.code(), "crashed");
    assert_eq!(price.reply().value().expect("it runs again"), 2);
    let now = apps(daemon.directory());
    assert!(!now.contains(&first[0]), "{first:?}, {now:?}");
    daemon.wait_for_log("1 request run again, 1 request answered with crashed");
    daemon.wait_for_log(" in 2 requests (\"order\", \"price\")");
    end(daemon, 2);
}

#[test]
fn a_request_over_its_time_takes_no_other_with_it() {
    let more = "workers.dispatch = \"round-robin\"\nlimits.request-timeout = \"6s\"\n\
                limits.stall-timeout = \"3s\"\n";
    let Some(config) = config(2, 8, more) else {
        return;
    };
    let daemon = start(&config);
    daemon.wait_for_workers();
    let pid = |client: &mut Client| client.call("pid", ()).expect("a pid");
    let mut clients: Vec<Client> = (0..6).map(|_| daemon.connect()).collect();
    let first = pid(&mut clients[0]);
    clients.retain_mut(|client| pid(client) == first);
    let [idle, late, other] = clients.as_mut_slice() else {
        panic!("{} of 6 clients have one of two workers", clients.len());
    };
    // The app ignores that the request is cancelled.
    late.request("order", json!({"n": 1, "ms": 60_000}));
    daemon.wait_for_log("exceeded request-timeout");
    // This one is in time when the worker gives up the other.
    let file = daemon.directory().join("end");
    other.request("order", json!({"n": 2, "until": &file}));
    eventually("clients without a request move to the other worker", || {
        (pid(idle) != first).then_some(())
    });
    assert!(!late.has_something() && !other.has_something());
    fs::write(&file, "").expect("it is ours");
    assert_eq!(other.reply().value().expect("it is answered"), 2);
    let fault = late.reply().value().expect_err("it takes too long");
    assert_eq!(fault.code(), "timeout");
    assert_eq!(
        late.call("price", json!({"n": 3})).expect("the next app"),
        3
    );
    daemon.wait_for_log("1 request answered with timeout");
    assert_eq!(daemon.status().lost_total, 0);
    end(daemon, 6);
}

/// While the only worker waits for its other request, its successor serves.
#[test]
fn a_worker_that_gives_up_a_request_has_a_successor_at_once() {
    let more = "limits.request-timeout = \"6s\"\nlimits.stall-timeout = \"4s\"\n";
    let Some(config) = config(1, 8, more) else {
        return;
    };
    let daemon = start(&config);
    let mut idle = daemon.connect();
    assert_eq!(idle.call("price", json!({"n": 0})).expect("a price"), 0);
    let (mut late, mut other) = (daemon.connect(), daemon.connect());
    late.request("order", json!({"n": 1, "until": "/none"}));
    daemon.wait_for_log("exceeded request-timeout");
    // It is in time when the worker gives up the first one.
    other.request("order", json!({"n": 2, "until": "/none"}));
    daemon.wait_for_log("worker 2 (pid ");
    assert_eq!(idle.call("price", json!({"n": 3})).expect("a price"), 3);
    let fault = late.reply().value().expect_err("it takes too long");
    assert_eq!(fault.code(), "timeout");
    let log = daemon.stderr();
    let at = |line: &str| log.find(line).unwrap_or_else(|| panic!("{line:?}: {log}"));
    let (started, ended) = (at("worker 2 (pid "), at("its app did not answer within"));
    assert!(started < ended, "{log}");
    let status = daemon.status();
    assert_eq!((status.deaths_total, status.lost_total), (1, 0));
    assert!(status.moved_total <= 3, "{} moves", status.moved_total);
    end(daemon, 3);
}

/// The worker has reached its limit while a request is away, and its successor takes a while to start.
#[test]
fn clients_wait_for_the_successor_of_a_worker_at_its_limit() {
    let Some(config) = config(1, 8, "workers.max-requests = 3\n") else {
        return;
    };
    let daemon = start(&config);
    let file = daemon.directory().join("end");
    let (mut order, _) = away(&daemon, &json!({"n": 1, "until": &file}));
    let mut others: Vec<Client> = (0..4).map(|_| daemon.connect()).collect();
    for (number, other) in (2..).zip(&mut others) {
        assert_eq!(
            other.call("price", json!({ "n": number })).expect("one"),
            number
        );
    }
    fs::write(&file, "").expect("it is ours");
    assert_eq!(order.reply().value().expect("it is answered"), 1);
    let status = daemon.status();
    assert_eq!((status.deaths_total, status.errors_total), (0, 0));
    assert!(status.moved_total <= 20, "{} moves", status.moved_total);
    end(daemon, 5);
}

#[test]
fn a_worker_whose_app_answers_nothing_returns_with_an_answer() {
    let more = "workers.dispatch = \"round-robin\"\nlimits.stall-timeout = \"2s\"\n";
    let Some(config) = config(2, 1, more) else {
        return;
    };
    let daemon = start(&config);
    daemon.wait_for_workers();
    let file = daemon.directory().join("end");
    let (mut slow, worker) = away(&daemon, &json!({"n": 1, "until": &file}));
    let mut others: Vec<Client> = (0..6).map(|_| daemon.connect()).collect();
    for _ in 0..3 {
        for other in &mut others {
            other.request("price", json!({"n": 2}));
        }
        for other in &mut others {
            assert_eq!(other.reply().value().expect("elsewhere"), 2);
        }
    }
    let status = daemon.status();
    let stuck = status
        .workers
        .iter()
        .find(|found| found.id.is_some_and(|id| id.0 == worker));
    let stuck = stuck.expect("it is not replaced");
    assert_eq!((stuck.state, stuck.clients), (WorkerState::Stalled, 1));
    assert!(!slow.has_something());
    fs::write(&file, "").expect("it is ours");
    assert_eq!(slow.reply().value().expect("it takes its time"), 1);
    daemon.wait_for_log("responds again; back in rotation");
    let log = daemon.stderr();
    let times = |words| log.matches(words).count();
    let found = ": its app has answered none of 1 request for ";
    assert_eq!((times(found), times("back in rotation")), (1, 1), "{log}");
    assert_eq!(
        (daemon.status().errors_total, daemon.status().deaths_total),
        (0, 0)
    );
    end(daemon, 7);
}

#[test]
fn status_clients_and_metrics_show_what_is_away() {
    let Some(config) = config(1, 8, "metrics.listen = \"127.0.0.1:0\"\n") else {
        return;
    };
    let daemon = start(&config);
    daemon.wait_for_log("with its app \"shop\" 1.4 (pid ");
    let file = daemon.directory().join("end");
    let (mut client, _) = away(&daemon, &json!({"n": 1, "until": &file}));
    let worker = daemon.status().workers.remove(0);
    let app = worker.app.expect("it has one");
    assert_eq!((worker.away, worker.executing, app.concurrency), (1, 1, 8));
    assert_eq!(vec![app.pid], apps(daemon.directory()));
    assert!(app.rss_bytes > Some(1 << 20) && app.name.as_deref() == Some("shop"));
    let page = daemon.ctl("clients").expect("a page");
    let shown = &page["clients"][0];
    assert_eq!(
        (&shown["state"], &shown["method"]),
        (&json!("away"), &json!("order"))
    );
    let figures = samples(&daemon);
    assert_eq!(figures["fdpassd_worker_requests_away{worker=\"0\"}"], 1.0);
    let status = ctl(&daemon, &["status"]).out;
    assert!(
        status.contains("\nWORKER ") && status.contains(" shop 1.4 "),
        "{status}"
    );
    let clients = ctl(&daemon, &["clients"]).out;
    assert!(
        clients.contains(" METHOD\n") && clients.contains(" order\n"),
        "{clients}"
    );
    fs::write(&file, "").expect("it is ours");
    assert_eq!(client.reply().value().expect("an answer"), 1);
    // The reply is sent before the turn ends.
    eventually("it is idle", || {
        let page = daemon.ctl("clients").expect("a page");
        (page["clients"][0]["state"] == "idle").then_some(())
    });
    end(daemon, 1);
}
