//! A type name stands for one thing: no two modules of src define the same one, but for a short list. A test has a short
//! name.

use std::collections::{BTreeMap, BTreeSet};

use proc_macro2::{Delimiter, TokenStream, TokenTree};

use crate::layers::{rust_files, sources};

/// The longest name of a test.
const MAX_TEST_NAME: usize = 60;

/// Names that modules share, and why.
const SHARED: [(&str, &str); 3] = [
    (
        "Error",
        "each module has the errors of its own functions, named by path where two of them meet",
    ),
    (
        "Client",
        "of the master, and of the public modules `client` and `testing`, for which it is the other end",
    ),
    (
        "Reply",
        "what a method writes, and what a client of the public module `testing` reads",
    ),
];

#[test]
fn no_two_modules_define_the_same_type_name() {
    let shared: BTreeMap<String, BTreeSet<String>> = types_of(&sources())
        .into_iter()
        .filter(|(_, files)| files.len() > 1)
        .collect();
    let allowed: BTreeSet<&str> = SHARED.iter().map(|(name, _)| *name).collect();
    let unexpected: Vec<_> = shared
        .iter()
        .filter(|(name, _)| !allowed.contains(name.as_str()))
        .collect();
    assert!(unexpected.is_empty(), "{unexpected:#?}");
    let unused: Vec<_> = allowed
        .iter()
        .filter(|name| !shared.contains_key(**name))
        .collect();
    assert!(unused.is_empty(), "not shared any more: {unused:?}");
}

#[test]
fn types_of_tests_and_of_functions_do_not_count() {
    let text = r#"
        struct A; pub(crate) enum B { C } trait D {} type E = A; impl D for A { type F = A; }
        fn f() { struct G; }
        #[cfg(test)] mod tests { struct H; }
        mod inner { pub struct I(A); }
    "#;
    let found = types_of(&[
        ("a.rs".to_owned(), text.to_owned()),
        ("a/tests.rs".to_owned(), "struct J;".to_owned()),
    ]);
    let names: Vec<&str> = found.keys().map(String::as_str).collect();
    assert_eq!(names, ["A", "B", "D", "E", "I"]);
}

#[test]
fn the_names_of_tests_are_short() {
    let folders = ["benches", "examples", "src", "tests"];
    let texts = folders.into_iter().flat_map(rust_files);
    let names: Vec<String> = texts.flat_map(|(_, text)| tests_of(&text)).collect();
    assert!(names.len() > 1000, "{}", names.len());
    let long: Vec<&String> = names
        .iter()
        .filter(|name| name.len() > MAX_TEST_NAME)
        .collect();
    assert!(long.is_empty(), "{long:#?}");

    let text = r#"
        #[test] #[ignore = "slow"] fn a() { #[derive(Debug)] struct B; fn c() {} }
        fn d() {}
        #[cfg(test)] mod tests { proptest! { #[test] fn e(f in 0..1) {} } }
    "#;
    assert_eq!(tests_of(text), ["a", "e"]);
}

/// The names of all tests in a text.
fn tests_of(text: &str) -> Vec<String> {
    let mut names = Vec::new();
    collect_tests(text.parse().expect("it is Rust"), &mut names);
    names
}

fn collect_tests(items: TokenStream, names: &mut Vec<String>) {
    let mut is_test = false;
    let mut is_name = false;
    for token in items {
        match token {
            TokenTree::Group(group)
                if group.delimiter() == Delimiter::Bracket
                    && group.stream().to_string() == "test" =>
            {
                is_test = true;
            }
            TokenTree::Group(group) => collect_tests(group.stream(), names),
            TokenTree::Ident(name) if is_name => {
                names.push(name.to_string());
                (is_test, is_name) = (false, false);
            }
            TokenTree::Ident(word) => is_name = is_test && word == "fn",
            TokenTree::Punct(_) | TokenTree::Literal(_) => {}
        }
    }
}

/// The names of all types, each with the files that define it.
fn types_of(sources: &[(String, String)]) -> BTreeMap<String, BTreeSet<String>> {
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let is_tested = |file: &str| {
        let mut parts = file.trim_end_matches(".rs").split('/');
        !parts.any(|part| part == "tests" || part == "model")
    };
    for (file, text) in sources.iter().filter(|(file, _)| is_tested(file)) {
        let tokens: TokenStream = text.parse().expect("src is Rust");
        collect(tokens, &mut |name| {
            found.entry(name).or_default().insert(file.clone());
        });
    }
    found
}

/// Passes on the name of each type that these items define, those for tests left out.
fn collect(items: TokenStream, add: &mut impl FnMut(String)) {
    let tokens: Vec<TokenTree> = items.into_iter().collect();
    let mut is_for_tests = false;
    for (index, token) in tokens.iter().enumerate() {
        match (token, tokens.get(index + 1), tokens.get(index + 2)) {
            (TokenTree::Punct(hash), Some(TokenTree::Group(attribute)), _)
                if hash.as_char() == '#' =>
            {
                is_for_tests |= attribute.stream().to_string().replace(' ', "") == "cfg(test)";
            }
            (TokenTree::Ident(word), Some(TokenTree::Ident(name)), behind) => {
                let word = word.to_string();
                if ["struct", "enum", "trait", "union", "type"].contains(&word.as_str()) {
                    if !is_for_tests {
                        add(name.to_string());
                    }
                } else if let ("mod", Some(TokenTree::Group(body))) = (word.as_str(), behind)
                    && !is_for_tests
                {
                    collect(body.stream(), add);
                }
            }
            // The end of an item.
            (TokenTree::Punct(mark), _, _) if mark.as_char() == ';' => is_for_tests = false,
            (TokenTree::Group(body), _, _) if body.delimiter() == Delimiter::Brace => {
                is_for_tests = false;
            }
            _ => {}
        }
    }
}
