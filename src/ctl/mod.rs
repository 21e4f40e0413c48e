//! fdpassctl: one request to a running daemon, its reply, and an exit code for scripts.
//!
//! A change that takes long reports its [`progress`]; clients and events come in pages, by several requests. Text for
//! people is escaped; output for programs (`call`, `--json`) is what was received, byte for byte. fdpassctl knows of
//! the daemon only the vocabulary in [`proto`](crate::proto).

mod app;
mod args;
mod call;
mod change;
mod clients;
mod config;
mod counters;
mod error;
mod events;
mod figures;
mod job;
mod output;
mod page;
mod progress;
mod session;
mod status;
mod style;
mod table;

use std::env;
use std::ffi::OsString;
use std::io::{self, BufWriter, ErrorKind, Write};
use std::process::ExitCode;

use args::{AppVerb, Arguments, CtlVerb};
use clap::{CommandFactory, Parser};
use clap_complete::Shell;
use error::{Error, ExitStatus};
use output::Patient;
use serde_json::value::RawValue;
use session::{DAEMON, Session, parse};
use style::{BAD, Seen};

use crate::proto::control::{Metrics, Verb, Version};
use crate::proto::text::Escaped;
use crate::rpc_client;

/// Runs `fdpassctl`.
pub(crate) fn main() -> ExitCode {
    let var = |key: &str| env::var_os(key);
    // Standard output is written by the line otherwise, and there may be a hundred thousand lines.
    let mut out = BufWriter::with_capacity(64 << 10, Patient(io::stdout().lock()));
    let exit = run(
        env::args_os(),
        var,
        Seen::from_environment(var),
        &mut out,
        &mut Patient(io::stderr()),
    );
    ExitCode::from(exit as u8)
}

fn run(
    arguments: impl IntoIterator<Item = OsString>,
    var: impl Fn(&str) -> Option<OsString>,
    seen: Seen,
    out: &mut impl Write,
    err: &mut (impl Write + Send),
) -> ExitStatus {
    let done = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => perform(&arguments, &Session::new(&arguments, var, seen), out, err),
        Err(usage) if usage.use_stderr() => {
            // If this cannot be written either, nothing is left to do.
            let _ = write!(err, "{usage}");
            return ExitStatus::Usage;
        }
        Err(help) => write!(out, "{help}").map_err(Error::Output),
    };
    match done.and_then(|()| out.flush().map_err(Error::Output)) {
        Ok(()) => ExitStatus::Done,
        Err(error) => {
            // `fdpassctl status | head -1` is no error.
            if !matches!(&error, Error::Output(cause) if cause.kind() == ErrorKind::BrokenPipe) {
                let _ = writeln!(
                    err,
                    "{} {}",
                    seen.error_paint().on(BAD, "fdpassctl:"),
                    Escaped(&error)
                );
                let _ = error
                    .lines()
                    .try_for_each(|line| writeln!(err, "{}", Escaped(line)));
            }
            error.exit()
        }
    }
}

fn perform(
    arguments: &Arguments,
    session: &Session,
    out: &mut impl Write,
    err: &mut (impl Write + Send),
) -> Result<(), Error> {
    match &arguments.verb {
        CtlVerb::Status => status::show(session, out),
        CtlVerb::Clients(arguments) => clients::show(arguments, session, out),
        CtlVerb::Events(arguments) => events::show(arguments, session, out),
        CtlVerb::Config { what } => config::perform(*what, session, out),
        CtlVerb::LogLevel { level } => config::log_level(*level, session, out),
        CtlVerb::Metrics => metrics(session, out),
        CtlVerb::Call(call) => call::perform(call, session, out),
        CtlVerb::Version => version(session, out),
        CtlVerb::Change(change) => change::perform(change, session, out, err),
        CtlVerb::App {
            what: AppVerb::Check(arguments),
        } => app::check(arguments, session, out),
        CtlVerb::Completions { shell } => completions(*shell, out),
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

/// Prints a completion script. It is generated in memory because clap_complete panics when it cannot write.
fn completions(shell: Shell, out: &mut impl Write) -> Result<(), Error> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "fdpassctl", &mut script);
    out.write_all(&script).map_err(Error::Output)
}

/// Prints the version of fdpassctl, even if the daemon does not answer, and then that of the daemon.
fn version(session: &Session, out: &mut impl Write) -> Result<(), Error> {
    let own = env!("CARGO_PKG_VERSION");
    if !session.json {
        writeln!(out, "fdpassctl {own}").map_err(Error::Output)?;
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
        None => writeln!(out, "{DAEMON}: not running"),
    };
    written.map_err(Error::Output)
}

#[cfg(test)]
mod tests;
