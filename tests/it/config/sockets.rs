//! Addresses and sockets that the daemon cannot have, and the modes of its sockets.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;

use fdpassd::testing::{Running, Setup, eventually};

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
    // A process that another test has just forked may have a copy of it.
    eventually("nothing listens", || UnixStream::connect(&path).err());
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
    let mut daemon = setup().start().expect("it serves");
    let said = ask("stop");
    assert_eq!(said.code, Some(0), "{}", said.err);
    // The link is removed after the reply.
    daemon.wait();
    drop(daemon);
    assert!(link.symlink_metadata().is_err(), "nothing is left behind");

    fs::write(&link, "precious").expect("it is ours");
    let daemon = setup().start().expect("it serves all the same");
    daemon
        .wait_for_log("\"systemctl reload\" and fdpassctl do not find the daemon without --socket");
    assert_eq!(fs::read_to_string(&link).expect("it is there"), "precious");
}

/// A daemon whose control socket is at its default place.
fn with_runtime_directory(directory: &Path) -> Command {
    let mut command = Command::new(FDPASSD);
    command
        .args(["app", "--listen", "127.0.0.1:0", "--", "cat"])
        .env("RUNTIME_DIRECTORY", directory);
    command
}

#[test]
fn an_unusable_runtime_directory_is_named_with_its_remedy() {
    let place = tempfile::tempdir().expect("a directory");
    let missing = place.path().join("not/there");
    let said = Program::start(&mut with_runtime_directory(&missing)).finish();
    let sentence = "its directory must exist; $RUNTIME_DIRECTORY can name another one";
    assert_eq!(said.code, Some(69), "{}", said.err);
    assert!(said.err.contains(sentence), "{}", said.err);

    // As in a container whose root file system is read-only.
    let daemon = with_runtime_directory(&place.path().join("fdpassd"));
    let script = "mount -t tmpfs -o ro tmpfs \"$0\" || exit 99; exec \"$@\"";
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-c", script])
        .arg(place.path());
    command.arg(daemon.get_program()).args(daemon.get_args());
    command.envs(
        daemon
            .get_envs()
            .map(|(name, value)| (name, value.unwrap_or_default())),
    );
    let said = Program::start(&mut command).finish();
    if said.code != Some(69) {
        return skip(
            "namespaces",
            &format!("nothing can be mounted: {}", said.err),
        );
    }
    let sentence = "Read-only file system (os error 30); uid 0 must be able to write to its directory; mount a tmpfs there, or set \
                    $RUNTIME_DIRECTORY to a writable directory";
    assert!(said.err.contains(sentence), "{}", said.err);
}

#[test]
fn the_runtime_directory_may_belong_to_another_user() {
    let place = tempfile::tempdir().expect("a directory");
    if chown(place.path(), Some(65_534), None).is_err() {
        return skip("root", "a directory of another user is needed");
    }
    // As a volume in a container, whose owner is root.
    let config = place.path().join("fdpassd.toml");
    fs::write(&config, "listen = [\"127.0.0.1:0\"]\nworkers.count = 1").expect("it is ours");
    let mut daemon = Command::new(FDPASSD);
    daemon.arg("-c").arg(&config);
    let mut daemon = Program::start(daemon.env("RUNTIME_DIRECTORY", place.path()));
    assert!(daemon.line().contains(" listens on "));
    let mut stop = Command::new(FDPASSCTL);
    let said = Program::start(stop.arg("stop").env("RUNTIME_DIRECTORY", place.path())).finish();
    assert_eq!(said.code, Some(0), "{}", said.err);
    assert_eq!(daemon.finish().code, Some(0));
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
