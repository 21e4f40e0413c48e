//! Reports of the daemon on itself: the first ready worker, and its state for the service manager.

use std::time::Instant;

use crate::logging;
use crate::master::Master;
use crate::master::service_manager::Details;
use crate::proto::control::{About, Kind};

impl Master {
    /// Announces that the daemon serves, if the worker that has become ready is the first one.
    pub(super) fn announce(&mut self) {
        let Some(announce) = self.manager.announce.take() else {
            return;
        };
        let listeners = self.listeners.all.iter();
        let addresses: Vec<String> = listeners
            .map(|listener| listener.address.to_string())
            .collect();
        let sentence = format_args!(
            "{} {} serves on {}",
            self.name,
            self.version,
            addresses.join(", ")
        );
        let events = &mut self.telemetry.events;
        match logging::is_on_stdout() {
            true => events.record(Kind::Started, About::default(), sentence),
            false => events.note(Kind::Started, About::default(), sentence),
        }
        // One that expects a PROXY protocol header serves load balancers.
        let mut listeners = self.listeners.all.iter();
        let plain = listeners.find(|listener| listener.proxy.is_none());
        announce(&addresses, plain.map(|listener| &listener.address));
        self.manager.note_first_worker();
    }

    /// Reports the state at the end of an iteration of the loop to the service manager.
    pub(super) fn report_to_manager(&mut self, now: Instant) {
        if !self.manager.notifier.is_present() {
            return;
        }
        if !self.lifecycle.is_ending()
            && self.manager.end_start(&self.workers.pool, now)
            && self.lifecycle.is_rolling()
        {
            self.manager.notify_reloading();
        }
        let snapshot = self.status_snapshot();
        let missing = snapshot.missing(false);
        let summary = snapshot.summary(missing.len());
        let details = Details {
            last_reload: self.settings.last_reload.as_ref(),
            stale: self.settings.stale.as_deref(),
            missing: &missing,
        };
        self.manager.report(summary, &details, now);
    }
}
