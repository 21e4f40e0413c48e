//! Methods of an app: every caller gets the right reply, also when the app fails.

mod callers;
mod faults;
mod frames;
mod idle;
mod kill_points;
mod requests;
mod time;

use std::process::Command;

use fdpassd::testing::{Client, Running, Setup, eventually};
use serde_json::{Value, json};

use crate::common::FDPASSD;
use crate::common::faulty::{self, Switch};
use crate::common::needs::skip;
use crate::common::root;

/// Starts the daemon with the app of these tests, or returns `None` without python3.
pub fn start(config: &str) -> Option<Running> {
    start_with(config, &[])
}

/// As [`start`], with variables of the app's environment.
fn start_with(config: &str, variables: &[(&str, &str)]) -> Option<Running> {
    start_process(config, "", variables, &[])
}

/// As [`start`], with more keys of `[app]`.
pub fn start_app(config: &str, keys: &str) -> Option<Running> {
    start_process(config, keys, &[], &[])
}

/// As [`start_with`], with more keys of `[app]` and, as `of_daemon`, variables of the daemon's environment.
fn start_process(
    config: &str,
    keys: &str,
    variables: &[(&str, &str)],
    of_daemon: &[(&str, &str)],
) -> Option<Running> {
    let config = configuration(config, keys, variables)?;
    let setup = of_daemon
        .iter()
        .fold(Setup::new(FDPASSD, &config), |setup, (name, value)| {
            setup.variable(name, value)
        });
    let daemon = setup.start().expect("it serves");
    daemon.wait_for_workers();
    Some(daemon)
}

/// Returns a configuration with the app of these tests. None if there is no python3.
fn configuration(config: &str, keys: &str, variables: &[(&str, &str)]) -> Option<String> {
    if Command::new("python3").arg("--version").output().is_err() {
        skip("python3", "there is no python3");
        return None;
    }
    let app = root().join("tests/it/apps/app.py");
    let variables: Vec<String> = variables
        .iter()
        .chain(&[("COUNTS", "{dir}/counts")])
        .map(|(name, value)| format!("{name} = {value:?}"))
        .collect();
    Some(format!(
        "{config}\n[app]\ncommand = [\"python3\", {app:?}]\nenvironment = {{ {} }}\n{keys}\n",
        variables.join(", ")
    ))
}

/// Starts a daemon that has no methods except those of the app, with a switch for its health function.
pub fn start_without_methods() -> Option<(Running, Switch)> {
    let config = configuration("workers.count = 1", "", &[])?;
    Some(faulty::start_without_methods(&config))
}

/// Returns the pid of the app of a worker.
pub fn app_of(worker: u32) -> u32 {
    let children = format!("/proc/{worker}/task/{worker}/children");
    let children = std::fs::read_to_string(children).expect("the worker runs");
    let app = children.split_whitespace().next().expect("it has an app");
    app.parse().expect("a pid")
}

fn kill(pid: u32) {
    let killed = Command::new("kill").args(["-9", &pid.to_string()]).status();
    assert!(killed.expect("kill").success());
}

/// Sends a request, and pings from other clients. Checks the replies to the pings, and returns the code of the request's error.
#[track_caller]
fn fault_of(daemon: &Running, method: &str, params: &Value) -> String {
    let mut others: Vec<Client> = (0..6).map(|_| daemon.connect()).collect();
    let mut client = daemon.connect();
    client.request(method, params);
    for (number, other) in others.iter_mut().enumerate() {
        other.request("ping", number);
    }
    let fault = client.reply().value().expect_err("an error");
    for (number, other) in others.iter_mut().enumerate() {
        assert_eq!(other.reply().value(), Ok(json!(number)), "{params}");
    }
    // The connection stays open.
    assert_eq!(client.call("echo", 1), Ok(json!(1)), "{params}");
    fault.code().to_owned()
}

/// Returns the lines that the app's methods have written to `counts`, once there are at least `least`.
pub fn counted(daemon: &Running, least: usize) -> Vec<String> {
    let file = daemon.directory().join("counts");
    eventually("lines of the app", || {
        let lines = std::fs::read_to_string(&file).unwrap_or_default();
        let lines: Vec<String> = lines.lines().map(str::to_owned).collect();
        (lines.len() >= least).then_some(lines)
    })
}
