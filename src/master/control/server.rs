//! Serves control clients: each request gets one reply, from the master's own tables.
//!
//! No control client can make the master wait: received and unread bytes are bounded and have a deadline, and of each
//! client one request is answered in an iteration of the loop.

use std::collections::BTreeMap;
use std::iter;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use crate::loop_clock::Shortage;
use crate::master::Token;
use crate::master::control::access::{ControlPeer, Role, Roles};
use crate::master::control::connection::{ControlClient, ControlSnapshot, Over};
use crate::master::control::pending::{PendingKind, PendingReply};
use crate::master::control::refusals::{REFUSAL_LOG_INTERVAL, Refusals};
use crate::master::control::reply::ControlReply;
use crate::master::control::request::{Answer, ControlRequest};
use crate::master::listeners::control_listener::{CONTROL_BACKLOG, ControlListener};
use crate::master::telemetry::events::EventLog;
use crate::proto::control::{REQUEST_TIMEOUT, Refusal, RefusalCode};
use crate::sys::listening::{ACCEPT_PAUSE, AcceptResult, AcceptTry, accept};
use crate::sys::poll::{Interest, PollEvent, Poller};

/// Number of control connections that are reserved for clients that may change the daemon.
pub(crate) const RESERVED_FOR_ADMINS: usize = 8;

/// Most control clients of one user that may only look.
const MAX_READERS_PER_USER: usize = 8;

/// All control clients.
#[derive(Debug)]
pub(crate) struct ControlClients {
    clients: BTreeMap<u64, ControlClient>,
    next: u64,
    max: usize,
    pub(crate) roles: Roles,
    /// No control client is accepted until then.
    paused_until: Option<Instant>,
    /// When the log last reported a rejected peer.
    logged_rejection: Option<Instant>,
    /// The number of the client that was served last.
    last_served: u64,
    refusals: Refusals,
    /// The wait for memory of the kernel to serve some of them.
    shortage: Shortage<Instant>,
}

impl ControlClients {
    /// Creates an empty set of at most `max` control clients.
    pub(crate) fn new(max: usize, roles: Roles) -> ControlClients {
        ControlClients {
            clients: BTreeMap::new(),
            next: 0,
            max,
            roles,
            paused_until: None,
            logged_rejection: None,
            last_served: 0,
            refusals: Refusals::default(),
            shortage: Shortage::default(),
        }
    }

    /// Returns when the next deadline of a client expires.
    pub(crate) fn deadline(&self, now: Instant) -> Option<Instant> {
        let deadlines = self
            .clients
            .values()
            .filter_map(|client| match client.pending {
                Some(PendingKind::Event { until, .. }) => Some(until),
                _ => client.deadline,
            });
        let has_shortage = self.clients.values().any(|client| client.is_refused);
        let retry = has_shortage.then(|| self.shortage.until().unwrap_or(now));
        deadlines.chain(self.paused_until).chain(retry).min()
    }

    /// Accepts the control clients that want to connect.
    pub(crate) fn accept(&mut self, listener: &ControlListener, poller: &Poller, now: Instant) {
        // The loop accepts no more in an iteration than can wait, however fast clients reconnect.
        let attempts = iter::once(AcceptTry::First).chain(iter::repeat(AcceptTry::Later));
        for attempt in attempts.take(CONTROL_BACKLOG as usize + 1) {
            let socket = match accept(listener, attempt) {
                Ok(AcceptResult::Client(accepted)) => accepted.socket,
                Ok(AcceptResult::Empty | AcceptResult::Ended) => return,
                Err(e) => {
                    log::warn!("cannot accept control clients: {e}");
                    self.paused_until = Some(now + ACCEPT_PAUSE);
                    let _ = poller.modify(listener, Token::Control.into(), Interest::End);
                    return;
                }
            };
            let Ok(peer) = ControlPeer::from_socket(&socket) else {
                continue;
            };
            let mut client = ControlClient::new(socket, peer, now);
            if let Err(refusal) = self.admit(&client.peer, now) {
                // The reply fits into an empty socket buffer; a peer that does not read it loses nothing else.
                let _ = client.reply(&Err(refusal));
                continue;
            }
            self.add(client, poller);
        }
    }

    /// Checks whether a peer is admitted. A peer without a role takes up no place.
    fn admit(&mut self, peer: &ControlPeer, now: Instant) -> Result<(), Refusal> {
        if let Err(refusal) = self.roles.check(Role::Reader, peer) {
            if self
                .logged_rejection
                .is_none_or(|logged| now >= logged + REFUSAL_LOG_INTERVAL)
            {
                self.logged_rejection = Some(now);
                log::warn!("{peer} rejected at the control socket: {}", refusal.message);
            }
            return Err(refusal);
        }
        if !self.has_room_for(peer) {
            return Err(Refusal::new(
                RefusalCode::Busy,
                "there are too many control clients",
            ));
        }
        Ok(())
    }

    fn has_room_for(&self, peer: &ControlPeer) -> bool {
        let is_admin = |peer: &ControlPeer| self.roles.of(peer) == Role::Admin;
        if self.clients.len() >= self.max || is_admin(peer) {
            return self.clients.len() < self.max;
        }
        let others = self
            .clients
            .values()
            .filter(|client| !is_admin(&client.peer));
        let same = others
            .clone()
            .filter(|client| client.peer.credentials.uid == peer.credentials.uid)
            .count();
        others.count() < self.max.saturating_sub(RESERVED_FOR_ADMINS).max(1)
            && same < MAX_READERS_PER_USER
    }

    /// Closes the clients whose deadline has passed. A client whose request is incomplete gets an error reply.
    pub(crate) fn expire(&mut self, listener: &ControlListener, poller: &Poller, now: Instant) {
        if self.paused_until.is_some_and(|until| until <= now) {
            self.paused_until = None;
            let _ = poller.modify(listener, Token::Control.into(), Interest::Clients);
        }
        self.retry(poller, now);
        let is_late =
            |client: &ControlClient| client.deadline.is_some_and(|deadline| deadline <= now);
        let late: Vec<u64> = self
            .clients
            .iter()
            .filter(|(_, client)| is_late(client))
            .map(|(number, _)| *number)
            .collect();
        for mut client in late
            .iter()
            .filter_map(|number| self.clients.remove(number))
            .collect::<Vec<_>>()
        {
            let _ = poller.remove(&client.socket);
            if client.has_begun() {
                let sentence = "the request did not arrive in time";
                let _ = client.reply(&Err(Refusal::new(RefusalCode::Timeout, sentence)));
            }
        }
    }

    /// Tries again what the kernel has had no memory for, if it is time.
    fn retry(&mut self, poller: &Poller, now: Instant) {
        let refused = self.clients.iter().filter(|(_, client)| client.is_refused);
        let refused: Vec<u64> = refused.map(|(number, _)| *number).collect();
        if refused.is_empty() {
            self.shortage.end();
        } else if self.shortage.end_if_over(now) {
            for number in refused {
                if let Some(client) = self.clients.get_mut(&number) {
                    client.is_refused = false;
                }
                self.watch(number, Ok(()), poller);
            }
        } else if self.shortage.until().is_none() {
            self.shortage.begin(|wait| now + wait);
        }
    }

    /// Returns the events of control clients in the order in which they are served: beginning with the one after the
    /// client that was served last.
    pub(crate) fn order<'e>(&self, events: &'e [PollEvent]) -> Vec<(u64, &'e PollEvent)> {
        let ready = events
            .iter()
            .filter_map(|event| match Token::from_number(event.token) {
                Some(Token::ControlClient(number)) => Some((number, event)),
                _ => None,
            });
        let (mut after, before): (Vec<_>, Vec<_>) =
            ready.partition(|(number, _)| *number > self.last_served);
        after.extend(before);
        after
    }

    /// Handles an event on a client's socket. Returns the request that must be executed now.
    pub(crate) fn receive(
        &mut self,
        number: u64,
        event: &PollEvent,
        poller: &Poller,
        now: Instant,
    ) -> Option<ControlRequest> {
        self.last_served = number;
        let client = self.clients.get_mut(&number)?;
        // The event is its hang-up: for lack of memory, it is not read now.
        if client.is_refused {
            return None;
        }
        let body = match client.receive(event) {
            Ok(Some(body)) => body,
            Ok(None) => {
                self.watch(number, Ok(()), poller);
                return None;
            }
            Err(over) => {
                self.watch(number, Err(over), poller);
                return None;
            }
        };
        // A reload may have taken the client's access away.
        client.is_last |= self.roles.of(&client.peer) == Role::Forbidden;
        let peer = client.peer.clone();
        match body.and_then(|body| ControlRequest::parse(number, peer, &body)) {
            Ok(request) => Some(request),
            Err(refusal) => {
                self.complete(number, &Err(refusal), poller, now);
                None
            }
        }
    }

    /// Checks whether a request is permitted.
    ///
    /// # Errors
    /// As [`Roles::check`].
    pub(crate) fn permit(&self, request: &ControlRequest) -> Result<(), Refusal> {
        let needed = if request.changes() {
            Role::Admin
        } else {
            Role::Reader
        };
        self.roles.check(needed, &request.peer)
    }

    /// Checks whether a client whose reply was pending is still permitted to get it.
    ///
    /// # Errors
    /// As [`Roles::check`].
    pub(crate) fn permit_events(&self, number: u64) -> Result<(), Refusal> {
        self.clients.get(&number).map_or(Ok(()), |client| {
            self.roles.check(Role::Reader, &client.peer)
        })
    }

    /// Sends the reply to a request, or makes the client wait for it. Refusals are reported.
    pub(crate) fn answer(
        &mut self,
        request: &ControlRequest,
        answer: Result<Answer, Refusal>,
        poller: &Poller,
        events: &mut EventLog,
        now: Instant,
    ) {
        let result = match answer {
            Ok(Answer::Reply(reply)) => Ok(reply),
            Ok(Answer::Pending(kind)) => {
                if let Some(client) = self.clients.get_mut(&request.client) {
                    (client.pending, client.deadline) = (Some(kind), None);
                }
                return self.watch(request.client, Ok(()), poller);
            }
            Err(refusal) => {
                self.refusals.report(request, &refusal, events, now);
                Err(refusal)
            }
        };
        self.complete(request.client, &result, poller, now);
    }

    /// Returns the requests whose replies are pending.
    pub(crate) fn pending(&self) -> Vec<PendingReply> {
        let pending = |(client, kind): (&u64, &ControlClient)| {
            Some(PendingReply {
                client: *client,
                kind: kind.pending.clone()?,
            })
        };
        self.clients.iter().filter_map(pending).collect()
    }

    /// Sets the result of all pending requests that wait for it. It is sent at the end of the loop's iteration.
    pub(crate) fn resolve(
        &mut self,
        waits_for_it: impl Fn(&PendingKind) -> bool,
        result: &Result<ControlReply, Refusal>,
    ) {
        self.replace_pending(waits_for_it, &PendingKind::Known(result.clone()));
    }

    /// Replaces the conditions of pending replies that `waits_for_it` selects by another one.
    pub(crate) fn replace_pending(
        &mut self,
        waits_for_it: impl Fn(&PendingKind) -> bool,
        pending: &PendingKind,
    ) {
        for client in self.clients.values_mut() {
            if client.pending.as_ref().is_some_and(&waits_for_it) {
                client.pending = Some(pending.clone());
            }
        }
    }

    /// Sends the reply to a client's request. Its next request is handled in the next iteration.
    pub(crate) fn complete(
        &mut self,
        number: u64,
        result: &Result<ControlReply, Refusal>,
        poller: &Poller,
        now: Instant,
    ) {
        let Some(client) = self.clients.get_mut(&number) else {
            return;
        };
        (client.pending, client.deadline) = (None, Some(now + REQUEST_TIMEOUT));
        let sent = client.reply(result);
        self.watch(number, sent, poller);
    }

    /// Watches a client for what it needs now, or closes it.
    fn watch(&mut self, number: u64, outcome: Result<(), Over>, poller: &Poller) {
        let Some(client) = self.clients.get(&number) else {
            return;
        };
        if outcome.is_err() || client.is_done() {
            let _ = poller.remove(&client.socket);
            self.clients.remove(&number);
            return;
        }
        let token = Token::ControlClient(number).into();
        let interest = client.interest().unwrap_or(Interest::HangUp);
        let _ = poller.modify(&client.socket, token, interest);
    }

    /// Returns the clients that stay while this process becomes another program: those that asked for the upgrade, and
    /// those in the middle of a request. Other clients wait for results that the new program cannot give them.
    fn staying(&self) -> impl Iterator<Item = &ControlClient> {
        self.clients.values().filter(|client| {
            matches!(client.pending, None | Some(PendingKind::Upgraded)) && !client.is_last
        })
    }

    /// Returns the sockets of the clients that stay.
    pub(crate) fn sockets(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.staying().map(|client| client.socket.as_fd())
    }

    /// Returns the snapshot of the clients that stay.
    pub(crate) fn snapshot(&self) -> Vec<ControlSnapshot> {
        self.staying().map(ControlClient::snapshot).collect()
    }

    /// Adopts the clients from before this process became this program.
    pub(crate) fn adopt(
        &mut self,
        clients: Vec<(OwnedFd, ControlSnapshot)>,
        poller: &Poller,
        now: Instant,
    ) {
        for (socket, snapshot) in clients {
            if let Ok(peer) = ControlPeer::from_socket(&socket) {
                let client = ControlClient::from_snapshot(socket, peer, snapshot, now);
                self.add(client, poller);
            }
        }
    }

    /// Adds a client, and watches it.
    fn add(&mut self, client: ControlClient, poller: &Poller) {
        let number = self.next;
        self.next += 1;
        let interest = client.interest().unwrap_or(Interest::Read);
        let token = Token::ControlClient(number).into();
        if poller.add(&client.socket, token, interest).is_ok() {
            self.clients.insert(number, client);
        }
    }
}
