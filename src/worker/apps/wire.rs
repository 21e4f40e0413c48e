//! The worker's end of the wire to its app: frames are queued, and written together once an iteration of the loop;
//! answers are read together.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use serde::Serialize;

use crate::loop_clock::Shortage;
use crate::proto::app::AppRequest;
use crate::proto::frame::PREFIX;
use crate::sys::socket::{self, Transfer};

/// The bytes read at a time.
const READ_LEN: usize = 64 * 1024;

/// The most bytes read in one iteration of the loop, so that no app keeps the worker from its clients.
const MAX_READ: usize = 1 << 20;

/// Unwritten bytes from which on no request is handed over.
const MAX_UNWRITTEN: usize = 256 * 1024;

/// The wire to an app.
#[derive(Debug)]
pub(in crate::worker) struct Wire {
    stream: UnixStream,
    /// Frames that are not written yet, from `written` on.
    outgoing: Vec<u8>,
    written: usize,
    /// Bytes of all frames that were ever queued.
    queued: u64,
    /// Received bytes: complete frames and the beginning of one, from `parsed` to `received`. The rest is space for the
    /// next read, initialized once and not before each.
    incoming: Vec<u8>,
    parsed: usize,
    received: usize,
    /// The longest body of a frame of the app.
    max_frame: usize,
    /// The waits for memory of the kernel, to read and to write.
    pub(super) reading: Shortage<u64>,
    pub(super) writing: Shortage<u64>,
}

/// The result of a write to the app.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::worker) enum WriteEnd {
    /// Nothing is left.
    All,
    /// The socket is full.
    Full,
    /// The kernel has no memory for more.
    Shortage,
    /// The app has closed its end.
    Closed,
}

/// The result of a read from the app.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::worker) enum ReadEnd {
    /// Nothing more has arrived.
    Nothing,
    /// There may be more.
    More,
    /// There may be more, but the kernel has no memory to read it.
    Shortage,
    /// The app has closed its end.
    Closed,
}

impl Wire {
    pub(in crate::worker) fn new(stream: UnixStream, max_frame: usize) -> Wire {
        Wire {
            stream,
            outgoing: Vec::new(),
            written: 0,
            queued: 0,
            incoming: Vec::new(),
            parsed: 0,
            received: 0,
            max_frame,
            reading: Shortage::default(),
            writing: Shortage::default(),
        }
    }

    /// Returns whether requests may be handed over to the app: not too many bytes wait to be written.
    pub(in crate::worker) fn accepts(&self) -> bool {
        self.outgoing.len() - self.written <= MAX_UNWRITTEN
    }

    /// Returns whether bytes wait to be written.
    pub(in crate::worker) fn has_unwritten(&self) -> bool {
        self.written < self.outgoing.len()
    }

    /// Queues a request. Returns the position of its frame in the stream.
    pub(in crate::worker) fn queue_request(
        &mut self,
        request: &AppRequest<'_>,
        params: Option<&[u8]>,
    ) -> u64 {
        self.queue(|out| request.write(out, params))
    }

    /// Queues another frame.
    pub(in crate::worker) fn queue_json(&mut self, frame: &impl Serialize) {
        self.queue(|out| serde_json::to_writer(out, frame).map_err(io::Error::other));
    }

    fn queue(&mut self, write: impl FnOnce(&mut Vec<u8>) -> io::Result<()>) -> u64 {
        let (position, begin) = (self.queued, self.outgoing.len());
        self.outgoing.extend_from_slice(&[0; PREFIX]);
        // Writing to a Vec does not fail, and the frames are made of numbers and text.
        let _ = write(&mut self.outgoing);
        let length = self.outgoing.len() - begin - PREFIX;
        // Params are no longer than a frame of a client, at most 256 MiB.
        let prefix = u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes();
        self.outgoing[begin..begin + PREFIX].copy_from_slice(&prefix);
        self.queued += (length + PREFIX) as u64;
        position
    }

    /// Returns whether no byte from this position of the stream on has been written.
    pub(in crate::worker) fn is_unwritten(&self, position: u64) -> bool {
        let written = self.queued - (self.outgoing.len() - self.written) as u64;
        position >= written
    }

    /// Writes as much as the app's socket accepts.
    ///
    /// # Errors
    /// Those of send(2).
    pub(in crate::worker) fn flush(&mut self) -> io::Result<WriteEnd> {
        let end = loop {
            if !self.has_unwritten() {
                break WriteEnd::All;
            }
            match socket::transmit(&self.stream, &self.outgoing[self.written..])? {
                Transfer::Bytes(count) => self.written += count,
                Transfer::Nothing => break WriteEnd::Full,
                Transfer::Shortage => break WriteEnd::Shortage,
                Transfer::End => return Ok(WriteEnd::Closed),
            }
        };
        self.forget_written();
        Ok(end)
    }

    /// Removes written bytes from the buffer: when all are written, or when there are many of them because some bytes
    /// are always left.
    fn forget_written(&mut self) {
        if self.has_unwritten() && self.written < MAX_UNWRITTEN {
            return;
        }
        self.outgoing.drain(..self.written);
        self.written = 0;
        if self.outgoing.is_empty() {
            self.outgoing.shrink_to(MAX_UNWRITTEN);
        }
    }

    /// Shuts down writing, so that the app reads the end of the stream.
    pub(in crate::worker) fn end(&self) {
        // It fails if the app has ended it before.
        let _ = self.stream.shutdown(std::net::Shutdown::Write);
    }

    /// Reads what has arrived.
    ///
    /// # Errors
    /// Those of recv(2).
    pub(in crate::worker) fn read(&mut self) -> io::Result<ReadEnd> {
        self.incoming.copy_within(self.parsed..self.received, 0);
        self.received -= self.parsed;
        self.parsed = 0;
        let begin = self.received;
        loop {
            let end = self.received + READ_LEN;
            if self.incoming.len() < end {
                self.incoming.resize(end, 0);
            }
            match socket::receive(&self.stream, &mut self.incoming[self.received..end]) {
                Ok(Transfer::Bytes(count)) => {
                    self.received += count;
                    if count < READ_LEN {
                        return Ok(ReadEnd::Nothing);
                    }
                    if self.received - begin >= MAX_READ {
                        return Ok(ReadEnd::More);
                    }
                }
                Ok(Transfer::Nothing) => return Ok(ReadEnd::Nothing),
                Ok(Transfer::Shortage) => return Ok(ReadEnd::Shortage),
                Ok(Transfer::End) => return Ok(ReadEnd::Closed),
                Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return Ok(ReadEnd::Closed),
                Err(e) => return Err(e),
            }
        }
    }

    /// Takes the received bytes, to be given back by [`Wire::give_back`].
    pub(in crate::worker) fn take_incoming(&mut self) -> IncomingFrames {
        IncomingFrames {
            bytes: std::mem::take(&mut self.incoming),
            at: self.parsed,
            end: self.received,
            max_frame: self.max_frame,
        }
    }

    pub(in crate::worker) fn give_back(&mut self, incoming: IncomingFrames) {
        (self.incoming, self.parsed) = (incoming.bytes, incoming.at);
        if self.parsed == self.received {
            (self.parsed, self.received) = (0, 0);
            self.incoming.truncate(MAX_UNWRITTEN);
            self.incoming.shrink_to(MAX_UNWRITTEN);
        }
    }
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// Received bytes of an app.
#[derive(Debug)]
pub(in crate::worker) struct IncomingFrames {
    bytes: Vec<u8>,
    at: usize,
    /// Where the received bytes end.
    end: usize,
    max_frame: usize,
}

impl IncomingFrames {
    /// Returns the body of the next complete frame.
    ///
    /// # Errors
    /// The mistake in its length.
    pub(in crate::worker) fn next(&mut self) -> Result<Option<&[u8]>, String> {
        let Some(prefix) = self.bytes[self.at..self.end].first_chunk::<PREFIX>() else {
            return Ok(None);
        };
        let length = u32::from_le_bytes(*prefix) as usize;
        if length > self.max_frame {
            let most = self.max_frame;
            return Err(format!("a frame of {length} bytes is longer than {most}"));
        }
        let (begin, end) = (self.at + PREFIX, self.at + PREFIX + length);
        let body = self.bytes[..self.end].get(begin..end);
        if body.is_some() {
            self.at = end;
        }
        Ok(body)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::Shutdown;

    use super::*;
    use serde_json::json;

    fn pair() -> (Wire, UnixStream) {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        ours.set_nonblocking(true).expect("fcntl");
        (Wire::new(ours, 100), theirs)
    }

    #[test]
    fn frames_arrive_whole_however_they_are_cut() {
        let (mut wire, mut app) = pair();
        let stream: Vec<u8> = (0..50u32)
            .flat_map(|n| [&n.to_le_bytes()[..], &vec![b'x'; n as usize]].concat())
            .collect();
        let mut lengths = Vec::new();
        for part in stream.chunks(7) {
            app.write_all(part).expect("write");
            assert_eq!(wire.read().expect("read"), ReadEnd::Nothing);
            let mut incoming = wire.take_incoming();
            while let Some(body) = incoming.next().expect("good lengths") {
                lengths.push(body.len());
            }
            wire.give_back(incoming);
        }
        assert_eq!(lengths, (0..50).collect::<Vec<_>>());
        app.shutdown(Shutdown::Both).expect("shutdown");
        assert_eq!(wire.read().expect("read"), ReadEnd::Closed);
    }

    #[test]
    fn a_frame_above_the_limit_is_refused_by_its_length() {
        let (mut wire, mut app) = pair();
        app.write_all(&101u32.to_le_bytes()).expect("write");
        let _ = wire.read().expect("read");
        let mut incoming = wire.take_incoming();
        assert!(incoming.next().expect_err("too long").contains("101 bytes"));
    }

    #[test]
    fn a_frame_is_unwritten_until_its_first_byte_is_written() {
        let (mut wire, mut app) = pair();
        let (mut positions, long) = (Vec::new(), "x".repeat(100_000));
        for _ in 0..20 {
            positions.push(wire.queue(|out| {
                out.extend_from_slice(long.as_bytes());
                Ok(())
            }));
        }
        assert!(
            positions
                .iter()
                .all(|position| wire.is_unwritten(*position))
        );
        assert_eq!(wire.flush().expect("write"), WriteEnd::Full);
        assert!(wire.has_unwritten() && !wire.accepts());
        let unwritten = positions
            .iter()
            .filter(|position| wire.is_unwritten(**position));
        assert!((1..20).contains(&unwritten.count()));
        let mut bytes = vec![0; 100_000];
        while wire.has_unwritten() {
            app.read_exact(&mut bytes).expect("read");
            assert_ne!(wire.flush().expect("write"), WriteEnd::Closed);
        }
        assert!(!wire.is_unwritten(positions[19]) && wire.accepts());
        wire.queue_json(&json!({"probe": 1}));
        assert!(wire.has_unwritten());
    }
}
