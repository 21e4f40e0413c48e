//! The state of the daemon as a whole, and which operations may begin in it.
//!
//! ```text
//! Running ── reload ───▶ Reloading ──▶ Running     applied, rejected or rolled back
//!         ── upgrade ──▶ Upgrading ──▶ Running     refused; execve(2) otherwise
//! any     ── SIGTERM ──▶ Restarting or Stopping    a reload or upgrade is abandoned
//! ```
//!
//! The data of an operation belongs to its owner: `reload` or `handover`. The start is not a state: before the first
//! worker is ready, a reload, an upgrade and a stop may begin as they may afterwards. `pool` knows whether a worker was
//! ever ready, and `service_manager` whether the start was announced.

use std::time::Instant;

use crate::proto::control::{Refusal, RefusalCode};

/// The state of the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lifecycle {
    /// Clients are served, and no operation is in progress.
    Running,
    /// A configuration is on its way into force since this time.
    Reloading(ReloadStep, Instant),
    /// A program is being checked, or the loop waits for the moment to execute it.
    Upgrading,
    /// The daemon exits, and its clients stay connected for the next master.
    Restarting,
    /// The daemon exits, and its clients are closed.
    Stopping,
}

/// The steps of a reload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReloadStep {
    /// A child reads the configuration.
    Reading,
    /// Workers of the new configuration are being started.
    Rolling,
}

impl Lifecycle {
    /// Returns whether the daemon is on its way to its exit.
    pub(crate) fn is_ending(self) -> bool {
        matches!(self, Lifecycle::Restarting | Lifecycle::Stopping)
    }

    /// Returns whether the daemon exits and keeps its clients.
    pub(crate) fn is_restarting(self) -> bool {
        self == Lifecycle::Restarting
    }

    /// Returns whether a configuration is on its way into force.
    pub(crate) fn is_reloading(self) -> bool {
        matches!(self, Lifecycle::Reloading(..))
    }

    /// Returns whether workers are being replaced for a reload.
    pub(crate) fn is_rolling(self) -> bool {
        matches!(self, Lifecycle::Reloading(ReloadStep::Rolling, _))
    }

    /// Checks that the daemon may be changed.
    ///
    /// # Errors
    /// `Refused` when the daemon is stopping.
    pub(crate) fn check_change(self) -> Result<(), Refusal> {
        if self.is_ending() {
            return Err(Refusal::new(RefusalCode::Refused, "the daemon is stopping"));
        }
        Ok(())
    }

    /// Checks that a reload may begin. An upgrade does not prevent it, but is abandoned.
    ///
    /// # Errors
    /// `Busy` during another reload; see also [`Lifecycle::check_change`].
    pub(crate) fn check_reload(self, now: Instant) -> Result<(), Refusal> {
        self.check_change()?;
        let Lifecycle::Reloading(step, began) = self else {
            return Ok(());
        };
        let seconds = now.duration_since(began).as_secs_f64();
        let what = match step {
            ReloadStep::Reading => "its configuration is being read",
            ReloadStep::Rolling => "its workers are not all ready yet",
        };
        Err(Refusal::new(
            RefusalCode::Busy,
            format!("another reload has been in progress for {seconds:.1} s: {what}"),
        ))
    }

    /// Checks that an upgrade may begin.
    ///
    /// # Errors
    /// `Busy` during a reload or another upgrade; see also [`Lifecycle::check_change`].
    pub(crate) fn check_upgrade(self) -> Result<(), Refusal> {
        self.check_change()?;
        let what = match self {
            Lifecycle::Reloading(..) => "reload",
            Lifecycle::Upgrading => "upgrade",
            Lifecycle::Running | Lifecycle::Restarting | Lifecycle::Stopping => return Ok(()),
        };
        Err(Refusal::new(
            RefusalCode::Busy,
            format!("another {what} is in progress"),
        ))
    }

    /// Goes from reading to rolling.
    pub(crate) fn roll(&mut self) {
        if let Lifecycle::Reloading(step, _) = self {
            *step = ReloadStep::Rolling;
        }
    }

    /// Ends a reload, if that is what is in progress.
    pub(crate) fn end_reload(&mut self) {
        if self.is_reloading() {
            *self = Lifecycle::Running;
        }
    }

    /// Ends an upgrade, if that is what is in progress.
    pub(crate) fn end_upgrade(&mut self) {
        if *self == Lifecycle::Upgrading {
            *self = Lifecycle::Running;
        }
    }
}
