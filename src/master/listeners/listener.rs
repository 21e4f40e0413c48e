//! A listener of clients: bound by this master, passed by systemd, or left by an earlier master.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::config::{Access, Listen, ProxyRule, Source};
use crate::master::Token;
use crate::master::error::Error;
use crate::master::listeners::activation::ActivatedSockets;
use crate::master::listeners::listener::adopt::check_balancers;
use crate::master::listeners::listener::refusal::Admission;
use crate::master::listeners::plan::{SocketSource, WantedListener};
use crate::master::listeners::record::ListenerRecord;
use crate::master::listeners::served::{FILE_GONE, Served};
use crate::master::listeners::socket_file::{SocketFile, access_of, bind, cannot_bind};
use crate::master::retry::Outage;
use crate::proto::frame::OrderRule;
use crate::proto::names::Address;
use crate::sys::listening::{is_listening, listen, share_address};
use crate::sys::socket;

mod adopt;
pub(crate) mod refusal;

/// A listener of clients.
#[derive(Debug)]
pub(crate) struct Listener {
    /// The number of this listener, which it keeps as long as it exists; an index would change at a reload.
    pub(crate) number: u32,
    socket: OwnedFd,
    /// The source that the configuration names.
    pub(crate) source: SocketSource,
    /// Whether the source that the configuration named is not recorded: then `source` is the actual address, and the
    /// listener may be kept for an entry with port 0 of its host.
    has_unknown_source: bool,
    /// The actual address, with the port that the kernel chose if any port was wanted.
    pub(crate) address: Address,
    pub(crate) byte_order: OrderRule,
    /// Set if clients begin with a PROXY protocol header.
    pub(crate) proxy: Option<ProxyRule>,
    /// Clients that were accepted here.
    pub(crate) accepted: u64,
    /// Connections that were accepted here, since this master began.
    pub(crate) connections: u64,
    /// The file of a Unix socket that the daemon has bound.
    file: Option<SocketFile>,
    /// The access to the file of an activated Unix socket, as it was when the file was last seen.
    activated_access: Option<Access>,
    /// The entry for which the listener was last opened or adopted.
    entry: Listen,
    /// Set while the listener should be in the poller and is not: another process has ended it, it cannot be bound, or
    /// it cannot be watched.
    pub(crate) outage: Option<Outage>,
    /// Whether clients can connect, as far as a drain decides that.
    pub(crate) admission: Admission,
    /// The listener was never bound.
    is_missing: bool,
}

impl Listener {
    /// Binds and listens, or listens on a copy of an activated socket. `number` must be new. If `refuses`, a socket that
    /// is bound does not listen.
    pub(crate) fn open(
        number: u32,
        wanted: &WantedListener<'_>,
        activated: &ActivatedSockets,
        keepalive: Option<Duration>,
        refuses: bool,
    ) -> Result<Listener, Error> {
        let WantedListener { entry, source } = wanted;
        let fail = |e: io::Error| {
            let doing = format!("listen on {}", entry.source);
            match source {
                SocketSource::Bound(address) => match activated.name_at(address) {
                    Some(name) => Error::unavailable(&doing, &e).with(&format!(
                        "; systemd has bound it and passed it: write \"systemd:{name}\""
                    )),
                    None => cannot_bind(&doing, address, &e),
                },
                SocketSource::Activated(_) => Error::unavailable(&doing, &e),
            }
        };
        let (socket, address, file) = match source {
            SocketSource::Bound(address) => {
                bind(address, entry.access.as_ref(), entry.freebind).map_err(fail)?
            }
            SocketSource::Activated(index) => {
                let (socket, address) = activated.listener(*index).map_err(fail)?;
                check_balancers(entry, &address)?;
                (socket, address, None)
            }
        };
        if let Address::Tcp(_) = address {
            socket::set_keepalive(&socket, keepalive).map_err(fail)?;
        }
        let listens = match source {
            SocketSource::Bound(_) => !refuses,
            // Another process may have shut down a socket that systemd has passed: the poller reports that.
            SocketSource::Activated(_) => is_listening(&socket),
        };
        if listens {
            listen(&socket, entry.backlog).map_err(fail)?;
        }
        let admission = match source {
            SocketSource::Bound(_) if refuses => Admission::Refusing { can_listen: true },
            SocketSource::Bound(_) | SocketSource::Activated(_) => Admission::Open,
        };
        let activated_access = match (source, &address) {
            (SocketSource::Activated(_), Address::Unix(path)) => access_of(path),
            _ => None,
        };
        Ok(Listener {
            file,
            activated_access,
            admission,
            ..Listener::new(number, socket, source.clone(), address, (*entry).clone())
        })
    }

    fn new(
        number: u32,
        socket: OwnedFd,
        source: SocketSource,
        address: Address,
        entry: Listen,
    ) -> Listener {
        Listener {
            number,
            socket,
            source,
            has_unknown_source: false,
            address,
            byte_order: entry.byte_order,
            proxy: entry.proxy_rule(),
            accepted: 0,
            connections: 0,
            file: None,
            activated_access: None,
            entry,
            outage: None,
            admission: Admission::Open,
            is_missing: false,
        }
    }

    /// Creates a listener that cannot be opened now because of `refusal`. It is bound as soon as that is possible.
    ///
    /// # Errors
    /// Those of socket(2).
    pub(crate) fn missing(
        number: u32,
        wanted: &WantedListener<'_>,
        activated: &ActivatedSockets,
        refusal: &Error,
        now: Instant,
    ) -> Result<Listener, Error> {
        let fail = Error::system("make a socket");
        let address = match &wanted.source {
            SocketSource::Bound(address) => address.clone(),
            SocketSource::Activated(index) => activated.address(*index).map_err(&fail)?,
        };
        let socket = match &address {
            Address::Tcp(at) => socket::unbound_tcp(*at),
            Address::Unix(_) => socket::unbound(),
        };
        let (socket, source) = (socket.map_err(fail)?, wanted.source.clone());
        Ok(Listener {
            outage: Some(Outage::from_error(refusal, now)),
            is_missing: true,
            ..Listener::new(number, socket, source, address, wanted.entry.clone())
        })
    }

    /// Restores a listener that an earlier master has left.
    ///
    /// # Errors
    /// When the socket does not match the record.
    pub(crate) fn from_record(
        record: &ListenerRecord,
        socket: OwnedFd,
    ) -> Result<Listener, String> {
        let address: Address = record.address.parse()?;
        let has_unknown_source = record.configured.is_empty();
        let configured = if has_unknown_source {
            address.clone()
        } else {
            record.configured.parse()?
        };
        let file = match &address {
            Address::Tcp(_) => None,
            // The operator may have removed the file since. Until this master serves, the file is left where it is.
            Address::Unix(path) => {
                let mut file = SocketFile::restore(path, record.file).left();
                // Keys for the owner may have been removed since.
                file.default_owner = record.file_owner.unwrap_or(file.default_owner);
                Some(file)
            }
        };
        let entry = Listen::new(Source::Bound(configured.clone()));
        let source = SocketSource::Bound(configured);
        Ok(Listener {
            has_unknown_source,
            accepted: record.accepted,
            file,
            ..Listener::new(record.number, socket, source, address, entry)
        })
    }

    /// Makes the file this master's own from now on.
    pub(crate) fn own(&mut self) {
        if let Some(file) = &mut self.file {
            file.is_left = false;
        }
    }

    /// Sets the source that the configuration names.
    pub(crate) fn set_source(&mut self, source: &SocketSource) {
        (self.source, self.has_unknown_source) = (source.clone(), false);
    }

    /// Returns whether the listener has the address of this source, which may not be the source that it was bound for.
    pub(crate) fn is_at(&self, wanted: &SocketSource) -> bool {
        match (wanted, &self.source) {
            (SocketSource::Bound(wanted), SocketSource::Bound(_)) => *wanted == self.address,
            (SocketSource::Bound(_) | SocketSource::Activated(_), _) => false,
        }
    }

    /// Returns whether this source is port 0 of the host of this listener, whose own source is unknown.
    pub(crate) fn is_on_host(&self, wanted: &SocketSource) -> bool {
        match (wanted, &self.address) {
            (SocketSource::Bound(Address::Tcp(wanted)), Address::Tcp(address)) => {
                self.has_unknown_source && wanted.port() == 0 && wanted.ip() == address.ip()
            }
            _ => false,
        }
    }

    /// Returns the configured address; `None` for an activated socket.
    pub(crate) fn configured(&self) -> Option<&Address> {
        if let SocketSource::Bound(address) = &self.source {
            Some(address)
        } else {
            None
        }
    }

    /// Returns the record for the next master; `None` if the next master gets this listener from the process that has
    /// bound it.
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
            file: self.file.as_ref().map(|file| file.identity),
            file_owner: self.file.as_ref().map(|file| file.default_owner),
        })
    }

    /// Returns why no client can connect, if so. Checks whether the file of a Unix socket exists.
    pub(crate) fn outage_reason(&self) -> Option<&str> {
        match &self.outage {
            Some(outage) => Some(&outage.reason),
            None => self.is_file_gone().then_some(FILE_GONE),
        }
    }

    /// Returns whether the file was removed, or replaced by another one.
    pub(crate) fn is_file_gone(&self) -> bool {
        self.is_watched() && !self.is_reachable()
    }

    /// Leaves the file where it is, for the next master.
    pub(crate) fn leave_file(&mut self) {
        if let Some(file) = &mut self.file {
            file.is_left = true;
        }
    }

    /// Gives up the file: the file at its path is that of another listener.
    pub(crate) fn disown_file(&mut self) {
        self.leave_file();
        self.file = None;
    }

    /// Replaces a socket that has ended by another one at the same address.
    pub(crate) fn bind_again(
        &mut self,
        activated: &mut ActivatedSockets,
        keepalive: Option<Duration>,
    ) -> Result<(), Error> {
        let fail =
            |e: io::Error| cannot_bind(&format!("listen on {}", self.address), &self.address, &e);
        let access = self.entry.access.as_ref();
        match &self.address {
            Address::Tcp(_) => share_address(&self.socket).map_err(fail)?,
            // The file may be gone, or an attempt that fails removes it.
            Address::Unix(path) => {
                self.activated_access = access_of(path).or(self.activated_access.take());
                self.file.iter().for_each(SocketFile::remove);
            }
        }
        let (socket, address, mut file) =
            bind(&self.address, access, self.entry.freebind).map_err(fail)?;
        if let (None, Some(file), Some(before)) = (access, &mut file, &self.activated_access) {
            file.restore_access(before).map_err(fail)?;
        }
        if let Address::Tcp(_) = self.address {
            socket::set_keepalive(&socket, keepalive).map_err(fail)?;
        }
        listen(&socket, self.entry.backlog).map_err(fail)?;
        if let SocketSource::Activated(index) = self.source {
            // A reload and an upgrade use this one from now on.
            activated.replace(index, &socket).map_err(fail)?;
        }
        // The earlier file was replaced. Its inode number may be that of the new one.
        self.leave_file();
        (self.socket, self.file) = (socket, file);
        if std::mem::take(&mut self.is_missing) {
            self.address = address;
        }
        Ok(())
    }

    /// Returns the number of clients in the accept queue, and its maximum; `None` for a Unix socket, of which the
    /// kernel does not report them.
    pub(crate) fn queue(&self) -> Option<(u32, u32)> {
        match self.address {
            Address::Tcp(_) if self.is_watched() => socket::queue(&self.socket).ok(),
            Address::Tcp(_) | Address::Unix(_) => None,
        }
    }
}

impl Served for Listener {
    fn token(&self) -> Token {
        Token::Listener(self.number)
    }

    fn name(&self) -> String {
        format!("listener {}", self.address)
    }

    fn outage_mut(&mut self) -> &mut Option<Outage> {
        &mut self.outage
    }

    fn is_reachable(&self) -> bool {
        (self.file.as_ref()).is_none_or(|file| file.metadata().is_some())
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt;
    use std::path::PathBuf;

    use super::*;
    use crate::config::{Access, Mode};
    use crate::master::listeners::control_listener::ControlListener;
    use crate::master::listeners::matching::{keeps_all, keeps_reachable, match_existing};
    use crate::sys::listening::{AcceptResult, AcceptTry, accept};
    use crate::sys::process;
    use crate::sys::user::Group;

    fn at(path: PathBuf) -> Listen {
        Listen::new(Source::Bound(Address::Unix(path)))
    }

    /// Opens the only listener that an entry stands for.
    fn open(entry: &Listen) -> Result<Listener, Error> {
        let activated = ActivatedSockets::default();
        let wanted = activated.wanted(std::slice::from_ref(entry))?;
        Listener::open(0, &wanted[0], &activated, None, false)
    }

    fn refusal(entry: &Listen) -> String {
        open(entry).expect_err("must not bind").to_string()
    }

    #[test]
    fn only_a_stale_socket_is_replaced() {
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
    fn the_socket_file_of_another_listener_is_not_removed() {
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
    fn plan_keeps_each_listener_once_and_binds_the_rest() {
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
        let wanted = ActivatedSockets::default()
            .wanted(&wanted)
            .expect("nothing is passed");
        assert_eq!(
            match_existing(&there, &wanted, keeps_all),
            [None, Some(0), Some(1), None, Some(2), None]
        );
        assert_eq!(match_existing(&[], &wanted[..1], keeps_all), [None]);
    }

    #[test]
    fn adopting_settings_keeps_queued_clients() {
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
            accept(&listener, AcceptTry::First).expect("accept"),
            AcceptResult::Client(_)
        ));
        let AcceptResult::Client(second) = accept(&listener, AcceptTry::Later).expect("accept")
        else {
            panic!("the second waits")
        };
        assert_eq!(socket::keepalive(&second.socket), idle);
    }

    #[test]
    fn adopting_an_access_sets_owner_and_mode_or_changes_nothing() {
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
        let wanted = ActivatedSockets::default()
            .wanted(&wanted)
            .expect("nothing is passed");
        let there = [listener];
        assert_eq!(
            (
                match_existing(&there, &wanted, keeps_reachable),
                match_existing(&there, &wanted, keeps_all)
            ),
            (vec![None], vec![Some(0)])
        );
    }
    #[test]
    fn binding_sets_the_mode_and_rejects_a_linked_directory() {
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
