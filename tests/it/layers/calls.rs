//! The calls between rooms of `master`. An import map does not see a method call: every method of `Master` can be
//! called wherever there is a `Master`. So a room calls only methods that rooms before it on the map define, and uses
//! only the fields of `Master` whose types these rooms define. The loop alone, which is `master/mod.rs`, may call and
//! use all.

use std::collections::{BTreeMap, BTreeSet};

use proc_macro2::{Delimiter, TokenStream, TokenTree};

use super::{ROOM_MAY_IMPORT, may, module_of, sources};

/// The room that stands for `master/mod.rs`.
const LOOP: &str = "mod";

/// Exceptions: the room, and the method or the field that it uses against the arrows.
const KNOWN: &[(&str, &str)] = &[];

#[test]
fn no_room_uses_a_method_or_a_field_of_a_room_above_it() {
    let found = forbidden_uses(&sources());
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
        "against the arrows, as (room, method or field): {new:#?}"
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
        forbidden_uses(&sources).len()
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

#[test]
fn a_field_against_the_arrows_is_seen() {
    let uses = |text: &str| {
        let sources = [
            ("master/clients/leases.rs", text),
            (
                "master/mod.rs",
                "struct Master { a: usize, b: Server, c: Option<self::x::Server>, d: Telemetry }",
            ),
            ("master/control/mod.rs", "pub(crate) struct Server;"),
            ("master/telemetry/mod.rs", "pub(crate) struct Telemetry {}"),
        ];
        forbidden_uses(&sources.map(|(file, text)| (file.to_owned(), text.to_owned()))).len()
    };
    assert_eq!(
        uses("impl Master { fn f(&self) { self.a; self.d.x() } }"),
        0
    );
    assert_eq!(uses("impl Master { fn f(&self) { self.b.x() } }"), 1);
    assert_eq!(
        uses("impl Master { fn f(&mut self) { g(&mut self.c, self\n.b) } }"),
        2
    );
    assert_eq!(uses("impl Leases { fn f(&self) { self.b.x() } }"), 0);
    assert_eq!(uses("impl Master { fn f(&self) { self.x.b } }"), 0);
}

/// Returns what each room uses and the map does not allow: the room, and the method or the field.
fn forbidden_uses(sources: &[(String, String)]) -> BTreeSet<(String, String)> {
    let files: Vec<(String, Vec<TokenTree>)> = sources
        .iter()
        .filter_map(|(file, text)| Some((room_of(file)?, tokens(text))))
        .collect();
    let mut owners = fields_of_master(&files);
    for (room, tokens) in &files {
        for block in impls_of_master(tokens) {
            owners.extend(functions(block).map(|name| (format!("{name}()"), room.as_str())));
        }
    }
    let mut forbidden = BTreeSet::new();
    for (room, tokens) in files.iter().filter(|(room, _)| room != LOOP) {
        let mut used = BTreeSet::new();
        for block in impls_of_master(tokens) {
            uses(block, &["self", "master"], &mut used);
        }
        uses(tokens.iter().cloned().collect(), &["master"], &mut used);
        let is_forbidden = |name: &String| {
            owners.get(name).is_some_and(|owner| {
                owner != room && (*owner == LOOP || !may(&ROOM_MAY_IMPORT, room, owner))
            })
        };
        forbidden.extend(
            used.into_iter()
                .filter(is_forbidden)
                .map(|name| (room.clone(), name.trim_end_matches("()").to_owned())),
        );
    }
    forbidden
}

/// Returns the fields of `Master` whose types are defined in a room, with that room.
fn fields_of_master(files: &[(String, Vec<TokenTree>)]) -> BTreeMap<String, &str> {
    let mut rooms = BTreeMap::new();
    let mut fields = Vec::new();
    for (room, tokens) in files {
        for three in tokens.windows(3) {
            let [TokenTree::Ident(word), TokenTree::Ident(name), behind] = three else {
                continue;
            };
            match behind {
                TokenTree::Group(body) if word == "struct" && name == "Master" => {
                    fields = body.stream().into_iter().collect();
                }
                _ if (word == "struct" || word == "enum") && room != LOOP => {
                    rooms.insert(name.to_string(), room.as_str());
                }
                _ => {}
            }
        }
    }
    let is_comma =
        |token: &TokenTree| matches!(token, TokenTree::Punct(mark) if mark.as_char() == ',');
    let owner = |field: &[TokenTree]| {
        let words = field.iter().filter_map(|token| match token {
            TokenTree::Ident(word) => Some(word.to_string()),
            _ => None,
        });
        let mut words = words.collect::<Vec<_>>().into_iter();
        let name = words.next()?;
        let room = words.find_map(|word| rooms.get(&word).copied())?;
        Some((name, room))
    };
    fields.split(is_comma).filter_map(owner).collect()
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

/// Collects the methods, as `name()`, and the fields that these tokens use of a receiver of these names, and the
/// functions that they name as `Master::…` or `Self::…`.
fn uses(tokens: TokenStream, receivers: &[&str], used: &mut BTreeSet<String>) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    for (at, token) in tokens.iter().enumerate() {
        let before = at.checked_sub(1).and_then(|before| tokens.get(before));
        let is_field = matches!(before, Some(TokenTree::Punct(mark)) if mark.as_char() == '.');
        match (token, &tokens[at + 1..]) {
            (TokenTree::Group(group), _) => uses(group.stream(), receivers, used),
            (
                TokenTree::Ident(receiver),
                [TokenTree::Punct(dot), TokenTree::Ident(name), rest @ ..],
            ) if !is_field
                && dot.as_char() == '.'
                && receivers.iter().any(|word| receiver == word) =>
            {
                let is_call = matches!(rest.first(), Some(TokenTree::Group(arguments)) if arguments.delimiter() == Delimiter::Parenthesis);
                used.insert(if is_call {
                    format!("{name}()")
                } else {
                    name.to_string()
                });
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
                used.insert(format!("{method}()"));
            }
            _ => {}
        }
    }
}
