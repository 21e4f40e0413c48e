//! How clients leave this worker: it ends them, or gives their leases up, or the master has taken those.

use std::time::Instant;

use super::connection::{Connection, WaitingFor};
use super::death::{self, Point};
use super::methods::Service;
use super::reply::Fault;
use super::turn::{FOREIGN, Purpose};
use super::{WorkerLoop, number};
use crate::proto::channel::Stop;
use crate::proto::rpc::Code;
use crate::shm::LeaseState;
use crate::sys::socket;

impl WorkerLoop<'_> {
    /// Ends a client that is in no turn.
    pub(super) fn end(&mut self, index: u32) {
        let lease_number = self
            .connections
            .get(index)
            .map_or(0, |connection| connection.lease_number);
        let slot = self.shm.slot(index).expect("the client has a slot");
        if slot.claim(lease_number).is_some() {
            self.close(index);
        }
    }

    /// Ends a client whose slot is claimed. The order matters: a registration outlives close() while the master has a
    /// copy, without the shutdown that copy would keep back the FIN, and who finds the word finds nothing behind it.
    pub(super) fn close(&mut self, index: u32) {
        if self
            .connections
            .get(index)
            .is_some_and(|connection| !connection.has_its_socket())
        {
            return self.break_off(FOREIGN);
        }
        let Some(connection) = self.forget(index) else {
            return;
        };
        socket::end(&connection.socket);
        if self.parking.end(index) {
            self.shm.free_large(index);
        }
        self.shm.header().set_parked(self.parking.total());
        let slot = self.shm.slot(index).expect("the client has a slot");
        slot.release(connection.lease_number, LeaseState::Closed);
        death::pass(Point::AfterClosed);
        self.closed.push(index);
    }

    /// Lets a client go whose lease is over. Its slot, its regions and its connection are the master's now.
    pub(super) fn let_go(&mut self, index: u32) {
        if self.forget(index).is_none() {
            return;
        }
        self.parking.lose(index);
        self.shm.header().set_parked(self.parking.total());
        self.released.push(index);
    }

    fn forget(&mut self, index: u32) -> Option<Connection> {
        let connection = self.connections.take(index)?;
        if let Some(handoff) = self.handoff {
            handoff.unregister(index);
        }
        if connection.watched.is_some() && self.poller.remove(&connection.socket).is_err() {
            self.break_off(FOREIGN);
        }
        self.numbers.take(number(&connection.socket));
        self.leased -= 1;
        if self.leased == 0 {
            self.timers.clear();
        }
        Some(connection)
    }

    /// This process cannot go on: it ends after this round of its loop, and begins no turn any more. Its clients are recovered.
    pub(super) fn break_off(&mut self, reason: &str) {
        self.broken.get_or_insert_with(|| reason.to_owned());
    }

    /// Looks which leases were taken.
    pub(super) fn drop_revoked(&mut self) {
        for index in 0..self.connections.bound() {
            let Some(connection) = self.connections.get(index) else {
                continue;
            };
            let lease = self.shm.slot(index).and_then(|slot| slot.lease());
            let is_mine = lease.is_some_and(|lease| {
                lease.number == connection.lease_number
                    && matches!(lease.state, LeaseState::Idle | LeaseState::Parked)
            });
            if !is_mine {
                self.let_go(index);
            }
        }
    }

    /// Gives up every lease: none is in a turn now, and what was taken before is let go as well.
    pub(super) fn give_up_leases(&mut self) {
        for index in 0..self.connections.bound() {
            let Some(connection) = self.connections.get(index) else {
                continue;
            };
            let slot = self.shm.slot(index).expect("the client has a slot");
            let _ = slot.revoke(connection.lease_number);
            self.let_go(index);
            death::pass(Point::InDrain);
        }
    }

    /// From now on every client is closed as soon as what it has sent is answered.
    pub(super) fn stop(&mut self, stop: Stop, service: &mut dyn Service) {
        self.stop_by = Some(Instant::now() + stop.within);
        for slot in 0..self.connections.bound() {
            self.give_turn(slot, &Purpose::Serve, service);
        }
    }

    pub(super) fn stop_client(&mut self, slot: u32, service: &mut dyn Service) {
        let Some(connection) = self.connections.get(slot) else {
            return;
        };
        match connection.waits {
            WaitingFor::Request => self.give_one_turn(slot, &Purpose::Cut, service),
            WaitingFor::Bytes => {
                let fault = Fault::from_code(Code::ShuttingDown, "the daemon is stopping");
                self.give_one_turn(slot, &Purpose::Reject(&fault), service);
            }
            WaitingFor::Writable | WaitingFor::Turn | WaitingFor::End => {}
        }
    }
}
