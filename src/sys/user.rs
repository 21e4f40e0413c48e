//! Users and groups, by name or number, in the system's databases (nsswitch.conf(5)).

use std::ffi::CString;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::{fs, io};

use nix::errno::Errno;
use nix::unistd::{Gid, Uid};

/// A user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The user's name, or the number in digits if there is none.
    pub name: String,
    /// The user's number.
    pub uid: u32,
}

impl User {
    /// Finds a user by name or, if none has that name, by number. A number need not have a name.
    ///
    /// May wait for a directory server, if the system uses one.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn find(wanted: &str) -> io::Result<Option<User>> {
        match found(nix::unistd::User::from_name(wanted))? {
            Some(user) => Ok(Some(User {
                name: user.name,
                uid: user.uid.as_raw(),
            })),
            None => number(wanted).map(User::from_uid).transpose(),
        }
    }

    /// Returns the user of that number. May wait as [`User::find`] does.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn from_uid(uid: u32) -> io::Result<User> {
        let user = found(nix::unistd::User::from_uid(Uid::from_raw(uid)))?;
        let name = user.map_or_else(|| uid.to_string(), |user| user.name);
        Ok(User { name, uid })
    }
}

/// A group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// The group's name, or the number in digits if there is none.
    pub name: String,
    /// The group's number.
    pub gid: u32,
}

impl Group {
    /// Finds a group by name or, if none has that name, by number. A number need not have a name.
    ///
    /// May wait for a directory server, if the system uses one.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn find(wanted: &str) -> io::Result<Option<Group>> {
        match found(nix::unistd::Group::from_name(wanted))? {
            Some(group) => Ok(Some(Group {
                name: group.name,
                gid: group.gid.as_raw(),
            })),
            None => number(wanted).map(Group::from_gid).transpose(),
        }
    }

    fn from_gid(gid: u32) -> io::Result<Group> {
        let group = found(nix::unistd::Group::from_gid(Gid::from_raw(gid)))?;
        let name = group.map_or_else(|| gid.to_string(), |group| group.name);
        Ok(Group { name, gid })
    }
}

/// A user with the groups of its processes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The user's number.
    pub uid: u32,
    /// The group's number; `None` for a user without an entry, if none was given.
    pub gid: Option<u32>,
    /// All supplementary groups.
    pub groups: Vec<u32>,
    /// The user's login.
    pub login: Login,
}

/// The circumstances of a user's login.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// The user's name, or the number in digits if there is none.
    pub name: String,
    /// The home directory; the root directory for a user without an entry.
    pub home: String,
    /// The shell; sh(1) for a user without an entry.
    pub shell: String,
}

impl Login {
    /// Returns the login of a user without an entry.
    fn unnamed(uid: u32) -> Login {
        Login {
            name: uid.to_string(),
            home: "/".to_owned(),
            shell: "/bin/sh".to_owned(),
        }
    }
}

impl Identity {
    /// Finds a user by name or number as [`User::find`] does, with its groups. `gid` replaces the user's own group.
    ///
    /// # Errors
    /// When a database cannot be read.
    pub fn find(wanted: &str, gid: Option<u32>) -> io::Result<Option<Identity>> {
        let by_number = || match number(wanted) {
            Some(uid) => found(nix::unistd::User::from_uid(Uid::from_raw(uid))),
            None => Ok(None),
        };
        let entry = match found(nix::unistd::User::from_name(wanted))? {
            Some(entry) => Some(entry),
            None => by_number()?,
        };
        let Some(entry) = entry else {
            return Ok(number(wanted).map(|uid| Identity {
                uid,
                gid,
                groups: Vec::from_iter(gid),
                login: Login::unnamed(uid),
            }));
        };
        let gid = gid.map_or(entry.gid, Gid::from_raw);
        let name = CString::new(entry.name.as_str())?;
        let groups = nix::unistd::getgrouplist(&name, gid)?;
        Ok(Some(Identity {
            uid: entry.uid.as_raw(),
            gid: Some(gid.as_raw()),
            groups: groups.into_iter().map(Gid::as_raw).collect(),
            login: Login {
                name: entry.name,
                home: entry.dir.to_string_lossy().into_owned(),
                shell: entry.shell.to_string_lossy().into_owned(),
            },
        }))
    }
}

/// The numbers by which this process sees all users and groups that its user namespace does not map
/// (user_namespaces(7)). They identify no user or group. None where each user or group is mapped, as outside of such a
/// namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unmapped {
    /// The number of unmapped users.
    pub user: Option<u32>,
    /// The number of unmapped groups.
    pub group: Option<u32>,
}

impl Unmapped {
    /// Reads them from /proc.
    #[must_use]
    pub fn read() -> Unmapped {
        let overflow = |kind: &str| {
            let map = fs::read_to_string(format!("/proc/self/{kind}_map")).ok()?;
            if mapped(&map) >= u64::from(u32::MAX) {
                return None;
            }
            let number = fs::read_to_string(format!("/proc/sys/kernel/overflow{kind}")).ok();
            // The kernel's default.
            Some(
                number
                    .and_then(|number| number.trim().parse().ok())
                    .unwrap_or(65_534),
            )
        };
        Unmapped {
            user: overflow("uid"),
            group: overflow("gid"),
        }
    }
}

/// Returns how many numbers a map has: `u32::MAX` if it has all, as the highest number is not used.
fn mapped(map: &str) -> u64 {
    map.lines()
        .filter_map(|line| line.split_whitespace().nth(2)?.parse::<u64>().ok())
        .sum()
}

/// The owner of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// The directory is owned by this user, and others cannot write to it.
    Us,
    /// There is no directory.
    Missing,
    /// Others own it or can write to it, or it is not a directory, or that is unknown.
    Others,
}

impl Holder {
    /// Returns the owner of the directory at this path, which must not be a symbolic link.
    #[must_use]
    pub fn read(directory: &Path) -> Holder {
        let own = nix::unistd::geteuid().as_raw();
        match fs::symlink_metadata(directory) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Holder::Missing,
            Ok(found) if found.is_dir() && found.uid() == own && found.mode() & 0o022 == 0 => {
                if Unmapped::read().user == Some(own) {
                    Holder::Others
                } else {
                    Holder::Us
                }
            }
            _ => Holder::Others,
        }
    }
}

/// Accepts the errors by which getpwnam(3) may report that there is no such entry; ENOENT is a missing /etc/passwd.
fn found<T>(answer: nix::Result<Option<T>>) -> io::Result<Option<T>> {
    match answer {
        Err(Errno::ENOENT | Errno::ESRCH) => Ok(None),
        other => other.map_err(io::Error::from),
    }
}

/// Parses digits only, while `parse` accepts `+1` as well. To chown(2) the highest number means "leave it".
fn number(text: &str) -> Option<u32> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse()
        .ok()
        .filter(|&number| digits && number != u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_and_groups_are_found_by_name_and_by_number() {
        let (name, uid) = ("root".to_owned(), 0);
        for wanted in ["root", "0"] {
            let name = name.clone();
            assert_eq!(
                User::find(wanted).expect("passwd"),
                Some(User { name, uid })
            );
        }
        let by_number = Group::find("0").expect("group").expect("group 0");
        let by_name = Group::find(&by_number.name).expect("group");
        assert_eq!(by_name, Some(by_number));
        let (unnamed, number) = ("3999999999", 3_999_999_999);
        let user = User::find(unnamed).expect("passwd").expect("a number");
        assert_eq!((user.name.as_str(), user.uid), (unnamed, number));
        let group = Group::find(unnamed).expect("group").expect("a number");
        assert_eq!((group.name.as_str(), group.gid), (unnamed, number));
        for wanted in [
            "",
            "no such user",
            "+0",
            "-1",
            "4294967295",
            "4294967296",
            "ro\0ot",
        ] {
            assert_eq!(User::find(wanted).expect("passwd"), None, "{wanted:?}");
            assert_eq!(Group::find(wanted).expect("group"), None, "{wanted:?}");
        }
    }

    #[test]
    fn an_identity_has_the_groups_of_the_user() {
        let root = Identity::find("root", None).expect("passwd").expect("root");
        assert_eq!((root.uid, root.gid), (0, Some(0)));
        assert_eq!(root.login.name, "root");
        assert!(root.login.home.starts_with('/') && root.login.shell.starts_with('/'));
        assert!(root.groups.contains(&0));
        let other = Identity::find("0", Some(3_999_999_999));
        let other = other.expect("passwd").expect("root");
        assert_eq!((other.uid, other.gid), (0, Some(3_999_999_999)));
        assert!(other.groups.contains(&3_999_999_999));
        let unnamed = |gid| Identity::find("3999999999", gid).expect("passwd");
        let expected = |gid, groups: &[u32]| Identity {
            uid: 3_999_999_999,
            gid,
            groups: groups.to_vec(),
            login: Login {
                name: "3999999999".to_owned(),
                home: "/".to_owned(),
                shell: "/bin/sh".to_owned(),
            },
        };
        assert_eq!(unnamed(None), Some(expected(None, &[])));
        assert_eq!(unnamed(Some(7)), Some(expected(Some(7), &[7])));
        assert_eq!(Identity::find("no such user", None).expect("passwd"), None);
    }

    #[test]
    fn the_numbers_of_a_map_are_counted() {
        for (map, count) in [
            ("", 0),
            ("0 0 4294967295\n", 4_294_967_295),
            ("0 1000 1\n1 100000 65536\n", 65_537),
        ] {
            assert_eq!(mapped(map), count, "{map:?}");
        }
    }

    #[test]
    fn a_directory_is_ours_only_if_others_cannot_write_to_it() {
        let place = tempfile::tempdir().expect("a directory");
        let (folder, link) = (place.path().join("folder"), place.path().join("link"));
        assert_eq!(Holder::read(&folder), Holder::Missing);
        fs::create_dir(&folder)
            .and_then(|()| std::os::unix::fs::symlink(&folder, &link))
            .expect("it is ours");
        let holder = |mode| {
            fs::set_permissions(&folder, std::os::unix::fs::PermissionsExt::from_mode(mode))
                .expect("it is ours");
            Holder::read(&folder)
        };
        assert_eq!(
            [0o700, 0o755, 0o770, 0o702].map(holder),
            [Holder::Us, Holder::Us, Holder::Others, Holder::Others]
        );
        assert_eq!(holder(0o700), Holder::Us);
        assert_eq!(Holder::read(&link), Holder::Others);
        assert_eq!(Holder::read(Path::new("/proc/version")), Holder::Others);
    }
}
