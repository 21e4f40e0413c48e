//! The status, for people: some lines about the daemon, then a row for each worker.
//!
//! Numbers are shortened to what an operator compares (`--json` has them in full), and the table is 80 columns
//! wide in the usual case. Memory is in MiB. What cannot be known is left blank.

use std::io::{self, Write};
use std::time::Duration;

use crate::proto::control::{ListenerStatus, Status, WorkerStatus};
use crate::proto::frame::OrderRule;
use crate::proto::text::Escaped;

/// Writes the whole status.
pub(super) fn write(to: &mut impl Write, status: &Status) -> io::Result<()> {
    write_daemon(to, status)?;
    write_listeners(to, &status.listeners)?;
    writeln!(to)?;
    write_workers(to, &status.workers)?;
    write_deaths(to, &status.workers)
}

fn write_daemon(to: &mut impl Write, status: &Status) -> io::Result<()> {
    let (name, version) = (Escaped(&status.name), Escaped(&status.version));
    let uptime = in_words(status.uptime_seconds);
    writeln!(to, "{name} {version}, pid {}, up {uptime}, generation {}", status.pid, status.generation)?;
    if status.stopping {
        writeln!(to, "STOPPING  no new clients; workers finish what they have")?;
    }
    if let Some(reason) = &status.paused {
        writeln!(to, "PAUSED    no new clients: {}", Escaped(reason))?;
    }
    match &status.config_file {
        Some(path) => writeln!(to, "config    {}", Escaped(path.display()))?,
        None => writeln!(to, "config    embedded default")?,
    }
    writeln!(to, "dispatch  {}", Escaped(&status.dispatch))?;
    writeln!(
        to,
        "clients   {} of {}; accepted {}, refused {}, moved {}, lost {}",
        grouped(status.clients),
        grouped(status.max_clients),
        grouped(status.accepted_total),
        grouped(status.refused_total),
        grouped(status.moved_total),
        grouped(status.lost_total),
    )?;
    writeln!(to, "requests  {}; errors {}", grouped(status.requests_total), grouped(status.errors_total))?;
    match status.log_errors_total {
        0 => Ok(()),
        lost => writeln!(to, "log       lines lost {}", grouped(lost)),
    }
}

fn write_listeners(to: &mut impl Write, listeners: &[ListenerStatus]) -> io::Result<()> {
    let addresses: Vec<_> = listeners.iter().map(|listener| Escaped(&listener.address).to_string()).collect();
    let width = addresses.iter().map(|address| address.chars().count()).max().unwrap_or(0);
    for (listener, address) in listeners.iter().zip(&addresses) {
        let order = match listener.byte_order {
            OrderRule::Little => "little",
            OrderRule::Big => "big",
            OrderRule::Auto => "auto",
        };
        let queue = match (listener.queue, listener.queue_max) {
            (Some(queue), Some(max)) => format!("queue {queue}/{max}"),
            _ => String::new(),
        };
        let line = format!("listener  {address:width$}  {order:6}  {queue}");
        writeln!(to, "{}", line.trim_end())?;
    }
    Ok(())
}

fn write_workers(to: &mut impl Write, workers: &[WorkerStatus]) -> io::Result<()> {
    let rows: Vec<_> = workers.iter().map(row).collect();
    let mut widths = HEADER.map(str::len);
    for row in &rows {
        widths.iter_mut().zip(row).for_each(|(width, cell)| *width = cell.chars().count().max(*width));
    }
    write_row(to, &widths, &HEADER)?;
    rows.iter().try_for_each(|row| write_row(to, &widths, row))
}

fn row(worker: &WorkerStatus) -> [String; COLUMNS] {
    [
        shown(worker.id, |id| id.to_string()),
        shown(worker.pid, |pid| pid.to_string()),
        worker.generation.to_string(),
        worker.state.as_str().to_owned(),
        short(worker.clients),
        short(worker.executing),
        short(worker.requests_total),
        shown(worker.requests_per_second, |rate| scaled(rate, &COUNTS)),
        shown(worker.p50_seconds, |seconds| scaled(seconds * 1e6, &TIMES)),
        shown(worker.p99_seconds, |seconds| scaled(seconds * 1e6, &TIMES)),
        shown(worker.uptime_seconds, in_letters),
        short(worker.restarts),
        shown(worker.rss_bytes, |bytes| format!("{:.0}M", bytes as f64 / MIB)),
    ]
}

fn write_row<T: AsRef<str>>(to: &mut impl Write, widths: &[usize; COLUMNS], cells: &[T; COLUMNS]) -> io::Result<()> {
    let mut line = String::new();
    for (column, (cell, &width)) in cells.iter().zip(widths).enumerate() {
        let cell = cell.as_ref();
        let gap = if column == 0 { "" } else { " " };
        line += &if column == STATE { format!("{gap}{cell:width$}") } else { format!("{gap}{cell:>width$}") };
    }
    writeln!(to, "{}", line.trim_end())
}

/// Why workers died, which no row has room for.
fn write_deaths(to: &mut impl Write, workers: &[WorkerStatus]) -> io::Result<()> {
    let deaths: Vec<_> = workers.iter().filter_map(|worker| Some((worker, worker.last_death.as_ref()?))).collect();
    if !deaths.is_empty() {
        writeln!(to)?;
    }
    deaths.into_iter().try_for_each(|(worker, reason)| match worker.id {
        Some(id) => writeln!(to, "last death before worker {id}: {}", Escaped(reason)),
        None => writeln!(to, "last death in seat {}: {}", worker.seat, Escaped(reason)),
    })
}

fn shown<T>(value: Option<T>, show: impl FnOnce(T) -> String) -> String {
    value.map(show).unwrap_or_default()
}

/// `1,234,567`.
fn grouped(number: u64) -> String {
    match (number / 1000, number % 1000) {
        (0, rest) => rest.to_string(),
        (thousands, rest) => format!("{},{rest:03}", grouped(thousands)),
    }
}

/// `123,456`, from a million on `1.2M`.
fn short(number: u64) -> String {
    if number < 1_000_000 { grouped(number) } else { scaled(number as f64, &COUNTS) }
}

/// Three digits at most, in the first of `units` (each a thousand of the one before) where they suffice.
fn scaled(value: f64, units: &[&str]) -> String {
    let (mut value, mut unit) = (value, 0);
    while value >= 999.5 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    let digits = if value < 9.95 && value.fract() != 0.0 { 1 } else { 0 };
    format!("{value:.digits$}{}", units[unit])
}

/// `3 days 4 hours`.
fn in_words(seconds: f64) -> String {
    let word = |(count, (name, _, _))| if count == 1 { format!("1 {name}") } else { format!("{count} {name}s") };
    parts(seconds).map(word).collect::<Vec<_>>().join(" ")
}

/// `3d4h`.
fn in_letters(seconds: f64) -> String {
    parts(seconds).map(|(count, (_, letter, _))| format!("{count}{letter}")).collect()
}

/// A duration in its largest unit and the one below, that one only when it counts something.
fn parts(seconds: f64) -> impl Iterator<Item = (u64, (&'static str, &'static str, u64))> {
    let seconds = Duration::try_from_secs_f64(seconds).unwrap_or_default().as_secs();
    let largest = UNITS.iter().position(|(_, _, length)| seconds >= *length).unwrap_or(UNITS.len() - 1);
    UNITS.into_iter().enumerate().skip(largest).take(2).filter_map(move |(at, unit)| {
        let within = if at == 0 { seconds } else { seconds % UNITS[at - 1].2 };
        let count = within / unit.2;
        (count > 0 || at == UNITS.len() - 1 && largest == at).then_some((count, unit))
    })
}

const COLUMNS: usize = 13;
const HEADER: [&str; COLUMNS] =
    ["ID", "PID", "GEN", "STATE", "CLIENTS", "EXEC", "REQUESTS", "REQ/S", "P50", "P99", "UPTIME", "RESTARTS", "RSS"];
/// The column of words, which is flush left.
const STATE: usize = 3;

const COUNTS: [&str; 6] = ["", "k", "M", "G", "T", "P"];
const TIMES: [&str; 3] = ["µs", "ms", "s"];
/// Name, letter and length in seconds.
const UNITS: [(&str, &str, u64); 4] =
    [("day", "d", 86_400), ("hour", "h", 3600), ("minute", "m", 60), ("second", "s", 1)];
const MIB: f64 = (1 << 20) as f64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ctl::tests::status;

    fn table(status: &Status) -> String {
        let mut out = Vec::new();
        write(&mut out, status).expect("a Vec takes everything");
        String::from_utf8(out).expect("UTF-8")
    }

    #[test]
    fn the_status_fits_eighty_columns() {
        let shown = table(&status());
        let expected = "\
fdpassd 0.1.0, pid 4711, up 3 days 4 hours, generation 3
config    /etc/fdpassd.toml
dispatch  least-loaded
clients   1,234 of 65,536; accepted 98,765, refused 3, moved 128, lost 1
requests  12,444,443; errors 42
listener  127.0.0.1:8080              little  queue 0/4096
listener  unix:/run/fdpassd/rpc.sock  auto

ID  PID GEN STATE    CLIENTS EXEC REQUESTS REQ/S   P50   P99 UPTIME RESTARTS RSS
 1 4712   3 ready        617    2      12M  1.2k  42µs 1.3ms   3d4h        0 12M
17 9931   2 draining     617    2   98,765   0.5 250ms   12s 12m34s        3  8M
          3 waiting        0    0        0                                 5

last death before worker 17: killed by signal 11 in method \"resize\"
last death in seat 2: exited with status 70
";
        assert_eq!(shown, expected);
        assert!(shown.lines().all(|line| line.chars().count() <= 80));
    }

    #[test]
    fn what_stops_new_clients_is_in_plain_sight_and_nothing_from_outside_acts() {
        let mut status = status();
        status.stopping = true;
        status.paused = Some("no descriptors\x1b[2J\nleft".to_owned());
        status.config_file = None;
        status.listeners[0].address = "unix:/\x1b]0;x\x07".to_owned();
        status.workers[1].last_death = Some("killed in \"\u{202e}gnip\"".to_owned());
        status.log_errors_total = 7;
        let shown = table(&status);
        for line in [
            "STOPPING  no new clients; workers finish what they have",
            r"PAUSED    no new clients: no descriptors\x1b[2J\nleft",
            "config    embedded default",
            "log       lines lost 7",
            r#"last death before worker 17: killed in "\u{202e}gnip""#,
        ] {
            assert!(shown.lines().any(|shown| shown == line), "{line:?} is not in\n{shown}");
        }
        assert!(shown.contains(r"listener  unix:/\x1b]0;x\x07"));
        assert!(!shown.chars().any(|c| c.is_control() && c != '\n'));
    }

    #[test]
    fn numbers_are_as_long_as_they_must_be() {
        let times = [0.0, 4.2, 42.4, 999.4, 999.6, 1300.0, 9960.0, 123_456.0, 1.2e6, 12e6, 1.5e9];
        let shown = times.map(|time| scaled(time, &TIMES));
        assert_eq!(shown, ["0µs", "4.2µs", "42µs", "999µs", "1.0ms", "1.3ms", "10ms", "123ms", "1.2s", "12s", "1500s"]);
        let counts = [0, 999, 1000, 999_999, 1_000_000, 12_345_678, u64::MAX];
        assert_eq!(counts.map(short), ["0", "999", "1,000", "999,999", "1M", "12M", "18447P"]);
        assert_eq!(grouped(u64::MAX), "18,446,744,073,709,551,615");
    }

    #[test]
    fn durations_have_two_units_at_most() {
        for (seconds, words, letters) in [
            (0.0, "0 seconds", "0s"),
            (-1.0, "0 seconds", "0s"),
            (1.9, "1 second", "1s"),
            (60.0, "1 minute", "1m"),
            (3661.0, "1 hour 1 minute", "1h1m"),
            (3601.0, "1 hour", "1h"),
            (86_400.0 * 3.0 + 3600.0 * 4.0, "3 days 4 hours", "3d4h"),
        ] {
            assert_eq!((in_words(seconds).as_str(), in_letters(seconds).as_str()), (words, letters));
        }
    }
}
