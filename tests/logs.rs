//! Log files: given away, opened again, and full.

mod common;

use std::fs;

use common::faulty;
use common::start;
use fdpassd::testing::eventually;

#[test]
fn a_renamed_log_file_is_opened_again_by_the_master_and_by_every_worker() {
    let daemon = faulty::start(
        "log = { target = \"file\", file = \"{dir}/log\" }\nworkers = { count = 2, dispatch = \"round-robin\" }",
    );
    daemon.wait_for_workers();
    let (log, old) = (daemon.directory().join("log"), daemon.directory().join("log.1"));
    // One to each worker: the line about the panic is the worker's own.
    let panic = |words: &str| (0..2).for_each(|_| drop(daemon.call("panic", words).expect_err("it panics")));
    panic("before");
    fs::rename(&log, &old).expect("it is our directory");
    panic("between");
    assert!(!log.exists(), "what was open stays open");
    daemon.signal("USR1");
    eventually("the master has opened the log again", || {
        fs::read_to_string(&log).ok().filter(|text| text.contains("SIGUSR1: log file opened again"))
    });
    // Leases come behind the word to open it by the same channel.
    panic("after");
    let (log, old) = (fs::read_to_string(&log).expect("text"), fs::read_to_string(&old).expect("text"));
    assert_eq!(
        (
            old.matches(": before; its state is made anew").count(),
            old.matches(": between; its state is made anew").count()
        ),
        (2, 2),
        "{old}"
    );
    assert_eq!(
        (log.matches(": after; its state is made anew").count(), log.matches("panicked").count()),
        (2, 2),
        "{log}"
    );
    assert!(old.contains(" serves on ") && !old.contains(": after; its state is made anew"));
    assert_eq!(daemon.stderr(), "");
}

#[test]
fn a_log_that_takes_nothing_is_counted_and_hinders_nobody() {
    let daemon = start("log = { target = \"file\", file = \"/dev/full\", level = \"debug\" }\nworkers.count = 2");
    daemon.wait_for_workers();
    let before = daemon.status().log_errors_total;
    assert!(before > 0, "the line about the start could not be written");
    for i in 0..100 {
        assert_eq!(daemon.call("ping", i).expect("a result"), i);
    }
    let status = daemon.wait_until("lines about clients are counted", |s| s.log_errors_total >= before + 100);
    assert_eq!(status.requests_total, 100);
    daemon.kill_worker(0);
    assert_eq!(daemon.call("ping", 1).expect("a result"), 1);
}

#[test]
fn a_log_that_cannot_be_opened_is_told_at_the_start() {
    let error =
        fdpassd::testing::Running::start(common::FDPASSD, "log = { target = \"file\", file = \"{dir}/missing/log\" }")
            .expect_err("there is no such directory");
    assert_eq!(error.code(), Some(78), "{error}");
    assert!(error.stderr().contains("missing/log") && error.stderr().contains("No such file"), "{error}");
}

#[test]
fn what_a_client_sends_is_escaped_in_the_log() {
    let daemon = faulty::start("log.level = \"debug\"");
    let words = "\u{1b}[31mred\nsecond line\u{202e}";
    daemon.call("panic", words).expect_err("it panics");
    daemon.wait_for_log(": \\x1b[31mred\\nsecond line\\u{202e}; its state is made anew");
    assert!(!daemon.stderr().contains('\u{1b}'));
}
