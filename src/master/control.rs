//! Control clients: one request in, one reply out, from the master's own tables.
//!
//! Nobody here can make the master wait: what arrives and what is not read is bounded, and has a deadline.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use super::listener::ControlListener;
use super::{Master, Token};
use crate::proto::control::{
    Code, Drain, Hold, MAX_REQUEST, PATIENCE, Rebalance, Rebalanced, Recycle, Refusal, Reloaded, Scale, Settled,
    Stopped, Verb, Version,
};
use crate::proto::frame::{self, ByteOrder, Next, PREFIX};
use crate::proto::names::WorkerId;
use crate::proto::rpc::{self, NULL, Request};
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

#[derive(Debug)]
struct ControlClient {
    socket: OwnedFd,
    who: Credentials,
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
    /// Bytes of `outgoing` that are sent.
    sent: usize,
    /// What it is answered by, if not at once.
    waits: Option<Waits>,
    /// Is closed when its reply is sent.
    is_last: bool,
    deadline: Option<Instant>,
}

/// What has to come before a request is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waits {
    /// The end of the daemon.
    Stopped,
    /// The verdict of the reload.
    Reloaded,
    /// All workers are there that there are to be, and no others.
    Settled(Verb),
    /// This worker has no clients.
    Emptied(WorkerId),
    /// There are no clients.
    Deserted,
    /// The rebalancing has been done.
    Rebalanced,
}

impl ControlClients {
    /// At most so many; `user` is the daemon's.
    pub(super) fn new(most: usize, user: u32) -> ControlClients {
        ControlClients { clients: BTreeMap::new(), next: 0, most, user, paused_until: None }
    }

    /// When somebody will have had enough time.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.clients.values().filter_map(|client| client.deadline).chain(self.paused_until).min()
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
    fn is_privileged(&self, who: Credentials) -> bool {
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

    fn reply(&mut self, verb: Verb, result: &impl Serialize) {
        self.frame(|body| {
            rpc::open(body, verb.as_str())?;
            serde_json::to_writer(&mut *body, result)?;
            body.extend_from_slice(rpc::CLOSE);
            Ok(())
        });
    }

    fn refuse(&mut self, code: Code, message: &str) {
        self.refuse_with(&Refusal::new(code, message));
    }

    fn refuse_with(&mut self, refusal: &Refusal) {
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

    fn answer(&mut self, client: &mut ControlClient, request: &[u8], now: Instant) {
        let (method, params) = match Request::parse(request) {
            Ok(request) => (request.method, request.params),
            Err(reason) => return client.refuse(Code::BadRequest, &reason),
        };
        let Some(verb) = Verb::named(&method) else {
            return client.refuse(Code::UnknownVerb, &format!("there is no verb {method:?}"));
        };
        if verb.changes() && !self.control.is_privileged(client.who) {
            log::warn!("{method} refused to uid {} (pid {})", client.who.uid, client.who.pid);
            return client.refuse(Code::Forbidden, "changing things needs root or the daemon's own user");
        }
        let asked = Asked { verb, params: params.map_or(NULL, RawValue::get) };
        if let Err(refusal) = self.carry_out(client, asked, now) {
            client.refuse_with(&refusal);
        }
    }

    /// Does what was asked for, or begins to; then the answer comes with [`Master::answer_waiting`].
    fn carry_out(&mut self, client: &mut ControlClient, asked: Asked<'_>, now: Instant) -> Result<(), Refusal> {
        let who = format!("{} by uid {} (pid {})", asked.verb.as_str(), client.who.uid, client.who.pid);
        if self.pool.is_stopping() && asked.verb.changes() && asked.verb != Verb::Stop {
            return Err(Refusal::new(Code::Refused, "the daemon is stopping"));
        }
        client.waits = Some(match asked.verb {
            Verb::Status => {
                asked.no_params()?;
                client.reply(asked.verb, &self.status(now));
                return Ok(());
            }
            Verb::Version => {
                asked.no_params()?;
                let (name, version) = (self.name.clone(), self.version.to_owned());
                client.reply(asked.verb, &Version { name, version, pid: std::process::id() });
                return Ok(());
            }
            Verb::Stop => {
                asked.no_params()?;
                if !self.pool.is_stopping() {
                    self.stop(&who, now);
                }
                Waits::Stopped
            }
            Verb::Reload => {
                asked.no_params()?;
                self.begin_reload(&who, now)?;
                Waits::Reloaded
            }
            Verb::Scale => {
                let Scale { count } = asked.params()?;
                self.scale(&who, count)?;
                Waits::Settled(Verb::Scale)
            }
            Verb::Recycle => {
                let Recycle { worker } = asked.params_or_default()?;
                self.recycle(&who, worker)?;
                Waits::Settled(Verb::Recycle)
            }
            Verb::Hold => {
                let Hold { worker } = asked.params()?;
                self.hold(&who, worker)?;
                Waits::Emptied(worker)
            }
            Verb::Release => {
                self.release(&who, &asked.params()?)?;
                return Ok(client.reply(asked.verb, &self.settled()));
            }
            Verb::Drain => {
                let Drain { wait } = asked.params_or_default()?;
                self.set_drained(&who, true);
                if !wait {
                    return Ok(client.reply(asked.verb, &self.settled()));
                }
                Waits::Deserted
            }
            Verb::Undrain => {
                asked.no_params()?;
                self.set_drained(&who, false);
                return Ok(client.reply(asked.verb, &self.settled()));
            }
            Verb::Rebalance => {
                let Rebalance { dry_run } = asked.params_or_default()?;
                self.begin_balance(dry_run, now)?;
                Waits::Rebalanced
            }
        });
        Ok(())
    }

    fn settled(&self) -> Settled {
        Settled { workers: self.ready_workers().count() as u32, clients: self.clients }
    }

    /// Answers those whose time has come.
    pub(super) fn answer_waiting(&mut self, now: Instant) {
        let moves = self.end_balance(now);
        let settled = self.settled();
        let waiting: Vec<(u64, Waits)> =
            self.control.clients.iter().filter_map(|(number, client)| Some((*number, client.waits?))).collect();
        for (number, waits) in waiting {
            let (verb, is_so) = match waits {
                Waits::Stopped => continue,
                // Its answer is there already.
                Waits::Reloaded => (Verb::Reload, self.reload.is_none()),
                Waits::Settled(verb) => (verb, self.pool.is_settled() || self.pool.is_stopping()),
                Waits::Emptied(id) => (Verb::Hold, self.workers.get(&id).is_none_or(|w| w.leases.clients() == 0)),
                Waits::Deserted => (Verb::Drain, self.clients == 0 || !self.is_drained),
                Waits::Rebalanced => (Verb::Rebalance, moves.is_some()),
            };
            let Some(client) = self.control.clients.get_mut(&number).filter(|_| is_so) else { continue };
            client.waits = None;
            match (&moves, waits) {
                (_, Waits::Reloaded) => {}
                (Some(moves), Waits::Rebalanced) => client.reply(verb, &Rebalanced { moves: moves.clone() }),
                _ if self.pool.is_stopping() => client.refuse(Code::Refused, "the daemon is stopping"),
                (_, Waits::Deserted) if !self.is_drained => client.refuse(Code::Refused, "clients are accepted again"),
                _ => client.reply(verb, &settled),
            }
            client.deadline = Some(now + PATIENCE);
            let event = Event { token: 0, readable: false, writable: true };
            self.serve_control(number, &event, now);
        }
    }
}

/// A request that is allowed.
#[derive(Clone, Copy)]
struct Asked<'a> {
    verb: Verb,
    /// `null` if there are none.
    params: &'a str,
}

impl Asked<'_> {
    /// serde would take an array for a struct, too.
    fn params<T: DeserializeOwned>(&self) -> Result<T, Refusal> {
        let found = match self.params.starts_with('{') {
            true => serde_json::from_str(self.params).map_err(|e| e.to_string()),
            false => Err("expected an object".to_owned()),
        };
        found.map_err(|why| Refusal::new(Code::BadParams, format!("params of {}: {why}", self.verb.as_str())))
    }

    fn params_or_default<T: DeserializeOwned + Default>(&self) -> Result<T, Refusal> {
        if self.params == NULL { Ok(T::default()) } else { self.params() }
    }

    fn no_params(&self) -> Result<(), Refusal> {
        #[derive(Default, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        struct NoParams {}
        self.params_or_default::<NoParams>().map(|NoParams {}| ())
    }
}
