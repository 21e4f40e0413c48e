//! Where clients and control clients connect: binding, keeping what a reload wants again, and leaving nothing behind.

use std::fs::{self, DirBuilder, Metadata, Permissions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::config::{Access, Listen, Mode, Source};
use crate::master::control::link::{self, ControlLink};
use crate::master::error::Error;
use crate::master::handover::state_file::ListenerRecord;
use crate::master::listeners::activation::Handed;
use crate::master::listeners::conflict::ANOTHER;
use crate::master::listeners::outage::{FILE_GONE, Outage};
use crate::proto::frame::OrderRule;
use crate::proto::names::Address;
use crate::sys::listening::{is_listening, listen, share_address};
use crate::sys::user::{Group, User};
use crate::sys::{process, socket};

/// A listener that is to be.
#[derive(Clone, Debug)]
pub(crate) struct Wanted<'c> {
    /// As whose entry.
    pub(crate) entry: &'c Listen,
    pub(crate) place: Place,
}

impl Wanted<'_> {
    /// Where it is to be bound, if it is.
    pub(crate) fn address(&self) -> Option<&Address> {
        match &self.place {
            Place::Bound(address) => Some(address),
            Place::Handed(_) => None,
        }
    }
}

/// What tells a listener from all others in a configuration, and finds it again in the next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// The address that it is to be bound to.
    Bound(Address),
    /// The number of a socket that was handed over.
    Handed(usize),
}

/// A listener of clients.
#[derive(Debug)]
pub(crate) struct Listener {
    /// Its own for good: others come and go at a reload.
    pub(crate) number: u32,
    socket: OwnedFd,
    /// Where the configuration wants it.
    place: Place,
    /// Where it was wanted is not known: a configuration that wants any port of its host gets it.
    is_found: bool,
    /// Where it really is: with the port that the kernel chose, if that was asked for.
    pub(crate) address: Address,
    pub(crate) byte_order: OrderRule,
    pub(crate) accepted: u64,
    /// Its file, for a Unix socket that we have bound.
    file: Option<SocketFile>,
    /// What it was opened or adopted for last.
    entry: Listen,
    /// Another process has ended it, or its address is not there yet, and it is not bound again. Then it is not in the
    /// poller.
    pub(crate) outage: Option<Outage>,
    /// It was never bound.
    is_missing: bool,
}

impl Listener {
    /// Binds and listens, or takes up what was handed over. No other listener has ever had `number`.
    pub(crate) fn open(
        number: u32,
        wanted: &Wanted<'_>,
        handed: &Handed,
        keepalive: Option<Duration>,
    ) -> Result<Listener, Error> {
        let Wanted { entry, place } = wanted;
        let fail = |e: io::Error| {
            let doing = format!("listen on {}", entry.source);
            match place {
                Place::Bound(address) => match handed.name_at(address) {
                    Some(name) => Error::unavailable(&doing, &e).with(&format!(
                        "; systemd has bound it and handed it over: write \"systemd:{name}\""
                    )),
                    None => cannot_bind(&doing, address, &e),
                },
                Place::Handed(_) => Error::unavailable(&doing, &e),
            }
        };
        let (socket, address, file) = match place {
            Place::Bound(address) => {
                bind(address, entry.access.as_ref(), entry.freebind).map_err(fail)?
            }
            Place::Handed(index) => {
                let (socket, address) = handed.listener(*index).map_err(fail)?;
                (socket, address, None)
            }
        };
        if let Address::Tcp(_) = address {
            socket::set_keepalive(&socket, keepalive).map_err(fail)?;
        }
        // One that was handed over may have been ended: the poller reports that.
        if file.is_some() || matches!(place, Place::Bound(_)) || is_listening(&socket) {
            listen(&socket, entry.backlog).map_err(fail)?;
        }
        let (place, byte_order, entry) = (place.clone(), entry.byte_order, (*entry).clone());
        Ok(Listener {
            number,
            socket,
            place,
            is_found: false,
            address,
            byte_order,
            accepted: 0,
            file,
            entry,
            outage: None,
            is_missing: false,
        })
    }

    /// In the place of one whose address no interface has yet. It is bound as soon as one has it.
    ///
    /// # Errors
    /// `refusal`, unless that is what is wrong.
    pub(crate) fn missing(
        number: u32,
        wanted: &Wanted<'_>,
        refusal: Error,
        now: Instant,
    ) -> Result<Listener, Error> {
        let (Place::Bound(Address::Tcp(at)), Error::NoAddress(_)) = (&wanted.place, &refusal)
        else {
            return Err(refusal);
        };
        let socket = socket::unbound_tcp(*at).map_err(Error::system("make a socket"))?;
        let (place, entry, address) = (
            wanted.place.clone(),
            wanted.entry.clone(),
            Address::Tcp(*at),
        );
        let (byte_order, outage) = (entry.byte_order, Some(Outage::after(&refusal, now)));
        let (accepted, file, is_found, is_missing) = (0, None, false, true);
        Ok(Listener {
            number,
            socket,
            place,
            is_found,
            address,
            byte_order,
            accepted,
            file,
            entry,
            outage,
            is_missing,
        })
    }

    /// One that a master before this one had, as it was left.
    ///
    /// # Errors
    /// When the socket is not what the record says.
    pub(crate) fn kept(record: &ListenerRecord, socket: OwnedFd) -> Result<Listener, String> {
        let address: Address = record.address.parse()?;
        let is_found = record.configured.is_empty();
        let configured = if is_found {
            address.clone()
        } else {
            record.configured.parse()?
        };
        let file = match &address {
            Address::Tcp(_) => None,
            // The operator may have removed it since. Until this master serves it is left where it is.
            Address::Unix(path) => Some(
                SocketFile::of(path)
                    .unwrap_or_else(|_| SocketFile::missing(path))
                    .left(),
            ),
        };
        let ListenerRecord {
            number, accepted, ..
        } = *record;
        let entry = Listen::new(Source::Bound(configured.clone()));
        let (place, byte_order) = (Place::Bound(configured), OrderRule::Little);
        Ok(Listener {
            number,
            socket,
            place,
            is_found,
            address,
            byte_order,
            accepted,
            file,
            entry,
            outage: None,
            is_missing: false,
        })
    }

    /// It is this master's from now on.
    pub(crate) fn own(&mut self) {
        if let Some(file) = &mut self.file {
            file.is_left = false;
        }
    }

    /// The configuration wants it there.
    pub(crate) fn set_place(&mut self, place: &Place) {
        (self.place, self.is_found) = (place.clone(), false);
    }

    /// Whether it is where this entry wants a listener to be, although another one may have been what it was made for.
    fn is_at(&self, wanted: &Place) -> bool {
        match (wanted, &self.place) {
            (Place::Bound(wanted), Place::Bound(_)) => *wanted == self.address,
            (Place::Bound(_) | Place::Handed(_), _) => false,
        }
    }

    /// Whether it is on the host of which an entry wants any port.
    fn is_on_host(&self, wanted: &Place) -> bool {
        match (wanted, &self.address) {
            (Place::Bound(Address::Tcp(wanted)), Address::Tcp(address)) => {
                self.is_found && wanted.port() == 0 && wanted.ip() == address.ip()
            }
            _ => false,
        }
    }

    /// The address that it was bound to, as configured; none if it was handed over.
    pub(crate) fn configured(&self) -> Option<&Address> {
        if let Place::Bound(address) = &self.place {
            Some(address)
        } else {
            None
        }
    }

    /// How the next master is told of it; nothing if it gets this one from whoever has bound it.
    pub(crate) fn record(&self) -> Option<ListenerRecord> {
        if self.is_missing {
            return None;
        }
        let (configured, address) = (self.configured()?.to_string(), self.address.to_string());
        Some(ListenerRecord {
            number: self.number,
            configured,
            address,
            accepted: self.accepted,
        })
    }

    /// Why no client can connect, if so. Looks whether the file of a Unix socket is there.
    pub(crate) fn outage_reason(&self) -> Option<&str> {
        match &self.outage {
            Some(outage) => Some(&outage.reason),
            None => self.is_file_gone().then_some(FILE_GONE),
        }
    }

    /// Whether its file was removed, or replaced by another one.
    fn is_file_gone(&self) -> bool {
        self.outage.is_none()
            && self
                .file
                .as_ref()
                .is_some_and(|file| file.metadata().is_none())
    }

    /// Leaves the file where it is, for the next master.
    pub(crate) fn leave_file(&mut self) {
        if let Some(file) = &mut self.file {
            file.is_left = true;
        }
    }

    /// The file at its path is another listener's.
    pub(crate) fn disown_file(&mut self) {
        self.leave_file();
        self.file = None;
    }

    /// Becomes what is wanted now at the address that it has; clients that wait in its queue wait on.
    ///
    /// Only the file of a Unix socket can be refused, so it comes first: on an error nothing else has changed. What
    /// was adopted is undone by adopting what was wanted before.
    pub(crate) fn adopt(
        &mut self,
        wanted: &Listen,
        keepalive: Option<Duration>,
    ) -> Result<(), Error> {
        let fail = |e: io::Error| {
            Error::unavailable(&format!("change the listener {}", wanted.source), &e)
        };
        // One that is gone, or down, gets its access when it is bound anew.
        if let (false, None, Some(file), Some(access)) = (
            self.is_file_gone(),
            &self.outage,
            &mut self.file,
            &wanted.access,
        ) {
            file.set_access(access).map_err(fail)?;
        }
        if let Address::Tcp(_) = self.address {
            socket::set_keepalive(&self.socket, keepalive).map_err(fail)?;
        }
        // If it has ended the poller reports that, and another one is bound.
        if is_listening(&self.socket) {
            listen(&self.socket, wanted.backlog).map_err(fail)?;
        }
        self.byte_order = wanted.byte_order;
        self.entry = wanted.clone();
        Ok(())
    }

    /// Replaces a socket that has ended by another one at the same address.
    pub(crate) fn bind_anew(
        &mut self,
        handed: &mut Handed,
        keepalive: Option<Duration>,
    ) -> Result<(), Error> {
        let fail =
            |e: io::Error| cannot_bind(&format!("listen on {}", self.address), &self.address, &e);
        let access = match &self.address {
            Address::Tcp(_) => {
                share_address(&self.socket).map_err(fail)?;
                None
            }
            Address::Unix(path) => self.entry.access.clone().or_else(|| access_of(path)),
        };
        let (socket, address, file) =
            bind(&self.address, access.as_ref(), self.entry.freebind).map_err(fail)?;
        if let Address::Tcp(_) = self.address {
            socket::set_keepalive(&socket, keepalive).map_err(fail)?;
        }
        listen(&socket, self.entry.backlog).map_err(fail)?;
        if let Place::Handed(index) = self.place {
            // From now on a reload and an upgrade find this one.
            handed.replace(index, &socket).map_err(fail)?;
        }
        // The file of before was replaced. Its number may be that of the new one.
        self.leave_file();
        (self.socket, self.file) = (socket, file);
        if std::mem::take(&mut self.is_missing) {
            self.address = address;
        }
        Ok(())
    }

    /// Clients that wait, and how many can; nothing for a Unix socket, of which the kernel does not tell.
    pub(crate) fn queue(&self) -> Option<(u32, u32)> {
        match self.address {
            Address::Tcp(_) if self.outage.is_some() => None,
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

/// Why a socket cannot be bound, and what to do about it, as far as the error tells.
fn cannot_bind(doing: &str, address: &Address, error: &io::Error) -> Error {
    let advice = match (address, error.kind()) {
        (Address::Tcp(_), io::ErrorKind::AddrInUse) => format!("; {ANOTHER}"),
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

/// For each entry of a new configuration the index of the listener that is there for it already; the others are to be
/// bound. Port 0 is any port, so the first entry that asks for it gets the first that did, and so on.
///
/// A listener that no entry wants as it was wanted before goes to one that wants its address: nothing else can be bound there.
///
/// `is_fit` is whether a listener can be kept at all.
pub(crate) fn keep(
    listeners: &[Listener],
    wanted: &[Wanted<'_>],
    is_fit: fn(&Listener) -> bool,
) -> Vec<Option<usize>> {
    let mut free: Vec<bool> = listeners.iter().map(is_fit).collect();
    let mut kept = vec![None; wanted.len()];
    let fits: [fn(&Listener, &Place) -> bool; 3] = [
        |listener, place| listener.place == *place,
        Listener::is_at,
        Listener::is_on_host,
    ];
    for fits in fits {
        for (kept, wanted) in kept
            .iter_mut()
            .zip(wanted)
            .filter(|(kept, _)| kept.is_none())
        {
            *kept = (0..listeners.len()).find(|&i| free[i] && fits(&listeners[i], &wanted.place));
            if let Some(index) = *kept {
                free[index] = false;
            }
        }
    }
    kept
}

/// For [`keep`]: those that clients can find. Another socket is bound in the place of one whose file is gone; who waits in
/// the queue of the one before is still served.
pub(crate) fn is_found(listener: &Listener) -> bool {
    !listener.is_file_gone()
}

/// For [`keep`]: all. Clients that wait are not lost because of a file that cannot be made again.
pub(crate) fn is_any(_: &Listener) -> bool {
    true
}

/// Control clients that can wait to be accepted; one more than that in fact (`unix_recvq_full()` in the kernel).
pub(crate) const CONTROL_BACKLOG: u32 = 128;
/// The listener of those who ask for metrics over HTTP. It listens until it is dropped, also while another process has a
/// copy of it.
#[derive(Debug)]
pub(crate) struct ExporterListener {
    socket: OwnedFd,
    /// Where it really is.
    pub(crate) address: Address,
    /// Its file, for a Unix socket.
    file: Option<SocketFile>,
}

impl ExporterListener {
    /// Binds and listens.
    pub(crate) fn bind(wanted: &Address) -> Result<ExporterListener, Error> {
        let access = Access {
            mode: Mode(0o660),
            owner: None,
            group: None,
        };
        let fail =
            |e: io::Error| cannot_bind(&format!("listen on {wanted} for metrics"), wanted, &e);
        let (socket, address, file) = bind(wanted, Some(&access), false).map_err(fail)?;
        listen(&socket, 128).map_err(fail)?;
        Ok(ExporterListener {
            socket,
            address,
            file,
        })
    }

    /// Whether its file was removed, or replaced by another one.
    pub(crate) fn is_file_gone(&self) -> bool {
        self.file
            .as_ref()
            .is_some_and(|file| file.metadata().is_none())
    }

    /// In the place of one that cannot be bound now.
    ///
    /// # Errors
    /// Those of socket(2).
    pub(crate) fn missing(address: &Address) -> io::Result<ExporterListener> {
        Ok(ExporterListener {
            socket: socket::unbound()?,
            address: address.clone(),
            file: None,
        })
    }

    /// Replaces a socket that has ended by another one at the same address.
    pub(crate) fn bind_anew(&mut self) -> Result<(), Error> {
        let another = ExporterListener::bind(&self.address)?;
        // The file of before was replaced. Its number may be that of the new one.
        drop(self.file.take().map(SocketFile::left));
        *self = another;
        Ok(())
    }
}

impl Drop for ExporterListener {
    fn drop(&mut self) {
        // Or the address would be taken until the exporter is gone.
        socket::end(&self.socket);
    }
}

impl AsFd for ExporterListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The listener of control clients.
#[derive(Debug)]
pub(crate) struct ControlListener {
    socket: OwnedFd,
    file: SocketFile,
    /// Where it would be by default.
    link: Option<ControlLink>,
}

impl ControlListener {
    /// Binds and listens at `path`. `is_default` is whether nobody asked for just that path; then its directory is
    /// made, if need be.
    pub(crate) fn bind(
        path: &Path,
        is_default: bool,
        mode: Mode,
    ) -> Result<ControlListener, Error> {
        let doing = format!("open the control socket {}", path.display());
        let fail = |e: io::Error| cannot_bind(&doing, &Address::Unix(path.to_owned()), &e);
        if is_default {
            make_directory(path.parent().unwrap_or(Path::new("/"))).map_err(fail)?;
            link::remove_link(path).map_err(fail)?;
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
    pub(crate) fn bind_anew(&mut self, is_default: bool, mode: Mode) -> Result<(), Error> {
        let mut another = ControlListener::bind(self.path(), is_default, mode)?;
        another.link = self.link.take();
        // The file of before was replaced. Its number may be that of the new one.
        drop(std::mem::replace(self, another).file.left());
        Ok(())
    }

    /// One that this process has since before it became this program. Its file may be gone.
    pub(crate) fn again(socket: OwnedFd, path: &Path) -> ControlListener {
        let file = SocketFile::of(path).unwrap_or_else(|_| SocketFile::missing(path));
        ControlListener {
            socket,
            file,
            link: None,
        }
    }

    /// In the place of one that cannot be opened now: nobody can connect until it is bound anew.
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

    /// Whether its file is there, by which others find it.
    pub(crate) fn is_reachable(&self) -> bool {
        self.file.metadata().is_some()
    }

    /// Has it found at the usual place as well, if it is elsewhere.
    pub(crate) fn link(&mut self, name: &str) {
        self.link = ControlLink::put(name, &self.file.path);
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.file.path
    }

    /// Lets others connect from now on.
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

/// A socket that is bound and not yet listening, where it really is, and its file if it has one.
fn bind(
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

/// A directory for the control socket, that others may look into only where that is the custom. What is there
/// already must be a directory and ours: in /tmp anybody may have been there before.
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
    if found.uid() != process::user() {
        let owner = found.uid();
        let sentence = format!(
            "{} belongs to uid {owner}, not to this daemon's user",
            path.display()
        );
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, sentence));
    }
    Ok(())
}

/// The file of a bound Unix socket, removed when dropped if it is still that one.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
    /// User and group that it was made with, which are the defaults.
    born: (u32, u32),
    /// What it was given last.
    access: Option<Access>,
    /// It is the next master's, or that of the one before as long as this one does not serve.
    is_left: bool,
}

impl SocketFile {
    /// The file of a socket that was bound just now.
    fn of(path: &Path) -> io::Result<SocketFile> {
        let found = fs::symlink_metadata(path)?;
        let born = (found.uid(), found.gid());
        Ok(SocketFile {
            path: path.to_owned(),
            identity: identity(&found),
            born,
            access: None,
            is_left: false,
        })
    }

    /// One that is not there.
    fn missing(path: &Path) -> SocketFile {
        SocketFile {
            path: path.to_owned(),
            identity: (0, 0),
            born: (0, 0),
            access: None,
            is_left: false,
        }
    }

    /// It stays where it is.
    fn left(mut self) -> SocketFile {
        self.is_left = true;
        self
    }

    /// What it is now, if it is still there.
    fn metadata(&self) -> Option<Metadata> {
        fs::symlink_metadata(&self.path)
            .ok()
            .filter(|found| identity(found) == self.identity)
    }

    /// Gives it its owner and its mode. What it was given before is not given again: the operator may have changed that
    /// since, or have removed the file.
    fn set_access(&mut self, access: &Access) -> io::Result<()> {
        if self.access.as_ref() == Some(access) {
            return Ok(());
        }
        let gone = || {
            io::Error::new(
                io::ErrorKind::NotFound,
                "its file is gone, or is another one's",
            )
        };
        let found = self.metadata().ok_or_else(gone)?;
        let uid = access.owner.as_ref().map_or(self.born.0, |owner| owner.uid);
        let gid = access.group.as_ref().map_or(self.born.1, |group| group.gid);
        // Between the two steps it is neither what it was nor what it is to be.
        self.access = None;
        if (found.uid(), found.gid()) != (uid, gid) {
            chown(&self.path, Some(uid), Some(gid))?;
        }
        fs::set_permissions(&self.path, Permissions::from_mode(access.mode.0))?;
        self.access = Some(access.clone());
        Ok(())
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if !self.is_left && self.metadata().is_some() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// The access to the file of a Unix socket that another process has bound, if it is there.
fn access_of(path: &Path) -> Option<Access> {
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

fn identity(file: &Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
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
    let mut file = SocketFile::of(path)?;
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
        return Err(in_use(ANOTHER));
    }
    log::info!(
        "{} was left by a process that is gone; replacing it",
        path.display()
    );
    fs::remove_file(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Source;
    use crate::sys::listening::{Look, Offer, accept};

    fn at(path: PathBuf) -> Listen {
        Listen::new(Source::Bound(Address::Unix(path)))
    }

    /// The only listener that an entry stands for.
    fn open(entry: &Listen) -> Result<Listener, Error> {
        let handed = Handed::default();
        let wanted = handed.wanted(std::slice::from_ref(entry))?;
        Listener::open(0, &wanted[0], &handed, None)
    }

    fn refusal(entry: &Listen) -> String {
        open(entry).expect_err("must not bind").to_string()
    }

    #[test]
    fn a_stale_socket_is_replaced_a_live_one_and_a_file_are_not() {
        let directory = tempfile::tempdir().expect("tempdir");
        let path = directory.path().join("rpc.sock");
        let live = open(&at(path.clone())).expect("bind");
        assert!(refusal(&at(path.clone())).contains("another process listens there"));
        std::mem::forget(live.file);
        drop(live.socket);
        assert!(path.exists());
        drop(open(&at(path.clone())).expect("the stale one is replaced"));
        assert!(!path.exists(), "removed at the end");
        fs::write(&path, "precious").expect("write");
        assert!(refusal(&at(path.clone())).contains("not a socket"));
        assert_eq!(fs::read_to_string(&path).expect("read"), "precious");
    }

    #[test]
    fn a_socket_file_that_is_another_ones_is_left_alone() {
        let directory = tempfile::tempdir().expect("tempdir");
        let path = directory.path().join("rpc.sock");
        let first = open(&at(path.clone())).expect("bind");
        fs::rename(&path, directory.path().join("moved")).expect("rename");
        let second = open(&at(path.clone())).expect("bind");
        drop(first);
        assert!(path.exists());
        drop(second);
        assert!(!path.exists());
    }

    #[test]
    fn what_is_wanted_again_is_kept_once_and_the_rest_is_to_be_bound() {
        let directory = tempfile::tempdir().expect("tempdir");
        let unix = |name: &str| at(directory.path().join(name));
        let free = || Listen::new("127.0.0.1:0".parse().expect("an address"));
        let there = [free(), unix("a"), free()].map(|entry| open(&entry).expect("bind"));
        let six = Listen::new("[::1]:0".parse().expect("an address"));
        let wanted = [
            unix("b"),
            free(),
            Listen {
                backlog: 7,
                ..unix("a")
            },
            six,
            free(),
            free(),
        ];
        let wanted = Handed::default()
            .wanted(&wanted)
            .expect("nothing is handed over");
        assert_eq!(
            keep(&there, &wanted, is_any),
            [None, Some(0), Some(1), None, Some(2), None]
        );
        assert_eq!(keep(&[], &wanted[..1], is_any), [None]);
    }

    #[test]
    fn a_listener_that_is_kept_becomes_what_is_wanted_and_its_clients_wait_on() {
        let wanted = Listen::new("127.0.0.1:0".parse().expect("an address"));
        let mut listener = open(&wanted).expect("bind");
        let Address::Tcp(address) = listener.address else {
            panic!("a TCP address")
        };
        let _first = std::net::TcpStream::connect(address).expect("connect");
        let idle = Some(Duration::from_secs(100));
        listener
            .adopt(
                &Listen {
                    backlog: 7,
                    byte_order: OrderRule::Big,
                    ..wanted
                },
                idle,
            )
            .expect("adopt");
        assert_eq!(
            (listener.byte_order, listener.queue()),
            (OrderRule::Big, Some((1, 7)))
        );
        let _second = std::net::TcpStream::connect(address).expect("connect");
        assert!(matches!(
            accept(&listener, Look::First).expect("accept"),
            Offer::Client(_)
        ));
        let Offer::Client(second) = accept(&listener, Look::Next).expect("accept") else {
            panic!("the second waits")
        };
        assert_eq!(socket::keepalive(&second.socket), idle);
    }

    #[test]
    fn the_file_of_a_socket_that_is_kept_gets_its_new_owner_and_mode_or_nothing_changes() {
        let directory = tempfile::tempdir().expect("tempdir");
        let path = directory.path().join("rpc.sock");
        let before = at(path.clone());
        let mut listener = open(&before).expect("bind");
        let is = || {
            fs::metadata(&path)
                .map(|found| (found.gid(), found.mode() & 0o777))
                .expect("stat")
        };
        let (born, _) = is();
        let given = |group, mode| {
            let access = Access {
                mode: Mode(mode),
                owner: None,
                group,
            };
            Listen {
                byte_order: OrderRule::Big,
                access: Some(access),
                ..before.clone()
            }
        };

        listener
            .adopt(&given(None, 0o606), None)
            .expect("it is ours");
        assert_eq!((listener.byte_order, is()), (OrderRule::Big, (born, 0o606)));
        listener.adopt(&before, None).expect("undo");
        let other = Group::find("3999999999").expect("the database of groups");
        match listener.adopt(&given(other, 0o600), None) {
            Ok(()) => assert_eq!(is(), (3_999_999_999, 0o600)),
            Err(e) => {
                assert!(
                    matches!(e, Error::Permission(_)) && process::user() != 0,
                    "{e}"
                );
                assert_eq!(listener.byte_order, OrderRule::Little);
            }
        }
        listener.adopt(&before, None).expect("undo");
        assert_eq!(
            (listener.byte_order, is()),
            (OrderRule::Little, (born, 0o660))
        );

        fs::remove_file(&path).expect("it is there");
        listener
            .adopt(&before, None)
            .expect("there is nothing to change");
        listener
            .adopt(&given(None, 0o600), None)
            .expect("the next one gets its access");
        assert_eq!(
            (listener.byte_order, listener.outage_reason()),
            (OrderRule::Big, Some(FILE_GONE))
        );
        let wanted = [before];
        let wanted = Handed::default()
            .wanted(&wanted)
            .expect("nothing is handed over");
        let there = [listener];
        assert_eq!(
            (
                keep(&there, &wanted, is_found),
                keep(&there, &wanted, is_any)
            ),
            (vec![None], vec![Some(0)])
        );
    }

    #[test]
    fn a_port_where_metrics_were_asked_for_is_free_although_another_process_has_the_socket() {
        let listener =
            ExporterListener::bind(&"127.0.0.1:0".parse().expect("an address")).expect("bind");
        let (address, copy) = (
            listener.address.clone(),
            listener.as_fd().try_clone_to_owned().expect("dup"),
        );
        assert!(ExporterListener::bind(&address).is_err(), "{address}");
        drop(listener);
        ExporterListener::bind(&address).expect("it is free");
        assert!(
            matches!(accept(&copy, Look::First).expect("accept"), Offer::Ended),
            "{address}"
        );
    }

    #[test]
    fn the_control_socket_gets_another_mode() {
        let directory = tempfile::tempdir().expect("tempdir");
        let path = directory.path().join("control.sock");
        let mut control = ControlListener::bind(&path, false, Mode(0o660)).expect("bind");
        control.set_mode(Mode(0o600)).expect("it is ours");
        assert_eq!(fs::metadata(&path).expect("stat").mode() & 0o777, 0o600);
    }

    #[test]
    fn the_mode_is_set_and_a_link_for_a_directory_is_refused() {
        let directory = tempfile::tempdir().expect("tempdir");
        let path = directory.path().join("rpc.sock");
        let listener = open(&at(path.clone())).expect("bind");
        assert_eq!(fs::metadata(&path).expect("stat").mode() & 0o777, 0o660);
        assert_eq!(listener.queue(), None);
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(directory.path(), &link).expect("symlink");
        let error = ControlListener::bind(&link.join("control.sock"), true, Mode(0o600))
            .expect_err("a link");
        assert!(error.to_string().contains("not a directory"), "{error}");
    }
}
