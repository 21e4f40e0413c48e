//! Ends clients with an error reply, where the protocol allows one.

use crate::master::clients::client::Unleased;
use crate::proto::frame::{ByteOrder, OrderRule};
use crate::proto::rpc;
use crate::sys::passed::{ClientSocket, Passed};
use crate::sys::socket;

/// Ends a client that waits only for replies to requests that it has sent or begun to send. A client that has received
/// half of a reply would take an error reply for the rest of it, so it gets none.
pub(crate) fn reject(unleased: &Unleased, code: rpc::Code, sentence: &str) {
    let client = &unleased.client;
    if unleased.bytes.unsent.is_empty() && !unleased.flags.closing {
        let order = unleased
            .flags
            .order
            .unwrap_or_else(|| first_order(client.order));
        end_with(&client.socket, order, code, sentence);
    }
    socket::end(&client.socket);
}

/// Rejects a client that was just accepted: sends an error reply and ends the connection.
pub(crate) fn turn_away(socket: &ClientSocket, order: OrderRule, sentence: &str) {
    end_with(socket, first_order(order), rpc::Code::Overloaded, sentence);
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

fn end_with(socket: &ClientSocket, order: ByteOrder, code: rpc::Code, sentence: &str) {
    let mut body = Vec::new();
    // Writing into a Vec cannot fail.
    let _ = rpc::write_error(&mut body, code.as_str(), sentence);
    let mut reply = order.prefix(body.len() as u32).to_vec();
    reply.extend_from_slice(&body);
    // The socket buffer has space for the reply, unless earlier replies have not been read.
    let _ = socket::transmit(socket, &reply);
    socket::finish_writing(socket);
    // Bytes that have arrived are read first: closing would otherwise reset the connection and might destroy the reply.
    // More than that is not worth the loop's time.
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
