//! The `log` facade → standard error, the journal, syslog or a file.
//!
//! ```text
//! stderr   2026-11-22T00:10:00.123Z warn worker 17 (pid 4711, gen 3) …
//! file     2026-11-22T00:10:00.123Z fdpassd[4700] warn worker 17 …
//! json     {"time":"2026-11-22T00:10:00.123Z","level":"warn","name":"fdpassd","pid":4700,
//!           "event":"worker_died","worker":17,…,"message":"worker 17 …"}          to standard error or a file
//! journal  MESSAGE=worker 17 … FDPASSD_EVENT=worker_died FDPASSD_WORKER=17 …    a datagram of fields
//!          <4>worker 17 …    when it does not take that: on standard error, sd-daemon(3)
//! syslog   <28>Nov 22 00:10:00 fdpassd[4700]: worker 17 …    a datagram to /dev/log
//! ```
//!
//! One event is one line and one write(2), so that the lines of master and workers never mix. A line that
//! cannot be written is counted; nothing waits for it or ends because of it. Control characters are escaped.
//!
//! Fields are the key-values of the `log` macros: `log::warn!(event = "worker_died", worker = 17; "…")`. Where one has the
//! name of something that the line says of itself it gets another: `pid` is `worker_pid`, `time`, `level`, `name` and
//! `message` are `event_time` and so on, in JSON and in the journal alike.
//!
//! A message that says what the one before said is counted for ten seconds ([`repeats`]). How often it came is written
//! before the next line, or by [`log::Log::flush`] at the end.
//!
//! A message is formatted before the lock is taken: a `Display` that logs cannot deadlock. Signal handlers must
//! not log.

mod datagrams;
mod format;
mod journal;
mod line;
mod output;
mod repeats;
mod syslog;
mod target;

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use log::LevelFilter;

use self::line::Line;
use self::output::Output;
use self::target::{LogDestination, LogFile, Stderr};
use crate::proto::channel::{Log, LogLevel, LogTarget};
use crate::proto::text::Escaped;
pub use crate::sys::signal::survive_file_size_limit;
use crate::sys::writable::write_at_once;

/// Sends log lines to where `settings` say, from now on; `name` is the daemon's. A later call replaces target
/// and level. A program that has set a logger of its own keeps it, at that level.
///
/// # Errors
/// As [`prepare`]. Everything stays as it was then.
pub fn start(name: &str, settings: &Log) -> io::Result<()> {
    prepare(name, settings).map(Prepared::commit)
}

/// Does all of [`start`] that can fail, and changes nothing yet: lines go on to where they went until
/// [`Prepared::commit`]. A file that was not there is made.
///
/// # Errors
/// When the file cannot be opened or there is no descriptor left.
pub fn prepare(name: &str, settings: &Log) -> io::Result<Prepared> {
    Ok(Prepared {
        name: name.to_owned(),
        target: LogDestination::open(name, settings)?,
        level: settings.level,
    })
}

/// Where log lines can go to.
#[must_use]
#[derive(Debug)]
pub struct Prepared {
    name: String,
    target: LogDestination,
    level: LogLevel,
}

impl Prepared {
    /// Sends them there from now on.
    pub fn commit(self) {
        with_output(|output| output.turn_to(&self.name, self.target));
        // Fails from the second call on, and then there is nothing more to do.
        let _ = log::set_logger(&Facade);
        set_level(self.level);
    }
}

/// From now on the least important level that is still written, until the next [`Prepared::commit`].
pub fn set_level(level: LogLevel) {
    with_output(Output::tell_repeats);
    log::set_max_level(match level {
        LogLevel::Error => LevelFilter::Error,
        LogLevel::Warn => LevelFilter::Warn,
        LogLevel::Info => LevelFilter::Info,
        LogLevel::Debug => LevelFilter::Debug,
        LogLevel::Trace => LevelFilter::Trace,
    });
}

/// The least important level that is still written.
#[must_use]
pub fn level() -> LogLevel {
    match log::max_level() {
        // Off is only before the start, when nothing is written.
        LevelFilter::Off | LevelFilter::Error => LogLevel::Error,
        LevelFilter::Warn => LogLevel::Warn,
        LevelFilter::Info => LogLevel::Info,
        LevelFilter::Debug => LogLevel::Debug,
        LevelFilter::Trace => LogLevel::Trace,
    }
}

/// Opens the log file again, after it was renamed. Does nothing when the target is none.
///
/// # Errors
/// When it cannot be opened; lines go on into the old one then.
pub fn reopen() -> io::Result<()> {
    with_output(Output::reopen)
}

/// The descriptor that lines go to, if it is not standard error.
#[must_use]
pub fn descriptor() -> Option<RawFd> {
    with_output(|output| output.descriptor())
}

/// The file that lines go to, for a program that this process becomes.
#[must_use]
pub fn copy_of_file() -> Option<File> {
    with_output(|output| output.copy_of_file())
}

/// As [`start`] with a file that is open already. With another target than a file it is closed.
///
/// # Errors
/// As [`start`].
pub fn start_with(name: &str, settings: &Log, file: Option<File>) -> io::Result<()> {
    let target = match (settings.target, &settings.file, file) {
        (LogTarget::File, Some(path), Some(file)) => {
            LogDestination::File(path.clone(), LogFile::from_file(file)?, settings.format)
        }
        _ => LogDestination::open(name, settings)?,
    };
    Prepared {
        name: name.to_owned(),
        target,
        level: settings.level,
    }
    .commit();
    Ok(())
}

/// As [`start`], but sends lines to standard error where that cannot be, and returns why.
pub fn start_anyhow(name: &str, settings: &Log) -> Option<io::Error> {
    let error = start(name, settings).err()?;
    let target = LogDestination::Stderr(settings.format);
    Prepared {
        name: name.to_owned(),
        target,
        level: settings.level,
    }
    .commit();
    log::error!("{error}; lines go to standard error");
    Some(error)
}

/// Lines that could not be written since this process began.
#[must_use]
pub fn errors() -> u64 {
    LOST.load(Ordering::Relaxed)
}

/// Writes a line to standard output, for whoever started the daemon, if that takes it at once.
pub fn announce(line: &str) {
    let _ = write_at_once(io::stdout(), line.as_bytes());
}

/// What the `log` crate calls.
struct Facade;

impl log::Log for Facade {
    fn enabled(&self, metadata: &log::Metadata) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &log::Record) {
        // The logger itself has panicked, and the hook reports it: the lock would be waited for for ever.
        if IS_INSIDE.get() {
            let _ = write_at_once(
                io::stderr(),
                format!("{}\n", Escaped(record.args())).as_bytes(),
            );
            return;
        }
        if self.enabled(record.metadata()) {
            let line = Line::from_record(record);
            with_output(|output| output.line(line, Instant::now()));
        }
    }

    /// Writes what is only counted so far.
    fn flush(&self) {
        if !IS_INSIDE.get() {
            with_output(Output::tell_repeats);
        }
    }
}

/// [`Output::lost_total`], to be read at every turn of a loop without the lock.
static LOST: AtomicU64 = AtomicU64::new(0);

static OUTPUT: Mutex<Output<Stderr>> = Mutex::new(Output::new(Stderr));

thread_local! {
    /// This thread has the lock.
    static IS_INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// While it is there, a panic ends the process: half a line may be written, and what comes after is not known.
struct Inside;

impl Inside {
    fn enter() -> Inside {
        IS_INSIDE.set(true);
        Inside
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        IS_INSIDE.set(false);
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

fn with_output<R>(act: impl FnOnce(&mut Output<Stderr>) -> R) -> R {
    let mut output = OUTPUT.lock().unwrap_or_else(PoisonError::into_inner);
    let _inside = Inside::enter();
    let result = act(&mut output);
    LOST.store(output.lost_total, Ordering::Relaxed);
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    use crate::proto::channel::{LogFormat, LogTarget};

    /// A value whose text logs, fails, and would forge a line.
    struct Nasty;

    impl std::fmt::Display for Nasty {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            log::error!("from within");
            f.write_str("a\nb\x1b[2J\u{202e}")?;
            Err(std::fmt::Error)
        }
    }

    const PANIC: &str = "FDPASSD_TEST_PANIC_OF_THE_LOGGER";

    /// Run by the next test in a process of its own, which it ends.
    #[test]
    fn panics_inside() {
        if std::env::var_os(PANIC).is_none() {
            return;
        }
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            log::error!("reported: {panic}");
            hook(panic);
        }));
        start(
            "fdpassd",
            &Log {
                target: LogTarget::Stderr,
                file: None,
                format: LogFormat::Text,
                level: LogLevel::Info,
            },
        )
        .expect("standard error is there");
        let _ = std::panic::catch_unwind(|| with_output(|_| panic!("inside")));
    }

    #[test]
    fn a_panic_of_the_logger_aborts_and_does_not_hang() {
        let test = std::env::current_exe().expect("this program");
        let mut command = std::process::Command::new(test);
        command
            .args(["--exact", "--nocapture", "logging::tests::panics_inside"])
            .env(PANIC, "1");
        let child = command
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::piped())
            .spawn();
        let ended = child
            .expect("it runs")
            .wait_with_output()
            .expect("it is our child");
        let text = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(
            std::os::unix::process::ExitStatusExt::signal(&ended.status),
            Some(6),
            "{text}"
        );
        assert!(
            text.contains("reported: ") && text.contains("inside"),
            "{text}"
        );
    }

    /// The only test that goes through the global logger; tests of other modules may log into its file.
    #[test]
    fn the_facade_filters_escapes_and_turns_to_other_targets() {
        let place = tempfile::tempdir().expect("a directory");
        let file = |name: &str| Some(place.path().join(name));
        let format = LogFormat::Text;
        let settings = |name, level| Log {
            target: LogTarget::File,
            file: file(name),
            format,
            level,
        };
        let read = |name: &str| fs::read_to_string(place.path().join(name)).expect("read");

        start("fdpassd", &settings("one", LogLevel::Info)).expect("start");
        log::info!("seen {}", Nasty);
        log::debug!("unseen");
        start("fdpassd", &settings("two", LogLevel::Debug)).expect("start again");
        log::debug!("seen too");
        start("fdpassd", &settings("no/such/folder", LogLevel::Error)).expect_err("no such folder");
        log::debug!("and still");
        let prepared = prepare("fdpassd", &settings("three", LogLevel::Info))
            .expect("a file that can be opened");
        log::debug!("and before it is wanted");
        prepared.commit();
        log::debug!("unseen");
        // Another line may come between two of them, but not between all.
        (0..100).for_each(|_| log::info!("there"));
        log::logger().flush();
        reopen().expect("reopen");
        for level in [
            LogLevel::Error,
            LogLevel::Warn,
            LogLevel::Info,
            LogLevel::Trace,
            LogLevel::Debug,
        ] {
            set_level(level);
            assert_eq!(self::level(), level);
        }
        log::debug!("seen by another level");
        start(
            "fdpassd",
            &Log {
                file: None,
                ..settings("", LogLevel::Info)
            },
        )
        .expect_err("no file");
        assert_eq!(errors(), 0);
        start(
            "fdpassd",
            &Log {
                target: LogTarget::Auto,
                file: None,
                format,
                level: LogLevel::Error,
            },
        )
        .expect("start");

        let [one, two, three] = ["one", "two", "three"].map(read);
        assert!(one.contains("error from within\n"), "{one}");
        assert!(one.contains(r"info seen a\nb\x1b[2J\u{202e}"), "{one}");
        assert!(
            !one.contains("unseen") && !one.contains("seen too"),
            "{one}"
        );
        assert!(
            two.contains("debug seen too\n") && two.contains("debug and still\n"),
            "{two}"
        );
        assert!(
            two.contains("debug and before it is wanted\n") && !two.contains("there"),
            "{two}"
        );
        assert!(
            (1..100).contains(&three.matches("info there\n").count()) && !three.contains("unseen"),
            "{three}"
        );
        assert!(three.contains("info last message repeated "), "{three}");
        assert!(three.contains("debug seen by another level\n"), "{three}");
    }
}
