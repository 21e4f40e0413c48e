//! fdpassctl: one request to a running daemon, its reply, and an exit code for scripts.
//!
//! A change that takes long reports its [`progress`]; clients and events come in pages, by several requests. Text for
//! people is escaped; output for programs (`call`, `--json`) is what was received, byte for byte. fdpassctl knows of
//! the daemon only the vocabulary in [`proto`](crate::proto).

mod app;
mod args;
mod bench;
mod call;
mod change;
mod clients;
mod completions;
mod config;
mod counters;
mod error;
mod events;
mod figures;
mod fold;
mod hosts;
mod job;
mod kick;
mod output;
mod page;
mod progress;
mod reconnecting;
mod session;
mod status;
mod style;
mod table;
mod top;
mod tunnel;
mod users;

use std::env;
use std::ffi::{OsStr, OsString};
use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::Path;
use std::process::ExitCode;

use args::check::AppVerb;
use args::kick::KickArguments;
use args::usage::UsageMistake;
use args::watching::StatusArguments;
use args::{Arguments, ChangeVerb, CtlVerb};
use clap::FromArgMatches;
use clap::error::ErrorKind as UsageKind;
use clap_complete::Shell;
use error::{Error, ExitStatus};
use output::Patient;
use serde_json::value::RawValue;
use session::{Session, parse};
use style::{BAD, Colour, Seen};

use crate::proto::control::{Metrics, Verb, Version};
use crate::proto::names::is_daemon_name;
use crate::proto::text::Escaped;
use crate::rpc_client;

/// The name of a program, and of the daemon that it controls if no other is given.
#[derive(Clone, Copy, Debug)]
struct Tool<'a> {
    /// The library of options takes no other names.
    program: &'static str,
    daemon: &'a str,
}

/// `fdpassctl` itself.
const FDPASSCTL: Tool<'static> = Tool {
    program: args::PROGRAM,
    daemon: "fdpassd",
};

/// Runs `fdpassctl`.
pub(crate) fn main() -> ExitCode {
    run_tool(FDPASSCTL)
}

/// Runs a program like `fdpassctl` for the daemon of this name.
pub(crate) fn main_for(daemon: &str) -> ExitCode {
    let argument = env::args_os().next().unwrap_or_default();
    let file = Path::new(&argument).file_name().and_then(OsStr::to_str);
    let program = file.unwrap_or(args::PROGRAM).to_owned().leak();
    if !is_daemon_name(daemon) {
        let _ = writeln!(
            Patient(io::stderr()),
            "{}: {daemon:?} is not a daemon's name",
            Escaped(program)
        );
        return ExitCode::from(ExitStatus::Usage as u8);
    }
    run_tool(Tool { program, daemon })
}

fn run_tool(tool: Tool<'_>) -> ExitCode {
    figures::use_local_time();
    users::use_names();
    let var = |key: &str| env::var_os(key);
    // Standard output is written by the line otherwise, and there may be a hundred thousand lines.
    let mut out = BufWriter::with_capacity(64 << 10, Patient(io::stdout().lock()));
    let exit = run(
        tool,
        env::args_os(),
        var,
        Seen::from_environment(var),
        &mut out,
        &mut Patient(io::stderr()),
    );
    ExitCode::from(exit as u8)
}

fn run(
    tool: Tool<'_>,
    arguments: impl IntoIterator<Item = OsString>,
    var: impl Fn(&str) -> Option<OsString>,
    seen: Seen,
    out: &mut impl Write,
    err: &mut (impl Write + Send),
) -> ExitStatus {
    let given: Vec<OsString> = arguments.into_iter().collect();
    let parsed = args::command(tool.program).try_get_matches_from(&given);
    let parsed = parsed.and_then(|found| Arguments::from_arg_matches(&found));
    let twice = || UsageMistake::given_twice(args::command(tool.program), &given);
    let colour = parsed.as_ref().map_or(Colour::Auto, |parsed| parsed.color);
    let seen = seen.with_colours(colour);
    let done = match parsed {
        Ok(arguments) => match twice() {
            Some(mistake) => Err(Error::CommandLine(mistake)),
            None => run_verb(tool, &arguments, &var, seen, out, err),
        },
        Err(usage) if usage.kind() == UsageKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            // If this cannot be written either, nothing is left to do.
            let _ = write!(err, "{usage}");
            return ExitStatus::Usage;
        }
        Err(usage) if usage.use_stderr() => Err(Error::CommandLine(UsageMistake::new(&usage))),
        Err(help) => write!(out, "{help}").map_err(Error::Output),
    };
    match done.and_then(|()| out.flush().map_err(Error::Output)) {
        Ok(()) => ExitStatus::Done,
        Err(error) => {
            if wants_json(&given)
                && let Some(json) = error.to_json()
            {
                // The sentence below is for people, and the exit code remains.
                let _ = writeln!(out, "{json}").and_then(|()| out.flush());
            }
            report(tool, seen, &error, err);
            error.exit()
        }
    }
}

/// Returns whether JSON is wanted, also by a command line that cannot be read.
fn wants_json(given: &[OsString]) -> bool {
    let mut options = given.iter().take_while(|argument| *argument != "--");
    options.any(|argument| argument == "--json")
}

/// Writes the sentence of an error, and the lines that belong to it. `fdpassctl status | head -1` is not an error.
fn report(tool: Tool<'_>, seen: Seen, error: &Error, err: &mut impl Write) {
    if matches!(error, Error::Output(cause) if cause.kind() == ErrorKind::BrokenPipe) {
        return;
    }
    let program = seen
        .error_paint()
        .on(BAD, format!("{}:", Escaped(tool.program)));
    // If this cannot be written either, nothing is left to do.
    let _ = writeln!(err, "{program} {}", Escaped(error));
    let _ = error
        .lines()
        .try_for_each(|line| writeln!(err, "{}", Escaped(line)));
}

fn run_verb(
    tool: Tool<'_>,
    arguments: &Arguments,
    var: &impl Fn(&str) -> Option<OsString>,
    seen: Seen,
    out: &mut impl Write,
    err: &mut (impl Write + Send),
) -> Result<(), Error> {
    let session = Session::new(arguments, tool.daemon, var, seen);
    match (arguments.hosts.is_empty(), arguments.one_at_a_time) {
        (false, _) => hosts::perform(arguments, &session, var, out, err),
        (true, false) => perform(tool, arguments, &session, out, err),
        (true, true) => Err(Error::Usage(
            "--one-at-a-time is for the hosts of --hosts".to_owned(),
        )),
    }
}

fn perform(
    tool: Tool<'_>,
    arguments: &Arguments,
    session: &Session,
    out: &mut impl Write,
    err: &mut (impl Write + Send),
) -> Result<(), Error> {
    match &arguments.verb {
        CtlVerb::Status(StatusArguments { watch: None }) => status::show(session, out),
        CtlVerb::Status(StatusArguments {
            watch: Some(interval),
        }) => status::watch(*interval, session, out),
        CtlVerb::Top(arguments) => top::show(arguments, session, out),
        CtlVerb::Clients(arguments) => clients::show(arguments, session, out),
        CtlVerb::Events(arguments) => events::show(arguments, session, out),
        CtlVerb::Config { what } => config::perform(*what, session, out),
        CtlVerb::LogLevel { level } => config::log_level(*level, session, out),
        CtlVerb::Metrics => metrics(session, out),
        CtlVerb::Call(call) => call::perform(call, session, out),
        CtlVerb::Bench(arguments) => bench::perform(arguments, session, out),
        CtlVerb::Kick(KickArguments {
            client: Some(client),
            ..
        }) => {
            let kick = ChangeVerb::Kick { client: *client };
            change::perform(&kick, session, out, err)
        }
        CtlVerb::Kick(arguments) => kick::perform(arguments, session, out),
        CtlVerb::Version => version(tool, session, out),
        CtlVerb::Change(change) => change::perform(change, session, out, err),
        CtlVerb::App {
            what: AppVerb::Check(arguments),
        } => app::check(arguments, session, out),
        CtlVerb::Completions { shell } => completions(tool, *shell, out),
    }
}

/// Prints the metrics as they are, for programs. On a terminal nothing in them takes effect.
fn metrics(session: &Session, out: &mut impl Write) -> Result<(), Error> {
    let result = session.connect()?.ask(Verb::Metrics)?;
    session.print(out, &result, |out| {
        let Metrics { text } = parse(&result)?;
        let written = match session.seen.out {
            true => text
                .lines()
                .try_for_each(|line| writeln!(out, "{}", Escaped(line))),
            false => out.write_all(text.as_bytes()),
        };
        written.map_err(Error::Output)
    })
}

/// Prints a completion script.
fn completions(tool: Tool<'_>, shell: Shell, out: &mut impl Write) -> Result<(), Error> {
    let mut command = args::command(tool.program);
    let script = completions::script(&mut command, tool.program, shell);
    out.write_all(script.as_bytes()).map_err(Error::Output)
}

/// Prints the version of the program, even if the daemon does not answer, and then that of the daemon.
fn version(tool: Tool<'_>, session: &Session, out: &mut impl Write) -> Result<(), Error> {
    let own = env!("CARGO_PKG_VERSION");
    if !session.json {
        writeln!(out, "{} {own}", Escaped(tool.program)).map_err(Error::Output)?;
    }
    let daemon = match session
        .connect()
        .and_then(|mut daemon| daemon.ask(Verb::Version))
    {
        Ok(result) => Some(result),
        Err(rpc_client::Error::NotRunning { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    let written = match daemon {
        _ if session.json => {
            let daemon = daemon.as_deref().map_or("null", RawValue::get);
            writeln!(out, r#"{{"fdpassctl":"{own}","daemon":{daemon}}}"#)
        }
        Some(result) => {
            let Version { name, version, pid } = parse(&result)?;
            writeln!(out, "{} {}, pid {pid}", Escaped(&name), Escaped(&version))
        }
        None => writeln!(out, "{}: not running", session.daemon),
    };
    written.map_err(Error::Output)
}

#[cfg(test)]
mod tests;
