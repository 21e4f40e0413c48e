//! Serves control clients: each request gets one reply, from the master's own tables.
//!
//! No control client can make the master wait: received and unread bytes are bounded and have a
//! deadline, and of each client one request is answered in a turn of the loop.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};
use std::{io, iter};

use serde::{Deserialize, Serialize};

use crate::master::control::access::{ControlPeer, Role, Roles};
use crate::master::control::pending::Waits;
use crate::master::listeners::control_listener::{CONTROL_BACKLOG, ControlListener};
use crate::master::{Master, Token};
use crate::proto::control::{
    MAX_REQUEST, REQUEST_TIMEOUT, Refusal, RefusalCode, Reloaded, Stopped, Verb,
};
use crate::proto::frame::{self, ByteOrder, Next, PREFIX};
use crate::proto::rpc;
use crate::sys::listening::{ACCEPT_PAUSE, Look, Offer, accept};
use crate::sys::passed::{ClientSocket, Passed};
use crate::sys::poll::{Interest, PollEvent, Poller};
use crate::sys::socket::{self, Moved};

/// Number of control connections that are reserved for clients that may change things.
pub(crate) const RESERVED_FOR_ADMINS: usize = 8;

/// Most control clients of one user that may only look.
const MAX_READERS_PER_USER: usize = 8;

/// Time in which requests are answered in a turn of the loop. Many slow requests delay clients by
/// no more than this and one request.
const CONTROL_BUDGET: Duration = Duration::from_millis(5);

/// Least time between two log lines about rejected peers: any process that can connect could fill
/// the log.
const REFUSAL_LOG_INTERVAL: Duration = Duration::from_secs(1);

/// Most forbidden requests that are reported in a row.
const MAX_REFUSALS: u32 = 16;

/// All control clients.
#[derive(Debug)]
pub(crate) struct ControlClients {
    clients: BTreeMap<u64, ControlClient>,
    next: u64,
    most: usize,
    pub(crate) roles: Roles,
    /// No control client is accepted until then.
    paused_until: Option<Instant>,
    /// When the log last reported a rejected peer.
    told_of_stranger: Option<Instant>,
    /// The number of the client that was served last.
    last_served: u64,
    refusals: Refusals,
}

/// Reports of forbidden requests: [`MAX_REFUSALS`] at once, and in the long run one in
/// [`REFUSAL_LOG_INTERVAL`], as for rejected peers.
#[derive(Debug, Default)]
struct Refusals {
    /// Number of recent reports, and since when one less counts.
    recent: u32,
    since: Option<Instant>,
    unreported: u64,
}

impl Refusals {
    fn report(&mut self, now: Instant) -> Option<u64> {
        let since = *self.since.get_or_insert(now);
        let seconds = now.duration_since(since).as_secs();
        self.recent = self
            .recent
            .saturating_sub(u32::try_from(seconds).unwrap_or(u32::MAX));
        self.since =
            Some(since + REFUSAL_LOG_INTERVAL * u32::try_from(seconds).unwrap_or(u32::MAX));
        if self.recent >= MAX_REFUSALS {
            self.unreported += 1;
            return None;
        }
        self.recent += 1;
        Some(std::mem::take(&mut self.unreported))
    }
}

/// A control client.
#[derive(Debug)]
pub(crate) struct ControlClient {
    socket: ClientSocket,
    passed: Passed,
    pub(crate) peer: ControlPeer,
    incoming: Vec<u8>,
    /// No more bytes will arrive: the peer has closed the connection or its sending side.
    has_finished: bool,
    outgoing: Vec<u8>,
    /// Bytes of `outgoing` that have been sent.
    sent: usize,
    /// The condition for the pending reply; `None` if no reply is pending.
    pub(crate) waits: Option<Waits>,
    /// The client is closed when its reply is sent.
    is_last: bool,
    deadline: Option<Instant>,
}

impl ControlClients {
    /// Creates an empty set of at most `most` control clients.
    pub(crate) fn new(most: usize, roles: Roles) -> ControlClients {
        ControlClients {
            clients: BTreeMap::new(),
            next: 0,
            most,
            roles,
            paused_until: None,
            told_of_stranger: None,
            last_served: 0,
            refusals: Refusals::default(),
        }
    }

    /// Returns whether a forbidden request is reported, and if so how many before it were not.
    pub(crate) fn report_refusal(&mut self, now: Instant) -> Option<u64> {
        self.refusals.report(now)
    }

    /// Returns when the next deadline of a client expires.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let deadlines = self
            .clients
            .values()
            .filter_map(|client| match client.waits {
                Some(Waits::Event { until, .. }) => Some(until),
                _ => client.deadline,
            });
        deadlines.chain(self.paused_until).min()
    }

    /// Accepts the control clients that want to connect.
    pub(crate) fn accept(&mut self, listener: &ControlListener, poller: &Poller, now: Instant) {
        // The loop accepts no more in a turn than can wait, however fast clients reconnect.
        let looks = iter::once(Look::First).chain(iter::repeat(Look::Next));
        for look in looks.take(CONTROL_BACKLOG as usize + 1) {
            let socket = match accept(listener, look) {
                Ok(Offer::Client(accepted)) => accepted.socket,
                Ok(Offer::Empty | Offer::Ended) => return,
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
                // The reply fits into an empty socket buffer; a peer that does not read it loses
                // nothing else.
                client.refuse_with(&refusal);
                let _ = client.send();
                continue;
            }
            let number = self.next;
            self.next += 1;
            if poller
                .add(
                    &client.socket,
                    Token::ControlClient(number).into(),
                    Interest::Read,
                )
                .is_ok()
            {
                self.clients.insert(number, client);
            }
        }
    }

    /// Checks whether a peer is admitted. A peer without a role takes up no place.
    fn admit(&mut self, who: &ControlPeer, now: Instant) -> Result<(), Refusal> {
        if let Err(refusal) = self.roles.need(Role::Reader, who) {
            if self
                .told_of_stranger
                .is_none_or(|told| now >= told + REFUSAL_LOG_INTERVAL)
            {
                self.told_of_stranger = Some(now);
                log::warn!(
                    "{who} turned away from the control socket: {}",
                    refusal.message
                );
            }
            return Err(refusal);
        }
        if !self.has_room_for(who) {
            return Err(Refusal::new(
                RefusalCode::Busy,
                "there are too many control clients",
            ));
        }
        Ok(())
    }

    fn has_room_for(&self, who: &ControlPeer) -> bool {
        let is_admin = |who: &ControlPeer| self.roles.of(who) == Role::Admin;
        if self.clients.len() >= self.most || is_admin(who) {
            return self.clients.len() < self.most;
        }
        let others = self
            .clients
            .values()
            .filter(|client| !is_admin(&client.peer));
        let same = others
            .clone()
            .filter(|client| client.peer.credentials.uid == who.credentials.uid)
            .count();
        others.count() < self.most.saturating_sub(RESERVED_FOR_ADMINS).max(1)
            && same < MAX_READERS_PER_USER
    }

    /// Closes the clients whose deadline has passed. A client whose request is incomplete gets an
    /// error reply.
    pub(crate) fn look_at_deadlines(
        &mut self,
        poller: &Poller,
        listener: &ControlListener,
        now: Instant,
    ) {
        if self.paused_until.is_some_and(|until| until <= now) {
            self.paused_until = None;
            let _ = poller.modify(listener, Token::Control.into(), Interest::Clients);
        }
        let is_late =
            |client: &ControlClient| client.deadline.is_some_and(|deadline| deadline <= now);
        let late: Vec<u64> = self
            .clients
            .iter()
            .filter(|(_, c)| is_late(c))
            .map(|(number, _)| *number)
            .collect();
        for number in late {
            let Some(mut client) = self.clients.remove(&number) else {
                continue;
            };
            let _ = poller.remove(&client.socket);
            if client.outgoing.is_empty() && !client.incoming.is_empty() {
                client.refuse(RefusalCode::Timeout, "the request did not arrive in time");
                let _ = client.send();
            }
        }
    }

    /// Returns the waiting clients by their numbers.
    pub(crate) fn waiting(&self) -> Vec<(u64, Waits)> {
        self.clients
            .iter()
            .filter_map(|(number, client)| Some((*number, client.waits?)))
            .collect()
    }

    /// Checks whether a waiting client is still allowed to get its result.
    ///
    /// # Errors
    /// As [`Roles::need`].
    pub(crate) fn need(&self, number: u64, role: Role) -> Result<(), Refusal> {
        self.clients
            .get(&number)
            .map_or(Ok(()), |client| self.roles.need(role, &client.peer))
    }

    /// Sends the replies to clients that asked for the stop, which is now complete.
    pub(crate) fn say_stopped(&mut self, killed: u64) {
        for client in self
            .clients
            .values_mut()
            .filter(|client| client.waits == Some(Waits::Stopped))
        {
            client.reply(
                Verb::Stop,
                &Stopped {
                    pid: std::process::id(),
                    killed,
                },
            );
            // One reply fits into an empty socket buffer.
            let _ = client.send();
        }
    }

    /// Returns the clients that stay while this process becomes another program: those that asked
    /// for the upgrade, and those in the middle of a request. Other clients wait for results that
    /// the new program cannot give them.
    fn staying(&self) -> impl Iterator<Item = &ControlClient> {
        self.clients.values().filter(|client| {
            matches!(client.waits, None | Some(Waits::Upgraded)) && !client.is_last
        })
    }

    /// Returns the sockets of the clients that stay.
    pub(crate) fn sockets(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.staying().map(|client| client.socket.as_fd())
    }

    /// Returns the snapshot of the clients that stay.
    pub(crate) fn snapshot(&self) -> Vec<ControlSnapshot> {
        let snapshot = |client: &ControlClient| ControlSnapshot {
            socket: client.socket.as_raw_fd(),
            is_asker: client.waits.is_some(),
            incoming: client.incoming.clone(),
            outgoing: client.outgoing[client.sent..].to_vec(),
        };
        self.staying().map(snapshot).collect()
    }

    /// Adopts the clients from before this process became this program.
    pub(crate) fn adopt(
        &mut self,
        clients: Vec<(OwnedFd, ControlSnapshot)>,
        poller: &Poller,
        now: Instant,
    ) {
        for (socket, snapshot) in clients {
            let Ok(peer) = ControlPeer::from_socket(&socket) else {
                continue;
            };
            let mut client = ControlClient::new(socket, peer, now);
            (client.incoming, client.outgoing) = (snapshot.incoming, snapshot.outgoing);
            if snapshot.is_asker {
                (client.waits, client.deadline) = (Some(Waits::Renewed), None);
            }
            let number = self.next;
            self.next += 1;
            let interest = client.interest().unwrap_or(Interest::Read);
            if poller
                .add(
                    &client.socket,
                    Token::ControlClient(number).into(),
                    interest,
                )
                .is_ok()
            {
                self.clients.insert(number, client);
            }
        }
    }

    /// Sends the clients that asked for the upgrade its refusal.
    pub(crate) fn refuse_upgrade(&mut self, refusal: &Refusal) -> Vec<u64> {
        let waiting = self
            .clients
            .iter()
            .filter(|(_, client)| client.waits == Some(Waits::Upgraded));
        let numbers: Vec<u64> = waiting.map(|(number, _)| *number).collect();
        numbers
            .iter()
            .filter_map(|number| {
                self.clients
                    .get_mut(number)
                    .map(|client| client.refuse_with(refusal))
            })
            .count();
        numbers
    }

    /// Sends the clients that asked for a reload its result.
    pub(crate) fn say_reloaded(&mut self, verdict: &Result<Reloaded, Refusal>) {
        for client in self
            .clients
            .values_mut()
            .filter(|client| client.waits == Some(Waits::Reloaded))
        {
            match verdict {
                Ok(reloaded) => client.reply(Verb::Reload, reloaded),
                Err(refusal) => client.refuse_with(refusal),
            }
        }
    }
}

/// The connection is over.
struct Over;

/// A control client that waits for the result of an upgrade, or is in the middle of a request.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ControlSnapshot {
    pub(crate) socket: RawFd,
    pub(crate) is_asker: bool,
    /// The bytes received of its request, and the unsent bytes of its reply.
    pub(crate) incoming: Vec<u8>,
    pub(crate) outgoing: Vec<u8>,
}

impl ControlClient {
    fn new(socket: OwnedFd, peer: ControlPeer, now: Instant) -> ControlClient {
        ControlClient {
            socket: ClientSocket::own(socket),
            passed: Passed::default(),
            peer,
            incoming: Vec::new(),
            has_finished: false,
            outgoing: Vec::new(),
            sent: 0,
            waits: None,
            is_last: false,
            deadline: Some(now + REQUEST_TIMEOUT),
        }
    }

    /// Returns what the poller must watch the client for; `None` for its hang-up only.
    fn interest(&self) -> Option<Interest> {
        let is_deaf = self.has_finished || self.is_full();
        if !self.outgoing.is_empty() {
            Some(Interest::Write)
        } else if self.waits.is_some() {
            (!is_deaf).then_some(Interest::Read)
        } else if self.has_request() {
            // The request is handled in the next turn, which begins at once because the socket is
            // writable.
            Some(Interest::Write)
        } else {
            Some(Interest::Read)
        }
    }

    /// Returns whether the client must be closed.
    fn is_done(&self) -> bool {
        let has_all = self.has_finished && self.waits.is_none() && !self.has_request();
        self.outgoing.is_empty() && (self.is_last || has_all)
    }

    /// Returns whether a request must be answered or refused.
    fn has_request(&self) -> bool {
        !matches!(
            frame::next(&self.incoming, ByteOrder::Little, MAX_REQUEST),
            Next::Partial { .. }
        )
    }

    fn is_full(&self) -> bool {
        self.incoming.len() > PREFIX + MAX_REQUEST as usize
    }

    /// Reads the bytes that have arrived: at most one request beyond the current one.
    fn read(&mut self) -> Result<(), Over> {
        let mut buffer = [0; 4096];
        while !self.has_finished && !self.is_full() {
            match self.passed.receive(&self.socket, &mut buffer) {
                Ok(Moved::Bytes(n)) => self.incoming.extend_from_slice(&buffer[..n]),
                Ok(Moved::Nothing) => return Ok(()),
                Ok(Moved::End) => self.has_finished = true,
                Err(_) => return Err(Over),
            }
        }
        Ok(())
    }

    /// Sends the queued bytes. Returns whether all are sent.
    fn send(&mut self) -> Result<bool, Over> {
        while self.sent < self.outgoing.len() {
            match socket::transmit(&self.socket, &self.outgoing[self.sent..]) {
                Ok(Moved::Bytes(n)) => self.sent += n,
                Ok(Moved::Nothing) => return Ok(false),
                Ok(Moved::End) | Err(_) => return Err(Over),
            }
        }
        self.outgoing = Vec::new();
        self.sent = 0;
        Ok(true)
    }

    pub(crate) fn reply(&mut self, verb: Verb, result: &impl Serialize) {
        self.frame(|body| {
            rpc::open(body, verb.as_str())?;
            serde_json::to_writer(&mut *body, result)?;
            body.extend_from_slice(rpc::CLOSE);
            Ok(())
        });
    }

    pub(crate) fn refuse(&mut self, code: RefusalCode, message: &str) {
        self.refuse_with(&Refusal::new(code, message));
    }

    pub(crate) fn refuse_with(&mut self, refusal: &Refusal) {
        self.frame(|body| {
            rpc::open(body, "error")?;
            serde_json::to_writer(&mut *body, refusal)?;
            body.extend_from_slice(rpc::CLOSE);
            Ok(())
        });
    }

    fn frame(&mut self, write: impl FnOnce(&mut Vec<u8>) -> io::Result<()>) {
        let mut body = Vec::new();
        let written =
            write(&mut body).and_then(|()| u32::try_from(body.len()).map_err(io::Error::other));
        match written {
            Ok(length) => {
                self.outgoing
                    .extend_from_slice(&ByteOrder::Little.prefix(length));
                self.outgoing.extend_from_slice(&body);
            }
            Err(e) => {
                log::error!("a reply to {} cannot be written: {e}", self.peer);
                self.is_last = true;
            }
        }
    }
}

impl Master {
    /// Serves control clients whose sockets have events, for [`CONTROL_BUDGET`] a turn; the others
    /// are served in the next turn, before those that have been served.
    pub(crate) fn serve_control_clients(&mut self, events: &[PollEvent], now: Instant) {
        let begin = Instant::now();
        let ready = events
            .iter()
            .filter_map(|event| match Token::from_number(event.token) {
                Some(Token::ControlClient(number)) => Some((number, event)),
                _ => None,
            });
        let last = self.control.clients.last_served;
        let (after, before): (Vec<_>, Vec<_>) = ready.partition(|(number, _)| *number > last);
        for (number, event) in after.into_iter().chain(before) {
            self.serve_control(number, event, now);
            self.control.clients.last_served = number;
            if begin.elapsed() >= CONTROL_BUDGET {
                return;
            }
        }
    }

    /// Handles an event on a control client's socket.
    fn serve_control(&mut self, number: u64, event: &PollEvent, now: Instant) {
        // The client is removed from the table, so that the reply may use all of the master.
        let Some(mut client) = self.control.clients.clients.remove(&number) else {
            return;
        };
        let outcome = self.converse(&mut client, event, now);
        self.put_back(number, client, outcome);
    }

    /// Answers a control client that waited. Its further requests are handled in the next turn.
    pub(crate) fn answer_late(
        &mut self,
        number: u64,
        answer: impl FnOnce(&mut ControlClient),
        now: Instant,
    ) {
        let Some(mut client) = self.control.clients.clients.remove(&number) else {
            return;
        };
        (client.waits, client.deadline) = (None, Some(now + REQUEST_TIMEOUT));
        answer(&mut client);
        let outcome = client.send().map(|_| ());
        self.put_back(number, client, outcome);
    }

    /// Watches a client for what it needs now, or closes it.
    fn put_back(&mut self, number: u64, client: ControlClient, outcome: Result<(), Over>) {
        if outcome.is_err() || client.is_done() {
            let _ = self.poller.remove(&client.socket);
            return;
        }
        let token = Token::ControlClient(number).into();
        let _ = match client.interest() {
            Some(interest) => self.poller.modify(&client.socket, token, interest),
            None => self.poller.disarm(&client.socket, token),
        };
        self.control.clients.clients.insert(number, client);
    }

    fn converse(
        &mut self,
        client: &mut ControlClient,
        event: &PollEvent,
        now: Instant,
    ) -> Result<(), Over> {
        // This is its hang-up: a peer that has closed has no use for a later reply. Its earlier
        // requests are executed all the same.
        if client.interest().is_none() {
            return Err(Over);
        }
        let heard = if event.readable {
            client.read()
        } else {
            Ok(())
        };
        // The next request is handled when the reply before it is sent: a client that does not read
        // is not served.
        if client.send()? && client.waits.is_none() && !client.is_last {
            self.answer_next(client, now);
            client.send()?;
        }
        heard
    }

    fn answer_next(&mut self, client: &mut ControlClient, now: Instant) {
        match frame::next(&client.incoming, ByteOrder::Little, MAX_REQUEST) {
            Next::Partial { .. } => return,
            Next::TooLarge { length } => {
                client.refuse(
                    RefusalCode::TooLarge,
                    &format!("a request is at most {MAX_REQUEST} bytes, not {length}"),
                );
                client.is_last = true;
            }
            Next::Whole { total } => {
                let request: Vec<u8> = client.incoming.drain(..total).skip(PREFIX).collect();
                self.answer(client, &request, now);
                // A reload may have taken the client's access away.
                client.is_last = self.control.clients.roles.of(&client.peer) == Role::Nobody;
            }
        }
        client.deadline = if client.waits.is_some() {
            None
        } else {
            Some(now + REQUEST_TIMEOUT)
        };
    }
}
