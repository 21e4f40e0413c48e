//! Workers: one worker process, its life, its load, and the attribution of its crash.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::channel::Scratch;
use crate::master::clients::client::Client;
use crate::master::telemetry::counters::Totals;
use crate::master::workers::candidates::DispatchState;
use crate::master::workers::channel_state::ChannelWaits;
use crate::master::workers::crash_limits::CrashLimits;
use crate::master::workers::oom_kills::OomKills;
use crate::master::workers::outgoing::Outgoing;
use crate::master::workers::rebalance::RequestedRebalance;
use crate::master::workers::retire::Retiring;
use crate::master::workers::spread::Spreading;
use crate::master::workers::watchdog::Watch;
use crate::master::workers::worker::Worker;
use crate::master::workers::zygote::Zygotes;
use crate::pool::rebalance::Rebalancer;
use crate::pool::{Member, Pool};
use crate::proto::channel::ToWorker;
use crate::proto::names::WorkerId;
use crate::sys::poll::Poller;
use crate::sys::process::{ChildList, Executable};

pub(crate) mod actions;
pub(crate) mod app;
pub(crate) mod births;
pub(crate) mod candidates;
pub(crate) mod channel_state;
pub(crate) mod crash;
pub(crate) mod crash_limits;
pub(crate) mod death;
pub(crate) mod descendants;
pub(crate) mod dispatch;
pub(crate) mod executor;
pub(crate) mod goaway;
pub(crate) mod health;
pub(crate) mod heartbeat;
pub(crate) mod messages;
pub(crate) mod oom_kills;
pub(crate) mod operate;
pub(crate) mod outgoing;
mod proxied;
pub(crate) mod rebalance;
pub(crate) mod retire;
pub(crate) mod sending;
pub(crate) mod spread;
pub(crate) mod trust;
pub(crate) mod trusted_counters;
pub(crate) mod watchdog;
pub(crate) mod worker;
pub(crate) mod write_account;
pub(crate) mod zygote;

/// The kind of the error if a worker cannot be started now because kernel memory is short or too many descriptors are
/// in flight. The start is retried soon.
pub(crate) const NOT_NOW: io::ErrorKind = io::ErrorKind::ResourceBusy;

/// The record of a seat, which persists when its worker is replaced.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct SeatTotals {
    /// Number of workers that this seat has had.
    pub(crate) spawned: u64,
    /// Totals of the seat's earlier workers.
    pub(crate) totals: Totals,
    /// How the last worker of this seat ended that was not asked to end, or why it could not be started.
    pub(crate) last_death: Option<String>,
}

/// All workers, and the records of earlier ones.
#[derive(Debug)]
pub(crate) struct Workers {
    pub(crate) pool: Pool,
    pub(crate) all: BTreeMap<WorkerId, Worker>,
    pub(crate) seats: Vec<SeatTotals>,
    /// Set while all workers are of another version: no new worker is started before they are gone.
    pub(crate) outgoing: Option<Outgoing>,
    /// When the watchdog's checks are due.
    pub(crate) watch: Watch,
    rebalancer: Rebalancer,
    pub(crate) requested_rebalance: Option<RequestedRebalance>,
    /// Set after the first ready worker has received all clients that waited, until the other workers have their
    /// shares.
    pub(crate) spreading: Option<Spreading>,
    dispatch: DispatchState,
    /// Retiring workers, in the order in which their clients move.
    retiring: VecDeque<Retiring>,
    /// Set while the clients of retiring workers wait until other workers have picked up more leases.
    awaits_pick_up: bool,
    pub(crate) crash_limits: CrashLimits,
    /// How the last worker ended that was not asked to end, or why it could not be started.
    last_failure: Option<String>,
    oom_kills: OomKills,
    /// Sessions of ended workers in which processes may still run.
    ended_sessions: Vec<u32>,
    children: ChildList,
    /// The program that workers execute.
    pub(crate) executable: Executable,
    pub(crate) zygotes: Zygotes,
    /// Set while the channel of a worker waits for memory of the kernel.
    waits: ChannelWaits,
    scratch: Scratch,
}

impl Workers {
    /// Returns the state without any worker.
    pub(crate) fn new(pool: Pool, executable: Executable, now: Instant) -> Workers {
        Workers {
            pool,
            all: BTreeMap::new(),
            seats: Vec::new(),
            outgoing: None,
            watch: Watch::default(),
            rebalancer: Rebalancer::default(),
            requested_rebalance: None,
            spreading: None,
            dispatch: DispatchState::new(),
            retiring: VecDeque::new(),
            awaits_pick_up: false,
            crash_limits: CrashLimits::default(),
            last_failure: None,
            oom_kills: OomKills::new(now),
            ended_sessions: Vec::new(),
            children: ChildList::open(),
            executable,
            zygotes: Zygotes::default(),
            waits: ChannelWaits::default(),
            scratch: Scratch::default(),
        }
    }

    /// Returns the record of a seat, creating it if needed.
    pub(crate) fn seat(&mut self, index: usize) -> &mut SeatTotals {
        if self.seats.len() <= index {
            self.seats.resize_with(index + 1, SeatTotals::default);
        }
        &mut self.seats[index]
    }

    /// Adds a worker. No other function adds one.
    pub(crate) fn insert(&mut self, mut worker: Worker) {
        worker.channel_state.share(&self.waits);
        self.all.insert(worker.id, worker);
    }

    /// Returns the workers that may be given clients.
    pub(crate) fn ready(&self) -> impl Iterator<Item = &Worker> {
        self.ready_members().map(|(_, worker)| worker)
    }

    /// Returns the workers that may be given clients, each with its state in the pool.
    pub(super) fn ready_members(&self) -> impl Iterator<Item = (&Member, &Worker)> {
        let members = self.pool.members().filter(|member| member.serves());
        // Both are in the order of ids.
        let mut all = self.all.iter().peekable();
        members.filter_map(move |member| {
            while all.next_if(|(id, _)| **id < member.id).is_some() {}
            let (_, worker) = all.next_if(|(id, _)| **id == member.id)?;
            Some((member, worker))
        })
    }

    /// Returns all clients that have a worker.
    pub(crate) fn leased(&self) -> impl Iterator<Item = &Client> {
        self.all
            .values()
            .flat_map(|worker| worker.leases.iter())
            .map(|(_, client)| client)
    }

    /// Returns the work of all workers that there ever were.
    pub(crate) fn totals(&self) -> Totals {
        let gone = self
            .seats
            .iter()
            .fold(Totals::default(), |totals, seat| totals.plus(seat.totals));
        self.all.values().fold(gone, |totals, worker| {
            totals.plus_counters(worker.trusted.counters())
        })
    }

    /// Returns the bytes that all workers have parked.
    pub(crate) fn parked(&self) -> u64 {
        self.all
            .values()
            .map(|worker| worker.shm.header().parked())
            .fold(0, u64::saturating_add)
    }

    /// Describes why workers do not become ready.
    pub(crate) fn last_failure(&self) -> String {
        let last = self.last_failure.as_deref();
        format!("the last one {}", last.unwrap_or("did not even start"))
    }

    /// Sends a worker a message that must not be lost. If the channel accepts nothing now, the message is sent later.
    pub(crate) fn send(&mut self, id: WorkerId, message: ToWorker, poller: &Poller) {
        let Some(worker) = self.all.get_mut(&id) else {
            return;
        };
        if let Err(e) = worker.send(message) {
            worker.kill_for_error(&format_args!("cannot send: {e}"));
        }
        worker.watch_channel(poller);
    }

    /// Sends all workers a message that must not be lost.
    pub(crate) fn send_all(&mut self, message: &ToWorker, poller: &Poller) {
        for id in self.ids() {
            self.send(id, message.clone(), poller);
        }
    }

    /// Sends all workers the list of quarantined methods.
    pub(crate) fn send_quarantined(&mut self, poller: &Poller) {
        let quarantined = self.crash_limits.quarantined().to_vec();
        self.send_all(&ToWorker::Quarantine(quarantined), poller);
    }

    /// Returns the ids of all workers, so that each of them can be changed.
    fn ids(&self) -> Vec<WorkerId> {
        self.all.keys().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    mod accounts;
    pub(super) mod simulation;
    mod walks;
}
