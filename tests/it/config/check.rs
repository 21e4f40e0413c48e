//! Checks of a file, and the options that print and check.

use std::fs;
use std::net::TcpListener;

use fdpassd::testing::Running;

use crate::common::FDPASSD;
use crate::common::program::run;

use super::File;

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
                "did you mean `level`?",
            ],
        ),
        (
            "[worker]\ncount = 2\n",
            "1:2",
            [
                "1 | [worker]",
                "  |  ^^^^^^",
                "error: unknown key `worker`",
                "did you mean `workers`?",
            ],
        ),
        (
            "[workers]\ndispatch = \"least-load\"\n",
            "2:12",
            [
                "2 | dispatch = \"least-load\"",
                "  |            ^^^^^^^^^^^^",
                "invalid value: string \"least-load\"",
                "did you mean \"least-loaded\"?",
            ],
        ),
        (
            "[workers]\nstart = \"frok\"\n",
            "2:9",
            [
                "2 | start = \"frok\"",
                "  |         ^^^^^^",
                "invalid value: string \"frok\"",
                "did you mean \"fork\"?",
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
fn a_configuration_too_long_for_the_state_file_is_refused() {
    let with = |length: usize| {
        let pattern = "x".repeat(length);
        let said = File::new(&format!(
            "[app]\ncommand = [\"true\"]\nwatch = [\"{pattern}\"]\n"
        ));
        said.test()
    };
    assert_eq!(with(500 * 1024).code, Some(0));
    let said = with(520 * 1024);
    assert_eq!(said.code, Some(78));
    for words in [
        "the configuration is too long: its values have ",
        " bytes, at most 512KiB are possible",
        ":3:1\n",
    ] {
        assert!(said.err.contains(words), "{words}: {:.200}", said.err);
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
        workers = { count = 3, dispatch = "round-robin", rebalance = "manual", start = "fork", start-timeout = "1m 30s", max-requests = 1, max-lifetime = "1d" }
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
