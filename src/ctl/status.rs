//! `status`: lines about the daemon, a row for each worker, and a row for each worker that has lost its seat.
//!
//! Numbers are shortened (`--json` has them in full), and the tables usually fit 80 columns. Memory is in MiB.
//! Unknown values are blank.

use std::io::{self, Write};

use super::error::Error;
use super::figures::{grouped, in_letters, in_words, instant};
use super::fold;
use super::session::{Session, parse};
use super::style::{BAD, GOOD, Paint};
use super::table::{self, shortened};
use crate::proto::control::{
    LastReload, ListenerStatus, Origin, Skew, Status, Verb, Verdict, WorkerStatus,
};
use crate::proto::frame::OrderRule;
use crate::proto::proxy::ProxyVersion;
use crate::proto::text::Escaped;

mod notices;
mod tables;
mod watch;

use tables::{APPS, LEAVING, RUNTIMES, WORKERS, app_row, leaving_row, runtime_row, worker_row};

pub(super) use notices::{Notice, notices};
pub(super) use watch::watch;

/// Prints the status.
pub(super) fn show(session: &Session, out: &mut impl Write) -> Result<(), Error> {
    let result = session.connect()?.ask(Verb::Status)?;
    session.print(out, &result, |out| {
        write(out, session.seen.paint(), &parse(&result)?).map_err(Error::Output)
    })
}

fn write(to: &mut impl Write, paint: Paint, status: &Status) -> io::Result<()> {
    write_folded(to, paint, |to| {
        write_state(to, paint, status)?;
        write_config(to, paint, status)?;
        write_totals(to, paint, status)?;
        write_listeners(to, paint, &status.listeners)
    })?;
    writeln!(to)?;
    let rows: Vec<_> = status.workers.iter().map(worker_row).collect();
    // No column has words from outside, which a program could look for.
    table::write(to, paint.with_usual_width(), WORKERS, &rows)?;
    let apps: Vec<_> = status.workers.iter().filter_map(app_row).collect();
    if !apps.is_empty() {
        writeln!(to)?;
        table::write(to, paint, APPS, &apps)?;
    }
    let runtimes: Vec<_> = status.workers.iter().filter_map(runtime_row).collect();
    if !runtimes.is_empty() {
        writeln!(to)?;
        table::write(to, paint, RUNTIMES, &runtimes)?;
    }
    if !status.leaving.is_empty() {
        writeln!(to)?;
        let rows: Vec<_> = status.leaving.iter().map(leaving_row).collect();
        table::write(to, paint, LEAVING, &rows)?;
    }
    write_folded(to, paint, |to| write_reasons(to, &status.workers))
}

/// Writes lines, each continued in column 11 if it is longer than the terminal is wide.
fn write_folded(
    to: &mut impl Write,
    paint: Paint,
    lines: impl FnOnce(&mut Vec<u8>) -> io::Result<()>,
) -> io::Result<()> {
    let mut text = Vec::new();
    lines(&mut text)?;
    fold::write(to, paint.width(), INDENT, &String::from_utf8_lossy(&text))
}

/// Writes which daemon it is, and what it does at the moment.
fn write_state(to: &mut impl Write, paint: Paint, status: &Status) -> io::Result<()> {
    let (name, version) = (Escaped(&status.name), Escaped(&status.version));
    let uptime = in_words(status.uptime_seconds);
    writeln!(
        to,
        "{name} {version}, pid {}, up {uptime}, generation {}",
        status.pid, status.generation
    )?;
    notices::of_state(status)
        .iter()
        .try_for_each(|notice| write_notice(to, paint, notice))
}

/// Returns the words for the rest of the period over which clients get a goaway.
pub(super) fn within(left: f64) -> String {
    match left > 0.0 {
        true => format!(" within {}", in_letters(left.ceil())),
        false => String::new(),
    }
}

/// Writes the configuration file, and what differs from it.
fn write_config(to: &mut impl Write, paint: Paint, status: &Status) -> io::Result<()> {
    match &status.config_file {
        Some(path) => writeln!(to, "config    {}", Escaped(path.display()))?,
        None => writeln!(to, "config    embedded default")?,
    }
    notices::of_config(status)
        .iter()
        .try_for_each(|notice| write_notice(to, paint, notice))?;
    status
        .last_reload
        .as_ref()
        .map_or(Ok(()), |reload| write_reload(to, paint, reload))
}

/// Writes a word in capitals, and a text beginning in column 11.
fn write_notice(to: &mut impl Write, paint: Paint, notice: &Notice) -> io::Result<()> {
    let padding = INDENT - notice.word.len();
    let word = paint.on(notice.style, notice.word);
    writeln!(to, "{word}{:padding$}{}", "", Escaped(&notice.text))
}

/// Writes how workers are made, if not as usual.
fn write_start(to: &mut impl Write, status: &Status) -> io::Result<()> {
    match (status.start.as_str(), status.zygote) {
        ("" | "exec", _) => Ok(()),
        (start, Some(pid)) => writeln!(to, "start     {}, zygote {pid}", Escaped(start)),
        (start, None) => writeln!(to, "start     {}, no zygote", Escaped(start)),
    }
}

fn write_totals(to: &mut impl Write, paint: Paint, status: &Status) -> io::Result<()> {
    writeln!(to, "dispatch  {}", Escaped(&status.dispatch))?;
    write_start(to, status)?;
    let origin = match status.count_origin {
        Origin::Config => "",
        Origin::Runtime => " (runtime)",
    };
    let rare = if_any(&[
        ("failed starts", status.failed_starts_total),
        ("stalls", status.stalls_total),
        ("clients given up", status.closed_for_crashes_total),
    ]);
    let deaths = grouped(status.deaths_total);
    writeln!(
        to,
        "workers   {}{origin}; deaths {deaths}{rare}",
        status.count
    )?;
    let [clients, max] = [status.clients, status.max_clients].map(grouped);
    let [accepted, refused] = [status.accepted_total, status.refused_total].map(grouped);
    let [moved, lost] = [status.moved_total, status.lost_total].map(grouped);
    writeln!(
        to,
        "clients   {clients} of {max}; accepted {accepted}, refused {refused}, moved {moved}, lost {lost}"
    )?;
    let [requests, errors] = [status.requests_total, status.errors_total].map(grouped);
    let reruns = if_any(&[("run again", status.reruns_total)]);
    writeln!(to, "requests  {requests}; errors {errors}{reruns}")?;
    if let Some(limit) = status.memory_limit {
        let [limit, buffers] = [limit, status.buffers].map(|bytes| grouped(bytes >> 20));
        writeln!(
            to,
            "memory    limit {limit} MiB; buffers {buffers} MiB a worker"
        )?;
    }
    if let Some(path) = &status.app_cgroups {
        let path = Escaped(path.display());
        writeln!(to, "apps      each in a cgroup of its own in {path}")?;
    }
    if let Some(Skew { clients, busy }) = status.skew {
        let load = busy.map_or_else(String::new, |busy| format!(", load {busy:.2}"));
        writeln!(to, "skew      clients {clients:.2}{load}")?;
    }
    if status.log_errors_total > 0 {
        let lost = format!("lines lost {}", grouped(status.log_errors_total));
        writeln!(to, "log       {}", paint.on(BAD, lost))?;
    }
    Ok(())
}

/// Returns the totals that are not zero, each after its name.
fn if_any(totals: &[(&str, u64)]) -> String {
    totals
        .iter()
        .filter(|(_, total)| *total > 0)
        .map(|(name, total)| format!(", {name} {}", grouped(*total)))
        .collect()
}

/// Writes `reload    rejected 2026-11-24T00:16:02Z: unknown key`.
fn write_reload(to: &mut impl Write, paint: Paint, reload: &LastReload) -> io::Result<()> {
    let (verdict, style) = match reload.verdict {
        Verdict::Applied => ("applied", GOOD),
        Verdict::Rejected => ("rejected", BAD),
        Verdict::RolledBack => ("rolled back", BAD),
    };
    let message = reload.message.as_ref();
    let why = message.map_or_else(String::new, |message| format!(": {message}"));
    writeln!(
        to,
        "reload    {} {}{}",
        paint.on(style, verdict),
        instant(reload.at),
        Escaped(why)
    )
}

/// Writes a line for each listener, with its address shortened if the line has no room for it.
fn write_listeners(
    to: &mut impl Write,
    paint: Paint,
    listeners: &[ListenerStatus],
) -> io::Result<()> {
    let room = paint.width().map(|width| width.saturating_sub(LISTENER));
    let room = room.map_or(usize::MAX, |room| room.max(MIN_ADDRESS));
    let addresses: Vec<String> = listeners
        .iter()
        .map(|listener| shortened(&Escaped(&listener.address).to_string(), room).into_owned())
        .collect();
    let width = addresses
        .iter()
        .map(|address| address.chars().count())
        .max()
        .unwrap_or(0);
    for (listener, address) in listeners.iter().zip(&addresses) {
        let order = match listener.byte_order {
            OrderRule::Little => "little",
            OrderRule::Big => "big",
            OrderRule::Auto => "auto",
        };
        let queue = match (&listener.outage, listener.queue, listener.queue_max) {
            (Some(reason), ..) => format!("DOWN: {}", Escaped(reason)),
            (None, ..) if listener.refuses => "refuses clients".to_owned(),
            (None, Some(queue), Some(max)) => format!("queue {queue}/{max}"),
            (None, ..) => String::new(),
        };
        let proxy = listener.proxy.map_or("", ProxyVersion::column);
        let line = format!("listener  {address:width$}  {order:6}  {proxy}{queue}");
        writeln!(to, "{}", line.trim_end())?;
    }
    Ok(())
}

/// The column in which the texts of the lines begin.
const INDENT: usize = 10;
/// The width of a listener's line without its address: with the byte order, and a PROXY protocol or a queue.
const LISTENER: usize = INDENT + 26;
/// The width to which addresses of listeners are shortened at most.
const MIN_ADDRESS: usize = 20;

/// Writes why workers are unhealthy or replaced, and why others died, for which the rows have no room.
fn write_reasons(to: &mut impl Write, workers: &[WorkerStatus]) -> io::Result<()> {
    let unhealthy: Vec<_> = workers
        .iter()
        .filter_map(|worker| Some((worker.id?, worker.unhealthy.as_ref()?)))
        .collect();
    let deaths: Vec<_> = workers
        .iter()
        .filter_map(|worker| Some((worker, worker.last_death.as_ref()?)))
        .collect();
    let replaced: Vec<_> = workers
        .iter()
        .filter_map(|worker| Some((worker.id?, worker.replaced_because.as_ref()?)))
        .collect();
    if !deaths.is_empty() || !unhealthy.is_empty() || !replaced.is_empty() {
        writeln!(to)?;
    }
    for (id, why) in unhealthy {
        writeln!(to, "worker {id} is unhealthy: {}", Escaped(why))?;
    }
    for (id, why) in replaced {
        writeln!(to, "worker {id} will be replaced: {}", Escaped(why))?;
    }
    deaths
        .into_iter()
        .try_for_each(|(worker, reason)| match worker.id {
            Some(id) => writeln!(to, "predecessor of worker {id}: {}", Escaped(reason)),
            None => writeln!(
                to,
                "last worker in seat {}: {}",
                worker.seat,
                Escaped(reason)
            ),
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ctl::style::{Colour, Seen};
    use crate::ctl::tests::status;
    use crate::proto::control::{
        AppStatus, DrainMode, DrainStatus, LeavingStatus, RuntimeStatus, WorkerState,
    };
    use crate::proto::names::{Generation, WorkerId};

    fn table(status: &Status) -> String {
        let mut out = Vec::new();
        write(&mut out, Paint::default(), status).expect("a Vec takes everything");
        String::from_utf8(out).expect("UTF-8")
    }

    #[test]
    fn the_status_is_lines_and_a_row_for_each_seat() {
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

ID    PID STATE    CLIENTS EXEC REQUESTS REQ/S   P50   P99 UPTIME RESTARTS RSS
 1   4712 ready        617    2      12M  1.2k  42µs 1.3ms   3d4h        0 12M
17   9931 draining     617    2   98,765   0.5 250ms   12s 12m34s        3  8M
   seat 2 waiting        0    0        0                    in 4s        5

predecessor of worker 17: killed by signal 11 in method \"resize\"
last worker in seat 2: exited with status 70
";
        assert_eq!(shown, expected);
        // Also where the width is not known.
        assert!(shown.lines().all(|line| line.chars().count() <= 80));
    }

    #[test]
    fn apps_have_a_table_of_their_own() {
        let mut status = status();
        (status.workers[0].away, status.workers[0].waiting) = (3, 12);
        status.workers[0].app = Some(AppStatus {
            pid: 4713,
            name: Some("shop\x1b".to_owned()),
            version: None,
            concurrency: 64,
            rss_bytes: Some(41 << 20),
        });
        let shown = table(&status);
        let expected = "
WORKER  PID APP      VERSION AWAY MOST WAIT RSS
     1 4713 shop\\x1b            3   64   12 41M

predecessor of worker 17";
        assert!(shown.contains(expected), "{shown}");
    }

    #[test]
    fn runtimes_and_reasons_of_replacements_are_shown() {
        let mut status = status();
        (status.workers[0].away, status.workers[0].waiting) = (3, 12);
        status.workers[0].runtime = Some(RuntimeStatus {
            thread: 4714,
            concurrency: 64,
        });
        status.workers[0].replaced_because = Some("a method panicked\x1b".to_owned());
        let shown = table(&status);
        let expected = "
WORKER THREAD AWAY MOST WAIT
     1   4714    3   64   12

worker 1 will be replaced: a method panicked\\x1b
predecessor of worker 17";
        assert!(shown.contains(expected), "{shown}");
    }

    #[test]
    fn reasons_against_new_clients_are_shown_and_escaped() {
        let mut status = status();
        status.stopping = true;
        status.paused = Some("no descriptors\x1b[2J\nleft".to_owned());
        status.config_file = None;
        status.listeners[0].address = "unix:/\x1b]0;x\x07".to_owned();
        status.listeners[1].outage = Some("it was ended\x07".to_owned());
        status.listeners[0].refuses = true;
        status.drain = Some(DrainStatus {
            mode: DrainMode::Refuse,
            notice: Some(7.2),
            over: Some(61.0),
        });
        status.workers[1].last_death = Some("killed in \"\u{202e}gnip\"".to_owned());
        status.log_errors_total = 7;
        let shown = table(&status);
        for line in [
            "STOPPING  no new clients; workers finish what they have",
            "LEAVING   in 8s; new clients are served until then",
            "MOVING    clients that want a goaway get it within 1m1s",
            r"PAUSED    no new clients: no descriptors\x1b[2J\nleft",
            r"listener  unix:/\x1b]0;x\x07          little  refuses clients",
            "config    embedded default",
            "log       lines lost 7",
            r#"predecessor of worker 17: killed in "\u{202e}gnip""#,
        ] {
            assert!(
                shown.lines().any(|shown| shown == line),
                "{line:?} is not in\n{shown}"
            );
        }
        assert!(shown.contains(r"listener  unix:/\x1b]0;x\x07"));
        assert!(
            shown.contains(r"listener  unix:/run/fdpassd/rpc.sock  auto    DOWN: it was ended\x07"),
            "{shown}"
        );
        assert!(!shown.chars().any(|c| c.is_control() && c != '\n'));
    }

    #[test]
    fn rare_states_and_totals_are_shown_when_there_are_some() {
        let mut status = status();
        status.reloading = true;
        status.quarantined = vec!["resize".to_owned(), "crop".to_owned()];
        let message = Some("the byte 0xff at offset 7 is not UTF-8".to_owned());
        status.last_reload = Some(LastReload {
            at: 1_795_479_362,
            verdict: Verdict::Rejected,
            message,
        });
        (status.count, status.count_origin) = (4, Origin::Runtime);
        (
            status.deaths_total,
            status.stalls_total,
            status.closed_for_crashes_total,
        ) = (8, 2, 1);
        status.reruns_total = 5;
        (status.workers[0].state, status.workers[1].state) =
            (WorkerState::Stalled, WorkerState::Ready);
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
        (status.start, status.zygote) = ("fork".to_owned(), Some(4712));
        let shown = table(&status);
        let expected = "\
fdpassd 0.1.0, pid 4711, up 3 days 4 hours, generation 3
RELOADING workers are replaced one by one
METHODS   quarantined: resize, crop; lifted by the verb \"release\"
config    /etc/fdpassd.toml
reload    rejected 2026-11-24T00:16:02Z: the byte 0xff at offset 7 is not UTF-8
dispatch  least-loaded
start     fork, zygote 4712
workers   4 (runtime); deaths 8, stalls 2, clients given up 1
clients   1,234 of 65,536; accepted 98,765, refused 3, moved 128, lost 1
requests  12,444,443; errors 42, run again 5
listener  127.0.0.1:8080              little  queue 0/4096
listener  unix:/run/fdpassd/rpc.sock  auto

ID    PID STATE   CLIENTS EXEC REQUESTS REQ/S   P50   P99 UPTIME RESTARTS RSS
 1   4712 stalled     617    2      12M  1.2k  42µs 1.3ms   3d4h        0 12M
17   9931 ready       617    2   98,765   0.5 250ms   12s 12m34s        3  8M
   seat 2 waiting       0    0        0                    in 4s        5

ID    PID SEAT GEN STATE    CLIENTS KILLED IN REASON        WAITS FOR
 9   8011    0   2 draining       1       25s reload        its turn in \"resize\"
12 812011    1   3 held           0           held by uid 0 release\\x1b[2J

predecessor of worker 17: killed by signal 11 in method \"resize\"
last worker in seat 2: exited with status 70
";
        assert_eq!(shown, expected);
    }

    #[test]
    fn the_last_reload_is_shown_with_any_time() {
        for (at, verdict, message, shown) in [
            (0, Verdict::Applied, None, "applied 1970-01-01T00:00:00Z"),
            (
                u64::MAX,
                Verdict::RolledBack,
                Some("no\n"),
                "rolled back 9999-12-31T23:59:59Z: no\\n",
            ),
        ] {
            let mut status = status();
            status.last_reload = Some(LastReload {
                at,
                verdict,
                message: message.map(str::to_owned),
            });
            assert!(
                table(&status).contains(&format!("\nreload    {shown}\n")),
                "{}",
                table(&status)
            );
        }
    }

    #[test]
    fn skew_is_shown_when_available() {
        let mut status = status();
        for (busy, shown) in [
            (None, "clients 1.02"),
            (Some(1.2), "clients 1.02, load 1.20"),
        ] {
            status.skew = Some(Skew {
                clients: 1.0249,
                busy,
            });
            assert!(
                table(&status).contains(&format!("\nskew      {shown}\n")),
                "{}",
                table(&status)
            );
        }
    }

    #[test]
    fn colours_change_nothing_else() {
        let mut status = status();
        (status.stopping, status.reloading, status.paused) = (true, true, Some("full".to_owned()));
        status.quarantined = vec!["resize".to_owned()];
        status.last_reload = Some(LastReload {
            at: 0,
            verdict: Verdict::RolledBack,
            message: None,
        });
        status.log_errors_total = 1;
        let mut out = Vec::new();
        let paint = Seen::default().with_colours(Colour::Always).paint();
        write(&mut out, paint, &status).expect("a Vec takes everything");
        let painted = String::from_utf8(out).expect("UTF-8");
        for words in [
            "\x1b[33mSTOPPING\x1b[0m  no",
            "\x1b[33mPAUSED\x1b[0m    no",
            "\x1b[33mRELOADING\x1b[0m w",
            "\x1b[31mMETHODS\x1b[0m   q",
            "\x1b[31mrolled back\x1b[0m 1970",
            "\x1b[31mlines lost 1\x1b[0m\n",
            " \x1b[32mready\x1b[0m        617",
            " \x1b[33mdraining\x1b[0m ",
            " \x1b[33mwaiting\x1b[0m ",
        ] {
            assert!(painted.contains(words), "{words:?} is not in\n{painted}");
        }
        let plain = ["\x1b[31m", "\x1b[32m", "\x1b[33m", "\x1b[0m"]
            .iter()
            .fold(painted, |text, code| text.replace(code, ""));
        assert_eq!(plain, table(&status));
    }
}
