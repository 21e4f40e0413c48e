//! Takes over the state file, the listeners and the clients of an earlier master.
//!
//! Each of them is taken over independently: the service manager may have lost some descriptors, and the state file may
//! be damaged or of another version. Listeners are identified by their addresses, and clients by the handoff queues;
//! only counters and changes at run time are in the state file alone.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;

use crate::channel::Channel;
use crate::config::{Config, Loaded};
use crate::master::capacity::{
    OWN_DESCRIPTORS, SUCCESSOR_DESCRIPTORS, client_limits, worker_count,
};
use crate::master::clients::figures::ClientFigures;
use crate::master::clients::place::OrphanedShm;
use crate::master::handover::queues::{HandoffQueues, QueueEnds};
use crate::master::handover::state_file::{
    LISTENER_NAME, QUEUE_NAME, STATE_FILE_NAME, SavedState, StateFile, queue_names,
};
use crate::master::handover::store::{self, Stored};
use crate::master::handover::unleased::is_for_unleased;
use crate::master::handover::unpack::{ReceivedHandoff, UnpackSpace, Unpacked};
use crate::master::listeners::record::ListenerRecord;
use crate::master::{ActivatedSockets, Error};
use crate::proto::channel::MAX_HANDOFF_QUEUES;
use crate::proto::handoff::HandoffMessage;
use crate::proto::names::{Address, WorkerId};
use crate::sys::fd;
use crate::sys::inherited::{Found, examine};

/// Descriptors of each socket that systemd has passed: the socket, and its listener's copy.
const DESCRIPTORS_PER_ACTIVATED: u64 = 2;

/// Returns the number of descriptors for clients, workers and listeners: `limit` minus those of `activated` sockets
/// that systemd has passed, and those of the store with `queues` handoff queues.
pub(crate) fn available_descriptors(limit: u64, activated: usize, queues: usize) -> u64 {
    let queues = if queues > 0 || store::is_wanted() {
        HandoffQueues::wanted(limit).max(queues as u64)
    } else {
        0
    };
    let kept = if queues > 0 { 1 + 2 * queues } else { 0 };
    limit.saturating_sub(DESCRIPTORS_PER_ACTIVATED * activated as u64 + kept)
}

/// Returns how many clients and how much shared memory can be unpacked under this configuration.
///
/// # Errors
/// When there are no descriptors for any.
fn space_for_clients(
    config: &Config,
    limit: u64,
    activated: usize,
    queues: usize,
) -> Result<UnpackSpace, Error> {
    let descriptors = available_descriptors(limit, activated, queues);
    let workers = worker_count(config.workers.count);
    let possible = client_limits(config, workers, descriptors)?.possible;
    let others = limit - descriptors + OWN_DESCRIPTORS + config.listen.len() as u64;
    let free = limit.saturating_sub(fd::open().unwrap_or(others));
    Ok(UnpackSpace {
        clients: usize::try_from(possible).unwrap_or(usize::MAX),
        // No worker is replaced before the clients have new ones.
        shms: SUCCESSOR_DESCRIPTORS as usize * workers,
        open: usize::try_from(free).unwrap_or(usize::MAX),
    })
}

/// Everything that an earlier master has left.
#[derive(Debug)]
pub struct Inherited {
    pub(crate) saved_state: SavedState,
    /// `None` if no clients are kept for another master.
    pub(crate) kept: Option<(StateFile, ReceivedHandoff)>,
    pub(crate) listeners: Vec<(ListenerRecord, OwnedFd)>,
    pub(crate) stored: Stored,
    /// The reasons why something could not be taken over.
    pub(crate) faults: Vec<String>,
}

/// Facts about the store while it is taken over.
struct Findings {
    stored: Stored,
    faults: Vec<String>,
}

/// The descriptors of a store, by purpose.
#[derive(Default)]
struct Sorted {
    state_file: Option<OwnedFd>,
    into: BTreeMap<usize, OwnedFd>,
    out: BTreeMap<usize, OwnedFd>,
    listeners: BTreeMap<u32, OwnedFd>,
}

impl Inherited {
    /// Takes over the stored descriptors among those that systemd has passed. `config` is the file's, if it is valid.
    ///
    /// # Errors
    /// The limit of descriptors is too low for a single client. Everything is left as it is then.
    pub(crate) fn find(
        activated: &mut ActivatedSockets,
        config: Option<&Config>,
    ) -> Result<Option<Inherited>, Error> {
        let kept = activated.take_kept();
        if kept.is_empty() {
            return Ok(None);
        }
        let limit = fd::raise_limit().map_err(Error::system("read the limit of descriptors"))?;
        let mut found = Findings::new(&kept);
        let mut sorted = Sorted::from_stored(kept);
        let (state_file, mut saved_state) = found.read_state_file(sorted.state_file.take());
        let last = config
            .is_none()
            .then(|| last_config(&saved_state))
            .flatten();
        let default = Config::default();
        let config = config.or(last.as_ref()).unwrap_or(&default);
        let space = |queues| space_for_clients(config, limit, activated.count(), queues);
        space(sorted.out.len())?;
        let listeners = found.find_listeners(sorted.listeners, &saved_state);
        let numbers = listeners.iter().map(|(record, _)| record.number);
        let last_number = numbers.max().unwrap_or_default();
        saved_state.listener_number = saved_state.listener_number.max(last_number);

        let ends = (sorted.into, sorted.out);
        let mut handoff = found.receive_handoff(ends, saved_state.handoff_queues, limit, space)?;
        let figures = state_file.as_ref().map(StateFile::figures);
        if let Some(clients) = figures.and_then(ClientFigures::clients) {
            handoff.count_missing(clients);
        }
        found.faults.extend(handoff.unpacked().faults.clone());
        let state_file = state_file
            .map_or_else(StateFile::new, Ok)
            .map_err(Error::system("create the state file"))?;
        saved_state.raise_numbers(handoff.unpacked());
        Ok(Some(Inherited {
            saved_state,
            kept: Some((state_file, handoff)),
            listeners,
            stored: found.stored,
            faults: found.faults,
        }))
    }

    /// Returns the number of handoff queues.
    pub(crate) fn queue_count(&self) -> usize {
        self.kept
            .as_ref()
            .map_or(0, |(_, handoff)| handoff.queue_count())
    }

    /// Returns whether any client in the handoff queues is still connected.
    pub(crate) fn has_clients(&self) -> bool {
        self.kept
            .as_ref()
            .is_some_and(|(_, handoff)| handoff.unpacked().has_clients())
    }

    /// Returns the configuration that was applied last, if there are clients that would be closed without it.
    pub(crate) fn last_for_clients(&self) -> Option<Loaded> {
        let config = self
            .has_clients()
            .then(|| last_config(&self.saved_state))
            .flatten()?;
        Some(Loaded {
            config,
            given: self.saved_state.given(),
            files: self.saved_state.config_files.clone(),
        })
    }
}

/// Returns the configuration that was applied last; there is none without a state file.
fn last_config(saved_state: &SavedState) -> Option<Config> {
    let text = Some(&saved_state.config).filter(|text| !text.is_empty())?;
    let saved = saved_state.identities.as_ref();
    Config::parse_last(text, "the last configuration", saved).ok()
}

impl SavedState {
    /// Raises the next numbers above those of all unpacked workers and generations, whatever the state file has.
    pub(super) fn raise_numbers(&mut self, unpacked: &Unpacked) {
        for OrphanedShm { record, .. } in unpacked.shms() {
            self.last_generation = self.last_generation.max(record.generation.0);
            if !is_for_unleased(record.worker) {
                self.next_worker = self.next_worker.max(WorkerId(record.worker.0 + 1));
            }
        }
    }
}

impl Findings {
    fn new(kept: &[(String, OwnedFd)]) -> Findings {
        Findings {
            stored: Stored::with_names(kept.iter().map(|(name, _)| name.clone()).collect()),
            faults: Vec::new(),
        }
    }

    /// Returns the state file, if it is valid, and its contents.
    fn read_state_file(&mut self, file: Option<OwnedFd>) -> (Option<StateFile>, SavedState) {
        let read = match file.map(|file| StateFile::open(File::from(file))) {
            None => Err("the state file is missing: counters start from zero".to_owned()),
            Some(opened) => opened
                .and_then(|state_file| state_file.read().map(|state| (state_file, state)))
                .map_err(|why| {
                    format!("cannot read the state file; counters start from zero: {why}")
                }),
        };
        match read {
            Ok((state_file, saved_state)) => (Some(state_file), saved_state),
            Err(fault) => {
                self.faults.push(fault);
                self.stored.spoil(STATE_FILE_NAME);
                (None, SavedState::default())
            }
        }
    }

    /// Completes the handoff queues, and unpacks what is in them. `recorded` is the number of queues in the state file.
    ///
    /// # Errors
    /// When queues cannot be created, or there are no descriptors for any client.
    fn receive_handoff(
        &mut self,
        (into, out): (BTreeMap<usize, OwnedFd>, BTreeMap<usize, OwnedFd>),
        recorded: usize,
        limit: u64,
        space: impl Fn(usize) -> Result<UnpackSpace, Error>,
    ) -> Result<ReceivedHandoff, Error> {
        let found = out.keys().filter(|number| **number < recorded).count();
        if found < recorded {
            let missing = recorded - found;
            let fault = format!("{missing} of {recorded} handoff queues are missing");
            self.faults.push(fault);
        }
        let (paired, single) = pair_up(into, out);
        let (queues, new) = HandoffQueues::complete(paired, limit)
            .map_err(Error::system("create the handoff queues"))?;
        let new = new.into_iter().flat_map(queue_names);
        new.for_each(|name| self.stored.spoil(&name));
        let space = space(queues.ends().len())?;
        Ok(ReceivedHandoff::unpack(queues, &single, &space))
    }

    /// Returns each listener with its record. Of one that is not in the state file only the address is known.
    fn find_listeners(
        &mut self,
        found: BTreeMap<u32, OwnedFd>,
        saved_state: &SavedState,
    ) -> Vec<(ListenerRecord, OwnedFd)> {
        let mut listeners = Vec::new();
        for (number, socket) in found {
            let address = match examine(&socket) {
                // One that has ended is bound again at its address.
                Ok(Found::Tcp(address) | Found::Ended(address)) => {
                    Address::Tcp(address).to_string()
                }
                Ok(Found::Unix(path)) => Address::Unix(path).to_string(),
                Ok(_) | Err(_) => {
                    self.stored.spoil(&format!("{LISTENER_NAME}.{number}"));
                    self.faults.push(format!(
                        "the stored listener {number} is not a listening socket"
                    ));
                    continue;
                }
            };
            let mut records = saved_state.listeners.iter();
            let record = records
                .find(|record| record.number == number && record.address == address)
                .cloned();
            let record = record.unwrap_or_else(|| ListenerRecord::with_address(number, address));
            listeners.push((record, socket));
        }
        listeners
    }
}

impl Sorted {
    fn from_stored(kept: Vec<(String, OwnedFd)>) -> Sorted {
        let mut sorted = Sorted::default();
        for (name, descriptor) in kept {
            match name.split_once('.').unwrap_or((&name, "")) {
                (STATE_FILE_NAME, "") => sorted.state_file = Some(descriptor),
                (LISTENER_NAME, number) => {
                    if let Ok(number) = number.parse() {
                        sorted.listeners.insert(number, descriptor);
                    }
                }
                (QUEUE_NAME, end) => {
                    let number = |suffix| {
                        end.strip_suffix(suffix)
                            .and_then(|number| number.parse().ok())
                    };
                    if let Some(number) = number("-into") {
                        sorted.into.insert(number, descriptor);
                    } else if let Some(number) = number("-out") {
                        sorted.out.insert(number, descriptor);
                    }
                }
                // Possibly of another version.
                _ => {}
            }
        }
        sorted
    }
}

/// Returns the handoff queues with both ends, and the second ends whose first ones are missing.
fn pair_up(
    into: BTreeMap<usize, OwnedFd>,
    mut out: BTreeMap<usize, OwnedFd>,
) -> (
    BTreeMap<usize, QueueEnds>,
    Vec<Channel<HandoffMessage, HandoffMessage>>,
) {
    let mut paired = BTreeMap::new();
    for (number, into) in into
        .into_iter()
        .filter(|(number, _)| *number < MAX_HANDOFF_QUEUES)
    {
        if let Some(out) = out.remove(&number) {
            paired.insert(
                number,
                QueueEnds::from_channels(Channel::new(into), Channel::new(out)),
            );
        }
    }
    (paired, out.into_values().map(Channel::new).collect())
}

#[cfg(test)]
mod tests;
