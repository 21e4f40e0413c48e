//! The listeners that a configuration wants.

use crate::config::Listen;
use crate::proto::names::Address;

/// A listener that the configuration wants.
#[derive(Clone, Debug)]
pub(crate) struct WantedListener<'c> {
    /// The entry that it belongs to.
    pub(crate) entry: &'c Listen,
    pub(crate) source: SocketSource,
}

impl WantedListener<'_> {
    /// Returns the address to bind, if the listener must be bound.
    pub(crate) fn address(&self) -> Option<&Address> {
        match &self.source {
            SocketSource::Bound(address) => Some(address),
            SocketSource::Activated(_) => None,
        }
    }
}

/// Identifies a listener within a configuration and in the next one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SocketSource {
    /// The address to which it must be bound.
    Bound(Address),
    /// The index of a socket among those that systemd has passed.
    Activated(usize),
}
