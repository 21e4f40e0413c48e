//! Everything at once, at random: and every request of every client is answered once, in order.

mod common;

use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use common::random::Random;
use common::{faulty, kernel, let_pass, settled};
use fdpassd::proto::control::{Status, Verdict, WorkerState};
use fdpassd::proto::frame::ByteOrder;
use fdpassd::testing::{Client, Running};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

const MAX_FRAME: u64 = 400_000;

/// The configurations that are reloaded, all for the same clients.
fn config(random: &mut Random) -> String {
    format!(
        r#"
        listen = [
            "127.0.0.1:0", {{ address = "127.0.0.2:0", byte-order = "big" }},
            {{ address = "127.0.0.3:0", byte-order = "auto", backlog = {backlog} }}, "unix:{{dir}}/rpc.sock",
        ]
        workers = {{ count = {count}, dispatch = "{dispatch}", max-requests = {most} }}
        limits = {{ max-frame = {max_frame}, stall-timeout = "{stall}", drain-timeout = "5s", max-clients = {clients} }}
        "#,
        backlog = 100 + random.below(1000),
        count = 1 + random.below(4),
        dispatch = random.pick(&["round-robin", "least-loaded"]),
        most = random.pick(&["\"none\"", "\"none\"", "100", "5000"]),
        max_frame = random.pick(&[MAX_FRAME, MAX_FRAME * 2]),
        stall = random.pick(&["30ms", "100ms", "1s"]),
        clients = 200 + random.below(100),
    )
}

/// What the clients have seen.
#[derive(Debug, Default)]
struct Seen {
    requests: u64,
    /// Idempotent ones that were executing at two deaths.
    crashed_twice: u64,
    /// Requests to count, and whether the reply was a result.
    counted: HashMap<String, bool>,
}

/// One client, until it is over.
struct Load<'a> {
    daemon: &'a Running,
    number: usize,
    random: Random,
    over: &'a AtomicBool,
    seen: &'a Mutex<Seen>,
    counts: &'a Path,
}

/// A request and what may be answered.
enum Expected {
    /// Just that, unless it crashed twice.
    Reply(String),
    /// An error with this code.
    Error(&'static str),
    /// A result, or `crashed`.
    Counted(String),
}

impl Load<'_> {
    fn connect(&mut self) -> Client {
        let listener = self.random.below(4) as usize;
        let order = match listener {
            1 => ByteOrder::Big,
            2 => self.random.pick(&[ByteOrder::Big, ByteOrder::Little]),
            _ => ByteOrder::Little,
        };
        Client::connect(&self.daemon.addresses()[listener]).in_order(order)
    }

    fn run(mut self) {
        let mut client = self.connect();
        let mut batch = 0;
        while !self.over.load(Ordering::Relaxed) {
            batch += 1;
            let is_last = self.random.below(40) == 0;
            self.converse(&mut client, batch, is_last);
            if is_last {
                client = self.connect();
            }
            if self.random.below(10) == 0 {
                let_pass(Duration::from_millis(self.random.below(30)));
            }
        }
    }

    /// Sends a batch of requests in pieces and checks the replies. The last batch of a connection ends with its end.
    fn converse(&mut self, client: &mut Client, batch: u64, is_last: bool) {
        let depth = 1 + self.random.below(8);
        let (mut bodies, mut expected) = (Vec::new(), Vec::new());
        for index in 0..depth {
            let (body, reply) = self.request(&format!("{}.{batch}.{index}", self.number));
            bodies.push(body);
            expected.push(reply);
        }
        let bytes: Vec<u8> = bodies.iter().flat_map(|body| client.frame(body)).collect();
        let longest = self.random.pick(&[3, 100, 5_000, 100_000, 1_000_000]);
        let piece = 1 + self.random.below(longest) as usize;
        let delays: Vec<u64> = (0..8).map(|_| self.random.below(40).saturating_sub(32)).collect();
        let mut writer = client.writer();
        thread::scope(|threads| {
            threads.spawn(move || {
                for (index, piece) in bytes.chunks(piece).enumerate() {
                    writer.write_all(piece).expect("the connection stays");
                    if let Some(delay) = delays.get(index).filter(|delay| **delay > 0) {
                        let_pass(Duration::from_millis(*delay));
                    }
                }
                if is_last {
                    writer.finish();
                }
            });
            for expected in &expected {
                let reply = String::from_utf8(client.receive()).expect("replies are text");
                self.check(expected, &reply);
            }
        });
        if is_last {
            client.expect_end();
        }
    }

    fn request(&mut self, number: &str) -> (String, Expected) {
        let size = match self.random.below(30) {
            0 => self.random.below(MAX_FRAME - 1000),
            1..5 => self.random.below(20_000),
            _ => self.random.below(60),
        };
        let filling = "z".repeat(size as usize);
        match self.random.below(20) {
            0 => ("{}".to_owned(), Expected::Error("bad_request")),
            1 => (format!(r#"{{"in":"nobody","params":"{number}"}}"#), Expected::Error("unknown_method")),
            2..5 if self.number % 3 == 0 => {
                let params = json!([self.counts, number]);
                (format!(r#"{{"in":"count","params":{params}}}"#), Expected::Counted(number.to_owned()))
            }
            _ => {
                let params = format!(r#"["{number}","{filling}"]"#);
                let reply = format!(r#"{{"out":"pong","result":{params}}}"#);
                (format!(r#"{{"in":"ping","params":{params}}}"#), Expected::Reply(reply))
            }
        }
    }

    #[track_caller]
    fn check(&self, expected: &Expected, reply: &str) {
        let is_error = |code: &str| reply.starts_with(&format!(r#"{{"out":"error","result":{{"code":"{code}""#));
        let mut seen = self.seen.lock().expect("nobody panics with it");
        seen.requests += 1;
        let is_right = match expected {
            Expected::Reply(_) if is_error("crashed") => {
                seen.crashed_twice += 1;
                true
            }
            Expected::Reply(expected) => reply == expected,
            Expected::Error(code) => is_error(code),
            Expected::Counted(number) => {
                let is_result = reply == r#"{"out":"count_r","result":null}"#;
                seen.counted.insert(number.clone(), is_result);
                is_result || is_error("crashed")
            }
        };
        drop(seen);
        let shown = |text: &str| text.chars().take(200).collect::<String>();
        let wanted = match expected {
            Expected::Reply(reply) => shown(reply),
            Expected::Error(code) => (*code).to_owned(),
            Expected::Counted(number) => format!("count of {number}"),
        };
        assert!(is_right, "client {}: {wanted} was expected, this came: {}", self.number, shown(reply));
    }
}

/// What happens to the daemon meanwhile.
struct Chaos<'a> {
    daemon: &'a Running,
    random: Random,
    began: Instant,
    segvs: u32,
    done: HashMap<&'static str, u64>,
    trace: Vec<String>,
}

impl Chaos<'_> {
    fn workers(&self) -> Vec<u32> {
        let status = self.daemon.status();
        let leaving = status.leaving.iter().map(|worker| worker.pid);
        status.workers.iter().filter_map(|worker| worker.pid).chain(leaving).collect()
    }

    fn ready(&self) -> Vec<u64> {
        let is_ready = |state| matches!(state, WorkerState::Ready | WorkerState::Stalled);
        let status = self.daemon.status();
        status.workers.iter().filter(|w| is_ready(w.state)).filter_map(|w| Some(w.id?.0)).collect()
    }

    fn note(&mut self, what: &'static str, detail: String) {
        *self.done.entry(what).or_default() += 1;
        self.trace.push(format!("{:?} {what} {detail}", self.began.elapsed()));
        if self.trace.len() > 12 {
            self.trace.remove(0);
        }
    }

    fn act(&mut self) {
        let workers = self.workers();
        let victim = if workers.is_empty() { None } else { Some(self.random.pick(&workers)) };
        let signal = |signal: Signal| {
            // It may have ended by now.
            let _ = victim.map(|pid| kill(Pid::from_raw(pid as i32), signal));
        };
        match self.random.below(14) {
            0..4 => {
                self.note("kill", format!("{victim:?}"));
                signal(Signal::SIGKILL);
            }
            // Of itself it is the request's doing, and a third time within a minute the end of its client.
            4 if u64::from(self.segvs) < 2 + self.began.elapsed().as_secs() / 40 => {
                self.segvs += 1;
                self.note("segv", format!("{victim:?}"));
                signal(Signal::SIGSEGV);
            }
            5 => {
                let pause = self.random.pick(&[5, 50, 200]);
                self.note("stop", format!("{victim:?} for {pause} ms"));
                signal(Signal::SIGSTOP);
                let_pass(Duration::from_millis(pause));
                signal(Signal::SIGCONT);
            }
            6 | 7 => {
                let config = config(&mut self.random);
                let verdict = self.daemon.reload_with(&config);
                self.note("reload", format!("{verdict:?}"));
                // Its workers may have been killed before they were ready, or another one is going on.
                if let Err(fault) = verdict {
                    assert!(["rolled_back", "busy"].contains(&fault.code()), "{fault}");
                }
            }
            8 => {
                let bad = self.random.pick(&["workers.count = 0", "listen = [", "limits.max-frame = \"1TB\"", "x = 1"]);
                let fault = self.daemon.reload_with(bad).expect_err("it is bad");
                self.note("bad reload", fault.to_string());
                assert!(["rejected", "busy"].contains(&fault.code()), "{fault}");
            }
            9 => {
                let count = 1 + self.random.below(4);
                let answer = self.daemon.ctl_with("scale", json!({ "count": count }));
                self.note("scale", format!("{count}: {answer:?}"));
            }
            10 => {
                // Nobody waits for the answer.
                drop(self.daemon.ctl_request("recycle", ()));
                self.note("recycle", String::new());
            }
            11 => {
                let ready = self.ready();
                if !ready.is_empty() {
                    let worker = self.random.pick(&ready);
                    let held = self.daemon.ctl_with("hold", json!({ "worker": worker }));
                    let released = self.daemon.ctl_with("release", json!({ "worker": worker }));
                    self.note("hold", format!("{worker}: {held:?}, {released:?}"));
                }
            }
            12 => {
                drop(self.daemon.ctl_request("rebalance", ()));
                self.note("rebalance", String::new());
            }
            _ => {
                let _ = self.daemon.ctl("drain");
                let_pass(Duration::from_millis(self.random.below(20)));
                let _ = self.daemon.ctl("undrain");
                self.note("drain", String::new());
            }
        }
        let_pass(Duration::from_millis(self.random.below(60)));
    }
}

impl Drop for Chaos<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            println!("what was done last:\n  {}", self.trace.join("\n  "));
        }
    }
}

/// Reloads, scaling, recycling, holding, rebalancing, draining, kills, faults, stops, bad files, at random, under clients
/// of both byte orders over TCP and Unix that pipeline frames of 2 bytes to `max-frame` in pieces of all sizes.
///
/// Idempotent requests are answered right, once and in order, and no connection is closed; but for one that was executing at
/// two deaths, which has crashed. Others are answered with their result or `crashed`, and have had their effect at most
/// once, and once if there is a result.
///
/// For six seconds, or as many as the variable `CHAOS_SECONDS` says; with the seed in `CHAOS_SEED`, or another one each time.
#[test]
fn whatever_happens_every_request_is_answered_once_and_in_order() {
    let seed = variable("CHAOS_SEED").unwrap_or_else(|| {
        let now = SystemTime::UNIX_EPOCH.elapsed().expect("it is after 1970");
        now.as_nanos() as u64 ^ u64::from(std::process::id())
    });
    println!("CHAOS_SEED={seed}");
    let duration = Duration::from_secs(variable("CHAOS_SECONDS").unwrap_or(6));
    let mut random = Random(seed);
    let mut daemon = faulty::start(&config(&mut random));
    daemon.wait_for_workers();
    let descriptors = |pid: u32| fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
    let counts: PathBuf = daemon.directory().join("counts");
    let (over, seen) = (AtomicBool::new(false), Mutex::new(Seen::default()));

    thread::scope(|threads| {
        let loads: Vec<_> = (0..12)
            .map(|number| {
                let random = Random(seed ^ (number as u64 + 1) << 32);
                let (daemon, over, seen, counts) = (&daemon, &over, &seen, counts.as_path());
                threads.spawn(move || Load { daemon, number, random, over, seen, counts }.run())
            })
            .collect();
        let began = Instant::now();
        let (done, trace) = (HashMap::new(), Vec::new());
        let mut chaos = Chaos { daemon: &daemon, random, began, segvs: 0, done, trace };
        let mut minute = 1;
        while began.elapsed() < duration && !loads.iter().any(|load| load.is_finished()) {
            chaos.act();
            if began.elapsed() > Duration::from_secs(60 * minute) {
                minute += 1;
                println!("{} s: {} requests", began.elapsed().as_secs(), seen.lock().expect("whole").requests);
            }
        }
        over.store(true, Ordering::Relaxed);
        let failed = loads.into_iter().filter_map(|load| load.join().err()).count();
        println!("{:?}", chaos.done);
        assert_eq!(failed, 0, "clients of 12 were answered wrongly (CHAOS_SEED={seed})");
    });

    let seen = seen.into_inner().expect("whole");
    let status = daemon.wait_until("all clients have left", |status| status.clients == 0);
    println!("{} requests, {} crashed twice, {} counted", seen.requests, seen.crashed_twice, seen.counted.len());
    assert_eq!((status.lost_total, status.closed_for_crashes_total), (0, 0), "CHAOS_SEED={seed}");
    assert!(status.quarantined.is_empty(), "{:?}", status.quarantined);
    let deaths = status.deaths_total;
    assert!(seen.crashed_twice <= 1 + deaths / 20, "{} of {deaths} deaths (CHAOS_SEED={seed})", seen.crashed_twice);
    check_counts(&counts, &seen.counted);
    check_rest(&mut daemon, &status, descriptors);
}

/// Every request that was answered with its result had its effect once, and those that crashed at most once.
fn check_counts(path: &Path, counted: &HashMap<String, bool>) {
    let text = fs::read_to_string(path).unwrap_or_default();
    let mut lines: HashMap<&str, u64> = HashMap::new();
    text.lines().for_each(|line| *lines.entry(line).or_default() += 1);
    for (number, is_result) in counted {
        let times = lines.remove(number.as_str()).unwrap_or(0);
        assert!(times == 1 || (times == 0 && !is_result), "{number} was done {times} times, result: {is_result}");
    }
    assert!(lines.is_empty(), "nobody asked for {lines:?}");
}

/// Nothing is left of all that.
fn check_rest(daemon: &mut Running, status: &Status, descriptors: impl Fn(u32) -> usize) {
    let last = status.last_reload.as_ref().map(|last| last.verdict);
    assert!(last.is_none_or(|last| [Verdict::Applied, Verdict::Rejected, Verdict::RolledBack].contains(&last)));
    daemon.reload_with("workers.count = 2").expect("the last configuration is good");
    let status = daemon.wait_until("nobody is on the way out", |status| {
        status.leaving.is_empty() && status.workers.len() == 2 && status.workers.iter().all(|w| w.pid.is_some())
    });
    let children = settled(|| kernel::children(daemon.pid()));
    let workers: Vec<u32> = status.workers.iter().filter_map(|worker| worker.pid).collect();
    assert!(children.iter().all(|child| workers.contains(child)), "{children:?} are more than {workers:?}");
    let before = settled(|| descriptors(daemon.pid()));
    assert!(before < 40, "{before} descriptors are open without a client");
    assert_eq!(daemon.connect().call("ping", 1).expect("a result"), 1);
}
