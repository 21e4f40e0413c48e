//! `kick` of all clients from an address, or that have been idle for a time: those of one list, one after the other.

use std::io::Write;

use serde_json::value::RawValue;

use super::args::kick::KickArguments;
use super::change::kick_in_words;
use super::clients::request_all;
use super::error::Error;
use super::figures::counted;
use super::session::Session;
use crate::proto::control::{ClientState, ClientStatus, Kick, RefusalCode, Verb};
use crate::proto::names::ClientId;
use crate::rpc_client;

/// Closes the clients that the arguments select, and prints each of them and how many there were.
pub(super) fn perform(
    arguments: &KickArguments,
    session: &Session,
    out: &mut impl Write,
) -> Result<(), Error> {
    if arguments.address.is_none() && arguments.idle.is_none() {
        let why = "kick needs the id of a client, --address or --idle";
        return Err(Error::Usage(why.to_owned()));
    }
    let mut daemon = session.connect()?;
    let clients = request_all(&mut daemon, None)?;
    let clients = clients.iter().map(|client| &client.status);
    let mut wanted: Vec<ClientId> = clients
        .filter(|client| is_wanted(arguments, client))
        .map(|client| client.id)
        .collect();
    wanted.sort_unstable();
    let mut kicked: Vec<Box<RawValue>> = Vec::new();
    for client in wanted {
        match daemon.ask_with(Verb::Kick, &Kick { client }) {
            Ok(result) => {
                if !session.json {
                    writeln!(out, "{}", kick_in_words(&result)?).map_err(Error::Output)?;
                }
                kicked.push(result);
            }
            // It has left since.
            Err(rpc_client::Error::Refused { code, .. })
                if code == RefusalCode::Refused.as_str() => {}
            Err(error) => return Err(error.into()),
        }
    }
    let written = match session.json {
        true => {
            let kicked: Vec<&str> = kicked.iter().map(|result| result.get()).collect();
            writeln!(out, r#"{{"kicked":[{}]}}"#, kicked.join(","))
        }
        false => writeln!(out, "{} kicked", counted(kicked.len() as u64, "client")),
    };
    written.map_err(Error::Output)
}

/// Returns whether a client is selected by all arguments that are given.
fn is_wanted(arguments: &KickArguments, client: &ClientStatus) -> bool {
    let is_idle = client.state.is_none_or(|state| state == ClientState::Idle);
    arguments
        .address
        .is_none_or(|address| address.is_of(&client.peer))
        && arguments
            .idle
            .is_none_or(|idle| is_idle && client.idle_seconds >= idle.as_secs_f64())
}
