//! Boats: what clients go aboard of when their master is gone, until the next one is there.
//!
//! A boat is a `SOCK_SEQPACKET` pair of which both ends lie with the service manager; whoever has to go packs what it has
//! into any of them, and the next master unpacks them all. A datagram is one byte that tells its kind, then a body.
//!
//! ```text
//! 1 Desk      JSON + the desk's descriptor           first, once a worker
//! 2 Clients   worker u64 | records of 28 bytes + as many descriptors, in that order; at most 253
//!
//! record      client u64 | slot u32 | generation u32 | order in bits 30 and 31, moves below u32 | listener u32 | since u32
//! ```
//!
//! A record says where on the desk all is that is known of the client; **no client bytes ride in boats**. It is as small as
//! that because a datagram of 253 of them has to fit into 8 KiB of the kernel's memory: above, half as many find room.

use serde::{Deserialize, Serialize};

use super::channel::{
    Lease, MAX_LEASES, Malformed, Message, MethodName, from_json, json, order_number, order_of, take,
};
use super::frame::OrderRule;
use super::names::{ClientId, Generation, WorkerId};

/// A datagram.
#[derive(Clone, Debug, PartialEq)]
pub enum Boat {
    /// A desk, of a worker that is gone or is about to go.
    Desk(Box<LastDesk>),
    /// Clients on the desk of that worker.
    Clients(WorkerId, Vec<Passenger>),
}

/// A desk that nobody works on any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastDesk {
    /// Whose it was.
    pub worker: WorkerId,
    /// That worker's seat.
    pub seat: u32,
    /// Its configuration.
    pub generation: Generation,
    /// Slots on it.
    pub slots: u32,
    /// Longest frame that it has places for.
    pub longest: u32,
    /// The worker's methods, by whose numbers it tells of them.
    pub methods: Vec<MethodName>,
    /// Whether what it counts has been added to the totals.
    pub is_counted: bool,
}

/// A client on a desk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passenger {
    /// The client.
    pub client: ClientId,
    /// Its slot.
    pub slot: u32,
    /// Of its lease.
    pub generation: u32,
    /// How its byte order is learnt.
    pub order: OrderRule,
    /// How often it was leased again: below 2^30.
    pub moves: u32,
    /// The number of the listener where it connected.
    pub listener: u32,
    /// When it connected, in seconds of CLOCK_MONOTONIC.
    pub since: u32,
}

impl From<&Lease> for Passenger {
    fn from(lease: &Lease) -> Passenger {
        let Lease { client, slot, generation, order, moves, listener, since, .. } = *lease;
        Passenger { client, slot, generation, order, moves, listener, since }
    }
}

/// The record of a client in a datagram of leases that nobody has read: the one whose socket has this index.
#[must_use]
pub fn passenger_in(datagram: &[u8], index: usize) -> Option<[u8; RECORD]> {
    Lease::nth(datagram, index).map(|lease| Passenger::from(&lease).encode())
}

/// Bytes of a record.
pub const RECORD: usize = 28;

const ORDER_SHIFT: u32 = 30;

impl Passenger {
    /// The record.
    #[must_use]
    pub fn encode(&self) -> [u8; RECORD] {
        let order = u32::from(order_number(self.order)) << ORDER_SHIFT;
        let numbers =
            [self.slot, self.generation, order | self.moves.min((1 << ORDER_SHIFT) - 1), self.listener, self.since];
        let mut record = [0; RECORD];
        record[..8].copy_from_slice(&self.client.0.to_le_bytes());
        for (place, number) in record[8..].chunks_exact_mut(4).zip(numbers) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        record
    }

    fn decode(record: &[u8; RECORD]) -> Result<Passenger, Malformed> {
        let mut rest = &record[..];
        let client = ClientId(u64::from_le_bytes(take(&mut rest)?));
        let mut number = || take(&mut rest).map(u32::from_le_bytes);
        let (slot, generation, moves) = (number()?, number()?, number()?);
        let order = order_of((moves >> ORDER_SHIFT) as u8)?;
        let moves = moves & ((1 << ORDER_SHIFT) - 1);
        Ok(Passenger { client, slot, generation, order, moves, listener: number()?, since: number()? })
    }
}

/// Kinds, for who writes datagrams by hand.
pub const DESK: u8 = 1;
/// As above.
pub const CLIENTS: u8 = 2;

impl Message for Boat {
    fn encode(&self, out: &mut Vec<u8>) {
        out.clear();
        match self {
            Boat::Desk(desk) => json(DESK, desk, out),
            Boat::Clients(worker, passengers) => {
                out.push(CLIENTS);
                out.extend_from_slice(&worker.0.to_le_bytes());
                passengers.iter().for_each(|passenger| out.extend_from_slice(&passenger.encode()));
            }
        }
    }

    fn decode(datagram: &[u8]) -> Result<Boat, Malformed> {
        let (kind, mut body) = datagram.split_first().ok_or(Malformed("empty"))?;
        match *kind {
            DESK => Ok(Boat::Desk(Box::new(from_json(body)?))),
            CLIENTS => {
                let worker = WorkerId(u64::from_le_bytes(take(&mut body)?));
                let (records, rest) = body.as_chunks::<RECORD>();
                if !rest.is_empty() || records.is_empty() || records.len() > MAX_LEASES {
                    return Err(Malformed("clients of a wrong length"));
                }
                records.iter().map(Passenger::decode).collect::<Result<_, _>>().map(|all| Boat::Clients(worker, all))
            }
            _ => Err(Malformed("unknown kind")),
        }
    }

    fn descriptors(&self) -> usize {
        match self {
            Boat::Desk(_) => 1,
            Boat::Clients(_, passengers) => passengers.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn passenger(client: u64, order: OrderRule) -> Passenger {
        let client = ClientId(client);
        Passenger { client, slot: 2, generation: 3, order, moves: (1 << 30) - 1, listener: 5, since: u32::MAX }
    }

    #[test]
    fn what_is_packed_is_unpacked() {
        let methods = vec![MethodName { name: "ping".to_owned(), idempotent: true }];
        let (worker, generation) = (WorkerId(7), Generation(3));
        let desk = LastDesk { worker, seat: 1, generation, slots: 9, longest: 64, methods, is_counted: true };
        let orders = [OrderRule::Little, OrderRule::Big, OrderRule::Auto];
        let all = (1..).zip(orders).map(|(client, order)| passenger(client, order)).collect();
        for boat in [Boat::Desk(Box::new(desk)), Boat::Clients(worker, all)] {
            let mut datagram = Vec::new();
            boat.encode(&mut datagram);
            assert_eq!(Boat::decode(&datagram), Ok(boat));
        }
    }

    #[test]
    fn a_full_datagram_fits_into_eight_kib_with_what_the_kernel_adds() {
        let all = Boat::Clients(WorkerId(1), vec![passenger(1, OrderRule::Big); MAX_LEASES]);
        let mut datagram = Vec::new();
        all.encode(&mut datagram);
        // skb_shared_info of 320 bytes on 64-bit machines, and headroom.
        assert!(datagram.len() + 320 + 256 <= 8192, "{}", datagram.len());
    }

    proptest! {
        #[test]
        fn nothing_that_lies_in_a_boat_panics(datagram in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = Boat::decode(&datagram);
        }
    }
}
