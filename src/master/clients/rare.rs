//! Fields that few clients have, apart from the others so that most clients are small.

use crate::master::clients::proxied::Proxied;
use crate::proto::names::Offsets;

/// Fields that few clients have. They take memory only if the client has one of them.
#[derive(Debug, Default)]
pub(crate) struct RareFields(Option<Box<RareValues>>);

#[derive(Debug, Default)]
struct RareValues {
    /// Offsets of the client's byte counts.
    offsets: Offsets,
    /// Set if its listener has the key `proxy`.
    proxied: Option<Proxied>,
}

impl RareFields {
    pub(crate) fn new(offsets: Offsets, proxied: Option<Proxied>) -> RareFields {
        let is_empty = offsets.is_zero() && proxied.is_none();
        RareFields((!is_empty).then(|| Box::new(RareValues { offsets, proxied })))
    }

    /// Returns the offsets of the client's byte counts.
    pub(crate) fn offsets(&self) -> Offsets {
        self.0.as_ref().map_or(Offsets::default(), |it| it.offsets)
    }

    /// Returns the state of the connection if its listener has the key `proxy`.
    pub(crate) fn proxied(&self) -> Option<&Proxied> {
        self.0.as_ref()?.proxied.as_ref()
    }

    /// As [`RareFields::proxied`], for changes.
    pub(crate) fn proxied_mut(&mut self) -> Option<&mut Proxied> {
        self.0.as_mut()?.proxied.as_mut()
    }
}
