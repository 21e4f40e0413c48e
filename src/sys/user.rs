//! Users and groups, by name or number, as the system's databases know them (nsswitch.conf(5)).

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

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
            Some(user) => Ok(Some(User {
                name: user.name,
                uid: user.uid.as_raw(),
            })),
            None => number(wanted).map(User::from_uid).transpose(),
        }
    }

    /// The user of that number. May wait as [`User::find`] does.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn from_uid(uid: u32) -> io::Result<User> {
        let user = found(nix::unistd::User::from_uid(Uid::from_raw(uid)))?;
        Ok(User {
            name: user.map_or_else(|| uid.to_string(), |user| user.name),
            uid,
        })
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
        let known = |group: nix::unistd::Group| Group {
            name: group.name,
            gid: group.gid.as_raw(),
        };
        if let Some(group) = found(nix::unistd::Group::from_name(wanted))? {
            return Ok(Some(known(group)));
        }
        let Some(gid) = number(wanted) else {
            return Ok(None);
        };
        let group = found(nix::unistd::Group::from_gid(Gid::from_raw(gid)))?;
        Ok(Some(group.map_or_else(
            || Group {
                name: gid.to_string(),
                gid,
            },
            known,
        )))
    }
}

/// The numbers under which this process sees all users and groups that its user namespace does not map
/// (user_namespaces(7)): whoever has one of them may be anybody. None where each user or group is mapped, as outside of
/// such a namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unmapped {
    /// That of users.
    pub user: Option<u32>,
    /// That of groups.
    pub group: Option<u32>,
}

impl Unmapped {
    /// As /proc shows them now.
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

/// How many numbers a map has, which are all of them if it is `u32::MAX`: the highest number is nobody's.
fn mapped(map: &str) -> u64 {
    map.lines()
        .filter_map(|line| line.split_whitespace().nth(2)?.parse::<u64>().ok())
        .sum()
}

/// Whose a directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// This user's, and others cannot write there.
    Us,
    /// There is none.
    Nobody,
    /// Others own it or can write there, or it is no directory, or that cannot be found out.
    Others,
}

impl Holder {
    /// That of the directory at this path, which may be no symbolic link.
    #[must_use]
    pub fn read(directory: &Path) -> Holder {
        let own = nix::unistd::geteuid().as_raw();
        match fs::symlink_metadata(directory) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Holder::Nobody,
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
    text.parse()
        .ok()
        .filter(|&number| digits && number != u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_and_a_group_are_found_by_name_and_by_number() {
        let root = User {
            name: "root".to_owned(),
            uid: 0,
        };
        assert_eq!(User::find("root").expect("passwd"), Some(root.clone()));
        assert_eq!(User::find("0").expect("passwd"), Some(root));
        let by_number = Group::find("0").expect("group").expect("group 0");
        assert_eq!(
            Group::find(&by_number.name).expect("group"),
            Some(by_number)
        );
    }

    #[test]
    fn a_number_without_a_name_is_its_own_name() {
        let nobody = "3999999999";
        assert_eq!(
            User::find(nobody).expect("passwd"),
            Some(User {
                name: nobody.to_owned(),
                uid: 3_999_999_999
            })
        );
        assert_eq!(
            Group::find(nobody).expect("group"),
            Some(Group {
                name: nobody.to_owned(),
                gid: 3_999_999_999
            })
        );
    }

    #[test]
    fn a_map_has_all_numbers_or_not() {
        for (map, count) in [
            ("", 0),
            ("0 0 4294967295\n", 4_294_967_295),
            ("0 1000 1\n1 100000 65536\n", 65_537),
        ] {
            assert_eq!(mapped(map), count, "{map:?}");
        }
    }

    #[test]
    fn a_directory_is_ours_only_if_nobody_else_can_write_there() {
        let place = tempfile::tempdir().expect("a directory");
        let (folder, link) = (place.path().join("folder"), place.path().join("link"));
        assert_eq!(Holder::read(&folder), Holder::Nobody);
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

    #[test]
    fn what_is_neither_is_not_found() {
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
}
