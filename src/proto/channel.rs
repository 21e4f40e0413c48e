//! Master and worker: datagrams over one `SOCK_SEQPACKET` socketpair, which is the worker's standard input.
//!
//! A datagram is one byte with its kind, then a body: fixed records (all little-endian) for what happens with every
//! client, JSON for what happens once.
//!
//! ```text
//! to the worker    1 Start          JSON + descriptors: the shared memory, then the handoff queues, if there are any; once
//!                  2 Lease          records of 48 bytes + as many descriptors, in that order; at most 253
//!                  3 Reopen         -            open the log file again
//!                  4 Stop           JSON         finish, close every client, exit
//!                  5 LeasesRevoked  -            release the leases that were revoked
//!                  6 Ping           -            show a heartbeat in the shared memory
//!                  7 Retire         -            give up every lease, exit
//!                  8 Quarantine     JSON         methods that are not run any more
//!                  9 LogLevel       JSON         the minimum log level from now on
//!                 10 Lease          records of 64 bytes + as many descriptors: if one of them has offsets
//!                 11 Goaway         reason u8, then slot u32 and lease number u32 each: end these clients politely
//! to the master    1 Ready          JSON         the methods; from now on leases may come
//!                  2 Failed         JSON         why there will be no Ready; the worker exits after it
//!                  3 Closed         u32 each     slots whose clients this worker ended
//!                  4 Released       u32 each     slots whose lease was revoked or given up
//!                  5 HasCapacity    -            leases were picked up, and the master had asked to be notified
//!                  6 NearRequestLimit  -         the worker has answered nearly as many requests as it may
//!                  7 Health         JSON         whether the worker is healthy again, or why it is not
//!                  8 AppStarted     JSON         the pid of the worker's app, before Ready
//!                  9 AppGone        JSON         why the worker and its app end; `Stop` answers it, and the worker exits
//!                 10 Spent          JSON         why the worker should be replaced
//!                 11 Retiring       -            no more clients can be leased to it; it ends when no request is away
//!                 12 Proxied        u32 each     slots whose PROXY protocol header was read, or whose client has sent
//!                                                its first byte after it
//!
//! lease record     see `proto/lease.rs`
//! ```
//!
//! Kinds are only added, and so are JSON members, with a default: a master reads the last messages of workers of an
//! older version.
//!
//! Messages contain no bytes of clients, which are in the shared memory.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::app::AppSpec;
use super::lease::Lease;
use super::log::{Log, LogLevel};
use super::message::{Malformed, Message, from_json, json};
use super::names::{Generation, WorkerId};

mod goaway;
mod reports;

pub use goaway::Goaway;
pub use reports::{
    AppEnd, AppGone, AppStarted, Failed, Health, MethodName, Ready, RuntimeInfo, Spent,
    SpentReason, check_methods,
};

/// The version of these messages. A worker of another version refuses to start.
pub const VERSION: u32 = 6;

/// The most descriptors in one message: `SCM_MAX_FD` of the kernel (unix(7)).
pub const MAX_LEASES: usize = 253;

/// The longest datagram that either side receives, in bytes.
pub const MAX_MESSAGE: usize = 64 * 1024;

/// The most handoff queues: with 3,000 clients in each, enough for the 524,288 descriptors of the shipped unit. One
/// `Start` carries their descriptors, so that [`MAX_LEASES`] is above it.
pub const MAX_HANDOFF_QUEUES: usize = 192;

/// The most slots in one `Closed`, `Released` or `Proxied`.
pub const MAX_SLOTS: usize = 4096;

/// Messages from the master to a worker.
#[derive(Clone, Debug, PartialEq)]
pub enum ToWorker {
    /// The worker's identity and settings. Carries the shared memory.
    Start(Box<Start>),
    /// Clients to serve from now on. Carries their sockets.
    Lease(Vec<Lease>),
    /// Open the log file again.
    Reopen,
    /// Finish and exit.
    Stop(Stop),
    /// Some leases were revoked: the worker drops its copies of those clients and reports it.
    LeasesRevoked,
    /// Asks for a heartbeat in the shared memory, which shows that the worker's loop runs.
    Ping,
    /// Give up every lease, report it, and exit.
    Retire,
    /// Methods that are no longer run; replaces the previous list.
    Quarantine(Vec<String>),
    /// The least important level that the worker writes from now on.
    LogLevel(LogLevel),
    /// End these clients: each gets a last frame once its requests are answered.
    Goaway(Goaway),
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
    /// Slots whose leases the worker, which retires, has given up; and slots whose leases were revoked, when the
    /// worker's copies of their sockets are closed.
    Released(Vec<u32>),
    /// The worker picked up leases.
    HasCapacity,
    /// The worker has answered [`Settings::near_limit_at`] requests: its successor should be prepared.
    NearRequestLimit,
    /// The health of the worker has changed, by the daemon's health function or by its app.
    Health(Health),
    /// The worker has started its app.
    AppStarted(AppStarted),
    /// The worker ends because of its app.
    AppGone(AppGone),
    /// The worker serves, and its successor should be prepared.
    Spent(Spent),
    /// The worker serves no more clients, by its own decision, and ends when no request is away any more.
    Retiring,
    /// Slots whose PROXY protocol header was read, or whose client has sent its first byte after it. Their flags show
    /// which, and the address of the client is in the shared memory.
    Proxied(Vec<u32>),
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
    /// The longest frame for which its shared memory has regions: that of the settings, or more after a reload, for
    /// parked bytes.
    pub longest: u32,
    /// Quarantined methods, which must not run.
    pub quarantined: Vec<String>,
    /// The number of handoff queues, at most [`MAX_HANDOFF_QUEUES`]; their descriptors follow that of the shared
    /// memory.
    #[serde(rename = "boats")]
    pub handoff_queues: u32,
    /// The settings.
    pub settings: Settings,
    /// The app that the worker starts, if it has one.
    #[serde(default)]
    pub app: Option<AppSpec>,
    /// The directory in which the app gets a cgroup of its own; none if it does not.
    #[serde(default)]
    pub app_cgroups: Option<PathBuf>,
    /// The keys of the daemon's own table, as TOML.
    #[serde(default)]
    pub own_table: String,
}

/// The settings of a worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Longest body of a frame, in bytes.
    pub max_frame: u32,
    /// Bytes that may be parked in the shared memory, over all clients.
    pub buffers: u64,
    /// A client idle for longer is closed.
    pub idle_timeout: Option<Duration>,
    /// The longest time from the first byte of a frame to its last.
    pub frame_timeout: Option<Duration>,
    /// How long a client may receive no byte of its replies.
    pub send_timeout: Option<Duration>,
    /// How long one request may execute before the worker is killed; methods receive this deadline.
    pub request_timeout: Option<Duration>,
    /// How long an app may take to answer a request that it was asked to cancel, or a probe.
    #[serde(default)]
    pub stall_timeout: Duration,
    /// How long a request may continue once the master is gone, before the worker packs its clients.
    pub restart_grace: Duration,
    /// The worker sends [`ToMaster::NearRequestLimit`] after this number of requests, and continues.
    #[serde(rename = "worn_at")]
    pub near_limit_at: Option<u64>,
    /// The worker stops answering after this number of requests, gives up every lease and exits.
    pub max_requests: Option<u64>,
    /// A client whose PROXY protocol header is complete is given up before its first request, unless the header is that
    /// of a check: the master counts the clients of each address, and leases only those within the limit again.
    #[serde(default)]
    pub counts_addresses: bool,
    /// The worker's log.
    pub log: Log,
}

impl Settings {
    /// Returns how many requests a worker that has answered `served` ones may still answer, if there is a limit.
    #[must_use]
    pub fn requests_left(&self, served: u64) -> Option<u64> {
        let most = self.max_requests?;
        Some(most.saturating_sub(served))
    }
}

/// Finish what has arrived, close every client, exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    /// After this long the worker is killed.
    pub within: Duration,
}

impl Message for ToWorker {
    fn encode(&self, out: &mut Vec<u8>) {
        out.clear();
        match self {
            ToWorker::Start(start) => json(1, start, out),
            ToWorker::Lease(leases) => {
                let has_offsets = leases.iter().any(|lease| !lease.record.offsets.is_zero());
                out.push(if has_offsets {
                    LEASE_WITH_OFFSETS
                } else {
                    LEASE
                });
                leases
                    .iter()
                    .for_each(|lease| lease.encode(has_offsets, out));
            }
            ToWorker::Reopen => out.push(3),
            ToWorker::Stop(stop) => json(4, stop, out),
            ToWorker::LeasesRevoked => out.push(5),
            ToWorker::Ping => out.push(6),
            ToWorker::Retire => out.push(7),
            ToWorker::Quarantine(methods) => json(8, methods, out),
            ToWorker::LogLevel(level) => json(9, level, out),
            ToWorker::Goaway(goaway) => goaway.encode(out),
        }
    }

    fn decode(datagram: &[u8]) -> Result<ToWorker, Malformed> {
        let (kind, body) = datagram.split_first().ok_or(Malformed("empty"))?;
        match *kind {
            1 => Ok(ToWorker::Start(Box::new(from_json(body)?))),
            kind @ (LEASE | LEASE_WITH_OFFSETS) => {
                let has_offsets = kind == LEASE_WITH_OFFSETS;
                let leases = body.chunks(Lease::length(has_offsets));
                if leases.len() == 0 || leases.len() > MAX_LEASES {
                    return Err(Malformed("leases of a wrong length"));
                }
                leases
                    .map(|lease| Lease::decode(has_offsets, lease))
                    .collect::<Result<_, _>>()
                    .map(ToWorker::Lease)
            }
            3 if body.is_empty() => Ok(ToWorker::Reopen),
            4 => Ok(ToWorker::Stop(from_json(body)?)),
            5 if body.is_empty() => Ok(ToWorker::LeasesRevoked),
            6 if body.is_empty() => Ok(ToWorker::Ping),
            7 if body.is_empty() => Ok(ToWorker::Retire),
            8 => Ok(ToWorker::Quarantine(from_json(body)?)),
            9 => Ok(ToWorker::LogLevel(from_json(body)?)),
            GOAWAY_KIND => Goaway::decode(body).map(ToWorker::Goaway),
            _ => Err(Malformed("unknown kind")),
        }
    }

    fn descriptors(&self) -> usize {
        match self {
            ToWorker::Start(start) => 1 + start.handoff_queues as usize,
            ToWorker::Lease(leases) => leases.len(),
            _ => 0,
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
            ToMaster::Health(health) => json(7, health, out),
            ToMaster::AppStarted(started) => json(8, started, out),
            ToMaster::AppGone(gone) => json(9, gone, out),
            ToMaster::Spent(spent) => json(10, spent, out),
            ToMaster::Retiring => out.push(11),
            ToMaster::Proxied(slots) => numbers(12, slots, out),
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
            7 => from_json(body).map(ToMaster::Health),
            8 => Ok(ToMaster::AppStarted(from_json(body)?)),
            9 => Ok(ToMaster::AppGone(from_json(body)?)),
            10 => Ok(ToMaster::Spent(from_json(body)?)),
            11 if body.is_empty() => Ok(ToMaster::Retiring),
            12 => from_numbers(body).map(ToMaster::Proxied),
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
const GOAWAY_KIND: u8 = 11;

impl Lease {
    /// Returns one lease of a datagram by its index, without allocating.
    pub(super) fn nth(datagram: &[u8], index: usize) -> Option<Lease> {
        let (kind, leases) = datagram.split_first()?;
        if ![LEASE, LEASE_WITH_OFFSETS].contains(kind) {
            return None;
        }
        let has_offsets = *kind == LEASE_WITH_OFFSETS;
        let lease = leases.chunks(Lease::length(has_offsets)).nth(index)?;
        Lease::decode(has_offsets, lease).ok()
    }
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
    use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

    use super::*;
    use crate::proto::app::AppInfo;
    use crate::proto::frame::OrderRule;
    use crate::proto::lease::ClientRecord;
    use crate::proto::message::tests::assert_round_trip;
    use crate::proto::names::{ClientId, Offsets, Peer};
    use crate::proto::rpc::GoawayReason;
    use proptest::prelude::*;

    #[test]
    fn a_decoded_message_equals_the_encoded_one() {
        let (pid, uid, gid) = (1, u32::MAX, 3);
        let peers = [
            Peer::from(SocketAddr::from((Ipv4Addr::LOCALHOST, 8080))),
            Peer::from(SocketAddr::from((Ipv6Addr::LOCALHOST, 1))),
            Peer::Unix { pid, uid, gid },
        ];
        let record = ClientRecord {
            client: ClientId(1 << 40),
            slot: 7,
            lease_number: 9,
            order: OrderRule::Auto,
            moves: 3,
            listener: 2,
            since: 99,
            offsets: Offsets::default(),
        };
        let mut leases = peers.map(|peer| Lease { record, peer });
        assert_round_trip(&ToWorker::Lease(leases.to_vec()));
        let (received, sent) = (u64::MAX, 1 << 40);
        leases[1].record.offsets = Offsets { received, sent };
        let mut datagram = Vec::new();
        ToWorker::Lease(leases.to_vec()).encode(&mut datagram);
        assert_eq!(Lease::nth(&datagram, 1), Some(leases[1]));
        let within = Duration::from_millis(1500);
        for message in [
            ToWorker::Lease(leases.to_vec()),
            ToWorker::Reopen,
            ToWorker::Stop(Stop { within }),
            ToWorker::LeasesRevoked,
            ToWorker::Ping,
            ToWorker::Retire,
            ToWorker::Quarantine(vec!["resize".to_owned()]),
            ToWorker::LogLevel(LogLevel::Warn),
            ToWorker::Goaway(Goaway {
                reason: GoawayReason::Kicked,
                leases: vec![(0, 1), (u32::MAX, 2)],
            }),
        ] {
            assert_round_trip(&message);
        }
        let (name, reason) = ("ping".to_owned(), "no cache at \"/x\"\n".to_owned());
        let idempotent = true;
        let methods = vec![MethodName { name, idempotent }];
        let version = VERSION;
        for message in [
            ToMaster::Closed(vec![1, 2, u32::MAX]),
            ToMaster::Released(vec![0]),
            ToMaster::Proxied(vec![0, u32::MAX]),
            ToMaster::HasCapacity,
            ToMaster::NearRequestLimit,
            ToMaster::Retiring,
            ToMaster::Health(Health {
                unhealthy: Some(reason.clone()),
            }),
            ToMaster::Health(Health { unhealthy: None }),
            ToMaster::Failed(Failed { reason }),
            ToMaster::Ready(Ready {
                version,
                methods,
                app: Some(AppInfo::default()),
                runtime: Some(RuntimeInfo {
                    thread: 8,
                    concurrency: 64,
                }),
            }),
            ToMaster::AppStarted(AppStarted {
                pid: 7,
                zygote: Some(6),
            }),
            ToMaster::AppGone(AppGone {
                end: AppEnd::Killed(9),
                subject: "app".to_owned(),
                reason: "was killed".to_owned(),
            }),
            ToMaster::Spent(Spent {
                reason: SpentReason::Memory,
            }),
        ] {
            assert_round_trip(&message);
        }
    }

    proptest! {
        #[test]
        fn no_datagram_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = ToWorker::decode(&bytes);
            let _ = ToMaster::decode(&bytes);
        }
    }
}
