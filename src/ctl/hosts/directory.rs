//! The directory of the forwarded sockets, which this process removes also when a signal ends it.

use std::fs::{self, DirBuilder};
use std::io::{self, ErrorKind};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{process, thread};

use crate::sys::poll::{self, Interest};
use crate::sys::signal::{self, Signal, Signals};

/// A directory that only this user can read, removed when it is dropped.
#[derive(Debug)]
pub(super) struct PrivateDirectory(PathBuf);

impl PrivateDirectory {
    /// Creates it in this directory, under a name that nothing has.
    ///
    /// # Errors
    /// Those of mkdir(2).
    pub(super) fn create(parent: &Path) -> io::Result<PrivateDirectory> {
        let pid = process::id();
        for number in 0..MAX_TRIES {
            let path = parent.join(format!("fdpassctl-{pid}-{number}"));
            match DirBuilder::new().mode(0o700).create(&path) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                created => return created.map(|()| PrivateDirectory(path)),
            }
        }
        Err(ErrorKind::AlreadyExists.into())
    }

    /// Makes a signal that ends this process remove the directory first. A signal that is ignored, as by nohup(1),
    /// stays ignored.
    ///
    /// # Errors
    /// Those of catching signals and of starting a thread.
    pub(super) fn remove_at_signals(&self) -> io::Result<()> {
        let mut ending = ENDING.to_vec();
        ending.retain(|signal| !signal::is_ignored(*signal));
        let signals = Signals::catch(&ending)?;
        let path = self.0.clone();
        thread::Builder::new().spawn(move || remove_at_signal(signals, &path))?;
        Ok(())
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for PrivateDirectory {
    fn drop(&mut self) {
        remove(&self.0);
    }
}

/// Waits for a signal, removes the directory, and lets the signal end this process, with which the kernel ends ssh.
fn remove_at_signal(mut signals: Signals, directory: &Path) {
    while poll::wait_for(&signals, Interest::Read, Duration::from_secs(3600)).is_ok() {
        if let Some(signal) = signals.take().first() {
            remove(directory);
            signal::end_by(*signal);
        }
    }
}

/// Removes the directory and what is in it. An ssh may create a socket at this moment.
fn remove(directory: &Path) {
    for _ in 0..MAX_TRIES {
        match fs::remove_dir_all(directory) {
            Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => {}
            _ => return,
        }
    }
}

/// The signals by which a user or a system ends programs.
const ENDING: [Signal; 3] = [Signal::Terminate, Signal::Interrupt, Signal::Hangup];

const MAX_TRIES: usize = 1000;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_directory_is_private_and_removed_with_its_files() {
        let parent = tempfile::tempdir().expect("a directory");
        let taken = parent.path().join(format!("fdpassctl-{}-0", process::id()));
        fs::create_dir(&taken).expect("it is ours");
        let directory = PrivateDirectory::create(parent.path()).expect("a directory");
        let path = directory.path().to_owned();
        assert_ne!(path, taken);
        let mode = fs::metadata(&path)
            .expect("it is there")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o700);
        fs::write(path.join("0.err"), "").expect("it is ours");
        drop(directory);
        assert!(!path.exists() && taken.exists());
    }
}
