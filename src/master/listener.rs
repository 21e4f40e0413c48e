//! Where clients and control clients connect: binding, and leaving nothing behind.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::Error;
use crate::config::{Access, Listen, Mode};
use crate::proto::frame::OrderRule;
use crate::proto::names::Address;
use crate::sys::{process, socket};

/// A listener of clients.
#[derive(Debug)]
pub(super) struct Listener {
    socket: OwnedFd,
    /// Where it really is: with the port that the kernel chose, if that was asked for.
    pub(super) address: Address,
    pub(super) byte_order: OrderRule,
    pub(super) accepted: u64,
    /// Its file, for a Unix socket.
    _file: Option<SocketFile>,
}

impl Listener {
    /// Binds and listens.
    pub(super) fn bind(wanted: &Listen, keepalive: Option<Duration>) -> Result<Listener, Error> {
        let fail = |e: io::Error| Error::unavailable(&format!("listen on {}", wanted.address), &e);
        let (socket, address, file) = match &wanted.address {
            Address::Tcp(address) => {
                let socket = socket::bind_tcp(*address, keepalive).map_err(fail)?;
                let bound = socket::local_address(&socket).map_err(fail)?.unwrap_or(*address);
                (socket, Address::Tcp(bound), None)
            }
            Address::Unix(path) => {
                let (socket, file) = bind_unix(path, wanted.access.as_ref()).map_err(fail)?;
                (socket, wanted.address.clone(), Some(file))
            }
        };
        socket::listen(&socket, wanted.backlog).map_err(fail)?;
        Ok(Listener { socket, address, byte_order: wanted.byte_order, accepted: 0, _file: file })
    }

    /// Clients that wait, and how many can; nothing for a Unix socket, of which the kernel does not tell.
    pub(super) fn queue(&self) -> Option<(u32, u32)> {
        match self.address {
            Address::Tcp(_) => socket::queue(&self.socket).ok(),
            Address::Unix(_) => None,
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The listener of control clients.
#[derive(Debug)]
pub(super) struct ControlListener {
    socket: OwnedFd,
    _file: SocketFile,
}

impl ControlListener {
    /// Binds and listens at `path`. `is_default` is whether nobody asked for just that path; then its directory is
    /// made, if need be.
    pub(super) fn bind(path: &Path, is_default: bool, mode: Mode) -> Result<ControlListener, Error> {
        let fail = |e: io::Error| Error::unavailable(&format!("open the control socket {}", path.display()), &e);
        if is_default {
            make_directory(path.parent().unwrap_or(Path::new("/"))).map_err(fail)?;
        }
        let access = Access { mode, owner: None, group: None };
        let (socket, file) = bind_unix(path, Some(&access)).map_err(fail)?;
        socket::listen(&socket, 128).map_err(fail)?;
        Ok(ControlListener { socket, _file: file })
    }
}

impl AsFd for ControlListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A directory for the control socket, that others may look into only where that is the custom. What is there
/// already must be a directory and ours: in /tmp anybody may have been there before.
fn make_directory(path: &Path) -> io::Result<()> {
    let mode = if path.starts_with("/run") { 0o755 } else { 0o700 };
    match DirBuilder::new().mode(mode).create(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        made => return made,
    }
    let found = fs::symlink_metadata(path)?;
    if !found.is_dir() {
        return Err(io::Error::other(format!("{} is not a directory", path.display())));
    }
    if found.uid() != process::user() {
        let owner = found.uid();
        let sentence = format!("{} belongs to uid {owner}, not to this daemon's user", path.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, sentence));
    }
    Ok(())
}

/// The file of a bound Unix socket, removed when dropped if it is still that one.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|found| (found.dev(), found.ino()) == self.identity) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Binds a Unix socket and gives its file its mode and owner, before anybody can connect. A file that a daemon before
/// left there is replaced, if it is a socket and nobody answers on it.
fn bind_unix(path: &Path, access: Option<&Access>) -> io::Result<(OwnedFd, SocketFile)> {
    let socket = match socket::bind_unix(path) {
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => {
            remove_stale(path)?;
            socket::bind_unix(path)?
        }
        bound => bound?,
    };
    let found = fs::symlink_metadata(path)?;
    let file = SocketFile { path: path.to_owned(), identity: (found.dev(), found.ino()) };
    if let Some(access) = access {
        let (owner, group) = (access.owner.as_ref().map(|o| o.uid), access.group.as_ref().map(|g| g.gid));
        if owner.is_some() || group.is_some() {
            chown(path, owner, group)?;
        }
        fs::set_permissions(path, Permissions::from_mode(access.mode.0))?;
    }
    Ok((socket, file))
}

fn remove_stale(path: &Path) -> io::Result<()> {
    let in_use = |what: &str| io::Error::new(io::ErrorKind::AddrInUse, what.to_owned());
    if !fs::symlink_metadata(path)?.file_type().is_socket() {
        return Err(in_use("there is a file of that name, which is not a socket"));
    }
    if socket::is_unix_alive(path)? {
        return Err(in_use("another process listens there"));
    }
    log::info!("{} was left by a process that is gone; replacing it", path.display());
    fs::remove_file(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(path: PathBuf) -> Listen {
        Listen::new(Address::Unix(path))
    }

    fn refusal(wanted: &Listen) -> String {
        Listener::bind(wanted, None).expect_err("must not bind").to_string()
    }

    #[test]
    fn a_stale_socket_is_replaced_a_live_one_and_a_file_are_not() {
        let directory = tempfile::tempdir().expect("tempdir");
        let path = directory.path().join("rpc.sock");
        let live = Listener::bind(&at(path.clone()), None).expect("bind");
        assert!(refusal(&at(path.clone())).contains("another process listens there"));
        std::mem::forget(live._file);
        drop(live.socket);
        assert!(path.exists());
        drop(Listener::bind(&at(path.clone()), None).expect("the stale one is replaced"));
        assert!(!path.exists(), "removed at the end");
        fs::write(&path, "precious").expect("write");
        assert!(refusal(&at(path.clone())).contains("not a socket"));
        assert_eq!(fs::read_to_string(&path).expect("read"), "precious");
    }

    #[test]
    fn a_socket_file_that_is_another_ones_is_left_alone() {
        let directory = tempfile::tempdir().expect("tempdir");
        let path = directory.path().join("rpc.sock");
        let first = Listener::bind(&at(path.clone()), None).expect("bind");
        fs::rename(&path, directory.path().join("moved")).expect("rename");
        let second = Listener::bind(&at(path.clone()), None).expect("bind");
        drop(first);
        assert!(path.exists());
        drop(second);
        assert!(!path.exists());
    }

    #[test]
    fn the_mode_is_set_and_a_link_for_a_directory_is_refused() {
        let directory = tempfile::tempdir().expect("tempdir");
        let path = directory.path().join("rpc.sock");
        let listener = Listener::bind(&at(path.clone()), None).expect("bind");
        assert_eq!(fs::metadata(&path).expect("stat").mode() & 0o777, 0o660);
        assert_eq!(listener.queue(), None);
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(directory.path(), &link).expect("symlink");
        let error = ControlListener::bind(&link.join("control.sock"), true, Mode(0o600)).expect_err("a link");
        assert!(error.to_string().contains("not a directory"), "{error}");
    }
}
