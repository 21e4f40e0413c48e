//! A client that a test has in its hands.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use super::PATIENCE;
use crate::proto::frame::{ByteOrder, PREFIX};
use crate::proto::names::Address;
use crate::worker::Fault;

/// A connection to a daemon, on which nothing is done that the test does not ask for.
///
/// It is little-endian, and its small writes wait for each other (no `TCP_NODELAY`), unless it is told otherwise. All
/// that fails panics, and so does waiting for more than [`PATIENCE`] for a byte.
#[derive(Debug)]
pub struct Client {
    /// Of whichever family: calls on stream sockets are the same for all.
    stream: BufReader<UnixStream>,
    order: ByteOrder,
}

impl Client {
    /// Connects.
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
            Address::Tcp(to) => {
                UnixStream::from(OwnedFd::from(TcpStream::connect_timeout(to, PATIENCE)?))
            }
            Address::Unix(path) => UnixStream::connect(path)?,
        };
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Client {
            stream: BufReader::with_capacity(BUFFER, stream),
            order: ByteOrder::Little,
        })
    }

    /// The same client, in this byte order.
    #[must_use]
    pub fn in_order(self, order: ByteOrder) -> Client {
        Client { order, ..self }
    }

    /// The same client, if it is a TCP client, with each write sent at once.
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

    /// Writes bytes as they are, with one write if the kernel takes them at once.
    #[track_caller]
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream
            .get_ref()
            .write_all(bytes.as_ref())
            .expect("the daemon takes what it is sent");
    }

    /// Writes a frame, in one piece.
    #[track_caller]
    pub fn send_frame(&mut self, body: impl AsRef<[u8]>) {
        let frame = self.frame(body);
        self.send(frame);
    }

    /// A frame in this client's order.
    ///
    /// # Panics
    /// When the body has 4 GiB or more.
    #[must_use]
    pub fn frame(&self, body: impl AsRef<[u8]>) -> Vec<u8> {
        let body = body.as_ref();
        let length = u32::try_from(body.len()).expect("a body is shorter than 4 GiB");
        [&self.order.prefix(length), body].concat()
    }

    /// Sends a request, and does not wait for its reply.
    #[track_caller]
    pub fn request(&mut self, method: &str, params: impl Serialize) {
        self.send_frame(request(method, params));
    }

    /// Sends a request and waits for its reply.
    ///
    /// # Errors
    /// The error reply.
    #[track_caller]
    pub fn call(&mut self, method: &str, params: impl Serialize) -> Result<Value, Fault> {
        self.request(method, params);
        self.reply().value()
    }

    /// Waits for a frame; returns its body.
    #[must_use]
    #[track_caller]
    pub fn receive(&mut self) -> Vec<u8> {
        match self.try_receive() {
            Ok(body) => body,
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                panic!("no byte of a reply within {PATIENCE:?}")
            }
            Err(e) => panic!("no reply: {e}"),
        }
    }

    fn try_receive(&mut self) -> io::Result<Vec<u8>> {
        let mut prefix = [0; PREFIX];
        self.stream.read_exact(&mut prefix)?;
        let length = self.order.length(prefix);
        // Takes memory as it comes, not as it is promised.
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

    /// Waits for a reply.
    #[must_use]
    #[track_caller]
    pub fn reply(&mut self) -> Reply {
        let body = self.receive();
        match serde_json::from_slice(&body) {
            Ok(reply) => reply,
            Err(e) => panic!("no valid reply: {e}: {:?}", String::from_utf8_lossy(&body)),
        }
    }

    /// Whether something is there to be read, or the end.
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

    /// A second hand for writing, for a test that does so in another thread while this one reads.
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

    /// Says that nothing more will be sent; replies can still be read.
    #[track_caller]
    pub fn finish(&mut self) {
        self.stream
            .get_ref()
            .shutdown(Shutdown::Write)
            .expect("the connection is there");
    }

    /// Waits for all replies that come until the daemon closes the connection.
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

    /// Waits until the daemon has closed the connection, and makes sure that it sent nothing before.
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

/// A client's second hand: see [`Client::writer`].
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
    /// As [`Client::finish`].
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
    /// The reply's name, `error` for an error reply.
    #[serde(rename = "out")]
    pub name: String,
    /// The result, byte for byte as it came.
    pub result: Box<RawValue>,
}

impl Reply {
    /// The result as a value.
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

/// The body of a request.
fn request(method: &str, params: impl Serialize) -> Vec<u8> {
    #[derive(Serialize)]
    struct Request<'a, P> {
        #[serde(rename = "in")]
        method: &'a str,
        params: P,
    }
    serde_json::to_vec(&Request { method, params }).expect("params that can be written as JSON")
}

/// Bytes read at a time.
const BUFFER: usize = 64 * 1024;
