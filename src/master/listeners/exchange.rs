//! The change of the listeners by a reload: planned while the former configuration is in force, carried out when all
//! workers of the new one are ready.

use std::fmt;
use std::time::Instant;

use crate::config::Config;
use crate::master::error::Error;
use crate::master::listeners::conflict::OwnListeners;
use crate::master::listeners::listener::Listener;
use crate::master::listeners::served::Served;
use crate::master::listeners::{Listeners, matching};
use crate::master::telemetry::Telemetry;
use crate::proto::control::{About, Kind};
use crate::sys::poll::Poller;

/// The change of a listener by a reload.
#[derive(Debug)]
pub(crate) enum PlannedListener {
    /// The listener of this number stays.
    Keep(u32),
    /// A new listener; clients can connect already, unless the daemon is drained.
    New(Box<Listener>),
}

impl Listeners {
    /// Binds the listeners that are new, and checks that the others can change.
    ///
    /// # Errors
    /// The first step that fails. If the daemon itself, according to `own`, listens at the address, the error names it.
    pub(crate) fn plan(
        &self,
        config: &Config,
        own: impl Fn() -> OwnListeners,
    ) -> Result<Vec<PlannedListener>, Error> {
        let Listeners {
            all,
            activated,
            last_number,
            ..
        } = self;
        let keepalive = config.limits.tcp_keepalive;
        let refuses = self.refuse_clients();
        let wanted = activated.wanted(&config.listen)?;
        let kept = matching::match_existing(all, &wanted, matching::keeps_reachable);
        let mut number = *last_number;
        let mut planned = Vec::new();
        for (wanted, kept) in wanted.iter().zip(kept) {
            planned.push(match kept {
                Some(index) => {
                    all[index].check_access(wanted.entry)?;
                    PlannedListener::Keep(all[index].number)
                }
                None => {
                    number += 1;
                    let opened = Listener::open(number, wanted, activated, keepalive, refuses)
                        .map_err(|e| own().explain(e, wanted.address()))?;
                    PlannedListener::New(Box::new(opened))
                }
            });
        }
        Ok(planned)
    }

    /// Changes the listeners that stay, watches the new ones, and has the others close when their queues are empty. The
    /// first listeners are in the order of the configuration.
    pub(crate) fn exchange(
        &mut self,
        planned: Vec<PlannedListener>,
        config: &Config,
        telemetry: &mut Telemetry,
        poller: &Poller,
        now: Instant,
    ) {
        let mut before = std::mem::take(&mut self.all);
        // No error is possible: when the reload was prepared, there were sockets of all names, and they are kept.
        let wanted = self.activated.wanted(&config.listen).unwrap_or_default();
        for (planned, wanted) in planned.into_iter().zip(&wanted) {
            let listener = match planned {
                PlannedListener::Keep(number) => {
                    let kept = before.iter().position(|listener| listener.number == number);
                    let Some(index) = kept else { continue };
                    let mut listener = before.remove(index);
                    log_error(
                        "change a listener",
                        listener.adopt(wanted.entry, config.limits.tcp_keepalive),
                    );
                    listener.set_source(&wanted.source);
                    listener
                }
                PlannedListener::New(mut listener) => {
                    let interest = self.gate.interest();
                    if listener.is_watched() {
                        listener.watch(interest, poller, now);
                    }
                    let does = match listener.is_refusing() {
                        true => "refusing clients",
                        false => "listening",
                    };
                    let sentence = format_args!("{does} on {}", listener.address);
                    telemetry
                        .events
                        .note(Kind::ListenerOpened, About::default(), sentence);
                    self.last_number = listener.number;
                    *listener
                }
            };
            self.all.push(listener);
        }
        self.closing = before.iter().map(|listener| listener.number).collect();
        self.all.extend(before);
    }
}

/// Logs that a step has failed although it was possible when the reload was prepared. The other changes of the reload
/// are still applied.
fn log_error(what: &str, result: Result<(), impl fmt::Display>) {
    if let Err(e) = result {
        log::error!("cannot {what}: {e}");
    }
}
