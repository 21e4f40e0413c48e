//! Master and worker: datagrams over one `SOCK_SEQPACKET` socketpair, which is the worker's standard input.
//!
//! A datagram is one byte with its kind, then a body: fixed records (all little-endian) for what
//! happens with every client, JSON for what happens once.
//!
//! ```text
//! to the worker    1 Start          JSON + descriptors: the shared memory, then the handoff queues, if there are any; once
//!                  2 Lease          records of 48 bytes + as many descriptors, in that order; at most 253
//!                  3 Reopen         -            open the log file again
//!                  4 Stop           JSON         finish, close every client, exit
//!                  5 LeasesRevoked  -            release the leases that were revoked
//!                  6 Ping           -            show a heartbeat in the shared memory
//!                  7 Drain          -            give up every lease, exit
//!                  8 Quarantine     JSON         methods that are not run any more
//!                  9 LogLevel       JSON         the least important lines to write from now on
//!                 10 Lease          records of 64 bytes + as many descriptors: if one of them has offsets
//! to the master    1 Ready          JSON         the methods; from now on leases may come
//!                  2 Failed         JSON         why there will be no Ready; the worker exits after it
//!                  3 Closed         u32 each     slots whose clients this worker ended
//!                  4 Released       u32 each     slots whose lease was revoked or given up
//!                  5 HasCapacity    -            leases were picked up, and the master had asked to be notified
//!                  6 NearRequestLimit  -         the worker has answered almost as many requests as it may
//!
//! lease record     client u64 | slot u32 | lease number u32 | order u8 | family u8 | port u16 | moves u32 | 16 bytes |
//!                  listener u32 | since u32
//!                  order 0, 1, 2: little, big, auto
//!                  family 4, 6: the address · family 1: pid, uid, gid, 0 as u32 each
//!                  of 64 bytes: offset received u64 | offset sent u64 behind that
//! ```
//!
//! Kinds are only ever added, and JSON members as well, which have a default: a master reads the last messages of workers of an
//! older version.
//!
//! No client bytes ride in messages: they lie in the shared memory.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::frame::OrderRule;
use super::names::{ClientId, Generation, Offsets, Peer, WorkerId};

/// Version of these messages. A worker of another version refuses to start.
pub const VERSION: u32 = 3;

/// Most descriptors in one message: `SCM_MAX_FD` of the kernel (unix(7)).
pub const MAX_LEASES: usize = 253;

/// Longest datagram that either side takes, in bytes.
pub const MAX_MESSAGE: usize = 64 * 1024;

/// Most handoff queues.
pub const MAX_HANDOFF_QUEUES: usize = 64;

/// Most slots that one `Closed` or `Released` names.
pub const MAX_SLOTS: usize = 4096;

/// Messages from the master to a worker.
#[derive(Clone, Debug, PartialEq)]
pub enum ToWorker {
    /// The worker's identity and the rules by which it serves. Carries the shared memory.
    Start(Box<Start>),
    /// Clients to serve from now on. Carries their sockets.
    Lease(Vec<Lease>),
    /// Open the log file again.
    Reopen,
    /// Finish and exit.
    Stop(Stop),
    /// Some leases were revoked: the worker drops its copies of those clients and reports it.
    LeasesRevoked,
    /// Asks for a heartbeat in the shared memory, which shows that the worker's loop turns.
    Ping,
    /// Give up every lease, report it, and exit.
    Drain,
    /// Methods that are no longer run; replaces the previous list.
    Quarantine(Vec<String>),
    /// The least important level that the worker writes from now on.
    LogLevel(LogLevel),
}

/// Messages from a worker to the master.
#[derive(Clone, Debug, PartialEq)]
pub enum ToMaster {
    /// The worker can serve.
    Ready(Ready),
    /// The worker will never serve, with the reason.
    Failed(Failed),
    /// Slots whose clients the worker ended.
    Closed(Vec<u32>),
    /// Slots whose leases were found revoked or given up; the worker's copies of their sockets are
    /// closed.
    Released(Vec<u32>),
    /// The worker picked up leases.
    HasCapacity,
    /// The worker has answered [`Settings::near_limit_at`] requests: its successor should be
    /// prepared.
    NearRequestLimit,
}

/// The first message to a worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Start {
    /// [`VERSION`].
    pub version: u32,
    /// The daemon's name, for its log lines.
    pub name: String,
    /// The worker's id.
    pub worker: WorkerId,
    /// The worker's index, from 0; a successor takes the same one.
    pub seat: u32,
    /// The configuration it serves.
    pub generation: Generation,
    /// Slots in its shared memory.
    pub slots: u32,
    /// Longest frame that its shared memory has regions for: that of the settings, or more after a reload, for what is parked.
    pub longest: u32,
    /// Methods that are not run.
    pub quarantined: Vec<String>,
    /// How many handoff queues there are, at most [`MAX_HANDOFF_QUEUES`]; their descriptors come behind that of the shared memory.
    #[serde(rename = "boats")]
    pub handoff_queues: u32,
    /// The rules.
    pub settings: Settings,
}

/// The rules by which a worker serves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Longest body of a frame, in bytes.
    pub max_frame: u32,
    /// Bytes that may be parked in the shared memory, over all clients.
    pub buffers: u64,
    /// A client idle for longer is closed.
    pub idle_timeout: Option<Duration>,
    /// From the first byte of a frame to its last.
    pub frame_timeout: Option<Duration>,
    /// How long a client may take no byte of its replies.
    pub send_timeout: Option<Duration>,
    /// How long one request may execute before the worker is killed; methods receive this deadline.
    pub request_timeout: Option<Duration>,
    /// How long a request may continue once the master is gone, before the worker packs its
    /// clients.
    pub restart_grace: Duration,
    /// The worker sends [`ToMaster::NearRequestLimit`] after this number of requests, and
    /// continues.
    #[serde(rename = "worn_at")]
    pub near_limit_at: Option<u64>,
    /// The worker stops answering after this number of requests, gives up every lease and exits.
    pub max_requests: Option<u64>,
    /// Where the worker's log lines go.
    pub log: Log,
}

/// Where log lines go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Log {
    /// The kind of place.
    pub target: LogTarget,
    /// The file, if and only if the target is one.
    pub file: Option<PathBuf>,
    /// The form of the lines on standard error and in the file.
    pub format: LogFormat,
    /// The least important level that is still written.
    pub level: LogLevel,
}

/// A kind of place for log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogTarget {
    /// The journal when standard error is connected to it, else standard error.
    #[default]
    Auto,
    /// Standard error.
    Stderr,
    /// `/dev/log`.
    Syslog,
    /// A file that is appended to.
    File,
}

/// A form of log lines. The journal and syslog have their own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One object a line, for machines.
    Json,
}

/// How important a log line is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogLevel {
    /// The operator must act.
    Error,
    /// Degraded, but handled.
    Warn,
    /// Events of workers and of the daemon.
    #[default]
    Info,
    /// Events of single clients.
    Debug,
    /// Everything.
    Trace,
}

impl LogLevel {
    /// Returns the level's name in the file and on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            LogLevel::Error => "error",
            LogLevel::Warn => "warn",
            LogLevel::Info => "info",
            LogLevel::Debug => "debug",
            LogLevel::Trace => "trace",
        }
    }
}

/// A client for a worker. Its socket is the descriptor at the same place in the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The client.
    pub client: ClientId,
    /// The client's slot in the worker's shared memory.
    pub slot: u32,
    /// Of the lease; the claim must find it in the lease word.
    pub lease_number: u32,
    /// How the byte order is learnt while the shared memory does not record it.
    pub order: OrderRule,
    /// The client's identity.
    pub peer: Peer,
    /// How often it was leased again: of two leases of a client the one with more is the later one.
    pub moves: u32,
    /// The number of the listener where it connected.
    pub listener: u32,
    /// When it connected, in seconds of CLOCK_MONOTONIC.
    pub since: u32,
    /// Of its byte counts.
    pub offsets: Offsets,
}

/// The worker can serve.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// [`VERSION`].
    pub version: u32,
    /// The worker's methods; a method's number in the shared memory is its index here plus one.
    pub methods: Vec<MethodName>,
}

/// A method, as the master knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MethodName {
    /// The method's name.
    pub name: String,
    /// Whether it may be run once more after a crash.
    pub idempotent: bool,
}

/// There will be no [`Ready`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    /// Why, for the operator.
    pub reason: String,
}

/// Finish what has arrived, close every client, exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    /// After this long the worker is killed.
    pub within: Duration,
}

/// A datagram that is none of the messages above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

impl std::fmt::Display for Malformed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "malformed message: {}", self.0)
    }
}

impl std::error::Error for Malformed {}

/// A message of one direction of the channel.
pub trait Message: Sized {
    /// Writes the datagram into `out`, in place of what was there.
    fn encode(&self, out: &mut Vec<u8>);

    /// Reads a datagram. It is untrusted input: no content can cause a panic.
    ///
    /// # Errors
    /// [`Malformed`] for everything that [`Message::encode`] does not write.
    fn decode(datagram: &[u8]) -> Result<Self, Malformed>;

    /// How many descriptors must come with it.
    fn descriptors(&self) -> usize;
}

impl Message for ToWorker {
    fn encode(&self, out: &mut Vec<u8>) {
        out.clear();
        match self {
            ToWorker::Start(start) => json(1, start, out),
            ToWorker::Lease(leases) => {
                let has_offsets = leases.iter().any(|lease| !lease.offsets.is_zero());
                out.push(if has_offsets {
                    LEASE_WITH_OFFSETS
                } else {
                    LEASE
                });
                for lease in leases {
                    lease.encode(out);
                    if has_offsets {
                        out.extend_from_slice(&lease.offsets.received.to_le_bytes());
                        out.extend_from_slice(&lease.offsets.sent.to_le_bytes());
                    }
                }
            }
            ToWorker::Reopen => out.push(3),
            ToWorker::Stop(stop) => json(4, stop, out),
            ToWorker::LeasesRevoked => out.push(5),
            ToWorker::Ping => out.push(6),
            ToWorker::Drain => out.push(7),
            ToWorker::Quarantine(methods) => json(8, methods, out),
            ToWorker::LogLevel(level) => json(9, level, out),
        }
    }

    fn decode(datagram: &[u8]) -> Result<ToWorker, Malformed> {
        let (kind, body) = datagram.split_first().ok_or(Malformed("empty"))?;
        match *kind {
            1 => Ok(ToWorker::Start(Box::new(from_json(body)?))),
            kind @ (LEASE | LEASE_WITH_OFFSETS) => {
                let records = body.chunks(Lease::length(kind));
                if records.len() == 0 || records.len() > MAX_LEASES {
                    return Err(Malformed("leases of a wrong length"));
                }
                records
                    .map(|record| Lease::decode(kind, record))
                    .collect::<Result<_, _>>()
                    .map(ToWorker::Lease)
            }
            3 if body.is_empty() => Ok(ToWorker::Reopen),
            4 => Ok(ToWorker::Stop(from_json(body)?)),
            5 if body.is_empty() => Ok(ToWorker::LeasesRevoked),
            6 if body.is_empty() => Ok(ToWorker::Ping),
            7 if body.is_empty() => Ok(ToWorker::Drain),
            8 => Ok(ToWorker::Quarantine(from_json(body)?)),
            9 => Ok(ToWorker::LogLevel(from_json(body)?)),
            _ => Err(Malformed("unknown kind")),
        }
    }

    fn descriptors(&self) -> usize {
        match self {
            ToWorker::Start(start) => 1 + start.handoff_queues as usize,
            ToWorker::Lease(leases) => leases.len(),
            ToWorker::Reopen
            | ToWorker::Stop(_)
            | ToWorker::LeasesRevoked
            | ToWorker::Ping
            | ToWorker::Drain
            | ToWorker::Quarantine(_)
            | ToWorker::LogLevel(_) => 0,
        }
    }
}

impl Message for ToMaster {
    fn encode(&self, out: &mut Vec<u8>) {
        out.clear();
        match self {
            ToMaster::Ready(ready) => json(1, ready, out),
            ToMaster::Failed(failed) => json(2, failed, out),
            ToMaster::Closed(slots) => numbers(3, slots, out),
            ToMaster::Released(slots) => numbers(4, slots, out),
            ToMaster::HasCapacity => out.push(5),
            ToMaster::NearRequestLimit => out.push(6),
        }
    }

    fn decode(datagram: &[u8]) -> Result<ToMaster, Malformed> {
        let (kind, body) = datagram.split_first().ok_or(Malformed("empty"))?;
        match kind {
            1 => Ok(ToMaster::Ready(from_json(body)?)),
            2 => Ok(ToMaster::Failed(from_json(body)?)),
            3 => from_numbers(body).map(ToMaster::Closed),
            4 => from_numbers(body).map(ToMaster::Released),
            5 if body.is_empty() => Ok(ToMaster::HasCapacity),
            6 if body.is_empty() => Ok(ToMaster::NearRequestLimit),
            _ => Err(Malformed("unknown kind")),
        }
    }

    fn descriptors(&self) -> usize {
        0
    }
}

/// Kinds of messages of leases.
const LEASE: u8 = 2;
const LEASE_WITH_OFFSETS: u8 = 10;

impl Lease {
    /// Bytes of a record in messages of this kind.
    fn length(kind: u8) -> usize {
        if kind == LEASE_WITH_OFFSETS { 64 } else { 48 }
    }

    /// One of those in a datagram, by its place. For who may not allocate.
    pub(super) fn nth(datagram: &[u8], index: usize) -> Option<Lease> {
        let (kind @ (LEASE | LEASE_WITH_OFFSETS), records) =
            datagram.split_first().map(|(kind, body)| (*kind, body))?
        else {
            return None;
        };
        Lease::decode(kind, records.chunks(Lease::length(kind)).nth(index)?).ok()
    }

    fn encode(&self, out: &mut Vec<u8>) {
        let (family, port, address) = match self.peer {
            Peer::V4 { address, port } => {
                let mut bytes = [0; 16];
                bytes[..4].copy_from_slice(&address.octets());
                (4, port, bytes)
            }
            Peer::V6 { address, port } => (6, port, address.octets()),
            Peer::Unix { pid, uid, gid } => {
                let mut bytes = [0; 16];
                bytes[..4].copy_from_slice(&pid.to_le_bytes());
                bytes[4..8].copy_from_slice(&uid.to_le_bytes());
                bytes[8..12].copy_from_slice(&gid.to_le_bytes());
                (1, 0, bytes)
            }
        };
        out.extend_from_slice(&self.client.0.to_le_bytes());
        out.extend_from_slice(&self.slot.to_le_bytes());
        out.extend_from_slice(&self.lease_number.to_le_bytes());
        out.extend_from_slice(&[order_number(self.order), family]);
        out.extend_from_slice(&port.to_le_bytes());
        out.extend_from_slice(&self.moves.to_le_bytes());
        out.extend_from_slice(&address);
        out.extend_from_slice(&self.listener.to_le_bytes());
        out.extend_from_slice(&self.since.to_le_bytes());
    }

    fn decode(kind: u8, record: &[u8]) -> Result<Lease, Malformed> {
        let mut rest = record;
        let client = u64::from_le_bytes(take(&mut rest)?);
        let slot = u32::from_le_bytes(take(&mut rest)?);
        let generation = u32::from_le_bytes(take(&mut rest)?);
        let [order, family] = take(&mut rest)?;
        let port = u16::from_le_bytes(take(&mut rest)?);
        let moves = u32::from_le_bytes(take(&mut rest)?);
        let order = order_of(order)?;
        let mut address: &[u8] = &take::<16>(&mut rest)?;
        let peer = match family {
            4 => Peer::V4 {
                address: Ipv4Addr::from(take::<4>(&mut address)?),
                port,
            },
            6 => Peer::V6 {
                address: Ipv6Addr::from(take::<16>(&mut address)?),
                port,
            },
            1 => Peer::Unix {
                pid: u32::from_le_bytes(take(&mut address)?),
                uid: u32::from_le_bytes(take(&mut address)?),
                gid: u32::from_le_bytes(take(&mut address)?),
            },
            _ => return Err(Malformed("unknown address family")),
        };
        let (listener, since) = (
            u32::from_le_bytes(take(&mut rest)?),
            u32::from_le_bytes(take(&mut rest)?),
        );
        let offsets = match kind {
            LEASE_WITH_OFFSETS => Offsets {
                received: u64::from_le_bytes(take(&mut rest)?),
                sent: u64::from_le_bytes(take(&mut rest)?),
            },
            _ => Offsets::default(),
        };
        Ok(Lease {
            client: ClientId(client),
            slot,
            lease_number: generation,
            order,
            peer,
            moves,
            listener,
            since,
            offsets,
        })
    }
}

pub(super) fn order_number(order: OrderRule) -> u8 {
    match order {
        OrderRule::Little => 0,
        OrderRule::Big => 1,
        OrderRule::Auto => 2,
    }
}

pub(super) fn order_of(number: u8) -> Result<OrderRule, Malformed> {
    match number {
        0 => Ok(OrderRule::Little),
        1 => Ok(OrderRule::Big),
        2 => Ok(OrderRule::Auto),
        _ => Err(Malformed("unknown byte order")),
    }
}

pub(super) fn take<const N: usize>(bytes: &mut &[u8]) -> Result<[u8; N], Malformed> {
    let (head, rest) = bytes
        .split_first_chunk::<N>()
        .ok_or(Malformed("too short"))?;
    *bytes = rest;
    Ok(*head)
}

pub(super) fn json(kind: u8, body: &impl Serialize, out: &mut Vec<u8>) {
    out.push(kind);
    // A Vec takes everything, and none of these types has a map with keys that are not strings, or a path. What could not be
    // written is refused at the other end as no JSON.
    let _ = serde_json::to_writer(out, body);
}

pub(super) fn from_json<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Malformed> {
    serde_json::from_slice(body).map_err(|_| Malformed("not the JSON expected"))
}

fn numbers(kind: u8, slots: &[u32], out: &mut Vec<u8>) {
    out.push(kind);
    slots
        .iter()
        .for_each(|slot| out.extend_from_slice(&slot.to_le_bytes()));
}

fn from_numbers(body: &[u8]) -> Result<Vec<u32>, Malformed> {
    let (numbers, rest) = body.as_chunks::<4>();
    if !rest.is_empty() || numbers.is_empty() || numbers.len() > MAX_SLOTS {
        return Err(Malformed("slots of a wrong length"));
    }
    Ok(numbers
        .iter()
        .map(|bytes| u32::from_le_bytes(*bytes))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn round<M: Message + PartialEq + std::fmt::Debug>(message: &M) {
        let mut datagram = vec![9; 3];
        message.encode(&mut datagram);
        assert_eq!(M::decode(&datagram).as_ref(), Ok(message));
        for cut in 0..datagram.len() {
            assert_ne!(
                M::decode(&datagram[..cut]).as_ref(),
                Ok(message),
                "cut at {cut}"
            );
        }
    }

    #[test]
    fn every_message_comes_back_as_it_was_and_no_part_of_it_does() {
        let peers = [
            Peer::V4 {
                address: Ipv4Addr::LOCALHOST,
                port: 8080,
            },
            Peer::V6 {
                address: Ipv6Addr::LOCALHOST,
                port: 1,
            },
            Peer::Unix {
                pid: 1,
                uid: u32::MAX,
                gid: 3,
            },
        ];
        let (client, order) = (ClientId(1 << 40), OrderRule::Auto);
        let offsets = Offsets::default();
        let mut leases = peers.map(|peer| Lease {
            client,
            slot: 7,
            lease_number: 9,
            order,
            peer,
            moves: 3,
            listener: 2,
            since: 99,
            offsets,
        });
        round(&ToWorker::Lease(leases.to_vec()));
        leases[1].offsets = Offsets {
            received: u64::MAX,
            sent: 1 << 40,
        };
        round(&ToWorker::Lease(leases.to_vec()));
        let mut datagram = Vec::new();
        ToWorker::Lease(leases.to_vec()).encode(&mut datagram);
        assert_eq!(Lease::nth(&datagram, 1), Some(leases[1]));
        round(&ToWorker::Reopen);
        round(&ToWorker::Stop(Stop {
            within: Duration::from_millis(1500),
        }));
        round(&ToWorker::LeasesRevoked);
        round(&ToWorker::Ping);
        round(&ToWorker::Drain);
        round(&ToWorker::Quarantine(vec!["resize".to_owned()]));
        round(&ToMaster::Closed(vec![1, 2, u32::MAX]));
        round(&ToMaster::Released(vec![0]));
        round(&ToMaster::HasCapacity);
        round(&ToMaster::NearRequestLimit);
        round(&ToMaster::Failed(Failed {
            reason: "no cache at \"/x\"\n".to_owned(),
        }));
        round(&ToMaster::Ready(Ready {
            version: VERSION,
            methods: vec![MethodName {
                name: "ping".to_owned(),
                idempotent: true,
            }],
        }));
    }

    proptest! {
        #[test]
        fn no_datagram_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = ToWorker::decode(&bytes);
            let _ = ToMaster::decode(&bytes);
        }
    }
}
