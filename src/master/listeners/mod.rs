//! Listeners: the sockets that clients connect to.

use std::time::Instant;

use crate::master::ActivatedSockets;
use crate::master::lifecycle::Lifecycle;
use crate::master::listeners::drain::state::DrainState;
use crate::master::listeners::gate::Gate;
use crate::master::listeners::listener::Listener;
use crate::proto::names::Address;

pub(crate) mod accept;
pub(crate) mod activation;
pub(crate) mod conflict;
pub(crate) mod control_link;
pub(crate) mod control_listener;
pub(crate) mod drain;
pub(crate) mod exchange;
pub(crate) mod exporter_listener;
pub(crate) mod gate;
pub(crate) mod listener;
pub(crate) mod matching;
pub(crate) mod open;
pub(crate) mod open_control;
pub(crate) mod outages;
pub(crate) mod plan;
pub(crate) mod record;
pub(crate) mod served;
pub(crate) mod socket_file;
pub(crate) mod yielding;

/// The listeners, and the gate that decides when clients are accepted.
#[derive(Debug)]
pub(crate) struct Listeners {
    /// The sockets that systemd has passed.
    pub(crate) activated: ActivatedSockets,
    pub(crate) all: Vec<Listener>,
    /// Numbers of listeners that close when their queues are empty.
    pub(crate) closing: Vec<u32>,
    /// Numbers of listeners that were closed, or whose sockets have changed, since the last update of the store.
    pub(crate) changed: Vec<u32>,
    /// The number last given to a listener.
    pub(crate) last_number: u32,
    /// The number of the listener that was last served.
    pub(crate) last_served: u32,
    pub(crate) gate: Gate,
    /// The drain that an operator has begun, if one is under way.
    pub(crate) drain: Option<DrainState>,
}

impl Listeners {
    fn index_of(&self, number: u32) -> Option<usize> {
        self.all
            .iter()
            .position(|listener| listener.number == number)
    }

    /// Returns whether clients can connect to a Unix socket.
    pub(crate) fn have_unix(&self) -> bool {
        let is_unix = |listener: &Listener| matches!(listener.address, Address::Unix(_));
        self.all.iter().any(is_unix)
    }

    /// Returns when the loop must run for the listeners although no event occurs.
    pub(crate) fn deadline(&self, lifecycle: Lifecycle, now: Instant) -> Option<Instant> {
        // No event reports that the queue of a closing listener is empty. While the gate is closed, it is not emptied.
        let is_closing = !self.closing.is_empty() && self.gate.pause.is_none();
        [
            self.gate.deadline(),
            self.outage_deadline(),
            is_closing.then_some(now),
            self.drain_deadline(lifecycle, now),
        ]
        .into_iter()
        .flatten()
        .min()
    }
}
