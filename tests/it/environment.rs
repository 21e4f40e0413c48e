//! Files, lookups, limits and terminals around the daemon.

mod files;
mod lookups;
mod stalled_log;
mod terminals;

use std::fs;
use std::path::Path;
use std::process::Command;

fn make_fifo(path: &Path) {
    let _ = fs::remove_file(path);
    assert!(
        Command::new("mkfifo")
            .arg(path)
            .status()
            .expect("coreutils are there")
            .success()
    );
}
