//! Requests and their expected replies.
//!
//! Each request of a [`LoadMessage::numbered`] has a number of its own, ten digits wide, so that all frames are equally
//! long and a reply that belongs to another request is found. The message is built once; only the digits change.

use serde_json::{Value, json};

use super::LoadError;
use crate::proto::frame::ByteOrder;

/// Bytes of the length in front of every frame.
const PREFIX: usize = 4;

/// The number of the first request: ten digits, as all that follow.
pub(super) const FIRST: u64 = 1_000_000_001;

const DIGITS: usize = 10;

/// A longer reply is an error.
pub(super) const MAX_REPLY: usize = 256 << 20;

/// The separation of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// A frame: the length of the body in this order, and the body.
    Frames(ByteOrder),
    /// The body of a request or response of HTTP/1.1 with a Content-Length.
    Http,
}

/// How a reply is compared with the expected one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyCheck {
    /// The reply has the params of the request, byte for byte.
    Bytes,
    /// The reply has params of equal value: for servers that serialize the JSON again.
    Value,
    /// The reply is the request itself: for servers that echo bytes.
    Echo,
    /// The reply is not an error.
    NoError,
}

/// The end of the head of a message of HTTP.
const HEAD_END: &[u8] = b"\r\n\r\n";

impl Framing {
    /// Returns what precedes a body of this length.
    fn prefix(self, length: usize) -> Result<Vec<u8>, LoadError> {
        let short = u32::try_from(length)
            .map_err(|_| LoadError("a request cannot have 4 GiB or more".to_owned()))?;
        Ok(match self {
            Framing::Frames(ByteOrder::Little) => short.to_le_bytes().to_vec(),
            Framing::Frames(ByteOrder::Big) => short.to_be_bytes().to_vec(),
            Framing::Http => format!(
                "POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
            )
            .into_bytes(),
        })
    }

    /// Returns the lengths of the first reply's prefix and body; `None` while the prefix is incomplete.
    ///
    /// # Errors
    /// If the prefix is not valid, with the reason.
    pub fn lengths(self, received: &[u8]) -> Result<Option<(usize, usize)>, String> {
        let convert = match self {
            Framing::Frames(ByteOrder::Little) => u32::from_le_bytes,
            Framing::Frames(ByteOrder::Big) => u32::from_be_bytes,
            Framing::Http => {
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

/// Returns the length of the body that this head announces.
fn content_length(head: &[u8]) -> Result<usize, String> {
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

/// Params of a numbered request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NumberedParams {
    /// An object of exactly this many bytes, with nested records if there is room for them; at least [`MIN_PARAMS`].
    Object(usize),
    /// A string of exactly this many bytes with its quotes; at least 12.
    Text(usize),
}

/// The fewest bytes of [`NumberedParams::Object`].
pub const MIN_PARAMS: usize = 16;

impl NumberedParams {
    fn text(self) -> String {
        match self {
            NumberedParams::Object(size) => sized(size),
            NumberedParams::Text(size) => {
                format!("\"{FIRST}{}\"", "x".repeat(size.saturating_sub(DIGITS + 2)))
            }
        }
    }
}

/// Returns exactly `size` bytes: as many records as fit, the rest a string.
fn sized(size: usize) -> String {
    let Some(spare) = size.checked_sub(object(&[], Some(0)).len()) else {
        // Without room for the string, spaces.
        let bare = object(&[], None);
        let spaces = " ".repeat(size.saturating_sub(bare.len()));
        return bare + &spaces;
    };
    let mut records = Vec::new();
    let mut used = 0;
    loop {
        let next = record(records.len());
        // A comma precedes every record but the first.
        let length = next.len() + usize::from(!records.is_empty());
        if used + length > spare {
            break;
        }
        used += length;
        records.push(next);
    }
    object(&records, Some(spare - used))
}

/// Returns an object. The number comes first; all is written in the order and spelling that every JSON library keeps.
fn object(records: &[String], note: Option<usize>) -> String {
    match note {
        None => format!("{{\"n\":{FIRST}}}"),
        Some(note) => format!(
            "{{\"n\":{FIRST},\"records\":[{}],\"note\":\"{}\"}}",
            records.join(","),
            "x".repeat(note)
        ),
    }
}

fn record(i: usize) -> String {
    format!(
        concat!(
            r#"{{"id":{id},"name":"Ada Lovelace","email":"ada{id}@example.org","active":{active},"score":{score}.25,"#,
            r#""tags":["first","named \"so\"","línea"],"last":null,"#,
            r#""address":{{"street":"{id} Analytical Row","geo":{{"lat":51.5074,"lon":-0.1278}}}}}}"#
        ),
        id = 1000 + i,
        active = i.is_multiple_of(2),
        score = i % 90 + 10,
    )
}

/// The frame of a request, and that of its reply.
#[derive(Clone, Debug)]
pub struct LoadMessage {
    pub(super) framing: Framing,
    request: FrameTemplate,
    reply: FrameTemplate,
    check: ReplyCheck,
}

/// A frame, perhaps with room for a number.
#[derive(Clone, Debug)]
struct FrameTemplate {
    frame: Vec<u8>,
    body_at: usize,
    number_at: Option<usize>,
}

impl FrameTemplate {
    fn new(body: &str, framing: Framing) -> Result<FrameTemplate, LoadError> {
        let mut frame = framing.prefix(body.len())?;
        let body_at = frame.len();
        frame.extend_from_slice(body.as_bytes());
        Ok(FrameTemplate {
            frame,
            body_at,
            number_at: None,
        })
    }

    fn with_number(mut self) -> FrameTemplate {
        let number = FIRST.to_string();
        let found = self.frame[self.body_at..]
            .windows(DIGITS)
            .position(|bytes| bytes == number.as_bytes());
        self.number_at = found.map(|at| self.body_at + at);
        self
    }

    fn put(&mut self, number: u64) {
        let Some(at) = self.number_at else { return };
        let mut rest = number;
        for digit in self.frame[at..][..DIGITS].iter_mut().rev() {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
    }

    fn body(&self) -> &[u8] {
        &self.frame[self.body_at..]
    }
}

impl LoadMessage {
    /// Returns requests of a method that returns its params in a reply named `pong`.
    ///
    /// # Errors
    /// If a frame would have 4 GiB or more.
    pub fn numbered(
        method: &str,
        params: NumberedParams,
        framing: Framing,
        check: ReplyCheck,
    ) -> Result<LoadMessage, LoadError> {
        let params = params.text();
        let request = request(method, Some(&params));
        let reply = match check {
            ReplyCheck::Echo => request.clone(),
            _ => format!("{{\"out\":\"pong\",\"result\":{params}}}"),
        };
        Ok(LoadMessage {
            framing,
            request: FrameTemplate::new(&request, framing)?.with_number(),
            reply: FrameTemplate::new(&reply, framing)?.with_number(),
            check,
        })
    }

    /// Returns requests with the same params, whose replies must not be errors.
    ///
    /// # Errors
    /// If a frame would have 4 GiB or more.
    pub fn fixed(
        method: &str,
        params: Option<&str>,
        framing: Framing,
    ) -> Result<LoadMessage, LoadError> {
        Ok(LoadMessage {
            framing,
            request: FrameTemplate::new(&request(method, params), framing)?,
            reply: FrameTemplate::new("", framing)?,
            check: ReplyCheck::NoError,
        })
    }

    /// Appends the request with this number.
    pub(super) fn write(&mut self, number: u64, out: &mut Vec<u8>) {
        self.request.put(number);
        out.extend_from_slice(&self.request.frame);
    }

    /// Returns the frames of the first request and its reply, for callers without a load.
    #[must_use]
    pub fn into_frames(self) -> (Vec<u8>, Vec<u8>) {
        (self.request.frame, self.reply.frame)
    }

    /// Checks that `body` is the reply to the request with this number.
    pub(super) fn check(&mut self, number: u64, body: &[u8]) -> Result<(), String> {
        if self.check == ReplyCheck::NoError {
            return match is_result(body) {
                true => Ok(()),
                false => Err(format!("the reply is {}", excerpt(body))),
            };
        }
        self.reply.put(number);
        let wanted = self.reply.body();
        if body == wanted {
            return Ok(());
        }
        if self.check == ReplyCheck::Value && parse(body) == parse(wanted) {
            return Ok(());
        }
        Err(format!(
            "request {number} was answered with {}, not with {}",
            excerpt(body),
            excerpt(wanted)
        ))
    }
}

fn request(method: &str, params: Option<&str>) -> String {
    let method = Value::from(method);
    match params {
        Some(params) => format!("{{\"in\":{method},\"params\":{params}}}"),
        None => format!("{{\"in\":{method}}}"),
    }
}

fn is_result(body: &[u8]) -> bool {
    let reply: Option<Value> = serde_json::from_slice(body).ok();
    let name = reply.as_ref().and_then(|reply| reply.get("out")?.as_str());
    name.is_some_and(|name| name != "error")
}

/// Returns JSON; or, so that two texts that are not JSON never are equal, an object of its own.
fn parse(body: &[u8]) -> Value {
    serde_json::from_slice(body).unwrap_or_else(|_| json!({ "no JSON": body }))
}

fn excerpt(body: &[u8]) -> String {
    const SHOWN: usize = 200;
    let shown = String::from_utf8_lossy(&body[..body.len().min(SHOWN)]);
    match body.len() > SHOWN {
        true => format!("{shown} … ({} bytes)", body.len()),
        false => shown.into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LITTLE: Framing = Framing::Frames(ByteOrder::Little);

    #[test]
    fn params_have_exactly_the_wanted_size_and_a_number() {
        for size in (MIN_PARAMS..700).chain([1 << 10, 64 << 10]) {
            for params in [NumberedParams::Object(size), NumberedParams::Text(size)] {
                let text = params.text();
                assert_eq!(text.len(), size, "{text}");
                let value: Value = serde_json::from_str(&text).expect("it is JSON");
                assert!(text.contains(&FIRST.to_string()), "{value}");
            }
        }
        let large: Value = serde_json::from_str(&sized(64 << 10)).expect("it is JSON");
        assert!(large["records"].as_array().expect("a list").len() > 200);
    }

    #[test]
    fn only_the_reply_of_the_same_request_is_right() {
        let object = NumberedParams::Object(64);
        let mut message =
            LoadMessage::numbered("ping", object, LITTLE, ReplyCheck::Bytes).expect("it is short");
        let (_, reply) = message.clone().into_frames();
        assert_eq!(LITTLE.lengths(&reply), Ok(Some((4, reply.len() - 4))));
        assert_eq!(message.check(FIRST, &reply[4..]), Ok(()));
        let other = message
            .check(FIRST + 1, &reply[4..])
            .expect_err("of another");
        assert!(
            other.starts_with("request 1000000002 was answered with {\"out\""),
            "{other}"
        );
    }

    #[test]
    fn a_reply_to_fixed_params_must_not_be_an_error() {
        let mut message = LoadMessage::fixed("list", Some("[1]"), LITTLE).expect("it is short");
        assert_eq!(
            &message.request.frame[4..],
            br#"{"in":"list","params":[1]}"#
        );
        assert_eq!(message.check(1, br#"{"out":"list","result":[]}"#), Ok(()));
        for wrong in [
            &br#"{"out":"error","result":{"code":"crashed"}}"#[..],
            b"{}",
            b"[",
            b"",
        ] {
            message.check(1, wrong).expect_err("it is no result");
        }
    }

    #[test]
    fn the_length_of_a_response_is_in_its_head() {
        let response = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc";
        assert_eq!(Framing::Http.lengths(response), Ok(Some((38, 3))));
        assert_eq!(Framing::Http.lengths(&response[..30]), Ok(None));
        let failed = b"HTTP/1.1 500 No\r\ncontent-length: 3\r\n\r\n";
        Framing::Http.lengths(failed).expect_err("it failed");
    }
}
