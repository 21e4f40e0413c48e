//! One request and its reply, over the control socket or as a client of the RPC.
//!
//! Nothing here waits for longer than its [`Deadline`], and a reply takes memory only as it arrives.

mod access;

use std::borrow::Cow;
use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use self::access::who_may_connect;
use crate::proto::control::{self, Verb};
use crate::proto::frame::{ByteOrder, PREFIX};
use crate::proto::names::Address;

/// What comes in place of a reply that is none of an error.
#[derive(Debug)]
pub enum Error {
    /// No daemon at any place where its control socket may be.
    NotRunning {
        /// All these.
        tried: Vec<PathBuf>,
    },
    /// No listener where the call was to go.
    NothingListens(Address),
    /// Neither of the two above, and no connection either.
    Connect {
        /// To where.
        address: Address,
        /// What connect(2) said.
        cause: io::Error,
    },
    /// The kernel or the daemon does not let this user.
    Forbidden(String),
    /// An error reply.
    Refused {
        /// For programs.
        code: String,
        /// For people.
        message: String,
        /// Shows the message at its place in the configuration file.
        display: Option<String>,
    },
    /// The other end closed the connection instead of replying.
    Closed,
    /// What came is no reply.
    NoReply(String),
    /// Nothing came in time.
    Timeout(Duration),
    /// The request says something that cannot be sent.
    Usage(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::NotRunning { tried } => {
                let tried: Vec<_> = tried
                    .iter()
                    .map(|path| path.display().to_string())
                    .collect();
                write!(
                    f,
                    "fdpassd is not running (no socket at {})",
                    tried.join(", ")
                )
            }
            Error::NothingListens(address) => write!(f, "nothing listens at {address}"),
            Error::Connect { address, cause } => write!(f, "cannot connect to {address}: {cause}"),
            Error::Forbidden(what) => write!(f, "forbidden: {what}"),
            // A mistake in the file is found before anything is done.
            Error::Refused {
                code,
                display: Some(_),
                ..
            } => write!(f, "{code}, and nothing was changed:"),
            Error::Refused { code, message, .. } => write!(f, "{code}: {message}"),
            Error::Closed => f.write_str("the connection was closed before the reply"),
            Error::NoReply(why) => f.write_str(why),
            Error::Timeout(timeout) => write!(
                f,
                "no reply within {}",
                humantime::format_duration(*timeout)
            ),
            Error::Usage(why) => f.write_str(why),
        }
    }
}

/// When to give up.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    at: Instant,
    timeout: Duration,
}

impl Deadline {
    /// So long from now.
    #[must_use]
    pub fn new(timeout: Duration) -> Deadline {
        Deadline {
            at: Instant::now() + timeout,
            timeout,
        }
    }

    /// How long that is from now. Never zero, which the kernel would read as "for ever".
    ///
    /// # Errors
    /// `TimedOut` from then on.
    pub fn left(&self) -> io::Result<Duration> {
        let left = self.at.saturating_duration_since(Instant::now());
        if left.is_zero() {
            Err(ErrorKind::TimedOut.into())
        } else {
            Ok(left)
        }
    }
}

/// A connection on which one end asks and the other answers.
#[derive(Debug)]
pub struct RpcClient {
    stream: Stream,
    order: ByteOrder,
    /// Longest body of a reply, in bytes.
    limit: u32,
    deadline: Deadline,
}

impl RpcClient {
    /// To the daemon, at the first of `places` where one answers.
    ///
    /// # Errors
    /// [`Error::NotRunning`] where nobody does; why that cannot be known of a place, if it cannot.
    pub fn connect_control(places: &[PathBuf], deadline: Deadline) -> Result<RpcClient, Error> {
        for path in places {
            match connect(&Address::Unix(path.clone()), deadline) {
                Err(Error::NothingListens(_)) => {}
                Err(error) => return Err(error),
                Ok(stream) => return Ok(RpcClient::from_control_stream(stream, deadline)),
            }
        }
        Err(Error::NotRunning {
            tried: places.to_vec(),
        })
    }

    /// To the daemon, by somebody who has connected to its control socket.
    #[must_use]
    pub fn from_stream(stream: UnixStream, deadline: Deadline) -> RpcClient {
        RpcClient::from_control_stream(Stream::Unix(stream), deadline)
    }

    fn from_control_stream(stream: Stream, deadline: Deadline) -> RpcClient {
        RpcClient {
            stream,
            order: ByteOrder::Little,
            limit: control::MAX_REPLY,
            deadline,
        }
    }

    /// To a listener, as a client.
    ///
    /// # Errors
    /// Those of connecting.
    pub fn connect_listener(
        address: &Address,
        order: ByteOrder,
        deadline: Deadline,
    ) -> Result<RpcClient, Error> {
        Ok(RpcClient {
            stream: connect(address, deadline)?,
            order,
            limit: MAX_RESULT,
            deadline,
        })
    }

    /// Asks the daemon for what has no params. The result is as the daemon wrote it.
    ///
    /// # Errors
    /// As [`RpcClient::call`]; a refusal for want of rights is [`Error::Forbidden`].
    pub fn ask(&mut self, verb: Verb) -> Result<Box<RawValue>, Error> {
        self.asked(verb, None::<&()>)
    }

    /// Asks the daemon, with params. The result is as the daemon wrote it.
    ///
    /// # Errors
    /// As [`RpcClient::ask`].
    pub fn ask_with(
        &mut self,
        verb: Verb,
        params: &impl Serialize,
    ) -> Result<Box<RawValue>, Error> {
        self.asked(verb, Some(params))
    }

    fn asked(
        &mut self,
        verb: Verb,
        params: Option<&impl Serialize>,
    ) -> Result<Box<RawValue>, Error> {
        let reply = self.call(verb.as_str(), params);
        result_of(verb, reply)
    }

    /// Begins to ask the daemon; [`RpcClient::answered`] is to wait for what it says.
    ///
    /// # Errors
    /// What kept the request from being sent.
    pub fn begin(&mut self, verb: Verb, params: &impl Serialize) -> Result<(), Error> {
        let request = self.frame(&RpcRequest {
            method: verb.as_str(),
            params: Some(params),
        })?;
        self.write_all(&request).map_err(|e| self.read_error(e))
    }

    /// The answer to what [`RpcClient::begin`] has asked.
    ///
    /// # Errors
    /// The daemon's refusal, and what kept a reply from coming.
    pub fn answered(&mut self, verb: Verb) -> Result<Box<RawValue>, Error> {
        let reply = self.receive().and_then(|body| RpcReply::parse(&body));
        result_of(verb, reply)
    }

    /// What is asked from now on is waited for until then.
    pub fn extend(&mut self, deadline: Deadline) {
        self.deadline = deadline;
    }

    /// What ends this connection while another thread waits on it.
    ///
    /// # Errors
    /// When there is no descriptor left for it.
    pub fn closer(&self) -> io::Result<Closer> {
        let stream = match &self.stream {
            Stream::Unix(stream) => stream.try_clone().map(Stream::Unix),
            Stream::Tcp(stream) => stream.try_clone().map(Stream::Tcp),
        };
        stream.map(Closer)
    }

    /// Sends one request and waits for its reply.
    ///
    /// # Errors
    /// [`Error::Refused`] for an error reply, and what kept a reply from coming.
    pub fn call(
        &mut self,
        method: &str,
        params: Option<&impl Serialize>,
    ) -> Result<RpcReply, Error> {
        let request = self.frame(&RpcRequest { method, params })?;
        let sent = self.write_all(&request);
        // Also when the request was not taken to its end: the reply may be the reason why.
        match (self.receive(), sent) {
            (Ok(body), _) => RpcReply::parse(&body),
            (Err(error), Ok(())) => Err(error),
            (Err(_), Err(error)) => Err(self.read_error(error)),
        }
    }

    /// Waits until the other end closes, as it does when its process ends.
    ///
    /// # Errors
    /// [`Error::Timeout`] when it does not.
    pub fn wait_for_end(&mut self) -> Result<(), Error> {
        match io::copy(self, &mut io::sink()) {
            Err(e) if e.kind() == ErrorKind::TimedOut => Err(Error::Timeout(self.deadline.timeout)),
            _ => Ok(()),
        }
    }

    fn frame(&self, request: &RpcRequest<impl Serialize>) -> Result<Vec<u8>, Error> {
        let mut frame = vec![0; PREFIX];
        serde_json::to_writer(&mut frame, request).map_err(|e| Error::Usage(e.to_string()))?;
        let length = u32::try_from(frame.len() - PREFIX)
            .map_err(|_| Error::Usage("a request of 4 GiB and more cannot be sent".to_owned()))?;
        frame[..PREFIX].copy_from_slice(&self.order.prefix(length));
        Ok(frame)
    }

    fn receive(&mut self) -> Result<Vec<u8>, Error> {
        let mut prefix = [0; PREFIX];
        self.read_exact(&mut prefix)
            .map_err(|e| self.read_error(e))?;
        let length = self.order.length(prefix);
        if length > self.limit {
            let limit = self.limit;
            return Err(Error::NoReply(format!(
                "a reply of {length} bytes is announced, at most {limit} are taken"
            )));
        }
        let mut body = Vec::new();
        Read::by_ref(self)
            .take(length.into())
            .read_to_end(&mut body)
            .map_err(|e| self.read_error(e))?;
        if body.len() < length as usize {
            return Err(self.read_error(ErrorKind::UnexpectedEof.into()));
        }
        Ok(body)
    }

    fn read_error(&self, error: io::Error) -> Error {
        match error.kind() {
            ErrorKind::TimedOut => Error::Timeout(self.deadline.timeout),
            ErrorKind::UnexpectedEof | ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => {
                Error::Closed
            }
            _ => Error::NoReply(format!("the connection broke before the reply: {error}")),
        }
    }
}

impl Read for RpcClient {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = Some(self.deadline.left()?);
        let read = match &mut self.stream {
            Stream::Unix(stream) => stream
                .set_read_timeout(left)
                .and_then(|()| stream.read(buffer)),
            Stream::Tcp(stream) => stream
                .set_read_timeout(left)
                .and_then(|()| stream.read(buffer)),
        };
        read.map_err(timed_out)
    }
}

impl Write for RpcClient {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let left = Some(self.deadline.left()?);
        let written = match &mut self.stream {
            Stream::Unix(stream) => stream
                .set_write_timeout(left)
                .and_then(|()| stream.write(bytes)),
            Stream::Tcp(stream) => stream
                .set_write_timeout(left)
                .and_then(|()| stream.write(bytes)),
        };
        written.map_err(timed_out)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The end of a [`RpcClient`], for another thread. What has arrived by then can still be read.
#[derive(Debug)]
pub struct Closer(Stream);

impl Closer {
    /// Ends it.
    pub fn close(&self) {
        // It may be closed by the other end already.
        let _ = match &self.0 {
            Stream::Unix(stream) => stream.shutdown(Shutdown::Both),
            Stream::Tcp(stream) => stream.shutdown(Shutdown::Both),
        };
    }
}

/// A reply that is none of an error.
#[derive(Debug)]
pub struct RpcReply {
    name: String,
    /// Byte for byte as it came.
    pub result: Box<RawValue>,
}

impl RpcReply {
    fn parse(body: &[u8]) -> Result<RpcReply, Error> {
        #[derive(Deserialize)]
        struct Envelope<'a> {
            #[serde(borrow)]
            out: Cow<'a, str>,
            #[serde(borrow)]
            result: &'a RawValue,
        }
        #[derive(Deserialize)]
        struct Fault {
            code: String,
            message: String,
            /// Only the daemon's own refusals have one; a method's error may have anything of that name.
            #[serde(default)]
            place: Value,
        }
        let text = std::str::from_utf8(body).map_err(|e| no_reply(&e))?;
        if text.trim_start().starts_with('[') {
            // serde would take an array for a struct.
            return Err(no_reply(&"it is an array"));
        }
        let Envelope { out, result } = serde_json::from_str(text).map_err(|e| no_reply(&e))?;
        if out == "error" {
            let Fault {
                code,
                message,
                place,
            } = serde_json::from_str(result.get()).map_err(|e| no_reply(&e))?;
            return Err(Error::Refused {
                code,
                message,
                display: place["display"].as_str().map(str::to_owned),
            });
        }
        Ok(RpcReply {
            name: out.into_owned(),
            result: result.to_owned(),
        })
    }
}

/// The daemon's result, if it is one of that verb.
fn result_of(verb: Verb, reply: Result<RpcReply, Error>) -> Result<Box<RawValue>, Error> {
    match reply {
        Ok(reply) if reply.name == verb.as_str() => Ok(reply.result),
        Ok(reply) => Err(Error::NoReply(format!(
            "asked for {:?}, got {:?}",
            verb.as_str(),
            reply.name
        ))),
        Err(Error::Refused { code, message, .. }) if code == FORBIDDEN => {
            Err(Error::Forbidden(message))
        }
        Err(error) => Err(error),
    }
}

/// The error for an answer that cannot be understood.
pub fn no_reply(why: &dyn fmt::Display) -> Error {
    Error::NoReply(format!("the answer is no valid reply: {why}"))
}

#[derive(Serialize)]
struct RpcRequest<'a, P> {
    #[serde(rename = "in")]
    method: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    params: Option<&'a P>,
}

#[derive(Debug)]
enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

fn connect(address: &Address, deadline: Deadline) -> Result<Stream, Error> {
    let connected = match address {
        Address::Tcp(to) => deadline
            .left()
            .and_then(|left| TcpStream::connect_timeout(to, left))
            .map(Stream::Tcp),
        Address::Unix(path) => connect_unix(path, deadline).map(Stream::Unix),
    };
    connected.map_err(|cause| match (cause.kind(), address) {
        (ErrorKind::NotFound | ErrorKind::ConnectionRefused | ErrorKind::NotADirectory, _) => {
            Error::NothingListens(address.clone())
        }
        (ErrorKind::PermissionDenied, Address::Unix(path)) => {
            Error::Forbidden(who_may_connect(path))
        }
        (ErrorKind::TimedOut, _) => Error::Timeout(deadline.timeout),
        _ => Error::Connect {
            address: address.clone(),
            cause,
        },
    })
}

/// In a thread of its own, because connect(2) waits for room in the queue of a Unix socket, and only
/// options that are set before it would give that an end. The process ends soon after, and the thread with it.
fn connect_unix(path: &Path, deadline: Deadline) -> io::Result<UnixStream> {
    let (tell, told) = mpsc::channel();
    let path = path.to_owned();
    thread::Builder::new().spawn(move || tell.send(UnixStream::connect(path)))?;
    told.recv_timeout(deadline.left()?)
        .unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()))
}

/// A socket's own timeout is told as EAGAIN (socket(7)).
fn timed_out(error: io::Error) -> io::Error {
    if error.kind() == ErrorKind::WouldBlock {
        ErrorKind::TimedOut.into()
    } else {
        error
    }
}

/// [`control::RefusalCode::Forbidden`] on the wire. Codes are compared as text, so that those of a newer daemon are shown too.
const FORBIDDEN: &str = "forbidden";

/// Longest body of a client's reply: 256 MiB, and room for what is around the result.
const MAX_RESULT: u32 = (256 << 20) + (64 << 10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forbidden_is_written_as_the_daemon_writes_it() {
        assert_eq!(
            serde_json::to_string(&control::RefusalCode::Forbidden).expect("a string"),
            format!("{FORBIDDEN:?}")
        );
    }

    #[test]
    fn a_reply_is_an_object_with_out_and_result() {
        let reply =
            RpcReply::parse(br#" {"out":"p\u006fng","more":[1],"result": 1e400 }"#).expect("valid");
        assert_eq!((reply.name.as_str(), reply.result.get()), ("pong", "1e400"));
        for bad in [
            "",
            "[\"pong\",1]",
            " [\"pong\",1]",
            "{}",
            r#"{"out":"pong"}"#,
            r#"{"out":"error","result":1}"#,
        ] {
            assert!(
                matches!(RpcReply::parse(bad.as_bytes()), Err(Error::NoReply(_))),
                "{bad}"
            );
        }
        assert!(matches!(RpcReply::parse(b"\xff"), Err(Error::NoReply(_))));
    }
}
