//! A restart when what it finds is not what was left: a store that lost something, a state file that cannot be read, fewer
//! descriptors, fewer slots.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;

use fdpassd::proto::control::Status;
use fdpassd::proto::names::Address;
use fdpassd::testing::{Client, Running, ServiceManager, Setup, eventually};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use serde_json::{Value, json};

use crate::common::faulty::example;
use crate::common::upgrade::Programs;
use crate::common::{FDPASSD, kernel, metrics, ping_all, ping_of, pong_of, read};

const BOTH: &str = "listen = [\"127.0.0.1:0\", \"unix:{dir}/rpc.sock\"]\nworkers.count = 2\n";
const STATE_FILE: &str = "fdpassd-book";

#[test]
fn clients_and_listeners_outlive_an_unreadable_state_file() {
    let write = |at, bytes: &'static [u8]| {
        move |manager: &ServiceManager| {
            manager.with_stored(STATE_FILE, |file| {
                let file = File::from(file);
                file.write_all_at(bytes, at).expect("it is a file");
                // Only that version can read it.
                if at == 0 {
                    file.write_all_at(bytes, 40).expect("it is a file");
                }
            });
        }
    };
    type Damage = Box<dyn Fn(&ServiceManager)>;
    let damages: [(&str, Damage); 5] = [
        ("it is of version 99", Box::new(write(0, b"fdpassd\x63"))),
        (
            "it has no version of fdpassd",
            Box::new(write(0, &[0xff; 8])),
        ),
        ("its length is not valid", Box::new(write(8, &[0xff; 8]))),
        ("expected value", Box::new(write(4096, b"fdpassd"))),
        (
            "the state file is missing",
            Box::new(|manager| manager.forget_those(|name| name == STATE_FILE)),
        ),
    ];
    for (why, damage) in damages {
        let manager = ServiceManager::new();
        let daemon = start(&manager, BOTH);
        let mut clients = clients_of(&daemon, 20);
        let mut halfway = Halfway::start(&daemon);
        // Both halves of it, whichever counts.
        daemon.reload().expect("it is applied");
        let (addresses, before) = (daemon.addresses().to_vec(), daemon.status());
        let daemon = end(daemon);
        damage(&manager);
        let daemon = restart(&manager, daemon);
        assert_eq!(daemon.addresses(), addresses, "{why}");
        if why != "expected value" {
            daemon.wait_for_log(why);
        }
        ping_all(&mut clients);
        halfway.finish();
        let after = daemon.status();
        assert_eq!((after.clients, after.lost_total), (22, 0), "{why}");
        assert!(
            after.generation > before.generation && newest(&after) > newest(&before),
            "{why}"
        );
        // New descriptors are stored again.
        let daemon = restart(&manager, end(daemon));
        ping_all(&mut clients);
        clients_of(&daemon, 2);
        assert_eq!(
            (daemon.status().lost_total, daemon.status().config_stale),
            (0, None),
            "{why}"
        );
    }
}

#[test]
fn the_remains_of_a_store_are_taken_over() {
    for lost in [
        "fdpassd-listener",
        "fdpassd-listener.1",
        "fdpassd-boat.1-into",
        "fdpassd-boat.0-into",
        STATE_FILE,
    ] {
        let manager = ServiceManager::new();
        let daemon = start(&manager, BOTH);
        let mut clients = clients_of(&daemon, 20);
        daemon.wait_until("the store is confirmed", |status| {
            status.restart_keeps_clients
        });
        let daemon = end(daemon);
        let stored = manager.stored().len();
        manager.forget_those(|name| name.starts_with(lost));
        let daemon = restart(&manager, daemon);
        ping_all(&mut clients);
        clients_of(&daemon, 2);
        assert_eq!(daemon.status().lost_total, 0, "{lost}");
        // A listener that is bound again has another number.
        eventually("the manager has all of it again", || {
            (manager.stored().len() == stored).then_some(())
        });
        let daemon = restart(&manager, end(daemon));
        ping_all(&mut clients);
        assert_eq!(daemon.status().lost_total, 0, "{lost}");
    }
}

#[test]
fn clients_in_a_lost_queue_are_counted() {
    let manager = ServiceManager::new();
    let daemon = start(&manager, "workers.count = 1");
    let mut clients = clients_of(&daemon, 7);
    let daemon = end(daemon);
    manager.forget_those(|name| name.starts_with("fdpassd-boat"));
    let daemon = restart(&manager, daemon);
    clients.iter_mut().for_each(Client::expect_end);
    let status = daemon.status();
    assert_eq!((status.clients, status.lost_total), (0, 7));
    daemon.wait_for_log("took over 0 clients from the previous master; 7 lost: store 7");
    assert!(metrics::text(&daemon).contains("\nfdpassd_clients_lost_total{reason=\"store\"} 7\n"));
    let mut clients = clients_of(&daemon, 3);
    let _daemon = restart(&manager, end(daemon));
    ping_all(&mut clients);
}

#[test]
fn clients_without_room_in_the_queue_are_counted() {
    for (how, room) in [("TERM", 0), ("KILL", 0), ("TERM", 2), ("KILL", 2)] {
        let manager = ServiceManager::new();
        let daemon = start(&manager, "workers.count = 1");
        let mut clients = clients_of(&daemon, 600);
        // All of it is full except for this number of datagrams.
        for name in manager
            .stored()
            .iter()
            .filter(|name| name.ends_with("-into"))
        {
            manager.with_stored(name, |queue| fill(&UnixDatagram::from(queue)));
        }
        manager.with_stored("fdpassd-boat.0-out", |queue| {
            let queue = UnixDatagram::from(queue);
            for _ in 0..room {
                queue.recv(&mut [0; 8192]).expect("it is full");
            }
        });
        let daemon = restart(&manager, end_by(daemon, how));
        let status = daemon.status();
        assert!(
            status.clients + status.lost_total == 600 && status.lost_total > 0,
            "{how} {room}: {status:?}"
        );
        assert_eq!(status.clients > 0, room > 0, "{how} {room}");
        let mut served = 0;
        for client in &mut clients {
            if !client.has_something() {
                ping_all(std::slice::from_mut(client));
                served += 1;
            }
        }
        assert_eq!(served, status.clients, "{how} {room}");
    }
}

/// Until it takes nothing more.
fn fill(queue: &UnixDatagram) {
    queue.set_nonblocking(true).expect("set");
    for length in [7000, 1] {
        while queue.send(&vec![99; length]).is_ok() {}
    }
}

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
    // Too few descriptors for anything; and nothing that says what was in force before a file was bad.
    let error = limited(&manager, 40, &good)
        .start()
        .expect_err("there is none for a client");
    assert_eq!(error.code(), Some(71), "{error}");
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
            status.clients >= 300 && status.clients + status.lost_total == 900,
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
        daemon
            .connect()
            .call("ping", 1)
            .expect("there is room for new ones");
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
        // An upgrade has as much room.
        daemon.ctl("upgrade").expect("it is fit");
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

fn newest(status: &Status) -> Option<u64> {
    status
        .workers
        .iter()
        .filter_map(|worker| worker.id)
        .map(|id| id.0)
        .max()
}

/// The state that version 0.1.0 hands to the next program, with a foreign process as its worker.
#[test]
fn an_upgrade_from_0_1_0_replaces_the_workers_and_serves() {
    let directory = tempfile::tempdir().expect("a directory");
    let at = |name: &str| Address::Unix(directory.path().join(name));
    let listeners = ["control", "clients", "later"].map(|name| {
        let Address::Unix(path) = at(name) else {
            unreachable!("it is a path")
        };
        UnixListener::bind(path).expect("bind")
    });
    for listener in [&listeners[0], &listeners[2]] {
        listener.set_nonblocking(true).expect("set");
    }
    let mut clients: Vec<Client> = (0..4).map(|_| Client::connect(&at("clients"))).collect();
    let sockets: Vec<OwnedFd> = (0..4).map(|_| accepted(&listeners[1])).collect();
    let (channel, _theirs) = UnixStream::pair().expect("socketpair");
    let mut snapshot: Value = serde_json::from_str(&format_of("snapshot.json")).expect("JSON");
    // From number 3 on: the snapshot, and then these in this order.
    let left: Vec<OwnedFd> = [listeners[0].try_clone(), listeners[2].try_clone()]
        .into_iter()
        .map(|listener| listener.expect("dup").into())
        .chain([channel.into(), shared_memory().into()])
        .chain(sockets)
        .collect();
    snapshot["control"] = json!([4, directory.path().join("control")]);
    let later = format!("unix:{}", directory.path().join("later").display());
    let config = format!(
        "listen = [\"{later}\"]\nworkers.count = 1\n[limits]\nmax-frame = \"64KiB\"\nframe-timeout = \"none\"\n"
    );
    let config = format!(
        "{config}[control]\nsocket = \"{}\"\n",
        directory.path().join("control").display()
    );
    snapshot["handover"]["config"] = json!(config);
    snapshot["listeners"] =
        json!([[{ "number": 1, "configured": later, "address": later, "accepted": 0 }, 5]]);
    (snapshot["boats"], snapshot["book"]) = (json!([]), Value::Null);
    let worker = &mut snapshot["workers"][0];
    (worker["channel"], worker["desk"], worker["pid"]) = (json!(6), json!(7), json!(0));
    for (number, entry) in (8..).zip(
        worker["leases"]["entries"]
            .as_array_mut()
            .expect("an array"),
    ) {
        entry[1]["socket"] = json!(number);
    }

    let script = "sleep 1000 & printf %s \"$SNAPSHOT\" | sed \"s/\\\"pid\\\":0/\\\"pid\\\":$!/\" >&3; \
        echo \" listens on $ADDRESS; call it\"; exec \"$0\" resume 3";
    let setup = Setup::new("sh", &config)
        .argument("-c")
        .argument(script)
        .argument(FDPASSD);
    let setup = setup
        .variable("SNAPSHOT", snapshot.to_string())
        .variable("ADDRESS", &later);
    let setup = setup.handed("left", tempfile::tempfile().expect("a file"));
    let daemon = left
        .into_iter()
        .fold(setup, |setup, left| setup.handed("left", left))
        .start()
        .expect("it goes on");

    let status = daemon.wait_for_workers();
    assert_eq!(
        (status.clients, status.lost_total, status.deaths_total),
        (4, 0, 0)
    );
    // It does not free what it has: that is recovered as after a death.
    daemon.wait_for_log("gen 1) is of another version; killing it with 4 clients");
    let ours = status.workers[0].id.expect("it is there");
    assert!(ours.0 > 1, "{status:?}");
    // Two of them are in half a frame.
    for (client, (length, sent, letter)) in clients[1..3]
        .iter_mut()
        .zip([(40, 30, "a"), (1000, 700, "b")])
    {
        let body = format!(
            "{{\"in\":\"ping\",\"params\":\"{}\"}}",
            letter.repeat(length)
        );
        let frame = client.frame(body);
        client.send(&frame[sent..]);
        assert_eq!(
            client.reply().value().expect("a pong"),
            letter.repeat(length)
        );
    }
    ping_all(&mut clients);
    daemon.connect().call("ping", 1).expect("a pong");
    assert_eq!(
        kernel::children(daemon.pid()).len(),
        1,
        "the old worker is collected"
    );
}

fn accepted(listener: &UnixListener) -> OwnedFd {
    let (socket, _) = listener.accept().expect("accept");
    socket.set_nonblocking(true).expect("set");
    socket.into()
}

fn format_of(name: &str) -> String {
    read(&format!("tests/formats/0.1.0/{name}"))
}

/// As version 0.1.0 left it, sealed as that did.
fn shared_memory() -> File {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let file = File::from(memfd_create(c"shm", flags).expect("memfd"));
    file.set_len(2_834_432).expect("it grows");
    fcntl(
        &file,
        FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW),
    )
    .expect("it is sealed");
    for line in format_of("shm.hex").lines() {
        let (offset, bytes) = line.split_once(' ').expect("two words");
        let bytes: Vec<u8> = (0..bytes.len() / 2)
            .map(|i| u8::from_str_radix(&bytes[2 * i..2 * i + 2], 16).expect("hexadecimal"))
            .collect();
        let offset = u64::from_str_radix(offset, 16).expect("hexadecimal");
        file.write_all_at(&bytes, offset)
            .expect("it is as long as that");
    }
    file
}
