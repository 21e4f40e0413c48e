//! The master is killed while clients wait for a worker: the next one serves them.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use fdpassd::testing::{Client, Running, ServiceManager, Setup, eventually};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::kernel;
use crate::common::needs::skip;
use crate::common::program::{install_text, run};
use crate::common::random::Random;
use crate::common::restart::wait_for_confirmed_store;
use crate::common::strace::Traced;
use crate::common::{FDPASSD, let_pass, ping_of, pong_of};

const APP: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/unleased/app.py");
const CLIENTS: u64 = 300;

/// Returns a directory for the app and a configuration with it. `None` without Python.
pub fn place() -> Option<(TempDir, String)> {
    if run("python3", &["--version"]).code != Some(0) {
        skip("python3", "there is no python3");
        return None;
    }
    let place = TempDir::new().expect("a directory");
    let path = place.path().display();
    let config = format!(
        "listen = [\"127.0.0.1:0\", \"unix:{path}/rpc.sock\"]\nworkers.count = 1\n\
         app.command = [\"python3\", \"{APP}\", \"{path}\"]\n\
         control.socket = \"{path}/control.sock\"\n\
         limits.frame-timeout = \"none\"\n"
    );
    Some((place, config))
}

/// Starts a daemon whose store is complete, with connected clients that have one reply each.
fn start(manager: &ServiceManager, config: &str) -> (Running, Vec<Client>) {
    serve(manager.setup(FDPASSD, config))
}

fn serve(setup: Setup) -> (Running, Vec<Client>) {
    let daemon = setup.start().expect("it serves");
    wait_for_confirmed_store(&daemon);
    let connect = |i: u64| {
        let mut client = Client::connect(&daemon.addresses()[(i % 2) as usize]);
        assert_eq!(client.call("order", json!({ "n": i })), Ok(json!(i)));
        client
    };
    let clients = (0..CLIENTS).map(connect).collect();
    (daemon, clients)
}

/// Kills the worker, whose successor does not become ready. A third of the clients has sent a request then, a third has
/// sent half a large one.
fn leave_waiting(daemon: &Running, place: &Path, clients: &mut [Client]) {
    fs::write(place.join("hold"), "").expect("it is ours");
    let large = ping_of(40_000);
    for (i, client) in clients.iter_mut().enumerate() {
        if i % 3 == 1 {
            let frame = client.frame(&large);
            client.send(&frame[..30_000]);
        }
    }
    daemon.wait_until("the halves are read", |status| {
        status.workers[0].parked_bytes >= CLIENTS / 3 * 25_900
    });
    daemon.signal_worker(0, "KILL");
    wait_for_death(daemon);
    for (i, client) in (0..).zip(&mut *clients) {
        if i % 3 == 0 {
            client.request("order", json!({ "n": CLIENTS + i }));
        }
    }
}

/// Waits until the worker's death is handled: the loop of the master has begun again.
fn wait_for_death(daemon: &Running) {
    daemon.wait_for_log("moved, 0 closed");
    let _ = (daemon.status(), daemon.status());
}

/// Checks that each client is served and each request was begun once.
fn expect_served(daemon: &Running, place: &Path, clients: &mut [Client]) {
    let large = ping_of(40_000);
    for (i, client) in (0..).zip(&mut *clients) {
        match i % 3 {
            0 => {}
            1 => {
                let frame = client.frame(&large);
                client.send(&frame[30_000..]);
                let reply = client.receive();
                let text = String::from_utf8_lossy(&reply);
                assert!(reply == pong_of(40_000), "{}", &text[..text.len().min(200)]);
                client.request("order", json!({ "n": CLIENTS + i }));
            }
            _ => client.request("order", json!({ "n": CLIENTS + i })),
        }
        assert_eq!(client.reply().value(), Ok(json!(CLIENTS + i)));
    }
    let begun = begun(place);
    for number in 0..2 * CLIENTS {
        assert_eq!(begun.get(&number), Some(&1), "{number}");
    }
    let status = daemon.status();
    assert_eq!((status.clients, status.lost_total), (CLIENTS, 0));
}

/// Returns how often each request was begun.
fn begun(place: &Path) -> HashMap<u64, u32> {
    let mut begun = HashMap::new();
    for line in fs::read_to_string(place.join("journal"))
        .expect("it is written")
        .lines()
    {
        let number = line
            .split(' ')
            .next()
            .and_then(|number| number.parse().ok());
        *begun.entry(number.expect("a number")).or_default() += 1;
    }
    begun
}

#[test]
fn waiting_clients_outlive_a_killed_master() {
    let Some((place, config)) = place() else {
        return;
    };
    let manager = ServiceManager::new();
    let (daemon, mut clients) = start(&manager, &config);
    leave_waiting(&daemon, place.path(), &mut clients);
    daemon.signal("KILL");
    fs::remove_file(place.path().join("hold")).expect("it is there");
    let next = manager.setup(FDPASSD, "").start_after(daemon);
    let next = next.expect("the next master serves");
    expect_served(&next, place.path(), &mut clients);
    // Nothing is left in the queues for the one after it.
    drop(clients);
    next.wait_until("all have left", |status| status.clients == 0);
    let mut next = next;
    next.signal("KILL");
    next.wait();
    let last = manager.setup(FDPASSD, "").start_after(next);
    let status = last.expect("it serves").status();
    assert_eq!((status.clients, status.lost_total), (0, 0));
}

/// Kills a master whose clients wait, and returns these clients.
fn kill_while_clients_wait(manager: &ServiceManager, place: &Path, config: &str) -> Vec<Client> {
    let (mut daemon, mut clients) = start(manager, config);
    leave_waiting(&daemon, place, &mut clients);
    daemon.signal("KILL");
    daemon.wait();
    clients
}

#[test]
fn waiting_clients_outlive_many_killed_masters() {
    let Some((place, config)) = place() else {
        return;
    };
    let manager = ServiceManager::new();
    let mut clients = kill_while_clients_wait(&manager, place.path(), &config);
    // Each first worker's app kills its master, which has taken over the clients by then.
    let kills = 10;
    fs::write(place.path().join("kill"), kills.to_string()).expect("it is ours");
    fs::remove_file(place.path().join("hold")).expect("it is there");
    for _ in 0..kills {
        let next = manager.setup(FDPASSD, &config).start();
        next.expect_err("it is killed at its start");
    }
    let next = manager.setup(FDPASSD, &config).start();
    expect_served(&next.expect("it serves"), place.path(), &mut clients);
}

/// More clients wait than half the limit of descriptors, so the queues have no space to pack them twice.
#[test]
fn many_waiting_clients_outlive_killed_masters() {
    let Some((place, config)) = place() else {
        return;
    };
    let manager = ServiceManager::new();
    let limited = |config: &str| {
        let setup = manager.setup("sh", config).argument("-c");
        let script = format!("ulimit -n {}; exec \"$0\" \"$@\"", CLIENTS + 110);
        setup.argument(script).argument(FDPASSD)
    };
    let (mut daemon, mut clients) = serve(limited(&config));
    let kills = 3;
    fs::write(place.path().join("kill"), kills.to_string()).expect("it is ours");
    let workers = daemon.worker_pids();
    daemon.signal("KILL");
    daemon.wait();
    let are_over = || workers.iter().all(|pid| kernel::is_over(*pid));
    eventually("the worker has packed its clients", || {
        are_over().then_some(())
    });
    for _ in 0..kills {
        let killed = limited(&config).start().expect_err("it is killed");
        let log = killed.to_string();
        assert!(!log.contains("would be lost"), "{log}");
    }
    let daemon = limited(&config).start().expect("it serves");
    for (client, number) in clients.iter_mut().zip(CLIENTS..) {
        assert_eq!(
            client.call("order", json!({ "n": number })),
            Ok(json!(number))
        );
    }
    let status = daemon.status();
    assert_eq!((status.clients, status.lost_total), (CLIENTS, 0));
    assert_eq!(status.requests_total, 2 * CLIENTS);
}

/// The workers pack their clients themselves when the first master is killed: their counters are in no totals then.
#[test]
fn killed_masters_count_the_requests_of_a_worker_once() {
    let Some((place, config)) = place() else {
        return;
    };
    let manager = ServiceManager::new();
    let (mut daemon, mut clients) = start(&manager, &config);
    let kills = 3;
    fs::write(place.path().join("kill"), kills.to_string()).expect("it is ours");
    let workers = daemon.worker_pids();
    daemon.signal("KILL");
    daemon.wait();
    eventually("the worker has packed its clients", || {
        workers
            .iter()
            .all(|pid| kernel::is_over(*pid))
            .then_some(())
    });
    for _ in 0..kills {
        let next = manager.setup(FDPASSD, &config).start();
        next.expect_err("it is killed at its start");
    }
    let next = manager.setup(FDPASSD, &config).start();
    let next = next.expect("it serves");
    for (client, number) in clients.iter_mut().zip(CLIENTS..) {
        assert_eq!(
            client.call("order", json!({ "n": number })),
            Ok(json!(number))
        );
    }
    let status = next.status();
    assert_eq!((status.requests_total, status.lost_total), (2 * CLIENTS, 0));
}

/// The exit has no memory for anything new, which clients in the queues do not need.
#[test]
fn the_exit_leaves_packed_clients_where_they_are() {
    let Some((place, config)) = place() else {
        return;
    };
    let manager = ServiceManager::new();
    let (mut daemon, mut clients) = start(&manager, &config);
    leave_waiting(&daemon, place.path(), &mut clients);
    let Some(traced) = Traced::attach(daemon.pid(), "memfd_create", "memfd_create:error=ENOMEM")
    else {
        return;
    };
    daemon.signal("TERM");
    assert!(daemon.wait().success());
    drop(traced);
    fs::remove_file(place.path().join("hold")).expect("it is there");
    let next = manager.setup(FDPASSD, "").start_after(daemon);
    expect_served(
        &next.expect("the next master serves"),
        place.path(),
        &mut clients,
    );
}

#[test]
fn masters_killed_while_they_start_lose_no_waiting_client() {
    let Some((place, config)) = place() else {
        return;
    };
    let manager = ServiceManager::new();
    let mut clients = kill_while_clients_wait(&manager, place.path(), &config);
    let mut random = Random::new("UNLEASED_SEED");
    let program = place.path().join("program");
    for _ in 0..20 {
        // No worker becomes ready, so none has clients when it ends with the master.
        let moment = random.below(100);
        let script = format!(
            "#!/bin/sh\n(sleep 0.{moment:03}; kill -KILL $$) >/dev/null 2>&1 &\nexec {FDPASSD} \"$@\"\n"
        );
        install_text(&script, &program, 0o755);
        let next = manager.setup(&program, &config).start();
        next.expect_err("it is killed while it starts");
    }
    fs::remove_file(place.path().join("hold")).expect("it is there");
    let next = manager.setup(FDPASSD, &config).start();
    expect_served(&next.expect("it serves"), place.path(), &mut clients);
}

#[test]
fn an_interrupted_request_waits_for_its_app_in_the_next_master() {
    let Some((place, config)) = place() else {
        return;
    };
    let manager = ServiceManager::new();
    let (daemon, mut clients) = start(&manager, &format!("{config}log.level = \"debug\"\n"));
    let client = &mut clients[0];
    client.request("large", json!({ "n": 1000 }));
    eventually("the app has much memory", || {
        place.path().join("is_large").exists().then_some(())
    });
    daemon.signal_worker(0, "KILL");
    wait_for_death(&daemon);
    daemon.signal("KILL");
    let next = manager.setup(FDPASSD, "").start_after(daemon);
    let next = next.expect("the next master serves");
    // Its result is whether the first app still runs.
    assert_eq!(client.reply().value(), Ok(Value::Bool(false)));
    assert_eq!(begun(place.path()).get(&1000), Some(&2));
    let status = next.status();
    assert_eq!((status.clients, status.lost_total), (CLIENTS, 0));
}

/// The worker is about to report the end of its app when its master is killed: only the next one can recover its
/// clients.
#[test]
fn clients_outlive_an_app_and_its_master_killed_together() {
    const DELAY: Duration = Duration::from_millis(700);
    let Some((place, config)) = place() else {
        return;
    };
    let manager = ServiceManager::new();
    let (daemon, mut clients) = start(&manager, &config);
    let status = daemon.status();
    let worker = &status.workers[0];
    let app = worker.app.as_ref().expect("an app").pid;
    let inject = format!("sendmsg:delay_enter={}", DELAY.as_micros());
    let Some(_traced) = Traced::attach(worker.pid.expect("a pid"), "sendmsg", &inject) else {
        return;
    };
    kernel::send(app, Signal::SIGKILL);
    eventually("the app is over", || kernel::is_over(app).then_some(()));
    // The worker finds that by then, and waits to send it. If it takes longer, this test shows less.
    let_pass(DELAY / 2);
    daemon.signal("KILL");
    let next = manager.setup(FDPASSD, &config).start_after(daemon);
    let daemon = next.expect("the next master serves");
    for (i, client) in clients.iter_mut().enumerate() {
        let number = CLIENTS + i as u64;
        assert_eq!(
            client.call("order", json!({ "n": number })),
            Ok(json!(number))
        );
    }
    let status = daemon.status();
    assert_eq!((status.clients, status.lost_total), (CLIENTS, 0));
    drop(place);
}

#[test]
fn clients_outlive_an_app_whose_end_a_killed_master_missed() {
    let Some((place, config)) = place() else {
        return;
    };
    let manager = ServiceManager::new();
    let (mut daemon, mut clients) = start(&manager, &config);
    let status = daemon.status();
    let app = status.workers[0].app.as_ref().expect("an app").pid;
    kernel::stop(daemon.pid());
    kernel::send(app, Signal::SIGKILL);
    eventually("the app is over", || kernel::is_over(app).then_some(()));
    // The worker finds that by then, and would have ended. If it takes longer, this test shows less.
    let_pass(Duration::from_millis(200));
    daemon.signal("KILL");
    daemon.wait();
    let next = manager.setup(FDPASSD, &config).start_after(daemon);
    let daemon = next.expect("the next master serves");
    for (i, client) in clients.iter_mut().enumerate() {
        let number = CLIENTS + i as u64;
        let result = client.call("order", json!({ "n": number }));
        assert_eq!(result, Ok(json!(number)));
    }
    let status = daemon.status();
    assert_eq!((status.clients, status.lost_total), (CLIENTS, 0));
    drop(place);
}

/// A worker finds requests together with the end of its master: it packs its clients, and only the next master's app
/// executes the requests.
#[test]
fn requests_that_arrive_with_the_end_of_the_master_run_once() {
    let Some((place, config)) = place() else {
        return;
    };
    let manager = ServiceManager::new();
    let (mut daemon, mut clients) = start(&manager, &config);
    let worker = daemon.worker_pids()[0];
    kernel::stop(worker);
    daemon.signal("KILL");
    daemon.wait();
    for (i, client) in (0..).zip(&mut clients) {
        client.request("order", json!({ "n": CLIENTS + i }));
    }
    kernel::send(worker, Signal::SIGCONT);
    let next = manager.setup(FDPASSD, "").start_after(daemon);
    let next = next.expect("the next master serves");
    for (i, client) in (0..).zip(&mut clients) {
        assert_eq!(client.reply().value(), Ok(json!(CLIENTS + i)));
    }
    let begun = begun(place.path());
    for number in 0..2 * CLIENTS {
        assert_eq!(begun.get(&number), Some(&1), "{number}");
    }
    let status = next.status();
    assert_eq!((status.clients, status.lost_total), (CLIENTS, 0));
}
