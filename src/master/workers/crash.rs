//! Attribution of a worker's crash to the request that was executing, its client and its method.
//!
//! A request caused a death if the process ended itself (it exited, or ran into a fault), if the kernel killed it
//! because memory was out, or if the master killed it because the request took too long. Other signals come from
//! outside, and no request caused them. An idempotent request that caused one death is executed once more first: if it
//! succeeds, it was not the cause.

use std::collections::BTreeSet;
use std::time::Instant;

use crate::master::clients::Clients;
use crate::master::clients::client::Unleased;
use crate::master::clients::leases::recovery::{DeadWorkerClients, Interrupted};
use crate::master::telemetry::Telemetry;
use crate::master::workers::Workers;
use crate::master::workers::app::WorkerEnd;
use crate::master::workers::crash_limits::{CLIENT, METHOD, SharedDeath};
use crate::proto::channel::{AppEnd, MethodName};
use crate::proto::control::{About, Kind};
use crate::proto::names::{ClientId, Peer};
use crate::proto::text::{Counted, Escaped};
use crate::sys::process::Exit;
use crate::sys::socket;

/// The requests and clients to which a death is attributed, and what follows for them.
#[derive(Debug, Default)]
pub(crate) struct Attribution {
    /// The requests that were executing, as the messages name them.
    pub(crate) request: Option<String>,
    /// The consequence for the requests, as the messages give it.
    pub(crate) outcome: String,
    /// The kernel killed the worker, or its app, because memory was out.
    pub(crate) is_out_of_memory: bool,
    /// A request may have caused the death.
    pub(crate) is_of_a_request: bool,
    /// Clients that have caused too many deaths.
    pub(crate) crashers: Vec<(ClientId, Peer)>,
    /// A method is quarantined because of it, which the workers do not know yet.
    pub(crate) has_quarantined: bool,
}

impl Attribution {
    /// Describes the cause of a death for messages; `failure` is what else is known.
    pub(super) fn cause(&self, end: WorkerEnd<'_>, failure: Option<String>) -> String {
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
        let app = end.app.filter(|gone| gone.end != AppEnd::Finished);
        match (app, failure) {
            (Some(gone), _) => {
                let (subject, reason) = (Escaped(&gone.subject), &gone.reason);
                format!("ended{memory}{request}: its {subject} {reason}")
            }
            (None, Some(failure)) => format!("{}{memory}{request}: {failure}", end.exit),
            (None, None) => format!("{}{memory}{request}", end.exit),
        }
    }
}

/// A request that was executing at a death, with its client and its method. If the stored number is that of no method,
/// the worker has stored a wrong one.
struct Suspect<'a> {
    client: ClientId,
    peer: Peer,
    method: Option<&'a MethodName>,
    request: &'a Interrupted,
}

impl<'a> Suspect<'a> {
    /// Returns the requests that the dead worker was executing.
    fn all(methods: &'a [MethodName], left: &'a DeadWorkerClients) -> Vec<Suspect<'a>> {
        let suspect = |(unleased, request): &'a (Unleased, Option<Interrupted>)| {
            let request = request.as_ref()?;
            let index = (request.method as usize).checked_sub(1);
            Some(Suspect {
                client: unleased.client.id,
                peer: unleased.client.address(),
                method: index.and_then(|index| methods.get(index)),
                request,
            })
        };
        left.recovered.iter().filter_map(suspect).collect()
    }

    fn name(&self) -> &str {
        self.method.map_or("?", |method| &method.name)
    }

    /// Returns whether the next worker executes the request once more: its method is idempotent, this was its first
    /// death, and it did not take too long.
    fn is_rerun(&self) -> bool {
        !self.request.is_timed_out
            && self.request.crash_count == 1
            && self.method.is_some_and(|method| method.idempotent)
    }
}

/// Names the requests for messages, if there are any.
fn name_all(suspects: &[Suspect<'_>]) -> Option<String> {
    let quoted = |name: &str| format!("{:?}", Escaped(name).to_string());
    match suspects {
        [] => None,
        [one] => Some(format!(
            "method {} of client {} ({})",
            quoted(one.name()),
            one.client,
            one.peer
        )),
        all => {
            let names: BTreeSet<&str> = all.iter().map(Suspect::name).collect();
            let shown: Vec<String> = names.iter().take(NAMED).map(|name| quoted(name)).collect();
            let more = if names.len() > NAMED { ", …" } else { "" };
            Some(format!(
                "{} requests ({}{more})",
                all.len(),
                shown.join(", ")
            ))
        }
    }
}

/// Returns what becomes of the requests, for messages.
fn consequence(suspects: &[Suspect<'_>]) -> String {
    let timed_out = suspects
        .iter()
        .filter(|suspect| suspect.request.is_timed_out);
    let reruns = suspects.iter().filter(|suspect| suspect.is_rerun());
    let (timed_out, reruns) = (timed_out.count(), reruns.count());
    let crashed = suspects.len() - timed_out - reruns;
    let parts: Vec<String> = [
        (timed_out, "answered with timeout"),
        (reruns, "run again"),
        (crashed, "answered with crashed"),
    ]
    .into_iter()
    .filter(|(count, _)| *count > 0)
    .map(|(count, what)| format!("{} {what}", Counted(count, "request")))
    .collect();
    if parts.is_empty() {
        return "no request was executing".to_owned();
    }
    parts.join(", ")
}

impl Workers {
    /// Determines the cause of a worker's death, and records the clients and the method that caused it.
    ///
    /// If several requests were executing, none is known to be the cause. Those of idempotent methods run again, one at
    /// a time, so that one request is the cause of the next death. The others do not run again; the only method that
    /// was among them at every one of ten such deaths is quarantined. A request that took too long is always recorded.
    pub(super) fn attribute(
        &mut self,
        end: WorkerEnd<'_>,
        methods: &[MethodName],
        recovery: &DeadWorkerClients,
        telemetry: &mut Telemetry,
        now: Instant,
    ) -> Attribution {
        let suspects = Suspect::all(methods, recovery);
        let is_killed = matches!(end.first_exit(), Exit::Signal { number: KILL, .. });
        let is_out_of_memory = is_killed && !end.is_by_master && self.oom_kills.take(now);
        let mut attribution = Attribution {
            request: name_all(&suspects),
            outcome: consequence(&suspects),
            is_out_of_memory,
            ..Attribution::default()
        };
        let reruns = suspects.iter().filter(|suspect| suspect.is_rerun());
        telemetry.counts.reruns += reruns.count() as u64;
        attribution.is_of_a_request = is_out_of_memory || end.may_be_of_a_request();
        let is_of_one = suspects.len() == 1 && attribution.is_of_a_request;
        // If memory was out, all requests have used it, and no single one is the cause.
        if suspects.len() > 1 && attribution.is_of_a_request && !is_out_of_memory {
            self.note_shared(&suspects, &mut attribution, telemetry, now);
        }
        for suspect in suspects {
            let was_deferred = self.crash_limits.take_deferred(suspect.client);
            if !suspect.request.is_timed_out && !is_of_one {
                continue;
            }
            if suspect.is_rerun() {
                self.crash_limits.defer(suspect.client, now);
            } else {
                if is_of_one && suspect.request.crash_count > 1 {
                    self.crash_limits.resolve_shared(suspect.client);
                }
                // The earlier death may have been in another request of this client, which then succeeded.
                let is_second = was_deferred && suspect.request.crash_count > 1;
                let deaths = if is_second { 2 } else { 1 };
                self.count_deaths(&suspect, deaths, &mut attribution, telemetry, now);
            }
        }
        attribution
    }

    /// Notes a death that one of several requests may have caused.
    fn note_shared(
        &mut self,
        suspects: &[Suspect<'_>],
        attribution: &mut Attribution,
        telemetry: &mut Telemetry,
        now: Instant,
    ) {
        let (reruns, others): (Vec<_>, Vec<_>) = suspects
            .iter()
            .filter(|suspect| !suspect.request.is_timed_out)
            .partition(|suspect| suspect.is_rerun());
        let methods = others.iter().filter_map(|suspect| suspect.method);
        let death = SharedDeath {
            at: now,
            methods: methods.map(|method| method.name.clone()).collect(),
            reruns: reruns.iter().map(|suspect| suspect.client).collect(),
        };
        if let Some(method) = self.crash_limits.note_shared(death) {
            report_quarantined(
                &method,
                "was executing at each of the last",
                "deaths",
                telemetry,
            );
            attribution.has_quarantined = true;
        }
    }

    /// Records that a request has caused this many deaths.
    fn count_deaths(
        &mut self,
        suspect: &Suspect<'_>,
        deaths: usize,
        attribution: &mut Attribution,
        telemetry: &mut Telemetry,
        now: Instant,
    ) {
        let is_timed_out = suspect.request.is_timed_out;
        for _ in 0..deaths {
            let crasher = (suspect.client, suspect.peer);
            if self.crash_limits.count_for_client(suspect.client, now)
                && !attribution.crashers.contains(&crasher)
            {
                attribution.crashers.push(crasher);
            }
            if let Some(method) = suspect.method.filter(|_| !is_timed_out)
                && self.crash_limits.count_for_method(&method.name, now)
            {
                report_quarantined(&method.name, "has ended", "workers", telemetry);
                attribution.has_quarantined = true;
            }
        }
    }
}

/// The most methods that a message about several requests names.
const NAMED: usize = 3;

/// Reports that a method is quarantined. The sentence contains `what`, the limit and `things`, such as "has ended", 10,
/// "workers".
fn report_quarantined(method: &str, what: &str, things: &str, telemetry: &mut Telemetry) {
    let (most, within) = METHOD;
    let sentence = format_args!(
        "method {method:?} {what} {most} {things} within {within:?}: it is quarantined; its requests get crashed and \
         do not run until the verb \"release\" or a reload lifts the quarantine"
    );
    telemetry
        .events
        .note(Kind::MethodQuarantined, About::default(), sentence);
}

/// Closes the clients that have caused too many deaths, if they wait for a worker.
pub(super) fn close_crashers(
    crashers: &[(ClientId, Peer)],
    clients: &mut Clients,
    telemetry: &mut Telemetry,
) {
    for (client, peer) in crashers {
        let Some(unleased) = clients.take_unleased(*client) else {
            continue;
        };
        let (most, within) = CLIENT;
        let sentence = format_args!(
            "client {client} ({peer}): its requests ended {most} workers within {within:?}; closing it"
        );
        let about = About {
            client: Some(*client),
            ..About::default()
        };
        telemetry.events.note(Kind::ClientGivenUp, about, sentence);
        socket::end(&unleased.client.socket);
        telemetry.counts.closed_for_crashes += 1;
        clients.remove(unleased.client, telemetry);
    }
}

/// SIGKILL.
const KILL: i32 = 9;

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::time::Duration;

    use super::*;
    use crate::master::clients::client::Client;
    use crate::master::workers::oom_kills::OomKills;
    use crate::pool::{Pool, Target};
    use crate::proto::channel::AppGone;
    use crate::proto::names::Generation;
    use crate::sys::process::Executable;

    /// Number of the idempotent method.
    const PRICE: u32 = 1;
    /// Number of the other one.
    const ORDER: u32 = 2;

    fn methods() -> Vec<MethodName> {
        let method = |name: &str, idempotent| MethodName {
            name: name.to_owned(),
            idempotent,
        };
        vec![method("price", true), method("order", false)]
    }

    fn workers(now: Instant) -> Workers {
        let target = Target {
            generation: Generation(1),
            count: 1,
            start_timeout: Duration::from_secs(1),
            drain_timeout: Duration::from_secs(1),
            max_lifetime: None,
            tries: 3,
        };
        let executable = Executable::from_file(File::open("/dev/null").expect("/dev/null"));
        Workers::new(Pool::new(target, now, 1), executable, now)
    }

    /// Returns the clients of a dead worker: each with an interrupted request, its crash count, and whether it took too
    /// long.
    fn left(requests: &[(u32, u8, bool)]) -> DeadWorkerClients {
        let requests = (0..).zip(requests);
        let recovered = requests.map(|(id, (method, crash_count, is_timed_out))| {
            let interrupted = Interrupted {
                method: *method,
                crash_count: *crash_count,
                is_timed_out: *is_timed_out,
            };
            (Unleased::new(Client::on_null(id), 0), Some(interrupted))
        });
        DeadWorkerClients {
            recovered: recovered.collect(),
            ..DeadWorkerClients::default()
        }
    }

    /// Attributes the end of an app to one of these requests.
    fn attribution(
        workers: &mut Workers,
        end: AppEnd,
        requests: &[(u32, u8, bool)],
    ) -> (Attribution, u64) {
        let gone = AppGone {
            end,
            subject: "app".to_owned(),
            reason: "has ended".to_owned(),
        };
        let end = WorkerEnd::new(Exit::Status(70), Some(&gone), false);
        let mut telemetry = Telemetry::new();
        let (left, now) = (left(requests), Instant::now());
        let attribution = workers.attribute(end, &methods(), &left, &mut telemetry, now);
        let cause = attribution.cause(end, Some("the same".to_owned()));
        assert!(cause.starts_with("ended in ") && cause.ends_with(": its app has ended"));
        (attribution, telemetry.counts.reruns)
    }

    #[test]
    fn several_requests_are_reported_and_none_is_struck() {
        let mut workers = workers(Instant::now());
        let requests = [
            (PRICE, 1, false),
            (ORDER, 1, false),
            (PRICE, 2, false),
            (PRICE, 1, false),
            (9, 1, false),
        ];
        for _ in 0..METHOD.0 {
            let (attribution, reruns) = attribution(&mut workers, AppEnd::Exited(1), &requests);
            assert_eq!(
                attribution.outcome,
                "2 requests run again, 3 requests answered with crashed"
            );
            let named = attribution.request.as_deref();
            assert_eq!(named, Some(r#"5 requests ("?", "order", "price")"#));
            assert_eq!((reruns, attribution.crashers.len()), (2, 0));
        }
        assert!(workers.crash_limits.quarantined().is_empty());
    }

    #[test]
    fn the_method_of_ten_deaths_with_others_is_quarantined() {
        let requests = [(PRICE, 1, false), (ORDER, 1, false), (PRICE, 1, false)];
        let mut workers = workers(Instant::now());
        for death in 1..=METHOD.0 {
            let (attribution, _) = attribution(&mut workers, AppEnd::Exited(1), &requests);
            assert_eq!(attribution.has_quarantined, death == METHOD.0);
            assert!(attribution.is_of_a_request && attribution.crashers.is_empty());
            // Those from outside have no cause.
            let (killed, _) = self::attribution(&mut workers, AppEnd::Killed(KILL), &requests);
            assert!(!killed.is_of_a_request && !killed.has_quarantined);
        }
        assert_eq!(workers.crash_limits.quarantined(), ["order"]);
        // A request that runs again, and ends its worker again, was the cause both times.
        let mut workers = self::workers(Instant::now());
        for _ in 0..METHOD.0 {
            attribution(&mut workers, AppEnd::Exited(1), &requests);
            attribution(&mut workers, AppEnd::Exited(1), &[(PRICE, 2, false)]);
        }
        assert_eq!(workers.crash_limits.quarantined(), ["price"]);
    }

    #[test]
    fn kills_of_an_app_from_outside_count_for_no_client() {
        let mut workers = workers(Instant::now());
        for _ in 0..METHOD.0 {
            for end in [AppEnd::Killed(KILL), AppEnd::BrokeProtocol] {
                let (attribution, _) = attribution(&mut workers, end, &[(ORDER, 1, false)]);
                assert_eq!(attribution.outcome, "1 request answered with crashed");
                assert!(attribution.crashers.is_empty() && !attribution.has_quarantined);
            }
        }
        for death in 1..=METHOD.0 {
            let (attribution, _) =
                attribution(&mut workers, AppEnd::Exited(0), &[(ORDER, 1, false)]);
            assert_eq!(attribution.crashers.len(), usize::from(death >= CLIENT.0));
        }
        assert_eq!(workers.crash_limits.quarantined(), ["order"]);
    }

    #[test]
    fn a_request_that_took_too_long_is_known_among_others() {
        let mut workers = workers(Instant::now());
        let requests = [(PRICE, 1, false), (ORDER, 0, true), (ORDER, 1, false)];
        for death in 1..=METHOD.0 {
            let (attribution, _) = attribution(&mut workers, AppEnd::Unresponsive, &requests);
            assert_eq!(
                attribution.outcome,
                "1 request answered with timeout, 1 request run again, 1 request answered with crashed"
            );
            let crashers: Vec<u64> = attribution
                .crashers
                .iter()
                .map(|(client, _)| client.0)
                .collect();
            assert_eq!(crashers, [1].repeat(usize::from(death >= CLIENT.0)));
        }
        assert!(
            workers.crash_limits.quarantined().is_empty(),
            "it may be slow"
        );
    }

    #[test]
    fn one_that_runs_again_alone_counts_for_both_deaths() {
        let mut workers = workers(Instant::now());
        let (first, reruns) = attribution(&mut workers, AppEnd::Killed(11), &[(PRICE, 1, false)]);
        assert_eq!((first.crashers.len(), reruns), (0, 1));
        let (second, _) = attribution(&mut workers, AppEnd::Killed(11), &[(PRICE, 2, false)]);
        assert!(second.crashers.is_empty());
        let (third, _) = attribution(&mut workers, AppEnd::Killed(11), &[(PRICE, 2, false)]);
        assert_eq!(third.crashers.len(), 1, "three and four");
    }

    #[test]
    fn a_kill_by_the_master_is_no_lack_of_memory() {
        let now = Instant::now();
        let mut workers = workers(now);
        let exit = Exit::Signal {
            number: KILL,
            core: false,
        };
        for is_by_master in [true, false] {
            // The kernel has killed a process, too.
            workers.oom_kills = OomKills::with_unexplained(now);
            let end = WorkerEnd::new(exit, None, is_by_master);
            let (left, mut telemetry) = (left(&[]), Telemetry::new());
            let attribution = workers.attribute(end, &methods(), &left, &mut telemetry, now);
            assert_eq!(attribution.is_out_of_memory, !is_by_master);
        }
    }
}
