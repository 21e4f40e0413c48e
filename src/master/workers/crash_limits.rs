//! The limits of how often a client and a method may end workers, and the quarantine of methods.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::{Duration, Instant};

use crate::proto::names::ClientId;

/// Number of deaths within a period after which the client that caused them is closed.
pub(super) const CLIENT: (usize, Duration) = (3, Duration::from_secs(60));

/// Number of deaths within a period after which the method that caused them is quarantined.
pub(super) const METHOD: (usize, Duration) = (10, Duration::from_secs(600));

/// Recent deaths of workers, by client and by method.
#[derive(Debug, Default)]
pub(crate) struct CrashLimits {
    clients: HashMap<ClientId, VecDeque<Instant>>,
    methods: HashMap<String, VecDeque<Instant>>,
    quarantined: Vec<String>,
    /// When a client's request caused a death and began to run again. If it causes another one, both count.
    deferred: HashMap<ClientId, Instant>,
    /// The last deaths with several requests executing, the latest last.
    shared: VecDeque<SharedDeath>,
}

/// A death with several requests executing: one of them was the cause, or none.
#[derive(Debug)]
pub(super) struct SharedDeath {
    pub(super) at: Instant,
    /// The methods of the requests that do not run again.
    pub(super) methods: BTreeSet<String>,
    /// The clients whose requests run again.
    pub(super) reruns: BTreeSet<ClientId>,
}

impl CrashLimits {
    /// Returns the quarantined methods.
    pub(crate) fn quarantined(&self) -> &[String] {
        &self.quarantined
    }

    /// Keeps the methods quarantined that an earlier master had quarantined.
    pub(crate) fn restore(&mut self, quarantined: Vec<String>) {
        self.quarantined = quarantined;
    }

    /// Releases a method from quarantine. Returns whether it was quarantined.
    pub(crate) fn release(&mut self, method: &str) -> bool {
        let before = self.quarantined.len();
        self.quarantined.retain(|quarantined| quarantined != method);
        self.methods.remove(method);
        self.shared.retain(|death| !death.methods.contains(method));
        self.quarantined.len() < before
    }

    /// Releases all methods from quarantine.
    pub(crate) fn release_all(&mut self) {
        self.quarantined.clear();
        self.methods.clear();
        self.shared.clear();
    }

    /// Notes a death that a request of this client may have caused. Whether it did is known when the request has run
    /// again.
    pub(super) fn defer(&mut self, client: ClientId, now: Instant) {
        let (_, within) = METHOD;
        self.deferred
            .retain(|_, deferred| now.duration_since(*deferred) <= within);
        self.deferred.insert(client, now);
    }

    /// Forgets the death noted by [`CrashLimits::defer`]. Returns whether there was one.
    pub(super) fn take_deferred(&mut self, client: ClientId) -> bool {
        self.deferred.remove(&client).is_some()
    }

    /// Counts a death caused by a client's request. Returns whether the limit is reached.
    pub(super) fn count_for_client(&mut self, client: ClientId, now: Instant) -> bool {
        let (_, within) = CLIENT;
        self.clients.retain(|_, deaths| {
            deaths
                .back()
                .is_some_and(|last| now.duration_since(*last) <= within)
        });
        count(self.clients.entry(client).or_default(), CLIENT, now)
    }

    /// Counts a death caused by a method. Returns whether the limit is reached for the first time.
    pub(super) fn count_for_method(&mut self, method: &str, now: Instant) -> bool {
        let is_enough = count(
            self.methods.entry(method.to_owned()).or_default(),
            METHOD,
            now,
        );
        is_enough && self.quarantine(method)
    }

    /// Quarantines a method. Returns whether it was not quarantined.
    fn quarantine(&mut self, method: &str) -> bool {
        let is_new = self.quarantined.iter().all(|other| other != method);
        if is_new {
            self.quarantined.push(method.to_owned());
        }
        is_new
    }

    /// Notes a death with several requests executing. Returns the method that is quarantined because of it, if there is
    /// one: the only one that had a request that does not run again at every one of the last ten ([`METHOD`]). Requests
    /// that run again do not count: if one of them was the cause, it will end its next worker alone.
    pub(super) fn note_shared(&mut self, death: SharedDeath) -> Option<String> {
        let (most, within) = METHOD;
        let now = death.at;
        self.shared.push_back(death);
        if self.shared.len() > most {
            self.shared.pop_front();
        }
        let is_recent = |death: &SharedDeath| now.duration_since(death.at) <= within;
        if self.shared.len() < most || !self.shared.iter().all(is_recent) {
            return None;
        }
        let first = self.shared.front()?;
        let is_common = |method: &&String| {
            self.shared
                .iter()
                .all(|death| death.methods.contains(*method))
        };
        let mut common = first.methods.iter().filter(is_common);
        let only = common.next().filter(|_| common.next().is_none())?;
        let only = only.clone();
        self.quarantine(&only).then_some(only)
    }

    /// Notes that a client's request has caused a second death when it ran again alone. So it has caused the first one,
    /// too, which is removed from the deaths whose cause is unknown.
    pub(super) fn resolve_shared(&mut self, client: ClientId) {
        self.shared.retain(|death| !death.reruns.contains(&client));
    }
}

/// Adds a death to the recent ones. Returns whether the limit is reached.
fn count(deaths: &mut VecDeque<Instant>, (most, within): (usize, Duration), now: Instant) -> bool {
    deaths.push_back(now);
    while deaths
        .front()
        .is_some_and(|first| now.duration_since(*first) > within)
    {
        deaths.pop_front();
    }
    deaths.len() >= most
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deaths_expire_after_their_period() {
        let mut limits = CrashLimits::default();
        let begin = Instant::now();
        let at = |seconds: u64| begin + Duration::from_secs(seconds);
        let client = ClientId(7);
        assert!(!limits.count_for_client(client, at(0)) && !limits.count_for_client(client, at(1)));
        assert!(!limits.count_for_client(ClientId(8), at(1)));
        assert!(
            !limits.count_for_client(client, at(61)),
            "the first is over a minute ago"
        );
        assert!(limits.count_for_client(client, at(61)));
        limits.count_for_client(ClientId(8), at(122));
        assert_eq!(limits.clients.len(), 1, "the others are forgotten");
    }

    #[test]
    fn a_method_is_quarantined_once_until_it_is_released() {
        let mut limits = CrashLimits::default();
        let now = Instant::now();
        for _ in 1..METHOD.0 {
            assert!(!limits.count_for_method("resize", now));
        }
        assert!(limits.count_for_method("resize", now));
        assert!(!limits.count_for_method("resize", now), "it is already");
        assert_eq!(limits.quarantined(), ["resize"]);
        assert!(limits.release("resize") && !limits.release("resize"));
        assert!(!limits.count_for_method("resize", now), "it starts again");
    }

    #[test]
    fn the_only_method_at_ten_shared_deaths_is_quarantined() {
        let begin = Instant::now();
        let death = |second: u64, methods: &[&str], rerun: u64| SharedDeath {
            at: begin + Duration::from_secs(second),
            methods: methods.iter().map(|method| (*method).to_owned()).collect(),
            reruns: BTreeSet::from([ClientId(rerun)]),
        };
        let noted = |deaths: Vec<SharedDeath>| {
            let mut limits = CrashLimits::default();
            let found = deaths
                .into_iter()
                .filter_map(|death| limits.note_shared(death))
                .collect::<Vec<String>>();
            (found, limits)
        };
        let others = ["pay", "pay", "ship"];
        let of_two = |second: u64| death(second, &["order", others[second as usize % 3]], 1);
        assert!(noted((0..9).map(of_two).collect()).0.is_empty(), "nine");
        let (found, mut limits) = noted((0..12).map(of_two).collect());
        assert_eq!(found, ["order"]);
        assert!(limits.release("order"));
        assert_eq!(limits.note_shared(of_two(13)), None, "it starts again");
        // Two methods at all of them, one death without it, or too long a time.
        let both = (0..12).map(|second| death(second, &["order", "pay"], 1));
        assert!(noted(both.collect()).0.is_empty());
        let not_at_one = (0..12).map(|second| match second {
            5 => death(second, &[], 1),
            _ => of_two(second),
        });
        assert!(noted(not_at_one.collect()).0.is_empty());
        let rare = (0..12).map(|number| death(number * 100, &["order"], 1));
        assert!(noted(rare.collect()).0.is_empty());
        // A request that ran again was the cause of five.
        let (_, mut limits) = noted((0..9).map(|n| death(n, &["order"], n % 2)).collect());
        limits.resolve_shared(ClientId(0));
        assert_eq!(limits.shared.len(), 4);
        assert_eq!(limits.note_shared(of_two(9)), None);
    }
}
