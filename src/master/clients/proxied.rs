//! A connection to a listener with the key `proxy`, as the master knows it.

use serde::{Deserialize, Serialize};

use crate::proto::names::Peer;
use crate::proto::proxy::ProxyVersion;
use crate::shm::ProxyState;

/// A connection to a listener with the key `proxy`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Proxied {
    /// The versions of the header that the listener accepts, as of the time of the connection.
    pub(crate) version: ProxyVersion,
    pub(super) header_stage: HeaderStage,
    /// The client's address, once it is known.
    pub(super) peer: Option<Peer>,
    /// Whether the client is counted for its address.
    pub(super) is_counted: bool,
    pub(super) client_stage: ClientStage,
    /// Leases that ended only because the client had to be counted for its address. They do not count as moves.
    pub(super) releases: u32,
}

/// Whether a connection is counted as a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum ClientStage {
    /// Not yet.
    Pending,
    /// The connection is counted.
    Client,
    /// The connection has ended without being counted.
    NoClient,
}

/// How far a connection has come with its header. Later stages are greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) enum HeaderStage {
    /// The header is not complete.
    Awaited,
    /// The header is that of a connection of the balancer itself, such as a check.
    Local,
    /// The header is complete.
    Read,
    /// The client has sent something after it.
    Used,
}

impl HeaderStage {
    pub(super) fn of(state: ProxyState) -> HeaderStage {
        match state {
            ProxyState::None | ProxyState::Awaited(_) => HeaderStage::Awaited,
            ProxyState::Local => HeaderStage::Local,
            ProxyState::Read | ProxyState::Known => HeaderStage::Read,
            ProxyState::Used => HeaderStage::Used,
        }
    }
}

impl Proxied {
    /// Returns a connection without a byte.
    pub(crate) fn new(version: ProxyVersion) -> Proxied {
        Proxied {
            version,
            header_stage: HeaderStage::Awaited,
            peer: None,
            is_counted: false,
            client_stage: ClientStage::Pending,
            releases: 0,
        }
    }

    /// Returns a connection of an earlier master, as the shared memory shows it; `None` if its listener expected no
    /// header. A state beyond [`ProxyState::Read`] shows that the master had counted the address.
    pub(crate) fn restored(state: ProxyState, peer: Option<Peer>) -> Option<Proxied> {
        let version = match state {
            ProxyState::None => return None,
            ProxyState::Awaited(version) => version,
            _ => ProxyVersion::Any,
        };
        Some(Proxied {
            version,
            header_stage: HeaderStage::of(state),
            peer,
            is_counted: matches!(state, ProxyState::Known | ProxyState::Used),
            client_stage: match state {
                ProxyState::Used => ClientStage::Client,
                _ => ClientStage::Pending,
            },
            releases: 0,
        })
    }

    /// Returns whether the connection is not counted as a client yet.
    pub(crate) fn is_pending(&self) -> bool {
        self.client_stage == ClientStage::Pending
    }
}
