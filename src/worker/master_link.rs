//! The worker's end of its channel: messages of the master, and reports to it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use super::CHANNEL;
use super::handoff::register_all;
use crate::channel::{Channel, Incoming, Scratch, Sent};
use crate::loop_clock::Shortage;
use crate::proto::channel::{AppGone, Health, MAX_SLOTS, Spent, SpentReason, ToMaster, ToWorker};
use crate::sys::clock;
use crate::sys::handoff::EmergencyHandoff;
use crate::sys::poll::{self, Interest, Poller};

/// The time between two attempts to send the end of an app, and the most attempts.
const RETRY_INTERVAL: Duration = Duration::from_millis(10);
const MAX_ATTEMPTS: u32 = 100;

/// The channel to the master, and the reports that the master has yet to receive.
#[derive(Debug)]
pub(super) struct MasterLink<'c> {
    channel: &'c mut Channel<ToMaster, ToWorker>,
    /// Whether the poller reports when the channel accepts messages again.
    is_full: bool,
    /// The waits for memory of the kernel, to receive and to send.
    receiving: Shortage<u64>,
    sending: Shortage<u64>,
    /// Slots of clients that were closed.
    pub(super) closed: Vec<u32>,
    /// Slots whose PROXY protocol headers the master must look at.
    pub(super) proxied: Vec<u32>,
    /// Slots whose leases were revoked or given up.
    pub(super) released: Vec<u32>,
    pub(super) has_capacity: bool,
    pub(super) is_near_limit: bool,
    /// Why this worker should be replaced.
    pub(super) spent: Option<SpentReason>,
    /// Whether this worker has decided to retire, and still has requests that are away.
    pub(super) is_retiring: bool,
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
            receiving: Shortage::default(),
            sending: Shortage::default(),
            closed: Vec::new(),
            proxied: Vec::new(),
            released: Vec::new(),
            has_capacity: false,
            is_near_limit: false,
            spent: None,
            is_retiring: false,
            app_gone: None,
            health: None,
        })
    }

    /// Returns the number of the channel's descriptor.
    pub(super) fn descriptor(&self) -> u32 {
        self.channel.as_fd().as_raw_fd().unsigned_abs()
    }

    /// Reports that the worker is ready. Called when no further step of the start can fail. If the master is gone, the
    /// loop detects that. The call may block, because no client waits for this process yet.
    ///
    /// # Errors
    /// Those of sendmsg(2).
    pub(super) fn send_ready(&mut self, ready: &ToMaster) -> io::Result<()> {
        while self.channel.send(ready, &[])?.is_refused() {
            poll::pause(RETRY_INTERVAL);
        }
        Ok(())
    }

    /// Receives a message. While the kernel has no memory for one, the poller does not report the channel. `now` is ns
    /// of CLOCK_MONOTONIC.
    ///
    /// # Errors
    /// Those of recvmsg(2) and epoll_ctl(2).
    pub(super) fn receive(
        &mut self,
        scratch: &mut Scratch,
        poller: &Poller,
        now: u64,
    ) -> io::Result<Incoming<ToWorker>> {
        let incoming = self.channel.receive(scratch)?;
        if matches!(incoming, Incoming::Shortage) {
            self.receiving.begin(|wait| clock::after(now, wait));
            poller.modify(&*self.channel, CHANNEL, Interest::Paused)?;
        } else {
            self.receiving.end();
        }
        Ok(incoming)
    }

    /// Returns when to try again what the kernel has had no memory for: ns of CLOCK_MONOTONIC.
    pub(super) fn retry_at(&self) -> Option<u64> {
        let waits = [self.receiving.until(), self.sending.until()];
        waits.into_iter().flatten().min()
    }

    /// Has the poller report the channel again, if it is time. `now` is ns of CLOCK_MONOTONIC.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    pub(super) fn retry(&mut self, poller: &Poller, now: u64) -> io::Result<()> {
        self.sending.end_if_over(now);
        if self.receiving.end_if_over(now) {
            poller.modify(&*self.channel, CHANNEL, self.interest())?;
        }
        Ok(())
    }

    fn interest(&self) -> Interest {
        if self.receiving.until().is_some() {
            return Interest::Paused;
        }
        match self.is_full {
            true => Interest::Both,
            false => Interest::Read,
        }
    }

    /// Sends how the app has ended, before the worker ends because of it: the master attributes the death by that.
    /// Waits for space, for at most a second. No client waits for this process then. Returns whether it was sent.
    pub(super) fn send_app_gone(&mut self) -> bool {
        let Some(gone) = self.app_gone.take() else {
            return false;
        };
        let message = ToMaster::AppGone(gone);
        for _ in 0..MAX_ATTEMPTS {
            match self.channel.send(&message, &[]) {
                Ok(sent) if sent.is_refused() => poll::pause(RETRY_INTERVAL),
                sent => return sent.is_ok_and(|sent| sent == Sent::Queued),
            }
        }
        false
    }

    /// Waits for `Stop`, with which the master answers the end of the app, or for the end of the master. Between these
    /// two, this process may be the only one that has the means to keep its clients. Returns the sockets of those that
    /// arrive until then, which are registered.
    pub(super) fn await_stop(&mut self, handoff: &'static EmergencyHandoff) -> Vec<OwnedFd> {
        let mut late_sockets = Vec::new();
        let mut scratch = Scratch::default();
        loop {
            let held_off = handoff.hold_off();
            let received = self.channel.receive(&mut scratch);
            if let Ok(Incoming::Message(ToWorker::Lease(leases), sockets)) = received {
                register_all(Some(handoff), &leases, &sockets);
                late_sockets.extend(sockets);
                continue;
            }
            drop(held_off);
            match received {
                Ok(Incoming::Message(ToWorker::Stop(_), _) | Incoming::Closed) | Err(_) => {
                    return late_sockets;
                }
                Ok(Incoming::Message(..) | Incoming::Garbage(_)) => {}
                Ok(Incoming::Shortage) => poll::pause(RETRY_INTERVAL),
                Ok(Incoming::Nothing) => {
                    let wait = Duration::from_secs(60);
                    if poll::wait_for(&*self.channel, Interest::Read, wait).is_err() {
                        return late_sockets;
                    }
                }
            }
        }
    }

    /// Returns whether the master has closed its end.
    pub(super) fn is_gone(&self) -> bool {
        poll::wait_for(&*self.channel, Interest::End, Duration::ZERO).unwrap_or(false)
    }

    /// Returns whether a report must be sent before the worker may exit.
    pub(super) fn has_reports(&self) -> bool {
        !self.closed.is_empty() || !self.released.is_empty() || self.is_near_limit
    }

    /// Sends all reports, in as few messages as possible; reports that the channel does not accept now wait until it
    /// does. Returns whether the master is gone. `now` is ns of CLOCK_MONOTONIC.
    ///
    /// Reports are sent at once: batching them, even for a millisecond, made short connections a tenth more expensive,
    /// because the kernel's memory of a closed connection had left the caches when it was used again.
    pub(super) fn send_reports(&mut self, poller: &Poller, now: u64) -> io::Result<bool> {
        if self.sending.until().is_some() {
            return Ok(false);
        }
        let mut sent = Sent::Queued;
        if self.is_near_limit {
            sent = self.channel.send(&ToMaster::NearRequestLimit, &[])?;
            self.is_near_limit = sent.is_refused();
        }
        if sent == Sent::Queued
            && let Some(reason) = self.spent
        {
            sent = self.channel.send(&ToMaster::Spent(Spent { reason }), &[])?;
            if !sent.is_refused() {
                self.spent = None;
            }
        }
        // Before the slots that it gives up, so that their clients do not come back.
        if sent == Sent::Queued && self.is_retiring {
            sent = self.channel.send(&ToMaster::Retiring, &[])?;
            self.is_retiring = sent.is_refused();
        }
        while sent == Sent::Queued && !self.proxied.is_empty() {
            sent = send_slots(self.channel, &mut self.proxied, ToMaster::Proxied)?;
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
            if !sent.is_refused() {
                self.health = None;
            }
        }
        if sent == Sent::Queued && self.has_capacity {
            sent = self.channel.send(&ToMaster::HasCapacity, &[])?;
            self.has_capacity = sent.is_refused();
        }
        match sent {
            Sent::Shortage => self.sending.begin(|wait| clock::after(now, wait)),
            _ => self.sending.end(),
        }
        let is_full = sent == Sent::Full;
        if is_full != self.is_full && sent != Sent::Closed {
            self.is_full = is_full;
            poller.modify(&*self.channel, CHANNEL, self.interest())?;
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
    if !sent.is_refused() {
        slots.drain(..count);
    }
    Ok(sent)
}
