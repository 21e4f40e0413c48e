//! Apps, workers and masters are killed while many requests are away. Each request appends a line to a file: one that
//! is not idempotent at most once, the others at most twice.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, RwLock, RwLockWriteGuard};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use fdpassd::proto::frame::ByteOrder;
use fdpassd::proto::names::Address;
use fdpassd::testing::{Client, Running, ServiceManager, eventually};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::common::needs::skip;
use crate::common::program::run;
use crate::common::random::Random;
use crate::common::restart::{self, How, wait_for_confirmed_store};
use crate::common::{FDPASSD, kernel, let_pass, start};

const APP: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/app_deaths/app.py");

/// Returns a configuration with this app. `None` without Python.
pub fn config(workers: usize, concurrency: usize, more: &str) -> Option<String> {
    if run("python3", &["--version"]).code != Some(0) {
        skip("python3", "there is no python3");
        return None;
    }
    Some(format!(
        "workers.count = {workers}\n\
         app.command = [\"python3\", \"{APP}\", \"{{dir}}/journal\", \"{concurrency}\"]\n{more}"
    ))
}

/// Listeners for both kinds of sockets, and for both byte orders.
pub const LISTEN: &str = "listen = [{ address = \"127.0.0.1:0\", byte-order = \"auto\" }, \
    { address = \"unix:{dir}/rpc.sock\", byte-order = \"auto\" }]\n";

/// Returns the processes of apps of the daemon in this directory.
pub fn apps(directory: &Path) -> Vec<u32> {
    let journal = directory.join("journal");
    let journal = journal.to_string_lossy().into_owned();
    let all = fs::read_dir("/proc").expect("/proc can be read").flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid: &u32| {
        let arguments = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        arguments.split('\0').any(|argument| argument == journal)
    })
    .collect()
}

/// Kills a process that may have ended.
pub fn kill_9(pid: u32) {
    let sent = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
    assert!(matches!(sent, Ok(()) | Err(Errno::ESRCH)), "{sent:?}");
}

/// The fate of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Result,
    Crashed,
    /// The client has left.
    Abandoned,
}

/// The fates of the requests of each kind, by number.
#[derive(Debug, Default)]
struct Replies {
    orders: HashMap<u64, Fate>,
    prices: HashMap<u64, Fate>,
}

/// The fates of all requests, counted.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    pub requests: usize,
    /// Requests that were answered with `crashed`.
    pub crashed: usize,
    /// The same, of idempotent requests.
    pub crashed_prices: usize,
}

impl Outcome {
    /// An idempotent request crashes in its second attempt only. `reruns` of them are counted; at the end of a worker
    /// that no master saw, there were at most `unseen`.
    #[track_caller]
    pub fn assert_rerun(&self, reruns: u64, unseen: u64) {
        let crashed = self.crashed_prices as u64;
        assert!(
            crashed <= reruns + unseen,
            "{crashed} prices of {reruns} and {unseen} that ran again"
        );
    }
}

/// The behaviour of clients.
#[derive(Clone, Copy, Debug)]
pub struct Habits {
    /// The longest time of a request, in ms.
    pub longest: u64,
    /// The most bytes of a request.
    pub largest: u64,
    /// The mean number of batches after which a client leaves without its replies, and another one connects.
    pub leaves_once_in: u64,
}

/// Clients that send requests until they are stopped, and check that the replies come in order.
pub struct Shoppers {
    shop: Arc<Shop>,
    threads: Vec<JoinHandle<Replies>>,
}

/// State that all clients share.
struct Shop {
    addresses: Vec<Address>,
    habits: Habits,
    is_over: AtomicBool,
    answered: AtomicU64,
    next: AtomicU64,
    connections: AtomicU64,
    door: RwLock<()>,
}

impl Shoppers {
    /// Starts clients of a daemon with [`LISTEN`].
    pub fn start(daemon: &Running, clients: u64) -> Shoppers {
        let habits = Habits {
            longest: 30,
            largest: 1,
            leaves_once_in: u64::MAX,
        };
        Shoppers::start_with(daemon, clients, habits, &Random(1))
    }

    pub fn start_with(daemon: &Running, clients: u64, habits: Habits, random: &Random) -> Shoppers {
        let shop = Arc::new(Shop {
            addresses: daemon.addresses().to_vec(),
            habits,
            is_over: AtomicBool::new(false),
            answered: AtomicU64::new(0),
            next: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            door: RwLock::default(),
        });
        let thread = |id| {
            let (shop, random) = (Arc::clone(&shop), random.part(id));
            let client = shop.enter(id);
            thread::spawn(move || shop.serve(id, client, random))
        };
        let threads = (0..clients).map(thread).collect();
        Shoppers { shop, threads }
    }

    /// Keeps new clients out: those that the master has not leased yet are lost if it is killed.
    pub fn close_door(&self) -> RwLockWriteGuard<'_, ()> {
        self.shop.door.write().expect("no client has panicked")
    }

    /// Returns how many clients have come.
    pub fn connections(&self) -> u64 {
        self.shop.connections.load(Ordering::Relaxed)
    }

    /// Returns whether a reply was wrong.
    pub fn has_failed(&self) -> bool {
        self.threads.iter().any(JoinHandle::is_finished)
    }

    /// Waits for this many more replies.
    pub fn wait_for(&self, more: u64) {
        let wanted = self.shop.answered.load(Ordering::Relaxed) + more;
        eventually("requests are answered", || {
            (self.shop.answered.load(Ordering::Relaxed) >= wanted).then_some(())
        });
    }

    /// Stops the clients, and compares their replies with what the apps have begun.
    pub fn finish(self, journal: &Path) -> Outcome {
        self.shop.is_over.store(true, Ordering::Relaxed);
        let mut all = Replies::default();
        for thread in self.threads {
            let replies = thread.join().expect("each reply is right");
            all.orders.extend(replies.orders);
            all.prices.extend(replies.prices);
        }
        let begun = begun(journal);
        for (kind, fates, most) in [("order", &all.orders, 1), ("price", &all.prices, 2)] {
            for (number, fate) in fates {
                let times = begun.get(number).copied().unwrap_or(0);
                let least = u64::from(*fate == Fate::Result);
                assert!((least..=most).contains(&times), "{kind} {number}: {times}");
            }
        }
        let crashed = |fates: &HashMap<u64, Fate>| {
            let fates = fates.values();
            fates.filter(|fate| **fate == Fate::Crashed).count()
        };
        Outcome {
            requests: all.orders.len() + all.prices.len(),
            crashed: crashed(&all.orders) + crashed(&all.prices),
            crashed_prices: crashed(&all.prices),
        }
    }
}

/// Returns how often each request was begun. No attempt has ended after the beginning of the next one.
fn begun(journal: &Path) -> HashMap<u64, u64> {
    let mut begun: HashMap<u64, u64> = HashMap::new();
    let mut attempts: HashMap<u64, u64> = HashMap::new();
    let text = fs::read_to_string(journal).expect("the apps write it");
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let [number, attempt] = [0, 1].map(|word| words[word].parse().expect("a number"));
        match words.get(2) {
            Some(_) => assert_eq!(attempts.get(&number), Some(&attempt), "{line}"),
            None => {
                *begun.entry(number).or_default() += 1;
                attempts.insert(number, attempt);
            }
        }
    }
    begun
}

impl Shop {
    /// Connects, and waits until a worker has the client.
    fn enter(&self, id: u64) -> Client {
        let _open = self.door.read().expect("no client has panicked");
        let address = &self.addresses[id as usize % self.addresses.len()];
        let order = match id / 2 % 2 {
            0 => ByteOrder::Little,
            _ => ByteOrder::Big,
        };
        let mut client = Client::connect(address).in_order(order);
        assert_eq!(client.call("ping", 0).expect("it is served"), 0);
        self.connections.fetch_add(1, Ordering::Relaxed);
        client
    }

    fn serve(&self, id: u64, mut client: Client, mut random: Random) -> Replies {
        let mut replies = Replies::default();
        while !self.is_over.load(Ordering::Relaxed) {
            let batch: Vec<(u64, bool)> = (0..random.below(3) + 1)
                .map(|_| {
                    let number = self.next.fetch_add(1, Ordering::Relaxed) + 1;
                    (number, random.once_in(2))
                })
                .collect();
            for (number, is_order) in &batch {
                let method = if *is_order { "order" } else { "price" };
                let size = match random.below(20) {
                    0 => random.below(self.habits.largest),
                    _ => random.below(self.habits.largest.min(100)),
                };
                let params = json!({
                    "n": number,
                    "ms": random.below(self.habits.longest),
                    "filling": "z".repeat(size as usize),
                });
                client.request(method, params);
            }
            let leaves = random.once_in(self.habits.leaves_once_in);
            for (number, is_order) in batch {
                let fate = match leaves {
                    true => Fate::Abandoned,
                    false => self.fate(&mut client, number),
                };
                let kind = if is_order {
                    &mut replies.orders
                } else {
                    &mut replies.prices
                };
                kind.insert(number, fate);
            }
            if leaves {
                drop(client);
                client = self.enter(id);
            }
        }
        replies
    }

    /// Waits for the reply to a request.
    fn fate(&self, client: &mut Client, number: u64) -> Fate {
        let result = client.reply().value();
        self.answered.fetch_add(1, Ordering::Relaxed);
        match result {
            Ok(value) => {
                assert_eq!(value, number, "replies come in order");
                Fate::Result
            }
            Err(fault) => {
                assert_eq!(fault.code(), "crashed", "{fault}");
                Fate::Crashed
            }
        }
    }
}

/// Checks that nothing was lost, and that no app is left after the daemon.
pub fn end(mut daemon: Running, clients: u64) {
    let status = daemon.status();
    assert_eq!((status.lost_total, status.quarantined.len()), (0, 0));
    assert!(status.accepted_total >= clients && status.closed_for_crashes_total == 0);
    let directory = daemon.directory().to_owned();
    daemon.signal("INT");
    daemon.wait();
    eventually("all apps have ended", || {
        apps(&directory).is_empty().then_some(())
    });
}

pub fn journal(daemon: &Running) -> PathBuf {
    daemon.directory().join("journal")
}

/// How many kills a test makes; `FDPASSD_APP_KILLS` for long runs.
fn kills() -> u64 {
    let wanted = std::env::var("FDPASSD_APP_KILLS").ok();
    wanted.and_then(|kills| kills.parse().ok()).unwrap_or(30)
}

#[test]
fn kills_of_apps_and_workers_lose_nothing_and_keep_the_order() {
    const CLIENTS: u64 = 48;
    let Some(config) = config(2, 32, LISTEN) else {
        return;
    };
    let daemon = start(&config);
    daemon.wait_for_workers();
    let shoppers = Shoppers::start(&daemon, CLIENTS);
    shoppers.wait_for(200);
    let mut random = Random::new("FDPASSD_APP_SEED");
    let mut most_away = 0;
    for _ in 0..kills() {
        let status = daemon.status();
        most_away = status
            .workers
            .iter()
            .fold(most_away, |most, worker| most.max(worker.away));
        let (workers, apps) = (daemon.worker_pids(), apps(daemon.directory()));
        let one = random.below(workers.len().min(apps.len()).max(1) as u64) as usize;
        match random.below(5) {
            0 => apps.get(one).copied().into_iter().for_each(kill_9),
            1 => workers.get(one).copied().into_iter().for_each(kill_9),
            2 => apps.into_iter().chain(workers).for_each(kill_9),
            3 => workers.into_iter().chain(apps).for_each(kill_9),
            _ => apps.into_iter().for_each(kill_9),
        }
        let_pass(Duration::from_millis(random.below(60)));
        daemon.wait_for_workers();
        shoppers.wait_for(100);
    }
    let outcome = shoppers.finish(&journal(&daemon));
    let status = daemon.status();
    let (deaths, reruns) = (status.deaths_total, status.reruns_total);
    println!("{outcome:?}, {deaths} deaths, {reruns} run again, {most_away} away at once");
    outcome.assert_rerun(reruns, 0);
    // A kill of one or both of a pair is one death.
    assert!(2 * deaths >= kills() && most_away > 1, "requests were away");
    assert!(reruns > 0 && outcome.crashed > 0);
    eventually("there is one app for each worker", || {
        (apps(daemon.directory()).len() == 2).then_some(())
    });
    let is_descriptor_of_app = |(_, name): &(PathBuf, String)| name.contains("[pidfd]");
    eventually("the master has no descriptor of an app", || {
        let left = kernel::descriptors(daemon.pid());
        (!left.iter().any(is_descriptor_of_app)).then_some(())
    });
    end(daemon, CLIENTS);
}

#[test]
fn kills_of_masters_lose_nothing_and_keep_the_order() {
    const CLIENTS: u64 = 32;
    let more = format!("limits.restart-grace = \"5ms\"\n{LISTEN}");
    let Some(config) = config(2, 16, &more) else {
        return;
    };
    let manager = ServiceManager::new();
    let daemon = manager.setup(FDPASSD, &config).start();
    let mut daemon = daemon.expect("it serves");
    wait_for_confirmed_store(&daemon);
    daemon.wait_for_workers();
    let shoppers = Shoppers::start(&daemon, CLIENTS);
    for how in [How::ALL, How::ALL].concat() {
        shoppers.wait_for(150);
        daemon = restart::restart(&manager, daemon, how, Path::new(FDPASSD));
    }
    shoppers.wait_for(150);
    let outcome = shoppers.finish(&journal(&daemon));
    let reruns = daemon.status().reruns_total;
    println!("{outcome:?}, {reruns} run again");
    // Each of the two workers ends with its master, with at most 16 requests.
    outcome.assert_rerun(reruns, 16 * 2 * 2 * How::ALL.len() as u64);
    end(daemon, CLIENTS);
}

#[test]
fn ten_kills_of_an_app_quarantine_no_method() {
    let Some(config) = config(1, 1, "") else {
        return;
    };
    let daemon = start(&config);
    let mut client = daemon.connect();
    for number in 1..=11 {
        client.request("order", json!({"n": number, "ms": 60_000}));
        wait_until_begun(&daemon, number);
        apps(daemon.directory()).into_iter().for_each(kill_9);
        let fault = client.reply().value().expect_err("its app was killed");
        assert_eq!(fault.code(), "crashed");
    }
    let status = daemon.status();
    assert_eq!((status.quarantined.len(), status.clients), (0, 1));
    daemon.wait_for_log("ended in method \"order\" of client 1 (");
    daemon.wait_for_log("): its app was killed by signal 9 (SIGKILL); 1 client moved");
    daemon.wait_for_log("1 request answered with crashed; its successor starts now");
    // But those that end the app do.
    for _ in 0..10 {
        let fault = daemon
            .call("exit", json!({"status": 3}))
            .expect_err("it ends its app");
        assert_eq!(fault.code(), "crashed");
    }
    assert_eq!(daemon.status().quarantined, ["exit"]);
    daemon.wait_for_log("): its app exited with status 3: no more stock; ");
    end_quarantined(daemon);
}

fn end_quarantined(mut daemon: Running) {
    let directory = daemon.directory().to_owned();
    daemon.signal("INT");
    daemon.wait();
    eventually("all apps have ended", || {
        apps(&directory).is_empty().then_some(())
    });
}

/// Waits until an app has begun the request with this number. One that is away may not have been written to it yet, and
/// is executed by the next one then.
#[track_caller]
pub fn wait_until_begun(daemon: &Running, number: u64) {
    let begin = format!("{number} ");
    eventually("an app has begun the request", || {
        let lines = fs::read_to_string(journal(daemon)).unwrap_or_default();
        let is_begun = lines.lines().any(|line| line.starts_with(&begin));
        is_begun.then_some(())
    });
}

#[test]
fn an_app_killed_while_idle_costs_no_caller_an_answer() {
    // No timer notices it.
    let Some(config) = config(1, 8, "limits.stall-timeout = \"1h\"\n") else {
        return;
    };
    let daemon = start(&config);
    let mut client = daemon.connect();
    for round in 1..4 {
        let first = client.call("pid", ()).expect("a pid");
        apps(daemon.directory()).into_iter().for_each(kill_9);
        daemon.wait_until("the death is noticed", |status| {
            status.deaths_total == round
        });
        assert_ne!(client.call("pid", ()).expect("a pid"), first);
    }
    assert_eq!(daemon.status().errors_total, 0);
    end(daemon, 1);
}

#[test]
fn requests_wait_for_a_permit_elsewhere_if_the_app_stops() {
    let more = "limits.stall-timeout = \"200ms\"\nlimits.request-timeout = \"6s\"\n";
    let Some(config) = config(2, 1, more) else {
        return;
    };
    let daemon = start(&config);
    daemon.wait_for_workers();
    let mut stopped = daemon.connect();
    stopped.request("order", json!({"n": 1, "ms": 60_000}));
    let busy = daemon.wait_until("it is away", |status| {
        status.workers.iter().any(|worker| worker.away == 1)
    });
    assert_eq!(busy.skew.map(|skew| skew.clients), Some(2.0));
    let mut others: Vec<Client> = (0..6).map(|_| daemon.connect()).collect();
    for other in &mut others {
        other.request("price", json!({"n": 2}));
    }
    for other in &mut others {
        assert_eq!(other.reply().value().expect("elsewhere"), 2);
    }
    let fault = stopped.reply().value().expect_err("it takes too long");
    assert_eq!(fault.code(), "timeout");
    daemon.wait_for_workers();
    assert_eq!(
        stopped.call("price", json!({"n": 3})).expect("it goes on"),
        3
    );
    end(daemon, 7);
}
