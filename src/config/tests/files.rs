//! Whole files: the shipped one, an empty one, one with every key, and those that cannot be read.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use crate::proto::frame::OrderRule;
use crate::proto::log::{LogFormat, LogLevel, LogTarget};
use crate::proto::names::Address;
use crate::sys::user::Group;

use super::*;

#[test]
fn an_empty_file_is_the_default() {
    assert_eq!(parse(""), Config::default());
    assert_eq!(
        parse("# nothing\n[workers]\n[app]\n[limits]\n[control]\n[metrics]\n[agent]\n[log]\n"),
        Config::default()
    );
}

#[test]
fn the_shipped_file_names_every_key() {
    let document: toml::Table = everything().to_toml().parse().expect("TOML");
    for (section, value) in &document {
        let keys = match value {
            toml::Value::Array(entries) => {
                assert!(SHIPPED.contains(&format!("\n#{section} = [")), "{section}");
                entries
                    .iter()
                    .filter_map(toml::Value::as_table)
                    .flat_map(toml::Table::keys)
                    .collect::<Vec<_>>()
            }
            _ => value.as_table().expect("a section").keys().collect(),
        };
        for key in keys {
            // The keys of an entry of `listen` have their own list.
            let (full, of_entry) = (format!("#{section}.{key} = "), format!("#   {key} = "));
            let is_written = |line: &str| {
                if section == "listen" {
                    line.starts_with(&of_entry)
                } else {
                    line.starts_with(&full)
                }
            };
            assert!(SHIPPED.lines().any(is_written), "{section}: {key}");
        }
    }
}

#[test]
fn the_shipped_file_has_comments_only() {
    assert!(
        SHIPPED
            .lines()
            .all(|line| line.is_empty() || line.starts_with('#'))
    );
    for section in [
        "workers", "app", "limits", "control", "metrics", "agent", "log",
    ] {
        parse(&format!("{SHIPPED}\n[{section}]\n"));
    }
}

#[test]
fn the_shipped_file_has_defaults_and_valid_examples() {
    let lines: Vec<&str> = SHIPPED
        .lines()
        .filter(|line| is_key(line))
        .map(|line| &line[1..])
        .collect();
    let defaults = Config::default().to_toml();
    let mut seen = Keys::new();
    for line in &lines {
        let (key, value) = line.split_once(" = ").expect("key = value");
        let name = key.rsplit('.').next().unwrap_or_default();
        let is_first = seen.insert(key.to_owned());
        // The default comes first, if there is one.
        let has_default = key == "listen"
            || (!["metrics.listen", "agent.listen"].contains(&key)
                && defaults.contains(&format!("\n{name} = ")));
        let needs = match key {
            "log.file" => "log.target = \"file\"\n",
            "app.command" => "",
            "app.preload" if !is_first => "workers.start = \"fork\"\napp.command = [\"true\"]\n",
            _ if key.starts_with("app.") && !(is_first && has_default) => {
                "app.command = [\"true\"]\n"
            }
            _ => "",
        };
        let config = parse(&format!("{needs}{line}\n"));
        assert_eq!(
            config == Config::default(),
            is_first && has_default,
            "{key} = {value}"
        );
    }
    assert!(lines.len() >= seen.len() + 10, "there are examples");
}

fn is_key(line: &str) -> bool {
    line.strip_prefix('#')
        .is_some_and(|rest| rest.starts_with(|first: char| first.is_ascii_lowercase()))
}

#[test]
fn entries_have_every_key() {
    let config = everything();
    let entries = config.entries(&GivenKeys::default()).into_iter();
    let keys: Keys = entries.map(|entry| entry.key).collect();
    assert_eq!(keys, keys::keys_of(&config.to_toml()));
}

#[test]
fn all_values_are_read() {
    let config = parse(
        r#"
        listen = ["[::1]:8080", { address = "unix:/run/x", byte-order = "big", backlog = 65535, group = "3999999999" }]
        [workers]
        count = 256
        dispatch = "round-robin"
        rebalance = "manual"
        start = "fork"
        start-timeout = "1m 30s"
        max-requests = 1
        max-lifetime = "1day"
        [limits]
        max-clients = 1
        max-clients-per-address = 4294967295
        ipv6-prefix = 56
        max-frame = 65535
        buffers = "64MB"
        idle-timeout = "1year"
        frame-timeout = "none"
        send-timeout = "1ms"
        request-timeout = "500ms"
        stall-timeout = "20ms"
        drain-timeout = "0s"
        drain-notice = "15s"
        restart-grace = "50ms"
        tcp-keepalive = "32767s"
        [control]
        socket = "/run/control.sock"
        mode = "0600"
        admin-group = "0"
        read-group = "3999999999"
        [metrics]
        listen = "unix:/run/metrics.sock"
        hosts = ["Node-1.example.org", "my_service"]
        [agent]
        listen = "unix:/run/agent.sock"
        [log]
        target = "syslog"
        format = "text"
        level = "warn"
        "#,
    );
    assert_eq!(
        config.listen[0],
        Listen::new("[::1]:8080".parse().expect("an address"))
    );
    assert_eq!(config.listen[0].access, None);
    assert_eq!(
        config.listen[1],
        Listen {
            source: Source::Bound(Address::Unix(PathBuf::from("/run/x"))),
            byte_order: OrderRule::Big,
            backlog: 65_535,
            access: Some(Access {
                mode: Mode(0o660),
                owner: None,
                group: Some(Group {
                    name: "3999999999".to_owned(),
                    gid: 3_999_999_999
                }),
            }),
            freebind: false,
            proxy: None,
            proxy_from: Vec::new(),
        }
    );
    let number = |number| NonZeroU32::new(number).expect("not zero");
    let workers = WorkerConfig {
        count: Count::Exactly(number(256)),
        dispatch: Dispatch::RoundRobin,
        rebalance: RebalanceMode::Manual,
        start: StartMode::Fork,
        start_timeout: Duration::from_secs(90),
        max_requests: Some(number(1)),
        max_lifetime: Some(Duration::from_secs(86_400)),
    };
    assert_eq!(config.workers, workers);
    let limits = Limits {
        max_clients: Some(number(1)),
        max_clients_per_address: Some(number(u32::MAX)),
        ipv6_prefix: number(56),
        max_frame: 65_535,
        buffers: Some(64_000_000),
        idle_timeout: Some(Duration::from_secs(31_557_600)),
        frame_timeout: None,
        send_timeout: Some(Duration::from_millis(1)),
        request_timeout: Some(Duration::from_millis(500)),
        stall_timeout: Duration::from_millis(20),
        drain_timeout: Duration::ZERO,
        drain_notice: Duration::from_secs(15),
        restart_grace: Duration::from_millis(50),
        tcp_keepalive: Some(Duration::from_secs(32_767)),
    };
    assert_eq!(config.limits, limits);
    let control = ControlConfig {
        socket: Some(PathBuf::from("/run/control.sock")),
        mode: Some(Mode(0o600)),
        admin_group: Group::find("0").expect("groups"),
        read_group: Some(Group {
            name: "3999999999".to_owned(),
            gid: 3_999_999_999,
        }),
    };
    assert_eq!(config.control, control);
    let hosts = ["Node-1.example.org", "my_service"]
        .map(|name| HostName(name.to_owned()))
        .to_vec();
    let listen = Some(Address::Unix(PathBuf::from("/run/metrics.sock")));
    assert_eq!(config.metrics, MetricsConfig { listen, hosts });
    let listen = Some(Address::Unix(PathBuf::from("/run/agent.sock")));
    assert_eq!(config.agent, AgentConfig { listen });
    let log = Log {
        target: LogTarget::Syslog,
        file: None,
        format: LogFormat::Text,
        level: LogLevel::Warn,
        slow_request: None,
    };
    assert_eq!(config.log, log);
}

#[test]
fn a_file_is_loaded_or_the_error_names_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("x.toml");
    let load = |content: &[u8]| {
        std::fs::write(&path, content).expect("a file");
        Config::load(place(&path)).map(|loaded| loaded.config)
    };
    assert_eq!(load(SHIPPED.as_bytes()), Ok(Config::default()));
    assert_eq!(load(&vec![b'\n'; MAX_FILE as usize]), Ok(Config::default()));

    let error = load(b"log = 5\n").expect_err("a number");
    assert!(
        error
            .to_string()
            .contains(&format!("{}:1:7", path.display())),
        "\n{error}"
    );
    let error = load(&vec![b'\n'; MAX_FILE as usize + 1]).expect_err("too long");
    assert_eq!(
        error.message(),
        "cannot read the file: it is longer than 1048576 bytes"
    );
    let error = load(b"# fine\nx = \"\xff\"\n").expect_err("not text");
    assert_eq!(error.message(), "the byte 0xff at offset 12 is not UTF-8");
    assert_eq!((error.line(), error.column()), (Some(2), Some(6)));

    let error = Config::load(place(directory.path())).expect_err("a directory");
    assert_eq!((error.line(), error.column()), (None, None));
    let error = Config::load(place(Path::new("/nowhere/x.toml"))).expect_err("no file");
    assert_eq!(
        error.message(),
        "cannot read the file: No such file or directory (os error 2)"
    );
    assert!(error.to_string().contains("/nowhere/x.toml"), "\n{error}");
}
