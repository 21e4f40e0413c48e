//! Opens the listeners of a configuration in addition to those that an earlier master has left.

use std::time::{Duration, Instant};

use crate::config::Listen;
use crate::master::listeners::conflict::OwnListeners;
use crate::master::listeners::listener::Listener;
use crate::master::listeners::matching;
use crate::master::listeners::plan::WantedListener;
use crate::master::listeners::served::{FILE_GONE, Served};
use crate::master::retry::Outage;
use crate::master::{ActivatedSockets, Error};

/// The consequence of a listener that cannot be opened at the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnOpenError {
    /// The start fails, unless only the address is missing and another listener serves.
    FailStart,
    /// The listener is down and is retried: a failed start would close the clients of the earlier master.
    RetryLater,
}

/// The listener that serves an entry of the configuration.
#[derive(Debug)]
pub(crate) enum Chosen {
    /// The listener with this index among those of the earlier master.
    Left(usize),
    New(Box<Listener>),
}

/// Opens listeners in addition to those of an earlier master.
#[derive(Debug)]
pub(crate) struct ListenerOpener<'o> {
    pub(crate) activated: &'o ActivatedSockets,
    /// The listeners that the earlier master has left.
    pub(crate) left: &'o [Listener],
    pub(crate) keepalive: Option<Duration>,
    /// Whether new listeners refuse clients, because of a drain.
    pub(crate) refuses: bool,
    /// The number of the listener that was opened last.
    pub(crate) last_number: u32,
    pub(crate) now: Instant,
}

impl ListenerOpener<'_> {
    /// Chooses a listener for each one that the entries want: one that was left, or a new one. One that was left and whose
    /// file is gone is replaced by a new one, as at a reload, unless that cannot be bound.
    ///
    /// # Errors
    /// If no listener can serve, or, depending on `on_error`, if one cannot be opened.
    pub(crate) fn choose(
        &mut self,
        entries: &[Listen],
        on_error: OnOpenError,
    ) -> Result<Vec<Chosen>, Error> {
        let wanted = self.activated.wanted(entries)?;
        let matching = matching::match_existing(self.left, &wanted, matching::keeps_all);
        let mut chosen = Vec::new();
        for (wanted_one, index) in wanted.iter().zip(matching) {
            // If another listener can serve, an address may appear later.
            let may_appear = |e: &Error| matches!(e, Error::NoAddress(_)) && wanted.len() > 1;
            let one = match index {
                Some(index) => self.keep_or_replace(index, wanted_one),
                None => Chosen::New(Box::new(match self.open(wanted_one) {
                    Ok(listener) => listener,
                    Err(e) => {
                        let e = self.explain(e, wanted_one, &chosen);
                        if on_error == OnOpenError::FailStart && !may_appear(&e) {
                            return Err(e);
                        }
                        let (number, now) = (self.last_number, self.now);
                        Listener::missing(number, wanted_one, self.activated, &e, now)?
                    }
                })),
            };
            chosen.push(one);
        }
        match unserved(&chosen) {
            Some(why) if on_error == OnOpenError::FailStart => Err(Error::Unavailable(why)),
            _ => Ok(chosen),
        }
    }

    fn open(&mut self, wanted: &WantedListener<'_>) -> Result<Listener, Error> {
        self.last_number += 1;
        let number = self.last_number;
        Listener::open(number, wanted, self.activated, self.keepalive, self.refuses)
    }

    /// Keeps a listener that was left. If its file is gone, opens a new one in its place; if that is not possible, the old
    /// one stays as it is, because clients may wait there.
    fn keep_or_replace(&mut self, index: usize, wanted: &WantedListener<'_>) -> Chosen {
        let left = &self.left[index];
        if matching::keeps_reachable(left) {
            return Chosen::Left(index);
        }
        match self.open(wanted) {
            Ok(listener) => Chosen::New(Box::new(listener)),
            Err(e) => {
                log::error!("{}: {FILE_GONE}: {e}", left.name());
                Chosen::Left(index)
            }
        }
    }

    /// Adds to an error that the daemon itself listens at the address, if it does.
    fn explain(&self, error: Error, wanted: &WantedListener<'_>, chosen: &[Chosen]) -> Error {
        let new = chosen.iter().filter_map(Chosen::new_listener);
        let own = OwnListeners::from_listeners(self.left.iter().chain(new), None, None);
        own.explain(error, wanted.address())
    }
}

impl Chosen {
    fn new_listener(&self) -> Option<&Listener> {
        match self {
            Chosen::Left(_) => None,
            Chosen::New(listener) => Some(listener),
        }
    }

    fn outage(&self) -> Option<&Outage> {
        self.new_listener()?.outage.as_ref()
    }
}

/// Returns why no client can be served, if each of the listeners has an outage.
fn unserved(chosen: &[Chosen]) -> Option<String> {
    if chosen.iter().any(|one| one.outage().is_none()) {
        return None;
    }
    let first = chosen.iter().find_map(Chosen::outage);
    first.map(|outage| outage.reason.clone())
}

/// Returns the chosen listeners in the order of the configuration, then those of the earlier master that are no longer
/// wanted or were replaced. Returns the numbers of the second group as well.
pub(crate) fn join_listeners(
    entries: &[Listen],
    activated: &ActivatedSockets,
    left: Vec<Listener>,
    chosen: Vec<Chosen>,
    keepalive: Option<Duration>,
) -> Result<(Vec<Listener>, Vec<u32>), Error> {
    let wanted = activated.wanted(entries)?;
    let mut left: Vec<Option<Listener>> = left.into_iter().map(Some).collect();
    let mut listeners = Vec::new();
    for (wanted, one) in wanted.iter().zip(chosen) {
        match one {
            Chosen::New(listener) => listeners.push(*listener),
            Chosen::Left(index) => listeners.extend(left[index].take().map(|mut listener| {
                listener.adopt_left(wanted.entry, keepalive);
                listener.set_source(&wanted.source);
                listener
            })),
        }
    }
    let mut rest: Vec<Listener> = left.into_iter().flatten().collect();
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
