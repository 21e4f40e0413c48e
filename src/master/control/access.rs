//! Access to the control socket: each request is decided by the role of its peer at that time.
//!
//! | named in `[control]` | may change the daemon | may only inspect it | can connect, unless `mode` is set |
//! |---|---|---|---|
//! | neither group | root, the daemon's user | all that can connect | its user and group (0660) |
//! | `admin-group` | these two and its members | no others | all users (0666) |
//! | `read-group` | root, the daemon's user | its members | all users (0666) |
//! | both | these two, members of `admin-group` | members of `read-group` | all users (0666) |
//!
//! A peer without either right is refused when it connects.

use std::os::fd::AsFd;
use std::{fmt, io};

use crate::config::ControlConfig;
use crate::proto::control::{Refusal, RefusalCode};
use crate::sys::socket::{self, Credentials};
use crate::sys::user::{Group, Unmapped, User};

/// Rights over the control socket; each role includes the rights of those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Role {
    /// The peer has no permission.
    Forbidden,
    /// The peer may inspect the daemon.
    Reader,
    /// The peer may change the daemon.
    Admin,
}

/// A control client's peer, as the kernel knew it when it connected (SO_PEERCRED and SO_PEERGROUPS): a process may
/// become another user later, or pass its connection on.
#[derive(Clone, Debug)]
pub(crate) struct ControlPeer {
    pub(crate) credentials: Credentials,
    /// All groups, including the primary one.
    groups: Vec<u32>,
}

impl ControlPeer {
    /// Reads the credentials of the process that connected.
    pub(crate) fn from_socket(socket: impl AsFd) -> io::Result<ControlPeer> {
        let credentials = socket::credentials(&socket)?;
        // If the kernel does not report the groups, they give no access.
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

/// Assigns roles to peers.
#[derive(Debug)]
pub(crate) struct Roles {
    /// The daemon's user.
    user: User,
    admins: Option<Group>,
    readers: Option<Group>,
    /// Numbers that give no right, because all users from outside the user namespace have them.
    unmapped: Unmapped,
}

impl Roles {
    /// Creates the roles of a configuration. `user` is the daemon's.
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

    /// Returns whether the user is root or the daemon's user.
    fn is_owner(&self, uid: u32) -> bool {
        (uid == 0 || uid == self.user.uid) && self.unmapped.user != Some(uid)
    }

    fn is_in(&self, peer: &ControlPeer, group: &Option<Group>) -> bool {
        peer.is_in(group) && group.as_ref().map(|group| group.gid) != self.unmapped.group
    }

    /// Applies the roles of another configuration.
    pub(crate) fn change(&mut self, control: &ControlConfig) {
        (self.admins, self.readers) = (control.admin_group.clone(), control.read_group.clone());
    }

    /// Returns name and number of the daemon's user.
    pub(crate) fn user(&self) -> (String, u32) {
        (self.user.name.clone(), self.user.uid)
    }

    pub(crate) fn of(&self, peer: &ControlPeer) -> Role {
        if self.is_owner(peer.credentials.uid) || self.is_in(peer, &self.admins) {
            return Role::Admin;
        }
        let is_open = self.admins.is_none() && self.readers.is_none();
        if is_open || self.is_in(peer, &self.readers) {
            Role::Reader
        } else {
            Role::Forbidden
        }
    }

    /// Checks that the peer has this role or a higher one.
    ///
    /// # Errors
    /// `forbidden`, naming the users and groups that would be allowed.
    pub(crate) fn check(&self, role: Role, peer: &ControlPeer) -> Result<(), Refusal> {
        if self.of(peer) >= role {
            return Ok(());
        }
        let action = match role {
            Role::Admin => "change",
            Role::Reader | Role::Forbidden => "inspect",
        };
        Err(Refusal::new(
            RefusalCode::Forbidden,
            format!("only {} may {action} this daemon", self.names_with(role)),
        ))
    }

    /// Checks that the peer is root or the daemon's user, which can run any program as the daemon anyway.
    ///
    /// # Errors
    /// `forbidden`.
    pub(crate) fn check_owner(&self, peer: &ControlPeer) -> Result<(), Refusal> {
        if self.is_owner(peer.credentials.uid) {
            return Ok(());
        }
        let owner = if self.user.uid == 0 || self.unmapped.user == Some(self.user.uid) {
            String::new()
        } else {
            format!(" or {}", self.user.name)
        };
        Err(Refusal::new(
            RefusalCode::Forbidden,
            format!("only root{owner} may choose the program"),
        ))
    }

    /// Describes the users and groups with this role.
    fn names_with(&self, role: Role) -> String {
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
    fn roles_are_as_in_the_table() {
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
            (
                true,
                false,
                [Admin, Admin, Admin, Forbidden, Admin, Forbidden],
            ),
            (
                false,
                true,
                [Admin, Admin, Forbidden, Reader, Reader, Forbidden],
            ),
            (true, true, [Admin, Admin, Admin, Reader, Admin, Forbidden]),
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
    fn a_refusal_names_all_that_are_permitted() {
        let stranger = peer(1000, &[1000]);
        let refusal = |roles: &Roles, role| roles.check(role, &stranger).expect_err("a stranger");
        let both = roles(true, true);
        let changing = refusal(&both, Role::Admin);
        assert_eq!(
            changing,
            Refusal::new(
                RefusalCode::Forbidden,
                "only root, fdpassd or the group ops may change this daemon"
            )
        );
        let looking = refusal(&both, Role::Reader).message;
        assert_eq!(
            looking,
            "only root, fdpassd, the group ops or the group monitoring may inspect this daemon"
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
            .strip_prefix("only ")
            .and_then(|rest| Some(rest.split_once(" may ")?.0.to_owned()))
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
            "only root, fdpassd or the group ops may inspect this daemon"
        );
    }

    #[test]
    fn unmapped_users_and_groups_have_no_role() {
        let unmapped = Unmapped {
            user: Some(DAEMON),
            group: Some(ADMINS),
        };
        let roles = Roles {
            unmapped,
            ..roles(true, true)
        };
        for (who, role) in [
            (peer(DAEMON, &[ADMINS]), Role::Forbidden),
            (peer(DAEMON, &[ADMINS, READERS]), Role::Reader),
            (peer(0, &[0]), Role::Admin),
        ] {
            assert_eq!(roles.of(&who), role, "{who}");
        }
        let stranger = peer(DAEMON, &[]);
        assert_eq!(
            roles.check_owner(&stranger).expect_err("anybody").message,
            "only root may choose the program"
        );
    }

    #[test]
    fn a_new_configuration_applies_to_connected_peers() {
        let mut roles = roles(true, false);
        let who = peer(1000, &[ADMINS]);
        roles.check(Role::Admin, &who).expect("a member");
        roles.change(&ControlConfig::default());
        assert_eq!(roles.of(&who), Role::Reader);
    }
}
