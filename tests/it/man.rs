//! The man pages say what the programs do, and nothing else; they can be read, and their examples work.

mod examples;
mod format;
mod programs;
mod replies;

use std::fs;
use std::path::Path;

fn read(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("cannot read {}: {e}", path.display()))
}
