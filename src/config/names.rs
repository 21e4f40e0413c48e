//! The numbers of the users and groups in a configuration.
//!
//! A file is read strictly: an unknown name is an error. The configuration of a previous master, which has clients,
//! must not fail for a name: an upgrade in place ([`Names::Known`]) reads no database, and a restart
//! ([`Names::Lenient`]) treats an unknown group as one without members.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;

use serde::{Deserialize, Serialize};

use super::Config;
use super::app::AppContext;
use super::notation::{Notation, Rejection, WrittenValue};
use super::values::text;
use crate::sys::user::{Group, User};

/// A number that no process has as user or group: setuid(2) and setgid(2) refuse it, and chown(2) ignores it.
const NONE: u32 = u32::MAX;

/// The context of a configuration as it was when it was loaded: the numbers of its users and groups, and the context of
/// its app.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Identities {
    users: BTreeMap<String, u32>,
    groups: BTreeMap<String, u32>,
    /// The context of the app.
    pub(super) app: AppContext,
}

impl Identities {
    /// Returns the identities in a configuration.
    #[must_use]
    pub fn from_config(config: &Config) -> Identities {
        let access = || {
            config
                .listen
                .iter()
                .filter_map(|listen| listen.access.as_ref())
        };
        let control = [&config.control.admin_group, &config.control.read_group]
            .into_iter()
            .flatten();
        let groups = access()
            .filter_map(|access| access.group.as_ref())
            .chain(control);
        let users = access().filter_map(|access| access.owner.as_ref());
        Identities {
            users: users.map(|user| (user.name.clone(), user.uid)).collect(),
            groups: groups
                .map(|group| (group.name.clone(), group.gid))
                .collect(),
            app: config.app.context.clone(),
        }
    }

    /// Logs the names that could not be resolved. Not done while they are resolved: a start reads the last
    /// configuration before it knows where the log is.
    pub(crate) fn log_unresolved(&self) {
        let unresolved = |numbers: &BTreeMap<String, u32>, kind: &str, consequence: &str| {
            for (name, _) in numbers.iter().filter(|(_, number)| **number == NONE) {
                log::warn!("{kind} {name:?} cannot be resolved; {consequence}");
            }
        };
        unresolved(&self.users, "user", "its files keep their owner");
        unresolved(&self.groups, "group", "its members have no access");
    }
}

/// The source of the numbers.
#[derive(Clone, Debug, Default)]
pub(super) enum Names {
    /// The databases of the system; an unknown name is an error.
    #[default]
    Strict,
    /// The databases of the system; an unknown name has the number [`NONE`].
    Lenient,
    /// Only these identities; an unknown name has the number [`NONE`].
    Known(Identities),
}

thread_local! {
    /// For the document that this thread parses: serde passes no context to values.
    static NAMES: RefCell<Names> = const { RefCell::new(Names::Strict) };
}

impl Names {
    /// Calls `parse` with these, and then restores the previous ones.
    pub(super) fn during<T>(self, parse: impl FnOnce() -> T) -> T {
        struct Restore(Names);
        impl Drop for Restore {
            fn drop(&mut self) {
                NAMES.set(std::mem::take(&mut self.0));
            }
        }
        let _restore = Restore(NAMES.replace(self));
        parse()
    }
}

/// Returns the user of a name or number.
fn user(name: &str) -> Result<User, Rejection> {
    let with_uid = |uid| User {
        name: name.to_owned(),
        uid,
    };
    resolve(name, "user", User::find, |known| {
        with_uid(known.users.get(name).copied().unwrap_or(NONE))
    })
}

/// Returns the group of a name or number.
fn group(name: &str) -> Result<Group, Rejection> {
    let with_gid = |gid| Group {
        name: name.to_owned(),
        gid,
    };
    resolve(name, "group", Group::find, |known| {
        with_gid(known.groups.get(name).copied().unwrap_or(NONE))
    })
}

/// Resolves a name as this thread does at the moment. `known` returns what has the number of these identities, or
/// [`NONE`].
fn resolve<T>(
    name: &str,
    kind: &str,
    find: fn(&str) -> io::Result<Option<T>>,
    known: impl Fn(&Identities) -> T,
) -> Result<T, Rejection> {
    NAMES.with_borrow(|names| match names {
        Names::Known(identities) => Ok(known(identities)),
        Names::Lenient => Ok(find(name)
            .ok()
            .flatten()
            .unwrap_or_else(|| known(&Identities::default()))),
        Names::Strict => match find(name) {
            Ok(found) => {
                found.ok_or_else(|| Rejection::Because(format!("there is no {kind} {name:?}")))
            }
            Err(error) => Err(Rejection::Because(format!(
                "cannot look up the {kind} {name:?}: {error}"
            ))),
        },
    })
}

impl Notation for User {
    type Value = User;

    fn expected() -> String {
        "the name or the number of a user in quotes".to_owned()
    }

    fn read(written: &WrittenValue<'_>) -> Result<User, Rejection> {
        user(text(written)?)
    }

    fn write(value: &User) -> WrittenValue<'_> {
        WrittenValue::Text(value.name.as_str().into())
    }
}

impl Notation for Group {
    type Value = Group;

    fn expected() -> String {
        "the name or the number of a group in quotes".to_owned()
    }

    fn read(written: &WrittenValue<'_>) -> Result<Group, Rejection> {
        group(text(written)?)
    }

    fn write(value: &Group) -> WrittenValue<'_> {
        WrittenValue::Text(value.name.as_str().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "control.admin-group = \"no-such-group\"";

    #[test]
    fn an_unknown_group_of_the_last_configuration_has_no_members() {
        let admins = |config: &Config| config.control.admin_group.clone().map(|group| group.gid);
        assert!(
            Config::parse(TEXT, "file")
                .expect_err("a mistake")
                .to_string()
                .contains("there is no group")
        );
        let kept = Config::parse_kept(TEXT, "the last configuration", None).expect("it is lenient");
        assert_eq!(admins(&kept), Some(NONE));
        let known = Identities {
            groups: BTreeMap::from([("no-such-group".to_owned(), 4711)]),
            ..Identities::default()
        };
        let kept =
            Config::parse_kept(TEXT, "the last configuration", Some(&known)).expect("it is known");
        assert_eq!(
            (admins(&kept), Identities::from_config(&kept)),
            (Some(4711), known)
        );
        let kept =
            Config::parse_kept(TEXT, "x", Some(&Identities::default())).expect("it is not known");
        assert_eq!(admins(&kept), Some(NONE));
        Config::parse(TEXT, "file").expect_err("strict again");
    }
}
