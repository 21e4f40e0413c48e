//! The outcome of a reload, and where it is reported: the events, the last reload of the status, the counters, the
//! service manager, and the clients that wait for it.

use std::time::{Duration, SystemTime};

use crate::master::Master;
use crate::master::control::pending::PendingKind;
use crate::master::control::reply::ControlReply;
use crate::master::telemetry::events::Asker;
use crate::proto::control::{
    About, Kind, LastReload, Place, Refusal, RefusalCode, Reloaded, Verb, Verdict,
};
use crate::proto::names::Generation;

/// The outcome of a reload.
#[derive(Debug)]
pub(crate) enum ReloadOutcome {
    Applied(Reloaded),
    Rejected {
        asker: Asker,
        refusal: Refusal,
    },
    /// Without a generation if its configuration was still being read.
    RolledBack {
        generation: Option<Generation>,
        why: String,
    },
}

impl ReloadOutcome {
    fn verdict(&self) -> Verdict {
        match self {
            ReloadOutcome::Applied(_) => Verdict::Applied,
            ReloadOutcome::Rejected { .. } => Verdict::Rejected,
            ReloadOutcome::RolledBack { .. } => Verdict::RolledBack,
        }
    }

    /// Returns the reason why the configuration is not in force.
    fn message(&self) -> Option<&str> {
        match self {
            ReloadOutcome::Applied(_) => None,
            ReloadOutcome::Rejected { refusal, .. } => Some(&refusal.message),
            ReloadOutcome::RolledBack { why, .. } => Some(why),
        }
    }

    fn event(&self) -> Option<(Kind, About, String)> {
        Some(match self {
            ReloadOutcome::Applied(reloaded) => {
                let about = About {
                    generation: Some(reloaded.generation),
                    workers: Some(reloaded.workers),
                    ..About::default()
                };
                let took = Duration::from_secs_f64(reloaded.seconds).as_millis();
                let generation = reloaded.generation;
                let sentence =
                    format!("reloaded: generation {generation} is in force after {took} ms");
                (Kind::ReloadApplied, about, sentence)
            }
            ReloadOutcome::Rejected { asker, refusal } => {
                let why = sentence_of(refusal);
                let sentence = format!("{asker}: the new configuration is rejected: {why}");
                (Kind::ReloadRejected, asker.about(), sentence)
            }
            ReloadOutcome::RolledBack { generation, why } => {
                let generation = (*generation)?;
                let about = About {
                    generation: Some(generation),
                    ..About::default()
                };
                let sentence = format!("generation {generation} is rolled back: {why}");
                (Kind::ReloadRolledBack, about, sentence)
            }
        })
    }

    fn result(&self) -> Result<ControlReply, Refusal> {
        match self {
            ReloadOutcome::Applied(reloaded) => ControlReply::new(Verb::Reload, reloaded),
            ReloadOutcome::Rejected { refusal, .. } => Err(refusal.clone()),
            ReloadOutcome::RolledBack { why, .. } => {
                Err(Refusal::new(RefusalCode::RolledBack, why))
            }
        }
    }
}

impl Master {
    /// Reports the outcome of a reload.
    pub(crate) fn report_reload(&mut self, outcome: &ReloadOutcome) {
        if let Some((kind, about, sentence)) = outcome.event() {
            self.telemetry.events.note(kind, about, sentence);
        }
        let verdict = outcome.verdict();
        let since_epoch = SystemTime::UNIX_EPOCH.elapsed();
        let at = since_epoch.unwrap_or(Duration::ZERO).as_secs();
        self.settings.last_reload = Some(LastReload {
            at,
            verdict,
            message: outcome.message().map(str::to_owned),
        });
        self.telemetry.counts.reloads.add(verdict, 1);
        if verdict == Verdict::Applied {
            self.telemetry.counts.applied_at = at;
        }
        self.manager.notify_reloaded(verdict != Verdict::Rejected);
        let result = outcome.result();
        let pending = match verdict {
            Verdict::Applied => PendingKind::Applied(result),
            Verdict::Rejected | Verdict::RolledBack => PendingKind::Known(result),
        };
        self.control
            .clients
            .replace_pending(|kind| matches!(kind, PendingKind::Reloaded), &pending);
    }
}

/// Returns a refusal in one line.
fn sentence_of(Refusal { message, place, .. }: &Refusal) -> String {
    match place {
        Some(Place {
            file,
            line: Some(line),
            column: Some(column),
            ..
        }) => {
            format!("{}:{line}:{column}: {message}", file.display())
        }
        Some(Place { file, .. }) => format!("{}: {message}", file.display()),
        None => message.clone(),
    }
}
