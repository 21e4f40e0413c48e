//! Keys, options, verbs, exit codes and signals of the programs.

use std::collections::{BTreeMap, BTreeSet};

use crate::common::page::{Entry, Page};
use crate::common::program::{FDPASSCTL, run};
use crate::common::{FDPASSD, read};

#[test]
fn the_page_has_exactly_the_keys_and_their_defaults() {
    let keys = Page::of("fdpassd.toml.5").section("KEYS");
    let mut told: BTreeMap<String, String> = BTreeMap::new();
    for title in keys.subsections() {
        let section = if title == "Listeners" { "" } else { title };
        for entry in keys.subsection(title).entries("Ic") {
            let key = format!("{section}{}", entry.head[1]);
            assert!(
                entry.body.contains("\nReload: "),
                "{key}: what a reload does with it is not told"
            );
            // Only what stands in the file in that way is a value, and not a word about it.
            let default = entry.parenthesis().unwrap_or_default();
            let is_value = default.starts_with(['"', '[', '{'])
                || default == "false"
                || default.parse::<u64>().is_ok();
            told.insert(key, if is_value { default } else { String::new() });
        }
    }
    assert_eq!(told, shipped_keys());
}

#[test]
fn every_option_of_the_daemon_is_in_its_page_and_no_other() {
    let page = Page::of("fdpassd.8");
    let help = run(FDPASSD, &["-h"]).out;
    let options = options_of(&help);
    assert!(options.len() > 5, "{help}");
    let of_commands =
        ["app", "dev", "init"].map(|command| options_of(&run(FDPASSD, &[command, "-h"]).out));
    let mut all = options.clone();
    all.extend(of_commands.into_iter().flatten());
    // It ends the options.
    all.insert("--".to_owned());
    let mut of_page = page.options();
    of_page.insert("--".to_owned());
    assert_eq!(of_page, all);
    let entries = page.section("DESCRIPTION").entries("Fl");
    let listed: BTreeSet<String> = entries.iter().flat_map(Entry::options).collect();
    assert_eq!(listed, options);
}

#[test]
fn the_page_has_exactly_the_verbs_and_options_of_fdpassctl() {
    let page = Page::of("fdpassctl.8");
    let description = page.section("DESCRIPTION");
    let entries = description.entries("Ic");
    let help = |words: &[&str]| run(FDPASSCTL, &[&["help"], words].concat()).out;
    let mut general = options_of(&help(&[]));
    // These are understood everywhere, whether its help has room for them or not.
    for option in ["-h", "--help", "-V", "--version"] {
        assert_eq!(run(FDPASSCTL, &[option]).code, Some(0), "{option}");
        general.insert(option.to_owned());
    }
    let mut verbs = verbs_of(&help(&[]));
    verbs.insert("help".to_owned());
    let told: BTreeSet<String> = entries.iter().map(|entry| entry.head[1].clone()).collect();
    assert_eq!(told, verbs);

    let mut all = general.clone();
    for verb in verbs.iter().filter(|verb| *verb != "help") {
        let of_verb: Vec<_> = entries
            .iter()
            .filter(|entry| entry.head[1] == *verb)
            .collect();
        let inner: BTreeSet<String> = verbs_of(&help(&[verb]))
            .into_iter()
            .filter(|inner| inner != "help")
            .collect();
        let helps = inner.iter().map(|inner| help(&[verb, inner]));
        let own: BTreeSet<String> = std::iter::once(help(&[verb]))
            .chain(helps)
            .flat_map(|help| options_of(&help))
            .filter(|option| !general.contains(option))
            .collect();
        let told: BTreeSet<String> = of_verb.iter().flat_map(|entry| entry.options()).collect();
        assert_eq!(told, own, "{verb}");
        all.extend(own);
        // `config` and `app` have verbs of their own.
        if !inner.is_empty() {
            let told: BTreeSet<String> =
                of_verb.iter().map(|entry| entry.head[2].clone()).collect();
            assert_eq!(told, inner, "{verb}");
        }
    }
    assert_eq!(page.options(), all);

    for file in ["docs/operating.md", "docs/kubernetes.md"] {
        for words in read(file).split("fdpassctl ").skip(1) {
            let verb = words
                .split(|letter: char| !(letter.is_ascii_lowercase() || letter == '-'))
                .next()
                .unwrap_or_default();
            let is_verb = verb.is_empty() || verbs.contains(verb);
            assert!(is_verb, "{file} tells of a verb {verb:?}");
        }
    }
}

#[test]
fn the_exit_codes_are_those_of_the_help_and_of_the_programs() {
    let listed = |page: &str| -> BTreeSet<u8> {
        let text = Page::of(page).section("EXIT STATUS");
        text.text()
            .lines()
            .filter_map(|line| line.strip_prefix(".It ")?.parse().ok())
            .collect()
    };
    let in_help = |help: &str| -> BTreeSet<u8> {
        let (_, codes) = help.split_once("Exit").expect("the help has them");
        codes
            .split([',', ':'])
            .filter_map(|code| code.split_whitespace().find_map(|word| word.parse().ok()))
            .collect()
    };
    let in_source = |file: &str, before: &str| -> BTreeSet<u8> {
        let source = read(file);
        let numbers = source
            .lines()
            .filter_map(|line| line.trim().split_once(before));
        numbers
            .filter_map(|(_, number)| number.trim_end_matches([',', ';']).parse().ok())
            .collect()
    };
    let codes = listed("fdpassctl.8");
    assert_eq!(codes, in_help(&run(FDPASSCTL, &["--help"]).out));
    assert_eq!(codes, in_source("src/ctl/error.rs", " = "));
    let codes = listed("fdpassd.8");
    assert_eq!(codes, in_help(&run(FDPASSD, &["-h"]).out));
    let of_daemon = in_source("src/daemon/run.rs", ": u8 = ");
    let of_master = in_source("src/master/error.rs", ") => ");
    assert_eq!(codes, &(&of_daemon | &of_master) | &BTreeSet::from([0]));
}

#[test]
fn the_signals_are_those_that_are_caught() {
    let source = read("src/sys/signal.rs");
    let caught: BTreeSet<String> = source
        .lines()
        .filter_map(|line| line.split_once(" = SIG"))
        .map(|(_, name)| format!("SIG{}", name.trim_end_matches(',')))
        .collect();
    assert!(caught.len() > 5, "{source}");
    assert_eq!(Page::of("fdpassd.8").section("SIGNALS").words("Dv"), caught);
}

/// Keys of the shipped configuration, with their sections as `[workers]count`, and what they are by default: nothing if
/// it has them as examples only. The comment of `listen` has those of a listener.
fn shipped_keys() -> BTreeMap<String, String> {
    let nothing = tempfile::NamedTempFile::new().expect("a file");
    let dump = run(
        FDPASSD,
        &["-T", "-c", &nothing.path().display().to_string()],
    )
    .out;
    let is_unset = |section: &str, key: &str| {
        let (_, section) = dump
            .split_once(&format!("\n{section}\n"))
            .expect("every section is shown");
        section
            .lines()
            .take_while(|line| !line.starts_with('['))
            .any(|line| line.starts_with(&format!("#{key} is not set")))
    };
    let mut keys = BTreeMap::new();
    for line in read("config/fdpassd.toml").lines() {
        let of_listener = line.strip_prefix("#   ");
        let Some((key, value)) = of_listener
            .or_else(|| line.strip_prefix('#'))
            .and_then(|line| line.split_once(" = "))
        else {
            continue;
        };
        if key.contains(' ') {
            continue;
        }
        let value = if of_listener.is_some() {
            value.split(' ').next().unwrap_or_default()
        } else {
            value
        };
        let (key, default) = match key.split_once('.') {
            Some((section, key)) => {
                let section = format!("[{section}]");
                (
                    format!("{section}{key}"),
                    if is_unset(&section, key) { "" } else { value },
                )
            }
            None => (key.to_owned(), if value == "\"…\"" { "" } else { value }),
        };
        // The default comes first.
        keys.entry(key).or_insert_with(|| default.to_owned());
    }
    keys
}

/// `-c` and `--config` in a help text: where lines begin with them, after a title or not.
fn options_of(help: &str) -> BTreeSet<String> {
    let lines = help
        .lines()
        .filter_map(line_of_help)
        .filter(|line| line.starts_with('-'));
    let words = lines.flat_map(|line| line.split("  ").next().unwrap_or_default().split(", "));
    words
        .filter_map(|option| option.split([' ', '[']).next())
        .map(str::to_owned)
        .collect()
}

/// The verbs that a help text lists, each with what it does after two spaces.
fn verbs_of(help: &str) -> BTreeSet<String> {
    let lines = help.lines().filter_map(line_of_help);
    let words = lines
        .filter_map(|line| line.split_once("  "))
        .flat_map(|(verbs, _)| verbs.split(", "));
    let is_verb = |word: &&str| {
        word.starts_with(|letter: char| letter.is_ascii_lowercase())
            && word
                .chars()
                .all(|letter| letter.is_ascii_lowercase() || letter == '-')
    };
    words.filter(is_verb).map(str::to_owned).collect()
}

/// A line of a help text without its title, if it has one or is indented.
fn line_of_help(line: &str) -> Option<&str> {
    let is_title = line.starts_with(|letter: char| letter.is_ascii_uppercase());
    let rest = if is_title {
        line.split_once("  ")?.1
    } else {
        line.strip_prefix("  ")?
    };
    Some(rest.trim_start())
}
