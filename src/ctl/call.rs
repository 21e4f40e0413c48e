//! A request of the RPC, sent as a client sends it.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::args::CallArguments;
use super::error::Error;
use super::{Session, read};
use crate::proto::control::{self, Status};
use crate::proto::frame::{ByteOrder, OrderRule};
use crate::proto::names::Address;
use crate::rpc_client::{self, RpcClient, no_reply};

/// Sends it, and prints the result as it came.
pub(super) fn perform(
    call: &CallArguments,
    session: &Session,
    out: &mut impl Write,
) -> Result<(), Error> {
    let (address, order) = match &call.to {
        Some(address) => (address.clone(), ByteOrder::Little),
        None => first_listener(session)?,
    };
    let order = call.byte_order().unwrap_or(order);
    let reply = RpcClient::connect_listener(&address, order, session.deadline)?
        .call(&call.method, call.params.as_ref())?;
    writeln!(out, "{}", reply.result.get()).map_err(Error::Output)
}

/// Where to call when nobody said so, and in which byte order.
fn first_listener(session: &Session) -> Result<(Address, ByteOrder), Error> {
    let asked = session
        .daemon()
        .and_then(|mut daemon| daemon.ask(control::Verb::Status));
    let status = match asked {
        Ok(result) => read::<Status>(&result)?,
        // A client needs no permission to look at the daemon: it may still be where daemons usually are.
        Err(rpc_client::Error::NotRunning { .. } | rpc_client::Error::Forbidden(_)) => {
            return Ok((USUAL, ByteOrder::Little));
        }
        Err(error) => return Err(error.into()),
    };
    let Some(listener) = status.listeners.first() else {
        return Ok((USUAL, ByteOrder::Little));
    };
    let address = listener.address.parse().map_err(|e: String| no_reply(&e))?;
    let order = if listener.byte_order == OrderRule::Big {
        ByteOrder::Big
    } else {
        ByteOrder::Little
    };
    Ok((reachable(address), order))
}

/// A wildcard is where a daemon listens, not where a client connects.
pub(super) fn reachable(address: Address) -> Address {
    match address {
        Address::Tcp(mut tcp) if tcp.ip().is_unspecified() => {
            tcp.set_ip(if tcp.is_ipv4() {
                Ipv4Addr::LOCALHOST.into()
            } else {
                Ipv6Addr::LOCALHOST.into()
            });
            Address::Tcp(tcp)
        }
        other => other,
    }
}

/// Where the daemon listens when it is not configured.
const USUAL: Address = Address::Tcp(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8080));
