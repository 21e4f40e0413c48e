//! Names of users and groups that are not resolved.

use std::fs;
use std::process::Command;
use std::time::Duration;

use fdpassd::testing::{Running, Setup, eventually};
use serde_json::Value;
use tempfile::TempDir;

use crate::common::needs::skip;
use crate::common::program::{OtherUser, ctl};
use crate::common::strace::Traced;
use crate::common::upgrade::{assert_refused, upgrade};
use crate::common::{FDPASSD, let_pass};

use super::make_fifo;

/// Starts a daemon in a namespace of mounts, where /etc/group can become one that never answers. Skips the test where
/// there are no such namespaces.
fn start_with_names(config: &str) -> Option<(Running, TempDir)> {
    let place = tempfile::tempdir().expect("a directory");
    let namespace: &[&str] = if OtherUser::if_root().is_some() {
        &["-m"]
    } else {
        &["-m", "-U", "-r"]
    };
    if !Command::new("unshare")
        .args(namespace)
        .arg("true")
        .status()
        .is_ok_and(|status| status.success())
    {
        skip("namespaces", "there are no namespaces of mounts");
        return None;
    }
    make_fifo(&place.path().join("group"));
    make_fifo(&place.path().join("now"));
    let path = place.path().display();
    let script = format!(
        "read now <{path}/now && mount --bind {path}/group /etc/group && echo >{path}/done & exec {FDPASSD} \"$@\""
    );
    let mut setup = Setup::new("unshare", config);
    for argument in namespace.iter().chain(&["sh", "-c", &script, "sh"]) {
        setup = setup.argument(argument);
    }
    let daemon = setup.start().expect("the daemon serves");
    daemon.wait_for_workers();
    fs::write(place.path().join("now"), "\n").expect("somebody reads");
    eventually("groups do not answer any more", || {
        place.path().join("done").exists().then_some(())
    });
    Some((daemon, place))
}

#[test]
fn names_that_are_not_answered_delay_one_reload_alone() {
    let Some((daemon, _place)) =
        start_with_names("workers.count = 1\ncontrol.read-group = \"root\"")
    else {
        return;
    };
    let mut client = daemon.connect();
    let in_force = fs::read_to_string(daemon.directory().join("config.toml")).expect("it is there");
    daemon.write_config(&in_force.replace("\"root\"", "\"not-here\""));
    let mut reload = daemon.ctl_request("reload", Value::Null);
    let mut check = daemon.ctl_request("check", Value::Null);
    // The file is being read for 10 s.
    let busy = daemon.ctl("reload").expect_err("one is going on");
    assert!(
        busy.message().contains("its configuration is being read"),
        "{busy:?}"
    );
    for i in 0..5 {
        assert_eq!(client.call("ping", i).expect("a result"), i);
        assert_eq!(daemon.connect().call("ping", i).expect("a result"), i);
        assert!(daemon.status().clients >= 1);
        let_pass(Duration::from_millis(100));
    }
    for asked in [&mut reload, &mut check] {
        let refused = asked.reply().value().expect_err("it takes too long");
        assert_eq!(refused.code(), "rejected");
        assert!(
            refused.message().contains("could not be read within 10 s"),
            "{}",
            refused.message()
        );
    }
    daemon.wait_for_log("reload by uid ");
    // Settings in force need no new lookup.
    let before = daemon.pid();
    let upgraded = ctl(&daemon, &["upgrade"]);
    assert_eq!(
        (upgraded.code, daemon.pid()),
        (Some(0), before),
        "{upgraded:?}"
    );
    assert_eq!(client.call("ping", 1).expect("a result"), 1);
}

#[test]
fn an_upgrade_that_fails_to_execute_answers_a_check_in_progress() {
    let Some((daemon, _place)) =
        start_with_names("workers.count = 1\ncontrol.read-group = \"root\"")
    else {
        return;
    };
    let in_force = fs::read_to_string(daemon.directory().join("config.toml")).expect("it is there");
    daemon.write_config(&in_force.replace("\"root\"", "\"not-here\""));
    let mut check = daemon.ctl_request("check", Value::Null);
    let inject = "execve:error=ENOEXEC";
    let Some(traced) = Traced::attach(daemon.pid(), "execve", inject) else {
        return;
    };
    assert_refused(upgrade(&daemon, None), "refused", "it cannot be executed: ");
    drop(traced);
    let refused = check.reply().value().expect_err("it takes too long");
    assert!(
        refused.message().contains("could not be read within 10 s"),
        "{}",
        refused.message()
    );
}
