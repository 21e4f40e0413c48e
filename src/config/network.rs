//! Networks: `10.0.0.0/8`, `2001:db8::/32`, or one address.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::notation::{Notation, Rejection, WrittenValue};
use super::values::text;
use crate::proto::proxy::ProxyVersion;

/// The addresses of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    /// The leading bits that all its addresses have in common.
    prefix: u32,
}

impl Network {
    /// Returns whether an address is one of the network. An IPv4-mapped IPv6 address is an IPv4 one.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        let mask = u128::MAX.checked_shl(128 - self.prefix).unwrap_or_default();
        address.is_ipv4() == self.address.is_ipv4()
            && (bits(address) ^ bits(self.address)) & mask == 0
    }
}

/// Returns the bits of an address, from the highest one on.
fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()) << 96,
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// Returns the number of bits of an address.
fn width(address: IpAddr) -> u32 {
    if address.is_ipv4() { 32 } else { 128 }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Network, String> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let invalid = || {
            format!(
                "{text:?} is not a network: expected an IP address (\"192.0.2.1\") or one with a number of bits \
                 (\"10.0.0.0/8\", \"2001:db8::/32\")"
            )
        };
        let address: IpAddr = address.parse().map_err(|_| invalid())?;
        let prefix = match prefix {
            None => width(address),
            Some(digits) if digits.bytes().all(|c| c.is_ascii_digit()) => {
                digits.parse::<u32>().map_err(|_| invalid())?
            }
            Some(_) => return Err(invalid()),
        };
        if prefix > width(address) {
            return Err(format!(
                "{text:?}: an address of this kind has {} bits",
                width(address)
            ));
        }
        if address.to_canonical() != address {
            return Err(format!(
                "{text:?}: write {} for this IPv4 address",
                address.to_canonical()
            ));
        }
        let network = Network { address, prefix };
        let mask = u128::MAX.checked_shl(128 - prefix).unwrap_or_default();
        if bits(address) & !mask != 0 {
            return Err(format!(
                "{text:?}: the address has bits after the first {prefix}"
            ));
        }
        Ok(network)
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.prefix == width(self.address) {
            return self.address.fmt(f);
        }
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl Notation for Network {
    type Value = Network;

    fn expected() -> String {
        "a network in quotes, such as \"10.0.0.0/8\"".to_owned()
    }

    fn read(written: &WrittenValue<'_>) -> Result<Network, Rejection> {
        text(written)?.parse().map_err(Rejection::Because)
    }

    fn write(value: &Network) -> WrittenValue<'_> {
        WrittenValue::Text(value.to_string().into())
    }
}

/// For arrays, whose elements no `with` can name.
impl<'de> Deserialize<'de> for Network {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Network, D::Error> {
        <Network as Notation>::deserialize(deserializer)
    }
}

impl Serialize for Network {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        <Network as Notation>::serialize(self, serializer)
    }
}

/// The connections that a listener with the key `proxy` accepts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyRule {
    /// The versions of the header.
    pub version: ProxyVersion,
    /// The addresses of load balancers that connect over TCP.
    pub from: Vec<Network>,
}

impl ProxyRule {
    /// Returns whether a load balancer at this address may connect over TCP.
    #[must_use]
    pub fn admits(&self, address: IpAddr) -> bool {
        self.from.iter().any(|network| network.contains(address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(text: &str) -> Network {
        text.parse().unwrap_or_else(|why| panic!("{text}: {why}"))
    }

    #[test]
    fn a_network_contains_the_addresses_with_its_first_bits() {
        for (text, address, is_in) in [
            ("10.0.0.0/8", "10.255.0.1", true),
            ("10.0.0.0/8", "11.0.0.1", false),
            ("10.0.0.0/8", "::ffff:10.1.2.3", true),
            ("192.0.2.1", "192.0.2.1", true),
            ("192.0.2.1", "192.0.2.2", false),
            ("192.0.2.0/31", "192.0.2.1", true),
            ("192.0.2.0/31", "192.0.2.2", false),
            ("0.0.0.0/0", "203.0.113.9", true),
            ("0.0.0.0/0", "2001:db8::1", false),
            ("::/0", "2001:db8::1", true),
            ("::/0", "203.0.113.9", false),
            ("2001:db8::/32", "2001:db8:ffff::1", true),
            ("2001:db8::/32", "2001:db9::1", false),
            ("::1", "::1", true),
            ("::1", "::2", false),
        ] {
            let address = address.parse().expect("an address");
            assert_eq!(network(text).contains(address), is_in, "{text} {address}");
        }
    }

    #[test]
    fn a_network_is_written_as_it_was_read() {
        for text in [
            "10.0.0.0/8",
            "192.0.2.1",
            "2001:db8::/32",
            "::1",
            "0.0.0.0/0",
        ] {
            assert_eq!(network(text).to_string(), text);
        }
        assert_eq!(network("192.0.2.1/32").to_string(), "192.0.2.1");
    }

    #[test]
    fn a_network_that_is_not_valid_is_refused() {
        for (text, why) in [
            ("", "is not a network"),
            ("balancer", "is not a network"),
            ("10.0.0.0/", "is not a network"),
            ("10.0.0.0/+8", "is not a network"),
            ("10.0.0.0:80", "is not a network"),
            ("10.0.0.0/33", "has 32 bits"),
            ("::/129", "has 128 bits"),
            ("10.0.0.1/8", "has bits after the first 8"),
            ("10.0.0.1/0", "has bits after the first 0"),
            ("::ffff:10.0.0.1", "write 10.0.0.1 for this IPv4 address"),
        ] {
            let found = text.parse::<Network>().expect_err(text);
            assert!(found.contains(why), "{found}");
        }
    }
}
