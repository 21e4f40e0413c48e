//! The listener of control clients.

use std::fs::{self, DirBuilder};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;
use std::{env, io};

use crate::config::{Access, Mode};
use crate::master::error::Error;
use crate::master::listeners::control_link::{self, ControlLink};
use crate::master::listeners::socket_file::{FileIdentity, SocketFile, bind_unix, cannot_bind};
use crate::proto::control::runtime_directory;
use crate::proto::names::Address;
use crate::sys::listening::listen;
use crate::sys::{process, socket};

/// The backlog of the control socket. The kernel lets one more client wait (`unix_recvq_full()`).
pub(crate) const CONTROL_BACKLOG: u32 = 128;

/// The listener of control clients.
#[derive(Debug)]
pub(crate) struct ControlListener {
    socket: OwnedFd,
    file: SocketFile,
    /// The link at the default path.
    link: Option<ControlLink>,
}

impl ControlListener {
    /// Binds and listens at `path`. `is_default` is true if the path was not configured; then its directory is created
    /// if needed.
    pub(crate) fn bind(
        path: &Path,
        is_default: bool,
        mode: Mode,
    ) -> Result<ControlListener, Error> {
        let doing = format!("open the control socket {}", path.display());
        let fail = |e: io::Error| {
            let error = cannot_bind(&doing, &Address::Unix(path.to_owned()), &e);
            match e.kind() {
                io::ErrorKind::AddrInUse if is_default => {
                    error.with("; a second daemon needs a $RUNTIME_DIRECTORY of its own")
                }
                io::ErrorKind::ReadOnlyFilesystem if is_default => error.with(
                    "; mount a tmpfs there, or set $RUNTIME_DIRECTORY to a writable directory",
                ),
                io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied if is_default => {
                    error.with("; $RUNTIME_DIRECTORY can name another one")
                }
                _ => error,
            }
        };
        if is_default {
            make_directory(path.parent().unwrap_or(Path::new("/"))).map_err(fail)?;
            control_link::remove_link(path).map_err(fail)?;
        }
        let access = Access {
            mode,
            owner: None,
            group: None,
        };
        let (socket, file) = bind_unix(path, Some(&access)).map_err(fail)?;
        listen(&socket, CONTROL_BACKLOG).map_err(fail)?;
        Ok(ControlListener {
            socket,
            file,
            link: None,
        })
    }

    /// Replaces a socket that has ended by another one at the same path.
    pub(crate) fn bind_again(&mut self, is_default: bool, mode: Mode) -> Result<(), Error> {
        self.file.remove();
        let mut another = ControlListener::bind(self.path(), is_default, mode)?;
        another.link = self.link.take();
        // The earlier file was replaced. Its inode number may be that of the new one.
        drop(std::mem::replace(self, another).file.left());
        Ok(())
    }

    /// Restores the listener that this process had before an upgrade. Its file may be gone, or may have been replaced;
    /// `recorded` identifies the one that was bound.
    pub(crate) fn from_fd(
        socket: OwnedFd,
        path: &Path,
        recorded: Option<FileIdentity>,
    ) -> ControlListener {
        ControlListener {
            socket,
            file: SocketFile::restore(path, recorded),
            link: None,
        }
    }

    /// Creates a placeholder for a socket that cannot be opened now: no client can connect until it is bound again.
    ///
    /// # Errors
    /// Those of socket(2).
    pub(crate) fn missing(path: &Path) -> io::Result<ControlListener> {
        Ok(ControlListener {
            socket: socket::unbound()?,
            file: SocketFile::missing(path),
            link: None,
        })
    }

    /// Returns whether the socket's file exists, by which clients find it.
    pub(crate) fn is_reachable(&self) -> bool {
        self.file.metadata().is_some()
    }

    /// Creates the link at the usual place, if the socket is elsewhere.
    pub(crate) fn link(&mut self, name: &str) {
        self.link = ControlLink::create(name, &self.file.path);
    }

    /// Returns the identity of the socket's file.
    pub(crate) fn file_identity(&self) -> FileIdentity {
        self.file.identity
    }

    /// Returns the path of the socket.
    pub(crate) fn path(&self) -> &Path {
        &self.file.path
    }

    /// Sets the mode of the socket's file, which decides which users can connect from now on.
    pub(crate) fn set_mode(&mut self, mode: Mode) -> Result<(), Error> {
        let set = self.file.set_access(&Access {
            mode,
            owner: None,
            group: None,
        });
        set.map_err(|e| {
            Error::unavailable(
                &format!("change the control socket {}", self.file.path.display()),
                &e,
            )
        })
    }
}

impl AsFd for ControlListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Creates a directory for the control socket. Other users may search it if it is in /run. An existing directory must
/// belong to the daemon's user, because in /tmp any user may have created it. One that $RUNTIME_DIRECTORY names may
/// belong to another user: a volume that is mounted in a container belongs to root.
fn make_directory(path: &Path) -> io::Result<()> {
    let mode = if path.starts_with("/run") {
        0o755
    } else {
        0o700
    };
    match DirBuilder::new().mode(mode).create(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        made => return made,
    }
    let found = fs::symlink_metadata(path)?;
    if !found.is_dir() {
        return Err(io::Error::other(format!(
            "{} is not a directory",
            path.display()
        )));
    }
    let named = runtime_directory(|key| env::var_os(key));
    if found.uid() != process::user() && named.as_deref() != Some(path) {
        let owner = found.uid();
        let sentence = format!(
            "{} belongs to uid {owner}, not to this daemon's user",
            path.display()
        );
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, sentence));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mode_of_the_control_socket_can_be_changed() {
        let directory = tempfile::tempdir().expect("tempdir");
        let path = directory.path().join("control.sock");
        let mut control = ControlListener::bind(&path, false, Mode(0o660)).expect("bind");
        control.set_mode(Mode(0o600)).expect("it is ours");
        assert_eq!(fs::metadata(&path).expect("stat").mode() & 0o777, 0o600);
    }
}
