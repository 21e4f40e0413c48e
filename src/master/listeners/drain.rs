//! The drain: an operator takes the daemon out of service, until `undrain`.
//!
//! ```text
//!   none ── drain ──▶ notice ── its end ──▶ drained      clients that are connected are served throughout
//!     ▲                  │                     │
//!     ╰───── undrain ────┴─────────────────────╯
//! ```
//!
//! During the notice new clients are served as well, and `/readyz` is 503, so that a load balancer sends no more of
//! them. Then the daemon refuses them, or leaves them in the queues of the listeners ([`DrainMode`]).
//!
//! The state is [`Listeners::drain`]. It is in the state file and in the upgrade snapshot, so the next master does not
//! listen, and does not mistake a refusing listener for one that another process has shut down. Each listener follows
//! the state in each iteration of the loop ([`Listeners::follow_drain`]); its own part is
//! [`Admission`](crate::master::listeners::listener::refusal::Admission).

pub(crate) mod state;

use std::fmt::Write;
use std::time::{Duration, Instant};

use crate::master::clients::Clients;
use crate::master::clients::client::Unleased;
use crate::master::lifecycle::Lifecycle;
use crate::master::listeners::Listeners;
use crate::master::listeners::drain::state::{ClientMoves, DrainState};
use crate::master::listeners::listener::Listener;
use crate::master::listeners::listener::refusal::Admission;
use crate::master::listeners::served::Served;
use crate::master::retry::Outage;
use crate::master::telemetry::Telemetry;
use crate::proto::channel::MAX_LEASES;
use crate::proto::control::{About, DrainMode, DrainStatus, Kind, Refusal, RefusalCode};
use crate::proto::text::Counted;
use crate::sys::clock;
use crate::sys::listening::{self, AcceptResult, AcceptTry, Accepted};
use crate::sys::poll::Poller;

impl Listeners {
    /// Returns whether the drain is in force, so its notice is over.
    pub(crate) fn is_drained(&self) -> bool {
        self.drain.is_some_and(DrainState::is_in_force)
    }

    /// Returns whether the listeners that the daemon has bound refuse clients.
    pub(crate) fn refuse_clients(&self) -> bool {
        self.drain.is_some_and(DrainState::refuses)
    }

    /// Returns whether each listener has followed the drain.
    pub(crate) fn have_followed_drain(&self) -> bool {
        !self.all.iter().any(Listener::is_emptying)
    }

    /// Begins a drain, or changes the terms of the one that is under way. Terms that are not given stay as they are;
    /// a new drain refuses clients after the `default` notice.
    ///
    /// # Errors
    /// `Refused` when it is too late for a notice.
    pub(crate) fn begin_drain(
        &mut self,
        mode: Option<DrainMode>,
        (notice, default): (Option<Duration>, Duration),
        over: Option<Duration>,
        now: Instant,
    ) -> Result<DrainState, Refusal> {
        let until = |notice: Duration| Some(now + notice).filter(|until| *until > now);
        let notice_until = match (self.drain, notice) {
            (Some(drain), Some(notice)) if drain.is_in_force() && !notice.is_zero() => {
                let why = "the daemon is already drained, so it is too late for a notice; \"undrain\" accepts clients again";
                return Err(Refusal::new(RefusalCode::Refused, why));
            }
            (Some(drain), None) => drain.notice_until,
            (_, notice) => until(notice.unwrap_or(default)),
        };
        let before = self.drain.map(|drain| drain.mode);
        let since = Some(now).filter(|_| notice_until.is_none());
        let moves = over.map(|over| ClientMoves { over, since });
        let moves_before = self.drain.and_then(|drain| drain.moves);
        let drain = DrainState {
            mode: mode.or(before).unwrap_or_default(),
            notice_until,
            moves: moves.or(moves_before.map(|moves| moves.from(since))),
        };
        self.drain = Some(drain);
        Ok(drain)
    }

    /// Returns the drain for the status.
    pub(crate) fn drain_status(&self, now: Instant) -> Option<DrainStatus> {
        let drain = self.drain?;
        Some(DrainStatus {
            mode: drain.mode,
            notice: drain.notice_left(now).map(|left| left.as_secs_f64()),
            over: drain.moves_left(now).map(|left| left.as_secs_f64()),
        })
    }

    /// Returns the period over which clients get a goaway, and the share of it that has passed; `None` if it has
    /// not begun.
    pub(crate) fn moves_in_force(&self, now: Instant) -> Option<(Duration, f64)> {
        let drain = self.drain.filter(|drain| drain.is_in_force())?;
        let over = drain.moves?.over;
        let left = drain.moves_left(now)?;
        if left.is_zero() {
            return Some((over, 1.0));
        }
        Some((over, 1.0 - left.as_secs_f64() / over.as_secs_f64()))
    }

    /// Returns the addresses of the listeners that cannot refuse clients although the others do: other processes hold
    /// sockets that systemd has bound, and a Unix socket among them could not be bound again.
    pub(crate) fn waiting_at(&self, mode: DrainMode) -> Vec<String> {
        let all = self.all.iter().filter(|_| mode == DrainMode::Refuse);
        let activated = all.filter(|listener| !listener.can_refuse());
        activated
            .map(|listener| listener.address.to_string())
            .collect()
    }

    /// Describes what happens to new clients in a drain of this mode, and how many are connected.
    pub(crate) fn describe_drained(&self, mode: DrainMode, clients: &Clients) -> String {
        let mut sentence = match mode {
            DrainMode::Refuse => "new clients are refused",
            DrainMode::Queue => "new clients are not accepted",
        }
        .to_owned();
        let connected = Counted(clients.count(), "client");
        // Writing into a String cannot fail.
        let _ = write!(sentence, "; {connected} connected");
        if let Some(ClientMoves { over, .. }) = self.drain.and_then(|drain| drain.moves) {
            sentence.push_str("; those that want a goaway get it");
            if !over.is_zero() {
                let _ = write!(sentence, " within {over:?}");
            }
        }
        let waiting = self.waiting_at(mode);
        if !waiting.is_empty() {
            let _ = write!(
                sentence,
                "; new clients wait at {}, because systemd has bound the socket",
                waiting.join(", ")
            );
        }
        sentence
    }

    /// Returns when [`Listeners::follow_drain`] has something to do.
    pub(super) fn drain_deadline(&self, lifecycle: Lifecycle, now: Instant) -> Option<Instant> {
        let is_running = !lifecycle.is_ending();
        let refuses = self.refuse_clients();
        let is_behind = |listener: &Listener| match listener.admission {
            Admission::Open => is_running && refuses && listener.can_refuse(),
            // Until the system has descriptors or memory again, nothing is accepted.
            Admission::Emptying(_) => !self.gate.is_out_of_resources(),
            Admission::Refusing { .. } => is_running && !refuses,
        };
        let notice = self.drain.and_then(|drain| drain.notice_until);
        let behind = self.all.iter().any(is_behind).then_some(now);
        notice
            .filter(|_| is_running)
            .into_iter()
            .chain(behind)
            .min()
    }

    /// Ends the notice if it is over, and has each listener that the daemon has bound begin to refuse clients, or
    /// listen again. Before a listener refuses clients, those in its queue are accepted: in an iteration at most as
    /// many as one message of leases holds. They are leased in the same iteration, or packed for the next master.
    pub(crate) fn follow_drain(
        &mut self,
        lifecycle: Lifecycle,
        keepalive: Option<Duration>,
        (clients, telemetry): (&mut Clients, &mut Telemetry),
        poller: &Poller,
        now: Instant,
    ) {
        // The next master ends the notice, and listens again.
        let is_running = !lifecycle.is_ending();
        if is_running {
            self.end_notice(clients, telemetry, now);
        }
        let refuses = self.refuse_clients();
        if is_running && refuses {
            self.begin_refusals(poller);
        } else if is_running {
            // The drain has ended before their queues were empty.
            let listens = |listener: &Listener| listener.is_emptying() && listener.is_open();
            self.reopen_where(listens, keepalive, poller, now);
        }
        self.refuse_at_emptied((&mut *clients, &mut *telemetry), now);
        self.close_refusing(telemetry, poller);
        if is_running && !refuses {
            self.reopen_where(Listener::is_refusing, keepalive, poller, now);
        }
    }

    /// Accepts the clients in the queues of listeners that begin to refuse. Those whose queue is empty refuse from now on.
    fn refuse_at_emptied(
        &mut self,
        (clients, telemetry): (&mut Clients, &mut Telemetry),
        now: Instant,
    ) {
        let mut most = MAX_LEASES;
        for index in 0..self.all.len() {
            let context = (&mut *clients, &mut *telemetry);
            if self.all[index].is_emptying() && self.empty_queue(index, &mut most, context, now) {
                self.refuse(index, &mut most, (&mut *clients, &mut *telemetry), now);
            }
        }
    }

    /// Closes the listeners that refuse clients and that the configuration no longer has.
    fn close_refusing(&mut self, telemetry: &mut Telemetry, poller: &Poller) {
        while let Some(index) = self
            .all
            .iter()
            .position(|listener| listener.is_refusing() && self.closing.contains(&listener.number))
        {
            self.close(index, telemetry, poller);
        }
    }

    /// Ends the notice if it is over.
    fn end_notice(&mut self, clients: &Clients, telemetry: &mut Telemetry, now: Instant) {
        let is_over =
            |drain: &&mut DrainState| drain.notice_until.is_some_and(|until| until <= now);
        let Some(drain) = self.drain.as_mut().filter(is_over) else {
            return;
        };
        drain.notice_until = None;
        drain.moves = drain.moves.map(|moves| moves.from(Some(now)));
        let mode = drain.mode;
        let about = About {
            clients: Some(clients.count()),
            ..About::default()
        };
        let drained = self.describe_drained(mode, clients);
        let sentence = format_args!("the notice is over: {drained}");
        telemetry.events.note(Kind::Drained, about, sentence);
    }

    /// Accepts clients that wait at a listener, at most `most`. Returns whether none waits any more, or no more can be
    /// accepted.
    fn empty_queue(
        &mut self,
        index: usize,
        most: &mut usize,
        (clients, telemetry): (&mut Clients, &mut Telemetry),
        now: Instant,
    ) -> bool {
        while let Admission::Emptying(left) = self.all[index].admission {
            if self.gate.is_out_of_resources() {
                return false;
            }
            if clients.is_full() {
                return true;
            }
            if *most == 0 {
                return false;
            }
            if left == 0 {
                return true;
            }
            match listening::accept(&self.all[index], AcceptTry::Later) {
                Ok(AcceptResult::Client(accepted)) => {
                    *most -= 1;
                    self.all[index].admission = Admission::Emptying(left - 1);
                    self.admit_unleased(index, accepted, clients, telemetry);
                }
                Ok(AcceptResult::Empty | AcceptResult::Ended) => return true,
                Err(e) => self.pause_exhausted(&e, clients, telemetry, now),
            }
        }
        true
    }

    /// Has a listener refuse clients. Those that have come since its queue was empty are accepted first, or closed if
    /// `max-clients` is reached. After `most` clients, or without descriptors, the rest follows in another iteration:
    /// clients that are left in the queue of a Unix socket would wait until `undrain`.
    fn refuse(
        &mut self,
        index: usize,
        most: &mut usize,
        (clients, telemetry): (&mut Clients, &mut Telemetry),
        now: Instant,
    ) {
        let mut closed = 0_u32;
        for _ in 0..self.all[index].most_waiting() {
            if *most == 0 && !clients.is_full() {
                return self.report_closed(index, closed, clients, telemetry);
            }
            let accepted = match listening::accept(&self.all[index], AcceptTry::Later) {
                Ok(AcceptResult::Client(accepted)) => accepted,
                Ok(AcceptResult::Empty | AcceptResult::Ended) => break,
                Err(e) => {
                    self.report_closed(index, closed, clients, telemetry);
                    return self.pause_exhausted(&e, clients, telemetry, now);
                }
            };
            if clients.is_full() {
                closed += 1;
                continue;
            }
            *most -= 1;
            self.admit_unleased(index, accepted, clients, telemetry);
        }
        let listener = &mut self.all[index];
        listener.refuse();
        if !listener.is_storable() {
            self.changed.push(listener.number);
        }
        self.report_closed(index, closed, clients, telemetry);
    }

    /// Reports that clients that waited at a listener are closed, if there are some.
    pub(super) fn report_closed(
        &self,
        index: usize,
        closed: u32,
        clients: &Clients,
        telemetry: &mut Telemetry,
    ) {
        if closed > 0 {
            let about = About {
                clients: Some(clients.count()),
                ..About::default()
            };
            let sentence = format_args!(
                "{} waited at {} and could not be accepted: closed",
                Counted(closed, "client"),
                self.all[index].address
            );
            telemetry.events.note(Kind::Limit, about, sentence);
        }
    }

    /// Makes a client of a connection, which waits for a worker.
    pub(super) fn admit_unleased(
        &mut self,
        index: usize,
        accepted: Accepted,
        clients: &mut Clients,
        telemetry: &mut Telemetry,
    ) {
        if let Some(client) = self.admit(index, accepted, clients, telemetry) {
            let unleased = Unleased::new(client, clock::monotonic());
            clients.unleased.push_back(unleased);
        }
    }

    /// Removes the listeners that the daemon has bound from the poller, and has them begin to refuse clients.
    fn begin_refusals(&mut self, poller: &Poller) {
        let open = |listener: &&mut Listener| {
            listener.admission == Admission::Open && listener.can_refuse()
        };
        for listener in self.all.iter_mut().filter(open) {
            let _ = poller.remove(&*listener);
            listener.begin_refusal();
        }
    }

    /// Has listeners listen again. One that cannot has an outage.
    fn reopen_where(
        &mut self,
        is_wanted: impl Fn(&Listener) -> bool,
        keepalive: Option<Duration>,
        poller: &Poller,
        now: Instant,
    ) {
        let interest = self.gate.interest();
        for listener in self.all.iter_mut().filter(|listener| is_wanted(listener)) {
            let was_stored = listener.is_storable();
            match listener.listen_again(&mut self.activated, keepalive) {
                Ok(is_same) if is_same && was_stored => {}
                Ok(_) => self.changed.push(listener.number),
                Err(e) => listener.outage = Some(Outage::from_error(&e, now)),
            }
            listener.watch(interest, poller, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, TcpStream};

    use super::*;
    use crate::config::{Config, Listen};
    use crate::master::ActivatedSockets;
    use crate::master::listeners::gate::Gate;
    use crate::proto::names::Address;
    use crate::shm::Layout;

    /// Returns a listener that begins to refuse clients, and its address.
    fn emptying() -> (Listeners, SocketAddr) {
        let activated = ActivatedSockets::default();
        let entries = [Listen::new("127.0.0.1:0".parse().expect("an address"))];
        let wanted = activated
            .wanted(&entries)
            .expect("it is not a socket of systemd");
        let mut listener =
            Listener::open(1, &wanted[0], &activated, None, false).expect("a free port");
        let Address::Tcp(address) = listener.address else {
            panic!("a TCP address")
        };
        listener.begin_refusal();
        let listeners = Listeners {
            activated,
            all: vec![listener],
            closing: Vec::new(),
            changed: Vec::new(),
            last_number: 1,
            last_served: 0,
            gate: Gate::new(),
            drain: None,
        };
        (listeners, address)
    }

    #[test]
    fn a_client_that_comes_at_the_last_moment_is_accepted() {
        let (mut listeners, address) = emptying();
        let mut clients = Clients::new(&Config::default(), 1, Layout::new(4, 4096));
        let mut telemetry = Telemetry::new();
        let [_first, _second] = [(); 2].map(|()| TcpStream::connect(address).expect("it listens"));
        let mut most = 2;
        listeners.refuse(0, &mut most, (&mut clients, &mut telemetry), Instant::now());
        assert!(listeners.all[0].is_refusing());
        // The second one is above `max-clients`.
        assert_eq!((clients.count(), clients.unleased.len(), most), (1, 1, 1));
        assert_eq!(listeners.all[0].accepted, 1);
    }

    #[test]
    fn a_client_above_the_most_of_an_iteration_is_accepted_later() {
        let (mut listeners, address) = emptying();
        let mut clients = Clients::new(&Config::default(), 9, Layout::new(4, 4096));
        let mut telemetry = Telemetry::new();
        let _all = [(); 3].map(|()| TcpStream::connect(address).expect("it listens"));
        for (count, is_refusing) in [(2, false), (3, true)] {
            let context = (&mut clients, &mut telemetry);
            listeners.refuse(0, &mut 2, context, Instant::now());
            assert_eq!(listeners.all[0].is_refusing(), is_refusing);
            assert_eq!(clients.count(), count);
        }
        listeners.all[0].admission = Admission::Emptying(0);
        let context = (&mut clients, &mut telemetry);
        let is_empty = listeners.empty_queue(0, &mut 0, context, Instant::now());
        assert!(!is_empty, "no more can be accepted in this iteration");
    }

    #[test]
    fn no_client_is_accepted_after_the_kernel_has_killed_a_worker() {
        let (mut listeners, address) = emptying();
        let mut clients = Clients::new(&Config::default(), 1, Layout::new(4, 4096));
        let mut telemetry = Telemetry::new();
        let _waiting = TcpStream::connect(address).expect("it listens");
        let now = Instant::now();
        listeners.pause_for_memory(now);
        let end = listeners.gate.deadline().expect("it ends");
        for (now, count) in [(now, 0), (end, 1)] {
            listeners.gate.relieve(&clients, now);
            let context = (&mut clients, &mut telemetry);
            let is_empty = listeners.empty_queue(0, &mut 2, context, now);
            assert_eq!((is_empty, clients.count()), (count == 1, count));
        }
    }
}
