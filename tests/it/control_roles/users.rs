//! Users that the daemon does not trust or know.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use fdpassd::testing::Setup;

use crate::common::FDPASSD;
use crate::common::faulty::example;
use crate::common::needs::skip;
use crate::common::program::{FDPASSCTL, OtherUser, Program, ctl};

#[test]
fn a_directory_in_tmp_of_another_user_is_passed_over() {
    let Some(others) = OtherUser::new() else {
        return;
    };
    // Not fdpassd, which may run on this machine.
    let faulty = example("faulty").display().to_string();
    // Unlike that of another run of this test.
    let user = 1_000_000 + std::process::id();
    let temporary = PathBuf::from(format!("/tmp/faulty-{user}"));
    let (config, home) = (
        others.directory().join("config.toml"),
        others.directory().join("home"),
    );
    fs::write(&config, "listen = [\"127.0.0.1:0\"]\nworkers.count = 1\n")
        .expect("it is our directory");
    fs::create_dir(&home)
        .and_then(|()| chown(&home, Some(user), Some(user)))
        .expect("root may");
    let prepared = |program: &str| {
        let mut command = others.command(program, user);
        command
            .env_remove("RUNTIME_DIRECTORY")
            .env_remove("XDG_RUNTIME_DIR")
            .env_remove("FDPASSD_SOCKET");
        command.env("HOME", &home);
        command
    };
    for (owner, mode, is_used) in [
        (user + 1, 0o755, false),
        (user, 0o777, false),
        (user, 0o700, true),
    ] {
        fs::create_dir(&temporary).expect("it is new");
        let _removed = Removed(&temporary);
        // A foreign socket waits for fdpassctl there.
        let trap = (!is_used)
            .then(|| UnixListener::bind(temporary.join("control.sock")).expect("it is free"));
        if trap.is_some() {
            fs::set_permissions(
                temporary.join("control.sock"),
                Permissions::from_mode(0o666),
            )
            .expect("root may");
        }
        chown(&temporary, Some(owner), Some(owner)).expect("root may");
        fs::set_permissions(&temporary, Permissions::from_mode(mode)).expect("root may");
        let said = Program::start(prepared(FDPASSCTL).args(["status", "-n", "faulty"])).finish();
        assert_eq!(said.code, Some(3), "{said:?}");
        assert_eq!(said.err.contains("/tmp/faulty-"), is_used, "{}", said.err);

        let mut daemon = Program::start(prepared(&faulty).arg("-c").arg(&config));
        assert!(daemon.line().contains(" listens on "));
        let place = if is_used {
            temporary.join("control.sock")
        } else {
            home.join(".faulty/control.sock")
        };
        let said = Program::start(prepared(FDPASSCTL).args(["version", "--json", "-n", "faulty"]))
            .finish();
        assert!(
            said.out.contains(&format!("\"pid\":{}", daemon.pid())),
            "{place:?}: {said:?}"
        );
        assert!(UnixStream::connect(&place).is_ok(), "{place:?}");
        if let Some(trap) = trap {
            trap.set_nonblocking(true).expect("it is a socket");
            assert_eq!(
                trap.accept().expect_err("nobody came").kind(),
                io::ErrorKind::WouldBlock
            );
        }
    }
}

#[test]
fn an_unmapped_user_may_change_nothing() {
    let tried = Command::new("unshare").args(["--user", "true"]).output();
    if !tried.as_ref().is_ok_and(|output| output.status.success()) {
        return skip(
            "namespaces",
            &format!("no user namespace can be made: {tried:?}"),
        );
    }
    // It has the same number there as all others: none is mapped.
    let daemon = Setup::new("unshare", "workers.count = 1")
        .argument("--user")
        .argument(FDPASSD)
        .start();
    let daemon = daemon.expect("it serves");
    daemon.wait_for_log("is also that of all users from outside of its user namespace");
    let said = ctl(&daemon, &["undrain"]);
    let sentence = "fdpassctl: forbidden: only root may change this daemon\n";
    assert_eq!((said.code, said.err.as_str()), (Some(77), sentence));
    assert_eq!(ctl(&daemon, &["status"]).code, Some(0));
}

struct Removed<'a>(&'a Path);

impl Drop for Removed<'_> {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(self.0);
    }
}
