//! Threads that share a client and call all the time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use fdpassd::client::{Client, ClientRequest};
use fdpassd::testing::eventually;

/// How many threads share a client.
const THREADS: u64 = 8;

/// Threads with numbered pings, up to 32 at a time. An error, or the reply to another request, fails the test.
pub struct Crowd {
    is_over: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl Crowd {
    pub fn start(client: &Client) -> Crowd {
        let (is_over, answered) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let start = |thread: u64| {
            let (client, is_over) = (client.clone(), Arc::clone(&is_over));
            let answered = Arc::clone(&answered);
            thread::spawn(move || call(&client, thread, &is_over, &answered))
        };
        let threads = (0..THREADS).map(start).collect();
        Crowd {
            is_over,
            answered,
            threads,
        }
    }

    /// Waits until this many more requests were answered.
    #[track_caller]
    pub fn wait_for(&self, more: u64) {
        let before = self.answered.load(Ordering::Relaxed);
        eventually("more requests were answered", || {
            let has_failed = self.threads.iter().any(JoinHandle::is_finished);
            assert!(!has_failed, "a thread has failed");
            (self.answered.load(Ordering::Relaxed) >= before + more).then_some(())
        });
    }

    /// Ends the threads. Returns how many requests were answered.
    #[track_caller]
    pub fn finish(self) -> u64 {
        self.is_over.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().expect("no request fails");
        }
        self.answered.load(Ordering::Relaxed)
    }
}

fn call(client: &Client, thread: u64, is_over: &AtomicBool, answered: &AtomicU64) {
    for round in 0.. {
        if is_over.load(Ordering::Relaxed) {
            return;
        }
        let count = 1 + (round * 7 + thread) % 32;
        let number = |n: u64| (thread << 48) + (round << 16) + n;
        let requests = (0..count).map(|n| ClientRequest::new("ping", number(n)));
        for (n, outcome) in (0..).zip(client.call_all(requests)) {
            let result = outcome.unwrap_or_else(|e| panic!("request {n} of {round}: {e}"));
            assert_eq!(result.get(), number(n).to_string());
            answered.fetch_add(1, Ordering::Relaxed);
        }
    }
}
