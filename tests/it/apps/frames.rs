//! Invalid frames of an app. If the frame names a request, that request gets an error; otherwise worker and app end.

use std::thread;

use fdpassd::testing::{Client, Running, Setup, eventually};
use serde_json::json;

use super::{app_of, fault_of, kill, start, start_app, start_with};
use crate::common::FDPASSD;

#[test]
fn members_that_occur_twice_concern_the_caller_only() {
    let Some(daemon) = start("workers.count = 1") else {
        return;
    };
    for answer in [
        r#"{"id":ID,"id":ID,"result":1}"#,
        r#"{"id":ID,"result":1,"result":2}"#,
        r#"{"id":ID,"error":{"code":"a"},"error":{"code":"b"}}"#,
        r#"{"id":ID,"result":"\"#,
        r#"{"id":ID,"result":1}}"#,
        r#"{"id":ID,"result":1} {}"#,
        r#"{"id":ID,"error":null}"#,
        r#"{"id":ID,"error":{"code":7}}"#,
        r#"{"id":ID,"result":nul}"#,
    ] {
        let code = fault_of(&daemon, "write", &json!(answer));
        assert_eq!(code, "internal", "{answer}");
    }
    assert_eq!(daemon.status().deaths_total, 0);
}

#[test]
fn answers_with_an_id_that_is_no_number_end_the_pair() {
    let Some(daemon) = start_with("workers.count = 2", &[("CONCURRENCY", "8")]) else {
        return;
    };
    let frames = [
        ("write", r#"{"id":"ID","result":1}"#, "string"),
        ("write", r#"{"id":1.0,"result":1}"#, "float `1.0`"),
        ("write", r#"{"id":-1,"result":1}"#, "-1"),
        (
            "write",
            r#"{"id":18446744073709551616,"result":1}"#,
            "a whole number",
        ),
        (
            "write",
            r#"{"id":18446744073709551615,"result":1}"#,
            "18446744073709551615",
        ),
        ("write", r#"{"id":null,"result":1}"#, "null"),
        (
            "write_bytes",
            "{\"id\":ID,\"result\":\"\u{ff}\"}",
            "not UTF-8: bad byte at ",
        ),
        ("write", "", "EOF"),
    ];
    for (method, frame, words) in frames {
        let code = fault_of(&daemon, method, &json!(frame));
        assert_eq!(code, "crashed", "{frame}");
        let log = daemon.stderr();
        let mut lines = log.lines().filter(|line| line.contains("broke"));
        let last = lines.next_back().unwrap_or_default();
        assert!(last.contains(words), "{frame}: {last}");
    }
    let status = daemon.wait_for_workers();
    assert_eq!((status.deaths_total, status.lost_total), (8, 0));
}

#[test]
fn a_result_that_is_too_long_concerns_its_caller_only() {
    let Some(daemon) = start("workers.count = 1\nlimits.max-frame = \"64KiB\"") else {
        return;
    };
    let code = fault_of(&daemon, "longest", &json!(0));
    assert_eq!(
        (code.as_str(), daemon.status().deaths_total),
        ("internal", 0)
    );
    // A frame longer than any answer is not read.
    let code = fault_of(&daemon, "longest", &json!(1));
    assert_eq!(
        (code.as_str(), daemon.status().deaths_total),
        ("crashed", 1)
    );
    daemon.wait_for_log("is longer than ");
}

#[test]
fn half_an_answer_is_none() {
    let config =
        "workers.count = 2\nlimits.request-timeout = \"5s\"\nlimits.stall-timeout = \"500ms\"";
    let Some(daemon) = start(config) else {
        return;
    };
    assert_eq!(fault_of(&daemon, "half", &json!("exit")), "crashed");
    daemon.wait_until("the death is known", |status| status.deaths_total == 1);
    daemon.wait_for_workers();
    assert_eq!(fault_of(&daemon, "half", &json!("stay")), "timeout");
    assert_eq!(daemon.status().lost_total, 0);
}

#[test]
fn an_app_over_its_memory_is_replaced_between_requests() {
    let Some(daemon) = start_app("workers.count = 1", "max-memory = \"200MiB\"") else {
        return;
    };
    let before = daemon.worker_pids();
    let app = app_of(before[0]);
    let mut client = daemon.connect();
    assert_eq!(client.call("eat", 400), Ok(json!(400)));
    // The memory is checked once a second.
    eventually("the pair is replaced", || {
        assert!(client.call("echo", 1).is_ok());
        (daemon.worker_pids() != before).then_some(())
    });
    daemon.wait_for_log("retires: its app uses more memory than max-memory");
    let status = daemon.wait_for_workers();
    assert_eq!(
        (status.errors_total, status.deaths_total, status.lost_total),
        (0, 0, 0)
    );
    assert_ne!(app_of(daemon.worker_pids()[0]), app);
}

#[test]
fn an_app_that_grows_without_requests_is_replaced() {
    let Some(daemon) = start_app("workers.count = 1", "max-memory = \"200MiB\"") else {
        return;
    };
    let before = daemon.worker_pids();
    assert!(daemon.call("eat_later", 400).is_ok());
    // The app gets no other request.
    eventually("the pair is replaced", || {
        (daemon.worker_pids() != before).then_some(())
    });
    let status = daemon.wait_for_workers();
    assert_eq!((status.errors_total, status.deaths_total), (0, 0));
}

#[test]
fn a_stopped_app_costs_its_callers_only() {
    // Each worker gets four of the clients, and the one with a running app answers in time.
    let config = "workers = { count = 2, dispatch = \"round-robin\" }\n\
         limits.request-timeout = \"6s\"\nlimits.stall-timeout = \"500ms\"";
    let Some(daemon) = start(config) else {
        return;
    };
    let stopped = app_of(daemon.worker_pids()[0]);
    crate::common::kernel::stop(stopped);
    let mut clients: Vec<Client> = (0..8).map(|_| daemon.connect()).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        client.request("echo", number);
    }
    let mut late = 0;
    for (number, client) in clients.iter_mut().enumerate() {
        match client.reply().value() {
            Ok(value) => assert_eq!(value, number),
            Err(fault) => {
                assert_eq!(fault.code(), "timeout");
                late += 1;
            }
        }
    }
    assert!((1..=4).contains(&late), "{late}");
    daemon.wait_until("the pair is replaced", |status| status.deaths_total == 1);
    for (number, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.call("echo", number), Ok(json!(number)));
    }
    assert!(crate::common::kernel::is_over(stopped));
    assert_eq!(daemon.status().lost_total, 0);
}

#[test]
fn an_app_without_a_good_hello_fails_the_start() {
    let cases = [
        (
            "",
            "was not ready within 5s: its app has not sent its hello",
        ),
        ("os.close(3)", "descriptor 3"),
        (r#"w(b'{"id":1,"result":1}')"#, "first frame is not a hello"),
        (
            "os.write(3, b'\\xff' * 4)",
            "a frame of 4294967295 bytes is longer than ",
        ),
        ("os.write(3, b'hello\\n')", " bytes is longer than "),
        (r#"w(b'[{"hello":1,"methods":[]}]')"#, "an object"),
        (
            r#"w(b'{"hello":2,"methods":[]}')"#,
            "hello has version 2, not 1",
        ),
        (r#"w(b'{"hello":1}')"#, "hello has no methods"),
        (
            r#"w(b'{"hello":1,"methods":[{"name":"a"},{"name":"a"}]}')"#,
            "two methods \"a\"",
        ),
        (
            r#"w(b'{"hello":1,"methods":[{"name":"A b"}]}')"#,
            "no valid name",
        ),
        (
            r#"w(b'{"failed":"' + b'z' * 100000 + b'"}')"#,
            "its app cannot serve: zzz",
        ),
        (
            r#"w(b'{"hello":1,"methods":[' + b','.join(b'{"name":"m%060d"}' % n for n in range(900)) + b']}')"#,
            "the list of its 902 methods is too long",
        ),
    ];
    thread::scope(|scope| {
        for (code, reason) in cases {
            scope.spawn(move || check_failed_start(code, reason));
        }
    });
}

/// Checks that the daemon does not start with an app of this code, for a reason that contains these words.
fn check_failed_start(code: &str, reason: &str) {
    let limit = if code.is_empty() { "5s" } else { "30s" };
    let prelude = "import os,signal,struct\ndef w(b): os.write(3, struct.pack('<I', len(b)) + b)\n";
    let code = format!("{prelude}{code}\nsignal.pause()");
    let config = format!(
        "workers.count = 1\nworkers.start-timeout = {limit:?}\n[app]\ncommand = [\"python3\", \"-c\", {code:?}]\n"
    );
    let started = Setup::new(FDPASSD, &config).start().map(|_: Running| ());
    let error = started.expect_err(reason);
    let log = error.stderr();
    assert!(log.contains(reason), "{reason}: {log}");
}

#[test]
fn killed_idle_apps_are_noticed_without_a_request() {
    // No timer notices it.
    let Some(daemon) = start("workers.count = 2\nlimits.stall-timeout = \"1h\"") else {
        return;
    };
    let mut idle = daemon.connect();
    assert_eq!(idle.call("echo", 0), Ok(json!(0)));
    let before = daemon.worker_pids();
    before.iter().for_each(|worker| kill(app_of(*worker)));
    daemon.wait_until("both are noticed", |status| status.deaths_total == 2);
    daemon.wait_for_workers();
    assert!(!daemon.worker_pids().iter().any(|pid| before.contains(pid)));
    assert_eq!(idle.call("echo", 1), Ok(json!(1)));
}
