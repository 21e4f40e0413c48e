//! The keys of `[control]`.

use super::*;

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
fn a_reload_refuses_another_control_socket_only() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("x.toml");
    let next = |current: &Config, text: &str| {
        std::fs::write(&path, text).expect("a file");
        current
            .load_next(&GivenKeys::default(), place(&path), false)
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
        // The program of an app must exist.
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
