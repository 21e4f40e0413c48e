//! The status, for people: some lines about the daemon, then a row for each worker, and for each that has no seat any more.
//!
//! Numbers are shortened to what an operator compares (`--json` has them in full), and the table is 80 columns
//! wide in the usual case. Memory is in MiB. What cannot be known is left blank.

use std::io::{self, Write};
use std::time::{Duration, UNIX_EPOCH};
use std::{array, iter};

use crate::proto::control::{LastReload, LeavingStatus, ListenerStatus, Origin, Status, Verdict, WorkerStatus};
use crate::proto::frame::OrderRule;
use crate::proto::text::Escaped;

/// Writes the whole status.
pub(super) fn write(to: &mut impl Write, status: &Status) -> io::Result<()> {
    write_daemon(to, status)?;
    write_listeners(to, &status.listeners)?;
    writeln!(to)?;
    let rows: Vec<_> = status.workers.iter().map(row).collect();
    write_table(to, HEADER, &[STATE], &rows)?;
    if !status.leaving.is_empty() {
        writeln!(to)?;
        let rows: Vec<_> = status.leaving.iter().map(leaving_row).collect();
        write_table(to, LEAVING_HEADER, &LEAVING_WORDS, &rows)?;
    }
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
    if status.reloading {
        writeln!(to, "RELOADING workers are replaced one by one")?;
    }
    if !status.quarantined.is_empty() {
        let methods = Escaped(status.quarantined.join(", "));
        writeln!(to, "METHODS   quarantined: {methods}; lifted by \"fdpassctl release METHOD\"")?;
    }
    match &status.config_file {
        Some(path) => writeln!(to, "config    {}", Escaped(path.display()))?,
        None => writeln!(to, "config    embedded default")?,
    }
    if let Some(why) = &status.config_stale {
        writeln!(to, "STALE     the configuration of before is in force: {}", Escaped(why))?;
    }
    if let Some(reload) = &status.last_reload {
        writeln!(to, "reload    {}", Escaped(in_one_line(reload)))?;
    }
    writeln!(to, "dispatch  {}", Escaped(&status.dispatch))?;
    let origin = match status.count_origin {
        Origin::Config => "",
        Origin::Runtime => " (runtime)",
    };
    let rare = if_any(&[("stalls", status.stalls_total), ("clients given up", status.closed_for_crashes_total)]);
    writeln!(to, "workers   {}{origin}; deaths {}{rare}", status.count, grouped(status.deaths_total))?;
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
    let (requests, errors) = (grouped(status.requests_total), grouped(status.errors_total));
    writeln!(to, "requests  {requests}; errors {errors}{}", if_any(&[("run again", status.reruns_total)]))?;
    match status.log_errors_total {
        0 => Ok(()),
        lost => writeln!(to, "log       lines lost {}", grouped(lost)),
    }
}

/// Those totals that count something, each behind its name.
fn if_any(totals: &[(&str, u64)]) -> String {
    totals.iter().filter(|(_, total)| *total > 0).map(|(name, total)| format!(", {name} {}", grouped(*total))).collect()
}

/// `rejected 2026-11-24T00:16:02Z: unknown key`.
fn in_one_line(reload: &LastReload) -> String {
    let verdict = match reload.verdict {
        Verdict::Applied => "applied",
        Verdict::Rejected => "rejected",
        Verdict::RolledBack => "rolled back",
    };
    let why = reload.message.as_ref().map(|message| format!(": {message}")).unwrap_or_default();
    // humantime refuses to display a year of five digits, and to be refused so is a panic.
    let at = UNIX_EPOCH + Duration::from_secs(reload.at.min(LAST_SECOND));
    format!("{verdict} {}{why}", humantime::format_rfc3339_seconds(at))
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

/// Columns of words are flush left, those of numbers flush right.
fn write_table<const N: usize>(
    to: &mut impl Write,
    header: [&str; N],
    words: &[usize],
    rows: &[[String; N]],
) -> io::Result<()> {
    let header = header.map(str::to_owned);
    let rows = || iter::once(&header).chain(rows);
    let width = |column: usize| rows().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths: [usize; N] = array::from_fn(width);
    rows().try_for_each(|row| {
        let pad = |(column, (cell, &width)): (usize, (&String, &usize))| match words.contains(&column) {
            true => format!("{cell:width$}"),
            false => format!("{cell:>width$}"),
        };
        let cells: Vec<_> = row.iter().zip(&widths).enumerate().map(pad).collect();
        writeln!(to, "{}", cells.join(" ").trim_end())
    })
}

fn row(worker: &WorkerStatus) -> [String; 13] {
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

fn leaving_row(worker: &LeavingStatus) -> [String; 9] {
    [
        worker.id.to_string(),
        worker.pid.to_string(),
        worker.seat.to_string(),
        worker.generation.to_string(),
        worker.state.as_str().to_owned(),
        short(worker.clients),
        shown(worker.killed_in_seconds, in_letters),
        Escaped(&worker.reason).to_string(),
        Escaped(&worker.waits_for).to_string(),
    ]
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

/// `35 ms`, to stand in a sentence.
pub(super) fn spaced_time(seconds: f64) -> String {
    scaled(seconds * 1e6, &[" µs", " ms", " s"])
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

const HEADER: [&str; 13] =
    ["ID", "PID", "GEN", "STATE", "CLIENTS", "EXEC", "REQUESTS", "REQ/S", "P50", "P99", "UPTIME", "RESTARTS", "RSS"];
/// The column of words.
const STATE: usize = 3;

const LEAVING_HEADER: [&str; 9] = ["ID", "PID", "SEAT", "GEN", "STATE", "CLIENTS", "KILLED IN", "REASON", "WAITS FOR"];
const LEAVING_WORDS: [usize; 3] = [4, 7, 8];

/// The last of the year 9999, since the Unix epoch.
const LAST_SECOND: u64 = 253_402_300_799;

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
    use crate::proto::control::WorkerState;
    use crate::proto::names::{Generation, WorkerId};

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
workers   3; deaths 0
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
    fn what_has_happened_and_what_is_going_on_is_told_when_there_is_something() {
        let mut status = status();
        status.reloading = true;
        status.quarantined = vec!["resize".to_owned(), "crop".to_owned()];
        let message = Some("the byte 0xff at offset 7 is not UTF-8".to_owned());
        status.last_reload = Some(LastReload { at: 1_795_479_362, verdict: Verdict::Rejected, message });
        (status.count, status.count_origin) = (4, Origin::Runtime);
        (status.deaths_total, status.stalls_total, status.closed_for_crashes_total) = (8, 2, 1);
        status.reruns_total = 5;
        (status.workers[0].state, status.workers[1].state) = (WorkerState::Stalled, WorkerState::Ready);
        status.leaving = vec![
            LeavingStatus {
                id: WorkerId(9),
                pid: 8011,
                seat: 0,
                generation: Generation(2),
                state: WorkerState::Draining,
                reason: "reload".to_owned(),
                waits_for: "its turn in \"resize\"".to_owned(),
                killed_in_seconds: Some(25.3),
                clients: 1,
            },
            LeavingStatus {
                id: WorkerId(12),
                pid: 812_011,
                seat: 1,
                generation: Generation(3),
                state: WorkerState::Held,
                reason: "held by uid 0".to_owned(),
                waits_for: "release\x1b[2J".to_owned(),
                killed_in_seconds: None,
                clients: 0,
            },
        ];
        let shown = table(&status);
        let expected = "\
fdpassd 0.1.0, pid 4711, up 3 days 4 hours, generation 3
RELOADING workers are replaced one by one
METHODS   quarantined: resize, crop; lifted by \"fdpassctl release METHOD\"
config    /etc/fdpassd.toml
reload    rejected 2026-11-24T00:16:02Z: the byte 0xff at offset 7 is not UTF-8
dispatch  least-loaded
workers   4 (runtime); deaths 8, stalls 2, clients given up 1
clients   1,234 of 65,536; accepted 98,765, refused 3, moved 128, lost 1
requests  12,444,443; errors 42, run again 5
listener  127.0.0.1:8080              little  queue 0/4096
listener  unix:/run/fdpassd/rpc.sock  auto

ID  PID GEN STATE   CLIENTS EXEC REQUESTS REQ/S   P50   P99 UPTIME RESTARTS RSS
 1 4712   3 stalled     617    2      12M  1.2k  42µs 1.3ms   3d4h        0 12M
17 9931   2 ready       617    2   98,765   0.5 250ms   12s 12m34s        3  8M
          3 waiting       0    0        0                                 5

ID    PID SEAT GEN STATE    CLIENTS KILLED IN REASON        WAITS FOR
 9   8011    0   2 draining       1       25s reload        its turn in \"resize\"
12 812011    1   3 held           0           held by uid 0 release\\x1b[2J

last death before worker 17: killed by signal 11 in method \"resize\"
last death in seat 2: exited with status 70
";
        assert_eq!(shown, expected);
        assert!(shown.lines().all(|line| line.chars().count() <= 80));
    }

    #[test]
    fn the_end_of_a_reload_is_told_whatever_time_the_daemon_says_it_was() {
        for (at, verdict, message, shown) in [
            (0, Verdict::Applied, None, "applied 1970-01-01T00:00:00Z"),
            (u64::MAX, Verdict::RolledBack, Some("no\n"), "rolled back 9999-12-31T23:59:59Z: no\\n"),
        ] {
            let mut status = status();
            status.last_reload = Some(LastReload { at, verdict, message: message.map(str::to_owned) });
            assert!(table(&status).contains(&format!("\nreload    {shown}\n")), "{}", table(&status));
        }
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
