//! The link from the usual place of the control socket to the configured one.
//!
//! fdpassctl looks for a daemon at the usual places; `ExecReload=` and `ExecStop=` of a unit run fdpassctl. It would
//! not find a daemon whose configuration names another place. So the daemon creates a symbolic link at the first of the
//! usual places, which is in the directory that the service manager has created for it ($RUNTIME_DIRECTORY). Without
//! such a directory it creates none, because the usual place may be that of another daemon.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

use crate::proto::control::places;
use crate::sys::{process, socket};

/// The link; dropping it removes the link if it still leads to the same socket.
#[derive(Debug)]
pub(crate) struct ControlLink {
    path: PathBuf,
    to: PathBuf,
}

impl ControlLink {
    /// Creates the link of a daemon of this name, if its control socket is outside its runtime directory.
    pub(crate) fn create(name: &str, socket: &Path) -> Option<ControlLink> {
        env::var_os("RUNTIME_DIRECTORY").filter(|directory| !directory.is_empty())?;
        let path = places(name, process::user(), |key| env::var_os(key))
            .into_iter()
            .next()?;
        if path == socket {
            return None;
        }
        match put(&path, socket) {
            Ok(()) => Some(ControlLink {
                path,
                to: socket.to_owned(),
            }),
            Err(e) => {
                let (path, socket) = (path.display(), socket.display());
                log::warn!(
                    "cannot link {path} to the control socket {socket}: {e}; \"systemctl reload\" and fdpassctl do not find \
                     the daemon without --socket {socket}"
                );
                None
            }
        }
    }
}

impl Drop for ControlLink {
    fn drop(&mut self) {
        if fs::read_link(&self.path).is_ok_and(|to| to == self.to) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn put(path: &Path, socket: &Path) -> io::Result<()> {
    // The link of this process from before an upgrade is kept.
    if fs::read_link(path).is_ok_and(|to| to == socket) {
        return Ok(());
    }
    remove_link(path)?;
    symlink(socket, path)
}

/// Removes a link that an earlier daemon has left, if no process listens where it leads to.
///
/// # Errors
/// `AddrInUse` when a process listens where it leads to; those of the file system.
pub(crate) fn remove_link(path: &Path) -> io::Result<()> {
    if fs::read_link(path).is_err() {
        return Ok(());
    }
    if socket::is_unix_alive(path).unwrap_or(false) {
        return Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            crate::master::listeners::socket_file::IN_USE_CAUSE,
        ));
    }
    fs::remove_file(path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_link_is_replaced_unless_its_target_is_alive() {
        let directory = tempfile::tempdir().expect("a directory");
        let [path, other, ours] =
            ["control.sock", "other", "ours"].map(|name| directory.path().join(name));
        put(&path, &other).expect("nothing is there");
        put(&path, &ours).expect("it leads nowhere");
        assert_eq!(fs::read_link(&path).expect("a link"), ours);
        put(&path, &ours).expect("it is that one");
        let listener = UnixListener::bind(&ours).expect("the path is free");
        assert_eq!(
            put(&path, &other).expect_err("it is alive").kind(),
            io::ErrorKind::AddrInUse
        );
        drop(listener);
        put(&path, &other).expect("it is dead");
        fs::remove_file(&path).expect("it is ours");
        fs::write(&path, "").expect("it is ours");
        assert_eq!(
            put(&path, &other).expect_err("a file").kind(),
            io::ErrorKind::AlreadyExists
        );
        remove_link(&path).expect("a file is not a link");
        assert!(path.exists());
    }
}
