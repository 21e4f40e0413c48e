//! `fdpassctl --hosts`: one verb on many hosts, through a real sshd.

mod lab;
mod ssh;

use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::os::unix::process::{CommandExt, ExitStatusExt};

use fdpassd::testing::{Running, Setup, eventually};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, getsid};
use serde_json::Value;

use crate::common::port::Reserved;
use crate::common::program::{OtherUser, Program, Said, control_socket};
use crate::common::{FDPASSD, kernel, start};
use lab::Lab;

/// Checks the code, and returns the lines of standard output with single spaces.
#[track_caller]
fn lines(said: &Said, code: i32) -> Vec<String> {
    assert_eq!(said.code, Some(code), "{said:?}");
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    said.out.lines().map(words).collect()
}

#[track_caller]
fn json(said: &Said, code: i32) -> Vec<Value> {
    assert_eq!(said.code, Some(code), "{said:?}");
    let lines = said.out.lines();
    lines
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect()
}

fn two_daemons(lab: &mut Lab) -> [Running; 2] {
    let daemons = [2, 3].map(|count| start(&format!("workers.count = {count}")));
    for (name, daemon) in ["a", "b"].iter().zip(&daemons) {
        daemon.wait_for_workers();
        lab.daemon(name, daemon);
    }
    lab.hosts_file("groups.web = [\"a\", \"b\"]\n");
    daemons
}

#[test]
fn the_status_of_all_hosts_is_one_table() {
    let Some(mut lab) = Lab::start() else {
        return;
    };
    let [a, b] = two_daemons(&mut lab);
    // For ssh a colon ends a path, and a percent sign begins a token.
    let odd = lab.tmp().with_file_name("odd:100%h\\.sock");
    symlink(control_socket(&a), &odd).expect("it is ours");
    lab.socket("odd", &odd);
    let rows = lines(&lab.ctl(&["status", "--hosts", "odd"]), 0);
    assert!(rows[1].starts_with("odd serving "), "{rows:?}");

    // A host without a daemon, and one without an sshd.
    lab.socket("down", &lab.tmp().join("none.sock"));
    let closed = Reserved::new();
    lab.ssh_config(&format!("Host closed\nPort {}\n", closed.address.port()));

    let rows = lines(&lab.ctl(&["status", "--hosts", "web"]), 0);
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(rows.len(), 3, "{rows:?}");
    assert!(
        rows[0].starts_with("HOST STATE VERSION UPTIME GEN WORKERS CLIENTS "),
        "{rows:?}"
    );
    for (row, host, workers) in [(&rows[1], "a", "2/2"), (&rows[2], "b", "3/3")] {
        assert!(
            row.starts_with(&format!("{host} serving {version} ")),
            "{rows:?}"
        );
        assert!(row.contains(&format!(" {workers} 0 ")), "{rows:?}");
    }

    b.ctl("drain").expect("it drains");
    let said = lab.ctl(&["--hosts", "down,web,closed", "status"]);
    let rows = lines(&said, 4);
    assert_eq!(
        rows.iter()
            .map(|row| row.split(' ').next().unwrap_or_default())
            .collect::<Vec<_>>(),
        ["HOST", "down", "a", "b", "closed", "down:", "b:", "closed:"],
        "{rows:?}"
    );
    assert!(
        rows[1].starts_with("down down") && rows[3].starts_with("b paused "),
        "{rows:?}"
    );
    assert_eq!(rows[4], "closed unreachable");
    assert!(
        rows[5].starts_with("down: no daemon answers at ") && rows[5].contains("open failed"),
        "{rows:?}"
    );
    assert!(rows[6].starts_with("b: no new clients: "), "{rows:?}");
    assert!(
        rows[7].contains("port") && rows[7].ends_with("Connection refused"),
        "{rows:?}"
    );
    assert_eq!(said.err, "fdpassctl: 2 of 4 hosts failed\n");

    let found = json(
        &lab.ctl(&["--hosts", "a,down,closed", "status", "--json"]),
        4,
    );
    let states: Vec<_> = found
        .iter()
        .map(|host| (&host["host"], &host["state"], &host["exit"]))
        .collect();
    assert_eq!(
        serde_json::to_string(&states).expect("JSON"),
        r#"[["a","done",0],["down","down",3],["closed","unreachable",4]]"#
    );
    assert_eq!(found[0]["result"]["pid"], a.pid());
    assert!(
        found[2]["error"]
            .as_str()
            .expect("a sentence")
            .contains("Connection refused")
    );
}

#[test]
fn a_roll_stops_at_the_first_host_that_fails() {
    let Some(mut lab) = Lab::start() else {
        return;
    };
    let [a, b] = two_daemons(&mut lab);
    let c = start("workers.count = 1");
    lab.daemon("c", &c);
    lab.hosts_file("groups.all = [\"a\", \"b\", \"c\"]\n");
    let generations = || [&a, &b, &c].map(|daemon| daemon.status().generation.0);
    let before = generations();
    b.write_config("workers.count = \"many\"");

    let said = lab.ctl(&["reload", "--hosts", "all", "--one-at-a-time"]);
    let rows = lines(&said, 1);
    assert_eq!(rows[0], "HOST STATE RESULT");
    assert!(
        rows[1].starts_with("a done applied: generation "),
        "{rows:?}"
    );
    assert!(
        rows[2].starts_with("b failed rejected, and nothing was changed"),
        "{rows:?}"
    );
    assert_eq!(rows[3], "c not begun");
    assert!(
        rows[4..].iter().all(|row| row.starts_with("b: ")),
        "{rows:?}"
    );
    assert!(
        rows[4..].iter().any(|row| row.contains("^^^")),
        "the place: {rows:?}"
    );
    assert!(
        said.err
            .ends_with("fdpassctl: 1 of 3 hosts failed; 1 host is not begun\n"),
        "{said:?}"
    );
    assert!(
        said.err
            .lines()
            .any(|line| line.starts_with("a: ") && line.contains(" worker ")),
        "progress: {said:?}"
    );
    assert_eq!(generations(), [before[0] + 1, before[1], before[2]]);

    let said = lab.ctl(&["reload", "--hosts", "all", "--one-at-a-time", "--json"]);
    let found = json(&said, 1);
    let states: Vec<_> = found.iter().map(|host| &host["state"]).collect();
    assert_eq!(states, ["done", "failed", "not_begun"]);
    assert!(
        found[1]["display"]
            .as_str()
            .expect("an excerpt")
            .contains("^^^")
    );
    assert_eq!(found[2].get("exit"), None);

    // At the same time, the others are reloaded all the same.
    let rows = lines(&lab.ctl(&["reload", "--hosts", "all", "--quiet"]), 1);
    assert!(
        rows[3].starts_with("c done applied: generation "),
        "{rows:?}"
    );
    assert_eq!(generations(), [before[0] + 3, before[1], before[2] + 1]);
}

#[test]
fn the_options_of_a_verb_are_for_each_host() {
    let Some(mut lab) = Lab::start() else {
        return;
    };
    let [a, b] = two_daemons(&mut lab);
    let said = lab.ctl(&["drain", "--wait", "--hosts", "web", "--quiet"]);
    let sentence = "done new clients are refused; the last client has left";
    assert_eq!(
        lines(&said, 0)[1..],
        [format!("a {sentence}"), format!("b {sentence}")]
    );
    assert!(a.status().drained && b.status().drained);
    lines(&lab.ctl(&["undrain", "--hosts", "web"]), 0);
    assert!(!a.status().drained && !b.status().drained);

    let mut clients = [a.connect(), b.connect(), b.connect()];
    for (client, requests) in clients.iter_mut().zip(1..) {
        (0..requests).for_each(|number| drop(client.call("ping", number).expect("a pong")));
    }
    let shown = eventually("the requests of all are counted", || {
        let said = lab.ctl(&[
            "clients", "--hosts", "web", "--sort", "requests", "--most", "2",
        ]);
        let rows = lines(&said, 0);
        let requests = |row: &String| row.split(' ').rev().nth(2).map(str::to_owned);
        let counted: Vec<_> = rows.iter().skip(1).take(2).filter_map(requests).collect();
        (counted == ["3", "2"]).then_some(rows)
    });
    assert!(
        shown[0].starts_with("HOST ID PEER LISTENER WORKER "),
        "{shown:?}"
    );
    assert!(
        shown[1].starts_with("b ") && shown[2].starts_with("b "),
        "{shown:?}"
    );
    assert_eq!(shown[3], "2 of 3 clients");
    let found = json(&lab.ctl(&["clients", "--hosts", "web", "--json"]), 0);
    let counts: Vec<_> = found
        .iter()
        .map(|host| host["result"]["clients"].as_array().expect("a page").len())
        .collect();
    assert_eq!(counts, [1, 2]);

    let rows = lines(&lab.ctl(&["stop", "--hosts", "web", "--quiet"]), 0);
    assert!(
        rows[1].starts_with("a done fdpassd (pid ") && rows[1].ends_with(") stopped"),
        "{rows:?}"
    );
    for daemon in [a, b].iter_mut() {
        assert!(daemon.wait().success());
    }
}

#[test]
fn each_line_of_a_result_has_the_name_of_its_host() {
    let Some(mut lab) = Lab::start() else {
        return;
    };
    let theirs = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = theirs.local_addr().expect("it is bound");
    let config = "listen = [\"127.0.0.1:0\", \"systemd:rpc\"]\nworkers.count = 1";
    let daemon = Setup::new(FDPASSD, config).activated("rpc", theirs).start();
    let daemon = daemon.expect("the daemon serves");
    lab.daemon("a", &daemon);
    let rows = lines(&lab.ctl(&["drain", "--hosts", "a"]), 0);
    assert_eq!(
        rows[1..],
        [
            "a done new clients are refused; 0 clients are still connected".to_owned(),
            format!("a: new clients wait at {address}, because systemd has bound the socket"),
        ]
    );
}

#[test]
fn the_roles_are_those_of_the_user_of_ssh() {
    const ADMIN: u32 = 61_201;
    const READER: u32 = 61_202;
    const STRANGER: u32 = 61_203;
    let Some(others) = OtherUser::new() else {
        return;
    };
    let users = [("adm", ADMIN), ("rd", READER), ("str", STRANGER)];
    let Some(mut lab) = Lab::with_users(&users.map(|(name, id)| (name, id + 100, id))) else {
        return;
    };
    let socket = others.directory().join("control.sock");
    let daemon = start(&format!(
        "control = {{ socket = {socket:?}, admin-group = \"{ADMIN}\", read-group = \"{READER}\" }}"
    ));
    for (name, _) in users {
        lab.socket(name, &socket);
        lab.ssh_config(&format!("Host {name}\nUser {name}\n"));
    }
    let said = lab.ctl(&["status", "--hosts", "adm,rd,str"]);
    let rows = lines(&said, 77);
    assert!(
        rows[1].starts_with("adm serving ") && rows[2].starts_with("rd serving "),
        "{said:?}"
    );
    assert_eq!(rows[3], "str forbidden");
    assert!(rows[4].starts_with("str: forbidden: "), "{said:?}");
    let rows = lines(&lab.ctl(&["undrain", "--hosts", "adm,rd", "--quiet"]), 77);
    assert!(rows[1].starts_with("adm done "), "{rows:?}");
    assert!(rows[2].starts_with("rd forbidden forbidden: "), "{rows:?}");
    drop(daemon);
}

#[test]
fn a_host_that_is_silent_does_not_hold_the_others() {
    let Some(mut lab) = Lab::start() else {
        return;
    };
    let [a, b] = two_daemons(&mut lab);
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = silent.local_addr().expect("it is bound").port();
    lab.ssh_config(&format!("Host silent\nPort {port}\n"));
    // Longer than this test waits.
    let arguments = ["drain", "--hosts", "silent,web", "--timeout", "1h"];
    let mut roll = Program::start(&mut lab.command(&arguments));
    eventually("the others are drained", || {
        (a.status().drained && b.status().drained).then_some(())
    });
    assert!(roll.is_running(), "it waits for the silent one");
    kernel::send(roll.pid(), Signal::SIGINT);
    drop(roll.finish());
    let said = lab.ctl(&["status", "--hosts", "silent", "--timeout", "1s"]);
    let rows = lines(&said, 4);
    assert_eq!(rows[1], "silent unreachable");
    assert!(rows[2].starts_with("silent: "), "{said:?}");
}

#[test]
fn a_signal_ends_ssh_and_leaves_nothing() {
    let Some(mut lab) = Lab::start() else {
        return;
    };
    let [a, _b] = two_daemons(&mut lab);
    let client = a.connect();
    a.wait_until("the client is there", |status| status.clients == 1);
    for signal in [
        Signal::SIGINT,
        Signal::SIGTERM,
        Signal::SIGHUP,
        Signal::SIGKILL,
    ] {
        a.ctl("undrain").expect("it is not drained");
        let mut command = lab.command(&["drain", "--wait", "--hosts", "a", "--quiet"]);
        let mut waiting = command.process_group(0).spawn().expect("it runs");
        a.wait_until("the drain has begun", |status| status.drained);
        let ssh = kernel::children(waiting.id());
        assert_eq!((ssh.len(), lab.files_of_ctl().len()), (1, 1));
        // A terminal signals the whole group: if ssh ended, the command would fail before the signal ends it.
        let session = getsid(Some(Pid::from_raw(ssh[0] as i32)));
        assert_eq!(session, Ok(Pid::from_raw(ssh[0] as i32)));
        let group = Pid::from_raw(waiting.id() as i32);
        killpg(group, signal).expect("it runs");
        let status = waiting.wait().expect("it is our child");
        assert_eq!(status.signal(), Some(signal as i32));
        eventually("ssh has ended", || kernel::is_over(ssh[0]).then_some(()));
        if signal != Signal::SIGKILL {
            assert_eq!(lab.files_of_ctl(), [""; 0], "{signal}");
        }
    }
    drop(client);
}
