//! The last frame to a client that has asked for it: `{"out": "goaway", "result": {"read": N, "reason": REASON}}`.
//!
//! A client asks for it by the member `"goaway": true` of a request. N is the number of its requests that were answered
//! on this connection. No later one was executed, so the client may send them elsewhere.

use std::cmp::Ordering;
use std::io::{self, Write};

use serde::Serialize;

use super::{CLOSE, open};

/// The name of the frame. No reply has it.
pub const GOAWAY: &str = "goaway";

named_variants! {
    /// Why the daemon ends a connection.
    GoawayReason {
        /// The daemon is drained, and its clients are moved.
        Draining = "draining",
        /// The daemon stops.
        Stopping = "stopping",
        /// An operator closes this client.
        Kicked = "kicked",
    }
}

/// Of two reasons the later one in their order holds.
impl Ord for GoawayReason {
    fn cmp(&self, other: &GoawayReason) -> Ordering {
        self.number().cmp(&other.number())
    }
}

impl PartialOrd for GoawayReason {
    fn partial_cmp(&self, other: &GoawayReason) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl GoawayReason {
    /// Returns the number of the reason in a message and in shared memory, where 0 is none.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            GoawayReason::Draining => 1,
            GoawayReason::Stopping => 2,
            GoawayReason::Kicked => 3,
        }
    }

    /// Returns the reason of a number, if there is one.
    #[must_use]
    pub fn from_number(number: u8) -> Option<GoawayReason> {
        GoawayReason::ALL
            .into_iter()
            .find(|reason| reason.number() == number)
    }
}

/// Writes the frame, without its prefix. `read` is the number of answered requests.
///
/// # Errors
/// Those of `to`.
pub fn write_goaway(to: &mut impl Write, read: u64, reason: GoawayReason) -> io::Result<()> {
    #[derive(Serialize)]
    struct GoawayResult {
        read: u64,
        reason: GoawayReason,
    }
    open(to, GOAWAY)?;
    serde_json::to_writer(&mut *to, &GoawayResult { read, reason })?;
    to.write_all(CLOSE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::rpc::Request;

    #[test]
    fn a_goaway_has_the_number_and_the_reason() {
        let mut frame = Vec::new();
        write_goaway(&mut frame, 7, GoawayReason::Draining).expect("a Vec accepts all");
        let expected = br#"{"out":"goaway","result":{"read":7,"reason":"draining"}}"#;
        assert_eq!(frame, expected);
        for reason in GoawayReason::ALL {
            assert_eq!(GoawayReason::from_number(reason.number()), Some(reason));
        }
        assert_eq!(GoawayReason::from_number(0), None);
    }

    #[test]
    fn only_the_member_true_asks_for_a_goaway() {
        let asks = |body: &str| {
            let request = Request::parse(body.as_bytes()).expect(body);
            assert_eq!(request.method, "ping", "{body}");
            request.wants_goaway
        };
        for body in [
            r#"{"in":"ping","goaway":true}"#,
            r#"{"goaway": true ,"params":[1],"in":"ping"}"#,
            r#"{"in":"ping","params":1,"g\u006faway":true}"#,
            r#"{"in":"ping","goaway":true,"goaway":0}"#,
        ] {
            assert!(asks(body), "{body}");
        }
        // Another value is any JSON and is ignored, like members that are not known.
        let deep = format!(
            r#"{{"in":"ping","goaway":{}1{}}}"#,
            "[".repeat(500),
            "]".repeat(500)
        );
        for body in [
            r#"{"in":"ping","params":1}"#,
            r#"{"in":"ping","params":{"goaway":true}}"#,
            r#"{"in":"ping","goaway":false}"#,
            r#"{"in":"ping","goaway":"true"}"#,
            r#"{"in":"ping","goaway":1e400}"#,
            r#"{"in":"ping","goaway":"\ud800"}"#,
            r#"{"in":"ping","Goaway":true}"#,
            &deep,
        ] {
            assert!(!asks(body), "{body}");
        }
    }

    #[test]
    fn a_bad_goaway_is_refused_as_any_other_member_is() {
        for value in ["tru", "", "[1", "01", "\"\u{1}\"", "true true"] {
            let of = |name: &str| {
                let body = format!(r#"{{"in":"ping","{name}":{value}}}"#);
                Request::parse(body.as_bytes()).expect_err(&body)
            };
            assert_eq!(of("goaway"), of("others"), "{value:?}");
        }
    }
}
