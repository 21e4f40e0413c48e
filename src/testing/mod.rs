//! Tests of a daemon from outside: start it in its own directory, send it requests, kill its processes, stop it.
//!
//! ```no_run
//! use fdpassd::testing::Running;
//!
//! # let program = "";
//! // In a test of your package: env!("CARGO_BIN_EXE_yourd").
//! let daemon = Running::start(program, "workers.count = 2").expect("it serves");
//! let mut client = daemon.connect();
//! assert_eq!(client.call("ping", [1, 2]).expect("a result"), serde_json::json!([1, 2]));
//! daemon.kill_worker(0);
//! daemon.kill_worker(1);
//! assert_eq!(client.call("ping", "still there").expect("a result"), "still there");
//! ```
//!
//! Tests may run in parallel: two daemons share nothing. Every wait is for a fact and has a deadline, [`TIMEOUT`]; a fact
//! that does not come true panics at the caller's line. A daemon that is dropped by a panic prints its log.

mod client;
mod in_process;
mod manager;

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{env, fmt, fs, io, thread};

use serde::Serialize;
use serde_json::{Value, json};

pub use self::client::{Client, Reply, Writer};
pub use self::in_process::InProcess;
pub use self::manager::ServiceManager;
use crate::proto::control::{Status, WorkerState, WorkerStatus};
use crate::proto::names::Address;
use crate::sys::poll::{self, Interest};
use crate::sys::process::FileId;
use crate::sys::{inherited, process};
use crate::worker::Fault;

/// The deadline of every wait.
pub const TIMEOUT: Duration = Duration::from_secs(30);

/// A running daemon. Dropping it kills its master and workers, waits for them and removes its directory.
#[derive(Debug)]
pub struct Running {
    master: Child,
    output: Arc<ProcessOutput>,
    log: Arc<ProcessOutput>,
    control: Address,
    addresses: Vec<Address>,
    /// The last field, so that it is dropped after the processes.
    directory: Directory,
}

/// The settings of a daemon that has not been started.
#[derive(Debug)]
pub struct Setup {
    command: Command,
    config: String,
    handed: Vec<(String, OwnedFd)>,
}

impl Setup {
    /// Creates the settings to run `program` with this configuration.
    ///
    /// The configuration is TOML; `{dir}` in it stands for the daemon's own directory. The default of `listen` is a free port
    /// of 127.0.0.1, that of `control.socket` a path in the directory.
    pub fn new(program: impl AsRef<OsStr>, config: &str) -> Setup {
        Setup {
            command: Command::new(program),
            config: config.to_owned(),
            handed: Vec::new(),
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

    /// Passes a listening socket as systemd does, for `listen = ["systemd:NAME"]`. A copy that the test keeps outlives the
    /// daemon, as systemd's copy does.
    #[must_use]
    pub fn handed(mut self, name: &str, listener: impl Into<OwnedFd>) -> Setup {
        self.handed.push((name.to_owned(), listener.into()));
        self
    }

    /// Starts the daemon and waits until it reports on standard output that it serves.
    ///
    /// # Errors
    /// If it does not within [`TIMEOUT`]. The error has the exit code and standard error of a daemon that refused to start.
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
        if !self.handed.is_empty() {
            self.command = hand_over(&self.command, self.handed).map_err(Error::setup)?;
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
            .wait(|output| output.ended || output.text.contains(SERVES));
        if !running.output.text().contains(SERVES) {
            return Err(Error::did_not_serve(running));
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

    /// Returns the addresses of the listeners at the start, with their actual ports, in the order of the configuration. The
    /// status has those after a reload.
    #[must_use]
    pub fn addresses(&self) -> &[Address] {
        &self.addresses
    }

    /// Returns the first address.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.addresses[0]
    }

    /// Connects a new client to the first address.
    #[must_use]
    #[track_caller]
    pub fn connect(&self) -> Client {
        Client::connect(self.address())
    }

    /// Connects a client, sends one request and returns its result.
    ///
    /// # Errors
    /// The error reply.
    #[track_caller]
    pub fn call(&self, method: &str, params: impl Serialize) -> Result<Value, Fault> {
        self.connect().call(method, params)
    }

    /// Sends a verb without params to the control socket, as `fdpassctl` does, and returns the result.
    ///
    /// # Errors
    /// The error reply.
    #[track_caller]
    pub fn ctl(&self, verb: &str) -> Result<Value, Fault> {
        self.ctl_with(verb, ())
    }

    /// Sends a verb with params to the control socket and returns the result; `()` sends no params.
    ///
    /// # Errors
    /// The error reply, with code and message. [`Running::ctl_request`] gives access to its other members.
    #[track_caller]
    pub fn ctl_with(&self, verb: &str, params: impl Serialize) -> Result<Value, Fault> {
        self.ctl_request(verb, params).reply().value()
    }

    /// Sends a verb to the control socket without waiting and returns the client that will receive the reply. Dropping the
    /// client closes its connection.
    #[must_use]
    #[track_caller]
    pub fn ctl_request(&self, verb: &str, params: impl Serialize) -> Client {
        let mut request = json!({ "in": verb });
        match serde_json::to_value(params).expect("params can be written as JSON") {
            Value::Null => {}
            params => request["params"] = params,
        }
        let mut client = Client::connect(&self.control);
        client.send_frame(request.to_string());
        client
    }

    /// Writes another configuration, with the defaults of [`Setup::new`]. The daemon does not read it until a reload.
    #[track_caller]
    pub fn write_config(&self, config: &str) {
        let text = complete(config, &self.directory.0);
        fs::write(self.directory.0.join(CONFIG), text).expect("the configuration can be written");
    }

    /// Reloads the configuration file and waits for the result.
    ///
    /// # Errors
    /// The error reply.
    #[track_caller]
    pub fn reload(&self) -> Result<Value, Fault> {
        self.ctl("reload")
    }

    /// Writes another configuration and reloads it.
    ///
    /// # Errors
    /// The error reply.
    #[track_caller]
    pub fn reload_with(&self, config: &str) -> Result<Value, Fault> {
        self.write_config(config);
        self.reload()
    }

    /// Returns the status.
    #[must_use]
    #[track_caller]
    pub fn status(&self) -> Status {
        let status = self.ctl("status").expect("the status is never refused");
        serde_json::from_value(status).expect("the status is what proto::control says")
    }

    /// Waits until the status satisfies `is_so` and returns it. `awaited` describes the condition if it does not come true.
    #[track_caller]
    pub fn wait_until(&self, awaited: &str, is_so: impl Fn(&Status) -> bool) -> Status {
        eventually(awaited, || Some(self.status()).filter(&is_so))
    }

    /// Waits until all workers are ready and returns the status.
    #[track_caller]
    pub fn wait_for_workers(&self) -> Status {
        self.wait_until("all workers are ready", |status| {
            status.workers.iter().all(is_ready)
        })
    }

    /// Returns the pid of the master.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.master.id()
    }

    /// Returns the pids of the workers, in the order of their seats (indices).
    #[must_use]
    #[track_caller]
    pub fn worker_pids(&self) -> Vec<u32> {
        self.status()
            .workers
            .iter()
            .filter_map(|worker| worker.pid)
            .collect()
    }

    /// Sends the master a signal, by its name in kill(1): `TERM`.
    #[track_caller]
    pub fn signal(&self, name: &str) {
        process::send(self.pid(), name).expect("the master can be sent a signal");
    }

    /// Sends the worker with this seat (index) a signal, by its name in kill(1).
    #[track_caller]
    pub fn signal_worker(&self, seat: u32, name: &str) {
        let pid = self.worker(seat).pid.expect("the worker has a process");
        process::send(pid, name).expect("the worker can be sent a signal");
    }

    /// Kills the worker with this seat (index) by SIGKILL and waits until its successor is ready.
    #[track_caller]
    pub fn kill_worker(&self, seat: u32) {
        let WorkerStatus {
            id: killed, pid, ..
        } = self.worker(seat);
        let pid = pid.expect("the worker has a process");
        process::send(pid, "KILL").expect("the worker can be sent a signal");
        self.wait_until("the successor of the killed worker is ready", |status| {
            status
                .workers
                .iter()
                .any(|worker| worker.seat == seat && worker.id != killed && is_ready(worker))
        });
    }

    #[track_caller]
    fn worker(&self, seat: u32) -> WorkerStatus {
        let status = self.status();
        status
            .workers
            .into_iter()
            .find(|worker| worker.seat == seat)
            .expect("there is a worker in that seat")
    }

    /// Waits until the master has exited and returns its status.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        eventually("the master ends", || {
            self.master.try_wait().expect("it is our child")
        })
    }

    /// Returns everything that master and workers have written to standard error before this call.
    #[must_use]
    pub fn stderr(&self) -> String {
        self.log.text()
    }

    /// Waits until the master or a worker has written `words` to standard error.
    #[track_caller]
    pub fn wait_for_log(&self, words: &str) {
        assert!(
            self.log.wait(|log| log.text.contains(words)),
            "the daemon did not log {words:?}"
        );
    }

    /// Returns the daemon's own directory. Its configuration is `config.toml`.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory.0
    }

    /// Returns the directory without removing it, and kills the remaining processes.
    fn leave_directory(mut self) -> Directory {
        std::mem::replace(&mut self.directory, Directory(PathBuf::new()))
    }

    fn bound(&self) -> Vec<Address> {
        let parse = |address: &String| {
            address
                .parse()
                .expect("the status has addresses that can be connected to")
        };
        // A master with inherited clients serves before it has its control socket.
        if let Address::Unix(path) = &self.control {
            eventually("the control socket is there", || {
                std::os::unix::net::UnixStream::connect(path).ok().map(drop)
            });
        }
        self.status()
            .listeners
            .iter()
            .map(|listener| parse(&listener.address))
            .collect()
    }
}

impl Drop for Running {
    #[expect(
        clippy::print_stderr,
        reason = "what a test prints is shown with its failure"
    )]
    fn drop(&mut self) {
        // While the output is open, a process of the group is left, so its id has not been reused. Workers are in other
        // groups.
        if !self.log.has_ended() {
            let _ = process::kill_group(self.master.id());
        }
        let _ = self.master.wait();
        let deadline = Instant::now() + TIMEOUT;
        while !self.log.has_ended() && Instant::now() < deadline {
            let _ = process::kill_writers(self.log.pipe);
            self.log.wait_for(PACE, |log| log.ended);
        }
        if thread::panicking() {
            eprintln!("--- the daemon's standard error ---\n{}---", self.stderr());
        }
    }
}

/// The reason why a daemon does not serve.
pub struct Error {
    reason: String,
    status: Option<ExitStatus>,
    stderr: String,
}

impl Error {
    fn setup(error: io::Error) -> Error {
        Error {
            reason: format!("cannot start the daemon: {error}"),
            status: None,
            stderr: String::new(),
        }
    }

    fn did_not_serve(mut daemon: Running) -> Error {
        let status = daemon.output.has_ended().then(|| daemon.wait());
        let reason = match status {
            Some(status) => format!("the daemon ended before it served: {status}"),
            None => format!("the daemon did not say within {TIMEOUT:?} that it listens"),
        };
        let log = Arc::clone(&daemon.log);
        drop(daemon);
        Error {
            reason,
            status,
            stderr: log.text(),
        }
    }

    /// Returns the exit code of a daemon that exited.
    #[must_use]
    pub fn code(&self) -> Option<i32> {
        self.status.and_then(|status| status.code())
    }

    /// Returns what the daemon wrote to standard error.
    #[must_use]
    pub fn stderr(&self) -> &str {
        &self.stderr
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n{}", self.reason, self.stderr)
    }
}

/// The same text as `Display`, because `expect` prints this one.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Error {}

/// Calls `ask` every few milliseconds until it returns a value: for facts that cannot be waited for otherwise.
///
/// # Panics
/// If there is none within [`TIMEOUT`].
#[track_caller]
pub fn eventually<T>(awaited: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(
            Instant::now() < deadline,
            "waited {TIMEOUT:?} for this: {awaited}"
        );
        thread::park_timeout(PACE);
    }
}

/// The pause between two calls in [`eventually`].
const PACE: Duration = Duration::from_millis(2);

/// Part of the line that the daemon writes to standard output once it serves.
const SERVES: &str = " listens on ";

/// The configuration's name in the daemon's directory.
const CONFIG: &str = "config.toml";

/// The control socket's name in the daemon's directory.
const CONTROL: &str = "control.sock";

fn is_ready(worker: &WorkerStatus) -> bool {
    worker.state == WorkerState::Ready
}

/// Adds the keys that every test needs. A text that is not TOML is returned unchanged, so that the daemon rejects it.
fn complete(config: &str, directory: &Path) -> String {
    let text = config.replace("{dir}", &directory.display().to_string());
    let Ok(mut table) = text.parse::<toml::Table>() else {
        return text;
    };
    table
        .entry("listen")
        .or_insert_with(|| vec!["127.0.0.1:0"].into());
    if let toml::Value::Table(control) = table
        .entry("control")
        .or_insert_with(|| toml::Table::new().into())
    {
        control
            .entry("socket")
            .or_insert_with(|| directory.join(CONTROL).display().to_string().into());
    }
    table.to_string()
}

/// Returns a command that runs `program` with these descriptors and the variables of sd_listen_fds(3). LISTEN_PID is known
/// only in the new process, so a shell sets it and then executes the program.
fn hand_over(program: &Command, handed: Vec<(String, OwnedFd)>) -> io::Result<Command> {
    let (names, descriptors): (Vec<String>, Vec<OwnedFd>) = handed.into_iter().unzip();
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

fn control_socket(config: &str) -> Option<PathBuf> {
    config
        .parse::<toml::Table>()
        .ok()?
        .get("control")?
        .get("socket")?
        .as_str()
        .map(PathBuf::from)
}

/// A temporary directory, removed on drop.
#[derive(Debug)]
struct Directory(PathBuf);

impl Directory {
    /// Creates a directory with a short path, because paths of Unix sockets are limited to 107 bytes.
    fn new() -> io::Result<Directory> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        loop {
            let number = COUNT.fetch_add(1, Ordering::Relaxed);
            let path =
                env::temp_dir().join(format!("fdpassd-test-{}-{number}", std::process::id()));
            match fs::DirBuilder::new().mode(0o700).create(&path) {
                // A process with the same pid was killed and left it.
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                created => return created.map(|()| Directory(path)),
            }
        }
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if self.0.as_os_str().is_empty() {
            return;
        }
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The output of processes through a pipe, which a thread reads. It ends when all processes with the pipe have exited.
#[derive(Debug)]
struct ProcessOutput {
    /// The identity of the pipe.
    pipe: FileId,
    written: Mutex<WrittenOutput>,
    more: Condvar,
}

#[derive(Debug)]
struct WrittenOutput {
    source: File,
    text: String,
    ended: bool,
}

impl ProcessOutput {
    fn from_pipe(pipe: impl Into<OwnedFd>) -> Arc<ProcessOutput> {
        let source = File::from(pipe.into());
        let readable = source.try_clone().expect("there is room for a descriptor");
        let written = WrittenOutput {
            source,
            text: String::new(),
            ended: false,
        };
        let output = Arc::new(ProcessOutput {
            pipe: FileId::from_fd(&readable).expect("it is open"),
            written: Mutex::new(written),
            more: Condvar::new(),
        });
        let shared = Arc::clone(&output);
        thread::spawn(move || {
            while !shared.has_ended() {
                let _ = poll::wait_for(&readable, Interest::Read, TIMEOUT);
                shared.read();
            }
        });
        output
    }

    /// Reads what is in the pipe now, without waiting. Only one thread at a time does so, with the text locked.
    fn read(&self) {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let mut buffer = [0; 4096];
        while !written.ended
            && poll::wait_for(&written.source, Interest::Read, Duration::ZERO).unwrap_or(true)
        {
            match written.source.read(&mut buffer) {
                Ok(n @ 1..) => {
                    let text = String::from_utf8_lossy(&buffer[..n]);
                    written.text.push_str(&text);
                }
                _ => written.ended = true,
            }
        }
        drop(written);
        self.more.notify_all();
    }

    /// Waits until `is_so` is true and returns whether it is.
    fn wait(&self, is_so: impl Fn(&WrittenOutput) -> bool) -> bool {
        self.wait_for(TIMEOUT, is_so)
    }

    fn wait_for(&self, time: Duration, is_so: impl Fn(&WrittenOutput) -> bool) -> bool {
        let written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self
            .more
            .wait_timeout_while(written, time, |written| !is_so(written));
        let (written, _) = waited.unwrap_or_else(PoisonError::into_inner);
        is_so(&written)
    }

    /// Returns all that was written before this call.
    fn text(&self) -> String {
        self.read();
        self.written
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .text
            .clone()
    }

    fn has_ended(&self) -> bool {
        self.written
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .ended
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;
    use crate::proto::frame::{ByteOrder, PREFIX};

    #[test]
    fn a_configuration_gets_what_it_lacks_and_keeps_what_it_has() {
        let dir = Path::new("/d");
        let bare = "control.socket = \"/d/control.sock\"\nlisten = [\"127.0.0.1:0\"]\n";
        assert_eq!(complete("", dir).parse::<toml::Table>(), bare.parse());
        let own = "listen = [\"unix:{dir}/rpc\"]\n[control]\nsocket = \"{dir}/c\"\nmode = \"0600\"";
        assert_eq!(
            complete(own, dir).parse::<toml::Table>(),
            own.replace("{dir}", "/d").parse()
        );
        assert_eq!(
            control_socket(&complete(own, dir)),
            Some(PathBuf::from("/d/c"))
        );
        assert_eq!(complete("not TOML", dir), "not TOML");
    }

    #[test]
    fn a_program_that_ends_is_told_with_its_code_and_its_words() {
        let sh = Setup::new("sh", "")
            .argument("-c")
            .argument("echo no >&2; exit 78");
        let error = sh.start().expect_err("it does not serve");
        assert_eq!((error.code(), error.stderr()), (Some(78), "no\n"));
    }

    /// Runs a script in place of a master.
    fn played_by(script: &str, control: PathBuf, directory: Directory) -> Running {
        let mut sh = Command::new("sh");
        sh.args(["-c", script]);
        let mut master = sh
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .expect("sh");
        let output = ProcessOutput::from_pipe(master.stdout.take().expect("piped"));
        let log = ProcessOutput::from_pipe(master.stderr.take().expect("piped"));
        Running {
            master,
            output,
            log,
            control: Address::Unix(control),
            addresses: Vec::new(),
            directory,
        }
    }

    #[test]
    fn a_control_request_has_params_if_there_are_any_and_its_reply_may_come_later() {
        let directory = Directory::new().expect("a directory");
        let path = directory.0.join(CONTROL);
        let listener = UnixListener::bind(&path).expect("the path is free");
        let running = played_by("sleep 1000", path, directory);
        // The request, and the client that sent it.
        let asked = || {
            let mut asker = listener.accept().expect("it connects").0;
            let mut prefix = [0; PREFIX];
            asker.read_exact(&mut prefix).expect("a prefix");
            let mut body = vec![0; ByteOrder::Little.length(prefix) as usize];
            asker.read_exact(&mut body).expect("a body");
            (String::from_utf8(body).expect("JSON"), asker)
        };
        let answer = |mut asker: UnixStream, reply: &str| {
            asker
                .write_all(&ByteOrder::Little.prefix(reply.len() as u32))
                .expect("it is there");
            asker.write_all(reply.as_bytes()).expect("it is there");
        };

        let (mut first, mut second) = (
            running.ctl_request("a\"b", ()),
            running.ctl_request("hold", json!({"worker": 1})),
        );
        let (first_asked, first_asker) = asked();
        let (second_asked, second_asker) = asked();
        assert_eq!(first_asked, r#"{"in":"a\"b"}"#);
        assert_eq!(second_asked, r#"{"in":"hold","params":{"worker":1}}"#);
        answer(
            second_asker,
            r#"{"out":"error","result":{"code":"rejected","message":"no","place":{"line":3}}}"#,
        );
        assert!(!first.has_something());
        let refused = second.reply();
        let whole: Value = serde_json::from_str(refused.result.get()).expect("JSON");
        assert_eq!(whole["place"]["line"], 3);
        assert_eq!(refused.value().expect_err("an error").code(), "rejected");
        answer(first_asker, r#"{"out":"a","result":1}"#);
        assert_eq!(first.reply().value().expect("a result"), 1);

        // The file is complete when the reload is requested.
        let config = running.directory().join("config.toml");
        thread::scope(|threads| {
            threads.spawn(|| {
                let (request, asker) = asked();
                answer(
                    asker,
                    &json!({"out": "reload", "result": [request, fs::read_to_string(config).ok()]})
                        .to_string(),
                );
            });
            let result = running
                .reload_with("log.file = \"{dir}/log\"")
                .expect("a result");
            let text = complete("log.file = \"{dir}/log\"", running.directory());
            assert_eq!(result, json!([r#"{"in":"reload"}"#, text]));
        });
    }

    #[test]
    fn a_daemon_is_gone_with_all_its_children_when_it_is_dropped() {
        let directory = Directory::new().expect("a directory");
        let path = directory.0.clone();
        let script = "trap '' TERM; sleep 1000 & echo up; sleep 1000";
        let running = played_by(script, PathBuf::new(), directory);
        let last_words = Arc::clone(&running.output);
        assert!(running.output.wait(|output| output.text == "up\n"));
        drop(running);
        assert!(last_words.wait(|output| output.ended) && !path.exists());
    }
}
