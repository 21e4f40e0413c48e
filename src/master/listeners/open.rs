//! Opens the listeners of a configuration in addition to those that an earlier master has left.

use std::time::{Duration, Instant};

use crate::config::Listen;
use crate::master::listeners::conflict::OwnListeners;
use crate::master::listeners::listener::Listener;
use crate::master::listeners::outage::{FILE_GONE, Served};
use crate::master::listeners::plan;
use crate::master::{ActivatedSockets, Error};

/// The consequence of a listener that cannot be opened at the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnOpenError {
    /// The start fails, unless only the address is missing and another listener serves.
    FailStart,
    /// The listener is down and is retried: a failed start would close the clients of the earlier master.
    RetryLater,
}

/// Opens the listeners that a configuration wants and that are not among the kept ones of an earlier master. Returns
/// one entry for each wanted listener: `None` for a kept one. A kept listener whose file is gone is replaced by a new one,
/// as at a reload, unless that cannot be bound. If `refuses`, the new ones refuse clients, because of a drain.
pub(crate) fn open_new(
    entries: &[Listen],
    activated: &ActivatedSockets,
    kept: &[Listener],
    number: &mut u32,
    keepalive: Option<Duration>,
    (refuses, on_error, now): (bool, OnOpenError, Instant),
) -> Result<Vec<Option<Listener>>, Error> {
    let wanted = activated.wanted(entries)?;
    let existing = plan::match_existing(kept, &wanted, plan::keeps_all);
    let wanted_count = wanted.len();
    let mut opened: Vec<Option<Listener>> = Vec::new();
    for (wanted, index) in wanted.iter().zip(existing) {
        let left = index.map(|index| &kept[index]);
        if left.is_some_and(plan::keeps_reachable) {
            opened.push(None);
            continue;
        }
        *number += 1;
        let listener = Listener::open(*number, wanted, activated, keepalive, refuses);
        if let (Err(e), Some(left)) = (&listener, left) {
            // It stays as it is: clients may wait there.
            log::error!("{}: {FILE_GONE}: {e}", left.name());
            opened.push(None);
            continue;
        }
        let own =
            || OwnListeners::from_listeners(kept.iter().chain(opened.iter().flatten()), None, None);
        let listener = listener.map_err(|e| own().explain(e, wanted.address()));
        let listener = match (listener, on_error) {
            (Ok(listener), _) => listener,
            (Err(e), OnOpenError::RetryLater) => {
                Listener::missing(*number, wanted, activated, &e, now)?
            }
            // If another listener can serve, an address may appear later.
            (Err(e @ Error::NoAddress(_)), OnOpenError::FailStart) if wanted_count > 1 => {
                Listener::missing(*number, wanted, activated, &e, now)?
            }
            (Err(e), OnOpenError::FailStart) => return Err(e),
        };
        opened.push(Some(listener));
    }
    let is_served = opened.iter().any(|listener| {
        listener
            .as_ref()
            .is_none_or(|listener| listener.outage.is_none())
    });
    match opened
        .iter()
        .flatten()
        .find_map(|listener| listener.outage.as_ref())
    {
        Some(outage) if !is_served && on_error == OnOpenError::FailStart => {
            Err(Error::Unavailable(outage.reason.clone()))
        }
        _ => Ok(opened),
    }
}

/// Returns the listeners in the order of the configuration, then those of the earlier master that are no longer wanted
/// or were replaced. Returns the numbers of the second group as well.
pub(crate) fn join_listeners(
    entries: &[Listen],
    activated: &ActivatedSockets,
    kept: Vec<Listener>,
    opened: Vec<Option<Listener>>,
    keepalive: Option<Duration>,
) -> Result<(Vec<Listener>, Vec<u32>), Error> {
    let wanted = activated.wanted(entries)?;
    let existing = plan::match_existing(&kept, &wanted, plan::keeps_all);
    let mut kept: Vec<Option<Listener>> = kept.into_iter().map(Some).collect();
    let mut listeners = Vec::new();
    for ((wanted, index), opened) in wanted.iter().zip(existing).zip(opened) {
        let index = index.filter(|_| opened.is_none());
        if let Some(mut listener) = index.and_then(|index| kept[index].take()) {
            listener.adopt_left(wanted.entry, keepalive);
            listener.set_source(&wanted.source);
            listeners.push(listener);
        }
        listeners.extend(opened);
    }
    let mut rest: Vec<Listener> = kept.into_iter().flatten().collect();
    // The file belongs to the listener that was bound in its place.
    let is_replaced = |listener: &Listener| {
        listeners
            .iter()
            .any(|other| other.address == listener.address)
    };
    rest.iter_mut()
        .filter(|listener| is_replaced(listener))
        .for_each(Listener::disown_file);
    let leaving = rest.iter().map(|listener| listener.number).collect();
    listeners.extend(rest);
    Ok((listeners, leaving))
}
