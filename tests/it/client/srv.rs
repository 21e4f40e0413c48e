//! Daemons that are found by SRV records, of a nameserver that the test runs.

mod answers;
mod nameserver;
mod program;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use fdpassd::client::{Client, ClientOptions, Error};
use fdpassd::testing::{Running, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use self::nameserver::{Asked, Nameserver, SRV};
use super::options;
use crate::common::port::Reserved;
use crate::common::{start, tcp_address};

const SERVICE: &str = "_fdpassd._tcp.example.net";

const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// An hour, in seconds.
const LONG: u32 = 3600;

/// A target: the name of its host, its priority and its weight, and its port.
type Target = (&'static str, u16, u16, u16);

/// Answers for the service, with the addresses of all hosts. Other names do not exist.
fn zone(ttl: u32, targets: &[Target]) -> impl Fn(&Asked) -> Vec<Vec<u8>> + Send + 'static {
    let targets = targets.to_vec();
    move |asked| {
        let mut reply = asked.reply();
        if asked.kind != SRV || asked.name != SERVICE {
            return reply.code(3).once();
        }
        for (host, priority, weight, port) in &targets {
            reply = reply
                .srv(ttl, [*priority, *weight, *port], host)
                .with_address(host, ttl, LOCALHOST);
        }
        reply.once()
    }
}

fn options_of(nameserver: &Nameserver) -> ClientOptions {
    options().nameservers([nameserver.address()])
}

#[track_caller]
fn client_of(nameserver: &Nameserver) -> Client {
    let service = [format!("srv:{SERVICE}")];
    Client::with_options(service, options_of(nameserver)).expect("the name is valid")
}

fn port(daemon: &Running) -> u16 {
    tcp_address(daemon).port()
}

/// Calls a method. Returns the daemon that has replied.
#[track_caller]
fn called(client: &Client) -> String {
    assert_eq!(client.call::<u32>("ping", 7).expect("a pong"), 7);
    client.address().expect("it is connected")
}

/// Ends the one connection of a daemon, which continues to accept others.
#[track_caller]
fn kick(daemon: &Running) {
    daemon.wait_until("earlier connections have ended", |status| {
        status.clients == 1
    });
    let page = daemon.ctl("clients").expect("a list");
    let client = &page["clients"][0];
    daemon
        .ctl_with("kick", json!({ "client": client["id"] }))
        .expect("it is done");
    // Before, the next request might still be answered there.
    daemon.wait_until("the connection has ended", |status| status.clients == 0);
}

/// Waits until records that were received at `begin` do not hold any more.
fn wait_for_end_of(ttl: u32, begin: Instant) {
    let is_over = || begin.elapsed() > Duration::from_secs(u64::from(ttl));
    eventually("the time to live is over", || is_over().then_some(()));
}

#[test]
fn the_lowest_priority_comes_first_and_then_the_next() {
    // Nothing else listens there when the daemons do not.
    let reserved = [Reserved::new(), Reserved::new()];
    let [config, of_high] = [0, 1].map(|n| format!("listen = [\"{}\"]", reserved[n].address));
    let (mut low, high) = (start(&config), start(&of_high));
    let [a, b] = [0, 1].map(|n| reserved[n].address.port());
    let targets = [
        ("b.example.net", 20, 65_535, b),
        ("a.example.net", 10, 0, a),
    ];
    let nameserver = Nameserver::start(zone(LONG, &targets));
    let client = client_of(&nameserver);
    assert_eq!(called(&client), format!("a.example.net:{a}"));
    low.ctl("stop").expect("it stops");
    low.wait();
    assert_eq!(called(&client), format!("b.example.net:{b}"));
    // The connection is kept when the first one is back; another client connects to that.
    let low = start(&config);
    assert_eq!(called(&client), format!("b.example.net:{b}"));
    assert_eq!(
        called(&client_of(&nameserver)),
        format!("a.example.net:{a}")
    );
    drop(high);
    assert_eq!(called(&client), format!("a.example.net:{a}"));
    // Of a client that has not found one where nothing listens any more.
    drop(low);
    let error = client_of(&nameserver)
        .with_timeout(Duration::from_secs(3))
        .call::<u32>("ping", 1)
        .expect_err("nothing listens");
    let text = error.to_string();
    for (host, port) in [("a", a), ("b", b)] {
        let cause = format!("{host}.example.net:{port}: Connection refused");
        assert!(text.contains(&cause), "{text}");
    }
}

#[test]
fn clients_spread_over_targets_of_the_same_priority() {
    let daemons = [start(""), start(""), start("")];
    let [a, b, c] = [0, 1, 2].map(|n| port(&daemons[n]));
    let targets = [
        ("a.example.net", 1, 1, a),
        ("b.example.net", 1, 1, b),
        ("c.example.net", 1, 0, c),
        ("d.example.net", 2, 9, a),
    ];
    let nameserver = Nameserver::start(zone(LONG, &targets));
    let mut seen = BTreeSet::new();
    eventually("each of the three was called", || {
        seen.insert(called(&client_of(&nameserver)));
        (seen.len() == 3).then_some(())
    });
    let expected = [("a", a), ("b", b), ("c", c)];
    let expected = expected.map(|(host, port)| format!("{host}.example.net:{port}"));
    assert!(seen.iter().eq(&expected), "{seen:?}");
}

#[test]
fn a_daemon_that_is_killed_is_replaced_by_the_next() {
    let (mut first, second) = (start("workers.count = 1"), start(""));
    let (a, b) = (port(&first), port(&second));
    let targets = [("a.example.net", 1, 0, a), ("b.example.net", 2, 0, b)];
    let nameserver = Nameserver::start(zone(LONG, &targets));
    let client = client_of(&nameserver);
    assert_eq!(called(&client), format!("a.example.net:{a}"));
    let workers = first.worker_pids();
    first.signal("KILL");
    first.wait();
    for worker in workers {
        // It may have exited.
        let _ = kill(Pid::from_raw(worker.cast_signed()), Signal::SIGKILL);
    }
    assert_eq!(called(&client), format!("b.example.net:{b}"));
    assert_eq!(nameserver.asked().len(), 1, "{:?}", nameserver.asked());
}

#[test]
fn a_drained_daemon_is_left_for_the_next() {
    let (first, second) = (start(""), start(""));
    let (a, b) = (port(&first), port(&second));
    let targets = [("a.example.net", 1, 0, a), ("b.example.net", 2, 0, b)];
    let nameserver = Nameserver::start(zone(LONG, &targets));
    let client = client_of(&nameserver);
    assert_eq!(called(&client), format!("a.example.net:{a}"));
    first
        .ctl_with("drain", json!({ "move": 0 }))
        .expect("it begins");
    first.wait_until("the client was moved", |status| status.clients == 0);
    assert_eq!(called(&client), format!("b.example.net:{b}"));
}

#[test]
fn new_records_are_used_when_the_time_to_live_is_over() {
    let daemons = [start(""), start(""), start("")];
    let [a, b, c] = [0, 1, 2].map(|n| port(&daemons[n]));
    let old = [("a.example.net", 10, 0, a), ("b.example.net", 20, 0, b)];
    let new = [("c.example.net", 5, 0, c), old[0], old[1]];
    for (ttl, expected) in [(1, ("c", c)), (LONG, ("b", b)), (u32::MAX, ("c", c))] {
        let nameserver = Nameserver::start(zone(ttl, &old));
        let client = client_of(&nameserver);
        assert_eq!(called(&client), format!("a.example.net:{a}"));
        let begin = Instant::now();
        nameserver.set(zone(ttl, &new));
        wait_for_end_of(1, begin);
        // A connection outlives the records.
        assert_eq!(called(&client), format!("a.example.net:{a}"));
        kick(&daemons[0]);
        let (host, port) = expected;
        assert_eq!(
            called(&client),
            format!("{host}.example.net:{port}"),
            "{ttl}"
        );
        let asked = nameserver.asked().len();
        assert_eq!(asked, if ttl == LONG { 1 } else { 2 }, "{ttl}");
    }
}

#[test]
fn an_address_has_a_time_to_live_of_its_own() {
    let daemon = start("");
    let port = port(&daemon);
    let answer = |priority: u16| {
        move |asked: &Asked| {
            let reply = asked.reply();
            let reply = reply.srv(LONG, [priority, 0, port], "a.example.net");
            reply.with_address("A.Example.NET", 1, LOCALHOST).once()
        }
    };
    let nameserver = Nameserver::start(answer(1));
    let client = client_of(&nameserver);
    called(&client);
    wait_for_end_of(1, Instant::now());
    kick(&daemon);
    called(&client);
    assert_eq!(nameserver.asked().len(), 2);
}

#[test]
fn the_nameserver_is_asked_again_when_all_targets_have_failed() {
    let (mut first, second) = (start(""), start(""));
    let (a, b) = (port(&first), port(&second));
    let nameserver = Nameserver::start(zone(LONG, &[("a.example.net", 1, 0, a)]));
    let client = client_of(&nameserver);
    assert_eq!(called(&client), format!("a.example.net:{a}"));
    first.ctl("stop").expect("it stops");
    first.wait();
    nameserver.set(zone(LONG, &[("b.example.net", 1, 0, b)]));
    assert_eq!(called(&client), format!("b.example.net:{b}"));
}

#[test]
fn records_that_hold_are_used_while_the_nameserver_fails() {
    let daemon = start("");
    let port = port(&daemon);
    let nameserver = Nameserver::start(zone(LONG, &[("a.example.net", 1, 0, port)]));
    let client = client_of(&nameserver);
    called(&client);
    nameserver.set(|asked| asked.reply().code(2).once());
    kick(&daemon);
    assert_eq!(called(&client), format!("a.example.net:{port}"));
    // The name is gone: so is the target.
    nameserver.set(|asked| asked.reply().code(3).once());
    kick(&daemon);
    // The nameserver has half of the time; after that, the known target would be tried again.
    let hasty = client.with_timeout(Duration::from_secs(8));
    let error = hasty.call::<u32>("ping", 1).expect_err("no such name");
    assert!(matches!(error, Error::Unavailable { .. }), "{error}");
    let expected = format!("srv:{SERVICE}: the name does not exist");
    assert!(error.to_string().contains(&expected), "{error}");
}

#[test]
fn a_name_and_an_address_may_be_used_together() {
    let daemon = start("");
    let nameserver = Nameserver::start(|asked| asked.reply().code(3).once());
    let addresses = [format!("srv:{SERVICE}."), daemon.address().to_string()];
    let client = Client::with_options(addresses, options_of(&nameserver)).expect("valid");
    assert_eq!(called(&client), daemon.address().to_string());
}

#[test]
fn a_mistake_in_a_name_has_its_sentence() {
    let label = "x".repeat(60);
    let long = [label.as_str(); 5].join(".");
    let form =
        "a name of SRV records is _SERVICE._PROTOCOL.NAME, such as _fdpassd._tcp.example.net";
    for (name, why) in [
        ("rpc.example.net", form),
        ("_fdpassd._tcp", form),
        ("_fdpassd.tcp.example.net", form),
        ("_._tcp.example.net", form),
        ("_fdpassd._tcp..net", "\"\" is not a label of a DNS name"),
        ("_fdpassd._tcp.exämple.net", "\"exämple\" is not a label"),
        (
            "_fdpassd._tcp.example.net:8080",
            "\"net:8080\" is not a label",
        ),
        (
            &format!("_a._tcp.{long}"),
            "a DNS name has at most 253 bytes",
        ),
    ] {
        let error = Client::new([format!("srv:{name}")]).expect_err(name);
        assert!(matches!(error, Error::Usage(_)), "{error}");
        assert!(error.to_string().contains(why), "{name}: {error}");
    }
}
