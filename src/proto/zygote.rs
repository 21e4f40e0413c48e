//! Master and zygote: datagrams like those of [`channel`](super::channel).
//!
//! ```text
//! to the zygote    1 Start    JSON            first, once
//!                  2 Fork     u64             fork a worker of this id; carries the worker's end of its channel
//!                  3 Reopen   -               open the log file again
//! to the master    1 Ready    -               workers can be forked
//!                  2 Failed   JSON            why it cannot be ready; it exits after this
//!                  3 Forked   u64 | u32       the worker of this id has this pid; carries a pidfd
//!                  4 Refused  u64 | i32       the worker was not forked: an errno
//!                                             all little-endian
//! ```
//!
//! Requests are answered in their order. The zygote exits when the channel ends.

use serde::{Deserialize, Serialize};

use super::app::AppZygoteSpec;
use super::log::Log;
use super::message::{Fields, Malformed, Message, from_json, json};
use super::names::{Generation, WorkerId};
use super::text::read_shortened;

/// Messages from the master to the zygote.
#[derive(Clone, Debug, PartialEq)]
pub enum ToZygote {
    /// The zygote's identity and settings.
    Start(Box<StartZygote>),
    /// Fork the worker of this id. Carries the worker's end of its channel.
    Fork(WorkerId),
    /// Open the log file again.
    Reopen,
}

/// Messages from the zygote to the master.
#[derive(Clone, Debug, PartialEq)]
pub enum FromZygote {
    /// The zygote can fork workers.
    Ready,
    /// The zygote will not be ready, and exits.
    Failed(ZygoteFailure),
    /// A worker was forked. Carries a descriptor of its process.
    Forked {
        /// The worker.
        worker: WorkerId,
        /// The pid of the worker.
        pid: u32,
    },
    /// A worker could not be forked.
    Refused {
        /// The worker.
        worker: WorkerId,
        /// The error of clone(2).
        errno: i32,
    },
}

/// The first message to a zygote, which has the master's version, because it runs the same program.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StartZygote {
    /// The daemon's name.
    pub name: String,
    /// The configuration of its workers.
    pub generation: Generation,
    /// The master's process.
    pub master: u32,
    /// The zygote's log.
    pub log: Log,
    /// The daemon's own table in the configuration, as text.
    pub own_table: String,
    /// The app whose copies are forked as well, if they are.
    pub app: Option<AppZygoteSpec>,
}

/// Why a zygote does not become ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ZygoteFailure {
    /// The reason, in words that follow `its zygote`.
    #[serde(deserialize_with = "read_shortened")]
    pub reason: String,
    /// The system, and not the program, is the cause: workers can be executed instead.
    pub is_unsupported: bool,
}

impl Message for ToZygote {
    fn encode(&self, out: &mut Vec<u8>) {
        out.clear();
        match self {
            ToZygote::Start(start) => json(1, &**start, out),
            ToZygote::Fork(worker) => {
                out.push(2);
                out.extend(worker.0.to_le_bytes());
            }
            ToZygote::Reopen => out.push(3),
        }
    }

    fn decode(datagram: &[u8]) -> Result<ToZygote, Malformed> {
        match datagram.split_first().ok_or(Malformed("empty"))? {
            (1, body) => Ok(ToZygote::Start(Box::new(from_json(body)?))),
            (2, body) => {
                let mut fields = Fields(body);
                let worker = WorkerId(fields.u64()?);
                end(fields)?;
                Ok(ToZygote::Fork(worker))
            }
            (3, []) => Ok(ToZygote::Reopen),
            _ => Err(Malformed("unknown kind")),
        }
    }

    fn descriptors(&self) -> usize {
        match self {
            ToZygote::Start(_) | ToZygote::Reopen => 0,
            ToZygote::Fork(_) => 1,
        }
    }
}

impl Message for FromZygote {
    fn encode(&self, out: &mut Vec<u8>) {
        out.clear();
        match self {
            FromZygote::Ready => out.push(1),
            FromZygote::Failed(failure) => json(2, failure, out),
            FromZygote::Forked { worker, pid } => {
                out.push(3);
                out.extend(worker.0.to_le_bytes());
                out.extend(pid.to_le_bytes());
            }
            FromZygote::Refused { worker, errno } => {
                out.push(4);
                out.extend(worker.0.to_le_bytes());
                out.extend(errno.to_le_bytes());
            }
        }
    }

    fn decode(datagram: &[u8]) -> Result<FromZygote, Malformed> {
        match datagram.split_first().ok_or(Malformed("empty"))? {
            (1, []) => Ok(FromZygote::Ready),
            (2, body) => Ok(FromZygote::Failed(from_json(body)?)),
            (kind @ (3 | 4), body) => {
                let mut fields = Fields(body);
                let worker = WorkerId(fields.u64()?);
                let number = fields.bytes()?;
                end(fields)?;
                Ok(match kind {
                    3 => FromZygote::Forked {
                        worker,
                        pid: u32::from_le_bytes(number),
                    },
                    _ => FromZygote::Refused {
                        worker,
                        errno: i32::from_le_bytes(number),
                    },
                })
            }
            _ => Err(Malformed("unknown kind")),
        }
    }

    fn descriptors(&self) -> usize {
        match self {
            FromZygote::Ready | FromZygote::Failed(_) | FromZygote::Refused { .. } => 0,
            FromZygote::Forked { .. } => 1,
        }
    }
}

fn end(fields: Fields<'_>) -> Result<(), Malformed> {
    match fields.0 {
        [] => Ok(()),
        _ => Err(Malformed("too long")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::channel::MAX_MESSAGE;
    use crate::proto::log::tests::log_in_file;
    use crate::proto::message::tests::assert_round_trip;

    #[test]
    fn a_decoded_message_equals_the_encoded_one_and_fits() {
        let start = StartZygote {
            name: "fdpassd".to_owned(),
            generation: Generation(u64::MAX),
            master: u32::MAX,
            log: log_in_file(),
            // The longest table, of characters that JSON escapes.
            own_table: "\"".repeat(16 << 10),
            app: None,
        };
        for message in [
            ToZygote::Start(Box::new(start)),
            ToZygote::Fork(WorkerId(u64::MAX)),
            ToZygote::Reopen,
        ] {
            assert!(assert_round_trip(&message) <= MAX_MESSAGE);
        }
        let worker = WorkerId(1 << 40);
        for message in [
            FromZygote::Ready,
            FromZygote::Failed(ZygoteFailure {
                reason: "has two threads".to_owned(),
                is_unsupported: true,
            }),
            FromZygote::Forked { worker, pid: 7 },
            FromZygote::Refused { worker, errno: 11 },
        ] {
            assert!(assert_round_trip(&message) <= MAX_MESSAGE);
        }
        for garbage in [&b""[..], b"\x01{}", b"\x02x", b"\x03\x01", b"\x05"] {
            assert!(ToZygote::decode(garbage).is_err(), "{garbage:?}");
            assert!(FromZygote::decode(garbage).is_err(), "{garbage:?}");
        }
    }
}
