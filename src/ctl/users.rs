//! Names of users after their numbers: a daemon knows the numbers only.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::sys::user::User;

/// Lets this process look names up. A directory server may be slow, so only a person's own process does.
pub(super) fn use_names() {
    ARE_NAMED.store(true, Ordering::Relaxed);
}

/// Returns a text with the name after each `uid 1000`, like `uid 1000, alice`, if the user has one on this machine.
pub(super) fn with_names(text: &str) -> Cow<'_, str> {
    match ARE_NAMED.load(Ordering::Relaxed) {
        true => named(text, name),
        false => Cow::Borrowed(text),
    }
}

fn named(text: &str, name: impl Fn(u32) -> Option<String>) -> Cow<'_, str> {
    let (mut shown, mut rest) = (String::new(), text);
    while let Some(at) = rest.find(UID) {
        let number = &rest[at + UID.len()..];
        let end = number
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(number.len());
        let is_word = at == 0 || !rest.as_bytes()[at - 1].is_ascii_alphanumeric();
        shown.push_str(&rest[..at + UID.len() + end]);
        if let Some(name) = number[..end]
            .parse()
            .ok()
            .filter(|_| is_word)
            .and_then(&name)
        {
            shown.push_str(", ");
            shown.push_str(&name);
        }
        rest = &number[end..];
    }
    match shown.is_empty() {
        true => Cow::Borrowed(text),
        false => Cow::Owned(shown + rest),
    }
}

/// Returns the name of a user, who is looked up once.
fn name(uid: u32) -> Option<String> {
    thread_local! {
        static KNOWN: RefCell<HashMap<u32, Option<String>>> = RefCell::default();
    }
    KNOWN.with_borrow_mut(|known| {
        let found = || {
            let name = User::from_uid(uid).ok()?.name;
            (name != uid.to_string()).then_some(name)
        };
        known.entry(uid).or_insert_with(found).clone()
    })
}

/// The word in front of a user's number.
const UID: &str = "uid ";

/// Whether names are looked up.
static ARE_NAMED: AtomicBool = AtomicBool::new(false);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_numbers_of_users() {
        let name = |uid: u32| (uid < 2).then(|| ["root", "alice"][uid as usize].to_owned());
        for (text, shown) in [
            ("", ""),
            ("127.0.0.1:8080", "127.0.0.1:8080"),
            ("pid 4711 (uid 1)", "pid 4711 (uid 1, alice)"),
            ("uid 0 (pid 7): reload", "uid 0, root (pid 7): reload"),
            ("uid 1 and uid 0", "uid 1, alice and uid 0, root"),
            ("uid 7", "uid 7"),
            (
                "guid 1 uid x uid 99999999999",
                "guid 1 uid x uid 99999999999",
            ),
            ("uid ", "uid "),
        ] {
            assert_eq!(named(text, name), shown);
        }
        assert_eq!(with_names("uid 0"), "uid 0");
    }
}
