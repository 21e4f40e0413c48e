//! Headers as balancers send them, and which connections are clients.

use fdpassd::testing::Client;

use super::*;
use crate::common::fifo::Fifo;
use crate::common::program::ctl;

#[test]
fn captured_headers_have_the_addresses_of_their_clients() {
    let daemon = start(BOTH);
    let tcp = &daemon.addresses()[0];
    for (name, source, header) in samples() {
        for address in daemon.addresses() {
            let mut client = open(address);
            client.send([&header[..], &request("whoami")].concat());
            let caller = client.reply().value().expect(&name);
            let via = caller["via"].as_str();
            if source == "local" {
                assert_eq!(via, None, "{name}");
                assert_ne!(caller["peer"], source, "{name}");
                continue;
            }
            assert_eq!(caller["peer"], source, "{name}");
            let via = via.unwrap_or_else(|| panic!("{name}"));
            let kind = if address == tcp { "127.0.0.1:" } else { "pid " };
            assert!(via.starts_with(kind), "{name}: {via}");
        }
    }
}

#[test]
fn headers_split_at_every_byte_are_read() {
    let daemon = start(BOTH);
    let address = &daemon.addresses()[0];
    for (name, source, header) in samples() {
        // Each part is a segment of its own; the frame follows within the last one.
        let mut client = open(address);
        for byte in &header[..header.len() - 1] {
            client.send([*byte]);
        }
        client.send([&header[header.len() - 1..], &request("whoami")].concat());
        let caller = client.reply().value().expect(&name);
        assert_eq!(
            caller["peer"] == *source,
            source != "local",
            "{name}: {caller}"
        );
    }
    // The worker reads what has arrived between the parts.
    let (header, peer) = client_v2(1);
    for at in 1..header.len() {
        let mut client = connect(address, &header[..at]);
        eventually("the part is parked", || {
            clients(&daemon)
                .iter()
                .any(|client| client.bytes == at as u64)
                .then_some(())
        });
        client.send(&header[at..]);
        assert_eq!(whoami(&mut client)["peer"], *peer, "{at}");
        drop(client);
        daemon.wait_until("it has left", |status| status.clients == 0);
    }
}

#[test]
fn addresses_are_shown_with_the_balancer() {
    let daemon = start(&format!("{BOTH}\nlog.level = \"debug\""));
    let [tcp, unix] = daemon.addresses() else {
        panic!("there are two listeners")
    };
    let ((one, first), (other, second)) = (client_v2(1), client_v1(2));
    let (mut by_tcp, mut by_unix) = (connect(tcp, &one), connect(unix, &other));
    ping(&mut by_tcp);
    ping(&mut by_unix);
    let shown = wait_for_peers(&daemon, &[first.clone(), second.clone()]);
    for client in shown {
        let via = client.via.expect("it came through the balancer");
        let kind = if client.peer == first {
            "127.0.0.1:"
        } else {
            "pid "
        };
        assert!(via.starts_with(kind), "{via}");
        assert_eq!((client.requests, client.moves), (1, 0));
    }
    let table = ctl(&daemon, &["clients"]).out;
    assert!(
        table.contains(&format!(" {first} via 127.0.0.1:")),
        "{table}"
    );
    let status = ctl(&daemon, &["status"]).out;
    assert!(status.contains("proxy any"), "{status}");
    daemon.wait_for_log(&format!("({first} via 127.0.0.1:"));
    drop((by_tcp, by_unix));
    daemon.wait_until("both have left", |status| status.clients == 0);
    daemon.wait_until("both are counted", |status| status.accepted_total == 2);
    let accepted: Vec<u64> = daemon
        .status()
        .listeners
        .iter()
        .map(|it| it.accepted_total)
        .collect();
    assert_eq!(accepted, [1, 1]);
}

/// The header and the request are one segment, so the worker reports the address only after the request.
#[test]
fn the_address_of_a_client_is_shown_while_it_executes() {
    let daemon = start(&format!("{BOTH}\nlimits.stall-timeout = \"1s\""));
    for (address, (header, peer)) in daemon.addresses().iter().zip([client_v2(1), client_v1(2)]) {
        let mut fifo = Fifo::new(daemon.directory());
        let mut client = open(address);
        let request = json!({ "in": "read_line", "params": fifo.path() });
        let request = crate::common::frame(&request.to_string());
        client.send([&header[..], &request].concat());
        let executing = |client: &ClientStatus| client.method.is_some();
        let shown = eventually("the request executes", || {
            clients(&daemon).into_iter().find(executing)
        });
        assert_eq!(shown.peer, peer);
        assert!(shown.via.is_some());
        daemon.wait_for_log(&format!("of client {} ({peer} via ", shown.id));
        let said = ctl(&daemon, &["kick", &shown.id.to_string()]).out;
        assert!(said.contains(&peer), "{said}");
        fifo.let_go();
        daemon.wait_until("it is closed", |status| status.clients == 0);
    }
}

#[test]
fn a_client_without_an_address_keeps_the_balancers() {
    let daemon = start(BOTH);
    for header in [
        b"PROXY UNKNOWN\r\n".to_vec(),
        binary(0x21, 0, &[]),
        binary(0x21, 0x31, &[7; 216]),
    ] {
        let mut client = connect(&daemon.addresses()[0], &header);
        let caller = whoami(&mut client);
        assert_eq!(caller["via"], Value::Null);
        assert!(
            caller["peer"]
                .as_str()
                .is_some_and(|peer| peer.starts_with("127.0.0.1:"))
        );
    }
    daemon.wait_until("all are counted", |status| status.accepted_total == 3);
}

#[test]
fn checks_are_no_clients_in_counters_and_log() {
    let daemon = start(&format!("{BOTH}\nlog.level = \"debug\""));
    let mut expected = 0.0;
    for address in daemon.addresses() {
        // Only a connection; a local one; one with a request; and a header alone.
        drop(Client::connect(address));
        drop(connect(address, &local()));
        ping(&mut connect(address, &local()));
        drop(connect(address, &client_v2(9).0));
        let mut half_closed = connect(address, &client_v1(9).0);
        half_closed.finish();
        half_closed.expect_end();
        expected += 5.0;
        wait_for_without_client(&daemon, "check", expected);
    }
    daemon.wait_until("all are gone", |status| status.clients == 0);
    let samples = crate::common::metrics::samples(&daemon);
    assert_eq!(samples["fdpassd_clients_accepted_total"], 0.0);
    assert_eq!(
        crate::common::metrics::sum(&samples, "fdpassd_clients_closed_total"),
        0.0
    );
    assert_eq!(
        crate::common::metrics::sum(&samples, "fdpassd_listener_accepted_total"),
        0.0
    );
    let log = daemon.stderr();
    assert!(!log.contains("client "), "{log}");
    assert!(!log.to_lowercase().contains("warn"), "{log}");

    // Those that follow are clients.
    ping(&mut connect(&daemon.addresses()[0], &client_v2(1).0));
    daemon.wait_until("it is counted", |status| status.accepted_total == 1);
    daemon.wait_for_log(") accepted");
}
