//! Circles of imports between the files of ctl.

use std::collections::BTreeSet;

use super::imports::read;
use super::{module_of, sources};

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

/// Removes arrows to files without imports, and from files that are not imported, until none is left but those of
/// circles.
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
