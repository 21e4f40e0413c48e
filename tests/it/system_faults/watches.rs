//! An epoll(7) without memory to watch another socket (ENOMEM, ENOSPC): clients of the master's sockets wait, and the
//! master tries again.

use fdpassd::proto::names::Address;
use fdpassd::testing::{Client, Running};
use nix::sys::socket::Shutdown;

use crate::common::holder::{end, listener_of};
use crate::common::http::{get, metrics_address};
use crate::common::program::control_socket;
use crate::common::start;
use crate::common::strace::Traced;

/// Returns which call of epoll_ctl(2) in a trace was the last to add a listener.
fn last_watch(trace: &str) -> usize {
    let calls: Vec<&str> = trace.lines().filter(|line| is_call(line)).collect();
    let last = calls.iter().rposition(|call| adds_listener(call));
    1 + last.expect("a listener was added")
}

fn is_call(line: &str) -> bool {
    line.contains("epoll_ctl(")
}

fn adds_listener(call: &str) -> bool {
    call.contains("EPOLL_CTL_ADD") && call.contains("EPOLLRDHUP")
}

fn is_refused(trace: &str) -> bool {
    trace
        .lines()
        .any(|line| adds_listener(line) && line.contains("(INJECTED)"))
}

/// Refuses these calls of epoll_ctl(2) of the master.
fn refuse(daemon: &Running, error: &str, calls: &str) -> Option<Traced> {
    let inject = format!("epoll_ctl:error={error}:when={calls}");
    Traced::attach(daemon.pid(), "epoll_ctl", &inject)
}

#[test]
fn a_socket_bound_again_is_watched_when_there_is_memory() {
    let config = "listen = [\"127.0.0.1:0\", \"unix:{dir}/rpc.sock\"]\nworkers.count = 1\n[metrics]\nlisten = \
                  \"127.0.0.1:0\"\n";
    let daemon = start(config);
    let metrics = metrics_address(&daemon);
    let control = Address::Unix(control_socket(&daemon));
    let [tcp, unix] = daemon.addresses() else {
        panic!("two listeners")
    };
    for (address, error) in [
        (tcp, "ENOMEM"),
        (unix, "ENOSPC"),
        (&control, "ENOMEM"),
        (&metrics, "ENOSPC"),
    ] {
        let Some(held) = listener_of(daemon.pid(), address) else {
            return;
        };
        // The first call removes the socket that has ended.
        let Some(traced) = refuse(&daemon, error, "2..3") else {
            return;
        };
        end(&held, Shutdown::Both);
        let name = address.to_string();
        let name = name.trim_start_matches("unix:");
        daemon.wait_for_log(&format!("{name} is open again"));
        assert!(is_refused(&traced.text()), "{address}");
        drop(traced);
    }
    daemon.wait_for_log("cannot watch");
    for address in [tcp, unix] {
        let mut client = Client::connect(address);
        assert_eq!(client.call("ping", 1).expect("a result"), 1, "{address}");
    }
    assert_eq!(daemon.status().listeners.len(), 2);
    assert_eq!(get(&metrics, "/readyz").status, 200);
}

/// Changes the Unix listener to the one of this name, by a signal: a control client would be watched, too.
fn reload(daemon: &Running, name: &str) -> Address {
    let path = daemon.directory().join(name);
    let path = path.display();
    daemon.write_config(&format!(
        "listen = [\"127.0.0.1:0\", \"unix:{path}\"]\nworkers.count = 1\n"
    ));
    daemon.signal("HUP");
    let address = format!("unix:{path}").parse().expect("an address");
    daemon.wait_for_log(&format!("listening on {address}"));
    address
}

#[test]
fn a_listener_of_a_reload_is_watched_when_there_is_memory() {
    let daemon = start("workers.count = 1\n");
    // Which call adds the listener is the same each time, unless something else happens at the same time.
    for number in 0..10 {
        let Some(traced) = refuse(&daemon, "ENOMEM", "10000") else {
            return;
        };
        reload(&daemon, &format!("watched.{number}"));
        let call = last_watch(&traced.text());
        drop(traced);
        let traced = refuse(&daemon, "ENOMEM", &call.to_string());
        let address = reload(&daemon, &format!("refused.{number}"));
        if is_refused(&traced.expect("it was possible before").text()) {
            daemon.wait_for_log(&format!("cannot watch listener {address}: "));
            daemon.wait_for_log(&format!("listener {address} is open again"));
            let mut client = Client::connect(&address);
            assert_eq!(client.call("ping", 1).expect("a result"), 1);
            return;
        }
    }
    panic!("the listener was watched each time");
}
