//! The master whose app is reloaded: by its control socket, or by a signal.

use std::io::{self, Read};
use std::path::PathBuf;
use std::time::Duration;

use super::report;
use crate::proto::control::{RefusalCode, Verb, Version, places};
use crate::rpc_client::{Deadline, Error, RpcClient};
use crate::sys::poll::{Interest, wait_for};
use crate::sys::process;

/// The longest wait for the outcome of a reload, far above `start-timeout` and `drain-timeout`.
const RELOAD_TIMEOUT: Duration = Duration::from_secs(3600);

/// The longest wait for the version of the daemon at a place. It may be another daemon, which is stopped and never replies.
const VERSION_TIMEOUT: Duration = Duration::from_secs(10);

/// After SIGHUP, this number of attempts may find no control socket. Then the reload that the signal has requested must
/// be enough.
const MAX_ATTEMPTS_WITHOUT_SOCKET: u32 = 5;

/// Result of a request for a reload.
pub(super) enum ReloadAttempt {
    /// The master has logged the outcome, or the process has reported why there is none.
    Done,
    /// SIGHUP has requested it some attempts ago, and the control socket cannot be reached yet.
    Signalled,
    /// Another one is in progress, the daemon starts, or it ends because it has failed to start. The reload must be
    /// requested again.
    Refused,
    /// The daemon has failed to start.
    Failed,
}

/// The state of the daemon's start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DaemonStart {
    /// No worker has become ready.
    Starting,
    /// A worker was ready: the daemon serves until it is stopped, and handles SIGHUP.
    Serving,
    /// No worker has become ready, and the process has become one that waits for a change.
    Failed,
}

/// The connection to the master.
pub(super) struct ReloadClient {
    /// The name of the daemon.
    name: String,
    /// The pid of the master.
    pid: u32,
    start: DaemonStart,
    /// The attempts since SIGHUP was sent that have found no control socket; `None` if the next one sends it.
    without_socket: Option<u32>,
    /// Whether it was reported that the control socket cannot be reached.
    is_reported: bool,
}

impl ReloadClient {
    pub(super) fn new(name: String, pid: u32) -> ReloadClient {
        ReloadClient {
            name,
            pid,
            start: DaemonStart::Starting,
            without_socket: None,
            is_reported: false,
        }
    }

    /// Returns whether the daemon has failed to start.
    pub(super) fn has_failed(&mut self) -> bool {
        self.read_start();
        self.start == DaemonStart::Failed
    }

    /// Requests a reload and waits for its outcome, which the master logs.
    pub(super) fn reload(&mut self) -> ReloadAttempt {
        let mut master = match self.connect() {
            Ok(master) => master,
            Err(Error::Closed | Error::Refused { .. }) => return ReloadAttempt::Refused,
            Err(error) => return self.reload_without_socket(&error),
        };
        (self.without_socket, self.is_reported) = (None, false);
        match master.ask(Verb::Reload) {
            Err(Error::NotRunning { .. } | Error::Closed) => ReloadAttempt::Refused,
            Err(Error::Refused { code, .. }) if code == RefusalCode::Busy.as_str() => {
                ReloadAttempt::Refused
            }
            Err(error) => {
                // The master logs why it refuses.
                if !matches!(error, Error::Refused { .. }) {
                    report(&format!("cannot reload: {error}"));
                }
                ReloadAttempt::Done
            }
            Ok(_) => ReloadAttempt::Done,
        }
    }

    /// Requests a reload by SIGHUP if the daemon serves. The signal is sent once for a change. If the control socket
    /// can be reached again, the reload is requested there as well, because a signal during another reload has no
    /// effect.
    fn reload_without_socket(&mut self, error: &Error) -> ReloadAttempt {
        self.read_start();
        match (self.start, self.without_socket) {
            // The socket is not bound yet, or is closed already.
            (DaemonStart::Starting, _) => return ReloadAttempt::Refused,
            (DaemonStart::Failed, _) => return ReloadAttempt::Failed,
            (DaemonStart::Serving, Some(MAX_ATTEMPTS_WITHOUT_SOCKET)) => {
                self.without_socket = None;
                return ReloadAttempt::Signalled;
            }
            (DaemonStart::Serving, Some(attempts)) => self.without_socket = Some(attempts + 1),
            (DaemonStart::Serving, None) => {
                self.without_socket = Some(0);
                if !self.is_reported {
                    self.is_reported = true;
                    let why = match error {
                        Error::NotRunning { .. } => String::new(),
                        error => format!(": {error}"),
                    };
                    report(&format!(
                        "the control socket cannot be reached{why}; reloading by SIGHUP"
                    ));
                }
                if let Err(error) = process::send(self.pid, "HUP") {
                    report(&format!("cannot send SIGHUP: {error}"));
                }
            }
        }
        ReloadAttempt::Refused
    }

    /// Reads whether the daemon serves. The master writes a byte to standard input then, and closes it in any case.
    fn read_start(&mut self) {
        let mut stdin = io::stdin();
        if self.start != DaemonStart::Starting
            || !matches!(wait_for(&stdin, Interest::Read, Duration::ZERO), Ok(true))
        {
            return;
        }
        self.start = match stdin.read(&mut [0]) {
            Ok(1) => DaemonStart::Serving,
            _ => DaemonStart::Failed,
        };
    }

    /// Connects to the control socket of the master. Another daemon may have one, too.
    ///
    /// # Errors
    /// [`Error::NotRunning`] only if no place has a daemon that may be the master.
    fn connect(&self) -> Result<RpcClient, Error> {
        let var = |name: &str| std::env::var_os(name);
        self.connect_at(&places(&self.name, process::user(), var), VERSION_TIMEOUT)
    }

    fn connect_at(&self, places: &[PathBuf], timeout: Duration) -> Result<RpcClient, Error> {
        let mut failed = None;
        for place in places {
            let place = std::slice::from_ref(place);
            let daemon = RpcClient::connect_control(&self.name, place, Deadline::new(timeout));
            let asked = daemon.and_then(|mut daemon| {
                let version = daemon.ask(Verb::Version)?;
                Ok((daemon, serde_json::from_str::<Version>(version.get())))
            });
            match asked {
                Ok((mut daemon, Ok(version))) if version.pid == self.pid => {
                    daemon.extend(Deadline::new(RELOAD_TIMEOUT));
                    return Ok(daemon);
                }
                Ok(_) => {}
                // The master's socket does not deny its own user anything: this one is another daemon's.
                Err(Error::NotRunning { .. } | Error::Forbidden(_)) => {}
                Err(error) => drop(failed.get_or_insert(error)),
            }
        }
        Err(failed.unwrap_or_else(|| Error::NotRunning {
            daemon: self.name.clone(),
            tried: places.to_vec(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixListener;
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    #[test]
    fn a_daemon_that_does_not_reply_is_not_one_that_has_failed() {
        let directory = tempfile::tempdir().expect("a directory");
        let places = [directory.path().join("none"), directory.path().join("own")];
        let master = ReloadClient::new("shop".to_owned(), 1);
        let error = master
            .connect_at(&places, VERSION_TIMEOUT)
            .expect_err("there is none");
        assert!(matches!(error, Error::NotRunning { .. }), "{error}");
        let listener = UnixListener::bind(&places[1]).expect("it is ours");
        let closing = thread::spawn(move || drop(listener.accept()));
        let error = master
            .connect_at(&places, VERSION_TIMEOUT)
            .expect_err("it closes connections");
        assert!(!matches!(error, Error::NotRunning { .. }), "{error}");
        closing.join().expect("no panic");
    }

    #[test]
    fn a_daemon_that_never_replies_delays_no_reload_for_long() {
        let directory = tempfile::tempdir().expect("a directory");
        let [stopped, own] = ["stopped", "own"].map(|name| directory.path().join(name));
        let _stopped = UnixListener::bind(&stopped).expect("it is ours");
        let listener = UnixListener::bind(&own).expect("it is ours");
        let master = thread::spawn(move || {
            let (mut client, _) = listener.accept().expect("a connection");
            let result = r#"{"out":"version","result":{"name":"shop","version":"1","pid":1}}"#;
            let length = u32::try_from(result.len()).expect("it is short");
            let reply = [&length.to_le_bytes(), result.as_bytes()].concat();
            client.write_all(&reply).expect("it is read");
        });
        let (tell, told) = mpsc::channel();
        thread::spawn(move || {
            let client = ReloadClient::new("shop".to_owned(), 1);
            tell.send(client.connect_at(&[stopped, own], Duration::from_millis(100)))
        });
        let connected = told.recv_timeout(Duration::from_secs(30));
        let connected = connected.expect("it does not wait for a stopped daemon");
        connected.expect("the master is found at the second place");
        master.join().expect("no panic");
    }
}
