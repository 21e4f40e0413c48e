//! A daemon that runs.

use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::sync::Arc;
use std::time::Instant;
use std::{fs, mem, thread};

use serde::Serialize;
use serde_json::{Value, json};

use super::client::Client;
use super::config::{CONFIG, complete};
use super::directory::Directory;
use super::output::ProcessOutput;
use super::{POLL_INTERVAL, TIMEOUT, eventually};
use crate::proto::control::{Status, WorkerState, WorkerStatus};
use crate::proto::names::Address;
use crate::sys::process;
use crate::worker::Fault;

/// A running daemon. Dropping it kills its master and workers, waits for them and removes its directory.
#[derive(Debug)]
pub struct Running {
    pub(super) master: Child,
    pub(super) output: Arc<ProcessOutput>,
    pub(super) log: Arc<ProcessOutput>,
    pub(super) control: Address,
    pub(super) addresses: Vec<Address>,
    /// The last field, so that it is dropped after the processes.
    pub(super) directory: Directory,
}

impl Running {
    /// Returns the addresses of the listeners at the start, with their actual ports, in the order of the configuration.
    /// The status has those after a reload.
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

    /// Sends a verb to the control socket without waiting and returns the client that will receive the reply. Dropping
    /// the client closes its connection.
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

    /// Writes another configuration, with the defaults of [`Setup::new`](super::Setup::new). The daemon does not read it until a reload.
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
        serde_json::from_value(status).expect("the status is that of proto::control")
    }

    /// Waits until the status satisfies `is_so` and returns it. `awaited` describes the condition if it does not come
    /// true.
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
            self.log.wait(|log| log.text().contains(words)),
            "the daemon did not log {words:?}"
        );
    }

    /// Returns the daemon's own directory. Its configuration is `config.toml`.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory.0
    }

    /// Returns the directory without removing it, and kills the remaining processes.
    pub(super) fn leave_directory(mut self) -> Directory {
        mem::replace(&mut self.directory, Directory(PathBuf::new()))
    }

    pub(super) fn bound(&self) -> Vec<Address> {
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
            self.log.wait_for(POLL_INTERVAL, |log| log.ended);
        }
        if thread::panicking() {
            eprintln!("--- the daemon's standard error ---\n{}---", self.stderr());
        }
    }
}

fn is_ready(worker: &WorkerStatus) -> bool {
    worker.state == WorkerState::Ready
}
