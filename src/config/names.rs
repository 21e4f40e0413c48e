//! Users and groups that a configuration names, and how their numbers are found.
//!
//! A file is read strictly: a name without a number is a mistake. The configuration that a master before this one had in
//! force is taken over for the sake of its clients, and must not fail for a name: a program that goes on in the same process
//! ([`Names::Known`]) asks no database at all, and a restart ([`Names::Lenient`]) takes a group that is unknown now for one
//! that nobody is in.

use std::cell::RefCell;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Config;
use super::notation::Rejection;
use crate::sys::user::{Group, User};

/// The number of a group or user that no process has: setgid(2) and setuid(2) refuse it, and chown(2) changes nothing by it.
const NONE: u32 = u32::MAX;

/// The numbers of the users and groups that a configuration names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Identities {
    users: BTreeMap<String, u32>,
    groups: BTreeMap<String, u32>,
}

impl Identities {
    /// Those of a configuration.
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
        }
    }
}

/// Where the numbers of names come from.
#[derive(Clone, Debug, Default)]
pub(super) enum Names {
    /// From the databases of the system; a name that is not there is a mistake.
    #[default]
    Strict,
    /// From the databases; a name that is not there is that of nobody.
    Lenient,
    /// From here, without a look at the databases; a name that is not here is that of nobody.
    Known(Identities),
}

thread_local! {
    /// For what this thread parses now: serde passes nothing along to the values of a document.
    static NAMES: RefCell<Names> = const { RefCell::new(Names::Strict) };
}

impl Names {
    /// Parses with these, and strictly again afterwards.
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

/// The user of a name or number.
pub(super) fn user(name: &str) -> Result<User, Rejection> {
    let nobody = || User {
        name: name.to_owned(),
        uid: NONE,
    };
    NAMES.with_borrow(|names| match names {
        Names::Known(known) => Ok(known
            .users
            .get(name)
            .map_or_else(nobody, |&uid| User { uid, ..nobody() })),
        Names::Lenient => Ok(User::find(name).ok().flatten().unwrap_or_else(|| {
            log::warn!("user {name:?} cannot be resolved; its files keep their owner");
            nobody()
        })),
        Names::Strict => match User::find(name) {
            Ok(user) => {
                user.ok_or_else(|| Rejection::Because(format!("there is no user {name:?}")))
            }
            Err(error) => Err(Rejection::Because(format!(
                "cannot look up the user {name:?}: {error}"
            ))),
        },
    })
}

/// The group of a name or number.
pub(super) fn group(name: &str) -> Result<Group, Rejection> {
    let nobodys = || Group {
        name: name.to_owned(),
        gid: NONE,
    };
    NAMES.with_borrow(|names| match names {
        Names::Known(known) => Ok(known
            .groups
            .get(name)
            .map_or_else(nobodys, |&gid| Group { gid, ..nobodys() })),
        Names::Lenient => Ok(Group::find(name).ok().flatten().unwrap_or_else(|| {
            log::warn!("group {name:?} cannot be resolved; its members have no access");
            nobodys()
        })),
        Names::Strict => match Group::find(name) {
            Ok(group) => {
                group.ok_or_else(|| Rejection::Because(format!("there is no group {name:?}")))
            }
            Err(error) => Err(Rejection::Because(format!(
                "cannot look up the group {name:?}: {error}"
            ))),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "control.admin-group = \"no-such-group\"";

    #[test]
    fn unknown_group_of_a_kept_configuration_admits_nobody() {
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
