//! Boats: what a master leaves its clients in for the next one, see `proto/boat.rs`.
//!
//! Both ends of each lie with the service manager from the beginning, and every worker has the ends that are packed into. A
//! master that goes in good order packs all clients itself; of one that dies each worker packs its own. What the next
//! master unpacks is recovered as after the death of a worker: the desk tells all, and comes along.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::client::Client;
use super::leases::{Leases, Left};
use crate::channel::{Channel, Heard, Scratch, Sent};
use crate::desk::{Layout, MasterDesk};
use crate::proto::boat::{Boat, LastDesk, Passenger};
use crate::proto::channel::MAX_BOATS;
use crate::proto::names::{ClientId, Peer, WorkerId};
use crate::sys::socket;

/// Clients for whom there is one more boat: with the smallest buffer that the kernel gives, it takes twice as many.
const CLIENTS_A_BOAT: u64 = 3000;

/// Bytes of memory that a boat is wanted to have for what lies in it; the kernel gives what it allows (socket(7)).
const BUFFER: usize = 4 << 20;

/// All boats.
#[derive(Debug)]
pub(super) struct Boats(Vec<Ends>);

/// What goes into the first end comes out of the second.
#[derive(Debug)]
pub(super) struct Ends {
    pub(super) into: Channel<Boat, Boat>,
    pub(super) out: Channel<Boat, Boat>,
}

/// A desk whose worker is gone, and the clients on it.
#[derive(Debug)]
pub(super) struct Wreck {
    pub(super) told: LastDesk,
    pub(super) desk: MasterDesk,
    pub(super) leases: Leases,
}

/// What lay in the boats.
#[derive(Debug, Default)]
pub(super) struct Unpacked {
    /// The clients, by how they were left.
    pub(super) left: Vec<Left>,
    /// The desks.
    pub(super) desks: Vec<(LastDesk, MasterDesk)>,
    /// Clients of whom nobody knows where they were.
    pub(super) stray: usize,
}

impl Boats {
    /// So many that all of these clients find room.
    pub(super) fn make(clients: u64) -> io::Result<Boats> {
        (0..Boats::wanted(clients)).map(|_| Ends::make()).collect::<io::Result<_>>().map(Boats)
    }

    /// How many that are.
    pub(super) fn wanted(clients: u64) -> u64 {
        (clients / CLIENTS_A_BOAT + 2).min(MAX_BOATS as u64)
    }

    /// Those that were made before.
    pub(super) fn found(ends: Vec<Ends>) -> Boats {
        Boats(ends)
    }

    pub(super) fn ends(&self) -> &[Ends] {
        &self.0
    }

    /// What workers pack into.
    pub(super) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.0.iter().map(|ends| ends.into.as_fd())
    }

    /// Packs a desk and all clients on it. Returns how many found no room.
    pub(super) fn pack(&mut self, wreck: &Wreck) -> usize {
        let told = Boat::Desk(Box::new(wreck.told.clone()));
        let mut is_off = self.load(&told, &[wreck.desk.file().as_fd()]);
        let mut left = 0;
        for batch in wreck.leases.batches() {
            let (passengers, sockets): (Vec<Passenger>, Vec<BorrowedFd<'_>>) =
                wreck.leases.records(&batch).map(|(lease, socket)| (Passenger::from(&lease), socket)).unzip();
            let count = passengers.len();
            is_off = is_off && self.load(&Boat::Clients(wreck.told.worker, passengers), &sockets);
            left += if is_off { 0 } else { count };
        }
        left
    }

    fn load(&mut self, what: &Boat, descriptors: &[BorrowedFd<'_>]) -> bool {
        self.0.iter_mut().any(|ends| matches!(ends.into.send(what, descriptors), Ok(Sent::Queued)))
    }

    /// Takes everything out and closes it.
    pub(super) fn empty(&self, scratch: &mut Scratch) {
        for ends in &self.0 {
            while let Ok(Heard::Message(..) | Heard::Garbage(_)) = ends.out.hear(scratch) {}
        }
    }

    /// Takes everything out. What is no valid datagram is told and dropped.
    pub(super) fn unpack(&self, scratch: &mut Scratch) -> Unpacked {
        let mut desks: BTreeMap<WorkerId, (LastDesk, MasterDesk)> = BTreeMap::new();
        let mut found = Vec::new();
        for ends in &self.0 {
            loop {
                match ends.out.hear(scratch) {
                    Ok(Heard::Message(Boat::Desk(told), mut files)) => {
                        let layout = Layout::new(told.slots, told.longest);
                        let file = files.pop().map(File::from).ok_or_else(|| io::ErrorKind::InvalidData.into());
                        match file.and_then(|file| MasterDesk::found(file, layout)) {
                            Ok(desk) => drop(desks.insert(told.worker, (*told, desk))),
                            Err(e) => log::error!("the desk of worker {} cannot be used: {e}", told.worker),
                        }
                    }
                    Ok(Heard::Message(Boat::Clients(worker, passengers), sockets)) => {
                        found.extend(passengers.into_iter().zip(sockets).map(|(who, socket)| (worker, who, socket)));
                    }
                    Ok(Heard::Garbage(malformed)) => log::error!("in a boat: {malformed}"),
                    Ok(Heard::Nothing | Heard::Closed) => break,
                    Err(e) => {
                        log::error!("cannot unpack a boat: {e}");
                        break;
                    }
                }
            }
        }
        sort_out(desks, found)
    }
}

impl Ends {
    fn make() -> io::Result<Ends> {
        let (into, out) = Channel::pair()?;
        // As much as there is to be had. Less is more boats full, and no harm.
        let _ = socket::want_send_buffer(&into, BUFFER);
        Ok(Ends { into, out: Channel::over(out) })
    }
}

/// Finds out what was left of each client: of two leases the later one counts.
fn sort_out(
    mut desks: BTreeMap<WorkerId, (LastDesk, MasterDesk)>,
    found: Vec<(WorkerId, Passenger, OwnedFd)>,
) -> Unpacked {
    let mut latest: BTreeMap<ClientId, (WorkerId, Passenger, OwnedFd)> = BTreeMap::new();
    for (worker, passenger, socket) in found {
        let is_later = latest.get(&passenger.client).is_none_or(|(_, other, _)| other.moves < passenger.moves);
        if is_later {
            latest.insert(passenger.client, (worker, passenger, socket));
        }
    }
    let mut unpacked = Unpacked::default();
    let mut by_worker: BTreeMap<WorkerId, Vec<(u32, u32, Client)>> = BTreeMap::new();
    for (worker, passenger, socket) in latest.into_values() {
        let Passenger { client: id, slot, generation, order, moves, listener, since } = passenger;
        match socket::peer(&socket) {
            Ok(peer) if desks.contains_key(&worker) => {
                let peer = peer.map_or_else(|who| Peer::Unix { pid: who.pid, uid: who.uid, gid: who.gid }, Peer::from);
                let client = Client { id, socket, peer, order, listener, since, moves };
                by_worker.entry(worker).or_default().push((slot, generation, client));
            }
            // It has left meanwhile.
            Err(_) => drop(socket),
            Ok(_) => unpacked.stray += 1,
        }
    }
    for (worker, clients) in by_worker {
        let Some((told, desk)) = desks.get(&worker) else { continue };
        let leases = Leases::found(told.slots, clients);
        desk.settle();
        unpacked.left.push(leases.into_left(desk, desk.header().final_writes(), false));
    }
    unpacked.desks = std::mem::take(&mut desks).into_values().collect();
    unpacked
}
