//! Requests that an app executes.

use std::thread;
use std::time::Duration;

use fdpassd::testing::{Client, eventually};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::{counted, start, start_with};
use crate::common::kernel;
use crate::common::strace::Traced;

#[test]
fn params_and_results_pass_byte_for_byte() {
    let Some(daemon) = start("workers.count = 1") else {
        return;
    };
    let mut client = daemon.connect();
    for value in [
        "null",
        "1e400",
        "[1, 2]",
        "{\"a\" : \"\\u0041\", \"a\":2}",
        "\"\"",
    ] {
        client.send_frame(format!(
            "{{\"in\":\"write\",\"params\":{}}}",
            json!(format!("{{\"id\":ID,\"result\":{value}}}"))
        ));
        let expected = format!("{{\"out\":\"write_r\",\"result\":{value}}}");
        assert_eq!(
            String::from_utf8(client.receive()).expect("UTF-8"),
            expected
        );
    }
    for length in [0, 40, 600, 5_000, 70_000, 300_000, 1_000_000] {
        let params = "x".repeat(length);
        client.request("echo", &params);
        let expected = format!("{{\"out\":\"echoed\",\"result\":\"{params}\"}}");
        assert!(client.receive() == expected.as_bytes(), "{length} bytes");
    }
    assert_eq!(client.call("ping", 7), Ok(json!(7)), "built in");
    let missing = client.call("pi", 7).expect_err("the demonstration is gone");
    assert_eq!(missing.code(), "unknown_method");
    let methods = client.call("methods", Value::Null).expect("a list");
    let names: Vec<&str> = methods
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|method| method["name"].as_str())
        .collect();
    assert!(names.contains(&"echo") && names.contains(&"methods") && !names.contains(&"pi"));
}

#[test]
fn a_request_has_its_circumstances() {
    let Some(daemon) = start("workers.count = 1\nlimits.request-timeout = \"20s\"") else {
        return;
    };
    let mut client = daemon.connect();
    let first = client.call("circumstances", 1).expect("a result");
    assert_eq!(
        (&first["in"], &first["attempt"]),
        (&json!("circumstances"), &json!(1))
    );
    let peer = first["peer"].as_str().expect("a text");
    assert!(peer.starts_with("127.0.0.1:"), "{peer}");
    let timeout = first["timeout"].as_u64().expect("ms");
    assert!((1..=20_000).contains(&timeout), "{timeout}");
    client.send_frame(r#"{"in":"circumstances"}"#);
    assert!(client.reply().value().is_ok(), "without params");
}

/// Each client has the number that it has for the operator, and no later client has it, although slots are reused.
#[test]
fn a_request_has_the_number_of_its_client() {
    let Some(daemon) = start("workers.count = 1") else {
        return;
    };
    let ids = || -> Vec<Value> {
        let page = daemon.ctl("clients").expect("a page");
        let clients = page["clients"].as_array().expect("a list");
        clients.iter().map(|client| client["id"].clone()).collect()
    };
    let number = |client: &mut Client| {
        let result = client.call("circumstances", 1).expect("a result");
        result["client"].clone()
    };
    let mut seen = Vec::new();
    for _ in 0..3 {
        let mut client = daemon.connect();
        let first = number(&mut client);
        assert_eq!(ids(), std::slice::from_ref(&first));
        let mut other = daemon.connect();
        assert_ne!(number(&mut other), first);
        assert_eq!(number(&mut client), first);
        assert!(!seen.contains(&first), "{first}: {seen:?}");
        seen.extend(ids());
        drop((client, other));
        daemon.wait_until("they have left", |status| status.clients == 0);
    }
}

#[test]
fn one_worker_has_many_requests_away_and_serves_others() {
    let Some(daemon) = start("workers.count = 1") else {
        return;
    };
    let mut sleepers: Vec<_> = (0..8).map(|_| daemon.connect()).collect();
    let end = daemon.directory().join("end");
    for (number, client) in sleepers.iter_mut().enumerate() {
        client.request("until_exists", (&end, number));
    }
    assert_eq!(counted(&daemon, 8).len(), 8);
    let mut other = daemon.connect();
    assert_eq!(other.call("ping", 1), Ok(json!(1)));
    // Nothing has been answered: they are away at the same time.
    assert!(sleepers.iter_mut().all(|client| !client.has_something()));
    std::fs::write(&end, "").expect("it is ours");
    for (number, client) in sleepers.iter_mut().enumerate() {
        assert_eq!(client.reply().value(), Ok(json!(number)));
    }
}

#[test]
fn replies_of_a_client_are_in_order_with_and_without_the_app() {
    let Some(daemon) = start("workers.count = 2") else {
        return;
    };
    let mut client = daemon.connect();
    let mut expected = Vec::new();
    for number in 0..40 {
        match number % 4 {
            0 => {
                client.request("sleep", (5, number));
                expected.push(json!([number, null]));
            }
            1 => {
                client.request("ping", number);
                expected.push(json!(number));
            }
            2 => {
                let long = format!("{number}{}", "y".repeat(100_000));
                client.request("echo", &long);
                expected.push(json!(long));
            }
            _ => {
                client.request("echo", number);
                expected.push(json!(number));
            }
        }
    }
    client.finish();
    for (number, expected) in expected.into_iter().enumerate() {
        let reply = client.reply().value().expect("a result");
        assert!(reply == expected, "{number}");
    }
    client.expect_end();
}

/// Returns the private memory of a process, in bytes.
fn private_memory(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB"));
    let kilobytes: Option<u64> = kilobytes.and_then(|number| number.parse().ok());
    kilobytes.expect("a number") * 1024
}

#[test]
fn requests_for_a_busy_app_do_not_stay_in_memory() {
    // It reads a request when it has answered the one before, so more of them always wait to be written to it.
    let Some(daemon) = start_with("workers.count = 1", &[("READS_ONE_AT_A_TIME", "1")]) else {
        return;
    };
    let worker = daemon.worker_pids()[0];
    let params = "x".repeat(60_000);
    let call_often = || {
        let mut client = daemon.connect();
        let mut most = 0;
        for _ in 0..30 {
            client.request("echo", &params);
            assert!(client.receive().len() > params.len());
            most = most.max(private_memory(worker));
        }
        most
    };
    let before = private_memory(worker);
    let most = thread::scope(|scope| {
        let clients: Vec<_> = (0..8).map(|_| scope.spawn(call_often)).collect();
        clients
            .into_iter()
            .map(|client| client.join().expect("its replies"))
            .max()
    });
    let growth = most.expect("clients").saturating_sub(before);
    assert!(growth < 5 << 20, "{growth} bytes of 14,400,000");
}

#[test]
fn requests_beyond_the_permits_wait_and_are_answered() {
    // Those that wait are not moved to another worker.
    let config = "workers.count = 1\nlimits.stall-timeout = \"1h\"";
    let Some(daemon) = start_with(config, &[("CONCURRENCY", "2")]) else {
        return;
    };
    let end = daemon.directory().join("end");
    let mut clients: Vec<_> = (0..20).map(|_| daemon.connect()).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        client.request("recorded", (&end, number));
        client.request("echo", number);
    }
    counted(&daemon, 2);
    assert_eq!(daemon.call("ping", 1), Ok(json!(1)), "the worker is free");
    std::fs::write(&end, "").expect("it is ours");
    for (number, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.reply().value(), Ok(json!(number)));
        assert_eq!(client.reply().value(), Ok(json!(number)));
    }
    let mut executing = 0_usize;
    let depths = counted(&daemon, 40).into_iter().map(|line| {
        executing = match line.starts_with("begun ") {
            true => executing + 1,
            false => executing - 1,
        };
        executing
    });
    assert_eq!(depths.max(), Some(2));
    let status = daemon.status();
    assert_eq!((status.deaths_total, status.lost_total), (0, 0));
}

/// All requests that a worker finds in one iteration of its loop.
#[test]
fn requests_of_one_iteration_are_written_together() {
    let Some(daemon) = start("listen = [\"unix:{dir}/rpc.sock\"]\nworkers.count = 1") else {
        return;
    };
    let mut clients: Vec<_> = (0..8).map(|_| daemon.connect()).collect();
    crate::common::ping_all(&mut clients);
    let worker = daemon.worker_pids()[0];
    kernel::stop(worker);
    let Some(traced) = Traced::watch(worker, "sendto") else {
        return;
    };
    for (number, client) in clients.iter_mut().enumerate() {
        client.request("echo", number);
    }
    kernel::send(worker, Signal::SIGCONT);
    for (number, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.reply().value(), Ok(json!(number)));
    }
    let trace = traced.text();
    let writes = trace.lines().filter(|line| line.contains("{\\\"id\\\":"));
    assert_eq!(writes.count(), 1, "{trace}");
}

#[test]
fn a_caller_that_leaves_gives_its_permit_back() {
    let config = "listen = [\"127.0.0.1:0\", \"unix:{dir}/rpc.sock\"]\nworkers.count = 1";
    let Some(daemon) = start_with(config, &[("CONCURRENCY", "1")]) else {
        return;
    };
    let unix = daemon
        .addresses()
        .iter()
        .find(|address| address.to_string().starts_with("unix:"));
    let mut leaver = Client::connect(unix.expect("a Unix listener"));
    leaver.request("until_cancelled", 1);
    assert_eq!(counted(&daemon, 1), ["begun"]);
    let mut waiter = daemon.connect();
    waiter.request("echo", 2);
    drop(leaver);
    assert_eq!(counted(&daemon, 2), ["begun", "gone"]);
    assert_eq!(waiter.reply().value(), Ok(json!(2)));
    let status = daemon.wait_until("it is closed", |status| status.clients == 1);
    assert_eq!((status.deaths_total, status.lost_total), (0, 0));
}

#[test]
fn a_reload_and_a_recycling_wait_for_requests_that_are_away() {
    let Some(daemon) = start("workers.count = 1\nlimits.drain-timeout = \"20s\"") else {
        return;
    };
    let mut away = daemon.connect();
    let mut idle = daemon.connect();
    assert_eq!(idle.call("echo", 0), Ok(json!(0)));
    for (number, verb) in ["reload", "recycle"].into_iter().enumerate() {
        away.request("sleep", (700, number));
        counted(&daemon, number + 1);
        let mut change = match verb {
            "reload" => daemon.ctl_request("reload", json!({})),
            _ => daemon.ctl_request("recycle", json!({})),
        };
        // Its successor serves the idle client in the meantime.
        assert_eq!(idle.call("echo", number), Ok(json!(number)));
        assert_eq!(away.reply().value(), Ok(json!([number, null])));
        assert!(change.reply().value().is_ok(), "{verb}");
    }
    let status = daemon.status();
    assert_eq!((status.deaths_total, status.lost_total), (0, 0));
}

#[test]
fn a_stop_answers_what_is_away_and_leaves_no_process() {
    stop_with_children(&[]);
}

/// After 5 s such an app is killed, with its child.
#[test]
fn a_stop_ends_an_app_that_ignores_it() {
    stop_with_children(&[("IGNORES_END", "1")]);
}

/// Stops a daemon while a request is away and each app has a child, which holds descriptor 3.
fn stop_with_children(variables: &[(&str, &str)]) {
    let config = "workers = { count = 2, dispatch = \"round-robin\" }";
    let Some(mut daemon) = start_with(config, variables) else {
        return;
    };
    let workers = daemon.worker_pids();
    let mut processes: Vec<u32> = workers.into_iter().map(super::app_of).collect();
    for mut client in [daemon.connect(), daemon.connect()] {
        let child = client.call("spawn", Value::Null).expect("a pid");
        processes.push(child.as_u64().expect("a pid") as u32);
    }
    let mut client = daemon.connect();
    client.request("sleep", (300, "x"));
    counted(&daemon, 1);
    daemon.signal("TERM");
    assert_eq!(client.reply().value(), Ok(json!(["x", null])));
    client.expect_end();
    assert_eq!(daemon.wait().code(), Some(0));
    if !variables.is_empty() {
        daemon.wait_for_log("did not exit within 5s; killing it");
    }
    for pid in processes {
        eventually("it has ended", || kernel::is_over(pid).then_some(()));
    }
}

#[test]
fn metrics_of_an_app_outlive_it() {
    let Some(daemon) = start("workers.count = 2") else {
        return;
    };
    for deaths in 1..=3 {
        // A client that ends three workers is closed.
        let mut client = daemon.connect();
        let samples = json!({"orders": 2, "prices": [0.5, 5, 50], "unknown": 1});
        assert!(client.call("metrics", samples).is_ok());
        let fault = client.call("exit", 1).expect_err("it exits");
        assert_eq!(fault.code(), "crashed");
        daemon.wait_until("the death is known", |status| status.deaths_total == deaths);
    }
    let text = crate::common::metrics::text(&daemon);
    for line in [
        "fdpassd_app_orders_total 6",
        "fdpassd_app_prices_bucket{le=\"1\"} 3",
        "fdpassd_app_prices_bucket{le=\"10\"} 6",
        "fdpassd_app_prices_count 9",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}: {text}");
    }
}

#[test]
fn an_idle_worker_with_an_idle_app_does_not_wake_up() {
    let Some(daemon) = start("workers.count = 1") else {
        return;
    };
    assert_eq!(daemon.call("echo", 1), Ok(json!(1)));
    let worker = daemon.worker_pids()[0];
    daemon.wait_until("its client has left", |status| status.clients == 0);
    crate::common::while_idle(&daemon, || ());
    let processes = [worker, super::app_of(worker)];
    // Until both sleep, and have slept for a while. An app on a busy machine may still have to end its turn after its
    // last answer.
    let mut last = None;
    let before = eventually("both are idle", || {
        let sleeps = kernel::all_idle(&processes);
        if sleeps == last {
            return sleeps;
        }
        last = sleeps;
        crate::common::let_pass(Duration::from_millis(300));
        None
    });
    crate::common::let_pass(Duration::from_millis(1500));
    assert_eq!(processes.map(kernel::sleeps).to_vec(), before);
}
