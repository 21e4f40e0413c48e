//! Memory: a daemon in a memory cgroup of its own, where the kernel kills what is above the limit; and what a core dump
//! has of it.

use std::fs;
use std::io::Write;

use fdpassd::testing::{Client, Running, ServiceManager, Setup, eventually};

use crate::app_deaths;
use crate::common::cgroup::MemoryCgroup;
use crate::common::needs::{skip, skip_part};
use crate::common::{FDPASSD, kernel, ping_of, pong_of, start};

const MIB: u64 = 1 << 20;

/// Clients, and how much of its frame each of them sends first: more than the limits of these tests, all together.
const CLIENTS: usize = 300;
const LENGTH: usize = 800_000;
const HALF: usize = LENGTH / 2;

fn with_half_frames(daemon: &Running) -> Vec<Client> {
    let clients = (0..CLIENTS).map(|_| daemon.connect());
    clients.map(with_half_a_frame).collect()
}

/// The same. Each client is served before the next one connects, so the workers get them strictly in turn.
fn with_half_frames_in_turn(daemon: &Running) -> Vec<Client> {
    let connect = |_| {
        let mut client = daemon.connect();
        assert_eq!(client.call("ping", 1).expect("a result"), 1);
        client
    };
    (0..CLIENTS).map(connect).map(with_half_a_frame).collect()
}

fn with_half_a_frame(mut client: Client) -> Client {
    let frame = client.frame(ping_of(LENGTH));
    client.send(&frame[..HALF]);
    client
}

/// Each client either has been refused with `overloaded`, or sends the rest of its frame and gets its reply. Returns
/// how many have got one.
#[track_caller]
fn finish(clients: &mut [Client]) -> usize {
    let finish = |client: &mut Client| {
        if !client.has_something() {
            let frame = client.frame(ping_of(LENGTH));
            // It may be refused just now.
            let _ = client.writer().write_all(&frame[HALF..]);
        }
        let reply = client.receive();
        if reply == pong_of(LENGTH) {
            return true;
        }
        let overloaded = br#"{"out":"error","result":{"code":"overloaded""#;
        assert!(
            reply.starts_with(overloaded),
            "{:?}",
            String::from_utf8_lossy(&reply[..reply.len().min(200)])
        );
        client.expect_end();
        false
    };
    clients
        .iter_mut()
        .map(finish)
        .filter(|is_served| *is_served)
        .count()
}

#[test]
fn out_of_memory_in_its_own_cgroup_loses_no_client() {
    let Some(cgroup) = MemoryCgroup::new(80 * MIB) else {
        return;
    };
    // Far above what there is.
    let config = "workers.count = 2\nlimits = { buffers = \"256MiB\", frame-timeout = \"none\" }";
    let mut daemon = cgroup.setup(FDPASSD, config).start().expect("it serves");
    let mut clients = with_half_frames(&daemon);
    let served = finish(&mut clients);
    let status = daemon.status();
    println!(
        "{served} of {CLIENTS} served; {} deaths, {} moved",
        status.deaths_total, status.moved_total
    );
    assert_eq!(status.lost_total, 0, "{}", daemon.stderr());
    assert!(
        status.deaths_total > 0,
        "nothing died: the limit is not that of the test"
    );
    assert!(served * HALF > 30 << 20, "what fits stays: {served}");
    assert!(
        daemon.stderr().contains(", the kernel was out of memory"),
        "{}",
        daemon.stderr()
    );
    drop(clients);
    daemon.signal("TERM");
    assert_eq!(daemon.wait().code(), Some(0));
}

#[test]
fn a_lack_of_memory_elsewhere_explains_no_death() {
    let Some(elsewhere) = MemoryCgroup::new(20 * MIB) else {
        return;
    };
    let daemon = Running::start(FDPASSD, "workers.count = 1").expect("it serves");
    elsewhere.kill_one();
    daemon.signal_worker(0, "KILL");
    let worker = daemon.wait_until("the worker is replaced", |status| status.deaths_total == 1);
    let death = worker.workers[0].last_death.clone();
    assert_eq!(death.as_deref(), Some("killed by signal 9 (SIGKILL)"));
}

#[test]
fn auto_buffers_stay_below_the_limit_and_follow_it_at_a_reload() {
    let Some(cgroup) = MemoryCgroup::new(160 * MIB) else {
        return;
    };
    let daemon = cgroup
        .setup(
            FDPASSD,
            // Each worker gets half of the clients.
            "workers = { count = 2, dispatch = \"round-robin\" }\nlimits.frame-timeout = \"none\"",
        )
        .start()
        .expect("it serves");
    let status = daemon.wait_for_workers();
    assert_eq!(status.memory_limit, Some(160 * MIB));
    assert!(
        (30 * MIB..=40 * MIB).contains(&status.buffers),
        "a quarter each of what is left: {}",
        status.buffers
    );
    let mut clients = with_half_frames_in_turn(&daemon);
    let served = finish(&mut clients);
    assert!(
        served * HALF > 40 << 20 && served < CLIENTS,
        "{served} of {CLIENTS}"
    );
    drop(clients);
    let status = daemon.wait_until("all have left", |status| status.clients == 0);
    assert_eq!(
        (status.deaths_total, status.lost_total),
        (0, 0),
        "{}",
        daemon.stderr()
    );

    cgroup.set_limit(480 * MIB);
    daemon.reload().expect("it is applied");
    let status = daemon.status();
    assert_eq!(status.memory_limit, Some(480 * MIB));
    assert!(
        (100 * MIB..=120 * MIB).contains(&status.buffers),
        "{}",
        status.buffers
    );
    let shown = daemon.ctl("config").expect("it is shown").to_string();
    let buffers = format!(r#"\"auto\" # \"{}MiB\""#, status.buffers / MIB);
    assert!(shown.contains(&buffers), "{buffers}: {shown}");
    // Now all of them fit.
    let mut clients = with_half_frames_in_turn(&daemon);
    assert_eq!(finish(&mut clients), CLIENTS);
}

/// Most bytes that a worker may keep of short connections: those of the allocator, which vary.
const LEFT_BYTES: u64 = 96 << 10;

#[test]
fn short_connections_leave_no_timers_in_a_worker() {
    const SHORT: usize = 15_000;
    // Timers of an hour, none of which ends during the test.
    let config =
        "listen = [\"unix:{dir}/rpc.sock\"]\nworkers.count = 1\nlimits.idle-timeout = \"1h\"";
    let daemon = start(config);
    let worker = daemon.worker_pids()[0];
    let mut stays: Vec<Client> = (0..8).map(|_| daemon.connect()).collect();
    stays
        .iter_mut()
        .for_each(|client| assert_eq!(client.call("ping", 1).expect("a result"), 1));
    let pass = |clients: usize| {
        for i in 0..clients {
            assert_eq!(daemon.connect().call("ping", i).expect("a result"), i);
        }
    };
    pass(2_000);
    let before = kernel::memory(worker);
    pass(SHORT);
    let left = kernel::memory(worker).saturating_sub(before);
    assert!(
        left <= LEFT_BYTES,
        "{SHORT} clients that left cost {left} bytes"
    );
    daemon.wait_until("the others have left", |status| status.clients == 8);
}

fn oom_score(pid: impl std::fmt::Display) -> i32 {
    let text = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).expect("it runs");
    text.trim().parse().expect("a number")
}

/// Whether this process may protect itself, as root may.
fn may_protect() -> bool {
    let status = fs::read_to_string("/proc/self/status").expect("status");
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = u64::from_str_radix(effective.expect("a set").trim(), 16).expect("a number");
    const CAP_SYS_RESOURCE: u64 = 1 << 24;
    effective & CAP_SYS_RESOURCE != 0
}

/// Checks the scores of a daemon whose own was `score` at its start.
fn check_scores(daemon: &Running, score: i32) {
    daemon.wait_for_workers();
    let master = if may_protect() { -1000 } else { score };
    assert_eq!(oom_score(daemon.pid()), master);
    let base = score.max(0);
    let workers = daemon.worker_pids();
    let of_worker = (base + 500).min(1000);
    for worker in &workers {
        assert_eq!(oom_score(worker), of_worker);
    }
    let children = |pid: u32| -> Vec<u32> {
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        let children = children.unwrap_or_default();
        children
            .split_whitespace()
            .filter_map(|pid| pid.parse().ok())
            .collect()
    };
    for app in workers.iter().flat_map(|worker| children(*worker)) {
        assert_eq!(oom_score(app), of_worker, "as its worker");
    }
    // The exporter raises its score soon after its start.
    let zygotes = usize::from(daemon.status().zygote.is_some());
    eventually("two workers and the exporter with higher scores", || {
        // A worker of the first program may end during this.
        let score = |pid: &u32| fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).ok();
        let children = children(daemon.pid());
        let scores: Option<Vec<String>> = children.iter().map(score).collect();
        let scores = scores?;
        let is_higher = |score: &String| score.trim().parse::<i32>().is_ok_and(|s| s > base);
        (scores.len() == 3 + zygotes && scores.iter().all(is_higher)).then_some(())
    });
}

#[test]
fn the_kernel_kills_workers_and_apps_and_never_the_master() {
    let Some(config) = app_deaths::config(2, 1, "metrics.listen = \"127.0.0.1:0\"") else {
        return;
    };
    // As a service manager sets it: it lowers the score of a master that must not be killed.
    let scores = [oom_score("self"), 200, -1000];
    for score in scores {
        if score < oom_score("self") && !may_protect() {
            skip_part(
                "lower-oom-score",
                "without CAP_SYS_RESOURCE no score can be lowered",
            );
            continue;
        }
        let set = "echo \"$0\" >/proc/self/oom_score_adj && exec \"$@\"";
        let setup = Setup::new("sh", &config).argument("-c").argument(set);
        let setup = setup.argument(score.to_string()).argument(FDPASSD);
        let daemon = setup.start().expect("it serves");
        check_scores(&daemon, score);
        // The next program knows the score that the first one had.
        daemon.ctl("upgrade").expect("it is the same program");
        check_scores(&daemon, score);
    }
}

/// Mappings of memory that master and workers share, each with its flags.
fn shared_mappings(pid: u32) -> Vec<(String, String)> {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).expect("it runs");
    let mut found = Vec::new();
    let mut name = String::new();
    for line in smaps.lines() {
        match line.split_once("VmFlags:") {
            Some((_, flags)) if name.contains("memfd:") => {
                found.push((name.clone(), flags.to_owned()))
            }
            Some(_) => {}
            // Lines about a mapping begin with a word and a colon, its own line with an address.
            None if line
                .split_once(' ')
                .is_some_and(|(first, _)| !first.ends_with(':')) =>
            {
                line.clone_into(&mut name)
            }
            None => {}
        }
    }
    found
}

#[test]
fn memory_with_client_bytes_is_left_out_of_core_dumps() {
    let manager = ServiceManager::new();
    let daemon = manager
        .setup(FDPASSD, "workers.count = 2")
        .start()
        .expect("it serves");
    daemon.wait_for_workers();
    for (pid, least) in [
        (daemon.pid(), 2),
        (daemon.worker_pids()[0], 3),
        (daemon.worker_pids()[1], 3),
    ] {
        let mappings = shared_mappings(pid);
        assert!(mappings.len() >= least, "{pid}: {mappings:?}");
        for (name, flags) in mappings {
            assert!(flags.split(' ').any(|flag| flag == "dd"), "{name}: {flags}");
        }
    }
}

#[test]
fn a_core_file_of_a_worker_has_no_byte_of_a_client() {
    const WORDS: &str = "what-a-client-sends-is-its-own";
    let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap_or_default();
    if pattern.trim().is_empty() || pattern.contains(['|', '/', '@']) {
        return skip(
            "core-files",
            &format!(
                "core_pattern is {:?}, which writes no file beside the process",
                pattern.trim()
            ),
        );
    }
    let directory = tempfile::tempdir().expect("a directory");
    let enter = "ulimit -c unlimited && cd \"$0\" && exec \"$@\"";
    let setup = Setup::new("sh", "workers.count = 1")
        .argument("-c")
        .argument(enter)
        .argument(directory.path());
    let daemon = match setup.argument(FDPASSD).start() {
        Ok(daemon) => daemon,
        Err(e) => return skip("core-files", &format!("no core file may be written: {e}")),
    };
    daemon.wait_for_workers();
    let text = WORDS.repeat(10_000);
    let request = format!(r#"{{"in":"ping","params":"{text}"}}"#);
    let frames: Vec<Vec<u8>> = (0..100).map(|_| daemon.connect().frame(&request)).collect();
    let mut clients: Vec<Client> = frames.iter().map(|_| daemon.connect()).collect();
    let half = request.len() / 2;
    clients
        .iter_mut()
        .zip(&frames)
        .for_each(|(client, frame)| client.send(&frame[..half]));
    daemon.wait_until("all is parked", |status| {
        status.workers[0].parked_bytes > 90 * half as u64
    });

    daemon.signal_worker(0, "ABRT");
    let status = daemon.wait_until("the worker has died", |status| status.deaths_total == 1);
    daemon.wait_for_log("core dumped");
    let mut files = fs::read_dir(directory.path())
        .expect("it is ours")
        .flatten();
    let core = fs::read(files.next().expect("a core file").path()).expect("it is ours");
    let is_there = memory_in(&core).any(|memory| {
        memory
            .windows(WORDS.len())
            .any(|window| window == WORDS.as_bytes())
    });
    assert!(!is_there && core.len() < 64 << 20, "{} bytes", core.len());
    for (client, frame) in clients.iter_mut().zip(&frames) {
        client.send(&frame[half..]);
        assert_eq!(client.reply().name, "pong");
    }
    assert_eq!(status.lost_total, 0);
}

/// The memory that a core file contains: its segments of type PT_LOAD, see elf(5). Registers are in a note; after a
/// copy vector registers hold some of its bytes.
fn memory_in(core: &[u8]) -> impl Iterator<Item = &[u8]> {
    let number = |at: usize, length: usize| {
        let bytes = core[at..at + length].iter().rev();
        bytes.fold(0, |number, byte| number << 8 | usize::from(*byte))
    };
    assert!(
        core.starts_with(b"\x7fELF\x02\x01"),
        "64 bits, little-endian"
    );
    let (table, entry, count) = (number(32, 8), number(54, 2), number(56, 2));
    (0..count)
        .map(move |index| table + index * entry)
        .filter(move |at| number(*at, 4) == 1)
        .map(move |at| {
            let (offset, length) = (number(at + 8, 8), number(at + 32, 8));
            &core[offset..offset + length]
        })
}
