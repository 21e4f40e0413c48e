//! The verbs that inspect: their requests and their results, in words and in JSON.

use std::path::PathBuf;
use std::sync::Mutex;

use serde_json::json;

use super::*;
use crate::proto::control::{
    Checked, ClientStatus, ClientsPage, Cursor, Effective, Key, KeyOrigin, LogLevelInForce,
};
use crate::proto::log::LogLevel;
use crate::proto::names::ClientId;

fn client(id: u64, requests: u64) -> ClientStatus {
    ClientStatus {
        via: None,
        id: ClientId(id),
        peer: format!("127.0.0.1:{}", 50_000 + id),
        listener: Some("127.0.0.1:8080".to_owned()),
        worker: Some(WorkerId(1)),
        state: None,
        method: None,
        age_seconds: 60.0,
        idle_seconds: 1.5,
        requests,
        moves: 0,
        bytes: 0,
        wants_goaway: false,
        goaway: None,
    }
}

fn page(clients: &[ClientStatus], next: Option<(u64, u32)>) -> String {
    let next = next.map(|(worker, slot)| Cursor {
        worker: WorkerId(worker),
        slot,
    });
    reply(
        "clients",
        &ClientsPage {
            clients: clients.to_vec(),
            next,
        },
    )
}

/// Returns three pages, one of them empty; client 2 moves in between.
fn pages() -> [String; 3] {
    [
        page(&[client(3, 30), client(2, 1)], Some((1, 1000))),
        page(&[], Some((2, 0))),
        page(&[client(2, 2), client(1, 30)], None),
    ]
}

#[test]
fn clients_come_page_by_page_and_each_is_shown_once() {
    let asked: Arc<Mutex<Vec<Value>>> = Arc::default();
    let heard = Arc::clone(&asked);
    let daemon = Daemon::that_answers(move |verb, params| {
        assert_eq!(verb, "clients");
        let mut heard = heard.lock().expect("no thread panicked");
        heard.push(params.clone());
        Some(pages()[heard.len() - 1].clone())
    });
    let ran = daemon.asked(&["clients", "--worker", "1"]);
    let expected = "\
ID PEER            LISTENER       WORKER AGE IDLE REQUESTS MOVES BYTES
 1 127.0.0.1:50001 127.0.0.1:8080      1  1m   1s       30     0     0
 2 127.0.0.1:50002 127.0.0.1:8080      1  1m   1s        2     0     0
 3 127.0.0.1:50003 127.0.0.1:8080      1  1m   1s       30     0     0
";
    assert_eq!(
        (ran.exit, ran.out.as_str(), ran.err.as_str()),
        (ExitStatus::Done, expected, "")
    );
    let asked = asked.lock().expect("no thread panicked");
    let from = |worker, slot| json!({"worker": 1, "after": {"worker": worker, "slot": slot}});
    assert_eq!(*asked, [json!({"worker": 1}), from(1, 1000), from(2, 0)]);

    let ids = |arguments: &[&str]| -> Vec<String> {
        let ran = Daemon::that_replies(pages()).asked(&[&["clients"], arguments].concat());
        assert_eq!(ran.exit, ExitStatus::Done, "{}", ran.err);
        ran.out
            .lines()
            .skip(1)
            .map(|line| line.split_whitespace().next().expect("a word").to_owned())
            .collect()
    };
    assert_eq!(ids(&["--sort", "requests"]), ["1", "3", "2"]);
    assert_eq!(ids(&["--sort", "requests", "--reverse"]), ["2", "3", "1"]);
    let ran =
        Daemon::that_replies(pages()).asked(&["clients", "--sort", "requests", "--most", "1"]);
    assert!(
        ran.out.ends_with("\n1 of 3 clients\n") && ran.out.lines().count() == 3,
        "{}",
        ran.out
    );
}

#[test]
fn all_pages_are_one_in_json_with_unchanged_clients() {
    let odd = r#"{"id":9, "peer":"a","listener":null,"worker":null,"age_seconds":1e0,"idle_seconds":0,"requests":1,"moves":0,"bytes":0,"new":[1]}"#;
    let first = serde_json::to_string(&client(3, 30)).expect("JSON");
    let pages = || {
        let odd =
            format!(r#"{{"out":"clients","result":{{"clients":[{odd}],"next":null,"more":1}}}}"#);
        [page(&[client(3, 30)], Some((1, 1))), odd]
    };
    let ran = Daemon::that_replies(pages()).asked(&["clients", "--json"]);
    assert_eq!(
        (ran.exit, ran.out),
        (
            ExitStatus::Done,
            format!("{{\"clients\":[{first},{odd}],\"next\":null}}\n")
        )
    );
    let ran = Daemon::that_replies(pages()).asked(&[
        "clients",
        "--json",
        "--sort",
        "requests",
        "--reverse",
        "--most",
        "1",
    ]);
    assert_eq!(ran.out, format!("{{\"clients\":[{odd}],\"next\":null}}\n"));
    let snapshot = r#"{"id":3,"peer":"127.0.0.1:50003","listener":"127.0.0.1:8080","worker":1,"state":null,"method":null,"age_seconds":60.0,"idle_seconds":1.5,"requests":30,"moves":0,"bytes":0,"wants_goaway":false,"goaway":null}"#;
    assert_eq!(first, snapshot);
}

#[test]
fn repeated_pages_are_an_invalid_reply() {
    for cursors in [[(1, 5), (1, 5)], [(1, 5), (1, 4)], [(2, 0), (1, 9)]] {
        let ran = Daemon::that_replies(cursors.map(|next| page(&[client(1, 1)], Some(next))))
            .asked(&["clients"]);
        let said = "fdpassctl: the answer is not a valid reply: its pages repeat\n";
        assert_eq!(
            (ran.exit, ran.out.as_str(), ran.err.as_str()),
            (ExitStatus::NoReply, "", said)
        );
    }
    // Pages without end are a timeout, and none of them is shown.
    let slot = std::sync::atomic::AtomicU32::new(1);
    let endless =
        move |_: &str, _: &Value| Some(page(&[], Some((1, slot.fetch_add(1, Ordering::Relaxed)))));
    let ran = Daemon::that_answers(endless).asked(&["clients", "--timeout", "1s"]);
    assert_eq!((ran.exit, ran.out.as_str()), (ExitStatus::NoReply, ""));
    let ran = Daemon::that_replies([page(&[client(1, 1)], Some((1, 1)))]).asked(&["clients"]);
    assert_eq!(
        (ran.exit, ran.out.as_str()),
        (ExitStatus::NoReply, ""),
        "it went away between two pages"
    );
}

/// Checks the request, and the result in words and in JSON, which is unchanged.
#[track_caller]
fn looked(line: &str, request: &str, result: &impl serde::Serialize, words: &str) {
    let arguments: Vec<_> = line.split(' ').collect();
    let (verb, raw) = (
        request.split('"').nth(1).expect("a verb"),
        serde_json::to_string(result).expect("JSON"),
    );
    // The daemon may be newer, with unknown members.
    let raw = format!(
        "{} ,\"new\": 1e400}}",
        raw.strip_suffix('}').expect("an object")
    );
    for (more, said) in [(&[][..], words), (&["--json"], &format!("{raw}\n"))] {
        let (tell, told) = mpsc::channel();
        let reply = format!(r#"{{"out":"{verb}","result":{raw}}}"#);
        let ran = Daemon::start(move |mut client| {
            tell.send(asked_for(&mut client))
                .expect("it is listened to");
            send_reply(&mut client, &reply);
        })
        .asked(&[&arguments[..], more].concat());
        assert_eq!(
            (ran.exit, ran.out.as_str(), ran.err.as_str()),
            (ExitStatus::Done, said, ""),
            "{line}"
        );
        assert_eq!(
            told.recv().expect("it told before"),
            format!("{{\"in\":{request}}}")
        );
    }
}

#[test]
fn the_configuration_is_shown_and_checked() {
    let key = |key: &str, value: &str, origin| Key {
        key: key.to_owned(),
        value: Some(value.to_owned()),
        origin,
    };
    let keys = vec![
        key("listen", "[\"a\"]", KeyOrigin::File),
        key("log.level", "\"debug\"", KeyOrigin::Runtime),
    ];
    let unset = Key {
        key: "log.file".to_owned(),
        value: None,
        origin: KeyOrigin::Default,
    };
    let keys = [keys, vec![unset]].concat();
    let file = PathBuf::from("/etc/fdpassd.toml");
    let effective = Effective {
        file: Some(file.clone()),
        files: vec![file],
        keys,
    };
    let words = "/etc/fdpassd.toml\n\nlisten    = [\"a\"]      file\nlog.level = \"debug\"    runtime\nlog.file  = (not set)  default\n";
    looked("config show", r#""config""#, &effective, words);
    let checked = Checked {
        file: None,
        files: Vec::new(),
        changes: Vec::new(),
    };
    looked(
        "config check",
        r#""check""#,
        &checked,
        "embedded default: good; a reload would change nothing\n",
    );
}

#[test]
fn the_log_level_is_shown_and_set() {
    let in_force = |level| LogLevelInForce {
        level,
        configured: LogLevel::Info,
    };
    looked(
        "log-level",
        r#""log-level""#,
        &in_force(LogLevel::Info),
        "info\n",
    );
    let words = "debug (runtime; configured: info)\n";
    looked(
        "log-level",
        r#""log-level""#,
        &in_force(LogLevel::Debug),
        words,
    );
    let request = r#""log-level","params":{"level":"debug"}"#;
    looked(
        "log-level debug",
        request,
        &in_force(LogLevel::Debug),
        words,
    );
}

#[test]
fn metrics_are_escaped_on_a_terminal_only() {
    let text = "# HELP fdpassd_clients Clients.\nfdpassd_clients{state=\"leased\"} 3\n";
    looked(
        "metrics",
        r#""metrics""#,
        &Metrics {
            text: text.to_owned(),
        },
        text,
    );
    let hostile = || {
        reply(
            "metrics",
            &Metrics {
                text: "a\x1b[2J\nb\n".to_owned(),
            },
        )
    };
    assert_eq!(
        Daemon::that_replies([hostile()]).asked(&["metrics"]).out,
        "a\x1b[2J\nb\n"
    );
    let seen =
        Daemon::that_replies([hostile()]).asked_seen(&["metrics"], Seen::new(true, true, |_| None));
    assert_eq!(seen.out, "a\\x1b[2J\nb\n");
}

#[test]
fn completions_need_no_daemon() {
    for (shell, words) in [
        ("bash", "complete -F _fdpassctl"),
        ("zsh", "#compdef fdpassctl"),
        ("fish", "complete -c"),
    ] {
        let ran = ctl(
            &["completions", shell, "-s", "/nonexistent/control.sock"],
            &[],
        );
        assert!(
            ran.exit == ExitStatus::Done
                && ran.out.contains(words)
                && ran.out.contains("rebalance"),
            "{}",
            ran.out
        );
    }
    assert_eq!(
        ctl(&["completions", "powershell"], &[]).exit,
        ExitStatus::Usage
    );
}
