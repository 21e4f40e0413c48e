//! Writing to a client, and the lingering close.

use std::io;

use super::{Gone, Purpose, Turn};
use crate::shm::{Cursors, Header, Region};
use crate::sys::byte_counts::OwnWrites;
use crate::sys::clock;
use crate::sys::signal::HeldBack;
use crate::sys::socket::{self, Transfer};
use crate::worker::connection::{Connection, WaitingFor};
use crate::worker::kill_points::{self, Point};

impl Turn<'_, '_> {
    /// Sends the replies so far and activates cursors after them. Returns false if the socket does not accept all.
    pub(super) fn send_midway(&mut self, since: u64) -> Result<bool, Gone> {
        if self.is_doubtful {
            self.check_socket()?;
        }
        let sent = self.send(since)?;
        self.advance_cursors(sent);
        if self.cursors.replied > 0 {
            self.is_blocked = true;
            return Ok(false);
        }
        self.activate_cursors();
        Ok(true)
    }

    /// Sends the replies. Returns how many bytes the kernel has accepted.
    pub(super) fn send(&mut self, since: u64) -> Result<usize, Gone> {
        let replied = self.cursors.replied as usize;
        if replied == 0 {
            return Ok(0);
        }
        let open = self
            .context
            .shm
            .open(self.index, self.cursors.rx.0, Region::Shared);
        let begin = self.cursors.tx.1 as usize;
        let at = self.cursors.out_base;
        let bytes = &open.tx[begin..begin + replied];
        let (connection, writes) = (&*self.connection, self.context.writes);
        let sent = transmit(connection, writes, open.header, (self.index, at), bytes);
        self.context.now = clock::monotonic();
        open.header
            .record(self.context.now, self.unrecorded, self.context.now - since);
        self.unrecorded = 0;
        match sent {
            Ok(Transfer::Bytes(n)) => Ok(n),
            Ok(Transfer::Nothing) => Ok(0),
            Ok(Transfer::Shortage) => {
                self.connection.is_refused = true;
                Ok(0)
            }
            Ok(Transfer::End) => Err(Gone),
            Err(e) => {
                self.record_failure(&e);
                Err(Gone)
            }
        }
    }

    /// Sends replies that were parked before this turn, and continues if all are sent.
    pub(super) fn send_parked(&mut self, purpose: &Purpose<'_>) -> Option<WaitingFor> {
        let (begin, unsent) = (self.cursors.tx.1 as usize, self.cursors.replied as usize);
        let open = self
            .context
            .shm
            .open(self.index, Region::Shared, self.cursors.tx.0);
        let Some(bytes) = open.tx.get(begin..begin + unsent) else {
            self.note_lost();
            return None;
        };
        let at = self.cursors.out_base;
        let (connection, writes) = (&*self.connection, self.context.writes);
        let sent = match transmit(connection, writes, open.header, (self.index, at), bytes) {
            Ok(Transfer::Bytes(n)) => n,
            Ok(Transfer::Nothing) => 0,
            Ok(Transfer::Shortage) => {
                self.connection.is_refused = true;
                0
            }
            Ok(Transfer::End) => return None,
            Err(e) => {
                self.record_failure(&e);
                return None;
            }
        };
        self.advance_cursors(sent);
        self.has_traffic = sent > 0;
        if sent < unsent {
            // A rejected client that does not read gets no reply.
            if let Some(reason) = purpose.close_reason() {
                self.flags.close_reason = reason;
                return None;
            }
            if sent > 0 {
                self.activate_cursors();
                self.slot().set_since(self.context.now);
            }
            return Some(WaitingFor::Writable);
        }
        let is_over = self.flags.half_closed && self.have == 0 && self.flags.goaway.is_none();
        match (self.flags.closing, is_over) {
            (true, _) => self.begin_lingering_close(0),
            (false, true) => None,
            (false, false) => self.carry_out(purpose),
        }
    }

    /// Begins the lingering close after the last reply: nothing more is sent, and the client has time to read.
    pub(super) fn begin_lingering_close(&mut self, sent: usize) -> Option<WaitingFor> {
        self.advance_cursors(sent);
        // Before the cursors of the lingering close: a worker that takes over from there counts the time from this.
        self.slot().set_since(self.context.now);
        self.forget_received(0);
        socket::finish_writing(&self.connection.socket);
        Some(WaitingFor::End)
    }

    /// Reads and discards bytes that the client sends after its last reply.
    pub(super) fn linger(&mut self) -> Option<WaitingFor> {
        if self.connection.watched.is_none() {
            // This is the client's first turn in this worker. The previous worker may have died, or lost the lease,
            // before it shut down writing.
            socket::finish_writing(&self.connection.socket);
        }
        let open = self
            .context
            .shm
            .open(self.index, Region::Shared, Region::Shared);
        let header = open.header;
        match self.connection.receive(open.rx) {
            Ok(Transfer::Bytes(n)) => {
                header.add_received(n);
                if !self.connection.linger(n as u32) {
                    return None;
                }
                self.forget_received(n);
                Some(WaitingFor::End)
            }
            Ok(Transfer::Nothing) => Some(WaitingFor::End),
            Ok(Transfer::Shortage) => {
                self.connection.is_refused = true;
                Some(WaitingFor::End)
            }
            Ok(Transfer::End) | Err(_) => None,
        }
    }

    /// Activates cursors by which all received bytes are answered, and `more` bytes after them.
    fn forget_received(&mut self, more: usize) {
        let (received, written) = self.cursors.ends();
        self.cursors = Cursors::idle(received + (self.have + more) as u64, written);
        self.have = 0;
        self.activate_cursors();
    }
}

/// Writes to a client in such a way that the master can find out after a death how much was written.
fn transmit(
    connection: &Connection,
    writes: Option<&OwnWrites>,
    header: Header<'_>,
    (slot, at): (u32, u64),
    bytes: &[u8],
) -> io::Result<Transfer> {
    if connection.is_tcp() {
        let transfer = write(
            bytes,
            |bytes| socket::transmit(&connection.socket, bytes),
            |_| {},
        );
        count_sent(header, &transfer);
        return transfer;
    }
    // The thread's account is stored before the write, and the accepted bytes after it. After a death between the two
    // the account shows the outcome, because the thread has called write(2) once or not yet. Signals are held back,
    // because a signal handler could write as well.
    let _held_back = HeldBack::all();
    header.begin_write(slot, at, writes.and_then(|writes| writes.sum().ok()));
    let transfer = write(
        bytes,
        |bytes| socket::transmit_summed(&connection.socket, bytes),
        |took| header.complete_write(took),
    );
    count_sent(header, &transfer);
    transfer
}

/// Counts the bytes that the kernel took. Those of a worker that dies just before this are missing in the counter.
fn count_sent(header: Header<'_>, transfer: &io::Result<Transfer>) {
    if let Ok(Transfer::Bytes(n)) = transfer {
        header.add_sent(*n);
    }
}

/// Writes, with kill points before and after it.
fn write(
    bytes: &[u8],
    transmit: impl FnOnce(&[u8]) -> io::Result<Transfer>,
    complete: impl FnOnce(u64),
) -> io::Result<Transfer> {
    kill_points::pass(Point::BeforeWrite);
    let is_cut_short = kill_points::is_hit(Point::AmidWrite);
    let transfer = transmit(if is_cut_short {
        &bytes[..bytes.len() / 2]
    } else {
        bytes
    });
    if is_cut_short {
        kill_points::die();
    }
    kill_points::pass(Point::AfterWrite);
    complete(if let Ok(Transfer::Bytes(took)) = transfer {
        took as u64
    } else {
        0
    });
    transfer
}
