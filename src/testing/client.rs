//! An RPC client for tests.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use super::TIMEOUT;
use crate::proto::frame::{ByteOrder, PREFIX};
use crate::proto::names::Address;
use crate::sys::socket::{connect_tcp, connect_unix};
use crate::worker::Fault;

/// A connection to a daemon that sends and reads only what the test asks for.
///
/// By default it is little-endian and does not set `TCP_NODELAY`. Every error panics, and so does a wait of more than
/// [`TIMEOUT`] for a byte.
#[derive(Debug)]
pub struct Client {
    /// A TCP or Unix socket: the calls used here are the same for both.
    stream: BufReader<UnixStream>,
    order: ByteOrder,
}

impl Client {
    /// Connects to a listener of the daemon.
    #[must_use]
    #[track_caller]
    pub fn connect(address: &Address) -> Client {
        match Client::try_connect(address) {
            Ok(client) => client,
            Err(e) => panic!("cannot connect to {address}: {e}"),
        }
    }

    fn try_connect(address: &Address) -> io::Result<Client> {
        let stream = match address {
            Address::Tcp(to) => connect_tcp(to, TIMEOUT)?,
            Address::Unix(path) => connect_unix(path, TIMEOUT)?,
        };
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        Ok(Client {
            stream: BufReader::with_capacity(BUFFER, stream),
            order: ByteOrder::Little,
        })
    }

    /// Sets the byte order of the lengths.
    #[must_use]
    pub fn in_order(self, order: ByteOrder) -> Client {
        Client { order, ..self }
    }

    /// Sets `TCP_NODELAY`, so that a TCP client sends each write immediately.
    #[must_use]
    #[track_caller]
    pub fn without_delay(self) -> Client {
        let socket = self
            .stream
            .get_ref()
            .try_clone()
            .expect("the socket can be copied");
        TcpStream::from(OwnedFd::from(socket))
            .set_nodelay(true)
            .expect("TCP_NODELAY can be set");
        self
    }

    /// Writes raw bytes, with one write(2) if the kernel accepts all of them.
    #[track_caller]
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream
            .get_ref()
            .write_all(bytes.as_ref())
            .expect("the daemon reads what it is sent");
    }

    /// Writes a frame in one piece.
    #[track_caller]
    pub fn send_frame(&mut self, body: impl AsRef<[u8]>) {
        let frame = self.frame(body);
        self.send(frame);
    }

    /// Builds a frame in this client's byte order.
    ///
    /// # Panics
    /// If the body has 4 GiB or more.
    #[must_use]
    pub fn frame(&self, body: impl AsRef<[u8]>) -> Vec<u8> {
        let body = body.as_ref();
        let length = u32::try_from(body.len()).expect("a body is shorter than 4 GiB");
        [&self.order.prefix(length), body].concat()
    }

    /// Sends a request without waiting for its reply.
    #[track_caller]
    pub fn request(&mut self, method: &str, params: impl Serialize) {
        self.send_frame(request(method, params));
    }

    /// Sends a request, waits for its reply and returns the result.
    ///
    /// # Errors
    /// The error reply.
    #[track_caller]
    pub fn call(&mut self, method: &str, params: impl Serialize) -> Result<Value, Fault> {
        self.request(method, params);
        self.reply().value()
    }

    /// Waits for a frame and returns its body.
    #[must_use]
    #[track_caller]
    pub fn receive(&mut self) -> Vec<u8> {
        match self.try_receive() {
            Ok(body) => body,
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                panic!("no byte of a reply within {TIMEOUT:?}")
            }
            Err(e) => panic!("no reply: {e}"),
        }
    }

    fn try_receive(&mut self) -> io::Result<Vec<u8>> {
        let mut prefix = [0; PREFIX];
        self.stream.read_exact(&mut prefix)?;
        let length = self.order.length(prefix);
        // Memory grows with the bytes received, not with the length announced.
        let mut body = Vec::new();
        self.stream
            .by_ref()
            .take(length.into())
            .read_to_end(&mut body)?;
        if body.len() < length as usize {
            Err(ErrorKind::UnexpectedEof.into())
        } else {
            Ok(body)
        }
    }

    /// Waits for a reply and returns it.
    #[must_use]
    #[track_caller]
    pub fn reply(&mut self) -> Reply {
        let body = self.receive();
        match serde_json::from_slice(&body) {
            Ok(reply) => reply,
            Err(e) => panic!("no valid reply: {e}: {:?}", String::from_utf8_lossy(&body)),
        }
    }

    /// Returns whether bytes or the end of the stream can be read without waiting.
    #[must_use]
    #[track_caller]
    pub fn has_something(&mut self) -> bool {
        if !self.stream.buffer().is_empty() {
            return true;
        }
        self.stream
            .get_ref()
            .set_nonblocking(true)
            .expect("the socket takes O_NONBLOCK");
        let filled = self.stream.fill_buf().map(<[u8]>::len);
        self.stream
            .get_ref()
            .set_nonblocking(false)
            .expect("the socket takes O_NONBLOCK");
        !matches!(filled, Err(e) if e.kind() == ErrorKind::WouldBlock)
    }

    /// Returns a second handle, for a test that writes in one thread and reads in another.
    #[must_use]
    #[track_caller]
    pub fn writer(&self) -> Writer {
        Writer(
            self.stream
                .get_ref()
                .try_clone()
                .expect("the socket can be copied"),
        )
    }

    /// Shuts the connection down for writing; replies can still be read.
    #[track_caller]
    pub fn finish(&mut self) {
        self.stream
            .get_ref()
            .shutdown(Shutdown::Write)
            .expect("the connection is there");
    }

    /// Waits until the daemon closes the connection and returns all replies before that.
    #[must_use]
    #[track_caller]
    pub fn replies(&mut self) -> Vec<Reply> {
        let mut replies = Vec::new();
        while !self
            .stream
            .fill_buf()
            .expect("the daemon replies or closes the connection")
            .is_empty()
        {
            replies.push(self.reply());
        }
        replies
    }

    /// Waits until the daemon closes the connection. Panics if it sends anything before.
    #[track_caller]
    pub fn expect_end(&mut self) {
        let mut rest = Vec::new();
        self.stream
            .read_to_end(&mut rest)
            .expect("the daemon closes the connection");
        assert!(
            rest.is_empty(),
            "the end was expected, this came: {:?}",
            String::from_utf8_lossy(&rest)
        );
    }
}

/// A second handle of a client, see [`Client::writer`].
#[derive(Debug)]
pub struct Writer(UnixStream);

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl Writer {
    /// Shuts the connection down for writing, as [`Client::finish`] does.
    #[track_caller]
    pub fn finish(self) {
        self.0
            .shutdown(Shutdown::Write)
            .expect("the connection is there");
    }
}

/// A reply.
#[derive(Debug, Deserialize)]
pub struct Reply {
    /// The name of the reply; `error` for an error reply.
    #[serde(rename = "out")]
    pub name: String,
    /// The result, byte for byte as received.
    pub result: Box<RawValue>,
}

impl Reply {
    /// Returns the result as a value.
    ///
    /// # Errors
    /// The error reply.
    #[track_caller]
    pub fn value(&self) -> Result<Value, Fault> {
        let value: Value = serde_json::from_str(self.result.get()).expect("a result is JSON");
        if self.name != "error" {
            return Ok(value);
        }
        let text = |key: &str| {
            value[key]
                .as_str()
                .expect("an error reply has a code and a message")
                .to_owned()
        };
        Err(Fault::new(text("code"), text("message")))
    }
}

/// Builds the body of a request.
fn request(method: &str, params: impl Serialize) -> Vec<u8> {
    #[derive(Serialize)]
    struct Request<'a, P> {
        #[serde(rename = "in")]
        method: &'a str,
        params: P,
    }
    serde_json::to_vec(&Request { method, params }).expect("params that can be written as JSON")
}

/// The size of the read buffer, in bytes.
const BUFFER: usize = 64 * 1024;
