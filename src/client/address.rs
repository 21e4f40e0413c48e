//! Addresses of daemons.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use super::ConnectionError;
use super::connect::{
    ConnectFailure, DaemonSocket, NamedHost, connect_to, connect_to_one_of, left_of,
};
use super::options::ClientOptions;
#[cfg(feature = "srv")]
use super::srv::SrvName;
use crate::proto::names::Address;

/// An address of a daemon, or a name of several daemons.
#[derive(Debug)]
pub(super) enum Destination {
    /// An address of a socket.
    Socket(Address),
    /// A name that is looked up for each connection.
    Name(NamedHost),
    /// A name whose SRV records have the daemons.
    #[cfg(feature = "srv")]
    Srv(SrvName),
}

impl Destination {
    /// Parses an address: `192.0.2.1:8080`, `[2001:db8::1]:8080`, `rpc.example:8080`, `unix:/PATH` or
    /// `srv:_SERVICE._PROTOCOL.NAME`.
    ///
    /// # Errors
    /// A sentence.
    pub(super) fn parse(text: &str) -> Result<Destination, String> {
        let unusable =
            || format!("{text:?} is not a valid address: expected HOST:PORT or unix:/PATH");
        if text.starts_with("unix:") {
            return text.parse().map(Destination::Socket);
        }
        if let Some(name) = srv_name(text) {
            return Destination::parse_srv(text, name);
        }
        if let Ok(address) = text.parse::<SocketAddr>() {
            return match address.port() {
                0 => Err(unusable()),
                _ => Ok(Destination::Socket(Address::Tcp(address))),
            };
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(unusable)?;
        let host = match host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
        {
            // A zone by its name: the resolver knows these.
            Some(host) if host.contains('%') => host,
            Some(host) => return Err(format!("{text:?}: {host:?} is not an IPv6 address")),
            None if host.contains(':') => {
                return Err(format!(
                    "{text:?}: an IPv6 address is written in brackets: [2001:db8::1]:8080"
                ));
            }
            None => host,
        };
        let is_number = port.bytes().all(|digit| digit.is_ascii_digit());
        match port.parse() {
            Ok(port @ 1..) if is_number && !host.is_empty() => {
                Ok(Destination::Name(NamedHost::new(host, port)))
            }
            _ => Err(unusable()),
        }
    }

    #[cfg(feature = "srv")]
    fn parse_srv(text: &str, name: &str) -> Result<Destination, String> {
        let parsed = SrvName::parse(name).map_err(|why| format!("{text:?}: {why}"))?;
        Ok(Destination::Srv(parsed))
    }

    #[cfg(not(feature = "srv"))]
    fn parse_srv(text: &str, _: &str) -> Result<Destination, String> {
        Err(format!(
            "{text:?}: SRV records need the Cargo feature \"srv\" of the crate fdpassd, without which this program \
             was built"
        ))
    }

    /// Connects to the first address of it that accepts, each within the `connect_timeout`, and all before `deadline`.
    ///
    /// # Errors
    /// The daemons to which no connection was made, each with the last reason.
    pub(super) fn connect(
        &self,
        options: &ClientOptions,
        deadline: Instant,
    ) -> Result<DaemonSocket, Vec<ConnectFailure>> {
        let left = || left_of(options, deadline);
        let connected = match self {
            Destination::Socket(address) => connect_to(address, left()),
            Destination::Name(name) => name
                .look_up(left())
                .and_then(|found| connect_to_one_of(found, left)),
            #[cfg(feature = "srv")]
            Destination::Srv(name) => return name.connect(options, deadline),
        };
        let name: Arc<str> = self.to_string().into();
        match connected {
            Ok(socket) => Ok(DaemonSocket { socket, name }),
            Err(error) => Err(vec![(name, ConnectionError::Connect(Arc::new(error)))]),
        }
    }

    /// Notes that the connection to one of its daemons has ended, so that the next one is made to another.
    #[cfg(feature = "srv")]
    pub(super) fn note_end(&self, daemon: &Arc<str>, has_replied: bool) {
        if let Destination::Srv(name) = self {
            name.note_end(daemon, has_replied);
        }
    }

    /// Does nothing: only SRV records name several daemons.
    #[cfg(not(feature = "srv"))]
    pub(super) fn note_end(&self, _: &Arc<str>, _: bool) {}
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Destination::Socket(address) => address.fmt(f),
            Destination::Name(NamedHost { host, port, .. }) if host.contains(':') => {
                write!(f, "[{host}]:{port}")
            }
            Destination::Name(NamedHost { host, port, .. }) => write!(f, "{host}:{port}"),
            #[cfg(feature = "srv")]
            Destination::Srv(name) => name.fmt(f),
        }
    }
}

/// Returns what follows `srv:`, unless that is the port of a host called `srv`.
pub(crate) fn srv_name(text: &str) -> Option<&str> {
    let name = text.strip_prefix("srv:")?;
    let is_port = name.bytes().all(|byte| byte.is_ascii_digit());
    (!is_port).then_some(name)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn addresses_are_shown_as_they_are_written() {
        for text in [
            "127.0.0.1:8080",
            "[::1]:8080",
            "rpc.example:8080",
            "localhost:1",
            "[fe80::1%lo]:65535",
            "unix:/run/x.sock",
            // A host with this name.
            "srv:8080",
        ] {
            let parsed = Destination::parse(text).expect(text);
            assert_eq!(parsed.to_string(), text);
        }
    }

    #[test]
    fn a_mistake_in_an_address_has_its_sentence() {
        let expected = "is not a valid address: expected HOST:PORT or unix:/PATH";
        for (text, words) in [
            ("", expected),
            ("rpc.example", expected),
            (":8080", expected),
            ("rpc.example:", expected),
            ("rpc.example:0", expected),
            ("127.0.0.1:0", expected),
            ("rpc.example:65536", expected),
            ("rpc.example:+80", expected),
            ("rpc.example:80 ", expected),
            ("srv:", expected),
            ("srv:70000", expected),
            ("::1:8080", "an IPv6 address is written in brackets"),
            ("[::g]:8080", "\"::g\" is not an IPv6 address"),
            ("unix:rpc.sock", "must be absolute"),
        ] {
            let why = Destination::parse(text).expect_err(text);
            assert!(why.contains(words), "{text}: {why}");
        }
    }

    #[test]
    fn a_name_is_looked_up_for_each_connection() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let named = Destination::parse(&format!("localhost:{port}")).expect("valid");
        let deadline = Instant::now() + Duration::from_secs(60);
        let options = ClientOptions::new().connect_timeout(Duration::from_secs(60));
        for _ in 0..2 {
            let connected = named.connect(&options, deadline).expect("it listens");
            assert_eq!(*connected.name, *format!("localhost:{port}"));
        }
        let late = Destination::parse("localhost:1").expect("valid");
        let failures = late
            .connect(&options, Instant::now())
            .expect_err("there is no time");
        let [(name, cause)] = failures.as_slice() else {
            panic!("{failures:?}");
        };
        assert_eq!((&**name, cause.is_timeout()), ("localhost:1", true));
    }

    #[cfg(not(feature = "srv"))]
    #[test]
    fn a_name_of_srv_records_needs_the_feature() {
        let why = Destination::parse("srv:_fdpassd._tcp.example.net").expect_err("a feature");
        assert!(why.contains("the Cargo feature \"srv\""), "{why}");
    }
}
