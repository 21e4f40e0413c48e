//! fdpassctl: one request to a running daemon, its reply, and an exit code that scripts can rely on. What takes its time is
//! told of meanwhile ([`progress`]); clients come in pages, and events one after the other, by several requests.
//!
//! What is printed for people is escaped; what is printed for programs (`call`, `--json`) is byte for byte
//! what came. fdpassctl knows of the daemon only what the vocabulary in [`proto`](crate::proto) says.

mod args;
mod call;
mod change;
mod clients;
mod config;
mod error;
mod events;
mod figures;
mod job;
mod output;
mod progress;
mod status;
mod style;
mod table;

use std::env;
use std::ffi::OsString;
use std::io::{self, BufWriter, ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, Parser};
use clap_complete::Shell;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::proto::control::{self, Metrics, Status, Version};
use crate::proto::text::Escaped;
use crate::rpc_client::{self, Deadline, RpcClient, no_reply};
use crate::sys::user::Holder;

use args::{Arguments, CtlVerb};
use error::{Error, ExitStatus};
use output::Patient;
use style::{BAD, Seen};

/// The whole of `fdpassctl`.
pub(crate) fn main() -> ExitCode {
    let var = |key: &str| env::var_os(key);
    // Not by the line, as standard output is otherwise: there may be a hundred thousand of them.
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
            // Nothing is left to be done if even this cannot be written.
            let _ = write!(err, "{usage}");
            return ExitStatus::Usage;
        }
        Err(help) => write!(out, "{help}").map_err(Error::Output),
    };
    match done.and_then(|()| out.flush().map_err(Error::Output)) {
        Ok(()) => ExitStatus::Done,
        Err(error) => {
            // `fdpassctl status | head -1` is no mishap to talk about.
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
        CtlVerb::Status => status(session, out),
        CtlVerb::Clients(wanted) => clients::show(wanted, session, out),
        CtlVerb::Events(wanted) => events::show(wanted, session, out),
        CtlVerb::Config { what } => config::perform(*what, session, out),
        CtlVerb::LogLevel { level } => config::log_level(level.map(Into::into), session, out),
        CtlVerb::Metrics => metrics(session, out),
        CtlVerb::Call(call) => call::perform(call, session, out),
        CtlVerb::Version => version(session, out),
        CtlVerb::Change(change) => change.perform(session, out, err),
        CtlVerb::Completions { shell } => completions((*shell).into(), out),
    }
}

/// Where the daemon may be, how long it is waited for, and how what it says is to be shown.
#[derive(Debug)]
struct Session {
    places: Vec<PathBuf>,
    /// A directory among those places that may be another user's.
    temporary: Option<PathBuf>,
    timeout: Duration,
    deadline: Deadline,
    json: bool,
    quiet: bool,
    seen: Seen,
}

impl Session {
    fn new(arguments: &Arguments, var: impl Fn(&str) -> Option<OsString>, seen: Seen) -> Session {
        let timeout = arguments.timeout();
        let (places, temporary) = places(arguments, var);
        Session {
            places,
            temporary,
            timeout,
            deadline: Deadline::new(timeout),
            json: arguments.json,
            quiet: arguments.quiet,
            seen,
        }
    }

    /// A connection to it; all of what is asked on it has to be answered in time.
    fn daemon(&self) -> Result<RpcClient, rpc_client::Error> {
        RpcClient::connect_control(&self.places(), self.deadline).map_err(|error| match error {
            rpc_client::Error::NotRunning { .. } => rpc_client::Error::NotRunning {
                tried: self.places_but(&[Holder::Others]),
            },
            error => error,
        })
    }

    /// The places as they are now, without one that another user has made. One that is not there is left out, too: another
    /// user could make it at this moment.
    fn places(&self) -> Vec<PathBuf> {
        self.places_but(&[Holder::Others, Holder::Nobody])
    }

    fn places_but(&self, holders: &[Holder]) -> Vec<PathBuf> {
        let is_kept = |place: &&PathBuf| match &self.temporary {
            Some(temporary) if place.parent() == Some(temporary) => {
                !holders.contains(&Holder::read(temporary))
            }
            _ => true,
        };
        self.places.iter().filter(is_kept).cloned().collect()
    }

    /// Prints a reply: as it came, or for people what `in_words` makes of it.
    fn print<W: Write>(
        &self,
        out: &mut W,
        result: &RawValue,
        in_words: impl FnOnce(&mut W) -> Result<(), Error>,
    ) -> Result<(), Error> {
        if self.json {
            writeln!(out, "{}", result.get()).map_err(Error::Output)
        } else {
            in_words(out)
        }
    }
}

/// Where the control socket may be: one place if somebody said so, else all the usual ones, with the directory of one that
/// another user may have made.
fn places(
    arguments: &Arguments,
    var: impl Fn(&str) -> Option<OsString>,
) -> (Vec<PathBuf>, Option<PathBuf>) {
    if let Some(name) = &arguments.instance {
        // The RuntimeDirectory= of fdpassd@.service.
        return (
            vec![PathBuf::from(format!("/run/{DAEMON}-{name}/control.sock"))],
            None,
        );
    }
    let from_environment = || {
        var("FDPASSD_SOCKET")
            .filter(|path| !path.is_empty())
            .map(PathBuf::from)
    };
    match arguments.socket.clone().or_else(from_environment) {
        Some(path) => (vec![path], None),
        None => (
            control::places(DAEMON, user(), var),
            Some(control::temporary(DAEMON, user())),
        ),
    }
}

fn status(session: &Session, out: &mut impl Write) -> Result<(), Error> {
    let result = session.daemon()?.ask(control::Verb::Status)?;
    session.print(out, &result, |out| {
        status::write(out, session.seen.paint(), &read::<Status>(&result)?).map_err(Error::Output)
    })
}

/// As they are, for they are for programs; but a terminal is not to act on what they hold.
fn metrics(session: &Session, out: &mut impl Write) -> Result<(), Error> {
    let result = session.daemon()?.ask(control::Verb::Metrics)?;
    session.print(out, &result, |out| {
        let Metrics { text } = read(&result)?;
        let written = match session.seen.out {
            true => text
                .lines()
                .try_for_each(|line| writeln!(out, "{}", Escaped(line))),
            false => out.write_all(text.as_bytes()),
        };
        written.map_err(Error::Output)
    })
}

/// Into memory first: clap_complete panics when it cannot write.
fn completions(shell: Shell, out: &mut impl Write) -> Result<(), Error> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "fdpassctl", &mut script);
    out.write_all(&script).map_err(Error::Output)
}

/// The own version is printed whatever comes after it.
fn version(session: &Session, out: &mut impl Write) -> Result<(), Error> {
    let json = session.json;
    let own = env!("CARGO_PKG_VERSION");
    if !json {
        writeln!(out, "fdpassctl {own}").map_err(Error::Output)?;
    }
    let daemons = match session
        .daemon()
        .and_then(|mut daemon| daemon.ask(control::Verb::Version))
    {
        Ok(result) => Some(result),
        Err(rpc_client::Error::NotRunning { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    let written = match daemons {
        _ if json => {
            let daemons = daemons.as_deref().map_or("null", RawValue::get);
            writeln!(out, r#"{{"fdpassctl":"{own}","daemon":{daemons}}}"#)
        }
        Some(result) => {
            let Version { name, version, pid } = read(&result)?;
            writeln!(out, "{} {}, pid {pid}", Escaped(&name), Escaped(&version))
        }
        None => writeln!(out, "{DAEMON}: not running"),
    };
    written.map_err(Error::Output)
}

/// What the daemon said, as what it is expected to be.
fn read<'a, T: Deserialize<'a>>(result: &'a RawValue) -> Result<T, rpc_client::Error> {
    serde_json::from_str(result.get()).map_err(|e| no_reply(&e))
}

/// The effective user, as the kernel shows it on the own process. Without /proc nobody in particular,
/// for whom there are usual places too.
fn user() -> u32 {
    std::fs::metadata("/proc/self").map_or(u32::MAX, |process| process.uid())
}

const DAEMON: &str = "fdpassd";

#[cfg(test)]
mod tests;
