//! Handoff queues, in which clients wait for the next master when theirs is gone.
//!
//! A handoff queue is a `SOCK_SEQPACKET` pair; the service manager holds both ends. A process that has to exit packs
//! its clients into any of them, and the next master unpacks them all. A datagram is one byte with its kind, then a
//! body.
//!
//! ```text
//! 1 Shm       JSON + the descriptor of the shared memory, first, once a worker
//! 3 Clients   worker u64 | length of a record u16 | records + as many descriptors, in that order; at most 253
//! 2 Clients   the same without the length, which is 28: of version 0.1.0
//!
//! record      see `proto/lease.rs`
//! ```
//!
//! A record locates the client's state in the shared memory; **no client bytes are sent in handoff queues**. It is
//! short because a datagram of 253 records must fit into 8 KiB of kernel memory: of longer ones only half as many fit.
//! So only datagrams with a client that has offsets have longer, and fewer, records.
//!
//! A handoff queue may be unpacked by another version than has packed it. Fields are only ever added, at the end of a
//! record or to the JSON, and mean nothing if they are missing; a reader ignores the unknown end of a longer record.
//! A field that must not be ignored needs another kind of datagram.

use serde::{Deserialize, Serialize};

use super::channel::{MAX_LEASES, MethodName};
use super::lease::{ClientRecord, Lease, RECORD_LEN, SHORT_RECORD_LEN};
use super::message::{Fields, Malformed, Message, from_json, json};
use super::names::{Generation, WorkerId};

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
    /// The seat of the worker.
    pub seat: u32,
    /// The generation of the worker.
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

/// Returns the record of a client in an unread datagram of leases: the one whose socket has this index.
#[must_use]
pub fn client_record_in(datagram: &[u8], index: usize) -> Option<[u8; RECORD_LEN]> {
    Lease::nth(datagram, index).map(|lease| lease.record.encode())
}

/// Most records with all fields in a datagram: as many as fit into 8 KiB with what the kernel adds.
pub const MAX_LONG_RECORDS: usize = 172;

impl ClientRecord {
    /// Returns the length of each record of a datagram of these clients, in bytes.
    fn length(all: &[ClientRecord]) -> usize {
        if all.iter().all(|record| record.offsets.is_zero()) {
            SHORT_RECORD_LEN
        } else {
            RECORD_LEN
        }
    }

    /// Returns how many of these clients a datagram may have.
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
        let (kind, body) = datagram.split_first().ok_or(Malformed("empty"))?;
        match *kind {
            SHM => Ok(HandoffMessage::Shm(Box::new(from_json(body)?))),
            CLIENTS | CLIENTS_OF_VERSION_1 => {
                let mut fields = Fields(body);
                let worker = WorkerId(fields.u64()?);
                let length = match *kind {
                    CLIENTS => fields.u16()?.into(),
                    _ => SHORT_RECORD_LEN,
                };
                let body = fields.0;
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
    use crate::proto::frame::OrderRule;
    use crate::proto::message::tests::assert_round_trip;
    use crate::proto::names::{ClientId, Offsets};
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
    fn packed_messages_are_unpacked_unchanged() {
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
            assert_round_trip(&queue);
        }
    }

    #[test]
    fn a_full_datagram_with_kernel_overhead_fits_into_eight_kib() {
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
    fn records_of_other_versions_are_read() {
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
