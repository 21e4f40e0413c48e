//! Control clients: one request in, one reply out, from the master's own tables.
//!
//! Nobody here can make the master wait: what arrives and what is not read is bounded, and has a deadline.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::listener::ControlListener;
use super::verbs::Waits;
use super::{Master, Token};
use crate::proto::control::{Code, MAX_REQUEST, PATIENCE, Refusal, Reloaded, Stopped, Verb};
use crate::proto::frame::{self, ByteOrder, Next, PREFIX};
use crate::proto::rpc;
use crate::sys::poll::{Event, Interest, Poller};
use crate::sys::socket::{self, Credentials, Moved};

/// Of all control clients, so many are kept for root and the daemon's own user.
const RESERVED: usize = 8;

/// Most control clients of any other user.
const PER_USER: usize = 4;

/// How long nobody is accepted after the system was out of descriptors.
const RECOVERY: Duration = Duration::from_millis(100);

/// All control clients.
#[derive(Debug)]
pub(super) struct ControlClients {
    clients: BTreeMap<u64, ControlClient>,
    next: u64,
    most: usize,
    /// The daemon's user.
    user: u32,
    /// Nobody is accepted until then.
    paused_until: Option<Instant>,
}

/// One of them.
#[derive(Debug)]
pub(super) struct ControlClient {
    socket: OwnedFd,
    pub(super) who: Credentials,
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
    /// Bytes of `outgoing` that are sent.
    sent: usize,
    /// What it is answered by, if not at once.
    pub(super) waits: Option<Waits>,
    /// Is closed when its reply is sent.
    is_last: bool,
    deadline: Option<Instant>,
}

impl ControlClients {
    /// At most so many; `user` is the daemon's.
    pub(super) fn new(most: usize, user: u32) -> ControlClients {
        ControlClients { clients: BTreeMap::new(), next: 0, most, user, paused_until: None }
    }

    /// When somebody will have had enough time.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let deadlines = self.clients.values().filter_map(|client| match client.waits {
            Some(Waits::Event { until, .. }) => Some(until),
            _ => client.deadline,
        });
        deadlines.chain(self.paused_until).min()
    }

    /// Takes in who wants to connect.
    pub(super) fn accept(&mut self, listener: &ControlListener, poller: &Poller, now: Instant) {
        // No more a turn than there may be, however fast somebody comes back.
        for _ in 0..self.most {
            let socket = match socket::accept(listener) {
                Ok(Some(accepted)) => accepted.socket,
                Ok(None) => return,
                Err(e) => {
                    log::warn!("cannot accept control clients: {e}");
                    self.paused_until = Some(now + RECOVERY);
                    let _ = poller.disarm(listener, Token::Control.into());
                    return;
                }
            };
            let Ok(who) = socket::credentials(&socket) else { continue };
            let number = self.next;
            self.next += 1;
            let mut client = ControlClient {
                socket,
                who,
                incoming: Vec::new(),
                outgoing: Vec::new(),
                sent: 0,
                waits: None,
                is_last: false,
                deadline: Some(now + PATIENCE),
            };
            if !self.has_room_for(who) {
                client.refuse(Code::Busy, "there are too many control clients");
                let _ = client.send();
                continue;
            }
            if poller.add(&client.socket, Token::ControlClient(number).into(), Interest::Read).is_ok() {
                self.clients.insert(number, client);
            }
        }
    }

    fn has_room_for(&self, who: Credentials) -> bool {
        if self.is_privileged(who) {
            return self.clients.len() < self.most;
        }
        let others = self.clients.values().filter(|client| !self.is_privileged(client.who));
        let same = others.clone().filter(|client| client.who.uid == who.uid).count();
        others.count() < self.most.saturating_sub(RESERVED).max(1) && same < PER_USER && self.clients.len() < self.most
    }

    /// Whether this is root or the daemon's own user.
    pub(super) fn is_privileged(&self, who: Credentials) -> bool {
        who.uid == 0 || who.uid == self.user
    }

    /// Ends those whose time is up. Who has not asked is told so.
    pub(super) fn look_at_deadlines(&mut self, poller: &Poller, listener: &ControlListener, now: Instant) {
        if self.paused_until.is_some_and(|until| until <= now) {
            self.paused_until = None;
            let _ = poller.modify(listener, Token::Control.into(), Interest::Read);
        }
        let is_late = |client: &ControlClient| client.deadline.is_some_and(|deadline| deadline <= now);
        let late: Vec<u64> = self.clients.iter().filter(|(_, c)| is_late(c)).map(|(number, _)| *number).collect();
        for number in late {
            let Some(mut client) = self.clients.remove(&number) else { continue };
            let _ = poller.remove(&client.socket);
            if client.outgoing.is_empty() && !client.incoming.is_empty() {
                client.refuse(Code::Timeout, "the request did not arrive in time");
                let _ = client.send();
            }
        }
    }

    /// Those who wait, by their numbers.
    pub(super) fn waiting(&self) -> Vec<(u64, Waits)> {
        self.clients.iter().filter_map(|(number, client)| Some((*number, client.waits?))).collect()
    }

    /// Answers those who asked for the end, which has come.
    pub(super) fn say_stopped(&mut self, killed: u64) {
        for client in self.clients.values_mut().filter(|client| client.waits == Some(Waits::Stopped)) {
            client.reply(Verb::Stop, &Stopped { pid: std::process::id(), killed });
            // One reply fits into an empty socket buffer.
            let _ = client.send();
        }
    }

    /// Tells who asked for it what came of a reload.
    pub(super) fn say_reloaded(&mut self, verdict: &Result<Reloaded, Refusal>) {
        for client in self.clients.values_mut().filter(|client| client.waits == Some(Waits::Reloaded)) {
            match verdict {
                Ok(reloaded) => client.reply(Verb::Reload, reloaded),
                Err(refusal) => client.refuse_with(refusal),
            }
        }
    }
}

/// The connection is over.
struct Over;

impl ControlClient {
    /// Reads what is there, one request at the most beyond the one in hand.
    fn read(&mut self) -> Result<(), Over> {
        let mut buffer = [0; 4096];
        loop {
            if self.incoming.len() > PREFIX + MAX_REQUEST as usize {
                return Ok(());
            }
            match socket::receive(&self.socket, &mut buffer) {
                Ok(Moved::Bytes(n)) => self.incoming.extend_from_slice(&buffer[..n]),
                Ok(Moved::Nothing) => return Ok(()),
                // Who closes has no use for an answer, not even a later one. What came before is done all the same.
                Ok(Moved::End) | Err(_) => return Err(Over),
            }
        }
    }

    /// Sends what there is to send; whether that is all.
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

    pub(super) fn reply(&mut self, verb: Verb, result: &impl Serialize) {
        self.frame(|body| {
            rpc::open(body, verb.as_str())?;
            serde_json::to_writer(&mut *body, result)?;
            body.extend_from_slice(rpc::CLOSE);
            Ok(())
        });
    }

    pub(super) fn refuse(&mut self, code: Code, message: &str) {
        self.refuse_with(&Refusal::new(code, message));
    }

    pub(super) fn refuse_with(&mut self, refusal: &Refusal) {
        self.frame(|body| {
            rpc::open(body, "error")?;
            serde_json::to_writer(&mut *body, refusal)?;
            body.extend_from_slice(rpc::CLOSE);
            Ok(())
        });
    }

    fn frame(&mut self, write: impl FnOnce(&mut Vec<u8>) -> io::Result<()>) {
        let mut body = Vec::new();
        write(&mut body).expect("plain data goes into a Vec");
        let length = u32::try_from(body.len()).expect("a status is far below 4 GiB");
        self.outgoing.extend_from_slice(&ByteOrder::Little.prefix(length));
        self.outgoing.extend_from_slice(&body);
    }
}

impl Master {
    /// Something happened on a control client's socket.
    pub(super) fn serve_control(&mut self, number: u64, event: &Event, now: Instant) {
        // Taken out, so that answering may look at all of the master.
        let Some(mut client) = self.control.clients.remove(&number) else { return };
        match self.converse(&mut client, event, now) {
            Ok(()) => drop(self.control.clients.insert(number, client)),
            Err(Over) => drop(self.poller.remove(&client.socket)),
        }
        if let Some(client) = self.control.clients.get(&number) {
            let interest = if client.outgoing.is_empty() { Interest::Read } else { Interest::Write };
            let _ = self.poller.modify(&client.socket, Token::ControlClient(number).into(), interest);
        }
    }

    /// Answers a control client that waited, which goes on then.
    pub(super) fn answer_late(&mut self, number: u64, answer: impl FnOnce(&mut ControlClient), now: Instant) {
        let Some(client) = self.control.clients.get_mut(&number) else { return };
        (client.waits, client.deadline) = (None, Some(now + PATIENCE));
        answer(client);
        self.serve_control(number, &Event { token: 0, readable: false, writable: true }, now);
    }

    fn converse(&mut self, client: &mut ControlClient, event: &Event, now: Instant) -> Result<(), Over> {
        let heard = if event.readable { client.read() } else { Ok(()) };
        // Who was told that it goes on has hung up, and may have done so before we got to what was asked.
        self.answer_all(client, now).and(heard)
    }

    fn answer_all(&mut self, client: &mut ControlClient, now: Instant) -> Result<(), Over> {
        // The next request is looked at when the reply before it is gone: who does not read is not served.
        while client.send()? {
            if client.is_last {
                return Err(Over);
            }
            if client.waits.is_some() {
                return Ok(());
            }
            match frame::next(&client.incoming, ByteOrder::Little, MAX_REQUEST) {
                Next::Partial { .. } => return Ok(()),
                Next::TooLarge { length } => {
                    client.refuse(Code::TooLarge, &format!("a request is at most {MAX_REQUEST} bytes, not {length}"));
                    client.is_last = true;
                }
                Next::Whole { total } => {
                    let request: Vec<u8> = client.incoming.drain(..total).skip(PREFIX).collect();
                    self.answer(client, &request, now);
                }
            }
            client.deadline = if client.waits.is_some() { None } else { Some(now + PATIENCE) };
        }
        Ok(())
    }
}
