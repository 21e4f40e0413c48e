//! The clients: what they send, and what they accept as answers.

use std::collections::HashMap;
use std::io::{self, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use fdpassd::proto::frame::ByteOrder;
use fdpassd::proto::names::Address;
use serde_json::json;

use super::plan::{ORDERS, Plan};
use crate::common::let_pass;
use crate::common::random::Random;

/// Most requests of one client that are under way.
pub const DEPTH: u64 = 40;

/// The longest wait for a byte.
const TIMEOUT: Duration = Duration::from_secs(120);

/// Observations of the clients.
#[derive(Debug, Default)]
pub struct Seen {
    pub connections: u64,
    /// Requests that were answered, with whatever it was.
    pub requests: u64,
    /// Of these, with an error.
    pub errors: u64,
    /// Of these, with `crashed`: idempotent ones, and others.
    pub crashed: [u64; 2],
    /// With `timeout`.
    pub timeouts: u64,
    /// Requests that were sent, in part or whole, by clients that vanished before the answer.
    pub abandoned: u64,
    /// Requests with a side effect, and whether the reply was a result.
    pub counted: HashMap<String, bool>,
}

impl Seen {
    pub fn add(&mut self, other: Seen) {
        self.connections += other.connections;
        self.requests += other.requests;
        self.errors += other.errors;
        self.crashed = [0, 1].map(|kind| self.crashed[kind] + other.crashed[kind]);
        self.timeouts += other.timeouts;
        self.abandoned += other.abandoned;
        self.counted.extend(other.counted);
    }
}

/// State that all clients share.
#[derive(Debug)]
pub struct Shared<'a> {
    pub addresses: &'a [Address],
    pub plan: Plan,
    /// Where `count` counts.
    pub counts: &'a Path,
    pub over: AtomicBool,
    pub requests: AtomicU64,
}

/// One client after another.
pub struct Load<'a> {
    pub number: u64,
    pub random: Random,
    pub shared: &'a Shared<'a>,
    pub seen: Seen,
    /// Requests made.
    pub made: u64,
    /// Whether this connection had its long request.
    pub has_slept: bool,
}

/// A request, and what may be answered.
struct Request {
    body: String,
    expected: Expected,
}

enum Expected {
    /// Just this, byte for byte; or `crashed`, after two deaths, and `timeout`.
    Idempotent(String),
    /// Just this, or `crashed` or `timeout`.
    Other(String),
    /// The same, and its effect is looked at.
    Counted(String),
    /// An error with this code.
    Error(&'static str),
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The client has shut down its side, and all its requests are answered.
    Finished,
    /// The client has shut down its side in the middle of a frame.
    Torn,
    /// The client has announced a frame that is too large.
    TooLarge,
    /// The client has closed the connection at any point.
    Vanished,
}

impl Load<'_> {
    pub fn run(mut self) -> Seen {
        while !self.shared.over.load(Ordering::Relaxed) {
            let listener = self.random.below(ORDERS.len() as u64) as usize;
            let order = self.random.pick(ORDERS[listener]);
            let capacity = self.random.pick(&[1, 7, 1_000, 64 * 1024]);
            let mut client = Wire::connect(&self.shared.addresses[listener], order, capacity);
            self.seen.connections += 1;
            self.has_slept = false;
            let end = self.random.pick(&[
                End::Finished,
                End::Finished,
                End::Torn,
                End::TooLarge,
                End::Vanished,
            ]);
            for is_last in self.rounds() {
                let is_last = is_last || self.shared.over.load(Ordering::Relaxed);
                self.converse(&mut client, is_last.then_some(end));
                if is_last {
                    break;
                }
                if self.random.once_in(10) {
                    let_pass(Duration::from_millis(self.random.below(60)));
                }
            }
        }
        self.seen
    }

    /// For each round of a connection whether it is the last.
    fn rounds(&mut self) -> impl Iterator<Item = bool> + use<> {
        let longest = self.random.pick(&[1, 10, 100]);
        let count = 1 + self.random.below(longest);
        (1..=count).map(move |round| round == count)
    }

    /// Sends requests in pieces, and reads and checks the replies at the same time.
    fn converse(&mut self, client: &mut Wire, end: Option<End>) {
        let requests = self.requests(client.is_fresh && client.order == ByteOrder::Big);
        client.is_fresh = false;
        let mut bytes: Vec<u8> = requests
            .iter()
            .flat_map(|request| frame(client.order, &request.body))
            .collect();
        let mut awaited = requests.len();
        // Sent with one write.
        let mut tail = Vec::new();
        match end {
            Some(End::Torn) => {
                let more = frame(client.order, r#"{"in":"ping","params":"never"}"#);
                bytes.extend(&more[..1 + self.random.below(more.len() as u64 - 1) as usize]);
            }
            Some(End::TooLarge) => {
                // The daemon listens for a second to what comes after it.
                tail.extend(client.order.prefix(self.shared.plan.too_large as u32));
                tail.extend(vec![b'x'; self.random.below(2_000) as usize]);
            }
            Some(End::Vanished) => {
                bytes.truncate(self.random.below(bytes.len() as u64 + 1) as usize);
                awaited = self.random.below(1 + whole_frames(&bytes, client.order)) as usize;
                self.seen.abandoned += (requests.len() - awaited) as u64;
                // Each may have had its effect, or not.
                let counts =
                    requests[awaited..]
                        .iter()
                        .filter_map(|request| match &request.expected {
                            Expected::Counted(number) => Some((number.clone(), false)),
                            _ => None,
                        });
                self.seen.counted.extend(counts);
            }
            Some(End::Finished) | None => {}
        }
        let mut writer = client.writer();
        let mut pauses = self.random.part(self.made);
        let longest = self.random.pick(&[3, 100, 5_000, 100_000, 1 << 20]);
        thread::scope(|threads| {
            let sending = threads.spawn(move || {
                // Pieces of a few bytes for the beginning only, or a large frame takes for ever.
                let small = bytes.len().min(2_000 * longest);
                for piece in in_pieces(&bytes[..small], longest, &mut pauses)
                    .chain(bytes[small..].chunks(1 << 16))
                {
                    writer.write_all(piece)?;
                    if pauses.once_in(50) {
                        let_pass(Duration::from_millis(pauses.below(20)));
                    }
                }
                writer.write_all(&tail)?;
                match end {
                    Some(End::Finished | End::Torn) => writer.shutdown(Shutdown::Write),
                    Some(End::TooLarge | End::Vanished) | None => Ok(()),
                }
            });
            if self.random.once_in(8) {
                let_pass(Duration::from_millis(self.random.below(300)));
            }
            for (index, request) in requests[..awaited].iter().enumerate() {
                let reply = client
                    .receive()
                    .unwrap_or_else(|e| self.fail(request, &format!("reply {index}: {e}")));
                self.check(request, &reply);
                if self.random.once_in(100) {
                    let_pass(Duration::from_millis(self.random.below(30)));
                }
            }
            if end == Some(End::Vanished) {
                // The close wakes a writer whose peer does not read.
                let _ = client.stream.get_ref().shutdown(Shutdown::Both);
            }
            let sent = sending.join().expect("it does not panic");
            assert!(
                sent.is_ok() || end == Some(End::Vanished),
                "client {}, at {end:?}: cannot send: {sent:?}",
                self.number
            );
        });
        let last = match end {
            Some(End::Torn) => Some("bad_request"),
            Some(End::TooLarge) => Some("too_large"),
            Some(End::Vanished) | None => return,
            Some(End::Finished) => None,
        };
        if let Some(code) = last {
            let last = Request {
                body: format!("the end: {end:?}"),
                expected: Expected::Error(code),
            };
            let reply = client
                .receive()
                .unwrap_or_else(|e| self.fail(&last, &e.to_string()));
            self.check(&last, &reply);
            if end == Some(End::TooLarge) {
                // Later bytes are read and dropped, if a process still has the client.
                let_pass(Duration::from_millis(self.random.below(400)));
                let _ = client.writer().write_all(b"not the beginning of a frame");
            }
        }
        let rest = match client.rest() {
            Err(e) if end == Some(End::TooLarge) && e.kind() == ErrorKind::ConnectionReset => {
                Ok(Vec::new())
            }
            rest => rest,
        };
        assert!(
            matches!(&rest, Ok(rest) if rest.is_empty()),
            "client {}: the end was expected after {end:?}, this came: {:?}",
            self.number,
            rest.map(|rest| String::from_utf8_lossy(&rest)
                .chars()
                .take(200)
                .collect::<String>())
        );
    }

    /// Requests that are made together, with frames of some size in all. The first of a connection whose order is found
    /// out must have a length that is too large if it is read in the other.
    fn requests(&mut self, tells_order: bool) -> Vec<Request> {
        let depth = 1 + self
            .random
            .pick(&[1, 8, DEPTH])
            .min(1 + self.random.below(DEPTH - 1));
        let (mut requests, mut bytes) = (Vec::new(), 0);
        while (requests.len() as u64) < depth && bytes < 2 * self.shared.plan.max_frame {
            let request = self.request();
            if tells_order && requests.is_empty() && request.body.len().is_multiple_of(256) {
                continue;
            }
            bytes += request.body.len() as u64;
            requests.push(request);
        }
        requests
    }

    fn request(&mut self) -> Request {
        self.made += 1;
        let number = format!("{}.{}", self.number, self.made);
        let error = |body: &str, code| Request {
            body: body.to_owned(),
            expected: Expected::Error(code),
        };
        let null = |method: &str| format!(r#"{{"out":"{method}_r","result":null}}"#);
        match self.random.below(400) {
            0..8 => error("{}", "bad_request"),
            8..16 => error(
                &format!(r#"{{"in":"nobody","params":"{number}"}}"#),
                "unknown_method",
            ),
            16..24 => error("", "bad_request"),
            24..64 => {
                let params = json!([self.shared.counts, number]);
                Request {
                    body: format!(r#"{{"in":"count","params":{params}}}"#),
                    expected: Expected::Counted(number),
                }
            }
            64..68 => {
                // Once in a connection for longer than a request may take under some configurations: the third time it
                // would be closed.
                let may_be_long =
                    self.random.once_in(30) && !std::mem::replace(&mut self.has_slept, true);
                let milliseconds = if may_be_long {
                    1_300
                } else {
                    self.random.pick(&[1, 1, 5, 80])
                };
                let body = format!(r#"{{"in":"sleep","params":{milliseconds}}}"#);
                Request {
                    body,
                    expected: Expected::Other(null("sleep")),
                }
            }
            68 if self.random.once_in(3) => {
                // It ends its worker, and is run again.
                let body = r#"{"in":"exit_until","params":2}"#.to_owned();
                Request {
                    body,
                    expected: Expected::Idempotent(
                        r#"{"out":"exit_until_r","result":2}"#.to_owned(),
                    ),
                }
            }
            choice => {
                let around = format!(r#"{{"in":"ping","params":["{number}",""]}}"#).len() as u64;
                let most = self.shared.plan.max_frame - around;
                let size = match choice {
                    69..71 => most - self.random.below(2),
                    71..81 => self.random.below(most),
                    81..130 => self.random.below(20_000),
                    _ => self.random.below(60),
                };
                let filling = "z".repeat(size as usize);
                let params = format!(r#"["{number}","{filling}"]"#);
                let expected =
                    Expected::Idempotent(format!(r#"{{"out":"pong","result":{params}}}"#));
                Request {
                    body: format!(r#"{{"in":"ping","params":{params}}}"#),
                    expected,
                }
            }
        }
    }

    fn check(&mut self, request: &Request, reply: &[u8]) {
        let is_error = |code: &str| {
            reply.starts_with(format!(r#"{{"out":"error","result":{{"code":"{code}""#).as_bytes())
        };
        let has_crashed = is_error("crashed");
        let is_late = is_error("timeout");
        let is_interrupted = has_crashed || is_late;
        let is_right = match &request.expected {
            Expected::Idempotent(expected) => {
                self.seen.crashed[0] += u64::from(has_crashed);
                is_interrupted || reply == expected.as_bytes()
            }
            Expected::Other(expected) => {
                self.seen.crashed[1] += u64::from(has_crashed);
                is_interrupted || reply == expected.as_bytes()
            }
            Expected::Counted(number) => {
                self.seen.crashed[1] += u64::from(has_crashed);
                self.seen.counted.insert(number.clone(), !is_interrupted);
                is_interrupted || reply == br#"{"out":"count_r","result":null}"#
            }
            Expected::Error(code) => is_error(code),
        };
        if !is_right {
            self.fail(
                request,
                &String::from_utf8_lossy(reply)
                    .chars()
                    .take(200)
                    .collect::<String>(),
            );
        }
        self.seen.timeouts += u64::from(is_late);
        self.seen.errors += u64::from(reply.starts_with(br#"{"out":"error""#));
        self.seen.requests += 1;
        self.shared.requests.fetch_add(1, Ordering::Relaxed);
    }

    fn fail(&self, Request { body, expected }: &Request, came: &str) -> ! {
        let shown = |text: &str| text.chars().take(200).collect::<String>();
        let expected = match expected {
            Expected::Idempotent(reply) | Expected::Other(reply) => shown(reply),
            Expected::Counted(number) => format!("the result of count, for {number}"),
            Expected::Error(code) => format!("the error {code}"),
        };
        panic!(
            "client {} after {} requests: to a request of {} bytes, {}: {expected} was expected, this came: {came}",
            self.number,
            self.seen.requests,
            body.len(),
            shown(body)
        );
    }
}

fn frame(order: ByteOrder, body: &str) -> Vec<u8> {
    [&order.prefix(body.len() as u32), body.as_bytes()].concat()
}

/// How many complete frames these bytes begin with.
fn whole_frames(mut bytes: &[u8], order: ByteOrder) -> u64 {
    let mut count = 0;
    while let Some((prefix, rest)) = bytes.split_first_chunk() {
        let Some(rest) = rest.get(order.length(*prefix) as usize..) else {
            break;
        };
        (bytes, count) = (rest, count + 1);
    }
    count
}

/// Splits bytes into pieces of random length.
fn in_pieces<'a>(
    bytes: &'a [u8],
    longest: usize,
    random: &mut Random,
) -> impl Iterator<Item = &'a [u8]> + use<'a> {
    let (mut rest, mut random) = (bytes, random.part(0));
    std::iter::from_fn(move || {
        let (piece, behind) =
            rest.split_at(rest.len().min(1 + random.below(longest as u64) as usize));
        rest = behind;
        (!piece.is_empty()).then_some(piece)
    })
}

/// A connection.
struct Wire {
    stream: BufReader<UnixStream>,
    order: ByteOrder,
    /// Nothing was sent yet.
    is_fresh: bool,
}

impl Wire {
    fn connect(address: &Address, order: ByteOrder, capacity: usize) -> Wire {
        let connected = match address {
            Address::Tcp(to) => TcpStream::connect_timeout(to, TIMEOUT)
                .map(|tcp| UnixStream::from(OwnedFd::from(tcp))),
            Address::Unix(path) => UnixStream::connect(path),
        };
        let stream = connected.unwrap_or_else(|e| panic!("cannot connect to {address}: {e}"));
        stream
            .set_read_timeout(Some(TIMEOUT))
            .expect("a socket has time-outs");
        stream
            .set_write_timeout(Some(TIMEOUT))
            .expect("a socket has time-outs");
        Wire {
            stream: BufReader::with_capacity(capacity, stream),
            order,
            is_fresh: true,
        }
    }

    fn writer(&self) -> UnixStream {
        self.stream
            .get_ref()
            .try_clone()
            .expect("the socket can be copied")
    }

    fn receive(&mut self) -> io::Result<Vec<u8>> {
        let mut prefix = [0; 4];
        self.stream.read_exact(&mut prefix)?;
        let length = self.order.length(prefix);
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

    fn rest(&mut self) -> io::Result<Vec<u8>> {
        let mut rest = Vec::new();
        self.stream.read_to_end(&mut rest).map(|_| rest)
    }
}
