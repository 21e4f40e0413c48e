//! The changes that keys make, each with the question before it.

use std::time::Instant;

use crate::ctl::args::ChangeVerb;
use crate::ctl::args::drain::DrainArguments;
use crate::ctl::clients::peer;
use crate::ctl::figures::counted;
use crate::ctl::table::shortened;
use crate::proto::control::{ClientStatus, Recycle, Status};
use crate::proto::text::Escaped;

use super::workers::WorkerRow;

/// A change that awaits its confirmation. It names its subject by an id that this run of the daemon gives to no other.
#[derive(Debug)]
pub(crate) struct Confirmation {
    pub(crate) change: ChangeVerb,
    pub(crate) question: String,
    /// Whether the question is on the screen.
    pub(crate) is_drawn: bool,
    /// From when on keys answer it: the time at which it was drawn. Keys before that may be the rest of a pasted text.
    pub(crate) answered_from: Option<Instant>,
    /// The activity of the daemon after it was confirmed.
    pub(crate) under_way: String,
}

/// Returns the question whether to replace a worker.
///
/// # Errors
/// In a sentence, that there is none.
pub(crate) fn of_recycling(row: &WorkerRow) -> Result<Confirmation, &'static str> {
    let (Some(id), Some(pid)) = (row.id, row.pid) else {
        return Err("no worker has this seat at the moment");
    };
    let clients = counted(row.clients, "client");
    Ok(Confirmation {
        change: ChangeVerb::Recycle {
            which: Recycle { worker: Some(id) },
        },
        question: format!("(y/n) recycle worker {id} (pid {pid})? {clients} will move"),
        is_drawn: false,
        answered_from: None,
        under_way: format!("replacing worker {id}"),
    })
}

/// Returns the question whether to close a client.
pub(crate) fn of_kick(client: &ClientStatus) -> Confirmation {
    let address = Escaped(peer(client)).to_string();
    // With "(y/n)" and the consequence, the address of one client fits into 80 columns.
    let address = shortened(&address, MAX_ADDRESS_LEN);
    Confirmation {
        change: ChangeVerb::Kick { client: client.id },
        question: format!(
            "(y/n) kick client {} ({address})? It will be closed",
            client.id
        ),
        is_drawn: false,
        answered_from: None,
        under_way: format!("closing client {}", client.id),
    }
}

/// Returns the question whether to drain the daemon, or to end its drain.
pub(crate) fn of_drain(status: &Status) -> Confirmation {
    let name = Escaped(&status.name).to_string();
    let is_drained = status.drained || status.drain.is_some();
    match is_drained {
        true => Confirmation {
            change: ChangeVerb::Undrain,
            question: format!("(y/n) undrain {name}? It will accept new clients again"),
            is_drawn: false,
            answered_from: None,
            under_way: "ending the drain".to_owned(),
        },
        false => {
            let stay = if status.clients == 1 { "stays" } else { "stay" };
            let clients = counted(status.clients, "client");
            Confirmation {
                change: ChangeVerb::Drain(DrainArguments::default()),
                question: format!(
                    "(y/n) drain {name}? New clients will be refused, {clients} {stay}"
                ),
                is_drawn: false,
                answered_from: None,
                under_way: "draining".to_owned(),
            }
        }
    }
}

/// The longest address in a question that is shown in full: an IPv6 address with its port is shorter.
const MAX_ADDRESS_LEN: usize = 48;
