//! The keys of `[app]`: how the programs show them, and what is refused.

use std::fs;
use std::path::PathBuf;

use tempfile::TempDir;

use crate::common::program::{Said, ctl, run};
use crate::common::{FDPASSD, start};

/// All keys of an app.
pub const KEYS: [&str; 11] = [
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
         concurrency = \"app\"\nmax-memory = \"none\"\noutput = \"log\"\nwatch = []\n\
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
        ("output = \"null\"".to_owned(), "needs the key `command`"),
    ] {
        let refused = daemon.reload_with(&format!("workers.count = 1\n[app]\n{keys}"));
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
