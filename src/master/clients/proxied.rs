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
    pub(super) stage: Stage,
    /// The client's address, once it is known.
    pub(super) peer: Option<Peer>,
    /// Whether the client is counted for its address.
    pub(super) is_counted: bool,
    pub(super) standing: Standing,
    /// Leases that ended only because the client had to be counted for its address. They do not count as moves.
    pub(super) releases: u32,
}

/// Whether a connection is counted as a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Standing {
    /// Not yet.
    Pending,
    /// The connection is counted.
    Client,
    /// The connection has ended without being counted.
    NoClient,
}

/// How far a connection has come. Later stages are greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) enum Stage {
    /// The header is not complete.
    Header,
    /// The header is that of a connection of the balancer itself, such as a check.
    Local,
    /// The header is complete.
    Read,
    /// The client has sent something after it.
    Used,
}

impl Stage {
    pub(super) fn of(state: ProxyState) -> Stage {
        match state {
            ProxyState::None | ProxyState::Awaited(_) => Stage::Header,
            ProxyState::Local => Stage::Local,
            ProxyState::Read | ProxyState::Known => Stage::Read,
            ProxyState::Used => Stage::Used,
        }
    }
}

impl Proxied {
    /// Returns a connection without a byte.
    pub(crate) fn new(version: ProxyVersion) -> Proxied {
        Proxied {
            version,
            stage: Stage::Header,
            peer: None,
            is_counted: false,
            standing: Standing::Pending,
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
            stage: Stage::of(state),
            peer,
            is_counted: matches!(state, ProxyState::Known | ProxyState::Used),
            standing: match state {
                ProxyState::Used => Standing::Client,
                _ => Standing::Pending,
            },
            releases: 0,
        })
    }

    /// Returns whether the connection is not counted as a client yet.
    pub(crate) fn is_pending(&self) -> bool {
        self.standing == Standing::Pending
    }
}
