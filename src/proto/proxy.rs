//! The header of the PROXY protocol, by which a load balancer reports the address of its client before the client's
//! first byte (`proxy-protocol.txt` of HAProxy).
//!
//! ```text
//! version 1    "PROXY TCP4 " source " " destination " " port " " port CR LF, likewise TCP6;
//!              or "PROXY UNKNOWN" anything CR LF; at most 107 bytes
//! version 2    0d 0a 0d 0a 00 0d 0a 51 55 49 54 0a | version and command u8 | family and transport u8 | length u16 |
//!              addresses | TLVs: type u8 | length u16 | value        all big-endian
//! ```
//!
//! A reader is given all bytes that have arrived so far, and reports whether the header is complete. It keeps nothing
//! between two calls and allocates nothing.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The versions of the header that a listener accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProxyVersion {
    /// Version 1, a line of text.
    V1,
    /// Version 2, binary.
    V2,
    /// Both.
    Any,
}

impl ProxyVersion {
    /// Returns the value of the key `proxy`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            ProxyVersion::V1 => "v1",
            ProxyVersion::V2 => "v2",
            ProxyVersion::Any => "any",
        }
    }

    /// Returns the words of the status for a listener with this key.
    pub(crate) fn column(self) -> &'static str {
        match self {
            ProxyVersion::V1 => "proxy v1   ",
            ProxyVersion::V2 => "proxy v2   ",
            ProxyVersion::Any => "proxy any  ",
        }
    }

    fn accepts(self, version: ProxyVersion) -> bool {
        self == ProxyVersion::Any || self == version
    }
}

impl fmt::Display for ProxyVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ProxyVersion::V1 => "version 1",
            ProxyVersion::V2 => "version 2",
            ProxyVersion::Any => "version 1 or 2",
        })
    }
}

/// The connection that a header reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProxySource {
    /// One of the balancer itself, such as a check: LOCAL of version 2.
    Local,
    /// One of a client with this address.
    Address(SocketAddr),
    /// One of a client without an IP address, or whose address the balancer does not know.
    Unknown,
}

/// A complete header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ProxyHeader {
    /// The length of the header, in bytes. The first frame follows it.
    pub(crate) length: usize,
    /// The connection that it reports.
    pub(crate) source: ProxySource,
}

/// Why bytes are not the header that a listener expects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProxyFault {
    /// The bytes do not begin like a header.
    Missing,
    /// The bytes are a header of a version that the listener does not accept.
    Version(ProxyVersion),
    /// The bytes begin like a header and are not a valid one.
    Malformed(&'static str),
    /// The checksum is wrong.
    Checksum,
}

impl fmt::Display for ProxyFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ProxyFault::Missing => f.write_str("there is no PROXY protocol header"),
            ProxyFault::Version(version) => write!(f, "the PROXY protocol header is of {version}"),
            ProxyFault::Malformed(why) => {
                write!(f, "the PROXY protocol header is not valid: {why}")
            }
            ProxyFault::Checksum => {
                f.write_str("the checksum (CRC32c) of the PROXY protocol header is wrong")
            }
        }
    }
}

/// The longest header of version 1, in bytes, with the end of its line.
const MAX_LINE: usize = 107;

/// The beginning of a header of version 1.
const WORD: &[u8] = b"PROXY ";

/// The beginning of a header of version 2.
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// Bytes of a header of version 2 before its addresses.
const FIXED_LEN: usize = 16;

/// The longest part after these, in bytes. Certificates and names of a TLS connection, which balancers may add, have
/// enough space in it.
const MAX_REST: usize = 4096;

/// The type of the TLV with the checksum.
const CRC32C: u8 = 3;

/// Reads the header at the beginning of the bytes that have arrived. Returns `None` while it is incomplete.
///
/// # Errors
/// Why the bytes are not a header of an accepted version, however they continue.
pub(crate) fn read(
    bytes: &[u8],
    accepted: ProxyVersion,
) -> Result<Option<ProxyHeader>, ProxyFault> {
    let version = if bytes.starts_with(WORD) {
        ProxyVersion::V1
    } else if bytes.starts_with(SIGNATURE) {
        ProxyVersion::V2
    } else if WORD.starts_with(bytes) || SIGNATURE.starts_with(bytes) {
        return Ok(None);
    } else {
        return Err(ProxyFault::Missing);
    };
    if !accepted.accepts(version) {
        return Err(ProxyFault::Version(version));
    }
    match version {
        ProxyVersion::V1 => read_line(bytes),
        _ => read_binary(bytes),
    }
}

/// Reads a header of version 1.
fn read_line(bytes: &[u8]) -> Result<Option<ProxyHeader>, ProxyFault> {
    let malformed = ProxyFault::Malformed;
    let within = &bytes[..bytes.len().min(MAX_LINE)];
    let Some(end) = within.iter().position(|byte| *byte == b'\n') else {
        return match within.len() {
            MAX_LINE => Err(malformed("its line does not end within 107 bytes")),
            _ => Ok(None),
        };
    };
    let line = within[..end].strip_suffix(b"\r");
    let line = line.ok_or(malformed("its line does not end with CR and LF"))?;
    let line = str::from_utf8(line).map_err(|_| malformed("its line is not ASCII"))?;
    let mut words = line.split(' ').skip(1);
    let source = match words.next() {
        Some("TCP4") => addresses::<Ipv4Addr>(words)?,
        Some("TCP6") => addresses::<Ipv6Addr>(words)?,
        Some("UNKNOWN") => ProxySource::Unknown,
        _ => return Err(malformed("its protocol is not TCP4, TCP6 or UNKNOWN")),
    };
    let length = end + 1;
    Ok(Some(ProxyHeader { length, source }))
}

/// Reads the words after the protocol: addresses and ports of source and destination.
fn addresses<'a, A: FromStr + Into<IpAddr>>(
    mut words: impl Iterator<Item = &'a str>,
) -> Result<ProxySource, ProxyFault> {
    let [source, destination, from, to] = std::array::from_fn(|_| words.next().unwrap_or_default());
    let address = |text: &str| text.parse::<A>().map(A::into).ok();
    let (source, destination) = (address(source), address(destination));
    let (Some(source), Some(_)) = (source, destination) else {
        return Err(ProxyFault::Malformed("an address is not valid"));
    };
    match (port(from), port(to), words.next()) {
        (Some(port), Some(_), None) => Ok(ProxySource::Address(SocketAddr::from((source, port)))),
        _ => Err(ProxyFault::Malformed("it does not end with two ports")),
    }
}

/// Reads a port in decimal, without a sign or leading zeros.
fn port(text: &str) -> Option<u16> {
    let is_canonical = text == "0" || text.starts_with(|c: char| matches!(c, '1'..='9'));
    text.parse().ok().filter(|_| is_canonical)
}

/// Reads a header of version 2.
fn read_binary(bytes: &[u8]) -> Result<Option<ProxyHeader>, ProxyFault> {
    let malformed = ProxyFault::Malformed;
    let Some((fixed, after)) = bytes.split_first_chunk::<FIXED_LEN>() else {
        return check_command(&bytes[SIGNATURE.len()..]).map(|_| None);
    };
    let is_local = check_command(&fixed[SIGNATURE.len()..])?;
    let rest = usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    if rest > MAX_REST {
        return Err(malformed("it is longer than 4112 bytes"));
    }
    let family = fixed[13];
    let address_len = match family {
        0x00 => 0,
        0x11 => 12,
        0x21 => 36,
        0x31 => 216,
        // The family and the addresses of a local connection mean nothing.
        _ if is_local => rest,
        0x12 | 0x22 | 0x32 => return Err(malformed("it is of datagrams")),
        _ => return Err(malformed("its family is unknown")),
    };
    if address_len > rest && !is_local {
        return Err(malformed("it is too short for its addresses"));
    }
    let length = FIXED_LEN + rest;
    let Some(rest) = after.get(..rest) else {
        return Ok(None);
    };
    let (addresses, tlvs) = rest.split_at(address_len.min(rest.len()));
    check_tlvs(&bytes[..length], tlvs)?;
    let source = match family {
        _ if is_local => ProxySource::Local,
        0x11 => source_of::<4>(addresses, 8),
        0x21 => source_of::<16>(addresses, 32),
        _ => ProxySource::Unknown,
    };
    Ok(Some(ProxyHeader { length, source }))
}

/// Checks version and command, if they have arrived. Returns whether the connection is one of the balancer itself.
fn check_command(bytes: &[u8]) -> Result<bool, ProxyFault> {
    match bytes.first() {
        Some(0x20) => Ok(true),
        None | Some(0x21) => Ok(false),
        Some(0x22..=0x2f) => Err(ProxyFault::Malformed("its command is unknown")),
        Some(_) => Err(ProxyFault::Malformed("its version is not 2")),
    }
}

/// Returns the source of a header of version 2, whose port is at `port_at`.
fn source_of<const N: usize>(addresses: &[u8], port_at: usize) -> ProxySource
where
    IpAddr: From<[u8; N]>,
{
    let port = addresses.get(port_at..).and_then(|rest| rest.first_chunk());
    match (addresses.first_chunk::<N>(), port) {
        (Some(address), Some(port)) => {
            let address = (IpAddr::from(*address), u16::from_be_bytes(*port));
            ProxySource::Address(address.into())
        }
        _ => ProxySource::Unknown,
    }
}

/// Checks that the TLVs end where the header does, and the checksum if there is one.
fn check_tlvs(header: &[u8], tlvs: &[u8]) -> Result<(), ProxyFault> {
    let malformed = || ProxyFault::Malformed("a TLV is longer than the rest of it");
    let mut rest = tlvs;
    while !rest.is_empty() {
        let (head, after) = rest.split_first_chunk::<3>().ok_or_else(malformed)?;
        let length = usize::from(u16::from_be_bytes([head[1], head[2]]));
        let (value, next) = after.split_at_checked(length).ok_or_else(malformed)?;
        if head[0] == CRC32C {
            let expected = value.try_into().map(u32::from_be_bytes);
            let expected =
                expected.map_err(|_| ProxyFault::Malformed("its checksum is not 4 bytes long"))?;
            let at = header.len() - after.len();
            if checksum(&header[..at], &header[at + 4..]) != expected {
                return Err(ProxyFault::Checksum);
            }
        }
        rest = next;
    }
    Ok(())
}

/// Returns the CRC32c (RFC 9260, appendix A) of these bytes with four zeros between them: the place of the checksum.
fn checksum(before: &[u8], after: &[u8]) -> u32 {
    let bytes = before.iter().chain(&[0; 4]).chain(after);
    let step = |crc: u32, byte: &u8| CRC_TABLE[(crc as u8 ^ byte) as usize] ^ (crc >> 8);
    !bytes.fold(u32::MAX, step)
}

/// The remainders of all bytes, by the polynomial 0x1EDC6F41, reflected (0x82F63B78).
const CRC_TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 {
                crc >> 1 ^ 0x82f6_3b78
            } else {
                crc >> 1
            };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

#[cfg(test)]
mod tests;
