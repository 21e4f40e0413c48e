//! The calls between rooms of `master`. An import map does not see a method call: every method of `Master` can be called
//! wherever there is a `Master`. So a room calls only methods that rooms before it on the map define, and the loop alone,
//! which is `master/mod.rs`, calls all of them.

use std::collections::{BTreeMap, BTreeSet};

use proc_macro2::{Delimiter, TokenStream, TokenTree};

use super::{ROOM_MAY_IMPORT, may, module_of, sources};

/// The room that stands for `master/mod.rs`.
const LOOP: &str = "mod";

/// Calls against the arrows that are still there: the room, and the method that it calls.
const KNOWN: &[(&str, &str)] = &[
    ("listeners", "keep_listeners"),
    ("listeners", "store_listener_anew"),
    ("workers", "candidate_ended"),
    ("workers", "keep_orphan"),
    ("workers", "reading_ended"),
    ("workers", "ready_workers"),
];

#[test]
fn no_room_calls_a_method_of_a_room_above_it() {
    let found = forbidden_calls(&sources());
    let known: BTreeSet<(String, String)> = KNOWN
        .iter()
        .map(|(room, method)| ((*room).to_owned(), (*method).to_owned()))
        .collect();
    let (new, stale): (Vec<_>, Vec<_>) = (
        found.difference(&known).collect(),
        known.difference(&found).collect(),
    );
    assert!(
        new.is_empty(),
        "calls against the arrows, as (room, method): {new:#?}"
    );
    assert!(
        stale.is_empty(),
        "exceptions that are not needed any more: {stale:#?}"
    );
}

#[test]
fn a_call_against_the_arrows_is_seen() {
    let calls = |caller: (&str, &str), defines: &str| {
        let sources = [
            (caller.0.to_owned(), caller.1.to_owned()),
            (
                defines.to_owned(),
                "impl Master { pub(crate) fn go(&self) {} } impl Other { fn stay(&self) {} }"
                    .to_owned(),
            ),
        ];
        forbidden_calls(&sources).len()
    };
    let call = "impl Master { fn f(&mut self) { if x { self\n.go(1) } } }";
    let clients = "master/clients/leases.rs";
    assert_eq!(calls((clients, call), "master/control/server.rs"), 1);
    assert_eq!(calls((clients, call), "master/mod.rs"), 1);
    assert_eq!(calls((clients, call), "master/telemetry/mod.rs"), 0);
    assert_eq!(calls((clients, call), "master/clients/client.rs"), 0);
    assert_eq!(calls(("master/mod.rs", call), "master/startup.rs"), 0);
    for (text, count) in [
        ("impl Master { fn f(&self) { vec![Master::go(self)]; } }", 1),
        ("fn f() { g(Self::go, Master::go) }", 1),
        ("fn f(master: &mut Master) { master.go() }", 1),
        (
            "impl Master { fn f(&self) { self.stay(); self.x.go(); } }",
            0,
        ),
        ("impl Leases { fn f(&self) { self.go() } }", 0),
        ("// self.go()\nfn f() { g(\"master.go()\") }", 0),
    ] {
        assert_eq!(
            calls((clients, text), "master/workers/mod.rs"),
            count,
            "{text}"
        );
    }
}

/// Returns the calls of each room that the map does not allow: the room, and the method.
fn forbidden_calls(sources: &[(String, String)]) -> BTreeSet<(String, String)> {
    let files: Vec<(String, Vec<TokenTree>)> = sources
        .iter()
        .filter_map(|(file, text)| Some((room_of(file)?, tokens(text))))
        .collect();
    let mut owners = BTreeMap::new();
    for (room, tokens) in &files {
        for block in impls_of_master(tokens) {
            owners.extend(functions(block).map(|name| (name, room.as_str())));
        }
    }
    let mut forbidden = BTreeSet::new();
    for (room, tokens) in files.iter().filter(|(room, _)| room != LOOP) {
        let mut called = BTreeSet::new();
        for block in impls_of_master(tokens) {
            calls(block, &["self", "master"], &mut called);
        }
        calls(tokens.iter().cloned().collect(), &["master"], &mut called);
        let is_forbidden = |method: &String| {
            owners.get(method).is_some_and(|owner| {
                owner != room && (*owner == LOOP || !may(&ROOM_MAY_IMPORT, room, owner))
            })
        };
        forbidden.extend(
            called
                .into_iter()
                .filter(is_forbidden)
                .map(|method| (room.clone(), method)),
        );
    }
    forbidden
}

fn tokens(text: &str) -> Vec<TokenTree> {
    let tokens: TokenStream = text.parse().expect("a file of src is Rust");
    tokens.into_iter().collect()
}

/// Returns the room of a file of `master`.
fn room_of(file: &str) -> Option<String> {
    let module = module_of(file);
    let (root, rest) = module.split_first()?;
    (root == "master").then(|| rest.first().map_or(LOOP.to_owned(), String::clone))
}

/// Returns the bodies of `impl Master`.
fn impls_of_master(tokens: &[TokenTree]) -> impl Iterator<Item = TokenStream> + '_ {
    tokens.windows(3).filter_map(|three| match three {
        [
            TokenTree::Ident(word),
            TokenTree::Ident(name),
            TokenTree::Group(body),
        ] if word == "impl" && name == "Master" && body.delimiter() == Delimiter::Brace => {
            Some(body.stream())
        }
        _ => None,
    })
}

/// Returns the names of the functions that a block defines.
fn functions(block: TokenStream) -> impl Iterator<Item = String> {
    let tokens: Vec<TokenTree> = block.into_iter().collect();
    let names: Vec<String> = tokens
        .windows(2)
        .filter_map(|two| match two {
            [TokenTree::Ident(word), TokenTree::Ident(name)] if word == "fn" => {
                Some(name.to_string())
            }
            _ => None,
        })
        .collect();
    names.into_iter()
}

/// Collects what these tokens call of a receiver of these names, and what they name as `Master::…` or `Self::…`.
fn calls(tokens: TokenStream, receivers: &[&str], called: &mut BTreeSet<String>) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    for (at, token) in tokens.iter().enumerate() {
        let before = at.checked_sub(1).and_then(|before| tokens.get(before));
        let is_field = matches!(before, Some(TokenTree::Punct(mark)) if mark.as_char() == '.');
        match (token, &tokens[at + 1..]) {
            (TokenTree::Group(group), _) => calls(group.stream(), receivers, called),
            (
                TokenTree::Ident(receiver),
                [
                    TokenTree::Punct(dot),
                    TokenTree::Ident(method),
                    TokenTree::Group(arguments),
                    ..,
                ],
            ) if !is_field
                && dot.as_char() == '.'
                && arguments.delimiter() == Delimiter::Parenthesis
                && receivers.iter().any(|name| receiver == name) =>
            {
                called.insert(method.to_string());
            }
            (
                TokenTree::Ident(owner),
                [
                    TokenTree::Punct(one),
                    TokenTree::Punct(two),
                    TokenTree::Ident(method),
                    ..,
                ],
            ) if (owner == "Master" || owner == "Self")
                && one.as_char() == ':'
                && two.as_char() == ':' =>
            {
                called.insert(method.to_string());
            }
            _ => {}
        }
    }
}
