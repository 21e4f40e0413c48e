//! The settings of a daemon, and its start.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::{fs, io};

use super::TIMEOUT;
use super::config::{CONFIG, CONTROL, complete, control_socket};
use super::directory::Directory;
use super::error::Error;
use super::output::ProcessOutput;
use super::running::Running;
use super::stored::StoredCopies;
use crate::proto::names::Address;
use crate::sys::inherited;

/// Part of the line that the daemon writes to standard output once it serves.
const SERVES: &str = " listens on ";

/// The settings of a daemon that has not been started.
#[derive(Debug)]
pub struct Setup {
    command: Command,
    config: String,
    activated: Vec<(String, OwnedFd)>,
    stored: Option<StoredCopies>,
}

impl Setup {
    /// Creates the settings to run `program` with this configuration.
    ///
    /// The configuration is TOML; `{dir}` in it stands for the daemon's own directory. The default of `listen` is a
    /// free port of 127.0.0.1, that of `control.socket` a path in the directory.
    pub fn new(program: impl AsRef<OsStr>, config: &str) -> Setup {
        Setup {
            command: Command::new(program),
            config: config.to_owned(),
            activated: Vec::new(),
            stored: None,
        }
    }

    /// Adds an argument before `-c FILE`.
    #[must_use]
    pub fn argument(mut self, argument: impl AsRef<OsStr>) -> Setup {
        self.command.arg(argument);
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn variable(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Setup {
        self.command.env(name, value);
        self
    }

    /// Passes a listening socket as systemd does, for `listen = ["systemd:NAME"]`. A copy that the test keeps outlives
    /// the daemon, as systemd's copy does.
    #[must_use]
    pub fn activated(mut self, name: &str, listener: impl Into<OwnedFd>) -> Setup {
        self.activated.push((name.to_owned(), listener.into()));
        self
    }

    /// Passes copies of what a service manager has stored when the daemon starts.
    pub(super) fn stored(mut self, stored: StoredCopies) -> Setup {
        self.stored = Some(stored);
        self
    }

    /// Starts the daemon and waits until it reports on standard output that it serves.
    ///
    /// # Errors
    /// If it does not within [`TIMEOUT`](crate::testing::TIMEOUT). The error has the exit code and standard error of a
    /// daemon that refused to start.
    pub fn start(self) -> Result<Running, Error> {
        self.start_in(Directory::new().map_err(Error::setup)?)
    }

    /// Starts the daemon as the successor of one whose master was stopped or killed: in the same directory, with the
    /// configuration file there. First waits until all processes of the previous daemon have exited.
    ///
    /// # Errors
    /// As [`Setup::start`].
    #[track_caller]
    pub fn start_after(mut self, mut before: Running) -> Result<Running, Error> {
        before.wait();
        // The workers have exited as well then.
        before.log.wait(|log| log.ended);
        self.config = fs::read_to_string(before.directory().join(CONFIG)).map_err(Error::setup)?;
        self.start_in(before.leave_directory())
    }

    fn start_in(mut self, directory: Directory) -> Result<Running, Error> {
        let config = complete(&self.config, &directory.0);
        let control = control_socket(&config).unwrap_or_else(|| directory.0.join(CONTROL));
        let file = directory.0.join(CONFIG);
        fs::write(&file, config).map_err(Error::setup)?;
        self.command.arg("-c").arg(file);
        let stored = self
            .stored
            .map_or_else(|| Ok(Vec::new()), |stored| stored.take());
        let mut passed = stored.map_err(Error::setup)?;
        passed.extend(self.activated);
        if !passed.is_empty() {
            self.command = with_descriptors(&self.command, passed).map_err(Error::setup)?;
        }
        self.command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        let mut master = self.command.spawn().map_err(Error::setup)?;
        let output = ProcessOutput::from_pipe(master.stdout.take().expect("it is piped"));
        let log = ProcessOutput::from_pipe(master.stderr.take().expect("it is piped"));
        let control = Address::Unix(control);
        let mut running = Running {
            master,
            output,
            log,
            control,
            addresses: Vec::new(),
            directory,
        };

        running
            .output
            .wait(|output| output.ended || output.text().contains(SERVES));
        if !running.output.text().contains(SERVES) {
            return Err(did_not_serve(running));
        }
        running.addresses = running.bound();
        Ok(running)
    }
}

impl Running {
    /// Starts `program` with this configuration, which [`Setup::new`] describes. [`Setup`] has more settings.
    ///
    /// # Errors
    /// As [`Setup::start`].
    pub fn start(program: impl AsRef<OsStr>, config: &str) -> Result<Running, Error> {
        Setup::new(program, config).start()
    }
}

/// Returns the error of a daemon that has not reported in time that it serves, or has ended.
fn did_not_serve(mut daemon: Running) -> Error {
    let status = daemon.output.has_ended().then(|| daemon.wait());
    let reason = match status {
        Some(status) => format!("the daemon ended before it served: {status}"),
        None => format!("the daemon did not report within {TIMEOUT:?} that it listens"),
    };
    let log = Arc::clone(&daemon.log);
    drop(daemon);
    Error {
        reason,
        status,
        stderr: log.text(),
    }
}

/// Returns a command that runs `program` with these descriptors and the variables of sd_listen_fds(3). LISTEN_PID is
/// known only in the new process, so a shell sets it and then executes the program.
fn with_descriptors(program: &Command, passed: Vec<(String, OwnedFd)>) -> io::Result<Command> {
    let (names, descriptors): (Vec<String>, Vec<OwnedFd>) = passed.into_iter().unzip();
    let mut command = Command::new("sh");
    command.args(["-c", "LISTEN_PID=$$; export LISTEN_PID; exec \"$0\" \"$@\""]);
    command.arg(program.get_program()).args(program.get_args());
    command.envs(
        program
            .get_envs()
            .filter_map(|(key, value)| Some((key, value?))),
    );
    command
        .env("LISTEN_FDS", descriptors.len().to_string())
        .env("LISTEN_FDNAMES", names.join(":"));
    inherited::leave(&mut command, &descriptors)?;
    Ok(command)
}
