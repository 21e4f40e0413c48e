//! A daemon that keeps its state right: `counterd` adds numbers, and no addition is lost or counted twice.
//!
//! ```sh
//! cargo run --example counterd
//! cargo run --bin fdpassctl -- call add '{"sender":"till-7","number":1,"n":5}' --to 127.0.0.1:8080
//! cargo run --bin fdpassctl -- call total --to 127.0.0.1:8080
//! ```
//!
//! The total is in a file, in the `directory` of the table `[counterd]` of the configuration, or in `$STATE_DIRECTORY`
//! (`StateDirectory=` of a systemd unit), or in `./counterd-state`. It
//! survives reloads, recycling, crashes and restarts. The code below is also in README.md.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::PathBuf;
use std::{env, process::ExitCode};

use fdpassd::{Call, Daemon, Fault, Method, WorkerInfo};
use serde::{Deserialize, Serialize};

/// The contents of `counter.json`, which all workers share.
#[derive(Default, Serialize, Deserialize)]
struct Counter {
    total: u64,
    /// The last addition of each sender.
    last: BTreeMap<String, Applied>,
}

#[derive(Serialize, Deserialize)]
struct Applied {
    number: u64,
    total: u64,
}

/// The params of `add`. Each sender numbers its additions upwards.
#[derive(Deserialize)]
struct Add {
    sender: String,
    number: u64,
    n: u64,
}

/// The table `[counterd]` of the configuration.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Settings {
    directory: Option<PathBuf>,
}

/// The state of one worker process: nothing that must outlive it.
struct Store {
    directory: PathBuf,
}

impl Store {
    fn open(worker: &WorkerInfo<Settings>) -> io::Result<Store> {
        let of_unit = || env::var_os("STATE_DIRECTORY").map(PathBuf::from);
        let directory = worker.config.directory.clone().or_else(of_unit);
        let directory = directory.unwrap_or("counterd-state".into());
        fs::create_dir_all(&directory)?;
        Ok(Store { directory })
    }

    fn add(&mut self, add: Add, _: &Call) -> Result<u64, Fault> {
        // Held until the end of this call. The kernel releases it if the worker is killed.
        let lock = File::create(self.directory.join("lock")).map_err(io_fault)?;
        lock.lock().map_err(io_fault)?;
        let mut counter = self.read().map_err(io_fault)?;
        match counter.last.get(&add.sender) {
            // The first run was complete, but its reply was not sent.
            Some(last) if last.number == add.number => return Ok(last.total),
            Some(last) if last.number > add.number => {
                return Err(Fault::new("old_number", "a later addition was applied"));
            }
            _ => {}
        }
        let total = counter.total.checked_add(add.n);
        let total = total.ok_or_else(|| Fault::bad_params("the total would exceed 64 bits"))?;
        let number = add.number;
        counter.total = total;
        counter.last.insert(add.sender, Applied { number, total });
        self.write(&counter).map_err(io_fault)?;
        Ok(total)
    }

    /// Needs no lock: rename(2) replaces the file at once.
    fn total(&mut self, (): (), _: &Call) -> Result<u64, Fault> {
        Ok(self.read().map_err(io_fault)?.total)
    }

    fn read(&self) -> io::Result<Counter> {
        match fs::read(self.directory.join("counter.json")) {
            Ok(json) => Ok(serde_json::from_slice(&json)?),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(Counter::default()),
            Err(e) => Err(e),
        }
    }

    /// Replaces the file. A crash at any point leaves either the old contents or the new ones.
    fn write(&self, counter: &Counter) -> io::Result<()> {
        let new = self.directory.join("counter.json.new");
        let mut file = File::create(&new)?;
        file.write_all(&serde_json::to_vec(counter)?)?;
        file.sync_all()?;
        fs::rename(&new, self.directory.join("counter.json"))?;
        File::open(&self.directory)?.sync_all()
    }
}

fn io_fault(error: io::Error) -> Fault {
    Fault::new("store", error.to_string())
}

fn main() -> ExitCode {
    Daemon::new("counterd")
        .config::<Settings>()
        .state(Store::open)
        .method(Method::new("add", Store::add).idempotent())
        .method(Method::new("total", Store::total).idempotent())
        .run()
}
