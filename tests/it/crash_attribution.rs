//! Crash attribution: the log names the request that ended a worker, and repeated causes are stopped.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use fdpassd::proto::control::WorkerStatus;
use fdpassd::testing::{Client, Running, eventually};
use serde_json::{Value, json};

use crate::common::faulty::{self, Execution, whoami};
use crate::common::kernel;
use crate::common::program::ctl;

/// Expected log of a death: the called method, the end of the worker, the outcome of the request.
struct Death {
    method: &'static str,
    params: Value,
    cause: &'static str,
    outcome: &'static str,
    is_rerun: bool,
}

#[test]
fn each_death_is_logged_with_cause_request_and_consequences() {
    let daemon = faulty::start("workers.count = 1\nlimits.stall-timeout = \"1h\"");
    let mut others: Vec<Client> = (0..7).map(|_| daemon.connect()).collect();
    let crash = |method, params, cause| Death {
        method,
        params,
        cause,
        outcome: "1 request answered with crashed",
        is_rerun: false,
    };
    let deaths = [
        crash("exit", json!(7), "exited with status 7"),
        crash("exit", json!(0), "exited with status 0"),
        crash("abort", json!(null), "killed by signal 6 (SIGABRT)"),
        crash("segv", json!(null), "killed by signal 11 (SIGSEGV)"),
        Death {
            outcome: "1 request run again",
            is_rerun: true,
            ..crash("exit_until", json!(2), "exited with status 3")
        },
    ];
    let mut reruns = 0;
    for (number, death) in (1..).zip(deaths) {
        others.iter_mut().for_each(ping);
        daemon.wait_until("the caller before has left", |status| status.clients == 7);
        let mut caller = daemon.connect();
        let (before, told) = (daemon.status(), daemon.stderr().len());
        let server = whoami(&mut caller);
        let reply = caller.call(death.method, &death.params);
        let code = reply.as_ref().err().map(|fault| fault.code());
        assert_eq!(code, (!death.is_rerun).then_some("crashed"), "{reply:?}");
        reruns += u64::from(death.is_rerun);

        let status = daemon.wait_until("it is told", |status| status.deaths_total == number);
        let log = daemon.stderr()[told..].to_owned();
        let line = log
            .lines()
            .find(|line| line.contains(death.cause))
            .unwrap_or_else(|| panic!("{log}"));
        let name = format!(
            "worker {} (pid {}, gen 1) {}",
            server.worker, server.pid, death.cause
        );
        let request = format!(
            "in method {:?} of client {} (127.0.0.1:",
            death.method, server.client
        );
        let others_and_request = format!(
            "; 8 clients moved, 0 closed, {}; its successor starts now",
            death.outcome
        );
        for part in [&name, &request, &others_and_request] {
            assert!(line.contains(part.as_str()), "{part:?} is not in {line:?}");
        }
        assert_eq!(
            line.contains("core dumped"),
            line.contains(", core dumped in method"),
            "{line}"
        );

        let WorkerStatus {
            restarts,
            last_death,
            ..
        } = &status.workers[0];
        let last_death = last_death.as_deref().expect("it has died");
        assert!(
            last_death.starts_with(death.cause) && last_death.contains(&request),
            "{last_death}"
        );
        assert_eq!(*restarts, number);
        assert_eq!(status.moved_total, before.moved_total + 8);
        assert_eq!(status.reruns_total, reruns);
        assert_eq!(
            status.errors_total,
            before.errors_total + u64::from(!death.is_rerun)
        );
        assert_eq!((status.lost_total, status.closed_for_crashes_total), (0, 0));
    }

    // A death without an executing request.
    let before = daemon.status();
    daemon.kill_worker(0);
    daemon.wait_for_log("killed by signal 9 (SIGKILL); ");
    daemon.wait_for_log(" moved, 0 closed, no request was executing; its successor starts now");
    let after = daemon.status();
    assert_eq!(
        (after.deaths_total, after.errors_total),
        (before.deaths_total + 1, before.errors_total)
    );
    assert_eq!(
        after.workers[0].last_death.as_deref(),
        Some("killed by signal 9 (SIGKILL)")
    );
}

#[test]
fn only_a_client_whose_requests_end_three_workers_is_closed() {
    let daemon = faulty::start("workers.count = 1");
    let mut other = daemon.connect();
    for (method, params) in [
        ("exit", json!(1)),
        ("segv", json!(null)),
        ("exit", json!(0)),
    ] {
        ping(&mut other);
        let mut client = daemon.connect();
        let id = whoami(&mut client).client;
        for _ in 0..2 {
            assert_eq!(
                client
                    .call(method, &params)
                    .expect_err("its worker dies")
                    .code(),
                "crashed"
            );
            ping(&mut client);
        }
        let before = daemon.status().closed_for_crashes_total;
        client.request(method, &params);
        client.expect_end();
        daemon.wait_for_log(&format!("client {id} (127.0.0.1:"));
        daemon.wait_for_log("): its requests ended 3 workers within 60s; closing it");
        assert_eq!(daemon.status().closed_for_crashes_total, before + 1);
    }
    ping(&mut other);
    let status = daemon.wait_until("only one is left", |status| status.clients == 1);
    assert_eq!(
        (
            status.deaths_total,
            status.lost_total,
            status.quarantined.len()
        ),
        (9, 0, 0)
    );
}

/// One that is run again ends two workers.
#[test]
fn an_idempotent_request_that_ends_two_workers_counts_twice() {
    let daemon = faulty::start("workers.count = 1");
    let mut client = daemon.connect();
    // It goes well the second time: it was not the request.
    for _ in 0..5 {
        assert_eq!(
            client
                .call("exit_until", 2)
                .expect("the second attempt succeeds"),
            2
        );
    }
    assert_eq!(
        client
            .call("exit_until", 3)
            .expect_err("there is no third")
            .code(),
        "crashed"
    );
    client.request("exit_until", 3);
    client.expect_end();
    let status = daemon.wait_until("it is gone", |status| status.clients == 0);
    assert_eq!(
        (
            status.deaths_total,
            status.reruns_total,
            status.closed_for_crashes_total
        ),
        (9, 7, 1)
    );
}

#[test]
fn a_kill_from_outside_does_not_count_when_the_rerun_crashes() {
    // Otherwise a second worker would start as soon as this one counts as stuck.
    let daemon = faulty::start("workers.count = 1\nlimits.stall-timeout = \"1h\"");
    let mut client = daemon.connect();
    for _ in 0..2 {
        let execution = Execution::start_method(&daemon, client, "read_line_or_exit");
        daemon.signal_worker(0, "KILL");
        client = execution.into_client();
        let fault = client
            .reply()
            .value()
            .expect_err("the rerun ends its worker");
        assert_eq!(fault.code(), "crashed");
        ping(&mut client);
    }
    let status = daemon.status();
    assert_eq!(
        (
            status.deaths_total,
            status.reruns_total,
            status.closed_for_crashes_total
        ),
        (4, 2, 0)
    );
    client.request("exit", 3);
    client.expect_end();
}

#[test]
fn kills_from_outside_blame_no_client_and_no_method() {
    let daemon = faulty::start("workers.count = 1\nlimits.stall-timeout = \"1h\"");
    let mut client = daemon.connect();
    const KILLS: u64 = 12;
    for kill in 0..KILLS {
        let execution = Execution::start_by(&daemon, client);
        daemon.signal_worker(0, if kill % 2 == 0 { "KILL" } else { "XCPU" });
        client = execution.into_client();
        assert_eq!(
            client
                .reply()
                .value()
                .expect_err("its worker was killed")
                .code(),
            "crashed"
        );
        ping(&mut client);
    }
    let status = daemon.status();
    assert_eq!((status.deaths_total, status.errors_total), (KILLS, KILLS));
    assert_eq!(
        (
            status.closed_for_crashes_total,
            status.quarantined.len(),
            status.clients
        ),
        (0, 0, 1)
    );
}

#[test]
fn a_method_that_ends_ten_workers_is_quarantined() {
    let daemon = faulty::start("workers = { count = 2, dispatch = \"round-robin\" }");
    daemon.wait_for_workers();
    let mut witness = daemon.connect();
    let mut deaths = 0;
    for round in 0..3 {
        for _ in 0..10 {
            assert_eq!(
                daemon.call("exit", 5).expect_err("it exits").code(),
                "crashed"
            );
            deaths += 1;
        }
        let status =
            daemon.wait_until("it is quarantined", |status| !status.quarantined.is_empty());
        assert_eq!(
            (status.quarantined.as_slice(), status.deaths_total),
            (&["exit".to_owned()][..], deaths)
        );
        daemon.wait_for_log("method \"exit\" has ended 10 workers within 600s: it is quarantined");
        assert!(ctl(&daemon, &["status"]).out.contains("exit"));
        // Neither the workers that received the quarantine nor a later one run the method.
        assert_unrun(&daemon, deaths);
        daemon.kill_worker(round % 2);
        deaths += 1;
        assert_unrun(&daemon, deaths);
        ping(&mut witness);
        assert_eq!(
            daemon
                .call("abort", ())
                .expect_err("another method is run")
                .code(),
            "crashed"
        );
        deaths += 1;

        if round == 1 {
            daemon.reload().expect("applied");
        } else {
            let said = ctl(&daemon, &["release", "exit"]);
            assert_eq!(said.code, Some(0), "{said:?}");
            assert_ne!(
                ctl(&daemon, &["release", "exit"]).code,
                Some(0),
                "it is released already"
            );
        }
        assert!(daemon.status().quarantined.is_empty());
    }
    // All over again.
    assert_eq!(
        daemon.call("exit", 5).expect_err("it is run").code(),
        "crashed"
    );
    daemon.wait_until("it has ended one more", |status| {
        status.deaths_total == deaths + 1
    });
    ping(&mut witness);
    assert_eq!(daemon.status().lost_total, 0);
}

/// Each worker refuses the method.
#[track_caller]
fn assert_unrun(daemon: &Running, deaths: u64) {
    let mut seen = Vec::new();
    eventually("both workers were asked", || {
        let mut client = daemon.connect();
        let server = whoami(&mut client);
        let fault = client.call("exit", 5).expect_err("it is not run");
        assert!(
            fault
                .to_string()
                .starts_with("crashed: method \"exit\" is quarantined"),
            "{fault}"
        );
        assert_eq!(whoami(&mut client).pid, server.pid);
        seen.push(server.seat);
        (seen.contains(&0) && seen.contains(&1)).then_some(())
    });
    assert_eq!(daemon.status().deaths_total, deaths);
}

#[test]
fn a_worker_that_dies_in_its_first_request_is_replaced_at_once() {
    let daemon = faulty::start("workers.count = 1");
    for (method, params) in [
        ("exit", json!(3)),
        ("segv", json!(null)),
        ("abort", json!(null)),
        ("exit_until", json!(3)),
    ] {
        for _ in 0..3 {
            assert_eq!(
                daemon
                    .call(method, &params)
                    .expect_err("its worker dies")
                    .code(),
                "crashed"
            );
        }
    }
    assert_eq!(daemon.status().deaths_total, 15);
    assert_no_wait(&daemon);
}

#[test]
fn a_client_that_crashes_many_workers_causes_no_backoff() {
    for workers in [1, 2] {
        let daemon = faulty::start(&format!("workers.count = {workers}"));
        daemon.wait_for_workers();
        let others: Vec<Client> = (0..4).map(|_| daemon.connect()).collect();
        let is_over = AtomicBool::new(false);
        const CRASHES: usize = 45;
        let pings: Vec<AtomicUsize> = others.iter().map(|_| AtomicUsize::new(0)).collect();
        // Each comes to its turn between one crash and the next.
        let have_enough = || {
            let mut pings = pings.iter().map(|pings| pings.load(Ordering::Relaxed));
            pings.all(|pings| pings >= CRASHES / 2)
        };
        let crashes = thread::scope(|threads| {
            let _at_last = Ends(&is_over);
            let is_over = &is_over;
            let pinging: Vec<_> = others
                .into_iter()
                .zip(&pings)
                .map(|(mut client, pings)| {
                    threads.spawn(move || {
                        while !is_over.load(Ordering::Relaxed) {
                            ping(&mut client);
                            pings.fetch_add(1, Ordering::Relaxed);
                        }
                    })
                })
                .collect();
            let mut crashes = 0;
            // Over one connection as long as it is let, then over the next; as soon as there is an answer, again.
            let methods = [
                ("exit", json!(1)),
                ("segv", json!(null)),
                ("abort", json!(null)),
            ];
            // There are more if the machine keeps one of the others from asking for a while.
            while crashes < CRASHES || (!have_enough() && crashes < 10 * CRASHES) {
                let (method, params) = &methods[crashes / 3 % 3];
                let mut client = daemon.connect();
                for _ in 0..2 {
                    assert_eq!(
                        client
                            .call(method, params)
                            .expect_err("its worker dies")
                            .code(),
                        "crashed"
                    );
                }
                client.request(method, params);
                client.expect_end();
                crashes += 3;
                // The operator is of no help.
                let _ = daemon.ctl_with("release", json!({ "method": method }));
            }
            is_over.store(true, Ordering::Relaxed);
            for pinging in pinging {
                pinging.join().expect("every ping is answered");
            }
            crashes as u64
        });
        assert_no_wait(&daemon);
        assert!(have_enough(), "{workers} workers: {pings:?}");
        let status = daemon.status();
        assert_eq!((status.deaths_total, status.lost_total), (crashes, 0));
        assert_eq!(status.closed_for_crashes_total, crashes / 3);
        assert!(kernel::state(daemon.pid()).is_some());
    }
}

/// Ends the background work, also when a test fails.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// No successor had to wait.
#[track_caller]
fn assert_no_wait(daemon: &Running) {
    let log = daemon.stderr();
    let waited: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("its successor starts in "))
        .collect();
    assert!(waited.is_empty(), "{waited:#?}");
}

#[track_caller]
fn ping(client: &mut Client) {
    assert_eq!(
        client.call("ping", "still there").expect("a result"),
        "still there"
    );
}
