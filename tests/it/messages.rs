//! The messages of the programs about faulty input, each with its exact text, in the files of `tests/messages`.
//!
//! A case has a name, the input and what the program prints:
//!
//! ```text
//! === NAME
//! INPUT
//! ---
//! OUTPUT
//! ```
//!
//! With `UPDATE_MESSAGES=1` the tests write what the programs print now into the files, for review with `git diff`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::faulty::example;
use crate::common::program::{FDPASSCTL, Program, Said};
use crate::common::{FDPASSD, root};

/// One case of a file.
struct Case {
    name: String,
    input: String,
    output: String,
}

impl Case {
    fn parse(block: &str) -> Case {
        let block = format!("{block}\n");
        let (name, rest) = block.split_once('\n').expect("a name");
        let (input, output) = rest.split_once("\n---\n").expect("an input and an output");
        Case {
            name: name.to_owned(),
            input: input.to_owned(),
            output: output.to_owned(),
        }
    }

    fn to_text(&self) -> String {
        let Case {
            name,
            input,
            output,
        } = self;
        format!("=== {name}\n{input}\n---\n{output}")
    }
}

/// Names of types and functions of Rust, and words of the parser, which no message may have.
const INNER_NAMES: [&str; 24] = [
    "u8",
    "u16",
    "u32",
    "u64",
    "u128",
    "usize",
    "i64",
    "i128",
    "f64",
    "expected struct",
    "expected unit",
    "a sequence",
    "a map",
    "as i128",
    "expected nothing",
    "literal string",
    "basic string",
    "invalid type",
    "unknown field",
    "missing field",
    "unknown variant",
    "invalid digit",
    "1..=",
    "expected number at",
];

/// Compares what `run` prints for each case of a file of `tests/messages` with the file, and returns their number.
#[track_caller]
fn check(name: &str, code: i32, run: impl Fn(&str) -> Said) -> usize {
    let path = root().join("tests/messages").join(name);
    let text = fs::read_to_string(&path).expect("the file of messages");
    let blocks = text.strip_prefix("=== ").expect("a case").split("\n=== ");
    let mut cases: Vec<Case> = blocks.map(Case::parse).collect();
    let mut wrong = String::new();
    for case in &mut cases {
        let said = run(&case.input);
        let mut shown = said.err.clone() + &said.out;
        while shown.ends_with('\n') {
            shown.pop();
        }
        let expected = case.output.trim_end_matches('\n');
        if said.code != Some(code) {
            wrong.push_str(&format!("{}: exit code {:?}\n", case.name, said.code));
        }
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let title = shown.lines().next().unwrap_or_default();
        for inner in INNER_NAMES {
            let mut found = title.match_indices(inner);
            let is_alone = |at: usize| {
                !title[..at].ends_with(is_word) && !title[at + inner.len()..].starts_with(is_word)
            };
            if found.any(|(at, _)| is_alone(at)) {
                wrong.push_str(&format!("{}: {inner:?} in {title}\n", case.name));
            }
        }
        if shown != expected {
            wrong.push_str(&format!(
                "=== {}\n{}\n--- expected\n{expected}\n--- printed\n{shown}\n",
                case.name, case.input
            ));
        }
        case.output = shown;
    }
    if std::env::var_os("UPDATE_MESSAGES").is_some() {
        let text: Vec<String> = cases.iter().map(Case::to_text).collect();
        fs::write(&path, text.join("\n") + "\n").expect("the file of messages can be written");
    } else {
        assert!(wrong.is_empty(), "{}:\n{wrong}", path.display());
    }
    cases.len()
}

/// Runs a program with `-t` for a file of this text, and with these variables.
fn run_check(program: impl AsRef<Path>, text: &str, variables: &[(&str, &str)]) -> Said {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("config.toml");
    fs::write(&path, format!("{text}\n")).expect("it is our directory");
    let mut command = Command::new(program.as_ref());
    command.arg("-t").arg("-c").arg(&path);
    command
        .env("PATH", "/usr/bin:/bin")
        .envs(variables.iter().copied());
    let mut said = Program::start(&mut command).finish();
    let prefix = format!("{}/", directory.path().display());
    said.err = said.err.replace(&prefix, "");
    said.out = said.out.replace(&prefix, "");
    said
}

#[test]
fn every_message_about_a_faulty_file_is_as_reviewed() {
    let directory = root().join("tests/messages/config");
    let files = fs::read_dir(&directory).expect("the files of messages");
    let mut names: Vec<PathBuf> = files.map(|file| file.expect("a file").path()).collect();
    names.sort();
    let count: usize = names
        .iter()
        .map(|path| {
            let name = path.file_name().expect("a name").to_string_lossy();
            check(&format!("config/{name}"), 78, |text| {
                run_check(FDPASSD, text, &[])
            })
        })
        .sum();
    assert!(count >= 250, "{count} cases");
}

#[test]
fn every_message_about_a_variable_is_as_reviewed() {
    check("variables.txt", 78, |text| {
        let variables = text.lines().filter_map(|line| line.split_once('='));
        run_check(FDPASSD, "", &variables.collect::<Vec<_>>())
    });
}

#[test]
fn every_message_about_a_table_of_a_program_is_as_reviewed() {
    check("own-table.txt", 78, |text| {
        run_check(example("faulty"), text, &[])
    });
}

#[test]
fn every_message_about_a_command_line_is_as_reviewed() {
    check("fdpassctl.txt", 64, |line| {
        let mut command = Command::new(FDPASSCTL);
        command
            .args(line.split_whitespace())
            .env("FDPASSD_SOCKET", "/nowhere/control.sock");
        Program::start(&mut command).finish()
    });
}

#[test]
fn every_message_about_options_of_the_daemon_is_as_reviewed() {
    check("fdpassd.txt", 64, |line| {
        let mut command = Command::new(FDPASSD);
        command.args(line.split_whitespace());
        Program::start(&mut command).finish()
    });
}
