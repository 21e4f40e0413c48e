//! Sockets that systemd has bound for the daemon and passed at its start: socket activation, sd_listen_fds(3).
//!
//! The master keeps them until it exits, whether an entry of `listen` names them or not: a reload may remove such an
//! entry, and a later one may add it again. A listener has its own copy.

use std::ffi::OsString;
use std::fmt::Write;
use std::os::fd::OwnedFd;
use std::time::Duration;
use std::{env, io};

use crate::config::{Listen, Source};
use crate::master::error::Error;
use crate::master::listeners::plan::{SocketSource, WantedListener};
use crate::proto::names::Address;
use crate::proto::text::Counted;
use crate::sys::inherited::{self, Found};
use crate::sys::poll::{self, Interest};

/// The prefix of the names of descriptors that a master has stored for the next one.
const STORE_PREFIX: &str = "fdpassd-";

/// The words after the prefix in the names of stored descriptors; a number may follow after a dot.
const STORED_KINDS: [&str; 4] = ["book", "boat", "listener", "canary"];

/// The most descriptors that are taken over.
const MAX_DESCRIPTORS: usize = 65_536;

/// The sockets that systemd has passed, each with its name; several may have the same name.
#[derive(Debug, Default)]
pub struct ActivatedSockets(Vec<(String, OwnedFd)>);

impl ActivatedSockets {
    /// Takes over the descriptors that the environment describes. This must happen before the process opens anything.
    ///
    /// # Errors
    /// When the environment contradicts itself, or a descriptor that it describes does not exist.
    pub fn from_environment() -> Result<ActivatedSockets, Error> {
        let fail = |why: String| {
            Error::Unavailable(format!("cannot take over the sockets of systemd: {why}"))
        };
        let names = names(|key| env::var_os(key), std::process::id()).map_err(fail)?;
        let sockets = inherited::take(names.len() as u32).map_err(|e| {
            fail(format!(
                "LISTEN_FDS={}, and not all of them are there: {e}",
                names.len()
            ))
        })?;
        Ok(ActivatedSockets(names.into_iter().zip(sockets).collect()))
    }

    /// Restores the sockets that were passed to this process before an upgrade.
    pub(crate) fn from_named(named: Vec<(String, OwnedFd)>) -> ActivatedSockets {
        ActivatedSockets(named)
    }

    /// Returns all sockets, each with its name.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &(String, OwnedFd)> {
        self.0.iter()
    }

    /// Removes and returns the descriptors that an earlier master has stored.
    pub(crate) fn take_kept(&mut self) -> Vec<(String, OwnedFd)> {
        self.0
            .extract_if(.., |(name, _)| is_of_master(name))
            .collect()
    }

    /// Returns whether a client waits at one of the sockets. After a failed start, systemd starts the service again at
    /// once for such a client, and closes the socket after too many starts (`TriggerLimitBurst=` of systemd.socket(5)).
    #[must_use]
    pub fn is_awaited(&self) -> bool {
        let waits = |(_, socket): &(String, OwnedFd)| {
            poll::wait_for(socket, Interest::Read, Duration::ZERO)
        };
        self.0.iter().any(|socket| waits(socket).unwrap_or(false))
    }

    /// Returns the number of sockets.
    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// Returns the listeners that these entries stand for: one each, or one for each socket of that name.
    ///
    /// # Errors
    /// When no socket has the name of an entry.
    pub(crate) fn wanted<'c>(
        &self,
        entries: &'c [Listen],
    ) -> Result<Vec<WantedListener<'c>>, Error> {
        let mut all = Vec::new();
        for entry in entries {
            match &entry.source {
                Source::Bound(address) => all.push(WantedListener {
                    entry,
                    source: SocketSource::Bound(address.clone()),
                }),
                Source::Activated(name) => {
                    let before = all.len();
                    let indices = (0..self.0.len()).filter(|&index| self.0[index].0 == *name);
                    all.extend(indices.map(|index| WantedListener {
                        entry,
                        source: SocketSource::Activated(index),
                    }));
                    if all.len() == before {
                        return Err(Error::Unavailable(format!(
                            "cannot listen on systemd:{name}: {}",
                            self.names()
                        )));
                    }
                }
            }
        }
        Ok(all)
    }

    /// Returns a listener's own copy of a socket, and its address.
    ///
    /// # Errors
    /// When clients cannot be accepted from the descriptor.
    pub(crate) fn listener(&self, index: usize) -> io::Result<(OwnedFd, Address)> {
        let (address, (_, socket)) = (self.address(index)?, &self.0[index]);
        let copy = inherited::copy_listener(socket, matches!(address, Address::Tcp(_)))?;
        Ok((copy, address))
    }

    /// Returns the address of a socket.
    ///
    /// # Errors
    /// When clients cannot be accepted from the descriptor.
    pub(crate) fn address(&self, index: usize) -> io::Result<Address> {
        let (_, socket) = &self.0[index];
        Ok(match inherited::examine(socket)? {
            Found::Tcp(address) | Found::Ended(address) => Address::Tcp(address),
            Found::Unix(path) => Address::Unix(path),
            Found::UnixWithoutPath => {
                return Err(io::Error::other(
                    "it has no path, so any process could connect",
                ));
            }
            Found::NoListener => {
                return Err(io::Error::other(
                    "it does not listen; its unit must not set Accept=yes",
                ));
            }
            Found::OtherSocket | Found::NoSocket => {
                return Err(io::Error::other(
                    "it is not a stream socket of TCP or Unix (ListenStream=)",
                ));
            }
        })
    }

    /// Returns the entries whose sockets are there, and the error of the first entry whose socket was not passed, if
    /// there is one.
    pub(crate) fn available(&self, entries: &[Listen]) -> (Vec<Listen>, Option<Error>) {
        let (mut available, mut first) = (Vec::new(), None);
        for entry in entries {
            match self.wanted(std::slice::from_ref(entry)) {
                Ok(_) => available.push(entry.clone()),
                Err(e) => first = first.or(Some(e)),
            }
        }
        (available, first)
    }

    /// Replaces a listener's socket, which has ended, by a new one.
    ///
    /// # Errors
    /// Those of fcntl(2).
    pub(crate) fn replace(&mut self, index: usize, socket: &OwnedFd) -> io::Result<()> {
        self.0[index].1 = socket.try_clone()?;
        Ok(())
    }

    /// Returns the name under which systemd has passed a socket at this address, if it has.
    pub(crate) fn name_at(&self, address: &Address) -> Option<&str> {
        let is_there = |socket| match inherited::examine(socket) {
            Ok(Found::Tcp(bound)) => *address == Address::Tcp(bound),
            Ok(Found::Unix(path)) => *address == Address::Unix(path),
            Ok(_) | Err(_) => false,
        };
        self.0
            .iter()
            .find(|(_, socket)| is_there(socket))
            .map(|(name, _)| name.as_str())
    }

    /// Warns of the sockets that no entry uses, because clients that connect there are never accepted.
    pub(crate) fn warn_of_unused(&self, entries: &[Listen]) {
        let is_wanted = |name: &String| {
            entries
                .iter()
                .any(|entry| entry.source == Source::Activated(name.clone()))
        };
        for (name, _) in self.0.iter().filter(|(name, _)| !is_wanted(name)) {
            log::warn!(
                "systemd has passed a socket named {name}, and no entry of listen is \"systemd:{name}\""
            );
        }
    }

    /// Describes the available sockets for the error about a missing one.
    fn names(&self) -> String {
        if self.0.is_empty() {
            return "systemd has passed no socket; is the socket unit started?".to_owned();
        }
        let mut sentence = "no socket of that name was passed, only ".to_owned();
        for (index, (name, _)) in self.0.iter().enumerate() {
            // Writing into a String cannot fail.
            let _ = write!(
                sentence,
                "{}systemd:{name}",
                if index == 0 { "" } else { ", " }
            );
        }
        sentence
    }
}

/// Returns whether a master has stored the descriptor of this name. Other names can have the prefix, too: by default,
/// systemd names a socket after its unit, such as `fdpassd-rpc.socket`.
fn is_of_master(name: &str) -> bool {
    let kind = name
        .strip_prefix(STORE_PREFIX)
        .and_then(|rest| rest.split('.').next());
    kind.is_some_and(|kind| STORED_KINDS.contains(&kind)) && !name.ends_with(".socket")
}

/// Returns the names of the descriptors left open for process `pid`, in the order of the descriptors.
fn names(var: impl Fn(&str) -> Option<OsString>, pid: u32) -> Result<Vec<String>, String> {
    let text = |key: &str| match var(key).map(OsString::into_string) {
        None => Ok(None),
        Some(Ok(text)) => Ok(Some(text)),
        Some(Err(bytes)) => Err(format!("{key} is not UTF-8: {}", bytes.display())),
    };
    // The descriptors belong to another process: only the environment was inherited.
    if text("LISTEN_PID")?.and_then(|text| text.parse().ok()) != Some(pid) {
        return Ok(Vec::new());
    }
    let count = text("LISTEN_FDS")?.unwrap_or_default();
    let number = count
        .parse()
        .ok()
        .filter(|number| *number <= MAX_DESCRIPTORS);
    let count = number
        .ok_or_else(|| format!("LISTEN_FDS={count} is not a number up to {MAX_DESCRIPTORS}"))?;
    match text("LISTEN_FDNAMES")? {
        // This is the name that sd_listen_fds_with_names(3) uses.
        None => Ok(vec!["unknown".to_owned(); count]),
        Some(_) if count == 0 => Ok(Vec::new()),
        Some(names) => {
            let names: Vec<String> = names.split(':').map(str::to_owned).collect();
            let mismatch = || {
                format!(
                    "LISTEN_FDS={count}, but LISTEN_FDNAMES has {}",
                    Counted(names.len(), "name")
                )
            };
            if names.len() == count {
                Ok(names)
            } else {
                Err(mismatch())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener};

    use super::*;

    fn named(vars: &[(&str, &str)]) -> Result<Vec<String>, String> {
        names(
            |key| {
                vars.iter()
                    .find(|(k, _)| *k == key)
                    .map(|(_, value)| OsString::from(value))
            },
            42,
        )
    }

    #[test]
    fn activation_names_count_only_for_this_process() {
        let ours = |fds, names| {
            named(&[
                ("LISTEN_PID", "42"),
                ("LISTEN_FDS", fds),
                ("LISTEN_FDNAMES", names),
            ])
        };
        assert_eq!(ours("2", "rpc:rpc"), Ok(vec!["rpc".to_owned(); 2]));
        assert_eq!(
            ours("1", "fdpassd.socket"),
            Ok(vec!["fdpassd.socket".to_owned()])
        );
        assert_eq!(ours("0", ""), Ok(Vec::new()));
        assert_eq!(
            named(&[("LISTEN_PID", "42"), ("LISTEN_FDS", "1")]),
            Ok(vec!["unknown".to_owned()])
        );
        for another in ["43", "", "x", "-42"] {
            assert_eq!(
                named(&[("LISTEN_PID", another), ("LISTEN_FDS", "1")]),
                Ok(Vec::new()),
                "{another}"
            );
        }
        assert_eq!(
            named(&[("LISTEN_FDS", "1"), ("LISTEN_FDNAMES", "rpc")]),
            Ok(Vec::new())
        );
        for (fds, names, why) in [
            ("2", "rpc", "LISTEN_FDS=2, but LISTEN_FDNAMES has 1 name"),
            ("0x1", "rpc", "LISTEN_FDS=0x1 is not a number up to 65536"),
            ("-1", "rpc", "LISTEN_FDS=-1 is not a number up to 65536"),
            (
                "65537",
                "rpc",
                "LISTEN_FDS=65537 is not a number up to 65536",
            ),
            ("", "rpc", "LISTEN_FDS= is not a number up to 65536"),
        ] {
            assert_eq!(ours(fds, names), Err(why.to_owned()));
        }
    }

    #[test]
    fn only_listening_stream_sockets_with_an_address_are_accepted() {
        let directory = tempfile::tempdir().expect("tempdir");
        let path = |name| directory.path().join(name);
        let tcp = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let at = tcp.local_addr().expect("it is bound");
        let connection = TcpStream::connect(at).expect("it listens");
        let unix = UnixListener::bind(path("rpc")).expect("the path is free");
        let name = SocketAddr::from_abstract_name(path("x").display().to_string()).expect("a name");
        let sockets: Vec<OwnedFd> = vec![
            tcp.into(),
            unix.into(),
            UnixListener::bind_addr(&name)
                .expect("the name is free")
                .into(),
            connection.into(),
            UdpSocket::bind("127.0.0.1:0").expect("a free port").into(),
            UnixDatagram::bind(path("datagrams"))
                .expect("the path is free")
                .into(),
            std::fs::File::open("/dev/null")
                .expect("it is there")
                .into(),
        ];
        let activated = ActivatedSockets(
            sockets
                .into_iter()
                .map(|socket| ("rpc".to_owned(), socket))
                .collect(),
        );
        let found = |index| {
            activated
                .listener(index)
                .map(|(_, address)| address)
                .map_err(|e| e.to_string())
        };
        assert_eq!(found(0), Ok(Address::Tcp(at)));
        assert_eq!(found(1), Ok(Address::Unix(path("rpc"))));
        for (index, why) in [
            (2, "it has no path, so any process could connect"),
            (3, "it does not listen; its unit must not set Accept=yes"),
            (
                4,
                "it is not a stream socket of TCP or Unix (ListenStream=)",
            ),
            (
                5,
                "it is not a stream socket of TCP or Unix (ListenStream=)",
            ),
            (
                6,
                "it is not a stream socket of TCP or Unix (ListenStream=)",
            ),
        ] {
            assert_eq!(found(index), Err(why.to_owned()), "{index}");
        }
        assert_eq!(activated.name_at(&Address::Tcp(at)), Some("rpc"));
        assert_eq!(activated.name_at(&Address::Unix(path("rpc"))), Some("rpc"));
        assert_eq!(activated.name_at(&Address::Unix(path("datagrams"))), None);
    }
}
