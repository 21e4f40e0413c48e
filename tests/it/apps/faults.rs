//! Faults of an app: their callers get a typed error, and all other clients are served. A violation of the protocol
//! replaces worker and app, and the log has the reason.

use fdpassd::proto::control::WorkerState;
use fdpassd::testing::{Client, Running, eventually};
use serde_json::{Value, json};

use super::{app_of, counted, fault_of, kill, start, start_with};
use crate::common::http::{get, metrics_address};
use crate::common::kernel;

/// Calls a method, and returns the code of the error.
#[track_caller]
fn code(client: &mut Client, method: &str, params: Value) -> String {
    let fault = client.call(method, params).expect_err("an error");
    fault.code().to_owned()
}

#[test]
fn what_is_wrong_within_an_answer_concerns_its_caller_only() {
    let Some(daemon) = start("workers.count = 1") else {
        return;
    };
    let mut client = daemon.connect();
    for wrong in [
        r#"{"id":ID,"result":NaN}"#,
        r#"{"id":ID,"result":}"#,
        r#"{"id":ID,"result":1"#,
        r#"{"id":ID,"result":1,"error":{"code":"a"}}"#,
        r#"{"id":ID}"#,
        r#"{"id":ID,"error":7}"#,
    ] {
        assert_eq!(
            code(&mut client, "write", json!(wrong)),
            "internal",
            "{wrong}"
        );
    }
    for (given, expected) in [
        ("no_such_item", "no_such_item"),
        ("bad_params", "bad_params"),
        ("crashed", "crashed"),
        ("timeout", "internal"),
        ("No", "internal"),
    ] {
        assert_eq!(code(&mut client, "fault", json!(given)), expected);
    }
    let long = format!(r#"{{"id":ID,"result":"{}"}}"#, "x".repeat(1_052_700));
    assert_eq!(
        code(&mut client, "write", json!(long)),
        "too_large",
        "the request itself"
    );
    assert_eq!(daemon.status().deaths_total, 0);
}

#[test]
fn a_broken_protocol_ends_the_pair_and_is_logged() {
    let Some(daemon) = start_with("workers.count = 2", &[("CONCURRENCY", "8")]) else {
        return;
    };
    let mut deaths = 0;
    for (method, params, reason) in [
        ("write", json!("no JSON"), "has broken the protocol"),
        ("write", json!("[1]"), "has broken the protocol"),
        (
            "write",
            json!(r#"{"id":999999,"result":1}"#),
            "an answer to request 999999",
        ),
        (
            "write",
            json!(r#"{"hello":1,"methods":[]}"#),
            "a second hello",
        ),
        (
            "write_prefix",
            json!(u32::MAX),
            "a frame of 4294967295 bytes",
        ),
    ] {
        assert_eq!(fault_of(&daemon, method, &params), "crashed", "{reason}");
        daemon.wait_for_log(reason);
        deaths += 1;
    }
    // The worker waits for the exit for a second, in which the app need not have run.
    eventually("the exit is the reason", || {
        assert_eq!(fault_of(&daemon, "close", &Value::Null), "crashed");
        deaths += 1;
        let log = daemon.stderr();
        log.contains("its app exited with status 0").then_some(())
    });
    let status = daemon.wait_for_workers();
    assert_eq!((status.deaths_total, status.lost_total), (deaths, 0));
}

/// A method whose own ends of the app are as many is quarantined.
#[test]
fn broken_protocols_quarantine_no_method() {
    let Some(daemon) = start("workers.count = 2") else {
        return;
    };
    for _ in 0..11 {
        // A client that ends three workers is closed.
        let fault = daemon.call("write", "no JSON").expect_err("it breaks");
        assert_eq!(fault.code(), "crashed");
    }
    let status = daemon.wait_until("all deaths are known", |status| status.deaths_total == 11);
    assert!(status.quarantined.is_empty(), "{:?}", status.quarantined);
    let mut client = daemon.connect();
    assert_eq!(
        client.call("write", r#"{"id":ID,"result":1}"#),
        Ok(json!(1))
    );
    for _ in 0..10 {
        let fault = daemon.call("exit", 3).expect_err("it exits");
        assert_eq!(fault.code(), "crashed");
    }
    assert_eq!(daemon.status().quarantined, ["exit"]);
}

#[test]
fn an_answer_that_comes_twice_breaks_the_protocol() {
    let Some(daemon) = start("workers.count = 1") else {
        return;
    };
    let mut client = daemon.connect();
    let answer = r#"{"id":ID,"result":1}"#;
    // One answer is not a violation.
    client.request("write", answer);
    assert_eq!(client.reply().value(), Ok(json!(1)));
    client.request("count", "x");
    assert_eq!(client.reply().value(), Ok(json!("x")));
    assert_eq!(daemon.status().deaths_total, 0);
    client.request("write", r#"{"id":1,"result":1}"#);
    assert_eq!(
        client.reply().value().expect_err("crashed").code(),
        "crashed"
    );
    daemon.wait_for_log("an answer to request 1, which is not away");
}

#[test]
fn an_exit_is_the_crash_of_its_request_alone() {
    let Some(daemon) = start("workers.count = 2") else {
        return;
    };
    let mut client = daemon.connect();
    assert_eq!(code(&mut client, "exit", json!(3)), "crashed");
    daemon.wait_for_log("its app exited with status 3: the reason of the exit");
    assert_eq!(code(&mut client, "print_and_die", Value::Null), "crashed");
    daemon.wait_for_log("its app was killed by signal 9 (SIGKILL); ");
    assert_eq!(client.call("echo", 1), Ok(json!(1)));
    client.request("answer_and_exit", Value::Null);
    assert_eq!(
        client.reply().value(),
        Ok(json!("last")),
        "it was answered before"
    );
    daemon.wait_until("all deaths are known", |status| status.deaths_total == 3);
}

#[test]
fn the_death_of_an_idle_app_is_noticed_and_costs_nothing() {
    // No timer notices it.
    let Some(daemon) = start("workers.count = 1\nlimits.stall-timeout = \"1h\"") else {
        return;
    };
    let mut client = daemon.connect();
    assert_eq!(client.call("count", "before"), Ok(json!("before")));
    for deaths in 1..=3 {
        // The child keeps descriptor 3, so that only the end of the process is an event.
        let child = (deaths > 1).then(|| client.call("spawn", Value::Null).expect("a pid"));
        kill(app_of(daemon.worker_pids()[0]));
        daemon.wait_until("the death is known", |status| status.deaths_total == deaths);
        assert_eq!(client.call("count", deaths), Ok(json!(deaths)));
        if let Some(child) = child.and_then(|pid| pid.as_u64()) {
            eventually("its end", || kernel::is_over(child as u32).then_some(()));
        }
    }
    let status = daemon.status();
    assert!(status.quarantined.is_empty() && status.lost_total == 0);
    assert_eq!(counted(&daemon, 4).len(), 4);
}

#[test]
fn a_flood_on_standard_error_blocks_no_request() {
    let Some(daemon) = start("workers.count = 1") else {
        return;
    };
    // It does not end by itself.
    let line = format!("<4>a line of a flood{}", ".".repeat(1_000));
    serve_during(&daemon, &["yes", &line]);
    daemon.wait_for_log("warn app: a line of a flood");
}

#[test]
fn a_line_that_never_ends_blocks_no_request() {
    let Some(daemon) = start("workers.count = 1") else {
        return;
    };
    serve_during(&daemon, &["sh", "-c", "exec tr '\\0' z </dev/zero"]);
    daemon.wait_for_log("app: zzz");
}

/// Calls methods of the worker and of its app while a child of the app writes to standard error, without an end.
fn serve_during(daemon: &Running, writer: &[&str]) {
    let mut client = daemon.connect();
    let child = client.call("pour", writer).expect("a pid");
    for number in 0..20 {
        assert_eq!(client.call("ping", number), Ok(json!(number)));
        assert_eq!(client.call("echo", number), Ok(json!(number)));
    }
    let child = child.as_u64().expect("a pid") as u32;
    assert!(!kernel::is_over(child), "it has written all the time");
    kill(child);
    let status = daemon.status();
    assert_eq!((status.errors_total, status.deaths_total), (0, 0));
}

#[test]
fn a_child_that_keeps_descriptor_3_does_not_outlive_the_pair() {
    let Some(daemon) = start("workers.count = 1") else {
        return;
    };
    let mut client = daemon.connect();
    let child = client.call("spawn", Value::Null).expect("a pid");
    assert_eq!(code(&mut client, "exit", json!(0)), "crashed");
    assert_eq!(client.call("echo", 1), Ok(json!(1)));
    let running = format!("/proc/{child}/exe");
    eventually("its end", || {
        (!std::path::Path::new(&running).exists()).then_some(())
    });
}

/// The app itself ends with its worker (PR_SET_PDEATHSIG). The master ends the rest of the worker's session.
#[test]
fn a_child_of_the_app_does_not_outlive_a_killed_worker() {
    let Some(daemon) = start("workers.count = 1") else {
        return;
    };
    for deaths in 1..=4 {
        let child = daemon.call("spawn", Value::Null).expect("a pid");
        let child = child.as_u64().expect("a pid") as u32;
        let worker = daemon.worker_pids()[0];
        let app = app_of(worker);
        kill(worker);
        daemon.wait_until("the death is known", |status| status.deaths_total == deaths);
        for pid in [app, child] {
            eventually("its end", || kernel::is_over(pid).then_some(()));
        }
        daemon.wait_for_workers();
    }
}

#[test]
fn an_app_that_cannot_start_fails_the_start_with_its_reason() {
    for (command, reason) in [
        (
            "[\"sh\", \"-c\", \"echo no database >&2; exit 4\"]",
            "exited with status 4 before its hello: no database",
        ),
        ("[\"true\"]", "exited with status 0 before its hello"),
        (
            "[\"python3\", \"-c\", \"import os,struct; b=b'{\\\"failed\\\":\\\"no cache\\\"}'; os.write(3, struct.pack('<I', len(b)) + b)\"]",
            "cannot serve: no cache",
        ),
        (
            "[\"python3\", \"-c\", \"import os,struct; b=b'{\\\"hello\\\":1,\\\"methods\\\":[{\\\"name\\\":\\\"ping\\\"}]}'; os.write(3, struct.pack('<I', len(b)) + b)\"]",
            "its method \\\"ping\\\" has the name of a built-in one",
        ),
    ] {
        let config = format!("workers.count = 1\n[app]\ncommand = {command}\n");
        let started = fdpassd::testing::Setup::new(crate::common::FDPASSD, &config).start();
        let error = started.map(|_: Running| ()).expect_err(reason);
        let reason = reason.replace("\\\"", "\"");
        assert!(
            error.stderr().contains(&reason),
            "{reason}: {}",
            error.stderr()
        );
    }
}

/// The worker has read more than hello at once. Nothing else arrives until a client sends a request.
#[test]
fn a_frame_that_arrives_with_hello_is_processed() {
    let at_once = ("AT_ONCE", r#"{"health":"the store is empty"}"#);
    let Some(config) = super::configuration("workers.count = 1", "", &[at_once]) else {
        return;
    };
    let daemon = fdpassd::testing::Setup::new(crate::common::FDPASSD, &config);
    let daemon = daemon.start().expect("it serves");
    daemon.wait_until("the worker is unhealthy", |status| {
        status.workers[0].unhealthy.as_deref() == Some("the store is empty")
    });
}

/// As one whose health function has a reason.
#[test]
fn clients_leave_an_unhealthy_app() {
    use WorkerState::Unhealthy;
    let config =
        "workers = { count = 2, dispatch = \"round-robin\" }\nmetrics.listen = \"127.0.0.1:0\"";
    let Some(daemon) = start(config) else {
        return;
    };
    let address = metrics_address(&daemon);
    let wait_for_unhealthy = |expected: usize| {
        daemon.wait_until("the health is known", |status| {
            let states = status.workers.iter().map(|worker| worker.state);
            states.filter(|state| *state == Unhealthy).count() == expected
        })
    };
    let mut clients: Vec<Client> = (0..8).map(|_| daemon.connect()).collect();
    crate::common::ping_all(&mut clients);
    let end = daemon.directory().join("end");
    clients[0].request("ail", ("no database", &end));
    wait_for_unhealthy(1);
    let wait_for_clients = |expected: u64| {
        daemon.wait_until("its clients have moved", |status| {
            let mut workers = status.workers.iter();
            workers.all(|worker| worker.clients == expected || worker.state == Unhealthy)
        });
    };
    // The one whose request is away follows when it is answered.
    wait_for_clients(7);
    std::fs::write(&end, "").expect("it is ours");
    assert!(clients[0].reply().value().is_ok());
    wait_for_clients(8);
    assert_eq!(get(&address, "/readyz").status_and_body(), (200, "ok\n"));
    // All clients reach the other app now.
    assert!(clients[0].call("health", "no cache").is_ok());
    wait_for_unhealthy(2);
    eventually("the daemon is not ready", || {
        (get(&address, "/readyz").status == 503).then_some(())
    });
    assert!(clients[0].call("health", Value::Null).is_ok());
    wait_for_unhealthy(1);
    let status = daemon.status();
    assert_eq!((status.deaths_total, status.lost_total), (0, 0));
}

/// The master receives every reason, however long the app makes it.
#[test]
fn a_long_reason_is_cut_and_logged() {
    let Some(daemon) = start_with("workers.count = 1", &[("NAME_LENGTH", "100000")]) else {
        return;
    };
    let mut client = daemon.connect();
    let alive = format!(r#"{{"alive":"{}"}}"#, "x".repeat(100_000));
    assert_eq!(code(&mut client, "write", json!(alive)), "crashed");
    daemon.wait_for_log("has broken the protocol: invalid value");
    assert_eq!(client.call("echo", 1), Ok(json!(1)));
}

/// The wire is full when the app ends it. The app cannot have begun the last request.
#[test]
fn a_request_that_never_reached_its_app_is_executed_by_the_next() {
    // The clients of the app that blocks are not moved to another worker.
    let Some(daemon) = start("workers.count = 1\nlimits.stall-timeout = \"1h\"") else {
        return;
    };
    let end = daemon.directory().join("end");
    let mut clients: Vec<Client> = (0..6).map(|_| daemon.connect()).collect();
    clients[0].request("block_and_close", &end);
    let begun = daemon.directory().join("end.begun");
    eventually("the app blocks", || begun.exists().then_some(()));
    let long = |number: usize| format!("{number} {}", "x".repeat(110_000));
    for (number, client) in clients.iter_mut().enumerate() {
        if number > 0 {
            client.request("count", long(number));
        }
        daemon.wait_until("it is away", |status| {
            status.workers[0].away == number as u64 + 1
        });
    }
    std::fs::write(&end, "").expect("it is ours");
    let [first, .., last] = clients.as_mut_slice() else {
        return;
    };
    let fault = first.reply().value().expect_err("it was executing");
    assert_eq!(fault.code(), "crashed");
    assert!(last.reply().value() == Ok(json!(long(5))), "it was not");
    let lines = counted(&daemon, 1);
    assert_eq!(lines.iter().filter(|line| **line == long(5)).count(), 1);
}

#[test]
fn samples_that_an_app_sends_at_its_end_are_counted() {
    let at_stop = ("AT_STOP", r#"{"metrics":{"orders":5}}"#);
    let Some(daemon) = start_with("workers.count = 1", &[at_stop]) else {
        return;
    };
    daemon.ctl("recycle").expect("the worker is replaced");
    eventually("the samples are counted", || {
        let samples = crate::common::metrics::samples(&daemon);
        (crate::common::metrics::sum(&samples, "fdpassd_app_orders_total") == 5.0).then_some(())
    });
}

/// Each would be another number than the app has meant.
#[test]
fn a_counter_counts_whole_numbers_only() {
    let Some(daemon) = start("workers.count = 1") else {
        return;
    };
    let mut client = daemon.connect();
    for wrong in [
        json!(0.5),
        json!(-1),
        json!(1e300),
        json!(9_007_199_254_740_994_u64),
    ] {
        let _ = client.call("metrics", json!({"orders": wrong}));
    }
    daemon.wait_for_log("by a number that is not a count");
    let _ = client.call("metrics", json!({"orders": 3.0}));
    let samples = crate::common::metrics::samples(&daemon);
    assert_eq!(
        crate::common::metrics::sum(&samples, "fdpassd_app_orders_total"),
        3.0
    );
}
