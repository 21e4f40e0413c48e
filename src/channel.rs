//! Channels between the master and a worker or the exporter, typed by direction. Descriptors travel inside messages.
//!
//! Each channel is one `SOCK_SEQPACKET` pair. EOF at the worker means that its master is gone. EOF at the master means
//! nothing, because a worker may have closed its end and still be in a call: only waitid(2) reports a death.

use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Mutex;
use std::{io, mem};

use crate::proto::channel::MAX_MESSAGE;
use crate::proto::message::{Malformed, Message};
use crate::sys::socket::{self, Received};

pub use crate::sys::socket::Sent;

/// One end of a channel, which sends `Tx` and receives `Rx`.
#[derive(Debug)]
pub struct Channel<Tx, Rx> {
    socket: OwnedFd,
    outgoing: Vec<u8>,
    directions: PhantomData<fn(Tx) -> Rx>,
}

/// The result of a receive from a channel.
#[derive(Debug)]
pub enum Incoming<Rx> {
    /// A message, with as many descriptors as its kind needs.
    Message(Rx, Vec<OwnedFd>),
    /// Bytes that do not form a message, or a message with a part missing. Descriptors that came with it are closed.
    Garbage(Malformed),
    /// No message now.
    Nothing,
    /// No message now: the kernel has no memory to deliver one. No poller reports the end of that.
    Shortage,
    /// The other end is closed, and nothing is left to receive.
    Closed,
}

impl<Tx: Message, Rx: Message> Channel<Tx, Rx> {
    /// Returns a new channel, and the end of it that goes to the other process.
    ///
    /// # Errors
    /// Those of socketpair(2).
    pub fn pair() -> io::Result<(Channel<Tx, Rx>, OwnedFd)> {
        let (ours, theirs) = socket::message_pair()?;
        Ok((Channel::new(ours), theirs))
    }

    /// Returns a channel over an end that another process made.
    #[must_use]
    pub fn new(socket: OwnedFd) -> Channel<Tx, Rx> {
        Channel {
            socket,
            outgoing: Vec::new(),
            directions: PhantomData,
        }
    }

    /// Sends a message, without waiting. The other end gets copies of the descriptors.
    ///
    /// # Errors
    /// Those of sendmsg(2); `InvalidInput` when the number of descriptors is not what the message needs.
    pub fn send(&mut self, message: &Tx, descriptors: &[BorrowedFd<'_>]) -> io::Result<Sent> {
        if descriptors.len() != message.descriptors() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        message.encode(&mut self.outgoing);
        socket::send_message(&self.socket, &self.outgoing, descriptors)
    }

    /// Receives the next message, without waiting. `scratch` may be overwritten.
    ///
    /// # Errors
    /// Those of recvmsg(2).
    pub fn receive(&self, scratch: &mut Scratch) -> io::Result<Incoming<Rx>> {
        let (length, descriptors, cut) =
            match socket::receive_message(&self.socket, &mut scratch.0)? {
                Received::Nothing => return Ok(Incoming::Nothing),
                Received::Shortage => return Ok(Incoming::Shortage),
                Received::Closed => return Ok(Incoming::Closed),
                Received::Message {
                    length,
                    descriptors,
                    cut,
                } => (length, descriptors, cut),
            };
        if cut {
            return Ok(Incoming::Garbage(Malformed(
                "cut short: too long, or out of descriptors",
            )));
        }
        Ok(match Rx::decode(&scratch.0[..length]) {
            Ok(message) if message.descriptors() == descriptors.len() => {
                Incoming::Message(message, descriptors)
            }
            Ok(_) => Incoming::Garbage(Malformed("not as many descriptors as it wants")),
            Err(malformed) => Incoming::Garbage(malformed),
        })
    }
}

impl<Tx, Rx> AsFd for Channel<Tx, Rx> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Space for the longest message; one serves all channels of a process.
///
/// The space of one that is dropped is that of the next one. A forked worker thus uses that of its zygote, of which
/// only the pages with a message are copied; new space would be cleared in whole.
#[derive(Debug)]
pub struct Scratch(Box<[u8]>);

/// The space of a scratch that was dropped.
static SPARE: Mutex<Option<Box<[u8]>>> = Mutex::new(None);

impl Scratch {
    /// Returns the whole space.
    pub fn bytes(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl Default for Scratch {
    fn default() -> Scratch {
        let spare = SPARE.lock().ok().and_then(|mut spare| spare.take());
        Scratch(spare.unwrap_or_else(|| vec![0; MAX_MESSAGE].into_boxed_slice()))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Ok(mut spare) = SPARE.lock() {
            *spare = Some(mem::take(&mut self.0));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::proto::channel::{ToMaster, ToWorker};
    use crate::proto::frame::OrderRule;
    use crate::proto::lease::{ClientRecord, Lease};
    use crate::proto::names::{ClientId, Offsets, Peer};

    #[test]
    fn descriptors_arrive_in_their_message_and_others_are_closed() {
        let (mut master, theirs) = Channel::<ToWorker, ToMaster>::pair().expect("socketpair");
        let worker = Channel::<ToMaster, ToWorker>::new(theirs);
        let mut scratch = Scratch::default();
        let null = std::fs::File::open("/dev/null").expect("/dev/null");
        let peer = Peer::UNIX;
        let record = ClientRecord {
            client: ClientId(1),
            slot: 2,
            lease_number: 3,
            order: OrderRule::Big,
            moves: 4,
            listener: 5,
            since: 6,
            offsets: Offsets {
                received: 7,
                sent: 8,
            },
        };
        let lease = Lease { record, peer };

        assert!(master.send(&ToWorker::Lease(vec![lease]), &[]).is_err());
        assert_eq!(
            master
                .send(&ToWorker::Lease(vec![lease]), &[null.as_fd()])
                .expect("send"),
            Sent::Queued
        );
        match worker.receive(&mut scratch).expect("receive") {
            Incoming::Message(ToWorker::Lease(leases), descriptors) => {
                assert_eq!((leases, descriptors.len()), (vec![lease], 1))
            }
            other => panic!("{other:?}"),
        }
        assert!(matches!(
            worker.receive(&mut scratch).expect("receive"),
            Incoming::Nothing
        ));

        let (mut watch, passed) = UnixStream::pair().expect("socketpair");
        // A Reopen with a descriptor, and garbage with one.
        for message in [b"\x03", b"\xff"] {
            let sent = socket::send_message(&master, message, &[passed.as_fd()]).expect("sendmsg");
            assert_eq!(sent, Sent::Queued);
        }
        drop(passed);
        assert!(matches!(
            worker.receive(&mut scratch).expect("receive"),
            Incoming::Garbage(_)
        ));
        assert!(matches!(
            worker.receive(&mut scratch).expect("receive"),
            Incoming::Garbage(_)
        ));
        assert_eq!(
            watch.read(&mut [0]).expect("EOF, because no copy is left"),
            0
        );
        drop(master);
        assert!(matches!(
            worker.receive(&mut scratch).expect("receive"),
            Incoming::Closed
        ));
    }
}
