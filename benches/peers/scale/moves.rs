//! Events in which clients move, and how long others wait then.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use fdpassd::proto::names::Address;
use serde_json::json;

use super::daemon::Daemon;
use super::median;
use super::probe::{Probes, Wait};
use crate::common::failure::{Context, Result};

/// An event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Event {
    /// A reload.
    Reload,
    /// The death of one worker by SIGKILL.
    Kill,
    /// An upgrade to the same program.
    Upgrade,
    /// SIGTERM to the master, and the next one.
    Restart,
}

impl Event {
    pub(crate) const ALL: [Event; 4] = [Event::Reload, Event::Kill, Event::Upgrade, Event::Restart];

    pub(crate) fn title(self) -> &'static str {
        match self {
            Event::Reload => "reload",
            Event::Kill => "a worker killed",
            Event::Upgrade => "upgrade",
            Event::Restart => "restart",
        }
    }
}

/// The costs of an event.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moved {
    took: Duration,
    /// The CPU time of all processes of the daemon.
    used: Option<Duration>,
    waits: [Wait; 2],
}

/// A client that measures its longest wait.
#[derive(Clone, Copy, Debug)]
pub(super) enum Client {
    /// One that always asks on the same connection.
    Busy,
    /// One that makes a new connection for each request.
    New,
}

impl Client {
    pub(super) fn title(self) -> &'static str {
        match self {
            Client::Busy => "busy client",
            Client::New => "new client",
        }
    }
}

impl Moved {
    /// Returns the longest wait of a client, in milliseconds.
    pub(super) fn wait(&self, client: Client) -> f64 {
        let wait = match client {
            Client::Busy => self.waits[0],
            Client::New => self.waits[1],
        };
        wait.time.as_secs_f64() * 1e3
    }
}

pub(crate) fn head() -> Vec<String> {
    [
        "event",
        "took, ms",
        "CPU, ms",
        "busy client, ms",
        "new client, ms",
        "busy client, ms of CPU",
        "new client, ms of CPU",
    ]
    .map(str::to_owned)
    .to_vec()
}

/// Returns the cells of a row: medians.
pub(crate) fn cells(figures: &[Moved]) -> Result<Vec<String>> {
    let millis = |value: Duration| value.as_secs_f64() * 1e3;
    let of = |value: &dyn Fn(&Moved) -> Option<Duration>| {
        median(figures.iter().map(|moved| value(moved).map(millis)), 1)
    };
    Ok(vec![
        of(&|moved| Some(moved.took)),
        of(&|moved| moved.used),
        of(&|moved| Some(moved.waits[0].time)),
        of(&|moved| Some(moved.waits[1].time)),
        of(&|moved| moved.waits[0].used),
        of(&|moved| moved.waits[1].used),
    ])
}

/// Measures one event. Returns the daemon, which may be another process now.
pub(crate) fn measure(daemon: Daemon, event: Event) -> Result<(Daemon, Moved)> {
    let Address::Tcp(address) = daemon.running.address() else {
        return Err("the daemon does not listen on TCP".into());
    };
    let address: SocketAddr = address.to_string().parse().context("the address")?;
    let before = daemon.running.worker_pids();
    let clock = daemon.clock();
    let used = || clock.as_ref().and_then(|clock| clock.now());
    let probes = Probes::start(address, clock.clone())?;
    // Some exchanges before, so that what is new is only the event.
    std::thread::sleep(Duration::from_millis(20));
    let (begin, begin_used) = (Instant::now(), used());
    let mut daemon = daemon;
    match event {
        Event::Reload => drop(daemon.running.reload().context("the reload")?),
        Event::Kill => daemon.running.signal_worker(0, "KILL"),
        Event::Upgrade => {
            let mut request = daemon.running.ctl_request("upgrade", json!({}));
            request.reply().value().context("the upgrade")?;
        }
        Event::Restart => daemon = daemon.restart()?,
    }
    let replaced = match event {
        Event::Kill => &before[..1],
        _ => &before[..],
    };
    let took = begin.elapsed();
    daemon.settle(replaced)?;
    let used = used()
        .zip(begin_used)
        .map(|(now, begin)| now.saturating_sub(begin));
    let waits = probes.stop()?;
    Ok((daemon, Moved { took, used, waits }))
}
