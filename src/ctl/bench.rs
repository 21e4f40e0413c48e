//! `bench`: load on a listener. Every reply is checked.

use std::io::Write;
use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::Serialize;

use super::args::bench::{BenchArguments, PING};
use super::call::first_listener;
use super::error::Error;
use super::figures::{counted, grouped, rate, time};
use super::session::Session;
use super::table::{self, Cell, Columns};
use crate::load::{
    Framing, Load, LoadError, LoadMessage, LoadPlan, LoadReport, MIN_PARAMS, NumberedParams, Pace,
    ReplyCheck,
};
use crate::proto::frame::ByteOrder;
use crate::proto::names::Address;
use crate::proto::text::Escaped;
use crate::sys::limit;
use crate::sys::signal::set_at_interrupt;

/// Runs the load and prints the report.
pub(super) fn perform(
    arguments: &BenchArguments,
    session: &Session,
    out: &mut impl Write,
) -> Result<(), Error> {
    let plan = plan(arguments, session)?;
    make_room(arguments.connections)?;
    let stop = set_at_interrupt().map_err(|e| Error::Unable(e.to_string()))?;
    let unable = |error: LoadError| Error::Unable(error.to_string());
    let to = plan.to.clone();
    let mut load = Load::new(plan).map_err(unable)?;
    if let Some(time) = arguments.warm_up {
        let warm_up = load.run(Pace::Time(time), &stop).map_err(unable)?;
        check(&warm_up)?;
    }
    let report = load.run(arguments.pace(), &stop).map_err(unable)?;
    let bench = Bench {
        to: &to,
        arguments,
        report: &report,
        is_interrupted: stop.load(Ordering::Relaxed),
    };
    match session.json {
        true => {
            let json = serde_json::to_string(&bench.figures());
            let json = json.map_err(|e| Error::Unable(e.to_string()))?;
            writeln!(out, "{json}").map_err(Error::Output)?;
        }
        false => bench.write(session, out).map_err(Error::Output)?,
    }
    check(&report)
}

/// Fails if connections have failed.
fn check(report: &LoadReport) -> Result<(), Error> {
    match &report.first_error {
        None => Ok(()),
        Some(first) => Err(Error::LoadFailed(format!(
            "{} failed, the first: {first}",
            counted(report.errors, "connection")
        ))),
    }
}

fn plan(arguments: &BenchArguments, session: &Session) -> Result<LoadPlan, Error> {
    let (to, order) = match &arguments.to {
        Some(address) => (address.clone(), ByteOrder::Little),
        None => first_listener(session)?,
    };
    let is_remote = matches!(&to, Address::Tcp(to) if !is_loopback(to.ip()));
    if is_remote && !arguments.yes_remote {
        return Err(Error::Usage(format!(
            "{to} may be another machine: only --yes-remote puts load on it"
        )));
    }
    let framing = Framing::Frames(arguments.byte_order.unwrap_or(order));
    let message = match (&arguments.params, arguments.method.as_str()) {
        (None, PING) => {
            let size = arguments.size.map_or(MIN_PARAMS, |size| size as usize);
            LoadMessage::numbered(
                PING,
                NumberedParams::Object(size),
                framing,
                ReplyCheck::Bytes,
            )
        }
        (_, method) if arguments.size.is_some() => {
            return Err(Error::Usage(format!(
                "--size is for {PING}, not for {method}: give the params"
            )));
        }
        (params, method) => {
            let params = params.as_ref().map(|params| params.get());
            LoadMessage::fixed(method, params, framing)
        }
    };
    Ok(LoadPlan {
        to,
        connections: arguments.connections as usize,
        depth: arguments.depth as usize,
        per_connection: arguments.per_connection,
        message: message.map_err(|e| Error::Usage(e.to_string()))?,
        silence: session.timeout,
    })
}

fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

/// Raises the limit of open files, as far as this process may.
fn make_room(connections: u64) -> Result<(), Error> {
    // The standard streams, the epoll instance and what the program has opened.
    const OTHERS: u64 = 32;
    let limit = limit::raise_descriptors().map_err(|e| Error::Unable(e.to_string()))?;
    let possible = limit.saturating_sub(OTHERS);
    if connections > possible {
        return Err(Error::Usage(format!(
            "{} need more open files than the limit, {} (ulimit -n -H)",
            counted(connections, "connection"),
            grouped(limit)
        )));
    }
    Ok(())
}

/// A load and its result.
struct Bench<'a> {
    to: &'a Address,
    arguments: &'a BenchArguments,
    report: &'a LoadReport,
    is_interrupted: bool,
}

/// The report of `--json`. Times are in seconds.
#[derive(Debug, Serialize)]
struct BenchFigures<'a> {
    to: String,
    method: &'a str,
    connections: u64,
    depth: u64,
    per_connection: Option<u64>,
    rate: Option<f64>,
    seconds: f64,
    requests: u64,
    requests_per_second: f64,
    connections_closed: u64,
    connections_failed: u64,
    first_error: Option<&'a str>,
    interrupted: bool,
    latency: LatencyFigures,
    histogram: Vec<HistogramRow>,
}

#[derive(Debug, Serialize)]
struct LatencyFigures {
    mean: f64,
    p50: f64,
    p90: f64,
    p99: f64,
    #[serde(rename = "p99.9")]
    p999: f64,
    max: f64,
}

/// Requests with a latency below this one and not below that of the row before.
#[derive(Debug, Serialize)]
struct HistogramRow {
    below: f64,
    requests: u64,
}

impl Bench<'_> {
    fn per_second(&self) -> f64 {
        let seconds = self.report.elapsed.as_secs_f64();
        self.report.requests as f64 / seconds.max(f64::MIN_POSITIVE)
    }

    fn latency(&self) -> LatencyFigures {
        let latencies = &self.report.latencies;
        let part = |part| latencies.quantile(part).as_secs_f64();
        LatencyFigures {
            mean: latencies.mean().as_secs_f64(),
            p50: part(0.5),
            p90: part(0.9),
            p99: part(0.99),
            p999: part(0.999),
            max: latencies.max().as_secs_f64(),
        }
    }

    fn figures(&self) -> BenchFigures<'_> {
        let (arguments, report) = (self.arguments, self.report);
        let row = |(below, requests): (Duration, u64)| HistogramRow {
            below: below.as_secs_f64(),
            requests,
        };
        BenchFigures {
            to: self.to.to_string(),
            method: &arguments.method,
            connections: arguments.connections,
            depth: arguments.depth,
            per_connection: arguments.per_connection,
            rate: arguments.rate,
            seconds: report.elapsed.as_secs_f64(),
            requests: report.requests,
            requests_per_second: self.per_second(),
            connections_closed: report.connections,
            connections_failed: report.errors,
            first_error: report.first_error.as_deref(),
            interrupted: self.is_interrupted,
            latency: self.latency(),
            histogram: report.latencies.doublings().into_iter().map(row).collect(),
        }
    }

    /// Writes the report for people.
    fn write(&self, session: &Session, out: &mut impl Write) -> std::io::Result<()> {
        let (arguments, report) = (self.arguments, self.report);
        let pace = match arguments.rate {
            Some(per_second) => format!("{} due a second", rate(per_second)),
            None => format!("depth {}", arguments.depth),
        };
        let short = match arguments.per_connection {
            Some(requests) => format!(", {} each", counted(requests, "request")),
            None => String::new(),
        };
        let interrupted = match self.is_interrupted {
            true => ", interrupted",
            false => "",
        };
        writeln!(
            out,
            "{} on {}: {}{short}, {pace}\n{} in {}{interrupted}: {} a second",
            Escaped(&arguments.method),
            Escaped(self.to),
            counted(arguments.connections, "connection"),
            counted(report.requests, "request"),
            time(report.elapsed.as_secs_f64()),
            rate(self.per_second()),
        )?;
        if report.requests == 0 {
            return Ok(());
        }
        let latency = self.latency();
        writeln!(
            out,
            "latency: mean {}, p50 {}, p90 {}, p99 {}, p99.9 {}, max {}\n",
            time(latency.mean),
            time(latency.p50),
            time(latency.p90),
            time(latency.p99),
            time(latency.p999),
            time(latency.max),
        )?;
        self.write_histogram(session, out)
    }

    fn write_histogram(&self, session: &Session, out: &mut impl Write) -> std::io::Result<()> {
        let doublings = self.report.latencies.doublings();
        let most = doublings.iter().map(|(_, count)| *count).max();
        let Some(most) = most else { return Ok(()) };
        let all = self.report.requests.max(1) as f64;
        let row = |(below, count): &(Duration, u64)| {
            let bar = (*count as f64 / most as f64 * BAR as f64).round() as usize;
            [
                Cell::from(time(below.as_secs_f64())),
                Cell::from(grouped(*count)),
                Cell::from(format!("{:.1} %", *count as f64 * 100.0 / all)),
                Cell::from("#".repeat(bar)),
            ]
        };
        let rows: Vec<[Cell; 4]> = doublings.iter().map(row).collect();
        let columns = Columns {
            header: ["BELOW", "REQUESTS", "PART", ""],
            words: &[3],
            gives_way: &[],
            goes: &[],
            optional: None,
        };
        table::write(out, session.seen.paint(), columns, &rows)
    }
}

/// The width of the longest bar of the histogram, in columns.
const BAR: usize = 40;
