//! What stands on the command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum, ValueHint};
use clap_complete::Shell;
use serde_json::value::RawValue;

use super::change::ChangeVerb;
use super::progress::Doing;
use crate::proto::channel::LogLevel;
use crate::proto::frame::ByteOrder;
use crate::proto::names::{Address, WorkerId};
use crate::sys::zone;

/// Controls a running fdpassd
#[derive(Debug, Parser)]
#[command(name = "fdpassctl", version, override_help = HELP, subcommand_value_name = "VERB")]
pub(super) struct Arguments {
    /// The daemon's control socket; also $FDPASSD_SOCKET
    #[arg(short, long, global = true, help_heading = COMMON, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub(super) socket: Option<PathBuf>,

    /// Print the daemon's reply as one line of JSON
    #[arg(long, global = true, help_heading = COMMON)]
    pub(super) json: bool,

    /// Do not report progress on standard error
    #[arg(short, long, global = true, help_heading = COMMON)]
    pub(super) quiet: bool,

    /// How long to wait, like 30 (seconds), 250ms or "1m 30s"
    ///
    /// Default: 10s; 1m for verbs that take longer, 1h for "drain --wait".
    #[arg(long, global = true, help_heading = COMMON, value_name = "TIME", value_parser = timeout)]
    timeout: Option<Duration>,

    /// Use the daemon of fdpassd@NAME.service
    #[arg(short, long, global = true, help_heading = COMMON, value_name = "NAME", value_parser = instance)]
    #[arg(conflicts_with = "socket")]
    pub(super) instance: Option<String>,

    #[command(subcommand)]
    pub(super) verb: CtlVerb,
}

#[derive(Debug, Subcommand)]
pub(super) enum CtlVerb {
    /// Show the daemon, its listeners and its workers
    Status,
    /// Show the connected clients
    Clients(ClientsArguments),
    /// Show what happened, the last 1,024 events: starts, deaths, reloads, …
    ///
    /// With --json each event is an object on its own line.
    ///
    /// Events that were dropped before they could be shown are counted.
    Events(EventsArguments),
    /// Show the configuration in force, or what a reload would change
    #[command(subcommand_value_name = "show|check", disable_help_subcommand = true)]
    Config {
        #[command(subcommand)]
        what: ConfigVerb,
    },
    /// Show the log level, or change it until the next reload
    LogLevel {
        /// Minimum level to log: error, warn, info, debug or trace
        #[arg(value_name = "LEVEL", hide_possible_values = true)]
        level: Option<Level>,
    },
    /// Show all metrics in the Prometheus text format
    Metrics,
    /// Send one request as a client and print the result unchanged
    Call(CallArguments),
    /// Show the versions of fdpassctl and of the running daemon
    Version,
    #[command(flatten)]
    Change(ChangeVerb),
    /// Print a shell completion script
    ///
    /// For example: source <(fdpassctl completions bash)
    Completions {
        /// bash, zsh or fish
        #[arg(value_name = "SHELL", hide_possible_values = true)]
        shell: Completed,
    },
}

#[derive(Debug, clap::Args)]
pub(super) struct ClientsArguments {
    /// Only clients of this worker
    #[arg(long, value_name = "WORKER")]
    worker: Option<u64>,

    /// Sort by requests, age, idle or bytes, largest first
    ///
    /// Default: by client number, in order of arrival.
    #[arg(long, value_name = "BY", hide_possible_values = true)]
    pub(super) sort: Option<Sort>,

    /// Reverse the order
    #[arg(short, long)]
    pub(super) reverse: bool,

    /// Show at most COUNT clients
    #[arg(long, value_name = "COUNT")]
    pub(super) most: Option<usize>,
}

impl ClientsArguments {
    pub(super) fn worker(&self) -> Option<WorkerId> {
        self.worker.map(WorkerId)
    }
}

/// By what clients are sorted.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Sort {
    Requests,
    Age,
    Idle,
    Bytes,
}

#[derive(Debug, clap::Args)]
pub(super) struct EventsArguments {
    /// Keep printing new events until interrupted
    ///
    /// It also ends when the daemon ends (exit code 3), not after --timeout.
    #[arg(short, long)]
    pub(super) follow: bool,

    /// Only events with a higher number
    #[arg(long, value_name = "NUMBER")]
    pub(super) after: Option<u64>,
}

#[derive(Clone, Copy, Debug, Subcommand)]
pub(super) enum ConfigVerb {
    /// Show every key with its value and the source of the value
    ///
    /// The source is the default, the file, or a change at run time.
    Show,
    /// Show what a reload would change, or what is wrong with the file
    Check,
}

#[derive(Debug, clap::Args)]
pub(super) struct CallArguments {
    /// The method, for example "ping"
    pub(super) method: String,

    /// Its params as JSON
    #[arg(value_name = "PARAMS", value_parser = json, allow_negative_numbers = true)]
    pub(super) params: Option<Box<RawValue>>,

    /// Listener: an IP address and a port, or unix:/path
    ///
    /// Default: the daemon's first listener.
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    pub(super) to: Option<Address>,

    /// Byte order of the length prefix: little or big
    ///
    /// Default: that of the listener, else little.
    #[arg(long, value_name = "ORDER", hide_possible_values = true)]
    byte_order: Option<Order>,
}

impl Arguments {
    pub(super) fn timeout(&self) -> Duration {
        let doing = if let CtlVerb::Change(change) = &self.verb {
            change.doing()
        } else {
            None
        };
        let usual = doing
            .and_then(Doing::takes_long)
            .map_or(Duration::from_secs(10), |(_, usual)| usual);
        self.timeout.unwrap_or(usual)
    }
}

impl CallArguments {
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

/// [`LogLevel`] as an argument.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Level {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl From<Level> for LogLevel {
    fn from(level: Level) -> LogLevel {
        match level {
            Level::Error => LogLevel::Error,
            Level::Warn => LogLevel::Warn,
            Level::Info => LogLevel::Info,
            Level::Debug => LogLevel::Debug,
            Level::Trace => LogLevel::Trace,
        }
    }
}

/// The shells that are held to work.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Completed {
    Bash,
    Zsh,
    Fish,
}

impl From<Completed> for Shell {
    fn from(shell: Completed) -> Shell {
        match shell {
            Completed::Bash => Shell::Bash,
            Completed::Zsh => Shell::Zsh,
            Completed::Fish => Shell::Fish,
        }
    }
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

fn address(text: &str) -> Result<Address, String> {
    zone::numbered(text)?.parse()
}

fn json(text: &str) -> Result<Box<RawValue>, String> {
    serde_json::from_str(text).map_err(|e| format!("not JSON: {e}"))
}

/// So that a deadline always has an instant.
const MAX_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);

/// Above the options that every verb has.
const COMMON: &str = "Global options";

/// By hand, for clap has no groups of verbs: on one screen, and held to be complete by a test.
const HELP: &str = "\
Usage: fdpassctl [OPTIONS] <VERB>; \"fdpassctl help VERB\" describes a verb

Look     status           the daemon, its listeners and its workers
         clients          the connected clients and their requests
         events           recent events; with --follow also new ones
         config           show what is in force, or check the file
         metrics          all metrics, in the Prometheus text format
Clients  drain, undrain   stop accepting clients; accept them again
         rebalance        spread busy clients over the workers
         kick             close a client
         call             send a request as a client
Workers  scale, recycle   set their number; replace one or all
         hold, release    move all clients off one; undo that or a quarantine
Daemon   reload, upgrade  apply the configuration file; run the new program
         stop             shut down gracefully
         log-level, reopen-log   show or change the log level; reopen the file
         version          versions of fdpassctl and of the daemon
         completions      a shell completion script (bash, zsh or fish)
Options  -s, --socket <PATH>, -i, --instance <NAME>   select another daemon
         --timeout <TIME>      how long to wait: 10s, or 1m for long operations
         --json, -q, --quiet   one line of JSON; no progress on standard error
Exit     0 done, 1 refused or failed, 3 not running, 4 no valid reply in time,
         64 usage, 75 still in progress, 77 forbidden
";

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Arguments, String> {
        Arguments::try_parse_from(line.split(' ')).map_err(|e| e.to_string())
    }

    fn call(line: &str) -> CallArguments {
        match parse(line).expect(line).verb {
            CtlVerb::Call(call) => call,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_timeout_is_in_seconds_or_has_its_unit() {
        for (text, time) in [
            ("3", 3000),
            ("0.5", 500),
            ("10s", 10_000),
            ("2m", 120_000),
            ("250ms", 250),
        ] {
            let arguments = parse(&format!("fdpassctl status --timeout {text}")).expect(text);
            assert_eq!(arguments.timeout(), Duration::from_millis(time));
        }
        for text in [
            "0",
            "-1",
            "nan",
            "1e300",
            "inf",
            "2days",
            "soon",
            "500000000000years",
        ] {
            parse(&format!("fdpassctl status --timeout={text}")).expect_err(text);
        }
    }

    #[test]
    fn what_takes_longer_is_waited_for_longer() {
        for (lines, seconds) in [
            (
                &[
                    "status",
                    "version",
                    "call x",
                    "release 1",
                    "drain",
                    "undrain",
                    "rebalance",
                    "kick 1",
                    "events -f",
                ][..],
                10,
            ),
            (
                &[
                    "stop",
                    "reload",
                    "scale 4",
                    "recycle all",
                    "hold 1",
                    "upgrade",
                ],
                60,
            ),
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
        for line in [
            "fdpassctl -i blue status",
            "fdpassctl status --instance blue",
        ] {
            assert_eq!(parse(line).expect(line).instance.as_deref(), Some("blue"));
        }
        for line in [
            "status -i a/b",
            "status --instance=",
            "status -i blue -s /x",
        ] {
            parse(&format!("fdpassctl {line}")).expect_err(line);
        }
    }

    #[test]
    fn params_are_any_json_and_stay_as_they_are() {
        for text in ["-5", "-1e3", "1e400", r#"{"a":1,"a":2}"#, "null", r#""\/""#] {
            let params = call(&format!("fdpassctl call ping {text}"))
                .params
                .expect("given");
            assert_eq!(params.get(), text);
        }
        let said = parse("fdpassctl call ping {a:1}").expect_err("no JSON");
        assert!(
            said.contains("not JSON: key must be a string at line 1 column 2"),
            "{said}"
        );
    }

    #[test]
    fn an_address_that_is_none_is_refused_with_what_one_is() {
        let said = parse("fdpassctl call ping --to here").expect_err("no address");
        assert!(said.contains("expected an IP address and a port"), "{said}");
        let call = call("fdpassctl call ping --to unix:/x --byte-order big");
        assert_eq!(call.to, Some(Address::Unix("/x".into())));
        assert_eq!(call.byte_order(), Some(ByteOrder::Big));
    }

    #[test]
    fn the_help_is_one_screen_and_tells_of_every_verb_and_every_option() {
        // And the prompt below it.
        assert!(HELP.lines().count() < 24, "{HELP}");
        let words: Vec<_> = HELP.split([' ', ',', '\n']).collect();
        let mut command = Arguments::command();
        command.build();
        for verb in command.get_subcommands() {
            assert!(words.contains(&verb.get_name()), "{}", verb.get_name());
        }
        // Of these two everybody knows.
        let is_usual = |option: &&str| ["help", "version"].contains(option);
        for option in command
            .get_arguments()
            .filter_map(clap::Arg::get_long)
            .filter(|option| !is_usual(option))
        {
            assert!(words.contains(&format!("--{option}").as_str()), "{option}");
        }
    }

    #[test]
    fn no_help_is_wider_than_a_terminal_and_every_argument_is_explained() {
        let mut commands = vec![Arguments::command()];
        commands[0].build();
        while let Some(mut command) = commands.pop() {
            for help in
                [command.render_help(), command.render_long_help()].map(|help| help.to_string())
            {
                assert!(
                    help.lines().all(|line| line.chars().count() <= 80),
                    "{help}"
                );
            }
            for argument in command.get_arguments() {
                assert!(
                    argument.get_help().is_some(),
                    "{} of {}",
                    argument.get_id(),
                    command.get_name()
                );
            }
            commands.extend(
                command
                    .get_subcommands()
                    .filter(|inner| inner.get_name() != "help")
                    .cloned(),
            );
        }
    }
}
