//! What a start finds that a master before this one left: its state file, its listeners, and clients.
//!
//! Each of them is taken over by itself, whatever has become of the others: the service manager may have lost some
//! descriptors, and the state file may be damaged or of another version. Listeners are known by their addresses, and clients by
//! what lies in the handoff queues; only figures, and what was changed while the daemon ran, are in the state file alone.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::fd::OwnedFd;

use crate::channel::Channel;
use crate::config::{Config, Loaded};
use crate::master::capacity::{OWN_DESCRIPTORS, client_limits, worker_count};
use crate::master::handover::queues::{HandoffQueues, QueueEnds};
use crate::master::handover::restart;
use crate::master::handover::snapshot::CarriedOver;
use crate::master::handover::state_file::{
    LISTENER_NAME, QUEUE_NAME, STATE_FILE_NAME, SavedState, StateFile,
};
use crate::master::handover::unpack::{ReceivedHandoff, Unpacked};
use crate::master::listeners::listener::ListenerRecord;
use crate::master::{Error, Handed};
use crate::proto::channel::{MAX_HANDOFF_QUEUES, MAX_LEASES};
use crate::proto::handoff::HandoffMessage;
use crate::proto::names::{Address, WorkerId};
use crate::sys::fd;
use crate::sys::inherited::{Found, examine};

/// A socket that was handed over, and the copy of it that its listener has.
const DESCRIPTORS_PER_HANDED: u64 = 2;

/// Descriptors for clients and for what the number of workers and listeners decides, out of so many, beside so many sockets
/// that were handed over and so many handoff queues that there are.
pub(crate) fn descriptors_left(limit: u64, handed: usize, queues: usize) -> u64 {
    let queues = if queues > 0 || restart::is_wanted() {
        HandoffQueues::wanted(limit).max(queues as u64)
    } else {
        0
    };
    let kept = if queues > 0 { 1 + 2 * queues } else { 0 };
    limit.saturating_sub(DESCRIPTORS_PER_HANDED * handed as u64 + kept)
}

/// How many clients, and shared memory that they lie on, can be taken out of handoff queues under this configuration.
///
/// # Errors
/// When there are no descriptors for any.
fn room_for_clients(
    config: &Config,
    limit: u64,
    handed: usize,
    queues: usize,
) -> Result<usize, Error> {
    let descriptors = descriptors_left(limit, handed, queues);
    let possible = client_limits(config, worker_count(config.workers.count), descriptors)?.possible;
    // One datagram of clients is there before it is known which of them stay.
    let open = fd::open().unwrap_or(limit - descriptors) + OWN_DESCRIPTORS;
    let room = limit
        .saturating_sub(open + MAX_LEASES as u64)
        .min(possible)
        .max(1);
    Ok(usize::try_from(room).unwrap_or(usize::MAX))
}

/// What a master before this one has left.
#[derive(Debug)]
pub struct Inherited {
    pub(crate) saved_state: SavedState,
    /// None if nothing is kept for another master.
    pub(crate) kept: Option<(StateFile, ReceivedHandoff)>,
    pub(crate) listeners: Vec<(ListenerRecord, OwnedFd)>,
    /// What goes on without having been left, if this process was that master.
    pub(crate) carried_over: Option<CarriedOver>,
    pub(crate) stored: Stored,
    /// What could not be taken over, and why.
    pub(crate) faults: Vec<String>,
}

/// What the service manager has.
#[derive(Debug, Default)]
pub(crate) struct Stored {
    /// Names of what is in use.
    pub(crate) names: BTreeSet<String>,
    /// Names of what is of no use any more.
    pub(crate) spoilt: BTreeSet<String>,
}

/// Descriptors of a store, by what they are.
#[derive(Default)]
struct Sorted {
    state_file: Option<OwnedFd>,
    into: BTreeMap<usize, OwnedFd>,
    out: BTreeMap<usize, OwnedFd>,
    listeners: BTreeMap<u32, OwnedFd>,
}

impl Inherited {
    /// Takes over what there is among the descriptors that were handed over. `config` is that of the file, if it is good.
    ///
    /// # Errors
    /// When this process may not have enough descriptors for a single client. Everything is left as it is then.
    pub fn find(handed: &mut Handed, config: Option<&Config>) -> Result<Option<Inherited>, Error> {
        let kept = handed.take_kept();
        if kept.is_empty() {
            return Ok(None);
        }
        let limit = fd::raise_limit().map_err(Error::system("read the limit of descriptors"))?;
        let mut stored = Stored {
            names: kept.iter().map(|(name, _)| name.clone()).collect(),
            ..Stored::default()
        };
        let (mut sorted, mut faults) = (Sorted::from_stored(kept), Vec::new());
        let (state_file, saved_state) = read_state_file(sorted.state_file.take(), &mut faults);
        if state_file.is_none() {
            stored.spoil(STATE_FILE_NAME);
        }
        let mut saved_state = saved_state.unwrap_or_default();
        let last = config
            .is_none()
            .then(|| last_config(&saved_state))
            .flatten();
        let default = Config::default();
        let config = config.or(last.as_ref()).unwrap_or(&default);
        room_for_clients(config, limit, handed.count(), sorted.out.len())?;
        let listeners = find_listeners(sorted.listeners, &saved_state, &mut stored, &mut faults);
        let numbers = listeners.iter().map(|(record, _)| record.number);
        saved_state.listener_number = numbers
            .chain([saved_state.listener_number])
            .max()
            .unwrap_or_default();

        let system = Error::system("create the handoff queues");
        let outlets = sorted
            .out
            .keys()
            .filter(|number| **number < saved_state.handoff_queues)
            .count();
        let (paired, single) = pair_up(sorted.into, sorted.out);
        let (queues, new) = HandoffQueues::complete(paired, limit).map_err(&system)?;
        for number in &new {
            queue_names(*number)
                .iter()
                .for_each(|name| stored.spoil(name));
        }
        let capacity = room_for_clients(config, limit, handed.count(), queues.ends().len())?;
        let mut handoff = ReceivedHandoff::unpack(queues, &single, capacity);
        // Without room for shared memory there was none for the clients on it, either.
        let is_incomplete =
            outlets < saved_state.handoff_queues || handoff.unpacked().shms().next().is_none();
        if let Some(clients) = state_file
            .as_ref()
            .and_then(|state_file| state_file.figures().clients())
            .filter(|_| is_incomplete)
        {
            handoff.count_missing(clients);
        }
        if outlets < saved_state.handoff_queues {
            faults.push(format!(
                "{} of {} handoff queues are missing",
                saved_state.handoff_queues - outlets,
                saved_state.handoff_queues
            ));
        }
        faults.extend(handoff.unpacked().faults.iter().cloned());
        let state_file = state_file
            .map_or_else(StateFile::new, Ok)
            .map_err(&system)?;
        saved_state.go_on_from(handoff.unpacked());
        Ok(Some(Inherited {
            saved_state,
            kept: Some((state_file, handoff)),
            listeners,
            carried_over: None,
            stored,
            faults,
        }))
    }

    /// How many handoff queues there are.
    pub(crate) fn queues(&self) -> usize {
        self.kept
            .as_ref()
            .map_or(0, |(_, handoff)| handoff.queues())
    }

    /// The configuration that was applied last, if there are clients who would be closed without it.
    #[must_use]
    pub fn last_for_clients(&self) -> Option<Loaded> {
        let has_clients = self
            .kept
            .as_ref()
            .is_some_and(|(_, handoff)| handoff.unpacked().has_clients());
        let config = has_clients
            .then(|| last_config(&self.saved_state))
            .flatten()?;
        Some(Loaded {
            config,
            keys: self.saved_state.config_keys.clone(),
            files: self.saved_state.config_files.clone(),
        })
    }
}

/// Without a state file there is none.
fn last_config(saved_state: &SavedState) -> Option<Config> {
    let text = Some(&saved_state.config).filter(|text| !text.is_empty())?;
    Config::parse_kept(text, "the last configuration", None).ok()
}

impl SavedState {
    /// No worker and no generation has a number that one of these had, whatever the state file says.
    fn go_on_from(&mut self, unpacked: &Unpacked) {
        for (record, _) in unpacked.shms() {
            self.last_generation = self.last_generation.max(record.generation.0);
            // Clients without a worker lie in shared memory with the highest number, which no worker ever gets.
            if record.worker < WorkerId(u64::MAX) {
                self.next_worker = self.next_worker.max(WorkerId(record.worker.0 + 1));
            }
        }
    }
}

impl Stored {
    /// What the manager has under this name is replaced.
    fn spoil(&mut self, name: &str) {
        if self.names.remove(name) {
            self.spoilt.insert(name.to_owned());
        }
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
                // Of another version, perhaps.
                _ => {}
            }
        }
        sorted
    }
}

/// Names of both ends of a handoff queue.
pub(crate) fn queue_names(number: usize) -> [String; 2] {
    ["into", "out"].map(|end| format!("{QUEUE_NAME}.{number}-{end}"))
}

fn read_state_file(
    found: Option<OwnedFd>,
    faults: &mut Vec<String>,
) -> (Option<StateFile>, Option<SavedState>) {
    let Some(found) = found else {
        faults.push("the state file is missing: counters start from zero".to_owned());
        return (None, None);
    };
    match StateFile::open(File::from(found)).and_then(|state_file| {
        state_file
            .read()
            .map(|saved_state| (state_file, saved_state))
    }) {
        Ok((state_file, saved_state)) => (Some(state_file), Some(saved_state)),
        Err(why) => {
            faults.push(format!(
                "cannot read the state file; counters start from zero: {why}"
            ));
            (None, None)
        }
    }
}

/// Handoff queues with both ends, and second ends whose first one is missing.
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
                QueueEnds {
                    into: Channel::new(into),
                    out: Channel::new(out),
                },
            );
        }
    }
    (paired, out.into_values().map(Channel::new).collect())
}

/// Each listener with its record. Of one that the state file does not tell of the address is known, and no more.
fn find_listeners(
    found: BTreeMap<u32, OwnedFd>,
    saved_state: &SavedState,
    stored: &mut Stored,
    faults: &mut Vec<String>,
) -> Vec<(ListenerRecord, OwnedFd)> {
    let mut listeners = Vec::new();
    for (number, socket) in found {
        let address = match examine(&socket) {
            // One that has ended is bound anew at its address.
            Ok(Found::Tcp(address) | Found::Ended(address)) => Address::Tcp(address).to_string(),
            Ok(Found::Unix(path)) => Address::Unix(path).to_string(),
            Ok(_) | Err(_) => {
                stored.spoil(&format!("{LISTENER_NAME}.{number}"));
                faults.push(format!(
                    "the stored listener {number} is not a listening socket"
                ));
                continue;
            }
        };
        let recorded = saved_state
            .listeners
            .iter()
            .find(|record| record.number == number && record.address == address);
        let record = recorded
            .cloned()
            .unwrap_or_else(|| ListenerRecord::with_address(number, address));
        listeners.push((record, socket));
    }
    listeners
}

#[cfg(test)]
mod tests;
