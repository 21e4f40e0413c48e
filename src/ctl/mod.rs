//! fdpassctl: one request to a running daemon, its reply, and an exit code that scripts can rely on.
//!
//! What is printed for people is escaped; what is printed for programs (`call`, `--json`) is byte for byte
//! what came. fdpassctl knows of the daemon only what the vocabulary in [`proto`](crate::proto) says.

mod args;
mod change;
mod error;
mod table;

use std::env;
use std::ffi::OsString;
use std::io::{self, ErrorKind, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::connection::{self, Connection, Deadline, no_reply};
use crate::proto::control::{self, Status, Version};
use crate::proto::frame::{ByteOrder, OrderRule};
use crate::proto::names::Address;
use crate::proto::text::Escaped;

use args::{Arguments, Call, Verb};
use error::{Error, Exit};

/// The whole of `fdpassctl`.
pub(crate) fn main() -> ExitCode {
    let exit = run(env::args_os(), |key| env::var_os(key), &mut io::stdout().lock(), &mut io::stderr().lock());
    ExitCode::from(exit as u8)
}

fn run(
    arguments: impl IntoIterator<Item = OsString>,
    var: impl Fn(&str) -> Option<OsString>,
    out: &mut impl Write,
    err: &mut impl Write,
) -> Exit {
    let done = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => perform(&arguments, var, out),
        Err(usage) if usage.use_stderr() => {
            // Nothing is left to be done if even this cannot be written.
            let _ = write!(err, "{usage}");
            return Exit::Usage;
        }
        Err(help) => write!(out, "{help}").map_err(Error::Output),
    };
    match done.and_then(|()| out.flush().map_err(Error::Output)) {
        Ok(()) => Exit::Done,
        Err(error) => {
            // `fdpassctl status | head -1` is no mishap to talk about.
            if !matches!(&error, Error::Output(cause) if cause.kind() == ErrorKind::BrokenPipe) {
                let _ = writeln!(err, "fdpassctl: {}", Escaped(&error));
                let _ = error.lines().try_for_each(|line| writeln!(err, "{}", Escaped(line)));
            }
            error.exit()
        }
    }
}

fn perform(arguments: &Arguments, var: impl Fn(&str) -> Option<OsString>, out: &mut impl Write) -> Result<(), Error> {
    let places = places(arguments, var);
    let deadline = Deadline::after(arguments.timeout());
    match &arguments.verb {
        Verb::Status => status(Connection::to_daemon(&places, deadline)?, arguments.json, out),
        Verb::Call(call) => call_method(call, &places, deadline, out),
        Verb::Version => version(Connection::to_daemon(&places, deadline), arguments.json, out),
        Verb::Change(change) => change.perform(Connection::to_daemon(&places, deadline)?, arguments.json, out),
    }
}

/// Where the control socket may be: one place if somebody said so, else all the usual ones.
fn places(arguments: &Arguments, var: impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    if let Some(name) = &arguments.instance {
        // The RuntimeDirectory= of fdpassd@.service.
        return vec![PathBuf::from(format!("/run/{DAEMON}-{name}/control.sock"))];
    }
    let from_environment = || var("FDPASSD_SOCKET").filter(|path| !path.is_empty()).map(PathBuf::from);
    match arguments.socket.clone().or_else(from_environment) {
        Some(path) => vec![path],
        None => control::places(DAEMON, user(), var),
    }
}

fn status(mut daemon: Connection, json: bool, out: &mut impl Write) -> Result<(), Error> {
    let result = daemon.ask(control::Verb::Status)?;
    if json {
        return writeln!(out, "{}", result.get()).map_err(Error::Output);
    }
    table::write(out, &read::<Status>(&result)?).map_err(Error::Output)
}

fn call_method(call: &Call, places: &[PathBuf], deadline: Deadline, out: &mut impl Write) -> Result<(), Error> {
    let (address, order) = match &call.to {
        Some(address) => (address.clone(), ByteOrder::Little),
        None => first_listener(places, deadline)?,
    };
    let order = call.byte_order().unwrap_or(order);
    let reply = Connection::to_listener(&address, order, deadline)?.call(&call.method, call.params.as_ref())?;
    writeln!(out, "{}", reply.result.get()).map_err(Error::Output)
}

/// Where to call when nobody said so, and in which byte order.
fn first_listener(places: &[PathBuf], deadline: Deadline) -> Result<(Address, ByteOrder), Error> {
    let asked = Connection::to_daemon(places, deadline).and_then(|mut daemon| daemon.ask(control::Verb::Status));
    let status = match asked {
        Ok(result) => read::<Status>(&result)?,
        // A client needs no permission to look at the daemon: it may still be where daemons usually are.
        Err(connection::Error::NotRunning { .. } | connection::Error::Forbidden(_)) => {
            return Ok((USUAL, ByteOrder::Little));
        }
        Err(error) => return Err(error.into()),
    };
    let Some(listener) = status.listeners.first() else {
        return Ok((USUAL, ByteOrder::Little));
    };
    let address = listener.address.parse().map_err(|e: String| no_reply(&e))?;
    let order = if listener.byte_order == OrderRule::Big { ByteOrder::Big } else { ByteOrder::Little };
    Ok((reachable(address), order))
}

/// A wildcard is where a daemon listens, not where a client connects.
fn reachable(address: Address) -> Address {
    match address {
        Address::Tcp(mut tcp) if tcp.ip().is_unspecified() => {
            tcp.set_ip(if tcp.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() });
            Address::Tcp(tcp)
        }
        other => other,
    }
}

/// The own version is printed whatever comes after it.
fn version(daemon: Result<Connection, connection::Error>, json: bool, out: &mut impl Write) -> Result<(), Error> {
    let own = env!("CARGO_PKG_VERSION");
    if !json {
        writeln!(out, "fdpassctl {own}").map_err(Error::Output)?;
    }
    let daemons = match daemon.and_then(|mut daemon| daemon.ask(control::Verb::Version)) {
        Ok(result) => Some(result),
        Err(connection::Error::NotRunning { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    let written = match daemons {
        _ if json => {
            let daemons = daemons.as_deref().map_or("null", RawValue::get);
            writeln!(out, r#"{{"fdpassctl":"{own}","daemon":{daemons}}}"#)
        }
        Some(result) => {
            let Version { name, version, pid } = read(&result)?;
            writeln!(out, "{} {}, pid {pid}", Escaped(&name), Escaped(&version))
        }
        None => writeln!(out, "{DAEMON}: not running"),
    };
    written.map_err(Error::Output)
}

/// What the daemon said, as what it is expected to be.
fn read<'a, T: Deserialize<'a>>(result: &'a RawValue) -> Result<T, Error> {
    serde_json::from_str(result.get()).map_err(|e| no_reply(&e).into())
}

/// The effective user, as the kernel shows it on the own process. Without /proc nobody in particular,
/// for whom there are usual places too.
fn user() -> u32 {
    std::fs::metadata("/proc/self").map_or(u32::MAX, |process| process.uid())
}

const DAEMON: &str = "fdpassd";

/// Where the daemon listens when it is not configured.
const USUAL: Address = Address::Tcp(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8080));

#[cfg(test)]
mod tests;
