//! Where the state of a starting master comes from.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Instant;

use crate::config::{Config, Loaded};
use crate::master::handover::carried_over::CarriedOver;
use crate::master::handover::inherited::Inherited;
use crate::master::handover::state_file::SavedState;
use crate::master::listeners::drain::state::DrainState;
use crate::master::listeners::listener::Listener;
use crate::master::listeners::record::ListenerRecord;
use crate::master::{ActivatedSockets, Error};
use crate::proto::names::{Address, Generation, WorkerId};
use crate::shm::Layout;
use crate::sys::user::User;
use crate::sys::{process, socket};

/// The origin of a master's state.
#[derive(Debug)]
pub enum MasterOrigin {
    /// No earlier master has left anything.
    Fresh,
    /// Another process has left its state and its clients with the service manager.
    Restarted(Box<Inherited>),
    /// The process was a master before it executed this program.
    Upgraded(Box<Inherited>, Box<CarriedOver>),
}

impl MasterOrigin {
    /// Takes over the descriptors that systemd has passed: the sockets of its units, and those of an earlier master.
    /// `config` is the file's, if it is valid.
    ///
    /// # Errors
    /// When the environment contradicts itself, or when this process may not have enough descriptors for a single
    /// client. Everything is left as it is then.
    pub fn from_environment(
        config: Option<&Config>,
    ) -> Result<(ActivatedSockets, MasterOrigin), Error> {
        let mut activated = ActivatedSockets::from_environment()?;
        let inherited = Inherited::find(&mut activated, config)?.map(Box::new);
        let origin = inherited.map_or(MasterOrigin::Fresh, MasterOrigin::Restarted);
        Ok((activated, origin))
    }

    /// Returns whether there was no earlier master, and so no client.
    #[must_use]
    pub fn is_fresh(&self) -> bool {
        matches!(self, MasterOrigin::Fresh)
    }

    /// Returns whether a start that fails would close clients. After an upgrade a failed start would also end the
    /// workers.
    pub(crate) fn has_clients(&self) -> bool {
        match self {
            MasterOrigin::Fresh => false,
            MasterOrigin::Restarted(inherited) => inherited.has_clients(),
            MasterOrigin::Upgraded(..) => true,
        }
    }

    /// Returns the configuration that was applied last, if there are clients that would be closed without it.
    #[must_use]
    pub fn last_for_clients(&self) -> Option<Loaded> {
        self.inherited().and_then(Inherited::last_for_clients)
    }

    fn inherited(&self) -> Option<&Inherited> {
        match self {
            MasterOrigin::Fresh => None,
            MasterOrigin::Restarted(inherited) | MasterOrigin::Upgraded(inherited, _) => {
                Some(inherited)
            }
        }
    }

    pub(crate) fn carried_over(&mut self) -> Option<&mut CarriedOver> {
        match self {
            MasterOrigin::Upgraded(_, carried_over) => Some(carried_over),
            MasterOrigin::Fresh | MasterOrigin::Restarted(_) => None,
        }
    }

    fn saved_state(&self) -> Option<&SavedState> {
        self.inherited().map(|inherited| &inherited.saved_state)
    }

    /// Logs what could not be restored.
    pub(crate) fn log_faults(&self) {
        for fault in self.inherited().into_iter().flat_map(|found| &found.faults) {
            log::error!("restoring the previous master's state: {fault}");
        }
    }

    /// Returns the number of handoff queues.
    pub(crate) fn queue_count(&self) -> usize {
        self.inherited().map_or(0, Inherited::queue_count)
    }

    /// Returns the drain that was under way.
    pub(crate) fn drain(&self, now: Instant) -> Option<DrainState> {
        self.saved_state()?.drain(now)
    }

    /// Takes the listeners of the earlier master. Those that refuse clients because of a drain may have no socket.
    pub(crate) fn take_listeners(&mut self, refuses: bool) -> Vec<Listener> {
        let inherited = match self {
            MasterOrigin::Fresh => return Vec::new(),
            MasterOrigin::Restarted(inherited) | MasterOrigin::Upgraded(inherited, _) => inherited,
        };
        let mut found = std::mem::take(&mut inherited.listeners);
        if refuses {
            let recorded = inherited.saved_state.listeners.iter();
            let is_missing = |record: &&ListenerRecord| {
                found.iter().all(|(other, _)| other.number != record.number)
            };
            let missing: Vec<_> = recorded.filter(is_missing).cloned().collect();
            found.extend(missing.into_iter().filter_map(without_socket));
        }
        let mut listeners = Vec::new();
        for (record, socket) in found {
            match Listener::from_record(&record, socket) {
                Ok(listener) => listeners.push(listener),
                Err(why) => log::error!(
                    "closing listener {} of the previous master: {why}",
                    record.number
                ),
            }
        }
        if refuses {
            listeners.iter_mut().for_each(Listener::resume_refusal);
        }
        listeners
    }

    /// Returns the highest number of any listener so far.
    pub(crate) fn listener_number(&self) -> u32 {
        self.saved_state().map_or(0, |state| state.listener_number)
    }

    /// Returns the first generation of this master.
    pub(crate) fn generation(&self) -> Generation {
        Generation(self.saved_state().map_or(0, |state| state.last_generation) + 1)
    }

    /// Returns the id of this master's first worker.
    pub(crate) fn next_worker(&self) -> WorkerId {
        self.saved_state()
            .map_or(WorkerId(1), |state| state.next_worker)
    }

    /// Returns the daemon's user. The name is for people only, so it may be the one that was known before: looking it
    /// up may wait for a directory server.
    pub(crate) fn user(&self) -> User {
        let uid = process::user();
        let known = self.saved_state().and_then(|state| state.user.clone());
        match known.filter(|(_, known)| *known == uid) {
            Some((name, uid)) => User { name, uid },
            None => User::from_uid(uid).unwrap_or_else(|_| User {
                name: uid.to_string(),
                uid,
            }),
        }
    }

    /// Returns the slots that all restored clients need, and their longest frame.
    pub(crate) fn needed_layout(&self) -> Layout {
        let workers = match self {
            MasterOrigin::Upgraded(_, carried_over) => &carried_over.workers[..],
            MasterOrigin::Fresh | MasterOrigin::Restarted(_) => &[],
        };
        let carried_over = workers
            .iter()
            .map(|(worker, _)| (worker.shm.layout(), worker.leases.clients()));
        let kept = self.inherited().and_then(|found| found.kept.as_ref());
        let unpacked = kept
            .into_iter()
            .flat_map(|(_, handoff)| handoff.unpacked().occupied());
        let (clients, longest) = carried_over
            .chain(unpacked)
            .filter(|(_, clients)| *clients > 0)
            .fold((0, 0), |(all, longest), (layout, clients)| {
                (all + clients, layout.max_frame().max(longest))
            });
        Layout::new(u32::try_from(clients).unwrap_or(u32::MAX), longest)
    }
}

/// Returns the record with a socket that is not bound.
fn without_socket(record: ListenerRecord) -> Option<(ListenerRecord, OwnedFd)> {
    let socket = match record.address.parse().ok()? {
        Address::Tcp(at) => socket::unbound_tcp(at),
        Address::Unix(_) => socket::unbound(),
    };
    let log = |e: &io::Error| log::error!("cannot make a socket for {}: {e}", record.address);
    let socket = socket.inspect_err(log).ok()?;
    Some((record, socket))
}
