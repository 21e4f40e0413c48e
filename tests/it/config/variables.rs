//! Keys in environment variables.

use std::fs;
use std::path::Path;
use std::process::Command;

use fdpassd::testing::{ServiceManager, Setup};
use serde_json::{Value, json};

use super::File;
use crate::common::faulty::example;
use crate::common::needs::skip;
use crate::common::program::{FDPASSCTL, Program, Said, ctl, run};
use crate::common::upgrade::upgrade;
use crate::common::{FDPASSD, kernel, root};

const MAX_CLIENTS: &str = "FDPASSD__LIMITS__MAX_CLIENTS";

#[track_caller]
fn run_with(program: impl AsRef<Path>, arguments: &[&str], variables: &[(&str, &str)]) -> Said {
    let mut command = Command::new(program.as_ref());
    command.args(arguments).envs(variables.iter().copied());
    Program::start(&mut command).finish()
}

#[test]
fn variables_override_the_file_and_the_file_the_default() {
    let file = File::new("limits = { max-clients = 5, max-frame = \"64KiB\" }\n");
    let variables = [
        (MAX_CLIENTS, "6"),
        ("FDPASSD__LOG__LEVEL", "warn"),
        (
            "FDPASSD__LISTEN",
            "[\"127.0.0.1:1\", { address = \"[::1]:2\" }]",
        ),
        (
            "FDPASSD__APP",
            "{ command = [\"true\"], directory = \"/\" }",
        ),
        // These are not of this daemon.
        ("FDPASSD_LIMITS__MAX_CLIENTS", "7"),
        ("COUNTERD__LIMITS__MAX_CLIENTS", "8"),
    ];
    let said = run_with(FDPASSD, &["-T", "-c", &file.name()], &variables);
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""));
    let dump: toml::Table = said.out.parse().expect("TOML");
    assert_eq!(dump["limits"]["max-clients"].as_integer(), Some(6));
    assert_eq!(dump["limits"]["max-frame"].as_str(), Some("64KiB"));
    assert_eq!(dump["limits"]["frame-timeout"].as_str(), Some("30s"));
    assert_eq!(dump["log"]["level"].as_str(), Some("warn"));
    assert_eq!(dump["listen"][1]["address"].as_str(), Some("[::1]:2"));
    assert_eq!(dump["app"]["command"][0].as_str(), Some("true"));

    let said = run_with(FDPASSD, &["-t", "-c", &file.name()], &variables);
    let good = format!(
        "{}, the environment: the configuration is good\n",
        file.name()
    );
    assert_eq!((said.code, said.out), (Some(0), good));
}

#[test]
fn a_bad_variable_is_refused_by_its_name() {
    let file = File::new("");
    let file = file.name();
    for (name, value, message, help) in [
        (
            "FDPASSD__LIMITS__MAX_CLIENT",
            "5",
            "unknown key `max-client`",
            "did you mean FDPASSD__LIMITS__MAX_CLIENTS?",
        ),
        (
            "FDPASSD__LIMIT__MAX_CLIENTS",
            "5",
            "unknown key `limit`",
            "did you mean FDPASSD__LIMITS__MAX_CLIENTS?",
        ),
        (
            "FDPASSD__LIMITS__MAX_FRAME",
            "1MB2",
            "\"1MB2\"",
            "FDPASSD__LIMITS__MAX_FRAME=1MB2\n  |                            ^^^^",
        ),
        (
            "FDPASSD__LISTEN",
            "[\"127.0.0.1:1\"",
            "the array has no end",
            "FDPASSD__LISTEN=[\"127.0.0.1:1\"",
        ),
        ("FDPASSD__LOG__FILE", "/x", "`file` is only for target", ""),
    ] {
        for options in [&["-t"][..], &["-T"], &[]] {
            let arguments = [options, &["-c", &file]].concat();
            let said = run_with(FDPASSD, &arguments, &[(name, value)]);
            assert_eq!((said.code, said.out.as_str()), (Some(78), ""));
            for words in [name, message, help] {
                assert!(said.err.contains(words), "{words} is not in\n{}", said.err);
            }
        }
    }
}

/// The variables that Kubernetes makes in the containers of a namespace for a Service with one port (envvars.go of the
/// kubelet).
fn variables_of_service(name: &str) -> Vec<(String, String)> {
    let name = name.to_uppercase().replace('-', "_");
    let variables = [
        ("SERVICE_HOST", "10.96.0.7"),
        ("SERVICE_PORT", "8080"),
        ("SERVICE_PORT_RPC", "8080"),
        ("PORT", "tcp://10.96.0.7:8080"),
        ("PORT_8080_TCP", "tcp://10.96.0.7:8080"),
        ("PORT_8080_TCP_PROTO", "tcp"),
        ("PORT_8080_TCP_PORT", "8080"),
        ("PORT_8080_TCP_ADDR", "10.96.0.7"),
    ];
    let named = |(rest, value): (&str, &str)| (format!("{name}_{rest}"), value.to_owned());
    variables.map(named).into()
}

#[test]
fn variables_of_a_kubernetes_service_are_harmless_or_named() {
    let file = File::new("limits.max-clients = 5");
    let test = |options: &[&str], service: &str| {
        let variables = variables_of_service(service);
        let mut command = Command::new(FDPASSD);
        command.args(options).args(["-c", &file.name()]);
        Program::start(command.envs(variables)).finish()
    };
    let plain = run(FDPASSD, &["-T", "-c", &file.name()]);
    for service in [
        "fdpassd",
        "fdpassd-metrics",
        "fdpassd-limits--max-clients",
        "x",
    ] {
        let said = test(&["-T"], service);
        assert_eq!((said.code, said.err.as_str()), (Some(0), ""), "{service}");
        assert_eq!(said.out, plain.out, "{service}");
    }
    for service in [
        "fdpassd--x",
        "fdpassd--limits",
        "fdpassd--limits--max-clients",
    ] {
        let said = test(&["-t"], service);
        assert_eq!(said.code, Some(78), "{service}: {}", said.err);
        let help = "Kubernetes makes such variables for a Service; rename the Service, or set \
                    enableServiceLinks: false in the Pod";
        let variable = format!("{}_PORT", service.to_uppercase().replace('-', "_"));
        for words in [help, &variable] {
            assert!(said.err.contains(words), "{words} is not in\n{}", said.err);
        }
    }
}

#[test]
fn a_daemon_of_another_name_has_its_own_variables() {
    let table = [
        ("FAULTY__FAULTY__WORDS", "from the environment"),
        ("FAULTY__FAULTY__PAIR__LEFT", "1"),
        ("FAULTY__FAULTY__PAIR__RIGHT", "2"),
        ("FAULTY__LIMITS__MAX_CLIENTS", "7"),
        ("FDPASSD__LIMITS__MAX_CLIENTS", "wrong"),
    ];
    let config = "workers.count = 1\n[faulty]\nwords = \"from the file\"";
    let setup = Setup::new(example("faulty"), config);
    let setup = table
        .iter()
        .fold(setup, |setup, (name, value)| setup.variable(name, value));
    let daemon = setup.start().expect("it serves");
    let settings: Value = daemon.call("settings", ()).expect("a result");
    assert_eq!(settings, json!(["from the environment", [1, 2]]));
    assert_eq!(daemon.wait_for_workers().max_clients, 7);
    let shown = ctl(&daemon, &["config", "show"]).out;
    let origin = |key: &str| {
        let line = shown.lines().find(|line| line.starts_with(key));
        line.and_then(|line| line.split_whitespace().last().map(str::to_owned))
    };
    for key in ["faulty.words", "faulty.pair", "limits.max-clients"] {
        assert_eq!(origin(key).as_deref(), Some("environment"), "{shown}");
    }
    assert_eq!(origin("workers.count").as_deref(), Some("file"));

    let file = File::new("");
    let arguments = ["-t", "-c", &file.name()];
    let said = run_with(
        example("faulty"),
        &arguments,
        &[("FAULTY__FAULTY__WRODS", "x")],
    );
    assert_eq!(said.code, Some(78));
    let help = "did you mean FAULTY__FAULTY__WORDS?";
    assert!(said.err.contains(help), "{}", said.err);
    let said = run_with(example("faulty"), &arguments, &table[1..2]);
    assert_eq!(said.code, Some(78));
    assert!(said.err.contains("missing key `right`"), "{}", said.err);
    assert!(
        said.err.contains("FAULTY__FAULTY__PAIR__LEFT"),
        "{}",
        said.err
    );
}

#[test]
fn variables_hold_over_reload_and_upgrade() {
    let config = "workers.count = 1\nlimits = { max-clients = 5, idle-timeout = \"1h\" }";
    let daemon = Setup::new(FDPASSD, config)
        .variable(MAX_CLIENTS, "7")
        .start()
        .expect("it serves");
    let limits = |key: &str| {
        let shown = daemon.ctl("config").expect("a result");
        let mut keys = shown["keys"].as_array().expect("keys").iter();
        let name = format!("limits.{key}");
        let entry = keys.find(|entry| entry["key"] == name).expect("the key");
        let files = shown["files"].as_array().expect("files").last().cloned();
        assert_eq!(files, Some(json!("the environment")));
        (entry["value"].clone(), entry["origin"].clone())
    };
    let check = |idle: &str| {
        assert_eq!(daemon.wait_for_workers().max_clients, 7);
        assert_eq!(limits("max-clients"), (json!("7"), json!("environment")));
        assert_eq!(limits("idle-timeout"), (json!(idle), json!("file")));
    };
    check("\"1h\"");
    let next = "workers.count = 1\nlimits = { max-clients = 9, idle-timeout = \"2h\" }";
    daemon.write_config(next);
    let checked = ctl(&daemon, &["config", "check"]).out;
    assert!(
        checked.contains(", the environment: good; a reload would change 1 key\n"),
        "{checked}"
    );
    daemon.reload().expect("it is good");
    check("\"2h\"");
    upgrade(&daemon, None).expect("the same program");
    check("\"2h\"");
    daemon.reload_with(config).expect("it is good");
    check("\"1h\"");
    // A mistake in the file is still one of the file.
    let refused = daemon.reload_with("limits.max-clients = \"x\"");
    let refused = refused.expect_err("a bad file").message().to_owned();
    assert!(refused.contains("invalid value"), "{refused}");
    check("\"1h\"");
}

#[test]
fn a_restart_has_the_variables_of_the_new_process() {
    let manager = ServiceManager::new();
    let daemon = manager
        .setup(FDPASSD, "workers.count = 1\nlimits.max-clients = 5")
        .variable(MAX_CLIENTS, "7")
        .start()
        .expect("it serves");
    let mut client = daemon.connect();
    assert_eq!(client.call("ping", 1), Ok(json!(1)));
    let next = |before: fdpassd::testing::Running, name: &str, value: &str| {
        before.signal("TERM");
        let setup = manager.setup(FDPASSD, "").variable(name, value);
        setup.start_after(before).expect("the next master serves")
    };
    let daemon = next(daemon, MAX_CLIENTS, "8");
    assert_eq!(daemon.wait_for_workers().max_clients, 8);
    assert_eq!(client.call("ping", 2), Ok(json!(2)));
    // A client is not closed for a mistake: the last configuration stays in force.
    let daemon = next(daemon, "FDPASSD__LIMITS__MAX_CLIENT", "9");
    let status = daemon.wait_for_workers();
    assert_eq!(status.max_clients, 8);
    let stale = status
        .config_stale
        .expect("it is not what the variables have");
    assert!(
        stale.starts_with("FDPASSD__LIMITS__MAX_CLIENT: unknown key `max-client`"),
        "{stale}"
    );
    assert_eq!(client.call("ping", 3), Ok(json!(3)));
}

#[test]
fn workers_and_apps_do_not_have_the_variables() {
    if run("python3", &["--version"]).code != Some(0) {
        return skip("python3", "there is no python3");
    }
    let app = root().join("tests/it/app_keys/app.py");
    let command = format!("[\"python3\", {:?}]", app.display().to_string());
    let config = "workers.count = 1\nmetrics.listen = \"unix:{dir}/metrics.sock\"";
    let daemon = Setup::new(FDPASSD, config)
        .variable("FDPASSD__APP__COMMAND", command)
        .variable("FDPASSD__APP__ENVIRONMENT__IN_TABLE", "3")
        .variable(MAX_CLIENTS, "7")
        .variable("FDPASSD_OTHER", "stays")
        .start()
        .expect("it serves");
    let about: Value = daemon.call("about", ()).expect("a result");
    assert_eq!(about["environment"], json!("3"));
    let directory = std::env::current_dir().expect("a directory");
    assert_eq!(about["directory"], json!(directory.display().to_string()));
    let worker = daemon.wait_for_workers().workers[0].clone();
    let app = worker.app.expect("it has an app").pid;
    let environment = |pid: u32| {
        let bytes = fs::read(format!("/proc/{pid}/environ")).expect("it runs");
        String::from_utf8_lossy(&bytes).into_owned()
    };
    assert!(environment(daemon.pid()).contains(MAX_CLIENTS));
    // The worker, and the exporter.
    let mut children = kernel::children(daemon.pid());
    assert!(children.len() >= 2 && !children.contains(&daemon.pid()));
    children.push(app);
    for pid in children {
        let environment = environment(pid);
        assert!(!environment.contains("FDPASSD__"), "{environment}");
        assert!(environment.contains("FDPASSD_OTHER=stays"), "{environment}");
    }
}

#[test]
fn the_arguments_of_an_app_have_precedence() {
    if run("python3", &["--version"]).code != Some(0) {
        return skip("python3", "there is no python3");
    }
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("control.sock").display().to_string();
    let app = root()
        .join("tests/it/app_keys/app.py")
        .display()
        .to_string();
    let arguments = [
        "app",
        "--listen",
        "127.0.0.1:0",
        "--workers",
        "1",
        "--",
        "python3",
        &app,
    ];
    let mut daemon = Program::start(Command::new(FDPASSD).args(arguments).envs([
        ("FDPASSD__CONTROL__SOCKET", socket.as_str()),
        ("FDPASSD__WORKERS__COUNT", "3"),
        (MAX_CLIENTS, "7"),
    ]));
    assert!(daemon.line().contains(" listens on "));
    let shown = run(FDPASSCTL, &["config", "show", "--json", "-s", &socket]).out;
    let shown: Value = serde_json::from_str(&shown).expect("JSON");
    assert_eq!(
        shown["files"],
        json!(["the command line", "the environment"])
    );
    let entry = |key: &str| {
        let mut keys = shown["keys"].as_array().expect("keys").iter();
        let entry = keys.find(|entry| entry["key"] == key).expect("the key");
        (entry["value"].clone(), entry["origin"].clone())
    };
    assert_eq!(entry("workers.count"), (json!("1"), json!("command-line")));
    assert_eq!(
        entry("limits.max-clients"),
        (json!("7"), json!("environment"))
    );
}
