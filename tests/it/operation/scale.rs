//! Another number of workers, and new processes for those that there are.

use std::fs;

use fdpassd::proto::control::{Origin, Status, WorkerState};
use fdpassd::testing::Client;
use serde_json::json;

use crate::common::load::Load;
use crate::common::program::ctl;
use crate::common::{kernel, ping_all, start};
use crate::unleased::place;

use super::{BOTH, end};

#[test]
fn scaling_moves_clients_and_lasts_until_the_next_reload() {
    let config = format!("{BOTH}workers.count = 2");
    let daemon = start(&config);
    daemon.wait_for_workers();
    let mut idle: Vec<Client> = (0..50).map(|_| daemon.connect()).collect();
    let load = Load::start(&daemon, 6, 4);
    for (count, said) in [
        (4, "4 workers are ready\n"),
        (1, "1 worker is ready\n"),
        (3, "3 workers are ready\n"),
    ] {
        let scaled = ctl(&daemon, &["scale", &count.to_string()]);
        assert_eq!(
            (scaled.code, scaled.out.as_str()),
            (Some(0), said),
            "{}",
            scaled.err
        );
        // The status has changed by the time of the reply.
        let status = daemon.status();
        assert_eq!(
            (status.count, status.count_origin),
            (count, Origin::Runtime)
        );
        assert_eq!(
            (status.workers.len(), status.leaving.len()),
            (count as usize, 0)
        );
        assert!(
            status
                .workers
                .iter()
                .all(|worker| worker.state == WorkerState::Ready),
            "{:?}",
            status.workers
        );
        assert_eq!(
            kernel::children(daemon.pid()).len(),
            count as usize,
            "those that left are gone"
        );
        load.wait_for(20);
    }
    daemon
        .reload_with("workers.count = 0")
        .expect_err("it is rejected");
    assert_eq!(
        (daemon.status().count, daemon.status().count_origin),
        (3, Origin::Runtime)
    );
    daemon.reload_with(&config).expect("it is applied");
    let status = daemon.wait_until("the third has left", |status| status.workers.len() == 2);
    assert_eq!((status.count, status.count_origin), (2, Origin::Config));
    ping_all(&mut idle);
    load.wait_for(20);
    end(&daemon, load, 50);
}

#[test]
fn an_impossible_count_is_refused_by_tool_and_daemon() {
    let daemon = start("workers.count = 1");
    for count in [0, 257] {
        assert_eq!(ctl(&daemon, &["scale", &count.to_string()]).code, Some(64));
        let fault = daemon
            .ctl_with("scale", json!({ "count": count }))
            .expect_err("it is refused");
        assert_eq!(fault.code(), "refused", "{fault}");
        assert!(fault.message().contains("1 to 256 workers"), "{fault}");
    }
    for params in [
        json!({ "count": -1 }),
        json!({ "count": 1.5 }),
        json!({}),
        json!(2),
        json!({ "count": 2, "x": 1 }),
    ] {
        let fault = daemon.ctl_with("scale", params).expect_err("it is refused");
        assert_eq!(fault.code(), "bad_params", "{fault}");
    }
    let status = daemon.status();
    assert_eq!(
        (status.count, status.count_origin, status.workers.len()),
        (1, Origin::Config, 1)
    );
}

#[test]
fn two_signals_add_and_remove_a_worker_but_never_the_last() {
    let daemon = start("workers.count = 2");
    daemon.wait_for_workers();
    let load = Load::start(&daemon, 4, 2);
    let becomes = |count: usize| {
        daemon.wait_until("so many workers are ready", |status| {
            let is_ready = status
                .workers
                .iter()
                .all(|worker| worker.state == WorkerState::Ready);
            is_ready
                && (status.workers.len(), status.count as usize) == (count, count)
                && status.leaving.is_empty()
        })
    };
    for (signal, count) in [
        ("TTIN", 3),
        ("TTIN", 4),
        ("TTOU", 3),
        ("TTOU", 2),
        ("TTOU", 1),
    ] {
        daemon.signal(signal);
        assert_eq!(becomes(count).count_origin, Origin::Runtime);
        load.wait_for(10);
    }
    daemon.signal("TTOU");
    daemon.wait_for_log("SIGTTOU: there can be 1 to 256 workers, not 0");
    becomes(1);
    end(&daemon, load, 0);
}

#[test]
fn recycling_replaces_one_worker_or_all() {
    let daemon = start(&format!("{BOTH}workers.count = 3"));
    let before = daemon.wait_for_workers();
    let load = Load::start(&daemon, 6, 4);
    let recycled = before.workers[1].id.expect("it is ready").to_string();
    let said = ctl(&daemon, &["recycle", &recycled]);
    let expected = format!("worker {recycled} is replaced; 3 workers are ready\n");
    assert_eq!((said.code, said.out), (Some(0), expected), "{}", said.err);
    let after = daemon.status();
    let stayed = |a: &Status, b: &Status| -> Vec<bool> {
        a.workers
            .iter()
            .zip(&b.workers)
            .map(|(a, b)| a.pid == b.pid)
            .collect()
    };
    assert_eq!(
        (stayed(&before, &after), after.leaving.len()),
        (vec![true, false, true], 0)
    );
    load.wait_for(20);

    let said = ctl(&daemon, &["recycle", "all"]);
    assert_eq!(
        (said.code, said.out.as_str()),
        (Some(0), "all workers are replaced; 3 workers are ready\n")
    );
    let last = daemon.status();
    assert_eq!(
        (stayed(&after, &last), last.leaving.len()),
        (vec![false; 3], 0)
    );
    assert_eq!(
        (last.count_origin, kernel::children(daemon.pid()).len()),
        (Origin::Config, 3)
    );
    load.wait_for(20);
    end(&daemon, load, 0);
}

#[test]
fn a_number_set_during_a_reload_outlives_its_end() {
    let Some((place, config)) = place() else {
        return;
    };
    let daemon = start(&config);
    daemon.wait_for_workers();
    let hold = place.path().join("hold");
    fs::write(&hold, "").expect("it is ours");
    let mut reload = daemon.ctl_request("reload", ());
    daemon.wait_until("a worker waits for its app", |status| status.reloading);
    let mut scale = daemon.ctl_request("scale", json!({ "count": 2 }));
    daemon.wait_until("the number is set", |status| status.count == 2);
    fs::remove_file(&hold).expect("it is there");
    reload.reply().value().expect("it is applied");
    scale.reply().value().expect("it is done");
    let status = daemon.status();
    assert_eq!(
        (status.count, status.count_origin),
        (2, Origin::Runtime),
        "it is not forgotten"
    );
    daemon.reload().expect("it is applied");
    let status = daemon.status();
    assert_eq!((status.count, status.count_origin), (1, Origin::Config));
}
