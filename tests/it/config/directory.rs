//! The files in the directory of the configuration, and an empty file.

use std::fs;
use std::process::Command;

use fdpassd::testing::{Running, Setup};

use crate::common::FDPASSD;
use crate::common::needs::skip;
use crate::common::program::{Said, ctl, run};

#[test]
fn all_programs_read_the_files_in_the_directory() {
    let Some(daemon) =
        start_with_standard_file("workers.count = 1", "limits.max-frame = \"64KiB\"")
    else {
        return;
    };
    let files = |count| {
        [
            "/etc/fdpassd.toml",
            "/etc/fdpassd.d/10-a.toml",
            "/etc/fdpassd.d/20-b.toml",
        ][..count]
            .join(", ")
    };
    let option = |option| run_inside(&daemon, option);
    assert_eq!(
        option("-t").out,
        format!("{}: the configuration is good\n", files(2))
    );
    assert!(option("-T").out.contains("max-frame = \"64KiB\""));
    let shown = ctl(&daemon, &["config", "show"]).out;
    assert!(
        shown.starts_with(&files(2)) && shown.contains("= \"64KiB\""),
        "{shown}"
    );

    let more = daemon.directory().join("fdpassd.d/20-b.toml");
    fs::write(&more, "[workers]\ndispatch = \"round-robin\"\n").expect("it is ours");
    let checked = ctl(&daemon, &["config", "check"]).out;
    assert!(
        checked.starts_with(&format!(
            "{}: good; a reload would change 1 key\n",
            files(3)
        )),
        "{checked}"
    );
    let reloaded = ctl(&daemon, &["reload"]);
    assert_eq!(
        (reloaded.code, daemon.status().dispatch.as_str()),
        (Some(0), "round-robin"),
        "{}",
        reloaded.err
    );
    let upgraded = ctl(&daemon, &["upgrade"]);
    assert_eq!(upgraded.code, Some(0), "{}", upgraded.err);
    assert!(ctl(&daemon, &["config", "show"]).out.starts_with(&files(3)));
    assert!(
        ctl(&daemon, &["config", "check"])
            .out
            .ends_with("a reload would change nothing\n")
    );

    fs::write(&more, "limits.max-frame = \"1MiB\"\n").expect("it is ours");
    for said in [
        option("-t"),
        option("-T"),
        ctl(&daemon, &["config", "check"]),
        ctl(&daemon, &["reload"]),
    ] {
        for words in [
            "`limits.max-frame` is given twice",
            "/etc/fdpassd.d/20-b.toml:1:8",
            "/etc/fdpassd.d/10-a.toml:1:8",
        ] {
            assert!(said.err.contains(words), "{words} is not in {}", said.err);
        }
    }
    assert_eq!(daemon.status().dispatch, "round-robin");
    fs::remove_file(&more).expect("it is ours");
    daemon.reload().expect("it is applied");
    assert_eq!(daemon.status().dispatch, "least-loaded");
}

#[test]
fn an_empty_file_is_applied_by_force_only() {
    let Some(daemon) =
        start_with_standard_file("workers.count = 1", "limits.max-frame = \"64KiB\"")
    else {
        return;
    };
    let drop_in = daemon.directory().join("fdpassd.d/10-a.toml");
    fs::write(&drop_in, "\n").expect("it is ours");
    let words = "/etc/fdpassd.d/10-a.toml: the file is empty, as while it is being written; \
                 the configuration in force has limits.max-frame from a file; \"reload --force\" takes the file as it is";
    daemon.signal("HUP");
    daemon.wait_for_log(&format!(
        "SIGHUP: the new configuration is rejected: {words}"
    ));
    for arguments in [&["config", "check"][..], &["reload"]] {
        let said = ctl(&daemon, arguments);
        assert!(
            said.code == Some(1) && said.err.contains("the file is empty"),
            "{}",
            said.err
        );
    }
    assert!(
        ctl(&daemon, &["config", "show"])
            .out
            .contains("= \"64KiB\"")
    );
    let said = ctl(&daemon, &["reload", "--force"]);
    assert_eq!(said.code, Some(0), "{}", said.err);
    assert!(
        !ctl(&daemon, &["config", "show"])
            .out
            .contains("= \"64KiB\"")
    );
}

/// Starts the daemon in a mount namespace where its directory is `/etc`, with a file next to the standard one. Needs
/// root; the test is skipped where that is impossible.
fn start_with_standard_file(config: &str, drop_in: &str) -> Option<Running> {
    let is_possible = Command::new("unshare")
        .args(["--mount", "mount", "--bind", "/tmp", "/etc"])
        .output();
    if !is_possible
        .as_ref()
        .is_ok_and(|output| output.status.success())
    {
        skip(
            "namespaces",
            &format!("no mount namespace can be made: {is_possible:?}"),
        );
        return None;
    }
    let script = format!(
        "d=${{2%/*}} && ln -s config.toml $d/fdpassd.toml && mkdir $d/fdpassd.d && echo '{drop_in}' >$d/fdpassd.d/10-a.toml \
         && mount --bind $d /etc && exec \"$0\" -c /etc/fdpassd.toml"
    );
    let setup = ["--mount", "sh", "-c", &script, FDPASSD]
        .into_iter()
        .fold(Setup::new("unshare", config), Setup::argument);
    Some(setup.start().expect("it serves"))
}

/// Runs fdpassd with an option where this daemon runs.
fn run_inside(daemon: &Running, option: &str) -> Said {
    let target = daemon.pid().to_string();
    run(
        "nsenter",
        &[
            "--mount",
            "--target",
            &target,
            FDPASSD,
            option,
            "-c",
            "/etc/fdpassd.toml",
        ],
    )
}
