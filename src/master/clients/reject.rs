//! Ends clients with an error reply, where the protocol allows one.

use crate::master::clients::client::Unleased;
use crate::proto::frame::{ByteOrder, OrderRule};
use crate::proto::rpc;
use crate::sys::passed::{ClientSocket, Passed};
use crate::sys::socket;

/// Ends a client that waits for nothing but replies to what it has sent or begun to send. One that has got half of a reply
/// takes an error reply for the rest of it, so it gets none.
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

/// Tells a client that was accepted just now that it cannot stay, and ends it.
pub(crate) fn turn_away(socket: &ClientSocket, order: OrderRule, sentence: &str) {
    end_with(socket, first_order(order), rpc::Code::Overloaded, sentence);
}

/// In the order of `auto` a client is answered in the protocol's own as long as it has sent nothing.
fn first_order(order: OrderRule) -> ByteOrder {
    if order == OrderRule::Big {
        ByteOrder::Big
    } else {
        ByteOrder::Little
    }
}

fn end_with(socket: &ClientSocket, order: ByteOrder, code: rpc::Code, sentence: &str) {
    let mut body = Vec::new();
    // Into a Vec it cannot fail.
    let _ = rpc::write_error(&mut body, code.as_str(), sentence);
    let mut reply = order.prefix(body.len() as u32).to_vec();
    reply.extend_from_slice(&body);
    // There is room for it, unless replies of before have not been taken.
    let _ = socket::transmit(socket, &reply);
    socket::finish_writing(socket);
    // What the client has sent by now is read, or closing would reset the connection and might destroy the reply. More than
    // that is not worth the loop's time.
    let (mut scratch, passed) = ([0; 16 * 1024], Passed::default());
    for _ in 0..16 {
        if !matches!(
            passed.receive(socket, &mut scratch),
            Ok(socket::Moved::Bytes(_))
        ) {
            break;
        }
    }
}
