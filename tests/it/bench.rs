//! `fdpassctl bench`: what it reports is what the daemon has counted, and no wrong reply is accepted.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Command;
use std::thread::{self, JoinHandle};

use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrIn};
use serde_json::{Value, json};

use crate::common::program::{FDPASSCTL, Program, Said, ctl, ctl_command};
use crate::common::start;
use crate::goaway::BOTH;

/// Runs it without a daemon that can be asked.
fn bench(arguments: &[&str]) -> Said {
    let nowhere = ["--socket", "/nonexistent/control.sock"];
    let mut command = Command::new(FDPASSCTL);
    command.arg("bench").args(arguments).args(nowhere);
    Program::start(&mut command).finish()
}

#[track_caller]
fn report(said: &Said) -> Value {
    assert_eq!((said.code, &*said.err), (Some(0), ""), "{said:?}");
    serde_json::from_str(&said.out).expect("one object")
}

#[test]
fn each_request_is_answered_once_and_counted() {
    let daemon = start(&format!("{BOTH}workers.count = 2"));
    for (index, address) in daemon.addresses().iter().enumerate() {
        let to = address.to_string();
        let load = [
            "bench", "--to", &to, "--count", "500", "-c", "8", "-d", "4", "--size", "1024",
            "--json",
        ];
        let report = report(&ctl(&daemon, &load));
        assert_eq!(report["to"], *to);
        assert_eq!(report["requests"], 500);
        assert_eq!(report["connections_failed"], 0);
        assert_eq!(report["first_error"], Value::Null);
        assert_eq!(report["interrupted"], false);
        let rows = report["histogram"].as_array().expect("a list").iter();
        let counted: u64 = rows
            .map(|row| row["requests"].as_u64().expect("a count"))
            .sum();
        assert_eq!(counted, 500);
        let latency = |part: &str| report["latency"][part].as_f64().expect("seconds");
        assert!(latency("p50") > 0.0 && latency("p50") <= latency("p99.9"));
        assert!(latency("p99.9") <= latency("max"));
        assert!(latency("max") <= report["seconds"].as_f64().expect("seconds"));
        let what = format!("{} requests are counted", 500 * (index + 1));
        daemon.wait_until(&what, |status| {
            status.requests_total == 500 * (index as u64 + 1)
        });
    }
}

#[test]
fn a_connection_ends_after_its_requests() {
    let daemon = start("");
    let load = [
        "bench",
        "--count",
        "60",
        "--per-connection",
        "3",
        "-c",
        "4",
        "--json",
    ];
    let report = report(&ctl(&daemon, &load));
    assert_eq!(
        (&report["requests"], &report["connections_closed"]),
        (&json!(60), &json!(20))
    );
    daemon.wait_until("20 connections are counted", |status| {
        status.accepted_total == 20 && status.clients == 0
    });
}

#[test]
fn in_an_open_loop_requests_are_due_at_the_rate() {
    let daemon = start("");
    let load = ["bench", "--rate", "400", "--duration", "500ms", "--json"];
    let report = report(&ctl(&daemon, &load));
    assert_eq!(
        (&report["requests"], &report["rate"]),
        (&json!(200), &json!(400.0))
    );
    // The last one was due just before the end.
    assert!(
        report["seconds"].as_f64().expect("seconds") >= 0.49,
        "{report}"
    );
}

#[test]
fn another_method_is_called_with_the_same_params() {
    let daemon = start("");
    let report = report(&ctl(
        &daemon,
        &["bench", "pi", "10", "--count", "20", "--json"],
    ));
    assert_eq!(
        (&report["method"], &report["requests"]),
        (&json!("pi"), &json!(20))
    );
    let refused = ctl(
        &daemon,
        &["bench", "nope", "--count", "3", "-c", "1", "--json"],
    );
    assert_eq!(refused.code, Some(1), "{refused:?}");
    let report: Value = serde_json::from_str(&refused.out).expect("one object");
    assert_eq!(
        (&report["requests"], &report["connections_failed"]),
        (&json!(0), &json!(3))
    );
    let expected = "fdpassctl: 3 connections failed, the first: the reply is {\"out\":\"error\"";
    assert!(refused.err.starts_with(expected), "{refused:?}");
}

#[test]
fn an_interrupt_ends_it_with_what_was_measured() {
    let daemon = start("");
    let load = ["bench", "--duration", "1h", "--json"];
    let bench = Program::start(&mut ctl_command(&daemon, &load));
    daemon.wait_until("requests arrive", |status| status.requests_total > 100);
    let pid = nix::unistd::Pid::from_raw(bench.pid().cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).expect("it runs");
    let report = report(&bench.finish());
    assert_eq!(report["interrupted"], true);
    let requests = report["requests"].as_u64().expect("a count");
    daemon.wait_until("no reply is missing", |status| {
        status.requests_total == requests
    });
}

#[test]
fn the_report_for_people_has_the_latencies() {
    let daemon = start("");
    let said = ctl(&daemon, &["bench", "--count", "100", "--warm-up", "10ms"]);
    assert_eq!(said.code, Some(0), "{said:?}");
    let lines: Vec<&str> = said.out.lines().collect();
    let address = daemon.address();
    assert_eq!(
        lines[0],
        format!("ping on {address}: 16 connections, depth 1")
    );
    assert!(lines[1].starts_with("100 requests in "), "{said:?}");
    assert!(lines[2].starts_with("latency: mean "), "{said:?}");
    assert_eq!(
        lines[4].split_whitespace().collect::<Vec<_>>(),
        ["BELOW", "REQUESTS", "PART"]
    );
    let bars = lines[5..].iter().filter(|line| line.contains("% #"));
    assert!(bars.count() >= 1, "{said:?}");
    assert!(
        lines.iter().all(|line| line.chars().count() <= 80),
        "{said:?}"
    );
}

#[test]
fn only_loopback_gets_load_without_a_further_option() {
    for to in ["192.0.2.1:9", "[2001:db8::1]:9", "0.0.0.0:9"] {
        let said = bench(&["--to", to]);
        assert_eq!(said.code, Some(64), "{said:?}");
        let expected =
            format!("fdpassctl: {to} may be another machine: only --yes-remote puts load on it\n");
        assert_eq!(said.err, expected);
    }
    for (arguments, why) in [
        (&["--size", "15"][..], "from 16 to"),
        (&["--count", "0"], "expected a number of at least 1"),
        (&["--rate", "0"], "above 0"),
        (&["--rate", "5", "--count", "5"], "--rate excludes --count"),
        (&["pi", "--size", "20"], "--size is for ping, not for pi"),
        (&["ping", "1", "--size", "20"], "PARAMS excludes --size"),
        (
            &["-c", "999999"],
            "connections need more open files than the limit",
        ),
    ] {
        let said = bench(arguments);
        assert_eq!(said.code, Some(64), "{said:?}");
        assert!(said.err.contains(why), "{said:?}");
    }
}

/// Returns a TCP socket that does not listen, and its address.
fn bound_socket() -> (OwnedFd, String) {
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket =
        socket::socket(AddressFamily::Inet, SockType::Stream, flags, None).expect("a socket");
    let any = SockaddrIn::new(127, 0, 0, 1, 0);
    socket::bind(socket.as_raw_fd(), &any).expect("a port");
    let address: SockaddrIn = socket::getsockname(socket.as_raw_fd()).expect("it is bound");
    (socket, address.to_string())
}

/// A server with another protocol than it should have. It ends with the last client.
fn impostor(clients: usize, reply: &'static [u8]) -> (String, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("it is bound").to_string();
    let serving = thread::spawn(move || {
        for client in listener.incoming().take(clients) {
            let mut client = client.expect("a client");
            let mut bytes = [0; 512];
            if client.read(&mut bytes).is_ok_and(|n| n > 0) {
                let _ = client.write_all(reply);
                // Until the client has read it.
                while client.read(&mut bytes).is_ok_and(|n| n > 0) {}
            }
        }
    });
    (address, serving)
}

#[test]
fn a_wrong_reply_is_an_error() {
    let of_another = b"\x28\0\0\0{\"out\":\"pong\",\"result\":{\"n\":1000000999}}";
    for (reply, why) in [
        (
            &of_another[..],
            "request 1000000001 was answered with {\"out\":\"pong\",\"result\":{\"n\":1000000999}}, not",
        ),
        (
            b"HTTP/1.1 400 Bad Request\r\n\r\n",
            "the answer is not a frame but an HTTP response",
        ),
    ] {
        let (to, serving) = impostor(1, reply);
        let said = bench(&["--to", &to, "--count", "1", "-c", "1"]);
        serving.join().expect("it served");
        assert_eq!(said.code, Some(1), "{said:?}");
        let expected = format!("fdpassctl: 1 connection failed, the first: {why}");
        assert!(said.err.starts_with(&expected), "{said:?}");
    }
}

#[test]
fn a_server_that_does_not_answer_is_given_up() {
    let (to, serving) = impostor(1, b"");
    let said = bench(&["--to", &to, "--count", "1", "-c", "1", "--timeout", "1s"]);
    serving.join().expect("it served");
    assert_eq!(said.code, Some(1), "{said:?}");
    assert_eq!(said.err, "fdpassctl: no reply for 1s, 1 awaited\n");
    // Bound and not listening: no other process can get the port.
    let closed = bound_socket();
    let said = bench(&["--to", &closed.1, "--count", "1", "-c", "1"]);
    assert_eq!(said.code, Some(1), "{said:?}");
    let expected = "fdpassctl: 1 connection failed, the first: cannot connect: Connection refused";
    assert!(said.err.starts_with(expected), "{said:?}");
    let said = bench(&["--to", "unix:/nonexistent/rpc.sock", "--count", "1"]);
    assert_eq!(said.code, Some(1), "{said:?}");
    let expected = "fdpassctl: 1 connection failed, the first: cannot connect: No such file";
    assert!(said.err.starts_with(expected), "{said:?}");
    assert_eq!(said.out.lines().count(), 2, "{said:?}");
}
