//! The clients of several hosts in one table, sorted together.

use std::io::{self, Write};

use super::Fleet;
use super::report::{conclude, write_error, write_json};
use crate::ctl::args::ClientsArguments;
use crate::ctl::clients::{self, ClientRow, row, write_total};
use crate::ctl::error::Error;
use crate::ctl::table::{self, ADDRESS, Cell, Columns, READABLE};
use crate::proto::control::ClientStatus;
use crate::proto::text::Escaped;

/// The clients of a host, or the error.
type HostClients = Result<Vec<ClientRow>, Error>;

/// Prints the clients of all hosts.
pub(super) fn show(
    arguments: &ClientsArguments,
    fleet: &Fleet<'_>,
    out: &mut impl Write,
) -> Result<(), Error> {
    let outcomes =
        fleet.on_all(|_, session| clients::request_all(&mut session.connect()?, arguments.worker));
    let mut found = sorted(arguments, &outcomes);
    let total = found.len();
    found.truncate(arguments.most.unwrap_or(total));
    let hosts = fleet.names().zip(outcomes.iter().map(Some));
    let page = |number, _: &Vec<ClientRow>| {
        let own = found.iter().filter(|(of, _)| *of == number);
        clients::to_json(own.map(|(_, client)| *client))
    };
    let written = match fleet.session.json {
        true => write_json(out, hosts, page),
        false => write_table(out, fleet, &found)
            .and_then(|()| write_total(out, found.len(), total))
            .and_then(|()| write_errors(out, fleet, &outcomes)),
    };
    written.map_err(Error::Output)?;
    conclude(outcomes.iter().map(Some))
}

/// Returns all clients, each with the number of its host. Equal ones are in the order of the hosts, and those of one host
/// in the order of their arrival.
fn sorted<'a>(
    arguments: &ClientsArguments,
    outcomes: &'a [HostClients],
) -> Vec<(usize, &'a ClientRow)> {
    let mut found: Vec<(usize, &ClientRow)> = Vec::new();
    for (number, outcome) in outcomes.iter().enumerate() {
        found.extend(outcome.iter().flatten().map(|client| (number, client)));
    }
    found.sort_by(|(host_of_a, a), (host_of_b, b)| {
        clients::compare(arguments, a, b)
            .then(host_of_a.cmp(host_of_b))
            .then_with(|| clients::compare_arrival(arguments, a, b))
    });
    found
}

fn write_errors(
    out: &mut impl Write,
    fleet: &Fleet<'_>,
    outcomes: &[HostClients],
) -> io::Result<()> {
    let mut hosts = fleet.names().zip(outcomes);
    hosts.try_for_each(|(host, outcome)| match outcome {
        Ok(_) => Ok(()),
        Err(error) => write_error(out, host, error),
    })
}

fn write_table(
    out: &mut impl Write,
    fleet: &Fleet<'_>,
    found: &[(usize, &ClientRow)],
) -> io::Result<()> {
    let with_host = |(number, client): &(usize, &ClientRow)| {
        row_of_host(&fleet.hosts[*number].name, &client.status)
    };
    let rows: Vec<_> = found.iter().map(with_host).collect();
    table::write(out, fleet.session.seen.paint(), COLUMNS, &rows)
}

fn row_of_host(host: &str, client: &ClientStatus) -> [Cell; 11] {
    let host = Cell::from(Escaped(host).to_string());
    let [
        id,
        peer,
        listener,
        worker,
        age,
        idle,
        requests,
        moves,
        bytes,
        method,
    ] = row(client);
    [
        host, id, peer, listener, worker, age, idle, requests, moves, bytes, method,
    ]
}

const COLUMNS: Columns<11> = Columns {
    header: [
        "HOST", "ID", "PEER", "LISTENER", "WORKER", "AGE", "IDLE", "REQUESTS", "MOVES", "BYTES",
        "METHOD",
    ],
    words: &[0, 2, 3, 10],
    gives_way: &[(3, READABLE), (2, ADDRESS), (0, READABLE), (10, READABLE)],
    goes: &[8, 9, 3],
    optional: Some(10),
};

#[cfg(test)]
mod tests {
    use serde_json::value::RawValue;

    use super::*;
    use crate::ctl::args::Sort;

    fn host(clients: &[(u64, u64)]) -> HostClients {
        let client = |(id, requests): &(u64, u64)| {
            let text = format!(
                r#"{{"id":{id},"peer":"","listener":null,"worker":null,"age_seconds":0,"idle_seconds":0,"requests":{requests},"moves":0,"bytes":0}}"#
            );
            ClientRow {
                status: serde_json::from_str(&text).expect("a client"),
                raw: RawValue::from_string(text).expect("JSON"),
            }
        };
        Ok(clients.iter().map(client).collect())
    }

    #[test]
    fn equal_clients_are_in_the_order_of_the_hosts() {
        let outcomes = [host(&[(9, 5), (8, 5), (7, 6)]), host(&[(1, 5), (2, 7)])];
        let order = |sort, reverse| -> Vec<(usize, u64)> {
            let arguments = ClientsArguments {
                worker: None,
                sort,
                reverse,
                most: None,
            };
            let found = sorted(&arguments, &outcomes);
            let number = |(host, client): &(usize, &ClientRow)| (*host, client.status.id.0);
            found.iter().map(number).collect()
        };
        assert_eq!(
            order(Some(Sort::Requests), false),
            [(1, 2), (0, 7), (0, 8), (0, 9), (1, 1)]
        );
        assert_eq!(
            order(Some(Sort::Requests), true),
            [(0, 9), (0, 8), (1, 1), (0, 7), (1, 2)]
        );
        assert_eq!(order(None, false), [(0, 7), (0, 8), (0, 9), (1, 1), (1, 2)]);
    }
}
