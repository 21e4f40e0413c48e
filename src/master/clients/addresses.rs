//! How many clients each address has, and how many it may have.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;

use crate::config::Limits;
use crate::proto::names::Peer;

/// How many clients each address has, and how many it may have. IPv6 clients are counted by network, because a host has
/// a whole network.
#[derive(Debug)]
pub(crate) struct Addresses {
    most: Option<NonZeroU32>,
    /// The bits of an IPv6 address that are compared.
    mask: u128,
    counts: HashMap<IpAddr, u32>,
}

impl Addresses {
    /// Counts the clients that are already there. Without a limit nothing is counted.
    pub(crate) fn new(limits: &Limits, there: impl Iterator<Item = Peer>) -> Addresses {
        let mask = u128::MAX
            .checked_shl(128u32.saturating_sub(limits.ipv6_prefix.get()))
            .unwrap_or_default();
        let mut addresses = Addresses {
            most: limits.max_clients_per_address,
            mask,
            counts: HashMap::new(),
        };
        there.for_each(|peer| addresses.add(&peer));
        addresses
    }

    /// Counts one more client. Returns false, and counts nothing, if it exceeds the limit. A Unix client has no address
    /// and no limit.
    pub(crate) fn try_add(&mut self, peer: &Peer) -> bool {
        let (Some(most), Some(ip)) = (self.most, self.key_of(peer)) else {
            return true;
        };
        let fits = self.counts.get(&ip).is_none_or(|count| *count < most.get());
        if fits {
            self.add(peer);
        }
        fits
    }

    /// Returns the address that the client is counted under.
    fn key_of(&self, peer: &Peer) -> Option<IpAddr> {
        Some(match peer.ip()? {
            IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from(u128::from(ip) & self.mask)),
            v4 @ IpAddr::V4(_) => v4,
        })
    }

    /// Counts one more client, also beyond the limit.
    pub(crate) fn add(&mut self, peer: &Peer) {
        if let (Some(_), Some(ip)) = (self.most, self.key_of(peer)) {
            *self.counts.entry(ip).or_default() += 1;
        }
    }

    /// Counts one client less.
    pub(crate) fn remove(&mut self, peer: &Peer) {
        let (Some(_), Some(ip)) = (self.most, self.key_of(peer)) else {
            return;
        };
        if let Some(count) = self.counts.get_mut(&ip) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&ip);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, SocketAddr};

    fn limits(most: u32, ipv6_prefix: u32) -> Limits {
        let number = |number| NonZeroU32::new(number).expect("not zero");
        Limits {
            max_clients_per_address: Some(number(most)),
            ipv6_prefix: number(ipv6_prefix),
            ..Limits::default()
        }
    }

    #[test]
    fn each_address_is_counted_until_its_last_client_leaves() {
        let mut addresses = Addresses::new(&limits(2, 64), [].into_iter());
        let from = |last: u8, port: u16| {
            Peer::from(SocketAddr::from((Ipv4Addr::new(127, 0, 0, last), port)))
        };
        assert!(addresses.try_add(&from(1, 10)) && addresses.try_add(&from(1, 11)));
        assert!(!addresses.try_add(&from(1, 12)));
        assert!(addresses.try_add(&from(2, 10)));
        assert!(addresses.try_add(&Peer::UNIX));
        addresses.remove(&from(1, 11));
        assert!(addresses.try_add(&from(1, 12)));
        let mut lowered = Addresses::new(&limits(1, 64), [from(1, 10), from(1, 12)].into_iter());
        assert!(!lowered.try_add(&from(1, 13)), "there are more already");
        lowered.remove(&from(1, 10));
        assert!(!lowered.try_add(&from(1, 13)));
        lowered.remove(&from(1, 12));
        assert!(lowered.try_add(&from(1, 13)));
        for peer in [from(1, 10), from(1, 12), from(2, 10)] {
            addresses.remove(&peer);
        }
        assert!(addresses.counts.is_empty());
    }

    #[test]
    fn addresses_of_an_ipv6_network_are_counted_as_one() {
        let from = |text: &str| Peer::from(text.parse::<SocketAddr>().expect("an address"));
        let first = from("[2001:db8:0:1::1]:7");
        let fits = |prefix, other: &str| {
            Addresses::new(&limits(1, prefix), [first].into_iter()).try_add(&from(other))
        };
        assert!(!fits(64, "[2001:db8:0:1:ffff::2]:7") && fits(64, "[2001:db8:0:2::1]:7"));
        assert!(!fits(128, "[2001:db8:0:1::1]:8") && fits(128, "[2001:db8:0:1::2]:7"));
        assert!(!fits(1, "[2001:db9::1]:7") && fits(1, "[8000::1]:7"));
        let mut addresses = Addresses::new(&limits(1, 64), [first].into_iter());
        addresses.remove(&from("[2001:db8:0:1::9]:7"));
        assert!(addresses.counts.is_empty());
    }
}
