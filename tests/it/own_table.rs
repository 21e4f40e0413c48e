//! The table of a daemon's own in its configuration: `[faulty]` of `examples/faulty.rs`.

use fdpassd::testing::{Running, ServiceManager};
use serde_json::{Value, json};

use crate::common::faulty::{self, example, whoami};
use crate::common::program::{ctl, run};
use crate::common::upgrade::{assert_refused, upgrade};

fn settings(daemon: &Running) -> Value {
    daemon.call("settings", ()).expect("a result")
}

#[test]
fn a_state_receives_the_table_and_a_reload_the_next_one() {
    let daemon = faulty::start("workers.count = 2\n[faulty]\nwords = \"first\"");
    assert_eq!(settings(&daemon), json!(["first", null]));
    let mut client = daemon.connect();
    let before = whoami(&mut client);
    let next = "[faulty]\nwords = \"\\\"next\\\"\"\npair = { left = 1, right = 2 }";
    daemon.write_config(next);
    let checked = ctl(&daemon, &["config", "check"]);
    for words in [
        "would change 3 keys\n",
        "faulty.words",
        "{ left = 1, right = 2 }",
    ] {
        assert!(checked.out.contains(words), "{checked:?}");
    }
    daemon.reload().expect("it is good");
    assert_ne!(whoami(&mut client).pid, before.pid);
    assert_eq!(settings(&daemon), json!(["\"next\"", [1, 2]]));
    let shown = ctl(&daemon, &["config", "show"]).out;
    assert!(shown.contains("faulty.pair"), "{shown}");
    daemon.reload_with("").expect("it may be missing");
    assert_eq!(settings(&daemon), json!(["", null]));
}

#[test]
fn a_mistake_in_the_table_is_shown_with_its_place() {
    let daemon = faulty::start("[faulty]\nwords = \"first\"");
    for (table, message, caret) in [
        (
            "[faulty]\nwrods = \"x\"\n",
            "unknown key `wrods`",
            "| wrods = \"x\"\n  | ^^^^^",
        ),
        (
            "[faulty]\nwords = 3\n",
            "invalid value: integer `3`, expected a string",
            "| words = 3\n  |         ^",
        ),
        (
            "[faulty.pair]\nleft = 1\n",
            "missing key `right`",
            "| [faulty.pair]\n  | ^^^^^^",
        ),
        (
            "[faulti]\n",
            "unknown key `faulti`",
            "did you mean `faulty`?",
        ),
    ] {
        daemon.write_config(&format!("# it is a test\n{table}"));
        let file = daemon.directory().join("config.toml");
        let file = file.to_str().expect("it is UTF-8");
        let program = example("faulty");
        for said in [
            run(&program, &["-t", "-c", file]),
            run(&program, &["-T", "-c", file]),
            run(&program, &["-c", file]),
            ctl(&daemon, &["config", "check"]),
            ctl(&daemon, &["reload"]),
        ] {
            assert!(
                matches!(said.code, Some(1 | 78))
                    && said.err.contains(message)
                    && said.err.contains(caret),
                "{said:?}"
            );
        }
    }
    assert_eq!(settings(&daemon), json!(["first", null]));
    // A daemon without a table of its own.
    daemon.write_config("[resized]\nx = 1");
    let file = daemon.directory().join("config.toml");
    let said = run(
        example("resized"),
        &["-t", "-c", file.to_str().expect("it is UTF-8")],
    );
    assert!(
        said.code == Some(78) && said.err.contains("unknown key `resized`"),
        "{said:?}"
    );
}

#[test]
fn the_test_options_read_the_table() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("faulty.toml");
    let text = "[faulty]\npair.left = 1\npair.right = 2\nwords = \"a\\nb\"\n";
    std::fs::write(&path, text).expect("it is ours");
    let file = path.to_str().expect("it is UTF-8");
    let said = run(example("faulty"), &["-t", "-c", file]);
    assert_eq!(said.code, Some(0), "{said:?}");
    let dump = run(example("faulty"), &["-T", "-c", file]).out;
    assert!(
        dump.contains("\n[faulty]\npair = { left = 1, right = 2 }\n"),
        "{dump}"
    );
    std::fs::write(&path, dump).expect("it is ours");
    let said = run(example("faulty"), &["-t", "-c", file]);
    assert_eq!(said.code, Some(0), "{said:?}");
}

#[test]
fn a_reload_to_a_table_without_workers_is_rolled_back() {
    let daemon = faulty::start("workers.count = 1\n[faulty]\nwords = \"first\"");
    let refused = daemon.reload_with("workers.count = 1\n[faulty]\nfails = true");
    let refused = refused.expect_err("no worker becomes ready").to_string();
    assert!(refused.contains("the table has this reason"), "{refused}");
    assert_eq!(settings(&daemon), json!(["first", null]));
}

#[test]
fn a_restart_with_a_mistake_in_the_table_keeps_the_last_one() {
    let (manager, program) = (ServiceManager::new(), example("faulty"));
    let config = "workers.count = 1\n[faulty]\nwords = \"first\"";
    let daemon = manager.setup(&program, config).start().expect("it serves");
    let mut client = daemon.connect();
    whoami(&mut client);
    daemon.write_config("workers.count = 1\n[faulty]\nwrods = \"next\"");
    daemon.signal("TERM");
    let next = manager.setup(&program, config);
    let daemon = next.start_after(daemon).expect("the next master serves");
    whoami(&mut client);
    assert_eq!(settings(&daemon), json!(["first", null]));
    let stale = daemon.status().config_stale.expect("it is not the file's");
    assert!(stale.contains("unknown key `wrods`"), "{stale}");
}

#[test]
fn an_upgrade_without_a_reader_of_the_table_is_refused() {
    let daemon = faulty::start("[faulty]\nwords = \"first\"");
    let refused = upgrade(&daemon, Some(&example("resized")));
    assert_refused(refused, "refused", "unknown key `faulty`");
    assert_eq!(settings(&daemon), json!(["first", null]));
    let upgraded = ctl(&daemon, &["upgrade"]);
    assert_eq!(upgraded.code, Some(0), "{upgraded:?}");
    assert_eq!(settings(&daemon), json!(["first", null]));
}
