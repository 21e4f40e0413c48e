//! One connection to a daemon.

use std::io::{self, IoSlice};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::ConnectionError;
use super::connect::DaemonSocket;
use super::options::ClientOptions;
use super::queue::{Lost, RequestQueue};
use super::wire::{GoawayFrame, ReplyBody, ReplyFrames};
use crate::proto::frame::ByteOrder;
use crate::sys::poll::{self, Interest, wait_for};
use crate::sys::socket::{Transfer, is_silent, probe_every, receive, transmit_pieces};

/// The most requests that are sent before the reply to the first of them: the most of unknown outcome if a host dies.
const WINDOW: usize = 64;

/// How many bytes are received at a time.
const PIECE: usize = 64 * 1024;

/// The pause before the kernel is asked again for what it has no memory for.
const SHORTAGE_PAUSE: Duration = Duration::from_millis(10);

/// A connection.
#[derive(Debug)]
pub(super) struct RpcConnection {
    pub(super) socket: Arc<UnixStream>,
    /// The index of its address.
    pub(super) address: usize,
    /// The daemon, as users of the client read it.
    pub(super) daemon: Arc<str>,
    /// Whether a request was answered.
    pub(super) has_replied: bool,
    /// How many requests were answered.
    answered: u64,
    /// The byte order and the longest request, until a request asks for a goaway; `None` if none will.
    asking: Option<(ByteOrder, u32)>,
    /// A frame was left incomplete: nothing can be sent any more.
    pub(super) is_cut: bool,
    /// Why a thread has stopped waiting for a reply.
    pub(super) late: Option<ConnectionError>,
    frames: ReplyFrames,
    buffer: Vec<u8>,
    /// Whether the kernel takes no more bytes now.
    is_full: bool,
    /// The error of the last write. A reply may have arrived before, such as `overloaded`.
    broken: Option<Arc<io::Error>>,
    /// Whether the other end is a host that may disappear.
    is_tcp: bool,
    /// When something was sent or has arrived last.
    active: Instant,
}

impl RpcConnection {
    pub(super) fn new(
        connected: DaemonSocket,
        address: usize,
        options: &ClientOptions,
    ) -> RpcConnection {
        let socket = connected.socket;
        let third = options.silence / 3;
        let interval = third.clamp(Duration::from_secs(1), Duration::from_secs(3600));
        RpcConnection {
            // It fails for a Unix socket.
            is_tcp: is_silent(&socket, options.silence).is_ok()
                && probe_every(&socket, interval).is_ok(),
            socket: Arc::new(socket),
            address,
            daemon: connected.name,
            has_replied: false,
            answered: 0,
            // A client that fails fast sends nothing once more.
            asking: (!options.fails_fast).then_some((options.byte_order, options.max_request)),
            is_cut: false,
            late: None,
            frames: ReplyFrames::new(options.byte_order, options.max_reply),
            buffer: vec![0; PIECE],
            is_full: false,
            broken: None,
            active: Instant::now(),
        }
    }

    /// Returns the events that the work of this connection waits for.
    pub(super) fn interest(&self) -> Interest {
        if self.is_full && self.broken.is_none() {
            Interest::Both
        } else {
            Interest::Read
        }
    }

    /// Returns whether an event has to be waited for before the next request can be sent.
    pub(super) fn is_blocked(&self) -> bool {
        self.is_full || self.broken.is_some()
    }

    /// Returns whether an idle connection can be used: nothing has arrived, not even its end.
    pub(super) fn is_usable(&self) -> bool {
        self.frames.part().is_empty()
            && matches!(
                wait_for(&self.socket, Interest::Read, Duration::ZERO),
                Ok(false)
            )
    }

    /// Returns whether nothing may be sent, because nothing waits for the reply to an earlier request: the daemon
    /// executes the requests of a connection one after the other.
    pub(super) fn is_retired(&self, requests: &RequestQueue) -> bool {
        self.is_cut || requests.has_abandoned()
    }

    /// Sends what the connection takes, if the requests that are sent already permit more.
    pub(super) fn send(&mut self, requests: &mut RequestQueue) {
        if self.broken.is_some() || self.is_retired(requests) {
            return;
        }
        self.is_full = false;
        if let Some((order, limit)) = self.asking
            && requests.ask_for_goaway(order, limit)
        {
            self.asking = None;
        }
        loop {
            let count = WINDOW.saturating_sub(requests.sent());
            let pieces = requests.to_send(count);
            if pieces.is_empty() {
                return;
            }
            let length: usize = pieces.iter().map(|piece| piece.len()).sum();
            let pieces: Vec<IoSlice<'_>> = pieces.into_iter().map(IoSlice::new).collect();
            match transmit_pieces(&self.socket, &pieces) {
                Ok(Transfer::Bytes(sent)) => {
                    drop(pieces);
                    requests.note_sent(sent);
                    self.active = Instant::now();
                    if sent < length {
                        self.is_full = true;
                        return;
                    }
                }
                Ok(Transfer::Nothing) => {
                    self.is_full = true;
                    return;
                }
                Ok(Transfer::Shortage) => {
                    poll::pause(SHORTAGE_PAUSE);
                    self.is_full = true;
                    return;
                }
                Ok(Transfer::End) => {
                    self.broken = Some(Arc::new(io::ErrorKind::ConnectionReset.into()));
                    return;
                }
                Err(error) => {
                    self.broken = Some(Arc::new(error));
                    return;
                }
            }
        }
    }

    /// Receives once, and gives the replies to their requests.
    ///
    /// # Errors
    /// The end of the connection.
    pub(super) fn receive(&mut self, requests: &mut RequestQueue) -> Result<(), Lost> {
        let daemon = Arc::clone(&self.daemon);
        let address = &*daemon;
        let count = match receive(&self.socket, &mut self.buffer) {
            Ok(Transfer::Bytes(count)) => count,
            Ok(Transfer::Nothing) => {
                return match &self.broken {
                    Some(error) => Err(self.lost(ConnectionError::Broken(Arc::clone(error)))),
                    None => Ok(()),
                };
            }
            Ok(Transfer::Shortage) => {
                poll::pause(SHORTAGE_PAUSE);
                return Ok(());
            }
            Ok(Transfer::End) => return Err(self.ended(requests, address)),
            Err(error) => return Err(self.lost(ConnectionError::Broken(Arc::new(error)))),
        };
        self.active = Instant::now();
        self.frames.push(&self.buffer[..count]);
        loop {
            match self.frames.next_reply() {
                Ok(Some(reply)) => {
                    self.check_goaway(&reply, requests, address)?;
                    // Otherwise it is the error for a frame that was not sent completely.
                    let is_reply = requests.sent() > 0;
                    requests.answer(reply, address)?;
                    self.has_replied |= is_reply;
                    self.answered += 1;
                }
                Ok(None) => return Ok(()),
                Err(why) => return Err(requests.broken(&why, address)),
            }
        }
    }

    /// Returns the end of the connection if its host has been silent for too long.
    ///
    /// # Errors
    /// That end.
    pub(super) fn check_silence(&self, silence: Duration) -> Result<(), Lost> {
        let is_due = self.is_tcp && self.active.elapsed() >= silence;
        if is_due && is_silent(&self.socket, silence).unwrap_or(false) {
            return Err(self.lost(ConnectionError::Silent(silence)));
        }
        Ok(())
    }

    /// Returns why the first outstanding reply has not arrived in this time.
    pub(super) fn why_late(&self, timeout: Duration) -> ConnectionError {
        match self.frames.misread() {
            Some(why) => ConnectionError::BadReply(why),
            None => ConnectionError::Timeout(timeout),
        }
    }

    /// Checks whether a reply is the goaway, after which nothing comes.
    ///
    /// # Errors
    /// It is. The requests that are not answered were not executed, if its number is right.
    fn check_goaway(
        &self,
        reply: &ReplyBody,
        requests: &mut RequestQueue,
        address: &str,
    ) -> Result<(), Lost> {
        let answered = self.answered;
        match GoawayFrame::of(reply) {
            Ok(None) => Ok(()),
            Ok(Some(goaway)) if goaway.read == answered => Err(Lost {
                cause: ConnectionError::Goaway {
                    reason: goaway.reason(),
                },
                may_have_run: false,
            }),
            Ok(Some(GoawayFrame { read, .. })) => {
                let why =
                    format!("the goaway counts {read} requests, and {answered} were answered");
                Err(requests.broken(&why, address))
            }
            Err(why) => Err(requests.broken(&why, address)),
        }
    }

    fn ended(&self, requests: &mut RequestQueue, address: &str) -> Lost {
        if let Some(why) = self.frames.misread() {
            return requests.broken(&why, address);
        }
        self.lost(match self.frames.part().len() {
            0 => ConnectionError::Closed,
            received => ConnectionError::ClosedInReply { received },
        })
    }

    fn lost(&self, cause: ConnectionError) -> Lost {
        Lost {
            cause,
            may_have_run: true,
        }
    }
}
