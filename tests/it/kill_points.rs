//! Workers that die just there, wherever that is: each point of `src/worker/kill_points.rs`, with what becomes of the
//! requests.

use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use fdpassd::proto::names::Address;
use fdpassd::testing::{Client, Running, ServiceManager, Setup};
use serde_json::{Value, json};

use crate::common::metrics::assert_counted;
use crate::common::program::{FDPASSCTL, OtherUser, Program, Said};
use crate::common::{FDPASSD, faulty, ping_of, pong_of};

const ROUNDS: usize = 12;

/// Of each round.
const REQUESTS: usize = 5;

fn start(point: &str, n: u32) -> Running {
    start_with(point, n, "")
}

fn start_with(point: &str, n: u32, fault: &str) -> Running {
    let config = "listen = [\"127.0.0.1:0\", \"unix:{dir}/rpc.sock\"]\nworkers.count = 2";
    let setup = Setup::new(faulty::example("faulty"), config)
        .variable("FDPASSD_DIE_AT", format!("{point}:{n}"));
    let setup = setup.variable("FAULTY", fault);
    let daemon = setup.start().expect("the daemon serves");
    daemon.wait_for_workers();
    daemon
}

/// Pings, large ones that come in parts, and requests that count, each with a number, from one client. Returns the
/// number of each that counts and whether it got its result; all else has to be as if nothing had happened.
///
/// If `is_executing`, a ping may have crashed: two workers that both come to their last passing with it are all it
/// takes.
fn talk(
    address: &Address,
    name: &str,
    counts: &Path,
    is_executing: bool,
) -> (HashMap<String, bool>, u64) {
    let mut crashed = 0;
    let is_crash =
        |reply: &[u8]| reply.starts_with(br#"{"out":"error","result":{"code":"crashed""#);
    let mut expect = |reply: Vec<u8>, expected: Vec<u8>| {
        crashed += u64::from(is_crash(&reply));
        let shown = String::from_utf8_lossy(&reply[..reply.len().min(200)]);
        assert!(
            reply == expected || (is_executing && is_crash(&reply)),
            "{name}: this came: {shown}"
        );
    };
    let mut client = Client::connect(address);
    let mut counted = HashMap::new();
    for round in 0..ROUNDS {
        let large = 280_000 + round;
        let number = format!("{name}{round}");
        let ping = |index: usize| format!(r#"{{"in":"ping","params":"{number} {index}"}}"#);
        let count = format!(r#"{{"in":"count","params":{}}}"#, json!([counts, number]));
        let bodies: [String; REQUESTS] = [ping(0), count, ping(1), ping_of(large), ping(2)];
        let frames: Vec<u8> = bodies.iter().flat_map(|body| client.frame(body)).collect();
        let mut writer = client.writer();
        let writing = thread::spawn(move || writer.write_all(&frames));
        let pong =
            |index: usize| format!(r#"{{"out":"pong","result":"{number} {index}"}}"#).into_bytes();
        expect(client.receive(), pong(0));
        let reply = client.receive();
        let is_result = reply == br#"{"out":"count_r","result":null}"#;
        assert!(
            is_result || is_crash(&reply),
            "{}",
            String::from_utf8_lossy(&reply)
        );
        counted.insert(number.clone(), is_result);
        expect(client.receive(), pong(1));
        expect(client.receive(), pong_of(large));
        expect(client.receive(), pong(2));
        writing
            .join()
            .expect("no panic")
            .expect("the connection stays");
    }
    crashed += counted.values().filter(|is_result| !**is_result).count() as u64;
    (counted, crashed)
}

/// Lets clients of both kinds talk while workers die at this point, each at its `n`-th passing. Returns, for each
/// request that counts, whether it got its result and how often it was done. The daemon has counted every reply, and
/// each once.
#[track_caller]
fn outcomes(point: &str, n: u32, is_executing: bool) -> Vec<(bool, usize)> {
    outcomes_with("", point, n, is_executing)
}

/// The same, of workers with this fault.
#[track_caller]
fn outcomes_with(fault: &str, point: &str, n: u32, is_executing: bool) -> Vec<(bool, usize)> {
    let daemon = start_with(point, n, fault);
    let counts: PathBuf = daemon.directory().join("counts");
    let talks: Vec<(HashMap<String, bool>, u64)> = thread::scope(|threads| {
        let talks = daemon.addresses().iter().zip(["tcp", "unix"]);
        let talks: Vec<_> = talks
            .map(|(to, name)| threads.spawn(|| talk(to, name, &counts, is_executing)))
            .collect();
        talks
            .into_iter()
            .map(|talk| talk.join().expect("nobody is answered wrongly"))
            .collect()
    });
    let status = daemon.wait_until("all have left", |status| status.clients == 0);
    assert!(status.deaths_total > 0, "nobody died at {point}");
    assert_eq!((status.lost_total, status.closed_for_crashes_total), (0, 0));
    let crashed = talks.iter().map(|(_, crashed)| crashed).sum();
    assert_counted(&daemon, (talks.len() * ROUNDS * REQUESTS) as u64, crashed);
    let counted: HashMap<String, bool> =
        talks.into_iter().flat_map(|(counted, _)| counted).collect();
    let lines = fs::read_to_string(&counts).unwrap_or_default();
    let times = |number: &str| lines.lines().filter(|line| *line == number).count();
    counted
        .iter()
        .map(|(number, is_result)| (*is_result, times(number)))
        .collect()
}

/// At these points no request is executing: no client notices, and everything was done once.
#[track_caller]
fn no_client_notices(point: &str, n: u32) {
    let outcomes = outcomes(point, n, false);
    assert!(
        outcomes.iter().all(|outcome| *outcome == (true, 1)),
        "{point}: {outcomes:?}"
    );
}

/// At these points one is: it crashes, and was executed this number of times.
#[track_caller]
fn callers_get_crashed(point: &str, n: u32, done: usize) {
    let outcomes = outcomes(point, n, true);
    assert!(
        outcomes
            .iter()
            .all(|outcome| [(true, 1), (false, done)].contains(outcome)),
        "{point}: {outcomes:?}"
    );
    assert!(
        outcomes.contains(&(false, done)),
        "{point}: none was executing"
    );
}

#[test]
fn a_death_after_the_claim_is_not_noticed() {
    no_client_notices("after-claim", 3);
}

#[test]
fn a_death_after_the_turn_begins_is_not_noticed() {
    no_client_notices("after-begin", 3);
}

#[test]
fn a_death_after_a_read_is_not_noticed() {
    no_client_notices("after-receive", 3);
}

#[test]
fn a_death_before_the_handler_is_not_noticed() {
    no_client_notices("before-handler", 3);
}

#[test]
fn a_death_before_the_effect_is_answered_with_crashed() {
    callers_get_crashed("after-exec", 7, 0);
}

#[test]
fn a_death_after_the_effect_is_answered_with_crashed() {
    callers_get_crashed("after-handler", 7, 1);
}

#[test]
fn a_death_before_the_commit_is_answered_with_crashed() {
    callers_get_crashed("before-commit", 7, 1);
}

#[test]
fn a_death_after_the_commit_is_not_noticed() {
    for n in [1, 3, 4] {
        no_client_notices("after-commit", n);
    }
}

/// One store commits the reply and closes the connection to further ones.
#[test]
fn a_death_at_the_last_reply_loses_none() {
    for point in ["before-commit", "after-commit"] {
        for index in 0..2 {
            // A worker that has answered a ping dies at the next reply; the one after it does not.
            let daemon = start(point, 2);
            let mut client = Client::connect(&daemon.addresses()[index]);
            assert_eq!(client.call("ping", 1), Ok(Value::from(1)));
            client.send(u32::MAX.to_le_bytes());
            let fault = client.reply().value().expect_err("it is too large");
            assert_eq!(fault.code(), "too_large", "{point}");
            client.expect_end();
            let status = daemon.status();
            let deaths = (status.deaths_total, status.lost_total);
            assert_eq!(deaths, (1, 0), "{point}");
        }
    }
}

#[test]
fn a_death_after_the_count_is_not_noticed() {
    no_client_notices("after-answered", 3);
}

#[test]
fn a_death_before_a_write_is_not_noticed() {
    no_client_notices("before-write", 2);
}

#[test]
fn a_death_amid_a_write_is_not_noticed() {
    no_client_notices("amid-write", 2);
}

#[test]
fn a_death_after_a_write_is_not_noticed() {
    no_client_notices("after-write", 2);
}

/// Returns how many accounts of writes a process has open.
fn open_accounts(pid: u32) -> usize {
    let open = fs::read_dir(format!("/proc/{pid}/fd")).expect("it runs");
    let files = open.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    files.filter(|file| file.ends_with("io")).count()
}

#[test]
fn a_master_opens_the_accounts_of_workers_for_unix_sockets() {
    for (listen, of_master) in [("127.0.0.1:0", 0), ("unix:{dir}/rpc.sock", 2)] {
        let manager = ServiceManager::new();
        let config = format!("listen = [\"{listen}\"]\nworkers.count = 2");
        let daemon = manager.setup(FDPASSD, &config).start().expect("it serves");
        daemon.wait_for_workers();
        assert_eq!(open_accounts(daemon.pid()), of_master, "{listen}");
        for pid in daemon.worker_pids() {
            assert_eq!(open_accounts(pid), 1, "{listen}");
        }
    }
}

/// A worker has its account opened when it gets its first Unix client, if it has started without a Unix socket.
#[test]
fn a_unix_client_without_a_listener_outlives_deaths_amid_writes() {
    for point in ["before-write", "amid-write", "after-write"] {
        let daemon = start(point, 2);
        let mut client = Client::connect(&daemon.addresses()[1]);
        assert_eq!(client.call("ping", 1).expect("a result"), 1);
        let without = "listen = [\"127.0.0.1:0\"]\nworkers.count = 2";
        daemon.reload_with(without).expect("it is applied");
        daemon.wait_until("the first workers are gone", |s| s.leaving.is_empty());
        let deaths = daemon.status().deaths_total;
        for length in (0..ROUNDS).map(|round| 280_000 + round) {
            client.send_frame(ping_of(length));
            assert!(client.receive() == pong_of(length), "{point}: {length}");
        }
        let status = daemon.status();
        assert!(status.deaths_total > deaths, "nobody died at {point}");
        assert_eq!((status.clients, status.lost_total), (1, 0), "{point}");
    }
}

/// The kernel's count of what a process writes is of all its threads, and of its children.
#[test]
fn a_death_amid_writes_of_another_thread_is_not_noticed() {
    for point in ["before-write", "amid-write", "after-write"] {
        let outcomes = outcomes_with("writer", point, 2, false);
        assert!(
            outcomes.iter().all(|outcome| *outcome == (true, 1)),
            "{point}: {outcomes:?}"
        );
    }
}

/// Once a process is dead, only root can open its account.
#[test]
fn a_death_amid_a_write_is_not_noticed_under_another_user() {
    let Some(nobody) = OtherUser::new() else {
        return;
    };
    let directory = nobody.directory();
    let (socket, control) = (directory.join("rpc.sock"), directory.join("control.sock"));
    let config = directory.join("config.toml");
    let text = format!(
        "listen = [{:?}]\nworkers.count = 2\ncontrol.socket = {control:?}\n",
        format!("unix:{}", socket.display())
    );
    fs::write(&config, text).expect("it is our directory");
    let address: Address = format!("unix:{}", socket.display())
        .parse()
        .expect("an address");
    for point in ["before-write", "amid-write", "after-write"] {
        let mut daemon = Program::start(
            nobody
                .command(faulty::example("faulty"), 65_534)
                .arg("-c")
                .arg(&config)
                .env("FDPASSD_DIE_AT", format!("{point}:2")),
        );
        assert!(daemon.line().contains(" listens on "));
        let counts = directory.join(point);
        let (counted, crashed) = talk(&address, point, &counts, false);
        assert_eq!((counted.len(), crashed), (ROUNDS, 0), "{point}");
        let said = ctl_at(&control, &["status", "--json"]);
        let status: Value = serde_json::from_str(&said.out).expect("JSON");
        assert!(status["deaths_total"].as_u64() > Some(0), "{point}");
        assert_eq!(status["lost_total"], 0, "{point}");
        assert_eq!(ctl_at(&control, &["stop"]).code, Some(0));
        assert_eq!(daemon.finish().code, Some(0));
    }
}

fn ctl_at(control: &Path, arguments: &[&str]) -> Said {
    let mut command = Command::new(FDPASSCTL);
    command.arg("--socket").arg(control).args(arguments);
    Program::start(&mut command).finish()
}

/// The account of a thread that is not the first one is gone when its worker is: the client that was written to is
/// closed.
#[test]
fn a_death_amid_an_unaccounted_write_closes_the_client() {
    for point in ["before-write", "after-write"] {
        // A program that runs the daemon in a second thread cannot be forked.
        let config =
            "listen = [\"unix:{dir}/rpc.sock\"]\nworkers = { count = 1, start = \"exec\" }";
        let setup = Setup::new(faulty::example("faulty"), config)
            .variable("FDPASSD_DIE_AT", format!("{point}:2"));
        let daemon = setup
            .variable("FAULTY", "second-thread")
            .start()
            .expect("the daemon serves");
        let [mut idle, mut caller] = [daemon.connect(), daemon.connect()];
        assert_eq!(idle.call("ping", 1).expect("a result"), 1);
        caller.request("ping", 2);
        if point == "after-write" {
            assert_eq!(caller.receive(), br#"{"out":"pong","result":2}"#);
        }
        caller.expect_end();
        assert_eq!(idle.call("ping", 3).expect("a result"), 3);
        let status = daemon.status();
        assert_eq!(
            (status.clients, status.lost_total, status.deaths_total),
            (1, 1, 1),
            "{point}"
        );
    }
}

#[test]
fn a_death_amid_parking_is_not_noticed() {
    no_client_notices("amid-parking", 2);
}

#[test]
fn a_death_after_parking_is_not_noticed() {
    no_client_notices("after-parking", 2);
}

#[test]
fn a_death_before_the_turn_ends_is_not_noticed() {
    no_client_notices("before-end", 2);
}

#[test]
fn a_death_between_release_and_report_loses_no_client() {
    let daemon = start("in-retirement", 1);
    let mut clients: Vec<Client> = daemon
        .addresses()
        .iter()
        .cycle()
        .take(20)
        .map(Client::connect)
        .collect();
    let whole = clients[0].frame(ping_of(50_000));
    for round in 0..3 {
        for client in &mut clients {
            client.send(&whole[..30_000]);
        }
        // The first 4 KiB of each client are not counted.
        daemon.wait_until("all have parked", |s| {
            s.workers.iter().map(|w| w.parked_bytes).sum::<u64>() >= 20 * 25_900
        });
        daemon.ctl("recycle").expect("successors serve");
        for client in &mut clients {
            client.send(&whole[30_000..]);
            assert!(client.receive() == pong_of(50_000), "round {round}");
        }
    }
    let status = daemon.status();
    assert!(status.deaths_total > 0);
    assert_eq!((status.clients, status.lost_total), (20, 0));
}

#[test]
fn a_death_between_close_and_report_loses_no_client() {
    let daemon = start("after-closed", 2);
    for round in 0..20 {
        let mut client = Client::connect(&daemon.addresses()[round % 2]);
        assert_eq!(client.call("ping", round).expect("a result"), round);
        client.finish();
        client.expect_end();
    }
    let status = daemon.wait_until("all have left", |status| status.clients == 0);
    assert!(status.deaths_total > 0);
    assert_eq!(status.lost_total, 0);
}

/// As a death there, with a line that has the place. Nothing that `main` owns is dropped.
#[test]
fn a_panic_of_the_loop_is_logged_and_ends_the_worker_at_once() {
    for start in ["exec", "fork"] {
        let place = tempfile::tempdir().expect("a directory");
        let drops = place.path().join("drops");
        let config = format!("workers.count = 1\nworkers.start = \"{start}\"");
        let daemon = Setup::new(faulty::example("faulty"), &config)
            .variable("FDPASSD_DIE_AT", "before-handler:3:panic")
            .variable("FAULTY_DROPS", &drops)
            .start()
            .expect("the daemon serves");
        daemon.wait_for_workers();
        let first = daemon.worker_pids()[0];
        let mut client = daemon.connect();
        for n in 0..3 {
            assert_eq!(client.call("ping", n).expect("a result"), n);
        }
        daemon.wait_for_log("this worker ends: its loop panicked at ");
        let status = daemon.wait_until("its death is counted", |s| s.deaths_total == 1);
        assert_eq!(status.lost_total, 0);
        let dropped = fs::read_to_string(drops).unwrap_or_default();
        assert!(
            !dropped.lines().any(|pid| pid == first.to_string()),
            "{start}: {dropped:?}"
        );
    }
}

#[test]
fn an_unknown_kill_point_is_refused() {
    let setup = Setup::new(faulty::example("faulty"), "workers.count = 1")
        .variable("FDPASSD_DIE_AT", "nowhere:1");
    let error = setup.start().expect_err("no worker starts");
    assert_eq!(error.code(), Some(70));
    assert!(error.stderr().contains("nowhere"), "{error}");
}
