//! The stop of the daemon, by a signal or an operator.

use std::time::Instant;

use crate::master::Master;
use crate::master::lifecycle::Lifecycle;
use crate::master::telemetry::events::Asker;
use crate::proto::control::{About, Kind};
use crate::proto::text::Counted;

impl Master {
    /// Begins to stop; the second time, kills the workers that are left.
    pub(super) fn stop(&mut self, asker: Asker, now: Instant) {
        if self.lifecycle.is_ending() {
            self.telemetry.events.note(
                Kind::Stopping,
                asker.about(),
                format_args!("{asker} again: killing the workers that are left"),
            );
            return self.workers.pool.stop(now);
        }
        self.lifecycle = Lifecycle::Stopping;
        self.abandon_reload("the daemon is stopping".to_owned());
        let timeout = self.settings.config.limits.drain_timeout;
        let about = About {
            clients: Some(self.clients.count()),
            ..asker.about()
        };
        let sentence = format_args!(
            "{asker}: stopping; {}; waiting up to {timeout:?} for running requests",
            Counted(self.clients.count(), "client")
        );
        self.telemetry.events.note(Kind::Stopping, about, sentence);
        self.workers.pool.stop(now + timeout);
        self.workers.hurry_outgoing(now);
        self.manager.notify_stopping(timeout);
        self.listeners.closing.clear();
        // The service manager would keep the sockets, and the kernel would complete connections that end with them.
        let numbers = self.listeners.all.iter().map(|listener| listener.number);
        self.listeners.changed.extend(numbers);
        for listener in self.listeners.all.drain(..) {
            let _ = self.poller.remove(&listener);
        }
        self.clients.close_without_worker(&mut self.telemetry);
    }
}
