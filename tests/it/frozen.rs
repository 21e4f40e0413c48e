//! Time in which the daemon was stopped does not count: its processes are stopped and continued, as by SIGSTOP, `docker
//! pause` or a debugger.

use std::time::Duration;

use fdpassd::proto::names::Address;
use fdpassd::testing::{Client, Running, ServiceManager};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::faulty::{self, Execution};
use crate::common::http::{HttpClient, metrics_address};
use crate::common::program::control_socket;
use crate::common::restart::wait_for_confirmed_store;
use crate::common::{FDPASSD, kernel, let_pass, ping_of, pong_of, while_idle, while_idle_with};

/// Longer than all that is waited for here: the control socket and the exporter give 5 s.
const STILL: Duration = Duration::from_millis(10_500);

/// Processes that stand still until this is dropped.
struct Frozen(Vec<u32>);

impl Frozen {
    #[track_caller]
    fn new(pids: Vec<u32>) -> Frozen {
        let frozen = Frozen(pids);
        frozen.0.iter().for_each(|pid| kernel::stop(*pid));
        frozen
    }

    /// Stops master, workers and exporter when all of them sleep: a process that is stopped just when an event ends its
    /// wait cannot know how long it has waited.
    #[track_caller]
    fn all(daemon: &Running, control_clients: usize) -> Frozen {
        while_idle_with(daemon, control_clients, || ());
        let master = daemon.pid();
        Frozen::new([vec![master], kernel::children(master)].concat())
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        for pid in &self.0 {
            let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGCONT);
        }
    }
}

/// A client of which a part of a frame has arrived, and the rest.
fn halves(daemon: &Running, count: usize) -> Vec<(Client, Vec<u8>)> {
    let half = |number: usize| {
        let mut client = Client::connect(&daemon.addresses()[number % daemon.addresses().len()]);
        let frame = client.frame(ping_of(100));
        client.send(&frame[..50]);
        (client, frame[50..].to_vec())
    };
    (0..count).map(half).collect()
}

/// A library in a method has a timer: each of its signals interrupts the wait of the worker, as a stop does.
#[test]
fn signals_that_other_code_catches_do_not_stop_the_clock() {
    let daemon = faulty::start("workers.count = 1\nlimits.idle-timeout = \"4s\"");
    daemon.wait_for_workers();
    let mut client = daemon.connect();
    client.call("interrupt_every", 20).expect("it is caught");
    client.expect_end();
    let mut next = daemon.connect();
    assert_eq!(next.call("ping", 1).expect("a pong"), 1);
    next.expect_end();
}

/// Half of each kind continues at once, the other half when time has passed for a while.
#[test]
fn time_in_a_frozen_cgroup_expires_no_timeout() {
    let daemon = faulty::start(
        "listen = [\"127.0.0.1:0\", \"unix:{dir}/rpc.sock\"]\nworkers.count = 2\nmetrics.listen = \"127.0.0.1:0\"\n\
         [limits]\nframe-timeout = \"10s\"\nidle-timeout = \"10s\"\nsend-timeout = \"10s\"\nrequest-timeout = \"10s\"\n\
         stall-timeout = \"500ms\"",
    );
    daemon.wait_for_workers();
    let metrics = metrics_address(&daemon);
    let mut frames = halves(&daemon, 20);
    let mut idle: Vec<Client> = (0..20)
        .map(|number| Client::connect(&daemon.addresses()[number % 2]))
        .collect();
    idle.iter_mut()
        .for_each(|client| drop(client.call("ping", 0).expect("a pong")));
    let mut deaf = daemon.connect();
    (0..8).for_each(|_| deaf.send_frame(ping_of(500_000)));
    let execution = Execution::start(&daemon);
    // Last, for they have only five seconds.
    let control = Address::Unix(control_socket(&daemon));
    let mut controls: Vec<Client> = (0..2).map(|_| Client::connect(&control)).collect();
    let asked = controls[0].frame(r#"{"in":"version"}"#);
    controls
        .iter_mut()
        .for_each(|client| client.send(&asked[..9]));
    let mut http_clients: Vec<HttpClient> = (0..2).map(|_| HttpClient::connect(&metrics)).collect();
    http_clients.iter_mut().for_each(|http_client| {
        http_client
            .send("GET /healthz HTTP/1.1\r\n")
            .expect("it is open")
    });

    let frozen = Frozen::all(&daemon, controls.len());
    let mut goes_on = |half: usize| {
        frames
            .iter_mut()
            .skip(half)
            .step_by(2)
            .for_each(|(client, rest)| client.send(rest));
        idle.iter_mut()
            .skip(half)
            .step_by(2)
            .for_each(|client| client.request("ping", half));
        controls[half].send(&asked[9..]);
        http_clients[half]
            .send("Host: localhost\r\n\r\n")
            .expect("it is open");
    };
    goes_on(0);
    let_pass(STILL);
    drop(frozen);
    let_pass(Duration::from_millis(500));
    goes_on(1);

    for (client, _) in &mut frames {
        assert!(client.receive() == pong_of(100), "the reply is another one");
    }
    for (number, client) in idle.iter_mut().enumerate() {
        assert_eq!(client.reply().value().expect("a pong"), number % 2);
    }
    for client in &mut controls {
        assert_eq!(client.reply().name, "version");
    }
    for http_client in &mut http_clients {
        assert_eq!(http_client.answer().status, 200);
    }
    (0..8).for_each(|_| {
        assert!(
            deaf.receive() == pong_of(500_000),
            "the reply is another one"
        )
    });
    drop(execution.finish());
    let status = daemon.status();
    assert_eq!(
        (status.errors_total, status.lost_total, status.deaths_total),
        (0, 0, 0)
    );
}

#[test]
fn a_frozen_master_alone_expires_no_timeout_of_a_worker() {
    let daemon = faulty::start(
        "workers.count = 2\nlimits.request-timeout = \"10s\"\nlimits.stall-timeout = \"500ms\"",
    );
    daemon.wait_for_workers();
    let execution = Execution::start(&daemon);
    let control = Address::Unix(control_socket(&daemon));
    let mut asker = Client::connect(&control);
    let asked = asker.frame(r#"{"in":"version"}"#);
    asker.send(&asked[..9]);
    while_idle_with(&daemon, 1, || ());
    let frozen = Frozen::new(vec![daemon.pid()]);
    let_pass(STILL);
    drop(frozen);
    asker.send(&asked[9..]);
    assert_eq!(asker.reply().name, "version");
    drop(execution.finish());
    let status = daemon.status();
    assert_eq!((status.errors_total, status.deaths_total), (0, 0));
    // As long as it runs it counts.
    let mut late = daemon.connect();
    late.request("sleep", 60_000);
    assert_eq!(
        late.reply().value().expect_err("it takes too long").code(),
        "timeout"
    );
}

#[test]
fn a_frozen_worker_alone_expires_no_timeout_of_its_clients() {
    let daemon = faulty::start(
        "workers.count = 1\n[limits]\nframe-timeout = \"6s\"\nidle-timeout = \"6s\"\nstall-timeout = \"10m\"\n\
         request-timeout = \"none\"",
    );
    daemon.wait_for_workers();
    let worker = daemon.worker_pids()[0];
    let mut frames = halves(&daemon, 4);
    let mut idle = daemon.connect();
    idle.call("ping", 0).expect("a pong");
    while_idle(&daemon, || ());
    let frozen = Frozen::new(vec![worker]);
    frames
        .iter_mut()
        .take(2)
        .for_each(|(client, rest)| client.send(rest));
    let_pass(Duration::from_millis(6_500));
    drop(frozen);
    let_pass(Duration::from_millis(500));
    frames
        .iter_mut()
        .skip(2)
        .for_each(|(client, rest)| client.send(rest));
    for (client, _) in &mut frames {
        assert!(client.receive() == pong_of(100), "the reply is another one");
    }
    assert_eq!(idle.call("ping", 1).expect("a pong"), 1);
    // As long as it runs it counts.
    let (mut late, _) = halves(&daemon, 1).remove(0);
    assert_eq!(
        late.reply().value().expect_err("it is late").code(),
        "timeout"
    );
    idle.expect_end();
}

/// One that sleeps in a method does not look, either, at what arrives.
#[test]
fn bytes_that_arrive_during_a_method_are_not_late() {
    let daemon = faulty::start(
        "workers.count = 1\n[limits]\nframe-timeout = \"6s\"\nidle-timeout = \"6s\"\nstall-timeout = \"10m\"\n\
         request-timeout = \"none\"",
    );
    daemon.wait_for_workers();
    let mut frames = halves(&daemon, 4);
    let mut idle = daemon.connect();
    idle.call("ping", 0).expect("a pong");
    let execution = Execution::start(&daemon);
    frames
        .iter_mut()
        .for_each(|(client, rest)| client.send(rest));
    idle.request("ping", 1);
    let_pass(Duration::from_millis(6_500));
    drop(execution.finish());
    for (client, _) in &mut frames {
        assert!(client.receive() == pong_of(100), "the reply is another one");
    }
    assert_eq!(idle.reply().value().expect("a pong"), 1);
}

/// Between the end of one master and the start of the next no process can serve clients.
#[test]
fn time_without_a_master_expires_no_timeout_of_its_clients() {
    for how in ["TERM", "KILL"] {
        let manager = ServiceManager::new();
        let config =
            "workers.count = 1\nlimits = { frame-timeout = \"6s\", idle-timeout = \"6s\" }";
        let mut daemon = manager.setup(FDPASSD, config).start().expect("it serves");
        wait_for_confirmed_store(&daemon);
        daemon.wait_for_workers();
        let mut frames = halves(&daemon, 4);
        let mut idle = daemon.connect();
        idle.call("ping", 0).expect("a pong");
        daemon.signal(how);
        daemon.wait();
        let_pass(Duration::from_millis(6_500));
        let daemon = manager
            .setup(FDPASSD, "")
            .start_after(daemon)
            .expect("the next master serves");
        daemon.wait_for_workers();
        let_pass(Duration::from_millis(300));
        frames
            .iter_mut()
            .for_each(|(client, rest)| client.send(rest));
        for (client, _) in &mut frames {
            assert!(
                client.receive() == pong_of(100),
                "{how}: the reply is another one"
            );
        }
        assert_eq!(idle.call("ping", 1).expect("a pong"), 1, "{how}");
    }
}
