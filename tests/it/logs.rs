//! Log files: given away, opened again, and full.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use fdpassd::testing::{Running, Setup, eventually};
use serde_json::Value;

use crate::common::needs::skip;
use crate::common::program::{FDPASSCTL, ctl, run};
use crate::common::terminal::{End, OnTerminal};
use crate::common::{FDPASSD, faulty, start};

#[test]
fn master_and_workers_reopen_a_renamed_log_file() {
    let daemon = faulty::start(
        "log = { target = \"file\", file = \"{dir}/log\" }\nworkers = { count = 2, dispatch = \"round-robin\" }",
    );
    daemon.wait_for_workers();
    let (log, old) = (
        daemon.directory().join("log"),
        daemon.directory().join("log.1"),
    );
    // One to each worker: the line about the panic is the worker's own.
    let panic = |words: &str| {
        (0..2).for_each(|_| drop(daemon.call("panic", words).expect_err("it panics")))
    };
    panic("before");
    fs::rename(&log, &old).expect("it is our directory");
    panic("between");
    assert!(!log.exists(), "what was open stays open");
    daemon.signal("USR1");
    eventually("the master has opened the log again", || {
        fs::read_to_string(&log)
            .ok()
            .filter(|text| text.contains("SIGUSR1: log file reopened"))
    });
    // Leases come after the message to open it, by the same channel.
    panic("after");
    let (log, old) = (
        fs::read_to_string(&log).expect("text"),
        fs::read_to_string(&old).expect("text"),
    );
    assert_eq!(
        (
            old.matches(": before; the state is created again").count(),
            old.matches(": between; the state is created again").count()
        ),
        (2, 2),
        "{old}"
    );
    assert_eq!(
        (
            log.matches(": after; the state is created again").count(),
            log.matches("panicked").count()
        ),
        (2, 2),
        "{log}"
    );
    assert!(old.contains(" serves on ") && !old.contains(": after; the state is created again"));
    assert_eq!(daemon.stderr(), "");
}

#[test]
fn reopen_log_opens_a_renamed_file_or_gives_the_reason() {
    let daemon = start("log = { target = \"file\", file = \"{dir}/log\" }\nworkers.count = 1");
    let path = |name: &str| daemon.directory().join(name);
    fs::rename(path("log"), path("log.1")).expect("it is our directory");
    let done = ctl(&daemon, &["reopen-log"]);
    assert_eq!(
        (done.code, done.out.as_str()),
        (Some(0), "log file reopened\n"),
        "{}",
        done.err
    );
    let text = fs::read_to_string(path("log")).expect("it is there when the reply comes");
    assert!(
        text.contains("reopen-log by uid ") && text.contains(": log file reopened"),
        "{text}"
    );
    fs::rename(path("log"), path("log.2")).expect("it is our directory");
    fs::create_dir(path("log")).expect("it is our directory");
    let refused = ctl(&daemon, &["reopen-log"]);
    assert_eq!(refused.code, Some(1));
    assert!(
        refused.err.contains("cannot open log file "),
        "{}",
        refused.err
    );
    let text = fs::read_to_string(path("log.2")).expect("it is still written");
    assert!(text.contains("refused: cannot open log file "), "{text}");
}

#[test]
fn reopen_log_without_a_log_file_reports_that() {
    let daemon = start("workers.count = 1");
    let done = ctl(&daemon, &["reopen-log"]);
    assert_eq!(
        (done.code, done.out.as_str()),
        (
            Some(0),
            "the log is not a file: there is nothing to reopen\n"
        ),
        "{}",
        done.err
    );
    daemon.signal("USR1");
    daemon.wait_for_log("SIGUSR1: the log is not a file, so there is nothing to reopen");
    assert!(!ctl(&daemon, &["events"]).out.contains("log file reopened"));
}

#[test]
fn lines_lost_by_a_blocked_log_are_counted() {
    let daemon = start(
        "log = { target = \"file\", file = \"/dev/full\", level = \"debug\" }\nworkers.count = 2",
    );
    daemon.wait_for_workers();
    let before = daemon.status().log_errors_total;
    assert!(before > 0, "the line about the start could not be written");
    for i in 0..100 {
        assert_eq!(daemon.call("ping", i).expect("a result"), i);
    }
    let status = daemon.wait_until("lines about clients are counted", |s| {
        s.log_errors_total >= before + 100
    });
    assert_eq!(status.requests_total, 100);
    daemon.kill_worker(0);
    assert_eq!(daemon.call("ping", 1).expect("a result"), 1);
}

/// A full disk loses lines only, and the next log has all lines again.
#[test]
fn a_full_disk_delays_no_request_and_a_reload_leaves_it() {
    let full =
        "log = { target = \"file\", file = \"/dev/full\", level = \"debug\" }\nworkers.count = 1";
    let daemon = faulty::start(full);
    let mut client = daemon.connect();
    let lost = |daemon: &Running| daemon.status().log_errors_total;
    let before = lost(&daemon);
    assert!(before > 0, "the lines about the start could not be written");
    let mut longest = |lines: u32| {
        let times = (0..100).map(|_| {
            let began = Instant::now();
            client
                .call("log", (lines, "nobody will read this"))
                .expect("a result");
            began.elapsed()
        });
        times.max().expect("there was one")
    };
    let usual = longest(0);
    let limit = Duration::from_secs(2) + 20 * usual;
    // A pause of the machine makes a request of one round long, the disk would make one of each.
    let mut rounds = vec![longest(100)];
    while rounds.len() < 5 && rounds.iter().all(|longest| *longest >= limit) {
        rounds.push(longest(100));
    }
    assert!(
        rounds.iter().any(|longest| *longest < limit),
        "a request took {rounds:?}"
    );
    daemon.wait_until("each line is counted", |status| {
        status.log_errors_total >= before + 10_000
    });

    daemon
        .reload_with(&full.replace("/dev/full", "{dir}/log"))
        .expect("it is applied");
    daemon.wait_until("nobody has the full disk any more", |status| {
        status.leaving.is_empty()
    });
    let (lost_before, words) = (lost(&daemon), "somebody will read this");
    client.call("log", (1, words)).expect("it is logged");
    let text = fs::read_to_string(daemon.directory().join("log")).expect("text");
    assert!(
        text.contains("could not be written: No space left on device"),
        "the master's own: {text}"
    );
    assert!(
        text.contains(" is in force after ") && text.contains(words),
        "{text}"
    );
    assert_eq!(lost(&daemon), lost_before);
}

#[test]
fn each_process_counts_repeated_messages() {
    // A stuck worker would be a warning of the master's.
    let mut daemon = faulty::start("workers.count = 1\nlimits.stall-timeout = \"1h\"");
    let mut client = daemon.connect();
    client
        .call("log", (1000, "the same"))
        .expect("it is logged");
    client
        .call("log", (1, "another one"))
        .expect("it is logged");
    client
        .call("log", (3, "the last one"))
        .expect("it is logged");
    drop(client);
    daemon.signal("TERM");
    daemon.wait();
    daemon.wait_for_log(" stopped\n");
    let log = daemon.stderr();
    let of_the_worker = |line: &&str| line.contains(" warn ") || line.contains(" times more");
    let told: Vec<&str> = log
        .lines()
        .filter(of_the_worker)
        .filter_map(|line| Some(line.split_once(' ')?.1))
        .collect();
    let expected = [
        "warn the same event=asked client=1 worker=1 method=log",
        "warn last message repeated 999 times",
        "warn another one event=asked client=1 worker=1 method=log",
        "warn the last one event=asked client=1 worker=1 method=log",
        "warn last message repeated 2 times",
    ];
    assert_eq!(told, expected);
}

#[test]
fn lines_of_a_daemons_author_have_their_scope() {
    let daemon = faulty::start("workers.count = 1");
    let mut client = daemon.connect();
    let server = faulty::whoami(&mut client);
    let (worker, number) = (server.worker, server.client);
    client.call("keep", false).expect("a result");
    let panicked = client.call("panic_elsewhere", "x");
    assert_eq!(panicked.expect("a result"), true);
    drop(client);
    // Of a function that no request calls: there is a client, and no method.
    let line =
        format!("info worker {worker} forgets client {number} worker={worker} client={number}\n");
    daemon.wait_for_log(&line);
    let mut client = daemon.connect();
    let number = faulty::whoami(&mut client).client;
    client.request("until_half_closed", ());
    client.finish();
    assert_eq!(client.reply().value().expect("a result"), true);
    daemon.wait_for_log(&format!(
        "client {number} sends nothing more worker={worker} client={number} method=until_half_closed\n"
    ));
}

#[test]
fn a_log_that_cannot_be_opened_is_reported_at_the_start() {
    let error = Running::start(
        crate::common::FDPASSD,
        "log = { target = \"file\", file = \"{dir}/missing/log\" }",
    )
    .expect_err("there is no such directory");
    assert_eq!(error.code(), Some(78), "{error}");
    assert!(
        error.stderr().contains("missing/log") && error.stderr().contains("No such file"),
        "{error}"
    );
}

#[test]
fn bytes_of_clients_are_escaped_in_the_log() {
    let daemon = faulty::start("log.level = \"debug\"");
    let words = "\u{1b}[31mred\nsecond line\u{202e}";
    daemon.call("panic", words).expect_err("it panics");
    daemon.wait_for_log(": \\x1b[31mred\\nsecond line\\u{202e}; the state is created again");
    assert!(!daemon.stderr().contains('\u{1b}'));
}

#[test]
fn json_lines_are_objects_of_the_same_events_with_their_fields() {
    let daemon = faulty::start("log.format = \"json\"\nworkers.count = 1");
    let words = "\u{1b}[31m \"red\"\nsecond line\u{202e}";
    let mut client = daemon.connect();
    let server = faulty::whoami(&mut client);
    client.call("log", (1, words)).expect("it is logged");
    let line = json_of(&daemon, "\"event\":\"asked\"");
    assert_eq!(
        (&line["level"], &line["name"], &line["pid"]),
        (&"warn".into(), &"faulty".into(), &server.pid.into())
    );
    assert_eq!(
        (&line["event"], &line["client"], &line["message"]),
        (&"asked".into(), &server.client.into(), &words.into())
    );
    assert_eq!(
        (&line["worker"], &line["method"]),
        (&server.worker.into(), &"log".into())
    );
    let time = line["time"].as_str().expect("text");
    assert!(
        time.len() == "2026-11-22T00:10:00.123Z".len() && time.ends_with('Z'),
        "{time}"
    );
    client.call("panic", "on purpose").expect_err("it panics");
    assert_eq!(json_of(&daemon, "panicked")["level"], "error");

    let log = daemon.stderr();
    assert!(
        !log.contains(['\u{1b}', '\u{202e}']),
        "nothing acts on a terminal"
    );
    let ours = |line: &&str| {
        serde_json::from_str::<Value>(line).is_ok_and(|line| line["pid"] == daemon.pid())
    };
    assert!(
        log.lines()
            .filter(ours)
            .any(|line| line.contains(" serves on ")),
        "{log}"
    );
    assert_eq!(
        log.lines()
            .find(|line| serde_json::from_str::<Value>(line).is_err()),
        None
    );
}

/// The first line on standard error that is JSON and has these words in it.
fn json_of(daemon: &Running, words: &str) -> Value {
    eventually("it is logged", || {
        daemon
            .stderr()
            .lines()
            .filter(|line| line.contains(words))
            .find_map(|line| serde_json::from_str(line).ok())
    })
}

#[test]
fn a_reload_turns_a_log_file_into_json() {
    let daemon =
        faulty::start("log = { target = \"file\", file = \"{dir}/log\" }\nworkers.count = 1");
    let json =
        "log = { target = \"file\", file = \"{dir}/log\", format = \"json\" }\nworkers.count = 1";
    daemon.reload_with(json).expect("it is applied");
    daemon.call("log", (1, "after")).expect("it is logged");
    let log = fs::read_to_string(daemon.directory().join("log")).expect("text");
    let is_json =
        |line: &&str| serde_json::from_str::<Value>(line).is_ok_and(|line| line.is_object());
    let (json, text): (Vec<&str>, Vec<&str>) = log.lines().partition(is_json);
    assert!(
        text.iter().any(|line| line.contains(" serves on ")),
        "{log}"
    );
    assert!(
        json.iter().any(|line| line.contains("is in force")),
        "{log}"
    );
    assert!(
        json.iter()
            .any(|line| line.contains("\"message\":\"after\"")),
        "{log}"
    );
}

#[test]
fn json_for_syslog_is_refused_with_a_caret() {
    let error = Running::start(
        crate::common::FDPASSD,
        "log = { target = \"syslog\", format = \"json\" }",
    )
    .expect_err("refused");
    assert_eq!(error.code(), Some(78), "{error}");
    assert!(
        error.stderr().contains("syslog have a form of their own") && error.stderr().contains('^'),
        "{error}"
    );
}

/// As under systemd, but without journald. The lines have the form for the journal, which programs read.
#[test]
fn without_a_journal_its_lines_go_to_standard_error() {
    if Path::new("/run/systemd/journal/socket").exists() {
        return skip(
            "no-journal",
            "there is a journal, and the lines would be in it",
        );
    }
    let set = "JOURNAL_STREAM=$(stat -L -c %d:%i /dev/fd/2) exec \"$0\" \"$@\"";
    let shell = Setup::new("sh", "log.format = \"json\"\nworkers.count = 1")
        .argument("-c")
        .argument(set);
    let daemon = shell
        .argument(faulty::example("faulty"))
        .start()
        .expect("the daemon serves");
    daemon.call("log", (1, "asked for")).expect("it is logged");
    let asked = "<4>asked for event=asked client=1 worker=1 method=log";
    daemon.wait_for_log(&format!("{asked}\n"));
    assert!(
        daemon
            .stderr()
            .lines()
            .all(|line| line.starts_with("<6>") || line == asked),
        "{}",
        daemon.stderr()
    );
    assert_eq!(daemon.status().log_errors_total, 0);
}

#[test]
fn a_start_is_written_once_on_a_terminal() {
    let directory = tempfile::tempdir().expect("a directory");
    let control = directory.path().join("control").display().to_string();
    let config = directory.path().join("c.toml");
    let text =
        format!("listen = [\"127.0.0.1:0\"]\ncontrol.socket = \"{control}\"\nworkers.count = 1");
    fs::write(&config, text).expect("it is our directory");
    let mut command = Command::new(FDPASSD);
    let mut screen = OnTerminal::start(command.arg("-c").arg(config), 200, 24);
    screen.wait_for(" listens on 127.0.0.1:");
    let events = run(FDPASSCTL, &["-s", &control, "events"]);
    screen.press("\u{3}");
    assert_eq!(screen.wait_for_end(), End::Code(0));
    let text = screen.wait_for(" stopped");
    assert!(!text.contains(" serves on "), "{text}");
    assert!(events.out.contains(" serves on "), "{events:?}");
}
