//! Listening sockets that another process holds as well, and ends for all or makes blocking.

use std::fs::{self, Permissions};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use fdpassd::proto::control::ListenerStatus;
use fdpassd::proto::names::Address;
use fdpassd::testing::{Client, Running, ServiceManager, Setup, eventually};
use nix::sys::socket::Shutdown;

use crate::common::holder::{end, listener_of, make_blocking};
use crate::common::http::{get, metrics_address};
use crate::common::needs::skip;
use crate::common::program::control_socket;
use crate::common::restart::wait_for_confirmed_store;
use crate::common::upgrade::upgrade;
use crate::common::{FDPASSD, kernel, start, while_idle};

const BOTH: &str = "listen = [\"127.0.0.1:0\", \"unix:{dir}/rpc.sock\"]\nworkers.count = 1\n";

fn can_connect(address: &Address) -> bool {
    match address {
        Address::Tcp(to) => TcpStream::connect(to).is_ok(),
        Address::Unix(path) => UnixStream::connect(path).is_ok(),
    }
}

/// Connects as soon as that is possible, and is served.
#[track_caller]
fn assert_served_again(address: &Address) {
    eventually("clients can connect again", || {
        can_connect(address).then_some(())
    });
    assert_eq!(
        Client::connect(address).call("ping", 1).expect("a result"),
        1,
        "{address}"
    );
}

/// An idle daemon uses no time of the CPU, however busy the machine is.
#[track_caller]
fn assert_idle(daemon: &Running) {
    while_idle(daemon, || ());
    let processes = [vec![daemon.pid()], kernel::children(daemon.pid())].concat();
    kernel::assert_waits(&processes, Duration::from_millis(300), 0.1);
}

/// A file in the place of a Unix socket keeps the daemon from binding it, until this is dropped.
struct InTheWay<'a>(&'a Path);

impl InTheWay<'_> {
    fn of(path: &Path) -> InTheWay<'_> {
        fs::remove_file(path).expect("the socket is there");
        fs::write(path, "").expect("its directory is ours");
        InTheWay(path)
    }
}

impl Drop for InTheWay<'_> {
    fn drop(&mut self) {
        fs::remove_file(self.0).expect("nothing replaced it");
    }
}

fn listener(daemon: &Running, address: &Address) -> ListenerStatus {
    let wanted = address.to_string();
    daemon
        .status()
        .listeners
        .into_iter()
        .find(|listener| listener.address == wanted)
        .expect("it has the listener")
}

fn events(daemon: &Running) -> String {
    daemon.ctl("events").expect("events").to_string()
}

#[test]
fn a_listener_that_another_holder_ended_is_bound_again() {
    let daemon = start(BOTH);
    for address in daemon.addresses() {
        let mut client = Client::connect(address);
        assert_eq!(client.call("ping", 1).expect("a result"), 1);
        for how in [Shutdown::Both, Shutdown::Read] {
            let Some(held) = listener_of(daemon.pid(), address) else {
                return;
            };
            end(&held, how);
            assert_served_again(address);
            assert_eq!(
                client
                    .call("ping", 2)
                    .expect("a client that was there stays"),
                2
            );
        }
        assert_eq!(listener(&daemon, address).outage, None);
        assert!(events(&daemon).contains(&format!(
            "listener {address}: another process has shut the socket down"
        )));
        assert!(events(&daemon).contains(&format!("listener {address} is open again")));
    }
    assert_idle(&daemon);
}

#[test]
fn an_ended_listener_of_a_drained_daemon_costs_no_time() {
    let daemon = start(BOTH);
    let path = daemon.directory().join("rpc.sock");
    daemon
        .ctl_with("drain", serde_json::json!({ "mode": "queue" }))
        .expect("it is drained");
    let Some(held) = listener_of(daemon.pid(), &Address::Unix(path.clone())) else {
        return;
    };
    let in_the_way = InTheWay::of(&path);
    // The one that does not hang up.
    end(&held, Shutdown::Read);
    daemon.wait_until("the end is noticed", |status| {
        status.listeners[1].outage.is_some()
    });
    assert_idle(&daemon);
    drop(in_the_way);
    eventually("clients can connect again", || {
        can_connect(&Address::Unix(path.clone())).then_some(())
    });
    daemon.ctl("undrain").expect("it is not drained any more");
    assert_served_again(&Address::Unix(path));
}

#[test]
fn a_failed_rebind_is_reported_and_tried_again() {
    let config = format!("{BOTH}[metrics]\nlisten = \"127.0.0.1:0\"\n");
    let daemon = start(&config);
    let metrics = metrics_address(&daemon);
    let [tcp, unix] = daemon.addresses() else {
        panic!("two listeners")
    };
    let Address::Unix(path) = unix else {
        panic!("a Unix socket")
    };
    let Some(held) = listener_of(daemon.pid(), unix) else {
        return;
    };
    let in_the_way = InTheWay::of(path);
    end(&held, Shutdown::Both);
    let status = daemon.wait_until("it cannot be bound", |status| {
        status.listeners[1]
            .outage
            .as_ref()
            .is_some_and(|reason| reason.contains("which is not a socket"))
    });
    assert_eq!(status.listeners[0].outage, None);
    assert_eq!(
        Client::connect(tcp)
            .call("ping", 1)
            .expect("the other one serves"),
        1
    );
    let text = get(&metrics, "/metrics").body;
    assert!(
        text.contains(&format!("fdpassd_listener_up{{listener=\"{unix}\"}} 0")),
        "{text}"
    );
    assert!(
        text.contains(&format!("fdpassd_listener_up{{listener=\"{tcp}\"}} 1")),
        "{text}"
    );
    assert_eq!(
        get(&metrics, "/readyz").status_and_body(),
        (503, "clients cannot connect to a listener\n")
    );
    assert_idle(&daemon);
    daemon
        .reload()
        .expect("what is bound is not in the way of a reload");
    assert!(
        listener(&daemon, unix).outage.is_some(),
        "the file is still in the way"
    );
    drop(in_the_way);
    assert_served_again(unix);
    assert_eq!(get(&metrics, "/readyz").status, 200);
}

#[test]
fn an_ended_control_socket_is_opened_again() {
    let daemon = start(BOTH);
    let path = control_socket(&daemon);
    let Some(held) = listener_of(daemon.pid(), &Address::Unix(path.clone())) else {
        return;
    };
    let in_the_way = InTheWay::of(&path);
    end(&held, Shutdown::Both);
    daemon.wait_for_log("cannot open the control socket");
    assert_idle(&daemon);
    assert_eq!(
        daemon
            .connect()
            .call("ping", 1)
            .expect("clients are served"),
        1
    );
    drop(in_the_way);
    let awaited = "the control socket can be connected to";
    eventually(awaited, || UnixStream::connect(&path).ok());
    daemon.reload().expect("a reload");
    assert!(events(&daemon).contains("is open again"));
}

#[test]
fn an_ended_metrics_listener_is_bound_again() {
    for listen in ["127.0.0.1:0", "unix:{dir}/metrics.sock"] {
        let daemon = start(&format!("workers.count = 1\nmetrics.listen = \"{listen}\""));
        let address = metrics_address(&daemon);
        for how in [Shutdown::Both, Shutdown::Read] {
            assert_eq!(get(&address, "/healthz").status, 200);
            let Some(held) = listener_of(daemon.pid(), &address) else {
                return;
            };
            end(&held, how);
            eventually("metrics can be asked for again", || {
                can_connect(&address).then_some(())
            });
            assert_eq!(get(&address, "/healthz").status, 200, "{address} {how:?}");
        }
        assert_idle(&daemon);
        daemon
            .reload_with("workers.count = 1")
            .expect("without metrics");
        eventually("the address is free", || {
            (!can_connect(&address)).then_some(())
        });
        assert_idle(&daemon);
    }
}

#[test]
fn a_reload_or_upgrade_never_listens_on_an_ended_socket() {
    let daemon = start(BOTH);
    for address in daemon.addresses() {
        let mut client = Client::connect(address);
        for change in ["reload", "upgrade"] {
            assert_eq!(client.call("ping", 1).expect("a result"), 1);
            let Some(held) = listener_of(daemon.pid(), address) else {
                return;
            };
            // Either may come first: the end as an event, or the change.
            kernel::stop(daemon.pid());
            end(&held, Shutdown::Both);
            let mut asker = match change {
                "upgrade" => daemon.ctl_request(change, serde_json::json!({})),
                _ => daemon.ctl_request(change, ()),
            };
            daemon.signal("CONT");
            asker.reply().value().expect("it is done");
            assert_served_again(address);
            assert_eq!(client.call("ping", 2).expect("a result"), 2);
        }
    }
    assert_idle(&daemon);
}

#[test]
fn a_restart_binds_an_ended_stored_listener_again() {
    let manager = ServiceManager::new();
    let daemon = manager
        .setup(FDPASSD, BOTH)
        .start()
        .expect("the daemon serves");
    let mut clients: Vec<Client> = daemon.addresses().iter().map(Client::connect).collect();
    clients
        .iter_mut()
        .for_each(|client| assert_eq!(client.call("ping", 1).expect("a result"), 1));
    let addresses = daemon.addresses().to_vec();
    let stored = || {
        manager
            .stored()
            .into_iter()
            .filter(|name| name.starts_with("fdpassd-listener"))
            .collect::<Vec<_>>()
    };
    eventually("the manager has both", || {
        (stored().len() == 2).then_some(())
    });
    // While it runs, the manager gets the new ones.
    for name in stored() {
        manager.with_stored(&name, |held| end(&held, Shutdown::Both));
    }
    addresses.iter().for_each(assert_served_again);
    eventually("the manager has those that listen", || {
        (stored().len() == 2).then_some(())
    });
    daemon.signal("TERM");
    eventually("the master has ended", || {
        kernel::is_over(daemon.pid()).then_some(())
    });
    for name in stored() {
        manager.with_stored(&name, |held| end(&held, Shutdown::Both));
    }
    let daemon = manager
        .setup(FDPASSD, BOTH)
        .start_after(daemon)
        .expect("the next one serves");
    addresses.iter().for_each(assert_served_again);
    clients
        .iter_mut()
        .for_each(|client| assert_eq!(client.call("ping", 2).expect("they stay"), 2));
    assert_idle(&daemon);
}

#[test]
fn a_socket_that_ended_before_its_activation_is_bound_again() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("rpc.sock");
    let tcp = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let unix = UnixListener::bind(&path).expect("the path is free");
    fs::set_permissions(&path, Permissions::from_mode(0o604)).expect("it is ours");
    let addresses = [
        Address::Tcp(tcp.local_addr().expect("it is bound")),
        Address::Unix(path.clone()),
    ];
    let (tcp, unix) = (OwnedFd::from(tcp), OwnedFd::from(unix));
    let copy = |socket: &OwnedFd| socket.try_clone().expect("a descriptor is left");
    end(&tcp, Shutdown::Both);
    end(&unix, Shutdown::Both);
    let config = "listen = [\"systemd:tcp\", \"systemd:unix\"]\nworkers.count = 1";
    let setup = Setup::new(FDPASSD, config)
        .activated("tcp", copy(&tcp))
        .activated("unix", copy(&unix));
    let daemon = setup.start().expect("the daemon serves");
    addresses.iter().for_each(assert_served_again);
    assert_eq!(
        fs::metadata(&path)
            .expect("it is there")
            .permissions()
            .mode()
            & 0o777,
        0o604
    );
    daemon.reload().expect("it finds those that listen");
    addresses.iter().for_each(assert_served_again);
    upgrade(&daemon, None).expect("it finds those that listen");
    addresses.iter().for_each(assert_served_again);
    assert_idle(&daemon);
}

#[test]
fn an_activated_socket_without_a_file_gets_its_mode_again() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("rpc.sock");
    let unix = UnixListener::bind(&path).expect("the path is free");
    fs::set_permissions(&path, Permissions::from_mode(0o604)).expect("it is ours");
    let unix = OwnedFd::from(unix);
    let copy = unix.try_clone().expect("a descriptor is left");
    let config = "listen = [\"systemd:unix\"]\nworkers.count = 1";
    let setup = Setup::new(FDPASSD, config).activated("unix", copy);
    let _daemon = setup.start().expect("the daemon serves");
    fs::remove_file(&path).expect("it is ours");
    end(&unix, Shutdown::Both);
    assert_served_again(&Address::Unix(path.clone()));
    let found = fs::metadata(&path).expect("it is there");
    assert_eq!(found.permissions().mode() & 0o777, 0o604);
}

#[test]
fn a_group_that_is_no_longer_configured_ends_with_a_restart() {
    if kernel::user() != 0 {
        return skip("root", "only root can give a file away");
    }
    let manager = ServiceManager::new();
    let listen = |group: &str| {
        let address = "address = \"unix:{dir}/rpc.sock\"";
        format!("listen = [{{ {address}, mode = \"0660\"{group} }}]\nworkers.count = 1\n")
    };
    let setup = manager.setup(FDPASSD, &listen(", group = \"65534\""));
    let mut daemon = setup.start().expect("the daemon serves");
    let path = daemon.directory().join("rpc.sock");
    let group = || fs::metadata(&path).expect("it is there").gid();
    assert_eq!(group(), 65534);
    wait_for_confirmed_store(&daemon);
    daemon.write_config(&listen(""));
    daemon.signal("TERM");
    assert!(daemon.wait().success());
    let setup = manager.setup(FDPASSD, "");
    let daemon = setup.start_after(daemon).expect("the next one serves");
    assert_eq!(
        group(),
        fs::metadata(daemon.directory()).expect("ours").gid()
    );
}

/// Ends the listener of a TCP port as an administrator can. Skips the test where this process may not.
fn kill_listener(address: &Address) -> Option<()> {
    let Address::Tcp(to) = address else {
        panic!("TCP first")
    };
    let port = format!("sport = :{}", to.port());
    let killed = Command::new("ss")
        .args(["-K", "-H", "-t", "state", "listening", &port])
        .output();
    if !killed.is_ok_and(|output| !output.stdout.is_empty()) {
        skip(
            "ss",
            "ss(8) cannot end a socket: it needs root and INET_DIAG_DESTROY",
        );
        return None;
    }
    Some(())
}

#[test]
fn a_listener_that_ss_killed_is_no_black_hole_after_a_reload() {
    let daemon = start(BOTH);
    for _ in 0..3 {
        let generation = daemon.status().generation;
        // Both are there when it continues, and it handles the signal first.
        kernel::stop(daemon.pid());
        let killed = kill_listener(daemon.address());
        daemon.signal("HUP");
        daemon.signal("CONT");
        if killed.is_none() {
            return;
        }
        daemon.wait_until("it has reloaded", |status| {
            status.generation > generation && !status.reloading
        });
        for _ in 0..4 {
            assert_served_again(daemon.address());
        }
    }
    assert_idle(&daemon);
}

#[test]
fn a_listener_that_ss_killed_is_no_black_hole_after_a_restart() {
    let manager = ServiceManager::new();
    let daemon = manager
        .setup(FDPASSD, BOTH)
        .start()
        .expect("the daemon serves");
    let address = daemon.address().clone();
    daemon.signal("TERM");
    eventually("the master has ended", || {
        kernel::is_over(daemon.pid()).then_some(())
    });
    if kill_listener(&address).is_none() {
        return;
    }
    let daemon = manager
        .setup(FDPASSD, BOTH)
        .start_after(daemon)
        .expect("the next one serves");
    for _ in 0..4 {
        assert_served_again(&address);
    }
    assert_idle(&daemon);
}

#[test]
fn a_listener_made_blocking_by_another_holder_delays_nothing() {
    let tcp = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = Address::Tcp(tcp.local_addr().expect("it is bound"));
    let held = OwnedFd::from(tcp);
    let config = "listen = [\"systemd:rpc\"]\nworkers.count = 1\nmetrics.listen = \"unix:{dir}/metrics.sock\"";
    let setup = Setup::new(FDPASSD, config)
        .activated("rpc", held.try_clone().expect("a descriptor is left"));
    let mut daemon = setup.start().expect("the daemon serves");
    let metrics = metrics_address(&daemon);
    let (control, exporters) = (Address::Unix(control_socket(&daemon)), metrics.clone());
    let others: Vec<OwnedFd> = [control, exporters]
        .iter()
        .filter_map(|address| listener_of(daemon.pid(), address))
        .collect();
    let mut client = Client::connect(&address);
    for round in 0..10 {
        others.iter().chain([&held]).for_each(make_blocking);
        let mut another = Client::connect(&address);
        assert_eq!(another.call("ping", round).expect("a result"), round);
        assert_eq!(client.call("ping", round).expect("a result"), round);
        assert_eq!(daemon.status().clients, 2);
        assert_eq!(get(&metrics, "/healthz").status, 200);
        drop(another);
        daemon.wait_until("it has left", |status| status.clients == 1);
    }
    others.iter().chain([&held]).for_each(make_blocking);
    let _last = Client::connect(&address);
    daemon.wait_until("it was accepted", |status| status.clients == 2);
    daemon.signal("TERM");
    assert!(daemon.wait().success(), "SIGTERM is heeded");
}
