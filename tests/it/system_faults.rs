//! Failing system calls, by strace(1) `-e inject`: no client is lost, no reply is wrong, and nothing spins.

mod shortage;
mod watches;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use fdpassd::testing::{Client, Running, Setup, eventually};

use crate::common::faulty::example;
use crate::common::needs::skip;
use crate::common::{FDPASSD, let_pass, ping_of, pong_of};

/// The daemon under strace, and where that writes.
struct Traced {
    daemon: Running,
    trace: tempfile::NamedTempFile,
}

impl Traced {
    /// Skips the test without strace, or where it may not trace.
    fn start(arguments: &[&str], config: &str) -> Option<Traced> {
        let may = Command::new("strace")
            .args(["-qq", "-f", "-e", "trace=none", "true"])
            .status();
        if !may.is_ok_and(|status| status.success()) {
            skip("strace", "there is no strace(1), or it may not trace");
            return None;
        }
        let trace = tempfile::NamedTempFile::new().expect("a file");
        let mut setup = Setup::new("strace", config)
            .argument("-qq")
            .argument("-f")
            .argument("-o")
            .argument(trace.path());
        for argument in arguments {
            setup = setup.argument(argument);
        }
        let daemon = setup
            .argument(if config.contains("[app]") {
                FDPASSD.into()
            } else {
                example("faulty")
            })
            .start()
            .expect("the daemon serves");
        Some(Traced { daemon, trace })
    }

    /// System calls that were made to fail.
    fn failed(&self) -> usize {
        injected(self.trace.path())
    }
}

fn injected(trace: &Path) -> usize {
    fs::read_to_string(trace)
        .expect("strace writes it")
        .matches("(INJECTED)")
        .count()
}

#[test]
fn clients_wait_while_accept_lacks_descriptors_or_memory() {
    for error in ["EMFILE", "ENFILE", "ENOMEM", "ENOBUFS"] {
        // The first ones are ours, over the control socket.
        let inject = format!("inject=accept4:error={error}:when=5..10");
        let Some(traced) =
            Traced::start(&["-e", "trace=accept4", "-e", &inject], "workers.count = 2")
        else {
            return;
        };
        let began = Instant::now();
        let mut clients: Vec<Client> = (0..6).map(|_| traced.daemon.connect()).collect();
        for (number, client) in clients.iter_mut().enumerate() {
            assert_eq!(
                client.call("ping", number).expect("a result"),
                number,
                "{error}"
            );
        }
        // An immediate retry would end at once.
        while traced.failed() < 6 {
            let mut client = traced.daemon.connect();
            assert_eq!(client.call("ping", 1).expect("a result"), 1);
        }
        assert!(
            began.elapsed() > Duration::from_millis(400),
            "{error}: {:?}",
            began.elapsed()
        );
        assert_eq!(traced.daemon.status().lost_total, 0);
        traced.daemon.wait_for_log("cannot accept c");
    }
}

#[test]
fn leases_that_cannot_be_sent_are_sent_later_or_to_others() {
    for error in ["EAGAIN", "ETOOMANYREFS", "ENOBUFS", "ENOMEM"] {
        // Of each process the third message on: its first ones greet.
        let inject = format!("inject=sendmsg:error={error}:when=3+2");
        let Some(traced) =
            Traced::start(&["-e", "trace=sendmsg", "-e", &inject], "workers.count = 2")
        else {
            return;
        };
        assert_all_are_served(&traced);
    }
}

#[test]
fn a_worker_whose_ping_cannot_be_sent_is_not_stuck() {
    // Every second message of the master is lost, and so are pings.
    let inject = "inject=sendmsg:error=ENOMEM:when=5+2";
    let config = "workers.count = 1\nlimits.stall-timeout = \"2s\"";
    let Some(traced) = Traced::start(&["-e", "trace=sendmsg", "-e", inject], config) else {
        return;
    };
    let mut client = traced.daemon.connect();
    assert_eq!(client.call("ping", 1).expect("a result"), 1);
    let before = traced.failed();
    // Without requests only pings are sent. The wait ends when several of them were lost.
    eventually("pings were lost", || {
        (traced.failed() >= before + 2).then_some(())
    });
    let_pass(Duration::from_secs(3));
    assert_eq!(client.call("ping", 2).expect("a result"), 2);
    assert_eq!(traced.daemon.status().stalls_total, 0);
}

#[test]
fn interrupted_calls_are_made_again() {
    // Not sendto: a handler of signals wakes the loop by it. The kernel never interrupts that call, and it is not
    // repeated.
    let calls = "epoll_wait,accept4,recvmsg,sendmsg,recvfrom,waitid";
    let inject = format!("inject={calls}:error=EINTR:when=2+3");
    let trace = format!("trace={calls}");
    for start in ["exec", "fork"] {
        let config = format!("{BOTH}\nworkers.start = \"{start}\"\n");
        let Some(traced) = Traced::start(&["-e", &trace, "-e", &inject], &config) else {
            return;
        };
        assert_all_are_served(&traced);
        traced.daemon.kill_worker(0);
        assert_all_are_served(&traced);
    }
}

#[test]
fn replies_that_the_kernel_does_not_take_are_sent_later() {
    for error in ["EAGAIN", "ENOBUFS", "ENOMEM"] {
        let inject = format!("inject=sendto:error={error}:when=3+2");
        let Some(traced) =
            Traced::start(&["-e", "trace=sendto", "-e", &inject], "workers.count = 2")
        else {
            return;
        };
        assert_all_are_served(&traced);
        let mut client = traced.daemon.connect();
        for length in [100, 300_000, 900_000] {
            client.send_frame(ping_of(length));
            assert!(
                client.receive() == pong_of(length),
                "{error}: {length} bytes"
            );
        }
    }
}

#[test]
fn a_worker_that_cannot_be_started_is_started_later() {
    for (calls, error) in [
        ("memfd_create", "ENOMEM"),
        ("socketpair", "EMFILE"),
        ("?clone,?clone3,?vfork", "EAGAIN"),
        ("?clone,?clone3,?vfork", "ENOMEM"),
    ] {
        let inject = format!("inject={calls}:error={error}:when=3..4");
        let trace = format!("trace={calls}");
        let Some(traced) = Traced::start(&["-e", &trace, "-e", &inject], "workers.count = 2")
        else {
            return;
        };
        let daemon = &traced.daemon;
        daemon.wait_for_workers();
        let mut clients: Vec<Client> = (0..6).map(|_| daemon.connect()).collect();
        for round in 0..3 {
            daemon.kill_worker(round % 2);
            for client in &mut clients {
                assert_eq!(
                    client.call("ping", round).expect("a result"),
                    round,
                    "{calls}"
                );
            }
        }
        assert!(traced.failed() > 0, "{calls}");
        daemon.wait_for_log("cannot be started: ");
        assert_eq!(daemon.status().lost_total, 0);
    }
}

#[test]
fn a_worker_that_cannot_be_sent_its_start_is_started_soon() {
    for error in ["ETOOMANYREFS", "EAGAIN"] {
        // The first two are those of the first two workers.
        let inject = format!("inject=sendmsg:error={error}:when=3..4");
        let config = "workers.count = 2\nworkers.start-timeout = \"1h\"";
        let Some(traced) = Traced::start(&["-e", "trace=sendmsg", "-e", &inject], config) else {
            return;
        };
        let daemon = &traced.daemon;
        daemon.wait_for_workers();
        daemon.kill_worker(0);
        assert!(traced.failed() >= 2, "{error}");
        daemon.wait_for_log(
            "cannot be started: too many descriptors are under way; trying again in 100 ms",
        );
        assert_all_are_served(&traced);
    }
}

const BOTH: &str = "listen = [\"127.0.0.1:0\", \"unix:{dir}/rpc.sock\"]\nworkers.count = 2";

/// Clients that come and ask, again and again.
#[track_caller]
fn assert_all_are_served(traced: &Traced) {
    let daemon = &traced.daemon;
    for round in 0..5 {
        let addresses = daemon.addresses().iter().cycle();
        let mut clients: Vec<Client> = addresses.take(6).map(Client::connect).collect();
        clients
            .iter_mut()
            .for_each(|client| (0..3).for_each(|step| client.request("ping", [round, step])));
        for client in &mut clients {
            for step in 0..3 {
                assert_eq!(
                    client.reply().value().expect("a result"),
                    serde_json::json!([round, step])
                );
            }
        }
    }
    assert!(traced.failed() > 0, "nothing has failed");
    let status = daemon.wait_until("all have left", |status| status.clients == 0);
    assert_eq!((status.lost_total, status.errors_total), (0, 0));
}
