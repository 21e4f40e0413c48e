//! Threads that share a client.

use std::sync::mpsc;
use std::thread;

use super::server::{Peer, Seen, Server, script};
use super::*;

#[test]
fn threads_share_one_connection() {
    let server = Server::start([script(Peer::echo)]);
    let client = client(&[&server], options());
    thread::scope(|threads| {
        for thread in 0..8_u64 {
            let client = client.clone();
            threads.spawn(move || {
                for n in 0..200_u64 {
                    let number = thread * 1000 + n;
                    if n % 3 == 0 {
                        let all = client.call_all((0..n).map(|i| request(number + i, false)));
                        let texts: Vec<String> = all.into_iter().map(text).collect();
                        let expected = (0..n).map(|i| (number + i).to_string());
                        assert_eq!(texts, expected.collect::<Vec<_>>());
                    } else {
                        let result: u64 = client.call("add", number).expect("a reply");
                        assert_eq!(result, number);
                    }
                }
            });
        }
    });
    drop(client);
    server.finish();
}

#[test]
fn at_most_64_requests_are_sent_before_a_reply() {
    let server = Server::start([script(|peer| {
        let read_window = |peer: &mut Peer, count: u32| {
            for _ in 0..count {
                peer.read();
            }
            // Nothing more comes without a reply.
            let pause = Some(Duration::from_millis(50));
            peer.stream.set_read_timeout(pause).expect("it is a socket");
            assert_eq!(peer.read(), None);
            peer.stream
                .set_read_timeout(Some(TIMEOUT))
                .expect("it is a socket");
        };
        read_window(peer, 64);
        peer.reply("1");
        read_window(peer, 1);
        for _ in 0..64 {
            peer.reply("1");
        }
        for _ in 65..200 {
            peer.read();
            peer.reply("1");
        }
    })]);
    let client = client(&[&server], options());
    let outcomes = client.call_all((0..200).map(|n| request(n, false)));
    assert_eq!(outcomes.into_iter().filter(Result::is_ok).count(), 200);
    drop(client);
    server.finish();
}

/// The first reply comes late: the thread that waited for it has given up, and others have not.
#[test]
fn a_late_call_does_not_end_those_of_other_threads() {
    let (answer, may_answer) = mpsc::channel::<()>();
    let (read, is_read) = mpsc::channel::<()>();
    let seen = Seen::default();
    let received = seen.clone();
    let server = Server::start([script(move |peer| {
        for _ in 0..2 {
            received.add(peer.read().expect("a request"));
            read.send(()).expect("the test waits");
        }
        may_answer.recv().expect("the test permits it");
        peer.reply("1");
        peer.reply("2");
        while let Some(request) = peer.read() {
            received.add(request);
            peer.reply("3");
        }
    })]);
    let client = client(&[&server], options());
    let hasty = client.with_timeout(SHORT);
    thread::scope(|threads| {
        let first = threads.spawn(|| hasty.send::<u32>(request("hasty", true)));
        is_read.recv().expect("it is sent");
        let second = threads.spawn(|| client.send::<u32>(request("patient", false)));
        is_read.recv().expect("it is sent");
        let error = first.join().expect("no panic").expect_err("it is late");
        assert_eq!(
            error.to_string(),
            format!(
                "add was sent to {} and may have run: no reply within 3s",
                server.address()
            )
        );
        // It is not sent before the late reply has arrived.
        let third = threads.spawn(|| client.send::<u32>(request("next", false)));
        let not_sent = client
            .with_timeout(SHORT)
            .send::<u32>(request("too late", false));
        assert!(
            !not_sent
                .expect_err("it waits for the others")
                .may_have_run()
        );
        answer.send(()).expect("the script waits");
        assert_eq!(second.join().expect("no panic").expect("its reply"), 2);
        assert_eq!(third.join().expect("no panic").expect("its reply"), 3);
    });
    drop((client, hasty));
    server.finish();
    let texts = ["hasty", "patient", "next"];
    assert_eq!(
        seen.all(),
        texts.map(|text| format!(r#"{{"in":"add","params":"{text}"}}"#))
    );
}

#[test]
fn a_connection_for_which_nothing_waits_is_replaced() {
    let first = Server::start([script(|peer| {
        peer.read();
        peer.expect_end();
    })]);
    let second = Server::start([script(Peer::echo)]);
    let client = client(&[&first, &second], options());
    let late = client.with_timeout(SHORT).send::<u32>(request(1, true));
    late.expect_err("there is no reply");
    assert_eq!(client.address(), None);
    assert_eq!(client.send::<u32>(request(2, false)).expect("a reply"), 2);
    drop(client);
    first.finish();
    second.finish();
}

/// The thread that works for the others ends first, in each of many orders.
#[test]
fn the_work_passes_from_thread_to_thread() {
    let server = Server::start([script(Peer::echo)]);
    let client = client(&[&server], options());
    for _ in 0..50 {
        thread::scope(|threads| {
            for n in 0..8_u32 {
                let client = &client;
                threads.spawn(move || {
                    let all = client.call_all((0..=n * 10).map(|i| request(i, false)));
                    assert!(all.into_iter().all(|outcome| outcome.is_ok()));
                });
            }
        });
    }
    drop(client);
    server.finish();
}
