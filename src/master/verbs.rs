//! What control clients may ask for, and what they are answered.

use std::time::Instant;

use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use super::Master;
use super::control::ControlClient;
use crate::proto::control::{
    Code, Drain, Hold, Metrics, Rebalance, Rebalanced, Recycle, Refusal, Scale, Settled, Verb, Version,
};
use crate::proto::names::WorkerId;
use crate::proto::rpc::{NULL, Request};

/// What has to come before a request is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waits {
    /// It has been done; the answer comes at the end of the loop's turn.
    Nothing(Verb),
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

impl Master {
    /// Answers a request, or has it wait for what it asks for.
    pub(super) fn answer(&mut self, client: &mut ControlClient, request: &[u8], now: Instant) {
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
        match self.carry_out(client, asked, now) {
            Ok(waits) => client.waits = waits,
            Err(refusal) => client.refuse_with(&refusal),
        }
    }

    /// Does what was asked for, or begins to. What is not answered here is by [`Master::answer_waiting`].
    fn carry_out(
        &mut self,
        client: &mut ControlClient,
        asked: Asked<'_>,
        now: Instant,
    ) -> Result<Option<Waits>, Refusal> {
        let who = format!("{} by uid {} (pid {})", asked.verb.as_str(), client.who.uid, client.who.pid);
        if self.pool.is_stopping() && asked.verb.changes() && asked.verb != Verb::Stop {
            return Err(Refusal::new(Code::Refused, "the daemon is stopping"));
        }
        Ok(Some(match asked.verb {
            Verb::Status => {
                asked.no_params()?;
                client.reply(asked.verb, &self.status(now));
                return Ok(None);
            }
            Verb::Version => {
                asked.no_params()?;
                let (name, version) = (self.name.clone(), self.version.to_owned());
                client.reply(asked.verb, &Version { name, version, pid: std::process::id() });
                return Ok(None);
            }
            Verb::Metrics => {
                asked.no_params()?;
                client.reply(asked.verb, &self.metrics());
                return Ok(None);
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
                Waits::Nothing(Verb::Release)
            }
            Verb::Drain => {
                let Drain { wait } = asked.params_or_default()?;
                self.set_drained(&who, true);
                if wait { Waits::Deserted } else { Waits::Nothing(Verb::Drain) }
            }
            Verb::Undrain => {
                asked.no_params()?;
                self.set_drained(&who, false);
                Waits::Nothing(Verb::Undrain)
            }
            Verb::Rebalance => {
                let Rebalance { dry_run } = asked.params_or_default()?;
                self.begin_balance(dry_run, now)?;
                Waits::Rebalanced
            }
        }))
    }

    fn metrics(&self) -> Metrics {
        let (version, clients) = (self.version, self.clients);
        let text = format!(
            "# HELP fdpassd_build_info The running program.\n# TYPE fdpassd_build_info gauge\n\
             fdpassd_build_info{{version={version:?}}} 1\n\
             # HELP fdpassd_clients Clients there are now.\n# TYPE fdpassd_clients gauge\n\
             fdpassd_clients {clients}\n"
        );
        Metrics { text }
    }

    fn settled(&self) -> Settled {
        Settled { workers: self.ready_workers().count() as u32, clients: self.clients }
    }

    /// Answers those whose time has come.
    pub(super) fn answer_waiting(&mut self, now: Instant) {
        let moves = self.end_balance(now);
        let waiting = self.control.waiting();
        if waiting.is_empty() {
            return;
        }
        let (settled, is_stopping, is_drained) = (self.settled(), self.pool.is_stopping(), self.is_drained);
        for (number, waits) in waiting {
            let (verb, is_so) = match waits {
                Waits::Stopped => continue,
                Waits::Nothing(verb) => (verb, true),
                // Its answer is there already.
                Waits::Reloaded => (Verb::Reload, self.reload.is_none()),
                Waits::Settled(verb) => (verb, self.pool.is_settled()),
                Waits::Emptied(id) => (Verb::Hold, self.workers.get(&id).is_none_or(|w| w.leases.clients() == 0)),
                Waits::Deserted => (Verb::Drain, self.clients == 0 || !is_drained),
                Waits::Rebalanced => (Verb::Rebalance, moves.is_some()),
            };
            if !is_so && !is_stopping {
                continue;
            }
            let answer = |client: &mut ControlClient| match (waits, &moves) {
                (Waits::Reloaded, _) => {}
                _ if is_stopping => client.refuse(Code::Refused, "the daemon is stopping"),
                (Waits::Deserted, _) if !is_drained => client.refuse(Code::Refused, "clients are accepted again"),
                (Waits::Rebalanced, Some(moves)) => client.reply(verb, &Rebalanced { moves: moves.clone() }),
                _ => client.reply(verb, &settled),
            };
            self.answer_late(number, answer, now);
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
