//! Unknown keys and words, wrong types, and values out of their ranges.

use super::*;

#[test]
fn an_unknown_key_is_refused_with_a_suggestion() {
    let error = refused(
        "[log]\n«levle = 1\n",
        "unknown key `levle`, expected one of `target`, `file`, `format`, `level`, `slow-request`",
    );
    assert_eq!(error.help(), Some("did you mean `level`?"));
    assert!(
        error.to_string().contains("help: did you mean `level`?"),
        "\n{error}"
    );

    let sections = "`listen`, `workers`, `app`, `limits`, `control`, `metrics`, `agent`, `log`";
    let error = refused(
        "[«limit]\n",
        &format!("unknown key `limit`, expected one of {sections}"),
    );
    assert_eq!(error.help(), Some("did you mean `limits`?"));
    let error = refused(
        "[«systemd]\n",
        &format!("unknown key `systemd`, expected one of {sections}"),
    );
    assert_eq!(error.help(), None);

    let error = Config::parse("limits.queue-timeout = \"1s\"", ORIGIN)
        .expect_err("a key of another version");
    assert_eq!((error.line(), error.column()), (Some(1), Some(8)));
    let error = Config::parse("limits.max_clients = 1", ORIGIN).expect_err("not kebab-case");
    assert_eq!(error.help(), Some("did you mean `max-clients`?"));
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
            "string \"least-load\", expected \"least-loaded\" or \"round-robin\"",
            "least-loaded",
        ),
        (
            "[workers]\nstart = «\"frok\"",
            "string \"frok\", expected \"exec\" or \"fork\"",
            "fork",
        ),
        (
            "[log]\nformat = «\"jsno\"",
            "string \"jsno\", expected \"text\" or \"json\"",
            "json",
        ),
        (
            "[log]\nlevel = «\"inof\"",
            "string \"inof\", expected one of \"error\", \"warn\", \"info\", \"debug\", \"trace\"",
            "info",
        ),
        (
            "[log]\ntarget = «\"sylsog\"",
            "string \"sylsog\", expected one of \"auto\", \"stderr\", \"syslog\", \"file\"",
            "syslog",
        ),
        (
            "listen = [{ address = \"[::]:1\", byte-order = «\"litle\" }]",
            "string \"litle\", expected one of \"little\", \"big\", \"auto\"",
            "little",
        ),
    ];
    for (marked, message, like) in cases {
        let error = refused(marked, &format!("invalid value: {message}"));
        assert_eq!(
            error.help(),
            Some(format!("did you mean \"{like}\"?").as_str())
        );
    }
}

#[test]
fn a_value_without_quotes_is_refused_with_the_quotes() {
    for (line, value) in [
        ("app.user = nobody", "nobody"),
        ("log.level = info", "info"),
        ("limits.max-frame = 1MiB # at most", "1MiB"),
        ("log.file = /var/log/fdpassd.log", "/var/log/fdpassd.log"),
    ] {
        let error = Config::parse(line, ORIGIN).expect_err("no quotes");
        let help = format!("did you mean \"{value}\"?");
        assert_eq!(error.help(), Some(help.as_str()), "\n{error}");
    }
    // These have another mistake.
    for line in [
        "log.level = ",
        "log.level = \"info",
        "log.level = 'info",
        "workers.count = 01",
    ] {
        let error = Config::parse(line, ORIGIN).expect_err("not TOML");
        assert!(!error.to_string().contains("in quotes: "), "\n{error}");
    }
}

#[test]
fn a_value_of_a_wrong_type_is_refused() {
    refused(
        "workers = «[\"auto\"]",
        "invalid value: array, expected a table",
    );
    refused(
        "listen = «\"[::]:1\"",
        "invalid value: string \"[::]:1\", expected an array",
    );
    refused(
        "log.level = «{ info = {} }",
        "invalid value: table, expected one of \"error\", \"warn\", \"info\", \"debug\", \"trace\"",
    );
    refused(
        "workers.count = «true",
        "invalid value: boolean `true`, expected \"auto\" or a number from 1 to 256",
    );
    refused(
        "listen = [«5]",
        "invalid value: integer `5`, expected an address such as \"127.0.0.1:8080\", or a table with the key `address`",
    );
}

#[test]
fn a_value_in_place_of_a_table_shows_the_key_that_was_meant() {
    for (text, meant) in [
        ("workers = 4", Some("workers.count = 4")),
        ("workers = \"auto\"", Some("workers.count = \"auto\"")),
        ("log = \"debug\"", Some("log.level = \"debug\"")),
        ("log = \"syslog\"", Some("log.target = \"syslog\"")),
        ("log = \"/var/log/x\"", Some("log.file = \"/var/log/x\"")),
        (
            "metrics = \"127.0.0.1:9090\"",
            Some("metrics.listen = \"127.0.0.1:9090\""),
        ),
        (
            "agent = \"127.0.0.1:9999\"",
            Some("agent.listen = \"127.0.0.1:9999\""),
        ),
        ("control = \"/run/x\"", Some("control.socket = \"/run/x\"")),
        ("app = [\"./app\"]", Some("app.command = [\"./app\"]")),
        ("app = [\n  \"./app\"]", None),
        ("limits = 4", None),
    ] {
        let error = Config::parse(text, ORIGIN).expect_err(text);
        assert!(error.message().ends_with(", expected a table"), "{error}");
        let help = meant.map(|meant| format!("did you mean {meant}?"));
        assert_eq!(error.help(), help.as_deref(), "{text}");
    }
}

#[test]
fn a_string_in_place_of_an_array_shows_how_to_write_it() {
    let unknown = "an array is written in brackets: [\"…\", \"…\"]";
    for (text, help) in [
        ("127.0.0.1:1", "did you mean [\"127.0.0.1:1\"]?"),
        ("python3 app.py", "did you mean [\"python3\", \"app.py\"]?"),
        ("sh -c 'a b'", unknown),
        ("", unknown),
    ] {
        let error = refused(
            &format!("app.command = «{text:?}"),
            &format!("invalid value: string {text:?}, expected an array"),
        );
        assert_eq!(error.help(), Some(help));
    }
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
            "drain-notice",
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
        "log.slow-request",
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
    assert_eq!(error.help(), Some("did you mean \"0660\"?"));
    assert_eq!((error.line(), error.column()), (Some(2), Some(8)));
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
