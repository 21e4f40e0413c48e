//! The import map. Every path in every file of src is checked against it.

mod calls;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use proc_macro2::{Delimiter, Group, TokenStream, TokenTree};

/// Each module of the crate's root, and which others of them it may know.
const MAY_IMPORT: [(&str, &[&str]); 18] = [
    ("proto", &[]),
    ("sys", &[]),
    ("table", &[]),
    ("loop_clock", &["sys"]),
    ("config", &["proto", "sys"]),
    ("logging", &["proto", "sys"]),
    ("channel", &["proto", "sys"]),
    ("rpc_client", &["proto", "sys"]),
    ("shm", &["proto", "sys"]),
    ("pool", &["config", "proto"]),
    (
        "master",
        &[
            "pool",
            "channel",
            "shm",
            "config",
            "logging",
            "loop_clock",
            "proto",
            "sys",
            "table",
        ],
    ),
    (
        "worker",
        &[
            "channel",
            "shm",
            "logging",
            "loop_clock",
            "proto",
            "sys",
            "table",
        ],
    ),
    (
        "exporter",
        &["channel", "rpc_client", "logging", "proto", "sys"],
    ),
    ("ctl", &["rpc_client", "proto", "sys"]),
    (
        "daemon",
        &["config", "exporter", "logging", "master", "worker", "proto"],
    ),
    ("fuzzing", &["config", "shm", "exporter", "proto"]),
    ("testing", &["daemon", "proto", "sys", "worker"]),
    ("bin", &[]),
];

/// Each room of `master`, and the rooms that it may know, which all stand before it. Items of `master` itself are
/// open to all of them.
const ROOM_MAY_IMPORT: [(&str, &[&str]); 21] = [
    ("error", &[]),
    ("lifecycle", &[]),
    ("token", &[]),
    ("capacity", &[]),
    ("service_manager", &[]),
    ("telemetry", &[]),
    ("clients", &["telemetry"]),
    ("memory", &["clients"]),
    ("settings", &["memory"]),
    ("workers", &["clients", "lifecycle", "memory", "telemetry"]),
    (
        "listeners",
        &["clients", "error", "lifecycle", "telemetry", "workers"],
    ),
    ("exporter", &["listeners", "telemetry"]),
    (
        "control",
        &[
            "capacity",
            "clients",
            "exporter",
            "lifecycle",
            "listeners",
            "memory",
            "service_manager",
            "settings",
            "telemetry",
            "workers",
        ],
    ),
    (
        "metrics",
        &[
            "clients",
            "control",
            "listeners",
            "settings",
            "telemetry",
            "workers",
        ],
    ),
    (
        "reload",
        &[
            "capacity",
            "clients",
            "control",
            "exporter",
            "lifecycle",
            "listeners",
            "memory",
            "service_manager",
            "settings",
            "telemetry",
            "workers",
        ],
    ),
    (
        "shutdown",
        &[
            "clients",
            "lifecycle",
            "listeners",
            "reload",
            "service_manager",
            "settings",
            "telemetry",
            "workers",
        ],
    ),
    (
        "handover",
        &[
            "capacity",
            "clients",
            "control",
            "exporter",
            "lifecycle",
            "listeners",
            "reload",
            "service_manager",
            "settings",
            "shutdown",
            "telemetry",
            "workers",
        ],
    ),
    (
        "requests",
        &[
            "clients",
            "control",
            "exporter",
            "handover",
            "lifecycle",
            "listeners",
            "metrics",
            "reload",
            "settings",
            "shutdown",
            "telemetry",
            "workers",
        ],
    ),
    (
        "children",
        &[
            "clients",
            "error",
            "exporter",
            "handover",
            "lifecycle",
            "listeners",
            "memory",
            "reload",
            "service_manager",
            "settings",
            "telemetry",
            "workers",
        ],
    ),
    (
        "signals",
        &[
            "children",
            "control",
            "handover",
            "reload",
            "requests",
            "service_manager",
            "shutdown",
            "telemetry",
            "workers",
        ],
    ),
    (
        "startup",
        &[
            "capacity",
            "clients",
            "control",
            "exporter",
            "handover",
            "lifecycle",
            "listeners",
            "memory",
            "reload",
            "service_manager",
            "settings",
            "signals",
            "telemetry",
            "workers",
        ],
    ),
];

/// Names that only these modules may use: foreign crates, and `unsafe`.
const ONLY_IN: [(&str, &[&str]); 12] = [
    ("nix", &["sys"]),
    ("libc", &["sys"]),
    ("signal_hook", &["sys"]),
    ("signal_hook_registry", &["sys"]),
    ("sd_notify", &["master"]),
    ("unsafe", &["sys"]),
    ("toml", &["config", "testing"]),
    ("syslog", &["logging"]),
    ("clap", &["daemon", "ctl"]),
    ("httparse", &["exporter"]),
    ("clap_complete", &["ctl"]),
    ("anstyle", &["ctl"]),
];

#[test]
fn every_module_imports_only_what_the_map_allows() {
    let faults: Vec<String> = sources()
        .iter()
        .flat_map(|(file, text)| faults_of(file, text))
        .collect();
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn every_module_stands_on_the_map() {
    let on_disk: BTreeSet<String> = sources()
        .iter()
        .filter_map(|(file, _)| module_of(file).into_iter().next())
        .collect();
    let on_map: BTreeSet<String> = MAY_IMPORT
        .iter()
        .map(|(module, _)| (*module).to_owned())
        .collect();
    assert_eq!(on_disk, on_map);
}

#[test]
fn every_room_stands_on_the_map() {
    let on_disk: BTreeSet<String> = sources()
        .iter()
        .map(|(file, _)| module_of(file))
        .filter(|module| module.len() > 1 && module[0] == "master")
        .map(|module| module[1].clone())
        .collect();
    let on_map: BTreeSet<String> = ROOM_MAY_IMPORT
        .iter()
        .map(|(room, _)| (*room).to_owned())
        .collect();
    assert_eq!(on_disk, on_map);
}

/// Rooms that every room may use; the table of ARCHITECTURE.md does not repeat them.
const OPEN_ROOMS: [&str; 2] = ["error", "token"];

#[test]
fn the_architecture_shows_the_rooms_and_their_arrows() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("ARCHITECTURE.md");
    let text = fs::read_to_string(path).expect("there is an ARCHITECTURE.md");
    let header = text
        .lines()
        .find(|line| line.trim_start().starts_with("room ") && line.ends_with(" may use"))
        .expect("it has a table of rooms");
    let (purpose, others) = (
        header.find("purpose").expect("a column"),
        header.find("may use").expect("a column"),
    );
    let mut shown: Vec<(String, BTreeSet<String>)> = Vec::new();
    let rows = text.lines().skip_while(|line| *line != header).skip(2);
    for row in rows.take_while(|row| !row.starts_with("```")) {
        let room = row[..purpose.min(row.len())].trim();
        if !room.is_empty() {
            let room = room.trim_end_matches('/').to_owned();
            shown.push((room, BTreeSet::new()));
        }
        let names = row.get(others..).unwrap_or_default().split(',');
        let names = names
            .map(|name| name.trim().to_owned())
            .filter(|name| !name.is_empty() && name != "-");
        shown
            .last_mut()
            .expect("a room comes first")
            .1
            .extend(names);
    }
    let shown: BTreeMap<_, _> = shown.into_iter().collect();
    for (room, others) in ROOM_MAY_IMPORT {
        if OPEN_ROOMS.contains(&room) || room == "startup" {
            continue;
        }
        let allowed: BTreeSet<String> = others
            .iter()
            .filter(|other| !OPEN_ROOMS.contains(other))
            .map(|other| (*other).to_owned())
            .collect();
        assert_eq!(shown.get(room), Some(&allowed), "the row of {room}");
    }
}

#[test]
fn no_arrow_between_rooms_leads_back() {
    let mut before = BTreeSet::new();
    for (room, others) in ROOM_MAY_IMPORT {
        for other in others {
            assert!(
                before.contains(other),
                "{room} knows {other}, which stands behind it"
            );
        }
        before.insert(room);
    }
}

#[test]
fn a_forbidden_import_is_seen_in_every_spelling() {
    for (file, text, fault) in [
        (
            "channel.rs",
            "use crate::master::Setup;",
            "channel imports master",
        ),
        (
            "channel.rs",
            "use crate::{master::{self, Setup as S}};",
            "channel imports master",
        ),
        (
            "channel.rs",
            "use {crate::sys, crate::{proto, worker as w}};",
            "channel imports worker",
        ),
        (
            "channel.rs",
            "pub(crate) use super::worker;",
            "channel imports worker",
        ),
        (
            "channel.rs",
            "fn f() -> crate::config::Mode { loop {} }",
            "channel imports config",
        ),
        (
            "channel.rs",
            "fn f() { vec![super::pool::Pool::new()]; }",
            "channel imports pool",
        ),
        (
            "channel.rs",
            "#[serde(with = \"crate::config::mode\")] struct S;",
            "channel imports config",
        ),
        (
            "channel.rs",
            "macro_rules! m { () => { $crate::ctl::x() } }",
            "channel imports ctl",
        ),
        (
            "channel.rs",
            "mod tests { use super::super::worker; }",
            "channel imports worker",
        ),
        (
            "channel.rs",
            "use super::*;",
            "channel imports the whole crate",
        ),
        (
            "channel.rs",
            "use crate as root;",
            "channel imports the whole crate",
        ),
        ("channel.rs", "use crate::Fault;", "channel imports Fault"),
        (
            "master/mod.rs",
            "use super::worker::turn;",
            "master imports worker",
        ),
        (
            "exporter/mod.rs",
            "use crate::master::Exporter;",
            "exporter imports master",
        ),
        (
            "master/accept.rs",
            "use super::super::worker;",
            "master imports worker",
        ),
        (
            "master/accept.rs",
            "use self::super::super::worker;",
            "master imports worker",
        ),
        (
            "worker/turn.rs",
            "mod a { mod b { use super::super::super::super::master; } }",
            "worker imports master",
        ),
        (
            "master/clients/leases.rs",
            "use crate::master::control::server;",
            "room clients imports room control",
        ),
        (
            "master/workers/mod.rs",
            "fn f() { super::listeners::accept::g(); }",
            "room workers imports room listeners",
        ),
        (
            "master/capacity.rs",
            "use super::{Error, startup::target};",
            "room capacity imports room startup",
        ),
        ("bin/fdpassd.rs", "use crate::daemon;", "bin imports daemon"),
        ("shm/mod.rs", "use nix::sys::mman;", "shm names nix"),
        (
            "shm/mod.rs",
            "use {std::io, ::nix::{self as n}};",
            "shm names nix",
        ),
        ("shm/mod.rs", "use libc as c;", "shm names libc"),
        ("shm/mod.rs", "extern crate libc;", "shm names libc"),
        (
            "shm/mod.rs",
            "fn f() { ::libc::getpid(); }",
            "shm names libc",
        ),
        (
            "shm/mod.rs",
            "fn f() { unsafe { g() } }",
            "shm names unsafe",
        ),
        (
            "master/mod.rs",
            "#[derive(clap::Parser)] struct S;",
            "master names clap",
        ),
        (
            "pool/mod.rs",
            "fn f() { log::info!(\"\"); }",
            "pool names log",
        ),
        (
            "pool/mod.rs",
            "fn f() { std::time::Instant::now(); }",
            "pool reads the clock",
        ),
    ] {
        let faults = faults_of(file, text);
        assert!(
            !faults.is_empty() && faults.iter().all(|f| f.contains(fault)),
            "{file}: {text}: {faults:?}"
        );
    }
}

#[test]
fn allowed_paths_are_accepted() {
    for (file, text) in [
        (
            "channel.rs",
            "use crate::{proto::{frame, names::*}, sys}; mod tests { use super::*; }",
        ),
        (
            "channel.rs",
            "// use crate::master;\n/// [`x`](crate::master::x)\nfn f() { g(\"the master: nix::x\") }",
        ),
        (
            "channel.rs",
            "pub(in super) fn master() { x.worker(); master::y(); }",
        ),
        (
            "master/accept.rs",
            "use super::{worker::Worker, Master}; use crate::pool::Pool;",
        ),
        (
            "master/mod.rs",
            "mod worker; use worker::Worker; use self::worker::Left;",
        ),
        ("pool/tests.rs", "use super::*; fn f() { Instant::now(); }"),
        (
            "pool/mod.rs",
            "use crate::config::Dispatch; mod tests { fn f() { Instant::now(); } }",
        ),
        (
            "config/mod.rs",
            "mod log {} fn f() { log::default(); toml::from_str(); }",
        ),
    ] {
        assert_eq!(
            faults_of(file, text),
            Vec::<String>::new(),
            "{file}: {text}"
        );
    }
}

/// Returns the faults of a file. The root holds the map and may name all of it.
fn faults_of(file: &str, text: &str) -> Vec<String> {
    let tokens: TokenStream = text
        .parse()
        .unwrap_or_else(|e| panic!("{file} is no Rust: {e}"));
    let mut names = Vec::new();
    read(tokens, &module_of(file), &mut names);
    names
        .iter()
        .filter_map(Name::fault)
        .map(|fault| format!("{file}: {fault}"))
        .collect()
}

/// Something that a file names: `["crate", "proto", "frame"]`, and the module that it stands in.
#[derive(Debug)]
struct Name {
    path: Vec<String>,
    module: Vec<String>,
    is_import: bool,
}

/// The target of a name.
enum Target<'a> {
    /// Another crate, a word of the language, or something of the module's own.
    Other(&'a str),
    Root,
    /// A module of the root.
    Module(&'a str),
}

impl Name {
    fn fault(&self) -> Option<String> {
        let me = self.module.first()?.as_str();
        let is_pure = me == "pool" && !self.module.iter().any(|module| module == "tests");
        let fault = match self.target() {
            Target::Other("log") if is_pure => "names log".to_owned(),
            Target::Other(_) if is_pure && self.path.join("::").ends_with("Instant::now") => {
                "reads the clock".to_owned()
            }
            Target::Other(word) if !may(&ONLY_IN, word, me) => format!("names {word}"),
            Target::Module(other) if other != me && !may(&MAY_IMPORT, me, other) => {
                format!("imports {other}")
            }
            Target::Module("master") if me == "master" => match self.rooms() {
                Some((here, there)) if here != there && !may(&ROOM_MAY_IMPORT, here, there) => {
                    format!("room {here} imports room {there}")
                }
                _ => return None,
            },
            Target::Root if self.is_import => "imports the whole crate".to_owned(),
            Target::Other(_) | Target::Module(_) | Target::Root => return None,
        };
        Some(format!("{me} {fault}: {}", self.path.join("::")))
    }

    /// The room of `master` that the name stands in, and the room that it leads to.
    fn rooms(&self) -> Option<(&str, &str)> {
        let (at, rest) = self.resolve();
        let there = at.iter().chain(rest).nth(1)?;
        let is_room = ROOM_MAY_IMPORT.iter().any(|(room, _)| room == there);
        is_room.then_some((self.module.get(1)?.as_str(), there.as_str()))
    }

    fn target(&self) -> Target<'_> {
        let (at, rest) = self.resolve();
        if rest.len() == self.path.len() {
            return Target::Other(&self.path[0]);
        }
        match at.first().or(rest.first()).map(String::as_str) {
            None | Some("*") => Target::Root,
            Some(module) => Target::Module(module),
        }
    }

    /// Follows `crate`, `self` and `super`: returns the module that they lead to, and the words behind them.
    fn resolve(&self) -> (&[String], &[String]) {
        let is_step = |word: &&String| ["crate", "self", "super"].contains(&word.as_str());
        let steps = self.path.iter().take_while(is_step).count();
        let mut at = &self.module[..];
        for step in &self.path[..steps] {
            at = match step.as_str() {
                "crate" => &[],
                "super" => at.split_last().map_or(at, |(_, parents)| parents),
                _ => at,
            };
        }
        (at, &self.path[steps..])
    }
}

/// Returns whether a table allows it; unknown names are allowed.
fn may(table: &[(&str, &[&str])], key: &str, value: &str) -> bool {
    table
        .iter()
        .find(|(known, _)| *known == key)
        .is_none_or(|(_, values)| values.contains(&value))
}

/// Collects what these tokens name.
fn read(tokens: TokenStream, module: &[String], names: &mut Vec<Name>) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let mut rest = &tokens[..];
    while let [token, behind @ ..] = rest {
        rest = behind;
        match (token, behind) {
            (
                TokenTree::Ident(word),
                [TokenTree::Ident(name), TokenTree::Group(body), behind @ ..],
            ) if word == "mod" => {
                read(
                    body.stream(),
                    &[module, &[name.to_string()]].concat(),
                    names,
                );
                rest = behind;
            }
            (TokenTree::Ident(word), [TokenTree::Ident(name), ..])
                if word == "extern" && name == "crate" =>
            {
                rest = read_path(&behind[1..], Vec::new(), module, true, names);
            }
            (TokenTree::Ident(word), _) if word == "use" => {
                rest = read_path(behind, Vec::new(), module, true, names);
            }
            (TokenTree::Ident(word), _) => {
                rest = read_path(behind, vec![word.to_string()], module, false, names)
            }
            (TokenTree::Group(group), _) if !is_doc(group) => read(group.stream(), module, names),
            (TokenTree::Literal(literal), _) => {
                // An attribute's string may be a path.
                let text = literal.to_string();
                let path = text.trim_matches('"');
                if path.starts_with("crate::") || path.starts_with("super::") {
                    path.parse()
                        .into_iter()
                        .for_each(|path| read(path, module, names));
                }
            }
            (TokenTree::Group(_) | TokenTree::Punct(_), _) => {}
        }
    }
}

/// Follows a path of which these words have been read, into its braces; returns what comes behind it.
fn read_path<'t>(
    mut tokens: &'t [TokenTree],
    mut path: Vec<String>,
    module: &[String],
    is_import: bool,
    names: &mut Vec<Name>,
) -> &'t [TokenTree] {
    let is_branch = is_import && !path.is_empty();
    // Whether the next word belongs to it.
    let mut is_open = is_import;
    loop {
        match tokens {
            [TokenTree::Punct(one), TokenTree::Punct(two), rest @ ..]
                if one.as_char() == ':' && two.as_char() == ':' =>
            {
                is_open = true;
                tokens = rest;
            }
            [TokenTree::Ident(word), rest @ ..] if is_open => {
                // `self` in braces is what stands before them.
                if !(is_branch && word == "self") {
                    path.push(word.to_string());
                }
                is_open = false;
                tokens = rest;
            }
            [TokenTree::Punct(star), rest @ ..] if is_open && star.as_char() == '*' => {
                path.push("*".to_owned());
                is_open = false;
                tokens = rest;
            }
            [TokenTree::Group(group), rest @ ..]
                if is_open && group.delimiter() == Delimiter::Brace =>
            {
                let inner: Vec<TokenTree> = group.stream().into_iter().collect();
                let is_comma = |token: &TokenTree| matches!(token, TokenTree::Punct(mark) if mark.as_char() == ',');
                for branch in inner.split(is_comma).filter(|branch| !branch.is_empty()) {
                    read_path(branch, path.clone(), module, true, names);
                }
                return rest;
            }
            _ => break,
        }
    }
    let is_a_word = path.len() == 1 && !is_import && path[0] != "unsafe";
    if !path.is_empty() && !is_a_word {
        names.push(Name {
            path,
            module: module.to_vec(),
            is_import,
        });
    }
    tokens
}

fn is_doc(group: &Group) -> bool {
    matches!(group.stream().into_iter().next(), Some(TokenTree::Ident(word)) if word == "doc")
}

/// `master/accept.rs` is `["master", "accept"]`, `lib.rs` is nothing.
fn module_of(file: &str) -> Vec<String> {
    let path = file.trim_end_matches(".rs").trim_end_matches("/mod");
    path.split('/')
        .filter(|word| *word != "lib")
        .map(str::to_owned)
        .collect()
}

/// All files of src by their paths in it, with their texts.
pub(crate) fn sources() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut sources = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of src can be read") {
            let path = entry.expect("an entry of src can be read").path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let file = path
                .strip_prefix(&root)
                .expect("it is in src")
                .display()
                .to_string();
            sources.push((
                file,
                fs::read_to_string(&path).expect("a file of src can be read"),
            ));
        }
    }
    sources
}

#[test]
fn no_files_of_ctl_import_one_another_in_a_circle() {
    assert!(arrows_of_ctl(&sources()).len() > 10);
    assert_eq!(circle_in(arrows_of_ctl(&sources())), BTreeSet::new());

    let circle = |files: &[(&str, &str)]| {
        let sources: Vec<_> = files
            .iter()
            .map(|(file, text)| (format!("ctl/{file}.rs"), (*text).to_owned()))
            .collect();
        Vec::from_iter(circle_in(arrows_of_ctl(&sources)))
    };
    let files = [
        ("mod", "mod a; mod b; use a::A; fn main() { b::f(); }"),
        ("a", "use super::b::B; use crate::proto::names;"),
        ("b", "fn f() { crate::ctl::c::g(); }"),
        ("c", "use super::{a::A, d};"),
        ("d", "mod tests { use super::super::a; }"),
    ];
    assert_eq!(circle(&files), ["a", "b", "c"]);
    assert_eq!(
        circle(&[("mod", "use a::A;"), ("a", "use super::S;")]),
        ["a", "mod"]
    );
}

/// Pairs of files of `ctl`, without its tests: the first imports the second.
fn arrows_of_ctl(sources: &[(String, String)]) -> BTreeSet<(String, String)> {
    let name_of = |module: &[String]| module.get(1).map_or("mod", String::as_str).to_owned();
    let files: Vec<_> = sources
        .iter()
        .map(|(file, text)| (module_of(file), text))
        .filter(|(module, _)| {
            module.first().is_some_and(|first| first == "ctl") && name_of(module) != "tests"
        })
        .collect();
    let is_file = |name: &String| files.iter().any(|(module, _)| name_of(module) == *name);
    let mut arrows = BTreeSet::new();
    for (module, text) in &files {
        let mut names = Vec::new();
        read(text.parse().expect("it is Rust"), module, &mut names);
        for name in names
            .iter()
            .filter(|name| !name.module.iter().any(|part| part == "tests"))
        {
            let (at, rest) = name.resolve();
            let is_relative = rest.len() == name.path.len();
            let path = [if is_relative { module } else { at }, rest].concat();
            if path.first().is_some_and(|first| first == "ctl") {
                let target = path.get(1).filter(|name| is_file(name));
                arrows.insert((
                    name_of(module),
                    target.map_or_else(|| "mod".to_owned(), String::clone),
                ));
            }
        }
    }
    arrows.retain(|(from, to)| from != to);
    arrows
}

/// Removes arrows to files without imports, and from files that are not imported, until none is left but those of circles.
fn circle_in(mut arrows: BTreeSet<(String, String)>) -> BTreeSet<String> {
    loop {
        let (from, to): (BTreeSet<String>, BTreeSet<String>) = arrows.iter().cloned().unzip();
        let count = arrows.len();
        arrows.retain(|(one, other)| to.contains(one) && from.contains(other));
        if arrows.len() == count {
            return from;
        }
    }
}
