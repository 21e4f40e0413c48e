//! Output as text and as JSON.

use fdpassd::proto::control::{Checked, ClientStatus, Effective, Kicked, Settled, Status, Version};
use fdpassd::testing::{Running, eventually};
use serde_json::{Value, json};

use crate::common::program::{FDPASSCTL, control_socket, ctl, run};
use crate::common::start;

#[test]
fn status_is_a_page_for_people_and_one_json_line_for_programs() {
    let daemon = start("listen = [\"127.0.0.1:0\", \"unix:{dir}/rpc.sock\"]\nworkers.count = 2");
    daemon.wait_for_workers();
    daemon.call("ping", 1).expect("a result");
    let said = ctl(&daemon, &["status"]);
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""));
    let version = env!("CARGO_PKG_VERSION");
    for words in [
        format!("fdpassd {version}, pid {}, up ", daemon.pid()),
        format!(
            "\nconfig    {}\n",
            daemon.directory().join("config.toml").display()
        ),
        "\ndispatch  least-loaded\n".to_owned(),
        "; accepted 1, refused 0, moved 0, lost 0\n".to_owned(),
        "\nrequests  1; errors 0\n".to_owned(),
        format!("\nlistener  {}  ", daemon.addresses()[0]),
        format!("\nlistener  {}  ", daemon.addresses()[1]),
        " ready ".to_owned(),
    ] {
        assert!(
            said.out.contains(&words),
            "{words:?} is not in\n{}",
            said.out
        );
    }
    for pid in daemon.worker_pids() {
        assert!(
            said.out
                .lines()
                .any(|line| line.contains(&format!(" {pid} "))),
            "{}",
            said.out
        );
    }
    let said = ctl(&daemon, &["status", "--json"]);
    assert_eq!((said.code, said.out.matches('\n').count()), (Some(0), 1));
    let status: Status =
        serde_json::from_str(&said.out).expect("the status is what proto::control says");
    assert_eq!((status.pid, status.requests_total), (daemon.pid(), 1));
}

#[test]
fn version_shows_both_programs_or_that_no_daemon_runs() {
    let daemon = start("");
    let version = env!("CARGO_PKG_VERSION");
    let said = ctl(&daemon, &["version"]);
    let both = format!(
        "fdpassctl {version}\nfdpassd {version}, pid {}\n",
        daemon.pid()
    );
    assert_eq!((said.code, said.out), (Some(0), both));
    let said = ctl(&daemon, &["version", "--json"]);
    let Value::Object(both) = serde_json::from_str(&said.out).expect("JSON") else {
        panic!("{}", said.out)
    };
    assert_eq!(both["fdpassctl"], version);
    let daemons: Version = serde_json::from_value(both["daemon"].clone()).expect("a version");
    assert_eq!(daemons.pid, daemon.pid());

    let socket = control_socket(&daemon).display().to_string();
    drop(daemon);
    let said = run(FDPASSCTL, &["version", "-s", &socket]);
    assert_eq!(
        (said.code, said.out),
        (
            Some(0),
            format!("fdpassctl {version}\nfdpassd: not running\n")
        )
    );
    let said = run(FDPASSCTL, &["version", "-s", &socket, "--json"]);
    assert_eq!(
        said.out,
        format!("{{\"fdpassctl\":\"{version}\",\"daemon\":null}}\n")
    );
}

#[test]
fn a_call_prints_the_result_as_it_came() {
    let daemon = start(
        r#"listen = [{ address = "unix:{dir}/rpc.sock", byte-order = "big" }, "127.0.0.1:0", "0.0.0.0:0"]"#,
    );
    for params in [
        "{\"hello\":1}",
        "[ 1e400, {\"a\":1,\"a\":2} ]",
        "-7",
        "null",
        "\"\\u001b\"",
    ] {
        for json in [&[][..], &["--json"]] {
            // To the first listener, in its byte order: the daemon is asked for both.
            let said = ctl(&daemon, &[&["call", "ping", params], json].concat());
            assert_eq!(
                (said.code, said.out, said.err.as_str()),
                (Some(0), format!("{params}\n"), "")
            );
        }
    }
    let to = daemon.addresses()[1].to_string();
    let said = run(FDPASSCTL, &["call", "ping", "7", "--to", &to]);
    assert_eq!((said.code, said.out.as_str()), (Some(0), "7\n"));
    let said = ctl(&daemon, &["call", "pi", "1000000"]);
    assert!(said.out.starts_with("3.14159"), "{said:?}");
}

#[test]
fn a_stop_in_json_has_its_result() {
    let mut daemon = start("");
    let said = ctl(&daemon, &["stop", "--json"]);
    assert_eq!(said.code, Some(0), "{}", said.err);
    let stopped: Value = serde_json::from_str(&said.out).expect("JSON");
    assert_eq!(stopped, json!({"pid": daemon.pid(), "killed": 0}));
    assert_eq!(daemon.wait().code(), Some(0));
}

/// Runs a verb twice, and returns its text and its JSON, which is one line.
#[track_caller]
fn both(daemon: &Running, arguments: &[&str]) -> (String, Value) {
    let words = ctl(daemon, &[arguments, &["--quiet"]].concat());
    assert_eq!(
        (words.code, words.err.as_str()),
        (Some(0), ""),
        "{arguments:?}"
    );
    let said = ctl(daemon, &[arguments, &["--json"]].concat());
    assert_eq!(
        (said.code, said.err.as_str(), said.out.matches('\n').count()),
        (Some(0), "", 1),
        "{arguments:?}"
    );
    (words.out, serde_json::from_str(&said.out).expect("JSON"))
}

#[test]
fn clients_are_shown_sorted_and_kicked() {
    let daemon = start("workers.count = 2");
    daemon.wait_for_workers();
    let mut clients: Vec<_> = (0..3).map(|_| daemon.connect()).collect();
    for (requests, client) in clients.iter_mut().enumerate() {
        (0..=requests).for_each(|i| drop(client.call("ping", i).expect("a pong")));
    }
    // A client that is kicked before its worker has ended its turn is still there for a while.
    eventually("the turns of all have ended", || {
        let page = daemon.ctl("clients").expect("a page");
        let mut shown = page["clients"].as_array().expect("clients").iter();
        shown.all(|client| client["state"] == "idle").then_some(())
    });
    let (words, json) = both(&daemon, &["clients", "--sort", "requests", "--most", "2"]);
    let lines: Vec<Vec<&str>> = words
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    let header = [
        "ID", "PEER", "LISTENER", "WORKER", "AGE", "IDLE", "REQUESTS", "MOVES", "BYTES",
    ];
    assert_eq!(
        (lines.len(), lines[0].as_slice()),
        (4, &header[..]),
        "{words}"
    );
    let address = daemon.address().to_string();
    assert_eq!(
        (lines[1][0], lines[1][2], lines[1][6]),
        ("3", address.as_str(), "3"),
        "{words}"
    );
    assert_eq!(
        (lines[2][0], lines[2][6], lines[3].as_slice()),
        ("2", "2", &["2", "of", "3", "clients"][..]),
        "{words}"
    );
    assert_eq!(json["clients"].as_array().map(Vec::len), Some(2));
    assert_eq!(
        (
            &json["clients"][0]["id"],
            &json["clients"][1]["id"],
            &json["next"]
        ),
        (&json!(3), &json!(2), &json!(null))
    );
    // Each is a client as the daemon has it.
    let shown: ClientStatus = serde_json::from_value(json["clients"][0].clone()).expect("a client");
    assert_eq!((shown.peer.as_str(), shown.requests), (lines[1][1], 3));
    let worker = shown.worker.expect("it is leased").to_string();
    let (words, json) = both(&daemon, &["clients", "--worker", &worker]);
    let of_worker = words
        .lines()
        .skip(1)
        .all(|line| line.split_whitespace().nth(3) == Some(&worker));
    assert!(
        of_worker
            && json["clients"]
                .as_array()
                .is_some_and(|clients| (1..3).contains(&clients.len())),
        "{words}"
    );

    let said = ctl(&daemon, &["kick", "3"]);
    assert_eq!(
        (said.code, said.out),
        (Some(0), format!("client 3 ({}) is closed\n", shown.peer)),
        "{}",
        said.err
    );
    clients.pop().expect("the third").expect_end();
    let said = ctl(&daemon, &["kick", "2", "--json"]);
    let kicked: Kicked = serde_json::from_str(&said.out).expect("JSON");
    assert_eq!((said.code, kicked.client.0), (Some(0), 2));
    for arguments in [["kick", "3"], ["clients", "--worker=4711"]] {
        let said = ctl(&daemon, &arguments);
        assert!(
            said.code == Some(1) && said.err.starts_with("fdpassctl: refused: there is no "),
            "{}",
            said.err
        );
    }
}

#[test]
fn config_shows_origins_and_what_a_reload_would_change() {
    let daemon = start("workers.count = 2");
    daemon.wait_for_workers();
    ctl(&daemon, &["scale", "3"]);
    let (words, json) = both(&daemon, &["config", "show"]);
    let file = daemon.directory().join("config.toml").display().to_string();
    assert!(words.starts_with(&format!("{file}\n\nlisten ")), "{words}");
    let row = |key: &str| -> Vec<&str> {
        let line = words
            .lines()
            .find(|line| line.starts_with(&format!("{key} ")));
        line.unwrap_or_else(|| panic!("{key} is not in\n{words}"))
            .split_whitespace()
            .collect()
    };
    assert_eq!(row("workers.count"), ["workers.count", "=", "3", "runtime"]);
    assert_eq!(row("control.socket")[3], "file");
    assert_eq!(
        row("limits.max-frame"),
        ["limits.max-frame", "=", "\"1MiB\"", "default"]
    );
    let effective: Effective = serde_json::from_value(json).expect("the configuration");
    assert_eq!(words.lines().count(), 2 + effective.keys.len());

    daemon.write_config("workers.count = 2\nlimits.max-frame = \"2MiB\"");
    let (words, json) = both(&daemon, &["config", "check"]);
    assert!(
        words.starts_with(&format!("{file}: good; a reload would change ")),
        "{words}"
    );
    assert!(
        words.contains("\nlimits.max-frame: \"1MiB\" -> \"2MiB\"\n"),
        "{words}"
    );
    let checked: Checked = serde_json::from_value(json).expect("what would change");
    assert_eq!(words.lines().count(), 1 + checked.changes.len());
    daemon.write_config("workers.cuont = 2");
    for json in [&[][..], &["--json"]] {
        let said = ctl(&daemon, &[&["config", "check"], json].concat());
        assert_eq!(said.code, Some(1));
        match json {
            [] => assert_eq!(said.out, ""),
            _ => {
                let error: Value = serde_json::from_str(&said.out).expect("JSON");
                let error = &error["error"];
                assert_eq!(error["code"], "rejected");
                let message = error["message"].as_str().expect("a message");
                assert!(message.starts_with("unknown key `cuont`"), "{message}");
                let text = std::fs::read_to_string(&file).expect("the file");
                let mut lines = text.lines().enumerate();
                let (line, column) = lines
                    .find_map(|(number, line)| Some((number + 1, line.find("cuont")? + 1)))
                    .expect("the key is in the file");
                let place = &error["place"];
                assert_eq!(
                    (&place["file"], &place["line"], &place["column"]),
                    (&json!(file), &json!(line), &json!(column))
                );
            }
        }
        let shown = said
            .err
            .starts_with("fdpassctl: the configuration has a mistake:\n")
            && said.err.contains('^');
        assert!(
            shown && said.err.contains("unknown key `cuont`"),
            "{}",
            said.err
        );
    }
}

#[test]
fn the_level_of_the_log_is_changed_while_the_daemon_runs() {
    let daemon = start("log.level = \"warn\"");
    let configured = "warn\n".to_owned();
    assert_eq!(
        both(&daemon, &["log-level"]),
        (configured, json!({"level": "warn", "configured": "warn"}))
    );
    let debug = json!({"level": "debug", "configured": "warn"});
    let words = "debug (runtime; configured: warn)\n".to_owned();
    assert_eq!(
        both(&daemon, &["log-level", "debug"]),
        (words.clone(), debug.clone())
    );
    assert_eq!(both(&daemon, &["log-level"]), (words, debug));
    assert_eq!(ctl(&daemon, &["log-level", "loud"]).code, Some(64));
}

#[test]
fn metrics_print_the_daemons_own_text() {
    let daemon = start("workers.count = 1");
    let (words, json) = both(&daemon, &["metrics"]);
    assert!(
        words.starts_with("# HELP fdpassd_build_info ") && words.contains("\nfdpassd_clients_max "),
        "{words}"
    );
    assert!(
        json["text"]
            .as_str()
            .is_some_and(|text| text.starts_with("# HELP fdpassd_build_info ")),
        "{json}"
    );
}

#[test]
fn every_change_is_reported_as_text_and_as_json() {
    let daemon = start("workers.count = 2");
    daemon.wait_for_workers();
    let first = || {
        daemon.status().workers[0]
            .id
            .expect("it is ready")
            .to_string()
    };
    let (words, json) = both(&daemon, &["reload"]);
    assert!(
        words.starts_with("applied: generation 2, 2 workers ready, in "),
        "{words}"
    );
    assert_eq!(
        (&json["generation"], &json["workers"]),
        (&json!(3), &json!(2))
    );
    let settled = json!({"workers": 2, "clients": 0});
    let all = "all workers are replaced; 2 workers are ready\n".to_owned();
    assert_eq!(both(&daemon, &["recycle", "all"]), (all, settled.clone()));
    assert_eq!(
        both(&daemon, &["scale", "2"]),
        ("2 workers are ready\n".to_owned(), settled.clone())
    );
    let drained = json!({"workers": 2, "clients": 0, "mode": "refuse", "notice": null, "move": null, "waiting_at": []});
    let there = "new clients are refused; 0 clients are still connected\n".to_owned();
    assert_eq!(both(&daemon, &["drain"]), (there, drained.clone()));
    let left = "new clients are refused; the last client has left\n".to_owned();
    assert_eq!(both(&daemon, &["drain", "--wait"]), (left, drained));
    assert_eq!(
        both(&daemon, &["undrain"]),
        ("clients are accepted again\n".to_owned(), settled.clone())
    );
    let even = (
        "already balanced; nothing to move\n".to_owned(),
        json!({"moves": [], "busy": 0}),
    );
    assert_eq!(both(&daemon, &["rebalance", "--dry-run"]), even);
    // A worker can be held once.
    let held = first();
    let said = ctl(&daemon, &["hold", &held]);
    assert_eq!(
        (said.code, said.out),
        (
            Some(0),
            format!("worker {held} is held; its clients have moved to other workers\n")
        )
    );
    let said = ctl(&daemon, &["release", &held, "--json"]);
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""));
    let released: Settled = serde_json::from_str(&said.out).expect("JSON");
    assert_eq!(released.clients, 0);
    let held = first();
    assert_eq!(ctl(&daemon, &["hold", &held, "--json"]).code, Some(0));
    assert_eq!(
        ctl(&daemon, &["release", &held]).out,
        format!("worker {held} is released\n")
    );
}
