//! Attribution of a worker's crash to the request that was executing, its client and its method.
//!
//! A request caused a death if the process ended itself (it exited, or ran into a fault), if the kernel killed it
//! because memory was out, or if the master killed it because the request took too long. Other signals come from
//! outside, and no request caused them. An idempotent request that caused one death is executed once more first: if it
//! succeeds, it was not the cause.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use crate::master::clients::Clients;
use crate::master::clients::leases::recovery::DeadWorkerClients;
use crate::master::telemetry::Telemetry;
use crate::master::workers::Workers;
use crate::proto::channel::MethodName;
use crate::proto::control::{About, Kind};
use crate::proto::names::{ClientId, Peer};
use crate::proto::text::Escaped;
use crate::sys::process::{self, Exit};
use crate::sys::socket;

/// Number of deaths within a period after which the client that caused them is closed.
const CLIENT: (usize, Duration) = (3, Duration::from_secs(60));

/// Number of deaths within a period after which the method that caused them is quarantined.
const METHOD: (usize, Duration) = (10, Duration::from_secs(600));

/// Recent deaths of workers, by client and by method.
#[derive(Debug, Default)]
pub(crate) struct Strikes {
    clients: HashMap<ClientId, VecDeque<Instant>>,
    methods: HashMap<String, VecDeque<Instant>>,
    quarantined: Vec<String>,
}

impl Strikes {
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
        self.quarantined.len() < before
    }

    /// Releases all methods.
    pub(crate) fn forgive(&mut self) {
        self.quarantined.clear();
        self.methods.clear();
    }

    /// Counts a death caused by a client's request. Returns whether the limit is reached.
    fn strike_client(&mut self, client: ClientId, now: Instant) -> bool {
        let (_, within) = CLIENT;
        self.clients.retain(|_, strikes| {
            strikes
                .back()
                .is_some_and(|last| now.duration_since(*last) <= within)
        });
        strike(self.clients.entry(client).or_default(), CLIENT, now)
    }

    /// Counts a death caused by a method. Returns whether the limit is reached for the first time.
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

/// Kills by the kernel for lack of memory that no death explains yet. Several processes may be killed before the first
/// of them has ended.
#[derive(Debug)]
pub(crate) struct OomKills {
    /// The kernel's last count.
    counted: Option<u64>,
    unexplained: u64,
    /// When the last kill was counted.
    at: Instant,
}

impl OomKills {
    /// Counts the kills from now on.
    pub(crate) fn new(counted: Option<u64>, now: Instant) -> OomKills {
        OomKills {
            counted,
            unexplained: 0,
            at: now,
        }
    }

    /// Returns whether such a kill explains that a process was just killed.
    fn take(&mut self, counted: Option<u64>, now: Instant) -> bool {
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
        let explains = self.unexplained > 0;
        self.unexplained = self.unexplained.saturating_sub(1);
        explains
    }
}

/// Longest time that a process killed by the kernel may take to end.
const OOM_DEATH: Duration = Duration::from_secs(1);

/// Findings about a death.
#[derive(Debug, Default)]
pub(crate) struct Blame {
    /// The request that was executing, as the messages name it.
    pub(crate) request: Option<String>,
    /// The consequence for the request, as the messages give it.
    pub(crate) outcome: &'static str,
    /// The kernel killed the worker because memory was out.
    pub(crate) is_out_of_memory: bool,
    /// The client that has caused too many deaths.
    pub(crate) culprit: Option<(ClientId, Peer)>,
    /// A method is quarantined because of it, which the workers do not know yet.
    pub(crate) has_quarantined: bool,
}

impl Blame {
    /// Describes the cause of a death for messages; `failure` is what else is known.
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

impl Workers {
    /// Determines the cause of a worker's death, and records the client and the method that caused it.
    pub(super) fn lay_blame(
        &mut self,
        exit: Exit,
        is_timed_out: bool,
        methods: &[MethodName],
        recovery: &DeadWorkerClients,
        telemetry: &mut Telemetry,
        now: Instant,
    ) -> Blame {
        let mut blame = Blame {
            outcome: "no request was executing",
            ..Blame::default()
        };
        let is_killed = matches!(exit, Exit::Signal { number: KILL, .. });
        blame.is_out_of_memory = is_killed && self.oom_kills.take(process::oom_kills(), now);
        let interrupted = recovery
            .recovered
            .iter()
            .find_map(|(unleased, request)| Some((unleased, request.as_ref()?)));
        let Some((unleased, request)) = interrupted else {
            return blame;
        };
        // A number without a method is the worker's own error.
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
        telemetry.counts.reruns += u64::from(is_rerun);
        let is_its_doing = is_timed_out || blame.is_out_of_memory || exit.is_own_doing();
        if is_its_doing && !is_rerun {
            // The death before a rerun was not counted then.
            for _ in 0..request.crash_count.clamp(1, 2) {
                if self.strikes.strike_client(client, now) {
                    blame.culprit = Some((client, peer));
                }
                if let Some(method) = method.filter(|_| !is_timed_out)
                    && self.strikes.strike_method(&method.name, now)
                {
                    report_quarantined(&method.name, telemetry);
                    blame.has_quarantined = true;
                }
            }
        }
        blame
    }
}

fn report_quarantined(method: &str, telemetry: &mut Telemetry) {
    let (most, within) = METHOD;
    let sentence = format_args!(
        "method {method:?} has ended {most} workers within {within:?}: it is quarantined, and answered with crashed \
         unrun, until `fdpassctl release {method}` or a reload"
    );
    telemetry
        .events
        .note(Kind::MethodQuarantined, About::default(), sentence);
}

/// Closes a client that waits for a worker and has caused too many deaths.
pub(super) fn close_culprit(
    client: ClientId,
    peer: Peer,
    clients: &mut Clients,
    telemetry: &mut Telemetry,
) {
    let mut unleased = clients.unleased.iter();
    let Some(unleased) = unleased
        .position(|unleased| unleased.client.id == client)
        .and_then(|index| clients.unleased.remove(index))
    else {
        return;
    };
    let (most, within) = CLIENT;
    let sentence = format_args!(
        "client {client} ({peer}): its requests ended {most} workers within {within:?}; closing it"
    );
    let about = About {
        client: Some(client),
        ..About::default()
    };
    telemetry.events.note(Kind::ClientGivenUp, about, sentence);
    socket::end(&unleased.client.socket);
    telemetry.counts.closed_for_crashes += 1;
    clients.remove(unleased.client, telemetry);
}

/// SIGKILL.
const KILL: i32 = 9;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strikes_expire_after_their_period() {
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
        strikes.strike_client(ClientId(8), at(122));
        assert_eq!(strikes.clients.len(), 1, "the others are forgotten");
    }

    #[test]
    fn an_oom_kill_explains_one_death_for_a_second() {
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
