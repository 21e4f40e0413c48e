//! Lengths that are not meant as lengths of frames in this byte order: the first bytes of another protocol, or the
//! length of a frame in the other order.
//!
//! | sender | first bytes | protocol |
//! |---|---|---|
//! | client | `GET `, `POST`, `PUT `, `HEAD`, `OPTI`, `DELE`, `PATC`, `CONN`, `TRAC` | a request line of HTTP (RFC 9112, section 3) |
//! | client | `PRI ` | the preface of HTTP/2 (RFC 9113, section 3.4) |
//! | client | `PROX`, or 0d 0a 0d 0a | PROXY protocol, version 1 or 2 (`proxy-protocol.txt` of HAProxy, section 2) |
//! | client | 16 03 00 to 16 03 04 | a record of a TLS handshake (RFC 8446, section 5.1) |
//! | server | `HTTP` | a status line of HTTP (RFC 9112, section 4) |
//! | server | 15 03 00 to 15 03 04 | a record of a TLS alert (RFC 8446, sections 5.1 and 6) |
//! | server | `SSH-` | the identification of SSH (RFC 4253, section 4.2) |
//!
//! Most of these are above every limit, in both orders. Not above every limit are the header of PROXY protocol version
//! 2, with 168,626,701 or 218,762,506 bytes, and a TLS record, which begins like a little-endian length: of at least
//! 789 bytes in SSL 3.0 (15 03 00 and 16 03 00), and of at least 66,325 in TLS. They are frames, like any other, while
//! the limit permits that length; see [`of_part`].

use std::fmt;

use serde::de::IgnoredAny;

use super::frame::{ByteOrder, PREFIX};
use super::proxy::ProxyVersion;

/// The end of a connection that has sent the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sender {
    /// The end that sends requests.
    Client,
    /// The end that sends replies.
    Server,
}

/// The meaning of bytes at the place of a length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Misread {
    /// The beginning of an HTTP request.
    HttpRequest,
    /// The beginning of a PROXY protocol header.
    ProxyHeader,
    /// The beginning of a TLS connection.
    TlsHandshake,
    /// The beginning of an HTTP response.
    HttpResponse,
    /// The refusal of bytes that are not TLS.
    TlsAlert,
    /// The beginning of an SSH connection.
    SshBanner,
    /// The length of a frame in the other byte order.
    OtherOrder {
        /// The other order.
        order: ByteOrder,
        /// The length in it, in bytes.
        length: u32,
    },
}

/// The lowest length above the limit that is not taken for that of a frame if another protocol begins like it, in bytes.
/// Below it are TLS records shorter than 256 bytes, in little-endian order.
const MIN_CERTAIN: u32 = 16 << 20;

impl Misread {
    /// Returns the protocol that begins with these bytes.
    fn protocol(sender: Sender, prefix: [u8; PREFIX]) -> Option<Misread> {
        match (sender, &prefix) {
            (
                Sender::Client,
                b"GET " | b"POST" | b"PUT " | b"HEAD" | b"OPTI" | b"DELE" | b"PATC" | b"CONN"
                | b"TRAC" | b"PRI ",
            ) => Some(Misread::HttpRequest),
            (Sender::Client, b"PROX" | b"\r\n\r\n") => Some(Misread::ProxyHeader),
            (Sender::Client, [0x16, 0x03, 0..=4, _]) => Some(Misread::TlsHandshake),
            (Sender::Server, b"HTTP") => Some(Misread::HttpResponse),
            (Sender::Server, [0x15, 0x03, 0..=4, _]) => Some(Misread::TlsAlert),
            (Sender::Server, b"SSH-") => Some(Misread::SshBanner),
            _ => None,
        }
    }

    /// Returns whether a frame that continues like this after its length cannot have a body of JSON.
    fn is_certain_with(self, rest: &[u8]) -> bool {
        match self {
            Misread::ProxyHeader => rest.starts_with(b"\0\r\nQUIT\n"),
            // The type of a handshake message, client_hello; the level of an alert.
            Misread::TlsHandshake => rest.get(1) == Some(&1),
            Misread::TlsAlert => matches!(rest.get(1), Some(1 | 2)),
            _ => true,
        }
    }
}

/// Returns what a length above the limit of a frame is, if it is not meant as a length in this order.
pub(crate) fn of_length(
    sender: Sender,
    length: u32,
    order: ByteOrder,
    limit: u32,
) -> Option<Misread> {
    let prefix = order.prefix(length);
    let other = order.other();
    let in_other_order = || {
        let length = other.length(prefix);
        (length <= limit).then_some(Misread::OtherOrder {
            order: other,
            length,
        })
    };
    Misread::protocol(sender, prefix).or_else(in_other_order)
}

/// Returns what the beginning of an incomplete frame is instead, if no frame begins like this. Its body would not be
/// JSON: its first bytes are those of another protocol, or they are a whole object, which is the body of a frame in the
/// other order.
///
/// Only for a frame that is given up: until then, the bytes count as a frame.
pub(crate) fn of_part(sender: Sender, bytes: &[u8], order: ByteOrder) -> Option<Misread> {
    let (prefix, rest) = bytes.split_first_chunk::<PREFIX>()?;
    if let Some(protocol) = Misread::protocol(sender, *prefix) {
        return protocol.is_certain_with(rest).then_some(protocol);
    }
    let other = order.other();
    let length = other.length(*prefix);
    let body = rest.get(..length as usize)?;
    let is_object =
        body.first() == Some(&b'{') && serde_json::from_slice::<IgnoredAny>(body).is_ok();
    is_object.then_some(Misread::OtherOrder {
        order: other,
        length,
    })
}

/// Returns the sentence for a client that announces this length, in this order, above this limit: `plain`, or what the
/// receiver has got instead of a frame.
pub(crate) fn too_large(
    plain: String,
    receiver: &str,
    (length, order, limit): (u32, ByteOrder, u32),
) -> String {
    match of_length(Sender::Client, length, order, limit) {
        None => plain,
        Some(other @ Misread::OtherOrder { .. }) => {
            format!("{plain}; {other}, and this connection is {order}")
        }
        Some(protocol) if length < MIN_CERTAIN => {
            format!("{plain}; or it is {protocol}, and {receiver} expects frames")
        }
        Some(protocol) => format!("{receiver} expects frames, not {protocol}"),
    }
}

/// Returns the sentence for a client that begins with these bytes, to whose listener load balancers send a header first.
pub(crate) fn no_header(bytes: &[u8], expected: ProxyVersion) -> String {
    let sentence =
        format!("the listener expects a PROXY protocol header ({expected}) before the first frame");
    let prefix = bytes.split_first_chunk::<PREFIX>();
    let protocol = prefix.and_then(|(prefix, rest)| {
        let protocol = Misread::protocol(Sender::Client, *prefix)?;
        protocol.is_certain_with(rest).then_some(protocol)
    });
    match protocol {
        Some(protocol) => format!("{sentence}, not {protocol}"),
        None => sentence,
    }
}

/// Returns the sentence for a client whose frame, of which these bytes have arrived, is given up for this reason.
pub(crate) fn incomplete(reason: &str, bytes: &[u8], order: ByteOrder) -> String {
    match of_part(Sender::Client, bytes, order) {
        None => reason.to_owned(),
        Some(other @ Misread::OtherOrder { .. }) => {
            format!("{reason}; {other}, and this connection is {order}")
        }
        Some(protocol) => format!("{reason}; the listener expects frames, not {protocol}"),
    }
}

impl fmt::Display for Misread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Misread::HttpRequest => "an HTTP request",
            Misread::ProxyHeader => "a PROXY protocol header",
            Misread::TlsHandshake => "a TLS handshake",
            Misread::HttpResponse => "an HTTP response",
            Misread::TlsAlert => "a TLS alert",
            Misread::SshBanner => "the banner of an SSH server",
            Misread::OtherOrder { order, length } => {
                return write!(f, "{order}, the length is {length} bytes");
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ORDERS: [ByteOrder; 2] = [ByteOrder::Little, ByteOrder::Big];

    /// The first bytes of other protocols, as clients send them.
    const CLIENTS: [(&[u8; PREFIX], Misread); 17] = [
        (b"GET ", Misread::HttpRequest),
        (b"POST", Misread::HttpRequest),
        (b"PUT ", Misread::HttpRequest),
        (b"HEAD", Misread::HttpRequest),
        (b"OPTI", Misread::HttpRequest),
        (b"DELE", Misread::HttpRequest),
        (b"PATC", Misread::HttpRequest),
        (b"CONN", Misread::HttpRequest),
        (b"TRAC", Misread::HttpRequest),
        (b"PRI ", Misread::HttpRequest),
        (b"PROX", Misread::ProxyHeader),
        (b"\r\n\r\n", Misread::ProxyHeader),
        (&[0x16, 3, 0, 0], Misread::TlsHandshake),
        (&[0x16, 3, 1, 0x7f], Misread::TlsHandshake),
        (&[0x16, 3, 2, 0xff], Misread::TlsHandshake),
        (&[0x16, 3, 3, 2], Misread::TlsHandshake),
        (&[0x16, 3, 4, 1], Misread::TlsHandshake),
    ];

    const SERVERS: [(&[u8; PREFIX], Misread); 3] = [
        (b"HTTP", Misread::HttpResponse),
        (&[0x15, 3, 3, 0], Misread::TlsAlert),
        (b"SSH-", Misread::SshBanner),
    ];

    #[test]
    fn the_first_bytes_of_other_protocols_are_recognised() {
        let clients = CLIENTS.map(|(prefix, expected)| (Sender::Client, prefix, expected));
        let servers = SERVERS.map(|(prefix, expected)| (Sender::Server, prefix, expected));
        for (sender, prefix, expected) in clients.into_iter().chain(servers) {
            for order in ORDERS {
                let length = order.length(*prefix);
                // With this limit the length is above it, and the other order often is not.
                let found = of_length(sender, length, order, length - 1);
                assert_eq!(found, Some(expected), "{prefix:?} {order}");
            }
        }
    }

    #[test]
    fn requests_are_no_replies_and_the_reverse() {
        for (prefix, _) in CLIENTS {
            assert_eq!(Misread::protocol(Sender::Server, *prefix), None);
        }
        for (prefix, _) in SERVERS {
            assert_eq!(Misread::protocol(Sender::Client, *prefix), None);
        }
        for prefix in [
            [0x16, 3, 5, 0],
            [0x16, 2, 1, 0],
            [0x17, 3, 1, 0],
            *b"get ",
            *b"\r\n\r\0",
        ] {
            assert_eq!(
                Misread::protocol(Sender::Client, prefix),
                None,
                "{prefix:?}"
            );
        }
    }

    #[test]
    fn every_protocol_has_its_sentence() {
        for order in ORDERS {
            let sentence = |prefix: &[u8; PREFIX]| {
                let length = order.length(*prefix);
                too_large("plain".to_owned(), "the listener", (length, order, 1 << 20))
            };
            for (prefix, what) in [
                (b"PUT ", "an HTTP request"),
                (b"PROX", "a PROXY protocol header"),
                (b"\r\n\r\n", "a PROXY protocol header"),
                (&[0x16, 3, 1, 2], "a TLS handshake"),
            ] {
                let expected = format!("the listener expects frames, not {what}");
                assert_eq!(sentence(prefix), expected);
            }
        }
        let short_hello = (66_326, ByteOrder::Little, 1 << 16);
        assert_eq!(
            too_large("it is too long".to_owned(), "the listener", short_hello),
            "it is too long; or it is a TLS handshake, and the listener expects frames"
        );
        let swapped = (0x1a00_0000, ByteOrder::Little, 1 << 20);
        assert_eq!(
            too_large("it is too long".to_owned(), "the listener", swapped),
            "it is too long; big-endian, the length is 26 bytes, and this connection is little-endian"
        );
    }

    #[test]
    fn a_client_without_a_header_gets_what_it_is_instead() {
        let sentence =
            "the listener expects a PROXY protocol header (version 2) before the first frame";
        for (bytes, what) in [
            (&b"GET / HTTP/1.1"[..], ", not an HTTP request"),
            (b"\x16\x03\x01\x02\0\x01\0", ", not a TLS handshake"),
            (b"\x0d\0\0\0{\"in\":\"ping\"}", ""),
            (b"GE", ""),
        ] {
            let expected = format!("{sentence}{what}");
            assert_eq!(no_header(bytes, ProxyVersion::V2), expected);
        }
    }

    #[test]
    fn the_beginning_of_a_frame_is_given_up_with_what_it_is() {
        let v2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c";
        let hello = [0x16, 3, 1, 0, 0xc8, 1, 0, 0, 0xc4];
        let frame =
            |order: ByteOrder, body: &[u8]| [&order.prefix(body.len() as u32)[..], body].concat();
        let long = format!(
            "{{\"in\":\"ping\",\"params\":\"{}\"}}",
            "x".repeat(256 - 26)
        );
        for order in ORDERS {
            let found = |bytes: &[u8]| of_part(Sender::Client, bytes, order);
            assert_eq!(found(v2), Some(Misread::ProxyHeader));
            assert_eq!(found(&v2[..11]), None);
            assert_eq!(found(&hello), Some(Misread::TlsHandshake));
            assert_eq!(found(&hello[..5]), None);
            // A frame may begin like this one.
            assert_eq!(found(b"\x16\x03\x01\0{\"in\":"), None);
            let other = order.other();
            let whole = frame(other, long.as_bytes());
            let length = long.len() as u32;
            let expected = Misread::OtherOrder {
                order: other,
                length,
            };
            assert_eq!(found(&whole), Some(expected));
            assert_eq!(found(&[&whole[..], b"more"].concat()), Some(expected));
            assert_eq!(found(&whole[..whole.len() - 1]), None);
            assert_eq!(found(&frame(other, &[b'['; 256])), None);
            assert_eq!(found(&[]), None);
            assert_eq!(incomplete("why", &hello[..5], order), "why");
        }
        let alert = [0x15, 3, 3, 0, 2, 2, 40];
        let found = of_part(Sender::Server, &alert, ByteOrder::Little);
        assert_eq!(found, Some(Misread::TlsAlert));
    }

    proptest! {
        #[test]
        fn every_length_of_a_frame_gets_the_plain_sentence(length in any::<u32>(), limit in 0..=256u32 << 20) {
            for order in ORDERS {
                let prefix = order.prefix(length);
                let is_protocol = CLIENTS.iter().any(|(known, _)| **known == prefix)
                    || prefix[0] == 0x16 && prefix[1] == 3 && prefix[2] <= 4;
                if length > limit {
                    let plain = "it is too long".to_owned();
                    let sentence = too_large(plain.clone(), "the listener", (length, order, limit));
                    prop_assert_eq!(sentence.starts_with(&plain), !is_protocol || length < 16 << 20);
                    prop_assert_eq!(sentence == plain, length.swap_bytes() > limit && !is_protocol);
                }
            }
        }

        #[test]
        fn any_bytes_are_given_up_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            for (sender, order) in [(Sender::Client, ByteOrder::Little), (Sender::Server, ByteOrder::Big)] {
                let _ = of_part(sender, &bytes, order);
            }
        }
    }
}
