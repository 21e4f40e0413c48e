//! Who ended a worker: the request that was executing when it died, its client, its method.
//!
//! A death is a request's doing if the process ended itself (it exited, or ran into a fault), if the kernel ended it because
//! memory was out, or if we did because the request took too long. Other signals come from outside, and nobody in it is to
//! blame. An idempotent request that died once is run again first: if that goes well, it was not the request.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use crate::master::Master;
use crate::master::clients::leases::DeadWorkerClients;
use crate::proto::channel::{MethodName, ToWorker};
use crate::proto::control::{About, Kind};
use crate::proto::names::{ClientId, Peer};
use crate::proto::text::Escaped;
use crate::sys::process::{self, Exit};
use crate::sys::socket;

/// A client whose requests have ended so many workers within the time is closed.
const CLIENT: (usize, Duration) = (3, Duration::from_secs(60));

/// A method that has is quarantined.
const METHOD: (usize, Duration) = (10, Duration::from_secs(600));

/// Who has ended workers of late.
#[derive(Debug, Default)]
pub(crate) struct Strikes {
    clients: HashMap<ClientId, VecDeque<Instant>>,
    methods: HashMap<String, VecDeque<Instant>>,
    quarantined: Vec<String>,
}

impl Strikes {
    /// Methods that are not run any more.
    pub(crate) fn quarantined(&self) -> &[String] {
        &self.quarantined
    }

    /// Methods that a master before did not have run any more are not run by this one.
    pub(crate) fn go_on(&mut self, quarantined: Vec<String>) {
        self.quarantined = quarantined;
    }

    /// Lets a method run again; whether it was quarantined.
    pub(crate) fn release(&mut self, method: &str) -> bool {
        let before = self.quarantined.len();
        self.quarantined.retain(|quarantined| quarantined != method);
        self.methods.remove(method);
        self.quarantined.len() < before
    }

    /// Lets all run again.
    pub(crate) fn forgive(&mut self) {
        self.quarantined.clear();
        self.methods.clear();
    }

    /// The client is gone.
    pub(crate) fn forget(&mut self, client: ClientId) {
        self.clients.remove(&client);
    }

    /// A client's request has done it; whether that is enough.
    fn strike_client(&mut self, client: ClientId, now: Instant) -> bool {
        strike(self.clients.entry(client).or_default(), CLIENT, now)
    }

    /// A method has done it; whether that is enough, for the first time.
    fn strike_method(&mut self, method: &str, now: Instant) -> bool {
        let is_enough = strike(
            self.methods.entry(method.to_owned()).or_default(),
            METHOD,
            now,
        );
        if is_enough
            && !self
                .quarantined
                .iter()
                .any(|quarantined| quarantined == method)
        {
            self.quarantined.push(method.to_owned());
            return true;
        }
        false
    }
}

fn strike(
    strikes: &mut VecDeque<Instant>,
    (most, within): (usize, Duration),
    now: Instant,
) -> bool {
    strikes.push_back(now);
    while strikes
        .front()
        .is_some_and(|first| now.duration_since(*first) > within)
    {
        strikes.pop_front();
    }
    strikes.len() >= most
}

/// What the kernel has killed for want of memory, and no death explains yet. Several may be killed before the first of them
/// has ended.
#[derive(Debug)]
pub(crate) struct OomKills {
    /// As the kernel counted them last.
    counted: Option<u64>,
    unexplained: u64,
    /// When the last of these was counted.
    at: Instant,
}

impl OomKills {
    /// From now on.
    pub(crate) fn new(counted: Option<u64>, now: Instant) -> OomKills {
        OomKills {
            counted,
            unexplained: 0,
            at: now,
        }
    }

    /// Whether one of them explains that a process was killed just now.
    fn take(&mut self, counted: Option<u64>, now: Instant) -> bool {
        if now.duration_since(self.at) > OOM_DEATH {
            // These were of others.
            self.unexplained = 0;
        }
        if let (Some(before), Some(after)) = (self.counted, counted)
            && after > before
        {
            (self.unexplained, self.at) = (self.unexplained + (after - before), now);
        }
        self.counted = counted;
        let explains = self.unexplained > 0;
        self.unexplained = self.unexplained.saturating_sub(1);
        explains
    }
}

/// How long a process that the kernel kills may take to end.
const OOM_DEATH: Duration = Duration::from_secs(1);

/// What is known of a death.
#[derive(Debug, Default)]
pub(crate) struct Blame {
    /// The request that was executing, as people call it.
    pub(crate) request: Option<String>,
    /// What becomes of that, as people are told.
    pub(crate) outcome: &'static str,
    /// The kernel ended it, because memory was out.
    pub(crate) is_out_of_memory: bool,
    /// The client that has done it too often.
    pub(crate) culprit: Option<(ClientId, Peer)>,
}

impl Blame {
    /// How people are told what a worker died of; `failure` is what is known besides.
    pub(crate) fn cause(&self, exit: Exit, failure: Option<String>) -> String {
        let memory = if self.is_out_of_memory {
            ", the kernel was out of memory"
        } else {
            ""
        };
        let request = self
            .request
            .as_ref()
            .map(|request| format!(" in {request}"))
            .unwrap_or_default();
        let failure = failure
            .map(|failure| format!(": {failure}"))
            .unwrap_or_default();
        format!("{exit}{memory}{request}{failure}")
    }
}

impl Master {
    /// Finds out what a worker died of, and marks who did it.
    pub(crate) fn lay_blame(
        &mut self,
        exit: Exit,
        is_timed_out: bool,
        methods: &[MethodName],
        left: &DeadWorkerClients,
        now: Instant,
    ) -> Blame {
        let mut blame = Blame {
            outcome: "no request was executing",
            ..Blame::default()
        };
        let is_killed = matches!(exit, Exit::Signal { number: KILL, .. });
        blame.is_out_of_memory =
            is_killed && self.workers.oom_kills.take(process::oom_kills(), now);
        let interrupted = left
            .recovered
            .iter()
            .find_map(|(unleased, request)| Some((unleased, request.as_ref()?)));
        let Some((unleased, request)) = interrupted else {
            return blame;
        };
        // A number that it had no method for is the worker's own mistake.
        let method = (request.method as usize)
            .checked_sub(1)
            .and_then(|index| methods.get(index));
        let (client, peer) = (unleased.client.id, unleased.client.peer);
        let name = method.map_or("?", |method| &method.name);
        blame.request = Some(format!(
            "method {:?} of client {client} ({peer})",
            Escaped(name).to_string()
        ));

        let is_rerun = !is_timed_out
            && request.crash_count == 1
            && method.is_some_and(|method| method.idempotent);
        blame.outcome = match (is_timed_out, is_rerun) {
            (true, _) => "1 request answered with timeout",
            (false, true) => "1 request run again",
            (false, false) => "1 request answered with crashed",
        };
        self.telemetry.counts.reruns += u64::from(is_rerun);
        let is_its_doing = is_timed_out || blame.is_out_of_memory || exit.is_own_doing();
        if is_its_doing && !is_rerun {
            // The one before was on trial.
            for _ in 0..request.crash_count.clamp(1, 2) {
                if self.workers.strikes.strike_client(client, now) {
                    blame.culprit = Some((client, peer));
                }
                if let Some(method) = method.filter(|_| !is_timed_out)
                    && self.workers.strikes.strike_method(&method.name, now)
                {
                    self.quarantine(&method.name);
                }
            }
        }
        blame
    }

    fn quarantine(&mut self, method: &str) {
        let (most, within) = METHOD;
        let sentence = format_args!(
            "method {method:?} has ended {most} workers within {within:?}: it is quarantined, and answered with crashed \
             unrun, until `fdpassctl release {method}` or a reload"
        );
        self.telemetry
            .events
            .note(Kind::MethodQuarantined, About::default(), sentence);
        self.say_quarantined();
    }

    /// Tells all workers which methods they do not run.
    pub(crate) fn say_quarantined(&mut self) {
        let quarantined = self.workers.strikes.quarantined().to_vec();
        for id in self.workers.all.keys().copied().collect::<Vec<_>>() {
            self.tell(id, ToWorker::Quarantine(quarantined.clone()));
        }
    }

    /// Closes a client that waits for a worker and has ended too many.
    pub(crate) fn close_culprit(&mut self, client: ClientId, peer: Peer) {
        let Some(index) = self
            .clients
            .unleased
            .iter()
            .position(|unleased| unleased.client.id == client)
        else {
            return;
        };
        let Some(unleased) = self.clients.unleased.remove(index) else {
            return;
        };
        let (most, within) = CLIENT;
        let sentence = format_args!(
            "client {client} ({peer}): its requests ended {most} workers within {within:?}; closing it"
        );
        self.telemetry.events.note(
            Kind::ClientGivenUp,
            About {
                client: Some(client),
                ..About::default()
            },
            sentence,
        );
        socket::end(&unleased.client.socket);
        self.telemetry.counts.closed_for_crashes += 1;
        self.forget(unleased.client);
    }
}

/// SIGKILL.
const KILL: i32 = 9;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_strikes_within_the_time_are_enough_and_old_ones_are_forgotten() {
        let mut strikes = Strikes::default();
        let begin = Instant::now();
        let at = |seconds: u64| begin + Duration::from_secs(seconds);
        let client = ClientId(7);
        assert!(!strikes.strike_client(client, at(0)) && !strikes.strike_client(client, at(1)));
        assert!(!strikes.strike_client(ClientId(8), at(1)));
        assert!(
            !strikes.strike_client(client, at(61)),
            "the first is over a minute ago"
        );
        assert!(strikes.strike_client(client, at(61)));
        strikes.forget(client);
        assert!(!strikes.strike_client(client, at(62)));
    }

    #[test]
    fn each_oom_kill_explains_one_death_and_not_for_long() {
        let begin = Instant::now();
        let at = |seconds: u64| begin + Duration::from_secs(seconds);
        let mut kills = OomKills::new(Some(5), begin);
        assert!(!kills.take(Some(5), at(1)));
        assert!(
            kills.take(Some(7), at(2)) && kills.take(Some(7), at(3)) && !kills.take(Some(7), at(3))
        );
        assert!(
            kills.take(Some(9), at(4)) && !kills.take(Some(9), at(6)),
            "that was of another process"
        );
        assert!(
            !kills.take(None, at(6)) && !kills.take(Some(99), at(6)),
            "not counted for a while"
        );
    }

    #[test]
    fn a_method_is_quarantined_once_until_it_is_released() {
        let mut strikes = Strikes::default();
        let now = Instant::now();
        for _ in 1..METHOD.0 {
            assert!(!strikes.strike_method("resize", now));
        }
        assert!(strikes.strike_method("resize", now));
        assert!(!strikes.strike_method("resize", now), "it is already");
        assert_eq!(strikes.quarantined(), ["resize"]);
        assert!(strikes.release("resize") && !strikes.release("resize"));
        assert!(!strikes.strike_method("resize", now), "it begins anew");
    }
}
