//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Command, CommandFactory, Parser, Subcommand, ValueEnum, ValueHint};
use clap_complete::Shell;

use crate::proto::control::{Recycle, Release};
use crate::proto::log::LogLevel;
use crate::proto::names::{ClientId, WorkerId};

pub(super) mod bench;
pub(super) mod call;
pub(super) mod check;
pub(super) mod drain;
mod help;
pub(super) mod kick;
mod target;
pub(super) mod usage;
pub(super) mod values;
pub(super) mod watching;

use super::style::Colour;
use bench::BenchArguments;
pub(crate) use call::CallArguments;
use check::AppVerb;
use drain::DrainArguments;
use help::HELP;
use kick::KickArguments;
pub(crate) use target::CallTarget;
use values::{
    daemon_name, event, instance, most, recycle, release, timeout, words, worker_count, worker_id,
};
use watching::{StatusArguments, TopArguments};

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
    #[arg(long, global = true, help_heading = COMMON, value_name = "TIME", value_parser = timeout, allow_negative_numbers = true)]
    timeout: Option<Duration>,

    /// Use the daemon of fdpassd@NAME.service
    #[arg(short, long, global = true, help_heading = COMMON, value_name = "NAME", value_parser = instance)]
    #[arg(conflicts_with = "socket")]
    pub(super) instance: Option<String>,

    /// Use the daemon of this name, instead of fdpassd
    #[arg(short, long, global = true, help_heading = COMMON, value_name = "NAME", value_parser = daemon_name)]
    #[arg(conflicts_with = "socket")]
    pub(super) name: Option<String>,

    /// Act on these hosts and groups, over ssh
    ///
    /// Groups are in ~/.config/fdpassctl/hosts.toml; see fdpassctl(8).
    #[arg(long, global = true, help_heading = COMMON, value_name = "LIST", value_delimiter = ',')]
    #[arg(num_args = 1, value_hint = ValueHint::Hostname)]
    pub(super) hosts: Vec<String>,

    /// Stop at the first host on which a change fails
    #[arg(long, global = true, help_heading = COMMON)]
    pub(super) one_at_a_time: bool,

    /// Use colours: auto (on terminals), always or never
    ///
    /// Default: auto, unless $NO_COLOR is set.
    #[arg(long, global = true, help_heading = COMMON, value_name = "WHEN", hide_possible_values = true)]
    #[arg(default_value = "auto", hide_default_value = true)]
    pub(super) color: Colour,

    #[command(subcommand)]
    pub(super) verb: CtlVerb,
}

/// Returns the command line of a program of this name, which is `fdpassctl` or one for another daemon.
pub(super) fn command(program: &'static str) -> Command {
    let command = help::complete(Arguments::command(), program);
    match program {
        PROGRAM => command,
        _ => command
            .name(program)
            .bin_name(program)
            .override_help(HELP.replace(PROGRAM, program)),
    }
}

/// The usual name of the program.
pub(super) const PROGRAM: &str = "fdpassctl";

#[derive(Debug, Subcommand)]
pub(super) enum CtlVerb {
    /// Show the daemon, its listeners and its workers
    Status(StatusArguments),
    /// Watch the workers, the clients and the events on the whole terminal
    ///
    /// Its keys sort, look at a worker or a client, recycle, kick and drain.
    ///
    /// The key "?" lists them.
    Top(TopArguments),
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
        #[arg(value_parser = words(LEVELS.map(|level| (level.as_str(), level))))]
        level: Option<LogLevel>,
    },
    /// Show all metrics in the Prometheus text format
    Metrics,
    /// Send one request as a client and print the result unchanged
    Call(CallArguments),
    /// Put load on a listener, check every reply, and show the latencies
    ///
    /// It ends after 5 seconds; with Ctrl-C earlier, with what was measured.
    Bench(BenchArguments),
    /// Close a client, or all clients of an address or that are idle
    Kick(KickArguments),
    /// Show the versions of fdpassctl and of the running daemon
    Version,
    /// Check that a program is an app
    #[command(subcommand_value_name = "check", disable_help_subcommand = true)]
    App {
        #[command(subcommand)]
        what: AppVerb,
    },
    #[command(flatten)]
    Change(ChangeVerb),
    /// Print a shell completion script
    ///
    /// For example: source <(fdpassctl completions bash)
    Completions {
        /// bash, zsh or fish
        #[arg(value_name = "SHELL", hide_possible_values = true)]
        #[arg(value_parser = words([("bash", Shell::Bash), ("zsh", Shell::Zsh), ("fish", Shell::Fish)]))]
        shell: Shell,
    },
}

#[derive(Debug, clap::Args)]
pub(super) struct ClientsArguments {
    /// Only clients of this worker
    #[arg(long, value_name = "WORKER", value_parser = worker_id, allow_negative_numbers = true)]
    pub(super) worker: Option<WorkerId>,

    /// Sort by requests, age, idle or bytes, largest first
    ///
    /// Default: by client number, in order of arrival.
    #[arg(long, value_name = "BY", hide_possible_values = true)]
    pub(super) sort: Option<Sort>,

    /// Reverse the order
    #[arg(short, long)]
    pub(super) reverse: bool,

    /// Show at most COUNT clients
    #[arg(long, value_name = "COUNT", value_parser = most, allow_negative_numbers = true)]
    pub(super) most: Option<usize>,
}

/// The figure that clients are sorted by.
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
    #[arg(long, value_name = "NUMBER", value_parser = event, allow_negative_numbers = true)]
    pub(super) after: Option<u64>,
}

#[derive(Clone, Copy, Debug, Subcommand)]
pub(super) enum ConfigVerb {
    /// Show every key with its value and the source of the value
    ///
    /// The source is default, file, environment, command-line or runtime.
    Show,
    /// Show what a reload would change, or what is wrong with the file
    Check,
}

#[derive(Debug, Subcommand)]
pub(super) enum ChangeVerb {
    /// Apply the configuration file as it is now
    Reload {
        /// Apply it even if a file is empty and drops keys in force
        #[arg(long)]
        force: bool,
    },
    /// Set the number of workers until the next reload
    Scale {
        /// Number of workers, from 1 to 256
        #[arg(value_name = "COUNT", value_parser = worker_count, allow_negative_numbers = true)]
        count: u32,
    },
    /// Replace a worker, or all workers, with new processes
    Recycle {
        /// The worker's id, or "all"
        #[arg(value_name = "WORKER|all", value_parser = recycle, allow_negative_numbers = true)]
        which: Recycle,
    },
    /// Take all clients off a worker and keep it running for inspection
    Hold {
        /// The worker's id
        #[arg(value_name = "WORKER", value_parser = worker_id, allow_negative_numbers = true)]
        worker: WorkerId,
    },
    /// Return a held worker to service, or lift the quarantine of a method
    Release {
        /// The worker's id, or the method's name
        #[arg(value_name = "WORKER|METHOD", value_parser = release)]
        what: Release,
    },
    /// Stop accepting clients; connected clients stay
    Drain(DrainArguments),
    /// Accept clients again
    Undrain,
    /// Spread busy clients over the workers
    Rebalance {
        /// Only show what would be done
        #[arg(long)]
        dry_run: bool,
    },
    /// Switch to the installed program in place and replace the workers
    Upgrade {
        /// Use another program (root or the daemon's user)
        #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
        binary: Option<PathBuf>,
    },
    /// Close one client
    #[command(skip)]
    Kick { client: ClientId },
    /// Reopen the log file after it was renamed
    ReopenLog,
    /// Shut the daemon down gracefully and wait until it has exited
    Stop {
        /// Only if systemd stops this unit; for its ExecStop=
        ///
        /// For any other job fdpassctl prints the job and keeps the clients.
        #[arg(long, value_name = "UNIT")]
        if_stopping: Option<String>,
    },
}

impl ChangeVerb {
    /// Returns what the daemon is doing until it replies, for a sentence, and how long fdpassctl waits by default;
    /// `None` for a verb with a reply within seconds.
    pub(super) fn takes_long(&self) -> Option<(&'static str, Duration)> {
        let (activity, minutes) = match self {
            ChangeVerb::Reload { .. } => ("reloading", 1),
            ChangeVerb::Scale { .. } => ("scaling", 1),
            ChangeVerb::Recycle { .. } => ("replacing workers", 1),
            ChangeVerb::Hold { .. } => ("moving the worker's clients", 1),
            ChangeVerb::Drain(DrainArguments { wait: true, .. }) => ("draining", 60),
            ChangeVerb::Upgrade { .. } => ("upgrading", 1),
            ChangeVerb::Stop { .. } => ("stopping", 1),
            ChangeVerb::Drain(_)
            | ChangeVerb::Kick { .. }
            | ChangeVerb::Rebalance { .. }
            | ChangeVerb::Release { .. }
            | ChangeVerb::ReopenLog
            | ChangeVerb::Undrain => return None,
        };
        Some((activity, Duration::from_secs(60 * minutes)))
    }
}

impl Arguments {
    /// Returns the timeout that is given, or the default of the verb.
    pub(super) fn timeout(&self) -> Duration {
        let default = match &self.verb {
            CtlVerb::Change(change) => change.takes_long().map(|(_, default)| default),
            _ => None,
        };
        self.timeout.or(default).unwrap_or(DEFAULT_TIMEOUT)
    }

    /// Returns how long ssh may take to log in to a host, also for verbs that take longer.
    pub(super) fn login_timeout(&self) -> Duration {
        self.timeout.unwrap_or(DEFAULT_TIMEOUT)
    }
}

/// The timeout of verbs with a reply within seconds.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

const LEVELS: [LogLevel; 5] = [
    LogLevel::Error,
    LogLevel::Warn,
    LogLevel::Info,
    LogLevel::Debug,
    LogLevel::Trace,
];

/// The heading of the options that every verb has.
const COMMON: &str = "Global options";

#[cfg(test)]
mod tests {
    use super::call::CallParams;
    use super::*;
    use crate::proto::frame::ByteOrder;

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
    fn a_timeout_is_in_seconds_or_has_a_unit() {
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
    fn long_operations_have_longer_timeouts() {
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
    fn an_instance_is_a_name_and_excludes_a_socket() {
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
    fn a_daemon_has_a_name_and_perhaps_an_instance() {
        let arguments = parse("fdpassctl -n counterd -i blue status").expect("they are valid");
        assert_eq!(arguments.name.as_deref(), Some("counterd"));
        assert_eq!(arguments.instance.as_deref(), Some("blue"));
        for line in ["status -n a/b", "status --name=", "status -n x -s /x"] {
            parse(&format!("fdpassctl {line}")).expect_err(line);
        }
    }

    #[test]
    fn the_help_of_another_program_has_its_name() {
        let help = command("counterctl").render_help().to_string();
        assert!(
            help.starts_with("Usage: counterctl [OPTIONS]") && !help.contains(PROGRAM),
            "{help}"
        );
    }

    #[test]
    fn params_are_any_json_and_stay_unchanged() {
        for text in ["-5", "-1e3", "1e400", r#"{"a":1,"a":2}"#, "null", r#""\/""#] {
            let given = call(&format!("fdpassctl call ping {text}")).params;
            let Some(CallParams::Given(params)) = given else {
                panic!("{given:?}");
            };
            assert_eq!(params.get(), text);
        }
        let said = parse("fdpassctl call ping {a:1}").expect_err("no JSON");
        assert!(
            said.contains("not JSON: key must be a string at line 1 column 2"),
            "{said}"
        );
    }

    #[test]
    fn a_wrong_address_is_refused_with_an_example() {
        let srv = parse("fdpassctl call ping --to srv:_fdpassd._tcp.example.net");
        #[cfg(feature = "srv")]
        assert!(srv.is_ok());
        #[cfg(not(feature = "srv"))]
        assert!(
            srv.expect_err("a feature")
                .contains("SRV records need the Cargo feature \"srv\""),
        );
        let said = parse("fdpassctl call ping --to here").expect_err("no address");
        assert!(said.contains("expected an IP address and a port"), "{said}");
        let call = call("fdpassctl call ping --to unix:/x --byte-order big");
        let unix = crate::proto::names::Address::Unix("/x".into());
        assert_eq!(call.to, Some(CallTarget::Listener(unix)));
        assert_eq!(call.byte_order, Some(ByteOrder::Big));
    }

    #[test]
    fn the_help_fits_a_screen_and_has_all_verbs_and_options() {
        // And the prompt below it.
        assert!(HELP.lines().count() < 24, "{HELP}");
        let words: Vec<_> = HELP.split([' ', ',', '\n']).collect();
        let mut command = Arguments::command();
        command.build();
        for verb in command.get_subcommands() {
            assert!(words.contains(&verb.get_name()), "{}", verb.get_name());
        }
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
    fn every_argument_has_help_within_80_columns() {
        let mut commands = vec![command(PROGRAM)];
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
