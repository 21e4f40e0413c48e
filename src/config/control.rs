//! `[control]`: the control socket.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::notation::{Given, Notation, Rejection, WrittenValue};
use super::values::SocketPath;
use crate::sys::user::Group;

/// `[control]`: the socket for fdpassctl.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct ControlConfig {
    /// The absolute path; `None`, the default, is the first of [`places`](crate::proto::control::places).
    #[serde(with = "Given::<SocketPath>")]
    pub socket: Option<PathBuf>,
    /// The permissions; `None`, the default, is that of [`ControlConfig::mode`].
    #[serde(with = "Given::<Mode>")]
    pub mode: Option<Mode>,
    /// The group that may change the daemon, besides root and the daemon's user; `None` by default.
    #[serde(with = "Given::<Group>")]
    pub admin_group: Option<Group>,
    /// The group that may inspect, besides those that may change it. With `None`, the default, every process that
    /// can connect may inspect if there is no `admin_group` either.
    #[serde(with = "Given::<Group>")]
    pub read_group: Option<Group>,
}

impl ControlConfig {
    /// Returns the permissions in force: those that are given, else 0660, or 0666 with a group, because then the master
    /// checks the peer itself.
    #[must_use]
    pub fn mode(&self) -> Mode {
        let names_a_group = self.admin_group.is_some() || self.read_group.is_some();
        self.mode
            .unwrap_or(Mode(if names_a_group { 0o666 } else { 0o660 }))
    }
}

/// The permissions of a file, from 0 to 0o777; displayed as `0660`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode(pub u32);

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

impl Notation for Mode {
    type Value = Mode;

    fn expected() -> String {
        "an octal mode from \"0000\" to \"0777\" in quotes".to_owned()
    }

    fn read(written: &WrittenValue<'_>) -> Result<Mode, Rejection> {
        match written {
            WrittenValue::Text(text) if text.len() == 4 && text.starts_with('0') => {
                u32::from_str_radix(text, 8)
                    .map(Mode)
                    .or(Err(Rejection::Unexpected))
            }
            _ => Err(Rejection::Unexpected),
        }
    }

    fn write(value: &Mode) -> WrittenValue<'_> {
        WrittenValue::Text(value.to_string().into())
    }
}
