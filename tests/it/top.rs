//! `fdpassctl top` on a pseudo-terminal, and `status --watch`.

mod endings;
mod endurance;
mod intermediary;

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use fdpassd::testing::{Running, Setup, eventually};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::common::faulty::example;
use crate::common::kernel::{self, sleeps};
use crate::common::program::{FDPASSCTL, ctl, ctl_command, run};
use crate::common::terminal::{End, OnTerminal};
use crate::common::{let_pass, start};

/// Starts `top` for a daemon, on a terminal of 80 columns and 24 lines.
#[track_caller]
fn top(daemon: &Running, arguments: &[&str]) -> OnTerminal {
    let command = ctl_command(daemon, &[&["top"], arguments].concat());
    OnTerminal::start(&command, 80, 24)
}

#[track_caller]
fn assert_left(screen: &OnTerminal, modes: &str) {
    assert_eq!(screen.modes(), modes, "the modes of the terminal");
    eventually("the usual screen and the cursor are shown", || {
        screen.with_screen(|screen| {
            let is_left = !screen.alternate_screen() && !screen.hide_cursor();
            is_left.then_some(())
        })
    });
}

#[test]
fn workers_clients_and_events_are_watched() {
    let daemon = start("workers.count = 2");
    daemon.wait_for_workers();
    let mut screen = top(&daemon, &["--interval", "100ms"]);
    let text = screen.wait_for("2 of 2 ready");
    assert!(text.starts_with("fdpassd "), "{text}");
    screen.wait_for("is ready after");
    assert!(screen.with_screen(|screen| screen.alternate_screen() && screen.hide_cursor()));

    let mut client = daemon.connect();
    client.call("ping", 1).expect("a pong");
    screen.wait_for("clients   1 of ");
    screen.press("c");
    screen.wait_until("1 client", |text| {
        text.lines().any(|line| line.trim_end() == "1 client")
    });
    screen.wait_for("REQ/S▾");
    screen.press("\r");
    let text = screen.wait_for("connected for");
    assert!(text.contains("requests  1 answered"), "{text}");
    screen.press("\x1b");
    // The list of all clients has to arrive first.
    screen.wait_until("1 client", |text| {
        text.lines().any(|line| line.trim_end() == "1 client")
    });
    screen.press("k");
    screen.wait_for("kick client 1 (");
    screen.press("y");
    screen.wait_for("is closed");
    client.expect_end();

    // A death is an event.
    screen.press("w");
    daemon.kill_worker(0);
    screen.wait_for("killed by signal 9");
    screen.press(">>q");
    assert_eq!(screen.wait_for_end(), End::Code(0));
}

#[test]
fn a_worker_is_recycled_after_a_question() {
    let daemon = start("workers.count = 2");
    let pids: Vec<u32> = daemon.worker_pids();
    let mut screen = top(&daemon, &[]);
    screen.wait_for("2 of 2 ready");
    // The answer in the same text is not one.
    screen.press("ry");
    let text = screen.wait_for("(y/n)");
    assert!(text.contains("recycle worker "), "{text}");
    screen.press("n");
    screen.wait_for("nothing was changed");
    assert_eq!(daemon.worker_pids(), pids);
    screen.press("r");
    screen.wait_for("(y/n)");
    screen.press("y");
    screen.wait_for("is replaced; 2 workers are ready");
    assert_ne!(daemon.worker_pids(), pids);
    screen.press("d");
    screen.wait_for("drain fdpassd?");
    screen.press("y");
    screen.wait_for("PAUSED");
    screen.press("q");
    assert_eq!(screen.wait_for_end(), End::Code(0));
}

#[test]
fn the_screen_follows_the_size_of_the_terminal() {
    let daemon = start("workers.count = 2");
    let mut screen = top(&daemon, &[]);
    screen.wait_for("2 of 2 ready");
    let modes = screen.modes();
    screen.resize(30, 10);
    screen.wait_for("The terminal is too small");
    screen.resize(160, 50);
    let text = screen.wait_for("RESTARTS");
    assert!(text.contains("SEAT"), "{text}");
    screen.press("q");
    assert_eq!(screen.wait_for_end(), End::Code(0));
    assert_ne!(screen.modes(), modes, "it had changed them");
    screen.resize(80, 24);
}

#[test]
fn the_terminal_is_left_as_it_was_before() {
    let daemon = start("");
    let before = OnTerminal::start(Command::new("cat").arg("/dev/null"), 80, 24).modes();
    for (keys, signal, end) in [
        ("q", None, End::Code(0)),
        ("\x03", None, End::Signal(2)),
        ("\x1c", None, End::Signal(3)),
        ("", Some(Signal::SIGTERM), End::Signal(15)),
        ("", Some(Signal::SIGHUP), End::Signal(1)),
    ] {
        let mut screen = top(&daemon, &[]);
        screen.wait_for("ready");
        assert_ne!(screen.modes(), before);
        screen.press(keys);
        if let Some(signal) = signal {
            kernel::send(screen.pid(), signal);
        }
        assert_eq!(screen.wait_for_end(), end);
        assert_left(&screen, &before);
    }
}

/// Starts `top` as `"$@"` in a shell with job control, on a terminal of 80 columns and 24 lines.
#[track_caller]
fn top_in_shell(daemon: &Running, script: &str) -> OnTerminal {
    let top = ctl_command(daemon, &["top"]);
    let mut shell = Command::new("sh");
    shell.args(["-mc", script, "sh"]).arg(top.get_program());
    shell.args(top.get_args());
    for (key, value) in top.get_envs() {
        if let Some(value) = value {
            shell.env(key, value);
        }
    }
    OnTerminal::start(&shell, 80, 24)
}

#[test]
fn a_suspended_screen_comes_back() {
    let daemon = start("");
    let before = OnTerminal::start(Command::new("cat").arg("/dev/null"), 80, 24).modes();
    let script = "\"$@\"; echo is suspended; read go; fg; echo it has quit";
    let mut screen = top_in_shell(&daemon, script);
    screen.wait_for("ready");
    screen.press("\x1a");
    screen.wait_for("is suspended");
    assert_left(&screen, &before);
    screen.press("\r");
    screen.wait_for("ready");
    assert!(screen.with_screen(vt100::Screen::alternate_screen));
    screen.press("q");
    screen.wait_for("it has quit");
    assert_eq!(screen.wait_for_end(), End::Code(0));
    assert_left(&screen, &before);
}

#[test]
fn without_a_shell_the_screen_is_not_suspended() {
    let daemon = start("");
    // It leads a session: no process could continue it.
    let mut screen = top(&daemon, &[]);
    screen.wait_for("ready");
    screen.press("\x1a");
    screen.press("?");
    screen.wait_for("Ctrl-Z       suspend");
    screen.press("q");
    assert_eq!(screen.wait_for_end(), End::Code(0));
}

#[test]
fn the_modes_before_are_those_in_the_foreground() {
    let daemon = start("");
    // The shell may edit a command line while the job begins in the background.
    let script = "stty -echo -icanon; \"$@\" & echo \"job $!.\"; read go; \
                  stty echo icanon; fg; stty -a";
    let mut screen = top_in_shell(&daemon, script);
    let text = screen.wait_until("job", |text| {
        text.lines()
            .any(|line| line.starts_with("job ") && line.ends_with('.'))
    });
    let pid = text.lines().find_map(|line| line.strip_prefix("job "));
    let pid = pid.map(|pid| pid.trim_end_matches('.').parse());
    let pid: u32 = pid.expect("a line").expect("a pid");
    eventually("the job is stopped", || {
        (kernel::state(pid) == Some('T')).then_some(())
    });
    screen.press("\r");
    screen.wait_for("ready");
    screen.press("q");
    let text = screen.wait_for("extproc");
    assert_eq!(screen.wait_for_end(), End::Code(0));
    assert!(
        !text.contains("-icanon") && !text.contains("-echo "),
        "{text}"
    );
}

#[test]
fn a_pasted_text_confirms_no_question() {
    let daemon = start("");
    let mut screen = top(&daemon, &[]);
    screen.wait_for("ready");
    // With the marks of the terminal, and without: then the last of it is read alone.
    screen.press("\x1b[200~drain y\r\x1b[201~?");
    let text = screen.wait_for("Ctrl-Z       suspend");
    assert!(!text.contains("(y/n)"), "{text}");
    for length in [255, 300] {
        screen.press(&format!("d{}y", "x".repeat(length)));
        screen.wait_for("(y/n) drain fdpassd?");
        screen.press("n");
        screen.wait_for("nothing was changed");
        screen.press("?");
    }
    let status = ctl(&daemon, &["status", "--json"]).out;
    let status: Value = serde_json::from_str(&status).expect("JSON");
    assert_eq!(status["drained"], false, "{status}");
}

#[test]
fn the_death_of_the_shown_worker_is_no_outage() {
    let daemon = start("workers.count = 1");
    daemon.wait_for_workers();
    let mut screen = top(&daemon, &["--interval", "100ms"]);
    screen.wait_for("1 of 1 ready");
    screen.press("\r");
    screen.wait_for("worker    1, pid");
    for restarts in ["1 restart", "2 restarts"] {
        daemon.kill_worker(0);
        screen.wait_until(restarts, |text| {
            text.contains(restarts) && text.contains("1 of 1 ready")
        });
    }
    let titles = screen.titles();
    assert!(
        !titles.iter().any(|title| title.contains("NO ANSWER")),
        "{titles:?}"
    );
}

#[test]
fn a_question_is_withdrawn_at_a_restart() {
    let place = tempfile::tempdir().expect("a directory");
    let socket = place.path().join("c.sock").display().to_string();
    let config = format!("workers.count = 1\ncontrol.socket = \"{socket}\"");
    let daemon = start(&config);
    let mut command = Command::new(FDPASSCTL);
    command.args(["top", "--interval", "100ms", "-s", &socket]);
    let mut screen = OnTerminal::start(&command, 120, 24);
    screen.wait_for(&format!("pid {}", daemon.pid()));
    screen.wait_for("1 of 1 ready");
    screen.press("r");
    screen.wait_for("(y/n) recycle worker 1 ");
    drop(daemon);
    screen.wait_for("NO ANSWER fdpassd is not running");
    let daemon = start(&config);
    daemon.wait_for_workers();
    let pids: Vec<u32> = daemon.worker_pids();
    screen.wait_for("the question is withdrawn");
    screen.press("y");
    screen.press("?");
    screen.wait_for("Ctrl-Z       suspend");
    screen.press("q");
    assert_eq!(screen.wait_for_end(), End::Code(0));
    assert_eq!(daemon.worker_pids(), pids);
}

#[test]
fn a_daemon_that_ends_is_awaited() {
    let place = tempfile::tempdir().expect("a directory");
    let socket = place.path().join("c.sock").display().to_string();
    let config = format!("workers.count = 1\ncontrol.socket = \"{socket}\"");
    let daemon = start(&config);
    let mut command = Command::new(FDPASSCTL);
    command.args(["top", "--interval", "100ms", "-s", &socket]);
    let mut screen = OnTerminal::start(&command, 80, 24);
    screen.wait_for(&format!("pid {}", daemon.pid()));
    drop(daemon);
    screen.wait_for("NO ANSWER fdpassd is not running");
    let daemon = start(&config);
    let text = screen.wait_for(&format!(
        "fdpassd was restarted: it is pid {}",
        daemon.pid()
    ));
    assert!(!text.contains("NO ANSWER"), "{text}");
    // A reload keeps the connection.
    daemon.reload().expect("the configuration is good");
    screen.wait_for("generation 2");
    screen.wait_for("reloaded: generation 2 is in force");
    screen.press("q");
    assert_eq!(screen.wait_for_end(), End::Code(0));
}

#[test]
fn without_changes_nothing_is_drawn_and_nothing_wakes() {
    let daemon = start("workers.count = 1");
    let screen = top(&daemon, &["--interval", "1h"]);
    screen.wait_for("is ready after");
    let threads = || -> Vec<u32> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", screen.pid())).expect("it runs");
        let names = tasks.flatten().map(|task| task.file_name());
        names
            .filter_map(|name| name.to_str()?.parse().ok())
            .collect()
    };
    let counts = || {
        let sleeps: Vec<u64> = threads().into_iter().map(sleeps).collect();
        (screen.bytes(), sleeps)
    };
    eventually("it neither writes nor wakes", || {
        let before = counts();
        // Longer than any timer that it could have.
        let_pass(Duration::from_secs(3));
        (before.1.len() > 3 && counts() == before).then_some(())
    });
}

#[test]
fn top_needs_a_terminal_and_makes_no_json() {
    let said = run(FDPASSCTL, &["top"]);
    let expected = "fdpassctl: top needs a terminal, and standard output is not one; \
                    \"status --watch\" needs none\n";
    assert_eq!((said.code, said.err.as_str()), (Some(64), expected));
    let said = run(FDPASSCTL, &["top", "--json"]);
    assert_eq!(said.code, Some(64));
    assert!(said.out.contains("\"code\":\"usage\""), "{said:?}");
    // Without a daemon it fails as other verbs do, on the usual screen.
    let mut command = Command::new(FDPASSCTL);
    command.args(["top", "-s", "/nonexistent/control.sock"]);
    let mut screen = OnTerminal::start(&command, 80, 24);
    assert_eq!(screen.wait_for_end(), End::Code(3));
    screen.wait_for("fdpassd is not running");
}

#[test]
fn top_finds_daemons_of_other_names() {
    let state = tempfile::tempdir().expect("a directory");
    let setup = Setup::new(example("counterd"), "workers.count = 1");
    let setup = setup.variable("STATE_DIRECTORY", state.path());
    let daemon = setup.start().expect("the daemon serves");
    let mut command = Command::new(FDPASSCTL);
    command
        .args(["top", "-n", "counterd"])
        .env("RUNTIME_DIRECTORY", daemon.directory());
    let mut screen = OnTerminal::start(&command, 80, 24);
    let text = screen.wait_for("ready");
    assert!(text.starts_with("counterd "), "{text}");
    screen.press("d");
    screen.wait_for("drain counterd?");
}

#[test]
fn the_status_is_repeated_as_blocks_and_as_lines_of_json() {
    let daemon = start("workers.count = 1");
    let first_lines = |arguments: &[&str], count: usize| -> Vec<String> {
        let mut command = ctl_command(&daemon, arguments);
        let mut program = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it runs");
        let out = BufReader::new(program.stdout.take().expect("piped"));
        let lines = out.lines().take(count).map(|line| line.expect("text"));
        let lines = lines.collect();
        program.kill().expect("it is our child");
        program.wait().expect("it is our child");
        lines
    };
    let block = ctl(&daemon, &["status"]).out.lines().count();
    let lines = first_lines(&["status", "--watch=100ms"], block + 2);
    assert!(lines[0].starts_with("fdpassd "), "{lines:?}");
    assert_eq!(lines[block], "");
    assert!(lines[block + 1].starts_with("fdpassd "), "{lines:?}");
    for line in first_lines(&["status", "--watch=100ms", "--json"], 3) {
        let status: Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(status["pid"], daemon.pid());
    }
    let said = run(FDPASSCTL, &["status", "--watch", "--hosts", "a"]);
    assert_eq!(said.code, Some(64), "{said:?}");
}

#[test]
fn a_terminal_shows_the_last_status_without_its_end() {
    let daemon = start("workers.count = 2");
    let command = ctl_command(&daemon, &["status", "--watch=100ms"]);
    // On the narrow one most lines continue below.
    let sizes = [(80, 8), (40, 14)];
    let mut screens = sizes.map(|(columns, lines)| OnTerminal::start(&command, columns, lines));
    for screen in &screens {
        screen.wait_for("listener");
        let bytes = screen.bytes();
        eventually("it is drawn several times", || {
            (screen.bytes() > 4 * bytes).then_some(())
        });
        let text = screen.text();
        assert!(text.starts_with("fdpassd "), "{text}");
        assert_eq!(text.matches("listener").count(), 1, "{text}");
    }
    drop(daemon);
    for screen in &mut screens {
        screen.wait_for("fdpassd is not running");
        screen.press("\x03");
        assert_eq!(screen.wait_for_end(), End::Signal(2));
    }
}
