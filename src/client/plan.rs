//! The address of the next connection, and when it may be made.

use std::time::{Duration, Instant};

use super::ConnectionError;
use super::options::ClientOptions;

/// The longest bound of a wait. It also keeps a sum of times from overflowing.
const MAX_WAIT: Duration = Duration::from_secs(24 * 3600);

/// The way to the next connection.
#[derive(Debug)]
pub(super) struct AddressPlan {
    /// The index of the address to which the next connection is made.
    pub(super) index: usize,
    /// How many addresses are left in this round.
    left: usize,
    /// When it may be made, and how many waits there were since the last reply.
    pub(super) not_before: Instant,
    waits: u32,
    /// Of each address, when and why it did not serve a request last.
    causes: Vec<Option<(Instant, ConnectionError)>>,
}

impl AddressPlan {
    pub(super) fn new(addresses: usize) -> AddressPlan {
        AddressPlan {
            index: 0,
            left: addresses,
            not_before: Instant::now(),
            waits: 0,
            causes: (0..addresses).map(|_| None).collect(),
        }
    }

    /// Notes why an address does not serve requests, and continues with the next one. A timeout is noted only if no
    /// other cause was noted there since `begin`.
    pub(super) fn leave(&mut self, address: usize, cause: ConnectionError, begin: Instant) {
        let noted = &mut self.causes[address];
        let is_known = noted.as_ref().is_some_and(|(at, _)| *at >= begin);
        if !(cause.is_timeout() && is_known) {
            *noted = Some((Instant::now(), cause));
        }
        self.index = (address + 1) % self.causes.len();
        self.left = self.left.saturating_sub(1);
    }

    /// Continues with the address after this one, whose daemon has ended an idle connection. All are tried before a wait.
    pub(super) fn turn_away_from(&mut self, address: usize) {
        self.index = (address + 1) % self.causes.len();
        self.left = self.causes.len();
    }

    /// Returns whether each address was tried in this round.
    pub(super) fn is_round_over(&self) -> bool {
        self.left == 0
    }

    /// Begins another round, after a random time. After a connection with replies, the bound is the first one again.
    pub(super) fn back_off(&mut self, has_replied: bool, options: &ClientOptions) {
        if has_replied {
            self.waits = 0;
        }
        let (first, longest) = options.backoff;
        let factor = 2_u32.saturating_pow(self.waits);
        let bound = first.saturating_mul(factor).min(longest).min(MAX_WAIT);
        self.not_before = Instant::now() + (options.jitter)(bound);
        self.waits = self.waits.saturating_add(1);
        self.left = self.causes.len();
    }

    /// Returns the addresses that have not served a request that began then, each with the last reason.
    pub(super) fn causes_since(&self, begin: Instant) -> Vec<(usize, ConnectionError)> {
        let noted = self.causes.iter().enumerate();
        noted
            .filter_map(|(address, noted)| Some((address, noted.as_ref()?)))
            .filter(|(_, (at, _))| *at >= begin)
            .map(|(address, (_, cause))| (address, cause.clone()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_of_a_wait_doubles_up_to_the_longest() {
        let [first, longest] = [50, 2000].map(Duration::from_millis);
        let mut options = ClientOptions::new().backoff(first, longest);
        options.jitter = |bound| bound;
        let mut plan = AddressPlan::new(1);
        let mut bound = |has_replied: bool, options: &ClientOptions| {
            let before = Instant::now();
            plan.back_off(has_replied, options);
            let wait = plan.not_before.duration_since(before);
            // The time of the call itself is in it.
            (wait.as_millis() / 50) as u64
        };
        for factor in [1, 2, 4, 8, 16, 32, 40, 40] {
            assert_eq!(bound(false, &options), factor);
        }
        assert_eq!(bound(true, &options), 1);
        assert_eq!(bound(false, &options), 2);
        for _ in 0..100 {
            bound(false, &options);
        }
        let random = ClientOptions::new().backoff(first, first);
        assert!((0..100).all(|_| bound(false, &random) <= 1));
    }

    #[test]
    fn a_timeout_replaces_no_other_cause() {
        let begin = Instant::now();
        let mut plan = AddressPlan::new(2);
        let timeout = || ConnectionError::Timeout(Duration::from_secs(1));
        let shown = |plan: &AddressPlan, begin: Instant| {
            let causes = plan.causes_since(begin).into_iter();
            causes
                .map(|(address, cause)| format!("{address}: {cause}"))
                .collect::<Vec<_>>()
        };
        plan.leave(0, ConnectionError::Closed, begin);
        assert_eq!((plan.index, plan.is_round_over()), (1, false));
        plan.leave(1, timeout(), begin);
        assert_eq!((plan.index, plan.is_round_over()), (0, true));
        plan.leave(0, timeout(), begin);
        let closed = "0: the connection was closed before the reply";
        assert_eq!(shown(&plan, begin), [closed, "1: no reply within 1s"]);
        // A reason from before the call does not count.
        let later = Instant::now() + Duration::from_secs(1);
        assert_eq!(shown(&plan, later), [""; 0]);
    }
}
