//! The frame: a 4-byte unsigned length, then that many bytes.
//!
//! ```text
//! +----+----+----+----+-------- - - --------+
//! |      length       |  length bytes: JSON  |
//! +----+----+----+----+-------- - - --------+
//! ```
//!
//! Little-endian is the protocol's own order. A listener may be set to `big`, or to `auto`, which finds a connection's
//! order from its first prefix: the order that gives a length within the limit, and little where both do. While the
//! limit is 65,535 bytes or less exactly one can, because in the other order a byte above the lower sixteen bits is
//! set. An empty frame leaves the order undecided.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The length of the prefix of every frame, in bytes.
pub const PREFIX: usize = 4;

/// The order of the bytes of a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ByteOrder {
    /// Least significant byte first.
    Little,
    /// Most significant byte first.
    Big,
}

impl ByteOrder {
    /// Returns the prefix of a frame of `length` bytes.
    #[must_use]
    pub fn prefix(self, length: u32) -> [u8; PREFIX] {
        match self {
            ByteOrder::Little => length.to_le_bytes(),
            ByteOrder::Big => length.to_be_bytes(),
        }
    }

    /// Returns the length that a prefix announces.
    #[must_use]
    pub fn length(self, prefix: [u8; PREFIX]) -> u32 {
        match self {
            ByteOrder::Little => u32::from_le_bytes(prefix),
            ByteOrder::Big => u32::from_be_bytes(prefix),
        }
    }

    /// Returns the other order.
    #[must_use]
    pub fn other(self) -> ByteOrder {
        match self {
            ByteOrder::Little => ByteOrder::Big,
            ByteOrder::Big => ByteOrder::Little,
        }
    }
}

impl fmt::Display for ByteOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ByteOrder::Little => "little-endian",
            ByteOrder::Big => "big-endian",
        })
    }
}

/// How a listener learns its clients' byte order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OrderRule {
    /// All are little-endian: the protocol's own order.
    #[default]
    Little,
    /// All are big-endian.
    Big,
    /// Each connection's first prefix decides.
    Auto,
}

impl OrderRule {
    /// Returns the order of a prefix, with frames up to `limit` bytes; `None` while it is undecided.
    #[must_use]
    pub fn decide(self, prefix: [u8; PREFIX], limit: u32) -> Option<ByteOrder> {
        match self {
            OrderRule::Little => Some(ByteOrder::Little),
            OrderRule::Big => Some(ByteOrder::Big),
            OrderRule::Auto if prefix == [0; PREFIX] => None,
            OrderRule::Auto => {
                let fits = |order: ByteOrder| order.length(prefix) <= limit;
                if !fits(ByteOrder::Little) && fits(ByteOrder::Big) {
                    Some(ByteOrder::Big)
                } else {
                    Some(ByteOrder::Little)
                }
            }
        }
    }
}

/// The frame at the beginning of some bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Not yet a complete frame. `total` is its length with the prefix, once four bytes have arrived.
    Partial {
        /// Prefix and body, in bytes.
        total: Option<usize>,
    },
    /// A complete frame: its body is `bytes[PREFIX..total]`.
    Complete {
        /// Prefix and body, in bytes.
        total: usize,
    },
    /// A length over the limit. No later frame can be found.
    TooLarge {
        /// The length announced, in bytes.
        length: u32,
    },
}

/// Finds the frame at the beginning of `bytes`. Does not read beyond it, and does not allocate.
#[must_use]
pub fn next(bytes: &[u8], order: ByteOrder, limit: u32) -> Next {
    let Some(prefix) = bytes.first_chunk::<PREFIX>() else {
        return Next::Partial { total: None };
    };
    let length = order.length(*prefix);
    if length > limit {
        return Next::TooLarge { length };
    }
    let total = PREFIX + length as usize;
    if bytes.len() < total {
        Next::Partial { total: Some(total) }
    } else {
        Next::Complete { total }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_found_at_every_split_in_both_orders() {
        for order in [ByteOrder::Little, ByteOrder::Big] {
            let body = br#"{"in":"ping","params":[1,2,3]}"#;
            let mut bytes = order.prefix(body.len() as u32).to_vec();
            bytes.extend_from_slice(body);
            bytes.extend_from_slice(b"next");
            for split in 0..bytes.len() {
                let total = PREFIX + body.len();
                let expected = match split {
                    0..PREFIX => Next::Partial { total: None },
                    _ if split < total => Next::Partial { total: Some(total) },
                    _ => Next::Complete { total },
                };
                let found = next(&bytes[..split], order, 1024);
                assert_eq!(found, expected, "split at {split}");
            }
        }
    }

    #[test]
    fn a_length_over_the_limit_is_found_from_the_prefix() {
        for (length, expected) in [
            (u32::MAX, Next::TooLarge { length: u32::MAX }),
            (1025, Next::TooLarge { length: 1025 }),
            (1024, Next::Partial { total: Some(1028) }),
        ] {
            let found = next(&length.to_le_bytes(), ByteOrder::Little, 1024);
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn auto_is_never_ambiguous_up_to_65535_bytes() {
        for length in 1..=65_535u32 {
            for order in [ByteOrder::Little, ByteOrder::Big] {
                let decided = OrderRule::Auto.decide(order.prefix(length), 65_535);
                assert_eq!(decided, Some(order), "length {length}");
            }
        }
    }

    #[test]
    fn auto_prefers_little_and_waits_after_an_empty_frame() {
        for (prefix, order) in [
            (256u32, Some(ByteOrder::Little)),
            (257, Some(ByteOrder::Big)),
            (u32::MAX, Some(ByteOrder::Little)),
            (0, None),
        ] {
            let decided = OrderRule::Auto.decide(prefix.to_be_bytes(), 1 << 20);
            assert_eq!(decided, order);
        }
    }
}
