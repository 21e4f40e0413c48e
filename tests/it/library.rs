//! Daemons of your own: `examples/resized.rs` and, for all that can go wrong in one, `examples/faulty.rs`.

mod descriptors;
mod panics;
mod replies;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use fdpassd::testing::{Client, Running, eventually};
use serde_json::{Value, json};

use crate::common::faulty::{self, example};
use crate::common::kernel;
use crate::common::program::{FDPASSCTL, OtherUser, Program, run};

#[test]
fn a_daemon_of_your_own_runs_and_answers_with_its_methods() {
    let daemon = Running::start(example("resized"), "workers.count = 1").expect("it serves");
    let mut client = daemon.connect();
    for (picture, frame, size) in [
        ([4000, 3000], [800, 800], [800, 600]),
        ([3000, 4000], [800, 800], [600, 800]),
        ([100, 100], [200, 300], [200, 200]),
    ] {
        client.request("fit", json!({"picture": picture, "frame": frame}));
        let reply = client.reply();
        assert_eq!(
            (reply.name.as_str(), reply.value().expect("a result")),
            ("fit_r", json!(size))
        );
    }
    let fault = client
        .call("fit", json!({"picture": [0, 5], "frame": [1, 1]}))
        .expect_err("no pixels");
    assert_eq!(fault.to_string(), "no_pixels: a picture of 0×5 has none");
    assert_eq!(
        client.call("report", ()).expect("a result"),
        json!({"seat": 0, "fitted": 3})
    );
    assert_eq!(client.call("ping", "too").expect("a result"), "too");

    let picture = "{ \"a\": 1e400,\t\"a\": \"\\u0041\" }";
    client.send_frame(format!("{{\"in\":\"original\",\"params\":{picture}}}"));
    let reply = client.reply();
    assert_eq!(
        (reply.name.as_str(), reply.result.get()),
        ("picture", picture)
    );
}

#[test]
fn its_methods_are_listed_with_those_that_every_daemon_has() {
    let daemon = Running::start(example("resized"), "").expect("it serves");
    let methods = daemon.call("methods", ()).expect("a result");
    let expected = [
        ("fit", true),
        ("methods", true),
        ("original", false),
        ("ping", true),
        ("report", false),
    ];
    let expected: Vec<Value> = expected
        .map(|(name, again)| json!({"name": name, "idempotent": again}))
        .into();
    assert_eq!(methods, json!(expected));
}

#[test]
fn a_daemon_of_your_own_uses_its_own_name_everywhere() {
    let resized = example("resized");
    let version = env!("CARGO_PKG_VERSION");
    let said = run(&resized, &["-V"]);
    assert_eq!(
        (said.code, said.out),
        (Some(0), format!("resized {version}\n"))
    );
    let said = run(&resized, &["-c", "/nowhere.toml"]);
    assert!(
        said.code == Some(78) && said.err.starts_with("resized: "),
        "{said:?}"
    );
    let said = run(&resized, &["--help"]);
    assert!(said.out.contains("Usage: resized"), "{}", said.out);

    // As a user who is not root: root's daemons all have their sockets in /run.
    let runtime = tempfile::tempdir().expect("a directory");
    let nobody = OtherUser::if_root();
    fs::set_permissions(runtime.path(), Permissions::from_mode(0o777))
        .expect("it is our directory");
    let home = runtime.path();
    let config = home.join("config.toml");
    fs::write(&config, "listen = [\"127.0.0.1:0\"]").expect("it is our directory");
    let program = resized.to_str().expect("cargo's paths are UTF-8");
    let mut command = nobody.as_ref().map_or_else(
        || Command::new(&resized),
        |nobody| nobody.command(program, 65_534),
    );
    command
        .env_remove("RUNTIME_DIRECTORY")
        .env("XDG_RUNTIME_DIR", home);
    let mut daemon = Program::start(command.arg("-c").arg(&config));
    assert!(
        daemon
            .line()
            .starts_with(&format!("resized {version} listens on 127.0.0.1:"))
    );
    let socket = home.join("resized/control.sock").display().to_string();
    let said = run(FDPASSCTL, &["version", "-s", &socket]);
    assert!(
        said.out
            .contains(&format!("\nresized {version}, pid {}\n", daemon.pid())),
        "{said:?}"
    );
    // One that was executed just now has the name of its program's descriptor.
    eventually("its workers go by that name too", || {
        let workers = kernel::children(daemon.pid()).into_iter();
        let names = workers.flat_map(|pid| fs::read_to_string(format!("/proc/{pid}/comm")));
        let names: Vec<String> = names.collect();
        (!names.is_empty() && names.iter().all(|name| name == "resized\n")).then_some(())
    });
    // As the user whose sockets are below this directory.
    let by_name = |program: &Path, arguments: &[&str]| {
        let program = program.to_str().expect("cargo's paths are UTF-8");
        let mut command = nobody.as_ref().map_or_else(
            || Command::new(program),
            |nobody| nobody.command(program, 65_534),
        );
        let command = command.env_remove("RUNTIME_DIRECTORY");
        command
            .args(arguments)
            .env("XDG_RUNTIME_DIR", home)
            .env("HOME", home)
            .output()
    };
    let named = by_name(Path::new(FDPASSCTL), &["-n", "resized", "version"]).expect("it runs");
    let named = String::from_utf8_lossy(&named.stdout).into_owned();
    assert!(
        named.contains(&format!("\nresized {version}, pid ")),
        "{named}"
    );
    let other = by_name(&example("counterctl"), &["status"]).expect("it runs");
    let error = String::from_utf8_lossy(&other.stderr).into_owned();
    assert!(
        other.status.code() == Some(3)
            && error.starts_with("counterctl: ")
            && error.contains("/counterd/control.sock"),
        "{error}"
    );
    let said = run(FDPASSCTL, &["stop", "-s", &socket]);
    assert_eq!(
        (said.code, said.out),
        (Some(0), format!("resized (pid {}) stopped\n", daemon.pid()))
    );
    assert_eq!(daemon.finish().code, Some(0));
}

#[test]
fn errors_of_the_program_are_reported_at_the_start() {
    let rule = "[a-z][a-z0-9_.-]{0,63}, but not \"error\"";
    for (error, sentence) in [
        ("two-methods", "duplicate method \"nan\"".to_owned()),
        (
            "bad-name",
            format!("\"Bad Name\" is not a valid method name: {rule}"),
        ),
        (
            "no-name",
            format!("\"\" is not a valid method name: {rule}"),
        ),
        (
            "taken-name",
            "every daemon has a method \"ping\"; yours needs another name".to_owned(),
        ),
        (
            "bad-reply-name",
            format!("\"error\" is not a valid name for replies of method \"x\": {rule}"),
        ),
        (
            "goaway-reply-name",
            "\"goaway\" is the last frame of a connection; replies of method \"x\" need another name".to_owned(),
        ),
    ] {
        let refused = faulty::start_with(error, "").expect_err("it is an error");
        assert_eq!(
            (refused.code(), refused.stderr()),
            (Some(70), format!("faulty: {sentence}\n").as_str())
        );
    }
    let refused = faulty::start_with("long-names", "").expect_err("it is an error");
    let error = refused.stderr();
    assert_eq!(refused.code(), Some(70), "{error}");
    assert!(
        error.starts_with("faulty: the list of its 10")
            && error.ends_with(" bytes as JSON, more than 57344\n"),
        "{error}"
    );
    let refused = faulty::start_with("bad-daemon-name", "").expect_err("it is an error");
    assert_eq!(
        (refused.code(), refused.stderr()),
        (
            Some(70),
            "Faulty Daemon: \"Faulty Daemon\" is not a valid name for a daemon: [a-z][a-z0-9_-]{0,31}\n"
        )
    );
}

#[test]
fn its_clients_outlive_its_workers() {
    let daemon = Running::start(example("resized"), "workers.count = 2").expect("it serves");
    daemon.wait_for_workers();
    let mut clients: Vec<Client> = (0..50).map(|_| daemon.connect()).collect();
    for seat in [0, 1, 0] {
        for client in &mut clients {
            client.call("report", ()).expect("a result");
        }
        for worker in daemon.worker_pids() {
            fdpassd::testing::eventually("the worker sleeps", || {
                (kernel::state(worker) == Some('S')).then_some(())
            });
        }
        daemon.kill_worker(seat);
    }
    for client in &mut clients {
        client.call("report", ()).expect("a result");
    }
    assert_eq!(daemon.status().lost_total, 0);
}
