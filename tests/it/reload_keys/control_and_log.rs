//! The keys of the control socket and of the log.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use fdpassd::testing::{Running, eventually};

use crate::common::kernel;
use crate::common::needs::skip_part;
use crate::common::program::{FDPASSCTL, OtherUser, Program, control_socket};

use super::{Row, check, mode};

pub(super) const CONTROL_AND_LOG: &[Row] = &[
    Row {
        key: "control.mode",
        configs: ["", "control.mode = \"0600\""],
        probe: |daemon, _, _| mode(daemon, "control.sock"),
        shows: ["660", "600"],
    },
    Row {
        key: "target",
        configs: ["", "log = { target = \"file\", file = \"{dir}/log\" }"],
        probe: |daemon, _, _| panics_are_logged(daemon, &["log"]),
        shows: ["standard error", "log"],
    },
    Row {
        key: "file",
        configs: [
            "log = { target = \"file\", file = \"{dir}/log-1\" }",
            "log = { target = \"file\", file = \"{dir}/log-2\" }",
        ],
        probe: |daemon, _, _| panics_are_logged(daemon, &["log-1", "log-2"]),
        shows: ["log-1", "log-2"],
    },
    Row {
        key: "format",
        configs: ["", "log.format = \"json\""],
        probe: |daemon, _, _| {
            let count = || daemon.stderr().matches("panicked").count();
            let before = count();
            daemon.call("panic", "on purpose").expect_err("it panics");
            eventually("it is logged", || (count() > before).then_some(()));
            let text = daemon.stderr();
            let line = text
                .lines()
                .rfind(|line| line.contains("panicked"))
                .expect("it is there");
            if line.starts_with('{') {
                "json".to_owned()
            } else {
                "text".to_owned()
            }
        },
        shows: ["text", "json"],
    },
    Row {
        key: "level",
        configs: ["", "log.level = \"debug\""],
        probe: |daemon, _, _| {
            let count = |words: &str| daemon.stderr().matches(words).count();
            let (debug, errors) = (count(" debug client "), count("panicked"));
            daemon.call("panic", "on purpose").expect_err("it panics");
            // Later lines are read later.
            eventually("the panic is logged", || {
                (count("panicked") > errors).then_some(())
            });
            (count(" debug client ") > debug).to_string()
        },
        shows: ["false", "true"],
    },
    Row {
        key: "slow-request",
        configs: ["", "log.slow-request = \"50ms\""],
        probe: |daemon, _, _| {
            let count = |words: &str| daemon.stderr().matches(words).count();
            let (slow, errors) = (count(SLOW), count("panicked"));
            daemon.call("spin", 60).expect("it ends");
            // No other request is slow.
            daemon.call("ping", ()).expect("it ends");
            daemon.call("panic", "on purpose").expect_err("it panics");
            // Later lines are read later.
            eventually("the panic is logged", || {
                (count("panicked") > errors).then_some(())
            });
            (count(SLOW) - slow).to_string()
        },
        shows: ["0", "1"],
    },
];

const SLOW: &str = ": slow request: method \"spin\" took ";

/// Only root can become a member of a group or another user.
pub(super) const GROUPS: &[Row] = &[
    Row {
        key: "admin-group",
        configs: [
            "control.mode = \"0666\"",
            "control = { mode = \"0666\", admin-group = \"61201\" }",
        ],
        probe: |daemon, _, _| {
            format!(
                "{} {}",
                asked_by(61_201, daemon, "undrain"),
                asked_by(61_202, daemon, "status")
            )
        },
        shows: ["forbidden done", "done forbidden"],
    },
    Row {
        key: "read-group",
        configs: [
            "control.mode = \"0666\"",
            "control = { mode = \"0666\", read-group = \"61201\" }",
        ],
        probe: |daemon, _, _| {
            format!(
                "{} {}",
                asked_by(61_201, daemon, "status"),
                asked_by(61_202, daemon, "status")
            )
        },
        shows: ["done done", "done forbidden"],
    },
];

#[test]
fn each_key_of_the_control_socket_and_of_the_log_has_its_effect() {
    check(CONTROL_AND_LOG);
    if kernel::user() == 0 {
        check(GROUPS);
    } else {
        skip_part("root", "only root can become another user");
    }
}

/// Returns the result of fdpassctl, run by this user in the group of the same number.
fn asked_by(uid: u32, daemon: &Running, verb: &str) -> &'static str {
    let user = OtherUser::if_root().expect("we are root");
    // Everybody can reach the socket, but for its own mode.
    fs::set_permissions(daemon.directory(), fs::Permissions::from_mode(0o711)).expect("it is ours");
    let mut command = user.command(FDPASSCTL, uid);
    match Program::start(
        command
            .arg(verb)
            .arg("--socket")
            .arg(control_socket(daemon)),
    )
    .finish()
    .code
    {
        Some(0) => "done",
        Some(77) => "forbidden",
        other => panic!("{verb} came to {other:?}"),
    }
}

/// Where a worker logs that a method panics: which of these files, or standard error.
fn panics_are_logged(daemon: &Running, files: &[&str]) -> String {
    let text = |file: &&str| fs::read_to_string(daemon.directory().join(file)).unwrap_or_default();
    let counts = || -> Vec<usize> {
        let texts = files.iter().map(text).chain([daemon.stderr()]);
        texts.map(|text| text.matches("panicked").count()).collect()
    };
    let before = counts();
    daemon.call("panic", "on purpose").expect_err("it panics");
    let after = eventually("it is logged", || {
        Some(counts()).filter(|after| *after != before)
    });
    let grown = (0..after.len())
        .find(|i| after[*i] > before[*i])
        .expect("one has more");
    files
        .get(grown)
        .copied()
        .unwrap_or("standard error")
        .to_owned()
}
