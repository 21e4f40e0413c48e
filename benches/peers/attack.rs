//! The load by itself, against a server that is running already.

use std::io::{Write, stdout};
use std::net::SocketAddrV4;
use std::time::Duration;

use nix::unistd::Pid;

use crate::common::cpu::{self, Reading};
use crate::common::failure::{Context, Result};
use crate::common::load::{Check, Load, Order, Pace, Payload, Plan, Report};
use crate::memory;

/// The target, the payload and the pace of the load.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// The server's address: IPv4, loopback
    #[arg(long, value_name = "ADDRESS:PORT")]
    to: SocketAddrV4,

    /// Also print the CPU time of this process and its descendants
    #[arg(long, value_name = "PID")]
    pid: Option<i32>,

    /// Connections at the same time
    #[arg(long, value_name = "N", default_value_t = 16)]
    connections: usize,

    /// Requests on the way at the same time on each connection
    #[arg(long, value_name = "N", default_value_t = 1)]
    depth: usize,

    /// Requests after which a connection is closed and another opened [default: none are closed]
    #[arg(long, value_name = "N")]
    per_connection: Option<u64>,

    /// Closed loop: end after this number of requests
    #[arg(long, value_name = "N", conflicts_with = "rate")]
    requests: Option<u64>,

    /// End after this time [default: 5s, unless --requests is given]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, conflicts_with = "requests")]
    time: Option<Duration>,

    /// Open loop: requests a second, whether or not those before are answered
    #[arg(long, value_name = "N", value_parser = positive)]
    rate: Option<f64>,

    /// The params of each request
    #[arg(long, value_enum, default_value_t = Payload::Ping)]
    payload: Payload,

    /// Byte order of the prefix
    #[arg(long, value_enum, default_value_t = Order::Little)]
    order: Order,

    /// How replies are checked
    #[arg(long, value_enum, default_value_t = Check::Bytes)]
    check: Check,

    /// Closed loop for this time before anything is counted
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, default_value = "0s")]
    warm_up: Duration,

    /// Pin the load to this CPU
    #[arg(long, value_name = "N")]
    cpu: Option<usize>,
}

impl Options {
    fn plan(&self) -> Plan {
        Plan {
            to: self.to,
            connections: self.connections,
            depth: self.depth,
            per_connection: self.per_connection,
            payload: self.payload,
            method: "ping",
            order: self.order,
            check: self.check,
        }
    }

    fn pace(&self) -> Pace {
        let time = self.time.unwrap_or(Duration::from_secs(5));
        match (self.requests, self.rate) {
            (Some(requests), _) => Pace::Requests(requests),
            (None, Some(per_second)) => Pace::Rate { per_second, time },
            (None, None) => Pace::Time(time),
        }
    }
}

fn positive(text: &str) -> std::result::Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate.is_finite() && rate > 0.0 => Ok(rate),
        _ => Err("a number above zero is needed".to_owned()),
    }
}

/// Runs the load and prints the result; fails if a reply was wrong or a connection failed.
pub(crate) fn command(options: &Options) -> Result<()> {
    memory::raise_descriptor_limit()?;
    if options.cpu.is_some() {
        cpu::pin(options.cpu)?;
    }
    let pid = options.pid.map(Pid::from_raw);
    let mut load = Load::new(options.plan())?;
    if !options.warm_up.is_zero() {
        load.run(Pace::Time(options.warm_up))?;
    }
    let before = pid.map(Reading::when_idle).transpose()?;
    let report = load.run(options.pace())?;
    let spent = match (pid, before) {
        (Some(pid), Some(before)) => Some(Reading::when_idle(pid)?.since(&before)?),
        _ => None,
    };
    stdout()
        .write_all(describe(&report, spent).as_bytes())
        .context("cannot write the report")?;
    match report.first_error {
        None => Ok(()),
        Some(why) => Err(format!("{} connections failed, the first: {why}", report.errors).into()),
    }
}

fn describe(report: &Report, spent: Option<Duration>) -> String {
    let micros = |latency: Duration| format!("{:.0} us", latency.as_secs_f64() * 1e6);
    let seconds = report.elapsed.as_secs_f64();
    let mut lines = vec![
        ("requests", report.requests.to_string()),
        ("connections closed", report.connections.to_string()),
        ("connections failed", report.errors.to_string()),
        ("time", format!("{seconds:.3} s")),
        (
            "requests a second",
            format!("{:.0}", report.requests as f64 / seconds),
        ),
        ("latency p50", micros(report.latency.quantile(0.5))),
        ("latency p99", micros(report.latency.quantile(0.99))),
        ("latency max", micros(report.latency.max())),
    ];
    if let Some(spent) = spent {
        let each = |count: u64| match count {
            0 => "-".to_owned(),
            count => format!("{:.2} us", spent.as_secs_f64() * 1e6 / count as f64),
        };
        lines.push(("server CPU time", format!("{:.3} s", spent.as_secs_f64())));
        lines.push(("server CPU a request", each(report.requests)));
        lines.push(("server CPU a connection closed", each(report.connections)));
    }
    lines
        .iter()
        .map(|(what, value)| format!("{what:<31}{value}\n"))
        .collect()
}
