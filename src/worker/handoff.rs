//! The emergency handoff: when the master is gone and there will be another one, the worker packs its clients for it.
//!
//! The loop does so at the end of the channel; a signal handler does if the worker is in a call that does not return.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

use super::WorkerLoop;
use super::methods::Service;
use crate::proto::handoff::{self, HandoffMessage, ShmRecord};
use crate::proto::lease::{ClientRecord, Lease, SHORT_RECORD_LEN};
use crate::proto::message::Message;
use crate::proto::text::Counted;
use crate::shm::Layout;
use crate::sys::handoff::{EmergencyHandoff, HEADER_LEN, Packed, RecordFormat};
use crate::sys::socket;

/// Prepares the emergency handoff.
pub(super) fn prepare(
    channel: &impl AsFd,
    queues: Vec<OwnedFd>,
    shm: Arc<File>,
    record: &ShmRecord,
    layout: Layout,
    grace: std::time::Duration,
) -> io::Result<&'static EmergencyHandoff> {
    let mut first = Vec::new();
    HandoffMessage::Shm(Box::new(record.clone())).encode(&mut first);
    let mut header = [0; HEADER_LEN];
    header[0] = handoff::CLIENTS;
    header[1..9].copy_from_slice(&record.worker.0.to_le_bytes());
    let channel = channel.as_fd().as_raw_fd();
    EmergencyHandoff::prepare(
        &channel,
        queues,
        shm,
        (first, header),
        layout.handoff_offsets(),
        RecordFormat {
            short_len: SHORT_RECORD_LEN,
            lease_in: ClientRecord::lease_in,
            unread: handoff::client_record_in,
        },
        grace,
    )
}

/// Registers clients, to be packed if the master is gone. Returns the cookies of their sockets.
pub(super) fn register_all(
    handoff: Option<&EmergencyHandoff>,
    leases: &[Lease],
    sockets: &[OwnedFd],
) -> Vec<Option<u64>> {
    let register = |(lease, socket): (&Lease, &OwnedFd)| {
        let cookie = socket::cookie(socket).ok().flatten();
        if let Some(handoff) = handoff {
            handoff.register(lease.record.slot, socket, cookie, &lease.record.encode());
        }
        cookie
    };
    leases.iter().zip(sockets).map(register).collect()
}

impl WorkerLoop<'_> {
    /// Packs the clients after the master is gone, and ends the loop.
    pub(super) fn hand_off_clients(&mut self, service: &mut dyn Service) -> io::Result<()> {
        if self.handoff.is_some() {
            self.await_answers(service)?;
        }
        self.pack_clients();
        Ok(())
    }

    /// Packs the clients as they are.
    pub(super) fn pack_clients(&mut self) {
        match self.handoff.map(EmergencyHandoff::pack) {
            None => log::warn!(
                "the master is gone; closing {} and leaving",
                Counted(self.leased, "client")
            ),
            Some(Packed { packed, left: 0 }) => {
                log::info!(
                    "the master is gone; {} kept for the next one",
                    Counted(packed, "client")
                )
            }
            Some(Packed { packed, left }) => {
                log::error!(
                    "the master is gone; {} kept for the next one, {left} could not be packed",
                    Counted(packed, "client")
                );
            }
        }
        self.ending.is_orphaned = true;
    }
}
