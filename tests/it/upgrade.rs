//! Upgrade in place: the master becomes another program, and no client notices.

use std::fs;
use std::os::unix::fs::{chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use fdpassd::proto::control::WorkerState;
use fdpassd::proto::names::Address;
use fdpassd::testing::{Client, Running, ServiceManager, eventually};
use serde_json::json;

use crate::common::faulty::{Execution, example, whoami};
use crate::common::load::Load;
use crate::common::needs::skip_part;
use crate::common::program::{FDPASSCTL, Program, control_socket, run, wait_for_clients};
use crate::common::restart::wait_for_confirmed_store;
use crate::common::upgrade::{Programs, assert_refused, begin, upgrade, verdict};
use crate::common::{FDPASSD, kernel, ping_all, start};

/// Some tests last longer than a frame may by default.
const BOTH: &str = "listen = [\"127.0.0.1:0\", \"unix:{dir}/rpc.sock\"]\nworkers.count = 2\n\
                    limits.frame-timeout = \"none\"\n";

#[test]
fn repeated_upgrades_keep_the_clients_and_replace_the_workers() {
    let programs = Programs::new();
    let (fdpassd, faulty) = (
        programs.copy(Path::new(FDPASSD)),
        programs.copy(&example("faulty")),
    );
    let daemon = Running::start(&fdpassd, BOTH).expect("it serves");
    daemon.wait_for_workers();
    let mut idle: Vec<Client> = (0..100)
        .map(|i| Client::connect(&daemon.addresses()[i % 2]))
        .collect();
    ping_all(&mut idle);
    let mut halfway = daemon.connect();
    let frame = halfway.frame("{\"in\":\"ping\",\"params\":[1,2,3]}");
    halfway.send(&frame[..11]);
    let load = Load::start(&daemon, 6, 4);
    load.wait_for(20);
    let (pid, mut before) = (daemon.pid(), daemon.status());
    // The load never rests.
    wait_for_clients(&control_socket(&daemon), 0);
    let descriptors = kernel::descriptors(pid).len();

    for (round, program) in [&faulty, &fdpassd, &faulty, &faulty, &fdpassd]
        .into_iter()
        .enumerate()
    {
        let told = upgrade(&daemon, Some(program)).expect("it is fit");
        assert_eq!(told["workers"], 2, "{told}");
        let after = daemon.status();
        assert_eq!((after.pid, after.leaving.len()), (pid, 0));
        let pids = |status: &fdpassd::proto::control::Status| -> Vec<Option<u32>> {
            status.workers.iter().map(|worker| worker.pid).collect()
        };
        assert!(
            pids(&after)
                .iter()
                .all(|pid| pid.is_some() && !pids(&before).contains(pid)),
            "{round}"
        );
        assert!(
            after
                .workers
                .iter()
                .all(|worker| worker.state == WorkerState::Ready)
        );
        assert!(
            after.generation > before.generation && after.uptime_seconds >= before.uptime_seconds
        );
        // It really is the other one.
        let knows = idle[0].call("whoami", ()).is_ok();
        assert_eq!(knows, program == &faulty, "{round}");
        load.wait_for(10);
        ping_all(&mut idle);
        before = after;
    }
    halfway.send(&frame[11..]);
    assert_eq!(halfway.reply().value().expect("a pong"), json!([1, 2, 3]));
    eventually("there are as many descriptors as before", || {
        (kernel::descriptors(pid).len() == descriptors).then_some(())
    });
    load.finish();
    let status = daemon.wait_until("the load has left", |status| status.clients == 101);
    // `whoami`, where there was no such method.
    assert_eq!(
        (
            status.lost_total,
            status.errors_total,
            status.accepted_total
        ),
        (0, 2, 107)
    );
    assert!(kernel::children(pid).len() == 2, "every child is collected");
}

#[test]
fn a_signal_upgrades_to_the_program_at_the_installed_path() {
    let programs = Programs::new();
    let installed = programs.copy(Path::new(FDPASSD));
    let daemon = Running::start(&installed, "workers.count = 1").expect("it serves");
    let mut client = daemon.connect();
    client
        .call("whoami", ())
        .expect_err("there is no such method");
    // As a package is installed: the new file takes the old one's place.
    fs::rename(programs.copy(&example("faulty")), &installed).expect("rename");
    let before = daemon.status().generation;
    daemon.signal("USR2");
    daemon.wait_until("the workers are replaced", |status| {
        status.generation > before
            && status.leaving.is_empty()
            && status.workers.iter().all(|w| w.generation > before)
    });
    eventually("the client is served by the new program", || {
        client.call("whoami", ()).ok()
    });
    daemon.wait_for_log("upgraded to fdpassd");
}

#[test]
fn an_upgrade_follows_a_symbolic_link_as_it_is_now() {
    let programs = Programs::new();
    let copied = |release: &str, program: &Path| {
        programs.folder(release, 0o755);
        programs.copy_to(program, format!("{release}/fdpassd"))
    };
    let (first, second) = (
        copied("1", Path::new(FDPASSD)),
        copied("2", &example("faulty")),
    );
    let again = copied("3", &example("faulty"));
    let current = programs.directory().join("current");
    let point_to = |release: &str| {
        let new = programs.directory().join("new");
        symlink(release, &new).expect("it is new");
        fs::rename(&new, &current).expect("it is our directory");
    };
    point_to("1");
    let daemon = Running::start(current.join("fdpassd"), "workers.count = 1").expect("it serves");
    let pid = daemon.pid();
    let running = || fs::read_link(format!("/proc/{pid}/exe")).expect("it runs");
    let own_name = fs::read_to_string(format!("/proc/{pid}/comm")).expect("it runs");
    assert_eq!((own_name.as_str(), running()), ("fdpassd\n", first.clone()));
    for (release, program, is_unchanged) in [
        ("1", &first, true),
        ("2", &second, false),
        ("2", &second, true),
        // Another file with the same content.
        ("3", &again, true),
        ("1", &first, false),
    ] {
        point_to(release);
        let told = upgrade(&daemon, None).expect("it is fit");
        assert_eq!(
            (&told["unchanged"], running()),
            (&json!(is_unchanged), program.clone()),
            "{release}: {told}"
        );
        // As pgrep(1) and `systemctl status` read it, and not the number of a descriptor.
        assert_eq!(
            fs::read_to_string(format!("/proc/{pid}/comm")).expect("it runs"),
            own_name
        );
    }
    daemon.wait_for_log("(the program has not changed); kept 1 worker");
}

#[test]
fn a_program_that_was_found_by_path_is_found_there_again() {
    let programs = Programs::new();
    let (link, config) = (
        programs.directory().join("fdpassd"),
        programs.directory().join("c.toml"),
    );
    let control = programs.directory().join("control.sock");
    let text =
        format!("listen = [\"127.0.0.1:0\"]\nworkers.count = 1\ncontrol.socket = {control:?}\n");
    fs::write(&config, text).expect("it is our directory");
    let first = programs.copy_to(Path::new(FDPASSD), "first");
    symlink(&first, &link).expect("it is new");
    let search = format!("/nowhere:{}:/usr/bin:/bin", programs.directory().display());
    // The shell gives the name alone as the first argument, and env(1) its own choice of one.
    for (name, follows) in [("fdpassd", true), ("/bin/false", false)] {
        let mut command = Command::new(&link);
        std::os::unix::process::CommandExt::arg0(&mut command, name);
        let mut daemon = Program::start(command.arg("-c").arg(&config).env("PATH", &search));
        assert!(daemon.line().contains(" listens on "));
        let second = programs.copy_to(Path::new(FDPASSD), "second");
        fs::remove_file(&link)
            .and_then(|()| symlink(&second, &link))
            .expect("it is our directory");
        let said = run(
            FDPASSCTL,
            &["-s", &control.display().to_string(), "upgrade"],
        );
        assert!(
            said.code == Some(0) && said.out.contains("the program has not changed"),
            "{said:?}"
        );
        let running = fs::read_link(format!("/proc/{}/exe", daemon.pid())).expect("it runs");
        assert_eq!(running, if follows { second } else { first.clone() });
        fs::remove_file(&link)
            .and_then(|()| symlink(&first, &link))
            .expect("it is our directory");
    }
}

#[test]
fn upgrade_answers_pending_control_requests() {
    let programs = Programs::new();
    let faulty = programs.copy(&example("faulty"));
    let daemon =
        Running::start(programs.copy(Path::new(FDPASSD)), "workers.count = 1").expect("it serves");
    let control = Address::Unix(control_socket(&daemon));
    let mut again = Client::connect(&control);
    again.call("version", ()).expect("it is told");
    thread::scope(|scope| {
        // It asks all the time, on a connection of its own each time.
        let asks = scope
            .spawn(|| daemon.wait_until("the last upgrade", |status| status.generation.0 == 4));
        for (upgrades, program) in (1..).zip([Some(faulty.as_path()), None, None]) {
            let mut halfway = Client::connect(&control);
            let frame = halfway.frame("{\"in\":\"version\"}");
            halfway.send(&frame[..7]);
            let mut request = begin(&daemon, program);
            // The start of the next workers may take longer than the half of a request may wait.
            eventually("the next program runs", || {
                let log = daemon.stderr();
                (log.matches("upgraded to ").count() == upgrades).then_some(())
            });
            again.call("version", ()).expect("it is told");
            halfway.send(&frame[7..]);
            assert_eq!(
                halfway.reply().value().expect("it is told")["pid"],
                daemon.pid()
            );
            verdict(&mut request).expect("it is fit");
        }
        asks.join().expect("nobody is turned away");
    });
}

#[test]
fn an_unfit_program_is_refused_with_the_reason() {
    let programs = Programs::new();
    let daemon = start("workers.count = 1");
    let before = daemon.status();
    let mut client = daemon.connect();
    client.call("ping", 1).expect("a pong");
    let text = programs.write("text", "no program", 0o755);
    let link = |name: &str, to: &Path| -> PathBuf {
        symlink(to, programs.directory().join(name)).expect("it is new");
        programs.directory().join(name)
    };
    for (program, words) in [
        (PathBuf::from("/nowhere/fdpassd"), "No such file"),
        (link("dangling", Path::new("nothing")), "No such file"),
        (text.clone(), "cannot be tried: Exec format error"),
        (link("to-text", &text), "cannot be tried: Exec format error"),
        (
            programs.write("plain", "no program", 0o644),
            "cannot be tried: Permission denied",
        ),
        (programs.directory().to_owned(), "is not a regular file"),
        (
            link("to-folder", programs.directory()),
            "is not a regular file",
        ),
        (PathBuf::from("/dev/null"), "is not a regular file"),
        (
            PathBuf::from("/bin/true"),
            "its check exited with status 0 and gave no result; it may not be a version of fdpassd",
        ),
        (PathBuf::from("/bin/false"), "exited with status 1"),
    ] {
        assert_refused(upgrade(&daemon, Some(&program)), "refused", words);
    }
    // Opening it waits for a writer.
    let fifo = programs.directory().join("fifo");
    assert!(
        Command::new("mkfifo")
            .arg(&fifo)
            .status()
            .expect("mkfifo runs")
            .success()
    );
    assert_refused(
        upgrade(&daemon, Some(&fifo)),
        "refused",
        "is not a regular file",
    );
    let after = daemon.status();
    assert_eq!(
        (after.pid, after.generation, &after.workers[0].pid),
        (before.pid, before.generation, &before.workers[0].pid)
    );
    assert_eq!(client.call("ping", 2).expect("a pong"), 2);
    assert_eq!(kernel::children(daemon.pid()).len(), 1);
}

#[test]
fn a_program_that_other_users_could_change_is_refused() {
    let programs = Programs::new();
    let fdpassd = Path::new(FDPASSD);
    let program = programs.copy(fdpassd);
    let daemon = Running::start(&program, "workers.count = 1").expect("it serves");
    for folder in [("open", 0o777), ("shared", 0o775), ("sticky", 0o1777)] {
        programs.folder(folder.0, folder.1);
        programs.folder(&format!("{}/inner", folder.0), 0o755);
        programs.copy_to(fdpassd, format!("{}/inner/fdpassd", folder.0));
    }
    let at = |path: &str| programs.directory().join(path);
    symlink(at("open/inner/fdpassd"), at("link")).expect("it is new");
    let refused =
        |path: &Path, words: &str| assert_refused(upgrade(&daemon, Some(path)), "refused", words);
    refused(
        &programs.write("by-all", "", 0o777),
        "is not trusted: it is writable by its group or by all users (mode 0777)",
    );
    refused(
        &programs.write("by-group", "", 0o775),
        "is not trusted: it is writable by its group or by all users (mode 0775)",
    );
    let open = format!(
        "its directory {} is writable by its group or by all users (mode 0777)",
        at("open").display()
    );
    refused(&at("open/inner/fdpassd"), &open);
    refused(&at("link"), &open);
    refused(
        &at("shared/inner/fdpassd"),
        "is writable by its group or by all users (mode 0775)",
    );
    if kernel::user() == 0 {
        let (theirs, folder) = (
            programs.copy_to(fdpassd, "theirs"),
            programs.folder("home", 0o755),
        );
        let inside = programs.copy_to(fdpassd, "home/fdpassd");
        [&theirs, &folder]
            .into_iter()
            .for_each(|path| chown(path, Some(61_234), None).expect("root may"));
        refused(&theirs, "is not trusted: it belongs to uid 61234");
        refused(
            &inside,
            &format!("its directory {} belongs to uid 61234", folder.display()),
        );
    } else {
        skip_part("root", "only root can give a file to another user");
    }
    assert_eq!(
        (daemon.status().generation.0, daemon.status().lost_total),
        (1, 0)
    );

    // The target of a link is checked, not its directory; and with the sticky bit no user replaces the file of another.
    symlink(&program, at("open/link")).expect("it is new");
    upgrade(&daemon, Some(&at("open/link"))).expect("nobody else can change it");
    upgrade(&daemon, Some(&at("sticky/inner/fdpassd"))).expect("nobody else can change it");
}

#[test]
fn an_upgrade_does_not_wait_and_is_refused_during_a_change() {
    let programs = Programs::new();
    let faulty = programs.copy(&example("faulty"));
    let daemon = Running::start(&faulty, "workers.count = 2").expect("it serves");
    daemon.wait_for_workers();
    let blocked = Execution::start(&daemon);
    let mut request = begin(&daemon, Some(&faulty));
    daemon.wait_for_log("upgraded to faulty");
    let mut client = blocked.finish();
    verdict(&mut request).expect("it is fit");
    assert_eq!(whoami(&mut client).calls, 1);

    let blocked = Execution::start(&daemon);
    let reload = daemon.ctl_request("recycle", json!({}));
    daemon.wait_until("a worker drains", |status| !status.leaving.is_empty());
    let mut request = begin(&daemon, Some(&faulty));
    daemon.wait_for_log("before the upgrade");
    drop(blocked.finish());
    verdict(&mut request).expect("it waits until the workers are replaced");
    drop(reload);
    daemon.ctl("stop").expect("it stops");
}

/// Returns the descriptors that the manager has confirmed to keep.
#[track_caller]
fn stored_for(manager: &ServiceManager, daemon: &Running) -> Vec<String> {
    wait_for_confirmed_store(daemon);
    let mut stored = manager.stored();
    stored.sort();
    stored
}

#[test]
fn stored_descriptors_of_another_master_survive_an_upgrade() {
    let manager = ServiceManager::new();
    let programs = Programs::new();
    let program = programs.copy(Path::new(FDPASSD));
    let daemon = manager.setup(&program, BOTH).start().expect("it serves");
    daemon.wait_for_workers();
    let mut clients: Vec<Client> = (0..20)
        .map(|i| Client::connect(&daemon.addresses()[i % 2]))
        .collect();
    ping_all(&mut clients);
    let kept = stored_for(&manager, &daemon);
    upgrade(&daemon, None).expect("it is fit");
    ping_all(&mut clients);
    assert_eq!(stored_for(&manager, &daemon), kept);
    daemon.signal("KILL");
    let daemon = manager
        .setup(&program, "")
        .start_after(daemon)
        .expect("it serves");
    ping_all(&mut clients);
    assert_eq!(
        (daemon.status().lost_total, daemon.status().accepted_total),
        (0, 20)
    );
}
