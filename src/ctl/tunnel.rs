//! A tunnel to a daemon on another host: ssh(1) forwards a Unix socket to the daemon's control socket.
//!
//! The connection to the daemon is made there by a process of the user that ssh logs in as, so the kernel there reports
//! that user to the daemon.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::slice;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::error::Error;
use crate::rpc_client::{self, Deadline, RpcClient};
use crate::sys::poll::{self, Interest};
use crate::sys::process;

/// A forwarded socket, and the ssh(1) that forwards it. When it is dropped, ssh is ended.
#[derive(Debug)]
pub(super) struct Tunnel {
    ssh: Mutex<Child>,
    /// The command for an ssh before OpenSSH 8.7, until it is started.
    older: Mutex<Option<Command>>,
    /// The socket that ssh creates as soon as it has logged in.
    socket: PathBuf,
    /// The daemon's socket on its host.
    remote: PathBuf,
    /// A file with the standard error of ssh.
    messages: PathBuf,
    /// When ssh must have logged in.
    deadline: Deadline,
    is_open: AtomicBool,
}

/// The data of a tunnel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Route<'a> {
    /// The ssh program and its first arguments.
    pub(super) ssh: &'a [String],
    /// The destination for ssh.
    pub(super) host: &'a str,
    /// The control socket on that host.
    pub(super) socket: &'a Path,
    /// A directory that no other user can read.
    pub(super) directory: &'a Path,
    /// Distinguishes the files of this tunnel in the directory.
    pub(super) number: usize,
    /// How long ssh may take to log in.
    pub(super) timeout: Duration,
}

impl Tunnel {
    /// Starts ssh. It ends with the calling thread at the latest.
    ///
    /// # Errors
    /// In a sentence, that ssh cannot be started.
    pub(super) fn start(route: Route<'_>) -> Result<Tunnel, Error> {
        let socket = route.directory.join(route.number.to_string());
        let messages = socket.with_extension("err");
        let start = || -> io::Result<Child> {
            let output = File::create_new(&messages)?;
            command(route, &socket, &[NEWER_OPTION])
                .stderr(output)
                .spawn()
        };
        let program = route.ssh.first().map_or("ssh", String::as_str);
        let ssh = start().map_err(|e| Error::Unreachable(format!("cannot run {program}: {e}")))?;
        Ok(Tunnel {
            ssh: Mutex::new(ssh),
            older: Mutex::new(Some(command(route, &socket, &[]))),
            socket,
            remote: route.socket.to_owned(),
            messages,
            deadline: Deadline::new(route.timeout),
            is_open: AtomicBool::new(false),
        })
    }

    /// Connects to the daemon as soon as ssh forwards the socket.
    ///
    /// # Errors
    /// [`rpc_client::Error::Closed`] if ssh has ended, [`rpc_client::Error::Timeout`] if it has not logged in in time;
    /// [`Tunnel::explain`] adds the reason.
    pub(super) fn connect(
        &self,
        daemon: &str,
        deadline: Deadline,
    ) -> Result<RpcClient, rpc_client::Error> {
        loop {
            let place = slice::from_ref(&self.socket);
            match RpcClient::connect_control(daemon, place, deadline) {
                Err(rpc_client::Error::NotRunning { .. }) => {}
                connected => {
                    self.is_open.fetch_or(connected.is_ok(), Ordering::Relaxed);
                    return connected;
                }
            }
            if self.has_ended() && !self.start_older() {
                return Err(rpc_client::Error::Closed);
            }
            if self.deadline.left().is_err() || deadline.left().is_err() {
                return Err(self.deadline.over());
            }
            // ssh does not report when it has logged in.
            poll::pause(LOGIN_INTERVAL);
        }
    }

    /// Starts ssh again without [`NEWER_OPTION`], if that is why it has ended. Returns whether it runs now.
    fn start_older(&self) -> bool {
        let is_why = |said: String| said.to_lowercase().contains("forkafterauthentication");
        if !self.last_lines(1).is_some_and(is_why) {
            return false;
        }
        let older = self
            .older
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let started = older.and_then(|mut older| {
            let output = File::create(&self.messages).ok()?;
            older.stderr(output).spawn().ok()
        });
        started.map(|ssh| *self.lock() = ssh).is_some()
    }

    /// Replaces an error of the connection by what ssh reports: that no daemon has the socket, why ssh has ended, or why
    /// it has not logged in.
    pub(super) fn explain(&self, error: Error) -> Error {
        let Error::Connection(cause) = &error else {
            return error;
        };
        let is_open = self.is_open.load(Ordering::Relaxed);
        match (cause, self.refusal()) {
            // OpenSSH's sshd does not report the error of connect(2) to ssh.
            (rpc_client::Error::Closed, Some(reason)) => Error::NoDaemon {
                socket: self.remote.clone(),
                reason,
            },
            (rpc_client::Error::Closed, None) if self.wait_for_end(END_TIMEOUT) => {
                let said = self.last_lines(REASON_LINES);
                let said = said.unwrap_or_else(|| self.end());
                Error::Unreachable(match is_open {
                    true => format!("{cause}: {said}"),
                    false => said,
                })
            }
            (rpc_client::Error::Timeout(_), _) if !is_open => {
                let said = self.last_lines(REASON_LINES);
                let said = said.map_or_else(String::new, |said| format!(": {said}"));
                Error::Unreachable(format!("ssh has not logged in: {cause}{said}"))
            }
            _ => error,
        }
    }

    /// Returns the message by which ssh reports that the other end could not connect to the daemon's socket.
    fn refusal(&self) -> Option<String> {
        let said = self.last_lines(1)?;
        said.contains("open failed").then_some(said)
    }

    /// Waits for the end of ssh, which closes the connection a moment before. Returns whether it has ended.
    fn wait_for_end(&self, timeout: Duration) -> bool {
        let mut ssh = self.lock();
        if let Ok(None) = ssh.try_wait() {
            // Not collected, so the pid is its own.
            let _ = process::open_pidfd(ssh.id())
                .and_then(|pidfd| poll::wait_for(pidfd, Interest::Read, timeout));
        }
        !matches!(ssh.try_wait(), Ok(None))
    }

    fn has_ended(&self) -> bool {
        !matches!(self.lock().try_wait(), Ok(None))
    }

    /// Returns how ssh has ended, in a sentence.
    fn end(&self) -> String {
        match self.lock().try_wait() {
            Ok(Some(status)) => format!("ssh ended without a message: {status}"),
            Ok(None) => "ssh is running".to_owned(),
            Err(e) => format!("ssh cannot be waited for: {e}"),
        }
    }

    /// Returns the last lines of ssh's standard error that are not empty, at most `most`, in one.
    fn last_lines(&self, most: usize) -> Option<String> {
        let text = fs::read(&self.messages).ok()?;
        let text = String::from_utf8_lossy(&text);
        let lines = text.lines().map(str::trim);
        let lines: Vec<&str> = lines.filter(|line| !line.is_empty()).collect();
        let last = &lines[lines.len().saturating_sub(most)..];
        (!last.is_empty()).then(|| last.join("; "))
    }

    fn lock(&self) -> MutexGuard<'_, Child> {
        self.ssh.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Tunnel {
    /// Ends ssh by SIGTERM first, so that it ends its own proxies.
    fn drop(&mut self) {
        let ssh = self.ssh.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Ok(None) = ssh.try_wait() {
            let _ = process::send(ssh.id(), "TERM");
        }
        if !self.wait_for_end(END_TIMEOUT) {
            let mut ssh = self.lock();
            let _ = ssh.kill();
            let _ = ssh.wait();
        }
    }
}

/// Returns the command of ssh, with these options besides the usual ones. Of options that are given twice, ssh uses the
/// first: those of the user's own words. It ends with the calling thread at the latest.
fn command(route: Route<'_>, socket: &Path, more: &[&str]) -> Command {
    let words: Vec<&str> = route.ssh.iter().map(String::as_str).collect();
    let (program, arguments) = words.split_first().unwrap_or((&"ssh", &[]));
    let mut command = Command::new(program);
    command.args(arguments).args(["-N", "-T", "-n", "-x", "-a"]);
    let seconds = route.timeout.as_secs_f64().ceil();
    let login = format!("ConnectTimeout={seconds}");
    let options = OPTIONS.iter().chain(more).copied();
    for option in options.chain([login.as_str()]) {
        command.arg("-o").arg(option);
    }
    let mut forward = escaped(socket.as_os_str());
    forward.push(":");
    forward.push(escaped(route.socket.as_os_str()));
    command.arg("-L").arg(forward);
    // From here on nothing is an option, even if it begins with a dash.
    command.arg("--").arg(route.host);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    process::end_with_this_thread(&mut command);
    command
}

/// The options of ssh_config(5) besides those for forwarding. There is no terminal, and a connection of the user's own
/// is not used: the forwarding would stay in it.
const OPTIONS: [&str; 9] = [
    "BatchMode=yes",
    "ClearAllForwardings=no",
    "ControlMaster=no",
    "ControlPath=none",
    "ExitOnForwardFailure=yes",
    "LogLevel=INFO",
    "PermitLocalCommand=no",
    "ServerAliveInterval=15",
    "StreamLocalBindUnlink=yes",
];

/// Keeps ssh from going to the background, where nothing would end it, by the user's configuration. OpenSSH before 8.7
/// does not know the option, and ends at once.
const NEWER_OPTION: &str = "ForkAfterAuthentication=no";

/// Escapes a path for `-L`: a colon ends it, and `%` begins a token.
fn escaped(path: &OsStr) -> OsString {
    let escape = |byte: &u8| match byte {
        b':' | b'\\' => vec![b'\\', *byte],
        b'%' => vec![b'%', b'%'],
        byte => vec![*byte],
    };
    OsString::from_vec(path.as_bytes().iter().flat_map(escape).collect())
}

/// How many lines of ssh are shown for a host that is not reached. The last one alone is often a consequence, such as the
/// end of the connection through a jump host that is down.
const REASON_LINES: usize = 3;

/// How often it is checked whether ssh has logged in.
const LOGIN_INTERVAL: Duration = Duration::from_millis(10);

/// How long ssh may take to end after SIGTERM.
const END_TIMEOUT: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_a_forwarding_are_escaped() {
        for (path, expected) in [
            ("/run/fdpassd/control.sock", "/run/fdpassd/control.sock"),
            ("/a:b", "/a\\:b"),
            ("/a\\b", "/a\\\\b"),
            ("/100%h", "/100%%h"),
        ] {
            assert_eq!(escaped(OsStr::new(path)), expected);
        }
    }

    #[test]
    fn the_host_is_the_last_argument_and_behind_a_double_dash() {
        let route = Route {
            ssh: &["ssh".to_owned(), "-F".to_owned(), "/x".to_owned()],
            host: "admin@web1",
            socket: Path::new("/run/fdpassd/control.sock"),
            directory: Path::new("/tmp/x"),
            number: 7,
            timeout: Duration::from_millis(1500),
        };
        let command = command(route, Path::new("/tmp/x/7"), &[NEWER_OPTION]);
        let arguments: Vec<&str> = command.get_args().filter_map(OsStr::to_str).collect();
        assert_eq!(arguments[..2], ["-F", "/x"]);
        let forward = "/tmp/x/7:/run/fdpassd/control.sock";
        let last = ["-o", "ConnectTimeout=2", "-L", forward, "--", "admin@web1"];
        assert!(arguments.ends_with(&last), "{arguments:?}");
        for option in OPTIONS.iter().chain(&[NEWER_OPTION]) {
            assert!(arguments.contains(option), "{option}");
        }
    }
}
