//! Accepts clients and leases them to workers.
//!
//! A client is accepted only when a worker has capacity for it. When no worker has, or there are
//! enough clients, or no descriptors, the listeners are disarmed and clients wait in the kernel's
//! queue. An event or a deadline ends that, never polling.

use std::borrow::Cow;
use std::time::{Duration, Instant};
use std::{fmt, io};

use crate::master::clients::Clients;
use crate::master::clients::client::{Client, Unleased};
use crate::master::listeners::listener::Listener;
use crate::master::telemetry::counters::Loss;
use crate::master::workers::worker::Worker;
use crate::master::{Master, Token};
use crate::pool::dispatch::Candidate;
use crate::proto::channel::MAX_LEASES;
use crate::proto::control::{About, Kind};
use crate::proto::text::Counted;
use crate::sys::clock;
use crate::sys::listening::{ACCEPT_PAUSE, Accepted, Look, Offer, accept};
use crate::sys::poll::Interest;

/// How long the same reason for a pause is not reported again.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// Reasons for which no client is accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pause {
    /// No worker is ready.
    NoWorker,
    /// Every worker has as many clients to pick up as are permitted.
    NoRoom,
    /// The maximum number of clients is reached.
    Full,
    /// The system is out of descriptors or memory.
    Exhausted,
    /// The operator has drained the daemon.
    Drained,
    /// The master is leaving: the next one will accept clients.
    Leaving,
}

impl fmt::Display for Pause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Pause::NoWorker => "no worker is ready",
            Pause::NoRoom => "no worker has room",
            Pause::Full => "there are as many clients as max-clients allows",
            Pause::Exhausted => "the system is out of descriptors or memory",
            Pause::Drained => "the daemon is drained",
            Pause::Leaving => "the daemon is being restarted",
        })
    }
}

/// The gate: whether clients are being accepted.
#[derive(Debug)]
pub(crate) struct Gate {
    pub(crate) pause: Option<Pause>,
    /// Set while the system is out of a resource: when the pause ends, and how many clients had
    /// left when it began. A client that leaves frees a descriptor and ends it as well.
    exhausted: Option<(Instant, u64)>,
    said_at: Option<(Pause, Instant)>,
}

impl Gate {
    /// Creates a closed gate, as no worker is ready at the beginning.
    pub(crate) fn new() -> Gate {
        Gate {
            pause: Some(Pause::NoWorker),
            exhausted: None,
            said_at: None,
        }
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.exhausted.map(|(until, _)| until)
    }

    /// Ends the pause for lack of resources if it is over.
    fn relieve(&mut self, clients: &Clients, now: Instant) {
        self.exhausted
            .take_if(|(until, left)| *until <= now || clients.left() != *left);
    }
}

impl Master {
    /// Leases the clients without a worker, then those that wait in the queues of these listeners.
    pub(crate) fn lease_clients(&mut self, readable: &[u32], now: Instant) {
        if readable.is_empty() && self.clients.unleased.is_empty() {
            return;
        }
        self.lease_unleased();
        if self.listeners.gate.pause.is_none() && self.clients.unleased.is_empty() {
            let mut candidates = self.candidates(false);
            for listener in readable {
                self.accept(*listener, &mut candidates, now);
            }
        }
        self.flush_leases();
        self.watch_from(now);
    }

    fn candidates(&self, is_rescue: bool) -> Vec<Candidate> {
        let monotonic = clock::monotonic();
        self.ready_workers()
            .map(|worker| worker.candidate(is_rescue, monotonic))
            .collect()
    }

    /// Returns the workers that may be given clients.
    pub(crate) fn ready_workers(&self) -> impl Iterator<Item = &Worker> {
        self.workers.ready()
    }

    /// Leases clients whose worker is gone, or whose lease could not be sent, as far as there is
    /// capacity.
    fn lease_unleased(&mut self) {
        let mut has_asked = false;
        while !self.clients.unleased.is_empty() {
            let mut candidates = self.candidates(true);
            while let Some(unleased) = self.clients.unleased.pop_front() {
                let fitting = self.fitting(&unleased, &candidates);
                let meant = unleased.to.and_then(|to| {
                    fitting
                        .iter()
                        .position(|c| c.worker == to && c.has_capacity)
                });
                match meant.or_else(|| self.clients.dispatcher.pick(&fitting)) {
                    Some(index) => self.lease(index, unleased, &mut candidates, true),
                    None => {
                        self.clients.unleased.push_front(unleased);
                        break;
                    }
                }
            }
            // The remaining clients wait until a worker reports capacity. One more pass covers
            // capacity that became free before that report was requested.
            if has_asked || self.clients.unleased.is_empty() {
                return;
            }
            for worker in self.ready_workers() {
                let _ = worker.want_capacity();
            }
            has_asked = true;
        }
    }

    /// Returns the candidates as they apply to one client: a worker from before `max-frame` was
    /// raised may have no region for all the parked bytes. If no worker has one, and no new worker
    /// is being started, the client goes to any worker, where the lease fails.
    fn fitting<'c>(
        &self,
        unleased: &Unleased,
        candidates: &'c [Candidate],
    ) -> Cow<'c, [Candidate]> {
        let fits = |c: &Candidate| {
            self.workers.all[&c.worker]
                .shm
                .has_regions_for(&unleased.bytes)
        };
        if candidates.iter().all(fits)
            || !(candidates.iter().any(fits) || self.workers.pool.is_rolling())
        {
            return Cow::Borrowed(candidates);
        }
        Cow::Owned(
            candidates
                .iter()
                .map(|c| Candidate {
                    has_capacity: c.has_capacity && fits(c),
                    ..*c
                })
                .collect(),
        )
    }

    fn lease(
        &mut self,
        index: usize,
        unleased: Unleased,
        candidates: &mut [Candidate],
        is_rescue: bool,
    ) {
        let candidate = &mut candidates[index];
        let worker = self
            .workers
            .all
            .get_mut(&candidate.worker)
            .expect("only workers that there are have room");
        let leased = worker.leases.give(unleased, &worker.shm);
        // The share of time is kept: reading it needs the clock, and it does not change that fast.
        *candidate = Candidate {
            busy: candidate.busy,
            ..worker.candidate(is_rescue, 0)
        };
        if let Err((reason, client)) = leased {
            self.clients.lose(
                Loss::from_error(&reason),
                &reason,
                client,
                &mut self.telemetry,
            );
        }
    }

    /// Accepts the clients that wait at one listener, as far as there is capacity, and no more than
    /// one message of leases holds: until the leases are flushed, only the master has these
    /// clients. A listener that must close does so when its queue is empty.
    fn accept(&mut self, number: u32, candidates: &mut [Candidate], now: Instant) {
        let Some(index) = self
            .listeners
            .all
            .iter()
            .position(|listener| listener.number == number)
        else {
            return;
        };
        let looks = std::iter::once(Look::First).chain(std::iter::repeat(Look::Next));
        for look in looks.take(MAX_LEASES) {
            if self.clients.is_full() || !candidates.iter().any(|candidate| candidate.has_capacity)
            {
                return;
            }
            let listener = &mut self.listeners.all[index];
            let accepted = match accept(&*listener, look) {
                Ok(Offer::Client(accepted)) => accepted,
                Ok(Offer::Empty | Offer::Ended) if self.listeners.closing.contains(&number) => {
                    return self.close_listener(index);
                }
                Ok(Offer::Empty | Offer::Ended) => return,
                Err(e) => return self.cannot_accept(&e, now),
            };
            let Some(client) = self.admit(index, accepted) else {
                continue;
            };
            let chosen = self
                .clients
                .dispatcher
                .pick(candidates)
                .expect("one has room");
            self.lease(
                chosen,
                Unleased::new(client, clock::monotonic()),
                candidates,
                false,
            );
        }
    }

    /// Makes a client of a connection that a listener accepted. Returns `None` if the connection
    /// has already ended or was rejected.
    pub(crate) fn admit(&mut self, index: usize, accepted: Accepted) -> Option<Client> {
        let listener = &mut self.listeners.all[index];
        listener.accepted += 1;
        let (order, number) = (listener.byte_order, listener.number);
        let client = self
            .clients
            .admit(accepted, order, number, &mut self.telemetry)?;
        log::debug!(
            "client {} ({}) accepted on {}",
            client.id,
            client.peer,
            self.listeners.all[index].address
        );
        Some(client)
    }

    fn cannot_accept(&mut self, error: &io::Error, now: Instant) {
        self.listeners.gate.exhausted = Some((now + ACCEPT_PAUSE, self.clients.left()));
        self.say_pause(
            Pause::Exhausted,
            &format!("cannot accept clients: {error}; they wait until that is over"),
            now,
        );
    }

    /// Adds a new listener to the poller, armed or not as the gate requires.
    pub(crate) fn watch_listener(&self, listener: &Listener) -> io::Result<()> {
        let interest = if self.listeners.gate.pause.is_some() {
            Interest::End
        } else {
            Interest::Clients
        };
        self.poller
            .add(listener, Token::Listener(listener.number).into(), interest)
    }

    pub(crate) fn close_listener(&mut self, index: usize) {
        let listener = self.listeners.all.remove(index);
        let _ = self.poller.remove(&listener);
        self.listeners
            .closing
            .retain(|number| *number != listener.number);
        let sentence = format_args!("no longer listening on {}", listener.address);
        self.telemetry
            .events
            .note(Kind::ListenerClosed, About::default(), sentence);
        self.listeners.changed.push(listener.number);
    }

    /// Sends the leases made in this turn of the loop. The leases of a worker with a full channel
    /// are withdrawn.
    fn flush_leases(&mut self) {
        let mut back = Vec::new();
        for worker in self.workers.all.values_mut() {
            match worker.flush() {
                Ok(unsent) => back.extend(unsent),
                Err(e) => {
                    // The worker did not get these leases, whatever the cause. Its end will be
                    // reported like every other.
                    log::error!("{}: cannot send leases: {e}; killing it", worker.name());
                    worker.kill();
                }
            }
            worker.watch_channel(&self.poller);
        }
        // These clients did not reach a worker, so this is no move.
        for recovered in back {
            match recovered {
                Ok(unleased) => self.clients.unleased.push_back(unleased),
                Err((reason, client)) => self.clients.lose(
                    Loss::from_error(&reason),
                    &reason,
                    client,
                    &mut self.telemetry,
                ),
            }
        }
    }

    /// Opens or closes the gate, according to the state at the end of a turn of the loop.
    pub(crate) fn set_gate(&mut self, now: Instant) {
        self.listeners.gate.relieve(&self.clients, now);
        let pause = self.reason_to_pause();
        if pause == Some(Pause::Full) && self.listeners.gate.pause != pause {
            let sentence = format!(
                "{}, as many as there may be; new ones wait until some leave",
                Counted(self.clients.count(), "client")
            );
            self.say_pause(Pause::Full, &sentence, now);
        }
        if pause.is_some() != self.listeners.gate.pause.is_some() {
            for listener in self
                .listeners
                .all
                .iter()
                .filter(|listener| listener.outage.is_none())
            {
                let token = Token::Listener(listener.number).into();
                let interest = if pause.is_some() {
                    Interest::End
                } else {
                    Interest::Clients
                };
                if let Err(e) = self.poller.modify(listener, token, interest) {
                    log::error!("cannot watch {}: {e}", listener.address);
                }
            }
        }
        self.listeners.gate.pause = pause;
    }

    fn reason_to_pause(&self) -> Option<Pause> {
        if self.lifecycle.is_restarting() {
            return Some(Pause::Leaving);
        }
        if self.listeners.is_drained {
            return Some(Pause::Drained);
        }
        if self.ready_workers().next().is_none() {
            return Some(Pause::NoWorker);
        }
        if self.listeners.gate.exhausted.is_some() {
            return Some(Pause::Exhausted);
        }
        if self.clients.is_full() {
            return Some(Pause::Full);
        }
        if !self.clients.unleased.is_empty() || !self.has_room() {
            return Some(Pause::NoRoom);
        }
        None
    }

    /// Returns whether a worker has capacity. If none has, all workers are asked to report when
    /// they have.
    fn has_room(&self) -> bool {
        // The second pass does not use `any`: each worker must be asked.
        self.ready_workers().any(Worker::has_capacity)
            || self.ready_workers().filter(|w| w.want_capacity()).count() > 0
    }

    /// Reports why no client is accepted: once, and again only if it still applies, or applies
    /// again, after a while.
    fn say_pause(&mut self, pause: Pause, sentence: &str, now: Instant) {
        let said =
            self.listeners.gate.said_at.is_some_and(|(what, when)| {
                what == pause && now.duration_since(when) < LOG_INTERVAL
            });
        if !said {
            let about = About {
                clients: Some(self.clients.count()),
                ..About::default()
            };
            self.telemetry.events.note(Kind::Limit, about, sentence);
            self.listeners.gate.said_at = Some((pause, now));
        }
    }
}
