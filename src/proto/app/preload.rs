//! Zygotes of apps: a program that has loaded what its copies share, and forks the app of each worker.
//!
//! ```text
//! on descriptor 3 of the zygote, a socket of datagrams that all workers of the generation write to:
//! from the zygote   {"preloaded":1}        it can fork apps           {"failed":REASON}      it cannot, and exits
//! to the zygote     {"fork":1}             with the end of a line, descriptor 3 of the app, and perhaps its streams
//!
//! on the line, a socket of datagrams between one worker and the zygote, of which the app has a copy at first:
//! from the zygote   {"forked":PID}         the app waits              {"failed":REASON}
//! to the app        {"run":1}              it has its cgroup
//! from the zygote   {"exited":STATUS}      the app has ended          {"killed":SIGNAL}
//! ```
//!
//! Each datagram is a frame. The zygote collects an app when the worker has closed the line.

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::super::wording::{Vocabulary, plain};

/// The frame that asks for an app.
pub const FORK: &[u8] = b"\x0a\0\0\0{\"fork\":1}";

/// The frame after which the app runs.
pub const RUN: &[u8] = b"\x09\0\0\0{\"run\":1}";

/// A message of the zygote of apps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromAppZygote {
    /// Apps can be forked.
    Preloaded,
    /// The app was not forked, or none can be: the reason.
    Failed(String),
    /// The app has this pid.
    Forked(u32),
    /// The app has exited with this status.
    Exited(i32),
    /// A signal of this number has killed the app.
    Killed(i32),
    /// The first message of an app that serves.
    Hello,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ZygoteMembers {
    preloaded: Option<IgnoredAny>,
    failed: Option<String>,
    forked: Option<u32>,
    exited: Option<i32>,
    killed: Option<i32>,
    hello: Option<IgnoredAny>,
}

impl FromAppZygote {
    /// Reads the frame of a datagram.
    ///
    /// # Errors
    /// Why it is not a message of a zygote.
    pub fn parse(datagram: &[u8]) -> Result<FromAppZygote, String> {
        let (length, body) = datagram
            .split_first_chunk::<4>()
            .ok_or("a datagram has no length")?;
        if u32::from_le_bytes(*length) as usize != body.len() {
            return Err("a datagram is not one frame".to_owned());
        }
        let members: ZygoteMembers =
            serde_json::from_slice(body).map_err(|e| plain(&e.to_string(), Vocabulary::Json))?;
        let found = [
            members.preloaded.map(|_| FromAppZygote::Preloaded),
            members.failed.map(FromAppZygote::Failed),
            members.forked.map(FromAppZygote::Forked),
            members.exited.map(FromAppZygote::Exited),
            members.killed.map(FromAppZygote::Killed),
            members.hello.map(|_| FromAppZygote::Hello),
        ];
        let found = found.into_iter().flatten().next();
        found.ok_or_else(|| "a message has no known member".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(body: &str) -> Vec<u8> {
        let mut frame = u32::try_from(body.len())
            .expect("short")
            .to_le_bytes()
            .to_vec();
        frame.extend(body.as_bytes());
        frame
    }

    #[test]
    fn a_message_has_one_known_member_in_one_frame() {
        assert_eq!(
            (FORK, RUN),
            (&framed("{\"fork\":1}")[..], &framed("{\"run\":1}")[..])
        );
        for (body, message) in [
            ("{\"preloaded\":1}", FromAppZygote::Preloaded),
            (
                "{\"failed\":\"no\"}",
                FromAppZygote::Failed("no".to_owned()),
            ),
            ("{\"x\":[],\"forked\":7}", FromAppZygote::Forked(7)),
            ("{\"exited\":3}", FromAppZygote::Exited(3)),
            ("{\"killed\":9}", FromAppZygote::Killed(9)),
            ("{\"hello\":1,\"methods\":[]}", FromAppZygote::Hello),
        ] {
            let frame = framed(body);
            assert_eq!(FromAppZygote::parse(&frame), Ok(message), "{body}");
            assert!(FromAppZygote::parse(&frame[..frame.len() - 1]).is_err());
        }
        for garbage in ["", "{", "{}", "{\"forked\":-1}", "{\"forked\":\"1\"}", "[]"] {
            assert!(FromAppZygote::parse(&framed(garbage)).is_err(), "{garbage}");
        }
    }
}
