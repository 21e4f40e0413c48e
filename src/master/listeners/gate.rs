//! The gate: whether clients are being accepted, and why not.

use std::io;
use std::time::{Duration, Instant};

use crate::master::Token;
use crate::master::clients::Clients;
use crate::master::lifecycle::Lifecycle;
use crate::master::listeners::Listeners;
use crate::master::telemetry::Telemetry;
use crate::master::workers::Workers;
use crate::proto::control::{About, Kind, Pause};
use crate::sys::listening::ACCEPT_PAUSE;
use crate::sys::poll::{Interest, Poller};

/// The minimum time between two reports of the same reason for a pause.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// How long no client is accepted after the kernel has killed a worker for lack of memory.
const MEMORY_PAUSE: Duration = Duration::from_secs(1);

/// The gate: whether clients are being accepted.
#[derive(Debug)]
pub(crate) struct Gate {
    pub(crate) pause: Option<Pause>,
    /// Set while the system is out of a resource: when the pause ends, and how many clients had been removed when it
    /// began. A client that leaves frees a descriptor, so it also ends the pause.
    exhausted: Option<(Instant, u64)>,
    /// Set after the kernel has killed a worker for lack of memory: when the pause ends.
    without_memory: Option<Instant>,
    /// The reason that was reported last, and when.
    reported: Option<(Pause, Instant)>,
}

impl Gate {
    /// Creates a closed gate, as no worker is ready at the beginning.
    pub(crate) fn new() -> Gate {
        Gate {
            pause: Some(Pause::NoWorker),
            exhausted: None,
            without_memory: None,
            reported: None,
        }
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        let exhausted = self.exhausted.map(|(until, _)| until);
        exhausted.into_iter().chain(self.without_memory).min()
    }

    /// Returns whether clients may be accepted now. A pause for memory takes effect at once, any other at the next
    /// [`Listeners::set_gate`].
    pub(super) fn is_open(&self) -> bool {
        self.pause.is_none() && self.without_memory.is_none()
    }

    /// Returns whether the system is out of descriptors or memory, so that no client may be accepted: accepting a
    /// client has failed, or the kernel has killed a worker.
    pub(super) fn is_out_of_resources(&self) -> bool {
        self.exhausted.is_some() || self.without_memory.is_some()
    }

    /// Returns the events of a listener that the poller reports.
    pub(crate) fn interest(&self) -> Interest {
        if self.pause.is_some() {
            Interest::End
        } else {
            Interest::Clients
        }
    }

    /// Ends the pause for lack of resources if it is over.
    pub(super) fn relieve(&mut self, clients: &Clients, now: Instant) {
        self.exhausted
            .take_if(|(until, removed)| *until <= now || clients.removed() != *removed);
        self.without_memory.take_if(|until| *until <= now);
    }
}

impl Listeners {
    /// Opens or closes the gate, according to the state at the end of an iteration of the loop.
    pub(crate) fn set_gate(
        &mut self,
        lifecycle: Lifecycle,
        workers: &Workers,
        clients: &Clients,
        telemetry: &mut Telemetry,
        poller: &Poller,
        now: Instant,
    ) {
        self.gate.relieve(clients, now);
        let pause = self.reason_to_pause(lifecycle, workers, clients);
        if pause == Some(Pause::Full) && self.gate.pause != pause {
            let sentence = format!(
                "max-clients ({}) is reached; new clients wait until one leaves",
                clients.max
            );
            self.report_pause(Pause::Full, &sentence, clients, telemetry, now);
        }
        let has_changed = pause.is_some() != self.gate.pause.is_some();
        self.gate.pause = pause;
        if !has_changed {
            return;
        }
        let interest = self.gate.interest();
        for listener in self.all.iter().filter(|listener| listener.is_watched()) {
            let token = Token::Listener(listener.number).into();
            if let Err(e) = poller.modify(listener, token, interest) {
                log::error!("cannot watch {}: {e}", listener.address);
            }
        }
    }

    fn reason_to_pause(
        &self,
        lifecycle: Lifecycle,
        workers: &Workers,
        clients: &Clients,
    ) -> Option<Pause> {
        if lifecycle.is_restarting() {
            Some(Pause::Restarting)
        } else if self.is_drained() {
            Some(Pause::Drained)
        } else if workers.pool.serving() == 0 {
            Some(Pause::NoWorker)
        } else if self.gate.is_out_of_resources() {
            Some(Pause::Exhausted)
        } else if clients.is_full() {
            Some(Pause::Full)
        } else if !workers.have_capacity(clients.dispatcher.awaited()) {
            Some(Pause::NoCapacity)
        } else {
            None
        }
    }

    /// Pauses because the kernel has killed a worker for lack of memory. Each accepted client takes memory of the
    /// kernel. While all workers are dying, the kernel could only kill the master to get more.
    pub(crate) fn pause_for_memory(&mut self, now: Instant) {
        self.gate.without_memory = Some(now + MEMORY_PAUSE);
    }

    /// Pauses because the system is out of descriptors or memory.
    pub(super) fn pause_exhausted(
        &mut self,
        error: &io::Error,
        clients: &Clients,
        telemetry: &mut Telemetry,
        now: Instant,
    ) {
        self.gate.exhausted = Some((now + ACCEPT_PAUSE, clients.removed()));
        let sentence = format!("cannot accept clients: {error}; they wait until that is over");
        self.report_pause(Pause::Exhausted, &sentence, clients, telemetry, now);
    }

    /// Reports why no client is accepted, at most once a minute for the same reason.
    fn report_pause(
        &mut self,
        pause: Pause,
        sentence: &str,
        clients: &Clients,
        telemetry: &mut Telemetry,
        now: Instant,
    ) {
        let is_reported = self
            .gate
            .reported
            .is_some_and(|(what, at)| what == pause && now.duration_since(at) < LOG_INTERVAL);
        if !is_reported {
            let about = About {
                clients: Some(clients.count()),
                ..About::default()
            };
            telemetry.events.note(Kind::Limit, about, sentence);
            self.gate.reported = Some((pause, now));
        }
    }
}
