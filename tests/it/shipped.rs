//! Shipped files match the programs, and none names the machine that it was written on.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use fdpassd::proto::control::Verb;
use toml::Table;

use crate::common::program::{FDPASSCTL, Said, run};
use crate::common::{FDPASSD, root};

#[test]
fn every_shipped_configuration_is_good_and_is_the_default() {
    let empty = tempfile::NamedTempFile::new().expect("a file");
    let default = dump(empty.path());
    let configs: Vec<PathBuf> = files()
        .into_iter()
        .filter(|file| file.starts_with(root().join("config")))
        .collect();
    assert!(!configs.is_empty());
    for config in configs {
        let said = fdpassd("-t", &config);
        assert_eq!((said.code, said.err.as_str()), (Some(0), ""));
        assert_eq!(dump(&config), default, "{}", config.display());
    }
}

#[test]
fn the_shipped_configuration_has_exactly_the_effective_keys() {
    let empty = tempfile::NamedTempFile::new().expect("a file");
    // A key that is not set is there in a comment.
    let mut section = String::new();
    let mut effective = BTreeSet::new();
    for line in dump(empty.path()).lines() {
        let unset = line
            .strip_prefix('#')
            .and_then(|rest| rest.split_once(" is not set"));
        if line == "[[listen]]" {
            effective.insert("listen".to_owned());
            section = "listen.".to_owned();
        } else if section == "listen." && !line.starts_with('[') {
            // A member of an entry is not a key by itself.
        } else if let Some(name) = line.strip_prefix('[') {
            section = format!("{}.", name.trim_end_matches(']'));
        } else if let Some((key, _)) = unset.or_else(|| line.split_once(" = ")) {
            effective.insert(format!("{section}{key}"));
        }
    }
    let lines = shipped_lines();
    let key = |line: &String| line.split_once(" = ").expect("it has a key").0.to_owned();
    assert_eq!(effective, lines.iter().map(key).collect());
    // Each line by itself, the examples too; some keys need other ones.
    for line in lines {
        // These name files of an app that is not here.
        if ["app.command", "app.directory", "app.environment-file"].contains(&key(&line).as_str()) {
            continue;
        }
        if line.starts_with("app.user") || line.starts_with("app.group") {
            // Only for root, and the names need not exist here.
            continue;
        }
        let text = if line.starts_with("log.file = ") {
            format!("log.target = \"file\"\n{line}")
        } else if line.starts_with("app.") {
            format!("app.command = [\"true\"]\nworkers.start = \"fork\"\n{line}")
        } else {
            line
        };
        let file = tempfile::NamedTempFile::new().expect("a file");
        fs::write(file.path(), &text).expect("it is our file");
        let said = fdpassd("-t", file.path());
        assert_eq!(said.code, Some(0), "{}", said.err);
    }
}

#[test]
fn the_readme_begins_with_the_commands_to_run_and_test_it() {
    let readme = read(&root().join("README.md"));
    let top = readme.lines().take(20).collect::<Vec<_>>().join("\n");
    let (_, code) = top
        .split_once("```sh\n")
        .expect("there is a block of commands at the top");
    let commands: Vec<&str> = code.lines().take_while(|line| *line != "```").collect();
    assert_eq!(commands, ["cargo run --release", "cargo test"]);
}

#[test]
fn the_help_has_every_option_and_exit_status() {
    let help = run(FDPASSD, &["-h"]).out;
    for words in [
        "-c, --config <FILE>",
        "-t ",
        "-T ",
        "-V, --version",
        "-h, --help",
        "/etc/fdpassd.toml",
    ] {
        assert!(help.contains(words), "{words:?} is not in\n{help}");
    }
    for status in ["0 done", "64 usage", "69 ", "70 ", "71 ", "77 ", "78 "] {
        assert!(help.contains(status), "{status:?} is not in\n{help}");
    }
    let help = run(FDPASSCTL, &["--help"]).out;
    for words in [
        "--socket <PATH>",
        "--json",
        "--instance <NAME>",
        "--quiet",
        "--timeout <TIME>",
    ] {
        assert!(help.contains(words), "{words:?} is not in\n{help}");
    }
    for code in [
        "0 done",
        "1 refused",
        "3 not running",
        "4 no valid reply",
        "64 usage",
        "75 still",
        "77 forbidden",
    ] {
        assert!(help.contains(code), "{code:?} is not in\n{help}");
    }
}

#[test]
fn each_verb_has_help_on_its_arguments_and_is_in_the_readme() {
    let readme = read(&root().join("README.md"));
    let (_, verbs) = readme.split_once("## fdpassctl").expect("it has a section");
    let own: [(&str, &[&str]); 23] = [
        ("status", &["--watch"]),
        ("top", &["--interval <TIME>"]),
        (
            "clients",
            &[
                "--worker <WORKER>",
                "--sort <BY>",
                "--reverse",
                "--most <COUNT>",
            ],
        ),
        (
            "events",
            &["-f, --follow", "--after <NUMBER>", "exit code 3"],
        ),
        ("config", &["show ", "check "]),
        (
            "log-level",
            &["[LEVEL]", "error, warn, info, debug or trace"],
        ),
        ("metrics", &[]),
        ("reload", &["--force"]),
        ("scale", &["<COUNT>"]),
        ("recycle", &["<WORKER|all>"]),
        ("hold", &["<WORKER>"]),
        ("release", &["<WORKER|METHOD>"]),
        (
            "drain",
            &[
                "--notice <TIME>",
                "--refuse",
                "--queue",
                "--move <TIME>",
                "--wait",
            ],
        ),
        ("undrain", &[]),
        ("rebalance", &["--dry-run"]),
        (
            "kick",
            &["[CLIENT]", "--address <ADDRESS>", "--idle <TIME>"],
        ),
        ("upgrade", &["--binary <PATH>"]),
        ("stop", &["--if-stopping <UNIT>"]),
        ("reopen-log", &[]),
        (
            "call",
            &[
                "<METHOD>",
                "[PARAMS]",
                "--to <ADDRESS>",
                "--byte-order <ORDER>",
            ],
        ),
        ("app", &["check "]),
        ("version", &[]),
        ("completions", &["<SHELL>", "bash, zsh or fish"]),
    ];
    assert!(
        Verb::ALL.iter().all(
            |verb| verb.as_str() == "check" || own.iter().any(|(own, _)| *own == verb.as_str())
        )
    );
    // The options of all verbs are explained once.
    let of_all = run(FDPASSCTL, &["--help"]);
    for option in [
        "--socket <PATH>",
        "--instance <NAME>",
        "--json",
        "--quiet",
        "--timeout <TIME>",
    ] {
        assert!(of_all.out.contains(option), "{option}:\n{}", of_all.out);
    }
    for (verb, arguments) in own {
        let said = run(FDPASSCTL, &[verb, "--help"]);
        assert_eq!((said.code, said.err.as_str()), (Some(0), ""), "{verb}");
        let example = format!("fdpassctl {verb}");
        let common = ["Examples:", &example, "fdpassctl --help"];
        for words in arguments.iter().chain(&common) {
            assert!(
                said.out.contains(words),
                "{words:?} is not in\n{}",
                said.out
            );
        }
        assert!(
            verbs.contains(&format!("`{verb}`")) || verbs.contains(&format!("`{verb} ")),
            "{verb} is not in README.md"
        );
    }
}

#[test]
fn each_line_for_balancers_is_explained() {
    let guide = read(&root().join("docs/haproxy.md"));
    let explained = explained_lines(&guide);
    let mut parts = guide.split("```");
    let mut prose = parts.next().expect("it begins with text").to_owned();
    let mut code = Vec::new();
    while let (Some(block), Some(text)) = (parts.next(), parts.next()) {
        prose.push_str(text);
        code.push(block.split_once('\n').expect("it has a language"));
    }
    let languages: BTreeSet<&str> = code.iter().map(|(language, _)| *language).collect();
    assert_eq!(
        languages,
        BTreeSet::from(["haproxy", "ini", "nginx", "sh", "toml"])
    );
    for part in &explained {
        let is_there = code.iter().any(|(_, block)| block.contains(part));
        assert!(is_there, "{part:?} is explained, and no block has it");
    }
    for (language, block) in code {
        let lines = block
            .lines()
            .map(|line| line.trim().trim_end_matches([';', '{', '}']));
        for line in lines.filter(|line| !line.is_empty()) {
            let is_explained = match language {
                "haproxy" | "nginx" => explained.iter().any(|part| line.starts_with(part)),
                "toml" => prose.contains(&format!("`{}`", line.split(' ').next().unwrap_or(line))),
                _ => true,
            };
            assert!(is_explained, "{line:?} is not explained");
        }
        if language == "toml" {
            let file = tempfile::NamedTempFile::new().expect("a file");
            fs::write(file.path(), block).expect("it is our file");
            let said = fdpassd("-t", file.path());
            assert_eq!((said.code, said.err.as_str()), (Some(0), ""));
        }
    }
}

/// Returns the code in the first column of each table with the columns `line` and `meaning`.
fn explained_lines(guide: &str) -> Vec<&str> {
    let mut is_in_table = false;
    let mut found = Vec::new();
    for line in guide.lines() {
        is_in_table = line == "| line | meaning |" || is_in_table && line.starts_with('|');
        let first = line.split('|').nth(1).filter(|_| is_in_table);
        found.extend(
            first
                .into_iter()
                .flat_map(|cell| cell.split('`').skip(1).step_by(2)),
        );
    }
    found
}

#[test]
fn no_file_names_the_machine_that_it_was_written_on() {
    let here = root().display().to_string();
    let homes = ["home", "root", "Users"].map(|name| format!("/{name}/"));
    for file in files() {
        let text = read(&file);
        assert!(
            !text.contains(&here),
            "{} holds the path of this checkout",
            file.display()
        );
        for home in &homes {
            assert!(
                !text.contains(home),
                "{} holds a path in {home}",
                file.display()
            );
        }
    }
}

#[test]
fn nothing_waits_by_sleeping() {
    // Benchmarks read the machine's state from time to time. Methods of apps wait, and asynchronous ones.
    const MAY_WAIT: [&str; 7] = [
        "benches",
        "examples/waitd.rs",
        "sdk",
        "tests/it/app_check/app.py",
        "tests/it/app_deaths/app.py",
        "tests/it/apps/app.py",
        "tests/systemd/apps",
    ];
    let may_wait = |file: &Path| {
        MAY_WAIT
            .iter()
            .any(|path| file.starts_with(root().join(path)))
    };
    let files = files().into_iter().filter(|file| !may_wait(file));
    for file in files {
        for (number, line) in (1..).zip(read(&file).lines()) {
            let calls =
                line.contains(concat!("sleep", "(")) || line.contains(concat!("sleep", "_ms("));
            let is_command = line.trim_start().starts_with(concat!("sleep", " "));
            assert!(!calls && !is_command, "{}:{number}: {line}", file.display());
        }
    }
}

#[test]
fn the_required_lints_are_on() {
    let manifest: Table = read(&root().join("Cargo.toml")).parse().expect("TOML");
    for (tool, lint, level) in [
        ("rust", "missing_docs", "warn"),
        ("rust", "unsafe_op_in_unsafe_fn", "deny"),
        ("clippy", "undocumented_unsafe_blocks", "deny"),
        ("clippy", "unwrap_used", "warn"),
        ("clippy", "dbg_macro", "warn"),
        ("clippy", "print_stderr", "warn"),
    ] {
        assert_eq!(
            manifest["lints"][tool][lint].as_str(),
            Some(level),
            "{tool}.{lint}"
        );
    }
    let release = &manifest["profile"]["release"];
    assert_eq!(
        release["panic"].as_str(),
        Some("unwind"),
        "a worker catches the panic of a handler"
    );
    assert_eq!(release["overflow-checks"].as_bool(), Some(true));
}

#[test]
fn the_checks_can_be_run() {
    let checks = fs::metadata(root().join(".ci/run")).expect("it is there");
    assert_eq!(checks.permissions().mode() & 0o111, 0o111);
}

/// The lines of the shipped configuration that have a key, without the #.
fn shipped_lines() -> Vec<String> {
    let text = read(&root().join("config/fdpassd.toml"));
    let keys = text
        .lines()
        .filter_map(|line| line.strip_prefix('#'))
        .filter(|rest| !rest.is_empty() && !rest.starts_with(' '));
    keys.map(str::to_owned).collect()
}

fn fdpassd(option: &str, config: &Path) -> Said {
    run(FDPASSD, &[option, "-c", &config.display().to_string()])
}

#[track_caller]
fn dump(config: &Path) -> String {
    let said = fdpassd("-T", config);
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""));
    said.out
}

fn read(file: &Path) -> String {
    fs::read_to_string(file).unwrap_or_else(|e| panic!("cannot read {}: {e}", file.display()))
}

/// All files of the repository, and new ones, but none that the tools of other languages make.
fn files() -> Vec<PathBuf> {
    let mut command = Command::new("git");
    command.args(["-c", "safe.directory=*", "ls-files", "-z"]);
    command.args(["--cached", "--others", "--exclude-standard"]);
    let listed = command.current_dir(root()).output().expect("git runs");
    assert!(listed.status.success(), "{listed:?}");
    let names = String::from_utf8(listed.stdout).expect("names are UTF-8");
    names
        .split_terminator('\0')
        .filter(|name| !name.starts_with("fuzz/corpus/"))
        .map(|name| root().join(name))
        .filter(|path| path.is_file()) // It may be removed, and that not committed yet.
        .collect()
}
