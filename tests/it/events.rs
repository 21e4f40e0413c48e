//! Events: a client reads past ones at once and waits for the next ones.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use fdpassd::proto::control::{Event, Events, Kind};
use fdpassd::testing::{Client, Running, eventually};
use serde_json::{Value, json};

use crate::common::faulty::{self, Execution};
use crate::common::{kernel, let_pass, start, while_idle_with};

#[test]
fn every_event_is_sent_once_in_order_and_is_in_the_log() {
    let daemon = start("workers.count = 2");
    daemon.wait_for_workers();
    daemon.kill_worker(0);
    daemon
        .ctl_with("scale", json!({ "count": 3 }))
        .expect("it is done");
    let held = daemon.status().workers[1].id.expect("it is ready");
    daemon
        .ctl_with("hold", json!({ "worker": held }))
        .expect("it is done");
    daemon
        .ctl_with("release", json!({ "worker": held }))
        .expect("it is done");
    daemon.ctl("recycle").expect("it is done");
    daemon.ctl("drain").expect("it is done");
    daemon.ctl("undrain").expect("it is done");
    daemon
        .reload_with("workers.count = 1")
        .expect("it is applied");
    daemon
        .reload_with("workers.count = 0")
        .expect_err("it is rejected");
    daemon.write_config("");
    // Their last events would be below the next level of the log.
    daemon.wait_until("all workers without a seat have finished", |status| {
        status.leaving.is_empty()
    });
    daemon
        .ctl_with("log-level", json!({ "level": "warn" }))
        .expect("it is done");

    let all = events(&daemon, 0);
    assert_eq!((all.lost, all.last), (0, all.events.len() as u64));
    assert!(
        (1..).zip(&all.events).all(|(id, event)| event.id == id),
        "{:?}",
        all.events
    );
    assert!(all.events.is_sorted_by(|a, b| a.at <= b.at));
    let kinds: Vec<Kind> = all.events.iter().map(|event| event.event).collect();
    use Kind::*;
    let asked = [
        Scaled,
        WorkerHeld,
        WorkerReleased,
        Recycling,
        Drained,
        Undrained,
        ReloadBegun,
        ReloadApplied,
    ];
    let order: Vec<Kind> = kinds
        .iter()
        .copied()
        .filter(|kind| asked.contains(kind))
        .collect();
    assert_eq!(order, asked);
    for kind in [
        WorkerStarted,
        WorkerReady,
        Started,
        WorkerDied,
        WorkerDraining,
        WorkerFinished,
        ReloadRejected,
    ] {
        assert!(kinds.contains(&kind), "{kind:?} is not in {kinds:?}");
    }
    let scaled = of(&all, Scaled);
    let uid = kernel::user();
    assert_eq!(
        (scaled.about.workers, scaled.about.uid, scaled.about.asker),
        (Some(3), Some(uid), Some(own_pid()))
    );
    let died = of(&all, WorkerDied);
    assert!(
        died.about.worker.is_some() && died.about.pid.is_some() && died.about.seat == Some(0),
        "{died:?}"
    );
    assert!(died.message.contains("killed by signal 9"), "{died:?}");
    let log = daemon.stderr();
    for event in all
        .events
        .iter()
        .filter(|event| event.event != WorkerStarted && event.event != LogLevelChanged)
    {
        assert!(
            log.contains(&event.message),
            "{:?} is not in\n{log}",
            event.message
        );
    }
}

#[test]
fn a_wait_for_events_is_answered_by_the_next_event() {
    let daemon = start("workers.count = 1");
    daemon.wait_for_workers();
    let last = events(&daemon, 0).last;
    // Twenty wait, and none of them delays another.
    let mut waiting: Vec<Client> = (0..20)
        .map(|_| daemon.ctl_request("events", json!({ "after": last, "wait": 60 })))
        .collect();
    let mut again = daemon.ctl_request("events", json!({ "after": last, "wait": 0.05 }));
    let nothing: Events = read(&mut again);
    assert_eq!(
        (nothing.events.len(), nothing.last, nothing.workers),
        (0, last, 1)
    );
    assert!(!waiting.iter_mut().any(Client::has_something));
    daemon.signal_worker(0, "KILL");
    for client in &mut waiting {
        let told: Events = read(client);
        assert_eq!(
            (told.events[0].id, told.events[0].event),
            (last + 1, Kind::WorkerDied)
        );
    }
    // One that hangs up is forgotten, and its descriptor closed.
    let before = kernel::descriptors(daemon.pid()).len();
    let impatient = daemon.ctl_request("events", json!({ "after": 1_000_000, "wait": 60 }));
    drop(impatient);
    drop(waiting);
    eventually("their connections are closed", || {
        (kernel::descriptors(daemon.pid()).len() < before).then_some(())
    });
}

#[test]
fn waiting_for_an_event_wakes_no_process() {
    let daemon = start("workers.count = 1");
    daemon.wait_for_workers();
    let mut follower = daemon.ctl_request(
        "events",
        json!({ "after": events(&daemon, 0).last, "wait": 60 }),
    );
    let before = while_idle_with(&daemon, 1, || kernel::sleeps(daemon.pid()));
    let_pass(Duration::from_millis(1500));
    assert_eq!(kernel::sleeps(daemon.pid()), before);
    assert!(!follower.has_something());
}

#[test]
fn lost_events_are_counted_and_a_bad_wait_is_refused() {
    let daemon = start("workers.count = 1");
    daemon.wait_for_workers();
    let mut client = daemon.ctl_request("drain", json!({}));
    for verb in ["undrain", "drain"].iter().cycle().take(1100) {
        assert_eq!(
            client.reply().name,
            if *verb == "drain" { "undrain" } else { "drain" }
        );
        client.request(verb, json!({}));
    }
    let _ = client.reply();
    let told = events(&daemon, 0);
    assert_eq!(told.events.len(), 1024);
    assert_eq!(told.lost + 1024, told.last);
    assert_eq!(told.events[0].id, told.lost + 1);
    // Of another run of the daemon: numbers start again.
    assert_eq!(events(&daemon, told.last + 7).events.len(), 1024);
    for params in [
        json!({ "wait": 60.1 }),
        json!({ "wait": -1 }),
        json!({ "after": -1 }),
        json!({ "most": 3 }),
        json!([0]),
    ] {
        let fault = daemon
            .ctl_with("events", &params)
            .expect_err("it is refused");
        assert_eq!(fault.code(), "bad_params", "{params}: {fault}");
    }
}

#[test]
fn a_hung_worker_delays_no_control_request() {
    let daemon = faulty::start(
        "workers.count = 1\nlimits.stall-timeout = \"10m\"\nlimits.request-timeout = \"10m\"",
    );
    daemon.wait_for_workers();
    let ask_all = || {
        let begin = Instant::now();
        for verb in [
            "status",
            "clients",
            "events",
            "config",
            "check",
            "metrics",
            "log-level",
            "version",
        ] {
            daemon.ctl(verb).expect(verb);
        }
        begin.elapsed()
    };
    let usual = ask_all();
    let blocked = Execution::start(&daemon);
    kernel::stop(daemon.worker_pids()[0]);
    // A pause of the machine makes one of them long, the worker would make each.
    let times = [(); 3].map(|()| ask_all());
    let limit = 10 * usual + Duration::from_secs(2);
    assert!(
        times.iter().any(|took| *took < limit),
        "{times:?} instead of {usual:?}"
    );
    daemon.signal_worker(0, "CONT");
    drop(blocked.finish());
}

#[test]
fn every_exceeded_limit_is_an_event() {
    let daemon = start("workers.count = 1\nlimits.max-clients = 2");
    let held: Vec<Client> = (0..2)
        .map(|_| {
            let mut client = daemon.connect();
            client.call("ping", 1).expect("a pong");
            client
        })
        .collect();
    let told = eventually("the limit is told", || {
        let told = events(&daemon, 0);
        told.events
            .iter()
            .any(|event| event.event == Kind::Limit)
            .then_some(told)
    });
    assert!(
        of(&told, Kind::Limit)
            .message
            .contains("max-clients (2) is reached")
    );
    drop(held);
    let kinds: BTreeSet<&str> = Kind::ALL.iter().map(|kind| kind.as_str()).collect();
    assert_eq!(
        kinds.len(),
        Kind::ALL.len(),
        "every kind has a name of its own"
    );
}

#[track_caller]
fn events(daemon: &Running, after: u64) -> Events {
    let told = daemon
        .ctl_with("events", json!({ "after": after }))
        .expect("it is told");
    serde_json::from_value(told).expect("events")
}

#[track_caller]
fn read(client: &mut Client) -> Events {
    let value: Value = client.reply().value().expect("it is told");
    serde_json::from_value(value).expect("events")
}

#[track_caller]
fn of(events: &Events, kind: Kind) -> &Event {
    events
        .events
        .iter()
        .find(|event| event.event == kind)
        .expect("there is one")
}

fn own_pid() -> u32 {
    std::process::id()
}
