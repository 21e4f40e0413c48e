//! Clients: one client, its lease, and the recovery of its bytes.

pub(crate) mod client;
pub(crate) mod handshakes;
pub(crate) mod leases;
pub(crate) mod reject;
