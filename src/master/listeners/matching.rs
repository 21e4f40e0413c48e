//! Determines which of the listeners that a configuration wants exist already.

use crate::master::listeners::listener::Listener;
use crate::master::listeners::plan::{SocketSource, WantedListener};

/// Returns for each wanted listener the index of the existing one that is kept for it; one without an index must be
/// opened. `may_keep` returns whether a listener can be kept at all. There are three passes:
///
/// 1. A listener is kept for the same source. Port 0 is any port, so the first wanted listener with it gets the first
///    existing one that was bound with it, and so on.
/// 2. One that is left is kept for the same address, because no second socket can be bound there.
/// 3. One that is left, and whose source is unknown, is kept for port 0 of its host.
pub(crate) fn match_existing(
    listeners: &[Listener],
    wanted: &[WantedListener<'_>],
    may_keep: fn(&Listener) -> bool,
) -> Vec<Option<usize>> {
    let mut free: Vec<bool> = listeners.iter().map(may_keep).collect();
    let mut kept = vec![None; wanted.len()];
    let fits: [fn(&Listener, &SocketSource) -> bool; 3] = [
        |listener, source| listener.source == *source,
        Listener::is_at,
        Listener::is_on_host,
    ];
    for fits in fits {
        for (kept, wanted) in kept
            .iter_mut()
            .zip(wanted)
            .filter(|(kept, _)| kept.is_none())
        {
            *kept = (0..listeners.len()).find(|&i| free[i] && fits(&listeners[i], &wanted.source));
            if let Some(index) = *kept {
                free[index] = false;
            }
        }
    }
    kept
}

/// Selects the listeners that clients can find, for [`match_existing`]. A listener whose file is gone is replaced by
/// another socket; clients in its queue are still served.
pub(crate) fn keeps_reachable(listener: &Listener) -> bool {
    !listener.is_file_gone()
}

/// Selects all listeners, for [`match_existing`]. If the file of one is gone and cannot be created again, the clients
/// that wait there are not lost.
pub(crate) fn keeps_all(_: &Listener) -> bool {
    true
}
