//! Requests to a control socket, and their replies.
//!
//! No call waits for longer than its [`Deadline`], and a reply takes memory only as it arrives.

mod access;
mod connect;
mod error;

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::value::RawValue;

use self::connect::connect;
pub use self::connect::not_connected;
pub use self::error::{Error, broken, no_reply};
use crate::client::wire::{ReplyBody, misread_part, request_frame, too_long};
use crate::proto::control::{self, RefusalCode, Verb};
use crate::proto::frame::{ByteOrder, PREFIX};
use crate::proto::rpc::Code;

/// The end of the waiting for a reply.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    at: Instant,
    timeout: Duration,
}

impl Deadline {
    /// Returns the deadline `timeout` from now.
    #[must_use]
    pub fn new(timeout: Duration) -> Deadline {
        Deadline {
            at: Instant::now() + timeout,
            timeout,
        }
    }

    /// Returns the error of a wait that has reached the deadline.
    #[must_use]
    pub fn over(&self) -> Error {
        Error::Timeout(self.timeout)
    }

    /// Returns the time until the deadline. Never zero, which the kernel would take for no limit.
    ///
    /// # Errors
    /// `TimedOut` from the deadline on.
    pub fn left(&self) -> io::Result<Duration> {
        let left = self.at.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        Ok(left)
    }
}

/// The byte order of a control socket.
const ORDER: ByteOrder = ByteOrder::Little;

/// A connection to a control socket.
#[derive(Debug)]
pub struct RpcClient {
    stream: UnixStream,
    deadline: Deadline,
}

impl RpcClient {
    /// Connects to the daemon of this name at the first of `places` where one listens.
    ///
    /// # Errors
    /// [`Error::NotRunning`] where none does; the reason if that cannot be known of a place.
    pub fn connect_control(
        daemon: &str,
        places: &[PathBuf],
        deadline: Deadline,
    ) -> Result<RpcClient, Error> {
        for path in places {
            match connect(path, deadline) {
                Err(Error::NothingListens(_)) => {}
                Err(error) => return Err(error),
                Ok(stream) => return Ok(RpcClient::from_stream(stream, deadline)),
            }
        }
        Err(Error::NotRunning {
            daemon: daemon.to_owned(),
            tried: places.to_vec(),
        })
    }

    /// Returns a client of the daemon over a connection to its control socket.
    #[must_use]
    pub fn from_stream(stream: UnixStream, deadline: Deadline) -> RpcClient {
        RpcClient { stream, deadline }
    }

    /// Sends the daemon a request without params and returns the result as the daemon wrote it.
    ///
    /// # Errors
    /// [`Error::Refused`] for an error reply, and [`Error::Forbidden`] if permission is lacking; else the reason why
    /// there is no reply.
    pub fn ask(&mut self, verb: Verb) -> Result<Box<RawValue>, Error> {
        result_of(verb, self.call(verb.as_str(), None::<&()>))
    }

    /// Sends the daemon a request with params and returns the result as the daemon wrote it.
    ///
    /// # Errors
    /// As [`RpcClient::ask`].
    pub fn ask_with(
        &mut self,
        verb: Verb,
        params: &impl Serialize,
    ) -> Result<Box<RawValue>, Error> {
        result_of(verb, self.call(verb.as_str(), Some(params)))
    }

    /// Sends the daemon a request; [`RpcClient::answered`] waits for the reply.
    ///
    /// # Errors
    /// The reason why the request was not sent.
    pub fn begin(&mut self, verb: Verb, params: &impl Serialize) -> Result<(), Error> {
        let request = frame(verb.as_str(), Some(params))?;
        self.write_all(&request).map_err(|e| self.read_error(e))
    }

    /// Returns the result of the request sent by [`RpcClient::begin`].
    ///
    /// # Errors
    /// As [`RpcClient::ask`].
    pub fn answered(&mut self, verb: Verb) -> Result<Box<RawValue>, Error> {
        let reply = self.receive().and_then(|body| RpcReply::parse(&body));
        result_of(verb, reply)
    }

    /// Replaces the deadline.
    pub fn extend(&mut self, deadline: Deadline) {
        self.deadline = deadline;
    }

    /// Returns the means to close this connection while another thread waits on it.
    ///
    /// # Errors
    /// Those of fcntl(2): EMFILE when this process is out of descriptors.
    pub fn closer(&self) -> io::Result<Closer> {
        self.stream.try_clone().map(Closer)
    }

    /// Sends one request and waits for its reply.
    fn call(&mut self, method: &str, params: Option<&impl Serialize>) -> Result<RpcReply, Error> {
        let request = frame(method, params)?;
        let sent = self.write_all(&request);
        // Also when only a part of the request was sent: the reply may contain the reason.
        match (self.receive(), sent) {
            (Ok(body), _) => RpcReply::parse(&body),
            (Err(error), Ok(())) => Err(error),
            (Err(_), Err(error)) => Err(self.read_error(error)),
        }
    }

    /// Waits until the other end closes the connection, as it does when its process ends.
    ///
    /// # Errors
    /// [`Error::Timeout`] when it does not.
    pub fn wait_for_end(&mut self) -> Result<(), Error> {
        match io::copy(self, &mut io::sink()) {
            Err(e) if e.kind() == ErrorKind::TimedOut => Err(Error::Timeout(self.deadline.timeout)),
            _ => Ok(()),
        }
    }

    fn receive(&mut self) -> Result<Vec<u8>, Error> {
        let mut prefix = [0; PREFIX];
        self.read_exact(&mut prefix)
            .map_err(|e| self.read_error(e))?;
        let length = ORDER.length(prefix);
        if length > control::MAX_REPLY {
            return Err(Error::NoReply(too_long(length, ORDER, control::MAX_REPLY)));
        }
        let mut body = Vec::new();
        let read = Read::by_ref(self)
            .take(length.into())
            .read_to_end(&mut body);
        if read.is_ok() && body.len() == length as usize {
            return Ok(body);
        }
        let error = read.err().unwrap_or(ErrorKind::UnexpectedEof.into());
        let found = misread_part(&[&prefix[..], &body].concat(), ORDER);
        Err(found.map_or_else(|| self.read_error(error), Error::NoReply))
    }

    fn read_error(&self, error: io::Error) -> Error {
        match error.kind() {
            ErrorKind::TimedOut => Error::Timeout(self.deadline.timeout),
            _ => broken(&error),
        }
    }
}

impl Read for RpcClient {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(self.deadline.left()?))?;
        self.stream.read(buffer).map_err(timed_out)
    }
}

impl Write for RpcClient {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(Some(self.deadline.left()?))?;
        self.stream.write(bytes).map_err(timed_out)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A copy of a [`RpcClient`]'s connection, with which another thread closes it. Bytes that have arrived can still be
/// read.
#[derive(Debug)]
pub struct Closer(UnixStream);

impl Closer {
    /// Closes the connection.
    pub fn close(&self) {
        // The other end may have closed it already.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

/// Returns the frame of a request.
fn frame(method: &str, params: Option<&impl Serialize>) -> Result<Vec<u8>, Error> {
    request_frame(ORDER, u32::MAX, method, params).map_err(Error::Usage)
}

/// A reply other than an error.
#[derive(Debug)]
struct RpcReply {
    name: String,
    /// The result, byte for byte.
    result: Box<RawValue>,
}

impl RpcReply {
    fn parse(body: &[u8]) -> Result<RpcReply, Error> {
        match ReplyBody::parse(body).map_err(Error::NoReply)? {
            ReplyBody::Result { name, result } => Ok(RpcReply { name, result }),
            ReplyBody::Error {
                code,
                message,
                place,
            } => Err(Error::Refused {
                code,
                message,
                place,
            }),
        }
    }
}

/// Returns the daemon's result, if it belongs to that verb.
fn result_of(verb: Verb, reply: Result<RpcReply, Error>) -> Result<Box<RawValue>, Error> {
    match reply {
        Ok(reply) if reply.name == verb.as_str() => Ok(reply.result),
        Ok(reply) => Err(Error::NoReply(format!(
            "asked for {:?}, got {:?}",
            verb.as_str(),
            reply.name
        ))),
        // Codes are compared as text, so that those of a newer daemon are shown too.
        Err(Error::Refused { code, message, .. }) if code == RefusalCode::Forbidden.as_str() => {
            Err(Error::Forbidden(message))
        }
        // The control socket refuses what is not a verb by another code.
        Err(Error::Refused { code, .. }) if code == Code::UnknownMethod.as_str() => Err(
            Error::NoReply("this is the socket of a listener, not a control socket".to_owned()),
        ),
        Err(error) => Err(error),
    }
}

/// Makes a timeout of EAGAIN, by which a socket reports its own (socket(7)).
fn timed_out(error: io::Error) -> io::Error {
    if error.kind() == ErrorKind::WouldBlock {
        ErrorKind::TimedOut.into()
    } else {
        error
    }
}
