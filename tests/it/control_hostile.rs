//! Slow, deaf and hostile control clients delay no other client and cost nothing.

use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use fdpassd::proto::control::MAX_REQUEST;
use fdpassd::testing::{Client, Running, TIMEOUT, eventually};
use serde_json::json;

use crate::common::program::{
    FDPASSCTL, OtherUser, Program, control_client, control_socket, ctl, install, wait_for_clients,
};
use crate::common::{kernel, let_pass, start};

#[test]
fn hostile_control_clients_delay_no_other_and_cost_no_cpu() {
    let daemon = start("workers.count = 1");
    let mut rpc = daemon.connect();
    rpc.call("ping", 0).expect("a result");
    let drain = json!({"in": "drain", "params": {"wait": true}}).to_string();

    let _silent = control_client(&daemon);
    let mut halfway = control_client(&daemon);
    let frame = halfway.frame("{\"in\":\"version\"}");
    halfway.send(&frame[..10]);
    let deaf = stream(&daemon);
    deaf.set_nonblocking(true).expect("O_NONBLOCK");
    let statuses = halfway.frame("{\"in\":\"status\"}").repeat(100);
    while (&deaf).write(&statuses).is_ok() {}
    let mut waiting = control_client(&daemon);
    waiting.send_frame(&drain);
    let mut half_closed = control_client(&daemon);
    half_closed.send_frame(&drain);
    half_closed.finish();
    // Far more than is kept of it while it waits.
    let mut eager = control_client(&daemon);
    let more = eager.frame("{\"in\":\"version\"}").repeat(5_000);
    let (mut writer, first) = (eager.writer(), eager.frame(&drain));
    let sending = thread::spawn(move || {
        writer
            .write_all(&[first, more].concat())
            .expect("it is taken in the end")
    });
    daemon.wait_until("it is drained", |status| status.paused.is_some());
    // The requests of the deaf one are answered for as long as the kernel takes the replies.
    eventually("the master has nothing left to do", || {
        let before = kernel::all_idle(&[daemon.pid()])?;
        let_pass(Duration::from_millis(20));
        (kernel::all_idle(&[daemon.pid()])? == before).then_some(())
    });

    kernel::assert_waits(&[daemon.pid()], Duration::from_secs(1), 0.2);
    answers(&daemon, &mut rpc, 100);
    for (who, client) in [
        ("who waits", &mut waiting),
        ("who half-closed", &mut half_closed),
        ("who goes on", &mut eager),
    ] {
        assert!(!client.has_something(), "{who} waits for the last client");
    }
    drop(rpc);
    for client in [&mut waiting, &mut half_closed, &mut eager] {
        assert_eq!(client.reply().name, "drain");
    }
    half_closed.expect_end();
    for _ in 0..5_000 {
        assert_eq!(eager.reply().name, "version");
    }
    sending.join().expect("all was taken");
}

#[test]
fn many_requests_at_once_are_answered_in_turn_with_others() {
    let daemon = start("");
    let socket = control_socket(&daemon);
    wait_for_clients(&socket, 0);
    // Both wait while the master stands still, and what each asked for is logged when it is answered.
    kernel::stop(daemon.pid());
    let ask = |method: &str, count| {
        let mut client = control_client(&daemon);
        // No two are the same, for lines that repeat are counted.
        for number in 0..count {
            client.send_frame(
                json!({"in": "release", "params": {"method": format!("{method}-{number}")}})
                    .to_string(),
            );
        }
        client
    };
    let (mut much, mut little) = (ask("much", 100), ask("little", 3));
    wait_for_clients(&socket, 2);
    daemon.signal("CONT");
    (0..3).for_each(|_| assert_eq!(little.reply().name, "error"));
    (0..100).for_each(|_| assert_eq!(much.reply().name, "error"));
    let refusals: Vec<bool> = eventually("all is logged", || {
        let log = daemon.stderr();
        let refusals = log.lines().filter(|line| line.contains("refused: method"));
        Some(
            refusals
                .map(|line| line.contains("\"little-"))
                .collect::<Vec<_>>(),
        )
        .filter(|found| found.len() == 103)
    });
    let last = refusals
        .iter()
        .rposition(|is_little| *is_little)
        .expect("it was logged");
    assert!(
        last < 10,
        "its three requests were answered after {last} others"
    );
}

#[test]
fn requests_before_a_half_close_are_answered() {
    let daemon = start("");
    let mut client = control_client(&daemon);
    let asked = [
        client.frame("{\"in\":\"status\"}"),
        client.frame("{\"in\":\"version\"}"),
    ]
    .concat();
    client.send([&asked[..], b"\x05\0"].concat());
    client.finish();
    let names: Vec<String> = client
        .replies()
        .into_iter()
        .map(|reply| reply.name)
        .collect();
    assert_eq!(names, ["status", "version"]);
}

#[test]
fn a_client_that_hangs_up_while_it_waits_is_forgotten() {
    let daemon = start("");
    let mut rpc = daemon.connect();
    rpc.call("ping", 0).expect("a result");
    let mut clients: Vec<Client> = (0..3).map(|_| control_client(&daemon)).collect();
    let frame = clients[0].frame(json!({"in": "drain", "params": {"wait": true}}).to_string());
    clients.iter_mut().for_each(|client| client.send(&frame));
    clients[1].finish();
    let padding = vec![b' '; 60_000];
    let longer = clients[2].frame([b"{\"in\":\"version\"}", &padding[..]].concat());
    clients[2].send(longer.repeat(2));
    wait_for_clients(&control_socket(&daemon), 3);
    daemon.wait_until("it is drained", |status| status.paused.is_some());
    drop(clients);
    wait_for_clients(&control_socket(&daemon), 0);
    kernel::assert_waits(&[daemon.pid()], Duration::from_millis(500), 0.2);
    answers(&daemon, &mut rpc, 10);
}

/// Something that a client does over and over.
type Habit = fn(&Path) -> std::io::Result<()>;

const HABITS: [(&str, Habit); 7] = [
    ("byte by byte", |socket| {
        let mut stream = UnixStream::connect(socket)?;
        for byte in *b"\x40\0\0\0{\"in\":\"version\"}" {
            // The daemon ends the connection if the request takes too long.
            if stream.write_all(&[byte]).is_err() {
                break;
            }
            let_pass(Duration::from_millis(1));
        }
        Ok(())
    }),
    ("4 GiB", |socket| {
        refused(socket, &u32::MAX.to_le_bytes(), "too_large")
    }),
    ("one byte too much", |socket| {
        refused(socket, &(MAX_REQUEST + 1).to_le_bytes(), "too_large")
    }),
    ("64 KiB of nothing", |socket| {
        refused(
            socket,
            &[
                &MAX_REQUEST.to_le_bytes()[..],
                &[b' '; MAX_REQUEST as usize],
            ]
            .concat(),
            "bad_request",
        )
    }),
    ("garbage", |socket| {
        refused(
            socket,
            b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n",
            "too_large",
        )
    }),
    ("much at once", |socket| {
        let (body, count) = (b"{\"in\":\"status\"}", 200);
        let frame = [&(body.len() as u32).to_le_bytes()[..], body].concat();
        let (mut stream, mut writer) =
            UnixStream::connect(socket).and_then(|s| Ok((s.try_clone()?, s)))?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        thread::scope(|threads| {
            threads.spawn(move || {
                writer
                    .write_all(&frame.repeat(count))
                    .and_then(|()| writer.shutdown(Shutdown::Write))
            });
            let mut replies = Vec::new();
            stream.read_to_end(&mut replies)?;
            assert_eq!(
                String::from_utf8_lossy(&replies)
                    .matches("\"out\":\"status\"")
                    .count(),
                count
            );
            Ok(())
        })
    }),
    ("up and away", |socket| {
        UnixStream::connect(socket)?.write_all(b"\x0f\0\0\0{\"in\":\"status\"}")
    }),
];

#[test]
fn hostile_clients_in_parallel_delay_no_other() {
    let daemon = start("workers.count = 1");
    let socket = control_socket(&daemon);
    let mut rpc = daemon.connect();
    thread::scope(|threads| {
        let at_work = HABITS.map(|(name, habit)| {
            let socket = &socket;
            threads.spawn(move || {
                for _ in 0..10 {
                    habit(socket).unwrap_or_else(|e| panic!("{name}: {e}"));
                }
            })
        });
        while !at_work.iter().all(thread::ScopedJoinHandle::is_finished) {
            answers(&daemon, &mut rpc, 5);
        }
    });
    wait_for_clients(&socket, 0);
}

#[test]
fn refused_requests_of_a_reader_are_reported_by_a_limit() {
    let Some(other) = OtherUser::new() else {
        return;
    };
    let daemon = start("workers.count = 1\ncontrol.mode = \"0666\"");
    daemon.wait_for_workers();
    let socket = control_socket(&daemon);
    for path in [daemon.directory(), &socket] {
        fs::set_permissions(path, Permissions::from_mode(0o777)).expect("it is ours");
    }
    let tool = other.directory().join("fdpassctl");
    install(Path::new(FDPASSCTL), &tool, 0o755);
    let script = format!(
        "for i in 1 2 3 4 5 6 7; do for j in 1 2 3 4 5 6; do {} -s {} scale 3; done; done",
        tool.display(),
        socket.display()
    );
    let begin = Instant::now();
    let mut command = other.command("/bin/sh", 61_234);
    let said = Program::start(command.args(["-c", &script])).finish();
    let most = 16 + begin.elapsed().as_secs() + 2;
    assert_eq!(
        said.err.matches("forbidden: only root may change").count(),
        42,
        "{}",
        said.err
    );
    let_pass(Duration::from_millis(1100));
    Program::start(other.command(&tool, 61_234).args([
        "-s",
        &socket.display().to_string(),
        "scale",
        "3",
    ]))
    .finish();
    let events = ctl(&daemon, &["events", "--json"]).out;
    let reported = events.matches("\"forbidden\"").count() as u64;
    assert!(
        (17..=most + 2).contains(&reported),
        "{reported} reports, at most {most}: {events}"
    );
    // All are reported if they come as slowly as that.
    assert!(
        42 <= most || events.contains("earlier requests forbidden"),
        "{events}"
    );
    assert_eq!(
        daemon
            .stderr()
            .matches("refused: only root may change")
            .count() as u64,
        reported
    );
}

/// Clients of the RPC and of the control socket are answered.
#[track_caller]
fn answers(daemon: &Running, rpc: &mut Client, count: u32) {
    let mut control = control_client(daemon);
    for number in 0..count {
        assert_eq!(rpc.call("ping", number).expect("a result"), number);
        control.send_frame("{\"in\":\"status\"}");
        assert_eq!(control.reply().name, "status");
    }
}

/// Sends this and reads the refusal, up to the end of the connection or of its code.
fn refused(socket: &Path, sent: &[u8], code: &str) -> std::io::Result<()> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    // The refusal may come before it is all sent.
    let _ = stream.write_all(sent);
    let mut reply = [0; 256];
    let length = stream.read(&mut reply)?;
    let reply = String::from_utf8_lossy(&reply[..length]);
    assert!(reply.contains(&format!("\"code\":\"{code}\"")), "{reply:?}");
    Ok(())
}

fn stream(daemon: &Running) -> UnixStream {
    UnixStream::connect(control_socket(daemon)).expect("the daemon listens")
}
