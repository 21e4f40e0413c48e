//! A kernel without memory for messages (ENOMEM, ENOBUFS): each process tries again after a while, and never at once.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use fdpassd::testing::{Client, Running, eventually};

use crate::common::fifo::Fifo;
use crate::common::needs::skip;
use crate::common::{kernel, root, start, strace};

const ONE: &str = "workers.count = 1";

/// How many calls of one descriptor are refused, one after another.
const REFUSALS: usize = 12;

/// The waits after these refusals together: 1, 2, 4, … 64 ms, then 100 ms each.
const WAITS: Duration = Duration::from_millis(127 + 5 * 100);

/// The next calls of a process, the first of which are refused.
struct Refusals {
    traced: strace::Traced,
    began: Instant,
}

impl Refusals {
    /// Has the next calls refused: those of the descriptor with this name, or of all.
    #[track_caller]
    fn begin(pid: u32, descriptor: Option<&str>, call: &str, error: &str) -> Option<Refusals> {
        let inject = format!("{call}:error={error}:when=1..{REFUSALS}");
        let traced = strace::Traced::attach_at(pid, descriptor, call, &inject)?;
        let began = Instant::now();
        Some(Refusals { traced, began })
    }

    /// Returns the calls so far: the descriptors of each, and whether it was refused.
    fn calls(&self) -> Vec<(String, bool)> {
        let text = self.traced.text();
        let whole = text
            .split_inclusive('\n')
            .filter_map(|line| line.strip_suffix('\n'));
        let call = |line: &str| {
            let (name, arguments) = line.split_once('(')?;
            // Of the poller, the operation, and what is watched.
            let numbers = if name == "epoll_ctl" { 3 } else { 1 };
            let descriptors: Vec<&str> = arguments.split(',').take(numbers).collect();
            Some((descriptors.join(","), line.ends_with("(INJECTED)")))
        };
        whole.filter_map(call).collect()
    }

    /// Waits until a call is not refused. Checks that one descriptor alone was refused, and that its waits were over.
    #[track_caller]
    fn expect_end(self, context: &str) {
        let calls = eventually("a call is not refused", || {
            Some(self.calls()).filter(|calls| calls.len() > REFUSALS)
        });
        let took = self.began.elapsed();
        let (descriptor, _) = &calls[0];
        for (number, call) in calls[..=REFUSALS].iter().enumerate() {
            let expected = (descriptor.clone(), number < REFUSALS);
            assert_eq!(*call, expected, "{context}, call {number}");
        }
        assert!(took > WAITS, "{context}: {took:?}");
    }
}

/// Returns the pid of the only worker.
fn worker_of(daemon: &Running) -> u32 {
    daemon.wait_for_workers().workers[0].pid.expect("a pid")
}

/// Connects a client. Returns the name of its socket in the worker as well.
fn connect(daemon: &Running) -> (Client, String) {
    let worker = worker_of(daemon);
    let sockets = || {
        let names = kernel::descriptors(worker)
            .into_iter()
            .map(|(_, name)| name);
        names
            .filter(|name| name.starts_with("socket:"))
            .collect::<Vec<_>>()
    };
    let before = sockets();
    let mut client = daemon.connect();
    ping(&mut client);
    let mut new = sockets();
    new.retain(|name| !before.contains(name));
    assert_eq!(new.len(), 1, "{new:?}");
    (client, new.remove(0))
}

#[track_caller]
fn ping(client: &mut Client) {
    assert_eq!(client.call("ping", 7).expect("a result"), 7);
}

#[track_caller]
fn expect_no_client(daemon: &Running) {
    let status = daemon.wait_until("all have left", |status| status.clients == 0);
    assert_eq!((status.lost_total, status.deaths_total), (0, 0));
}

/// Returns the configuration of an app.
fn app(config: &str) -> Option<String> {
    if Command::new("python3").arg("--version").output().is_err() {
        skip("python3", "there is no python3");
        return None;
    }
    let app = root().join("tests/it/system_faults/app.py");
    Some(format!(
        "{config}\n[app]\ncommand = [\"python3\", {app:?}]\n"
    ))
}

#[test]
fn clients_are_read_and_written_when_there_is_memory() {
    let daemon = start(ONE);
    let (mut client, socket) = connect(&daemon);
    for call in ["recvfrom", "sendto"] {
        for error in ["ENOMEM", "ENOBUFS"] {
            let refusals = Refusals::begin(worker_of(&daemon), Some(&socket), call, error);
            let Some(refusals) = refusals else { return };
            ping(&mut client);
            refusals.expect_end(&format!("{call}, {error}"));
        }
    }
    drop(client);
    expect_no_client(&daemon);
}

/// ENOSPC: the limit of `/proc/sys/fs/epoll/max_user_watches`.
#[test]
fn clients_are_watched_when_there_is_memory() {
    let daemon = start(ONE);
    for error in ["ENOMEM", "ENOSPC"] {
        let Some(refusals) = Refusals::begin(worker_of(&daemon), None, "epoll_ctl", error) else {
            return;
        };
        let mut client = daemon.connect();
        for _ in 0..2 {
            ping(&mut client);
        }
        refusals.expect_end(error);
        drop(client);
        expect_no_client(&daemon);
    }
}

#[test]
fn messages_arrive_when_there_is_memory_for_them() {
    let daemon = start(ONE);
    let (master, worker) = (daemon.pid(), worker_of(&daemon));
    for error in ["ENOMEM", "ENOBUFS"] {
        // The lease of a client, at either end of the channel.
        for (pid, call) in [(master, "sendmsg"), (worker, "recvmsg")] {
            let Some(refusals) = Refusals::begin(pid, None, call, error) else {
                return;
            };
            ping(&mut daemon.connect());
            refusals.expect_end(&format!("{call}, {error}"));
            expect_no_client(&daemon);
        }
        // The report that it has left.
        for (pid, call) in [(worker, "sendmsg"), (master, "recvmsg")] {
            let mut client = daemon.connect();
            ping(&mut client);
            let Some(refusals) = Refusals::begin(pid, None, call, error) else {
                return;
            };
            drop(client);
            refusals.expect_end(&format!("{call}, {error}"));
            expect_no_client(&daemon);
        }
    }
}

#[test]
fn leases_are_sent_when_fewer_descriptors_are_in_flight() {
    let daemon = start(ONE);
    let Some(refusals) = Refusals::begin(daemon.pid(), None, "sendmsg", "ETOOMANYREFS") else {
        return;
    };
    ping(&mut daemon.connect());
    refusals.expect_end("ETOOMANYREFS");
    expect_no_client(&daemon);
}

#[test]
fn requests_reach_an_app_when_there_is_memory_for_them() {
    // Unix clients are written to by another call, so the app alone is refused.
    let config = format!("listen = [\"unix:{{dir}}/rpc.sock\"]\n{ONE}");
    let Some(config) = app(&config) else { return };
    let daemon = start(&config);
    let mut client = daemon.connect();
    for error in ["ENOMEM", "ENOBUFS"] {
        let Some(refusals) = Refusals::begin(worker_of(&daemon), None, "sendto", error) else {
            return;
        };
        assert_eq!(client.call("echo", error).expect("a result"), error);
        refusals.expect_end(error);
    }
}

#[test]
fn answers_of_an_app_are_read_when_there_is_memory() {
    let Some(config) = app(ONE) else { return };
    let daemon = start(&config);
    let mut client = daemon.connect();
    for error in ["ENOMEM", "ENOBUFS"] {
        let mut fifo = Fifo::new(daemon.directory());
        client.request("echo_after", fifo.path());
        daemon.wait_until("the app has the request", |status| {
            status.workers[0].away == 1
        });
        // The client sends nothing, so the app alone is read.
        let Some(refusals) = Refusals::begin(worker_of(&daemon), None, "recvfrom", error) else {
            return;
        };
        fifo.let_go();
        assert_eq!(client.reply().value().expect("a result"), "done\n");
        refusals.expect_end(error);
    }
}

#[test]
fn the_hello_of_an_app_is_read_when_there_is_memory() {
    let Some(config) = app(ONE) else { return };
    let daemon = start(&config);
    for error in ["ENOMEM", "ENOBUFS"] {
        let mut fifo = Fifo::new(daemon.directory());
        let before = kernel::children(daemon.pid());
        let waits = format!(
            "{config}environment = {{ HELLO_AFTER = {:?} }}\n",
            fifo.path()
        );
        thread::scope(|threads| {
            let reload = threads.spawn(|| daemon.reload_with(&waits));
            // Earlier the refusals would be those of the worker's socket to the child that becomes the app.
            let fifo_name = fifo.path().display().to_string();
            let waits_there = |app: &u32| {
                let descriptors = Path::new("/proc").join(app.to_string()).join("fd");
                let all = fs::read_dir(descriptors).into_iter().flatten().flatten();
                let mut names = all.filter_map(|link| fs::read_link(link.path()).ok());
                names.any(|name| name.as_os_str() == fifo_name.as_str())
            };
            let worker = eventually("the app of another worker waits", || {
                let mut all = kernel::children(daemon.pid()).into_iter();
                all.find(|pid| {
                    !before.contains(pid) && kernel::children(*pid).iter().any(waits_there)
                })
            });
            let refusals = Refusals::begin(worker, None, "recvfrom", error);
            fifo.let_go();
            let reloaded = reload.join().expect("it does not panic");
            reloaded.expect("the app has started");
            if let Some(refusals) = refusals {
                refusals.expect_end(error);
            }
        });
    }
}

#[test]
fn last_answers_of_an_app_are_read_when_there_is_memory() {
    let Some(config) = app(ONE) else { return };
    let daemon = start(&config);
    let mut client = daemon.connect();
    // The request is refused first, or the answer followed by the end of the app.
    for from in [1, 2] {
        assert_eq!(client.call("echo", 1).expect("a result"), 1);
        let last = from + REFUSALS - 1;
        let inject = format!("recvfrom:error=ENOMEM:when={from}..{last}");
        let Some(traced) = strace::Traced::attach(worker_of(&daemon), "recvfrom", &inject) else {
            return;
        };
        client.request("answer_and_exit", 2);
        assert_eq!(client.reply().value().expect("a result"), 2, "{from}");
        assert!(traced.text().contains("(INJECTED)"), "{from}");
        assert_eq!(client.call("echo", 3).expect("a result"), 3);
    }
    assert_eq!(daemon.status().lost_total, 0);
}
