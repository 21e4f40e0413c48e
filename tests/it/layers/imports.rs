//! The imports of a file, read from its tokens, and the faults among them.

use proc_macro2::{Delimiter, Group, TokenStream, TokenTree};

use super::{MAY_IMPORT, ONLY_IN, ROOM_MAY_IMPORT, may, module_of};

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
pub(super) fn faults_of(file: &str, text: &str) -> Vec<String> {
    let tokens: TokenStream = text
        .parse()
        .unwrap_or_else(|e| panic!("{file} is not Rust: {e}"));
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
pub(super) struct Name {
    pub(super) path: Vec<String>,
    pub(super) module: Vec<String>,
    pub(super) is_import: bool,
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

    /// Follows `crate`, `self` and `super`: returns the module that they lead to, and the words after them.
    pub(super) fn resolve(&self) -> (&[String], &[String]) {
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

/// Collects what these tokens name.
pub(super) fn read(tokens: TokenStream, module: &[String], names: &mut Vec<Name>) {
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

/// Follows a path of which these words have been read, into its braces; returns what comes after it.
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
