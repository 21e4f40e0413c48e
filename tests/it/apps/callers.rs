//! Clients of an app: their limits and errors are the same as without an app.

use std::io::Write;

use fdpassd::testing::Client;
use serde_json::{Value, json};

use super::{counted, start, start_with};

#[test]
fn bad_requests_reach_no_app() {
    let Some(daemon) = start("workers.count = 1\nlimits.max-frame = \"64KiB\"") else {
        return;
    };
    let mut client = daemon.connect();
    for body in [
        b"{}".to_vec(),
        b"[]".to_vec(),
        b"".to_vec(),
        br#"{"in":"count","in":"count"}"#.to_vec(),
        br#"{"in":"count","params":NaN}"#.to_vec(),
        br#"{"in":"count","params":1"#.to_vec(),
        br#"{"in":7}"#.to_vec(),
        b"{\"in\":\"echo\",\"params\":\"\xff\"}".to_vec(),
    ] {
        let shown = String::from_utf8_lossy(&body).into_owned();
        client.send_frame(&body);
        let fault = client.reply().value().expect_err(&shown);
        assert_eq!(fault.code(), "bad_request", "{shown}");
    }
    let fault = client.call("nobody", 1).expect_err("no such method");
    assert_eq!(fault.code(), "unknown_method");
    assert_eq!(client.call("count", 1), Ok(json!(1)));
    let mut large = daemon.connect();
    large.request("count", "x".repeat(64 << 10));
    let fault = large.reply().value().expect_err("too large");
    assert_eq!(fault.code(), "too_large");
    large.expect_end();
    assert_eq!(counted(&daemon, 1), ["1"]);
    let status = daemon.status();
    assert_eq!((status.deaths_total, status.lost_total), (0, 0));
}

#[test]
fn params_are_passed_however_deeply_they_are_nested() {
    let Some(daemon) = start("workers.count = 1") else {
        return;
    };
    let mut client = daemon.connect();
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    client.send_frame(format!(r#"{{"in":"echo","params":{}}}"#, nested(300)));
    let expected = format!(r#"{{"out":"echoed","result":{}}}"#, nested(300));
    assert_eq!(
        String::from_utf8(client.receive()).expect("UTF-8"),
        expected
    );
    // Python cannot read these, and the app answers with an error.
    client.send_frame(format!(r#"{{"in":"echo","params":{}}}"#, nested(200_000)));
    let fault = client.reply().value().expect_err("too deep for the app");
    assert_eq!(fault.code(), "bad_params");
    // A result of any depth.
    let answer = format!(r#"{{"id":ID,"result":{}}}"#, nested(200_000));
    client.request("write", answer);
    let expected = format!(r#"{{"out":"write_r","result":{}}}"#, nested(200_000));
    assert!(client.receive() == expected.as_bytes());
    assert_eq!(daemon.status().deaths_total, 0);
}

#[test]
fn long_frames_with_more_behind_them_are_answered_in_order() {
    let Some(daemon) = start("workers.count = 2") else {
        return;
    };
    let mut clients: Vec<Client> = (0..6).map(|_| daemon.connect()).collect();
    let long = |client: usize, round: usize| format!("{client}.{round} {}", "x".repeat(300_000));
    let mut writers: Vec<_> = Vec::new();
    for (number, client) in clients.iter_mut().enumerate() {
        let mut writer = client.writer();
        let bytes: Vec<u8> = (0..5)
            .flat_map(|round| {
                let request = json!({"in": "echo", "params": long(number, round)}).to_string();
                let count = json!({"in": "count", "params": format!("{number}.{round}")});
                let ping = json!({"in": "ping", "params": round}).to_string();
                [request, count.to_string(), ping]
                    .map(|body| client.frame(body))
                    .concat()
            })
            .collect();
        writers.push(std::thread::spawn(move || {
            writer.write_all(&bytes).expect("it is sent");
            writer.finish();
        }));
    }
    for (number, client) in clients.iter_mut().enumerate() {
        for round in 0..5 {
            assert!(client.reply().value().expect("a result") == long(number, round));
            assert_eq!(
                client.reply().value(),
                Ok(json!(format!("{number}.{round}")))
            );
            assert_eq!(client.reply().value(), Ok(json!(round)));
        }
        client.expect_end();
    }
    writers
        .into_iter()
        .for_each(|writer| writer.join().expect("it is sent"));
    let mut lines = counted(&daemon, 30);
    lines.sort();
    lines.dedup();
    assert_eq!(lines.len(), 30);
}

#[test]
fn a_client_that_does_not_read_holds_up_only_itself() {
    let config = "workers.count = 1\nlimits.send-timeout = \"none\"";
    let Some(daemon) = start_with(config, &[("CONCURRENCY", "2")]) else {
        return;
    };
    let mut lazy: Vec<Client> = (0..4).map(|_| daemon.connect()).collect();
    for (number, client) in lazy.iter_mut().enumerate() {
        for _ in 0..20 {
            client.request("long", 900_000);
        }
        client.request("count", number);
    }
    let mut other = daemon.connect();
    for number in 0..50 {
        assert_eq!(other.call("echo", number), Ok(json!(number)));
    }
    daemon.wait_until("nothing is away", |status| status.workers[0].away == 0);
    let counts = daemon.directory().join("counts");
    assert!(
        !counts.exists(),
        "nothing is executed for a client that does not read"
    );
    for (number, client) in lazy.iter_mut().enumerate() {
        for _ in 0..20 {
            let result = client.reply().value().expect("a result");
            assert_eq!(result.as_str().map(str::len), Some(900_000));
        }
        assert_eq!(client.reply().value(), Ok(json!(number)));
    }
    assert_eq!(daemon.status().deaths_total, 0);
}

#[test]
fn a_client_that_half_closes_gets_its_answers() {
    let Some(daemon) =
        start("listen = [\"127.0.0.1:0\", \"unix:{dir}/rpc.sock\"]\nworkers.count = 1")
    else {
        return;
    };
    for address in daemon.addresses() {
        let mut client = Client::connect(address);
        client.request("sleep", (300, "x"));
        client.request("echo", 1);
        client.finish();
        assert_eq!(client.reply().value(), Ok(json!(["x", null])));
        assert_eq!(client.reply().value(), Ok(json!(1)));
        client.expect_end();
    }
    assert_eq!(daemon.status().errors_total, 0);
}

#[test]
fn a_late_answer_is_dropped() {
    let config =
        "workers.count = 1\nlimits.request-timeout = \"5s\"\nlimits.stall-timeout = \"20s\"";
    let Some(daemon) = start(config) else {
        return;
    };
    let mut client = daemon.connect();
    let end = daemon.directory().join("end");
    client.request("until_exists", (&end, "late"));
    client.request("echo", 2);
    daemon.wait_for_log("exceeded request-timeout");
    std::fs::write(&end, "").expect("it is ours");
    assert_eq!(client.reply().value().expect_err("late").code(), "timeout");
    assert_eq!(client.reply().value(), Ok(json!(2)));
    // A request whose client has left.
    let mut leaver = daemon.connect();
    leaver.request("sleep", (200, "gone"));
    counted(&daemon, 2);
    drop(leaver);
    daemon.wait_until("its permit returns", |status| {
        (status.clients, status.workers[0].away) == (1, 0)
    });
    assert_eq!(client.call("echo", Value::Null), Ok(Value::Null));
    assert_eq!(daemon.status().deaths_total, 0);
}

/// Requests that are away are not rejected, but their bytes count, so that others are rejected.
#[test]
fn requests_that_are_away_outlast_full_buffers() {
    // An app without a free permit that has answered nothing for stall-timeout gets no more clients.
    let config = "workers.count = 1\nlimits.max-frame = \"1MiB\"\nlimits.buffers = \"4MiB\"\n\
                  limits.stall-timeout = \"1h\"\nlimits.request-timeout = \"none\"";
    let Some(daemon) = start_with(config, &[("CONCURRENCY", "3")]) else {
        return;
    };
    let end = daemon.directory().join("end");
    let long = |number: usize| format!("{number} {}", "x".repeat(1_000_000));
    let mut clients: Vec<Client> = (0..3).map(|_| daemon.connect()).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        client.request("until_exists", (&end, long(number)));
    }
    counted(&daemon, 3);
    let fill = |filled: u64| {
        daemon.wait_until("it is buffered", |status| {
            status.workers[0].parked_bytes >= 2_900_000 + filled
        });
    };
    // There is no permit for this one, and space for one more.
    let mut waiting = daemon.connect();
    waiting.request("count", "x".repeat(100_000));
    fill(100_000);
    let partial = || {
        let mut client = daemon.connect();
        let frame = client.frame("x".repeat(200_000));
        client.send(&frame[..100_000]);
        client
    };
    let mut first = partial();
    let fault = waiting.reply().value().expect_err("there is no space");
    assert_eq!(fault.code(), "overloaded");
    assert!(fault.message().contains("has waited longest"), "{fault}");
    let _second = partial();
    let fault = first.reply().value().expect_err("there is no space");
    assert_eq!(fault.code(), "overloaded");
    assert!(fault.message().contains("unfinished frame"), "{fault}");
    let mut other = daemon.connect();
    assert_eq!(other.call("ping", 1), Ok(json!(1)));
    std::fs::write(&end, "").expect("it is ours");
    for (number, client) in clients.iter_mut().enumerate() {
        assert!(
            client.reply().value() == Ok(json!(long(number))),
            "{number}"
        );
    }
    let status = daemon.status();
    assert_eq!((status.deaths_total, status.lost_total), (0, 0));
}
