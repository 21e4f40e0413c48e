//! Clients that send requests to an app all the time, and compare what they get with what the app has begun.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, RwLock, RwLockWriteGuard};
use std::thread::{self, JoinHandle};

use fdpassd::proto::frame::ByteOrder;
use fdpassd::proto::names::Address;
use fdpassd::testing::{Client, Running, eventually};
use serde_json::json;

use crate::common::random::Random;

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
