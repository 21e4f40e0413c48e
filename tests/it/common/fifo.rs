//! FIFOs, which programs read to wait for the test.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

/// A FIFO whose reader waits for a line of the test.
#[derive(Debug)]
pub struct Fifo {
    path: PathBuf,
    file: File,
}

impl Fifo {
    /// Makes a FIFO in this directory.
    #[track_caller]
    pub fn new(directory: &Path) -> Fifo {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = directory.join(format!("fifo-{number}"));
        mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR).expect("it is our directory");
        // Both ends, so that opening it does not wait and written bytes stay.
        let both = File::options().read(true).write(true).open(&path);
        let file = both.expect("it is our FIFO");
        Fifo { path, file }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Lets the reader continue, with the line `done`.
    pub fn let_go(&mut self) {
        let written = self.file.write_all(b"done\n");
        written.expect("a FIFO has room for a line");
    }
}
