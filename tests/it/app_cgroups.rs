//! Where a cgroup is delegated to the daemon, each app has one of its own, and what it has started ends with it: also a
//! process with a session of its own, which has no parent any more.

use std::fs;
use std::path::{Path, PathBuf};

use fdpassd::proto::control::WorkerStatus;
use fdpassd::testing::{Running, ServiceManager, eventually};
use serde_json::{Value, json};

use crate::app_deaths::kill_9;
use crate::app_preload;
use crate::common::delegation::DelegatedCgroup;
use crate::common::needs::skip;
use crate::common::program::run;
use crate::common::restart::wait_for_confirmed_store;
use crate::common::{FDPASSD, kernel, start};

const APP: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/app_cgroups/app.py");

/// Returns a configuration with this app.
fn config(workers: usize) -> String {
    format!("workers.count = {workers}\napp.command = [\"python3\", \"{APP}\"]\n")
}

/// A daemon with two apps in a cgroup of its own.
struct Delegated {
    daemon: Running,
    manager: ServiceManager,
    cgroup: DelegatedCgroup,
}

impl Delegated {
    /// Starts it. `None` where a test cannot have a cgroup.
    fn start() -> Option<Delegated> {
        let cgroup = DelegatedCgroup::new()?;
        let manager = ServiceManager::new();
        let daemon = cgroup.setup(&manager, FDPASSD, &config(2)).start();
        let daemon = daemon.expect("it serves");
        wait_for_confirmed_store(&daemon);
        let delegated = Delegated {
            daemon,
            manager,
            cgroup,
        };
        delegated.wait_for_pairs();
        Some(delegated)
    }

    /// Waits until two apps with a stray each are all that there is.
    fn wait_for_pairs(&self) {
        self.daemon.wait_for_workers();
        eventually("two apps and two strays", || {
            let counts = (self.cgroup.children().len(), self.apps_and_strays().len());
            (counts == (2, 4)).then_some(())
        });
    }

    /// Returns the processes in the cgroups of apps.
    fn apps_and_strays(&self) -> Vec<u32> {
        let mut processes = self.cgroup.processes();
        let zygote = self.daemon.status().zygote;
        let of_daemon = zygote.into_iter().chain([self.daemon.pid()]).collect();
        let own = [self.daemon.worker_pids(), of_daemon].concat();
        processes.retain(|pid| !own.contains(pid));
        processes
    }

    /// Returns the app and the stray of one worker.
    fn pair(&self) -> [u32; 2] {
        let pair = self.daemon.call("pids", ()).expect("it is answered");
        let pair: [u32; 2] = serde_json::from_value(pair).expect("two pids");
        let name = format!("app-{}", pair[0]);
        assert!(self.cgroup.children().contains(&name), "{name}");
        pair
    }

    /// Waits until none of these processes runs.
    fn wait_for_end(&self, processes: &[u32]) {
        eventually("what the app has started has ended", || {
            let left = self.cgroup.processes();
            (!processes.iter().any(|pid| left.contains(pid))).then_some(())
        });
    }

    /// Does something that replaces all apps, and waits until what they had started has ended, and others are there.
    fn replace_apps(&self, replace: impl FnOnce(&Running)) {
        let before = self.apps_and_strays();
        replace(&self.daemon);
        self.wait_for_end(&before);
        self.wait_for_pairs();
    }

    /// Starts the next master. The settings are taken before the previous one is gone.
    fn start_next(self) -> Delegated {
        let Delegated {
            daemon,
            manager,
            cgroup,
        } = self;
        let next = cgroup.setup(&manager, FDPASSD, "").start_after(daemon);
        Delegated {
            daemon: next.expect("the next master serves"),
            manager,
            cgroup,
        }
    }

    /// Stops it, and checks that nothing is left.
    fn stop(mut self) {
        self.daemon.signal("INT");
        self.daemon.wait();
        assert_eq!(self.cgroup.processes(), [0; 0], "all have ended");
        assert_eq!(self.cgroup.children(), [""; 0], "all are removed");
    }
}

#[test]
fn what_a_killed_app_or_worker_has_started_ends() {
    let Some(delegated) = Delegated::start() else {
        return;
    };
    for is_worker in [false, true, false, true] {
        let [app, stray] = delegated.pair();
        match is_worker {
            false => kill_9(app),
            true => delegated.daemon.worker_pids().into_iter().for_each(kill_9),
        }
        delegated.wait_for_end(&[app, stray]);
        delegated.wait_for_pairs();
    }
    delegated.stop();
}

/// How many pids an app may get that is started next, on a machine that starts many processes.
const NEXT_PIDS: u32 = 1000;

/// The kernel kills a process that is created in a cgroup on which `cgroup.kill` was ever written, but none that enters
/// it. Pids are used again, so an app may find such a cgroup.
#[test]
fn an_app_lives_in_a_cgroup_that_was_killed_once() {
    let Some(delegated) = Delegated::start() else {
        return;
    };
    let (daemon, path) = (&delegated.daemon, delegated.cgroup.path());
    let apps = || -> Vec<u32> {
        let workers = daemon.wait_for_workers().workers.into_iter();
        let app = |worker: WorkerStatus| worker.app.expect("each has one").pid;
        workers.map(app).collect()
    };
    let has_met = (0..10).any(|_| {
        let before = apps();
        let last = fs::read_to_string("/proc/loadavg").expect("/proc");
        let last = last.split_whitespace().last().expect("the last pid");
        let last: u32 = last.parse().expect("a pid");
        let killed = (last + 1..last + NEXT_PIDS).map(|pid| path.join(format!("app-{pid}")));
        let killed: Vec<PathBuf> = killed.filter(|path| fs::create_dir(path).is_ok()).collect();
        for cgroup in &killed {
            fs::write(cgroup.join("cgroup.kill"), "1").expect("it is empty");
        }
        kill_9(before[0]);
        let next = eventually("there is another app", || {
            apps().into_iter().find(|app| !before.contains(app))
        });
        let cgroup = path.join(format!("app-{next}"));
        let has_met = killed.contains(&cgroup);
        for other in killed.iter().filter(|other| **other != cgroup) {
            let _ = fs::remove_dir(other);
        }
        let processes = fs::read_to_string(cgroup.join("cgroup.procs")).expect("it has one");
        assert!(
            processes.lines().any(|pid| pid == next.to_string()),
            "{processes}"
        );
        has_met
    });
    assert!(has_met, "the apps had later pids than the next {NEXT_PIDS}");
    // The processes that it starts live as well.
    delegated.wait_for_pairs();
    delegated.pair();
    delegated.stop();
}

/// The zygote of the app, of which the app is a copy, has none.
#[test]
fn a_forked_app_has_a_cgroup_of_its_own() {
    if !app_preload::has_python() {
        return;
    }
    let Some(cgroup) = DelegatedCgroup::new() else {
        return;
    };
    let manager = ServiceManager::new();
    let config = app_preload::config(1, &json!({}), "");
    let daemon = cgroup.setup(&manager, FDPASSD, &config).start();
    let mut daemon = daemon.expect("it serves");
    wait_for_confirmed_store(&daemon);
    let pid = |value: &Value| value.as_u64().expect("a pid") as u32;
    let about: Value = daemon.call("about", ()).expect("a result");
    let app = pid(&about["pid"]);
    assert_eq!(cgroup.children(), [format!("app-{app}")]);
    let stray = pid(&daemon.call("stray", ()).expect("a pid"));
    kill_9(app);
    eventually("what it has started ends with it", || {
        kernel::is_over(stray).then_some(())
    });
    let about: Value = daemon.call("about", ()).expect("a result");
    let next = format!("app-{}", pid(&about["pid"]));
    eventually("only the next app has a cgroup", || {
        (cgroup.children() == [next.clone()]).then_some(())
    });
    daemon.signal("INT");
    daemon.wait();
    eventually("the zygote has ended", || {
        cgroup.processes().is_empty().then_some(())
    });
    assert_eq!(cgroup.children(), [""; 0], "all are removed");
}

#[test]
fn a_reload_and_an_upgrade_leave_no_process_of_an_app() {
    let Some(delegated) = Delegated::start() else {
        return;
    };
    delegated.replace_apps(|daemon| {
        daemon.reload().expect("it is applied");
    });
    delegated.replace_apps(|daemon| {
        daemon.ctl("upgrade").expect("it is the same program");
    });
    delegated.stop();
}

#[test]
fn a_restart_leaves_no_process_of_an_app() {
    let Some(delegated) = Delegated::start() else {
        return;
    };
    let before = delegated.apps_and_strays();
    delegated.daemon.signal("TERM");
    let next = delegated.start_next();
    let left = next.cgroup.processes();
    assert!(!before.iter().any(|pid| left.contains(pid)), "{left:?}");
    next.wait_for_pairs();
    next.stop();
}

#[test]
fn a_killed_master_leaves_no_process_of_an_app() {
    let Some(mut delegated) = Delegated::start() else {
        return;
    };
    let before = delegated.apps_and_strays();
    delegated.daemon.signal("KILL");
    delegated.daemon.wait();
    // Its workers kill them. They do not remove the cgroups: systemd would kill the worker that still packs.
    eventually("the workers have ended", || {
        delegated.cgroup.processes().is_empty().then_some(())
    });
    assert_eq!(delegated.cgroup.children().len(), 2);
    let mut next = delegated.start_next();
    next.wait_for_pairs();
    let left = next.cgroup.processes();
    assert!(!before.iter().any(|pid| left.contains(pid)), "{left:?}");

    // Without workers, the next master does.
    let before = next.apps_and_strays();
    let workers = next.daemon.worker_pids();
    kernel::stop(next.daemon.pid());
    workers.into_iter().for_each(kill_9);
    next.daemon.signal("KILL");
    next.daemon.wait();
    let left = next.cgroup.processes();
    assert!(
        before.iter().any(|pid| left.contains(pid)),
        "strays are left"
    );
    let next = next.start_next();
    next.wait_for_end(&before);
    next.wait_for_pairs();
    next.stop();
}

#[test]
fn the_log_and_the_status_name_the_cgroup_of_apps() {
    let words = "each app has a cgroup of its own in ";
    if let Some(delegated) = Delegated::start() {
        let directory = delegated.cgroup.path().display().to_string();
        delegated
            .daemon
            .wait_for_log(&format!("{words}{directory}"));
        let status = delegated.daemon.status();
        assert_eq!(status.app_cgroups.as_deref(), Some(Path::new(&directory)));
        delegated.daemon.reload().expect("it is applied");
        assert_eq!(delegated.daemon.stderr().matches(words).count(), 1, "once");
        delegated.stop();
    }
    if run("python3", &["--version"]).code != Some(0) {
        return skip("python3", "there is no python3");
    }
    let daemon = start(&config(1));
    daemon.wait_for_log("apps have no cgroups of their own: ");
    assert_eq!(daemon.status().app_cgroups, None);
    // It outlives its app, and its own app only.
    let pids = daemon.call("pids", ()).expect("it is answered");
    kill_9(pids[1].as_u64().expect("a pid") as u32);
}
