//! What is written to a client, and how it is parted from.

use std::io;

use super::{Gone, Purpose, Turn};
use crate::shm::{Cursors, Header, Region};
use crate::sys::byte_counts::OwnWrites;
use crate::sys::clock;
use crate::sys::signal::HeldBack;
use crate::sys::socket::{self, Moved};
use crate::worker::connection::{Connection, WaitingFor};
use crate::worker::death::{self, Point};

impl Turn<'_, '_> {
    /// Sends the replies so far and lets cursors begin behind them. False when the client does not take them.
    pub(super) fn send_midway(&mut self, since: u64) -> Result<bool, Gone> {
        if self.is_doubtful {
            self.check_socket()?;
        }
        let sent = self.send(since)?;
        self.pass(sent);
        if self.cursors.replied > 0 {
            self.blocked = true;
            return Ok(false);
        }
        self.flip();
        Ok(true)
    }

    /// Sends; how many bytes the kernel took.
    pub(super) fn send(&mut self, since: u64) -> Result<usize, Gone> {
        let replied = self.cursors.replied as usize;
        if replied == 0 {
            return Ok(0);
        }
        let open = self
            .tools
            .shm
            .open(self.index, self.cursors.rx.0, Region::Shared);
        let begin = self.cursors.tx.1 as usize;
        let at = self.cursors.out_base;
        let bytes = &open.tx[begin..begin + replied];
        let sent = transmit(
            self.connection,
            self.tools.writes,
            open.header,
            (self.index, at),
            bytes,
        );
        self.tools.now = clock::monotonic();
        open.header
            .record(self.tools.now, self.unrecorded, self.tools.now - since);
        self.unrecorded = 0;
        match sent {
            Ok(Moved::Bytes(n)) => Ok(n),
            Ok(Moved::Nothing) => Ok(0),
            Ok(Moved::End) => Err(Gone),
            Err(e) => {
                self.broke_off(&e);
                Err(Gone)
            }
        }
    }

    /// Sends replies that were parked before this turn, and goes on if that is done.
    pub(super) fn send_parked(&mut self, purpose: &Purpose<'_>) -> Option<WaitingFor> {
        let (begin, unsent) = (self.cursors.tx.1 as usize, self.cursors.replied as usize);
        let open = self
            .tools
            .shm
            .open(self.index, Region::Shared, self.cursors.tx.0);
        let Some(bytes) = open.tx.get(begin..begin + unsent) else {
            open.header.add_lost();
            return None;
        };
        let at = self.cursors.out_base;
        let sent = match transmit(
            self.connection,
            self.tools.writes,
            open.header,
            (self.index, at),
            bytes,
        ) {
            Ok(Moved::Bytes(n)) => n,
            Ok(Moved::Nothing) => 0,
            Ok(Moved::End) => return None,
            Err(e) => {
                self.broke_off(&e);
                return None;
            }
        };
        self.pass(sent);
        self.moved = sent > 0;
        if sent < unsent {
            // A client that is rejected and does not read gets no reply.
            if matches!(purpose, Purpose::Reject(_)) {
                return None;
            }
            if sent > 0 {
                self.flip();
                self.slot().set_since(self.tools.now);
            }
            return Some(WaitingFor::Writable);
        }
        match (self.flags.closing, self.flags.half_closed && self.have == 0) {
            (true, _) => self.begin_lingering_close(0),
            (false, true) => None,
            (false, false) => self.work(purpose),
        }
    }

    /// All is sent. Nothing more is, and the client is given a while to read it.
    pub(super) fn begin_lingering_close(&mut self, sent: usize) -> Option<WaitingFor> {
        self.pass(sent);
        // Before cursors say that it is parted from: whoever takes over from there counts the while from this.
        self.slot().set_since(self.tools.now);
        self.forget_received(0);
        socket::finish_writing(&self.connection.socket);
        Some(WaitingFor::End)
    }

    /// Reads what the client still sends after its last reply, and throws it away.
    pub(super) fn linger(&mut self) -> Option<WaitingFor> {
        if self.connection.watched.is_none() {
            // Its first turn here. The worker before may have died, or lost it, just before it did this.
            socket::finish_writing(&self.connection.socket);
        }
        let open = self
            .tools
            .shm
            .open(self.index, Region::Shared, Region::Shared);
        match self.connection.receive(open.rx) {
            Ok(Moved::Bytes(n)) => {
                self.connection.linger_bytes =
                    self.connection.linger_bytes.checked_sub(n as u32)?;
                self.forget_received(n);
                Some(WaitingFor::End)
            }
            Ok(Moved::Nothing) => Some(WaitingFor::End),
            Ok(Moved::End) | Err(_) => None,
        }
    }

    /// Lets cursors hold in which all that was received is answered, and `more` bytes behind it.
    fn forget_received(&mut self, more: usize) {
        let (received, written) = self.cursors.ends();
        self.cursors = Cursors::idle(received + (self.have + more) as u64, written);
        self.have = 0;
        self.flip();
    }
}

/// Writes to a client, in the way by which it can be found out afterwards how much.
fn transmit(
    connection: &Connection,
    writes: Option<&OwnWrites>,
    header: Header<'_>,
    (slot, at): (u32, u64),
    bytes: &[u8],
) -> io::Result<Moved> {
    if connection.is_tcp() {
        return write(
            bytes,
            |bytes| socket::transmit(&connection.socket, bytes),
            |_| {},
        );
    }
    // What the thread has written is noted before, and what the kernel took behind: a death between the two is the one whose
    // outcome the account of the thread tells, as it has called write(2) once, or not yet. A signal handler could write.
    let _held_back = HeldBack::all();
    header.begin_write(slot, at, writes.and_then(|writes| writes.sum().ok()));
    write(
        bytes,
        |bytes| socket::transmit_summed(&connection.socket, bytes),
        |took| header.complete_write(took),
    )
}

/// Writes, with the points at which the tests let a worker die.
fn write(
    bytes: &[u8],
    transmit: impl FnOnce(&[u8]) -> io::Result<Moved>,
    complete: impl FnOnce(u64),
) -> io::Result<Moved> {
    death::pass(Point::BeforeWrite);
    let is_cut_short = death::strikes(Point::AmidWrite);
    let moved = transmit(if is_cut_short {
        &bytes[..bytes.len() / 2]
    } else {
        bytes
    });
    if is_cut_short {
        death::die();
    }
    death::pass(Point::AfterWrite);
    complete(if let Ok(Moved::Bytes(took)) = moved {
        took as u64
    } else {
        0
    });
    moved
}
