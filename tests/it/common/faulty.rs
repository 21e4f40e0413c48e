//! `examples/faulty.rs`: a daemon whose methods do all that a method should not.
//!
//! Cargo builds examples for all tests together; for one test alone build it before: `cargo build --examples`.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use fdpassd::proto::control::Status;
use fdpassd::testing::{Client, Error, Running, Setup};
use serde::Deserialize;
use tempfile::TempDir;

use super::FDPASSD;
use super::fifo::Fifo;

/// An example's program.
pub fn example(name: &str) -> PathBuf {
    let program = Path::new(FDPASSD).with_file_name("examples").join(name);
    assert!(
        program.exists(),
        "{} is not built: cargo build --examples",
        program.display()
    );
    program
}

/// Starts the faulty daemon, whose methods cause faults.
#[track_caller]
pub fn start(config: &str) -> Running {
    Running::start(example("faulty"), config).expect("the daemon serves")
}

/// Starts it with a fault from the beginning.
pub fn start_with(fault: impl AsRef<OsStr>, config: &str) -> Result<Running, Error> {
    Setup::new(example("faulty"), config)
        .variable("FAULTY", fault)
        .start()
}

/// A fault of workers that start from now on; existing workers stay as they are.
#[derive(Debug)]
pub struct Switch(TempDir);

impl Switch {
    fn path(&self) -> PathBuf {
        self.0.path().join("fault")
    }

    /// Returns whether there is a fault.
    pub fn is_set(&self) -> bool {
        self.path().exists()
    }

    /// Sets a fault, or none if it is empty. A concurrent reader finds the old one or the new one.
    pub fn set(&self, fault: &str) {
        let new = self.0.path().join("new");
        fs::write(&new, fault).expect("it is our directory");
        fs::rename(new, self.path()).expect("it is our directory");
    }
}

/// Starts it without a fault, and with a switch.
#[track_caller]
pub fn start_with_switch(config: &str) -> (Running, Switch) {
    let switch = Switch(tempfile::tempdir().expect("a directory"));
    let fault = format!("file:{}", switch.path().display());
    (
        start_with(fault, config).expect("the daemon serves"),
        switch,
    )
}

/// Starts it with a switch for the reason why its workers are unhealthy.
pub fn start_with_health(config: &str) -> (Running, Switch) {
    start_health(Setup::new(example("faulty"), config))
}

/// As [`start_with_health`], without a method of its own.
pub fn start_without_methods(config: &str) -> (Running, Switch) {
    start_health(Setup::new(example("faulty"), config).variable("FAULTY", "no-methods"))
}

fn start_health(setup: Setup) -> (Running, Switch) {
    let switch = Switch(tempfile::tempdir().expect("a directory"));
    let daemon = setup.variable("FAULTY_HEALTH", switch.path());
    (daemon.start().expect("the daemon serves"), switch)
}

/// The worker that served a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct Server {
    pub worker: u64,
    pub seat: u32,
    pub pid: u32,
    /// Such questions since its state was made.
    pub calls: u64,
    /// The client that asked.
    pub client: u64,
}

/// Asks who serves this client.
#[track_caller]
pub fn whoami(client: &mut Client) -> Server {
    client.request("whoami", ());
    server(client)
}

/// Waits for the reply to such a question.
#[track_caller]
pub fn server(client: &mut Client) -> Server {
    let value = client.reply().value().expect("whoami does not fail");
    serde_json::from_value(value).expect("whoami says all this")
}

/// A request that is executed for as long as the test wants.
#[derive(Debug)]
pub struct Execution {
    client: Client,
    fifo: Fifo,
}

impl Execution {
    /// Returns when it is being executed.
    #[track_caller]
    pub fn start(daemon: &Running) -> Execution {
        Execution::start_by(daemon, daemon.connect())
    }

    /// The same, by this client.
    #[track_caller]
    pub fn start_by(daemon: &Running, client: Client) -> Execution {
        Execution::start_method(daemon, client, "read_line")
    }

    /// The same, of a method that reads a line first.
    #[track_caller]
    pub fn start_method(daemon: &Running, mut client: Client, method: &str) -> Execution {
        let fifo = Fifo::new(daemon.directory());
        let executing = |status: &Status| {
            status
                .workers
                .iter()
                .map(|worker| worker.executing)
                .sum::<u64>()
        };
        let before = executing(&daemon.status());
        client.request(method, fifo.path());
        daemon.wait_until("the request is being executed", |status| {
            executing(status) > before
        });
        Execution { client, fifo }
    }

    /// Lets it finish; returns its client, which got the result.
    #[must_use = "a client that is dropped disconnects, which may change what the daemon counts"]
    #[track_caller]
    pub fn finish(mut self) -> Client {
        self.let_go();
        assert_eq!(self.client.reply().value().expect("a result"), "done\n");
        self.client
    }

    /// Lets it finish, without a wait for that.
    pub fn let_go(&mut self) {
        self.fifo.let_go();
    }

    /// The client hangs up while it is executed. Returns what lets it finish.
    #[must_use = "it is executed until this is called"]
    pub fn hang_up(self) -> impl FnOnce() {
        let Execution { client, mut fifo } = self;
        drop(client);
        move || fifo.let_go()
    }

    /// The client that waits, while it is executed.
    pub fn client_mut(&mut self) -> &mut Client {
        &mut self.client
    }

    /// The client that waits.
    pub fn into_client(self) -> Client {
        self.client
    }
}
