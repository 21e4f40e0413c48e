//! Clients who ask all the time: each request has its number, each reply is compared, and none may fail.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use fdpassd::testing::{Client, Running, eventually};
use serde_json::{Value, json};

use super::let_pass;

/// Clients with a thread each. A reply that is missing, doubled, out of order or an error fails the test when it is
/// finished.
#[derive(Debug)]
pub struct Load {
    over: Arc<AtomicBool>,
    clients: Vec<(Arc<AtomicU64>, JoinHandle<()>)>,
}

/// Behaviour of such a client.
#[derive(Clone, Copy, Debug, Default)]
pub struct Habit {
    /// Requests under way, one at the least.
    pub pipelined: usize,
    /// How long it keeps a worker of the faulty daemon busy before each numbered request, in ms. The worker blocks for
    /// that time, which counts as busy and needs no CPU time.
    pub block: u64,
    /// How long it does nothing after a reply.
    pub pause: Duration,
}

impl Load {
    /// Starts clients at all addresses in turn, each with up to `pipelined` unanswered requests.
    #[must_use]
    #[track_caller]
    pub fn start(daemon: &Running, clients: usize, pipelined: usize) -> Load {
        let addresses = daemon.addresses();
        let connect = |number: usize| Client::connect(&addresses[number % addresses.len()]);
        Load::of(
            (0..clients).map(connect),
            Habit {
                pipelined,
                ..Habit::default()
            },
        )
    }

    /// Starts these clients with this habit.
    #[must_use]
    pub fn of(clients: impl IntoIterator<Item = Client>, habit: Habit) -> Load {
        let over = Arc::new(AtomicBool::new(false));
        let start = |(number, client): (usize, Client)| {
            let (answered, over) = (Arc::new(AtomicU64::new(0)), Arc::clone(&over));
            let counter = Arc::clone(&answered);
            (
                answered,
                thread::spawn(move || ask(client, number, habit, &counter, &over)),
            )
        };
        let clients = (0..).zip(clients).map(start).collect();
        Load { over, clients }
    }

    /// Requests answered so far, of each client.
    #[must_use]
    pub fn answered(&self) -> Vec<u64> {
        self.clients
            .iter()
            .map(|(answered, _)| answered.load(Ordering::Relaxed))
            .collect()
    }

    /// Waits until each client has had this many more replies.
    #[track_caller]
    pub fn wait_for(&self, more: u64) {
        let before = self.answered();
        eventually("each client has more answers", || {
            let is_failed = self.clients.iter().any(|(_, thread)| thread.is_finished());
            assert!(
                !is_failed,
                "a client has failed: {:?} answers",
                self.answered()
            );
            self.answered()
                .iter()
                .zip(&before)
                .all(|(now, before)| *now >= before + more)
                .then_some(())
        });
    }

    /// Ends them; how many requests of each were answered. The clients leave.
    #[track_caller]
    pub fn finish(self) -> Vec<u64> {
        let answered = |(answered, thread): (Arc<AtomicU64>, JoinHandle<()>)| {
            thread
                .join()
                .expect("no request is lost, doubled or refused");
            answered.load(Ordering::Relaxed)
        };
        self.over.store(true, Ordering::Relaxed);
        self.clients.into_iter().map(answered).collect()
    }
}

fn ask(mut client: Client, number: usize, habit: Habit, answered: &AtomicU64, over: &AtomicBool) {
    let mut under_way = VecDeque::new();
    for request in 0_u64.. {
        let params = json!([number, request]);
        if habit.block > 0 {
            client.request("sleep", habit.block);
            under_way.push_back(Value::Null);
        }
        client.request("ping", &params);
        under_way.push_back(params);
        let is_over = over.load(Ordering::Relaxed);
        while under_way.len() >= habit.pipelined || is_over {
            let Some(expected) = under_way.pop_front() else {
                break;
            };
            let result = client
                .reply()
                .value()
                .unwrap_or_else(|fault| panic!("{expected} got an error: {fault}"));
            assert_eq!(result, expected, "the reply to another request");
            answered.fetch_add(1, Ordering::Relaxed);
        }
        if is_over {
            return;
        }
        if !habit.pause.is_zero() {
            let_pass(habit.pause);
        }
    }
}
