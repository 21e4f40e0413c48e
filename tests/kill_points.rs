//! A worker is killed at every step of its loop, and what comes of it is just what should.
//!
//! By `FDPASSD_DIE_AT=POINT:N` each worker process kills itself when it comes to a point for the N-th time, as a random
//! kill would that strikes just there. Its successor does so as well: N is such that some requests are answered by each.

mod common;

use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::thread;

use common::faulty::example;
use common::program::skip;
use common::{FDPASSD, ping_of, pong_of};
use fdpassd::testing::{Client, Reply, Running, Setup};
use serde_json::json;

/// What a death at a point costs the request in hand, if its method is not idempotent.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Cost {
    /// Nothing: it is answered with its result, and its side effect is there once.
    Nothing,
    /// It has crashed, and its side effect is there so often.
    Crash { effects: usize },
}

#[test]
fn killed_between_two_steps_of_a_turn_every_request_is_answered_once_with_its_result() {
    for point in ["after-claim", "after-begin", "before-end"] {
        // Each client has a turn when its lease is picked up.
        assert_outcome(point, &[4, 5], Cost::Nothing);
    }
}

#[test]
fn killed_after_reading_every_request_is_answered_once_with_its_result() {
    assert_outcome("after-receive", &[1, 2, 5], Cost::Nothing);
}

#[test]
fn killed_before_or_behind_a_request_it_is_answered_once_with_its_result() {
    for point in ["before-handler", "after-answered"] {
        assert_outcome(point, &[6, 7], Cost::Nothing);
    }
}

#[test]
fn killed_before_amid_or_after_a_write_every_reply_arrives_once_and_whole() {
    for point in ["before-write", "amid-write", "after-write"] {
        assert_outcome(point, &[2, 5], Cost::Nothing);
    }
}

#[test]
fn killed_amid_or_after_parking_half_a_frame_is_still_there_once() {
    for point in ["amid-parking", "after-parking"] {
        // Half a frame is parked anew when its lease is picked up.
        assert_outcome(point, &[4, 5], Cost::Nothing);
    }
}

#[test]
fn killed_in_a_request_it_has_crashed_and_idempotent_ones_are_run_again() {
    assert_outcome("after-exec", &[2, 5, 7], Cost::Crash { effects: 0 });
    assert_outcome("after-handler", &[2, 5, 7], Cost::Crash { effects: 1 });
}

#[test]
fn killed_in_its_second_run_as_well_an_idempotent_request_has_crashed() {
    let daemon = start("after-exec", 1, "workers.count = 1");
    let mut client = daemon.connect();
    for round in 1..=5 {
        (0..3).for_each(|_| client.request("ping", round));
        for _ in 0..3 {
            assert_crashed(&client.reply(), "ping");
        }
        assert_eq!(daemon.status().deaths_total, round * 6);
        assert_eq!(daemon.status().reruns_total, round * 3);
    }
    assert!(!daemon.stderr().contains("its successor starts in"), "they were killed for what they executed");
}

#[test]
fn killed_when_replies_are_not_taken_each_arrives_once_and_whole() {
    const REPLIES: usize = 24;
    let length = |number: usize| 300_000 + number;
    for point in ["before-write", "amid-write", "after-write", "amid-parking", "after-parking", "before-end"] {
        let daemon = start(point, 3, BOTH);
        for address in daemon.addresses() {
            let mut client = Client::connect(address);
            let mut writer = client.writer();
            let requests: Vec<Vec<u8>> = (0..REPLIES).map(|number| client.frame(ping_of(length(number)))).collect();
            let writing = thread::spawn(move || requests.iter().try_for_each(|frame| writer.write_all(frame)));
            daemon.wait_until("a reply does not fit any more", |s| s.workers.iter().any(|w| w.parked_bytes > 0));
            for number in 0..REPLIES {
                assert!(client.receive() == pong_of(length(number)), "{point} {address}: reply {number}");
            }
            writing.join().expect("no panic").expect("the daemon reads all");
        }
        let status = daemon.status();
        assert_eq!(status.lost_total, 0, "{point}");
        assert!(status.deaths_total > 2, "{point}: {} deaths", status.deaths_total);
        daemon.wait_until("all clients have left", |status| status.clients == 0);
    }
}

/// Leases that a worker gives up itself, because it is worn out; the master hears of none.
#[test]
fn killed_while_giving_its_leases_up_a_worker_takes_nobody_along() {
    for times in 1..=3 {
        let daemon = start("in-drain", times, &format!("{BOTH}\nworkers.max-requests = 7"));
        let mut clients: Vec<Client> = (0..4).map(|index| Client::connect(&daemon.addresses()[index % 2])).collect();
        let halves = ask_for_halves(&daemon);
        for round in 0..15 {
            for (index, client) in clients.iter_mut().enumerate() {
                (0..3).for_each(|step| client.request("ping", json!([round, index, step])));
            }
            for (index, client) in clients.iter_mut().enumerate() {
                for step in 0..3 {
                    assert_eq!(client.reply().value().expect("a result"), json!([round, index, step]));
                }
            }
        }
        expect_halves(halves);
        let status = daemon.wait_until("the others have left", |status| status.clients == 4);
        assert_eq!((status.lost_total, status.errors_total), (0, 0));
        let kills = daemon.stderr().matches("killed by signal 9").count();
        assert!(kills >= 10, "{kills} kills in drain");
    }
}

/// Leases that the master took, in every way that it does so.
#[test]
fn killed_while_it_is_drained_a_worker_takes_nobody_along() {
    let daemon = start("in-drain", 1, BOTH);
    daemon.wait_for_workers();
    let mut clients: Vec<Client> = (0..6).map(|index| Client::connect(&daemon.addresses()[index % 2])).collect();
    let mut ping_all = |round: usize| {
        for client in &mut clients {
            assert_eq!(client.call("ping", round).expect("a result"), round);
        }
    };
    let halves = ask_for_halves(&daemon);
    for round in 0..4 {
        ping_all(round);
        daemon.reload().expect("applied");
        daemon.ctl("recycle").expect("all are replaced");
        daemon.ctl_with("scale", json!({ "count": 2 })).expect("one more");
        ping_all(round);
        daemon.ctl_with("scale", json!({ "count": 1 })).expect("one less");
        ping_all(round);
    }
    expect_halves(halves);
    let status = daemon.wait_until("the others have left", |status| status.clients == 6);
    assert_eq!((status.lost_total, status.errors_total), (0, 0));
    assert!(daemon.stderr().contains("killed by signal 9"));
}

#[test]
fn killed_after_it_has_ended_a_client_that_client_is_gone_and_no_other() {
    for times in [1, 2] {
        let daemon = start("after-closed", times, BOTH);
        let mut stays = daemon.connect();
        let mut deaths = 0;
        for round in 0..10 {
            let mut leaves = Client::connect(&daemon.addresses()[round % 2]);
            leaves.request("ping", round);
            leaves.finish();
            assert_eq!(leaves.reply().value().expect("a result"), round);
            leaves.expect_end();
            assert_eq!(stays.call("ping", round).expect("a result"), round);
            if (round + 1).is_multiple_of(times as usize) {
                deaths += 1;
            }
            let status = daemon.wait_until("it is gone", |status| status.clients == 1 && status.deaths_total == deaths);
            assert_eq!(status.lost_total, 0);
        }
        drop(stays);
        daemon.wait_until("all have left", |status| status.clients == 0);
    }
}

/// Nobody's daemon is to die because of a variable.
#[test]
fn a_release_build_has_no_kill_points() {
    let holds = |program: &Path| {
        let bytes = fs::read(program).unwrap_or_else(|e| panic!("cannot read {}: {e}", program.display()));
        bytes.windows(VARIABLE.len()).any(|window| window == VARIABLE.as_bytes())
    };
    let debug = Path::new(FDPASSD);
    assert_eq!(holds(debug), cfg!(debug_assertions), "{}", debug.display());
    let release = debug.parent().and_then(Path::parent).expect("target/PROFILE/fdpassd").join("release/fdpassd");
    if !release.exists() {
        return skip("there is no release build beside this one");
    }
    assert!(!holds(&release), "{} can be made to die", release.display());
}

const VARIABLE: &str = "FDPASSD_DIE_AT";

/// One worker, so that each death is met; both kinds of sockets.
const BOTH: &str = "listen = [\"127.0.0.1:0\", \"unix:{dir}/rpc.sock\"]\nworkers.count = 1";

const ROUNDS: usize = 16;

#[track_caller]
fn start(point: &str, times: u32, config: &str) -> Running {
    let setup = Setup::new(example("faulty"), config).variable(VARIABLE, format!("{point}:{times}"));
    setup.start().expect("the daemon serves")
}

/// Over either kind of socket, pipelined requests around those with a side effect are answered as they should be.
#[track_caller]
fn assert_outcome(point: &str, times: &[u32], cost: Cost) {
    for times in times {
        let daemon = start(point, *times, BOTH);
        let mut deaths = 0;
        for address in daemon.addresses() {
            let mut crashed = 0;
            println!("{point}:{times} over {address}");
            let mut client = Client::connect(address);
            let halves = ask_for_halves(&daemon);
            let file = daemon.directory().join(format!("counts-{}", address.to_string().len()));
            for round in 0..ROUNDS {
                crashed += converse(&mut client, round, &file, cost);
            }
            expect_halves(halves);
            let status = daemon.status();
            assert_eq!(status.lost_total, 0, "{point}:{times} {address}");
            assert_eq!((status.closed_for_crashes_total, status.quarantined.len()), (0, 0));
            // As often as the point is come to, or every third time at the least.
            assert!(status.deaths_total >= deaths + 4, "{point}:{times} {address}: {} deaths", status.deaths_total);
            assert_eq!(crashed > 0, cost != Cost::Nothing, "{point}:{times} {address}: {crashed} crashed");
            deaths = status.deaths_total;
        }
        daemon.wait_until("all clients have left", |status| status.clients == 0);
    }
}

/// Pings and counted requests in turn, the bytes cut in two somewhere in the middle of a frame: the second part comes
/// when all that was whole is answered. Returns how many of the counted ones have crashed.
#[track_caller]
fn converse(client: &mut Client, round: usize, file: &Path, cost: Cost) -> usize {
    let name = |step: usize| format!("{round}.{step}");
    let frames: Vec<Vec<u8>> = (0..5)
        .map(|step| match step % 2 {
            0 => client.frame(json!({ "in": "ping", "params": [round, step] }).to_string()),
            _ => client.frame(json!({ "in": "count", "params": [file, name(step)] }).to_string()),
        })
        .collect();
    let ends: Vec<usize> =
        frames.iter().scan(0, |end, frame| Some(*end + frame.len()).inspect(|e| *end = *e)).collect();
    let all = frames.concat();
    let cut = all.len() * round / ROUNDS;
    client.send(&all[..cut]);
    let whole = ends.iter().filter(|end| **end <= cut).count();
    let mut replies: Vec<Reply> = (0..whole).map(|_| client.reply()).collect();
    client.send(&all[cut..]);
    replies.extend((whole..5).map(|_| client.reply()));

    let written = fs::read_to_string(file).unwrap_or_default();
    let mut effects: HashMap<&str, usize> = HashMap::new();
    written.lines().for_each(|line| *effects.entry(line).or_default() += 1);
    let mut crashed = 0;
    for (step, reply) in replies.iter().enumerate() {
        if step % 2 == 0 {
            assert_eq!(reply.value().expect("a ping is run again"), json!([round, step]), "one reply each, in order");
            continue;
        }
        let effects = effects.get(name(step).as_str()).copied().unwrap_or(0);
        match (reply.name.as_str(), cost) {
            ("count_r", _) => assert_eq!(effects, 1, "request {} was answered", name(step)),
            (_, Cost::Crash { effects: expected }) => {
                assert_crashed(reply, "count");
                assert_eq!(effects, expected, "request {} has crashed", name(step));
                crashed += 1;
            }
            (_, Cost::Nothing) => panic!("request {}: {reply:?}", name(step)),
        }
    }
    crashed
}

#[track_caller]
fn assert_crashed(reply: &Reply, method: &str) {
    let fault = reply.value().expect_err("its worker was killed in it");
    assert_eq!(fault.to_string(), format!("crashed: the worker that ran this request died in method {method:?}"));
}

/// Clients that have sent half a frame, of which the daemon keeps the bytes through all that comes.
#[track_caller]
fn ask_for_halves(daemon: &Running) -> Vec<(Client, Vec<u8>)> {
    let half = |(address, length): (_, usize)| {
        let mut client = Client::connect(address);
        let frame = client.frame(ping_of(length));
        client.send(&frame[..length / 2]);
        (client, frame[length / 2..].to_vec())
    };
    daemon.addresses().iter().zip([100, 3_000]).map(half).collect()
}

/// Completes them.
#[track_caller]
fn expect_halves(halves: Vec<(Client, Vec<u8>)>) {
    for ((mut client, rest), length) in halves.into_iter().zip([100, 3_000]) {
        client.send(rest);
        assert!(client.receive() == pong_of(length), "half a frame of {length} bytes is answered when it is whole");
    }
}
