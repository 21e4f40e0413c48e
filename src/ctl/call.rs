//! `call`: a request to a listener, as a client sends it.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::args::CallArguments;
use super::error::Error;
use super::session::{Session, parse};
use crate::proto::control::{Status, Verb};
use crate::proto::frame::{ByteOrder, OrderRule};
use crate::proto::names::Address;
use crate::rpc_client::{self, RpcClient, no_reply};

/// Sends a request and prints the result as received.
pub(super) fn perform(
    call: &CallArguments,
    session: &Session,
    out: &mut impl Write,
) -> Result<(), Error> {
    let (address, order) = match &call.to {
        Some(address) => (address.clone(), ByteOrder::Little),
        None => first_listener(session)?,
    };
    let order = call.byte_order.unwrap_or(order);
    let reply = RpcClient::connect_listener(&address, order, session.deadline)?
        .call(&call.method, call.params.as_ref())?;
    writeln!(out, "{}", reply.result.get()).map_err(Error::Output)
}

/// Returns the address and the byte order of the daemon's first listener, or where a daemon usually listens.
fn first_listener(session: &Session) -> Result<(Address, ByteOrder), Error> {
    let asked = session
        .connect()
        .and_then(|mut daemon| daemon.ask(Verb::Status));
    let status = match asked {
        Ok(result) => parse::<Status>(&result)?,
        // A client may have no access to the control socket, and a daemon may run without one.
        Err(rpc_client::Error::NotRunning { .. } | rpc_client::Error::Forbidden(_)) => {
            return Ok((USUAL, ByteOrder::Little));
        }
        Err(error) => return Err(error.into()),
    };
    let Some(listener) = status.listeners.first() else {
        return Ok((USUAL, ByteOrder::Little));
    };
    let address: Address = listener.address.parse().map_err(|e: String| no_reply(&e))?;
    let order = match listener.byte_order {
        OrderRule::Big => ByteOrder::Big,
        OrderRule::Little | OrderRule::Auto => ByteOrder::Little,
    };
    Ok((address.reachable(), order))
}

/// The default of `listen`.
const USUAL: Address = Address::Tcp(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8080));
