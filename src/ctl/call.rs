//! `call`: a request to a listener, as a client sends it.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use serde_json::value::RawValue;

use super::args::call::CallParams;
use super::args::values::json;
use super::args::{CallArguments, CallTarget};
use super::error::Error;
use super::session::{Session, parse};
use crate::client::{self, Client, ClientOptions, ClientRequest, ConnectionError};
use crate::proto::control::{ListenerStatus, Status, Verb};
use crate::proto::frame::{ByteOrder, OrderRule};
use crate::proto::names::Address;
use crate::rpc_client::{self, broken, no_reply, not_connected};

/// Sends a request and prints the result as received.
pub(super) fn perform(
    call: &CallArguments,
    session: &Session,
    out: &mut impl Write,
) -> Result<(), Error> {
    let (target, order) = match &call.to {
        Some(target) => (target.clone(), ByteOrder::Little),
        None => {
            let (address, order) = first_listener(session)?;
            (CallTarget::Listener(address), order)
        }
    };
    let order = call.byte_order.unwrap_or(order);
    let left = session.deadline.left();
    let left = left.map_err(|_| session.deadline.over())?;
    // Each call is one attempt, at one listener or at one after the other of a name. The listener decides what is too
    // long.
    let options = ClientOptions::new()
        .connect_timeout(left)
        .timeout(left)
        .silence(left)
        .fail_fast()
        .byte_order(order)
        .limits(u32::MAX, MAX_RESULT);
    let params = call.params.as_ref().map(read).transpose()?;
    let request = match &params {
        Some(params) => ClientRequest::new(&call.method, params),
        None => ClientRequest::without_params(&call.method),
    };
    let client = match &target {
        CallTarget::Listener(address) => Client::of_listener(address.clone(), options),
        CallTarget::Srv(name) => Client::with_options([name], options),
    };
    let result = client
        .and_then(|client| client.send_raw(request))
        .map_err(|error| failure(error, &target, session.timeout))?;
    writeln!(out, "{}", result.get()).map_err(Error::Output)
}

/// Returns the params, and reads them first if they are elsewhere.
fn read(params: &CallParams) -> Result<Box<RawValue>, Error> {
    let (name, text) = match params {
        CallParams::Given(params) => return Ok(params.clone()),
        CallParams::StandardInput => {
            let mut text = Vec::new();
            let read = io::stdin().lock().read_to_end(&mut text);
            ("standard input".to_owned(), read.map(|_| text))
        }
        CallParams::File(path) => (path.display().to_string(), fs::read(path)),
    };
    let text = text.map_err(|cause| Error::Usage(format!("cannot read {name}: {cause}")))?;
    let text = String::from_utf8(text);
    let text = text.map_err(|_| Error::Usage(format!("{name} is not UTF-8")))?;
    json(&text).map_err(|why| Error::Usage(format!("{name}: {why}")))
}

/// Returns the error of a call.
fn failure(error: client::Error, target: &CallTarget, timeout: Duration) -> rpc_client::Error {
    match error {
        client::Error::Reply { code, message, .. } => refused(code, message),
        client::Error::Usage(why) => rpc_client::Error::Usage(why),
        client::Error::Result(why) => no_reply(&why),
        client::Error::UnknownOutcome { cause, .. } => without_reply(cause, target, timeout),
        client::Error::Unavailable { mut causes, .. } => match causes.pop() {
            Some(last) if !causes.is_empty() => {
                causes.push(last);
                none_accepts(&causes, target)
            }
            Some((_, cause)) => without_reply(cause, target, timeout),
            None => rpc_client::Error::Timeout(timeout),
        },
    }
}

/// Returns the error of a call to a name with several daemons.
fn none_accepts(causes: &[(String, ConnectionError)], target: &CallTarget) -> rpc_client::Error {
    let causes = causes.iter();
    let texts: Vec<String> = causes
        .map(|(daemon, cause)| format!("{daemon}: {cause}"))
        .collect();
    cannot_connect(target, io::Error::other(texts.join("; ")))
}

fn without_reply(
    cause: ConnectionError,
    target: &CallTarget,
    timeout: Duration,
) -> rpc_client::Error {
    match cause {
        ConnectionError::Connect(cause) => {
            let cause = io::Error::new(cause.kind(), cause.to_string());
            match target {
                CallTarget::Listener(address) => not_connected(address, cause, timeout),
                CallTarget::Srv(_) => cannot_connect(target, cause),
            }
        }
        ConnectionError::Resolve(cause) => cannot_connect(target, io::Error::other(cause)),
        ConnectionError::Timeout(_) => rpc_client::Error::Timeout(timeout),
        ConnectionError::Closed | ConnectionError::ClosedInReply { .. } => {
            rpc_client::Error::Closed
        }
        ConnectionError::Broken(cause) => broken(&cause),
        ConnectionError::BadReply(why) | ConnectionError::BrokenProtocol(why) => {
            rpc_client::Error::NoReply(why)
        }
        ConnectionError::Rejected { code, message } => refused(code, message),
        other @ (ConnectionError::Silent(_) | ConnectionError::Goaway { .. }) => {
            rpc_client::Error::NoReply(other.to_string())
        }
    }
}

fn cannot_connect(target: &CallTarget, cause: io::Error) -> rpc_client::Error {
    rpc_client::Error::Connect {
        address: target.to_string(),
        cause,
    }
}

fn refused(code: String, message: String) -> rpc_client::Error {
    rpc_client::Error::Refused {
        code,
        message,
        place: None,
    }
}

/// Returns the address and the byte order of the daemon's first listener without the key `proxy`, else of its first
/// one; without access to a daemon, where one usually listens.
pub(super) fn first_listener(session: &Session) -> Result<(Address, ByteOrder), Error> {
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
    // One that expects a header serves load balancers.
    let is_plain = |listener: &&ListenerStatus| listener.proxy.is_none();
    let listener = status.listeners.iter().find(is_plain);
    let Some(listener) = listener.or(status.listeners.first()) else {
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

/// Longest body of a reply: 256 MiB, and room for what is around the result.
const MAX_RESULT: u32 = (256 << 20) + (64 << 10);
