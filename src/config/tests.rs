//! The file: each error has its message and its place.

mod app;

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::proto::frame::OrderRule;
use crate::proto::log::{LogFormat, LogLevel, LogTarget};
use crate::proto::names::Address;
use crate::sys::user::{Group, User};

const SHIPPED: &str = include_str!("../../config/fdpassd.toml");
const ORIGIN: &str = "/etc/fdpassd.toml";

fn parse(text: &str) -> Config {
    Config::parse(text, ORIGIN).unwrap_or_else(|error| panic!("{error}"))
}

fn place(file: &Path) -> ConfigPlace<'_> {
    ConfigPlace::new(None, Some(file), Path::new(ORIGIN))
}

/// Parses `marked`, in which `«` marks the place of the error, and checks that the caret is there.
fn refused(marked: &str, message: &str) -> Error {
    let (before, _) = marked.split_once('«').expect("a mark");
    let text = marked.replacen('«', "", 1);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().expect("a line").chars().count() + 1;

    let error = Config::parse(&text, ORIGIN).expect_err(&text);
    assert_eq!(error.message(), message, "\n{error}");
    assert_eq!(
        (error.line(), error.column()),
        (Some(line), Some(column)),
        "\n{error}"
    );
    assert_shown(&error, text.lines().nth(line - 1).expect("the line"));
    error
}

/// Checks that the error as displayed has the origin, the line of the file and a caret under the place.
fn assert_shown(error: &Error, source: &str) {
    let (line, column) = error.line().zip(error.column()).expect("a place");
    let display = error.to_string();
    assert!(
        display.contains(&format!("--> {ORIGIN}:{line}:{column}\n")),
        "\n{error}"
    );
    let numbered = format!("{line} | {source}");
    let mut rest = display
        .lines()
        .skip_while(|shown| shown.trim_end() != numbered.trim_end());
    let caret = rest
        .nth(1)
        .and_then(|carets| carets.find('^'))
        .expect("the line and a caret");
    assert_eq!(
        caret,
        numbered.find('|').expect("a bar") + 2 + column - 1,
        "\n{error}"
    );
}

#[test]
fn an_empty_file_is_the_default() {
    assert_eq!(parse(""), Config::default());
    assert_eq!(
        parse("# nothing\n[workers]\n[app]\n[limits]\n[control]\n[metrics]\n[log]\n"),
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
    for section in ["workers", "app", "limits", "control", "metrics", "log"] {
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
            || (key != "metrics.listen" && defaults.contains(&format!("\n{name} = ")));
        let needs = match key {
            "log.file" => "log.target = \"file\"\n",
            "app.command" => "",
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

/// Returns a configuration in which every key has a value.
fn everything() -> Config {
    let mut config = Config::default();
    config.listen.push(Listen {
        source: "unix:/run/rpc.sock".parse().expect("an address"),
        byte_order: OrderRule::Auto,
        backlog: 1,
        access: Some(Access {
            mode: Mode(0o7),
            owner: User::find("0").expect("users"),
            group: Group::find("0").expect("groups"),
        }),
        freebind: false,
    });
    config.workers.max_requests = NonZeroU32::new(1000);
    config.workers.max_lifetime = Some(Duration::from_secs(3600));
    config.app = app::everything();
    config.control = ControlConfig {
        socket: Some(PathBuf::from("/run/control.sock")),
        mode: Some(Mode(0o640)),
        admin_group: Group::find("0").expect("groups"),
        read_group: Group::find("3999999999").expect("groups"),
    };
    config.metrics.listen = Some("127.0.0.1:9464".parse().expect("an address"));
    config.metrics.hosts = ["node1", "node1.example.org"]
        .map(|name| HostName(name.to_owned()))
        .to_vec();
    config.log = Log {
        target: LogTarget::File,
        file: Some(PathBuf::from("/var/log/x")),
        format: LogFormat::Json,
        level: LogLevel::Trace,
    };
    config
}

#[test]
fn entries_have_every_key() {
    let config = everything();
    let entries = config.entries(&Keys::new()).into_iter();
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
        }
    );
    let number = |number| NonZeroU32::new(number).expect("not zero");
    let workers = WorkerConfig {
        count: Count::Exactly(number(256)),
        dispatch: Dispatch::RoundRobin,
        rebalance: RebalanceMode::Manual,
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
    let log = Log {
        target: LogTarget::Syslog,
        file: None,
        format: LogFormat::Text,
        level: LogLevel::Warn,
    };
    assert_eq!(config.log, log);
}

#[test]
fn an_unknown_key_is_refused_with_a_suggestion() {
    let error = refused(
        "[log]\n«levle = 1\n",
        "unknown key `levle`, expected one of `target`, `file`, `format`, `level`",
    );
    assert_eq!(error.help(), Some("did you mean \"level\"?"));
    assert!(
        error.to_string().contains("help: did you mean \"level\"?"),
        "\n{error}"
    );

    let sections = "`listen`, `workers`, `app`, `limits`, `control`, `metrics`, `log`";
    let error = refused(
        "[«limit]\n",
        &format!("unknown key `limit`, expected one of {sections}"),
    );
    assert_eq!(error.help(), Some("did you mean \"limits\"?"));
    let error = refused(
        "[«systemd]\n",
        &format!("unknown key `systemd`, expected one of {sections}"),
    );
    assert_eq!(error.help(), None);

    let error = Config::parse("limits.queue-timeout = \"1s\"", ORIGIN)
        .expect_err("a key of another version");
    assert_eq!((error.line(), error.column()), (Some(1), Some(8)));
    let error = Config::parse("limits.max_clients = 1", ORIGIN).expect_err("not kebab-case");
    assert_eq!(error.help(), Some("did you mean \"max-clients\"?"));
    let error = Config::parse("\"`a\\u001b`\" = 1", ORIGIN).expect_err("a strange key");
    assert!(
        !error.to_string().contains('\u{1b}'),
        "escaped on its way to a terminal"
    );
}

#[test]
fn an_unknown_word_is_refused_with_a_suggestion() {
    let cases = [
        (
            "[workers]\ndispatch = «\"least-load\"",
            "`least-load`, expected `least-loaded` or `round-robin`",
            "least-loaded",
        ),
        (
            "[log]\nformat = «\"jsno\"",
            "`jsno`, expected `text` or `json`",
            "json",
        ),
        (
            "[log]\nlevel = «\"inof\"",
            "`inof`, expected one of `error`, `warn`, `info`, `debug`, `trace`",
            "info",
        ),
        (
            "[log]\ntarget = «\"sylsog\"",
            "`sylsog`, expected one of `auto`, `stderr`, `syslog`, `file`",
            "syslog",
        ),
        (
            "listen = [{ address = \"[::]:1\", byte-order = «\"litle\" }]",
            "`litle`, expected one of `little`, `big`, `auto`",
            "little",
        ),
    ];
    for (marked, message, like) in cases {
        let error = refused(marked, &format!("unknown word {message}"));
        assert_eq!(
            error.help(),
            Some(format!("did you mean \"{like}\"?").as_str())
        );
    }
}

#[test]
fn a_value_of_a_wrong_type_is_refused() {
    refused(
        "workers = «[\"auto\"]",
        "invalid type: array, expected a table",
    );
    refused(
        "listen = «\"[::]:1\"",
        "invalid type: string \"[::]:1\", expected an array",
    );
    refused(
        "log.level = «{ info = {} }",
        "invalid type: table, expected a string",
    );
    refused(
        "workers.count = «true",
        "invalid type: boolean `true`, expected \"auto\" or a number from 1 to 256",
    );
    refused(
        "listen = [«5]",
        "invalid type: integer `5`, expected an address such as \"127.0.0.1:8080\", or a table with the key `address`",
    );
}

#[test]
fn a_count_out_of_its_range_is_refused() {
    let count = "expected \"auto\" or a number from 1 to 256";
    for wrong in ["0", "257", "-1"] {
        refused(
            &format!("[workers]\ncount = «{wrong}"),
            &format!("invalid value: integer `{wrong}`, {count}"),
        );
    }
    refused(
        "[workers]\ncount = «\"4\"",
        &format!("invalid value: string \"4\", {count}"),
    );
    refused(
        "[limits]\nmax-clients = «\"none\"",
        "invalid value: string \"none\", expected \"auto\" or a number from 1 to 4294967295",
    );
    refused(
        "[workers]\nmax-requests = «0",
        "invalid value: integer `0`, expected \"none\" or a number from 1 to 4294967295",
    );
    refused(
        "[limits]\nmax-clients-per-address = «\"auto\"",
        "invalid value: string \"auto\", expected \"none\" or a number from 1 to 4294967295",
    );
    refused(
        "[limits]\nipv6-prefix = «129",
        "invalid value: integer `129`, expected a number from 1 to 128",
    );
    refused(
        "listen = [{ address = \"[::]:1\", backlog = «65536 }]",
        "invalid value: integer `65536`, expected a number from 1 to 65535",
    );
}

#[test]
fn a_duration_in_m_is_refused_as_it_means_months() {
    for (written, meant) in [
        ("1M", "1m"),
        ("1h 30M", "1h 30m"),
        ("2 M", "2 m"),
        ("1h5M3s", "1h5m3s"),
    ] {
        for key in [
            "idle-timeout",
            "stall-timeout",
            "drain-timeout",
            "tcp-keepalive",
        ] {
            let message = format!("\"{written}\": M stands for months; did you mean \"{meant}\"?");
            refused(&format!("[limits]\n{key} = «\"{written}\""), &message);
        }
    }
    parse("[limits]\nidle-timeout = \"1month\"\nsend-timeout = \"2months 1ms\"");
}

#[test]
fn a_duration_out_of_its_range_is_refused() {
    let suffix = "in quotes, such as \"30s\" or \"1m 30s\"";
    let keys = [
        "limits.idle-timeout",
        "limits.frame-timeout",
        "limits.send-timeout",
        "limits.request-timeout",
    ];
    for key in keys.into_iter().chain(["workers.max-lifetime"]) {
        for wrong in ["0s", "15 parsecs", "", "366days", "auto", "584554531y"] {
            let expected = format!("expected \"none\" or a duration from 1ms to 1year {suffix}");
            refused(
                &format!("{key} = «\"{wrong}\""),
                &format!("invalid value: string \"{wrong}\", {expected}"),
            );
        }
    }
    for wrong in ["9ms", "none"] {
        refused(
            &format!("[limits]\nstall-timeout = «\"{wrong}\""),
            &format!(
                "invalid value: string \"{wrong}\", expected a duration from 10ms to 1year {suffix}"
            ),
        );
    }
    refused(
        "[limits]\ndrain-timeout = «\"none\"",
        &format!("invalid value: string \"none\", expected a duration from 0s to 1year {suffix}"),
    );
    refused(
        "[workers]\nstart-timeout = «10",
        &format!("invalid value: integer `10`, expected a duration from 1ms to 1year {suffix}"),
    );
    for wrong in ["0s", "1500ms", "32768s", "soon"] {
        refused(
            &format!("[limits]\ntcp-keepalive = «\"{wrong}\""),
            &format!(
                "invalid value: string \"{wrong}\", expected \"none\" or \
                 a duration in whole seconds from 1s to 32767s in quotes, such as \"5m\""
            ),
        );
    }
}

#[test]
fn a_size_out_of_its_range_is_refused() {
    let size = |min, max| {
        format!(
            "expected a size from {min} to {max} such as \"64KiB\" or \"1MB\", or a number of bytes"
        )
    };
    for wrong in ["63B", "256.1MiB", "1 furlong", "", "99999999999EiB", "none"] {
        let message = format!(
            "invalid value: string \"{wrong}\", {}",
            size("64B", "256MiB")
        );
        refused(&format!("[limits]\nmax-frame = «\"{wrong}\""), &message);
    }
    refused(
        "[limits]\nmax-frame = «-64",
        &format!("invalid value: integer `-64`, {}", size("64B", "256MiB")),
    );
    refused(
        "[limits]\nbuffers = «\"2TiB\"",
        "invalid value: string \"2TiB\", expected \"auto\" or a size from 256B to 1TiB such as \"64KiB\" or \"1MB\", or a number of bytes",
    );
}

#[test]
fn a_mode_is_four_octal_digits_in_quotes() {
    for wrong in ["0888", "660", "1777", "00660", "0o66", "+660", "0é1"] {
        let message = format!(
            "invalid value: string \"{wrong}\", expected an octal mode from \"0000\" to \"0777\" in quotes"
        );
        refused(&format!("[control]\nmode = «\"{wrong}\""), &message);
    }
    refused(
        "listen = [{ address = \"unix:/x\", mode = «660 }]",
        "invalid value: integer `660`, expected an octal mode from \"0000\" to \"0777\" in quotes",
    );
    let error = Config::parse("[control]\nmode = 0660", ORIGIN).expect_err("a bare mode");
    assert_eq!(
        error.help(),
        Some("a mode is written in quotes, such as \"0660\"")
    );
    assert_eq!((error.line(), error.column()), (Some(2), Some(8)));
}

#[test]
fn a_group_opens_the_control_socket_unless_a_mode_is_given() {
    for (text, mode) in [
        ("", 0o660),
        ("admin-group = \"0\"", 0o666),
        ("read-group = \"0\"", 0o666),
        ("read-group = \"0\"\nmode = \"0640\"", 0o640),
        ("mode = \"0666\"", 0o666),
    ] {
        assert_eq!(
            parse(&format!("[control]\n{text}")).control.mode(),
            Mode(mode),
            "{text}"
        );
    }
}

#[test]
fn an_unknown_group_of_the_control_socket_is_refused() {
    for key in ["admin-group", "read-group"] {
        refused(
            &format!("[control]\n{key} = «\"no such group\""),
            "there is no group \"no such group\"",
        );
        let message =
            "invalid value: integer `5`, expected the name or the number of a group in quotes";
        refused(&format!("[control]\n{key} = «5"), message);
    }
}

#[test]
fn an_invalid_address_is_refused_alone_and_in_a_table() {
    let message = "\"localhost:80\" is not a valid address: expected an IP address and a port (\"127.0.0.1:8080\", \
                   \"[::1]:8080\") or a Unix socket (\"unix:/run/fdpassd/rpc.sock\"), or a socket of \
                   systemd's (\"systemd:rpc\")";
    refused("listen = [\n  «\"localhost:80\",\n]", message);
    refused("[[listen]]\naddress = «\"localhost:80\"", message);
    refused(
        "listen = [«\"unix:x\"]",
        "the path \"x\" of a Unix socket must be absolute",
    );
    for name in ["", "a:b", "ä", "a\tb"] {
        let message =
            format!("{name:?} is not a valid descriptor name: 1 to 255 ASCII characters but \":\"");
        refused(
            &format!(
                "listen = [«{}]",
                serde_json::json!(format!("systemd:{name}"))
            ),
            &message,
        );
    }
    for (length, fits) in [(255, true), (256, false)] {
        assert_eq!(
            format!("systemd:{}", "x".repeat(length))
                .parse::<Source>()
                .is_ok(),
            fits
        );
    }
    refused(
        "listen = [{ address = «5 }]",
        "invalid value: integer `5`, expected an address in quotes, such as \"127.0.0.1:8080\"",
    );
}

#[test]
fn a_table_of_listen_is_checked_like_any_other() {
    refused("listen = [«{ backlog = 5 }]", "missing key `address`");
    refused(
        "[[listen]]\naddress = \"[::]:1\"\n«[[listen]]\nbacklog = 5",
        "missing key `address`",
    );
    let error = refused(
        "listen = [\"[::]:1\", { «adress = \"[::]:2\" }]",
        "unknown key `adress`, expected one of `address`, `byte-order`, `backlog`, `mode`, `owner`, `group`, `freebind`",
    );
    assert_eq!(error.help(), Some("did you mean \"address\"?"));
    refused(
        "listen = [{ address = \"[::]:1\", «address = \"[::]:2\" }]",
        "`address` is given twice, the first time at /etc/fdpassd.toml:1:13",
    );
}

#[test]
fn an_unknown_owner_or_group_is_refused() {
    refused(
        "listen = [{ address = \"unix:/x\", owner = «\"no one\" }]",
        "there is no user \"no one\"",
    );
    refused(
        "listen = [{ address = \"unix:/x\", group = «\"no one\" }]",
        "there is no group \"no one\"",
    );
    let message = "invalid value: integer `0`, expected the name or the number of a user in quotes";
    refused("listen = [{ address = \"unix:/x\", owner = «0 }]", message);
}

#[test]
fn keys_of_unix_sockets_are_refused_for_tcp() {
    let message = "mode, owner and group are for Unix sockets, [::]:1 is a TCP address";
    for key in ["mode = \"0660\"", "owner = \"0\"", "group = \"0\""] {
        refused(
            &format!("listen = [{{ «{key}, address = \"[::]:1\" }}]"),
            message,
        );
        refused(
            &format!("[[listen]]\naddress = \"[::]:1\"\n«{key}"),
            message,
        );
        let message = "mode, owner and group are for Unix sockets, systemd:rpc is made by systemd (SocketMode=, \
                       SocketUser=, SocketGroup=)";
        refused(
            &format!("listen = [{{ address = \"systemd:rpc\", «{key} }}]"),
            message,
        );
    }
}

#[test]
fn listen_needs_one_address_and_each_only_once() {
    refused(
        "\n«listen = []",
        "there must be at least one address to listen on",
    );
    refused(
        "listen = [\"[::1]:1\", «\"[0::1]:1\"]",
        "[::1]:1 is already listened on by an earlier entry",
    );
    refused(
        "listen = [\"unix:/x/y\", { backlog = 1, «address = \"unix:/x//y\" }]",
        "unix:/x//y is already listened on by an earlier entry",
    );
    refused(
        "[[listen]]\naddress = \"0.0.0.0:1\"\n[[listen]]\n«address = \"0.0.0.0:1\"",
        "0.0.0.0:1 is already listened on by an earlier entry",
    );
    refused(
        "listen = [\"systemd:rpc\", «\"systemd:rpc\"]",
        "systemd:rpc is already listened on by an earlier entry",
    );
    assert_eq!(
        parse("listen = [\"[::1]:0\", \"[::1]:0\", \"systemd:a\", \"systemd:b\"]")
            .listen
            .len(),
        4
    );
}

#[test]
fn more_than_64_listeners_are_refused() {
    let entries = |count: u16| {
        (1..=count)
            .map(|port| format!("\"[::]:{port}\",\n"))
            .collect::<String>()
    };
    assert_eq!(
        parse(&format!("listen = [{}]", entries(64))).listen.len(),
        64
    );
    let marked = format!("listen = [{}«\"[::]:65\", \"[::]:66\"]", entries(64));
    refused(
        &marked,
        "at most 64 addresses can be listened on, these are 66",
    );
}

#[test]
fn automatic_byte_order_is_refused_for_long_frames() {
    let message = "byte-order \"auto\" needs a max-frame below 16MiB: with longer frames, \
                   the length of a short big-endian one is valid in little-endian order too";
    let listen = "listen = [\"[::]:1\", { address = \"[::]:2\", «byte-order = \"auto\" }]";
    refused(
        &format!("{listen}\n[limits]\nmax-frame = \"16MiB\""),
        message,
    );
    parse(&format!("{listen}\n[limits]\nmax-frame = 16777215").replace('«', ""));
}

#[test]
fn buffers_below_four_frames_are_refused() {
    let message = |least| {
        format!(
            "buffers must be at least 4 times max-frame ({least}), so that one client can never fill them"
        )
    };
    refused("[limits]\n«buffers = 4194303", &message("4MiB"));
    refused(
        "[limits]\nmax-frame = \"65MiB\"\n«buffers = \"256MiB\"",
        &message("260MiB"),
    );
    parse("[limits]\nmax-frame = \"65MiB\"");
    refused("[limits]\nmax-frame = 65\n«buffers = 259", &message("260B"));
    parse("[limits]\nbuffers = 4194304");
}

#[test]
fn a_request_timeout_below_the_stall_timeout_needs_no_other_key() {
    let limits = parse("[limits]\nrequest-timeout = \"500ms\"").limits;
    assert!(
        limits
            .request_timeout
            .is_some_and(|timeout| timeout < limits.stall_timeout)
    );
}

#[test]
fn a_reload_refuses_another_control_socket_only() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("x.toml");
    let next = |current: &Config, text: &str| {
        std::fs::write(&path, text).expect("a file");
        current
            .load_next(&Keys::new(), place(&path), false)
            .map(|loaded| loaded.config)
    };
    let refusal = |stays| {
        format!(
            "control.socket cannot be changed by a reload; it stays {stays} until the daemon is restarted"
        )
    };
    let current = parse("[control]\nsocket = \"/run/x\"");

    let error = next(
        &current,
        "control = { mode = \"0600\", socket = \"/run/y\" }",
    )
    .expect_err("another path");
    assert_eq!(error.message(), refusal("/run/x"));
    assert_eq!(
        (error.line(), error.column()),
        (Some(1), Some(28)),
        "\n{error}"
    );
    let error = next(&current, "[control]\nmode = \"0600\"").expect_err("no path");
    assert_eq!(
        (error.message(), error.line()),
        (refusal("/run/x").as_str(), None)
    );
    let error = next(&parse(""), "[control]\nsocket = \"/run/y\"").expect_err("a path");
    assert_eq!(
        (error.message(), error.line()),
        (refusal("at its default place").as_str(), Some(2))
    );

    let kept = Config {
        control: ControlConfig {
            socket: current.control.socket.clone(),
            ..everything().control
        },
        app: AppConfig::default(),
        ..everything()
    };
    assert_eq!(next(&current, &kept.to_toml()), Ok(kept));
    let error =
        next(&current, "listen = []\n[control]\nsocket = \"/run/y\"").expect_err("two faults");
    assert_eq!(
        error.message(),
        "there must be at least one address to listen on"
    );
}

#[test]
fn a_control_socket_is_an_absolute_path_of_its_own() {
    refused(
        "listen = [\"unix:/run/x\"]\n[control]\n«socket = \"/run/x\"",
        "unix:/run/x is already listened on for clients",
    );
    refused(
        "[control]\nsocket = «\"x\"",
        "the path \"x\" of a Unix socket must be absolute",
    );
    let message = "\"unix:/x\": only a path is expected here, without \"unix:\"";
    refused("[control]\nsocket = «\"unix:/x\"", message);
    refused(
        "[control]\nsocket = «5",
        "invalid value: integer `5`, expected an absolute path in quotes",
    );
}

#[test]
fn an_address_in_use_is_refused_for_metrics() {
    for address in ["127.0.0.1:1", "unix:/run/x"] {
        let message = format!("{address} is already listened on for clients");
        refused(
            &format!("listen = [\"[::]:2\", \"{address}\"]\n[metrics]\n«listen = \"{address}\""),
            &message,
        );
    }
    let marked =
        "control.socket = \"/run/x\"\nmetrics = { hosts = [], «listen = \"unix:/run//x\" }";
    refused(marked, "unix:/run//x is the control socket");
    refused(
        "metrics.listen = «9464",
        "invalid value: integer `9464`, expected an address in quotes, such as \"127.0.0.1:8080\"",
    );
    assert!(
        parse("listen = [\"[::1]:0\"]\nmetrics.listen = \"[::1]:0\"")
            .metrics
            .listen
            .is_some()
    );
}

#[test]
fn an_invalid_host_name_is_refused() {
    let expected = "expected a host's name of letters, digits, \"-\", \"_\" and \".\" in quotes and without a port, \
                    such as \"node1.example.org\"";
    let long = "a".repeat(64);
    let longer = [&long[1..]; 4].join(".");
    for wrong in [
        "",
        ".",
        "a.",
        "a..b",
        "-a",
        "a-",
        "*.example.org",
        "a:80",
        "::1",
        "a b",
        "ü",
        &long,
    ] {
        refused(
            &format!("metrics.hosts = [\"a\", «\"{wrong}\"]"),
            &format!("invalid value: string \"{wrong}\", {expected}"),
        );
    }
    Config::parse(&format!("metrics.hosts = [{longer:?}]"), ORIGIN)
        .expect_err("255 bytes, and a line too long to show");
    refused(
        "metrics.hosts = [«1]",
        &format!("invalid value: integer `1`, {expected}"),
    );
    refused(
        "metrics.hosts = «\"a\"",
        "invalid type: string \"a\", expected an array",
    );
    let names = |count: usize| {
        (1..=count)
            .map(|i| format!("\"{}{i}\",\n", &longer[..248]))
            .collect::<String>()
    };
    assert_eq!(
        parse(&format!("metrics.hosts = [{}]", names(64)))
            .metrics
            .hosts
            .len(),
        64
    );
    refused(
        &format!("metrics.hosts = [{}«\"b\", \"c\"]", names(64)),
        "there can be at most 64 names, these are 66",
    );
}

#[test]
fn a_log_file_and_its_target_need_each_other() {
    refused(
        "[log]\n«target = \"file\"",
        "target \"file\" needs the key `file`",
    );
    for target in ["auto", "stderr", "syslog"] {
        let marked = format!("[log]\ntarget = \"{target}\"\n«file = \"/x\"");
        refused(&marked, "`file` is only for target \"file\"");
    }
    refused(
        "log = { «file = \"/x\" }",
        "`file` is only for target \"file\"",
    );
    for wrong in ["x", ""] {
        let message =
            format!("invalid value: string \"{wrong}\", expected an absolute path in quotes");
        refused(
            &format!("[log]\ntarget = \"file\"\nfile = «\"{wrong}\""),
            &message,
        );
    }
}

#[test]
fn json_is_refused_for_syslog() {
    let message =
        "format \"json\" is for standard error and files: lines of syslog have a form of their own";
    refused("[log]\ntarget = \"syslog\"\n«format = \"json\"", message);
    for target in [
        "target = \"auto\"",
        "target = \"stderr\"",
        "target = \"file\"\nfile = \"/x\"",
    ] {
        assert_eq!(
            parse(&format!("[log]\nformat = \"json\"\n{target}"))
                .log
                .format,
            LogFormat::Json
        );
    }
}

#[test]
fn a_byte_order_mark_and_carriage_returns_move_no_caret() {
    let message = "invalid value: integer `0`, expected \"auto\" or a number from 1 to 256";
    for (text, column) in [
        ("workers.count = 0\r\n", 17),
        ("# ü\r\n[workers]\r\ncount = 0\r\n", 9),
    ] {
        let line = text.lines().count();
        for text in [
            text.to_owned(),
            format!("\u{feff}{text}"),
            text.replace("\r\n", "\n"),
        ] {
            let error = Config::parse(&text, ORIGIN).expect_err(message);
            assert_eq!(error.message(), message);
            assert_eq!(
                (error.line(), error.column()),
                (Some(line), Some(column)),
                "{text:?}\n{error}"
            );
            assert_shown(
                &error,
                text.lines()
                    .last()
                    .expect("a line")
                    .trim_start_matches('\u{feff}'),
            );
        }
    }
    assert_eq!(
        parse(&format!("\u{feff}{}", SHIPPED.replace('\n', "\r\n"))),
        Config::default()
    );
    refused(
        "log = { file = \"/ü\", «levle = 1 }",
        "unknown key `levle`, expected one of `target`, `file`, `format`, `level`",
    );
}

#[test]
fn an_error_at_the_end_is_shown_behind_the_last_line() {
    for end in ["", "\n", "\r\n"] {
        let error =
            Config::parse(&format!("x = \"\"\"abc{end}"), ORIGIN).expect_err("an open string");
        assert_eq!(
            (error.line(), error.column()),
            (Some(1), Some(11)),
            "\n{error}"
        );
        assert_shown(&error, "x = \"\"\"abc");
    }
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

proptest! {
    #[test]
    fn no_text_that_looks_like_a_file_panics(text in "([a-z\\[\\]{}=\"'#.,0-9\\\\ \r\nüß\u{feff}-]|listen|limits)*") {
        explained(&text);
    }

    #[test]
    fn no_damage_to_a_file_panics(
        at in any::<prop::sample::Index>(),
        length in 0..40usize,
        put in "\\PC{0,3}|[\"\\[\\]{}\n=]",
    ) {
        let mut text: Vec<char> = everything().to_toml().chars().collect();
        let at = at.index(text.len());
        let end = (at + length).min(text.len());
        text.splice(at..end, put.chars());
        explained(&text.into_iter().collect::<String>());
    }

    #[test]
    fn every_configuration_is_read_back(config in configs()) {
        let text = config.to_toml();
        prop_assert_eq!(Config::parse(&text, ORIGIN), Ok(config), "{}", text);
    }
}

/// Checks that an error displays its place.
fn explained(text: &str) {
    if let Err(error) = Config::parse(text, ORIGIN)
        && let Some((line, column)) = error.line().zip(error.column())
    {
        assert!(
            error
                .to_string()
                .contains(&format!("--> {ORIGIN}:{line}:{column}\n")),
            "{text:?}\n{error}"
        );
    }
}

fn configs() -> impl Strategy<Value = Config> {
    (
        listeners(),
        workers(),
        limits(),
        any::<bool>(),
        0..=0o777u32,
    )
        .prop_map(|(listen, workers, limits, all, mode)| {
            let Config {
                app,
                control,
                metrics,
                log,
                ..
            } = if all { everything() } else { Config::default() };
            let control = ControlConfig {
                mode: all.then_some(Mode(mode)),
                ..control
            };
            Config {
                listen,
                workers,
                app,
                limits,
                control,
                metrics,
                log,
            }
        })
}

fn listeners() -> impl Strategy<Value = Vec<Listen>> {
    let orders = prop::sample::select(vec![OrderRule::Little, OrderRule::Big, OrderRule::Auto]);
    let listener = (0..3, orders, 1..=65_535u32, 0..=0o777u32);
    prop::collection::vec(listener, 1..=MAX_LISTENERS).prop_map(|listeners| {
        let numbered = listeners.into_iter().enumerate();
        let listen = |(index, (kind, byte_order, backlog, mode))| {
            let source = match kind {
                0 => format!("unix:/run/\"{index}\""),
                1 => format!("systemd:\"{index}\""),
                _ => format!("[::1]:{index}"),
            };
            let access = (kind == 0).then_some(Access {
                mode: Mode(mode),
                owner: None,
                group: None,
            });
            Listen {
                source: source.parse().expect("an address"),
                byte_order,
                backlog,
                access,
                freebind: kind == 2 && backlog % 2 == 0,
            }
        };
        numbered.map(listen).collect()
    })
}

fn workers() -> impl Strategy<Value = WorkerConfig> {
    let replaced = (any::<u32>(), prop::option::of(durations()));
    (0..=256u32, any::<bool>(), durations(), replaced).prop_map(
        |(count, in_turn, start_timeout, replaced)| WorkerConfig {
            count: NonZeroU32::new(count).map_or(Count::Auto, Count::Exactly),
            dispatch: if in_turn {
                Dispatch::RoundRobin
            } else {
                Dispatch::LeastLoaded
            },
            rebalance: if in_turn {
                RebalanceMode::Manual
            } else {
                RebalanceMode::Auto
            },
            start_timeout,
            max_requests: NonZeroU32::new(replaced.0),
            max_lifetime: replaced.1,
        },
    )
}

fn limits() -> impl Strategy<Value = Limits> {
    let counts = (any::<u32>(), any::<u32>());
    let sizes = (64..1u32 << 24, prop::option::of(0..1u64 << 39));
    let timeouts = prop::array::uniform4(prop::option::of(durations()));
    let stall = durations().prop_map(|duration| duration.max(Duration::from_millis(10)));
    let seconds = prop::option::of(1..=32_767u64);
    (
        counts,
        sizes,
        timeouts,
        stall,
        [durations(), durations()],
        seconds,
    )
        .prop_map(
            |((all, each), (frame, more), timeouts, stall, [drain, grace], seconds)| {
                let [idle_timeout, frame_timeout, send_timeout, request_timeout] = timeouts;
                Limits {
                    max_clients: NonZeroU32::new(all),
                    max_clients_per_address: NonZeroU32::new(each),
                    ipv6_prefix: NonZeroU32::new(each % 128 + 1).expect("not zero"),
                    max_frame: frame,
                    buffers: more.map(|more| 4 * u64::from(frame) + more),
                    idle_timeout,
                    frame_timeout,
                    send_timeout,
                    request_timeout,
                    stall_timeout: stall,
                    drain_timeout: drain,
                    restart_grace: grace,
                    tcp_keepalive: seconds.map(Duration::from_secs),
                }
            },
        )
}

fn durations() -> impl Strategy<Value = Duration> {
    (1_000_000..=31_557_600_000_000_000u64).prop_map(Duration::from_nanos)
}
