//! Writes the lines of the `log` facade to standard error, the journal, syslog or a file.
//!
//! ```text
//! stderr   2026-11-22T00:10:00.123Z warn worker 17 (pid 4711, gen 3) …
//! file     2026-11-22T00:10:00.123Z fdpassd[4700] warn worker 17 …
//! json     {"time":"2026-11-22T00:10:00.123Z","level":"warn","name":"fdpassd","pid":4700,
//!           "event":"worker_died","worker":17,…,"message":"worker 17 …"}          on standard error or in a file
//! journal  MESSAGE=worker 17 … FDPASSD_EVENT=worker_died FDPASSD_WORKER=17 …    a datagram of fields
//!          <4>worker 17 …    on standard error, if the journal does not take the datagram: sd-daemon(3)
//! syslog   <28>Nov 22 00:10:00 fdpassd[4700]: worker 17 …    a datagram to /dev/log
//! ```
//!
//! One event is one line and one write(2), so that the lines of master and workers never mix. A line that cannot be
//! written is counted; the process does not wait for it and does not end. Control characters are escaped.
//!
//! Fields are the key-values of the `log` macros: `log::warn!(event = "worker_died", worker = 17; "…")`. A field with
//! the name of a line's own field is renamed: `pid` to `worker_pid`; `time`, `level`, `name` and `message` to
//! `event_time` and so on, in JSON and in the journal alike.
//!
//! In a worker, each line also has the worker's id, and a line that a method logs the client and the method
//! ([`scope`]). The text formats show the fields of lines of the daemon's author and of an app, after the message;
//! sentences of this crate contain what is in theirs.
//!
//! A message equal to the one before is counted for ten seconds ([`repeats`]). The count is written before the next
//! line, or by [`log::Log::flush`] at the end.
//!
//! A message is formatted before the lock is taken, so a `Display` that logs cannot deadlock. Signal handlers must not
//! log.

mod datagrams;
mod format;
mod journal;
mod limited;
mod line;
mod output;
mod repeats;
pub mod scope;
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
use crate::proto::log::{Log, LogLevel, LogTarget};
use crate::proto::text::Escaped;
pub use limited::LimitedLine;

pub use crate::sys::signal::survive_file_size_limit;
use crate::sys::writable::write_at_once;

/// Sends log lines to the target of `settings`; `name` is the daemon's. A later call redirectorys target and level. A
/// program that has set its own logger keeps it, at that level.
///
/// # Errors
/// Those of [`prepare`]; then nothing changes.
pub fn start(name: &str, settings: &Log) -> io::Result<()> {
    prepare(name, settings).map(Prepared::commit)
}

/// Does all of [`start`] that can fail; the target changes with [`Prepared::commit`]. Creates a file that does not
/// exist.
///
/// # Errors
/// When the file cannot be opened or no descriptor is left.
pub fn prepare(name: &str, settings: &Log) -> io::Result<Prepared> {
    let target = LogDestination::open(name, settings)?;
    Ok(Prepared::new(name, target, settings.level))
}

/// An open target of log lines.
#[must_use]
#[derive(Debug)]
pub struct Prepared {
    name: String,
    target: LogDestination,
    level: LogLevel,
}

impl Prepared {
    fn new(name: &str, target: LogDestination, level: LogLevel) -> Prepared {
        let name = name.to_owned();
        Prepared {
            name,
            target,
            level,
        }
    }

    /// Sends log lines to this target from now on.
    pub fn commit(self) {
        with_output(|output| output.set_target(&self.name, self.target));
        // Fails from the second call on, when the logger is already set.
        let _ = log::set_logger(&Facade);
        set_level(self.level);
    }
}

/// Sets the least important level that is written, until the next [`Prepared::commit`].
pub fn set_level(level: LogLevel) {
    with_output(Output::write_repeats);
    log::set_max_level(match level {
        LogLevel::Error => LevelFilter::Error,
        LogLevel::Warn => LevelFilter::Warn,
        LogLevel::Info => LevelFilter::Info,
        LogLevel::Debug => LevelFilter::Debug,
        LogLevel::Trace => LevelFilter::Trace,
    });
}

/// Returns the least important level that is written.
#[must_use]
pub fn level() -> LogLevel {
    log_level(log::max_level())
}

fn log_level(level: LevelFilter) -> LogLevel {
    match level {
        // Off is the level before the start, when no line is written.
        LevelFilter::Off | LevelFilter::Error => LogLevel::Error,
        LevelFilter::Warn => LogLevel::Warn,
        LevelFilter::Info => LogLevel::Info,
        LevelFilter::Debug => LogLevel::Debug,
        LevelFilter::Trace => LogLevel::Trace,
    }
}

/// Opens the log file again, after it was renamed. Returns whether the target is a file.
///
/// # Errors
/// When the file cannot be opened; then lines still go to the old one.
pub fn reopen() -> io::Result<bool> {
    with_output(Output::reopen)
}

/// Returns the descriptor that lines go to, if it is not standard error.
#[must_use]
pub fn descriptor() -> Option<RawFd> {
    with_output(|output| output.descriptor())
}

/// Returns the file that lines go to, for the program that this process executes.
#[must_use]
pub fn copy_of_file() -> Option<File> {
    with_output(|output| output.copy_of_file())
}

/// Does the same as [`start`] with an open file, which is closed if the target is not a file.
///
/// # Errors
/// Those of [`start`].
pub fn start_with(name: &str, settings: &Log, file: Option<File>) -> io::Result<()> {
    let target = match (settings.target, &settings.file, file) {
        (LogTarget::File, Some(path), Some(file)) => {
            LogDestination::File(path.clone(), LogFile::from_file(file)?, settings.format)
        }
        _ => LogDestination::open(name, settings)?,
    };
    Prepared::new(name, target, settings.level).commit();
    Ok(())
}

/// Does the same as [`start`], but sends lines to standard error on an error, and returns the error.
pub fn start_anyhow(name: &str, settings: &Log) -> Option<io::Error> {
    let error = start(name, settings).err()?;
    let target = LogDestination::Stderr(settings.format);
    Prepared::new(name, target, settings.level).commit();
    log::error!("{error}; lines go to standard error");
    Some(error)
}

/// Returns the number of lines that this process could not write.
#[must_use]
pub fn errors() -> u64 {
    LOST.load(Ordering::Relaxed)
}

/// Returns whether log lines are text in the same file as standard output, such as a terminal: what is announced there
/// need not be logged.
#[must_use]
pub fn is_on_stdout() -> bool {
    with_output(|output| output.is_text_on_stderr()) && target::is_stdout_stderr()
}

/// Writes a line to standard output, for the shell or service manager, if that takes it at once. Where that is the
/// journal, and the log too, it has the log's line of the same event.
pub fn announce(line: &str) {
    if with_output(|output| output.is_journal()) && target::is_stdout_stderr() {
        return;
    }
    let _ = write_at_once(io::stdout(), line.as_bytes());
}

/// The logger of the `log` crate.
struct Facade;

impl log::Log for Facade {
    fn enabled(&self, metadata: &log::Metadata) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &log::Record) {
        // The logger itself has panicked, and the panic hook reports it: the lock would never become free.
        if IS_INSIDE.get() {
            let _ = write_at_once(
                io::stderr(),
                format!("{}\n", Escaped(record.args())).as_bytes(),
            );
            return;
        }
        if self.enabled(record.metadata()) {
            let line = Line::from_record(record);
            with_output(|output| output.write(line, Instant::now()));
        }
    }

    /// Writes the count of repeated messages.
    fn flush(&self) {
        if !IS_INSIDE.get() {
            with_output(Output::write_repeats);
        }
    }
}

/// A copy of [`Output::lost_total`], which every iteration of a loop reads without the lock.
static LOST: AtomicU64 = AtomicU64::new(0);

static OUTPUT: Mutex<Output<Stderr>> = Mutex::new(Output::new(Stderr));

thread_local! {
    /// Whether this thread holds the lock.
    static IS_INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Makes a panic end the process while it exists: half a line may be written, and the state of the output is unknown.
struct Inside {
    /// A hook or a destructor logs during a panic that began outside.
    was_panicking: bool,
}

impl Inside {
    fn enter() -> Inside {
        IS_INSIDE.set(true);
        Inside {
            was_panicking: std::thread::panicking(),
        }
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        IS_INSIDE.set(false);
        if std::thread::panicking() && !self.was_panicking {
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

    use crate::proto::log::{LogFormat, LogTarget};

    /// A value whose `Display` logs, fails, and would forge a line.
    struct Nasty;

    impl std::fmt::Display for Nasty {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            log::error!("from within");
            f.write_str("a\nb\x1b[2J\u{202e}")?;
            Err(std::fmt::Error)
        }
    }

    const PANIC: &str = "FDPASSD_TEST_PANIC_OF_THE_LOGGER";

    /// Ends its process: the next test runs it in a process of its own.
    #[test]
    fn child_panics_inside_the_logger() {
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
                slow_request: None,
            },
        )
        .expect("standard error is there");
        let _ = std::panic::catch_unwind(|| with_output(|_| panic!("inside")));
    }

    #[test]
    fn a_panic_of_the_logger_aborts_instead_of_hanging() {
        let test = std::env::current_exe().expect("this program");
        let child = "logging::tests::child_panics_inside_the_logger";
        let ended = std::process::Command::new(test)
            .args(["--exact", "--nocapture", child])
            .env(PANIC, "1")
            .output()
            .expect("it runs");
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

    /// The only test of the global logger; tests of other modules may log into its file.
    #[test]
    fn the_facade_filters_escapes_and_changes_targets() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = |name: &str| Some(directory.path().join(name));
        let format = LogFormat::Text;
        let settings = |name, level| Log {
            target: LogTarget::File,
            file: file(name),
            format,
            level,
            slow_request: None,
        };
        let read = |name: &str| fs::read_to_string(directory.path().join(name)).expect("read");

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
        // Other tests may log between two of them, but not between all.
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
                ..settings("", LogLevel::Error)
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
