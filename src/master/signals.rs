//! Signals, each with what it asks for.

use std::time::{Duration, Instant};

use crate::master::Master;
use crate::master::telemetry::events::Asker;
use crate::proto::control::RefusalCode;
use crate::sys::signal::Signal;

/// Two signals to stop within this time are one.
const SIGNAL_ECHO_INTERVAL: Duration = Duration::from_millis(200);

impl Master {
    pub(super) fn take_signals(&mut self, now: Instant) {
        let arrived = std::mem::take(&mut self.arrived)
            .into_iter()
            .chain(self.signals.take());
        for signal in arrived.collect::<Vec<_>>() {
            match signal {
                // What it tells is known by now.
                Signal::Continue => {}
                Signal::Terminate | Signal::Interrupt if self.is_echo(signal, now) => {}
                Signal::Terminate if self.handover.store.is_some() => {
                    self.terminate(Asker::from_signal("SIGTERM"), now)
                }
                Signal::Terminate => self.stop(Asker::from_signal("SIGTERM"), now),
                Signal::Interrupt => self.stop(Asker::from_signal("SIGINT"), now),
                Signal::Child => self.reap(now),
                Signal::User1 => {
                    if let Err(refusal) = self.reopen_log(Asker::from_signal("SIGUSR1"), now) {
                        log::warn!("SIGUSR1: {}", refusal.message);
                    }
                }
                Signal::User2 => {
                    if let Err(refusal) =
                        self.begin_upgrade(Asker::from_signal("SIGUSR2"), None, now)
                    {
                        log::warn!("SIGUSR2: {}", refusal.message);
                    }
                }
                Signal::Hangup => {
                    // The verdict is in the log and in the status; nobody waits for it.
                    if let Err(refusal) =
                        self.begin_reload(Asker::from_signal("SIGHUP"), false, now)
                        && refusal.code != RefusalCode::Rejected
                    {
                        log::warn!("SIGHUP: {}", refusal.message);
                        self.manager.notify_reloaded(false);
                    }
                }
                Signal::TerminalInput => self.step(Asker::from_signal("SIGTTIN"), 1),
                Signal::TerminalOutput => self.step(Asker::from_signal("SIGTTOU"), -1),
            }
        }
    }

    /// Whether a signal to stop is the one before once more: timeout(1) sends it to its child, then to the whole group.
    fn is_echo(&mut self, signal: Signal, now: Instant) -> bool {
        let is_echo = matches!(self.asked_to_stop, Some((same, at)) if same == signal && now < at + SIGNAL_ECHO_INTERVAL);
        if !is_echo {
            self.asked_to_stop = Some((signal, now));
        }
        is_echo
    }
}
