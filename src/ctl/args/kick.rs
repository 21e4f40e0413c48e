//! The arguments of `kick`.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::values::{client_id, timeout};
use crate::proto::names::ClientId;

#[derive(Debug, clap::Args)]
pub(crate) struct KickArguments {
    /// The number of the client, as the verb "clients" shows it
    #[arg(value_name = "CLIENT", value_parser = client_id, allow_negative_numbers = true)]
    #[arg(conflicts_with_all = ["address", "idle"])]
    pub(crate) client: Option<ClientId>,

    /// All clients from this IP address, or address and port
    #[arg(long, value_name = "ADDRESS", value_parser = kicked)]
    pub(crate) address: Option<KickedAddress>,

    /// All clients that were idle for this time
    #[arg(long, value_name = "TIME", value_parser = timeout, allow_negative_numbers = true)]
    pub(crate) idle: Option<Duration>,
}

/// The address of clients, with or without the port.
#[derive(Clone, Copy, Debug)]
pub(crate) enum KickedAddress {
    Ip(IpAddr),
    Socket(SocketAddr),
}

impl KickedAddress {
    /// Returns whether the peer of a client, in text, has this address.
    pub(crate) fn is_of(self, peer: &str) -> bool {
        let Ok(peer) = peer.parse::<SocketAddr>() else {
            return false;
        };
        match self {
            KickedAddress::Ip(ip) => peer.ip().to_canonical() == ip.to_canonical(),
            KickedAddress::Socket(address) => {
                peer.port() == address.port()
                    && peer.ip().to_canonical() == address.ip().to_canonical()
            }
        }
    }
}

fn kicked(text: &str) -> Result<KickedAddress, String> {
    let ip = text.parse().map(KickedAddress::Ip);
    ip.or_else(|_| text.parse().map(KickedAddress::Socket))
        .map_err(|_| "expected an IP address, with or without a port".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_matches_with_its_port_or_all_its_ports() {
        for (wanted, peer, is_of) in [
            ("127.0.0.1", "127.0.0.1:50412", true),
            ("127.0.0.1", "127.0.0.10:50412", false),
            ("127.0.0.1", "[::ffff:127.0.0.1]:1", true),
            ("127.0.0.1:5", "127.0.0.1:5", true),
            ("127.0.0.1:5", "127.0.0.1:50", false),
            ("2001:db8:0::1", "[2001:db8::1]:7", true),
            ("[2001:db8::1]:7", "[2001:db8::1]:7", true),
            ("0.0.0.0", "pid 4711 (uid 1000)", false),
        ] {
            let wanted = kicked(wanted).expect(wanted);
            assert_eq!(wanted.is_of(peer), is_of, "{wanted:?} {peer}");
        }
        for text in ["", "localhost", "10.0.0.0/8", "127.0.0.1:65536"] {
            kicked(text).expect_err(text);
        }
    }
}
