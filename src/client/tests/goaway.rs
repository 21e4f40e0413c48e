//! Connections that end politely.

use super::server::{Peer, Script, Server, script};
use super::*;

/// Reads requests, answers the first of them, and ends the connection politely.
fn leaving(requests: usize, answers: usize) -> Script {
    script(move |peer| {
        for _ in 0..requests {
            peer.read().expect("a request");
        }
        for number in 0..answers {
            peer.reply(&number.to_string());
        }
        peer.goaway(&answers.to_string());
    })
}

#[test]
fn the_first_request_of_a_connection_asks_for_a_goaway() {
    let server = Server::start([script(|peer| {
        for expected in [
            r#"{"in":"add","params":1,"goaway":true}"#,
            r#"{"in":"add","params":2}"#,
        ] {
            let mut prefix = [0; 4];
            prefix.copy_from_slice(&peer.read_bytes(4));
            let body = peer.read_bytes(u32::from_le_bytes(prefix) as usize);
            assert_eq!(String::from_utf8_lossy(&body), expected);
            peer.reply("0");
        }
    })]);
    let client = client(&[&server], options());
    for number in [1, 2] {
        assert_eq!(
            client.send::<u32>(request(number, false)).expect("a reply"),
            0
        );
    }
    drop(client);
    server.finish();
}

#[test]
fn requests_after_the_number_are_sent_elsewhere() {
    for answers in 0..4 {
        let first = Server::start([leaving(4, answers)]);
        let second = Server::start([script(Peer::echo)]);
        let client = client(&[&first, &second], options());
        let requests = (0..4).map(|number| request(number, false));
        let results: Vec<String> = client
            .call_all(requests)
            .into_iter()
            .map(|outcome| outcome.expect("it is executed once").get().to_owned())
            .collect();
        assert_eq!(results, ["0", "1", "2", "3"]);
        drop(client);
        first.finish();
        second.finish();
    }
}

#[test]
fn a_goaway_of_an_idle_connection_is_not_noticed() {
    let first = Server::start([leaving(1, 1)]);
    let second = Server::start([script(Peer::echo)]);
    let client = client(&[&first, &second], options());
    assert_eq!(client.send::<u32>(request(7, false)).expect("a reply"), 0);
    assert_eq!(client.send::<u32>(request(8, false)).expect("a reply"), 8);
    drop(client);
    first.finish();
    second.finish();
}

#[test]
fn a_wrong_number_leaves_the_outcome_unknown() {
    for read in ["0", "2", "-1", "1.5", "null", "\"1\""] {
        let server = Server::start([script(move |peer| {
            for _ in 0..3 {
                peer.read().expect("a request");
            }
            peer.reply("0");
            peer.goaway(read);
        })]);
        let client = client(&[&server], options());
        let outcomes = client.call_all((0..3).map(|number| request(number, false)));
        assert!(outcomes[0].is_ok(), "{read}");
        for outcome in &outcomes[1..] {
            let error = outcome.as_ref().expect_err("its outcome is unknown");
            assert!(error.may_have_run(), "{read}: {error}");
            assert!(error.to_string().contains("the goaway "), "{read}: {error}");
        }
        drop(client);
        server.finish();
    }
}

#[test]
fn the_reason_of_a_goaway_is_shown() {
    let server = Server::start([leaving(1, 0)]);
    let client = client(&[&server], options_without_rounds().timeout(SHORT));
    let error = client
        .send::<u32>(request(1, false))
        .expect_err("there is no other address");
    let expected = format!(
        "add was not executed within 3s: {}: the daemon has sent a goaway: draining",
        server.address()
    );
    assert_eq!((error.to_string(), error.may_have_run()), (expected, false));
    drop(client);
    server.finish();
}
