//! Which listeners a configuration wants, and which of them are there already.

use crate::config::Listen;
use crate::master::listeners::listener::Listener;
use crate::proto::names::Address;

/// A listener that is to be.
#[derive(Clone, Debug)]
pub(crate) struct Wanted<'c> {
    /// As whose entry.
    pub(crate) entry: &'c Listen,
    pub(crate) place: SocketSource,
}

impl Wanted<'_> {
    /// Where it is to be bound, if it is.
    pub(crate) fn address(&self) -> Option<&Address> {
        match &self.place {
            SocketSource::Bound(address) => Some(address),
            SocketSource::Handed(_) => None,
        }
    }
}

/// What tells a listener from all others in a configuration, and finds it again in the next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SocketSource {
    /// The address that it is to be bound to.
    Bound(Address),
    /// The number of a socket that was handed over.
    Handed(usize),
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
    let fits: [fn(&Listener, &SocketSource) -> bool; 3] = [
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
