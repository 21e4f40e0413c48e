//! `fdpassctl call --to srv:…`, by the nameservers and the resolver of the system.

use std::fs;
use std::net::Ipv4Addr;
use std::process::Command;

use super::nameserver::{A, Nameserver, SRV};
use super::{SERVICE, port};
use crate::common::namespace::{is_inside, this_test};
use crate::common::program::{FDPASSCTL, Program, Said};
use crate::common::start;

/// Runs fdpassctl with this file in the place of `/etc/resolv.conf`.
fn call(text: &str) -> Said {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("resolv.conf");
    fs::write(&path, text).expect("it is our directory");
    let run = "mount --bind \"$1\" /etc/resolv.conf && exec \"$2\" call ping 7 --to \"$3\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", run, "sh"]);
    command
        .arg(path)
        .arg(FDPASSCTL)
        .arg(format!("srv:{SERVICE}"));
    Program::start(&mut command).finish()
}

#[test]
fn fdpassctl_calls_the_daemon_that_a_record_names() {
    let prepare = "ip link set lo up && unshare --mount true && test -e /etc/resolv.conf";
    if !is_inside(this_test!(), prepare) {
        return;
    }
    let daemon = start("");
    let port = port(&daemon);
    let nameserver = Nameserver::start_at_53(move |asked| {
        let reply = asked.reply();
        match (asked.kind, asked.name.as_str()) {
            (SRV, SERVICE) => reply.srv(60, [1, 0, port], "daemon.example.net").once(),
            // The resolver of the system asks for it.
            (A, "daemon.example.net") => reply.a(Ipv4Addr::LOCALHOST).once(),
            _ => reply.once(),
        }
    });
    let said = call("search example.org\nnameserver 127.0.0.1\n");
    assert_eq!(
        (said.code, said.out.as_str()),
        (Some(0), "7\n"),
        "{}",
        said.err
    );
    assert_eq!(nameserver.asked()[0].name, SERVICE);
    for (text, why) in [
        (
            "",
            "there is no nameserver: /etc/resolv.conf: it has no line \"nameserver ADDRESS\"",
        ),
        (
            "nameserver 127.0.0.2",
            "the nameserver 127.0.0.2:53 cannot be reached: ",
        ),
    ] {
        let said = call(text);
        assert_eq!((said.code, said.out.as_str()), (Some(1), ""));
        let expected = format!("cannot connect to srv:{SERVICE}: {why}");
        assert!(said.err.contains(&expected), "{}", said.err);
    }
}
