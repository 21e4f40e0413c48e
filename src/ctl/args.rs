//! What stands on the command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use serde_json::value::RawValue;

use super::change::Change;
use crate::proto::frame::ByteOrder;
use crate::proto::names::Address;

/// Talks to a running fdpassd
#[derive(Debug, Parser)]
#[command(name = "fdpassctl", version, after_help = EXIT_CODES)]
pub(super) struct Arguments {
    /// The daemon's control socket, if it is not where it usually is; also $FDPASSD_SOCKET
    #[arg(short, long, global = true, value_name = "PATH")]
    pub(super) socket: Option<PathBuf>,

    /// Print what the daemon says, as JSON on one line
    #[arg(long, global = true)]
    pub(super) json: bool,

    /// How long to wait, in seconds or like "1m 30s" [default: 10s; 1m for what takes longer, 1h for "drain --wait"]
    #[arg(long, global = true, value_name = "TIME", value_parser = timeout)]
    timeout: Option<Duration>,

    /// The daemon that fdpassd@NAME.service runs
    #[arg(short, long, global = true, value_name = "NAME", value_parser = instance, conflicts_with = "socket")]
    pub(super) instance: Option<String>,

    #[command(subcommand)]
    pub(super) verb: Verb,
}

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Show the daemon, its listeners and its workers
    Status,
    /// Send one request as a client does, and print the result as it came
    Call(Call),
    /// Show the versions of fdpassctl and of the running daemon
    Version,
    #[command(flatten)]
    Change(Change),
}

#[derive(Debug, clap::Args)]
pub(super) struct Call {
    /// The method, for example "ping"
    pub(super) method: String,

    /// Its params, as JSON
    #[arg(value_name = "PARAMS", value_parser = json, allow_negative_numbers = true)]
    pub(super) params: Option<Box<RawValue>>,

    /// Where to: "127.0.0.1:8080", "[::1]:8080" or "unix:/path" [default: the daemon's first listener]
    #[arg(long, value_name = "ADDRESS")]
    pub(super) to: Option<Address>,

    /// Byte order of the length before each frame [default: the listener's, else little]
    #[arg(long, value_name = "ORDER")]
    byte_order: Option<Order>,
}

impl Arguments {
    pub(super) fn timeout(&self) -> Duration {
        let takes_long = if let Verb::Change(change) = &self.verb { change.takes_long() } else { None };
        self.timeout.unwrap_or(takes_long.map_or(Duration::from_secs(10), |(_, usual)| usual))
    }
}

impl Call {
    pub(super) fn byte_order(&self) -> Option<ByteOrder> {
        self.byte_order.map(|order| match order {
            Order::Little => ByteOrder::Little,
            Order::Big => ByteOrder::Big,
        })
    }
}

/// [`ByteOrder`] as an argument; the vocabulary itself knows nothing of command lines.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Order {
    Little,
    Big,
}

fn timeout(text: &str) -> Result<Duration, String> {
    let time = match text.parse() {
        Ok(seconds) => Duration::try_from_secs_f64(seconds).map_err(|e| e.to_string())?,
        Err(_) => humantime::parse_duration(text).map_err(|e| e.to_string())?,
    };
    if time.is_zero() || time > MAX_TIMEOUT {
        Err("must be more than 0 and at most a day".to_owned())
    } else {
        Ok(time)
    }
}

/// What systemd may call an instance, which is what is left between directories.
fn instance(text: &str) -> Result<String, String> {
    match text {
        "" => Err("must not be empty".to_owned()),
        name if name.contains('/') => Err("is a name, without \"/\"".to_owned()),
        name => Ok(name.to_owned()),
    }
}

fn json(text: &str) -> Result<Box<RawValue>, String> {
    serde_json::from_str(text).map_err(|e| format!("not JSON: {e}"))
}

/// So that a deadline always has an instant.
const MAX_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);

const EXIT_CODES: &str = "\
Exit codes: 0 done, 1 refused or failed, 3 not running, 4 no valid reply in time,
64 usage, 75 still going on, 77 forbidden";

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Arguments, String> {
        Arguments::try_parse_from(line.split(' ')).map_err(|e| e.to_string())
    }

    fn call(line: &str) -> Call {
        match parse(line).expect(line).verb {
            Verb::Call(call) => call,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_timeout_is_in_seconds_or_has_its_unit() {
        for (text, time) in [("3", 3000), ("0.5", 500), ("10s", 10_000), ("2m", 120_000), ("250ms", 250)] {
            let arguments = parse(&format!("fdpassctl status --timeout {text}")).expect(text);
            assert_eq!(arguments.timeout(), Duration::from_millis(time));
        }
        for text in ["0", "-1", "nan", "1e300", "inf", "2days", "soon", "500000000000years"] {
            parse(&format!("fdpassctl status --timeout={text}")).expect_err(text);
        }
    }

    #[test]
    fn what_takes_longer_is_waited_for_longer() {
        for (lines, seconds) in [
            (&["status", "version", "call x", "release 1", "drain", "undrain", "rebalance"][..], 10),
            (&["stop", "reload", "scale 4", "recycle all", "hold 1"], 60),
            (&["drain --wait"], 3600),
        ] {
            for line in lines {
                let arguments = parse(&format!("fdpassctl {line}")).expect(line);
                assert_eq!(arguments.timeout(), Duration::from_secs(seconds), "{line}");
            }
        }
    }

    #[test]
    fn an_instance_is_a_name_and_not_a_socket_as_well() {
        for line in ["fdpassctl -i blue status", "fdpassctl status --instance blue"] {
            assert_eq!(parse(line).expect(line).instance.as_deref(), Some("blue"));
        }
        for line in ["status -i a/b", "status --instance=", "status -i blue -s /x"] {
            parse(&format!("fdpassctl {line}")).expect_err(line);
        }
    }

    #[test]
    fn params_are_any_json_and_stay_as_they_are() {
        for text in ["-5", "-1e3", "1e400", r#"{"a":1,"a":2}"#, "null", r#""\/""#] {
            let params = call(&format!("fdpassctl call ping {text}")).params.expect("given");
            assert_eq!(params.get(), text);
        }
        let said = parse("fdpassctl call ping {a:1}").expect_err("no JSON");
        assert!(said.contains("not JSON: key must be a string at line 1 column 2"), "{said}");
    }

    #[test]
    fn an_address_that_is_none_is_refused_with_what_one_is() {
        let said = parse("fdpassctl call ping --to here").expect_err("no address");
        assert!(said.contains("expected an IP address and a port"), "{said}");
        let call = call("fdpassctl call ping --to unix:/x --byte-order big");
        assert_eq!(call.to, Some(Address::Unix("/x".into())));
        assert_eq!(call.byte_order(), Some(ByteOrder::Big));
    }
}
