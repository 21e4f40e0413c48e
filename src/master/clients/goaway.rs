//! The times of goaways: when the next clients get one, and when those that an operator closes must have left.

use std::time::{Duration, Instant};

use crate::master::clients::Clients;
use crate::master::clients::client::{Client, Unleased};
use crate::master::clients::reject::send_goaway;
use crate::master::telemetry::Telemetry;
use crate::proto::names::ClientId;
use crate::proto::rpc::GoawayReason;

/// How long a client that an operator closes may take to receive the reply to its request and the goaway.
const KICK_GRACE: Duration = Duration::from_secs(5);

/// The deadlines of goaways.
#[derive(Debug, Default)]
pub(crate) struct GoawayDeadlines {
    /// When the next clients of a drained daemon get a goaway.
    pub(crate) next_moves: Option<Instant>,
    /// Clients that an operator closes, each with the time when it is closed without a goaway.
    kicks: Vec<(Instant, ClientId)>,
}

impl GoawayDeadlines {
    /// Returns the next deadline.
    pub(crate) fn next(&self) -> Option<Instant> {
        let kicks = self.kicks.iter().map(|(until, _)| *until);
        kicks.chain(self.next_moves).min()
    }

    /// Notes that an operator closes this client, which gets a goaway.
    pub(crate) fn await_kicked(&mut self, id: ClientId, now: Instant) {
        self.kicks.push((now + KICK_GRACE, id));
    }

    /// Removes the deadline of a client that is closed.
    pub(crate) fn forget_kicked(&mut self, id: ClientId) {
        self.kicks.retain(|(_, kicked)| *kicked != id);
    }

    /// Removes and returns the kicked clients whose time is over; most have left.
    pub(crate) fn take_overdue(&mut self, now: Instant) -> Vec<ClientId> {
        let overdue = self.kicks.extract_if(.., |(until, _)| *until <= now);
        overdue.map(|(_, id)| id).collect()
    }
}

impl Clients {
    /// Sets a new deadline for each client that an operator has kicked under the previous master. `leased` are the
    /// clients of workers.
    pub(crate) fn await_kicked_before<'c>(
        &mut self,
        leased: impl Iterator<Item = &'c Client>,
        now: Instant,
    ) {
        let kicked = |client: &Client| {
            let is_kicked = client.goaway == Some(GoawayReason::Kicked);
            is_kicked.then_some(client.id)
        };
        let unleased = self.all_unleased().map(|unleased| &unleased.client);
        let ids: Vec<ClientId> = unleased
            .filter_map(kicked)
            .chain(leased.filter_map(kicked))
            .collect();
        for id in ids {
            self.goaways.await_kicked(id, now);
        }
    }

    /// Ends a client without a worker. If it has asked for a goaway and can get one, it gets it.
    pub(crate) fn end_unleased(
        &mut self,
        unleased: Unleased,
        reason: GoawayReason,
        telemetry: &mut Telemetry,
    ) {
        send_goaway(&unleased, reason);
        self.end(unleased.client, Some(reason.into()), telemetry);
    }
}
