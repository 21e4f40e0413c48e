//! The outages of the listeners of clients.

use std::time::{Duration, Instant};

use crate::master::listeners::Listeners;
use crate::master::listeners::listener::Listener;
use crate::master::listeners::listener::refusal::Admission;
use crate::master::listeners::served::Served;
use crate::master::retry::Outage;
use crate::master::telemetry::Telemetry;
use crate::sys::listening::is_listening;
use crate::sys::poll::Poller;

impl Listeners {
    /// Handles listeners that the poller reported as ended. Clients that waited there have been accepted by now, if
    /// there was capacity for them.
    pub(crate) fn check_ended(
        &mut self,
        numbers: &[u32],
        telemetry: &mut Telemetry,
        poller: &Poller,
        now: Instant,
    ) {
        for number in numbers {
            let Some(index) = self.index_of(*number) else {
                continue;
            };
            let listener = &mut self.all[index];
            // The daemon itself has shut it down, for a drain.
            if listener.admission != Admission::Open {
                continue;
            }
            if self.closing.contains(number)
                && listener.outage.is_none()
                && !is_listening(&*listener)
            {
                self.close(index, telemetry, poller);
            } else {
                listener.check_ended(&mut telemetry.events, poller, now);
            }
        }
    }

    /// Ends the outages of listeners, if a try is due.
    pub(crate) fn end_outages(
        &mut self,
        keepalive: Option<Duration>,
        telemetry: &mut Telemetry,
        poller: &Poller,
        now: Instant,
    ) {
        let is_due = |listener: &&Listener| {
            let outage = listener.outage.as_ref();
            outage.is_some_and(|outage| outage.is_due(now))
        };
        let due: Vec<u32> = self
            .all
            .iter()
            .filter(is_due)
            .map(|listener| listener.number)
            .collect();
        let interest = self.gate.interest();
        for number in due {
            let Some(index) = self.index_of(number) else {
                continue;
            };
            if self.closing.contains(&number) {
                self.close(index, telemetry, poller);
                continue;
            }
            let activated = &mut self.activated;
            let changed = &mut self.changed;
            let bind_again = |listener: &mut Listener| {
                listener.bind_again(activated, keepalive)?;
                changed.push(listener.number);
                Ok(())
            };
            let context = (&mut telemetry.events, poller);
            self.all[index].end_outage(bind_again, interest, context, now);
        }
    }

    /// Returns when [`Listeners::end_outages`] has something to do.
    pub(super) fn outage_deadline(&self) -> Option<Instant> {
        self.all
            .iter()
            .filter_map(|listener| listener.outage.as_ref())
            .map(Outage::deadline)
            .min()
    }
}
