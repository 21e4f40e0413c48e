//! The clients of several hosts in one table, sorted together.

use std::io::{self, Write};
use std::{array, iter};

use super::Fleet;
use super::report::{HostReport, conclude, write_error};
use crate::ctl::args::ClientsArguments;
use crate::ctl::clients::{
    self, ClientRow, WITH_METHODS, WITHOUT_METHODS, row, row_with_method, write_total,
};
use crate::ctl::error::Error;
use crate::ctl::table::{self, Cell, Columns};
use crate::proto::text::Escaped;

/// Prints the clients of all hosts.
pub(super) fn show(
    arguments: &ClientsArguments,
    fleet: &Fleet<'_>,
    out: &mut impl Write,
) -> Result<(), Error> {
    let outcomes =
        fleet.on_all(|_, session| clients::request_all(&mut session.connect()?, arguments.worker));
    let mut found: Vec<(usize, &ClientRow)> = Vec::new();
    for (number, outcome) in outcomes.iter().enumerate() {
        found.extend(outcome.iter().flatten().map(|client| (number, client)));
    }
    // Equal ones stay in the order of the hosts.
    found.sort_by(|(_, a), (_, b)| clients::compare(arguments, a, b));
    if arguments.sort.is_none() {
        found.sort_by_key(|(number, _)| *number);
    }
    let total = found.len();
    found.truncate(arguments.most.unwrap_or(total));
    let written = match fleet.session.json {
        true => write_json(out, fleet, &outcomes, &found),
        false => write_table(out, fleet, &found)
            .and_then(|()| write_total(out, found.len(), total))
            .and_then(|()| write_errors(out, fleet, &outcomes)),
    };
    written.map_err(Error::Output)?;
    conclude(outcomes.iter().map(Some))
}

fn write_errors(
    out: &mut impl Write,
    fleet: &Fleet<'_>,
    outcomes: &[Result<Vec<ClientRow>, Error>],
) -> io::Result<()> {
    let mut hosts = fleet.names().zip(outcomes);
    hosts.try_for_each(|(host, outcome)| match outcome {
        Ok(_) => Ok(()),
        Err(error) => write_error(out, host, error),
    })
}

fn write_json(
    out: &mut impl Write,
    fleet: &Fleet<'_>,
    outcomes: &[Result<Vec<ClientRow>, Error>],
    found: &[(usize, &ClientRow)],
) -> io::Result<()> {
    let mut hosts = fleet.names().zip(outcomes).enumerate();
    hosts.try_for_each(|(number, (host, outcome))| {
        let own = found.iter().filter(|(of, _)| *of == number);
        let page = clients::to_json(own.map(|(_, client)| *client))?;
        let outcome = outcome.as_ref().map(|_| &*page);
        HostReport::new(host, Some(outcome)).write(out)
    })
}

fn write_table(
    out: &mut impl Write,
    fleet: &Fleet<'_>,
    found: &[(usize, &ClientRow)],
) -> io::Result<()> {
    let host = |number: &usize| Cell::from(Escaped(&fleet.hosts[*number].name).to_string());
    let seen = fleet.session.seen;
    if found
        .iter()
        .any(|(_, client)| client.status.method.is_some())
    {
        let with_host = |(number, client): &(usize, &ClientRow)| -> [Cell; 11] {
            behind(host(number), row_with_method(&client.status))
        };
        let rows: Vec<_> = found.iter().map(with_host).collect();
        table::write(
            out,
            seen.paint(),
            columns(WITH_METHODS, &[0, 2, 3, 10]),
            &rows,
        )
    } else {
        let with_host = |(number, client): &(usize, &ClientRow)| -> [Cell; 10] {
            behind(host(number), row(&client.status))
        };
        let rows: Vec<_> = found.iter().map(with_host).collect();
        table::write(
            out,
            seen.paint(),
            columns(WITHOUT_METHODS, &[0, 2, 3]),
            &rows,
        )
    }
}

/// Returns the columns of one host's table behind a column of hosts.
fn columns<'a, const N: usize, const M: usize>(
    of_host: Columns<'a, N>,
    words: &'a [usize],
) -> Columns<'a, M> {
    Columns {
        header: behind("HOST", of_host.header),
        words,
        gives_way: None,
    }
}

/// Puts an element before others; `M` is one more than `N`.
fn behind<T: Default, const N: usize, const M: usize>(first: T, rest: [T; N]) -> [T; M] {
    let mut all = iter::once(first).chain(rest);
    array::from_fn(|_| all.next().unwrap_or_default())
}
