//! An upgrade from version 0.1.0: its state is read, and its workers are replaced.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};

use fdpassd::proto::names::Address;
use fdpassd::testing::{Client, Setup, eventually};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use serde_json::{Value, json};

use crate::common::{FDPASSD, kernel, ping_all, read};

/// The state that version 0.1.0 hands to the next program, with a foreign process as its worker.
#[test]
fn an_upgrade_from_0_1_0_replaces_the_workers_and_serves() {
    let directory = tempfile::tempdir().expect("a directory");
    let at = |name: &str| Address::Unix(directory.path().join(name));
    let listeners = ["control", "clients", "later"].map(|name| {
        let Address::Unix(path) = at(name) else {
            unreachable!("it is a path")
        };
        UnixListener::bind(path).expect("bind")
    });
    for listener in [&listeners[0], &listeners[2]] {
        listener.set_nonblocking(true).expect("set");
    }
    let mut clients: Vec<Client> = (0..4).map(|_| Client::connect(&at("clients"))).collect();
    let sockets: Vec<OwnedFd> = (0..4).map(|_| accepted(&listeners[1])).collect();
    let (channel, _theirs) = UnixStream::pair().expect("socketpair");
    let mut snapshot: Value = serde_json::from_str(&format_of("snapshot.json")).expect("JSON");
    // From number 3 on: the snapshot, and then these in this order.
    let left: Vec<OwnedFd> = [listeners[0].try_clone(), listeners[2].try_clone()]
        .into_iter()
        .map(|listener| listener.expect("dup").into())
        .chain([channel.into(), shared_memory().into()])
        .chain(sockets)
        .collect();
    snapshot["control"] = json!([4, directory.path().join("control")]);
    let later = format!("unix:{}", directory.path().join("later").display());
    let config = format!(
        "listen = [\"{later}\"]\nworkers.count = 1\n[limits]\nmax-frame = \"64KiB\"\nframe-timeout = \"none\"\n"
    );
    let config = format!(
        "{config}[control]\nsocket = \"{}\"\n",
        directory.path().join("control").display()
    );
    snapshot["handover"]["config"] = json!(config);
    snapshot["listeners"] =
        json!([[{ "number": 1, "configured": later, "address": later, "accepted": 0 }, 5]]);
    (snapshot["boats"], snapshot["book"]) = (json!([]), Value::Null);
    let worker = &mut snapshot["workers"][0];
    (worker["channel"], worker["desk"], worker["pid"]) = (json!(6), json!(7), json!(0));
    for (number, entry) in (8..).zip(
        worker["leases"]["entries"]
            .as_array_mut()
            .expect("an array"),
    ) {
        entry[1]["socket"] = json!(number);
    }

    let script = "sleep 1000 & printf %s \"$SNAPSHOT\" | sed \"s/\\\"pid\\\":0/\\\"pid\\\":$!/\" >&3; \
        echo \" listens on $ADDRESS; call it\"; exec \"$0\" resume 3";
    let setup = Setup::new("sh", &config)
        .argument("-c")
        .argument(script)
        .argument(FDPASSD);
    let setup = setup
        .variable("SNAPSHOT", snapshot.to_string())
        .variable("ADDRESS", &later);
    let setup = setup.activated("left", tempfile::tempfile().expect("a file"));
    let daemon = left
        .into_iter()
        .fold(setup, |setup, left| setup.activated("left", left))
        .start()
        .expect("it goes on");

    let status = daemon.wait_for_workers();
    assert_eq!(
        (status.clients, status.lost_total, status.deaths_total),
        (4, 0, 0)
    );
    // It does not free what it has: that is recovered as after a death.
    daemon.wait_for_log("gen 1) is of another version; killing it; it still has 4 clients");
    let ours = status.workers[0].id.expect("it is there");
    assert!(ours.0 > 1, "{status:?}");
    // Two of them are in half a frame.
    for (client, (length, sent, letter)) in clients[1..3]
        .iter_mut()
        .zip([(40, 30, "a"), (1000, 700, "b")])
    {
        let body = format!(
            "{{\"in\":\"ping\",\"params\":\"{}\"}}",
            letter.repeat(length)
        );
        let frame = client.frame(body);
        client.send(&frame[sent..]);
        assert_eq!(
            client.reply().value().expect("a pong"),
            letter.repeat(length)
        );
    }
    ping_all(&mut clients);
    daemon.connect().call("ping", 1).expect("a pong");
    eventually("the old worker is collected", || {
        (kernel::children(daemon.pid()).len() == 1).then_some(())
    });
}

fn accepted(listener: &UnixListener) -> OwnedFd {
    let (socket, _) = listener.accept().expect("accept");
    socket.set_nonblocking(true).expect("set");
    socket.into()
}

fn format_of(name: &str) -> String {
    read(&format!("tests/formats/0.1.0/{name}"))
}

/// As version 0.1.0 left it, sealed as that did.
fn shared_memory() -> File {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let file = File::from(memfd_create(c"shm", flags).expect("memfd"));
    file.set_len(2_834_432).expect("it grows");
    fcntl(
        &file,
        FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW),
    )
    .expect("it is sealed");
    for line in format_of("shm.hex").lines() {
        let (offset, bytes) = line.split_once(' ').expect("two words");
        let bytes: Vec<u8> = (0..bytes.len() / 2)
            .map(|i| u8::from_str_radix(&bytes[2 * i..2 * i + 2], 16).expect("hexadecimal"))
            .collect();
        let offset = u64::from_str_radix(offset, 16).expect("hexadecimal");
        file.write_all_at(&bytes, offset)
            .expect("it is as long as that");
    }
    file
}
