//! The ends of `top`: after a change that was confirmed just before, and with its terminal.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value;

use super::intermediary::{Fate, Intermediary};
use super::{assert_left, top};
use crate::common::kernel;
use crate::common::program::{ctl, ctl_command};
use crate::common::start;
use crate::common::terminal::{End, OnTerminal};

#[test]
fn a_change_that_was_confirmed_is_made_before_top_ends() {
    let daemon = start("");
    let before = OnTerminal::start(Command::new("cat").arg("/dev/null"), 80, 24).modes();
    // The second one does not wait for the daemon.
    for (keys, end) in [("", End::Code(0)), ("\x03", End::Signal(2))] {
        let mut screen = top(&daemon, &[]);
        screen.wait_for("ready");
        screen.press("d");
        screen.wait_for("(y/n) drain fdpassd?");
        kernel::stop(daemon.pid());
        screen.press("y");
        screen.wait_for("draining …");
        screen.press("q");
        assert_left(&screen, &before);
        screen.wait_for("draining …");
        screen.press(keys);
        if keys.is_empty() {
            daemon.signal("CONT");
            screen.wait_for("new clients are refused; 0 clients are still connected");
        }
        assert_eq!(screen.wait_for_end(), end);
        daemon.signal("CONT");
        let status = ctl(&daemon, &["status", "--json"]).out;
        let status: Value = serde_json::from_str(&status).expect("JSON");
        assert_eq!(status["drained"], end == End::Code(0), "{status}");
        assert_eq!(ctl(&daemon, &["undrain"]).code, Some(0));
    }
}

#[test]
fn a_change_that_takes_long_does_not_hold_up_the_end() {
    let daemon = start("workers.count = 1");
    let requests = Arc::new(AtomicUsize::new(0));
    let received = Arc::clone(&requests);
    let between = Intermediary::start(&daemon, move |verb, _| match verb {
        "recycle" => {
            received.fetch_add(1, Ordering::SeqCst);
            Fate::Ignored
        }
        _ => Fate::Passed,
    });
    let mut screen = OnTerminal::start(&between.top(&[]), 80, 24);
    screen.wait_for("1 of 1 ready");
    screen.press("r");
    screen.wait_for("(y/n) recycle worker 1 ");
    screen.press("y");
    screen.wait_for("replacing worker 1 …");
    screen.press("q");
    screen.wait_for("the daemon continues");
    assert_eq!(screen.wait_for_end(), End::Code(0));
    assert_eq!(requests.load(Ordering::SeqCst), 1);
}

#[test]
fn a_program_ends_with_its_terminal() {
    let daemon = start("");
    // The screen of the first one does not change: only its keyboard shows that the terminal is gone.
    for (arguments, shown) in [
        (&["top", "--interval=1h"][..], "ready"),
        (&["status", "--watch=100ms"], "listener"),
    ] {
        let usual = ctl_command(&daemon, arguments);
        // As nohup(1) starts it: no signal ends it.
        let mut immune = Command::new("sh");
        immune.args(["-c", "trap '' HUP; exec \"$@\"", "sh"]);
        immune.arg(usual.get_program()).args(usual.get_args());
        for command in [usual, immune] {
            let mut screen = OnTerminal::start(&command, 80, 24);
            screen.wait_for(shown);
            screen.hang_up();
            screen.wait_for_end();
        }
    }
}
