//! Binding sockets, and the files of Unix sockets.

use std::fs::{self, Metadata, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, fchown};
use std::path::{Path, PathBuf};

use crate::config::{Access, Mode};
use crate::master::error::Error;
use crate::proto::names::Address;
use crate::sys::memory::plain_file;
use crate::sys::user::{Group, User};
use crate::sys::{process, socket};

/// The cause in an error about an address in use. [`explain`](super::conflict::OwnListeners::explain) replaces it if
/// this daemon itself uses the address.
pub(crate) const IN_USE_CAUSE: &str = "another process listens there";

/// Returns the error for a socket that cannot be bound, with a remedy as far as the cause shows one.
pub(crate) fn cannot_bind(doing: &str, address: &Address, error: &io::Error) -> Error {
    let advice = match (address, error.kind()) {
        (Address::Tcp(_), io::ErrorKind::AddrInUse) => format!("; {IN_USE_CAUSE}"),
        (Address::Tcp(address), io::ErrorKind::PermissionDenied) if address.port() < 1024 => {
            "; ports below 1024 need the capability CAP_NET_BIND_SERVICE".to_owned()
        }
        (Address::Tcp(_), _) if socket::is_family_unavailable(error) => {
            "; RestrictAddressFamilies= of its unit forbids it, or the kernel cannot do it"
                .to_owned()
        }
        (Address::Unix(_), io::ErrorKind::NotFound) => "; its directory must exist".to_owned(),
        (Address::Unix(_), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem) => {
            format!(
                "; uid {} must be able to write to its directory",
                process::user()
            )
        }
        _ => String::new(),
    };
    Error::unavailable(doing, error).with(&advice)
}

/// Binds a socket that does not listen yet. Returns it with its actual address, and its file if it has one.
pub(crate) fn bind(
    wanted: &Address,
    access: Option<&Access>,
    freebind: bool,
) -> io::Result<(OwnedFd, Address, Option<SocketFile>)> {
    match wanted {
        Address::Tcp(address) => {
            let socket = socket::bind_tcp(*address, freebind)?;
            let bound = socket::local_address(&socket)?.unwrap_or(*address);
            Ok((socket, Address::Tcp(bound), None))
        }
        Address::Unix(path) => {
            let (socket, file) = bind_unix(path, access)?;
            Ok((socket, wanted.clone(), Some(file)))
        }
    }
}

/// Device and inode number of a file.
pub(crate) type FileIdentity = (u64, u64);

/// The file of a bound Unix socket; dropping it removes the file if it is still the same one.
#[derive(Debug)]
pub(crate) struct SocketFile {
    pub(crate) path: PathBuf,
    /// Device and inode number; 0 for a missing file.
    pub(crate) identity: FileIdentity,
    /// User and group with which the file was created.
    pub(crate) default_owner: (u32, u32),
    /// The access that was set last.
    access: Option<Access>,
    /// Dropping this record leaves the file: it belongs to the next master, or to the previous one until this one
    /// serves.
    pub(crate) is_left: bool,
}

impl SocketFile {
    /// Creates the record for the file of a socket that was just bound.
    pub(crate) fn new(path: &Path) -> io::Result<SocketFile> {
        let found = fs::symlink_metadata(path)?;
        let default_owner = (found.uid(), found.gid());
        Ok(SocketFile {
            path: path.to_owned(),
            identity: identity(&found),
            default_owner,
            access: None,
            is_left: false,
        })
    }

    /// Restores the record of the file that an earlier master, or this process before an upgrade, has bound. Another
    /// file at its path belongs to another process. Version 0.1.0 recorded no identity: then the file at the path
    /// counts as the same.
    pub(crate) fn restore(path: &Path, recorded: Option<FileIdentity>) -> SocketFile {
        match SocketFile::new(path) {
            Ok(file) if recorded.is_none_or(|recorded| recorded == file.identity) => file,
            Ok(file) => {
                // Dropping it must not remove it.
                drop(file.left());
                SocketFile::missing(path)
            }
            Err(_) => SocketFile::missing(path),
        }
    }

    /// Creates the record of a missing file.
    pub(crate) fn missing(path: &Path) -> SocketFile {
        SocketFile {
            path: path.to_owned(),
            identity: (0, 0),
            default_owner: (0, 0),
            access: None,
            is_left: false,
        }
    }

    /// Leaves the file where it is when the record is dropped.
    pub(crate) fn left(mut self) -> SocketFile {
        self.is_left = true;
        self
    }

    /// Returns the file's metadata, if it is still there.
    pub(crate) fn metadata(&self) -> Option<Metadata> {
        fs::symlink_metadata(&self.path)
            .ok()
            .filter(|found| identity(found) == self.identity)
    }

    /// Removes the file, if it is still there.
    pub(crate) fn remove(&self) {
        if self.metadata().is_some() {
            let _ = fs::remove_file(&self.path);
        }
    }

    /// Returns the user and the group that the file must have.
    fn owner_by(&self, access: &Access) -> (u32, u32) {
        let uid = access
            .owner
            .as_ref()
            .map_or(self.default_owner.0, |owner| owner.uid);
        let gid = access
            .group
            .as_ref()
            .map_or(self.default_owner.1, |group| group.gid);
        (uid, gid)
    }

    /// Checks whether the owner of the file can be set, by setting that of another file.
    pub(crate) fn check_access(&self, access: &Access) -> io::Result<()> {
        if self.access.as_ref() == Some(access) {
            return Ok(());
        }
        let found = self.metadata().ok_or_else(gone)?;
        let (uid, gid) = self.owner_by(access);
        if (found.uid(), found.gid()) != (uid, gid) {
            fchown(plain_file(c"access")?, Some(uid), Some(gid))?;
        }
        Ok(())
    }

    /// Sets the owner and mode of the file. Access that was set before is not set again: the operator may have changed
    /// it since, or have removed the file.
    pub(crate) fn set_access(&mut self, access: &Access) -> io::Result<()> {
        if self.access.as_ref() == Some(access) {
            return Ok(());
        }
        let found = self.metadata().ok_or_else(gone)?;
        let (uid, gid) = self.owner_by(access);
        // Between the two steps the file has neither its old nor its new access.
        self.access = None;
        if (found.uid(), found.gid()) != (uid, gid) {
            chown(&self.path, Some(uid), Some(gid))?;
        }
        fs::set_permissions(&self.path, Permissions::from_mode(access.mode.0))?;
        self.access = Some(access.clone());
        Ok(())
    }

    /// Sets the mode, and the owner and the group as far as this process may.
    pub(crate) fn restore_access(&mut self, access: &Access) -> io::Result<()> {
        let Err(e) = self.set_access(access) else {
            return Ok(());
        };
        let path = self.path.display();
        log::warn!("cannot set the owner of {path} as it was: {e}; setting its mode");
        let without_owner = Access {
            owner: None,
            ..access.clone()
        };
        let mode_alone = Access {
            group: None,
            ..without_owner.clone()
        };
        self.set_access(&without_owner)
            .or_else(|_| self.set_access(&mode_alone))
    }
}

fn gone() -> io::Error {
    let why = "its file is gone, or is another one's";
    io::Error::new(io::ErrorKind::NotFound, why)
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if !self.is_left {
            self.remove();
        }
    }
}

/// Returns the access to the file of a Unix socket that another process has bound, if the file exists.
pub(crate) fn access_of(path: &Path) -> Option<Access> {
    let found = fs::symlink_metadata(path)
        .ok()
        .filter(|found| found.file_type().is_socket())?;
    let owner = User {
        name: found.uid().to_string(),
        uid: found.uid(),
    };
    let group = Group {
        name: found.gid().to_string(),
        gid: found.gid(),
    };
    Some(Access {
        mode: Mode(found.mode() & 0o777),
        owner: Some(owner),
        group: Some(group),
    })
}

fn identity(file: &Metadata) -> FileIdentity {
    (file.dev(), file.ino())
}

/// Binds a Unix socket and sets the mode and owner of its file before any client can connect. A file that an earlier
/// daemon has left is replaced, if it is a socket and no process answers on it.
pub(crate) fn bind_unix(path: &Path, access: Option<&Access>) -> io::Result<(OwnedFd, SocketFile)> {
    let socket = match socket::bind_unix(path) {
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => {
            remove_stale(path)?;
            socket::bind_unix(path)?
        }
        bound => bound?,
    };
    let mut file = SocketFile::new(path)?;
    if let Some(access) = access {
        file.set_access(access)?;
    }
    Ok((socket, file))
}

fn remove_stale(path: &Path) -> io::Result<()> {
    let in_use = |what: &str| io::Error::new(io::ErrorKind::AddrInUse, what.to_owned());
    if !fs::symlink_metadata(path)?.file_type().is_socket() {
        return Err(in_use(
            "there is a file of that name, which is not a socket",
        ));
    }
    if socket::is_unix_alive(path)? {
        return Err(in_use(IN_USE_CAUSE));
    }
    log::info!(
        "{} was left by a process that is gone; replacing it",
        path.display()
    );
    fs::remove_file(path)
}
