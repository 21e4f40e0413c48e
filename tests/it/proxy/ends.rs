//! The polite end of clients behind a balancer.

use super::*;
use crate::common::metrics::samples;
use crate::common::program::{Program, ctl, ctl_command};
use crate::goaway::{expect_goaway, ids, opt_in};

#[test]
fn a_kick_names_the_client_by_the_address_in_its_header() {
    let daemon = start(BOTH);
    for (address, (header, peer)) in daemon.addresses().iter().zip([client_v2(1), client_v1(2)]) {
        let mut client = connect(address, &header);
        opt_in(&mut client);
        let id = ids(&daemon)[0].to_string();
        let said = ctl(&daemon, &["kick", &id]).out;
        assert!(said.contains(&peer), "{said}");
        expect_goaway(&mut client, 1, "kicked");
        daemon.wait_until("it is closed", |status| status.clients == 0);
        // A client that has not asked for a goaway is closed at once, and counts as one that was kicked too.
        let mut other = connect(address, &header);
        ping(&mut other);
        let id = ids(&daemon)[0].to_string();
        let said = ctl(&daemon, &["kick", &id]).out;
        assert!(said.contains(&peer), "{said}");
        other.expect_end();
        daemon.wait_until("it is closed", |status| status.clients == 0);
    }
    let samples = samples(&daemon);
    assert_eq!(
        samples["fdpassd_clients_closed_total{reason=\"kicked\"}"],
        4.0
    );
    assert_eq!(daemon.status().accepted_total, 4);
}

#[test]
fn a_drain_moves_clients_behind_a_balancer_away() {
    let daemon = start(BOTH);
    let address = &daemon.addresses()[0];
    let (header, _) = client_v2(1);
    let mut moved = connect(address, &header);
    opt_in(&mut moved);
    // The next has sent half of its header, so it cannot have asked for anything.
    let mut half = connect(address, &header[..header.len() / 2]);
    let drain = ["drain", "--move", "0s", "--wait"];
    let drain = Program::start(&mut ctl_command(&daemon, &drain));
    expect_goaway(&mut moved, 1, "draining");
    half.send([&header[header.len() / 2..], &request("ping")].concat());
    assert!(half.reply().value().is_ok());
    drop(half);
    assert_eq!(drain.finish().code, Some(0));
}
