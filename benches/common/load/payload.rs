//! Requests and their expected replies.
//!
//! Every request of a run carries its own number, ten digits wide so that all frames of a payload
//! are equally long. A message is built once; only the digits change from request to request.

use serde_json::{Value, json};

use crate::common::failure::{Context, Result};

/// Bytes of the length in front of every frame.
pub(crate) const PREFIX: usize = 4;

/// The first request's number: ten digits, as all that follow.
pub(crate) const FIRST: u64 = 1_000_000_001;

/// Longer replies than this are taken for garbage.
pub(crate) const MAX_REPLY_LEN: usize = 16 << 20;

const DIGITS: usize = 10;

/// The params of each request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Payload {
    /// An object of one number: 16 bytes.
    Ping,
    /// An object of nested records: exactly 1 KiB.
    #[value(name = "1k")]
    Kilo,
    /// The same, exactly 64 KiB.
    #[value(name = "64k")]
    Large,
    /// A string of exactly 64 KiB.
    #[value(name = "64k-string")]
    Text,
}

/// The byte order of the prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Order {
    /// Least significant byte first: the protocol's own.
    Little,
    /// Most significant byte first.
    Big,
    /// No prefix: each message is the body of an HTTP/1.1 request or response with a Content-Length.
    #[value(skip)]
    Http,
}

/// The end of the head of a message of HTTP.
const HEAD_END: &[u8] = b"\r\n\r\n";

/// Returns the length of the body that this head announces.
fn content_length(head: &[u8]) -> std::result::Result<usize, String> {
    let head = String::from_utf8_lossy(head);
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap_or_default();
    if status.split(' ').nth(1) != Some("200") {
        return Err(format!("the response has the status line {status:?}"));
    }
    lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.trim().parse().ok())
        .ok_or_else(|| "the response has no Content-Length".to_owned())
}

/// How a reply is compared with what must come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Check {
    /// The `pong` with the params byte for byte as they were sent.
    Bytes,
    /// The `pong` with params of equal value: for servers that serialize the JSON again.
    Value,
    /// The request itself, as a server sends it back that only echoes bytes.
    Echo,
}

impl Order {
    /// Returns what precedes the body of a request.
    pub(crate) fn prefix(self, length: usize) -> Result<Vec<u8>> {
        let short = u32::try_from(length).context("a frame too long for its prefix")?;
        Ok(match self {
            Order::Little => short.to_le_bytes().to_vec(),
            Order::Big => short.to_be_bytes().to_vec(),
            Order::Http => format!(
                "POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
            )
            .into_bytes(),
        })
    }

    /// Returns the lengths of the first reply's prefix and body; `None` while the prefix is incomplete.
    pub(crate) fn lengths(
        self,
        received: &[u8],
    ) -> std::result::Result<Option<(usize, usize)>, String> {
        let convert = match self {
            Order::Little => u32::from_le_bytes,
            Order::Big => u32::from_be_bytes,
            Order::Http => {
                let end = received
                    .windows(HEAD_END.len())
                    .position(|bytes| bytes == HEAD_END);
                return end
                    .map(|end| Ok((end + HEAD_END.len(), content_length(&received[..end])?)))
                    .transpose();
            }
        };
        let prefix = received.first_chunk::<PREFIX>();
        Ok(prefix.map(|prefix| (PREFIX, convert(*prefix) as usize)))
    }
}

impl Payload {
    fn params(self) -> String {
        match self {
            Payload::Ping => object(&[], 0),
            Payload::Kilo => sized(1 << 10),
            Payload::Large => sized(64 << 10),
            Payload::Text => format!("\"{FIRST}{}\"", "x".repeat((64 << 10) - DIGITS - 2)),
        }
    }
}

/// Exactly `size` bytes: as many records as fit, the rest a string.
fn sized(size: usize) -> String {
    let mut records = vec![record(0)];
    while object(&records, 1).len() <= size {
        records.push(record(records.len()));
    }
    records.pop();
    let missing = size - object(&records, 1).len();
    object(&records, 1 + missing)
}

/// The number comes first; written in the order and spelling that every JSON library keeps.
fn object(records: &[String], note: usize) -> String {
    if records.is_empty() && note == 0 {
        return format!("{{\"n\":{FIRST}}}");
    }
    format!(
        "{{\"n\":{FIRST},\"records\":[{}],\"note\":\"{}\"}}",
        records.join(","),
        "x".repeat(note)
    )
}

fn record(i: usize) -> String {
    format!(
        concat!(
            r#"{{"id":{id},"name":"Ada Lovelace","email":"ada{id}@example.org","active":{active},"score":{score}.25,"#,
            r#""tags":["first","said \"so\"","línea"],"last":null,"#,
            r#""address":{{"street":"{id} Analytical Row","geo":{{"lat":51.5074,"lon":-0.1278}}}}}}"#
        ),
        id = 1000 + i,
        active = i.is_multiple_of(2),
        score = i % 90 + 10,
    )
}

/// A request's frame and the frame that must answer it.
pub(crate) struct Message {
    request: Template,
    reply: Template,
    check: Check,
}

/// A frame with room for a number.
struct Template {
    frame: Vec<u8>,
    body_at: usize,
    number_at: usize,
}

impl Template {
    fn new(body: &str, order: Order) -> Result<Self> {
        let mut frame = order.prefix(body.len())?;
        let body_at = frame.len();
        frame.extend_from_slice(body.as_bytes());
        let number_at = body_at
            + body
                .find(&FIRST.to_string())
                .context("a message without a number")?;
        Ok(Template {
            frame,
            body_at,
            number_at,
        })
    }

    fn put(&mut self, number: u64) {
        let mut rest = number;
        for digit in self.frame[self.number_at..][..DIGITS].iter_mut().rev() {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
    }

    fn body(&self) -> &[u8] {
        &self.frame[self.body_at..]
    }
}

impl Message {
    pub(crate) fn new(payload: Payload, method: &str, order: Order, check: Check) -> Result<Self> {
        let params = payload.params();
        let request = format!("{{\"in\":\"{method}\",\"params\":{params}}}");
        let reply = match check {
            Check::Echo => request.clone(),
            Check::Bytes | Check::Value => format!("{{\"out\":\"pong\",\"result\":{params}}}"),
        };
        Ok(Message {
            request: Template::new(&request, order)?,
            reply: Template::new(&reply, order)?,
            check,
        })
    }

    /// Appends the request with this number.
    pub(crate) fn write(&mut self, number: u64, out: &mut Vec<u8>) {
        self.request.put(number);
        out.extend_from_slice(&self.request.frame);
    }

    /// The request's frame and the reply's.
    pub(crate) fn into_frames(self) -> (Vec<u8>, Vec<u8>) {
        (self.request.frame, self.reply.frame)
    }

    /// Whether `body` is the reply to the request with this number; if not, what is wrong.
    pub(crate) fn check(&mut self, number: u64, body: &[u8]) -> std::result::Result<(), String> {
        self.reply.put(number);
        let wanted = self.reply.body();
        if body == wanted {
            return Ok(());
        }
        if self.check == Check::Value && parse(body) == parse(wanted) {
            return Ok(());
        }
        Err(format!(
            "request {number} was answered with {:?}, not with {:?}",
            excerpt(body),
            excerpt(wanted)
        ))
    }
}

/// JSON or, so that two things that are not JSON never are equal, an object of its own.
fn parse(body: &[u8]) -> Value {
    serde_json::from_slice(body).unwrap_or_else(|_| json!({ "no JSON": body }))
}

fn excerpt(body: &[u8]) -> String {
    const SHOWN: usize = 100;
    let mut text = String::from_utf8_lossy(&body[..body.len().min(SHOWN)]).into_owned();
    if body.len() > SHOWN {
        text.push_str(&format!("… ({} bytes)", body.len()));
    }
    text
}
