//! Workers: one worker process, its life, its load, and the attribution of its crash.

use std::collections::BTreeMap;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::master::clients::Clients;
use crate::master::clients::addresses::Addresses;
use crate::master::telemetry::counters::Totals;
use crate::master::workers::crash::{OomKills, Strikes};
use crate::master::workers::outgoing::Outgoing;
use crate::master::workers::rebalance::AskedBalance;
use crate::master::workers::watchdog::Watch;
use crate::master::workers::worker::Worker;
use crate::pool::rebalance::Rebalancer;
use crate::pool::{Member, MemberState, Pool};
use crate::proto::names::WorkerId;
use crate::sys::process::{self, Executable};

pub(crate) mod crash;
pub(crate) mod death;
pub(crate) mod descendants;
pub(crate) mod lifecycle;
pub(crate) mod outgoing;
pub(crate) mod rebalance;
pub(crate) mod trust;
pub(crate) mod watchdog;
pub(crate) mod worker;

/// A seat among the workers, which persists when its worker is replaced.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct SeatTotals {
    /// Number of workers that this seat has had.
    pub(crate) spawned: u64,
    /// Totals of the seat's earlier workers.
    pub(crate) totals: Totals,
    /// How the last worker ended that was not asked to end.
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
    pub(crate) watch: Watch,
    pub(crate) rebalancer: Rebalancer,
    pub(crate) requested_rebalance: Option<AskedBalance>,
    pub(crate) strikes: Strikes,
    /// How the last worker ended that was not asked to end.
    pub(crate) last_failure: Option<String>,
    pub(crate) oom_kills: OomKills,
    /// Sessions of ended workers in which processes may still run.
    pub(crate) ended_sessions: Vec<u32>,
    /// The program that workers execute.
    pub(crate) executable: Executable,
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
            strikes: Strikes::default(),
            last_failure: None,
            oom_kills: OomKills::new(process::oom_kills(), now),
            ended_sessions: Vec::new(),
            executable,
        }
    }

    /// Returns the workers that may be given clients.
    pub(crate) fn ready(&self) -> impl Iterator<Item = &Worker> {
        let takes = |m: &&Member| matches!(m.state, MemberState::Ready { .. }) && !m.is_stalled;
        self.pool
            .members()
            .filter(takes)
            .filter_map(|member| self.all.get(&member.id))
    }

    /// Returns the totals of all workers that there ever were.
    pub(crate) fn totals(&self) -> Totals {
        let gone = self
            .seats
            .iter()
            .fold(Totals::default(), |totals, seat| totals.and(seat.totals));
        self.all.values().fold(gone, |totals, worker| {
            totals.plus(worker.believed.counters())
        })
    }

    /// Returns how many clients each address has, if that is limited.
    pub(crate) fn count_addresses(&self, config: &Config, clients: &Clients) -> Addresses {
        let leased = self
            .all
            .values()
            .flat_map(|worker| worker.leases.iter())
            .map(|(_, client)| &client.peer);
        let waiting = clients
            .unleased
            .iter()
            .map(|unleased| &unleased.client.peer);
        Addresses::new(&config.limits, leased.chain(waiting))
    }

    /// Returns the record of a seat, creating it if needed.
    pub(crate) fn seat(&mut self, index: usize) -> &mut SeatTotals {
        if self.seats.len() <= index {
            self.seats.resize_with(index + 1, SeatTotals::default);
        }
        &mut self.seats[index]
    }
}
