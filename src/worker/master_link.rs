//! The worker's end of its channel: messages of the master, and reports to it.

use std::io;
use std::os::fd::AsRawFd;

use super::CHANNEL;
use crate::channel::{Channel, Incoming, Scratch, Sent};
use crate::proto::channel::{AppGone, Health, MAX_SLOTS, Spent, SpentReason, ToMaster, ToWorker};
use crate::sys::poll::{Interest, Poller};

/// The channel to the master, and the reports that the master has yet to receive.
#[derive(Debug)]
pub(super) struct MasterLink<'c> {
    channel: &'c mut Channel<ToMaster, ToWorker>,
    /// Whether the poller reports when the channel accepts messages again.
    is_full: bool,
    /// Slots of clients that were closed.
    pub(super) closed: Vec<u32>,
    /// Slots whose leases were revoked or given up.
    pub(super) released: Vec<u32>,
    pub(super) has_capacity: bool,
    pub(super) is_near_limit: bool,
    /// Why this worker should be replaced.
    pub(super) spent: Option<SpentReason>,
    /// How the app has ended, because of which this worker ends.
    pub(super) app_gone: Option<AppGone>,
    pub(super) health: Option<Health>,
}

impl<'c> MasterLink<'c> {
    pub(super) fn new(
        channel: &'c mut Channel<ToMaster, ToWorker>,
        poller: &Poller,
    ) -> io::Result<MasterLink<'c>> {
        poller.add(&*channel, CHANNEL, Interest::Read)?;
        Ok(MasterLink {
            channel,
            is_full: false,
            closed: Vec::new(),
            released: Vec::new(),
            has_capacity: false,
            is_near_limit: false,
            spent: None,
            app_gone: None,
            health: None,
        })
    }

    /// Returns the number of the channel's descriptor.
    pub(super) fn descriptor(&self) -> u32 {
        use std::os::fd::AsFd;
        self.channel.as_fd().as_raw_fd().unsigned_abs()
    }

    pub(super) fn receive(&self, scratch: &mut Scratch) -> io::Result<Incoming<ToWorker>> {
        self.channel.receive(scratch)
    }

    /// Returns whether a report must be sent before the worker may exit.
    pub(super) fn has_reports(&self) -> bool {
        !self.closed.is_empty() || !self.released.is_empty() || self.is_near_limit
    }

    /// Sends all reports, in as few messages as possible; reports that the channel does not accept now wait until it
    /// does. Returns whether the master is gone.
    ///
    /// Reports are sent at once: batching them, even for a millisecond, made short connections a tenth more expensive,
    /// because the kernel's memory of a closed connection had left the caches when it was used again.
    pub(super) fn send_reports(&mut self, poller: &Poller) -> io::Result<bool> {
        let mut sent = Sent::Queued;
        if let Some(gone) = self.app_gone.take() {
            // The channel is full only if the master is far behind; then it learns the reason from `Failed` alone.
            sent = self.channel.send(&ToMaster::AppGone(gone), &[])?;
        }
        if self.is_near_limit {
            sent = self.channel.send(&ToMaster::NearRequestLimit, &[])?;
            self.is_near_limit = sent == Sent::Full;
        }
        if sent == Sent::Queued
            && let Some(reason) = self.spent
        {
            sent = self.channel.send(&ToMaster::Spent(Spent { reason }), &[])?;
            if sent != Sent::Full {
                self.spent = None;
            }
        }
        while sent == Sent::Queued && !self.closed.is_empty() {
            sent = send_slots(self.channel, &mut self.closed, ToMaster::Closed)?;
        }
        while sent == Sent::Queued && !self.released.is_empty() {
            sent = send_slots(self.channel, &mut self.released, ToMaster::Released)?;
        }
        if sent == Sent::Queued
            && let Some(health) = &self.health
        {
            sent = self.channel.send(&ToMaster::Health(health.clone()), &[])?;
            if sent != Sent::Full {
                self.health = None;
            }
        }
        if sent == Sent::Queued && self.has_capacity {
            sent = self.channel.send(&ToMaster::HasCapacity, &[])?;
            self.has_capacity = sent == Sent::Full;
        }
        let is_full = sent == Sent::Full;
        if is_full != self.is_full && sent != Sent::Closed {
            let interest = if is_full {
                Interest::Both
            } else {
                Interest::Read
            };
            poller.modify(&*self.channel, CHANNEL, interest)?;
            self.is_full = is_full;
        }
        Ok(sent == Sent::Closed)
    }
}

/// Sends as many slots as one message can contain, and removes those that were sent.
fn send_slots(
    channel: &mut Channel<ToMaster, ToWorker>,
    slots: &mut Vec<u32>,
    message: fn(Vec<u32>) -> ToMaster,
) -> io::Result<Sent> {
    let count = slots.len().min(MAX_SLOTS);
    let sent = channel.send(&message(slots[..count].to_vec()), &[])?;
    // A closed channel will have no receiver for them.
    if sent != Sent::Full {
        slots.drain(..count);
    }
    Ok(sent)
}
