//! Upgrade in place: the master becomes another program, and no client notices.

mod common;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use common::faulty::{Execution, example, whoami};
use common::load::Load;
use common::{FDPASSD, kernel, settled, start};
use fdpassd::proto::control::WorkerState;
use fdpassd::testing::{Client, Running, ServiceManager, eventually};
use serde_json::{Value, json};
use tempfile::TempDir;

const BOTH: &str = "listen = [\"127.0.0.1:0\", \"unix:{dir}/rpc.sock\"]\nworkers.count = 2\n";

#[test]
fn upgrades_in_a_row_keep_process_clients_and_desks_and_replace_the_workers() {
    let programs = Programs::new();
    let (fdpassd, faulty) = (programs.copy(Path::new(FDPASSD)), programs.copy(&example("faulty")));
    let daemon = Running::start(&fdpassd, BOTH).expect("it serves");
    daemon.wait_for_workers();
    let mut idle: Vec<Client> = (0..100).map(|i| Client::connect(&daemon.addresses()[i % 2])).collect();
    ping_all(&mut idle);
    let mut halfway = daemon.connect();
    let frame = halfway.frame("{\"in\":\"ping\",\"params\":[1,2,3]}");
    halfway.send(&frame[..11]);
    let load = Load::start(&daemon, 6, 4);
    load.wait_for(20);
    let (pid, mut before) = (daemon.pid(), daemon.status());
    let descriptors = settled(|| kernel::descriptors(pid).len());

    for (round, program) in [&faulty, &fdpassd, &faulty, &faulty, &fdpassd].into_iter().enumerate() {
        let told = upgrade(&daemon, Some(program)).expect("it is fit");
        assert_eq!(told["workers"], 2, "{told}");
        let after = daemon.status();
        assert_eq!((after.pid, after.leaving.len()), (pid, 0));
        let pids = |status: &fdpassd::proto::control::Status| -> Vec<Option<u32>> {
            status.workers.iter().map(|worker| worker.pid).collect()
        };
        assert!(pids(&after).iter().all(|pid| pid.is_some() && !pids(&before).contains(pid)), "{round}");
        assert!(after.workers.iter().all(|worker| worker.state == WorkerState::Ready));
        assert!(after.generation > before.generation && after.uptime_seconds >= before.uptime_seconds);
        // It really is the other one.
        let knows = idle[0].call("whoami", ()).is_ok();
        assert_eq!(knows, program == &faulty, "{round}");
        load.wait_for(10);
        ping_all(&mut idle);
        before = after;
    }
    halfway.send(&frame[11..]);
    assert_eq!(halfway.reply().value().expect("a pong"), json!([1, 2, 3]));
    assert_eq!(settled(|| kernel::descriptors(pid).len()), descriptors, "{:?}", kernel::descriptors(pid));
    load.finish();
    let status = daemon.wait_until("the load has left", |status| status.clients == 101);
    // `whoami`, where there was no such method.
    assert_eq!((status.lost_total, status.errors_total, status.accepted_total), (0, 2, 107));
    assert!(kernel::children(pid).len() == 2, "every child is collected");
}

#[test]
fn a_signal_upgrades_to_what_is_at_the_installed_path_now() {
    let programs = Programs::new();
    let installed = programs.copy(Path::new(FDPASSD));
    let daemon = Running::start(&installed, "workers.count = 1").expect("it serves");
    let mut client = daemon.connect();
    client.call("whoami", ()).expect_err("there is no such method");
    // As a package is installed: the new file takes the old one's place.
    fs::rename(programs.copy(&example("faulty")), &installed).expect("rename");
    let before = daemon.status().generation;
    daemon.signal("USR2");
    daemon.wait_until("the workers are replaced", |status| {
        status.generation > before && status.leaving.is_empty() && status.workers.iter().all(|w| w.generation > before)
    });
    eventually("the client is served by the new program", || client.call("whoami", ()).ok());
    daemon.wait_for_log("upgraded: this is fdpassd");
}

#[test]
fn a_candidate_that_is_not_fit_is_refused_with_the_reason_and_nothing_changes() {
    let programs = Programs::new();
    let daemon = start("workers.count = 1");
    let before = daemon.status();
    let mut client = daemon.connect();
    client.call("ping", 1).expect("a pong");
    let text = programs.write("text", "no program", 0o755);
    let writable = programs.write("writable", "no program", 0o777);
    for (program, words) in [
        (Path::new("/nowhere/fdpassd"), "No such file"),
        (text.as_path(), "cannot be tried"),
        (writable.as_path(), "can be written by others (mode 0777)"),
        (programs.0.path(), "is no file"),
        (Path::new("/bin/true"), "did not say that it is fit"),
        (Path::new("/bin/false"), "exited with status 1"),
    ] {
        let fault = upgrade(&daemon, Some(program)).expect_err("it is not fit");
        assert!(fault["code"] == "refused" && fault["message"].as_str().is_some_and(|m| m.contains(words)), "{fault}");
    }
    let after = daemon.status();
    assert_eq!(
        (after.pid, after.generation, &after.workers[0].pid),
        (before.pid, before.generation, &before.workers[0].pid)
    );
    assert_eq!(client.call("ping", 2).expect("a pong"), 2);
    assert_eq!(kernel::children(daemon.pid()).len(), 1);
}

#[test]
fn an_upgrade_waits_for_nobody_who_executes_and_is_refused_while_something_else_goes_on() {
    let programs = Programs::new();
    let faulty = programs.copy(&example("faulty"));
    let daemon = Running::start(&faulty, "workers.count = 2").expect("it serves");
    daemon.wait_for_workers();
    let blocked = Execution::start(&daemon);
    let request = daemon.ctl_request("upgrade", json!({ "binary": faulty }));
    daemon.wait_for_log("upgraded: this is faulty");
    let mut client = blocked.finish();
    let mut request = request;
    assert_eq!(request.reply().name, "upgrade");
    assert_eq!(whoami(&mut client).calls, 1);

    let blocked = Execution::start(&daemon);
    let reload = daemon.ctl_request("recycle", json!({}));
    daemon.wait_until("a worker drains", |status| !status.leaving.is_empty());
    let fault = upgrade_after(&daemon, &faulty, || drop(blocked.finish()));
    assert!(fault.is_ok(), "it waits until the workers are replaced: {fault:?}");
    drop(reload);
    daemon.ctl("stop").expect("it stops");
}

#[test]
fn what_is_kept_for_another_master_is_kept_over_an_upgrade() {
    let manager = ServiceManager::new();
    let programs = Programs::new();
    let program = programs.copy(Path::new(FDPASSD));
    let daemon = manager.setup(&program, BOTH).start().expect("it serves");
    daemon.wait_for_workers();
    let mut clients: Vec<Client> = (0..20).map(|i| Client::connect(&daemon.addresses()[i % 2])).collect();
    ping_all(&mut clients);
    let kept = manager.stored();
    upgrade(&daemon, None).expect("it is fit");
    ping_all(&mut clients);
    assert_eq!(manager.stored(), kept);
    daemon.signal("KILL");
    let daemon = manager.setup(&program, "").start_after(daemon).expect("it serves");
    ping_all(&mut clients);
    assert_eq!((daemon.status().lost_total, daemon.status().accepted_total), (0, 20));
}

/// The reply's result, or that of the error reply.
fn upgrade(daemon: &Running, to: Option<&Path>) -> Result<Value, Value> {
    let params = to.map_or(json!({}), |path| json!({ "binary": path }));
    let reply = daemon.ctl_request("upgrade", params).reply();
    let result = serde_json::from_str(reply.result.get()).expect("JSON");
    if reply.name == "error" { Err(result) } else { Ok(result) }
}

fn upgrade_after(daemon: &Running, to: &Path, meanwhile: impl FnOnce()) -> Result<Value, Value> {
    let mut request = daemon.ctl_request("upgrade", json!({ "binary": to }));
    daemon.wait_for_log("which the daemon is to become");
    meanwhile();
    let reply = request.reply();
    let result = serde_json::from_str(reply.result.get()).expect("JSON");
    if reply.name == "error" { Err(result) } else { Ok(result) }
}

/// Programs where nobody else can change them.
struct Programs(TempDir);

impl Programs {
    fn new() -> Programs {
        let directory = tempfile::tempdir().expect("a directory");
        fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).expect("it is ours");
        Programs(directory)
    }

    fn copy(&self, program: &Path) -> PathBuf {
        let name = program.file_name().expect("a program has a name");
        let copy = self.0.path().join(name);
        fs::copy(program, &copy).expect("it can be copied");
        fs::set_permissions(&copy, Permissions::from_mode(0o755)).expect("it is ours");
        copy
    }

    fn write(&self, name: &str, text: &str, mode: u32) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, text).expect("it can be written");
        fs::set_permissions(&path, Permissions::from_mode(mode)).expect("it is ours");
        path
    }
}

#[track_caller]
fn ping_all(clients: &mut [Client]) {
    for (client, number) in clients.iter_mut().zip(0_u64..) {
        assert_eq!(client.call("ping", number).expect("a pong"), number);
    }
}
