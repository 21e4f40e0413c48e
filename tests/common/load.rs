//! Clients that never stop asking, and count.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use fdpassd::testing::{Client, Running, eventually};

/// Requests that each client has under way.
const AHEAD: u64 = 8;

/// Clients at work, each in a thread of its own: every request is numbered, every reply has to be the one to the next
/// number, and a connection that ends is a failure.
#[derive(Debug)]
pub struct Load {
    over: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    /// So many clients, in turn at each of the addresses at which the daemon was started. Returns when they are served.
    #[track_caller]
    pub fn start(daemon: &Running, clients: u64) -> Load {
        let (over, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let addresses = daemon.addresses().iter().cycle();
        let run = |(number, address)| {
            let (over, answered) = (Arc::clone(&over), Arc::clone(&answered));
            let client = Client::connect(address);
            thread::spawn(move || work(client, number, &over, &answered))
        };
        let clients = (0..clients).zip(addresses).map(run).collect();
        let load = Load { over, answered, clients };
        load.go_on(100);
        load
    }

    /// Waits until so many more requests are answered.
    #[track_caller]
    pub fn go_on(&self, requests: u64) {
        let enough = self.answered.load(Ordering::Relaxed) + requests;
        eventually("requests are answered", || {
            assert!(!self.clients.iter().any(JoinHandle::is_finished), "a client has failed");
            (self.answered.load(Ordering::Relaxed) >= enough).then_some(())
        });
    }

    /// Stops it; returns how many requests were answered.
    #[track_caller]
    pub fn finish(self) -> u64 {
        self.over.store(true, Ordering::Relaxed);
        self.clients.into_iter().for_each(|client| client.join().expect("no request is lost"));
        self.answered.load(Ordering::Relaxed)
    }
}

fn work(mut client: Client, number: u64, over: &AtomicBool, answered: &AtomicU64) {
    // Of lengths that differ, and as a rule in one piece each: how pieces are put together is proven elsewhere.
    let body = |request: u64| format!("[{number},{request},\"{}\"]", "z".repeat((request * 37 % 900) as usize));
    let mut sent = 0;
    for next in 0.. {
        while sent < next + AHEAD && !over.load(Ordering::Relaxed) {
            client.send_frame(format!("{{\"in\":\"ping\",\"params\":{}}}", body(sent)));
            sent += 1;
        }
        if next == sent {
            return;
        }
        let reply = String::from_utf8(client.receive()).expect("text");
        assert_eq!(reply, format!("{{\"out\":\"pong\",\"result\":{}}}", body(next)), "client {number}, request {next}");
        answered.fetch_add(1, Ordering::Relaxed);
    }
}
