//! `[app]`.

use std::collections::BTreeMap;
use std::fs;
use std::num::NonZeroU32;
use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::config::app::Glob;
use crate::proto::app::{AppIdentity, AppOutput, AppSpec};
use crate::sys::process;

/// Returns an app of which every key has a value.
pub(super) fn everything() -> AppConfig {
    AppConfig {
        command: ["./run", "a \"b\"", ""].map(str::to_owned).to_vec(),
        directory: Some(PathBuf::from("/srv/shop")),
        environment: BTreeMap::from([("MODE".to_owned(), "a = \"b\"\n".to_owned())]),
        environment_file: Some(PathBuf::from("/etc/shop.env")),
        concurrency: NonZeroU32::new(16),
        max_memory: Some(512 << 20),
        user: Some("0".to_owned()),
        group: Some("nogroup".to_owned()),
        umask: Some(Mode(0o27)),
        output: AppOutput::Null,
        preload: true,
        watch: vec![Glob("lib/**/*.py".to_owned())],
        ..AppConfig::default()
    }
}

#[test]
fn all_keys_of_an_app_are_read() {
    let text = r#"
        [app]
        command = ["./run", 'a "b"', ""]
        directory = "/srv/shop"
        environment = { MODE = "a = \"b\"\n" }
        environment-file = "/etc/shop.env"
        concurrency = 16
        max-memory = "512MiB"
        user = "0"
        group = "nogroup"
        umask = "0027"
        output = "null"
        preload = true
        watch = ["lib/**/*.py"]
        [workers]
        start = "fork"
        "#;
    let config = parse(text);
    assert_eq!(config.app, everything());
    assert_eq!(parse(&config.dump()), config, "{}", config.dump());
    let text = "[app]\ncommand = [\"x\"]\nconcurrency = \"app\"\nmax-memory = \"none\"\noutput = \"log\"\npreload = false\nwatch = []";
    let default = AppConfig {
        command: vec!["x".to_owned()],
        directory: Some(PathBuf::from("/etc")),
        ..AppConfig::default()
    };
    assert_eq!(parse(text).app, default);
}

#[test]
fn a_mistake_in_a_key_of_an_app_has_its_place() {
    let with_command = |line: &str| format!("[app]\ncommand = [\"true\"]\n{line}");
    let names = "letters, digits and \"_\"";
    let memory = "expected \"none\" or a size from 1MiB to 1TiB such as \"64MiB\" or \"1MB\", or a number of bytes";
    let mode = "expected an octal mode from \"0000\" to \"0777\" in quotes";
    let account = "expected a name or a number in quotes";
    let pattern =
        "expected a pattern in quotes for paths below the directory, such as \"lib/**/*.py\"";
    for (line, message) in [
        (
            "command = «\"app.py\"",
            "invalid value: string \"app.py\", expected an array".to_owned(),
        ),
        ("command = «[]", "the command needs a program".to_owned()),
        (
            "command = «[\"\"]",
            "the command needs a program".to_owned(),
        ),
        (
            "command = [\"x\", «5]",
            "invalid value: integer `5`, expected a string in quotes, without NUL".to_owned(),
        ),
        (
            "command = [«\"a\\u0000\"]",
            "invalid value: string \"a\\0\", expected a string in quotes, without NUL".to_owned(),
        ),
    ] {
        refused(&format!("[app]\n{line}"), &message);
    }
    for (line, message) in [
        (
            "directory = «\"srv\"",
            "invalid value: string \"srv\", expected an absolute path in quotes".to_owned(),
        ),
        (
            "environment-file = «\"x.env\"",
            "invalid value: string \"x.env\", expected an absolute path in quotes".to_owned(),
        ),
        (
            "environment = «[\"A=1\"]",
            "invalid value: array, expected a table".to_owned(),
        ),
        (
            "environment = { A = «1 }",
            "invalid value: integer `1`, expected a string in quotes, without NUL".to_owned(),
        ),
        (
            "environment = { «a-b = \"1\" }",
            format!("\"a-b\" is not a name of {names}"),
        ),
        (
            "environment = { «LISTEN_FDS = \"1\" }",
            "LISTEN_FDS cannot be set: it is reserved for the daemon".to_owned(),
        ),
        (
            "concurrency = «4097",
            "invalid value: integer `4097`, expected \"app\" or a number from 1 to 4096".to_owned(),
        ),
        (
            "concurrency = «\"none\"",
            "invalid value: string \"none\", expected \"app\" or a number from 1 to 4096".to_owned(),
        ),
        ("max-memory = «5", format!("invalid value: integer `5`, {memory}")),
        (
            "user = «0",
            format!("invalid value: integer `0`, {account}"),
        ),
        ("group = «\"\"", format!("invalid value: string \"\", {account}")),
        ("umask = «18", format!("invalid value: integer `18`, {mode}")),
        (
            "umask = «\"27\"",
            format!("invalid value: string \"27\", {mode}"),
        ),
        (
            "output = «\"logg\"",
            "invalid value: string \"logg\", expected one of \"log\", \"inherit\", \"null\"".to_owned(),
        ),
        (
            "watch = [«\"../*.py\"]",
            format!("invalid value: string \"../*.py\", {pattern}"),
        ),
        (
            "watch = [\"a\", «\"/etc/*\"]",
            format!("invalid value: string \"/etc/*\", {pattern}"),
        ),
        (
            "«enviroment = {}",
            "unknown key `enviroment`, expected one of `command`, `directory`, `environment`, `environment-file`, \
             `concurrency`, `max-memory`, `user`, `group`, `umask`, `output`, `preload`, `watch`"
                .to_owned(),
        ),
    ] {
        refused(&with_command(line), &message);
    }
    refused("app = «5", "invalid value: integer `5`, expected a table");
}

#[test]
fn a_key_of_an_app_needs_a_command() {
    for line in [
        "directory = \"/srv\"",
        "environment = { A = \"1\" }",
        "environment-file = \"/etc/x\"",
        "concurrency = 1",
        "max-memory = \"1MiB\"",
        "user = \"root\"",
        "group = \"root\"",
        "umask = \"0022\"",
        "output = \"null\"",
        "preload = true",
        "watch = [\"*\"]",
    ] {
        let (key, _) = line.split_once(" = ").expect("a key");
        let message = format!("`{key}` needs the key `command`: there is no app without one");
        refused(&format!("[app]\n«{line}"), &message);
    }
    assert_eq!(
        parse("[app]\noutput = \"log\"\nenvironment = {}"),
        Config::default()
    );
}

/// A directory with a configuration file of an app.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Place {
        Place(tempfile::tempdir().expect("a directory"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str, mode: u32) -> String {
        let path = self.path(name);
        fs::write(&path, text).expect("it is ours");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("it is ours");
        path.display().to_string()
    }

    fn load(&self, text: &str) -> Result<AppConfig, Error> {
        self.write("x.toml", text, 0o644);
        Config::load(place(&self.path("x.toml"))).map(|loaded| loaded.config.app)
    }

    /// Checks that loading `marked` fails at the mark.
    fn refused(&self, marked: &str, message: &str) {
        let (before, _) = marked.split_once('«').expect("a mark");
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().expect("a line").chars().count() + 1;
        let error = self.load(&marked.replacen('«', "", 1)).expect_err(marked);
        assert_eq!(error.message(), message);
        assert_eq!(
            (error.line(), error.column()),
            (Some(line), Some(column)),
            "{error}"
        );
    }
}

#[test]
fn apps_are_forked_only_with_forked_workers() {
    let app = "[app]\ncommand = [\"true\"]\n";
    let why = "`preload` needs workers.start = \"fork\": the zygote of the workers starts that of the apps";
    refused(
        &format!("{app}«preload = true\n[workers]\nstart = \"exec\""),
        why,
    );
    parse(&format!("{app}preload = true\n[workers]\nstart = \"fork\""));
}

#[test]
fn an_app_is_found_in_the_directory_of_its_file() {
    let place = Place::new();
    let run = place.write("run", "", 0o755);
    let app = place
        .load("app.command = [\"./run\", \"x\"]")
        .expect("it is good");
    let spec = app.spec().expect("there is an app");
    let expected = AppSpec {
        command: vec![place.path("./run").display().to_string(), "x".to_owned()],
        directory: Some(place.0.path().to_owned()),
        environment: BTreeMap::new(),
        concurrency: None,
        max_memory: None,
        identity: None,
        umask: None,
        output: AppOutput::Log,
    };
    assert_eq!(spec, expected);
    let app = place.load("app.command = [\"sh\"]").expect("it is in PATH");
    assert_eq!(app.spec().expect("an app").command, ["sh"]);
    let path = place.0.path().display();
    let text = format!("app = {{ command = [\"run\"], environment = {{ PATH = \"{path}\" }} }}");
    place.load(&text).expect("it is in the PATH of the app");
    place
        .load(&format!(
            "app = {{ command = [\"{run}\"], directory = \"/\" }}"
        ))
        .expect("it has an absolute path");
    assert_eq!(Config::default().app.spec(), None);
}

#[test]
fn a_program_or_directory_that_is_missing_is_shown() {
    let place = Place::new();
    let plain = place.write("plain", "", 0o644);
    let path = std::env::var("PATH").expect("a PATH");
    let directory = place.0.path().display();
    place.refused(
        "app.command = [«\"no-such-program\"]",
        &format!("the program \"no-such-program\" is in no directory of PATH: {path}"),
    );
    place.refused(
        "app.command = [«\"python3 app.py\"]",
        "there is no program \"python3 app.py\"; each argument is a string of its own: [\"python3\", \"app.py\"]",
    );
    place.refused(
        "[app]\ncommand = [«\"./missing\", \"x\"]",
        &format!(
            "the program \"{directory}/./missing\" cannot be started: No such file or directory (os error 2)"
        ),
    );
    place.refused(
        &format!("[app]\ncommand = [«\"{plain}\"]"),
        &format!("the program \"{plain}\" cannot be started: it is not executable (mode 0644)"),
    );
    place.refused(
        "[app]\ncommand = [\"true\"]\n«directory = \"/nowhere\"",
        "the directory \"/nowhere\" cannot be used: No such file or directory (os error 2)",
    );
    place.refused(
        &format!("[app]\ncommand = [\"true\"]\n«directory = \"{plain}\""),
        &format!("the directory \"{plain}\" cannot be used: it is not a directory"),
    );
}

#[test]
fn variables_of_a_file_replace_those_of_the_table() {
    let place = Place::new();
    let file = place.write("x.env", "B=file\nC='x y'\n", 0o600);
    let text = format!(
        "[app]\ncommand = [\"true\"]\n«environment-file = \"{file}\"\nenvironment = {{ A = \"table\", B = \"table\" }}"
    );
    let app = place.load(&text.replace('«', "")).expect("it is good");
    let spec = app.spec().expect("an app");
    let expected = [("A", "table"), ("B", "file"), ("C", "x y")];
    assert_eq!(
        spec.environment,
        expected
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into()
    );
    place.write("x.env", "A=1\nsecret\n", 0o600);
    place.refused(&text, &format!("{file}:2: a line has the form KEY=VALUE"));
    fs::write(place.path("x.env"), b"A=1\n\nB=\xff").expect("it is ours");
    place.refused(&text, &format!("{file}:3: it is not UTF-8"));
    place.write("x.env", &format!("A={}", "x".repeat(40_000)), 0o600);
    let error = place.load(&text.replace('«', "")).expect_err("too long");
    assert!(
        error.message().contains("at most 32KiB are possible"),
        "{error}"
    );
    fs::remove_file(place.path("x.env")).expect("it is ours");
    place.refused(
        &text,
        &format!("cannot read {file}: No such file or directory (os error 2)"),
    );
}

#[test]
fn user_and_group_are_resolved_for_root_alone() {
    let place = Place::new();
    let load = |keys: &str| place.load(&format!("[app]\ncommand = [\"true\"]\n{keys}"));
    if process::user() != 0 {
        let error = load("user = \"root\"").expect_err("we are not root");
        assert!(
            error.message().starts_with("user and group need a daemon"),
            "{error}"
        );
        return;
    }
    let identity = |keys: &str| load(keys).expect(keys).spec().expect("an app").identity;
    let expected = |uid, gid, groups: &[u32]| {
        let groups = groups.to_vec();
        Some(AppIdentity { uid, gid, groups })
    };
    assert_eq!(identity(""), None);
    assert_eq!(
        identity("group = \"3999999999\""),
        expected(0, 3_999_999_999, &[3_999_999_999])
    );
    let both = "user = \"3999999998\"\ngroup = \"3999999999\"";
    assert_eq!(
        identity(both),
        expected(3_999_999_998, 3_999_999_999, &[3_999_999_999])
    );
    assert_eq!(identity("user = \"root\"").expect("one").gid, 0);
    let start = "[app]\ncommand = [\"true\"]\n";
    place.refused(
        &format!("{start}«user = \"3999999998\""),
        "the user \"3999999998\" has no entry with a group: the key `group` is needed",
    );
    place.refused(
        &format!("{start}«user = \"no-such-user\""),
        "there is no user \"no-such-user\"",
    );
    place.refused(
        &format!("{start}«group = \"no-such-group\""),
        "there is no group \"no-such-group\"",
    );
}

/// A restart or an upgrade that keeps the configuration also keeps what it needs, and looks nothing up.
#[test]
fn a_kept_app_has_its_variables_and_identity() {
    let place = Place::new();
    let file = place.write("x.env", "A=1", 0o600);
    let user = match process::user() {
        0 => "user = \"0\"\n",
        _ => "",
    };
    let app = place
        .load(&format!(
            "[app]\ncommand = [\"true\"]\n{user}environment-file = \"{file}\""
        ))
        .expect("it is good");
    fs::remove_file(&file).expect("it is ours");
    let config = Config {
        app: app.clone(),
        ..Config::default()
    };
    let (text, known) = (config.to_toml(), Identities::from_config(&config));
    let written = serde_json::to_string(&known).expect("JSON");
    let known: Identities = serde_json::from_str(&written).expect("JSON");
    let text = text.replace("user = \"0\"", "user = \"no-such-user\"");
    for kept in [
        Config::parse_kept(&text, "x", Some(&known)),
        Config::parse_last(&text, "x", Some(&known)),
    ] {
        assert_eq!(kept.expect("it is good").app.spec(), app.spec());
    }
}

#[test]
fn other_variables_of_a_file_are_a_change() {
    let place = Place::new();
    let file = place.write("x.env", "A=1", 0o600);
    let text = format!("[app]\ncommand = [\"true\"]\nenvironment-file = \"{file}\"");
    let load = || Config {
        app: place.load(&text).expect("it is good"),
        ..Config::default()
    };
    let before = load();
    assert_eq!(before.changes(&load()), []);
    place.write("x.env", "A=2", 0o600);
    let changes = before.changes(&load());
    assert_eq!(changes.len(), 1);
    assert_eq!(changes[0].key, "app.environment-file");
    let to = changes[0].to.as_deref().expect("a value");
    assert!(to.ends_with("# its variables have changed"), "{to}");
}
