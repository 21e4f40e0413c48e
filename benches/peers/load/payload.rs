//! Requests and their expected replies.
//!
//! Every request of a run carries its own number, ten digits wide so that all frames of a payload
//! are equally long. A message is built once; only the digits change from request to request.

use serde_json::{Value, json};

use crate::failure::{Context, Result};

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
}

/// The byte order of the prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Order {
    /// Least significant byte first: the protocol's own.
    Little,
    /// Most significant byte first.
    Big,
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
    pub(crate) fn prefix(self, length: usize) -> Result<[u8; PREFIX]> {
        let length = u32::try_from(length).context("a frame too long for its prefix")?;
        Ok(match self {
            Order::Little => length.to_le_bytes(),
            Order::Big => length.to_be_bytes(),
        })
    }

    pub(crate) fn length(self, prefix: [u8; PREFIX]) -> usize {
        let length = match self {
            Order::Little => u32::from_le_bytes(prefix),
            Order::Big => u32::from_be_bytes(prefix),
        };
        length as usize
    }
}

impl Payload {
    fn params(self) -> String {
        match self {
            Payload::Ping => object(&[], 0),
            Payload::Kilo => sized(1 << 10),
            Payload::Large => sized(64 << 10),
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
    number_at: usize,
}

impl Template {
    fn new(body: &str, order: Order) -> Result<Self> {
        let mut frame = order.prefix(body.len())?.to_vec();
        frame.extend_from_slice(body.as_bytes());
        let number_at = PREFIX
            + body
                .find(&FIRST.to_string())
                .context("a message without a number")?;
        Ok(Template { frame, number_at })
    }

    fn put(&mut self, number: u64) {
        let mut rest = number;
        for digit in self.frame[self.number_at..][..DIGITS].iter_mut().rev() {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
    }

    fn body(&self) -> &[u8] {
        &self.frame[PREFIX..]
    }
}

impl Message {
    pub(crate) fn new(payload: Payload, order: Order, check: Check) -> Result<Self> {
        let params = payload.params();
        let request = format!("{{\"in\":\"ping\",\"params\":{params}}}");
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

/// JSON or, so that two things that are no JSON never are equal, an object of its own.
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
