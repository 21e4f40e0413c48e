//! Faults outside the daemon when a master takes over clients: none of them is lost.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{chown, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;

use fdpassd::proto::names::Address;
use fdpassd::testing::{Client, Running, ServiceManager, eventually};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use serde_json::json;

use crate::app_hangs::DeadDisk;
use crate::common::faulty::{Execution, example};
use crate::common::needs::skip;
use crate::common::port::Reserved;
use crate::common::program::{install_text, run};
use crate::common::restart::wait_for_confirmed_store;
use crate::common::strace::Traced;
use crate::common::{FDPASSD, kernel, ping_all, tcp_address};

/// A user that every system has.
const NOBODY: u32 = 65_534;

const BOTH: &str = "listen = [\"127.0.0.1:0\", \"unix:{dir}/rpc.sock\"]\nworkers.count = 1\n";

fn start(manager: &ServiceManager, program: impl AsRef<Path>, config: &str) -> Running {
    let setup = manager.setup(program.as_ref(), config);
    let daemon = setup.start().expect("it serves");
    wait_for_confirmed_store(&daemon);
    daemon
}

fn clients_of(daemon: &Running) -> Vec<Client> {
    let addresses = daemon.addresses().iter().cycle();
    let mut clients: Vec<Client> = addresses.take(20).map(Client::connect).collect();
    ping_all(&mut clients);
    clients
}

/// Ends a daemon in order.
fn end(mut daemon: Running) -> Running {
    daemon.signal("TERM");
    assert!(daemon.wait().success());
    daemon
}

/// Checks that all clients are served.
#[track_caller]
fn expect_kept(daemon: &Running, clients: &mut [Client]) {
    ping_all(clients);
    let status = daemon.status();
    assert_eq!(
        (status.clients, status.lost_total),
        (clients.len() as u64, 0)
    );
}

#[test]
fn a_socket_file_of_another_user_ends_no_client() {
    let without = ["--inh-caps=-fowner,-chown", "--bounding-set=-fowner,-chown"];
    let tried = run("setpriv", &[without[0], without[1], "true"]);
    if kernel::user() != 0 || tried.code != Some(0) {
        return skip("root", "only root can give a file and its privileges away");
    }
    let manager = ServiceManager::new();
    let daemon = start(&manager, FDPASSD, BOTH);
    let mut clients = clients_of(&daemon);
    let daemon = end(daemon);
    let directory = daemon.directory().to_owned();
    chown(directory.join("rpc.sock"), Some(NOBODY), None).expect("it is ours");
    let program = directory.join("program");
    let script = format!(
        "#!/bin/sh\nexec setpriv {} {} {FDPASSD} \"$@\"\n",
        without[0], without[1]
    );
    install_text(&script, &program, 0o755);
    let next = manager.setup(&program, "").start_after(daemon);
    let next = next.expect("the next master serves");
    next.wait_for_log("cannot change the listener unix:");
    expect_kept(&next, &mut clients);
    let mut another = Client::connect(&Address::Unix(directory.join("rpc.sock")));
    assert_eq!(another.call("ping", 1), Ok(json!(1)));
}

/// An address that another process has bound in place of the daemon, until [`Taken::end`].
enum Taken {
    Tcp(TcpListener),
    Unix(UnixListener, std::path::PathBuf),
}

impl Taken {
    fn new(address: &Address) -> Taken {
        match address {
            Address::Tcp(address) => Taken::Tcp(eventually("the address is free", || {
                TcpListener::bind(address).ok()
            })),
            Address::Unix(path) => {
                fs::remove_file(path).expect("it was left");
                Taken::Unix(
                    UnixListener::bind(path).expect("it is free"),
                    path.to_owned(),
                )
            }
        }
    }

    fn end(self) {
        match self {
            Taken::Tcp(listener) => drop(listener),
            Taken::Unix(listener, path) => {
                drop(listener);
                fs::remove_file(path).expect("it is there");
            }
        }
    }
}

/// The store loses a listener, and another process binds its address.
#[test]
fn a_taken_address_ends_no_client_and_is_bound_later() {
    let place = tempfile::tempdir().expect("a directory");
    for is_tcp in [true, false] {
        for others in ["", ", \"127.0.0.1:0\""] {
            // Another address each time: a process that another test has just forked may still have a copy of a
            // listener.
            let reserved = Reserved::new();
            let file = format!("rpc-{}.sock", others.len());
            let first = match is_tcp {
                true => reserved.address.to_string(),
                false => format!("unix:{}", place.path().join(file).display()),
            };
            let manager = ServiceManager::new();
            let config = format!("listen = [\"{first}\"{others}]\nworkers.count = 1\n");
            let daemon = start(&manager, FDPASSD, &config);
            let address = daemon.address().clone();
            let mut clients = clients_of(&daemon);
            let daemon = end(daemon);
            manager.forget_after_end(|name| name == "fdpassd-listener.1");
            let taken = Taken::new(&address);
            let next = manager.setup(FDPASSD, "").start_after(daemon);
            let next = next.expect("the next master serves");
            expect_kept(&next, &mut clients);
            let status = next.status();
            let outage = status.listeners[0].outage.clone().unwrap_or_default();
            assert!(outage.contains("cannot listen on "), "{outage:?}");
            assert_eq!(
                status.config_stale, None,
                "it is the configuration of the file"
            );
            taken.end();
            next.wait_until("it listens again", |status| {
                status.listeners[0].outage.is_none()
            });
            let mut another = Client::connect(&address);
            assert_eq!(another.call("ping", 1), Ok(json!(1)));
            drop(another);
            drop(clients);
            next.wait_until("all have left", |status| status.clients == 0);
        }
    }
}

#[test]
fn a_stop_takes_the_listeners_from_the_service_manager() {
    let manager = ServiceManager::new();
    let mut daemon = start(&manager, example("faulty"), BOTH);
    let address: SocketAddr = match daemon.address() {
        Address::Tcp(address) => *address,
        Address::Unix(_) => panic!("TCP is first"),
    };
    let execution = Execution::start(&daemon);
    let stop = daemon.ctl_request("stop", ());
    daemon.wait_until("the daemon is stopping", |status| status.stopping);
    eventually("the store has no listener", || {
        let stored = manager.stored();
        let mut names = stored.iter();
        (!names.any(|name| name.starts_with("fdpassd-listener"))).then_some(())
    });
    // This process is the service manager: a child that another test forks has copies of its descriptors until it
    // executes its program.
    eventually("nothing listens", || TcpStream::connect(address).err());
    execution.finish().expect_end();
    assert!(daemon.wait().success());
    drop(stop);
}

/// The successor of the killed worker cannot be started, so its client waits when the master is killed.
#[test]
fn a_request_that_took_too_long_is_not_run_by_the_next_master() {
    let manager = ServiceManager::new();
    let config = "workers.count = 1\nlimits.request-timeout = \"500ms\"\n";
    let daemon = start(&manager, example("faulty"), config);
    let calls = "?clone,?clone3,?vfork";
    let inject = format!("{calls}:error=EAGAIN");
    let Some(traced) = Traced::attach(daemon.pid(), calls, &inject) else {
        return;
    };
    let mut client = daemon.connect();
    client.request("spin", 100_000);
    daemon.wait_for_log("moved, 0 closed");
    // The second reply shows that the iteration that reaped the worker has ended, at whose end its client is packed.
    let _ = (daemon.status(), daemon.status());
    daemon.signal("KILL");
    drop(traced);
    let next = manager.setup(example("faulty"), "").start_after(daemon);
    let next = next.expect("the next master serves");
    let fault = client.reply().value().expect_err("it took too long");
    assert_eq!(fault.code(), "timeout");
    assert_eq!(next.status().lost_total, 0);
}

#[test]
fn a_file_system_that_does_not_answer_delays_no_exit_for_long() {
    let manager = ServiceManager::new();
    let daemon = start(&manager, FDPASSD, BOTH);
    let mut clients = clients_of(&daemon);
    // It ends before the daemon does if this test fails.
    let Some(disk) = DeadDisk::new() else {
        return;
    };
    let file = daemon.directory().join("config.toml");
    let aside = daemon.directory().join("aside");
    fs::rename(&file, &aside).expect("it is there");
    symlink(disk.file(), &file).expect("there is none");
    daemon.signal("TERM");
    eventually("the daemon exits", || {
        kernel::is_over(daemon.pid()).then_some(())
    });
    drop(disk);
    fs::rename(&aside, &file).expect("it is there");
    let next = manager.setup(FDPASSD, "").start_after(daemon);
    expect_kept(&next.expect("the next master serves"), &mut clients);
}

/// Another daemon removes a file, and binds its own socket at the path.
fn replace(path: &Path) -> UnixListener {
    fs::remove_file(path).expect("it is there");
    UnixListener::bind(path).expect("it is free")
}

#[test]
fn a_file_of_another_daemon_is_not_removed_after_a_restart() {
    let manager = ServiceManager::new();
    let daemon = end(start(&manager, FDPASSD, BOTH));
    let path = daemon.directory().join("rpc.sock");
    let _another = replace(&path);
    let mut next = manager
        .setup(FDPASSD, "")
        .start_after(daemon)
        .expect("it serves");
    let outage = next.status().listeners[1].outage.clone();
    assert_eq!(outage.as_deref(), Some("its file is gone"));
    drop(next.ctl_request("stop", ()));
    assert!(next.wait().success());
    assert!(path.exists());
}

/// One client waits at the old socket when its file is removed.
#[test]
fn a_restart_restores_a_removed_socket_file() {
    let manager = ServiceManager::new();
    let daemon = start(&manager, FDPASSD, BOTH);
    let mut clients = clients_of(&daemon);
    let daemon = end(daemon);
    let path = daemon.directory().join("rpc.sock");
    let address = Address::Unix(path.clone());
    let mut waiting = Client::connect(&address);
    waiting.request("ping", 1);
    fs::remove_file(&path).expect("it was left");
    let next = manager.setup(FDPASSD, "").start_after(daemon);
    let next = next.expect("the next master serves");
    ping_all(&mut clients);
    assert_eq!(waiting.reply().value(), Ok(json!(1)));
    let mut another = Client::connect(&address);
    assert_eq!(another.call("ping", 2), Ok(json!(2)));
    let status = next.wait_until("the old listener has gone", |status| {
        status.listeners.len() == 2
    });
    assert_eq!(status.listeners[1].outage, None);
    // The one after it takes over the new socket.
    let last = manager.setup(FDPASSD, "").start_after(end(next));
    let last = last.expect("the next master serves");
    let mut third = Client::connect(&address);
    assert_eq!(third.call("ping", 3), Ok(json!(3)));
    assert_eq!(another.call("ping", 4), Ok(json!(4)));
    assert_eq!(last.status().lost_total, 0);
}

#[test]
fn an_upgrade_does_not_remove_another_daemons_control_socket() {
    let mut daemon = crate::common::start("workers.count = 1");
    let path = daemon.directory().join("control.sock");
    let _another = replace(&path);
    daemon.signal("USR2");
    daemon.wait_for_log("upgraded to ");
    daemon.signal("TERM");
    assert!(daemon.wait().success());
    assert!(path.exists());
}

#[test]
fn a_socket_that_systemd_does_not_pass_ends_no_client() {
    let manager = ServiceManager::new();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = Address::Tcp(listener.local_addr().expect("it is bound"));
    let config = "listen = [\"systemd:rpc\"]\nworkers.count = 1\n";
    let setup = manager.setup(FDPASSD, config).activated("rpc", listener);
    let daemon = setup.start().expect("it serves");
    wait_for_confirmed_store(&daemon);
    let mut clients: Vec<Client> = (0..20).map(|_| Client::connect(&address)).collect();
    ping_all(&mut clients);
    let next = manager.setup(FDPASSD, "").start_after(end(daemon));
    let next = next.expect("the next master serves");
    expect_kept(&next, &mut clients);
    let stale = next.status().config_stale.expect("an entry is missing");
    assert!(stale.contains("cannot listen on systemd:rpc"), "{stale}");
}

#[test]
fn clients_above_the_limit_are_closed_if_systemd_listens_next() {
    let manager = ServiceManager::new();
    let listen = "listen = [\"127.0.0.1:0\", \"unix:{dir}/rpc.sock\"]\n";
    let rest = "workers.count = 1\nlimits.max-clients = 2";
    let mut daemon = start(&manager, FDPASSD, &format!("{listen}{rest}"));
    let addresses = daemon.addresses().to_vec();
    let mut served: Vec<Client> = addresses.iter().map(Client::connect).collect();
    ping_all(&mut served);
    let mut waiting: Vec<Client> = addresses.iter().map(Client::connect).collect();
    daemon.write_config(&format!("listen = [\"systemd:rpc\"]\n{rest}"));
    daemon.signal("TERM");
    assert!(daemon.wait().success());
    for address in addresses {
        daemon.wait_for_log(&format!(
            "1 client waited at {address} and could not be accepted: closed"
        ));
    }
    waiting.iter_mut().for_each(Client::expect_end);
}

/// systemd sends SIGTERM to all processes of the daemon, also to those that start in that moment.
#[test]
fn a_restart_under_signals_leaves_an_address_to_systemd() {
    let manager = ServiceManager::new();
    let mut daemon = start(&manager, FDPASSD, "workers.count = 1");
    assert!(manager.stored().contains(&"fdpassd-listener.1".to_owned()));
    let mut client = daemon.connect();
    assert_eq!(client.call("ping", 1), Ok(json!(1)));
    daemon.write_config("listen = [\"systemd:rpc\"]\nworkers.count = 1");
    daemon.signal("TERM");
    let master = Pid::from_raw(daemon.pid().cast_signed());
    let children = format!("/proc/{master}/task/{master}/children");
    // The wait collects nothing: the pid stays the master's.
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    eventually("the master ends, with signals at each of its steps", || {
        (0..10_000).find_map(|_| {
            kill(master, Signal::SIGCHLD).expect("it is a child of this process");
            let children = fs::read_to_string(&children).unwrap_or_default();
            for child in children.split_whitespace() {
                // One that has ended since is not a fault.
                let _ = kill(
                    Pid::from_raw(child.parse().expect("a pid")),
                    Signal::SIGTERM,
                );
            }
            let ended = waitid(Id::Pid(master), flags).expect("it is a child");
            (ended != WaitStatus::StillAlive).then_some(())
        })
    });
    assert!(daemon.wait().success());
    daemon.wait_for_log("no longer listening on ");
    let stored = manager.stored();
    assert!(
        !stored
            .iter()
            .any(|name| name.starts_with("fdpassd-listener")),
        "{stored:?}"
    );
}

#[test]
fn a_client_that_left_between_two_masters_is_not_lost_later() {
    let manager = ServiceManager::new();
    let daemon = start(&manager, FDPASSD, "workers.count = 1");
    let mut staying = daemon.connect();
    assert_eq!(staying.call("ping", 1), Ok(json!(1)));
    let mut leaving = daemon.connect();
    leaving.request("ping", "x".repeat(1 << 19));
    eventually("there is a reply", || leaving.has_something().then_some(()));
    let daemon = end(daemon);
    // The reply is unread, so the close resets the connection, but only when no process that another test has just
    // forked has a copy of the socket.
    drop(leaving);
    let port = tcp_address(&daemon).port();
    eventually("the connection is reset", || {
        (kernel::established(port) == 1).then_some(())
    });
    let next = manager.setup(FDPASSD, "").start_after(daemon);
    let mut next = next.expect("the next master serves");
    next.wait_for_log("took over 1 client from the previous master; none lost");
    wait_for_confirmed_store(&next);
    next.signal("KILL");
    next.wait();
    let last = manager.setup(FDPASSD, "").start_after(next);
    let last = last.expect("the last master serves");
    expect_kept(&last, std::slice::from_mut(&mut staying));
}
