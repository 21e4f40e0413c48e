//! The record for a failed run: seed, last actions, and log of the daemon.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

/// Number of lines shown of the log and of the actions.
const LINES: usize = 80;
const ACTIONS: usize = 40;

/// Prints the record when a panic drops it.
#[derive(Debug)]
pub struct Witness {
    seed: u64,
    began: Instant,
    actions: VecDeque<String>,
    /// How often what was done.
    pub done: BTreeMap<&'static str, u64>,
    pub log: Log,
}

impl Witness {
    pub fn new(seed: u64, log: &Path) -> Witness {
        let (actions, done) = (VecDeque::new(), BTreeMap::new());
        Witness {
            seed,
            began: Instant::now(),
            actions,
            done,
            log: Log::open(log),
        }
    }

    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    pub fn note(&mut self, what: &'static str, detail: impl std::fmt::Display) {
        *self.done.entry(what).or_default() += 1;
        self.actions.push_back(format!(
            "{:8.3} {what}: {detail}",
            self.began.elapsed().as_secs_f64()
        ));
        if self.actions.len() > ACTIONS {
            self.actions.pop_front();
        }
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        if thread::panicking() {
            self.log.read();
            let actions: Vec<&str> = self.actions.iter().map(String::as_str).collect();
            let log: Vec<&str> = self.log.last.iter().map(String::as_str).collect();
            println!("--- what the daemon logged last ---\n{}", log.join("\n"));
            println!(
                "--- what was done last, of {:?} ---\n{}",
                self.done,
                actions.join("\n")
            );
            println!(
                "--- at {:.3}; again with CHAOS_SEED={} ---",
                self.began.elapsed().as_secs_f64(),
                self.seed
            );
        }
    }
}

/// The deaths in the log, as far as it has been read.
#[derive(Debug)]
pub struct Log {
    file: File,
    unread: Vec<u8>,
    last: VecDeque<String>,
    /// Requests that must be answered with `crashed`.
    pub crashed: u64,
    /// Requests that must be answered with `timeout`.
    pub timeouts: u64,
    /// Requests that are run again.
    pub reruns: u64,
    /// When a client was last blamed for a death.
    pub blamed: Option<Instant>,
}

impl Log {
    fn open(path: &Path) -> Log {
        let file = File::open(path).expect("the daemon has its log");
        let (unread, last) = (Vec::new(), VecDeque::new());
        Log {
            file,
            unread,
            last,
            crashed: 0,
            timeouts: 0,
            reruns: 0,
            blamed: None,
        }
    }

    /// Reads what was written since.
    pub fn read(&mut self) {
        self.file
            .read_to_end(&mut self.unread)
            .expect("it is a file");
        let Some(end) = self.unread.iter().rposition(|byte| *byte == b'\n') else {
            return;
        };
        let rest = self.unread.split_off(end + 1);
        let lines = std::mem::replace(&mut self.unread, rest);
        for line in String::from_utf8_lossy(&lines).lines() {
            let has_crashed = line.contains("1 request answered with crashed");
            let is_late = line.contains("1 request answered with timeout");
            self.crashed += u64::from(has_crashed);
            self.timeouts += u64::from(is_late);
            self.reruns += u64::from(line.contains("1 request run again"));
            if is_late || has_crashed && !line.contains("SIGKILL") {
                self.blamed = Some(Instant::now());
            }
            self.last.push_back(line.to_owned());
            if self.last.len() > LINES {
                self.last.pop_front();
            }
        }
    }
}
