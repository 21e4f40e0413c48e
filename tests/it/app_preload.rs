//! Apps that a zygote of their own forks: `app.preload`, with the package for Python.

use std::collections::BTreeSet;
use std::fs;

use fdpassd::testing::{Running, eventually};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::common::needs::{skip, skip_part};
use crate::common::program::{OtherUser, run};
use crate::common::{kernel, start};

const APP: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/app_preload/app.py");
const PACKAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/sdk/python/src");

/// Returns a configuration with forked apps.
pub fn config(workers: usize, options: &Value, more: &str) -> String {
    let options = options.to_string();
    format!(
        "workers = {{ count = {workers}, start = \"fork\", start-timeout = \"2m\", dispatch = \"round-robin\" }}\n\
         limits.stall-timeout = \"1h\"\n[app]\n\
         command = [\"python3\", \"{APP}\", '{options}']\npreload = true\n\
         environment = {{ PYTHONPATH = \"{PACKAGE}\", MODE = \"x\" }}\n{more}\n"
    )
}

/// Returns whether the package can be used here.
pub fn has_python() -> bool {
    let check = "import sys; sys.exit(sys.version_info < (3, 11))";
    let is_new = run("python3", &["-c", check]).code == Some(0);
    if !is_new {
        skip("python3", "there is no python3 from 3.11 on");
    }
    is_new
}

/// Starts a daemon with forked apps. `None` without Python.
fn started(workers: usize, options: &Value, more: &str) -> Option<Running> {
    has_python().then(|| {
        let daemon = start(&config(workers, options, more));
        daemon.wait_for_workers();
        daemon
    })
}

/// Returns the pids of the apps.
fn apps(daemon: &Running) -> Vec<u32> {
    let status = daemon.wait_for_workers();
    let apps = status
        .workers
        .iter()
        .filter_map(|worker| worker.app.as_ref());
    apps.map(|app| app.pid).collect()
}

/// Returns the zygote of the workers and that of the apps, once the latter is there and not `before`.
#[track_caller]
fn zygotes(daemon: &Running, before: u32) -> [u32; 2] {
    eventually("there is a zygote of the apps", || {
        let of_workers = daemon.status().zygote?;
        let of_apps = *kernel::all_children(of_workers).first()?;
        (of_apps != before).then_some([of_workers, of_apps])
    })
}

fn pid_of(value: &Value, member: &str) -> u32 {
    let pid = value[member].as_u64().expect("a pid");
    pid.try_into().expect("a pid has 32 bits")
}

/// Returns the memory of processes in MiB, of which shared pages count in parts.
fn memory(processes: &[u32]) -> u64 {
    let of_one = |pid: &u32| {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("it is ours");
        let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
        let kibibytes = line.expect("the kernel has it").trim();
        let kibibytes = kibibytes.trim_end_matches(" kB").parse::<u64>();
        kibibytes.expect("a number")
    };
    processes.iter().map(of_one).sum::<u64>() >> 10
}

#[test]
fn apps_share_what_their_zygote_has_loaded() {
    let Some(daemon) = started(4, &json!({"mebibytes": 100}), "") else {
        return;
    };
    let [_, zygote] = zygotes(&daemon, 0);
    let mut clients: Vec<_> = (0..16).map(|_| daemon.connect()).collect();
    let (mut answered, mut numbers) = (BTreeSet::new(), BTreeSet::new());
    for client in &mut clients {
        client.call("touch", ()).expect("a result");
        let about: Value = client.call("about", ()).expect("a result");
        assert_eq!(pid_of(&about, "loaded_by"), zygote);
        assert_eq!(pid_of(&about, "group"), pid_of(&about, "pid"));
        if answered.insert(pid_of(&about, "pid")) {
            numbers.insert(about["random"].to_string());
        }
    }
    let apps = apps(&daemon);
    assert_eq!(answered, apps.iter().copied().collect());
    assert_eq!(numbers.len(), 4, "each has random numbers of its own");
    let all: Vec<u32> = apps.into_iter().chain([zygote]).collect();
    let memory = memory(&all);
    // Five times 100 MiB without sharing; the rest is Python.
    assert!(memory < 200, "{memory} MiB");
    assert_eq!(daemon.stderr().matches("app: loaded").count(), 1);
}

#[test]
fn a_forked_app_is_like_a_started_one() {
    let directory = "directory = \"/\"\numask = \"0027\"";
    let Some(daemon) = started(2, &json!({}), directory) else {
        return;
    };
    let about: Value = daemon.call("about", ()).expect("a result");
    let own = kernel::user();
    for (key, value) in [
        ("directory", json!("/")),
        ("environment", json!(["x"])),
        ("umask", json!(0o27)),
        ("user", json!([own, own])),
        // Descriptor 3 only.
        ("sockets", json!(1)),
        ("user1", json!(true)),
    ] {
        assert_eq!(about[key], value, "{key}");
    }
    daemon.wait_for_log("info app: said by the app");
    if OtherUser::if_root().is_none() {
        return skip_part("root", "only root can have another user");
    }
    let users = format!("{directory}\nuser = \"65534\"\ngroup = \"65533\"");
    let other = config(1, &json!({}), &users).replace(PACKAGE, &readable(&daemon));
    daemon.reload_with(&other).expect("it is good");
    let about: Value = daemon.call("about", ()).expect("a result");
    assert_eq!(about["user"], json!([65534, 65533]));
    let reason = "its app exited with status 3";
    end_app(&daemon, "end", &json!({"status": 3}), reason);
}

/// Calls a method that ends its app, until the log names the method with this reason. The worker waits for the reason
/// for a second, in which the zygote that knows it need not have run.
#[track_caller]
fn end_app(daemon: &Running, method: &str, params: &Value, reason: &str) {
    let blamed = format!("ended in method \"{method}\"");
    eventually(reason, || {
        let fault = daemon.call(method, params).expect_err("its app ends");
        assert_eq!(fault.code(), "crashed", "{fault}");
        let log = daemon.stderr();
        let mut lines = log.lines();
        let is_found = lines.any(|line| line.contains(reason) && line.contains(&blamed));
        is_found.then_some(())
    });
}

/// Returns a copy of the package that other users can read.
fn readable(daemon: &Running) -> String {
    let copy = daemon.directory().join("package");
    let [from, to] = [PACKAGE.to_owned(), copy.display().to_string()];
    assert_eq!(run("cp", &["-r", &from, &to]).code, Some(0));
    for path in copy.ancestors().take(2) {
        let path = path.display().to_string();
        assert_eq!(run("chmod", &["-R", "go+rX", &path]).code, Some(0));
    }
    to
}

#[test]
fn the_end_of_a_forked_app_is_that_of_its_request() {
    let Some(daemon) = started(2, &json!({}), "") else {
        return;
    };
    for (method, params, why) in [
        ("end", json!({"status": 3}), "its app exited with status 3"),
        (
            "crash",
            Value::Null,
            "its app was killed by signal 11 (SIGSEGV)",
        ),
    ] {
        end_app(&daemon, method, &params, why);
    }
    let [_, zygote] = zygotes(&daemon, 0);
    eventually("the zygote has collected those that ended", || {
        let apps: BTreeSet<u32> = apps(&daemon).into_iter().collect();
        let children: BTreeSet<u32> = kernel::all_children(zygote).into_iter().collect();
        (apps.len() == 2 && children == apps).then_some(())
    });
}

#[test]
fn a_forked_app_ends_with_its_worker_whatever_it_executes() {
    let Some(daemon) = started(1, &json!({}), "") else {
        return;
    };
    let [app] = apps(&daemon)[..] else {
        panic!("there is one worker");
    };
    let mut client = daemon.connect();
    client.request("block", ());
    daemon.wait_for_log("info app: it blocks");
    let worker = daemon.worker_pids()[0];
    kernel::send(worker, Signal::SIGKILL);
    eventually("it has ended", || kernel::is_over(app).then_some(()));
    assert_eq!(
        client.reply().value().expect_err("it died").code(),
        "crashed"
    );
    assert_ne!(apps(&daemon), [app]);
}

#[test]
fn nothing_is_left_of_a_master_that_is_killed() {
    let Some(mut daemon) = started(2, &json!({}), "") else {
        return;
    };
    let mut left = apps(&daemon);
    left.extend(zygotes(&daemon, 0));
    daemon.signal("KILL");
    daemon.wait();
    for pid in left {
        eventually("it has ended", || kernel::is_over(pid).then_some(()));
    }
}

#[test]
fn a_zygote_of_apps_that_is_killed_is_replaced() {
    let Some(daemon) = started(2, &json!({}), "") else {
        return;
    };
    let before = apps(&daemon);
    let first = zygotes(&daemon, 0);
    kernel::send(first[1], Signal::SIGKILL);
    let second = zygotes(&daemon, first[1]);
    let why = "has lost the zygote of the app, which was killed by signal 9 (SIGKILL); starting another one";
    daemon.wait_for_log(why);
    assert_ne!(second[0], first[0]);
    assert_eq!(apps(&daemon), before, "they have not ended");
    daemon
        .call("end", json!({"status": 3}))
        .expect_err("it ends");
    // Before Linux 6.15 nothing knows the status.
    let reasons = [
        "its app exited with status 3",
        "its app cannot be waited for: its zygote has ended",
    ];
    eventually("the request is blamed for its end", || {
        let is_blamed = |line: &str| {
            line.contains("ended in method \"end\"")
                && reasons.iter().any(|reason| line.contains(reason))
        };
        daemon.stderr().lines().any(is_blamed).then_some(())
    });
    eventually("the new one forks apps", || {
        let apps = apps(&daemon);
        let parent = |pid: &u32| kernel::all_children(second[1]).contains(pid);
        apps.iter().any(parent).then_some(())
    });
    assert_eq!(daemon.status().failed_starts_total, 0);
}

/// The app leads a process group of its own, in which the zygotes and the worker are not.
#[test]
fn a_forked_app_that_kills_its_group_kills_only_itself() {
    let Some(daemon) = started(1, &json!({}), "") else {
        return;
    };
    let (before, zygotes_before) = (apps(&daemon), zygotes(&daemon, 0));
    let reason = "its app was killed by signal 9 (SIGKILL)";
    end_app(&daemon, "kill_group", &Value::Null, reason);
    let about: Value = daemon.call("about", ()).expect("a result");
    assert_eq!(pid_of(&about, "loaded_by"), zygotes_before[1]);
    assert_eq!(zygotes(&daemon, 0), zygotes_before);
    assert_ne!(apps(&daemon), before);
}

#[test]
fn apps_are_started_when_a_second_zygote_fails() {
    let Some(daemon) = started(1, &json!({}), "") else {
        return;
    };
    let first = zygotes(&daemon, 0);
    kernel::send(first[1], Signal::SIGKILL);
    let second = zygotes(&daemon, first[1]);
    kernel::send(second[1], Signal::SIGKILL);
    let said = "the workers of generation 1 are executed, not forked, until the next reload";
    daemon.wait_for_log(said);
    daemon
        .call("end", json!({"status": 3}))
        .expect_err("it ends");
    let about: Value = daemon.call("about", ()).expect("a result");
    assert_eq!(about["loaded_by"], about["pid"], "each loads for itself");
    assert_eq!(daemon.stderr().matches(said).count(), 1);
}

#[test]
fn a_preload_that_fails_rolls_the_reload_back() {
    let Some(daemon) = started(1, &json!({}), "") else {
        return;
    };
    let before = apps(&daemon);
    for (wrong, why) in [
        (
            "error",
            "which cannot preload: RuntimeError: the model is gone",
        ),
        ("exit", "which exited with status 3: loaded"),
        (
            "thread",
            "which cannot preload: RuntimeError: the preload has left 1 threads",
        ),
    ] {
        let fault = daemon.reload_with(&config(1, &json!({"wrong": wrong}), ""));
        let fault = fault.expect_err(wrong);
        assert_eq!(fault.code(), "rolled_back");
        let why = format!("its zygote has no zygote of the app, {why}");
        assert!(fault.to_string().contains(&why), "{fault}");
    }
    let never = config(1, &json!({"wrong": "never"}), "").replace("\"2m\"", "\"2s\"");
    let fault = daemon.reload_with(&never).expect_err("it is never ready");
    let why = "was not ready within 2s: its zygote is not ready";
    assert!(fault.to_string().contains(why), "{fault}");
    let [of_workers, _] = zygotes(&daemon, 0);
    eventually("the others have ended", || {
        let others = kernel::all_children(daemon.pid());
        let arguments = |pid: &u32| fs::read_to_string(format!("/proc/{pid}/cmdline"));
        let is_other = |pid: &u32| *pid != of_workers && !kernel::is_over(*pid);
        let found = others.iter().filter(|pid| is_other(pid)).any(|pid| {
            let arguments = arguments(pid).unwrap_or_default();
            arguments.contains("zygote") || arguments.contains("never")
        });
        (!found).then_some(())
    });
    assert_eq!(apps(&daemon), before);
}

#[test]
fn a_program_that_knows_no_preload_is_refused() {
    if !has_python() {
        return;
    }
    let plain = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/app_keys/app.py");
    let daemon = start("workers.count = 1");
    let refused = daemon.reload_with(&config(1, &json!({}), "").replace(APP, plain));
    let why = "cannot be forked: it has sent its hello, and its library knows no app.preload";
    let fault = refused.expect_err("it cannot fork");
    assert!(fault.to_string().contains(why), "{fault}");
}

#[test]
fn a_reload_loads_again() {
    let Some(daemon) = started(2, &json!({}), "") else {
        return;
    };
    let mut clients: Vec<_> = (0..8).map(|_| daemon.connect()).collect();
    let first = zygotes(&daemon, 0);
    daemon.reload().expect("it is good");
    let second = zygotes(&daemon, first[1]);
    for client in &mut clients {
        let about: Value = client.call("about", ()).expect("a result");
        assert_eq!(pid_of(&about, "loaded_by"), second[1]);
    }
    eventually("the first has ended", || {
        kernel::is_over(first[1]).then_some(())
    });
    let status = daemon.status();
    assert_eq!((status.lost_total, status.deaths_total), (0, 0));
}
