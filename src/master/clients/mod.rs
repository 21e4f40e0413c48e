//! Clients: one client, its lease, and the recovery of its bytes.

use std::collections::VecDeque;

use crate::config::Config;
use crate::master::clients::client::{Addresses, Unleased};
use crate::master::clients::handshakes::Handshakes;
use crate::pool::dispatch::Dispatcher;
use crate::shm::Layout;

pub(crate) mod client;
pub(crate) mod handshakes;
pub(crate) mod leases;
pub(crate) mod reject;

/// All clients, with and without a worker.
#[derive(Debug)]
pub(crate) struct Clients {
    /// Clients without a worker.
    pub(crate) unleased: VecDeque<Unleased>,
    /// Clients whose bytes cannot be counted yet.
    pub(crate) handshakes: Vec<Handshakes>,
    pub(crate) addresses: Addresses,
    /// The number of the next client.
    pub(crate) next_id: u64,
    /// All clients.
    pub(crate) count: u64,
    pub(crate) max: u64,
    /// The layout of the shared memory of new workers.
    pub(crate) layout: Layout,
    pub(crate) dispatcher: Dispatcher,
}

impl Clients {
    /// Returns the state without any client. `max` is the most clients that there may be.
    pub(crate) fn new(config: &Config, max: u64, layout: Layout) -> Clients {
        Clients {
            unleased: VecDeque::new(),
            handshakes: Vec::new(),
            addresses: Addresses::new(&config.limits, [].iter()),
            next_id: 1,
            count: 0,
            max,
            layout,
            dispatcher: Dispatcher::new(config.workers.dispatch),
        }
    }
}
