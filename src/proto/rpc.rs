//! Client and worker: a request is `{"in": METHOD, "params": ANY}`, a reply `{"out": NAME, "result": ANY}`.
//!
//! A missing `params` is `null`; unknown members are ignored; the member `goaway` is described in `rpc/goaway.rs`. `params` are not parsed here: they stay the client's
//! bytes ([`RawValue`]), so that `ping` returns `1e400`, a number of forty digits, doubled keys and escapes unchanged.
//! **A client's bytes must never become a [`serde_json::Value`] in this crate**: with the feature `raw_value` each
//! object with the key `$serde_json::private::RawValue` starts a new recursion budget there, and a frame of nested ones
//! overflows the stack.
//!
//! Errors are replies: `{"out": "error", "result": {"code": CODE, "message": TEXT}}`. After a body that is not JSON the
//! next frame is found, and the connection continues.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, Write};

use serde::Deserialize;
use serde::de::{self, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::json;
use super::wording::{Vocabulary, plain};

mod goaway;

pub use goaway::{GOAWAY, GoawayReason, write_goaway};

named_variants! {
    /// The code of an error reply, for programs.
    Code {
        /// No JSON, no object, no or doubled `in`, doubled `params`, an empty frame, invalid UTF-8 anywhere.
        BadRequest = "bad_request",
        /// There is no method of that name.
        UnknownMethod = "unknown_method",
        /// The method does not take these `params`.
        BadParams = "bad_params",
        /// The announced length exceeds `max-frame`. The connection is closed after this reply.
        TooLarge = "too_large",
        /// The frame was not complete within `frame-timeout`. The connection is closed after this reply.
        Timeout = "timeout",
        /// The method panicked, or its worker died in it.
        Crashed = "crashed",
        /// Too much is buffered; the connection is closed after this reply.
        Overloaded = "overloaded",
        /// The daemon is stopping; the connection is closed after this reply.
        ShuttingDown = "shutting_down",
        /// The reply could not be created: too long, or not representable as JSON.
        Internal = "internal",
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// `params` of a request that has none.
pub const NULL: &str = "null";

/// A request, borrowed from the bytes of its frame.
#[derive(Debug)]
pub struct Request<'a> {
    /// The method's name; borrowed, unless it was written with escapes.
    pub method: Cow<'a, str>,
    /// The params as the client wrote them; `None` when there are none.
    pub params: Option<&'a RawValue>,
    /// The client asks for a last frame when its connection ends, see [`write_goaway`].
    pub wants_goaway: bool,
}

impl<'a> Request<'a> {
    /// Reads the body of one frame.
    ///
    /// # Errors
    /// The sentence for the client, to be sent as [`Code::BadRequest`].
    pub fn parse(body: &'a [u8]) -> Result<Request<'a>, String> {
        if body.is_empty() {
            return Err("the frame is empty".to_owned());
        }
        // Before parsing, because serde_json accepts bad UTF-8 in members that it skips.
        let text = std::str::from_utf8(body)
            .map_err(|e| format!("the frame is not UTF-8: bad byte at {}", e.valid_up_to()))?;
        match Request::parse_usual(text) {
            Some(request) => Ok(request),
            None => serde_json::from_str(text).map_err(|e| plain(&e.to_string(), Vocabulary::Json)),
        }
    }

    /// Parses the usual form, `{"in":"NAME","params":VALUE}` with or without spaces as Python writes them. The request
    /// has this form exactly if the text between the prefix and the last brace is one JSON value; the general parser
    /// decides about all other requests, and makes their errors.
    #[inline]
    fn parse_usual(text: &'a str) -> Option<Request<'a>> {
        let name = after_space(text.strip_prefix("{\"in\":")?).strip_prefix('"')?;
        // A string that is a method's name contains no escapes and no control characters.
        let length = method_name_len(name.as_bytes())?;
        let (method, rest) = name.split_at_checked(length)?;
        let member = after_space(rest.strip_prefix("\",")?);
        let params = after_space(member.strip_prefix("\"params\":")?).strip_suffix('}')?;
        Some(Request {
            method: Cow::Borrowed(method),
            params: Some(json::raw_value(params)?),
            wants_goaway: false,
        })
    }
}

/// Returns the text after one space, if it begins with one.
#[inline]
fn after_space(text: &str) -> &str {
    text.strip_prefix(' ').unwrap_or(text)
}

/// The known members of a request.
#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "lowercase")]
enum RequestMember {
    In,
    Params,
    Goaway,
    #[serde(other)]
    Other,
}

/// A string that is borrowed where possible (`Cow`'s own `Deserialize` always copies).
#[derive(Deserialize)]
struct JsonText<'a>(#[serde(borrow)] Cow<'a, str>);

/// Not derived, because a derived struct accepts an array in place of the object.
impl<'de> Deserialize<'de> for Request<'de> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Request<'de>, D::Error> {
        struct RequestVisitor;
        impl<'de> Visitor<'de> for RequestVisitor {
            type Value = Request<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with \"in\" and \"params\"")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Request<'de>, A::Error> {
                let mut method: Option<JsonText<'de>> = None;
                let mut params: Option<&'de RawValue> = None;
                let mut wants_goaway = false;
                while let Some(member) = map.next_key::<RequestMember>()? {
                    match member {
                        RequestMember::In if method.is_some() => {
                            return Err(de::Error::custom("duplicate \"in\""));
                        }
                        RequestMember::In => method = Some(map.next_value()?),
                        RequestMember::Params if params.is_some() => {
                            return Err(de::Error::custom("duplicate \"params\""));
                        }
                        RequestMember::Params => params = Some(map.next_value()?),
                        // Any JSON is accepted, and ignored unless it is `true`, as of unknown members.
                        RequestMember::Goaway => {
                            let value: &RawValue = map.next_value()?;
                            wants_goaway |= value.get() == "true";
                        }
                        RequestMember::Other => {
                            map.next_value::<IgnoredAny>()?;
                        }
                    }
                }
                let method = method
                    .ok_or_else(|| de::Error::custom("there is no \"in\""))?
                    .0;
                Ok(Request {
                    method,
                    params,
                    wants_goaway,
                })
            }
        }
        from.deserialize_map(RequestVisitor)
    }
}

/// Returns the parts of the beginning of a reply; its result and [`CLOSE`] must follow.
#[inline]
pub(crate) fn opening(name: &str) -> [&[u8]; 3] {
    [b"{\"out\":\"", name.as_bytes(), b"\",\"result\":"]
}

/// Writes the beginning of a reply; its result and [`CLOSE`] must follow.
///
/// # Errors
/// Those of `to`.
pub fn open(to: &mut impl Write, name: &str) -> io::Result<()> {
    opening(name)
        .into_iter()
        .try_for_each(|part| to.write_all(part))
}

/// The end of every reply.
pub const CLOSE: &[u8] = b"}";

/// Writes a whole error reply, without its prefix.
///
/// # Errors
/// Those of `to`.
pub fn write_error(to: &mut impl Write, code: &str, message: &str) -> io::Result<()> {
    #[derive(serde::Serialize)]
    struct Fault<'a> {
        code: &'a str,
        message: &'a str,
    }
    open(to, "error")?;
    serde_json::to_writer(&mut *to, &Fault { code, message })?;
    to.write_all(CLOSE)
}

/// Returns whether `code` may be the code of an error: `[a-z][a-z0-9_]{0,63}`.
#[must_use]
pub fn is_fault_code(code: &str) -> bool {
    let letters = code.as_bytes();
    matches!(letters, [b'a'..=b'z', rest @ ..]
        if rest.len() <= 63 && rest.iter().all(|c| matches!(c, b'a'..=b'z' | b'0'..=b'9' | b'_')))
}

/// Returns whether `name` may be a method's name: `[a-z][a-z0-9_.-]{0,63}`, but not `error`, which names error replies.
#[must_use]
pub fn is_method_name(name: &str) -> bool {
    method_name_len(name.as_bytes()) == Some(name.len())
}

/// Returns the length of the method's name at the beginning of a text, if there is one.
#[inline]
fn method_name_len(text: &[u8]) -> Option<usize> {
    let [b'a'..=b'z', rest @ ..] = text else {
        return None;
    };
    let is_letter = |c: &u8| matches!(c, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'.' | b'-');
    let length = 1 + rest.iter().take_while(|c| is_letter(c)).count();
    (length <= 64 && &text[..length] != b"error").then_some(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(body: &str) -> String {
        Request::parse(body.as_bytes())
            .expect(body)
            .params
            .map_or(NULL, RawValue::get)
            .to_owned()
    }

    #[test]
    fn params_stay_the_clients_bytes() {
        for text in [
            "1e400",
            "1234567890123456789012345678901234567890",
            r#"{"a":1,"a":2}"#,
            r#""A\/\ud800""#,
            "null",
        ] {
            assert_eq!(params(&format!(r#"{{"in":"ping","params":{text}}}"#)), text);
        }
        assert_eq!(
            params(r#" { "x" : {"in":1} , "params" : [ 1 ] , "in" : "ping" } "#),
            "[ 1 ]"
        );
        assert_eq!(params(r#"{"in":"ping"}"#), "null");
    }

    /// All requests that the short parser accepts are the same to the general one.
    #[test]
    fn the_short_parser_agrees_with_the_general_one() {
        fn general(text: &str) -> Option<Request<'_>> {
            serde_json::from_str(text).ok()
        }
        let parts: Vec<&str> = r#"{|}|"in"|"params"|:|,| |"ping"|"p\u0069ng"|1|[]|"x"|null"#
            .split('|')
            .collect();
        let usual = r#"{"in"|:| |"ping"|,| |"params"|:|1|}"#.split('|');
        let mut random = 1u64;
        let mut next = || {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (random >> 40) as usize
        };
        let mut taken = 0;
        for _ in 0..200_000 {
            // The usual request with up to three of its parts replaced, or with parts inserted.
            let mut words: Vec<&str> = usual.clone().collect();
            for _ in 0..next() % 4 {
                let (place, word) = (next() % words.len(), parts[next() % parts.len()]);
                if next() % 2 == 0 {
                    words[place] = word;
                } else {
                    words.insert(place, word);
                }
            }
            let text = words.concat();
            if let Some(short) = Request::parse_usual(&text) {
                let long = general(&text).unwrap_or_else(|| panic!("{text} is not a request"));
                assert_eq!(short.method, long.method, "{text}");
                assert_eq!(
                    short.params.map(RawValue::get),
                    long.params.map(RawValue::get),
                    "{text}"
                );
                taken += 1;
            }
        }
        assert!(taken > 50_000, "{taken}");
        for text in [
            r#"{"in":"ping","params":{"a":[1]}}"#,
            r#"{"in": "ping", "params": [1, 2]}"#,
        ] {
            assert!(Request::parse_usual(text).is_some(), "{text}");
        }
    }

    #[test]
    fn a_method_written_with_escapes_is_the_same_method() {
        let request = Request::parse(br#"{"in":"p\u0069ng"}"#).expect("valid");
        assert_eq!(request.method, "ping");
        assert!(matches!(
            Request::parse(br#"{"in":"ping"}"#).expect("valid").method,
            Cow::Borrowed("ping")
        ));
    }

    #[test]
    fn each_fault_has_its_sentence() {
        for (body, words) in [
            (&b""[..], "empty"),
            (b"\xff", "not UTF-8: bad byte at 0"),
            (b"{\"in\":\"ping\",\"x\":\"\xff\"}", "not UTF-8"),
            (b"ping", "expected"),
            (b"[\"ping\",1]", "expected an object"),
            (b"{}", "no \"in\""),
            (b"{\"in\":7}", "expected a string"),
            (b"{\"in\":\"a\",\"in\":\"b\"}", "duplicate \"in\""),
            (
                b"{\"in\":\"a\",\"params\":1,\"params\":1}",
                "duplicate \"params\"",
            ),
            (
                b"{\"in\":\"a\",\"params\":null,\"params\":null}",
                "duplicate \"params\"",
            ),
            (b"{\"in\":\"a\"} x", "trailing characters"),
            (b"{\"in\":\"a\"", "EOF"),
        ] {
            let said = Request::parse(body).expect_err("must be refused");
            assert!(said.contains(words), "{said:?} does not say {words:?}");
        }
    }

    #[test]
    fn method_names_follow_the_pattern() {
        for good in ["a", "ping", "a.b-c_9", &"x".repeat(64)] {
            assert!(is_method_name(good), "{good}");
        }
        for bad in ["", "Ping", "9a", "error", "a b", "é", &"x".repeat(65)] {
            assert!(!is_method_name(bad), "{bad}");
        }
    }

    /// A dependency that enabled `arbitrary_precision` would do so for the whole program.
    #[test]
    fn numbers_are_not_of_arbitrary_precision() {
        let n: serde_json::Value =
            serde_json::from_str("123456789012345678901234567890").expect("a number");
        assert_ne!(n.to_string(), "123456789012345678901234567890");
    }
}
