//! A daemon that loads a table once for all its workers.
//!
//! ```text
//! [workers]
//! start = "fork"
//! [tabled]
//! mebibytes = 64
//! ```
//!
//! `sum` adds entries of the table. For the tests, `leaves = "a thread"`, `leaves = "an error"` and `leaves = "a
//! panic"` make the loading fail, and `leaves = "nothing"` makes it last for ever.

use std::hash::{BuildHasher, RandomState};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;

use fdpassd::{Call, Daemon, Fault, Method, WorkerInfo};
use serde::Deserialize;

/// The table `[tabled]` of the configuration.
#[derive(Clone, Deserialize)]
#[serde(default)]
struct Settings {
    mebibytes: usize,
    leaves: Option<String>,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            mebibytes: 1,
            leaves: None,
        }
    }
}

/// The value that all workers share.
struct Table {
    entries: Vec<u64>,
    /// The process that has loaded it.
    loaded_by: u32,
}

fn load(settings: &Settings) -> Result<Table, String> {
    match settings.leaves.as_deref() {
        Some("a thread") => drop(thread::spawn(wait)),
        Some("an error") => return Err("the table is gone".to_owned()),
        Some("a panic") => panic!("the table is broken"),
        Some("nothing") => wait(),
        _ => {}
    }
    // As a load that uses hash tables.
    let _ = RandomState::new();
    Ok(Table {
        entries: (0..(settings.mebibytes as u64) << 17).collect(),
        loaded_by: std::process::id(),
    })
}

/// Never returns.
fn wait() {
    loop {
        thread::park();
    }
}

fn sum(table: &mut Arc<Table>, (from, to): (usize, usize), _: &Call) -> Result<u64, Fault> {
    let entries = table.entries.get(from..to);
    let entries = entries.ok_or_else(|| Fault::new("out_of_range", "there is no such part"))?;
    Ok(entries.iter().sum())
}

fn main() -> ExitCode {
    Daemon::new("tabled")
        .config::<Settings>()
        .preload(load)
        .state(|worker: &WorkerInfo<Settings, Table>| Ok::<_, Fault>(Arc::clone(&worker.preloaded)))
        .method(Method::new("sum", sum).idempotent())
        .method(Method::new(
            "processes",
            |table: &mut Arc<Table>, (): (), _| Ok((table.loaded_by, std::process::id())),
        ))
        .method(Method::new("random", |_, (): (), _| {
            Ok(RandomState::new().hash_one(()).to_string())
        }))
        .run()
}
