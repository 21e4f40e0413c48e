//! Clients that write in pieces, do not read, or stop in the middle.

use std::io::Write;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use fdpassd::testing::{Client, Running};

use crate::common::{kernel, ping_of, pong_of, start};

/// Without TCP_QUICKACK each call takes 40 ms and more: the client's kernel keeps back the second write until the first
/// is acknowledged, and ours keeps back the acknowledgement (Nagle, delayed ACK).
#[test]
fn writing_prefix_and_body_apart_costs_no_delayed_ack() {
    let daemon = start("workers.count = 1");
    let took = |pieces: usize| {
        let mut client = daemon.connect();
        let frame = client.frame(ping_of(100));
        let (prefix, body) = frame.split_at(if pieces == 1 { 0 } else { 4 });
        let began = Instant::now();
        for _ in 0..500 {
            client.send(prefix);
            for piece in body.chunks(body.len().div_ceil((pieces - 1).max(1))) {
                client.send(piece);
            }
            client.reply().value().expect("a result");
        }
        began.elapsed()
    };
    // The time of the same calls in one write.
    let whole = took(1);
    for pieces in [2, 9] {
        let took = took(pieces);
        assert!(
            took < 10 * whole + Duration::from_secs(10),
            "500 calls in {pieces} writes took {took:?}, and {whole:?} in one write"
        );
    }
}

#[test]
fn slow_stopped_and_deaf_clients_delay_no_other() {
    let daemon = start("workers.count = 1");
    let mut other = daemon.connect();
    let mut ask = |byte: &u8| {
        assert_eq!(other.call("ping", byte).expect("a result"), *byte);
        assert_eq!(
            daemon.connect().call("ping", byte).expect("a result"),
            *byte
        );
    };
    let frame = daemon.connect().frame(ping_of(500));
    let began = Instant::now();
    frame.iter().for_each(&mut ask);
    let alone = began.elapsed();

    let mut stopped = daemon.connect();
    let large = stopped.frame(ping_of(100_000));
    stopped.send(&large[..70_000]);
    let deaf = daemon.connect();
    fill(&deaf);
    let mut dribbling = daemon.connect().without_delay();
    let began = Instant::now();
    for byte in &frame {
        dribbling.send([*byte]);
        ask(byte);
    }
    let took = began.elapsed();
    assert!(
        took < 10 * alone + Duration::from_secs(2),
        "1008 calls took {took:?}, and {alone:?} without the others"
    );
    assert_eq!(dribbling.reply().name, "pong");
}

#[test]
fn a_client_that_reads_late_gets_every_reply() {
    let daemon = start("workers.count = 1");
    let mut client = daemon.connect();
    fill(&client);
    for i in 0..FILL {
        assert!(client.receive() == pong(i), "reply {i}");
    }
    assert_eq!(client.call("ping", 1).expect("a result"), 1);
}

/// Requests with replies three times as long, so that all requests fit into the socket and their replies do not: the
/// turn that reads the end of the connection, in the middle of a frame, is one whose replies are taken in part.
#[test]
fn a_client_that_leaves_in_a_frame_gets_every_reply_before_it() {
    let daemon = start("listen = [\"unix:{dir}/rpc.sock\"]\nworkers.count = 1");
    // Two bytes each, and seven when they are shown as what they are.
    let strange = "\u{80}".repeat(1_000);
    let large = ping_of(70_000);
    for count in 20..60 {
        let mut client = daemon.connect();
        let mut requests = Vec::new();
        for number in 0..count {
            requests.extend(client.frame(format!(r#"{{"in":"{number}{strange}"}}"#)));
        }
        requests.extend(client.frame(&large));
        requests.extend(&client.frame(ping_of(500))[..100]);
        client.send(requests);
        client.finish();
        for number in 0..count {
            let fault = client.reply().value().expect_err("there is no such method");
            assert_eq!(
                fault.message(),
                format!("unknown method {:?}", format!("{number}{strange}"))
            );
        }
        assert_eq!(client.receive().len(), large.len() + 1);
        assert_eq!(
            client.reply().value().expect_err("it is cut off").code(),
            "bad_request"
        );
        client.expect_end();
    }
}

#[test]
fn a_frame_incomplete_after_frame_timeout_gets_timeout() {
    let daemon = start("limits.frame-timeout = \"300ms\"");
    let began = Instant::now();
    let mut clients: Vec<Client> = [2, 4, 50, 90_000]
        .map(|bytes| begin_frame(&daemon, bytes, 100_000))
        .into();
    // Bytes that trickle in do not prolong it.
    let mut trickling = daemon.connect().without_delay();
    let frame = trickling.frame(ping_of(1 << 20));
    for byte in &frame {
        if trickling.has_something() {
            break;
        }
        trickling.send([*byte]);
    }
    clients.push(trickling);
    for client in &mut clients {
        let fault = client.reply().value().expect_err("no result can be");
        assert_eq!(
            fault.to_string(),
            "timeout: the frame was not complete within frame-timeout"
        );
    }
    assert!(began.elapsed() >= Duration::from_millis(300));
    clients.iter_mut().for_each(Client::expect_end);
}

#[test]
fn an_idle_client_is_closed_after_idle_timeout() {
    let daemon = start("limits.idle-timeout = \"4s\"");
    let mut active = daemon.connect();
    let began = Instant::now();
    let mut silent = daemon.connect();
    let mut talked_once = daemon.connect();
    assert_eq!(talked_once.call("ping", 1).expect("a result"), 1);
    while !(silent.has_something() && talked_once.has_something()) {
        assert_eq!(active.call("ping", 1).expect("a result"), 1);
    }
    assert!(began.elapsed() >= Duration::from_secs(4));
    silent.expect_end();
    talked_once.expect_end();
    assert_eq!(active.call("ping", "still").expect("a result"), "still");
}

#[test]
fn a_client_that_takes_no_reply_is_closed_after_send_timeout() {
    let daemon = start("limits.send-timeout = \"300ms\"");
    let deaf = daemon.connect();
    let mut other = daemon.connect();
    fill(&deaf);
    daemon.wait_until("the client that does not read is closed", |status| {
        status.clients == 1
    });
    assert_eq!(other.call("ping", 1).expect("a result"), 1);
}

#[test]
fn a_prefix_that_promises_a_long_frame_costs_no_memory() {
    const CLIENTS: u64 = 500;
    let daemon = start("workers.count = 1");
    let [worker] = daemon.worker_pids()[..] else {
        panic!("there is one worker")
    };
    let mut clients: Vec<Client> = (0..CLIENTS).map(|_| daemon.connect()).collect();
    for client in &mut clients {
        assert_eq!(client.call("ping", 1).expect("a result"), 1);
    }
    let before = kernel::memory(worker);
    for client in &mut clients {
        client.send((1u32 << 20).to_le_bytes());
        client.send("{");
    }
    // The worker takes what came first first.
    assert_eq!(daemon.call("ping", 1).expect("a result"), 1);
    let a_client = kernel::memory(worker).saturating_sub(before) / CLIENTS;
    assert!(a_client <= 8192, "each of them cost {a_client} bytes");
}

#[test]
fn full_buffers_close_the_clients_with_the_oldest_frames() {
    hog_buffers(
        "workers.count = 1\nlimits = { max-frame = \"256KiB\", buffers = \"16MiB\", frame-timeout = \"none\" }",
        256 << 10,
    );
}

#[test]
fn default_limits_close_the_clients_with_the_oldest_frames() {
    hog_buffers(
        "workers.count = 1\nlimits.frame-timeout = \"none\"",
        1 << 20,
    );
}

/// 512 clients hold half a frame of the largest size each; 100 others come after them.
fn hog_buffers(config: &str, max_frame: usize) {
    let daemon = start(config);
    let buffers = usize::try_from(daemon.status().buffers).expect("it is in memory");
    let mut hogs: Vec<Client> = (0..512)
        .map(|_| begin_frame(&daemon, max_frame / 2, max_frame))
        .collect();

    let mut others: Vec<Client> = (0..100).map(|_| daemon.connect()).collect();
    let frame = others[0].frame(ping_of(20_000));
    let (first, second) = frame.split_at(10_000);
    others.iter_mut().for_each(|client| client.send(first));
    others.iter_mut().for_each(|client| client.send(second));
    for client in &mut others {
        assert_eq!(client.reply().name, "pong");
    }

    let told = hogs
        .iter_mut()
        .position(|hog| !hog.has_something())
        .expect("some have room");
    let fit = buffers / 4 * 3 / (max_frame / 2);
    assert!(
        (512 - fit - 10..512 - fit + 20).contains(&told),
        "{told} of 512 had to go, {fit} fit in"
    );
    for hog in &mut hogs[..told] {
        let fault = hog.reply().value().expect_err("no result can be");
        assert_eq!(fault.code(), "overloaded");
        hog.expect_end();
    }
    assert!(
        !hogs[told..].iter_mut().any(Client::has_something),
        "the oldest go first"
    );
}

/// Returns a client that has sent this number of bytes of a frame with a body of that length.
fn begin_frame(daemon: &Running, bytes: usize, length: usize) -> Client {
    let mut client = daemon.connect();
    let frame = client.frame(ping_of(length));
    client.send(&frame[..bytes]);
    client
}

/// The requests of [`fill`].
const FILL: usize = 600;

/// One of them: some are short, most are long, and none is as long as the next one.
fn ping(i: usize) -> String {
    ping_of(100 + i * 997 % 200_000)
}

/// The reply to it.
fn pong(i: usize) -> Vec<u8> {
    pong_of(100 + i * 997 % 200_000)
}

/// Sends more requests than the sockets have room for and reads no reply. Returns when the daemon takes no more; what
/// is left is sent when it does.
fn fill(client: &Client) {
    let mut writer = client.writer();
    let frames: Vec<Vec<u8>> = (0..FILL).map(|i| client.frame(ping(i))).collect();
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        for frame in frames {
            if writer.write_all(&frame).is_err() {
                return;
            }
            let _ = tell.send(());
        }
    });
    let mut sent = 0;
    while told.recv_timeout(Duration::from_millis(300)).is_ok() {
        sent += 1;
    }
    assert!(
        sent < FILL,
        "the daemon took {sent} requests of a client that reads nothing"
    );
}
