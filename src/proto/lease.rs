//! The record of a client, in both of its forms: a lease in the channel, and a client in a handoff queue.
//!
//! ```text
//! lease          client u64 | slot u32 | lease number u32 |
//!                order u8 | family u8 | port u16 | moves u32 | address [u8; 16] |
//!                listener u32 | since u32            to 48 · received u64 | sent u64 to 64
//! client record  client u64 | slot u32 | lease number u32 |
//!                order in bits 30 and 31, moves below u32 |
//!                listener u32 | since u32            to 28 · received u64 | sent u64 to 44
//!
//! order          0, 1, 2: little, big, auto
//! family         4, 6: the address · 1: pid, uid, gid, 0 as u32 each
//! ```
//!
//! A worker converts a lease into a client record in a signal handler: only functions that append to a `Vec` allocate.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::frame::OrderRule;
use super::message::{Fields, Malformed};
use super::names::{ClientId, Offsets, Peer};

/// A client in the shared memory of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientRecord {
    /// The client.
    pub client: ClientId,
    /// The client's slot in the shared memory.
    pub slot: u32,
    /// The number of the lease; the claim must find it in the lease word.
    pub lease_number: u32,
    /// How the byte order is learnt while the shared memory does not record it.
    pub order: OrderRule,
    /// How often it was leased again, below 2^30 in a handoff queue: of two leases of a client the one with more is the
    /// later one.
    pub moves: u32,
    /// The number of the listener where it connected.
    pub listener: u32,
    /// When it connected, in seconds of CLOCK_MONOTONIC.
    pub since: u32,
    /// The offsets of its byte counts.
    pub offsets: Offsets,
}

/// A client for a worker. Its socket is the descriptor at the same place in the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The client.
    pub record: ClientRecord,
    /// The client's identity.
    pub peer: Peer,
}

/// Bytes of a client record with offsets, and of one without.
pub const RECORD_LEN: usize = 44;
/// As above.
pub const SHORT_RECORD_LEN: usize = 28;

/// Bytes of the first fields of both forms, and of the last ones without offsets.
const HEAD_LEN: usize = 16;
const SHORT_TAIL_LEN: usize = 8;
const TAIL_LEN: usize = 24;

const ORDER_SHIFT: u32 = 30;

impl ClientRecord {
    /// Returns the record with all fields.
    #[must_use]
    pub fn encode(&self) -> [u8; RECORD_LEN] {
        let order = u32::from(order_number(self.order)) << ORDER_SHIFT;
        let moves = self.moves.min((1 << ORDER_SHIFT) - 1);
        let mut record = [0; RECORD_LEN];
        record[..HEAD_LEN].copy_from_slice(&self.head());
        record[HEAD_LEN..HEAD_LEN + 4].copy_from_slice(&(order | moves).to_le_bytes());
        record[HEAD_LEN + 4..].copy_from_slice(&self.tail());
        record
    }

    /// Reads a record of any version: fields that are missing at its end are 0.
    pub(super) fn decode(record: &[u8]) -> Result<ClientRecord, Malformed> {
        let mut fields = Fields(record);
        let (client, slot, lease_number) = read_head(&mut fields)?;
        let moves = fields.u32()?;
        let (listener, since) = (fields.u32()?, fields.u32()?);
        Ok(ClientRecord {
            client,
            slot,
            lease_number,
            order: order_of((moves >> ORDER_SHIFT) as u8)?,
            moves: moves & ((1 << ORDER_SHIFT) - 1),
            listener,
            since,
            offsets: read_offsets(&mut fields).unwrap_or_default(),
        })
    }

    /// Returns the slot and the lease number of an encoded record.
    #[must_use]
    pub fn lease_in(record: &[u8; RECORD_LEN]) -> (u32, u32) {
        read_head(&mut Fields(record)).map_or((u32::MAX, 0), |(_, slot, number)| (slot, number))
    }

    fn head(&self) -> [u8; HEAD_LEN] {
        let mut head = [0; HEAD_LEN];
        head[..8].copy_from_slice(&self.client.0.to_le_bytes());
        head[8..12].copy_from_slice(&self.slot.to_le_bytes());
        head[12..].copy_from_slice(&self.lease_number.to_le_bytes());
        head
    }

    fn tail(&self) -> [u8; TAIL_LEN] {
        let mut tail = [0; TAIL_LEN];
        tail[..4].copy_from_slice(&self.listener.to_le_bytes());
        tail[4..8].copy_from_slice(&self.since.to_le_bytes());
        tail[8..16].copy_from_slice(&self.offsets.received.to_le_bytes());
        tail[16..].copy_from_slice(&self.offsets.sent.to_le_bytes());
        tail
    }
}

fn read_head(fields: &mut Fields<'_>) -> Result<(ClientId, u32, u32), Malformed> {
    Ok((ClientId(fields.u64()?), fields.u32()?, fields.u32()?))
}

fn read_offsets(fields: &mut Fields<'_>) -> Result<Offsets, Malformed> {
    Ok(Offsets {
        received: fields.u64()?,
        sent: fields.u64()?,
    })
}

impl Lease {
    /// Returns the bytes of a lease, with or without offsets.
    pub(super) fn length(has_offsets: bool) -> usize {
        if has_offsets { 64 } else { 48 }
    }

    pub(super) fn encode(&self, has_offsets: bool, out: &mut Vec<u8>) {
        let mut bytes = [0; 16];
        let (family, port) = match self.peer {
            Peer::V4 { address, port } => {
                bytes[..4].copy_from_slice(&address.octets());
                (4, port)
            }
            Peer::V6 { address, port } => {
                bytes = address.octets();
                (6, port)
            }
            Peer::Unix { pid, uid, gid } => {
                for (bytes, id) in bytes.as_chunks_mut().0.iter_mut().zip([pid, uid, gid]) {
                    *bytes = u32::to_le_bytes(id);
                }
                (1, 0)
            }
        };
        let length = if has_offsets {
            TAIL_LEN
        } else {
            SHORT_TAIL_LEN
        };
        out.extend_from_slice(&self.record.head());
        out.extend_from_slice(&[order_number(self.record.order), family]);
        out.extend_from_slice(&port.to_le_bytes());
        out.extend_from_slice(&self.record.moves.to_le_bytes());
        out.extend_from_slice(&bytes);
        out.extend_from_slice(&self.record.tail()[..length]);
    }

    pub(super) fn decode(has_offsets: bool, lease: &[u8]) -> Result<Lease, Malformed> {
        let mut fields = Fields(lease);
        let (client, slot, lease_number) = read_head(&mut fields)?;
        let [order, family] = fields.bytes()?;
        let (port, moves) = (fields.u16()?, fields.u32()?);
        let address = fields.bytes::<16>()?;
        let peer = match family {
            4 => Peer::V4 {
                address: Ipv4Addr::from(Fields(&address).bytes::<4>()?),
                port,
            },
            6 => Peer::V6 {
                address: Ipv6Addr::from(address),
                port,
            },
            1 => {
                let mut ids = Fields(&address);
                let (pid, uid, gid) = (ids.u32()?, ids.u32()?, ids.u32()?);
                Peer::Unix { pid, uid, gid }
            }
            _ => return Err(Malformed("unknown address family")),
        };
        let (listener, since) = (fields.u32()?, fields.u32()?);
        let offsets = match has_offsets {
            true => read_offsets(&mut fields)?,
            false => Offsets::default(),
        };
        let record = ClientRecord {
            client,
            slot,
            lease_number,
            order: order_of(order)?,
            moves,
            listener,
            since,
            offsets,
        };
        Ok(Lease { record, peer })
    }
}

fn order_number(order: OrderRule) -> u8 {
    match order {
        OrderRule::Little => 0,
        OrderRule::Big => 1,
        OrderRule::Auto => 2,
    }
}

fn order_of(number: u8) -> Result<OrderRule, Malformed> {
    match number {
        0 => Ok(OrderRule::Little),
        1 => Ok(OrderRule::Big),
        2 => Ok(OrderRule::Auto),
        _ => Err(Malformed("unknown byte order")),
    }
}
