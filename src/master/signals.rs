//! Signals, and the request that each stands for.

use std::time::{Duration, Instant};

use crate::master::Master;
use crate::master::telemetry::events::Asker;
use crate::proto::control::RefusalCode;
use crate::sys::poll::{self, Interest};
use crate::sys::signal::{HeldBack, Signal, Signals};

/// Two signals to stop within this time count as one.
const SIGNAL_ECHO_INTERVAL: Duration = Duration::from_millis(200);

/// Signals that have arrived.
#[derive(Debug)]
pub(super) struct SignalQueue {
    signals: Signals,
    /// Signals that were read and are not handled yet.
    read: Vec<Signal>,
    /// The last signal to stop, and when it arrived.
    last_stop: Option<(Signal, Instant)>,
}

impl SignalQueue {
    pub(super) fn new(signals: Signals) -> SignalQueue {
        SignalQueue {
            signals,
            read: Vec::new(),
            last_stop: None,
        }
    }

    /// Returns whether signals were read and are not handled yet.
    pub(super) fn has_arrived(&self) -> bool {
        !self.read.is_empty()
    }

    /// Returns whether a signal was caught that is not handled yet. The next wait reports it.
    fn is_caught(&self) -> bool {
        let is_readable = || poll::wait_for(&self.signals, Interest::Read, Duration::ZERO);
        self.has_arrived() || is_readable().unwrap_or(true)
    }

    /// Reads the signals that have interrupted a wait. Returns whether this process was stopped: then there is none, or
    /// one to continue. A signal of a child reports only that it was stopped, too.
    pub(super) fn was_stopped(&mut self) -> bool {
        self.read.extend(self.signals.take());
        self.read.is_empty() || self.read.contains(&Signal::Continue)
    }

    fn take(&mut self) -> Vec<Signal> {
        self.read.extend(self.signals.take());
        std::mem::take(&mut self.read)
    }

    /// Returns whether a signal to stop repeats the one before: timeout(1) sends it to its child, then to the whole
    /// group.
    fn is_echo(&mut self, signal: Signal, now: Instant) -> bool {
        let is_echo = matches!(self.last_stop, Some((same, at)) if same == signal && now < at + SIGNAL_ECHO_INTERVAL);
        if !is_echo {
            self.last_stop = Some((signal, now));
        }
        is_echo
    }
}

impl Master {
    /// Advances an upgrade, unless a signal was caught that is not handled yet: execve(2) would discard it. Signals that
    /// arrive from now on are held back, and wait for the next program.
    pub(super) fn advance_upgrade_without_signals(&mut self, now: Instant) {
        if self.handover.upgrade.is_none() {
            return;
        }
        let _held_back = HeldBack::all();
        if !self.signals.is_caught() {
            self.advance_upgrade(now);
        }
    }

    pub(super) fn handle_signals(&mut self, now: Instant) {
        for signal in self.signals.take() {
            match signal {
                // The wait has seen it.
                Signal::Continue => {}
                Signal::Terminate | Signal::Interrupt if self.signals.is_echo(signal, now) => {}
                Signal::Terminate => {
                    let asker = Asker::from_signal("SIGTERM");
                    if !self.begin_restart(asker, now) {
                        self.stop(asker, now);
                    }
                }
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
                    // Also if the reload is refused or rejected: without the socket, no operator can see why.
                    self.control.replace_lost(&self.poller, now);
                    // A rejection has been reported, and no client waits for it.
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
}
