//! A service manager's store that does not keep descriptors, or drops them later.

use fdpassd::testing::{Client, Running, ServiceManager, eventually};
use nix::sys::socket::Shutdown;

use crate::common::faulty::{Execution, example};
use crate::common::holder::end;
use crate::common::program::ctl;
use crate::common::restart::wait_for_confirmed_store;
use crate::common::strace::Traced;
use crate::common::{FDPASSD, metrics, ping_all};

const LOSES: &str = "a restart would lose all clients: the service manager keeps no descriptors of this daemon, or not all";

#[test]
fn an_emptied_store_is_filled_again() {
    let manager = ServiceManager::new();
    let daemon = start(&manager, FDPASSD);
    let mut clients = clients_of(&daemon, 20);
    let names = stored(&manager);
    // As when the unit is masked, or its file is away during one daemon-reload.
    manager.limit(0);
    manager.forget();
    let status = daemon.wait_until("it is noticed", |status| status.store_outage.is_some());
    assert!(!status.restart_keeps_clients);
    let said = ctl(&daemon, &["status"]).out;
    assert!(
        said.contains("RESTART   would lose all clients: the service manager keeps no"),
        "{said}"
    );
    assert!(metrics::text(&daemon).contains("\nfdpassd_restart_keeps_clients 0\n"));
    eventually("the manager gets a status", || {
        let lost = |told: &String| told.ends_with("; a restart would lose all clients");
        manager.told().iter().any(lost).then_some(())
    });
    manager.limit(None);
    wait_for_confirmed_store(&daemon);
    assert_eq!(stored(&manager), names);
    assert!(metrics::text(&daemon).contains("\nfdpassd_restart_keeps_clients 1\n"));
    for sentence in [
        LOSES,
        "the service manager keeps all descriptors again: a restart keeps the clients",
    ] {
        daemon.wait_for_log(sentence);
    }
    let daemon = restart(&manager, daemon);
    ping_all(&mut clients);
    assert_eq!(daemon.status().lost_total, 0);
}

/// systemd closes rejected descriptors after it has confirmed the messages after them.
#[test]
fn a_store_that_rejects_late_is_not_restored() {
    let manager = ServiceManager::new();
    manager.limit(0);
    let daemon = manager.setup(FDPASSD, "").start().expect("it serves");
    eventually("the store was tried twice again", || {
        let is_first = |told: &&String| told.contains("FDNAME=fdpassd-canary.0\nFDPOLL");
        (manager.told().iter().filter(is_first).count() > 3).then_some(())
    });
    let status = daemon.status();
    assert!(status.store_outage.is_some() && !status.restart_keeps_clients);
    assert!(
        !daemon.stderr().contains("all of it again"),
        "{}",
        daemon.stderr()
    );
}

#[test]
fn a_store_emptied_before_sigterm_is_filled_by_it() {
    let manager = ServiceManager::new();
    let mut daemon = start(&manager, FDPASSD);
    let mut clients = clients_of(&daemon, 20);
    for round in 0..4 {
        // With the canaries it is noticed at once; without them only SIGTERM brings the others back.
        manager.forget_those(|name| round % 2 == 0 || !name.starts_with("fdpassd-canary"));
        daemon = restart(&manager, daemon);
        ping_all(&mut clients);
    }
    assert_eq!(daemon.status().lost_total, 0);
}

#[test]
fn a_reload_and_an_upgrade_store_everything_again() {
    let manager = ServiceManager::new();
    let daemon = start(&manager, FDPASSD);
    let names = stored(&manager);
    for verb in ["reload", "upgrade"] {
        // The canaries stay, so the daemon cannot detect that the others are gone.
        manager.forget_those(|name| !name.starts_with("fdpassd-canary"));
        let said = ctl(&daemon, &[verb]);
        assert_eq!(said.code, Some(0), "{said:?}");
        eventually("all of it is stored again", || {
            (stored(&manager) == names).then_some(())
        });
    }
    let mut clients = clients_of(&daemon, 5);
    let _daemon = restart(&manager, daemon);
    ping_all(&mut clients);
}

#[test]
fn a_store_without_room_turns_a_restart_into_a_stop() {
    for most in [0, 5] {
        let manager = ServiceManager::new();
        manager.limit(most);
        let mut daemon = manager
            .setup(example("faulty"), "workers.count = 1")
            .start()
            .expect("it serves");
        daemon.wait_for_workers();
        daemon.wait_for_log(LOSES);
        assert!(daemon.status().store_outage.is_some(), "{most}");
        let mut idle = clients_of(&daemon, 4);
        let execution = Execution::start(&daemon);
        daemon.signal("TERM");
        daemon.wait_for_log(
            "the service manager does not keep clients for the next master; closing 5 clients",
        );
        daemon.wait_until("they are counted", |status| status.lost_total == 5);
        // It gets the time of a stop, not of a restart.
        let _connected = execution.finish();
        assert_eq!(daemon.wait().code(), Some(0), "{most}");
        idle.iter_mut().for_each(Client::expect_end);
    }
}

#[test]
fn descriptors_that_the_store_drops_at_the_end_are_reported() {
    let manager = ServiceManager::new();
    let mut daemon = manager
        .setup(
            example("faulty"),
            "workers.count = 1\nlimits.restart-grace = \"60s\"",
        )
        .start()
        .expect("it serves");
    wait_for_confirmed_store(&daemon);
    let execution = Execution::start(&daemon);
    daemon.signal("TERM");
    daemon.wait_for_log("keeping 1 client for the next master");
    manager.limit(0);
    manager.forget();
    daemon.wait_for_log(LOSES);
    let _connected = execution.finish();
    assert_eq!(daemon.wait().code(), Some(0));
    daemon.wait_for_log("the service manager has kept nothing: 1 client lost");
}

#[test]
fn a_listener_that_cannot_be_copied_is_stored_later() {
    let manager = ServiceManager::new();
    let daemon = start(&manager, FDPASSD);
    let names = stored(&manager);
    let listener = names
        .iter()
        .find(|name| name.starts_with("fdpassd-listener"));
    let listener = listener.expect("it is stored");
    let inject = "fcntl:error=EMFILE";
    let Some(traced) = Traced::attach(daemon.pid(), "fcntl", inject) else {
        return;
    };
    manager.with_stored(listener, |held| end(&held, Shutdown::Both));
    // Until the trace ends, no control client can be accepted.
    daemon.wait_for_log("a restart would lose all clients: cannot send descriptors to the service");
    drop(traced);
    wait_for_confirmed_store(&daemon);
    assert_eq!(stored(&manager), names);
}

#[test]
fn a_store_without_canaries_turns_a_restart_into_a_stop() {
    let manager = ServiceManager::new();
    manager.limit(0);
    let setup = manager.setup(FDPASSD, "workers.count = 1");
    let mut daemon = setup.start().expect("it serves");
    daemon.wait_for_workers();
    daemon.wait_for_log(LOSES);
    let mut idle = clients_of(&daemon, 4);
    let inject = "socketpair:error=EMFILE";
    let Some(_traced) = Traced::attach(daemon.pid(), "socketpair", inject) else {
        return;
    };
    daemon.signal("TERM");
    daemon.wait_for_log(
        "the service manager does not keep clients for the next master; closing 4 clients",
    );
    assert_eq!(daemon.wait().code(), Some(0));
    idle.iter_mut().for_each(Client::expect_end);
}

#[track_caller]
fn start(manager: &ServiceManager, program: &str) -> Running {
    let daemon = manager
        .setup(program, "workers.count = 1")
        .start()
        .expect("it serves");
    daemon.wait_for_workers();
    wait_for_confirmed_store(&daemon);
    daemon
}

#[track_caller]
fn restart(manager: &ServiceManager, mut daemon: Running) -> Running {
    daemon.signal("TERM");
    assert_eq!(daemon.wait().code(), Some(0));
    let daemon = manager
        .setup(FDPASSD, "")
        .start_after(daemon)
        .expect("the next master serves");
    daemon.wait_for_workers();
    daemon
}

/// Descriptors that the manager keeps.
fn stored(manager: &ServiceManager) -> Vec<String> {
    let mut names = manager.stored();
    names.sort();
    names
}

#[track_caller]
fn clients_of(daemon: &Running, count: usize) -> Vec<Client> {
    let mut clients: Vec<Client> = (0..count).map(|_| daemon.connect()).collect();
    ping_all(&mut clients);
    clients
}
