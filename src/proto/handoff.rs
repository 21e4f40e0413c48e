//! Handoff queues: where clients wait when their master is gone, until the next one is there.
//!
//! A handoff queue is a `SOCK_SEQPACKET` pair; the service manager holds both ends. A process that
//! has to exit packs its clients into any of them, and the next master unpacks them all. A datagram
//! is one byte with its kind, then a body.
//!
//! ```text
//! 1 Shm       JSON + the descriptor of the shared memory, first, once a worker
//! 3 Clients   worker u64 | length of a record u16 | records + as many descriptors, in that order; at most 253
//! 2 Clients   the same without the length, which is 28: of version 0.1.0
//!
//! record      client u64 | slot u32 | lease number u32 | order in bits 30 and 31, moves below u32 | listener u32 | since u32
//!             to 28 · offset received u64 | offset sent u64 to 44: all 0 if it ends before
//! ```
//!
//! A record says where in the shared memory all is that is known of the client; **no client bytes ride in handoff queues**. It is as small as
//! that because a datagram of 253 of them has to fit into 8 KiB of the kernel's memory: above, half as many find room. So only
//! datagrams with a client that has offsets have longer ones, and fewer of them.
//!
//! A handoff queue may be unpacked by another version than has packed it. Fields are only ever
//! added, at the end of a record or to the JSON, and mean nothing if they are missing; a reader
//! ignores the unknown end of a longer record. What cannot be left out has another kind.

use serde::{Deserialize, Serialize};

use super::channel::{
    Lease, MAX_LEASES, Malformed, Message, MethodName, from_json, json, order_number, order_of,
    take,
};
use super::frame::OrderRule;
use super::names::{ClientId, Generation, Offsets, WorkerId};

/// A datagram.
#[derive(Clone, Debug, PartialEq)]
pub enum HandoffMessage {
    /// Shared memory, of a worker that is gone or is about to go.
    Shm(Box<ShmRecord>),
    /// Clients in the shared memory of that worker.
    Clients(WorkerId, Vec<ClientRecord>),
}

/// Shared memory without a worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShmRecord {
    /// The id of the worker that used it.
    pub worker: WorkerId,
    /// That worker's seat.
    pub seat: u32,
    /// That worker's configuration.
    pub generation: Generation,
    /// Slots in the shared memory.
    pub slots: u32,
    /// Longest frame that the shared memory has regions for.
    pub longest: u32,
    /// The worker's methods, in the order of their numbers in the shared memory.
    pub methods: Vec<MethodName>,
    /// Whether the counts in the shared memory have been added to the totals.
    pub is_counted: bool,
    /// The version of the shared memory's layout.
    #[serde(default = "first_layout")]
    pub layout: u32,
}

/// Returns the layout version of fdpassd 0.1.0, which did not record it.
fn first_layout() -> u32 {
    1
}

/// A client in shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientRecord {
    /// The client.
    pub client: ClientId,
    /// The client's slot.
    pub slot: u32,
    /// Of its lease.
    pub lease_number: u32,
    /// How its byte order is learnt.
    pub order: OrderRule,
    /// How often it was leased again: below 2^30.
    pub moves: u32,
    /// The number of the listener where it connected.
    pub listener: u32,
    /// When it connected, in seconds of CLOCK_MONOTONIC.
    pub since: u32,
    /// Of its byte counts.
    pub offsets: Offsets,
}

impl From<&Lease> for ClientRecord {
    fn from(lease: &Lease) -> ClientRecord {
        let Lease {
            client,
            slot,
            lease_number: generation,
            order,
            moves,
            listener,
            since,
            offsets,
            ..
        } = *lease;
        ClientRecord {
            client,
            slot,
            lease_number: generation,
            order,
            moves,
            listener,
            since,
            offsets,
        }
    }
}

/// Returns the record of a client in an unread datagram of leases: the one whose socket has this
/// index.
#[must_use]
pub fn client_record_in(datagram: &[u8], index: usize) -> Option<[u8; RECORD_LEN]> {
    Lease::nth(datagram, index).map(|lease| ClientRecord::from(&lease).encode())
}

/// Bytes of a record with all fields.
pub const RECORD_LEN: usize = 44;

/// Bytes of one without offsets.
pub const SHORT_RECORD_LEN: usize = 28;

/// Most records with all fields in a datagram: as many as fit into 8 KiB with what the kernel adds.
pub const MAX_LONG_RECORDS: usize = 172;

const ORDER_SHIFT: u32 = 30;

impl ClientRecord {
    /// The record, with all fields.
    #[must_use]
    pub fn encode(&self) -> [u8; RECORD_LEN] {
        let order = u32::from(order_number(self.order)) << ORDER_SHIFT;
        let numbers = [
            self.slot,
            self.lease_number,
            order | self.moves.min((1 << ORDER_SHIFT) - 1),
            self.listener,
            self.since,
        ];
        let mut record = [0; RECORD_LEN];
        record[..8].copy_from_slice(&self.client.0.to_le_bytes());
        for (place, number) in record[8..SHORT_RECORD_LEN].chunks_exact_mut(4).zip(numbers) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        let offsets = [self.offsets.received, self.offsets.sent];
        for (place, offset) in record[SHORT_RECORD_LEN..].chunks_exact_mut(8).zip(offsets) {
            place.copy_from_slice(&offset.to_le_bytes());
        }
        record
    }

    fn decode(record: &[u8]) -> Result<ClientRecord, Malformed> {
        let mut rest = record;
        let client = ClientId(u64::from_le_bytes(take(&mut rest)?));
        let mut number = || take(&mut rest).map(u32::from_le_bytes);
        let (slot, generation, moves) = (number()?, number()?, number()?);
        let (listener, since) = (number()?, number()?);
        let mut offset = || take(&mut rest).map(u64::from_le_bytes);
        let offsets = match (offset(), offset()) {
            (Ok(received), Ok(sent)) => Offsets { received, sent },
            _ => Offsets::default(),
        };
        let order = order_of((moves >> ORDER_SHIFT) as u8)?;
        let moves = moves & ((1 << ORDER_SHIFT) - 1);
        Ok(ClientRecord {
            client,
            slot,
            lease_number: generation,
            order,
            moves,
            listener,
            since,
            offsets,
        })
    }

    /// Bytes of each record of a datagram of these clients.
    fn length(all: &[ClientRecord]) -> usize {
        if all.iter().all(|record| record.offsets.is_zero()) {
            SHORT_RECORD_LEN
        } else {
            RECORD_LEN
        }
    }

    /// How many of these clients a datagram may have.
    #[must_use]
    pub fn max_in_datagram(all: &[ClientRecord]) -> usize {
        if ClientRecord::length(all) == SHORT_RECORD_LEN {
            MAX_LEASES
        } else {
            MAX_LONG_RECORDS
        }
    }
}

/// Kinds of datagrams, for code that writes them by hand.
pub const SHM: u8 = 1;
/// As above.
pub const CLIENTS: u8 = 3;
/// Records of 28 bytes.
const CLIENTS_OF_VERSION_1: u8 = 2;

impl Message for HandoffMessage {
    fn encode(&self, out: &mut Vec<u8>) {
        out.clear();
        match self {
            HandoffMessage::Shm(shm) => json(SHM, shm, out),
            HandoffMessage::Clients(worker, records) => {
                out.push(CLIENTS);
                out.extend_from_slice(&worker.0.to_le_bytes());
                let length = ClientRecord::length(records);
                out.extend_from_slice(&(length as u16).to_le_bytes());
                records
                    .iter()
                    .for_each(|record| out.extend_from_slice(&record.encode()[..length]));
            }
        }
    }

    fn decode(datagram: &[u8]) -> Result<HandoffMessage, Malformed> {
        let (kind, mut body) = datagram.split_first().ok_or(Malformed("empty"))?;
        match *kind {
            SHM => Ok(HandoffMessage::Shm(Box::new(from_json(body)?))),
            CLIENTS | CLIENTS_OF_VERSION_1 => {
                let worker = WorkerId(u64::from_le_bytes(take(&mut body)?));
                let length = match *kind {
                    CLIENTS => u16::from_le_bytes(take(&mut body)?).into(),
                    _ => SHORT_RECORD_LEN,
                };
                if length < SHORT_RECORD_LEN || body.is_empty() || body.len() % length != 0 {
                    return Err(Malformed("clients of a wrong length"));
                }
                let records = body.chunks_exact(length);
                if records.len() > MAX_LEASES {
                    return Err(Malformed("more clients than descriptors"));
                }
                records
                    .map(ClientRecord::decode)
                    .collect::<Result<_, _>>()
                    .map(|all| HandoffMessage::Clients(worker, all))
            }
            _ => Err(Malformed("unknown kind")),
        }
    }

    fn descriptors(&self) -> usize {
        match self {
            HandoffMessage::Shm(_) => 1,
            HandoffMessage::Clients(_, records) => records.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn client_record(client: u64, order: OrderRule) -> ClientRecord {
        let (client, offsets) = (ClientId(client), Offsets::default());
        ClientRecord {
            client,
            slot: 2,
            lease_number: 3,
            order,
            moves: (1 << 30) - 1,
            listener: 5,
            since: u32::MAX,
            offsets,
        }
    }

    #[test]
    fn what_is_packed_is_unpacked() {
        let methods = vec![MethodName {
            name: "ping".to_owned(),
            idempotent: true,
        }];
        let (worker, generation) = (WorkerId(7), Generation(3));
        let shm = ShmRecord {
            worker,
            seat: 1,
            generation,
            slots: 9,
            longest: 64,
            methods,
            is_counted: true,
            layout: 9,
        };
        let orders = [OrderRule::Little, OrderRule::Big, OrderRule::Auto];
        let all: Vec<_> = (1..)
            .zip(orders)
            .map(|(client, order)| client_record(client, order))
            .collect();
        let mut far = all.clone();
        far[1].offsets = Offsets {
            received: u64::MAX,
            sent: 1,
        };
        for queue in [
            HandoffMessage::Shm(Box::new(shm)),
            HandoffMessage::Clients(worker, all),
            HandoffMessage::Clients(worker, far),
        ] {
            let mut datagram = Vec::new();
            queue.encode(&mut datagram);
            assert_eq!(HandoffMessage::decode(&datagram), Ok(queue));
        }
    }

    #[test]
    fn a_full_datagram_fits_into_eight_kib_with_what_the_kernel_adds() {
        let usual = client_record(1, OrderRule::Big);
        let far = ClientRecord {
            offsets: Offsets {
                received: 1,
                sent: 0,
            },
            ..usual
        };
        for (one, most) in [(usual, MAX_LEASES), (far, MAX_LONG_RECORDS)] {
            assert_eq!(ClientRecord::max_in_datagram(&[one]), most);
            let mut datagram = Vec::new();
            HandoffMessage::Clients(WorkerId(1), vec![one; most]).encode(&mut datagram);
            // skb_shared_info of 320 bytes on 64-bit machines, and headroom.
            assert!(datagram.len() + 320 + 256 <= 8192, "{}", datagram.len());
        }
    }

    #[test]
    fn records_of_other_versions_are_read_as_far_as_they_are_known() {
        let far = ClientRecord {
            offsets: Offsets {
                received: 1,
                sent: 2,
            },
            ..client_record(1, OrderRule::Auto)
        };
        let queue = |kind: u8, length: Option<u16>, records: &[u8]| {
            let length = length.map_or(Vec::new(), |length| length.to_le_bytes().to_vec());
            HandoffMessage::decode(&[&[kind][..], &7u64.to_le_bytes(), &length, records].concat())
        };
        let near = ClientRecord {
            offsets: Offsets::default(),
            ..far
        };
        let record = far.encode();
        let short = &record[..SHORT_RECORD_LEN];
        assert_eq!(
            queue(2, None, &[short, short].concat()),
            Ok(HandoffMessage::Clients(WorkerId(7), vec![near, near]))
        );
        assert_eq!(
            queue(3, Some(36), &[short, &[9; 8]].concat()),
            Ok(HandoffMessage::Clients(WorkerId(7), vec![near]))
        );
        let longer = [&record[..], &[9; 16]].concat();
        assert_eq!(
            queue(3, Some(60), &longer.repeat(2)),
            Ok(HandoffMessage::Clients(WorkerId(7), vec![far, far]))
        );
        for (length, records) in [(27, 27), (0, 28), (28, 0), (28, 29), (28, 28 * 254)] {
            assert!(
                queue(3, Some(length), &vec![0; records]).is_err(),
                "{length} {records}"
            );
        }
        let old = r#"{"worker":1,"seat":0,"generation":1,"slots":6,"longest":64,"methods":[],"is_counted":true,"new":[]}"#;
        let Ok(HandoffMessage::Shm(shm)) =
            HandoffMessage::decode(&[&[SHM][..], old.as_bytes()].concat())
        else {
            panic!("shared memory")
        };
        assert_eq!(shm.layout, 1);
    }

    proptest! {
        #[test]
        fn no_datagram_panics(datagram in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = HandoffMessage::decode(&datagram);
        }
    }
}
