//! Properties of any request and any bytes.

use std::io::Write;
use std::thread;
use std::time::Duration;

use fdpassd::proto::frame::{self, ByteOrder, Next, OrderRule};
use fdpassd::proto::rpc::Request;
use fdpassd::testing::Client;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{Config, TestRunner};

use crate::common::{let_pass, ping_of, pong_of, start};

proptest! {
    #![proptest_config(Config { failure_persistence: None, ..Config::default() })]

    #[test]
    fn any_bytes_are_a_frame_or_not_without_a_panic(bytes in vec(any::<u8>(), 0..64), limit in any::<u32>()) {
        for order in [ByteOrder::Little, ByteOrder::Big] {
            if let Next::Complete { total } = frame::next(&bytes, order, limit) {
                prop_assert!(total <= bytes.len());
            }
        }
        if let Some(prefix) = bytes.first_chunk() {
            let _ = OrderRule::Auto.decide(*prefix, limit);
        }
    }

    #[test]
    fn any_bytes_are_a_request_or_not_without_a_panic(bytes in mangled_envelope()) {
        let _ = Request::parse(&bytes);
    }

    #[test]
    fn params_are_a_part_of_the_request_as_it_came(Envelope { text, params } in envelope()) {
        let request = Request::parse(text.as_bytes());
        prop_assert!(request.is_ok(), "{:?}: {text}", request.err());
        prop_assert_eq!(request.ok().and_then(|request| request.params).map(|p| p.get().to_owned()), Some(params));
    }
}

#[test]
fn a_request_in_pieces_gets_the_same_reply_as_in_one() {
    let daemon = start(
        r#"
        listen = [{ address = "127.0.0.1:0", byte-order = "auto" }]
        workers.count = 2
        limits.max-frame = 65535
        "#,
    );
    let order = select(vec![ByteOrder::Little, ByteOrder::Big]);
    let cases = (vec(envelope(), 1..5), vec(any::<Index>(), 0..12), order);
    check(200, &cases, |(requests, cuts, order)| {
        let mut client = daemon.connect().in_order(order).without_delay();
        let stream: Vec<u8> = requests
            .iter()
            .flat_map(|request| client.frame(&request.text))
            .collect();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len())).collect();
        cuts.extend([0, stream.len()]);
        cuts.sort_unstable();
        cuts.windows(2)
            .for_each(|piece| client.send(&stream[piece[0]..piece[1]]));
        for request in requests {
            let reply = client.reply();
            prop_assert_eq!(
                (reply.name.as_str(), reply.result.get()),
                ("pong", request.params.as_str())
            );
        }
        client.finish();
        client.expect_end();
        Ok(())
    });
}

#[test]
fn any_frame_gets_one_reply_and_ends_no_worker() {
    let daemon = start("workers.count = 1");
    let cases = vec(mangled_envelope(), 1..10);
    check(200, &cases, |frames| {
        let mut client = daemon.connect();
        frames.iter().for_each(|frame| client.send_frame(frame));
        for frame in frames {
            let reply = client.reply();
            let valid = Request::parse(&frame).is_ok_and(|request| request.method == "ping");
            prop_assert_eq!(reply.name.as_str(), if valid { "pong" } else { "error" });
        }
        prop_assert_eq!(client.call("ping", 1), Ok(1.into()));
        Ok(())
    });
    let status = daemon.status();
    assert_eq!((status.workers[0].restarts, status.lost_total), (0, 0));
}

#[test]
fn any_bytes_get_silence_or_an_error_and_end_no_worker() {
    let daemon = start("workers.count = 1");
    let mut bystander = daemon.connect();
    check(200, &vec(any::<u8>(), 0..2000), |bytes| {
        let mut client = daemon.connect();
        client.send(&bytes);
        client.finish();
        prop_assert!(client.replies().iter().all(|reply| reply.name == "error"));
        Ok(())
    });
    assert_eq!(bystander.call("ping", 1).expect("a result"), 1);
    assert_eq!(daemon.status().workers[0].restarts, 0);
}

/// Unread bytes fill sockets and regions in every way.
#[test]
fn a_half_closed_client_gets_every_reply_at_any_pace() {
    let daemon = start("listen = [\"127.0.0.1:0\", \"unix:{dir}/rpc.sock\"]");
    let lengths = prop_oneof![3 => 26..100usize, 3 => 100..5_000usize, 2 => 5_000..300_000usize];
    let bursts = vec((lengths, 1..400usize), 1..6);
    let cases = (
        select(daemon.addresses().to_vec()),
        bursts,
        any::<Index>(),
        any::<bool>(),
        1..500usize,
    );
    check(40, &cases, |(address, bursts, end, is_cut, at_a_time)| {
        let mut client = Client::connect(&address);
        // At most two megabytes of each length.
        let bursts = bursts
            .into_iter()
            .map(|(length, count)| (length, count.min(2_000_000 / length)));
        let lengths: Vec<usize> = bursts
            .flat_map(|(length, count)| vec![length; count])
            .collect();
        let mut stream: Vec<u8> = lengths
            .iter()
            .flat_map(|length| client.frame(ping_of(*length)))
            .collect();
        if is_cut {
            stream.truncate(end.index(stream.len()));
        }
        let (mut left, mut whole) = (stream.len(), Vec::new());
        for length in lengths {
            let Some(rest) = left.checked_sub(4 + length) else {
                break;
            };
            left = rest;
            whole.push(length);
        }
        let mut writer = client.writer();
        thread::spawn(move || {
            writer.write_all(&stream).expect("the daemon reads on");
            writer.finish();
        });
        for (i, length) in whole.into_iter().enumerate() {
            if i % at_a_time == 0 {
                let_pass(Duration::from_millis(1));
            }
            prop_assert!(client.receive() == pong_of(length), "reply {}", i);
        }
        let fault: Vec<String> = client
            .replies()
            .into_iter()
            .map(|reply| reply.name)
            .collect();
        prop_assert_eq!(fault.len(), usize::from(left > 0));
        Ok(())
    });
}

/// Runs a property in this number of cases against one daemon.
fn check<S: Strategy>(
    count: u32,
    cases: &S,
    property: impl Fn(S::Value) -> Result<(), TestCaseError>,
) {
    // Not for long: a case that fails may do so by waiting in vain.
    let config = Config {
        cases: count,
        max_shrink_time: 1000,
        failure_persistence: None,
        ..Config::default()
    };
    TestRunner::new(config)
        .run(cases, property)
        .unwrap_or_else(|e| panic!("{e}"));
}

/// A valid request of `ping`.
#[derive(Clone, Debug)]
struct Envelope {
    text: String,
    params: String,
}

/// Members in any order, with any white space, and others between them.
fn envelope() -> impl Strategy<Value = Envelope> {
    let ping = select(vec!["\"ping\"", "\"p\\u0069ng\"", "\"\\u0070ing\""]);
    let others = vec(("[a-hj-or-z]{1,5}", json()), 0..3);
    (ping, json(), others, space()).prop_perturb(|(ping, params, others, space), mut random| {
        let mut members = vec![
            ("in".to_owned(), ping.to_owned()),
            ("params".to_owned(), params.clone()),
        ];
        for other in others {
            let place = random.random_range(0..=members.len());
            members.insert(place, other);
        }
        if random.random() {
            members.reverse();
        }
        let members: Vec<String> = members
            .iter()
            .map(|(key, value)| format!("{space}\"{key}\"{space}:{space}{value}{space}"))
            .collect();
        Envelope {
            text: format!("{space}{{{}}}{space}", members.join(",")),
            params,
        }
    })
}

/// JSON in notations that a program that parses it and writes it again would not keep.
fn json() -> impl Strategy<Value = String> {
    let number = "-?(0|[1-9][0-9]{0,40})(\\.[0-9]{1,30})?([eE][+-]?[0-9]{1,4})?";
    let string = "\"([^\"\\\\\\x00-\\x1f]|\\\\[\"\\\\/bfnrt]|\\\\u[0-9a-fA-F]{4}){0,20}\"";
    let scalar = prop_oneof![
        select(vec!["null", "true", "false"]).prop_map(str::to_owned),
        number,
        string
    ];
    scalar.prop_recursive(6, 50, 5, move |inner| {
        let array = vec(inner.clone(), 0..5).prop_map(|items| format!("[{}]", items.join(" , ")));
        let object = vec((string, inner), 0..5).prop_map(|members| {
            let members: Vec<String> = members
                .iter()
                .map(|(key, value)| format!("{key} :{value}"))
                .collect();
            format!("{{ {} }}", members.join(","))
        });
        prop_oneof![array, object]
    })
}

fn space() -> impl Strategy<Value = String> {
    "[ \t\r\n]{0,2}"
}

/// Bytes that begin like a request as a rule: some are one, most have something broken in them.
fn mangled_envelope() -> impl Strategy<Value = Vec<u8>> {
    let broken = (
        envelope(),
        vec((any::<Index>(), any::<u8>()), 0..3),
        any::<Index>(),
        any::<bool>(),
    );
    let broken = broken.prop_map(|(envelope, changes, end, cut)| {
        let mut bytes = envelope.text.into_bytes();
        for (place, byte) in changes {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        if cut {
            bytes.truncate(end.index(bytes.len()));
        }
        bytes
    });
    prop_oneof![4 => broken, 1 => vec(any::<u8>(), 0..100)]
}
