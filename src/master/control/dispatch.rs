//! Dispatch of control requests, and their replies.

use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use crate::master::Master;
use crate::master::control::access::Role;
use crate::master::control::pending::Waits;
use crate::master::control::server::ControlClient;
use crate::master::telemetry::events::Asker;
use crate::proto::control::{
    Drain, EventsAfter, Hold, Kick, Kind, MAX_WAIT, Metrics, Rebalance, Rebalanced, Recycle,
    Refusal, RefusalCode, ReloadParams, Scale, SetLogLevel, Settled, UpgradeTo, Upgraded, Verb,
    Version,
};
use crate::proto::rpc::{NULL, Request};

impl Master {
    /// Answers a request, or makes it wait for its result.
    pub(crate) fn answer(&mut self, client: &mut ControlClient, request: &[u8], now: Instant) {
        let (method, params) = match Request::parse(request) {
            Ok(request) => (request.method, request.params),
            Err(reason) => return client.refuse(RefusalCode::BadRequest, &reason),
        };
        let Some(verb) = Verb::from_name(&method) else {
            return client.refuse(
                RefusalCode::UnknownVerb,
                &format!("there is no verb {method:?}"),
            );
        };
        let asked = Asked {
            verb,
            params: params.map_or(NULL, RawValue::get),
        };
        let asker = Asker {
            what: verb.as_str(),
            who: Some(client.peer.credentials),
        };
        let needed = if asked.changes() {
            Role::Admin
        } else {
            Role::Reader
        };
        let allowed = self.control.clients.roles.need(needed, &client.peer);
        match allowed.and_then(|()| self.carry_out(client, asked, asker, now)) {
            Ok(waits) => client.waits = waits,
            Err(refusal) => {
                let sentence = format_args!("{asker}: refused: {}", refusal.message);
                match refusal.code {
                    RefusalCode::Forbidden => match self.control.clients.report_refusal(now) {
                        Some(0) => {
                            self.telemetry
                                .events
                                .note(Kind::Forbidden, asker.about(), sentence)
                        }
                        Some(others) => {
                            let sentence = format_args!(
                                "{sentence}; {others} requests before it were forbidden, too"
                            );
                            self.telemetry
                                .events
                                .note(Kind::Forbidden, asker.about(), sentence);
                        }
                        None => {}
                    },
                    // The rejection has been reported already, with the position in the file.
                    RefusalCode::Rejected => {}
                    _ if asked.changes() => log::warn!("{sentence}"),
                    _ => {}
                }
                client.refuse_with(&refusal);
            }
        }
    }

    /// Executes a request, or begins to. [`Master::answer_waiting`] sends the replies that are not
    /// sent here.
    fn carry_out(
        &mut self,
        client: &mut ControlClient,
        asked: Asked<'_>,
        asker: Asker,
        now: Instant,
    ) -> Result<Option<Waits>, Refusal> {
        if self.workers.pool.is_stopping() && asked.verb.changes() && asked.verb != Verb::Stop {
            return Err(Refusal::new(RefusalCode::Refused, "the daemon is stopping"));
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
                client.reply(
                    asked.verb,
                    &Version {
                        name,
                        version,
                        pid: std::process::id(),
                    },
                );
                return Ok(None);
            }
            Verb::Stop => {
                asked.no_params()?;
                if self.workers.pool.is_stopping() {
                    log::info!("{asker}: already stopping");
                } else {
                    self.stop(asker, now);
                }
                Waits::Stopped
            }
            Verb::Reload => {
                let ReloadParams { force } = asked.params_or_default()?;
                self.begin_reload(asker, force, now)?;
                Waits::Reloaded
            }
            Verb::Scale => {
                let Scale { count } = asked.params()?;
                self.scale(asker, count)?;
                Waits::Settled(Verb::Scale)
            }
            Verb::Recycle => {
                let Recycle { worker } = asked.params_or_default()?;
                self.recycle(asker, worker)?;
                Waits::Settled(Verb::Recycle)
            }
            Verb::Hold => {
                let Hold { worker } = asked.params()?;
                self.hold(asker, worker)?;
                Waits::Emptied(worker)
            }
            Verb::Release => {
                self.release(asker, &asked.params()?)?;
                Waits::Nothing(Verb::Release)
            }
            Verb::Drain => {
                let Drain { wait } = asked.params_or_default()?;
                self.set_drained(asker, true);
                if wait {
                    Waits::Deserted
                } else {
                    Waits::Nothing(Verb::Drain)
                }
            }
            Verb::Undrain => {
                asked.no_params()?;
                self.set_drained(asker, false);
                Waits::Nothing(Verb::Undrain)
            }
            Verb::Rebalance => {
                let Rebalance { dry_run } = asked.params_or_default()?;
                self.begin_balance(asker, dry_run, now)?;
                Waits::Rebalanced
            }
            Verb::Clients => {
                client.reply(asked.verb, &self.clients_page(asked.params_or_default()?)?);
                return Ok(None);
            }
            Verb::Kick => {
                let Kick { client: id } = asked.params()?;
                client.reply(asked.verb, &self.kick(asker, id)?);
                return Ok(None);
            }
            Verb::Events => {
                let EventsAfter { after, wait } = asked.params_or_default()?;
                let wait = Duration::try_from_secs_f64(wait.unwrap_or(0.0))
                    .ok()
                    .filter(|wait| *wait <= MAX_WAIT);
                let wait = wait.ok_or_else(|| {
                    Refusal::new(
                        RefusalCode::BadParams,
                        format!("wait is from 0 to {} seconds", MAX_WAIT.as_secs()),
                    )
                })?;
                Waits::Event {
                    after: after.unwrap_or(0),
                    until: now + wait,
                }
            }
            Verb::Config => {
                asked.no_params()?;
                client.reply(asked.verb, &self.effective());
                return Ok(None);
            }
            Verb::Check => {
                asked.no_params()?;
                self.ask_for_check()
            }
            Verb::LogLevel => {
                client.reply(
                    asked.verb,
                    &self.log_level(asker, asked.params_or_default()?),
                );
                return Ok(None);
            }
            Verb::Upgrade => {
                let UpgradeTo { binary } = asked.params_or_default()?;
                if binary.is_some() {
                    self.control.clients.roles.need_owner(&client.peer)?;
                }
                self.begin_upgrade(asker, binary, now)?;
                Waits::Upgraded
            }
            Verb::ReopenLog => {
                asked.no_params()?;
                self.reopen_log(asker, now)?;
                Waits::Nothing(Verb::ReopenLog)
            }
            Verb::Metrics => {
                asked.no_params()?;
                client.reply(
                    asked.verb,
                    &Metrics {
                        text: self.metrics(now),
                    },
                );
                return Ok(None);
            }
        }))
    }

    fn settled(&self) -> Settled {
        Settled {
            workers: self.ready_workers().count() as u32,
            clients: self.clients.count,
        }
    }

    /// Answers the requests whose results are ready.
    pub(crate) fn answer_waiting(&mut self, now: Instant) {
        let moves = self.end_balance(now);
        let waiting = self.control.clients.waiting();
        if waiting.is_empty() {
            return;
        }
        let (settled, is_stopping, is_drained) = (
            self.settled(),
            self.workers.pool.is_stopping(),
            self.listeners.is_drained,
        );
        let Settled { workers, clients } = settled;
        let (version, unchanged) = (self.version.to_owned(), self.handover.is_same_program);
        let upgraded = Upgraded {
            version,
            workers,
            clients,
            unchanged,
        };
        for (number, waits) in waiting {
            let (verb, is_so) = match waits {
                Waits::Stopped => continue,
                Waits::Nothing(verb) => (verb, true),
                // The reply has been queued already.
                Waits::Reloaded => (
                    Verb::Reload,
                    self.reloads.current.is_none() && self.reloads.reading.is_none(),
                ),
                // The reply is sent when the configuration has been read.
                Waits::Checked(_) => (Verb::Check, false),
                Waits::Settled(verb) => (verb, self.workers.pool.is_settled()),
                Waits::Emptied(id) => (
                    Verb::Hold,
                    self.workers
                        .all
                        .get(&id)
                        .is_none_or(|w| w.leases.clients() == 0),
                ),
                Waits::Deserted => (Verb::Drain, self.clients.count == 0 || !is_drained),
                Waits::Rebalanced => (Verb::Rebalance, moves.is_some()),
                // The reply has been queued already, or the new program sends it.
                Waits::Upgraded => (Verb::Upgrade, false),
                Waits::Renewed => (Verb::Upgrade, self.workers.pool.is_settled()),
                Waits::Event { after, until } => (
                    Verb::Events,
                    until <= now || after != self.telemetry.events.last(),
                ),
            };
            // Events are reported to the end.
            let is_refused = is_stopping && verb != Verb::Events;
            if !(is_so || is_refused) {
                continue;
            }
            if let Waits::Event { after, .. } = waits {
                // A reload may have taken the client's access away since.
                let events = self
                    .control
                    .clients
                    .need(number, Role::Reader)
                    .map(|()| self.events_after(after));
                let answer = |client: &mut ControlClient| match &events {
                    Ok(events) => client.reply(verb, events),
                    Err(refusal) => client.refuse_with(refusal),
                };
                self.answer_late(number, answer, now);
                continue;
            }
            let answer = |client: &mut ControlClient| match (waits, &moves) {
                (Waits::Reloaded, _) => {}
                _ if is_stopping => client.refuse(RefusalCode::Refused, "the daemon is stopping"),
                (Waits::Deserted, _) if !is_drained => {
                    client.refuse(RefusalCode::Refused, "clients are accepted again")
                }
                (Waits::Rebalanced, Some(moves)) => client.reply(
                    verb,
                    &Rebalanced {
                        moves: moves.clone(),
                    },
                ),
                (Waits::Renewed, _) => client.reply(verb, &upgraded),
                _ => client.reply(verb, &settled),
            };
            self.answer_late(number, answer, now);
        }
    }
}

/// A request that is permitted.
#[derive(Clone, Copy)]
struct Asked<'a> {
    verb: Verb,
    /// `null` if the request has none.
    params: &'a str,
}

impl Asked<'_> {
    /// Returns whether the request changes anything.
    fn changes(&self) -> bool {
        // Unreadable parameters are refused anyway.
        let sets_level = || {
            self.params_or_default::<SetLogLevel>()
                .is_ok_and(|asked| asked.level.is_some())
        };
        self.verb.changes() || (self.verb == Verb::LogLevel && sets_level())
    }

    /// Parses the parameters. Only an object is accepted, because serde would also read a struct
    /// from an array.
    fn params<T: DeserializeOwned>(&self) -> Result<T, Refusal> {
        let found = match self.params.starts_with('{') {
            true => serde_json::from_str(self.params).map_err(|e| e.to_string()),
            false => Err("expected an object".to_owned()),
        };
        found.map_err(|why| {
            Refusal::new(
                RefusalCode::BadParams,
                format!("params of {}: {why}", self.verb.as_str()),
            )
        })
    }

    fn params_or_default<T: DeserializeOwned + Default>(&self) -> Result<T, Refusal> {
        if self.params == NULL {
            Ok(T::default())
        } else {
            self.params()
        }
    }

    fn no_params(&self) -> Result<(), Refusal> {
        #[derive(Default, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        struct NoParams {}
        self.params_or_default::<NoParams>().map(|NoParams {}| ())
    }
}
