//! The record of a client's PROXY protocol header in its slot, and of the address in the header.
//!
//! ```text
//! bits 32-35 of word 2    0 no header is expected · 1, 2, 3 one of version 1, 2, any is awaited · 4 read, the master
//!                         does not know it yet · 5 read, the connection is one of the balancer itself · 6 read, the
//!                         master knows it · 7 the client has sent something after it
//! ```

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::proto::names::Peer;
use crate::proto::proxy::ProxyVersion;

/// The state of the PROXY protocol header of a client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProxyState {
    /// The client's listener expects no header.
    #[default]
    None,
    /// A header of this version is not complete.
    Awaited(ProxyVersion),
    /// The header is read. The master does not know it yet, and no byte has come after it.
    Read,
    /// The connection is one of the balancer itself, such as a check.
    Local,
    /// The master knows the client's address. No byte has come after the header.
    Known,
    /// The client has sent something after the header.
    Used,
}

impl ProxyState {
    const ALL: [ProxyState; 8] = [
        ProxyState::None,
        ProxyState::Awaited(ProxyVersion::V1),
        ProxyState::Awaited(ProxyVersion::V2),
        ProxyState::Awaited(ProxyVersion::Any),
        ProxyState::Read,
        ProxyState::Local,
        ProxyState::Known,
        ProxyState::Used,
    ];
    const SHIFT: u32 = 32;

    /// Returns whether the header is not complete.
    #[must_use]
    pub fn is_awaited(self) -> bool {
        matches!(self, ProxyState::Awaited(_))
    }

    /// Returns whether the slot may have the address of the client.
    #[must_use]
    pub fn has_source(self) -> bool {
        matches!(
            self,
            ProxyState::Read | ProxyState::Known | ProxyState::Used
        )
    }

    pub(super) fn encode(self) -> u64 {
        let index = ProxyState::ALL.iter().position(|state| *state == self);
        (index.unwrap_or_default() as u64) << ProxyState::SHIFT
    }

    pub(super) fn decode(word: u64) -> ProxyState {
        let index = (word >> ProxyState::SHIFT & 0xf) as usize;
        ProxyState::ALL.get(index).copied().unwrap_or_default()
    }
}

/// Bytes of the address of a client: `family u8 | 0 | port u16 | 0 u32 | address 16 bytes`, the numbers little-endian.
/// Family 4 or 6; 0 if there is none.
pub(in crate::shm) const SOURCE_LEN: usize = 24;

/// Returns the bytes of an address.
pub(in crate::shm) fn encode_source(source: Option<Peer>) -> [u8; SOURCE_LEN] {
    let mut bytes = [0; SOURCE_LEN];
    let port = match source {
        Some(Peer::V4 { address, port }) => {
            bytes[0] = 4;
            bytes[8..12].copy_from_slice(&address.octets());
            port
        }
        Some(Peer::V6 { address, port }) => {
            bytes[0] = 6;
            bytes[8..].copy_from_slice(&address.octets());
            port
        }
        Some(Peer::Unix { .. }) | None => 0,
    };
    bytes[2..4].copy_from_slice(&port.to_le_bytes());
    bytes
}

/// Returns the address in these bytes, which another process may have written.
pub(in crate::shm) fn decode_source(bytes: &[u8; SOURCE_LEN]) -> Option<Peer> {
    let port = u16::from_le_bytes([bytes[2], bytes[3]]);
    let (_, address) = bytes.split_last_chunk::<16>()?;
    match bytes[0] {
        4 => Some(Peer::V4 {
            address: Ipv4Addr::from(*address.first_chunk::<4>()?),
            port,
        }),
        6 => Some(Peer::V6 {
            address: Ipv6Addr::from(*address),
            port,
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    #[test]
    fn every_state_is_read_as_it_was_written() {
        for (index, state) in ProxyState::ALL.into_iter().enumerate() {
            assert_eq!(state.encode(), (index as u64) << 32);
            assert_eq!(ProxyState::decode(state.encode() | !(0xf << 32)), state);
        }
        assert_eq!(ProxyState::decode(0xf << 32), ProxyState::None);
    }

    #[test]
    fn every_address_is_read_as_it_was_written() {
        let peer = |text: &str| Peer::from(text.parse::<SocketAddr>().expect("an address"));
        for source in [
            None,
            Some(peer("192.0.2.10:44784")),
            Some(peer("[2001:db8::1]:65535")),
        ] {
            assert_eq!(decode_source(&encode_source(source)), source);
        }
        assert_eq!(decode_source(&encode_source(Some(Peer::UNIX))), None);
        assert_eq!(decode_source(&[9; SOURCE_LEN]), None);
    }
}
