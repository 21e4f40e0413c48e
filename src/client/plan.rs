//! The address of the next connection, and when it may be made.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::ConnectionError;
use super::options::ClientOptions;

/// The longest bound of a wait. It also keeps a sum of times from overflowing.
const MAX_WAIT: Duration = Duration::from_secs(24 * 3600);

/// The most daemons of one address whose causes are kept: a name with SRV records may have hundreds of targets.
pub(super) const MAX_CAUSES: usize = 16;

/// Why a daemon did not serve a request last.
#[derive(Debug)]
struct NotedCause {
    /// The index of the address.
    address: usize,
    daemon: Arc<str>,
    at: Instant,
    cause: ConnectionError,
}

/// The way to the next connection.
#[derive(Debug)]
pub(super) struct AddressPlan {
    addresses: usize,
    /// The index of the address to which the next connection is made.
    pub(super) index: usize,
    /// How many addresses are left in this round.
    left: usize,
    /// When it may be made, and how many waits there were since the last reply.
    pub(super) not_before: Instant,
    waits: u32,
    /// At most one of each daemon, and [`MAX_CAUSES`] of each address.
    causes: Vec<NotedCause>,
}

impl AddressPlan {
    pub(super) fn new(addresses: usize) -> AddressPlan {
        AddressPlan {
            addresses,
            index: 0,
            left: addresses,
            not_before: Instant::now(),
            waits: 0,
            causes: Vec::new(),
        }
    }

    /// Notes why a daemon at an address does not serve requests. `begin` is when the oldest request began: earlier
    /// causes are removed, and the first one of the address if it has [`MAX_CAUSES`]. A timeout is noted only if there is
    /// no other cause of this daemon.
    pub(super) fn note(
        &mut self,
        address: usize,
        daemon: &Arc<str>,
        cause: ConnectionError,
        begin: Instant,
    ) {
        self.causes.retain(|noted| noted.at >= begin);
        let noted = NotedCause {
            address,
            daemon: Arc::clone(daemon),
            at: Instant::now(),
            cause,
        };
        let earlier = self
            .causes
            .iter_mut()
            .find(|earlier| earlier.address == address && earlier.daemon == noted.daemon);
        match earlier {
            Some(_) if noted.cause.is_timeout() => (),
            Some(earlier) => *earlier = noted,
            None => {
                self.make_room(address);
                self.causes.push(noted);
            }
        }
    }

    /// Removes the first cause of an address that has as many as are kept.
    fn make_room(&mut self, address: usize) {
        let mut of_address = (0..self.causes.len())
            .filter(|index| self.causes[*index].address == address)
            .peekable();
        let first = of_address.peek().copied();
        if let Some(first) = first
            && of_address.count() >= MAX_CAUSES
        {
            self.causes.remove(first);
        }
    }

    /// Continues with the address after this one, which has not served requests.
    pub(super) fn leave(&mut self, address: usize) {
        self.index = (address + 1) % self.addresses;
        self.left = self.left.saturating_sub(1);
    }

    /// Continues with the address after this one, whose daemon has ended an idle connection. All are tried before a wait.
    pub(super) fn turn_away_from(&mut self, address: usize) {
        self.index = (address + 1) % self.addresses;
        self.left = self.addresses;
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
        self.left = self.addresses;
    }

    /// Returns the daemons that have not served a request that began then, each with the last reason, in the order of the
    /// addresses.
    pub(super) fn causes_since(&self, begin: Instant) -> Vec<(Arc<str>, ConnectionError)> {
        let noted = self.causes.iter().filter(|noted| noted.at >= begin);
        let mut noted: Vec<_> = noted.collect();
        noted.sort_by_key(|noted| noted.address);
        let causes = noted.into_iter();
        causes
            .map(|noted| (Arc::clone(&noted.daemon), noted.cause.clone()))
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
                .map(|(daemon, cause)| format!("{daemon}: {cause}"))
                .collect::<Vec<_>>()
        };
        let daemons: [Arc<str>; 3] = ["a", "b", "c"].map(Arc::from);
        plan.note(1, &daemons[1], timeout(), begin);
        plan.note(0, &daemons[0], ConnectionError::Closed, begin);
        plan.note(0, &daemons[0], timeout(), begin);
        let [closed, late] = [
            "the connection was closed before the reply",
            "no reply within 1s",
        ];
        let two = [format!("a: {closed}"), format!("b: {late}")];
        assert_eq!(shown(&plan, begin), two);
        // An address may have several daemons.
        plan.note(0, &daemons[2], timeout(), begin);
        plan.note(1, &daemons[1], ConnectionError::Closed, begin);
        let three = [
            format!("a: {closed}"),
            format!("c: {late}"),
            format!("b: {closed}"),
        ];
        assert_eq!(shown(&plan, begin), three);
        // A reason from before the call does not count.
        let later = Instant::now() + Duration::from_secs(1);
        assert_eq!(shown(&plan, later), [""; 0]);
        plan.note(0, &daemons[2], timeout(), later);
        assert_eq!(shown(&plan, begin), [format!("c: {late}")]);
    }

    #[test]
    fn the_last_causes_of_each_address_are_kept() {
        let begin = Instant::now();
        let mut plan = AddressPlan::new(2);
        let note = |plan: &mut AddressPlan, address, name: &str| {
            plan.note(address, &Arc::from(name), ConnectionError::Closed, begin);
        };
        note(&mut plan, 0, "other");
        for target in 0..3 * MAX_CAUSES {
            note(&mut plan, 1, &target.to_string());
        }
        let causes = plan.causes_since(begin).into_iter();
        let names: Vec<_> = causes.map(|(daemon, _)| daemon.to_string()).collect();
        let last = (2 * MAX_CAUSES..3 * MAX_CAUSES).map(|target| target.to_string());
        let expected: Vec<_> = ["other".to_owned()].into_iter().chain(last).collect();
        assert_eq!(names, expected);
    }

    #[test]
    fn a_round_is_over_when_each_address_was_left() {
        let mut plan = AddressPlan::new(2);
        plan.leave(0);
        assert_eq!((plan.index, plan.is_round_over()), (1, false));
        plan.leave(1);
        assert_eq!((plan.index, plan.is_round_over()), (0, true));
    }
}
