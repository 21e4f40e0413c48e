//! Clients as the master has them.

use std::collections::HashMap;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use crate::desk::{ClientBytes, Marks};
use crate::proto::frame::OrderRule;
use crate::proto::names::{ClientId, Offsets, Peer, WorkerId};
use crate::sys::clock;
use crate::sys::passed::ClientSocket;

/// A client: the master's copy of its socket, which keeps the connection whatever becomes of a worker.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) id: ClientId,
    pub(super) socket: ClientSocket,
    pub(super) peer: Peer,
    /// How its byte order is learnt, as its listener has it.
    pub(super) order: OrderRule,
    /// Where it connected.
    pub(super) listener: u32,
    /// When, in seconds of CLOCK_MONOTONIC.
    pub(super) since: u32,
    /// How often it went from one worker to another.
    pub(super) moves: u32,
    /// Of its byte counts.
    pub(super) offsets: Offsets,
}

/// A client without a worker, and what its next one has to know.
#[derive(Debug)]
pub(super) struct Unleased {
    pub(super) client: Client,
    /// What is unread and unsent of it.
    pub(super) bytes: ClientBytes,
    pub(super) marks: Marks,
    /// When what is timed began, and when it last did something: ns of CLOCK_MONOTONIC.
    pub(super) times: (u64, u64),
    pub(super) requests: u64,
    /// The worker that it is meant for, if it is for one.
    pub(super) to: Option<WorkerId>,
}

impl Unleased {
    /// A client that was accepted just now.
    pub(super) fn fresh(client: Client, now: u64) -> Unleased {
        let bytes = ClientBytes::default();
        Unleased { client, bytes, marks: Marks::default(), times: (now, now), requests: 0, to: None }
    }
}

impl Unleased {
    /// Nobody has served it for so long, which is not held against it: what is timed of it began that much later.
    pub(super) fn excuse(&mut self, gap: Duration) {
        let now = clock::monotonic();
        let later = |time: u64| time.saturating_add(u64::try_from(gap.as_nanos()).unwrap_or(u64::MAX)).min(now);
        self.times = (later(self.times.0), later(self.times.1));
    }
}

/// How many clients each address has, and how many it may have.
#[derive(Debug, Default)]
pub(super) struct Addresses {
    most: Option<NonZeroU32>,
    counts: HashMap<IpAddr, u32>,
}

impl Addresses {
    /// With these clients there already. Without a limit nothing is counted.
    pub(super) fn new<'a>(most: Option<NonZeroU32>, there: impl Iterator<Item = &'a Peer>) -> Addresses {
        let mut addresses = Addresses { most, counts: HashMap::new() };
        there.for_each(|peer| addresses.count(peer));
        addresses
    }

    /// Counts one more; false, and not counted, if that is one too many. A Unix client has no address and no limit.
    pub(super) fn enter(&mut self, peer: &Peer) -> bool {
        let (Some(most), Some(ip)) = (self.most, peer.ip()) else { return true };
        let fits = self.counts.get(&ip).is_none_or(|count| *count < most.get());
        if fits {
            self.count(peer);
        }
        fits
    }

    fn count(&mut self, peer: &Peer) {
        if let (Some(_), Some(ip)) = (self.most, peer.ip()) {
            *self.counts.entry(ip).or_default() += 1;
        }
    }

    /// Counts one less.
    pub(super) fn leave(&mut self, peer: &Peer) {
        let (Some(_), Some(ip)) = (self.most, peer.ip()) else { return };
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

    #[test]
    fn each_address_has_its_own_count_and_one_that_is_empty_is_forgotten() {
        let mut addresses = Addresses::new(NonZeroU32::new(2), [].iter());
        let from = |last: u8, port: u16| Peer::from(SocketAddr::from((Ipv4Addr::new(127, 0, 0, last), port)));
        assert!(addresses.enter(&from(1, 10)) && addresses.enter(&from(1, 11)));
        assert!(!addresses.enter(&from(1, 12)));
        assert!(addresses.enter(&from(2, 10)));
        assert!(addresses.enter(&Peer::Unix { pid: 1, uid: 2, gid: 3 }));
        addresses.leave(&from(1, 11));
        assert!(addresses.enter(&from(1, 12)));
        let mut lowered = Addresses::new(NonZeroU32::new(1), [from(1, 10), from(1, 12)].iter());
        assert!(!lowered.enter(&from(1, 13)), "there are more already");
        lowered.leave(&from(1, 10));
        assert!(!lowered.enter(&from(1, 13)));
        lowered.leave(&from(1, 12));
        assert!(lowered.enter(&from(1, 13)));
        for peer in [from(1, 10), from(1, 12), from(2, 10)] {
            addresses.leave(&peer);
        }
        assert!(addresses.counts.is_empty());
    }
}
