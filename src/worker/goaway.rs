//! Clients for which the master requests a goaway.

use super::WorkerLoop;
use super::connection::WaitingFor;
use super::methods::Service;
use super::reply::Fault;
use super::turn::Purpose;
use crate::proto::channel::Goaway;
use crate::proto::rpc::{Code, GoawayReason};
use crate::shm::CloseReason;

impl WorkerLoop<'_> {
    /// Ends clients politely: at once, or when their requests are answered. Leases that are over are ignored: the master
    /// has noted the reason, and the next worker learns of it.
    pub(super) fn begin_goaways(&mut self, goaway: &Goaway, service: &mut dyn Service) {
        for (index, lease_number) in &goaway.leases {
            let Some(connection) = self.connections.get(*index) else {
                continue;
            };
            if connection.lease_number != *lease_number {
                continue;
            }
            if connection.waits == WaitingFor::Answer {
                self.note_goaway(*index, goaway.reason);
            } else {
                self.run_turn(*index, &Purpose::Goaway(goaway.reason), service);
            }
        }
    }

    /// Notes that a client whose request is away gets a goaway after the answer. Only this process changes its slot now.
    fn note_goaway(&mut self, index: u32, reason: GoawayReason) {
        if let Some(slot) = self.shm.slot(index) {
            let mut flags = slot.flags();
            flags.goaway = flags.goaway.max(Some(reason));
            slot.set_flags(flags);
        }
    }

    /// Ends a client, all of whose complete requests are answered, because the daemon stops.
    pub(super) fn end_stopped(&mut self, index: u32, waits: WaitingFor, service: &mut dyn Service) {
        let flags = self.shm.slot(index).map(|slot| slot.flags());
        let fault;
        let purpose = match waits {
            _ if flags.is_some_and(|flags| flags.wants_goaway) => {
                Purpose::Goaway(GoawayReason::Stopping)
            }
            WaitingFor::Bytes => {
                fault = Fault::from_code(Code::ShuttingDown, "the daemon is stopping");
                Purpose::Reject(&fault)
            }
            _ => Purpose::Close(CloseReason::Stopping),
        };
        self.run_one_turn(index, &purpose, service);
    }
}
