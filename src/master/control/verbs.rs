//! The verbs of the control socket, a function each.
//!
//! Each function returns `None` if the client is answered, else the event that its answer waits for.

use std::time::{Duration, Instant};

use crate::master::Master;
use crate::master::control::pending::Waits;
use crate::master::control::request::Asked;
use crate::master::control::server::ControlClient;
use crate::master::telemetry::events::Asker;
use crate::proto::control::{
    Drain, EventsAfter, Hold, Kick, MAX_WAIT, Metrics, Rebalance, Recycle, Refusal, RefusalCode,
    ReloadParams, Scale, UpgradeTo, Version,
};

/// Returns `None` if the client is answered, else the event that its answer waits for.
type VerbResult = Result<Option<Waits>, Refusal>;

impl Master {
    pub(crate) fn show_status(
        &mut self,
        client: &mut ControlClient,
        asked: Asked<'_>,
        now: Instant,
    ) -> VerbResult {
        asked.no_params()?;
        client.reply(asked.verb, &self.status(now));
        Ok(None)
    }

    pub(crate) fn show_version(&self, client: &mut ControlClient, asked: Asked<'_>) -> VerbResult {
        asked.no_params()?;
        let version = Version {
            name: self.name.clone(),
            version: self.version.to_owned(),
            pid: std::process::id(),
        };
        client.reply(asked.verb, &version);
        Ok(None)
    }

    pub(crate) fn show_clients(&self, client: &mut ControlClient, asked: Asked<'_>) -> VerbResult {
        let page = self.clients_page(asked.params_or_default()?)?;
        client.reply(asked.verb, &page);
        Ok(None)
    }

    pub(crate) fn show_events(&self, asked: Asked<'_>, now: Instant) -> VerbResult {
        let EventsAfter { after, wait } = asked.params_or_default()?;
        let wait = Duration::try_from_secs_f64(wait.unwrap_or(0.0))
            .ok()
            .filter(|wait| *wait <= MAX_WAIT)
            .ok_or_else(|| {
                let sentence = format!("wait is from 0 to {} seconds", MAX_WAIT.as_secs());
                Refusal::new(RefusalCode::BadParams, sentence)
            })?;
        let after = after.unwrap_or(0);
        let until = now + wait;
        Ok(Some(Waits::Event { after, until }))
    }

    pub(crate) fn show_config(&self, client: &mut ControlClient, asked: Asked<'_>) -> VerbResult {
        asked.no_params()?;
        client.reply(asked.verb, &self.effective());
        Ok(None)
    }

    pub(crate) fn show_metrics(
        &mut self,
        client: &mut ControlClient,
        asked: Asked<'_>,
        now: Instant,
    ) -> VerbResult {
        asked.no_params()?;
        let text = self.metrics(now);
        client.reply(asked.verb, &Metrics { text });
        Ok(None)
    }

    pub(crate) fn check_file(&self, asked: Asked<'_>) -> VerbResult {
        asked.no_params()?;
        Ok(Some(self.ask_for_check()))
    }

    pub(crate) fn show_or_set_log_level(
        &mut self,
        client: &mut ControlClient,
        asked: Asked<'_>,
        asker: Asker,
    ) -> VerbResult {
        let level = self.log_level(asker, asked.params_or_default()?);
        client.reply(asked.verb, &level);
        Ok(None)
    }

    pub(crate) fn kick_client(
        &mut self,
        client: &mut ControlClient,
        asked: Asked<'_>,
        asker: Asker,
    ) -> VerbResult {
        let Kick { client: id } = asked.params()?;
        client.reply(asked.verb, &self.kick(asker, id)?);
        Ok(None)
    }

    pub(crate) fn stop_daemon(
        &mut self,
        asked: Asked<'_>,
        asker: Asker,
        now: Instant,
    ) -> VerbResult {
        asked.no_params()?;
        if self.lifecycle.is_ending() {
            log::info!("{asker}: already stopping");
        } else {
            self.stop(asker, now);
        }
        Ok(Some(Waits::Stopped))
    }

    pub(crate) fn reload_file(
        &mut self,
        asked: Asked<'_>,
        asker: Asker,
        now: Instant,
    ) -> VerbResult {
        let ReloadParams { force } = asked.params_or_default()?;
        self.begin_reload(asker, force, now)?;
        Ok(Some(Waits::Reloaded))
    }

    pub(crate) fn scale_workers(&mut self, asked: Asked<'_>, asker: Asker) -> VerbResult {
        let Scale { count } = asked.params()?;
        self.scale(asker, count)?;
        Ok(Some(Waits::Settled(asked.verb)))
    }

    pub(crate) fn recycle_workers(&mut self, asked: Asked<'_>, asker: Asker) -> VerbResult {
        let Recycle { worker } = asked.params_or_default()?;
        self.recycle(asker, worker)?;
        Ok(Some(Waits::Settled(asked.verb)))
    }

    pub(crate) fn hold_worker(&mut self, asked: Asked<'_>, asker: Asker) -> VerbResult {
        let Hold { worker } = asked.params()?;
        self.hold(asker, worker)?;
        Ok(Some(Waits::Emptied(worker)))
    }

    pub(crate) fn release_held(&mut self, asked: Asked<'_>, asker: Asker) -> VerbResult {
        self.release(asker, &asked.params()?)?;
        Ok(Some(Waits::Nothing(asked.verb)))
    }

    pub(crate) fn drain_daemon(&mut self, asked: Asked<'_>, asker: Asker) -> VerbResult {
        let Drain { wait } = asked.params_or_default()?;
        self.set_drained(asker, true);
        Ok(Some(if wait {
            Waits::Deserted
        } else {
            Waits::Nothing(asked.verb)
        }))
    }

    pub(crate) fn undrain_daemon(&mut self, asked: Asked<'_>, asker: Asker) -> VerbResult {
        asked.no_params()?;
        self.set_drained(asker, false);
        Ok(Some(Waits::Nothing(asked.verb)))
    }

    pub(crate) fn rebalance_clients(
        &mut self,
        asked: Asked<'_>,
        asker: Asker,
        now: Instant,
    ) -> VerbResult {
        let Rebalance { dry_run } = asked.params_or_default()?;
        self.begin_balance(asker, dry_run, now)?;
        Ok(Some(Waits::Rebalanced))
    }

    pub(crate) fn upgrade_daemon(
        &mut self,
        client: &mut ControlClient,
        asked: Asked<'_>,
        asker: Asker,
        now: Instant,
    ) -> VerbResult {
        let UpgradeTo { binary } = asked.params_or_default()?;
        if binary.is_some() {
            self.control.clients.roles.need_owner(&client.peer)?;
        }
        self.begin_upgrade(asker, binary, now)?;
        Ok(Some(Waits::Upgraded))
    }

    pub(crate) fn reopen_log_file(
        &mut self,
        asked: Asked<'_>,
        asker: Asker,
        now: Instant,
    ) -> VerbResult {
        asked.no_params()?;
        self.reopen_log(asker, now)?;
        Ok(Some(Waits::Nothing(asked.verb)))
    }
}
