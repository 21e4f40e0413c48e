//! `max-clients-per-address` counts the addresses in the headers.

use super::*;

const LIMITED: &str = r#"
    listen = [{ address = "127.0.0.1:0", proxy = "any", proxy-from = ["127.0.0.0/8"] }]
    workers.count = 2
    limits.max-clients-per-address = 3
"#;

/// A header of a client at this address, by its last byte, and with this port.
fn header_of(last: u8, port: u16) -> Vec<u8> {
    format!("PROXY TCP4 198.51.100.{last} 192.0.2.20 {port} 8080\r\n").into_bytes()
}

#[track_caller]
fn refused(client: &mut Client) {
    let fault = client.reply().value().expect_err("it is one too many");
    assert_eq!(
        fault.to_string(),
        "overloaded: there are too many connections from this address"
    );
    client.expect_end();
}

#[test]
fn clients_are_limited_by_the_address_in_their_headers() {
    let daemon = start(LIMITED);
    let address = daemon.address();
    let connected = |last, port| {
        let mut client = connect(address, &header_of(last, port));
        assert_eq!(
            whoami(&mut client)["peer"],
            format!("198.51.100.{last}:{port}")
        );
        client
    };
    let mut of_one: Vec<Client> = (1..=3).map(|port| connected(1, port)).collect();
    let _of_others: Vec<Client> = (2..=5).map(|last| connected(last, 1)).collect();
    for port in 4..=9 {
        let mut client = connect(address, &header_of(1, port));
        client.request("whoami", ());
        refused(&mut client);
    }
    let status = daemon.wait_until("six are refused", |status| status.refused_total == 6);
    assert_eq!((status.clients, status.accepted_total), (7, 13));
    assert_eq!(status.moved_total, 0);
    assert!(clients(&daemon).iter().all(|client| client.moves == 0));
    of_one.pop();
    daemon.wait_until("one has left", |status| status.clients == 6);
    of_one.push(connected(1, 9));
    of_one.iter_mut().for_each(ping);
}

/// No request of a client above the limit is executed, however many come at once.
#[test]
fn of_many_at_once_none_above_the_limit_is_served() {
    let daemon = start(LIMITED);
    let bytes = |port| [header_of(1, port), request("whoami")].concat();
    let mut all: Vec<Client> = (1..=60)
        .map(|port| connect(daemon.address(), &bytes(port)))
        .collect();
    let mut served = Vec::new();
    for mut client in all.drain(..) {
        match client.reply().value() {
            Ok(_) => served.push(client),
            Err(fault) => assert_eq!(fault.code(), "overloaded"),
        }
    }
    assert_eq!(served.len(), 3);
    assert_eq!(daemon.status().refused_total, 57);
    // Each of the three has called twice, and the others have got their replies from the master.
    served.iter_mut().for_each(ping);
    assert_eq!(daemon.status().requests_total, 6);
}

#[test]
fn connections_without_a_request_count_for_their_address() {
    let daemon = start(LIMITED);
    let idle: Vec<Client> = (1..=3)
        .map(|port| connect(daemon.address(), &header_of(1, port)))
        .collect();
    wait_for_peers(
        &daemon,
        &[1, 2, 3].map(|port| format!("198.51.100.1:{port}")),
    );
    refused(&mut connect(daemon.address(), &header_of(1, 4)));
    drop(idle);
    daemon.wait_until("they have left", |status| status.clients == 0);
    ping(&mut connect(daemon.address(), &header_of(1, 5)));
    // Those that sent nothing are not counted.
    let status = daemon.wait_until("it has left", |status| status.clients == 0);
    assert_eq!((status.accepted_total, status.refused_total), (2, 1));
}

#[test]
fn checks_are_not_limited() {
    let daemon = start(LIMITED);
    let mut checks: Vec<Client> = (0..10)
        .map(|_| connect(daemon.address(), &local()))
        .collect();
    checks.iter_mut().for_each(ping);
    let unknown: Vec<u8> = b"PROXY UNKNOWN\r\n".to_vec();
    let mut clients: Vec<Client> = (0..10)
        .map(|_| connect(daemon.address(), &unknown))
        .collect();
    clients.iter_mut().for_each(ping);
}

#[test]
fn a_limit_of_a_reload_counts_clients_that_are_there() {
    let without = LIMITED.replace("limits.max-clients-per-address = 3", "");
    let daemon = start(&without);
    let mut there: Vec<Client> = (1..=5)
        .map(|port| connect(daemon.address(), &header_of(1, port)))
        .collect();
    there.iter_mut().for_each(ping);
    daemon.reload_with(LIMITED).expect("it is valid");
    daemon.wait_for_workers();
    refused(&mut connect(daemon.address(), &header_of(1, 6)));
    there.iter_mut().for_each(ping);
    there.truncate(2);
    daemon.wait_until("three have left", |status| status.clients == 2);
    ping(&mut connect(daemon.address(), &header_of(1, 7)));
}
