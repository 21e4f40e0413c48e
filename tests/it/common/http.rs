//! An HTTP client of the exporter, byte for byte.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use fdpassd::proto::names::Address;
use fdpassd::testing::{Running, TIMEOUT, eventually};
use serde_json::Value;

use super::kernel;

/// A connection.
#[derive(Debug)]
pub enum HttpClient {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// A reply.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    head: String,
    pub body: String,
}

impl HttpClient {
    #[track_caller]
    pub fn connect(address: &Address) -> HttpClient {
        let http_client = match address {
            Address::Tcp(to) => TcpStream::connect(to).map(HttpClient::Tcp),
            Address::Unix(path) => UnixStream::connect(path).map(HttpClient::Unix),
        };
        let http_client =
            http_client.unwrap_or_else(|e| panic!("cannot connect to {address}: {e}"));
        match &http_client {
            HttpClient::Tcp(stream) => stream.set_read_timeout(Some(TIMEOUT)),
            HttpClient::Unix(stream) => stream.set_read_timeout(Some(TIMEOUT)),
        }
        .expect("a socket takes a timeout");
        http_client
    }

    /// Sends these bytes. A closed connection may refuse them.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        match self {
            HttpClient::Tcp(stream) => stream.write_all(bytes.as_ref()),
            HttpClient::Unix(stream) => stream.write_all(bytes.as_ref()),
        }
    }

    /// Sends no more.
    pub fn finish(&mut self) {
        let finished = match self {
            HttpClient::Tcp(stream) => stream.shutdown(Shutdown::Write),
            HttpClient::Unix(stream) => stream.shutdown(Shutdown::Write),
        };
        finished.expect("it is connected");
    }

    /// Waits for some bytes; nothing at the end.
    pub fn receive_some(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; 1 << 16];
        let count = match self {
            HttpClient::Tcp(stream) => stream.read(&mut bytes)?,
            HttpClient::Unix(stream) => stream.read(&mut bytes)?,
        };
        bytes.truncate(count);
        Ok(bytes)
    }

    /// All that comes, to the end.
    pub fn receive(&mut self) -> io::Result<String> {
        let mut text = String::new();
        match self {
            HttpClient::Tcp(stream) => stream.read_to_string(&mut text)?,
            HttpClient::Unix(stream) => stream.read_to_string(&mut text)?,
        };
        Ok(text)
    }

    /// The reply, and then the end.
    #[track_caller]
    pub fn answer(&mut self) -> Answer {
        let text = self.receive().expect("a reply, and its end");
        Answer::parse(&text).unwrap_or_else(|| panic!("no reply: {text:?}"))
    }
}

impl Answer {
    fn parse(text: &str) -> Option<Answer> {
        let (head, body) = text.split_once("\r\n\r\n")?;
        let status = head
            .strip_prefix("HTTP/1.1 ")?
            .split(' ')
            .next()?
            .parse()
            .ok()?;
        Some(Answer {
            status,
            head: head.to_owned(),
            body: body.to_owned(),
        })
    }

    /// A field of its head.
    pub fn field(&self, name: &str) -> Option<&str> {
        let mut fields = self
            .head
            .lines()
            .skip(1)
            .filter_map(|line| line.split_once(": "));
        fields
            .find(|(found, _)| found.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    }

    /// Status and body, which is what most tests look at.
    pub fn status_and_body(&self) -> (u16, &str) {
        (self.status, self.body.as_str())
    }
}

/// A stream of updates for the page.
#[derive(Debug)]
pub struct EventStream {
    http_client: HttpClient,
    received: Vec<u8>,
    /// The head of its reply.
    pub head: String,
}

impl EventStream {
    /// Opens a stream.
    ///
    /// # Errors
    /// The reply if there is no stream.
    pub fn open(address: &Address) -> Result<EventStream, Answer> {
        let mut http_client = HttpClient::connect(address);
        http_client.send(stream_request()).expect("it is taken");
        let mut stream = EventStream {
            http_client,
            received: Vec::new(),
            head: String::new(),
        };
        stream.head = stream.part("\r\n\r\n").expect("a head");
        if stream.head.starts_with("HTTP/1.1 200 OK\r\n") {
            return Ok(stream);
        }
        let body = stream.http_client.receive().expect("a body");
        let text = format!("{}\r\n\r\n{}{body}", stream.head, stream.rest());
        Err(Answer::parse(&text).expect("a reply"))
    }

    /// Waits for the next event: its name and data. Nothing at the end of the stream.
    pub fn next(&mut self) -> Option<(String, Value)> {
        let event = self.part("\n\n")?;
        let (name, data) = event.split_once('\n').expect("two lines");
        let name = name.strip_prefix("event: ").expect("a name");
        let data = data.strip_prefix("data: ").expect("data");
        let data = serde_json::from_str(data).expect("one line of JSON");
        Some((name.to_owned(), data))
    }

    /// Waits for the first event, which is the history.
    #[track_caller]
    pub fn history(&mut self) -> Value {
        let (name, data) = self.next().expect("the stream goes on");
        assert_eq!(name, "history", "{data}");
        data
    }

    /// Waits for the next update. On a busy machine the daemon may not answer in time before.
    #[track_caller]
    pub fn update(&mut self) -> Value {
        self.until("an update", |name, _| name == "update")
    }

    /// Waits for an event of this name and data, and returns its data.
    #[track_caller]
    pub fn until(&mut self, what: &str, is_it: impl Fn(&str, &Value) -> bool) -> Value {
        let deadline = Instant::now() + TIMEOUT;
        while Instant::now() < deadline {
            let (name, data) = self.next().expect("the stream goes on");
            if is_it(&name, &data) {
                return data;
            }
        }
        panic!("not within {TIMEOUT:?}: {what}");
    }

    /// Waits for an update with an event of the daemon whose text begins like this, and returns it.
    #[track_caller]
    pub fn until_event(&mut self, begin: &str) -> Value {
        self.until(begin, |_, data| {
            let texts = data["events"].as_array().into_iter().flatten();
            let mut texts = texts.filter_map(|event| event["text"].as_str());
            texts.any(|text| text.starts_with(begin))
        })
    }

    /// Waits for the end of the stream.
    #[track_caller]
    pub fn until_end(&mut self) {
        let deadline = Instant::now() + TIMEOUT;
        while self.next().is_some() {
            assert!(Instant::now() < deadline, "it does not end");
        }
    }

    /// The next part up to this end, and without it.
    fn part(&mut self, end: &str) -> Option<String> {
        loop {
            let found = self
                .received
                .windows(end.len())
                .position(|window| window == end.as_bytes());
            if let Some(at) = found {
                let rest = self.received.split_off(at + end.len());
                let part = std::mem::replace(&mut self.received, rest);
                return Some(String::from_utf8(part[..at].to_vec()).expect("UTF-8"));
            }
            let more = self.http_client.receive_some().expect("more, or the end");
            if more.is_empty() {
                return None;
            }
            self.received.extend(more);
        }
    }

    fn rest(&self) -> String {
        String::from_utf8_lossy(&self.received).into_owned()
    }
}

/// Returns the reply to these bytes.
#[track_caller]
pub fn ask(address: &Address, request: impl AsRef<[u8]>) -> Answer {
    let mut http_client = HttpClient::connect(address);
    http_client.send(request).expect("it is taken");
    http_client.answer()
}

/// Returns the reply to a request for this path.
#[track_caller]
pub fn get(address: &Address, path: &str) -> Answer {
    ask(address, request(path))
}

/// How this path is asked for.
pub fn request(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")
}

/// How the script of the page asks for its stream.
pub fn stream_request() -> String {
    request("/live").replace("\r\n\r\n", "\r\nFdpassd-Page: 1\r\n\r\n")
}

/// Where a daemon serves metrics, as it logged last on standard error.
#[track_caller]
pub fn metrics_address(daemon: &Running) -> Address {
    eventually("it logs where it serves metrics", || {
        let log = daemon.stderr();
        let (_, last) = log.rsplit_once("metrics are served on ")?;
        last.split_once('\n')?.0.parse().ok()
    })
}

/// Where a daemon answers agent checks, as it logged last.
#[track_caller]
pub fn agent_address(daemon: &Running) -> Address {
    eventually("it logs where it answers agent checks", || {
        let log = daemon.stderr();
        let (_, last) = log.rsplit_once("agent checks are answered on ")?;
        last.split_once('\n')?.0.parse().ok()
    })
}

/// The processes that answer for this daemon.
pub fn exporters(daemon: &Running) -> Vec<u32> {
    let is_one = |pid: &u32| {
        let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        arguments.split(|byte| *byte == 0).nth(1) == Some(b"metrics") && !kernel::is_over(*pid)
    };
    kernel::children(daemon.pid())
        .into_iter()
        .filter(is_one)
        .collect()
}

/// The process that answers for it.
#[track_caller]
pub fn exporter(daemon: &Running) -> u32 {
    eventually("there is one exporter", || {
        if let [pid] = exporters(daemon)[..] {
            Some(pid)
        } else {
            None
        }
    })
}
