//! The binary and its configuration: what it says of a file, and what it does when it cannot have what the file wants.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::Command;

use fdpassd::testing::{Running, Setup};
use tempfile::TempDir;

use crate::common::needs::skip;
use crate::common::program::{FDPASSCTL, OtherUser, Program, Said, ctl, run};
use crate::common::{FDPASSD, start};

#[test]
fn a_good_file_is_reported_as_good() {
    for text in [
        "",
        "# nothing\n",
        "listen = [\"127.0.0.1:1\", \"[::1]:1\", \"unix:/run/x/rpc.sock\"]",
        "listen = [{ address = \"127.0.0.1:1\", byte-order = \"big\", backlog = 7 }, \"0.0.0.0:2\"]",
        "[[listen]]\naddress = \"unix:/run/x/rpc.sock\"\nmode = \"0666\"\nowner = \"root\"\ngroup = \"0\"",
        "workers.count = 3\nlimits = { idle-timeout = \"1h\", max-frame = \"2MiB\" }",
    ] {
        let file = File::new(text);
        let said = file.test();
        assert_eq!((said.code, said.err.as_str()), (Some(0), ""), "{text}");
        assert_eq!(
            said.out,
            format!("{}: the configuration is good\n", file.name())
        );
    }
}

#[test]
fn a_bad_file_is_refused_with_its_line_a_caret_and_advice() {
    for (text, place, shown) in [
        (
            "# mine\n[log]\nlevle = \"debug\"\n",
            "3:1",
            [
                "3 | levle = \"debug\"",
                "  | ^^^^^",
                "error: unknown key `levle`",
                "did you mean \"level\"?",
            ],
        ),
        (
            "[worker]\ncount = 2\n",
            "1:2",
            [
                "1 | [worker]",
                "  |  ^^^^^^",
                "error: unknown key `worker`",
                "did you mean \"workers\"?",
            ],
        ),
        (
            "[workers]\ndispatch = \"least-load\"\n",
            "2:12",
            [
                "2 | dispatch = \"least-load\"",
                "  |            ^^^^^^^^^^^^",
                "unknown word `least-load`",
                "did you mean \"least-loaded\"?",
            ],
        ),
    ] {
        let file = File::new(text);
        for option in ["-t", "-T"] {
            let said = run(FDPASSD, &[option, "-c", &file.name()]);
            assert_eq!(
                (said.code, said.out.as_str()),
                (Some(78), ""),
                "{}",
                said.err
            );
            assert!(
                said.err.contains(&format!("--> {}:{place}\n", file.name())),
                "{}",
                said.err
            );
            for words in shown {
                assert!(said.err.contains(words), "{words} is not in {}", said.err);
            }
        }
        let error = Running::start(FDPASSD, text).expect_err("it does not serve with that either");
        assert_eq!(error.code(), Some(78), "{error}");
        assert!(error.stderr().contains(shown[2]), "{error}");
    }
}

#[test]
fn a_path_without_a_text_file_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let missing = directory.path().join("missing.toml");
    let (huge, binary) = (
        directory.path().join("huge"),
        directory.path().join("binary"),
    );
    fs::write(&huge, "#\n".repeat(1 << 20)).expect("it is our directory");
    fs::write(&binary, b"[workers]\ncount = \xff").expect("it is our directory");
    for (path, words) in [
        (
            missing.as_path(),
            "cannot read the file: No such file or directory",
        ),
        (
            directory.path(),
            "cannot read the file: it is a directory, not a regular file",
        ),
        (&huge, "it is longer than 1048576 bytes"),
        (&binary, "the byte 0xff at offset 18 is not UTF-8"),
    ] {
        let name = path.display().to_string();
        let said = run(FDPASSD, &["-t", "-c", &name]);
        assert!(
            said.code == Some(78) && said.err.contains(words) && said.err.contains(&name),
            "{}",
            said.err
        );
    }
}

#[test]
fn the_effective_configuration_loads_to_the_same_configuration() {
    let everything = r#"
        listen = ["127.0.0.1:1", { address = "unix:/run/x/rpc.sock", mode = "0666", owner = "root", group = "root" }]
        workers = { count = 3, dispatch = "round-robin", rebalance = "manual", start-timeout = "1m 30s", max-requests = 1, max-lifetime = "1d" }
        control = { socket = "/run/x/control.sock", mode = "0600", admin-group = "root", read-group = "61200" }
        metrics = { listen = "127.0.0.1:2", hosts = ["node1.example.org"] }
        log = { target = "file", file = "/tmp/x.log", format = "json", level = "debug" }
        [limits]
        max-clients = 1000
        max-clients-per-address = 10
        ipv6-prefix = 56
        max-frame = "64KiB"
        buffers = "1MiB"
        idle-timeout = "1h"
        frame-timeout = "none"
        send-timeout = "1500ms"
        request-timeout = "500ms"
        stall-timeout = "20ms"
        drain-timeout = "0s"
        tcp-keepalive = "none"
    "#;
    for text in ["", everything] {
        let first = File::new(text).dump();
        assert_eq!(File::new(&first).dump(), first);
    }
    let dump = File::new(everything).dump();
    for words in [
        "1m 30s",
        "round-robin",
        "rebalance = \"manual\"",
        "drain-timeout = \"0s\"",
        "mode = \"0600\"",
        "admin-group = \"root\"",
        "read-group = \"61200\"",
        "max-lifetime = \"1day\"",
        "node1.example.org",
    ] {
        assert!(dump.contains(words), "{words} is not in\n{dump}");
    }
}

#[test]
fn options_that_print_or_check_do_not_start_the_daemon() {
    for arguments in [["-V"], ["--version"]] {
        let said = run(FDPASSD, &arguments);
        assert_eq!(
            (said.code, said.out),
            (Some(0), format!("fdpassd {}\n", env!("CARGO_PKG_VERSION")))
        );
    }
    for arguments in [["-h"], ["--help"]] {
        let said = run(FDPASSD, &arguments);
        assert!(
            said.code == Some(0) && said.out.contains("Usage: fdpassd") && said.err.is_empty(),
            "{said:?}"
        );
    }
    for arguments in [
        &["--nope"][..],
        &["-x"],
        &["stray"],
        &["-c"],
        &["-t", "stray"],
    ] {
        let said = run(FDPASSD, arguments);
        assert!(
            said.code == Some(64) && said.out.is_empty() && said.err.contains("--help"),
            "{said:?}"
        );
    }
}

#[test]
fn a_worker_without_a_master_exits_with_the_reason() {
    let said = run(FDPASSD, &["worker"]);
    assert_eq!(said.code, Some(64));
    assert!(
        said.err.contains("workers are started by their master"),
        "{}",
        said.err
    );
}

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

#[test]
fn a_bad_configuration_touches_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener
        .set_nonblocking(true)
        .expect("a socket takes O_NONBLOCK");
    let occupied = listener.local_addr().expect("it has an address");
    let directory = tempfile::tempdir().expect("a directory");
    let (rpc, log) = (
        directory.path().join("rpc.sock"),
        directory.path().join("log"),
    );
    let text = format!(
        "listen = [\"{occupied}\", \"unix:{}\"]\nlog = {{ target = \"file\", file = {log:?}, level = \"loud\" }}",
        rpc.display()
    );
    let error = Running::start(FDPASSD, &text).expect_err("there is no level \"loud\"");
    assert_eq!(error.code(), Some(78), "{error}");
    assert!(!rpc.exists() && !log.exists());
    assert!(listener.accept().is_err(), "nobody has connected");
}

#[test]
fn all_programs_read_the_files_in_the_directory() {
    let Some(daemon) =
        start_with_standard_file("workers.count = 1", "limits.max-frame = \"64KiB\"")
    else {
        return;
    };
    let files = |count| {
        [
            "/etc/fdpassd.toml",
            "/etc/fdpassd.d/10-a.toml",
            "/etc/fdpassd.d/20-b.toml",
        ][..count]
            .join(", ")
    };
    let option = |option| run_inside(&daemon, option);
    assert_eq!(
        option("-t").out,
        format!("{}: the configuration is good\n", files(2))
    );
    assert!(option("-T").out.contains("max-frame = \"64KiB\""));
    let shown = ctl(&daemon, &["config", "show"]).out;
    assert!(
        shown.starts_with(&files(2)) && shown.contains("= \"64KiB\""),
        "{shown}"
    );

    let more = daemon.directory().join("fdpassd.d/20-b.toml");
    fs::write(&more, "[workers]\ndispatch = \"round-robin\"\n").expect("it is ours");
    let checked = ctl(&daemon, &["config", "check"]).out;
    assert!(
        checked.starts_with(&format!(
            "{}: good; a reload would change 1 key\n",
            files(3)
        )),
        "{checked}"
    );
    let reloaded = ctl(&daemon, &["reload"]);
    assert_eq!(
        (reloaded.code, daemon.status().dispatch.as_str()),
        (Some(0), "round-robin"),
        "{}",
        reloaded.err
    );
    let upgraded = ctl(&daemon, &["upgrade"]);
    assert_eq!(upgraded.code, Some(0), "{}", upgraded.err);
    assert!(ctl(&daemon, &["config", "show"]).out.starts_with(&files(3)));
    assert!(
        ctl(&daemon, &["config", "check"])
            .out
            .ends_with("a reload would change nothing\n")
    );

    fs::write(&more, "limits.max-frame = \"1MiB\"\n").expect("it is ours");
    for said in [
        option("-t"),
        option("-T"),
        ctl(&daemon, &["config", "check"]),
        ctl(&daemon, &["reload"]),
    ] {
        for words in [
            "`limits.max-frame` is given twice",
            "/etc/fdpassd.d/20-b.toml:1:8",
            "/etc/fdpassd.d/10-a.toml:1:8",
        ] {
            assert!(said.err.contains(words), "{words} is not in {}", said.err);
        }
    }
    assert_eq!(daemon.status().dispatch, "round-robin");
    fs::remove_file(&more).expect("it is ours");
    daemon.reload().expect("it is applied");
    assert_eq!(daemon.status().dispatch, "least-loaded");
}

#[test]
fn an_empty_file_is_applied_by_force_only() {
    let Some(daemon) =
        start_with_standard_file("workers.count = 1", "limits.max-frame = \"64KiB\"")
    else {
        return;
    };
    let drop_in = daemon.directory().join("fdpassd.d/10-a.toml");
    fs::write(&drop_in, "\n").expect("it is ours");
    let words = "/etc/fdpassd.d/10-a.toml: the file is empty, as while it is being written; \
                 the configuration in force has limits.max-frame from a file; \"reload --force\" takes the file as it is";
    daemon.signal("HUP");
    daemon.wait_for_log(&format!(
        "SIGHUP: the new configuration is rejected: {words}"
    ));
    for arguments in [&["config", "check"][..], &["reload"]] {
        let said = ctl(&daemon, arguments);
        assert!(
            said.code == Some(1) && said.err.contains("the file is empty"),
            "{}",
            said.err
        );
    }
    assert!(
        ctl(&daemon, &["config", "show"])
            .out
            .contains("= \"64KiB\"")
    );
    let said = ctl(&daemon, &["reload", "--force"]);
    assert_eq!(said.code, Some(0), "{}", said.err);
    assert!(
        !ctl(&daemon, &["config", "show"])
            .out
            .contains("= \"64KiB\"")
    );
}

/// Starts the daemon in a mount namespace where its directory is `/etc`, with a file next to the standard one. Needs root; the
/// test is skipped where that is impossible.
fn start_with_standard_file(config: &str, drop_in: &str) -> Option<Running> {
    let is_possible = Command::new("unshare")
        .args(["--mount", "mount", "--bind", "/tmp", "/etc"])
        .output();
    if !is_possible
        .as_ref()
        .is_ok_and(|output| output.status.success())
    {
        skip(
            "namespaces",
            &format!("no mount namespace can be made: {is_possible:?}"),
        );
        return None;
    }
    let script = format!(
        "d=${{2%/*}} && ln -s config.toml $d/fdpassd.toml && mkdir $d/fdpassd.d && echo '{drop_in}' >$d/fdpassd.d/10-a.toml \
         && mount --bind $d /etc && exec \"$0\" -c /etc/fdpassd.toml"
    );
    let setup = ["--mount", "sh", "-c", &script, FDPASSD]
        .into_iter()
        .fold(Setup::new("unshare", config), Setup::argument);
    Some(setup.start().expect("it serves"))
}

/// Runs fdpassd with an option where this daemon runs.
fn run_inside(daemon: &Running, option: &str) -> Said {
    let target = daemon.pid().to_string();
    run(
        "nsenter",
        &[
            "--mount",
            "--target",
            &target,
            FDPASSD,
            option,
            "-c",
            "/etc/fdpassd.toml",
        ],
    )
}

/// A configuration file, in a directory of its own.
struct File {
    path: PathBuf,
    _directory: TempDir,
}

impl File {
    fn new(text: &str) -> File {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("config.toml");
        fs::write(&path, text).expect("it is our directory");
        File {
            path,
            _directory: directory,
        }
    }

    fn name(&self) -> String {
        self.path.display().to_string()
    }

    #[track_caller]
    fn test(&self) -> Said {
        run(FDPASSD, &["-t", "-c", &self.name()])
    }

    /// The effective configuration.
    #[track_caller]
    fn dump(&self) -> String {
        let said = run(FDPASSD, &["-T", "-c", &self.name()]);
        assert_eq!((said.code, said.err.as_str()), (Some(0), ""));
        said.out
    }
}
