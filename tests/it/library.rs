//! Daemons of your own: `examples/resized.rs` and, for all that can go wrong in one, `examples/faulty.rs`.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use fdpassd::testing::{Client, Running};
use serde_json::{Value, json};

use crate::common::faulty::{self, example, whoami};
use crate::common::kernel;
use crate::common::program::{FDPASSCTL, OtherUser, Program, run};

#[test]
fn a_daemon_of_your_own_runs_and_answers_with_its_methods() {
    let daemon = Running::start(example("resized"), "workers.count = 1").expect("it serves");
    let mut client = daemon.connect();
    for (picture, frame, size) in [
        ([4000, 3000], [800, 800], [800, 600]),
        ([3000, 4000], [800, 800], [600, 800]),
        ([100, 100], [200, 300], [200, 200]),
    ] {
        client.request("fit", json!({"picture": picture, "frame": frame}));
        let reply = client.reply();
        assert_eq!(
            (reply.name.as_str(), reply.value().expect("a result")),
            ("fit_r", json!(size))
        );
    }
    let fault = client
        .call("fit", json!({"picture": [0, 5], "frame": [1, 1]}))
        .expect_err("no pixels");
    assert_eq!(fault.to_string(), "no_pixels: a picture of 0×5 has none");
    assert_eq!(
        client.call("report", ()).expect("a result"),
        json!({"seat": 0, "fitted": 3})
    );
    assert_eq!(client.call("ping", "too").expect("a result"), "too");

    let picture = "{ \"a\": 1e400,\t\"a\": \"\\u0041\" }";
    client.send_frame(format!("{{\"in\":\"original\",\"params\":{picture}}}"));
    let reply = client.reply();
    assert_eq!(
        (reply.name.as_str(), reply.result.get()),
        ("picture", picture)
    );
}

#[test]
fn params_that_are_not_the_methods_type_are_bad_params() {
    let daemon = Running::start(example("resized"), "").expect("it serves");
    let mut client = daemon.connect();
    for params in [
        json!(null),
        json!([]),
        json!({"picture": [1, 1]}),
        json!({"picture": [1, 1], "frame": [1]}),
        json!({"picture": [1, 1], "frame": [1, -1]}),
        json!({"picture": [1, 1], "frame": [1, 1], "quality": 3}),
        json!({"picture": [1, 1], "frame": [1, 4_294_967_296_u64]}),
    ] {
        let fault = client.call("fit", &params).expect_err("that is no Fit");
        assert_eq!(fault.code(), "bad_params", "{params}: {fault}");
    }
    assert_eq!(client.call("report", ()).expect("a result")["fitted"], 0);
}

#[test]
fn its_methods_are_listed_with_those_that_every_daemon_has() {
    let daemon = Running::start(example("resized"), "").expect("it serves");
    let methods = daemon.call("methods", ()).expect("a result");
    let expected = [
        ("fit", true),
        ("methods", true),
        ("original", false),
        ("ping", true),
        ("report", false),
    ];
    let expected: Vec<Value> = expected
        .map(|(name, again)| json!({"name": name, "idempotent": again}))
        .into();
    assert_eq!(methods, json!(expected));
}

#[test]
fn a_daemon_of_your_own_uses_its_own_name_everywhere() {
    let resized = example("resized");
    let version = env!("CARGO_PKG_VERSION");
    let said = run(&resized, &["-V"]);
    assert_eq!(
        (said.code, said.out),
        (Some(0), format!("resized {version}\n"))
    );
    let said = run(&resized, &["-c", "/nowhere.toml"]);
    assert!(
        said.code == Some(78) && said.err.starts_with("resized: "),
        "{said:?}"
    );
    let said = run(&resized, &["--help"]);
    assert!(said.out.contains("Usage: resized"), "{}", said.out);

    // As a user who is not root: root's daemons all have their sockets in /run.
    let runtime = tempfile::tempdir().expect("a directory");
    let nobody = OtherUser::if_root();
    fs::set_permissions(runtime.path(), Permissions::from_mode(0o777))
        .expect("it is our directory");
    let home = runtime.path();
    let config = home.join("config.toml");
    fs::write(&config, "listen = [\"127.0.0.1:0\"]").expect("it is our directory");
    let program = resized.to_str().expect("cargo's paths are UTF-8");
    let mut command = nobody.as_ref().map_or_else(
        || Command::new(&resized),
        |nobody| nobody.command(program, 65_534),
    );
    command
        .env_remove("RUNTIME_DIRECTORY")
        .env("XDG_RUNTIME_DIR", home);
    let mut daemon = Program::start(command.arg("-c").arg(&config));
    assert!(
        daemon
            .line()
            .starts_with(&format!("resized {version} listens on 127.0.0.1:"))
    );
    let socket = home.join("resized/control.sock").display().to_string();
    let said = run(FDPASSCTL, &["version", "-s", &socket]);
    assert!(
        said.out
            .contains(&format!("\nresized {version}, pid {}\n", daemon.pid())),
        "{said:?}"
    );
    let workers = kernel::children(daemon.pid());
    let names = workers
        .into_iter()
        .flat_map(|pid| fs::read_to_string(format!("/proc/{pid}/comm")));
    assert!(
        names.map(|name| assert_eq!(name, "resized\n")).count() > 0,
        "its workers go by that name too"
    );
    // As the user whose sockets are below this directory.
    let by_name = |program: &Path, arguments: &[&str]| {
        let program = program.to_str().expect("cargo's paths are UTF-8");
        let mut command = nobody.as_ref().map_or_else(
            || Command::new(program),
            |nobody| nobody.command(program, 65_534),
        );
        let command = command.env_remove("RUNTIME_DIRECTORY");
        command
            .args(arguments)
            .env("XDG_RUNTIME_DIR", home)
            .env("HOME", home)
            .output()
    };
    let named = by_name(Path::new(FDPASSCTL), &["-n", "resized", "version"]).expect("it runs");
    let named = String::from_utf8_lossy(&named.stdout).into_owned();
    assert!(
        named.contains(&format!("\nresized {version}, pid ")),
        "{named}"
    );
    let other = by_name(&example("counterctl"), &["status"]).expect("it runs");
    let error = String::from_utf8_lossy(&other.stderr).into_owned();
    assert!(
        other.status.code() == Some(3)
            && error.starts_with("counterctl: ")
            && error.contains("/counterd/control.sock"),
        "{error}"
    );
    let said = run(FDPASSCTL, &["stop", "-s", &socket]);
    assert_eq!(
        (said.code, said.out),
        (Some(0), format!("resized (pid {}) stopped\n", daemon.pid()))
    );
    assert_eq!(daemon.finish().code, Some(0));
}

#[test]
fn a_panic_is_answered_with_crashed_and_rebuilds_the_state() {
    let daemon = faulty::start("workers.count = 1");
    let mut client = daemon.connect();
    let mut other = daemon.connect();
    let first = whoami(&mut client);
    assert_eq!(whoami(&mut other).calls, 2);
    let fault = client.call("panic", "on purpose").expect_err("it panics");
    assert_eq!(
        fault.to_string(),
        "crashed: the method crashed while it ran this request"
    );
    for (client, calls) in [(&mut client, 1), (&mut other, 2)] {
        let then = whoami(client);
        assert_eq!(
            (then.worker, then.pid, then.calls),
            (first.worker, first.pid, calls)
        );
    }
    daemon.wait_for_log("method \"panic\" panicked at ");
    daemon.wait_for_log(": on purpose; the state is created again");
    let status = daemon.status();
    assert_eq!((status.errors_total, status.workers[0].restarts), (1, 0));
}

#[test]
fn a_panic_amid_pipelined_requests_fails_only_its_own() {
    let daemon = faulty::start("workers.count = 1");
    let mut client = daemon.connect();
    for i in 0..50 {
        client.request("anything", i);
        client.request("panic", "again");
    }
    for i in 0..50 {
        assert_eq!(client.reply().value().expect("a result"), i);
        assert_eq!(
            client.reply().value().expect_err("a panic").code(),
            "crashed"
        );
    }
}

#[test]
fn a_state_that_cannot_be_rebuilt_ends_the_worker() {
    let daemon =
        faulty::start_with("fail-again", "workers.count = 1").expect("the first state is made");
    let mut clients: Vec<Client> = (0..10).map(|_| daemon.connect()).collect();
    let first = whoami(&mut clients[0]);
    clients
        .iter_mut()
        .for_each(|client| assert_eq!(client.call("ping", 1).expect("a result"), 1));
    let fault = clients[0].call("panic", "for good").expect_err("it panics");
    assert_eq!(fault.code(), "crashed");
    for client in &mut clients[1..] {
        let then = whoami(client);
        assert_ne!((then.worker, then.pid), (first.worker, first.pid));
    }
    daemon.wait_for_log("exited with status 70: the model is gone");
}

#[test]
fn nan_and_infinity_become_null() {
    let daemon = faulty::start("");
    assert_eq!(
        daemon.call("nan", ()).expect("a result"),
        json!([null, null, 1.0])
    );
}

#[test]
fn a_fault_has_the_code_and_message_of_the_method() {
    let daemon = faulty::start("");
    for (code, message) in [
        ("no_such_image", "there is none"),
        ("error", ""),
        ("bad_params", "\n\u{0}\u{1b}\u{202e}µ"),
        ("internal", "x"),
    ] {
        let fault = daemon.call("fault", (code, message)).expect_err("a fault");
        assert_eq!((fault.code(), fault.message()), (code, message));
    }
    let long = "x".repeat(100_000);
    let fault = daemon.call("fault", ("long", &long)).expect_err("a fault");
    assert!(
        fault.code() == "long" && long.starts_with(fault.message().trim_end_matches('…')),
        "{fault}"
    );
}

#[test]
fn codes_of_the_daemon_and_invalid_ones_become_internal() {
    let daemon = faulty::start("");
    let rule = "a code is [a-z][a-z0-9_]{0,63}";
    let of_daemon = "only the daemon itself uses it";
    for (code, why) in [
        ("timeout", of_daemon),
        ("crashed", of_daemon),
        ("overloaded", of_daemon),
        ("unknown_method", of_daemon),
        ("", rule),
        ("Not Found", rule),
        ("no.such-image", rule),
    ] {
        let fault = daemon.call("fault", (code, "why")).expect_err("a fault");
        assert_eq!((fault.code(), fault.message()), ("internal", "why"));
        daemon.wait_for_log(&format!(
            "method \"fault\" returned a fault with the code {code:?}: {why}; its caller got \"internal\""
        ));
    }
    let long = "x".repeat(100_000);
    let fault = daemon.call("fault", (&long, "why")).expect_err("a fault");
    assert_eq!(fault.code(), "internal");
    daemon.wait_for_log(&format!("the code {:?}: {rule}", "x".repeat(64)));
}

#[test]
fn the_old_state_is_dropped_before_the_new_one_is_made() {
    let daemon = faulty::start_with("lock", "workers.count = 1").expect("it serves");
    let mut client = daemon.connect();
    let first = whoami(&mut client);
    for _ in 0..3 {
        let fault = client.call("panic", "again").expect_err("it panics");
        assert_eq!(fault.code(), "crashed");
        let then = whoami(&mut client);
        assert_eq!((then.pid, then.calls), (first.pid, 1));
    }
}

#[test]
fn a_panic_of_another_thread_is_logged_with_its_name() {
    let daemon = faulty::start("workers.count = 1");
    let mut client = daemon.connect();
    let first = whoami(&mut client);
    let panicked = client.call("panic_elsewhere", "over there");
    assert_eq!(panicked.expect("a result"), true);
    daemon.wait_for_log("error thread \"fetcher\" panicked at examples/faulty.rs:");
    daemon.wait_for_log(": over there");
    // Neither the request nor the state is affected.
    assert_eq!(whoami(&mut client).calls, first.calls + 1);
}

#[test]
fn the_private_key_of_serde_json_is_refused() {
    let daemon = faulty::start("workers.count = 1");
    let mut client = daemon.connect();
    let pid = whoami(&mut client).pid;
    let deep = "{\"$serde_json::private::RawValue\":\"[\\\"x\\\"]\"}";
    for params in [
        deep.to_owned(),
        format!("[{deep}]"),
        deep.replace("RawValue", "Number"),
    ] {
        client.send_frame(format!("{{\"in\":\"anything\",\"params\":{params}}}"));
        let fault = client.reply().value().expect_err("it is refused");
        assert!(
            fault.code() == "bad_params" && fault.message().contains("$serde_json::private::"),
            "{fault}"
        );
    }
    assert_eq!(whoami(&mut client).pid, pid);
}

#[test]
fn params_nested_too_deeply_for_a_method_are_refused() {
    let daemon = faulty::start("workers.count = 1");
    let mut client = daemon.connect();
    let pid = whoami(&mut client).pid;
    for depth in [129, 100_000] {
        client.send_frame(format!(
            "{{\"in\":\"anything\",\"params\":{}{}}}",
            "[".repeat(depth),
            "]".repeat(depth)
        ));
        let fault = client.reply().value().expect_err("it is refused");
        assert_eq!(fault.code(), "bad_params", "{fault}");
    }
    assert_eq!(whoami(&mut client).pid, pid);
}

#[test]
fn a_result_that_is_too_long_is_an_error_reply() {
    let daemon = faulty::start("limits.max-frame = \"64KiB\"");
    let mut client = daemon.connect();
    // Every character of it takes six bytes when it is written.
    let words = "\u{1}".repeat(10_000);
    client.send_frame(format!(
        "{{\"in\":\"anything\",\"params\":\"{}\"}}",
        "\\u0001".repeat(10_000)
    ));
    assert_eq!(
        client.reply().value().expect("60,000 bytes fit"),
        Value::from(words)
    );
    let zeros = "1e9,".repeat(15_000);
    client.send_frame(format!("{{\"in\":\"anything\",\"params\":[{}0]}}", zeros));
    let fault = client
        .reply()
        .value()
        .expect_err("each of them is written as 1000000000.0");
    assert!(
        fault.code() == "internal" && fault.message().contains("longer than the"),
        "{fault}"
    );
    assert_eq!(client.call("anything", 1).expect("a result"), 1);
}

#[test]
fn errors_of_the_program_are_reported_at_the_start() {
    let rule = "[a-z][a-z0-9_.-]{0,63}, but not \"error\"";
    for (error, sentence) in [
        ("two-methods", "duplicate method \"nan\"".to_owned()),
        (
            "bad-name",
            format!("\"Bad Name\" is not a valid method name: {rule}"),
        ),
        (
            "no-name",
            format!("\"\" is not a valid method name: {rule}"),
        ),
        (
            "taken-name",
            "every daemon has a method \"ping\"; yours needs another name".to_owned(),
        ),
        (
            "bad-reply-name",
            format!("\"error\" is not a valid name for replies of method \"x\": {rule}"),
        ),
    ] {
        let refused = faulty::start_with(error, "").expect_err("it is an error");
        assert_eq!(
            (refused.code(), refused.stderr()),
            (Some(70), format!("faulty: {sentence}\n").as_str())
        );
    }
    let refused = faulty::start_with("bad-daemon-name", "").expect_err("it is an error");
    assert_eq!(
        (refused.code(), refused.stderr()),
        (
            Some(70),
            "Faulty Daemon: \"Faulty Daemon\" is not a valid name for a daemon: [a-z][a-z0-9_-]{0,31}\n"
        )
    );
}

#[test]
fn its_clients_outlive_its_workers() {
    let daemon = Running::start(example("resized"), "workers.count = 2").expect("it serves");
    daemon.wait_for_workers();
    let mut clients: Vec<Client> = (0..50).map(|_| daemon.connect()).collect();
    for seat in [0, 1, 0] {
        for client in &mut clients {
            client.call("report", ()).expect("a result");
        }
        for worker in daemon.worker_pids() {
            fdpassd::testing::eventually("the worker sleeps", || {
                (kernel::state(worker) == Some('S')).then_some(())
            });
        }
        daemon.kill_worker(seat);
    }
    for client in &mut clients {
        client.call("report", ()).expect("a result");
    }
    assert_eq!(daemon.status().lost_total, 0);
}

/// A child of a method that neither executes a program nor exits, but returns from it.
#[test]
fn a_method_that_forks_is_answered_once() {
    let daemon =
        faulty::start("listen = [\"127.0.0.1:0\", \"unix:{dir}/rpc.sock\"]\nworkers.count = 1");
    let mut clients: Vec<Client> = (0..6)
        .map(|i| Client::connect(&daemon.addresses()[i % 2]))
        .collect();
    // A child that comes back finds its parent amid the replies to others, in the buffer that both have.
    for turn in 0..6 {
        assert_eq!(
            clients[turn].call("fork", ()).expect("a result"),
            Value::Null
        );
        for round in 0..20 {
            for client in &mut clients {
                assert_eq!(client.call("ping", round).expect("a result"), round);
            }
        }
    }
    daemon.wait_for_log("a forked child returned to the worker that its parent is");
    let status = daemon.status();
    assert_eq!(
        (status.clients, status.deaths_total, status.lost_total),
        (6, 0, 0)
    );
    let requests: u64 = status
        .workers
        .iter()
        .map(|worker| worker.requests_total)
        .sum();
    assert_eq!(requests, 726);
}

/// The second close(2) of a double close: it hits what has the number by then.
#[test]
fn clients_survive_a_method_that_closes_their_descriptors() {
    for how in ["", "file", "socket"] {
        for listen in ["127.0.0.1:0", "unix:{dir}/rpc.sock"] {
            let daemon = faulty::start(&format!("listen = [\"{listen}\"]\nworkers.count = 1"));
            let mut clients: Vec<Client> = (0..12).map(|_| daemon.connect()).collect();
            for client in &mut clients {
                assert_eq!(client.call("ping", 0).expect("a result"), 0);
            }
            // Of all, its caller included, and then of some others.
            for count in [12, 5] {
                let mut caller = clients.pop().expect("there are many");
                assert_eq!(
                    caller.call("close_others", (how, count)).expect("a result"),
                    Value::Null,
                    "{how} {listen}"
                );
                for round in 0..3 {
                    for client in clients.iter_mut().chain([&mut caller]) {
                        assert_eq!(
                            client.call("ping", round).expect("a result"),
                            round,
                            "{how} {listen}"
                        );
                    }
                }
            }
            let status = daemon.wait_until("the callers have left", |status| status.clients == 10);
            assert_eq!(
                (status.deaths_total, status.lost_total),
                (2, 0),
                "{how} {listen}"
            );
        }
    }
}

/// A client whose descriptor was closed gets no reply of the next client with that number.
#[test]
fn a_reused_descriptor_number_mixes_up_no_clients() {
    let daemon = faulty::start("workers.count = 1");
    let [mut first, mut caller] = [daemon.connect(), daemon.connect()];
    for client in [&mut first, &mut caller] {
        assert_eq!(client.call("ping", 0).expect("a result"), 0);
    }
    assert_eq!(
        caller.call("close_others", ("", 1)).expect("a result"),
        Value::Null
    );
    let mut next = daemon.connect();
    first.request("ping", "first");
    next.request("ping", "next");
    for (client, words) in [
        (&mut first, "first"),
        (&mut next, "next"),
        (&mut caller, "caller"),
    ] {
        if words == "caller" {
            client.request("ping", words);
        }
        assert_eq!(client.reply().value().expect("a result"), words);
    }
    let status = daemon.status();
    assert_eq!((status.deaths_total, status.lost_total), (1, 0));
}
