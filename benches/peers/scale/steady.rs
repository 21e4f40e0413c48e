//! The costs of the daemon without an event.

use std::fs;
use std::time::Duration;

use super::daemon::Daemon;
use super::median;
use crate::common::cpu::Reading;
use crate::common::failure::{Context, Result};
use crate::common::load::{Check, LITTLE, Load, Pace, Payload, Plan};
use crate::common::window::faultless;
use fdpassd::proto::names::Address;

/// Clients that connect at the same time.
const AT_ONCE: usize = 250;

/// Short connections that exist at a time.
const PARALLEL: usize = 16;

/// Requests of each kind to the control socket.
const LOOKS: u32 = 20;

/// The costs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Steady {
    /// CPU time of the master for each short connection, and of all processes.
    master: Duration,
    all: Duration,
    /// CPU time of the master for each look.
    status: Duration,
    metrics: Duration,
    /// Memory of the master for each idle client, in bytes.
    bytes: f64,
}

impl Steady {
    /// Returns the CPU time of the master for each short connection, in seconds.
    pub(super) fn master(&self) -> f64 {
        self.master.as_secs_f64()
    }
}

pub(crate) fn head() -> Vec<String> {
    [
        "case",
        "connection: master, us",
        "all, us",
        "status, ms",
        "metrics, ms",
        "master, bytes a client",
    ]
    .map(str::to_owned)
    .to_vec()
}

/// Returns the cells of a row: medians.
pub(crate) fn cells(figures: &[Steady]) -> Result<Vec<String>> {
    let of = |value: &dyn Fn(&Steady) -> f64, digits| {
        median(figures.iter().map(|steady| Some(value(steady))), digits)
    };
    Ok(vec![
        of(&|steady| steady.master.as_secs_f64() * 1e6, 1),
        of(&|steady| steady.all.as_secs_f64() * 1e6, 1),
        of(&|steady| steady.status.as_secs_f64() * 1e3, 2),
        of(&|steady| steady.metrics.as_secs_f64() * 1e3, 2),
        of(&|steady| steady.bytes, 0),
    ])
}

/// Connects the idle clients and measures, with this number of short connections. The clients leave when the loads are
/// dropped.
pub(crate) fn measure(
    daemon: &Daemon,
    clients: usize,
    connections: u64,
) -> Result<(Steady, Vec<Load>)> {
    let Address::Tcp(address) = daemon.running.address() else {
        return Err("the daemon does not listen on TCP".into());
    };
    let plan = Plan {
        to: address.to_string().parse().context("the address")?,
        connections: AT_ONCE,
        depth: 1,
        per_connection: None,
        payload: Payload::Ping,
        method: "ping",
        framing: LITTLE,
        check: Check::Bytes,
    };
    let half = clients / 2;
    let mut idle = connect(plan, half)?;
    let before = private(daemon)?;
    idle.extend(connect(plan, clients - half)?);
    let bytes = (private(daemon)? - before) / (clients - half) as f64;
    let mut load = Load::new(Plan {
        connections: PARALLEL,
        per_connection: Some(1),
        ..plan
    })?;
    faultless(load.run(Pace::Requests(connections / 10))?)?;
    let before = (Reading::when_idle(daemon.pid())?, daemon.master_time()?);
    faultless(load.run(Pace::Requests(connections))?)?;
    let all = Reading::when_idle(daemon.pid())?.since(&before.0)?;
    let master = daemon.master_time()? - before.1;
    let each = |time: Duration| time.div_f64(connections as f64);
    let look = |verb: &str| -> Result<Duration> {
        let before = daemon.master_time()?;
        for _ in 0..LOOKS {
            daemon.running.ctl(verb).context(verb)?;
        }
        Ok((daemon.master_time()? - before) / LOOKS)
    };
    let steady = Steady {
        master: each(master),
        all: each(all),
        status: look("status")?,
        metrics: look("metrics")?,
        bytes,
    };
    Ok((steady, idle))
}

/// Connects clients, each of which asks once.
fn connect(plan: Plan, clients: usize) -> Result<Vec<Load>> {
    let mut loads = Vec::new();
    let mut left = clients;
    while left > 0 {
        let connections = left.min(AT_ONCE);
        let mut load = Load::new(Plan {
            connections,
            ..plan
        })?;
        faultless(load.run(Pace::Requests(connections as u64))?)?;
        loads.push(load);
        left -= connections;
    }
    Ok(loads)
}

/// Returns the memory that only the master uses, in bytes.
fn private(daemon: &Daemon) -> Result<f64> {
    let path = format!("/proc/{}/smaps_rollup", daemon.pid());
    let text = fs::read_to_string(&path).context(&path)?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("Anonymous:"));
    let line = line.context("the memory of the master is not shown")?;
    let kib: f64 = line
        .trim_end_matches("kB")
        .trim()
        .parse()
        .context("the memory of the master")?;
    Ok(kib * 1024.0)
}
