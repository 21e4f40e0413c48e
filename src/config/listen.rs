//! An entry of `listen`: an address, or a table with an address and more.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::str::FromStr;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Mode;
use super::network::{Network, ProxyRule};
use super::notation::{Given, Notation, Rejection, WrittenValue, word};
use super::own_fields::{FieldNames, fields_at};
use super::values::{UpTo, text};
use crate::proto::frame::OrderRule;
use crate::proto::names::Address;
use crate::proto::proxy::ProxyVersion;
use crate::sys::user::{Group, User};
use crate::sys::zone;

/// Where clients connect, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct Listen {
    /// The source of the socket; the key `address`.
    pub source: Source,
    /// The byte order of clients; little-endian by default.
    pub byte_order: OrderRule,
    /// The length of the kernel's queue of connections, from 1 to 65,535; 4096 by default.
    pub backlog: u32,
    /// The access rights: `Some` if and only if the daemon binds a Unix socket.
    pub access: Option<Access>,
    /// Whether a TCP address is bound even if no interface has it; false by default.
    pub freebind: bool,
    /// The versions of the PROXY protocol header with which connections begin; `None`, the default: there is no header.
    pub proxy: Option<ProxyVersion>,
    /// The addresses of the load balancers that may connect if `proxy` is set; empty for a Unix socket, whose mode
    /// decides who may connect.
    pub proxy_from: Vec<Network>,
}

/// The source of a listener's socket: `127.0.0.1:8080`, `unix:/run/fdpassd/rpc.sock` or `systemd:rpc`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The daemon binds it to this address.
    Bound(Address),
    /// systemd has bound it and passes it under this name (`FileDescriptorName=` of systemd.socket(5)), which several
    /// sockets may share.
    Activated(String),
}

impl Listen {
    /// Returns whether the daemon binds a Unix socket.
    #[must_use]
    pub fn is_unix(&self) -> bool {
        matches!(self.source, Source::Bound(Address::Unix(_)))
    }
}

impl FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> Result<Source, String> {
        if let Some(name) = text.strip_prefix("systemd:") {
            // As systemd has it in fd_name_is_valid().
            let fits = |c: char| c.is_ascii() && !c.is_ascii_control() && c != ':';
            return match (1..=255).contains(&name.len()) && name.chars().all(fits) {
                true => Ok(Source::Activated(name.to_owned())),
                false => Err(format!(
                    "{name:?} is not a valid descriptor name: 1 to 255 ASCII characters but \":\""
                )),
            };
        }
        let or_activated = if text.starts_with("unix:") {
            ""
        } else {
            ", or a socket of systemd's (\"systemd:rpc\")"
        };
        zone::numbered(text)?
            .parse()
            .map(Source::Bound)
            .map_err(|why: String| format!("{why}{or_activated}"))
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Bound(address) => address.fmt(f),
            Source::Activated(name) => write!(f, "systemd:{name}"),
        }
    }
}

impl Notation for Source {
    type Value = Source;

    fn expected() -> String {
        Address::expected()
    }

    fn read(written: &WrittenValue<'_>) -> Result<Source, Rejection> {
        text(written)?.parse().map_err(Rejection::Because)
    }

    fn write(value: &Source) -> WrittenValue<'_> {
        WrittenValue::Text(value.to_string().into())
    }
}

/// The owner and the permissions of a Unix socket. Processes with write permission can connect.
#[derive(Clone, Debug, PartialEq)]
pub struct Access {
    /// The permissions; 0660 by default.
    pub mode: Mode,
    /// The owner; the daemon's user by default.
    pub owner: Option<User>,
    /// The group; the daemon's by default.
    pub group: Option<Group>,
}

impl Listen {
    /// Returns a listener with the default of each other field.
    #[must_use]
    pub fn new(source: Source) -> Listen {
        let byte_order = OrderRule::default();
        Listen::from(ListenTable {
            source,
            byte_order,
            backlog: default_backlog(),
            mode: None,
            owner: None,
            group: None,
            freebind: false,
            proxy: None,
            proxy_from: Vec::new(),
        })
    }

    /// Returns what the listener accepts, if clients begin with a PROXY protocol header.
    #[must_use]
    pub fn proxy_rule(&self) -> Option<ProxyRule> {
        let from = self.proxy_from.clone();
        self.proxy.map(|version| ProxyRule { version, from })
    }
}

pub(super) fn default_source() -> Source {
    Source::Bound(Address::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 8080))))
}

/// Returns the keys of an entry.
pub(super) fn keys() -> FieldNames {
    fields_at::<ListenTable>(&[])
}

impl<'de> Deserialize<'de> for Listen {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Listen, D::Error> {
        deserializer.deserialize_any(ListenEntry)
    }
}

impl Serialize for Listen {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        ListenTable::from(self.clone()).serialize(serializer)
    }
}

/// Written by hand: serde's `untagged` would lose which key of the table is wrong, and why.
struct ListenEntry;

impl<'de> Visitor<'de> for ListenEntry {
    type Value = Listen;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an address such as \"127.0.0.1:8080\", or a table with the key `address`")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Listen, E> {
        text.parse().map(Listen::new).map_err(E::custom)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Listen, A::Error> {
        ListenTable::deserialize(MapAccessDeserializer::new(map)).map(Listen::from)
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct ListenTable {
    #[serde(rename = "address", with = "Source")]
    source: Source,
    #[serde(default, deserialize_with = "word")]
    byte_order: OrderRule,
    #[serde(default = "default_backlog", with = "UpTo::<65_535>")]
    backlog: NonZeroU32,
    #[serde(default, with = "Given::<Mode>")]
    mode: Option<Mode>,
    #[serde(default, with = "Given::<User>")]
    owner: Option<User>,
    #[serde(default, with = "Given::<Group>")]
    group: Option<Group>,
    #[serde(default)]
    freebind: bool,
    #[serde(default, deserialize_with = "some_word")]
    proxy: Option<ProxyVersion>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    proxy_from: Vec<Network>,
}

/// Reads one of the words of `proxy`.
fn some_word<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<ProxyVersion>, D::Error> {
    word(deserializer).map(Some)
}

impl From<ListenTable> for Listen {
    /// Keeps [`Access`] even for a TCP address: `check` refuses it with its place.
    fn from(table: ListenTable) -> Listen {
        let ListenTable {
            source,
            byte_order,
            backlog,
            mode,
            owner,
            group,
            freebind,
            proxy,
            proxy_from,
        } = table;
        let given = mode.is_some() || owner.is_some() || group.is_some();
        let access = Access {
            mode: mode.unwrap_or(Mode(0o660)),
            owner,
            group,
        };
        let access = (given || matches!(source, Source::Bound(Address::Unix(_)))).then_some(access);
        Listen {
            source,
            byte_order,
            backlog: backlog.get(),
            access,
            freebind,
            proxy,
            proxy_from,
        }
    }
}

impl From<Listen> for ListenTable {
    fn from(listen: Listen) -> ListenTable {
        let Listen {
            source,
            byte_order,
            backlog,
            access,
            freebind,
            proxy,
            proxy_from,
        } = listen;
        let (mode, owner, group) =
            access.map_or((None, None, None), |a| (Some(a.mode), a.owner, a.group));
        let backlog = NonZeroU32::new(backlog).unwrap_or(NonZeroU32::MIN);
        ListenTable {
            source,
            byte_order,
            backlog,
            mode,
            owner,
            group,
            freebind,
            proxy,
            proxy_from,
        }
    }
}

fn default_backlog() -> NonZeroU32 {
    const { NonZeroU32::new(4096).expect("not zero") }
}
