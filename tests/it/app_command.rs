//! `fdpassd app` and `fdpassd dev`: apps without a configuration file.

mod dev;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use fdpassd::proto::names::Address;
use fdpassd::testing::{Client, eventually};
use nix::sys::signal::Signal;
use serde_json::json;
use tempfile::TempDir;

use crate::common::needs::skip;
use crate::common::program::{FDPASSCTL, Program, Said};
use crate::common::{FDPASSD, kernel};

/// An app whose method `times` multiplies by FACTOR.
const APP: &str = r#"
import json, os, socket, struct
wire = socket.socket(fileno=3)
def read(n):
    got = wire.recv(n, socket.MSG_WAITALL)
    return got if len(got) == n else os._exit(0)
def send(record):
    body = json.dumps(record).encode()
    wire.sendall(struct.pack("<I", len(body)) + body)
send({"hello": 1, "methods": [{"name": "times", "idempotent": True}]})
while True:
    request = json.loads(read(struct.unpack("<I", read(4))[0]))
    if "in" in request:
        send({"id": request["id"], "result": request["params"] * FACTOR})
"#;

/// A directory with the app and the control socket.
struct Place(TempDir);

impl Place {
    fn new() -> Option<Place> {
        if Command::new("python3").arg("--version").output().is_err() {
            skip("python3", "there is no python3");
            return None;
        }
        let place = Place(tempfile::tempdir().expect("a directory"));
        place.write(2);
        Some(place)
    }

    fn write(&self, factor: u32) {
        self.write_text(&APP.replace("FACTOR", &factor.to_string()));
    }

    /// Replaces the app at once: a reload never reads a part of it.
    fn write_text(&self, text: &str) {
        let next = self.0.path().join("app.next");
        fs::write(&next, text).expect("it is ours");
        fs::rename(next, self.0.path().join("app.py")).expect("it is ours");
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .current_dir(self.0.path())
            // The place of the control socket.
            .env("RUNTIME_DIRECTORY", self.0.path());
        command
    }

    /// Starts the daemon, and connects a client to the address that it prints.
    fn start(&self, verb: &str) -> (Program, Client) {
        let mut daemon = self.spawn(verb);
        let client = Place::connect(&mut daemon);
        if verb == "dev" {
            wait_for_watch(&daemon);
        }
        (daemon, client)
    }

    fn spawn(&self, verb: &str) -> Program {
        let arguments = [verb, "--listen", "127.0.0.1:0", "--", "python3", "app.py"];
        Program::start(&mut self.command(FDPASSD, &arguments))
    }

    fn connect(daemon: &mut Program) -> Client {
        let line = daemon.line();
        let (_, rest) = line.split_once(" listens on ").expect("an address");
        let (address, call) = rest.split_once("; call it: ").expect("a call");
        assert!(call.contains(&format!("--to {address}")), "{line}");
        let address: Address = address.parse().expect("an address");
        Client::connect(&address)
    }

    fn ctl(&self, arguments: &[&str]) -> Said {
        let mut command = self.command(FDPASSCTL, arguments);
        command
            .arg("--socket")
            .arg(self.0.path().join("control.sock"));
        Program::start(&mut command).finish()
    }

    /// Returns the number of workers.
    fn workers(&self) -> usize {
        let said = self.ctl(&["status", "--json"]);
        let status: serde_json::Value = serde_json::from_str(&said.out).expect("the status");
        status["workers"].as_array().expect("a list").len()
    }

    /// Applies a verb that keeps the connection of a client, and compares the client's next result.
    fn apply(&self, verb: &str, client: &mut Client, times_21: u32) {
        self.succeed(verb);
        let result = client.call("times", 21);
        assert_eq!(result, Ok(json!(times_21)), "the same connection");
    }

    fn succeed(&self, verb: &str) {
        let said = self.ctl(&[verb]);
        assert_eq!(said.code, Some(0), "{}", said.err);
    }
}

/// Waits until the process that `fdpassd dev` has started watches the files. It misses what has changed before.
fn wait_for_watch(daemon: &Program) {
    let is_watching = |pid: u32| {
        let descriptors = fs::read_dir(format!("/proc/{pid}/fdinfo"));
        descriptors.into_iter().flatten().flatten().any(|entry| {
            let info = fs::read_to_string(entry.path()).unwrap_or_default();
            info.contains("inotify wd:")
        })
    };
    eventually("the files are watched", || {
        let mut children = kernel::children(daemon.pid()).into_iter();
        children.any(is_watching).then_some(())
    });
}

#[test]
fn an_app_is_served_without_a_file_and_reloaded() {
    let Some(place) = Place::new() else { return };
    let (daemon, mut client) = place.start("app");
    assert_eq!(client.call("times", 21), Ok(json!(42)));
    let said = place.ctl(&["status"]);
    assert!(
        said.out.contains("config    the command line"),
        "{}",
        said.out
    );
    place.write(3);
    assert_eq!(client.call("times", 21), Ok(json!(42)));
    place.apply("reload", &mut client, 63);
    place.apply("upgrade", &mut client, 63);
    place.succeed("stop");
    assert_eq!(daemon.finish().code, Some(0));
}

/// In a mount namespace, where the directory of the standard file is one with a bad file.
#[test]
fn an_app_ignores_the_standard_file() {
    let Some(place) = Place::new() else { return };
    let etc = tempfile::tempdir().expect("a directory");
    fs::write(etc.path().join("fdpassd.toml"), "nonsense").expect("it is ours");
    let inside = |program: &str, arguments: &[&str]| {
        let script = "mount --bind \"$0\" /etc && exec \"$@\"";
        let mut command = place.command("unshare", &["--mount", "sh", "-c", script]);
        command.arg(etc.path()).arg(program).args(arguments);
        command
    };
    let is_possible = inside("true", &[]).output();
    if !is_possible
        .as_ref()
        .is_ok_and(|output| output.status.success())
    {
        let reason = format!("no mount namespace can be made: {is_possible:?}");
        skip("namespaces", &reason);
        return;
    }
    let said = Program::start(&mut inside(FDPASSD, &["-t"])).finish();
    assert_eq!(said.code, Some(78), "it is read: {}", said.err);
    let arguments = ["app", "--listen", "127.0.0.1:0", "--", "python3", "app.py"];
    let mut daemon = Program::start(&mut inside(FDPASSD, &arguments));
    let mut client = Place::connect(&mut daemon);
    assert_eq!(client.call("times", 21), Ok(json!(42)));
    place.write(3);
    place.apply("reload", &mut client, 63);
    place.succeed("stop");
    assert_eq!(daemon.finish().code, Some(0));
}

#[test]
fn an_app_has_the_number_of_workers_that_is_given() {
    let Some(place) = Place::new() else { return };
    let arguments = ["app", "--listen", "127.0.0.1:0", "--workers", "3", "--"];
    let mut command = place.command(FDPASSD, &arguments);
    let mut daemon = Program::start(command.args(["python3", "app.py"]));
    let mut client = Place::connect(&mut daemon);
    assert_eq!(client.call("times", 21), Ok(json!(42)));
    assert_eq!(place.workers(), 3);
    place.succeed("stop");
    assert_eq!(daemon.finish().code, Some(0));
}

#[test]
fn a_change_of_a_file_reloads_the_app_of_dev() {
    let Some(place) = Place::new() else { return };
    let (daemon, mut client) = place.start("dev");
    assert_eq!(client.call("times", 1), Ok(json!(2)));
    assert_eq!(place.workers(), 1);
    let mut becomes = |factor: u32| {
        eventually("the new code", || {
            let result = client.call("times", 1).expect("no call fails");
            (result == json!(factor)).then_some(())
        });
    };
    place.write(3);
    becomes(3);
    // Code that does not start changes nothing, and the log has the reason.
    place.write_text("raise ValueError('no')");
    eventually("the rollback", || {
        let events = place.ctl(&["events", "--json"]);
        events.out.contains("reload_rolled_back").then_some(())
    });
    becomes(3);
    place.write(5);
    becomes(5);
    place.succeed("stop");
    let said = daemon.finish();
    assert_eq!(said.code, Some(0));
    assert!(
        said.err
            .contains("fdpassd dev: app.py has changed; reloading"),
        "{}",
        said.err
    );
    let shown = said.err.matches("app: ValueError: no");
    assert_eq!(shown.count(), 1, "{}", said.err);
}

#[test]
fn a_directory_that_cannot_be_read_is_not_watched_by_dev() {
    let Some(place) = Place::new() else { return };
    let data = place.0.path().join("data");
    fs::create_dir(&data).expect("it is ours");
    fs::set_permissions(&data, fs::Permissions::from_mode(0o000)).expect("it is ours");
    // Without them, root may not read any directory, either.
    let lacks = "--bounding-set=-dac_override,-dac_read_search";
    let mut arguments = vec![lacks, FDPASSD, "dev", "--listen", "127.0.0.1:0", "--"];
    arguments.extend(["python3", "app.py"]);
    let program = match kernel::user() {
        0 => ("setpriv", arguments.as_slice()),
        _ => (FDPASSD, &arguments[2..]),
    };
    let mut daemon = Program::start(&mut place.command(program.0, program.1));
    let mut client = Place::connect(&mut daemon);
    wait_for_watch(&daemon);
    place.write(3);
    eventually("the new code", || {
        let result = client.call("times", 1).expect("no call fails");
        (result == json!(3)).then_some(())
    });
    place.succeed("stop");
    assert_eq!(daemon.finish().code, Some(0));
}

#[test]
fn dev_waits_for_code_that_starts() {
    let Some(place) = Place::new() else { return };
    place.write_text("raise ValueError('no')");
    let mut daemon = place.spawn("dev");
    daemon.wait_for_argument("await-change");
    wait_for_watch(&daemon);
    place.write_text("open('begun', 'w'); raise ValueError('not yet')");
    eventually("the app runs again", || {
        place.0.path().join("begun").exists().then_some(())
    });
    daemon.wait_for_argument("await-change");
    wait_for_watch(&daemon);
    place.write(3);
    let mut client = Place::connect(&mut daemon);
    assert_eq!(client.call("times", 21), Ok(json!(63)));
    wait_for_watch(&daemon);
    // It reloads as if it had started at once.
    place.write(5);
    eventually("the new code", || {
        (client.call("times", 21) == Ok(json!(105))).then_some(())
    });
    place.succeed("stop");
    let said = daemon.finish();
    assert_eq!(said.code, Some(0));
    for (expected, times) in [
        ("app: ValueError: no worker=1\n", 1),
        ("app: ValueError: not yet worker=1\n", 1),
        ("fdpassd dev: waiting for a change", 2),
        ("fdpassd dev: app.py has changed; starting again", 2),
    ] {
        let count = said.err.matches(expected).count();
        assert_eq!(count, times, "{expected}: {}", said.err);
    }
}

#[test]
fn dev_that_waits_ends_by_a_signal() {
    let Some(place) = Place::new() else { return };
    fs::write(place.0.path().join("app.py"), "exit(1)").expect("it is ours");
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let daemon = place.spawn("dev");
        daemon.wait_for_argument("await-change");
        // The process that watches ends with this one when it has begun to watch.
        wait_for_watch(&daemon);
        kernel::send(daemon.pid(), signal);
        assert_eq!(daemon.finish().code, None, "{signal}");
    }
}

#[test]
fn a_command_that_cannot_be_run_is_shown_with_its_place() {
    let place = Place(tempfile::tempdir().expect("a directory"));
    for (arguments, code, shown) in [
        (
            &["app", "--", "no-such-program"][..],
            78,
            " --> the command line:",
        ),
        (
            &["app", "--concurrency", "0", "--", "sh"],
            78,
            "concurrency = 0",
        ),
        (
            &["app", "--listen", "nowhere", "--", "sh"],
            78,
            "listen = [\"nowhere\"]",
        ),
        (&["app", "--workers", "0", "--", "sh"], 78, "count = 0"),
        (&["app"], 64, "Usage: fdpassd app"),
        (
            &["app", "--workers", "2", "python3", "app.py", "-v"],
            64,
            "tip: the program of the app follows \"--\": fdpassd app --workers 2 -- python3 app.py -v",
        ),
        (
            &["dev", "python3", "app.py"],
            64,
            "tip: the program of the app follows \"--\": fdpassd dev -- python3 app.py",
        ),
        (&["dev", "--wacth", "*.py", "--", "sh"], 64, "'--watch'"),
        (
            &["dev", "--", "sh", "-c", "exit"],
            64,
            "the command names no script and no program in the current directory",
        ),
        (
            &["dev", "--", "/bin/sh", "-c", "exit"],
            64,
            "--watch PATTERN names files",
        ),
    ] {
        let said = Program::start(&mut place.command(FDPASSD, arguments)).finish();
        assert_eq!(said.code, Some(code), "{arguments:?}: {}", said.err);
        assert!(said.err.contains(shown), "{arguments:?}: {}", said.err);
    }
}
