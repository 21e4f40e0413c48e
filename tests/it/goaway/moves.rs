//! `drain --move`: clients that have asked for it get a goaway, spread over a period.

use std::time::{Duration, Instant};

use fdpassd::proto::control::DrainMode;
use fdpassd::testing::{Client, eventually};
use serde_json::json;

use super::{BOTH, expect_closed, expect_goaway, ids, kick, opt_in, opted_in};
use crate::common::faulty::{self, Execution};
use crate::common::program::{Program, ctl, ctl_command};
use crate::common::{let_pass, ping_all, start};

#[test]
fn clients_that_have_asked_leave_and_others_stay() {
    let daemon = start(&format!("{BOTH}workers.count = 2\n"));
    daemon.wait_for_workers();
    let mut told: Vec<Client> = (0..20)
        .map(|number| opted_in(&daemon.addresses()[number % 2]))
        .collect();
    let mut others: Vec<Client> = daemon.addresses().iter().map(Client::connect).collect();
    ping_all(&mut others);
    let said = ctl(&daemon, &["drain", "--move", "0"]);
    let sentence = "new clients are refused; 22 clients are still connected; \
                    those that want a goaway get it\n";
    assert_eq!((said.code, said.out.as_str()), (Some(0), sentence));
    for client in &mut told {
        expect_goaway(client, 1, "draining");
    }
    drop(told);
    daemon.wait_until("they have left", |status| status.clients == 2);
    expect_closed(&daemon, "goaway", 20);
    ping_all(&mut others);
    // One that asks later gets it soon.
    opt_in(&mut others[0]);
    expect_goaway(&mut others[0], 3, "draining");
    assert_eq!(others[1].call("ping", 1), Ok(json!(1)));
    let status = daemon.status();
    let drain = status.drain.expect("a drain is under way");
    assert_eq!((drain.mode, drain.over), (DrainMode::Refuse, Some(0.0)));
}

#[test]
fn clients_get_their_goaways_one_after_the_other() {
    let daemon = start(&format!("{BOTH}workers.count = 2\n"));
    daemon.wait_for_workers();
    let clients: Vec<Client> = (0..40)
        .map(|number| opted_in(&daemon.addresses()[number % 2]))
        .collect();
    let begin = Instant::now();
    let said = ctl(&daemon, &["drain", "--move", "3s"]);
    assert!(said.out.contains("get it within 3s"), "{}", said.out);
    let mut left = clients;
    let mut times = Vec::new();
    eventually("all are told", || {
        left.retain_mut(|client| {
            let is_told = client.has_something();
            if is_told {
                times.push(begin.elapsed());
                expect_goaway(client, 1, "draining");
            }
            !is_told
        });
        left.is_empty().then_some(())
    });
    // On a busy machine they may come later, and never sooner.
    let early = |time: &&Duration| **time < Duration::from_millis(1500);
    let early = times.iter().filter(early).count();
    assert!(early <= 21, "{times:?}");
    assert!(
        times.last() > Some(&Duration::from_millis(2500)),
        "{times:?}"
    );
}

#[test]
fn the_moves_begin_after_the_notice_and_end_with_undrain() {
    let daemon = start(&format!("{BOTH}workers.count = 1\n"));
    let mut client = opted_in(daemon.address());
    let said = ctl(&daemon, &["drain", "--notice", "1h", "--move", "0"]);
    assert_eq!(said.code, Some(0), "{}", said.err);
    let_pass(Duration::from_millis(300));
    assert_eq!(client.call("ping", 1), Ok(json!(1)));
    assert_eq!(ctl(&daemon, &["undrain"]).code, Some(0));
    // The period ends with the drain: it is not that of the next one.
    assert_eq!(ctl(&daemon, &["drain"]).code, Some(0));
    let_pass(Duration::from_millis(300));
    assert_eq!(client.call("ping", 2), Ok(json!(2)));
    assert_eq!(daemon.status().drain.and_then(|drain| drain.over), None);
    assert_eq!(ctl(&daemon, &["undrain"]).code, Some(0));
    let said = ctl(&daemon, &["drain", "--notice", "200ms", "--move", "0"]);
    assert_eq!(said.code, Some(0), "{}", said.err);
    expect_goaway(&mut client, 3, "draining");
}

#[test]
fn a_client_that_executes_gets_its_reply_before_the_goaway() {
    let daemon = faulty::start(&format!("{BOTH}workers.count = 1\n"));
    for address in daemon.addresses() {
        let execution = Execution::start_by(&daemon, opted_in(address));
        let drained = daemon.ctl_with("drain", json!({ "move": 0 }));
        drained.expect("it is drained");
        expect_goaway(&mut execution.finish(), 2, "draining");
        daemon.ctl("undrain").expect("clients are accepted");
    }
}

/// The frame that has begun is completed and answered. Nothing after it is read.
#[test]
fn a_frame_that_has_begun_is_answered_first() {
    let daemon = start(&format!("{BOTH}workers.count = 1\n"));
    for (address, cut) in daemon.addresses().iter().flat_map(|a| [(a, 2), (a, 9)]) {
        let mut client = opted_in(address);
        let frame = client.frame(r#"{"in":"ping","params":7}"#);
        client.send(&frame[..cut]);
        let client_in_page = || daemon.ctl("clients").expect("a page")["clients"][0].clone();
        eventually("it has arrived", || {
            (client_in_page()["bytes"] == json!(cut)).then_some(())
        });
        let drained = daemon.ctl_with("drain", json!({ "move": 0 }));
        drained.expect("it is drained");
        eventually("it is told", || {
            (client_in_page()["goaway"] == json!("draining")).then_some(())
        });
        client.send([&frame[cut..], &frame[..], &frame[..]].concat());
        assert_eq!(client.reply().value(), Ok(json!(7)));
        expect_goaway(&mut client, 2, "draining");
        drop(client);
        daemon.wait_until("it is closed", |status| status.clients == 0);
        daemon.ctl("undrain").expect("clients are accepted");
    }
}

#[test]
fn a_wait_for_the_last_client_ends_with_the_moves() {
    let daemon = start(&format!("{BOTH}workers.count = 2\n"));
    let mut clients: Vec<Client> = daemon.addresses().iter().map(opted_in).collect();
    let wait = ["drain", "--wait", "--queue", "--move", "100ms"];
    let drain = Program::start(&mut ctl_command(&daemon, &wait));
    for client in &mut clients {
        expect_goaway(client, 1, "draining");
    }
    drop(clients);
    let said = drain.finish();
    let sentence = "new clients are not accepted; the last client has left\n";
    assert_eq!((said.code, said.out.as_str()), (Some(0), sentence));
}

#[test]
fn a_client_gets_the_goaway_that_was_ordered_first() {
    let daemon = faulty::start("workers.count = 1\nlimits.stall-timeout = \"10m\"");
    let execution = Execution::start_by(&daemon, opted_in(daemon.address()));
    let drained = daemon.ctl_with("drain", json!({ "move": 0 }));
    drained.expect("it is drained");
    assert!(kick(&daemon, ids(&daemon)[0]));
    expect_goaway(&mut execution.finish(), 2, "draining");
}

#[test]
fn a_period_that_is_out_of_range_is_refused() {
    let daemon = start("workers.count = 1");
    for wrong in [json!(-1.0), json!(1e9), json!("x")] {
        let refused = daemon.ctl_with("drain", json!({ "move": wrong }));
        assert_eq!(refused.expect_err("it is wrong").code(), "bad_params");
    }
    assert_eq!(ctl(&daemon, &["drain", "--move", "2days"]).code, Some(64));
    assert!(daemon.status().drain.is_none());
}
