//! Connections that end politely: the last frame reports to the client which of its requests were executed.

mod away;
mod deaths;
mod moves;
mod moves_of_masters;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::thread;

use fdpassd::proto::control::ClientsPage;
use fdpassd::proto::frame::ByteOrder;
use fdpassd::proto::names::Address;
use fdpassd::testing::{Client, Running, eventually};
use serde_json::{Value, json};

use crate::common::faulty::{self, Execution};
use crate::common::metrics::{assert_counted, samples};
use crate::common::program::{Program, ctl, ctl_command};
use crate::common::{ping_of, start};

/// A TCP and a Unix listener.
pub const BOTH: &str = "listen = [\"127.0.0.1:0\", \"unix:{dir}/rpc.sock\"]\n";

/// Connects a client that asks for a goaway, with one answered request.
#[track_caller]
pub fn opted_in(address: &Address) -> Client {
    let mut client = Client::connect(address);
    opt_in(&mut client);
    client
}

/// Sends a request that asks for a goaway, and receives its reply.
#[track_caller]
pub fn opt_in(client: &mut Client) {
    client.send_frame(r#"{"in":"ping","params":"hello","goaway":true}"#);
    assert_eq!(client.receive(), br#"{"out":"pong","result":"hello"}"#);
}

/// Receives the goaway, which is the last frame, and the end.
#[track_caller]
pub fn expect_goaway(client: &mut Client, read: u64, reason: &str) {
    let expected = format!(r#"{{"out":"goaway","result":{{"read":{read},"reason":"{reason}"}}}}"#);
    let frame = client.receive();
    assert_eq!(String::from_utf8_lossy(&frame), expected);
    client.expect_end();
}

/// Returns the ids of all clients, in the order in which they connected.
pub fn ids(daemon: &Running) -> Vec<u64> {
    let page = daemon.ctl("clients").expect("a page");
    let page: ClientsPage = serde_json::from_value(page).expect("clients");
    let mut ids: Vec<u64> = page.clients.iter().map(|client| client.id.0).collect();
    ids.sort_unstable();
    ids
}

/// Kicks a client; returns whether it gets a goaway.
#[track_caller]
pub fn kick(daemon: &Running, id: u64) -> bool {
    let kicked = daemon.ctl_with("kick", json!({ "client": id }));
    kicked.expect("it is connected")["goaway"] == json!(true)
}

#[track_caller]
fn expect_closed(daemon: &Running, reason: &str, count: u64) {
    let name = format!("fdpassd_clients_closed_total{{reason=\"{reason}\"}}");
    assert_eq!(samples(daemon)[&name], count as f64, "{reason}");
}

fn counts_of(daemon: &Running) -> PathBuf {
    daemon.directory().join("counts")
}

/// Returns the body of a request that is not idempotent and records that it was executed.
fn counting(counts: &Path, word: &str) -> String {
    format!(r#"{{"in":"count","params":{}}}"#, json!([counts, word]))
}

/// Returns how often each of these requests was executed.
fn executed(counts: &Path, words: &[String]) -> Vec<usize> {
    let lines = fs::read_to_string(counts).unwrap_or_default();
    let times = |word: &String| lines.lines().filter(|line| line == word).count();
    words.iter().map(times).collect()
}

#[test]
fn only_clients_that_have_asked_get_a_goaway_at_a_stop() {
    for signal in [true, false] {
        let mut daemon = faulty::start(&format!("{BOTH}workers.count = 2\n"));
        let mut told: Vec<Client> = daemon.addresses().iter().map(opted_in).collect();
        let mut partial: Vec<Client> = daemon.addresses().iter().map(opted_in).collect();
        for client in &mut partial {
            let frame = client.frame(r#"{"in":"ping"}"#);
            client.send([&frame[..], &frame[..9]].concat());
            assert_eq!(client.reply().name, "pong");
        }
        // These have not asked, and get what every client gets.
        let mut others: Vec<Client> = daemon.addresses().iter().map(Client::connect).collect();
        for client in &mut others {
            client.send_frame(r#"{"in":"ping","goaway":false,"params":{"goaway":true}}"#);
            assert_eq!(client.reply().name, "pong");
        }
        let mut halfway = daemon.connect();
        let frame = halfway.frame(r#"{"in":"ping"}"#);
        halfway.send([&frame[..], &frame[..9]].concat());
        assert_eq!(halfway.reply().name, "pong");

        let execution = Execution::start_by(&daemon, opted_in(daemon.address()));
        let stop = (!signal).then(|| Program::start(&mut ctl_command(&daemon, &["stop"])));
        if signal {
            daemon.signal("TERM");
        }
        daemon.wait_until("the daemon is stopping", |status| status.stopping);
        let mut executing = execution.finish();
        expect_goaway(&mut executing, 2, "stopping");
        told.iter_mut()
            .for_each(|client| expect_goaway(client, 1, "stopping"));
        partial
            .iter_mut()
            .for_each(|client| expect_goaway(client, 2, "stopping"));
        others.iter_mut().for_each(Client::expect_end);
        let fault = halfway.reply().value().expect_err("it never came");
        assert_eq!(fault.code(), "shutting_down");
        halfway.expect_end();
        assert_eq!(daemon.wait().code(), Some(0));
        if let Some(stop) = stop {
            assert_eq!(stop.finish().code, Some(0));
        }
    }
}

#[test]
fn a_kicked_client_learns_what_was_executed() {
    let daemon = start(&format!("{BOTH}workers.count = 1\n"));
    daemon.wait_for_workers();
    for (index, address) in daemon.addresses().iter().enumerate() {
        let mut client = opted_in(address);
        for number in 0..5 {
            assert_eq!(client.call("ping", number), Ok(json!(number)));
        }
        assert!(kick(&daemon, ids(&daemon)[0]));
        expect_goaway(&mut client, 6, "kicked");
        daemon.wait_until("it is closed", |status| status.clients == 0);
        assert_eq!(daemon.status().lost_total, 0);
        expect_closed(&daemon, "kicked", index as u64 + 1);
    }
    let told = ctl(&daemon, &["kick", "4711"]);
    assert_eq!(told.code, Some(1));
    // The last frames are not replies.
    assert_counted(&daemon, 12, 0);
}

#[test]
fn the_frame_has_the_byte_order_of_its_client() {
    let listen = "listen = [{ address = \"127.0.0.1:0\", byte-order = \"big\" }, \
                  { address = \"unix:{dir}/auto.sock\", byte-order = \"auto\" }]\n";
    let daemon = start(&format!("{listen}workers.count = 1"));
    for address in daemon.addresses() {
        let mut client = Client::connect(address).in_order(ByteOrder::Big);
        opt_in(&mut client);
        let id = *ids(&daemon).last().expect("it is connected");
        assert!(kick(&daemon, id));
        expect_goaway(&mut client, 1, "kicked");
    }
}

#[test]
fn a_kicked_client_that_executes_gets_its_reply_first() {
    let daemon = faulty::start(&format!("{BOTH}workers.count = 1\n"));
    for address in daemon.addresses() {
        let execution = Execution::start_by(&daemon, opted_in(address));
        let id = *ids(&daemon).last().expect("it is connected");
        assert!(kick(&daemon, id));
        expect_goaway(&mut execution.finish(), 2, "kicked");
    }
}

/// The part of a frame is discarded. The end does not wait for the rest of the frame, nor for the end of the grace.
#[test]
fn a_client_that_is_kicked_amid_a_frame_gets_the_goaway() {
    let config = format!("{BOTH}workers.count = 1\nlimits.frame-timeout = \"1h\"");
    let daemon = start(&config);
    for address in daemon.addresses() {
        let mut client = opted_in(address);
        let frame = client.frame(r#"{"in":"ping"}"#);
        client.send(&frame[..9]);
        eventually("a part of a frame has arrived", || {
            let page = daemon.ctl("clients").expect("a page");
            (page["clients"][0]["bytes"] == json!(9)).then_some(())
        });
        assert!(kick(&daemon, ids(&daemon)[0]));
        expect_goaway(&mut client, 1, "kicked");
        drop(client);
        daemon.wait_until("it is closed", |status| status.clients == 0);
    }
    assert!(!daemon.stderr().contains("has not left"));
    expect_closed(&daemon, "kicked", 2);
}

#[test]
fn a_client_that_is_kicked_twice_is_closed_at_once() {
    let daemon = faulty::start("workers.count = 1\nlimits.stall-timeout = \"10m\"");
    let mut execution = Execution::start_by(&daemon, opted_in(daemon.address()));
    let id = ids(&daemon)[0];
    assert!(kick(&daemon, id));
    assert!(!kick(&daemon, id));
    execution.client_mut().expect_end();
    // It is closed, but its request still executes.
    assert!(!kick(&daemon, id));
    execution.let_go();
    daemon.wait_until("it is closed", |status| status.clients == 0);
    expect_closed(&daemon, "kicked", 1);
}

#[test]
fn a_kicked_client_that_executes_for_too_long_is_closed() {
    let daemon = faulty::start("workers.count = 1\nlimits.stall-timeout = \"10m\"");
    let mut execution = Execution::start_by(&daemon, opted_in(daemon.address()));
    assert!(kick(&daemon, ids(&daemon)[0]));
    execution.client_mut().expect_end();
    daemon.wait_for_log("was kicked and has not left: closed");
    execution.let_go();
    daemon.wait_until("it is closed", |status| status.clients == 0);
    expect_closed(&daemon, "kicked", 1);
}

/// A client that does not read gets no goaway, because its replies are unsent.
#[test]
fn a_kicked_client_that_does_not_read_is_closed() {
    let daemon = start(&format!("{BOTH}workers.count = 1\n"));
    for address in daemon.addresses() {
        let deaf = opted_in(address);
        let mut writer = deaf.writer();
        let frame = deaf.frame(ping_of(900_000));
        // It ends when the client is closed.
        let writing = thread::spawn(move || while writer.write_all(&frame).is_ok() {});
        daemon.wait_until("its replies are unsent", |status| {
            status.workers[0].parked_bytes > 0
        });
        let id = *ids(&daemon).last().expect("it is connected");
        kick(&daemon, id);
        daemon.wait_until("it is closed", |status| status.clients == 0);
        writing.join().expect("no panic");
    }
    expect_closed(&daemon, "kicked", 2);
}

/// The connection ends after the reply in any case. The goaway comes only if the worker has not found that before.
#[test]
fn a_half_closed_client_gets_its_reply_before_the_end() {
    let daemon = faulty::start(&format!("{BOTH}workers.count = 1\n"));
    for address in daemon.addresses() {
        let mut execution = Execution::start_by(&daemon, opted_in(address));
        execution.client_mut().finish();
        let id = *ids(&daemon).last().expect("it is connected");
        assert!(kick(&daemon, id));
        let replies = execution.finish().replies();
        if let [goaway] = &replies[..] {
            assert_eq!(goaway.value().expect("a result")["read"], json!(2));
        } else {
            assert!(replies.is_empty(), "{replies:?}");
        }
    }
}

/// No request after the last answered one is executed, at any moment of the end.
#[test]
fn no_request_after_the_number_is_executed() {
    for address in [0, 1] {
        let mut daemon = faulty::start(&format!("{BOTH}workers.count = 2\n"));
        let counts = counts_of(&daemon);
        let mut client = opted_in(&daemon.addresses()[address]);
        let words: Vec<String> = (0..3000).map(|number| format!("n{number}")).collect();
        let frames: Vec<Vec<u8>> = words
            .iter()
            .map(|word| client.frame(counting(&counts, word)))
            .collect();
        let mut writer = client.writer();
        // After the goaway the connection may be closed at any time.
        let writing = thread::spawn(move || {
            let _ = frames.iter().try_for_each(|frame| writer.write_all(frame));
        });
        for _ in 0..20 {
            assert_eq!(client.reply().name, "count_r");
        }
        match address {
            0 => daemon.signal("TERM"),
            _ => assert!(kick(&daemon, ids(&daemon)[0])),
        }
        let mut replies = 21;
        let last = loop {
            let reply = client.reply();
            if reply.name == "goaway" {
                break reply.value().expect("a result");
            }
            assert_eq!(reply.value(), Ok(Value::Null));
            replies += 1;
        };
        assert_eq!(last["read"], json!(replies));
        drop(client);
        writing.join().expect("no panic");
        if address == 1 {
            daemon.signal("TERM");
        }
        assert_eq!(daemon.wait().code(), Some(0));
        let times = executed(&counts, &words);
        let done = replies - 1;
        assert!(times[..done].iter().all(|times| *times == 1));
        assert!(times[done..].iter().all(|times| *times == 0));
    }
}
