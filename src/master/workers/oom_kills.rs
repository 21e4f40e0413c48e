//! Kills of processes by the kernel for lack of memory.

use std::time::{Duration, Instant};

use crate::sys::cgroup::OomCount;

/// Kills by the kernel for lack of memory that no death explains yet. Several processes may be killed before the first
/// of them has ended.
#[derive(Debug)]
pub(crate) struct OomKills {
    count: OomCount,
    /// The kernel's last count.
    counted: Option<u64>,
    unexplained: u64,
    /// When the last kill was counted.
    at: Instant,
}

impl OomKills {
    /// Counts the kills from now on.
    pub(crate) fn new(now: Instant) -> OomKills {
        let count = OomCount::of_process();
        OomKills {
            counted: count.read(),
            count,
            unexplained: 0,
            at: now,
        }
    }

    /// Counts the kills since the last call, so that none of them explains a much later death.
    pub(super) fn update(&mut self, now: Instant) {
        self.add(self.count.read(), now);
    }

    /// Returns whether such a kill explains that a process was just killed.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        self.update(now);
        let explains = self.unexplained > 0;
        self.unexplained = self.unexplained.saturating_sub(1);
        explains
    }

    fn add(&mut self, counted: Option<u64>, now: Instant) {
        if now.duration_since(self.at) > OOM_DEATH {
            // The earlier kills hit other processes.
            self.unexplained = 0;
        }
        if let (Some(before), Some(after)) = (self.counted, counted)
            && after > before
        {
            (self.unexplained, self.at) = (self.unexplained + (after - before), now);
        }
        self.counted = counted;
    }
}

/// Longest time that a process killed by the kernel may take to end.
const OOM_DEATH: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    impl OomKills {
        /// Returns them with one kill that no death explains yet.
        pub(in crate::master::workers) fn with_unexplained(now: Instant) -> OomKills {
            OomKills {
                unexplained: 1,
                ..OomKills::new(now)
            }
        }
    }

    #[test]
    fn an_oom_kill_explains_one_death_for_a_second() {
        let begin = Instant::now();
        let at = |seconds: u64| begin + Duration::from_secs(seconds);
        let mut kills = OomKills::new(begin);
        kills.counted = Some(5);
        let mut unexplained = |counted, now, taken| {
            kills.add(counted, now);
            kills.unexplained -= taken;
            kills.unexplained
        };
        assert_eq!(unexplained(Some(5), at(1), 0), 0);
        assert_eq!(unexplained(Some(7), at(2), 1), 1);
        assert_eq!(unexplained(Some(7), at(3), 1), 0);
        assert_eq!(unexplained(Some(9), at(4), 1), 1);
        assert_eq!(
            unexplained(Some(9), at(6), 0),
            0,
            "that was of another process"
        );
        assert_eq!(unexplained(None, at(6), 0), 0);
        assert_eq!(
            unexplained(Some(99), at(6), 0),
            0,
            "not counted for a while"
        );
    }
}
