//! An app in a system call that does not return: not even SIGKILL ends it. Its callers get `timeout` by a bound, all
//! others are served, and no change of the daemon waits longer.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use fdpassd::testing::{Client, Running};
use serde_json::json;
use tempfile::TempDir;

use crate::apps::{app_of, counted, start};
use crate::common::needs::skip;
use crate::common::program::{Program, run};
use crate::common::upgrade::upgrade;
use crate::common::{FDPASSD, kernel};

/// How long the master waits for the end of an app.
const BOUND: Duration = Duration::from_secs(5);

/// Returns for how much longer a change may take: 20 s, and more on a machine that is busy now.
fn slack(daemon: &Running) -> Duration {
    let began = Instant::now();
    daemon.ctl("recycle").expect("the workers are replaced");
    Duration::from_secs(20) + 4 * began.elapsed()
}

/// Files whose open(2) does not return while this exists.
pub struct DeadDisk {
    directory: String,
    opened: u32,
    program: Program,
    _mount_point: TempDir,
}

impl DeadDisk {
    /// Skips the test where no file system can be mounted.
    pub fn new() -> Option<DeadDisk> {
        let script = crate::common::root().join("tests/it/app_hangs/file_system.py");
        let directory = tempfile::tempdir().expect("a directory");
        if run("python3", &["--version"]).code != Some(0) {
            skip("python3", "there is no python3");
            return None;
        }
        let mut program = Program::start(Command::new("python3").arg(script).arg(directory.path()));
        let path = program.line().trim().to_owned();
        if path.is_empty() {
            let said = program.finish().err;
            skip("fuse", said.lines().last().unwrap_or("nothing is mounted"));
            return None;
        }
        Some(DeadDisk {
            directory: path,
            opened: 0,
            program,
            _mount_point: directory,
        })
    }

    /// Returns the path of a file.
    pub fn file(&self) -> PathBuf {
        Path::new(&self.directory).join("file")
    }

    /// Has an app open it. Returns the client that waits, and the app.
    fn open(&mut self, daemon: &Running, method: &str) -> (Client, u32) {
        let mut client = daemon.connect();
        // Each file is looked up once.
        self.opened += 1;
        client.request(method, format!("{}/{}", self.directory, self.opened));
        let status = daemon.wait_until("a request is away", |status| {
            status.workers.iter().any(|worker| worker.away == 1)
        });
        let worker = status.workers.iter().find(|worker| worker.away == 1);
        let app = app_of(worker.and_then(|worker| worker.pid).expect("it runs"));
        assert_eq!(self.program.line(), "looked up\n");
        (client, app)
    }
}

/// Returns whether a process that was killed still waits.
fn is_waiting(pid: u32) -> bool {
    kernel::state(pid) == Some('D')
}

const LIMITS: &str = "workers.count = 2\nlimits.request-timeout = \"6s\"\n\
    limits.stall-timeout = \"200ms\"\nlimits.drain-timeout = \"300ms\"\n";

#[test]
fn callers_of_an_app_that_cannot_be_killed_get_timeout() {
    let Some(mut disk) = DeadDisk::new() else {
        return;
    };
    let Some(daemon) = start(LIMITS) else {
        return;
    };
    let slack = slack(&daemon);
    // A worker that was slow to be replaced has been killed after its `drain-timeout`.
    let deaths_before = daemon.status().deaths_total;
    let mut others: Vec<Client> = (0..6).map(|_| daemon.connect()).collect();
    let began = Instant::now();
    let (mut caller, app) = disk.open(&daemon, "open");
    daemon.wait_until("the app is found stuck", |status| status.stalls_total > 0);
    while !caller.has_something() {
        for (number, other) in others.iter_mut().enumerate() {
            let sent = Instant::now();
            assert_eq!(other.call("echo", number), Ok(json!(number)));
            assert!(
                sent.elapsed() < BOUND - Duration::from_secs(1),
                "others go on"
            );
        }
    }
    assert_eq!(caller.reply().value().expect_err("late").code(), "timeout");
    assert!(began.elapsed() < BOUND + slack, "{:?}", began.elapsed());
    assert!(is_waiting(app), "it was not ended by anything");
    daemon.wait_for_log(&format!(
        "app {app} was killed and has not ended after 5 s; 1 request gets timeout"
    ));
    assert_eq!(caller.call("echo", 1), Ok(json!(1)));
    let status = daemon.wait_for_workers();
    let deaths = status.deaths_total - deaths_before;
    assert_eq!((deaths, status.lost_total), (1, 0));
}

#[test]
fn a_request_of_an_app_that_cannot_be_killed_runs_once() {
    let Some(mut disk) = DeadDisk::new() else {
        return;
    };
    let Some(daemon) = start("workers.count = 2\nlimits.request-timeout = \"none\"") else {
        return;
    };
    let slack = slack(&daemon);
    let (mut caller, app) = disk.open(&daemon, "idempotent_open");
    let worker = daemon
        .worker_pids()
        .into_iter()
        .find(|worker| app_of(*worker) == app);
    let killed = Instant::now();
    crate::app_deaths::kill_9(worker.expect("it runs"));
    // Another client at once, its own requests when the time is over.
    assert_eq!(daemon.call("echo", 1), Ok(json!(1)));
    assert!(!caller.has_something(), "the other was not kept waiting");
    caller.request("echo", 2);
    assert_eq!(caller.reply().value().expect_err("late").code(), "timeout");
    let waited = killed.elapsed();
    assert!(BOUND <= waited && waited < BOUND + slack, "{waited:?}");
    assert_eq!(caller.reply().value(), Ok(json!(2)));
    assert!(is_waiting(app), "it was not ended by anything");
    assert_eq!(
        counted(&daemon, 1),
        ["open"],
        "idempotent, but the first may not be over"
    );
}

#[test]
fn no_change_waits_for_an_app_that_cannot_be_killed() {
    let Some(mut disk) = DeadDisk::new() else {
        return;
    };
    let limits = LIMITS.replace("\"6s\"\nlimits.stall", "\"none\"\nlimits.stall");
    let Some(mut daemon) = start(&limits) else {
        return;
    };
    let slack = slack(&daemon);
    let mut idle = daemon.connect();
    for (number, change) in ["reload", "upgrade", "recycle", "stop"]
        .into_iter()
        .enumerate()
    {
        let (mut caller, app) = disk.open(&daemon, "open");
        let began = Instant::now();
        match change {
            "reload" => drop(daemon.reload().expect(change)),
            "upgrade" => drop(upgrade(&daemon, Some(Path::new(FDPASSD))).expect(change)),
            "recycle" => drop(daemon.ctl("recycle").expect(change)),
            _ => {
                daemon.signal("TERM");
                assert_eq!(daemon.wait().code(), Some(0));
            }
        }
        assert!(
            began.elapsed() < BOUND + slack,
            "{change}: {:?}",
            began.elapsed()
        );
        if change == "stop" {
            break;
        }
        assert_eq!(idle.call("echo", number), Ok(json!(number)), "{change}");
        let fault = caller.reply().value().expect_err(change);
        assert_eq!(fault.code(), "timeout", "{change}");
        assert!(
            began.elapsed() < BOUND + slack,
            "{change}: {:?}",
            began.elapsed()
        );
        assert!(is_waiting(app), "{change}");
        daemon.wait_for_workers();
        assert_eq!(caller.call("echo", number), Ok(json!(number)), "{change}");
    }
    drop(disk);
}
