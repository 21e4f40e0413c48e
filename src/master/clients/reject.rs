//! Ends clients with an error reply, where the protocol allows one.

use crate::master::clients::client::Unleased;
use crate::proto::frame::{ByteOrder, OrderRule};
use crate::proto::rpc::{self, GoawayReason};
use crate::sys::passed::{ClientSocket, Passed};
use crate::sys::socket;

/// Ends a client without a worker, with an error reply if it may get one. A client with an unsent rest of a reply gets
/// none, because it would take the error reply for that rest. A client whose first request was executing when its
/// worker died gets none either, because the error reply would report that the request was not executed.
pub(crate) fn reject(unleased: &Unleased, code: rpc::Code, sentence: &str) {
    if may_get_last_frame(unleased) {
        end_with_error(&unleased.client.socket, order_of(unleased), code, sentence);
    }
    socket::end(&unleased.client.socket);
}

/// Sends a goaway to a client that has asked for it, and shuts down writing. A client gets none in the cases in which
/// [`reject`] sends no error reply, and if its unread bytes were dropped.
pub(crate) fn send_goaway(unleased: &Unleased, reason: GoawayReason) {
    let flags = unleased.flags;
    if flags.wants_goaway && !flags.overloaded && may_get_last_frame(unleased) {
        let mut body = Vec::new();
        // Writing into a Vec cannot fail.
        let _ = rpc::write_goaway(&mut body, unleased.requests, reason);
        end_with(&unleased.client.socket, order_of(unleased), &body);
    }
}

fn may_get_last_frame(unleased: &Unleased) -> bool {
    let flags = unleased.flags;
    let was_executing = flags.crash_count > 0 || flags.timed_out;
    unleased.bytes.unsent.is_empty() && !flags.closing && !was_executing
}

fn order_of(unleased: &Unleased) -> ByteOrder {
    let order = unleased.flags.order;
    order.unwrap_or_else(|| first_order(unleased.client.order))
}

/// Rejects a client that was just accepted: sends an error reply and ends the connection.
pub(crate) fn reject_accepted(
    socket: &ClientSocket,
    order: OrderRule,
    code: rpc::Code,
    sentence: &str,
) {
    end_with_error(socket, first_order(order), code, sentence);
}

/// Returns the byte order of a first reply. With `auto`, a client that has sent nothing is answered in the protocol's
/// own order.
fn first_order(order: OrderRule) -> ByteOrder {
    if order == OrderRule::Big {
        ByteOrder::Big
    } else {
        ByteOrder::Little
    }
}

fn end_with_error(socket: &ClientSocket, order: ByteOrder, code: rpc::Code, sentence: &str) {
    let mut body = Vec::new();
    // Writing into a Vec cannot fail.
    let _ = rpc::write_error(&mut body, code.as_str(), sentence);
    end_with(socket, order, &body);
}

/// Sends a last frame with this body.
fn end_with(socket: &ClientSocket, order: ByteOrder, body: &[u8]) {
    let mut reply = order.prefix(body.len() as u32).to_vec();
    reply.extend_from_slice(body);
    // The socket buffer has space for the reply, unless earlier replies have not been read.
    let _ = socket::transmit(socket, &reply);
    socket::finish_writing(socket);
    // Bytes that have arrived are read first: closing would otherwise reset the connection and might destroy the reply.
    // The limit bounds the time that one client can take from the loop.
    let (mut scratch, passed) = ([0; 16 * 1024], Passed::default());
    for _ in 0..16 {
        if !matches!(
            passed.receive(socket, &mut scratch),
            Ok(socket::Transfer::Bytes(_))
        ) {
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::master::clients::client::Client;
    use crate::proto::names::Peer;
    use crate::shm::Flags;

    /// Returns what a client with these flags receives when it is rejected.
    fn received(flags: Flags, unsent: &[u8]) -> Vec<u8> {
        let (ours, mut theirs) = UnixStream::pair().expect("a pair");
        let mut unleased = Unleased::new(Client::with_socket(1, ours, Peer::UNIX), 0);
        unleased.flags = flags;
        unleased.bytes.unsent = unsent.to_vec().into();
        reject(&unleased, rpc::Code::Overloaded, "why");
        drop(unleased);
        let mut received = Vec::new();
        theirs.read_to_end(&mut received).expect("the end");
        received
    }

    #[test]
    fn only_a_request_that_was_not_executed_is_rejected() {
        let none = Flags::default();
        let big = Some(ByteOrder::Big);
        let reply = received(none, b"");
        assert_eq!(reply[..4], (reply.len() as u32 - 4).to_le_bytes());
        assert!(reply.windows(12).any(|part| part == b"\"overloaded\""));
        let reply = received(Flags { order: big, ..none }, b"");
        assert_eq!(reply[..4], (reply.len() as u32 - 4).to_be_bytes());

        let closing = Flags {
            closing: true,
            ..none
        };
        let crashed = Flags {
            crash_count: 1,
            ..none
        };
        let timed_out = Flags {
            timed_out: true,
            ..none
        };
        for flags in [closing, crashed, timed_out] {
            assert_eq!(received(flags, b""), b"", "{flags:?}");
        }
        assert_eq!(received(none, b"half"), b"");
    }
}
