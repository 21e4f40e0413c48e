//! `fdpassctl app check` finds each mistake of an app, and reports it in one sentence.

use std::thread;

use fdpassd::testing::eventually;
use serde_json::Value;

use crate::common::needs::skip;
use crate::common::program::{FDPASSCTL, Said, run};

/// An app in Python; its argument is its mistake.
const APP: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/app_check/app.py");

/// Runs checks of an app with a mistake; of all if none is named. `None` without Python.
fn check(names: &[&str], timeout: &str, mistake: &str) -> Option<Said> {
    if run("python3", &["--version"]).code != Some(0) {
        skip("python3", "there is no python3");
        return None;
    }
    let mut arguments = vec!["app", "check", "--timeout", timeout];
    for name in names {
        arguments.extend(["--only", name]);
    }
    arguments.extend(["--", "python3", APP, mistake]);
    Some(run(FDPASSCTL, &arguments))
}

/// Each of these mistakes fails its check, with a sentence that contains these words.
fn assert_failures(timeout: &str, mistakes: &[(&str, &str, &str)]) {
    thread::scope(|scope| {
        for &(name, mistake, words) in mistakes {
            scope.spawn(move || assert_failure(timeout, name, mistake, words));
        }
    });
}

/// A mistake fails its check. A busy machine may not start the app within a short timeout; then a longer one follows,
/// which may pass twice within the time that a program of a test has for each output.
fn assert_failure(timeout: &str, name: &str, mistake: &str, words: &str) {
    for longer in [timeout, LONGER[0], LONGER[1]] {
        let Some(said) = check(&[name], longer, mistake) else {
            return;
        };
        let line = said.out.lines().next().unwrap_or_default();
        let has_words = line.contains(&words.replace(SHORT, longer));
        let is_late = line.contains("its hello did not come within")
            // Its end came more than five seconds after that of its socket.
            || (words.contains("exited") && line.contains("closed descriptor 3"));
        if !has_words && is_late {
            continue;
        }
        assert!(
            said.code == Some(1) && line.starts_with("failed ") && has_words,
            "{mistake}: {said:?}"
        );
        assert!(said.err.contains("the app fails 1 check"), "{said:?}");
        return;
    }
    panic!("{mistake}: the app does not start within any of {LONGER:?}");
}

/// For mistakes of apps that a busy machine does not start within `SHORT`.
const LONGER: [&str; 2] = ["12s", "50s"];

/// Enough for a start on a busy machine.
const LONG: &str = "60s";

/// For mistakes that are seen only because something does not come.
const SHORT: &str = "5s";

/// An app passes all checks, except `skipped`. If a busy machine delays its end by 2 s, that is noted, and checked
/// again.
#[track_caller]
fn assert_passes(mistake: &str, passed: usize, skipped: usize) {
    let Some(said) = check(&[], LONG, mistake) else {
        return;
    };
    assert_eq!((said.code, &*said.err), (Some(0), ""), "{}", said.out);
    let is_late = |line: &&str| line.starts_with("noted ") && line.contains(" ms to end; ");
    let late: Vec<&str> = said.out.lines().filter(is_late).collect();
    let expected = format!(
        "{} passed, 0 failed, {skipped} skipped, {} noted",
        passed - late.len(),
        late.len()
    );
    let last = said.out.lines().last();
    assert_eq!(last, Some(&*expected), "{}", said.out);
    for line in late {
        let name = line.split_whitespace().nth(1).expect("a check");
        eventually("the app ends at once", || {
            let said = check(&[name], LONG, mistake)?;
            said.out.starts_with("passed ").then_some(())
        });
    }
}

#[test]
fn an_app_without_mistakes_passes_every_check() {
    assert_passes("", 24, 2);
    assert_passes("threads", 26, 0);
}

#[test]
fn a_check_without_its_method_is_skipped_visibly() {
    let Some(said) = check(&[], LONG, "few-methods") else {
        return;
    };
    assert_eq!(said.code, Some(0), "{said:?}");
    for line in [
        "skipped  hard-params       the app has no method check_echo",
        "skipped  params            the app has no method check_echo",
        "skipped  cancel            the app has no method check_sleep",
        "skipped  closed            the hello has no \"closes\"",
        "passed   signals           SIGTERM, SIGINT and SIGHUP do not end it",
    ] {
        assert!(said.out.lines().any(|l| l == line), "{line}\n{}", said.out);
    }
}

#[test]
fn a_wrong_hello_is_named() {
    assert_failures(
        LONG,
        &[
            (
                "hello",
                "exits",
                "the app exited with status 1 before its hello came",
            ),
            ("hello", "fails", "the app failed to start: no database"),
            ("hello", "version", "hello has version 2, not 1"),
            ("hello", "no-methods", "hello has no methods"),
            (
                "hello",
                "own-name",
                "the method \"ping\" is the daemon's own",
            ),
            ("hello", "bad-name", "\"Ping\" is not a valid name"),
            ("hello", "bad-reply", "\"error\" is not a valid name"),
            ("hello", "double-name", "the method \"check_echo\" twice"),
            ("hello", "concurrency", "concurrency is 0"),
            ("hello", "metric-name", "is not a valid name for a metric"),
            ("hello", "metric-twice", "the metric \"orders_total\" twice"),
            ("hello", "metric-help", "must be one line of at most 128"),
            ("hello", "metric-end", "must not end in _count"),
            ("hello", "metric-buckets", "1 to 16 bounds in ascending"),
            ("hello", "metrics", "hello has more than 64 metrics"),
            (
                "hello",
                "early",
                "the first frame is not a hello: {\"alive\": 1}",
            ),
            ("hello", "prints-on-3", "more than FDPASSD_MAX_FRAME allows"),
            ("hello", "no-object", "a frame is not right"),
            (
                "hello",
                "closes-3",
                "the app closed descriptor 3 before its hello came",
            ),
            ("probe", "hello-twice", "a second hello came"),
            (
                "probe",
                "undeclared",
                "the metric \"orders\" is not declared",
            ),
            (
                "probe",
                "fraction",
                "0.5 is not a count for the metric \"orders\"",
            ),
            (
                "probe",
                "huge-count",
                "1e300 is not a count for the metric \"orders\"",
            ),
            (
                "probe",
                "counted-histogram",
                "the metric \"orders\" is of another type",
            ),
        ],
    );
    assert_failures(
        SHORT,
        &[
            ("hello", "silent", "its hello did not come within 5s"),
            ("hello", "stdout", "it writes frames to standard output"),
        ],
    );
}

#[test]
fn the_end_of_the_log_is_shown_with_a_failure() {
    let Some(said) = check(&["hello", "probe"], LONG, "exits") else {
        return;
    };
    assert!(
        said.out.contains("\n         | no module named shop\n"),
        "{said:?}"
    );
    assert_eq!(
        said.out.lines().last(),
        Some("0 passed, 1 failed, 1 skipped because the app does not start, 0 noted"),
        "{said:?}"
    );
    assert!(!said.out.contains("probe"), "{said:?}");
}

#[test]
fn wrong_answers_are_named() {
    assert_failures(
        LONG,
        &[
            ("params", "mangles", "check_echo returned "),
            (
                "hard-params",
                "dies-of-depth",
                "nested deeply: the app exited with status 1 before",
            ),
            (
                "hard-params",
                "dies-of-digits",
                "a number of 5000 digits: the app exited with status 1 before",
            ),
            (
                "params",
                "wrong-id",
                "an answer to request 2 came, which was not sent",
            ),
            ("params", "not-json", "request 1: the answer is not JSON"),
            (
                "params",
                "twice",
                "an answer to request 1 came, which is answered already",
            ),
            (
                "null",
                "no-null",
                "request 1: the answer has neither of result and error",
            ),
            ("too-long", "too-long", "it announced a frame of 400"),
            ("null", "false", "check_null returned false, not null"),
            ("spawn", "inheritable", "has the socket open"),
            ("fault", "one-code", "another error came, internal: "),
            ("crash", "crash-result", "a result came: \"oops\""),
            (
                "crash",
                "crash-code",
                "the code is \"failure\", not \"crashed\"",
            ),
            ("crash", "traceback", "more than the class of the exception"),
            (
                "probe",
                "probe-number",
                "an answer to probe 77 came, which was not sent",
            ),
        ],
    );
    assert_failures(
        SHORT,
        &[
            (
                "probe",
                "no-probe",
                "the answer to probe 1 did not come within 5s",
            ),
            ("concurrency", "loses", "did not come within 5s"),
            (
                "cancel",
                "no-answer-if-cancelled",
                "the answer to request 1 did not come within 5s",
            ),
            (
                "log",
                "buffers",
                "the line on standard output, flushed at its end, did not come",
            ),
        ],
    );
}

#[test]
fn frames_read_in_a_wrong_way_are_found() {
    assert_failures(
        SHORT,
        &[
            (
                "half-frames",
                "one-read",
                "the app exited with status 1 before",
            ),
            (
                "large-frames",
                "one-read",
                "the app exited with status 1 before",
            ),
            ("many-frames", "one-frame", "the answer to request 2"),
        ],
    );
}

#[test]
fn an_app_that_ends_too_early_or_too_late_is_found() {
    assert_failures(
        LONG,
        &[
            (
                "signals",
                "dies-of-SIGTERM",
                "after SIGTERM, the app was killed by signal 15 (SIGTERM)",
            ),
            ("unknown", "strict", "the app exited with status 1 before"),
            ("closed", "closed", "the app exited with status 1 before"),
            ("stop", "stop-status", "the app exited with status 2"),
            (
                "stop-long",
                "no-drain",
                "the app exited with status 0 before",
            ),
            ("end", "status", "the app exited with status 1, not with 0"),
            (
                "descriptor",
                "inheritable",
                "descriptor 3 is not close-on-exec",
            ),
            ("descriptor", "copy", "descriptor 9 is not close-on-exec"),
        ],
    );
    assert_failures(
        SHORT,
        &[
            ("end", "stays", "the app still ran 5s later"),
            ("end-busy", "joins", "the app still ran 5s later"),
        ],
    );
}

#[test]
fn properties_that_are_no_mistakes_are_noted() {
    for (name, mistake, words) in [
        (
            "integers",
            "rounds",
            "rounds large integers: 9007199254740993 became 9007199254740992",
        ),
        (
            "overtaking",
            "in-order",
            "one after another; with concurrency 8",
        ),
        (
            "by-hand",
            "by-hand",
            "64 and a sentence on standard error would help",
        ),
    ] {
        let Some(said) = check(&[name], LONG, mistake) else {
            return;
        };
        assert_eq!(said.code, Some(0), "{said:?}");
        assert!(
            said.out.starts_with("noted ") && said.out.contains(words),
            "{said:?}"
        );
    }
}

#[test]
fn the_results_are_one_line_of_json_for_programs() {
    let Some(said) = check(&["hello", "probe"], LONG, "no-object") else {
        return;
    };
    assert_eq!(said.code, Some(1));
    let said = run(
        FDPASSCTL,
        &[
            "app", "check", "--json", "--only", "hello", "--", "python3", APP, "fails",
        ],
    );
    let json: Value = serde_json::from_str(&said.out).expect("JSON");
    assert_eq!((&json["failed"], &json["passed"]), (&1.into(), &0.into()));
    let check = &json["checks"][0];
    assert_eq!(
        (&check["check"], &check["outcome"]),
        (&"hello".into(), &"failed".into())
    );
}

#[test]
fn a_program_that_cannot_be_started_is_a_failure() {
    let said = run(FDPASSCTL, &["app", "check", "--", "/does/not/exist"]);
    assert_eq!(said.code, Some(1));
    assert!(
        said.out
            .contains("the program cannot be started: /does/not/exist: No such file"),
        "{said:?}"
    );
    for arguments in [
        &["app", "check"][..],
        &["app", "check", "--only", "x", "--", "true"],
    ] {
        assert_eq!(run(FDPASSCTL, arguments).code, Some(64), "{arguments:?}");
    }
}

#[test]
fn a_program_by_hand_may_write_much_and_leave_a_process() {
    let directory = tempfile::tempdir().expect("a directory");
    let mark = directory.path().join("mark").display().to_string();
    // The process has left the group, and keeps standard error.
    let script = format!(
        "setsid sh -c 'echo $$ >{mark}; exec sleep 600' & until test -s {mark}; do sleep 0.01; done; \
         echo by hand >&2; head -c 200000 /dev/zero >&2; exit 64"
    );
    let arguments = ["app", "check", "--timeout", LONG, "--only", "by-hand", "--"];
    let said = run(
        FDPASSCTL,
        &[&arguments[..], &["sh", "-c", &script]].concat(),
    );
    let pid = std::fs::read_to_string(&mark).expect("it was written");
    assert_eq!(run("kill", &["-9", pid.trim()]).code, Some(0), "it runs");
    assert!(
        said.out.contains("started by hand, it prints: by hand\n"),
        "{said:?}"
    );
}

#[test]
fn no_process_of_an_app_is_left() {
    let directory = tempfile::tempdir().expect("a directory");
    let mark = directory.path().join("mark").display().to_string();
    // Ends only if it is killed; its child has its own copy of descriptor 3.
    let script = format!("sleep 600 & echo $! >{mark}; wait");
    let said = run(
        FDPASSCTL,
        &[
            "app",
            "check",
            "--timeout",
            "10s",
            "--only",
            "hello",
            "--",
            "sh",
            "-c",
            &script,
        ],
    );
    assert_eq!(said.code, Some(1));
    let pid = std::fs::read_to_string(&mark).expect("it was started");
    let pid: u32 = pid.trim().parse().expect("a pid");
    eventually("its child has ended", || {
        crate::common::kernel::is_over(pid).then_some(())
    });
}
