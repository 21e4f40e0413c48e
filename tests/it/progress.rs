//! Progress in fdpassctl: lines for logs, a counter on terminals, and events with `--follow`.

use std::fs;
use std::process::Command;

use fdpassd::testing::{Running, eventually};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::common::faulty::{self, Execution};
use crate::common::needs::skip;
use crate::common::program::{
    FDPASSCTL, Program, Said, control_socket, ctl, ctl_command, short_timeout,
};
use crate::common::{FDPASSD, kernel, start};

/// Returns the sentences of the output, without their times.
#[track_caller]
fn sentences(told: &str) -> Vec<&str> {
    let sentence = |line: &'_ str| -> Option<usize> {
        let (time, _) = line.split_once(' ')?;
        let is_time = time.len() == 8
            && time
                .bytes()
                .all(|byte| byte.is_ascii_digit() || byte == b':');
        is_time.then_some(9)
    };
    told.lines()
        .map(|line| &line[sentence(line).unwrap_or_else(|| panic!("{line:?} has no time"))..])
        .collect()
}

/// Asserts that these words are printed, in this order.
#[track_caller]
fn assert_reported(said: &Said, words: &[&str]) {
    let sentences = sentences(&said.err);
    let mut rest = sentences.iter();
    for word in words {
        assert!(
            rest.any(|sentence| sentence.contains(word)),
            "{word:?} is not where it should be in\n{}",
            said.err
        );
    }
}

#[test]
fn each_event_is_a_line_up_to_the_verdict() {
    let daemon = start("workers.count = 2");
    let status = daemon.wait_for_workers();
    let said = ctl(&daemon, &["reload"]);
    assert!(
        said.code == Some(0) && said.out.starts_with("applied: generation 2, "),
        "{said:?}"
    );
    let workers: Vec<_> = status
        .workers
        .iter()
        .map(|worker| worker.id.expect("it is ready"))
        .collect();
    let reload = format!("reload by uid {} (pid ", kernel::user());
    let drains = format!("worker {} (pid ", workers[0]);
    assert_reported(
        &said,
        &[
            &reload,
            "worker 3 (pid ",
            "is ready after ",
            &drains,
            "reloaded: generation 2 is in force",
        ],
    );
    // Earlier events were not requested.
    assert!(!said.err.contains("serves on"), "{}", said.err);

    let said = ctl(&daemon, &["scale", "3"]);
    assert_eq!(
        (said.code, said.out.as_str()),
        (Some(0), "3 workers are ready\n")
    );
    assert_reported(
        &said,
        &[
            "3 workers instead of 2",
            "worker 5 (pid ",
            "is ready after ",
        ],
    );
    let said = ctl(&daemon, &["recycle", "5"]);
    assert_reported(
        &said,
        &[
            "replacing worker 5",
            "is ready after ",
            "worker 5 (pid ",
            "finished",
        ],
    );
    let held = daemon.status().workers[0].id.expect("it is ready");
    let said = ctl(&daemon, &["hold", &held.to_string()]);
    assert_reported(&said, &[&format!("worker {held} is held; 0 clients moved")]);
    let said = ctl(&daemon, &["drain", "--wait"]);
    assert_reported(&said, &["new clients are refused; 0 clients connected"]);
    let said = ctl(&daemon, &["stop"]);
    assert_eq!(
        (said.code, said.out.clone()),
        (Some(0), format!("fdpassd (pid {}) stopped\n", daemon.pid()))
    );
    assert_reported(&said, &["stopping"]);
}

#[test]
fn a_failed_reload_shows_its_progress() {
    let (daemon, switch) = faulty::start_with_switch("workers.count = 1");
    switch.set("exit");
    let said = ctl(&daemon, &["reload"]);
    assert_eq!((said.code, said.out.as_str()), (Some(1), ""));
    let (told, verdict) = said
        .err
        .split_once("fdpassctl: ")
        .expect("it ends with the verdict");
    assert!(verdict.starts_with("rolled_back: "), "{}", said.err);
    let told = Said {
        err: told.to_owned(),
        ..said
    };
    assert_reported(
        &told,
        &[
            "is being started",
            "exited with status 9",
            "is rolled back: ",
        ],
    );
    // A change that is not tried is reported once, by the verdict.
    daemon.write_config("listne = []");
    let said = ctl(&daemon, &["reload"]);
    assert!(
        said.err
            .starts_with("fdpassctl: rejected, and nothing was changed:\n"),
        "{}",
        said.err
    );
}

#[test]
fn quiet_output_still_waits_for_the_end() {
    let daemon = faulty::start("workers.count = 1");
    for quiet in ["--quiet", "--json"] {
        assert_eq!(ctl(&daemon, &["reload", quiet]).err, "");
    }
    let execution = Execution::start(&daemon);
    let timeout = short_timeout(&daemon);
    let said = ctl(&daemon, &["stop", "--timeout", &timeout]);
    let (told, verdict) = said
        .err
        .split_once("fdpassctl: ")
        .expect("it ends with the verdict");
    assert!(
        said.code == Some(75) && verdict.contains(" is still stopping; "),
        "{said:?}"
    );
    let is_reported = |sentence: &&str| sentence.starts_with("stop by uid ");
    assert!(sentences(told).iter().any(is_reported), "{told}");
    execution.finish().expect_end();
}

#[test]
fn follow_shows_a_death_and_the_end() {
    let mut daemon = start("workers.count = 1");
    let killed = daemon.wait_for_workers().workers[0]
        .id
        .expect("it is ready");
    let follow = |name: &str, json: &str| {
        let file = daemon.directory().join(name);
        let mut sh = Command::new("sh");
        sh.args([
            "-c",
            "exec \"$0\" events --follow -s \"$1\" $3 >\"$2\"",
            FDPASSCTL,
        ]);
        sh.arg(control_socket(&daemon)).arg(&file).arg(json);
        (Program::start(&mut sh), move || {
            fs::read_to_string(&file).unwrap_or_default()
        })
    };
    let (words, in_words) = follow("words", "");
    let (json, in_json) = follow("json", "--json");
    eventually("what has happened is shown", || {
        (in_words().contains("worker_ready") && in_json().contains("\"worker_ready\""))
            .then_some(())
    });
    daemon.kill_worker(0);
    let death = format!(" warn  worker_died      worker {killed} (pid ");
    eventually("the death is shown", || {
        (in_words().contains(&death) && in_json().contains("\"worker_died\"")).then_some(())
    });
    // The stopped worker keeps the daemon from ending before both have asked for the event.
    let worker = daemon.worker_pids()[0];
    kernel::stop(worker);
    let stop = Program::start(&mut ctl_command(&daemon, &["stop", "--quiet"]));
    eventually("the stop is shown", || {
        (in_words().contains(" stopping  ") && in_json().contains("\"stopping\"")).then_some(())
    });
    kernel::send(worker, Signal::SIGCONT);
    assert_eq!(stop.finish().code, Some(0));
    daemon.wait();
    for follower in [words, json] {
        let said = follower.finish();
        assert_eq!(
            (said.code, said.err),
            (
                Some(3),
                format!("fdpassctl: fdpassd (pid {}) has ended\n", daemon.pid())
            )
        );
    }
    let kinds: Vec<String> = in_json()
        .lines()
        .map(|line| {
            serde_json::from_str::<Value>(line).expect("an object a line")["event"]
                .as_str()
                .expect("a kind")
                .to_owned()
        })
        .collect();
    // One of the two may have missed the last events, when the daemon was about to exit.
    for (kind, line) in kinds.iter().zip(in_words().lines()) {
        assert_eq!(
            line.split_whitespace().nth(3),
            Some(kind.as_str()),
            "{line}"
        );
    }
    let place = |kind: &str| {
        kinds
            .iter()
            .position(|k| k == kind)
            .unwrap_or_else(|| panic!("{kind} is not in {kinds:?}"))
    };
    assert!(
        place("started") < place("worker_died") && place("worker_died") < place("stopping"),
        "{kinds:?}"
    );
}

#[test]
fn an_upgrade_is_followed_through() {
    let directory = tempfile::tempdir().expect("a directory");
    let program = directory.path().join("fdpassd");
    // By a process of its own, for a program that is open for writing cannot be run: another test's child may have a
    // copy.
    let copied = Command::new("cp")
        .arg(FDPASSD)
        .arg(&program)
        .status()
        .expect("cp runs");
    assert!(copied.success());
    let daemon = Running::start(&program, "workers.count = 1").expect("it serves");
    daemon.wait_for_workers();
    let file = daemon.directory().join("followed");
    let mut sh = Command::new("sh");
    sh.args([
        "-c",
        "exec \"$0\" events --follow -s \"$1\" >\"$2\"",
        FDPASSCTL,
    ]);
    let follower = Program::start(sh.arg(control_socket(&daemon)).arg(&file));
    let followed = || fs::read_to_string(&file).unwrap_or_default();
    eventually("what has happened is shown", || {
        followed().contains("worker_ready").then_some(())
    });

    let said = ctl(&daemon, &["upgrade"]);
    let version = env!("CARGO_PKG_VERSION");
    // It is the same program.
    let verdict = format!(
        "fdpassd is still {version}: the program has not changed; 1 worker ready, 0 clients kept\n"
    );
    assert_eq!(
        (said.code, said.out.as_str()),
        (Some(0), verdict.as_str()),
        "{}",
        said.err
    );
    assert_reported(
        &said,
        &[
            "before the upgrade",
            "upgraded to fdpassd",
            "is ready after ",
            "finished",
        ],
    );
    eventually("it goes on with the new program", || {
        followed().contains(" upgraded  ").then_some(())
    });
    assert_eq!(ctl(&daemon, &["stop", "--quiet"]).code, Some(0));
    assert_eq!(follower.finish().code, Some(3));
    // Each event once.
    let told = followed();
    for kind in [" started  ", " upgrade_begun  ", " upgraded  "] {
        assert_eq!(told.matches(kind).count(), 1, "{told}");
    }
}

/// Runs fdpassctl on a terminal of its own. Skips the test without script(1).
fn on_a_terminal(
    daemon: &Running,
    arguments: &str,
    environment: &[(&str, &str)],
) -> Option<Program> {
    if Command::new("script").arg("--version").output().is_err() {
        skip("script", "there is no script(1) of util-linux");
        return None;
    }
    let mut script = Command::new("script");
    let line = format!(
        "{FDPASSCTL} -s {} {arguments}",
        control_socket(daemon).display()
    );
    script
        .args(["-qec", &line, "/dev/null"])
        .env_remove("NO_COLOR")
        .env("TERM", "xterm");
    script.envs(environment.iter().copied());
    Some(Program::start(&mut script))
}

#[test]
fn terminals_get_colours_unless_they_are_turned_off() {
    let daemon = start("workers.count = 1");
    daemon.wait_for_workers();
    for (environment, is_painted) in [
        (&[][..], true),
        (&[("NO_COLOR", "1")], false),
        (&[("TERM", "dumb")], false),
        (&[("NO_COLOR", "")], true),
    ] {
        let Some(status) = on_a_terminal(&daemon, "status", environment) else {
            return;
        };
        let status = status.finish();
        assert_eq!(
            (status.code, status.out.contains(" \x1b[32mready\x1b[0m ")),
            (Some(0), is_painted),
            "{status:?}"
        );
        assert_eq!(status.out.contains('\x1b'), is_painted, "{status:?}");
        let failed = on_a_terminal(&daemon, "kick 4711", environment)
            .expect("as before")
            .finish();
        let prefix = if is_painted {
            "\x1b[31mfdpassctl:\x1b[0m refused: "
        } else {
            "fdpassctl: refused: "
        };
        assert!(
            failed.code == Some(1) && failed.out.starts_with(prefix),
            "{failed:?}"
        );
    }
    assert!(!ctl(&daemon, &["status"]).out.contains('\x1b'));
}

#[test]
fn on_a_terminal_a_line_counts_and_makes_room_for_the_verdict() {
    let daemon = start("workers.count = 2");
    daemon.wait_for_workers();
    for environment in [&[][..], &[("NO_COLOR", "1")]] {
        let Some(reload) = on_a_terminal(&daemon, "reload", environment) else {
            return;
        };
        let said = reload.finish();
        let drawn: Vec<&str> = said.out.split('\r').collect();
        assert!(drawn.contains(&"reloading\x1b[K"), "{said:?}");
        assert!(
            drawn
                .iter()
                .any(|line| line.starts_with("reloading: 2 of 2 workers ready, ")),
            "{said:?}"
        );
        let (verdict, before) = drawn[..drawn.len() - 1]
            .split_last()
            .expect("there is a line");
        assert!(
            verdict.starts_with("\x1b[Kapplied: generation "),
            "{said:?}"
        );
        assert!(before.iter().all(|line| !line.contains('\n')), "{said:?}");
    }

    let mut client = daemon.connect();
    client.call("ping", 1).expect("a pong");
    let drain = on_a_terminal(&daemon, "drain --wait", &[]).expect("as before");
    daemon.wait_until("nobody is accepted", |status| status.paused.is_some());
    drop(client);
    let said = drain.finish();
    assert!(
        said.out.contains("\rdraining: 1 client left\x1b[K"),
        "{said:?}"
    );
    assert!(
        said.out
            .ends_with("\r\x1b[Knew clients are refused; the last client has left\r\n"),
        "{said:?}"
    );
    // A typewriter cannot go back.
    let said = on_a_terminal(&daemon, "reload", &[("TERM", "dumb")])
        .expect("as before")
        .finish();
    assert!(
        !said.out.contains('\x1b') && said.out.contains(" is being started\r\n"),
        "{said:?}"
    );
}
