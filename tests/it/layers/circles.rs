//! Circles of imports between the files of src, without their tests.

use std::collections::{BTreeMap, BTreeSet};

use super::imports::{Name, read};
use super::{module_of, sources};

/// The longest way from a name to its definition through imports of other files.
const MAX_STEPS: usize = 8;

/// Pairs of files: the first imports the second.
type Arrows = BTreeSet<(String, String)>;

#[test]
fn no_files_import_one_another_in_a_circle() {
    let arrows = between_files(&imports_of(&sources()));
    assert!(arrows.len() > 1000, "{}", arrows.len());
    let circles = circles_in(&arrows);
    let texts: Vec<String> = circles.iter().map(|files| shown(&arrows, files)).collect();
    assert!(circles.is_empty(), "\n{}", texts.join("\n"));
}

/// In `ctl`, this holds for `ctl/mod.rs` as well.
#[test]
fn no_parts_of_ctl_import_one_another_in_a_circle() {
    let arrows = between_parts_of_ctl(&imports_of(&sources()));
    assert!(arrows.len() > 10);
    assert_eq!(circles_in(&arrows), BTreeSet::new());

    let files = [("ctl/mod", "use a::A;"), ("ctl/a", "use super::S;")];
    let arrows = between_parts_of_ctl(&imports_of(&texts(&files)));
    assert_eq!(circles_in(&arrows), BTreeSet::from([names(&["a", "mod"])]));
}

#[test]
fn a_circle_is_found_in_every_spelling() {
    let circles = |files: &[(&str, &str)]| circles_in(&between_files(&imports_of(&texts(files))));
    let found = circles(&[
        ("m/mod", "mod a; mod b; use a::A; fn main() { b::f(); }"),
        ("m/a", "use super::b::B; use crate::proto::names;"),
        ("m/b", "fn f() { crate::m::c::g(); }"),
        ("m/c", "use super::{a::A, d};"),
        ("m/d", "mod tests { use super::super::a; }"),
        ("m/tests", "use super::{a, d};"),
    ]);
    assert_eq!(found, BTreeSet::from([names(&["m/a", "m/b", "m/c"])]));
    // A name that the module above has imported is that of another file.
    let found = circles(&[
        ("m/mod", "mod a; mod b; use a::A;"),
        ("m/a", "use super::b::B;"),
        ("m/b", "use super::A;"),
    ]);
    assert_eq!(found, BTreeSet::from([names(&["m/a", "m/b"])]));
    // A module and those above it are one thing.
    let found = circles(&[
        ("m/mod", "use a::A; use a::b::B;"),
        ("m/a", "use super::S; use b::B;"),
        ("m/a/b", "use super::super::S; use super::T;"),
    ]);
    assert_eq!(found, BTreeSet::new());
}

/// Returns these files, named without `.rs`, as [`sources`] returns those of src.
fn texts(files: &[(&str, &str)]) -> Vec<(String, String)> {
    let files = files.iter();
    files
        .map(|(file, text)| (format!("{file}.rs"), (*text).to_owned()))
        .collect()
}

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// Returns each module that has a file, with those that it imports; a name that another file has imported leads to both
/// of them. Tests are left out.
fn imports_of(sources: &[(String, String)]) -> BTreeMap<Vec<String>, BTreeSet<Vec<String>>> {
    let mut files: BTreeMap<Vec<String>, Vec<Name>> = BTreeMap::from([(Vec::new(), Vec::new())]);
    for (file, text) in sources {
        let module = module_of(file);
        if !is_of_tests(&module) {
            let found = files.entry(module.clone()).or_default();
            read(text.parse().expect("src is Rust"), &module, found);
            found.retain(|name| !is_of_tests(&name.module));
        }
    }
    let mut imports: BTreeMap<Vec<String>, BTreeSet<Vec<String>>> = BTreeMap::new();
    for (module, found) in &files {
        let targets = found.iter().flat_map(|name| targets_of(name, &files));
        imports.insert(module.clone(), targets.collect());
    }
    imports
}

fn is_of_tests(module: &[String]) -> bool {
    module.iter().any(|part| part == "tests" || part == "model")
}

/// Follows a name to the module that it names, and from there through imports to the one that defines it.
fn targets_of(name: &Name, files: &BTreeMap<Vec<String>, Vec<Name>>) -> Vec<Vec<String>> {
    let mut targets = Vec::new();
    let mut next = Some(name);
    while let Some(name) = next.filter(|_| targets.len() < MAX_STEPS) {
        let (at, rest) = name.resolve();
        let is_relative = rest.len() == name.path.len();
        let mut path = [if is_relative { &name.module[..] } else { at }, rest].concat();
        let mut word = None;
        while !files.contains_key(&path) {
            word = path.pop();
        }
        next = word.and_then(|word| {
            let mut imports = files[&path].iter().filter(|other| other.is_import);
            imports.find(|other| other.path.last() == Some(&word) && !std::ptr::eq(*other, name))
        });
        targets.push(path);
    }
    targets
}

/// Returns the imports between files. A module and those above it are one thing.
fn between_files(imports: &BTreeMap<Vec<String>, BTreeSet<Vec<String>>>) -> Arrows {
    let pairs = imports
        .iter()
        .flat_map(|(from, others)| others.iter().map(move |to| (from, to)));
    pairs
        .filter(|(from, to)| !from.starts_with(to) && !to.starts_with(from))
        .map(|(from, to)| (from.join("/"), to.join("/")))
        .collect()
}

/// Returns the imports between the files and folders of `ctl`.
fn between_parts_of_ctl(imports: &BTreeMap<Vec<String>, BTreeSet<Vec<String>>>) -> Arrows {
    let part = |module: &Vec<String>| match &module[..] {
        [first, rest @ ..] if first == "ctl" => {
            Some(rest.first().map_or("mod", String::as_str).to_owned())
        }
        _ => None,
    };
    let pairs = imports
        .iter()
        .flat_map(|(from, others)| others.iter().map(move |to| (from, to)));
    pairs
        .filter_map(|(from, to)| Some((part(from)?, part(to)?)))
        .filter(|(from, to)| from != to)
        .collect()
}

/// Returns the groups of files in which each leads to all others.
fn circles_in(arrows: &Arrows) -> BTreeSet<BTreeSet<String>> {
    let files: BTreeSet<&String> = arrows.iter().map(|(from, _)| from).collect();
    let reached: BTreeMap<&String, BTreeSet<String>> = files
        .into_iter()
        .map(|file| (file, reachable(arrows, file)))
        .collect();
    let leads = |from: &String, to: &String| reached.get(from).is_some_and(|all| all.contains(to));
    reached
        .iter()
        .filter(|(file, all)| all.contains(**file))
        .map(|(file, all)| {
            all.iter()
                .filter(|other| leads(other, file))
                .cloned()
                .collect()
        })
        .collect()
}

/// Returns the files that a file leads to, directly or through others. It is one of them only if it is in a circle.
fn reachable(arrows: &Arrows, from: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut rest = vec![from];
    while let Some(file) = rest.pop() {
        let after = (file.to_owned(), String::new());
        let others = arrows.range(after..).take_while(|(from, _)| from == file);
        for (_, other) in others {
            if found.insert(other.clone()) {
                rest.push(other);
            }
        }
    }
    found
}

/// Returns the arrows within a group, one a line.
fn shown(arrows: &Arrows, group: &BTreeSet<String>) -> String {
    let within = |(from, to): &&(String, String)| group.contains(from) && group.contains(to);
    let lines = arrows.iter().filter(within);
    lines
        .map(|(from, to)| format!("{from} -> {to}\n"))
        .collect()
}
