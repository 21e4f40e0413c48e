//! Busy clients spread over the workers; idle ones stay.

use std::time::Duration;

use fdpassd::proto::control::Status;
use fdpassd::testing::{Client, Running, eventually};

use crate::common::faulty::{self, Server};
use crate::common::let_pass;
use crate::common::load::{Habit, Load};
use crate::common::program::ctl;

/// The time after which it is known whether clients move: a new worker warms up for 3 s, two measurements are 1 s
/// apart, and after a move there is a pause of 3 s.
const SEVERAL_LOOKS: Duration = Duration::from_secs(5);

/// By design this takes about eight seconds: a worker warms up, loads differ in two measurements, and then no client
/// may move for some time.
#[test]
fn busy_clients_spread_after_scaling_up_and_idle_ones_stay() {
    const IDLE: usize = 40;
    // No client may move because of a stuck worker, but checks for that must be as frequent as others.
    let config = |rebalance| {
        format!("limits.stall-timeout = \"1900ms\"\nworkers = {{ count = 1, {rebalance} }}")
    };
    let daemon = faulty::start(&config("rebalance = \"manual\""));
    daemon
        .reload_with(&config("rebalance = \"auto\""))
        .expect("it is applied");
    let mut idle: Vec<Client> = (0..IDLE).map(|_| daemon.connect()).collect();
    let before: Vec<Server> = idle.iter_mut().map(faulty::whoami).collect();
    let busy: Vec<Client> = (0..8).map(|_| daemon.connect()).collect();
    let load = Load::of(
        busy,
        Habit {
            pipelined: 1,
            block: 3,
            pause: Duration::from_millis(20),
        },
    );
    load.wait_for(1);
    assert_eq!(ctl(&daemon, &["scale", "2"]).code, Some(0));
    assert_eq!(
        daemon.status().moved_total,
        0,
        "a new worker takes nothing from others at once"
    );
    let status = daemon.wait_until("the new worker answers some", |status| {
        status.workers.len() == 2 && status.workers[1].requests_total > 0
    });
    let moved = status.moved_total;
    assert!(
        (1..8).contains(&moved),
        "{moved} of 8 equally busy clients moved"
    );
    daemon.wait_for_log("was the busiest for a while");
    let counts = |status: &Status| -> Vec<u64> {
        status
            .workers
            .iter()
            .map(|worker| worker.requests_total)
            .collect()
    };
    let first = counts(&daemon.status());
    let_pass(SEVERAL_LOOKS);
    let status = daemon.status();
    // A correction is fine; to and fro would be at least as many moves as there are busy clients.
    assert!(
        status.moved_total < 8,
        "{moved}, and then {}: to and fro",
        status.moved_total
    );
    let grown: Vec<u64> = counts(&status)
        .iter()
        .zip(first)
        .map(|(now, then)| now - then)
        .collect();
    assert!(
        grown.iter().all(|count| count * 10 > grown.iter().sum()),
        "{grown:?}"
    );
    for (client, before) in idle.iter_mut().zip(before) {
        let now = faulty::whoami(client);
        assert_eq!(
            (now.pid, now.calls > before.calls),
            (before.pid, true),
            "who asks for nothing stays"
        );
    }
    end(&daemon, load);
}

/// The clients of one of two workers keep it busy all the time, and with `rebalance = "manual"` none moves unasked.
#[test]
fn a_dry_run_shows_the_moves_that_rebalance_makes() {
    let daemon = faulty::start(
        "limits.stall-timeout = \"1h\"\nworkers = { count = 2, dispatch = \"round-robin\", rebalance = \"manual\" }",
    );
    daemon.wait_for_workers();
    let (mut crowd, mut idle) = (Vec::new(), Vec::new());
    // Of five that are about equally busy two are moved at least, of which one at most is in a turn.
    while crowd.len() < 5 {
        let mut client = daemon.connect();
        let server = faulty::whoami(&mut client);
        if server.seat == 0 {
            crowd.push(client)
        } else {
            idle.push((client, server))
        }
    }
    let others = idle.len() as u64;
    let load = Load::of(
        crowd,
        Habit {
            pipelined: 8,
            block: 10,
            pause: Duration::ZERO,
        },
    );
    let is_warm = |status: &Status| {
        status
            .workers
            .iter()
            .all(|worker| worker.uptime_seconds > Some(4.0))
    };
    let ids: Vec<String> = daemon
        .wait_until("both workers are warm", is_warm)
        .workers
        .iter()
        .map(|worker| worker.id.expect("it is ready").to_string())
        .collect();
    let moves = |arguments: &[&str], word: &str| -> u64 {
        // Whether there is something to gain shows after a moment, as with all that is measured.
        let said = eventually("there is something to gain", || {
            let said = ctl(&daemon, arguments);
            assert_eq!(said.code, Some(0), "{}", said.err);
            said.out.contains(word).then_some(said)
        });
        // Perhaps a line about clients that stay follows.
        let line = said.out.lines().next().expect("a sentence");
        let (count, rest) = line.split_once(' ').expect("a sentence");
        let expected = format!("{word} from worker {} to worker {}: ", ids[0], ids[1]);
        assert!(
            rest.contains(&expected) && rest.ends_with("% of a worker's time"),
            "{}",
            said.out
        );
        count.parse().expect("a count")
    };
    let would_move = moves(&["rebalance", "--dry-run"], "would move");
    assert!((1..=4).contains(&would_move), "{would_move} of 5");
    let status = daemon.status();
    assert_eq!(
        (status.moved_total, status.workers[1].clients),
        (0, others),
        "it was only asked for"
    );
    // One that is in a turn at that moment stays, and is not among those.
    let moved = moves(&["rebalance"], "moved");
    assert_eq!(daemon.status().moved_total, moved);
    daemon.wait_until("somebody asks the other worker", |status| {
        status.workers[1].clients > others
    });
    load.wait_for(8);
    for (client, before) in &mut idle {
        assert_eq!(
            faulty::whoami(client).pid,
            before.pid,
            "who asks for nothing stays"
        );
    }
    end(&daemon, load);
}

#[test]
fn balanced_workers_exchange_no_client() {
    let daemon = faulty::start("workers.count = 1");
    let mut client = daemon.connect();
    let _ = faulty::whoami(&mut client);
    for arguments in [&["rebalance", "--dry-run"][..], &["rebalance"]] {
        let said = ctl(&daemon, arguments);
        assert_eq!(
            (said.code, said.out.as_str()),
            (Some(0), "already balanced; nothing to move\n"),
            "{}",
            said.err
        );
    }
    assert_eq!(daemon.status().moved_total, 0);
}

/// Ends the load: no client had an error, and none was closed except on request.
#[track_caller]
fn end(daemon: &Running, load: Load) {
    let answered = load.finish();
    assert!(answered.iter().all(|count| *count > 0), "{answered:?}");
    let status = daemon.status();
    assert_eq!(
        (status.errors_total, status.lost_total, status.deaths_total),
        (0, 0, 0)
    );
}
