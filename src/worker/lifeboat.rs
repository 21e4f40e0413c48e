//! What a worker does when its master is gone and another one will come: it packs its clients for that one.
//!
//! The loop does so when it hears the end of the channel. Where it is in a call that does not come back, a signal does.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use super::Worker;
use crate::desk::Layout;
use crate::proto::boat::{self, Boat, LastDesk, Passenger};
use crate::proto::channel::{Lease, Message};
use crate::sys::lifeboat::{FRONT, Lifeboat, Packed};

/// Gets all ready for it.
pub(super) fn ready(
    channel: &impl AsFd,
    boats: Vec<OwnedFd>,
    desk: File,
    told: &LastDesk,
    layout: Layout,
    grace: std::time::Duration,
) -> io::Result<&'static Lifeboat> {
    let mut first = Vec::new();
    Boat::Desk(Box::new(told.clone())).encode(&mut first);
    let mut front = [0; FRONT];
    front[0] = boat::CLIENTS;
    front[1..9].copy_from_slice(&told.worker.0.to_le_bytes());
    let channel = channel.as_fd().as_raw_fd();
    Lifeboat::ready(
        &channel,
        boats,
        desk,
        (first, front),
        layout.handoff_offsets(),
        (grace, boat::passenger_in),
    )
}

impl Worker<'_> {
    /// This client would have to be packed from now on.
    pub(super) fn take_aboard(&self, lease: &Lease, socket: &OwnedFd, cookie: Option<u64>) {
        if let Some(lifeboat) = self.lifeboat {
            lifeboat.take_aboard(lease.slot, socket, cookie, &Passenger::from(lease).encode());
        }
    }

    /// The master is gone.
    pub(super) fn abandon_ship(&mut self) {
        match self.lifeboat.map(Lifeboat::pack) {
            None => log::warn!(
                "the master is gone; closing {} clients and leaving",
                self.leased
            ),
            Some(Packed { packed, left: 0 }) => {
                log::info!("the master is gone; {packed} clients wait for the next one")
            }
            Some(Packed { packed, left }) => {
                log::error!(
                    "the master is gone; {packed} clients wait for the next one, {left} could not be packed"
                );
            }
        }
        self.orphaned = true;
    }
}
