//! Addresses and sockets that the daemon cannot have, and the modes of its sockets.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::process::Command;

use fdpassd::testing::{Running, Setup};

use crate::common::needs::skip;
use crate::common::program::{FDPASSCTL, OtherUser, Program};
use crate::common::{FDPASSD, start};

#[test]
fn an_occupied_port_is_reported_with_its_address() {
    let occupied = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = occupied.local_addr().expect("it has an address");
    let error = Running::start(
        FDPASSD,
        &format!("listen = [\"127.0.0.1:0\", \"{address}\"]"),
    )
    .expect_err("occupied");
    assert_eq!(error.code(), Some(69), "{error}");
    assert!(
        error.stderr().contains(&format!(
            "cannot listen on {address}: Address already in use"
        )),
        "{error}"
    );
}

#[test]
fn a_port_without_permission_is_reported_as_such() {
    let Some(nobody) = OtherUser::new() else {
        return;
    };
    let first =
        fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").expect("Linux has it");
    if first.trim().parse::<u32>().expect("a number") <= 80 {
        return skip("privileged-ports", "every user may have port 80 here");
    }
    let file = nobody.directory().join("config.toml");
    let socket = nobody.directory().join("control.sock");
    fs::write(
        &file,
        format!("listen = [\"127.0.0.1:80\"]\ncontrol.socket = {socket:?}"),
    )
    .expect("it is ours");
    let said = Program::start(nobody.command(FDPASSD, 65_534).arg("-c").arg(&file)).finish();
    assert_eq!(said.code, Some(77), "{}", said.err);
    assert!(
        said.err
            .contains("cannot listen on 127.0.0.1:80: Permission denied"),
        "{}",
        said.err
    );
    assert!(!socket.exists(), "nothing is left behind");
}

#[test]
fn a_stale_unix_socket_is_replaced_and_a_live_one_is_kept() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("rpc.sock");
    let config = format!("listen = [\"unix:{}\"]", path.display());
    let other = UnixListener::bind(&path).expect("the path is free");
    let error = Running::start(FDPASSD, &config).expect_err("another one listens there");
    assert_eq!(error.code(), Some(69), "{error}");
    let sentence = format!(
        "cannot listen on unix:{}: another process listens there",
        path.display()
    );
    assert!(error.stderr().contains(&sentence), "{error}");
    other
        .accept()
        .map(drop)
        .expect("it was asked, and it is still there");

    drop(other);
    assert!(path.exists(), "a listener leaves its file");
    let daemon = start(&config);
    daemon.wait_for_log("was left by a process that is gone; replacing it");
    assert_eq!(daemon.call("ping", 1).expect("a result"), 1);
    drop(daemon);

    fs::remove_file(&path).expect("a killed daemon leaves its file");
    fs::write(&path, "precious").expect("it is our directory");
    let error = Running::start(FDPASSD, &config).expect_err("a file is in the way");
    assert!(
        error.code() == Some(69) && error.stderr().contains("which is not a socket"),
        "{error}"
    );
    assert_eq!(fs::read_to_string(&path).expect("it is there"), "precious");
}

#[test]
fn an_address_used_twice_is_reported_as_the_daemons_own() {
    let daemon = start("listen = [\"127.0.0.1:0\"]\nworkers.count = 1");
    let (address, dir) = (
        daemon.address().to_string(),
        daemon.directory().display().to_string(),
    );
    for (config, doing, own) in [
        (
            format!("metrics.listen = \"{address}\""),
            format!("listen on {address} for metrics: Address already in use (os error 98)"),
            format!("{address}, for clients"),
        ),
        (
            format!("listen = [\"127.0.0.1:0\", \"unix:/proc/self/root{dir}/control.sock\"]"),
            format!("listen on unix:/proc/self/root{dir}/control.sock"),
            format!("unix:{dir}/control.sock, for fdpassctl"),
        ),
    ] {
        let fault = daemon.reload_with(&config).expect_err("it is taken");
        let said = fault.to_string();
        assert!(said.contains(&format!("cannot {doing}")), "{said}");
        assert!(
            said.contains(&format!("the daemon itself listens there, at {own}")),
            "{said}"
        );
    }
    for (config, own) in [
        (
            "listen = [\"unix:{dir}/a\", \"unix:/proc/self/root{dir}/a\"]",
            "/a, for clients",
        ),
        (
            "listen = [\"unix:/proc/self/root{dir}/control.sock\"]",
            "/control.sock, for clients",
        ),
        (
            "listen = [\"unix:{dir}/a\"]\nmetrics.listen = \"unix:/proc/self/root{dir}/control.sock\"",
            "/control.sock, for fdpassctl",
        ),
    ] {
        let error = Running::start(FDPASSD, config).expect_err("it is taken");
        assert_eq!(error.code(), Some(69), "{error}");
        let said = error.stderr();
        assert!(
            said.contains("the daemon itself listens there, at unix:") && said.contains(own),
            "{error}"
        );
    }
}

#[test]
fn a_control_socket_elsewhere_is_found_in_the_runtime_directory() {
    let place = tempfile::tempdir().expect("a directory");
    let config = "workers.count = 1\ncontrol.socket = \"{dir}/elsewhere.sock\"";
    let setup = || Setup::new(FDPASSD, config).variable("RUNTIME_DIRECTORY", place.path());
    let daemon = setup().start().expect("it serves");
    let ask = |verb: &str| {
        Program::start(
            Command::new(FDPASSCTL)
                .arg(verb)
                .env("RUNTIME_DIRECTORY", place.path()),
        )
        .finish()
    };
    for verb in ["reload", "upgrade", "reload"] {
        let said = ask(verb);
        assert_eq!(said.code, Some(0), "{verb}: {}", said.err);
    }
    // No process listens on the socket of a killed daemon.
    daemon.signal("KILL");
    drop(daemon);
    let link = place.path().join("control.sock");
    assert!(link.symlink_metadata().is_ok());
    let daemon = setup().start().expect("it serves");
    let said = ask("stop");
    assert_eq!(said.code, Some(0), "{}", said.err);
    drop(daemon);
    assert!(link.symlink_metadata().is_err(), "nothing is left behind");

    fs::write(&link, "precious").expect("it is ours");
    let daemon = setup().start().expect("it serves all the same");
    daemon
        .wait_for_log("\"systemctl reload\" and fdpassctl do not find the daemon without --socket");
    assert_eq!(fs::read_to_string(&link).expect("it is there"), "precious");
}

#[test]
fn two_daemons_cannot_have_one_control_socket() {
    let first = start("");
    let socket = first.directory().join("control.sock");
    let error = Running::start(FDPASSD, &format!("control.socket = {socket:?}"))
        .expect_err("it is the first one's");
    assert_eq!(error.code(), Some(69), "{error}");
    let sentence = format!(
        "cannot open the control socket {}: another process listens there",
        socket.display()
    );
    assert!(error.stderr().contains(&sentence), "{error}");
    let mut second = Command::new(FDPASSD);
    second
        .args(["app", "--listen", "127.0.0.1:0", "--", "cat"])
        .env("RUNTIME_DIRECTORY", first.directory());
    let said = Program::start(&mut second).finish();
    assert_eq!(said.code, Some(69), "{}", said.err);
    let sentence = format!("{sentence}; a second daemon needs a $RUNTIME_DIRECTORY of its own");
    assert!(said.err.contains(&sentence), "{}", said.err);
    assert_eq!(first.status().pid, first.pid());
}

#[test]
fn sockets_have_the_configured_modes() {
    let daemon = start(
        r#"
        listen = ["unix:{dir}/a", { address = "unix:{dir}/b", mode = "0606" }]
        control.mode = "0640"
        "#,
    );
    for (name, mode) in [("a", 0o660), ("b", 0o606), ("control.sock", 0o640)] {
        let found = fs::metadata(daemon.directory().join(name)).expect("the socket is there");
        assert_eq!(found.permissions().mode() & 0o777, mode, "{name}");
    }
}
