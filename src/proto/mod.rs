//! PROTOCOLS: the messages that processes and people exchange. Plain data, no I/O.
//!
//! | protocol | between | form |
//! |---|---|---|
//! | [`rpc`] | client and worker | [`frame`]s of JSON over TCP or a Unix stream |
//! | [`control`] | fdpassctl and master | the same frames, always little-endian |
//! | `app` | a worker and its app | frames of JSON over a stream socket, little-endian |
//! | `channel` | master and worker | datagrams over one `SOCK_SEQPACKET` pair, with descriptors |
//! | `zygote` | the master and the process that forks workers | the same |
//! | `exporter` | the master and the exporter | the same |
//! | `handoff` | a master or worker that exits, and the next master | datagrams that wait in such a pair |
//!
//! Each protocol is one module that both ends import; its module doc is the specification. The last four are internal:
//! both ends are always fdpassd.

/// Defines an enum of which each variant has one name on the wire.
macro_rules! named_variants {
    ($(#[$attribute:meta])* $Enum:ident { $($(#[$doc:meta])* $Variant:ident = $name:literal,)* }) => {
        $(#[$attribute])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
        pub enum $Enum {
            $($(#[$doc])* #[serde(rename = $name)] $Variant,)*
        }

        impl $Enum {
            /// All variants, in their order.
            pub const ALL: [$Enum; [$($name),*].len()] = [$($Enum::$Variant),*];

            /// Returns the name on the wire.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self {
                    $($Enum::$Variant => $name,)*
                }
            }
        }
    };
}

mod address_mistake;
pub(crate) mod app;
pub(crate) mod channel;
pub mod control;
pub(crate) mod exporter;
pub mod frame;
pub(crate) mod handoff;
pub(crate) mod hardening;
pub(crate) mod json;
pub(crate) mod lease;
pub mod log;
pub(crate) mod message;
pub(crate) mod misread;
pub mod names;
pub mod own_metrics;
pub mod paths;
pub mod proxy;
pub mod rpc;
pub mod text;
pub(crate) mod wording;
pub(crate) mod zygote;
