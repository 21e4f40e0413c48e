//! The binary and its configuration: its messages about a file, and its reaction when it cannot do what the file wants.

mod check;
mod directory;
mod sockets;
mod variables;

use std::fs;
use std::path::PathBuf;

use tempfile::TempDir;

use crate::common::FDPASSD;
use crate::common::program::{Said, run};

/// A configuration file, in a directory of its own.
struct File {
    path: PathBuf,
    _directory: TempDir,
}

impl File {
    fn new(text: &str) -> File {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("config.toml");
        fs::write(&path, text).expect("it is our directory");
        File {
            path,
            _directory: directory,
        }
    }

    fn name(&self) -> String {
        self.path.display().to_string()
    }

    #[track_caller]
    fn test(&self) -> Said {
        run(FDPASSD, &["-t", "-c", &self.name()])
    }

    /// The effective configuration.
    #[track_caller]
    fn dump(&self) -> String {
        let said = run(FDPASSD, &["-T", "-c", &self.name()]);
        assert_eq!((said.code, said.err.as_str()), (Some(0), ""));
        said.out
    }
}
