//! A restart when what it finds is not what was left: a store that lost something, a state file that cannot be read,
//! fewer descriptors, fewer slots.

mod killed_master;
mod saved_state;
mod version_0_1_0;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use fdpassd::proto::names::Address;
use fdpassd::testing::{Client, Running, ServiceManager, Setup, eventually};

use crate::common::faulty::example;
use crate::common::restart::wait_for_confirmed_store;
use crate::common::upgrade::Programs;
use crate::common::{FDPASSD, ping_all, ping_of, pong_of};

/// Some tests last longer than a frame may by default.
const BOTH: &str = "listen = [\"127.0.0.1:0\", \"unix:{dir}/rpc.sock\"]\nworkers.count = 2\n\
                    limits.frame-timeout = \"none\"\n";
const STATE_FILE: &str = "fdpassd-book";

#[test]
fn workers_that_do_not_become_ready_lose_no_client() {
    let manager = ServiceManager::new();
    let program = example("faulty");
    let daemon = manager
        .setup(&program, "workers.count = 1")
        .start()
        .expect("it serves");
    let mut clients = clients_of(&daemon, 20);
    let daemon = end(daemon);
    let control = daemon.directory().join("control.sock");
    let config =
        std::fs::read_to_string(daemon.directory().join("config.toml")).expect("it is there");
    let broken = std::thread::scope(|scope| {
        let failing = scope.spawn(|| {
            manager
                .setup(&program, &config)
                .variable("FAULTY", "fail")
                .start()
        });
        // It would have given up by then, had it no clients.
        eventually("four workers have failed", || {
            // The file of the daemon before may still be there.
            std::os::unix::net::UnixStream::connect(&control).ok()?;
            let mut asker = Client::connect(&Address::Unix(control.clone()));
            let status = asker.call("status", ()).ok()?;
            (status["failed_starts_total"].as_u64()? > 3).then_some(())
        });
        let pid = Client::connect(&Address::Unix(control.clone()))
            .call("version", ())
            .expect("it answers")["pid"]
            .clone();
        assert!(
            Command::new("kill")
                .arg("-TERM")
                .arg(pid.to_string())
                .status()
                .expect("kill runs")
                .success()
        );
        failing.join().expect("it is started")
    });
    assert_eq!(broken.expect_err("no worker is ready").code(), Some(0));
    let daemon = manager
        .setup(&program, "")
        .start_after(daemon)
        .expect("it serves");
    ping_all(&mut clients);
    assert_eq!(daemon.status().lost_total, 0);
}

#[test]
fn a_failed_start_loses_no_client() {
    let manager = ServiceManager::new();
    let daemon = start(&manager, BOTH);
    let mut clients = clients_of(&daemon, 20);
    let mut halfway = Halfway::start(&daemon);
    let daemon = end(daemon);
    let good =
        std::fs::read_to_string(daemon.directory().join("config.toml")).expect("it is there");
    // There are too few descriptors for anything. Without a wait, systemd would soon give the daemon up.
    let runtime = tempfile::tempdir().expect("a directory");
    for waits in [false, true] {
        let begin = Instant::now();
        let error = limited(&manager, 40, &good)
            .variable("RUNTIME_DIRECTORY", runtime.path())
            .start()
            .expect_err("there is none for a client");
        assert_eq!(error.code(), Some(71), "{error}");
        assert!(!waits || begin.elapsed() >= Duration::from_secs(1));
    }
    manager.forget_those(|name| name == STATE_FILE);
    let error = manager
        .setup(FDPASSD, &format!("{good}\nworkers.cuont = 1"))
        .start()
        .expect_err("the file is bad");
    assert_eq!(error.code(), Some(78), "{error}");
    assert!(daemon.directory().join("rpc.sock").exists());
    let daemon = restart(&manager, daemon);
    ping_all(&mut clients);
    halfway.finish();
    assert_eq!(daemon.status().lost_total, 0);
}

#[test]
fn with_fewer_descriptors_the_most_recently_active_are_kept() {
    for how in ["TERM", "KILL"] {
        let manager = ServiceManager::new();
        let daemon = start(&manager, "workers.count = 1");
        let mut clients = clients_of(&daemon, 900);
        // The first ones are the most recently active.
        ping_all(&mut clients[..100]);
        let daemon = end_by(daemon, how);
        let daemon = limited(&manager, 700, "")
            .start_after(daemon)
            .expect("the next master serves");
        let status = daemon.wait_for_workers();
        assert!(
            status.clients == status.max_clients && status.clients + status.lost_total == 900,
            "{how}: {status:?}"
        );
        daemon.wait_for_log(&format!("{0} lost: descriptors {0}", status.lost_total));
        ping_all(&mut clients[..100]);
        let mut told = 0;
        for client in &mut clients[100..] {
            if client.has_something() {
                let fault = client.reply().value().expect_err("it is closed");
                assert_eq!(fault.code(), "overloaded", "{fault}");
                client.expect_end();
                told += 1;
            } else {
                client.call("ping", 7).expect("a pong");
            }
        }
        assert_eq!(told, status.lost_total, "{how}");
        clients.truncate(99);
        daemon
            .connect()
            .call("ping", 1)
            .expect("there is room for new ones");
    }
}

/// Checks the default number of workers as well, because each needs descriptors.
#[test]
fn a_full_daemon_keeps_every_client_at_the_same_limit() {
    for (limit, config) in [(64, BOTH), (100, BOTH), (400, BOTH), (1024, "")] {
        for how in ["TERM", "KILL"] {
            let manager = ServiceManager::new();
            let setup = limited(&manager, limit, config);
            let daemon = setup.start().expect("it serves");
            let status = wait_for_confirmed_store(&daemon);
            let max = status.max_clients;
            let mut clients = clients_of(&daemon, max as usize);
            let daemon = end_by(daemon, how);
            let next = limited(&manager, limit, "").start_after(daemon);
            let next = next.expect("the next master serves");
            next.wait_for_log("none lost");
            ping_all(&mut clients);
            let status = next.status();
            assert_eq!(
                (status.max_clients, status.clients, status.lost_total),
                (max, max, 0),
                "{limit} {how}"
            );
        }
    }
}

#[test]
fn fewer_slots_and_shorter_frames_block_no_client() {
    let programs = Programs::new();
    let program = programs.copy(Path::new(FDPASSD));
    for how in ["TERM", "KILL"] {
        let manager = ServiceManager::new();
        let config = "workers.count = 1\nlimits.max-clients = 100";
        let daemon = manager.setup(&program, config).start().expect("it serves");
        let mut clients = clients_of(&daemon, 40);
        let mut halfway = Halfway::start(&daemon);
        daemon.write_config(
            "workers.count = 1\nlimits.max-clients = 10\nlimits.max-frame = \"64KiB\"",
        );
        let daemon = manager
            .setup(&program, "")
            .start_after(end_by(daemon, how))
            .expect("the next master serves");
        ping_all(&mut clients);
        halfway.expect_too_long();
        let status = daemon.wait_until("the one with half a frame has left", |status| {
            status.clients == 40
        });
        assert_eq!((status.max_clients, status.lost_total), (10, 0), "{how}");
        // An upgrade has as much room, and the old worker leaves although the new one has none left.
        daemon.ctl("upgrade").expect("it is fit");
        let log = daemon.stderr();
        assert!(!log.contains("did not finish in time"), "{log}");
        ping_all(&mut clients);
        assert_eq!(daemon.status().lost_total, 0, "{how}");
        drop(clients);
        daemon.wait_until("they have left", |status| status.clients == 0);
        clients_of(&daemon, 10);
    }
}

/// A client that has sent half of a frame on one of each kind of socket.
struct Halfway(Vec<Client>);

impl Halfway {
    fn start(daemon: &Running) -> Halfway {
        let mut clients: Vec<Client> = daemon.addresses().iter().map(Client::connect).collect();
        for client in &mut clients {
            let frame = client.frame(ping_of(300_000));
            client.send(&frame[..200_000]);
        }
        // The first 4 KiB of each do not count.
        daemon.wait_until("the halves are parked", |status| {
            status
                .workers
                .iter()
                .map(|worker| worker.parked_bytes)
                .sum::<u64>()
                >= 195_904 * clients.len() as u64
        });
        Halfway(clients)
    }

    fn finish(&mut self) {
        for client in &mut self.0 {
            let frame = client.frame(ping_of(300_000));
            client.send(&frame[200_000..]);
            assert!(
                client.receive() == pong_of(300_000),
                "the reply is another one"
            );
        }
    }

    fn expect_too_long(&mut self) {
        for client in &mut self.0 {
            let fault = client
                .reply()
                .value()
                .expect_err("its frame is too long now");
            assert_eq!(fault.code(), "too_large", "{fault}");
            client.expect_end();
        }
    }
}

#[track_caller]
fn start(manager: &ServiceManager, config: &str) -> Running {
    let daemon = manager.setup(FDPASSD, config).start().expect("it serves");
    wait_for_confirmed_store(&daemon);
    daemon.wait_for_workers();
    daemon
}

/// Starts it with this limit on descriptors.
fn limited(manager: &ServiceManager, descriptors: u32, config: &str) -> Setup {
    let setup = manager.setup("sh", config).argument("-c");
    setup
        .argument(format!("ulimit -n {descriptors}; exec \"$0\" \"$@\""))
        .argument(FDPASSD)
}

fn end(daemon: Running) -> Running {
    end_by(daemon, "TERM")
}

/// As systemd does it: what is left of a master that is gone gets SIGTERM.
#[track_caller]
fn end_by(mut daemon: Running, signal: &str) -> Running {
    let workers = daemon.worker_pids();
    if signal == "KILL" {
        wait_for_confirmed_store(&daemon);
    }
    daemon.signal(signal);
    daemon.wait();
    if signal == "KILL" {
        for worker in workers {
            let _ = Command::new("kill")
                .arg("-TERM")
                .arg(worker.to_string())
                .status();
        }
    }
    daemon
}

#[track_caller]
fn restart(manager: &ServiceManager, daemon: Running) -> Running {
    let daemon = manager
        .setup(FDPASSD, "")
        .start_after(daemon)
        .expect("the next master serves");
    daemon.wait_for_workers();
    daemon
}

#[track_caller]
fn clients_of(daemon: &Running, count: usize) -> Vec<Client> {
    let addresses: &[Address] = daemon.addresses();
    let mut clients: Vec<Client> = (0..count)
        .map(|i| Client::connect(&addresses[i % addresses.len()]))
        .collect();
    ping_all(&mut clients);
    clients
}
