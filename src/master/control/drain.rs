//! `drain` and `undrain`: the operator's part of `master/listeners/drain.rs`.

use std::time::{Duration, Instant};

use crate::master::Master;
use crate::master::control::pending::PendingKind;
use crate::master::control::reply::ControlReply;
use crate::master::telemetry::events::Asker;
use crate::proto::control::{
    About, Drain, DrainMode, DrainResult, Kind, Refusal, RefusalCode, Verb,
};
use crate::proto::text::Counted;

/// The longest notice, and the longest period over which clients get a goaway.
const MAX_NOTICE: Duration = Duration::from_secs(24 * 60 * 60);

impl Master {
    /// Begins a drain, or changes the terms of the one that is under way. Returns what the reply waits for.
    ///
    /// # Errors
    /// `bad_params` for a time that is negative or longer than a day; `refused` when the daemon is drained already.
    pub(crate) fn drain(
        &mut self,
        asker: Asker,
        asked: Drain,
        now: Instant,
    ) -> Result<PendingKind, Refusal> {
        let Drain {
            wait,
            notice,
            mode,
            over,
        } = asked;
        let notice = notice.map(|time| time_from("notice", time)).transpose()?;
        let over = over.map(|time| time_from("move", time)).transpose()?;
        let default = self.settings.config.limits.drain_notice;
        let drain = self
            .listeners
            .begin_drain(mode, (notice, default), over, now)?;
        let left = drain.notice_left(now);
        let drained = self.listeners.describe_drained(drain.mode, &self.clients);
        let (kind, sentence) = match left {
            None => (Kind::Drained, drained),
            Some(left) => {
                let connected = Counted(self.clients.count(), "client");
                let then = match drain.mode {
                    DrainMode::Refuse => "refused",
                    DrainMode::Queue => "not accepted",
                };
                let sentence = format!(
                    "leaving in {left:?}: new clients are served until then, and {then} afterwards; {connected} connected"
                );
                (Kind::DrainNotice, sentence)
            }
        };
        let about = About {
            clients: Some(self.clients.count()),
            ..asker.about()
        };
        let sentence = format_args!("{asker}: {sentence}");
        self.telemetry.events.note(kind, about, sentence);
        Ok(PendingKind::Drained { until_empty: wait })
    }

    /// Ends a drain, and accepts clients again.
    pub(crate) fn undrain(&mut self, asker: Asker) {
        self.listeners.drain = None;
        let clients = self.clients.count();
        let about = About {
            clients: Some(clients),
            ..asker.about()
        };
        let connected = Counted(clients, "client");
        let sentence = format_args!("{asker}: clients are accepted; {connected} connected");
        self.telemetry.events.note(Kind::Undrained, about, sentence);
    }

    /// Returns the reply to `drain`, if the condition for it is met: its notice has begun, or all listeners refuse
    /// clients; with `until_empty`, the last client has left since.
    pub(crate) fn drain_result(
        &self,
        until_empty: bool,
        now: Instant,
    ) -> Option<Result<ControlReply, Refusal>> {
        let Some(drain) = self.listeners.drain_status(now) else {
            let why = "clients are accepted again";
            return Some(Err(Refusal::new(RefusalCode::Refused, why)));
        };
        let is_drained = self.listeners.is_drained() && self.listeners.have_followed_drain();
        let is_done = match until_empty {
            true => is_drained && self.clients.count() == 0,
            false => is_drained || drain.notice.is_some(),
        };
        let result = DrainResult {
            workers: self.workers.pool.serving() as u32,
            clients: self.clients.count(),
            mode: drain.mode,
            notice: drain.notice,
            over: drain.over,
            waiting_at: self.listeners.waiting_at(drain.mode),
        };
        is_done.then(|| ControlReply::new(Verb::Drain, &result))
    }
}

fn time_from(name: &str, seconds: f64) -> Result<Duration, Refusal> {
    let time = Duration::try_from_secs_f64(seconds).ok();
    time.filter(|time| *time <= MAX_NOTICE).ok_or_else(|| {
        let sentence = format!("{name} is from 0 to {} seconds", MAX_NOTICE.as_secs());
        Refusal::new(RefusalCode::BadParams, sentence)
    })
}
