//! The channel of a worker: messages that could not be sent yet, and the retries while the channel is full, or the
//! kernel lacks memory.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Instant;

use crate::channel::Sent;
use crate::master::Token;
use crate::master::clients::leases::Recovered;
use crate::master::workers::Workers;
use crate::master::workers::channel_state::SendState;
use crate::master::workers::worker::Worker;
use crate::proto::channel::ToWorker;
use crate::sys::poll::{Interest, Poller};

impl Worker {
    /// Returns whether all messages for the worker are sent.
    pub(crate) fn has_sent_all(&self) -> bool {
        self.channel_state.unsent.is_empty()
    }

    /// Sends a message that must not be lost: if the channel is full, the message is sent later.
    pub(crate) fn send(&mut self, message: ToWorker) -> io::Result<()> {
        self.channel_state.unsent.push_back(message);
        self.send_unsent()
    }

    /// Sends the messages that wait for the channel.
    fn send_unsent(&mut self) -> io::Result<()> {
        while let Some(message) = self.channel_state.unsent.front() {
            match self.channel.send(message, &[])? {
                Sent::Full => {
                    self.set_full();
                    return Ok(());
                }
                Sent::Shortage => {
                    self.channel_state.note_refused();
                    return Ok(());
                }
                Sent::Queued | Sent::Closed => {
                    self.channel_state.unsent.pop_front();
                    self.channel_state.note_accepted();
                }
            }
        }
        Ok(())
    }

    /// Sends a message that is useless later. It is dropped if the channel is full, as the worker then has enough to
    /// read. Returns whether the worker has something to read now: if the kernel has no memory, it may have nothing.
    pub(super) fn try_send(&mut self, message: &ToWorker) -> bool {
        if !self.channel_state.unsent.is_empty() {
            return matches!(self.channel_state.send_state, SendState::Full { .. });
        }
        let sent = self.channel.send(message, &[]);
        !matches!(sent, Ok(Sent::Shortage) | Err(_))
    }

    /// Has the poller report what is awaited of the channel.
    pub(crate) fn watch_channel(&mut self, poller: &Poller) {
        if self.channel_state.send_state == (SendState::Full { is_watched: false }) {
            let watched = poller.modify(&self.channel, self.token(), self.interest(true));
            self.channel_state.send_state = SendState::Full {
                is_watched: watched.is_ok(),
            };
        }
    }

    fn token(&self) -> u64 {
        Token::Worker(self.id).into()
    }

    fn interest(&self, is_full: bool) -> Interest {
        if self.channel_state.receiving.until().is_some() {
            return Interest::Paused;
        }
        match is_full {
            true => Interest::Both,
            false => Interest::Read,
        }
    }

    /// Records whether the kernel had memory to deliver a message of the worker. If not, the poller does not report the
    /// channel for a while.
    pub(super) fn note_received(&mut self, is_refused: bool, poller: &Poller, now: Instant) {
        if !is_refused {
            return self.channel_state.receiving.end();
        }
        self.channel_state.note_not_received(now);
        // If it fails, the poller reports the channel at once.
        let _ = poller.modify(&self.channel, self.token(), Interest::Paused);
    }

    /// Receives and sends again after the kernel has lacked memory, if the wait is over.
    fn retry(&mut self, poller: &Poller, now: Instant) -> io::Result<()> {
        if self.channel_state.receiving.end_if_over(now) {
            let is_full = matches!(self.channel_state.send_state, SendState::Full { .. });
            poller.modify(&self.channel, self.token(), self.interest(is_full))?;
        }
        if self.channel_state.send_state == SendState::Refused
            && self.channel_state.sending.until().is_none()
        {
            self.channel_state.sending.begin(|wait| now + wait);
        }
        if self.channel_state.sending.end_if_over(now)
            && self.channel_state.send_state == SendState::Refused
        {
            self.channel_state.send_state = SendState::Open;
            self.send_unsent()?;
            self.watch_channel(poller);
        }
        Ok(())
    }

    /// Returns when [`Worker::retry`] is due: at once if the wait has not begun.
    fn retry_at(&self, now: Instant) -> Option<Instant> {
        let has_not_begun = self.channel_state.send_state == SendState::Refused
            && self.channel_state.sending.until().is_none();
        let waits = [
            has_not_begun.then_some(now),
            self.channel_state.sending.until(),
            self.channel_state.receiving.until(),
        ];
        waits.into_iter().flatten().min()
    }

    fn set_full(&mut self) {
        if !matches!(self.channel_state.send_state, SendState::Full { .. }) {
            self.channel_state.send_state = SendState::Full { is_watched: false };
        }
    }

    /// Handles the poller's report that the channel accepts messages again.
    pub(crate) fn resume_channel(&mut self, poller: &Poller) -> io::Result<()> {
        if self.channel_state.send_state == (SendState::Full { is_watched: true }) {
            self.channel_state.send_state = SendState::Open;
            poller.modify(&self.channel, self.token(), self.interest(false))?;
        }
        self.send_unsent()
    }

    /// Sends the queued leases in as few messages as possible. Returns the clients that were withdrawn because the
    /// channel is full.
    pub(super) fn send_leases(&mut self) -> Vec<Recovered> {
        self.try_send_leases().unwrap_or_else(|e| {
            // The worker did not get these leases, whatever the cause. Its end will be reported like every other.
            self.kill_for_error(&format_args!("cannot send leases: {e}"));
            Vec::new()
        })
    }

    fn try_send_leases(&mut self) -> io::Result<Vec<Recovered>> {
        while let Some(batch) = self.leases.next_batch() {
            let mut leases = Vec::with_capacity(batch.len());
            let mut sockets: Vec<BorrowedFd<'_>> = Vec::with_capacity(batch.len());
            for (lease, socket) in self.leases.records(&batch) {
                leases.push(lease);
                sockets.push(socket);
            }
            match self.channel.send(&ToWorker::Lease(leases), &sockets)? {
                Sent::Queued => {
                    self.leases.close_left_places(&batch);
                    self.channel_state.note_accepted();
                }
                refused @ (Sent::Full | Sent::Shortage) => {
                    let back = self.leases.withdraw(batch, &self.shm);
                    self.forget_withdrawn();
                    // Too many descriptors may be in flight. No poller reports the end of that, but a pick-up shows
                    // it. If the worker has picked up everything, no pick-up will come: the channel is full of other
                    // messages, or the descriptors are in flight in other channels.
                    let picked_up = self.shm.header().want_capacity();
                    if picked_up < self.leases.granted() {
                        if matches!(
                            self.channel_state.send_state,
                            SendState::Open | SendState::Throttled { .. }
                        ) {
                            self.channel_state.send_state = SendState::Throttled { picked_up };
                        }
                    } else if refused == Sent::Full {
                        self.set_full();
                    } else {
                        self.channel_state.note_refused();
                    }
                    return Ok(back);
                }
                // The worker is dead. Its collection finds these clients in its shared memory like all others.
                Sent::Closed => {}
            }
        }
        Ok(Vec::new())
    }
}

impl Workers {
    /// Uses the channels again after the kernel has lacked memory, if their waits are over.
    pub(crate) fn retry_channels(&mut self, poller: &Poller, now: Instant) {
        if self.waits.is_set() {
            self.waits.note_walk();
            for worker in self.all.values_mut() {
                if let Err(e) = worker.retry(poller, now) {
                    worker.kill_for_error(&format_args!("cannot use its channel: {e}"));
                }
            }
            self.waits.set(self.does_channel_wait());
        }
        for zygote in &mut self.zygotes.all {
            if let Err(e) = zygote.retry(poller, now) {
                log::error!("{}: cannot receive: {e}; killing it", zygote.name());
                zygote.kill();
            }
        }
    }

    /// Returns when the next of these attempts is due.
    pub(crate) fn channels_deadline(&self, now: Instant) -> Option<Instant> {
        let zygotes = self.zygotes.all.iter();
        let zygotes = zygotes.filter_map(|zygote| zygote.receiving.until());
        if !self.waits.is_set() {
            debug_assert!(!self.does_channel_wait());
            return zygotes.min();
        }
        self.waits.note_walk();
        let workers = self.all.values().filter_map(|worker| worker.retry_at(now));
        workers.chain(zygotes).min()
    }

    /// Returns whether the channel of a worker waits for memory of the kernel.
    fn does_channel_wait(&self) -> bool {
        self.all
            .values()
            .any(|worker| worker.channel_state.awaits_memory())
    }
}
