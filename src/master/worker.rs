//! The master's record of a worker: its channel, its desk, and the clients that are leased to it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use super::client::{Client, Unleased};
use crate::channel::{Channel, Sent};
use crate::desk::{Layout, MasterDesk, State};
use crate::pool::dispatch::Candidate;
use crate::proto::channel::{Lease, MAX_LEASES, MethodName, Start, Stop, ToMaster, ToWorker};
use crate::proto::names::{Peer, WorkerId};
use crate::sys::ledger::{self, Ledger};
use crate::sys::process::Executable;
use crate::table::Table;

/// Fresh leases that a worker may have that it has not picked up: so many clients can come to wait behind a request
/// that it is stuck in.
const WINDOW: u64 = 16;

/// The same for clients that were leased before: they are there anyway, and few messages are better than many.
const RESCUE_WINDOW: u64 = 4 * MAX_LEASES as u64;

/// A worker process.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) id: WorkerId,
    pub(super) pid: u32,
    pub(super) started: Instant,
    pub(super) channel: Channel<ToWorker, ToMaster>,
    pub(super) desk: MasterDesk,
    pub(super) methods: Vec<MethodName>,
    /// Why it will not be ready, in its own words.
    pub(super) failure: Option<String>,
    /// Its channel takes nothing at the moment.
    pub(super) is_full: bool,
    /// It is yet to be told that it has until then to finish.
    pub(super) stop_by: Option<Instant>,
    /// By slot.
    leases: Table<Leased>,
    /// Slots below `used` that are free. The last one freed is the first one used: its memory is warm.
    free: Vec<u32>,
    /// Slots that were ever used.
    used: u32,
    slots: u32,
    clients: usize,
    /// Counts leases; the last one's number is its generation.
    generation: u32,
    /// Leases made, less those taken back because they could not be sent.
    given: u64,
    /// Slots whose leases are yet to be sent.
    outbox: Vec<u32>,
}

#[derive(Debug)]
struct Leased {
    client: Client,
    generation: u32,
}

/// A client that was recovered, or why it could not be.
type Recovered = Result<Unleased, (io::Error, Client)>;

/// What a dead worker left behind.
#[derive(Debug, Default)]
pub(super) struct Left {
    /// Clients to be leased again, with all that is unread and unsent of them.
    pub(super) recovered: Vec<Unleased>,
    /// How many of them have a request that was executing.
    pub(super) faults: u64,
    /// Clients that it had ended.
    pub(super) ended: Vec<Client>,
    /// Clients that cannot be recovered, and why.
    pub(super) lost: Vec<(io::Error, Client)>,
    /// The method that was executing.
    pub(super) method: Option<String>,
}

impl Worker {
    /// Runs a worker and tells it who it is. What it says comes by its channel.
    pub(super) fn spawn(executable: &Executable, start: Start, layout: Layout, now: Instant) -> io::Result<Worker> {
        let desk = MasterDesk::new(layout)?;
        let (mut channel, theirs) = Channel::pair()?;
        let id = start.worker;
        let arguments = ["worker".to_owned(), id.to_string()];
        let name = start.name.clone();
        // First of all, so that a worker that runs finds it there.
        channel.send(&ToWorker::Start(Box::new(start)), &[desk.file().as_fd()])?;
        let pid = executable.spawn(&name, &arguments, theirs)?;
        Ok(Worker {
            id,
            pid,
            started: now,
            channel,
            desk,
            methods: Vec::new(),
            failure: None,
            is_full: false,
            stop_by: None,
            leases: Table::new(),
            free: Vec::new(),
            used: 0,
            slots: layout.slots(),
            clients: 0,
            generation: 0,
            given: 0,
            outbox: Vec::new(),
        })
    }

    /// Clients leased to it.
    pub(super) fn clients(&self) -> usize {
        self.clients
    }

    /// How dispatch sees it, as a ready worker; `now` is ns of CLOCK_MONOTONIC.
    pub(super) fn candidate(&self, is_rescue: bool, now: u64) -> Candidate {
        let header = self.desk.header();
        let waiting = self.given.saturating_sub(header.picked_up());
        let window = if is_rescue { RESCUE_WINDOW } else { WINDOW };
        Candidate {
            has_room: self.takes(waiting, window),
            executing: u64::from(header.executing().is_some()),
            waiting,
            busy: header.busy(now),
            clients: self.clients as u64,
        }
    }

    /// Whether it may be given one client more, with so many not picked up of which so many may be.
    fn takes(&self, waiting: u64, window: u64) -> bool {
        !self.is_full && waiting < window && self.clients < self.slots as usize
    }

    /// Whether it may be given a fresh client.
    pub(super) fn has_room(&self) -> bool {
        self.takes(self.given.saturating_sub(self.desk.header().picked_up()), WINDOW)
    }

    /// Asks to be told when it picks up more; whether it has room already.
    pub(super) fn want_room(&self) -> bool {
        let picked_up = self.desk.header().want_room();
        self.takes(self.given.saturating_sub(picked_up), WINDOW)
    }

    /// Leases a client to it. The slot is filled first, its bytes laid into their places; [`Worker::flush`] sends the lease.
    ///
    /// # Errors
    /// Those of writing to the desk, with the client.
    ///
    /// # Panics
    /// Without room: dispatch has chosen it for having some.
    pub(super) fn lease(&mut self, unleased: Unleased) -> Result<(), (io::Error, Client)> {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.used += 1;
            self.used - 1
        });
        let Unleased { client, bytes, marks, times, requests } = unleased;
        let view = match self.desk.lay(slot, &bytes) {
            Ok(view) => view,
            Err(e) => {
                self.free.push(slot);
                return Err((e, client));
            }
        };
        self.generation = self.generation.wrapping_add(1);
        let is_at_rest = bytes.unread.is_empty() && bytes.unsent.is_empty();
        let state = if is_at_rest { State::Rest } else { State::Parked };
        let on_desk = self.desk.slot(slot).expect("a worker with room has a free slot");
        on_desk.preset(state, self.generation, view, marks, times, requests);
        self.leases.insert(slot, Leased { client, generation: self.generation });
        self.clients += 1;
        self.given += 1;
        self.outbox.push(slot);
        Ok(())
    }

    /// Tells it to finish, if that is to be told. Who cannot be told now is told when its channel takes it.
    pub(super) fn tell_to_stop(&mut self, now: Instant) -> io::Result<()> {
        let Some(by) = self.stop_by else { return Ok(()) };
        let within = by.saturating_duration_since(now);
        match self.channel.send(&ToWorker::Stop(Stop { within }), &[])? {
            Sent::Full => self.is_full = true,
            Sent::Queued | Sent::Closed => self.stop_by = None,
        }
        Ok(())
    }

    /// Sends the leases that are waiting to be sent, in as few messages as it takes. Returns the clients that it had to
    /// take back because the channel is full.
    pub(super) fn flush(&mut self) -> io::Result<Vec<Recovered>> {
        while !self.outbox.is_empty() {
            let batch: Vec<u32> = self.outbox.drain(..self.outbox.len().min(MAX_LEASES)).collect();
            match self.send_leases(&batch)? {
                Sent::Queued => {}
                Sent::Full => {
                    self.is_full = true;
                    let unsent: Vec<u32> = batch.into_iter().chain(self.outbox.drain(..)).collect();
                    self.given -= unsent.len() as u64;
                    return Ok(unsent.into_iter().filter_map(|slot| self.take_back(slot)).collect());
                }
                // It is dead. Its reaping finds them on its desk like all others.
                Sent::Closed => self.outbox.clear(),
            }
        }
        Ok(Vec::new())
    }

    fn send_leases(&mut self, slots: &[u32]) -> io::Result<Sent> {
        let leased = || slots.iter().filter_map(|slot| self.leases.get(*slot).map(|l| (*slot, l)));
        let lease = |(slot, l): (u32, &Leased)| Lease {
            client: l.client.id,
            slot,
            generation: l.generation,
            order: l.client.order,
            peer: l.client.peer,
        };
        let leases = leased().map(lease).collect();
        let sockets: Vec<BorrowedFd<'_>> = leased().map(|(_, l)| l.client.socket.as_fd()).collect();
        self.channel.send(&ToWorker::Lease(leases), &sockets)
    }

    /// Ends a lease that the worker does not know of.
    fn take_back(&mut self, slot: u32) -> Option<Recovered> {
        let Leased { client, .. } = self.leases.take(slot)?;
        let recovered = self.recover(slot, client, None);
        self.vacate(slot);
        Some(recovered)
    }

    /// What the desk tells of a client. The ledger is that of one whose turn was not ended; of all others the desk knows
    /// itself.
    fn recover(&self, slot: u32, client: Client, ledger: Option<Ledger>) -> Recovered {
        let bytes = match self.desk.recover(slot, ledger) {
            Ok(bytes) => bytes,
            Err(e) => return Err((e, client)),
        };
        let on_desk = self.desk.slot(slot).expect("leases have slots");
        let mut marks = on_desk.marks();
        // It has had its last reply, and what it sent after that is nobody's business.
        if marks.closing && bytes.unsent.is_empty() {
            return Err((io::ErrorKind::ConnectionAborted.into(), client));
        }
        // Faults are those of the first unread frame: once one is answered, they are of a frame that is not here any more.
        if on_desk.view().answered > 0 {
            marks.faults = 0;
        }
        if on_desk.executing().is_some() {
            marks.faults = marks.faults.saturating_add(1);
        }
        let times = (on_desk.since(), on_desk.active());
        Ok(Unleased { client, bytes, marks, times, requests: on_desk.requests() })
    }

    fn vacate(&mut self, slot: u32) {
        if let Some(on_desk) = self.desk.slot(slot) {
            on_desk.clear();
        }
        self.free.push(slot);
        self.clients -= 1;
    }

    /// The worker has ended the client in this slot. `None` if there is none, which is a mistake of the worker's.
    pub(super) fn closed(&mut self, slot: u32) -> Option<Client> {
        let leased = self.leases.take(slot)?;
        self.vacate(slot);
        Some(leased.client)
    }

    /// The method that the client in this slot was waiting for. Its number is the worker's word, its name was told before.
    fn executing(&self, slot: u32) -> Option<String> {
        let number = self.desk.slot(slot)?.executing()?;
        let method = self.methods.get((number as usize).checked_sub(1)?)?;
        Some(method.name.clone())
    }

    /// Its process is gone: what becomes of its clients. `written` is the sum of all that it ever wrote, if that is known.
    pub(super) fn into_left(mut self, written: Option<u64>) -> Left {
        let mut left = Left::default();
        for slot in 0..self.used {
            let Some(Leased { client, generation }) = self.leases.take(slot) else { continue };
            let lease = self.desk.slot(slot).and_then(|on_desk| on_desk.lease());
            let recovered = match lease.filter(|lease| lease.generation == generation).map(|lease| lease.state) {
                Some(State::Rest) => self.recover_at_rest(slot, client),
                Some(State::Parked) => self.recover(slot, client, None),
                Some(State::Busy) => {
                    left.method = left.method.take().or_else(|| self.executing(slot));
                    self.recover_from_turn(slot, client, written)
                }
                Some(State::Closed) => {
                    left.ended.push(client);
                    continue;
                }
                // Nobody takes leases yet, and a slot with a client is not free: the desk holds nonsense.
                Some(State::Taken | State::Free) | None => Err((io::ErrorKind::InvalidData.into(), client)),
            };
            match recovered {
                Ok(unleased) => {
                    left.faults += u64::from(unleased.marks.faults > 0);
                    left.recovered.push(unleased);
                }
                Err((reason, client)) => left.lost.push((reason, client)),
            }
        }
        left
    }

    /// The view of a client at rest tells of bytes that are all answered and all sent.
    fn recover_at_rest(&self, slot: u32, client: Client) -> Recovered {
        let (received, written) = self.desk.slot(slot).map_or((0, 0), |on_desk| on_desk.view().ends());
        self.recover(slot, client, Some(Ledger { received, written }))
    }

    /// How much was read and written in the turn only the kernel knows.
    fn recover_from_turn(&self, slot: u32, client: Client, written: Option<u64>) -> Recovered {
        let found = match client.peer {
            Peer::Unix { .. } => self.unix_ledger(slot, &client, written).map(Some),
            Peer::V4 { .. } | Peer::V6 { .. } => ledger::read(&client.socket),
        };
        match found {
            Ok(Some(ledger)) => self.recover(slot, client, Some(ledger)),
            Ok(None) => Err((io::ErrorKind::ConnectionAborted.into(), client)),
            Err(e) => Err((e, client)),
        }
    }

    /// The ledger of a Unix client: its socket counts what is read from it, and what was written to it is what its worker
    /// had written more than before, if it was at that.
    fn unix_ledger(&self, slot: u32, client: &Client, written: Option<u64>) -> io::Result<Ledger> {
        let view = self.desk.slot(slot).ok_or(io::ErrorKind::InvalidData)?.view();
        let received = ledger::received(&client.socket, view.in_base)?;
        let sent = match (self.desk.header().writing(slot, view.out_base), written) {
            (None, _) if !self.desk.header().knows_writes() => return Err(io::ErrorKind::Unsupported.into()),
            (None, _) => 0,
            (Some(_), None) => return Err(io::ErrorKind::Unsupported.into()),
            (Some(before), Some(after)) => after.checked_sub(before).ok_or(io::ErrorKind::InvalidData)?,
        };
        Ok(Ledger { received, written: view.out_base.wrapping_add(sent) })
    }
}
