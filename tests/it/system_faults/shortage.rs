//! A kernel without memory for messages (ENOMEM, ENOBUFS): each process tries again after a while, and never at once.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::time::Instant;

use fdpassd::testing::Setup;

use super::{Traced, assert_all_are_served};
use crate::common::needs::skip;
use crate::common::{FDPASSD, root, strace};

const ONE: &str = "workers.count = 1";

/// How many calls are refused one after another.
const REFUSALS: usize = 12;

/// The time that they take at least, in seconds.
const REFUSALS_TIME: f64 = 0.5;

/// Returns the least time in seconds between the first and the last of that many refusals: waits of 1, 2, 4, … 64 ms,
/// then of 100 ms. The clocks of strace and of the kernel's timers may differ by a tenth.
fn least_time(refusals: usize) -> f64 {
    let waits = (0..refusals - 1).map(|n| (1_u64 << n.min(7)).min(100));
    waits.sum::<u64>() as f64 / 1_000.0 * 0.9
}

impl Traced {
    /// Starts the daemon with a system call that is refused from this call of each process on.
    fn without_memory(call: &str, error: &str, from: usize, config: &str) -> Option<Traced> {
        let last = from + REFUSALS - 1;
        let inject = format!("inject={call}:error={error}:when={from}..{last}");
        let trace = format!("trace={call}");
        Traced::start(&["-ttt", "-e", &trace, "-e", &inject], config)
    }

    /// As [`Traced::without_memory`], with an app.
    fn with_app(call: &str, error: &str, from: usize, config: &str) -> Option<Traced> {
        if Command::new("python3").arg("--version").output().is_err() {
            skip("python3", "there is no python3");
            return None;
        }
        let app = root().join("tests/it/system_faults/app.py");
        let config = format!("{config}\n[app]\ncommand = [\"python3\", {app:?}]\n");
        Traced::without_memory(call, error, from, &config)
    }

    /// Serves one client, which alone has all refusals.
    fn serve_one(&self, method: &str) {
        let mut client = self.daemon.connect();
        for step in 0..20 {
            assert_eq!(client.call(method, step).expect("a result"), step);
        }
    }

    /// Serves one client after another, for which master and worker send messages.
    fn serve_many(&self) {
        for number in 0..20 {
            let mut client = self.daemon.connect();
            assert_eq!(client.call("ping", number).expect("a result"), number);
        }
    }

    /// Checks that a process had all refusals, and that it waited between those of each descriptor.
    #[track_caller]
    fn assert_has_waited(&self, context: &str) {
        let trace = fs::read_to_string(self.trace.path()).expect("strace writes it");
        let mut refusals: BTreeMap<(&str, &str), Vec<f64>> = BTreeMap::new();
        // By process: strace divides a call in two if another process makes one at the same time.
        let mut unfinished: BTreeMap<&str, (&str, bool)> = BTreeMap::new();
        for line in trace.lines() {
            let mut words = line.split_whitespace();
            let (Some(pid), Some(time)) = (words.next(), words.next()) else {
                continue;
            };
            // Calls that may wait are those of libraries, between threads of one process.
            let mut returns_at_once = line.contains("MSG_DONTWAIT");
            if let Some((_, rest)) = line.split_once('(')
                && let Some((descriptor, _)) = rest.split_once(',')
                && !line.contains(" resumed>")
            {
                unfinished.insert(pid, (descriptor, returns_at_once));
            }
            if line.ends_with("(INJECTED)")
                && let Some((descriptor, at_first)) = unfinished.get(pid)
            {
                returns_at_once |= at_first;
                let time = time.parse().expect("a number");
                if returns_at_once {
                    refusals.entry((pid, descriptor)).or_default().push(time);
                }
            }
        }
        let mut all: BTreeMap<&str, usize> = BTreeMap::new();
        for ((pid, _), times) in &refusals {
            *all.entry(pid).or_default() += times.len();
        }
        refusals.retain(|(pid, _), _| all[pid] == REFUSALS);
        assert!(!refusals.is_empty(), "{context}: too few calls: {all:?}");
        for times in refusals.values() {
            let took = times[times.len() - 1] - times[0];
            assert!(
                took >= least_time(times.len()),
                "{context}: {took} s, {times:?}"
            );
        }
    }
}

#[test]
fn clients_are_read_and_written_when_there_is_memory() {
    for call in ["recvfrom", "sendto"] {
        for error in ["ENOMEM", "ENOBUFS"] {
            let Some(traced) = Traced::without_memory(call, error, 3, ONE) else {
                return;
            };
            traced.serve_one("ping");
            traced.assert_has_waited(&format!("{call}, {error}"));
            assert_all_are_served(&traced);
        }
    }
}

/// ENOSPC: the limit of `/proc/sys/fs/epoll/max_user_watches`.
#[test]
fn clients_are_watched_when_there_is_memory() {
    for error in ["ENOMEM", "ENOSPC"] {
        let daemon = Setup::new(FDPASSD, ONE).start().expect("the daemon serves");
        let worker = daemon.status().workers[0].pid.expect("a pid");
        let inject = format!("epoll_ctl:error={error}:when=1..{REFUSALS}");
        let Some(traced) = strace::Traced::attach(worker, "epoll_ctl", &inject) else {
            return;
        };
        let mut client = daemon.connect();
        let connected = Instant::now();
        for step in 0..20 {
            assert_eq!(client.call("ping", step).expect("a result"), step);
        }
        let took = connected.elapsed().as_secs_f64();
        assert!(took > REFUSALS_TIME, "{error}: {took} s");
        let refused = traced.text().matches("EPOLL_CTL_ADD").count();
        assert_eq!(refused, REFUSALS + 1, "{error}");
        assert_eq!(daemon.status().lost_total, 0, "{error}");
    }
}

#[test]
fn messages_arrive_when_there_is_memory_for_them() {
    for call in ["recvmsg", "sendmsg"] {
        for error in ["ENOMEM", "ENOBUFS"] {
            let Some(traced) = Traced::without_memory(call, error, 4, ONE) else {
                return;
            };
            traced.serve_many();
            traced.assert_has_waited(&format!("{call}, {error}"));
            assert_all_are_served(&traced);
        }
    }
}

#[test]
fn leases_are_sent_when_fewer_descriptors_are_in_flight() {
    let Some(traced) = Traced::without_memory("sendmsg", "ETOOMANYREFS", 4, ONE) else {
        return;
    };
    traced.serve_many();
    traced.assert_has_waited("ETOOMANYREFS");
    assert_all_are_served(&traced);
}

#[test]
fn requests_reach_an_app_when_there_is_memory_for_them() {
    // Unix clients are written to by another call, so the app alone is refused.
    for error in ["ENOMEM", "ENOBUFS"] {
        let config = "listen = [\"unix:{dir}/rpc.sock\"]\nworkers.count = 1";
        let Some(traced) = Traced::with_app("sendto", error, 2, config) else {
            return;
        };
        traced.serve_one("echo");
        traced.assert_has_waited(&format!("sendto, {error}"));
    }
}

#[test]
fn answers_of_an_app_are_read_when_there_is_memory() {
    // The hello, a request or an answer is the first that is refused.
    for (error, from) in [("ENOMEM", 2), ("ENOBUFS", 3), ("ENOMEM", 4), ("ENOBUFS", 5)] {
        let Some(traced) = Traced::with_app("recvfrom", error, from, ONE) else {
            return;
        };
        traced.serve_one("echo");
        traced.assert_has_waited(&format!("recvfrom, {error}, {from}"));
    }
}

#[test]
fn last_answers_of_an_app_are_read_when_there_is_memory() {
    for from in 2..7 {
        let Some(traced) = Traced::with_app("recvfrom", "ENOMEM", from, ONE) else {
            return;
        };
        let mut client = traced.daemon.connect();
        assert_eq!(client.call("echo", 1).expect("a result"), 1);
        client.request("answer_and_exit", 2);
        assert_eq!(client.reply().value().expect("a result"), 2, "{from}");
        assert_eq!(client.call("echo", 3).expect("a result"), 3);
    }
}
