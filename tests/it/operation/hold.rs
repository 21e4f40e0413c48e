//! Hold and release of one worker.

use std::time::Duration;

use fdpassd::proto::control::{Status, WorkerState};
use fdpassd::testing::{Client, eventually};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::common::faulty::{self, Execution, whoami};
use crate::common::load::Load;
use crate::common::program::ctl;
use crate::common::{kernel, let_pass, start};

use super::{BOTH, end};

#[test]
fn an_unknown_worker_cannot_be_recycled_held_or_released() {
    let daemon = start("workers.count = 1");
    let id = daemon.wait_for_workers().workers[0]
        .id
        .expect("it is ready")
        .to_string();
    for (arguments, reason) in [
        (["recycle", "4711"], "there is no worker 4711"),
        (["hold", "4711"], "there is no worker 4711"),
        (["release", "4711"], "there is no worker 4711"),
        (["release", &id], &format!("worker {id} is not held")),
        (
            ["release", "no_such"],
            "method \"no_such\" is not quarantined",
        ),
    ] {
        let said = ctl(&daemon, &arguments);
        assert_eq!(
            (said.code, said.out.as_str()),
            (Some(1), ""),
            "{arguments:?}"
        );
        assert!(
            said.err.contains("refused") && said.err.contains(reason),
            "{}",
            said.err
        );
    }
    for arguments in [["recycle", "-1"], ["recycle", "one"], ["hold", "all"]] {
        assert_eq!(ctl(&daemon, &arguments).code, Some(64), "{arguments:?}");
    }
}

#[test]
fn a_held_worker_has_no_clients_and_is_not_replaced() {
    let config = |timeout: &str| {
        let limits =
            format!("limits = {{ stall-timeout = \"200ms\", request-timeout = {timeout:?} }}");
        format!("{BOTH}{limits}\nworkers.count = 2")
    };
    let daemon = faulty::start(&config("1h"));
    daemon.wait_for_workers();
    let mut caller = daemon.connect();
    let held = whoami(&mut caller);
    // Half a frame and an unread reply move along.
    let mut halfway: Vec<Client> = (0..10).map(|_| daemon.connect()).collect();
    for client in &mut halfway {
        let whole = client.frame(r#"{"in":"whoami"}"#);
        client.send([&whole[..], &whole[..9]].concat());
        let _ = faulty::server(client);
    }
    let load = Load::start(&daemon, 4, 4);
    let execution = Execution::start_by(&daemon, caller);
    let mut asked = daemon.ctl_request("hold", json!({ "worker": held.worker }));
    let status = daemon.wait_until(
        "a successor serves and the held one has one client left",
        |status| {
            status.leaving.len() == 1
                && status.leaving[0].clients == 1
                && status
                    .workers
                    .iter()
                    .all(|worker| worker.state == WorkerState::Ready)
        },
    );
    assert_eq!(
        (status.leaving[0].pid, status.leaving[0].state),
        (held.pid, WorkerState::Held)
    );
    assert_eq!(
        status.leaving[0].waits_for,
        "method \"read_line\" to return"
    );
    for client in &mut halfway {
        let frame = client.frame(r#"{"in":"whoami"}"#);
        client.send(&frame[9..]);
        assert_ne!(faulty::server(client).pid, held.pid);
    }
    assert!(!asked.has_something(), "it is not empty yet");
    let mut caller = execution.finish();
    asked.reply().value().expect("it is held");
    assert_ne!(whoami(&mut caller).pid, held.pid);
    let is_left = |status: &Status| {
        let left: Vec<_> = status
            .leaving
            .iter()
            .map(|w| (w.pid, w.state, w.clients))
            .collect();
        left == [(held.pid, WorkerState::Held, 0)]
    };
    daemon.wait_until("it has nobody", is_left);

    // As a debugger stops it, and for longer than a stuck worker may live.
    kernel::stop(held.pid);
    assert_eq!(ctl(&daemon, &["recycle", "all"]).code, Some(0));
    assert_eq!(ctl(&daemon, &["scale", "1"]).code, Some(0));
    // Longer than a worker of the load may have to wait for a CPU.
    daemon.reload_with(&config("4s")).expect("it is applied");
    let_pass(Duration::from_millis(5_500));
    daemon.wait_until("all others are new, and the held one is there", is_left);
    assert_eq!(
        (kernel::state(held.pid), daemon.status().deaths_total),
        (Some('T'), 0)
    );
    assert_ne!(whoami(&mut daemon.connect()).pid, held.pid);
    kernel::send(held.pid, Signal::SIGCONT);

    let said = ctl(&daemon, &["release", &held.worker.to_string()]);
    assert_eq!(said.code, Some(0), "{}", said.err);
    daemon.wait_until("it is not needed any more", |status| {
        status.leaving.is_empty()
    });
    eventually("its process has ended, and is collected", || {
        let children = kernel::children(daemon.pid());
        (children.len() == 2 && !children.contains(&held.pid)).then_some(())
    });
    load.wait_for(20);
    end(&daemon, load, 11);
}

/// The checks of stuck workers, which move clients of held ones as well, are half an hour apart.
#[test]
fn a_hold_moves_idle_clients_at_once() {
    let daemon = faulty::start("workers.count = 2\nlimits.stall-timeout = \"1h\"");
    daemon.wait_for_workers();
    let mut client = daemon.connect();
    let held = whoami(&mut client);
    eventually("its turn is over", || {
        let page = daemon.ctl("clients").expect("it lists them");
        (page["clients"][0]["state"] == "idle").then_some(())
    });
    let said = ctl(&daemon, &["hold", &held.worker.to_string()]);
    assert_eq!(said.code, Some(0), "{}", said.err);
    daemon.wait_for_log("is held; 1 client moved");
    assert_ne!(whoami(&mut client).pid, held.pid);
}

#[test]
fn a_release_answers_a_pending_hold() {
    // A worker that is found stuck would lose its seat to its successor, however long the test takes.
    let daemon = faulty::start("workers.count = 2\nlimits.stall-timeout = \"1h\"");
    daemon.wait_for_workers();
    let mut caller = daemon.connect();
    let worker = whoami(&mut caller).worker;
    let execution = Execution::start_by(&daemon, caller);
    let mut asked = daemon.ctl_request("hold", json!({ "worker": worker }));
    daemon.wait_until("it is held", |status| status.leaving.len() == 1);
    assert!(!asked.has_something(), "it is not empty yet");
    daemon
        .ctl_with("release", json!({ "worker": worker }))
        .expect("it is released");
    let fault = asked.reply().value().expect_err("it keeps its client");
    assert_eq!(
        (fault.code(), fault.message()),
        ("refused", "the worker is released")
    );
    let mut caller = execution.finish();
    assert_eq!(whoami(&mut caller).worker, worker);
}

#[test]
fn holding_the_only_worker_starts_a_substitute() {
    let daemon = faulty::start("workers.count = 1");
    let held = whoami(&mut daemon.connect());
    let load = Load::start(&daemon, 4, 4);
    let said = ctl(&daemon, &["hold", &held.worker.to_string()]);
    let expected = format!(
        "worker {} is held; its clients have moved to other workers\n",
        held.worker
    );
    assert_eq!((said.code, said.out), (Some(0), expected), "{}", said.err);
    load.wait_for(20);
    assert_ne!(whoami(&mut daemon.connect()).pid, held.pid);
    // A second hold is refused, and it cannot be replaced either: it serves no client.
    for verb in ["hold", "recycle"] {
        let said = ctl(&daemon, &[verb, &held.worker.to_string()]);
        assert_eq!(said.code, Some(1));
        assert!(
            said.err.contains("does not serve at the moment"),
            "{}",
            said.err
        );
    }
    end(&daemon, load, 0);
    assert!(!kernel::is_over(held.pid));
}

#[test]
fn released_worker_serves_and_its_substitute_leaves() {
    let daemon = faulty::start("workers.count = 1");
    let held = whoami(&mut daemon.connect());
    assert_eq!(
        ctl(&daemon, &["hold", &held.worker.to_string()]).code,
        Some(0)
    );
    let mut client = daemon.connect();
    let substitute = whoami(&mut client);
    assert_ne!(substitute.pid, held.pid);
    let load = Load::start(&daemon, 4, 4);
    load.wait_for(20);
    let said = ctl(&daemon, &["release", &held.worker.to_string()]);
    assert_eq!(
        (said.code, said.out),
        (Some(0), format!("worker {} is released\n", held.worker)),
        "{}",
        said.err
    );
    eventually("the substitute has ended", || {
        kernel::is_over(substitute.pid).then_some(())
    });
    assert_eq!(
        whoami(&mut client).pid,
        held.pid,
        "the client has moved to it"
    );
    assert_eq!(whoami(&mut daemon.connect()).pid, held.pid);
    load.wait_for(20);
    end(&daemon, load, 1);
}
