//! A master that takes over clients serves without a missing log or socket, reports it, and tries again.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;

use fdpassd::proto::control::Status;
use fdpassd::proto::names::Address;
use fdpassd::testing::{Client, Running, ServiceManager, eventually};

use crate::common::{FDPASSD, http, ping_all};

const CONFIG: &str = r#"
    workers.count = 2
    log = { target = "file", file = "{dir}/logs/log" }
    control.socket = "{dir}/run/control.sock"
    metrics.listen = "unix:{dir}/web/metrics.sock"
"#;

const PLACES: [&str; 3] = ["logs", "run", "web"];

fn start(manager: &ServiceManager) -> Running {
    let directory = tempfile::tempdir().expect("a directory");
    for place in PLACES {
        fs::create_dir(directory.path().join(place)).expect("it is new");
    }
    let root = directory.keep();
    let daemon = manager
        .setup(
            FDPASSD,
            &CONFIG.replace("{dir}", root.to_str().expect("UTF-8")),
        )
        .start();
    daemon.expect("the daemon serves")
}

/// Where the three places are.
fn root(daemon: &Running) -> std::path::PathBuf {
    let config = fs::read_to_string(daemon.directory().join("config.toml")).expect("it is ours");
    let line = config
        .lines()
        .find_map(|line| line.split_once("/run/control.sock"))
        .expect("it is configured")
        .0;
    Path::new(line.rsplit_once('"').expect("it is in quotes").1).to_owned()
}

fn rename_all(root: &Path, from: &str, to: &str) {
    for place in PLACES {
        fs::rename(
            root.join(format!("{place}{from}")),
            root.join(format!("{place}{to}")),
        )
        .expect("it is there");
    }
}

/// The missing things, by first word.
fn missing(status: &Status) -> Vec<&str> {
    status
        .missing
        .iter()
        .filter_map(|sentence| sentence.split([' ', ':']).next())
        .collect()
}

#[test]
fn a_restart_serves_without_log_control_socket_and_metrics() {
    let manager = ServiceManager::new();
    let mut daemon = start(&manager);
    let root = root(&daemon);
    let mut clients: Vec<Client> = (0..30).map(|_| daemon.connect()).collect();
    ping_all(&mut clients);
    rename_all(&root, "", ".away");
    daemon.signal("TERM");
    assert!(daemon.wait().success());
    let daemon = thread::scope(|scope| {
        // The next master is found by its control socket.
        scope.spawn(|| {
            eventually("the service manager is told what is missing", || {
                let told = manager.told().join("\n");
                [
                    "missing: log: cannot open log file ",
                    "missing: control socket ",
                    "missing: metrics on unix:",
                ]
                .iter()
                .all(|words| told.contains(words))
                .then_some(())
            });
            ping_all(&mut clients);
            // Nothing listens at the file of the master before.
            fs::remove_file(root.join("run.away/control.sock")).expect("it is there");
            fs::rename(root.join("run.away"), root.join("run")).expect("it is there");
        });
        manager
            .setup(FDPASSD, "")
            .start_after(daemon)
            .expect("the next master serves")
    });
    let log = root.join("logs/log").display().to_string();
    daemon.wait_for_log(&format!(
        "cannot open log file {log}: No such file or directory"
    ));
    daemon.wait_until("the rest is missing", |status| {
        missing(status) == ["log", "metrics"]
    });
    fs::rename(root.join("web.away"), root.join("web")).expect("it is there");
    daemon.wait_until("the log is missing", |status| missing(status) == ["log"]);
    let metrics = Address::Unix(root.join("web/metrics.sock"));
    let answer = http::get(&metrics, "/healthz");
    assert_eq!(answer.status, 200);
    assert!(
        answer
            .body
            .starts_with("ok; missing: log: cannot open log file "),
        "{}",
        answer.body
    );
    fs::rename(root.join("logs.away"), root.join("logs")).expect("it is there");
    daemon.reload().expect("all is there again");
    daemon.wait_until("nothing is missing", |status| status.missing.is_empty());
    assert!(
        fs::read_to_string(root.join("logs/log"))
            .expect("it is open")
            .contains("reloaded: generation ")
    );
    ping_all(&mut clients);
    let status = daemon.status();
    assert_eq!((status.clients, status.lost_total), (30, 0));
    fs::remove_dir_all(&root).expect("it is ours");
}

#[test]
fn an_upgrade_keeps_the_open_log_and_makes_a_control_socket() {
    let manager = ServiceManager::new();
    let daemon = start(&manager);
    let root = root(&daemon);
    let mut clients: Vec<Client> = (0..30).map(|_| daemon.connect()).collect();
    ping_all(&mut clients);
    // The trial of the program looks at none of these.
    rename_all(&root, "", ".away");
    daemon.signal("USR2");
    let log = root.join("logs.away/log");
    eventually("the daemon is upgraded", || {
        fs::read_to_string(&log)
            .expect("it is open")
            .contains("upgraded to ")
            .then_some(())
    });
    ping_all(&mut clients);
    // The file of the program before, while the daemon does not look there: it binds its socket as soon as it can.
    let _ = fs::remove_file(root.join("run.away/control.sock"));
    for place in ["run", "web"] {
        fs::rename(root.join(format!("{place}.away")), root.join(place)).expect("it is there");
    }
    // Its file is there a moment before it listens.
    eventually("the control socket listens again", || {
        UnixStream::connect(root.join("run/control.sock")).ok()
    });
    daemon.wait_until("nothing is missing", |status| status.missing.is_empty());
    ping_all(&mut clients);
    let status = daemon.status();
    assert_eq!((status.clients, status.lost_total), (30, 0));
    fs::remove_dir_all(&root).expect("it is ours");
}
