//! Clients that a worker gets and leaves: leases that it picks up, gives up, or finds revoked, and clients that it
//! closes.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use super::connection::{Connection, WaitingFor};
use super::handoff::register_all;
use super::kill_points::{self, Point};
use super::methods::Service;
use super::turn::{FOREIGN, Purpose};
use super::{WorkerLoop, number};
use crate::logging;
use crate::proto::channel::Stop;
use crate::proto::lease::Lease;
use crate::shm::LeaseState;
use crate::sys::clock;
use crate::sys::handoff::HeldOff;
use crate::sys::socket;

impl WorkerLoop<'_> {
    /// Takes over clients. Their requests may have arrived already, so each gets a turn at once. `held_off` is from
    /// before they were received.
    pub(super) fn pick_up(
        &mut self,
        leases: &[Lease],
        sockets: Vec<OwnedFd>,
        held_off: Option<HeldOff>,
        service: &mut dyn Service,
    ) -> io::Result<()> {
        let cookies = register_all(self.handoff, leases, &sockets);
        drop(held_off);
        self.master.has_capacity |= self.shm.header().pick_up(leases.len() as u64);
        self.check_numbers(&sockets)?;
        for ((lease, socket), cookie) in leases.iter().zip(sockets).zip(cookies) {
            let index = lease.record.slot;
            let Some(slot) = self.shm.slot(index) else {
                return Err(io::Error::other("a lease for a slot that does not exist"));
            };
            let has_source = slot.flags().proxy.has_source();
            let source = has_source.then(|| self.shm.source(index)).flatten();
            let connection = Connection::new(lease, socket, cookie, source, slot);
            let (_, large) = slot.cursors().parked();
            if connection.waits != WaitingFor::Request && large > 0 {
                self.parking.use_large(index, large);
            }
            if self.connections.insert(index, connection).is_some() {
                return Err(io::Error::other("a lease for a slot that is in use"));
            }
            self.leased += 1;
        }
        for lease in leases {
            let index = lease.record.slot;
            self.run_turn(index, &Purpose::Serve, service);
            // Before the next turn: if the worker has reached its limit of requests, it checks no deadlines any more,
            // and the next worker might not either.
            self.check_deadline(index, self.time.now, service);
        }
        Ok(())
    }

    /// Checks that the numbers of new descriptors were free. The kernel does not return a number that is in use, so if
    /// one was known to be, other code of this process has closed it, and bytes for one client would reach another.
    fn check_numbers(&mut self, sockets: &[OwnedFd]) -> io::Result<()> {
        let log = logging::descriptor();
        for socket in sockets {
            let is_in_use = self.numbers.insert(number(socket), ()).is_some();
            if is_in_use || log == Some(socket.as_raw_fd()) {
                return Err(io::Error::other(FOREIGN));
            }
        }
        Ok(())
    }

    /// Claims and closes a client that is in no turn.
    pub(super) fn claim_and_close(&mut self, index: u32) {
        let lease_number = self
            .connections
            .get(index)
            .map_or(0, |connection| connection.lease_number);
        let slot = self.shm.slot(index).expect("the client has a slot");
        if slot.claim(lease_number).is_some() {
            self.close(index);
        }
    }

    /// Closes a client whose slot is claimed. The order matters: a registration outlives close() while the master has a
    /// copy; without the shutdown that copy would delay the FIN; and when the lease word is stored, nothing else may be
    /// left to do.
    pub(super) fn close(&mut self, index: u32) {
        let connection = self.connections.get(index);
        if connection.is_some_and(|connection| !connection.has_its_socket()) {
            return self.break_off(FOREIGN);
        }
        let Some(connection) = self.forget(index) else {
            return;
        };
        if let Some(handoff) = self.handoff {
            handoff.unregister(index);
        }
        self.numbers.take(number(&connection.socket));
        socket::end(&connection.socket);
        if self.parking.close(index) {
            self.shm.free_large(index);
        }
        self.shm.header().set_parked(self.parking.total());
        self.shm.header().add_closed();
        let slot = self.shm.slot(index).expect("the client has a slot");
        slot.release(connection.lease_number, LeaseState::Closed);
        kill_points::pass(Point::AfterClosed);
        self.master.closed.push(index);
        self.hooks.left.close(connection.client);
    }

    /// Forgets a client whose lease is over. Its slot and regions belong to the master.
    pub(super) fn release(&mut self, index: u32) {
        let Some(connection) = self.forget(index) else {
            return;
        };
        self.hooks.left.release(connection.client);
        self.parking.revoke(index);
        self.shm.header().set_parked(self.parking.total());
        self.keep_revoked(index, connection);
    }

    fn forget(&mut self, index: u32) -> Option<Connection> {
        let connection = self.connections.take(index)?;
        if connection.watched.is_some() && self.poller.remove(&connection.socket).is_err() {
            self.break_off(FOREIGN);
        }
        if let Some(executor) = self
            .executor
            .as_mut()
            .filter(|_| connection.has_used_executor)
        {
            executor.client_left(connection.client);
        }
        if connection.waits == WaitingFor::Permit {
            self.leave_queue(index);
        }
        self.leased -= 1;
        if self.leased == 0 {
            self.timers.clear();
        }
        Some(connection)
    }

    /// Ends this process after this iteration of the loop; no further turn begins. Its clients are recovered.
    pub(super) fn break_off(&mut self, reason: &str) {
        self.ending.broken.get_or_insert_with(|| reason.to_owned());
    }

    /// Releases the clients whose leases were revoked.
    pub(super) fn release_revoked(&mut self) {
        for index in 0..self.connections.bound() {
            let Some(connection) = self.connections.get(index) else {
                continue;
            };
            let lease = self.shm.slot(index).and_then(|slot| slot.lease());
            let is_in_force = lease.is_some_and(|lease| {
                lease.number == connection.lease_number
                    && matches!(
                        lease.state,
                        LeaseState::Idle | LeaseState::Parked | LeaseState::Away
                    )
            });
            if !is_in_force {
                self.release(index);
            }
        }
    }

    /// Serves no more clients, by this worker's own decision. While requests are away it lives on, so the master must
    /// lease it no more clients, and must not wait for its end to start a successor.
    pub(super) fn retire(&mut self) {
        let is_new = !std::mem::replace(&mut self.ending.is_retiring, true);
        let executor = self.executor.as_ref();
        self.master.is_retiring |= is_new && executor.is_some_and(|it| it.requests.count() > 0);
    }

    /// Gives up the lease of a client that the master must count for its address: it leases the client again, or
    /// rejects it.
    #[cold]
    pub(super) fn give_up_uncounted(&mut self, index: u32) {
        let Some(connection) = self.connections.get(index) else {
            return;
        };
        let slot = self.shm.slot(index).expect("the client has a slot");
        if slot.revoke(connection.lease_number).is_some() {
            // Another report follows when the slot is not used any more.
            self.master.released.push(index);
        }
        self.release(index);
        kill_points::pass(Point::InRetirement);
    }

    /// Gives up every lease. No client is in a turn now; leases that were revoked before are released as well.
    pub(super) fn give_up_leases(&mut self) {
        for index in 0..self.connections.bound() {
            let Some(connection) = self.connections.get(index) else {
                continue;
            };
            // Its lease ends once it is answered.
            if connection.waits == WaitingFor::Answer {
                continue;
            }
            let slot = self.shm.slot(index).expect("the client has a slot");
            let _ = slot.revoke(connection.lease_number);
            self.release(index);
            kill_points::pass(Point::InRetirement);
        }
    }

    /// Begins to close every client as soon as all that it has sent is answered.
    pub(super) fn stop(&mut self, stop: Stop, service: &mut dyn Service) {
        self.ending.stop_by = Some(clock::instant_after(stop.within));
        for slot in 0..self.connections.bound() {
            self.run_turn(slot, &Purpose::Serve, service);
        }
    }

    pub(super) fn stop_client(&mut self, slot: u32, service: &mut dyn Service) {
        let Some(connection) = self.connections.get(slot) else {
            return;
        };
        // Requests that it has sent are still unread.
        if connection.shortage_until().is_some() {
            return;
        }
        match connection.waits {
            waits @ (WaitingFor::Request | WaitingFor::Bytes) => {
                self.end_stopped(slot, waits, service);
            }
            WaitingFor::Writable
            | WaitingFor::Turn
            | WaitingFor::End
            | WaitingFor::Permit
            | WaitingFor::Answer => {}
        }
    }
}
