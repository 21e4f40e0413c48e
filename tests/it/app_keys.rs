//! The keys of `[app]`: how the programs show them, and what is refused.

use std::fs;
use std::path::PathBuf;

use fdpassd::testing::{Running, eventually};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::needs::skip;
use crate::common::program::{OtherUser, Said, ctl, run};
use crate::common::{FDPASSD, start};
use crate::reload_keys::comes_true;

/// All keys of an app.
pub const KEYS: [&str; 12] = [
    "command",
    "directory",
    "environment",
    "environment-file",
    "concurrency",
    "max-memory",
    "user",
    "group",
    "umask",
    "output",
    "preload",
    "watch",
];

/// A configuration file in a directory of its own.
struct File(TempDir);

impl File {
    fn new(text: &str) -> File {
        let directory = tempfile::tempdir().expect("a directory");
        fs::write(directory.path().join("x.toml"), text).expect("it is ours");
        File(directory)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn run(&self, option: &str) -> Said {
        let file = self.path("x.toml").display().to_string();
        run(FDPASSD, &[option, "-c", &file])
    }
}

#[test]
fn an_app_is_shown_with_all_its_keys() {
    let file = File::new("[app]\ncommand = [\"true\", \"x\"]\nenvironment = { A = \"1\" }\n");
    let said = file.run("-T");
    let directory = file.0.path().display();
    let expected = format!(
        "\n[app]\ncommand = [\"true\", \"x\"]\ndirectory = \"{directory}\"\nenvironment = {{ A = \"1\" }}\n\
         concurrency = \"app\"\nmax-memory = \"none\"\noutput = \"log\"\npreload = false\nwatch = []\n\
         #environment-file is not set\n#user is not set\n#group is not set\n#umask is not set\n\n[limits]\n"
    );
    assert!(said.out.contains(&expected), "{}", said.out);
    fs::write(file.path("x.toml"), &said.out).expect("it is ours");
    assert_eq!(file.run("-T").out, said.out);
    assert!(KEYS.iter().all(|key| said.out.contains(key)));
}

#[test]
fn a_program_that_cannot_be_started_is_shown_with_a_caret() {
    let file = File::new("[app]\ncommand = [\"./app.py\"]\n");
    let program = file.path("./app.py");
    for option in ["-t", "-T"] {
        let said = file.run(option);
        assert_eq!((said.code, said.out.as_str()), (Some(78), ""));
        for words in [
            format!(
                "error: the program \"{}\" cannot be started: No such",
                program.display()
            ),
            format!(" --> {}:2:12\n", file.path("x.toml").display()),
            "2 | command = [\"./app.py\"]\n".to_owned(),
            "  |            ^^^^^^^^^^\n".to_owned(),
        ] {
            assert!(said.err.contains(&words), "{words} is not in {}", said.err);
        }
    }
    fs::write(&program, "").expect("it is ours");
    assert!(file.run("-t").err.contains("it is not executable (mode 0"));
}

#[test]
fn a_reload_to_a_broken_app_is_rejected() {
    let daemon = start("workers.count = 1");
    let mut client = daemon.connect();
    let directory = daemon.directory().display().to_string();
    let file = daemon.directory().join("app.env");
    fs::write(&file, "A=1\n secret").expect("it is ours");
    for (keys, words) in [
        (
            "command = [\"no-such-program\"]".to_owned(),
            "the program \"no-such-program\" is in no directory of PATH",
        ),
        (
            format!("command = [\"true\"]\nenvironment-file = \"{directory}/app.env\""),
            "app.env:2: a line has the form KEY=VALUE",
        ),
        (
            "command = [\"true\"]\nuser = \"no-such-user\"".to_owned(),
            "user",
        ),
        (
            "command = [\"true\"]\npreload = true".to_owned(),
            "`preload` needs workers.start = \"fork\"",
        ),
        ("output = \"null\"".to_owned(), "needs the key `command`"),
    ] {
        let refused = daemon.reload_with(&format!(
            "workers = {{ count = 1, start = \"exec\" }}\n[app]\n{keys}"
        ));
        let message = refused.expect_err(&keys).to_string();
        assert!(message.contains(words), "{keys}: {message}");
        assert!(!message.contains("secret"), "{message}");
        let checked = ctl(&daemon, &["config", "check"]);
        assert_eq!(checked.code, Some(1), "{checked:?}");
        assert!(checked.err.contains(words), "{checked:?}");
        client.call("ping", 1).expect("nothing has changed");
    }
    assert_eq!(daemon.status().generation.0, 1);
}

const APP: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/app_keys/app.py");

/// Returns the configuration with this value of a key; an empty value is that without the key.
fn config_with(key: &str, value: &str) -> String {
    let arguments = if key == "command" { value } else { "" };
    let line = match (key, value) {
        ("command", _) | (_, "") => String::new(),
        _ => format!("{key} = {value}\n"),
    };
    format!("workers.count = 1\n[app]\ncommand = [\"python3\", \"{APP}\"{arguments}]\n{line}")
}

/// Returns what shows the value of a key that is in force. An effect that takes time is waited for if it is expected.
fn shown(daemon: &Running, key: &str, expected: &str) -> String {
    let status = daemon.wait_for_workers();
    let app = status.workers[0].app.as_ref().expect("it has an app");
    let about = || daemon.call("about", ()).expect("a result");
    match key {
        "concurrency" => app.concurrency.to_string(),
        "output" => {
            // A line of the worker before may come late.
            let id = status.workers[0].id.expect("it has one");
            let line = format!("app: printed by the app worker={id}\n");
            let printed = || daemon.stderr().matches(&line).count();
            let mut calls = 0;
            let is_printed = comes_true(expected == "true", || {
                about();
                calls += 1;
                printed() > 0
            });
            if expected == "true" {
                // No line may come later, when the key has another value.
                eventually("each call is printed", || {
                    (printed() == calls).then_some(())
                });
            }
            is_printed
        }
        "max-memory" => {
            daemon.call("eat", ()).expect("a result");
            // It is checked once a second, while requests come.
            comes_true(expected == "true", || {
                about();
                daemon.wait_for_workers().workers[0].pid != status.workers[0].pid
            })
        }
        _ => match &about()[key] {
            Value::String(text) => text.clone(),
            value => value.to_string(),
        },
    }
}

#[test]
fn each_key_has_its_effect_after_a_reload() {
    if run("python3", &["--version"]).code != Some(0) {
        return skip("python3", "there is no python3");
    }
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("variables");
    fs::write(&file, "IN_FILE=2\n").expect("it is ours");
    let file = format!("{:?}", file.display().to_string());
    let own_user = crate::common::kernel::user().to_string();
    let mut rows: Vec<(&str, [&str; 2], [&str; 2])> = vec![
        ("command", ["", ", \"x\""], ["[]", "[\"x\"]"]),
        ("directory", ["\"/\"", "\"/proc\""], ["/", "/proc"]),
        ("environment", ["{}", "{ IN_TABLE = \"1\" }"], ["null", "1"]),
        ("environment-file", ["", &file], ["null", "2"]),
        ("concurrency", ["\"app\"", "3"], ["8", "3"]),
        ("max-memory", ["\"none\"", "\"100MiB\""], ["false", "true"]),
        ("umask", ["\"0022\"", "\"0027\""], ["022", "027"]),
        ("output", ["\"log\"", "\"null\""], ["true", "false"]),
        // With the value true its apps are in app_preload.rs.
        ("preload", ["", "false"], ["null", "null"]),
        // Only `fdpassd dev` uses it.
        ("watch", ["[]", "[\"*.py\"]"], ["null", "null"]),
    ];
    let of_users = [
        ("user", ["", "\"65534\""], [own_user.as_str(), "65534"]),
        ("group", ["", "\"65533\""], [own_user.as_str(), "65533"]),
    ];
    match OtherUser::if_root() {
        Some(_) => rows.extend(of_users),
        None => crate::common::needs::skip_part("root", "only root can have another user"),
    }
    let daemon = start(&config_with("command", ""));
    for (key, values, shows) in rows {
        for index in [0, 1, 0] {
            let reloaded = daemon.reload_with(&config_with(key, values[index]));
            assert!(reloaded.is_ok(), "{key}: {reloaded:?}");
            assert_eq!(
                shown(&daemon, key, shows[index]),
                shows[index],
                "{key} = {}",
                values[index]
            );
        }
    }
    let status = daemon.status();
    assert_eq!((status.lost_total, status.deaths_total), (0, 0));
}

#[test]
fn an_app_of_a_user_has_the_variables_of_that_user() {
    if run("python3", &["--version"]).code != Some(0) {
        return skip("python3", "there is no python3");
    }
    if OtherUser::new().is_none() {
        return;
    }
    let daemon = start(&config_with("command", ""));
    let login = |keys: &str| {
        let reloaded = daemon.reload_with(&format!("{}{keys}\n", config_with("command", "")));
        assert!(reloaded.is_ok(), "{keys}: {reloaded:?}");
        let about = daemon.call("about", ()).expect("a result");
        about["login"].clone()
    };
    let own = ["HOME", "USER", "LOGNAME", "SHELL"].map(|name| std::env::var(name).ok());
    assert_eq!(login(""), json!(own));
    // Only a user has a home.
    assert_eq!(login("group = \"65533\""), json!(own));
    let nobody = nix::unistd::User::from_name("nobody").expect("passwd");
    let nobody = nobody.expect("an entry");
    let (home, shell) = (nobody.dir, nobody.shell);
    assert_eq!(
        login("user = \"nobody\""),
        json!([home, "nobody", "nobody", shell])
    );
    assert_eq!(
        login("user = \"nobody\"\nenvironment = { HOME = \"/srv\", SHELL = \"\" }"),
        json!(["/srv", "nobody", "nobody", ""])
    );
    let number = "3999999998";
    assert_eq!(
        login("user = \"3999999998\"\ngroup = \"65533\""),
        json!(["/", number, number, "/bin/sh"])
    );
}

#[test]
fn a_program_in_the_directory_of_the_app_is_pointed_out() {
    let file = File::new("[app]\ncommand = [\"app.py\"]\n");
    let missing = file.run("-t").err;
    assert!(
        missing.contains("is in no directory of PATH: "),
        "{missing}"
    );
    fs::write(file.path("app.py"), "").expect("it is ours");
    let found = file.run("-t").err;
    let words = format!(
        "error: the program \"app.py\" is in no directory of PATH; the file in {:?} is \"./app.py\"\n",
        file.0.path()
    );
    assert!(found.contains(&words), "{found}");
}

#[test]
fn lines_of_an_app_have_the_number_of_its_worker() {
    if run("python3", &["--version"]).code != Some(0) {
        return skip("python3", "there is no python3");
    }
    let config = config_with("command", "").replace("count = 1", "count = 2");
    let daemon = start(&config);
    daemon.wait_for_workers();
    let mut clients = [daemon.connect(), daemon.connect()];
    for client in &mut clients {
        client.call("about", ()).expect("a result");
    }
    for worker in [1, 2] {
        daemon.wait_for_log(&format!("info app: printed by the app worker={worker}\n"));
    }
}
