//! The connected clients. They are requested page by page, so that no request keeps the daemon busy for long, and
//! sorted here.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::HashMap;
use std::io::{self, Write};

use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};

use super::args::{ClientsArguments, Sort};
use super::error::Error;
use super::figures::{grouped, in_letters, short};
use super::session::{Session, parse};
use super::style::Seen;
use super::table::{self, ADDRESS, Cell, Columns, READABLE};
use super::users::with_names;
use crate::proto::control::{ClientStatus, ClientsAfter, Cursor, Verb};
use crate::proto::names::{ClientId, WorkerId};
use crate::rpc_client::{RpcClient, no_reply};

/// Prints the clients as a table, or as one page in JSON.
pub(super) fn show(
    arguments: &ClientsArguments,
    session: &Session,
    out: &mut impl Write,
) -> Result<(), Error> {
    let mut clients = request_all(&mut session.connect()?, arguments.worker)?;
    sort_by_arguments(&mut clients, arguments);
    let total = clients.len();
    clients.truncate(arguments.most.unwrap_or(total));
    let written = match session.json {
        true => to_json(clients.iter()).and_then(|page| writeln!(out, "{}", page.get())),
        false => write_table(out, session.seen, &clients, total),
    };
    written.map_err(Error::Output)
}

/// A client, parsed and as received.
#[derive(Debug)]
pub(super) struct ClientRow {
    pub(super) status: ClientStatus,
    pub(super) raw: Box<RawValue>,
}

/// Returns all clients, in no order.
pub(super) fn request_all(
    daemon: &mut RpcClient,
    worker: Option<WorkerId>,
) -> Result<Vec<ClientRow>, Error> {
    Ok(request_pages(daemon, worker, usize::MAX)?.0)
}

/// Returns the clients of at most this number of pages, in no order, and whether these are all. A client that moves
/// between two requests is on two pages; the later page counts.
pub(super) fn request_pages(
    daemon: &mut RpcClient,
    worker: Option<WorkerId>,
    most: usize,
) -> Result<(Vec<ClientRow>, bool), Error> {
    /// [`control::Clients`](crate::proto::control::Clients), with each client as received.
    #[derive(Deserialize)]
    struct ClientsPage<'a> {
        #[serde(borrow)]
        clients: Vec<&'a RawValue>,
        next: Option<Cursor>,
    }
    let mut found: HashMap<ClientId, ClientRow> = HashMap::new();
    let mut after = None;
    for _ in 0..most {
        let result = daemon.ask_with(Verb::Clients, &ClientsAfter { worker, after })?;
        let page: ClientsPage = parse(&result)?;
        for raw in page.clients {
            let status: ClientStatus = parse(raw)?;
            found.insert(
                status.id,
                ClientRow {
                    status,
                    raw: raw.to_owned(),
                },
            );
        }
        match (after, page.next) {
            (_, None) => return Ok((found.into_values().collect(), true)),
            (Some(after), Some(next)) if next <= after => {
                return Err(no_reply(&"its pages repeat").into());
            }
            (_, next) => after = next,
        }
    }
    Ok((found.into_values().collect(), false))
}

fn sort_by_arguments(clients: &mut [ClientRow], arguments: &ClientsArguments) {
    clients.sort_by(|a, b| compare(arguments, a, b).then_with(|| compare_arrival(arguments, a, b)));
}

/// Orders two clients by the figure that the arguments name: the largest first, or last if they reverse the order.
pub(super) fn compare(arguments: &ClientsArguments, a: &ClientRow, b: &ClientRow) -> Ordering {
    directed(arguments, order(arguments.sort, &a.status, &b.status))
}

/// Orders two clients of one daemon by their numbers, which is the order of their arrival.
pub(super) fn compare_arrival(
    arguments: &ClientsArguments,
    a: &ClientRow,
    b: &ClientRow,
) -> Ordering {
    directed(arguments, a.status.id.cmp(&b.status.id))
}

fn directed(arguments: &ClientsArguments, order: Ordering) -> Ordering {
    match arguments.reverse {
        true => order.reverse(),
        false => order,
    }
}

fn order(sort: Option<Sort>, a: &ClientStatus, b: &ClientStatus) -> Ordering {
    match sort {
        None => Ordering::Equal,
        Some(Sort::Requests) => b.requests.cmp(&a.requests),
        Some(Sort::Age) => b.age_seconds.total_cmp(&a.age_seconds),
        Some(Sort::Idle) => b.idle_seconds.total_cmp(&a.idle_seconds),
        Some(Sort::Bytes) => b.bytes.cmp(&a.bytes),
    }
}

/// Returns clients as one page.
pub(super) fn to_json<'a>(
    clients: impl Iterator<Item = &'a ClientRow>,
) -> io::Result<Box<RawValue>> {
    #[derive(Serialize)]
    struct WholePage<'a> {
        clients: Vec<&'a RawValue>,
        next: Option<Cursor>,
    }
    let clients = clients.map(|client| &*client.raw).collect();
    Ok(to_raw_value(&WholePage {
        clients,
        next: None,
    })?)
}

/// Writes the table. The column of listeners is shortened first, and left out before addresses of clients become
/// unreadable, because it has few different values.
fn write_table(
    to: &mut impl Write,
    seen: Seen,
    clients: &[ClientRow],
    total: usize,
) -> io::Result<()> {
    let mut rows: Vec<_> = clients.iter().map(|client| row(&client.status)).collect();
    if seen.out {
        for (row, client) in rows.iter_mut().zip(clients) {
            row[1] = Cell::foreign(&with_names(&peer(&client.status)), MAX_PEER_LEN);
        }
    }
    table::write(to, seen.paint(), COLUMNS, &rows)?;
    write_total(to, clients.len(), total)
}

/// Writes how many clients there are, if not all of them are shown.
pub(super) fn write_total(to: &mut impl Write, shown: usize, total: usize) -> io::Result<()> {
    match total {
        0 => writeln!(to, "no clients"),
        all if all > shown => {
            let [shown, all] = [shown, all].map(|count| grouped(count as u64));
            writeln!(to, "{shown} of {all} clients")
        }
        _ => Ok(()),
    }
}

/// Returns the address of a client, and that of the load balancer that it came through.
pub(super) fn peer(client: &ClientStatus) -> Cow<'_, str> {
    match &client.via {
        None => Cow::Borrowed(&client.peer),
        Some(via) => Cow::Owned(format!("{} via {via}", client.peer)),
    }
}

pub(super) fn row(client: &ClientStatus) -> [Cell; 10] {
    [
        client.id.to_string().into(),
        Cell::foreign(&peer(client), MAX_PEER_LEN),
        Cell::foreign(
            client.listener.as_deref().unwrap_or_default(),
            MAX_LISTENER_LEN,
        ),
        client
            .worker
            .map(|worker| worker.to_string())
            .unwrap_or_default()
            .into(),
        in_letters(client.age_seconds).into(),
        in_letters(client.idle_seconds).into(),
        short(client.requests).into(),
        short(client.moves.into()).into(),
        short(client.bytes).into(),
        Cell::foreign(client.method.as_deref().unwrap_or_default(), MAX_METHOD_LEN),
    ]
}

const COLUMNS: Columns<10> = Columns {
    header: [
        "ID", "PEER", "LISTENER", "WORKER", "AGE", "IDLE", "REQUESTS", "MOVES", "BYTES", "METHOD",
    ],
    words: &[1, 2, 9],
    gives_way: &[(2, READABLE), (1, ADDRESS), (9, READABLE)],
    goes: &[7, 8, 2],
    optional: Some(9),
};

/// The longest name of a method that is shown in full.
const MAX_METHOD_LEN: usize = 24;
/// The longest address with its port, and another one.
const MAX_PEER_LEN: usize = 100;
/// The longest path of a socket, unless something in it is escaped.
const MAX_LISTENER_LEN: usize = 112;

#[cfg(test)]
mod tests {
    use std::slice;

    use super::*;
    use crate::proto::control::ClientState;

    fn client(id: u64, requests: u64, age_seconds: f64, peer: &str) -> ClientStatus {
        ClientStatus {
            id: ClientId(id),
            peer: peer.to_owned(),
            via: None,
            listener: Some("127.0.0.1:8080".to_owned()),
            worker: Some(WorkerId(3)),
            state: Some(ClientState::Idle),
            method: None,
            age_seconds,
            idle_seconds: 0.5,
            requests,
            moves: 0,
            bytes: 0,
            wants_goaway: false,
            goaway: None,
        }
    }

    fn client_row(status: &ClientStatus) -> ClientRow {
        ClientRow {
            status: status.clone(),
            raw: to_raw_value(status).expect("JSON"),
        }
    }

    fn table(clients: &[ClientStatus], total: usize) -> String {
        table_seen(clients, total, Seen::default())
    }

    fn table_seen(clients: &[ClientStatus], total: usize, seen: Seen) -> String {
        let clients: Vec<_> = clients.iter().map(client_row).collect();
        let mut out = Vec::new();
        write_table(&mut out, seen, &clients, total).expect("a Vec takes everything");
        String::from_utf8(out).expect("UTF-8")
    }

    #[test]
    fn a_table_fits_80_columns_on_a_terminal_and_is_escaped() {
        let waiting = ClientStatus {
            worker: None,
            listener: None,
            idle_seconds: 90_000.0,
            age_seconds: 273_600.0,
            moves: 12,
            bytes: 1_234_567,
            ..client(98_765, 12_345_678, 0.0, "pid 4711 (uid 1000)")
        };
        let hostile = ClientStatus {
            listener: Some("unix:/run/\n/rpc.sock".to_owned()),
            ..client(7, 1, 3.0, "\x1b[2J\n\u{202e}")
        };
        let shown = table(
            &[client(1, 1234, 754.0, "127.0.0.1:50412"), waiting.clone()],
            20_000,
        );
        let expected = "   \
   ID PEER                LISTENER       WORKER    AGE IDLE REQUESTS MOVES BYTES
    1 127.0.0.1:50412     127.0.0.1:8080      3 12m34s   0s    1,234     0     0
98765 pid 4711 (uid 1000)                         3d4h 1d1h      12M    12  1.2M
2 of 20,000 clients
";
        assert_eq!(shown, expected);
        assert!(shown.lines().all(|line| line.chars().count() <= 80));
        let shown = table(&[hostile], 1);
        let row = shown.lines().nth(1).expect("a row");
        assert!(
            row.starts_with(r" 7 \x1b[2J\n\u{202e} unix:/run/\n/rpc.sock "),
            "{row}"
        );
        assert_eq!(shown.lines().count(), 2);
        let unix = ClientStatus {
            listener: Some("unix:/run/fdpassd/rpc.sock".to_owned()),
            ..waiting
        };
        let seen = Seen::new(true, false, |_| None);
        let shown = table_seen(slice::from_ref(&unix), 1, seen);
        assert!(
            shown.lines().all(|line| line.chars().count() <= 80),
            "{shown}"
        );
        assert!(
            shown.contains("\n98765 pid 4711 (uid 1000) unix:/r…rpc.sock "),
            "{shown}"
        );
        assert!(
            table(&[unix], 1).contains("\n98765 pid 4711 (uid 1000) unix:/run/fdpassd/rpc.sock "),
            "in full elsewhere"
        );
        let behind = ClientStatus {
            via: Some("192.0.2.20:5000".to_owned()),
            ..client(7, 1, 3.0, "192.0.2.10:38292")
        };
        assert!(
            table(&[behind], 1).contains(" 7 192.0.2.10:38292 via 192.0.2.20:5000 127.0.0.1:8080 ")
        );
        assert!(table(&[], 0).ends_with("\nno clients\n"));
        let away = ClientStatus {
            method: Some("price\x1b".to_owned()),
            ..client(7, 1, 3.0, "")
        };
        let shown = table(&[client(1, 0, 0.0, ""), away], 2);
        assert!(
            shown
                .lines()
                .next()
                .expect("a header")
                .ends_with(" BYTES METHOD")
        );
        assert!(shown.ends_with(" 0 price\\x1b\n"), "{shown}");
    }

    #[test]
    fn the_largest_come_first_and_equals_in_order_of_arrival() {
        let clients = [
            client(3, 5, f64::MAX, ""),
            client(2, 9, 1.0, ""),
            client(1, 5, 2.0, ""),
        ];
        let sorted = |sort| {
            let arguments = ClientsArguments {
                worker: None,
                sort,
                reverse: false,
                most: None,
            };
            let mut clients: Vec<ClientRow> = clients.iter().map(client_row).collect();
            sort_by_arguments(&mut clients, &arguments);
            let ids = clients.iter().map(|client| client.status.id.0);
            ids.collect::<Vec<u64>>()
        };
        assert_eq!(sorted(None), [1, 2, 3]);
        assert_eq!(sorted(Some(Sort::Requests)), [2, 1, 3]);
        assert_eq!(sorted(Some(Sort::Age)), [3, 1, 2]);
        assert_eq!(sorted(Some(Sort::Idle)), [1, 2, 3]);
        assert_eq!(sorted(Some(Sort::Bytes)), [1, 2, 3]);
    }
}
