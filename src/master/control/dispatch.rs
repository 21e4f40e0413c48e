//! Dispatch of control requests, and their replies.

use std::time::Instant;

use serde_json::value::RawValue;

use crate::master::Master;
use crate::master::control::access::Role;
use crate::master::control::pending::Waits;
use crate::master::control::request::Asked;
use crate::master::control::server::ControlClient;
use crate::master::telemetry::events::Asker;
use crate::proto::control::{Kind, Rebalanced, Refusal, RefusalCode, Settled, Upgraded, Verb};
use crate::proto::rpc::{NULL, Request};
use crate::proto::text::Counted;

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
                                "{sentence}; {} forbidden",
                                Counted(others, "earlier request")
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
        if asked.verb.changes() && asked.verb != Verb::Stop {
            self.lifecycle.check_change()?;
        }
        match asked.verb {
            Verb::Status => self.show_status(client, asked, now),
            Verb::Version => self.show_version(client, asked),
            Verb::Clients => self.show_clients(client, asked),
            Verb::Events => self.show_events(asked, now),
            Verb::Config => self.show_config(client, asked),
            Verb::Metrics => self.show_metrics(client, asked, now),
            Verb::Check => self.check_file(asked),
            Verb::LogLevel => self.show_or_set_log_level(client, asked, asker),
            Verb::Kick => self.kick_client(client, asked, asker),
            Verb::Stop => self.stop_daemon(asked, asker, now),
            Verb::Reload => self.reload_file(asked, asker, now),
            Verb::Scale => self.scale_workers(asked, asker),
            Verb::Recycle => self.recycle_workers(asked, asker),
            Verb::Hold => self.hold_worker(asked, asker),
            Verb::Release => self.release_held(asked, asker),
            Verb::Drain => self.drain_daemon(asked, asker),
            Verb::Undrain => self.undrain_daemon(asked, asker),
            Verb::Rebalance => self.rebalance_clients(asked, asker, now),
            Verb::Upgrade => self.upgrade_daemon(client, asked, asker, now),
            Verb::ReopenLog => self.reopen_log_file(asked, asker, now),
        }
    }

    fn settled(&self) -> Settled {
        Settled {
            workers: self.ready_workers().count() as u32,
            clients: self.clients.count(),
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
            self.lifecycle.is_ending(),
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
                Waits::Reloaded => (Verb::Reload, !self.lifecycle.is_reloading()),
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
                Waits::Deserted => (Verb::Drain, self.clients.count() == 0 || !is_drained),
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
