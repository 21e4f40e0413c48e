use std::collections::BTreeMap;

use proptest::prelude::*;
use serde::Deserialize;

use super::*;
use crate::config::merge::{self, ConfigTexts};
use crate::config::own::TableType;
use crate::config::tests::everything;
use crate::config::{Config, ConfigPlace, GivenKeys, Loaded, check};
use crate::proto::control::KeyOrigin;

#[derive(Deserialize)]
#[serde(default)]
#[allow(dead_code)]
#[derive(Default)]
struct Settings {
    pool_size: u8,
    #[serde(rename = "max-age")]
    max_age: u8,
    #[serde(rename = "retryAfter")]
    retry_after: Option<u8>,
    store: BTreeMap<String, u8>,
    mirror: Option<Mirror>,
}

#[derive(Deserialize)]
#[allow(dead_code)]
struct Mirror {
    url: String,
    is_on: bool,
}

fn rule() -> Rule<'static> {
    Rule::of_test("spell-d", TableType::of::<Settings>())
}

fn environment(variables: &[(&str, &str)]) -> Result<Option<ConfigText>, Error> {
    let all = variables
        .iter()
        .map(|(name, value)| (name.into(), value.into()));
    read(rule(), all)
}

fn sources(file: &str, variables: &[(&str, &str)]) -> Result<ConfigTexts, Error> {
    let file = ConfigText::new("x.toml".to_owned(), file.to_owned());
    let place = ConfigPlace::Files {
        file: None,
        standard: "x.toml".as_ref(),
    };
    Ok(ConfigTexts::new(place, vec![file], environment(variables)?))
}

fn load(file: &str, variables: &[(&str, &str)]) -> Result<Loaded, Error> {
    merge::parse(&sources(file, variables)?, rule(), |config| {
        check::check(config)
    })
}

/// Loads without the checks of keys against each other.
fn load_unchecked(file: &str, variables: &[(&str, &str)]) -> Result<Loaded, Error> {
    merge::parse(&sources(file, variables)?, rule(), |_| Ok(()))
}

fn parsed(text: &str) -> Config {
    let files = ConfigTexts::files(vec![ConfigText::new("x.toml".to_owned(), text.to_owned())]);
    merge::parse(&files, rule(), |_| Ok(()))
        .expect("it is good")
        .config
}

#[test]
fn every_key_has_a_variable() {
    let all = everything();
    let entries = all.entries(&GivenKeys::default());
    let variables: Vec<(String, String)> = entries
        .iter()
        .filter_map(|entry| {
            let name = format!("SPELL_D__{}", upper(&entry.key).replace('.', SEPARATOR));
            Some((name, entry.value.clone()?))
        })
        .collect();
    assert!(variables.len() > 40, "{}", variables.len());
    let pairs: Vec<_> = variables
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    let Loaded { config, given, .. } = load_unchecked("", &pairs).expect("it is good");
    assert_eq!(config.to_toml(), all.to_toml());
    let origins = config.entries(&given).into_iter();
    for entry in origins.filter(|entry| entry.value.is_some()) {
        assert_eq!(entry.origin, KeyOrigin::Environment, "{}", entry.key);
    }
}

#[test]
fn a_bare_word_is_a_string_and_all_else_is_toml() {
    for (variable, value, toml) in [
        ("LIMITS__MAX_FRAME", "64KiB", "limits.max-frame = '64KiB'"),
        ("LIMITS__MAX_FRAME", "65536", "limits.max-frame = 65536"),
        ("LIMITS__MAX_FRAME", " 65_536\n", "limits.max-frame = 65536"),
        ("LOG__LEVEL", "debug", "log.level = 'debug'"),
        ("LOG__LEVEL", "'debug'", "log.level = 'debug'"),
        ("CONTROL__MODE", "0600", "control.mode = '0600'"),
        (
            "CONTROL__SOCKET",
            "/run/a b/c",
            "control.socket = '/run/a b/c'",
        ),
        (
            "LISTEN",
            "['127.0.0.1:1', { address = '[::1]:2', backlog = 3 }]",
            "listen = ['127.0.0.1:1', { address = '[::1]:2', backlog = 3 }]",
        ),
        ("LIMITS", "{ max-clients = 7 }", "limits.max-clients = 7"),
        (
            "APP",
            "{ command = ['true'], directory = '/' }",
            "app = { command = ['true'], directory = '/' }",
        ),
        (
            "APP__ENVIRONMENT",
            "{ A = '1' }",
            "app.environment = { A = '1' }",
        ),
        (
            "APP__ENVIRONMENT__Mixed__NAME_1",
            "a=b",
            "app.environment.Mixed__NAME_1 = 'a=b'",
        ),
        (
            "APP__ENVIRONMENT__PORT",
            "8080",
            "app.environment.PORT = '8080'",
        ),
        (
            "APP__ENVIRONMENT__JSON",
            "{\"a\": [1]}",
            "app.environment.JSON = '{\"a\": [1]}'",
        ),
        (
            "APP__ENVIRONMENT__QUOTED",
            "' x '",
            "app.environment.QUOTED = ' x '",
        ),
        ("SPELL_D__POOL_SIZE", "3", "spell-d.pool_size = 3"),
        ("SPELL_D__MAX_AGE", "3", "spell-d.max-age = 3"),
        ("SPELL_D__RETRYAFTER", "3", "spell-d.retryAfter = 3"),
        ("SPELL_D__STORE__EU_WEST", "3", "spell-d.store.eu-west = 3"),
        (
            "SPELL_D__STORE",
            "{ Eu_West = 3 }",
            "spell-d.store.Eu_West = 3",
        ),
        ("SPELL_D", "{ max-age = 3 }", "spell-d.max-age = 3"),
    ] {
        let name = format!("SPELL_D__{variable}");
        let config =
            load_unchecked("", &[(&name, value)]).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(config.config, parsed(toml), "{variable}");
    }
    let mirror = [
        ("SPELL_D__SPELL_D__MIRROR__URL", "https://x"),
        ("SPELL_D__SPELL_D__MIRROR__IS_ON", "true"),
    ];
    let expected = "spell-d.mirror = { url = 'https://x', is_on = true }";
    assert_eq!(
        load("", &mirror).expect("it is good").config,
        parsed(expected)
    );
}

#[test]
fn a_variable_replaces_the_key_of_the_file_and_no_other() {
    let file = "listen = ['127.0.0.1:1', '127.0.0.1:2']\nlimits = { max-clients = 5, max-frame = '64KiB' }\n\
                app.environment = { A = '1', B = '2' }\nlog.target = 'file'\nlog.file = '/a'\n\
                spell-d = { pool_size = 1, max-age = 2 }";
    let variables = [
        ("SPELL_D__LIMITS__MAX_CLIENTS", "6"),
        ("SPELL_D__LISTEN", "['127.0.0.1:3']"),
        ("SPELL_D__APP__ENVIRONMENT__B", "'3'"),
        ("SPELL_D__LOG__FILE", "/b"),
        ("SPELL_D__SPELL_D__MAX_AGE", "4"),
    ];
    let loaded = load_unchecked(file, &variables).expect("it is good");
    let expected = "listen = ['127.0.0.1:3']\nlimits = { max-clients = 6, max-frame = '64KiB' }\n\
                    app.environment = { A = '1', B = '3' }\nlog.target = 'file'\nlog.file = '/b'\n\
                    spell-d = { pool_size = 1, max-age = 4 }";
    assert_eq!(loaded.config, parsed(expected));
    let origins: BTreeMap<String, KeyOrigin> = loaded
        .config
        .entries(&loaded.given)
        .into_iter()
        .map(|entry| (entry.key, entry.origin))
        .collect();
    for (key, origin) in [
        ("listen", KeyOrigin::Environment),
        ("limits.max-clients", KeyOrigin::Environment),
        ("limits.max-frame", KeyOrigin::File),
        ("limits.buffers", KeyOrigin::Default),
        ("app.environment", KeyOrigin::Environment),
        ("log.file", KeyOrigin::Environment),
        ("log.target", KeyOrigin::File),
        ("spell-d.max-age", KeyOrigin::Environment),
        ("spell-d.pool_size", KeyOrigin::File),
    ] {
        assert_eq!(origins[key], origin, "{key}");
    }
    let files: Vec<_> = loaded.files.iter().map(|file| file.to_str()).collect();
    assert_eq!(files, [Some("x.toml"), Some("the environment")]);
}

#[test]
fn arguments_replace_variables() {
    let variables = [
        ("SPELL_D__WORKERS__COUNT", "3"),
        ("SPELL_D__LIMITS__MAX_CLIENTS", "6"),
    ];
    let text = "workers.count = 2";
    let place = ConfigPlace::CommandLine(text);
    let texts = place
        .read(crate::config::read::Pipes::Read)
        .expect("a text");
    let sources = ConfigTexts::new(
        place,
        texts,
        environment(&variables).expect("they are good"),
    );
    let loaded = merge::parse(&sources, rule(), |_| Ok(())).expect("it is good");
    assert_eq!(
        loaded.config,
        parsed("workers.count = 2\nlimits.max-clients = 6")
    );
    assert!(loaded.given.files.contains("workers.count"));
    assert_eq!(
        Vec::from_iter(&loaded.given.variables),
        ["limits.max-clients"]
    );
}

#[test]
fn only_variables_with_the_prefix_count() {
    for name in [
        "SPELL_D_",
        "SPELL_D_LIMITS__MAX_CLIENTS",
        "spell_d__LIMITS__MAX_CLIENTS",
        "SPELL-D__X",
        "FDPASSD__X",
        "XSPELL_D__X",
    ] {
        assert!(
            environment(&[(name, "1")])
                .expect("it is ignored")
                .is_none(),
            "{name}"
        );
    }
}

#[test]
fn a_mistake_names_its_variable_and_what_was_meant() {
    for (name, value, message, help) in [
        (
            "LIMITS__MAX_CLIENT",
            "5",
            "unknown key `max-client`, expected one of `max-clients`, ",
            Some("did you mean SPELL_D__LIMITS__MAX_CLIENTS?"),
        ),
        (
            "LIMITS__MAX__CLIENTS",
            "5",
            "unknown key `max`, expected one of `max-clients`, ",
            Some("did you mean SPELL_D__LIMITS__MAX_CLIENTS?"),
        ),
        (
            "LIMIT__MAX_CLIENTS",
            "5",
            "unknown key `limit`, expected one of `listen`, ",
            Some("did you mean SPELL_D__LIMITS__MAX_CLIENTS?"),
        ),
        (
            "SPELL_D__POL_SIZE",
            "5",
            "unknown key `pol-size`, expected one of `pool_size`",
            Some("did you mean SPELL_D__SPELL_D__POOL_SIZE?"),
        ),
        ("SPELL_D__MIRROR__URI", "x", "missing key `url`", None),
        ("", "5", "unknown key ``, expected one of `listen`", None),
        (
            "LIMITS__",
            "5",
            "unknown key ``, expected one of `max-clients`",
            None,
        ),
        (
            "LIMITS__MAX_CLIENTS",
            "many",
            "invalid value: string \"many\"",
            None,
        ),
        (
            "LIMITS__MAX_CLIENTS",
            "",
            "invalid value: string \"\"",
            None,
        ),
        (
            "LIMITS__MAX_CLIENTS",
            "5\nlisten = ['127.0.0.1:9']",
            "invalid value: string \"5\\nlisten",
            None,
        ),
        ("LIMITS__MAX_CLIENTS__X", "5", "invalid value: table", None),
        (
            "LISTEN",
            "127.0.0.1:1",
            "invalid value: string \"127.0.0.1:1\", expected an array",
            Some("did you mean [\"127.0.0.1:1\"]?"),
        ),
        (
            "LISTEN",
            "127.0.0.1:1, 127.0.0.1:2",
            "invalid value: string ",
            Some("did you mean [\"127.0.0.1:1\", \"127.0.0.1:2\"]?"),
        ),
        (
            "LISTEN",
            "['127.0.0.1:1'",
            "the array has no end: `]` is missing",
            None,
        ),
        (
            "LISTEN",
            "['127.0.0.1:1', 'x']",
            "\"x\" is not a valid address: ",
            None,
        ),
        (
            "WORKERS",
            "4",
            "invalid value: integer `4`, expected a table",
            Some("did you mean SPELL_D__WORKERS__COUNT?"),
        ),
        (
            "LOG__LEVEL",
            "dbug",
            "invalid value: string \"dbug\"",
            Some("did you mean \"debug\"?"),
        ),
        ("LOG__FILE", "/x", "`file` is only for target", None),
        (
            "LIMITS",
            "{ max-clients = 1, max-clients = 2 }",
            "`max-clients` is given twice",
            None,
        ),
        (
            "limits__MAX_CLIENTS",
            "5",
            "it is not in upper case, as SPELL_D__LIMITS__MAX_CLIENTS is",
            None,
        ),
    ] {
        let name = format!("SPELL_D__{name}");
        let error = load("", &[(&name, value)]).expect_err(&name);
        assert_eq!(error.origin(), name, "{error}");
        assert!(error.message().starts_with(message), "{error}");
        assert_eq!(error.help(), help, "{error}");
        assert_eq!(error.in_one_line(), format!("{name}: {}", error.message()));
        let shown = error.to_string();
        assert!(shown.contains(&name), "{shown}");
    }
    let error = load("", &[("SPELL_D__LOG__LEVEL", "dbug")]).expect_err("an unknown word");
    let shown = "error: invalid value: string \"dbug\", expected one of \"error\", \"warn\", \"info\", \"debug\", \"trace\"\n \
                 --> the environment:1:21\n  |\n1 | SPELL_D__LOG__LEVEL=dbug\n  |                     ^^^^\n  |\n  \
                 = help: did you mean \"debug\"?";
    assert_eq!(error.to_string(), shown);
    let error = load("", &[("SPELL_D__LISTEN", "['127.0.0.1:1', 'x']")]).expect_err("no address");
    assert!(
        error.to_string().contains(
            "\n1 | SPELL_D__LISTEN=['127.0.0.1:1', 'x']\n  |                                 ^^^"
        ),
        "{error}"
    );
    for (name, value) in [
        ("SPELL_D__APP__ENVIRONMENT__PASSWORD", "'hidden'hidden"),
        ("SPELL_D__APP__ENVIRONMENT", "{ PASSWORD = 'hidden' "),
        (
            "SPELL_D__APP",
            "{ environment = { PASSWORD = 'hidden' }, commend = [] }",
        ),
    ] {
        let error = load("", &[(name, value)]).expect_err("no TOML, or an unknown key");
        let shown = error.to_string();
        assert!(shown.contains(&format!("{name}=...")), "{shown}");
        assert!(!shown.contains("hidden"), "{shown}");
    }
    let error = load("", &[("SPELL_D__LIMITS__MAX_CLIENT", "5")]).expect_err("an unknown key");
    assert!(
        error
            .to_string()
            .contains("\n1 | SPELL_D__LIMITS__MAX_CLIENT=...\n  | ^^^^^^^^^^^^^^^^^^^^^^^^^^^\n"),
        "{error}"
    );
}

#[test]
fn a_conflict_is_shown_at_the_text_in_force() {
    let file = "limits.max-frame = '64KiB'\nlimits.buffers = '1MiB'";
    let error = load(file, &[("SPELL_D__LIMITS__MAX_FRAME", "1MiB")]).expect_err("too small");
    assert!(
        error
            .message()
            .starts_with("buffers must be at least 4 times"),
        "{error}"
    );
    assert_eq!(error.origin(), "x.toml", "{error}");
    let error = load(file, &[("SPELL_D__LIMITS__BUFFERS", "128KiB")]).expect_err("too small");
    assert_eq!(error.origin(), "SPELL_D__LIMITS__BUFFERS", "{error}");
}

#[test]
fn two_variables_for_one_key_are_refused() {
    for (first, second) in [
        ("LIMITS", "LIMITS__MAX_CLIENTS"),
        ("APP__ENVIRONMENT", "APP__ENVIRONMENT__A"),
    ] {
        let [first, second] = [first, second].map(|name| format!("SPELL_D__{name}"));
        let error = load("", &[(&second, "'1'"), (&first, "{}")]).expect_err("both");
        let message =
            format!("{second}: {first} gives a value for the same key, or for its whole table");
        assert_eq!(error.in_one_line(), message);
    }
}

#[test]
fn bytes_that_are_not_utf8_are_refused() {
    let bad = OsString::from(OsStr::from_bytes(b"SPELL_D__\xff"));
    let error = read(rule(), [(bad, "1".into())].into_iter()).expect_err("a bad name");
    assert_eq!(error.message(), "its name is not UTF-8");
    let bad = OsString::from(OsStr::from_bytes(b"\xff"));
    let name = OsString::from("SPELL_D__LOG__LEVEL");
    let error = read(rule(), [(name, bad)].into_iter()).expect_err("a bad value");
    assert_eq!(
        error.in_one_line(),
        "SPELL_D__LOG__LEVEL: its value is not UTF-8"
    );
}

proptest! {
    #[test]
    fn no_variables_panic(
        names in prop::collection::vec("(LIMITS|LISTEN|APP|ENVIRONMENT|SPELL_D|STORE|[A-Za-z_é\"]{0,4}|__){0,6}", 0..4),
        values in prop::collection::vec("([a-z\\[\\]{}=\"'#.,0-9\\\\ \r\nüß-]|listen|limits)*", 4),
    ) {
        let names: Vec<String> = names.iter().map(|name| format!("SPELL_D__{name}")).collect();
        let pairs: BTreeMap<_, _> = names.iter().map(String::as_str).zip(values.iter().map(String::as_str)).collect();
        let pairs = Vec::from_iter(pairs);
        if let Err(error) = load("", &pairs) {
            let is_named = names.iter().any(|name| error.in_one_line().contains(name.as_str()));
            prop_assert!(is_named || error.origin() == "x.toml", "{}", error);
        }
    }
}
