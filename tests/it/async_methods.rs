//! Methods that wait: many requests at a time in one worker, whatever becomes of their clients and of the worker.
//! `examples/waitd.rs` has the methods.

mod deaths;
mod handoff;
mod lifecycle;
mod time;

use std::fs;
use std::time::{Duration, Instant};

use fdpassd::testing::{Client, Running, Setup, eventually};
use serde_json::{Value, json};

use crate::apps::start_app;
use crate::common::faulty::example;
use crate::common::program::{ctl, run};
use crate::common::upgrade::{assert_refused, upgrade};

fn start(text: &str) -> Running {
    start_with(text, &[])
}

/// Returns a configuration with the table of the daemon's own.
fn config(text: &str) -> String {
    format!("{text}\n[waitd]\nrecord = \"{{dir}}/record\"\n")
}

/// As [`start`], with variables of the environment.
fn start_with(text: &str, variables: &[(&str, &str)]) -> Running {
    let setup = Setup::new(example("waitd"), &config(text));
    let setup = variables
        .iter()
        .fold(setup, |setup, (name, value)| setup.variable(name, value));
    let daemon = setup.start().expect("it serves");
    daemon.wait_for_workers();
    daemon
}

/// Returns the lines that the methods have recorded, once there are at least `least`.
fn recorded(daemon: &Running, least: usize) -> Vec<String> {
    let file = daemon.directory().join("record");
    eventually("lines of the methods", || {
        let lines = fs::read_to_string(&file).unwrap_or_default();
        let lines: Vec<String> = lines.lines().map(str::to_owned).collect();
        (lines.len() >= least).then_some(lines)
    })
}

/// Returns the number of the thread in which the futures of a worker execute.
fn runtime_thread(pid: u32) -> u32 {
    threads(pid, "runtime")[0]
}

/// Returns the numbers of the threads of a worker with this name.
fn threads(pid: u32, name: &str) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
    let named = tasks.flatten().filter(|task| {
        let found = fs::read_to_string(task.path().join("comm"));
        found.is_ok_and(|found| found.trim_end() == name)
    });
    let number = |task: fs::DirEntry| task.file_name().to_str()?.parse().ok();
    named.filter_map(number).collect()
}

/// Waits until this many calls of `record` have begun in all.
fn wait_for_begun(daemon: &Running, count: usize) {
    eventually("the methods have begun", || {
        let lines = recorded(daemon, 0);
        let begun = lines.iter().filter(|line| line.starts_with("begun"));
        (begun.count() == count).then_some(())
    });
}

fn wait_for_away(daemon: &Running, count: u64) {
    daemon.wait_until("the requests are away", |status| {
        status.workers.iter().map(|worker| worker.away).sum::<u64>() == count
    });
}

#[test]
fn one_worker_waits_for_many_requests_at_once() {
    let daemon = start("workers.count = 1");
    let mut clients: Vec<Client> = (0..32).map(|_| daemon.connect()).collect();
    // One at a time takes at least 32 times as long.
    let begin = Instant::now();
    for client in &mut clients {
        client.request("sleep", 2_000);
    }
    for client in &mut clients {
        assert_eq!(client.reply().value(), Ok(json!(1)));
    }
    assert!(
        begin.elapsed() < Duration::from_secs(32),
        "{:?}",
        begin.elapsed()
    );
    assert_eq!(
        daemon.call("waited", ()),
        Ok(json!(32)),
        "the state is shared"
    );
}

#[test]
fn other_methods_run_while_requests_wait() {
    let daemon = start("workers.count = 1");
    let mut waits = daemon.connect();
    waits.request("until_dropped", "x");
    recorded(&daemon, 1);
    assert_eq!(daemon.call("ping", 5), Ok(json!(5)));
    assert_eq!(daemon.call("waited", ()), Ok(json!(0)));
    assert_eq!(daemon.call("sleep", 1), Ok(json!(1)));
    assert_eq!(daemon.status().workers[0].away, 1);
}

#[test]
fn replies_of_a_client_have_the_order_of_its_requests() {
    let daemon = start("workers.count = 1");
    let mut client = daemon.connect();
    let waits = [60, 0, 30, 5, 0, 20, 1];
    for (number, milliseconds) in waits.iter().enumerate() {
        client.request("record", (number.to_string(), milliseconds));
        client.request("ping", number);
    }
    for number in 0..waits.len() {
        assert_eq!(client.reply().value(), Ok(json!(number.to_string())));
        assert_eq!(client.reply().value(), Ok(json!(number)));
    }
    let lines = recorded(&daemon, 2 * waits.len());
    let expected: Vec<String> = (0..waits.len())
        .flat_map(|number| [format!("begun {number}"), format!("done {number}")])
        .collect();
    assert_eq!(lines, expected, "one at a time");
}

#[test]
fn requests_above_the_concurrency_queue_in_their_order() {
    // Bytes that are sent over TCP may overtake those of another connection.
    // Those that wait are not moved to another worker.
    let config = "listen = [\"unix:{dir}/rpc.sock\"]\nworkers.count = 1\n\
                  limits.stall-timeout = \"1h\"";
    let daemon = start_with(config, &[("WAITD_CONCURRENCY", "2")]);
    let mut clients: Vec<Client> = (0..6).map(|_| daemon.connect()).collect();
    for client in &mut clients {
        // Its first turn is over, so the order of the next ones is that of the requests.
        assert_eq!(client.call("ping", 0), Ok(json!(0)));
    }
    for (number, client) in clients.iter_mut().enumerate() {
        client.request("record", (number.to_string(), 50));
        recorded(&daemon, number.min(2));
    }
    for (number, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.reply().value(), Ok(json!(number.to_string())));
    }
    let lines = recorded(&daemon, 12);
    let begun: Vec<_> = lines
        .iter()
        .filter_map(|line| line.strip_prefix("begun "))
        .collect();
    assert_eq!(begun, ["0", "1", "2", "3", "4", "5"]);
    let mut under_way = 0i32;
    for line in &lines {
        under_way += if line.starts_with("begun") { 1 } else { -1 };
        assert!(under_way <= 2, "{lines:?}");
    }
}

#[test]
fn a_method_knows_its_client_and_its_deadline() {
    let daemon = start("workers.count = 1\nlimits.request-timeout = \"1000s\"");
    let mut client = daemon.connect();
    let id = client.call("whoami", ()).expect("a result")["client"].clone();
    let known = client.call("circumstances", ()).expect("a result");
    assert_eq!(known["client"], id);
    assert_eq!(
        (&known["attempt"], &known["connected"]),
        (&json!(1), &json!(true))
    );
    assert!(
        known["peer"]
            .as_str()
            .is_some_and(|peer| peer.starts_with("127.0.0.1:"))
    );
    assert!(
        known["left"]
            .as_u64()
            .is_some_and(|left| (900..=1000).contains(&left))
    );
}

#[test]
fn errors_are_those_of_other_methods() {
    let daemon = start("workers.count = 1");
    let mut client = daemon.connect();
    let mut code = |method: &str, params: Value| {
        let fault = client.call(method, params).expect_err("an error");
        fault.code().to_owned()
    };
    assert_eq!(code("sleep", json!("long")), "bad_params");
    assert_eq!(code("fault", json!(["no_such_item", "m"])), "no_such_item");
    assert_eq!(code("fault", json!(["timeout", "m"])), "internal");
    assert_eq!(code("nothing", json!(null)), "unknown_method");
    daemon.wait_for_log("method \"fault\" returned a fault with the code \"timeout\"");
}

#[test]
fn a_panic_is_crashed_and_concerns_no_other_request() {
    let daemon = start("workers.count = 1");
    let before = daemon.worker_pids();
    let mut waits = daemon.connect();
    waits.request("record", ("x", 1_000));
    recorded(&daemon, 1);
    let fault = daemon
        .call("panic", "the lamp is broken")
        .expect_err("a panic");
    assert_eq!(fault.code(), "crashed");
    daemon.wait_for_log("the lamp is broken; its worker is replaced");
    assert_eq!(waits.reply().value(), Ok(json!("x")), "in the same worker");
    daemon.wait_until("another worker has taken its place", |status| {
        status.workers.len() == 1 && daemon.worker_pids() != before
    });
    daemon.wait_for_log("retires: a method has panicked");
    let status = daemon.status();
    assert_eq!((status.deaths_total, status.lost_total), (0, 0));
    assert_eq!(daemon.call("sleep", 1), Ok(json!(1)));
}

#[test]
fn a_panic_in_the_loop_keeps_the_state_that_futures_use() {
    let daemon = start("workers.count = 1");
    let mut waits = daemon.connect();
    waits.request("record", ("x", 500));
    recorded(&daemon, 1);
    let fault = daemon
        .call("panic_in_loop", "it is dark")
        .expect_err("a panic");
    assert_eq!(fault.code(), "crashed");
    daemon.wait_for_log("it is dark; this worker is replaced");
    daemon.wait_for_log("retires: a method has panicked");
    assert_eq!(waits.reply().value(), Ok(json!("x")));
    assert_eq!(daemon.status().deaths_total, 0);
}

#[test]
fn a_panic_in_the_clone_of_the_state_is_crashed() {
    let daemon = start("workers.count = 1");
    let mut waits = daemon.connect();
    waits.request("record", ("x", 500));
    recorded(&daemon, 1);
    assert!(daemon.call("panic_in_clone", "the copy is torn").is_ok());
    let fault = daemon.call("sleep", 1).expect_err("a panic");
    assert_eq!(fault.code(), "crashed");
    daemon.wait_for_log("the clone of the state for method \"sleep\" panicked at ");
    daemon.wait_for_log("the copy is torn; this worker is replaced");
    daemon.wait_for_log("retires: a method has panicked");
    assert_eq!(waits.reply().value(), Ok(json!("x")));
    let status = daemon.status();
    assert_eq!((status.deaths_total, status.lost_total), (0, 0));
    assert_eq!(daemon.call("sleep", 1), Ok(json!(1)));
}

#[test]
fn asynchronous_methods_and_an_app_exclude_each_other() {
    let daemon = start("workers.count = 1");
    let served = || assert_eq!(daemon.call("sleep", 1), Ok(json!(1)));
    served();
    daemon.write_config(&config("workers.count = 1\n[app]\ncommand = [\"true\"]"));
    let file = daemon.directory().join("config.toml");
    let file = file.to_str().expect("it is UTF-8");
    let program = example("waitd");
    for refused in [
        run(&program, &["-t", "-c", file]),
        run(&program, &["-T", "-c", file]),
        run(&program, &["-c", file]),
        ctl(&daemon, &["config", "check"]),
        ctl(&daemon, &["reload"]),
    ] {
        assert!(matches!(refused.code, Some(1 | 78)), "{refused:?}");
        for words in [
            "a daemon with asynchronous methods has no app: remove app.command\n",
            "| command = [\"true\"]\n",
            "| ^^^^^^^",
        ] {
            assert!(refused.err.contains(words), "{words:?}: {refused:?}");
        }
        served();
    }
    let status = daemon.status();
    assert_eq!((status.deaths_total, status.failed_starts_total), (0, 0));
}

#[test]
fn an_upgrade_to_asynchronous_methods_is_refused_with_an_app() {
    let Some(daemon) = start_app("workers.count = 1", "") else {
        return;
    };
    let refused = upgrade(&daemon, Some(&example("waitd")));
    let words = "a daemon with asynchronous methods has no app";
    assert_refused(refused, "refused", words);
    assert_eq!(daemon.call("ping", 1), Ok(json!(1)), "it serves on");
}

#[test]
fn the_status_shows_the_runtime() {
    let daemon = start_with("workers.count = 1", &[("WAITD_CONCURRENCY", "7")]);
    daemon.wait_for_log(" with its runtime (concurrency 7) is ready after ");
    let mut waits = daemon.connect();
    waits.request("until_dropped", "x");
    wait_for_away(&daemon, 1);
    let status = daemon.status();
    let worker = &status.workers[0];
    let runtime = worker.runtime.expect("it has one");
    let thread = runtime_thread(worker.pid.expect("it runs"));
    assert_eq!((runtime.thread, runtime.concurrency), (thread, 7));
    assert_eq!((worker.app.is_some(), worker.away), (false, 1));
    let shown = ctl(&daemon, &["status"]).out;
    let table = format!(
        "\nWORKER {:>6} AWAY MOST WAIT\n     1 {thread:>6}    1    7    0\n",
        "THREAD"
    );
    assert!(shown.contains(&table), "{table} is not in {shown}");
    upgrade(&daemon, Some(&example("waitd"))).expect("it is the same program");
    daemon.wait_until("a worker of the next program serves", |status| {
        let runtime = status.workers[0].runtime;
        runtime.is_some_and(|runtime| runtime.thread != thread && runtime.concurrency == 7)
    });
}

#[test]
fn a_replacement_after_a_panic_is_shown_as_such() {
    const REASON: &str = "a method has panicked";
    for method in ["panic", "panic_in_loop"] {
        let daemon = start("workers.count = 1");
        let switch = daemon.directory().join("start");
        let begin = || fs::write(&switch, "").expect("it is ours");
        begin();
        let waits_for_it = config("workers.count = 1") + "start_after = \"{dir}/start\"\n";
        daemon.reload_with(&waits_for_it).expect("it is good");
        fs::remove_file(&switch).expect("it is there");
        let mut waits = daemon.connect();
        waits.request("until_dropped", "x");
        wait_for_away(&daemon, 1);
        let worker = daemon.status().workers[0].id.expect("it has one");
        daemon.call(method, "it is dark").expect_err("a panic");
        daemon.wait_until("it will be replaced", |status| {
            status.workers[0].replaced_because.as_deref() == Some(REASON)
        });
        let shown = ctl(&daemon, &["status"]).out;
        let line = format!("\nworker {worker} will be replaced: {REASON}\n");
        assert!(shown.contains(&line), "{shown}");
        begin();
        daemon.wait_until("it retires", |status| {
            let mut leaving = status.leaving.iter();
            let retires = leaving.find(|leaving| leaving.id == worker);
            retires.is_some_and(|leaving| {
                leaving.reason == REASON
                    && leaving.waits_for == "1 request of its runtime to be answered"
            })
        });
        daemon.wait_for_log(&format!(") retires: {REASON}; "));
        let text = ctl(&daemon, &["metrics"]).out;
        for (reason, count) in [("panic", 1), ("max_requests", 0), ("reload", 1)] {
            let line =
                format!("\nfdpassd_worker_retirements_total{{reason=\"{reason}\"}} {count}\n");
            assert!(text.contains(&line), "{line} is not in {text}");
        }
        assert_eq!(daemon.status().deaths_total, 0);
    }
}
