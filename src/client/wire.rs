//! Requests and replies as bytes: fdpassd-rpc(7) from the end of a client.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::proto::control::Place;
use crate::proto::frame::{self, ByteOrder, Next, PREFIX};
use crate::proto::misread::{self, Misread, Sender};
use crate::proto::rpc::GOAWAY;
use crate::proto::text::shortened;
use crate::proto::wording::{Vocabulary, plain};

/// Returns the frame of a request.
///
/// # Errors
/// A sentence: the params cannot be written as JSON, or the body is longer than `limit`.
pub(crate) fn request_frame(
    order: ByteOrder,
    limit: u32,
    method: &str,
    params: Option<&(impl Serialize + ?Sized)>,
) -> Result<Vec<u8>, String> {
    #[derive(Serialize)]
    struct Body<'a, P: ?Sized> {
        #[serde(rename = "in")]
        method: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        params: Option<&'a P>,
    }
    let mut frame = vec![0; PREFIX];
    serde_json::to_writer(&mut frame, &Body { method, params }).map_err(|e| e.to_string())?;
    let body = frame.len() - PREFIX;
    match u32::try_from(body) {
        Ok(length) if length <= limit => frame[..PREFIX].copy_from_slice(&order.prefix(length)),
        Err(_) if limit == u32::MAX => {
            return Err("a request of 4 GiB and more cannot be sent".to_owned());
        }
        _ => {
            return Err(format!(
                "the request {method} has {body} bytes, at most {limit} are possible"
            ));
        }
    }
    Ok(frame)
}

/// The end of a request that asks for a goaway. Daemons of earlier versions ignore the member.
const ASKS_FOR_GOAWAY: &[u8] = b",\"goaway\":true}";

/// Has the request of a frame ask for a goaway, unless its body would be longer than `limit`. Returns whether it does.
pub(super) fn ask_for_goaway(frame: &mut Vec<u8>, order: ByteOrder, limit: u32) -> bool {
    let body = frame.len() - PREFIX;
    match u32::try_from(body - 1 + ASKS_FOR_GOAWAY.len()) {
        Ok(length) if length <= limit => {
            // The body is an object with a member.
            frame.truncate(PREFIX + body - 1);
            frame.extend_from_slice(ASKS_FOR_GOAWAY);
            frame[..PREFIX].copy_from_slice(&order.prefix(length));
            true
        }
        _ => false,
    }
}

/// The last frame of a connection that ends politely: no request after the first `read` is executed.
#[derive(Debug, Deserialize)]
pub(super) struct GoawayFrame {
    pub(super) read: u64,
    /// For people; any JSON.
    #[serde(default)]
    reason: Value,
}

impl GoawayFrame {
    /// Returns the goaway, if a reply is one.
    ///
    /// # Errors
    /// A sentence: it has no number.
    pub(super) fn of(reply: &ReplyBody) -> Result<Option<GoawayFrame>, String> {
        let ReplyBody::Result { name, result } = reply else {
            return Ok(None);
        };
        if name != GOAWAY {
            return Ok(None);
        }
        let result = result.get();
        let read = serde_json::from_str(result).ok();
        // serde would accept an array as a struct.
        let read = read.filter(|_| result.starts_with('{'));
        let why = || "the goaway has no number of requests".to_owned();
        read.map(Some).ok_or_else(why)
    }

    /// Returns the reason, for people.
    pub(super) fn reason(&self) -> String {
        match self.reason.as_str() {
            Some(reason) => shortened(reason.to_owned()),
            None => "no reason".to_owned(),
        }
    }
}

/// The body of a reply.
#[derive(Debug)]
pub(crate) enum ReplyBody {
    /// A result.
    Result {
        /// The name of the reply.
        name: String,
        /// The result, byte for byte.
        result: Box<RawValue>,
    },
    /// An error.
    Error {
        /// For programs.
        code: String,
        /// For people.
        message: String,
        /// Of the control socket: the place in the configuration file.
        place: Option<Box<Place>>,
    },
}

impl ReplyBody {
    /// Parses the body of a frame.
    ///
    /// # Errors
    /// A sentence: it is not a reply.
    pub(crate) fn parse(body: &[u8]) -> Result<ReplyBody, String> {
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
            /// Only the daemon's own refusals have one; a method's error may have any value of that name.
            #[serde(default)]
            place: Value,
        }
        let text = std::str::from_utf8(body).map_err(|e| not_valid(&e))?;
        if text.trim_start().starts_with('[') {
            // serde would accept an array as a struct.
            return Err(not_valid(&"it is an array"));
        }
        let Envelope { out, result } = serde_json::from_str(text).map_err(|e| not_valid(&e))?;
        if out != "error" {
            return Ok(ReplyBody::Result {
                name: out.into_owned(),
                result: result.to_owned(),
            });
        }
        let Fault {
            code,
            message,
            place,
        } = serde_json::from_str(result.get()).map_err(|e| not_valid(&e))?;
        Ok(ReplyBody::Error {
            code,
            message,
            place: serde_json::from_value(place).ok().map(Box::new),
        })
    }
}

/// Returns the sentence about an answer that cannot be parsed.
pub(crate) fn not_valid(why: &dyn fmt::Display) -> String {
    let why = plain(&why.to_string(), Vocabulary::Json);
    format!("the answer is not a valid reply: {why}")
}

/// Returns the sentence about a reply that announces a length above the limit, and may be another protocol instead.
pub(crate) fn too_long(length: u32, order: ByteOrder, limit: u32) -> String {
    let plain = format!("a reply of {length} bytes is announced, at most {limit} are taken");
    match misread::of_length(Sender::Server, length, order, limit) {
        None => plain,
        Some(other @ Misread::OtherOrder { .. }) => {
            format!("{plain}; {other}: perhaps the listener has that byte order")
        }
        Some(protocol) => no_frame(protocol),
    }
}

/// Returns the sentence about the beginning of a frame that has not arrived completely, if no frame in this byte order
/// begins like this.
pub(crate) fn misread_part(part: &[u8], order: ByteOrder) -> Option<String> {
    misread::of_part(Sender::Server, part, order).map(no_frame)
}

fn no_frame(found: Misread) -> String {
    match found {
        Misread::OtherOrder { order, length } => {
            format!(
                "the answer is a {order} frame of {length} bytes: the listener has that byte order"
            )
        }
        protocol => format!("the answer is {protocol}, not a frame"),
    }
}

/// Finds the bodies of replies in the bytes that arrive. A body takes memory only as it arrives.
#[derive(Debug)]
pub(super) struct ReplyFrames {
    order: ByteOrder,
    /// The longest body, in bytes.
    limit: u32,
    bytes: Vec<u8>,
    /// Where the next frame begins.
    begin: usize,
}

impl ReplyFrames {
    pub(super) fn new(order: ByteOrder, limit: u32) -> ReplyFrames {
        ReplyFrames {
            order,
            limit,
            bytes: Vec::new(),
            begin: 0,
        }
    }

    /// Adds bytes that have arrived.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.begin);
        self.begin = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// Returns the next reply, if its frame is complete.
    ///
    /// # Errors
    /// A sentence: what has arrived is not a reply. Nothing after it can be a reply either.
    pub(super) fn next_reply(&mut self) -> Result<Option<ReplyBody>, String> {
        let rest = self.part();
        match frame::next(rest, self.order, self.limit) {
            Next::Partial { .. } => Ok(None),
            Next::TooLarge { length } => Err(too_long(length, self.order, self.limit)),
            Next::Complete { total } => {
                let reply = ReplyBody::parse(&rest[PREFIX..total])?;
                self.begin += total;
                Ok(Some(reply))
            }
        }
    }

    /// Returns the bytes of an incomplete frame.
    pub(super) fn part(&self) -> &[u8] {
        &self.bytes[self.begin..]
    }

    /// Returns the sentence about the incomplete frame, if it is not the beginning of a frame.
    pub(super) fn misread(&self) -> Option<String> {
        misread_part(self.part(), self.order)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_is_an_object_with_out_and_result() {
        let body = br#" {"out":"p\u006fng","more":[1],"result": 1e400 }"#;
        match ReplyBody::parse(body).expect("valid") {
            ReplyBody::Result { name, result } => {
                assert_eq!((name.as_str(), result.get()), ("pong", "1e400"));
            }
            other => panic!("{other:?}"),
        }
        let bad: [&[u8]; 7] = [
            b"",
            b"[\"pong\",1]",
            b" [\"pong\",1]",
            b"{}",
            br#"{"out":"pong"}"#,
            br#"{"out":"error","result":1}"#,
            b"\xff",
        ];
        for bad in bad {
            let why = ReplyBody::parse(bad).expect_err("it is not a reply");
            assert!(why.starts_with("the answer is not a valid reply: "));
        }
    }

    #[test]
    fn replies_are_found_at_every_split() {
        for order in [ByteOrder::Little, ByteOrder::Big] {
            let mut bytes = Vec::new();
            for n in 0..3 {
                let body = format!(r#"{{"out":"x","result":{n}}}"#);
                bytes.extend(order.prefix(body.len() as u32));
                bytes.extend(body.as_bytes());
            }
            for split in 0..=bytes.len() {
                let mut frames = ReplyFrames::new(order, 100);
                let mut found = String::new();
                for piece in [&bytes[..split], &bytes[split..]] {
                    frames.push(piece);
                    while let Some(reply) = frames.next_reply().expect("valid") {
                        let ReplyBody::Result { result, .. } = reply else {
                            panic!("{reply:?}");
                        };
                        found += result.get();
                    }
                }
                assert_eq!((found.as_str(), frames.part()), ("012", &[][..]));
            }
        }
    }

    #[test]
    fn a_request_above_the_limit_has_no_frame() {
        let little = ByteOrder::Little;
        let frame = request_frame(little, 26, "ping", Some(&[1])).expect("it has 26 bytes");
        assert_eq!(frame, b"\x1a\0\0\0{\"in\":\"ping\",\"params\":[1]}");
        let frame = request_frame(ByteOrder::Big, 13, "ping", None::<&()>).expect("13 bytes");
        assert_eq!(frame, b"\0\0\0\x0d{\"in\":\"ping\"}");
        let why = request_frame(little, 25, "ping", Some(&[1])).expect_err("too long");
        assert_eq!(
            why,
            "the request ping has 26 bytes, at most 25 are possible"
        );
    }
}
