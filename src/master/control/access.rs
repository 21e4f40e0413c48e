//! Who may do what over the control socket: decided by who asked, each time somebody asks.
//!
//! | named in `[control]` | may change things | may look as well | can connect, unless `mode` is set |
//! |---|---|---|---|
//! | neither group | root, the daemon's user | whoever can connect | the daemon's user and its group (0660) |
//! | `admin-group` | they and its members | nobody else | everybody (0666) |
//! | `read-group` | root, the daemon's user | its members | everybody (0666) |
//! | both | they and members of `admin-group` | members of `read-group` | everybody (0666) |
//!
//! Whoever may do neither is refused when it connects.

use std::fmt;
use std::io;
use std::os::fd::AsFd;

use crate::config::ControlConfig;
use crate::proto::control::{Refusal, RefusalCode};
use crate::sys::socket::{self, Credentials};
use crate::sys::user::{Group, Unmapped, User};

/// What somebody may do; each may also do what those before it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Role {
    /// Nothing.
    Nobody,
    /// Look.
    Reader,
    /// Change things.
    Admin,
}

/// Who asks, as the kernel knew it when it connected (SO_PEERCRED and SO_PEERGROUPS): a process may become another user
/// since, and hand its connection on.
#[derive(Clone, Debug)]
pub(crate) struct ControlPeer {
    pub(crate) credentials: Credentials,
    /// Its primary group among them.
    groups: Vec<u32>,
}

impl ControlPeer {
    /// Who is at the other end.
    pub(crate) fn from_socket(socket: impl AsFd) -> io::Result<ControlPeer> {
        let credentials = socket::credentials(&socket)?;
        // A kernel that does not tell them lets nobody in by them.
        let mut groups = socket::groups(&socket).unwrap_or_default();
        groups.push(credentials.gid);
        Ok(ControlPeer {
            credentials,
            groups,
        })
    }

    fn is_in(&self, group: &Option<Group>) -> bool {
        group
            .as_ref()
            .is_some_and(|group| self.groups.contains(&group.gid))
    }
}

impl fmt::Display for ControlPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "uid {} (pid {})",
            self.credentials.uid, self.credentials.pid
        )
    }
}

/// Who has which role.
#[derive(Debug)]
pub(crate) struct Roles {
    /// The daemon's.
    user: User,
    admins: Option<Group>,
    readers: Option<Group>,
    /// Numbers that give no right, as everybody from outside of the user namespace has them.
    unmapped: Unmapped,
}

impl Roles {
    /// `user` is the daemon's.
    pub(crate) fn new(user: User, control: &ControlConfig, unmapped: Unmapped) -> Roles {
        if unmapped.user == Some(user.uid) {
            log::warn!(
                "uid {} of this daemon is also that of all users from outside of its user namespace: it may change nothing \
                 over the control socket; run the daemon as a user that the namespace maps",
                user.uid
            );
        }
        Roles {
            user,
            admins: control.admin_group.clone(),
            readers: control.read_group.clone(),
            unmapped,
        }
    }

    /// Whether that is root, or the daemon's user.
    fn is_owner(&self, uid: u32) -> bool {
        (uid == 0 || uid == self.user.uid) && self.unmapped.user != Some(uid)
    }

    fn is_in(&self, who: &ControlPeer, group: &Option<Group>) -> bool {
        who.is_in(group) && group.as_ref().map(|group| group.gid) != self.unmapped.group
    }

    /// From now on those of another configuration.
    pub(crate) fn change(&mut self, control: &ControlConfig) {
        (self.admins, self.readers) = (control.admin_group.clone(), control.read_group.clone());
    }

    /// Name and number of the daemon's user.
    pub(crate) fn user(&self) -> (String, u32) {
        (self.user.name.clone(), self.user.uid)
    }

    pub(crate) fn of(&self, who: &ControlPeer) -> Role {
        if self.is_owner(who.credentials.uid) || self.is_in(who, &self.admins) {
            return Role::Admin;
        }
        let is_anybodys = self.admins.is_none() && self.readers.is_none();
        if is_anybodys || self.is_in(who, &self.readers) {
            Role::Reader
        } else {
            Role::Nobody
        }
    }

    /// Lets those pass who have this role, or more than that.
    ///
    /// # Errors
    /// `forbidden`, with who they would have to be.
    pub(crate) fn need(&self, role: Role, who: &ControlPeer) -> Result<(), Refusal> {
        if self.of(who) >= role {
            return Ok(());
        }
        let what = if role == Role::Admin {
            "changing things"
        } else {
            "looking"
        };
        Err(Refusal::new(
            RefusalCode::Forbidden,
            format!("{what} needs {}", self.who_has(role)),
        ))
    }

    /// Lets root and the daemon's user pass, who can run any program as the daemon anyway.
    ///
    /// # Errors
    /// `forbidden`.
    pub(crate) fn need_owner(&self, who: &ControlPeer) -> Result<(), Refusal> {
        if self.is_owner(who.credentials.uid) {
            return Ok(());
        }
        let owner = if self.user.uid == 0 || self.unmapped.user == Some(self.user.uid) {
            String::new()
        } else {
            format!(" or {}", self.user.name)
        };
        Err(Refusal::new(
            RefusalCode::Forbidden,
            format!("choosing the program needs root{owner}"),
        ))
    }

    /// Those who have this role, in words.
    fn who_has(&self, role: Role) -> String {
        let User { name, uid } = &self.user;
        let group = |group: &Option<Group>| {
            group
                .as_ref()
                .map(|group| format!("the group {}", group.name))
        };
        let mut all = vec!["root".to_owned()];
        if *uid != 0 && self.unmapped.user != Some(*uid) {
            all.push(if name.parse() == Ok(*uid) {
                format!("uid {uid}")
            } else {
                name.clone()
            });
        }
        all.extend(group(&self.admins));
        if role < Role::Admin && self.admins != self.readers {
            all.extend(group(&self.readers));
        }
        match all.split_last() {
            Some((last, others)) if !others.is_empty() => {
                format!("{} or {last}", others.join(", "))
            }
            _ => all.concat(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAEMON: u32 = 998;
    const ADMINS: u32 = 200;
    const READERS: u32 = 300;

    fn roles(admins: bool, readers: bool) -> Roles {
        let group = |name: &str, gid| {
            Some(Group {
                name: name.to_owned(),
                gid,
            })
        };
        let control = ControlConfig {
            admin_group: group("ops", ADMINS).filter(|_| admins),
            read_group: group("monitoring", READERS).filter(|_| readers),
            ..ControlConfig::default()
        };
        Roles::new(
            User {
                name: "fdpassd".to_owned(),
                uid: DAEMON,
            },
            &control,
            Unmapped::default(),
        )
    }

    fn peer(uid: u32, groups: &[u32]) -> ControlPeer {
        ControlPeer {
            credentials: Credentials {
                pid: 1,
                uid,
                gid: 0,
            },
            groups: groups.to_vec(),
        }
    }

    #[test]
    fn each_line_of_the_table_is_so() {
        use Role::*;
        let peers = [
            peer(0, &[0]),
            peer(DAEMON, &[DAEMON]),
            peer(1000, &[1000, ADMINS]),
            peer(1000, &[READERS, 7]),
            peer(1000, &[READERS, ADMINS]),
            peer(1000, &[DAEMON, 0]),
        ];
        for (admins, readers, expected) in [
            (false, false, [Admin, Admin, Reader, Reader, Reader, Reader]),
            (true, false, [Admin, Admin, Admin, Nobody, Admin, Nobody]),
            (false, true, [Admin, Admin, Nobody, Reader, Reader, Nobody]),
            (true, true, [Admin, Admin, Admin, Reader, Admin, Nobody]),
        ] {
            let roles = roles(admins, readers);
            assert_eq!(
                peers.each_ref().map(|who| roles.of(who)),
                expected,
                "{admins} {readers}"
            );
        }
    }

    #[test]
    fn a_refusal_names_all_who_are_not_refused() {
        let stranger = peer(1000, &[1000]);
        let refusal = |roles: &Roles, role| roles.need(role, &stranger).expect_err("a stranger");
        let both = roles(true, true);
        let changing = refusal(&both, Role::Admin);
        assert_eq!(
            changing,
            Refusal::new(
                RefusalCode::Forbidden,
                "changing things needs root, fdpassd or the group ops"
            )
        );
        let looking = refusal(&both, Role::Reader).message;
        assert_eq!(
            looking,
            "looking needs root, fdpassd, the group ops or the group monitoring"
        );

        let said = |user: User, admins: bool, readers: bool, role| {
            refusal(
                &Roles {
                    user,
                    ..roles(admins, readers)
                },
                role,
            )
            .message
            .split_once(" needs ")
            .map(|(_, who)| who.to_owned())
        };
        let root = || User {
            name: "root".to_owned(),
            uid: 0,
        };
        let nameless = || User {
            name: "4711".to_owned(),
            uid: 4711,
        };
        assert_eq!(
            said(root(), false, false, Role::Admin).as_deref(),
            Some("root")
        );
        assert_eq!(
            said(root(), true, false, Role::Reader).as_deref(),
            Some("root or the group ops")
        );
        assert_eq!(
            said(nameless(), false, true, Role::Admin).as_deref(),
            Some("root or uid 4711")
        );
        let one = Roles {
            readers: roles(true, false).admins,
            ..roles(true, true)
        };
        assert_eq!(
            refusal(&one, Role::Reader).message,
            "looking needs root, fdpassd or the group ops"
        );
    }

    #[test]
    fn what_everybody_from_outside_has_gives_no_right() {
        let unmapped = Unmapped {
            user: Some(DAEMON),
            group: Some(ADMINS),
        };
        let roles = Roles {
            unmapped,
            ..roles(true, true)
        };
        for (who, role) in [
            (peer(DAEMON, &[ADMINS]), Role::Nobody),
            (peer(DAEMON, &[ADMINS, READERS]), Role::Reader),
            (peer(0, &[0]), Role::Admin),
        ] {
            assert_eq!(roles.of(&who), role, "{who}");
        }
        let stranger = peer(DAEMON, &[]);
        assert_eq!(
            roles.need_owner(&stranger).expect_err("anybody").message,
            "choosing the program needs root"
        );
    }

    #[test]
    fn another_configuration_holds_for_those_who_are_there() {
        let mut roles = roles(true, false);
        let who = peer(1000, &[ADMINS]);
        roles.need(Role::Admin, &who).expect("a member");
        roles.change(&ControlConfig::default());
        assert_eq!(roles.of(&who), Role::Reader);
    }
}
