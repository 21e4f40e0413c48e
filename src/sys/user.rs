//! Users and groups, by name or number, as the system's databases know them (nsswitch.conf(5)).

use std::io;

use nix::errno::Errno;
use nix::unistd::{Gid, Uid};

/// A user who was looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The name, or the number in digits if the user has no name.
    pub name: String,
    /// The number.
    pub uid: u32,
}

impl User {
    /// Finds a user by name or, if nobody has that name, by number. A number need not have a name.
    ///
    /// May wait for a directory server, if the system is set up to ask one.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn find(wanted: &str) -> io::Result<Option<User>> {
        match found(nix::unistd::User::from_name(wanted))? {
            Some(user) => Ok(Some(User { name: user.name, uid: user.uid.as_raw() })),
            None => number(wanted).map(User::of).transpose(),
        }
    }

    /// The user of that number. May wait as [`User::find`] does.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn of(uid: u32) -> io::Result<User> {
        let user = found(nix::unistd::User::from_uid(Uid::from_raw(uid)))?;
        Ok(User { name: user.map_or_else(|| uid.to_string(), |user| user.name), uid })
    }
}

/// A group that was looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// The name, or the number in digits if the group has no name.
    pub name: String,
    /// The number.
    pub gid: u32,
}

impl Group {
    /// Finds a group by name or, if none has that name, by number. A number need not have a name.
    ///
    /// May wait for a directory server, if the system is set up to ask one.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn find(wanted: &str) -> io::Result<Option<Group>> {
        let known = |group: nix::unistd::Group| Group { name: group.name, gid: group.gid.as_raw() };
        if let Some(group) = found(nix::unistd::Group::from_name(wanted))? {
            return Ok(Some(known(group)));
        }
        let Some(gid) = number(wanted) else { return Ok(None) };
        let group = found(nix::unistd::Group::from_gid(Gid::from_raw(gid)))?;
        Ok(Some(group.map_or_else(|| Group { name: gid.to_string(), gid }, known)))
    }
}

/// getpwnam(3) may also tell by an error that there is no such entry; ENOENT is a missing /etc/passwd.
fn found<T>(answer: nix::Result<Option<T>>) -> io::Result<Option<T>> {
    match answer {
        Err(Errno::ENOENT | Errno::ESRCH) => Ok(None),
        other => other.map_err(io::Error::from),
    }
}

/// Digits only, as a parsed number would also take `+1`. The highest number means "leave it" to chown(2).
fn number(text: &str) -> Option<u32> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|&number| digits && number != u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_and_a_group_are_found_by_name_and_by_number() {
        let root = User { name: "root".to_owned(), uid: 0 };
        assert_eq!(User::find("root").expect("passwd"), Some(root.clone()));
        assert_eq!(User::find("0").expect("passwd"), Some(root));
        let by_number = Group::find("0").expect("group").expect("group 0");
        assert_eq!(Group::find(&by_number.name).expect("group"), Some(by_number));
    }

    #[test]
    fn a_number_without_a_name_is_its_own_name() {
        let nobody = "3999999999";
        assert_eq!(User::find(nobody).expect("passwd"), Some(User { name: nobody.to_owned(), uid: 3_999_999_999 }));
        assert_eq!(Group::find(nobody).expect("group"), Some(Group { name: nobody.to_owned(), gid: 3_999_999_999 }));
    }

    #[test]
    fn what_is_neither_is_not_found() {
        for wanted in ["", "no such user", "+0", "-1", "4294967295", "4294967296", "ro\0ot"] {
            assert_eq!(User::find(wanted).expect("passwd"), None, "{wanted:?}");
            assert_eq!(Group::find(wanted).expect("group"), None, "{wanted:?}");
        }
    }
}
