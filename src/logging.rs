//! The `log` facade → standard error, the journal, syslog or a file.
//!
//! ```text
//! stderr   2026-11-22T00:10:00.123Z warn worker 17 (pid 4711, gen 3) …
//! file     2026-11-22T00:10:00.123Z fdpassd[4711] warn worker 17 …
//! journal  <4>worker 17 …                    on standard error, sd-daemon(3)
//! syslog   <28>Nov 22 00:10:00 fdpassd[4711]: worker 17 …    a datagram to /dev/log
//! ```
//!
//! One event is one line and one write(2), so that the lines of master and workers never mix. A line that
//! cannot be written is counted; nothing waits for it or ends because of it. Control characters are escaped.
//!
//! A message is formatted before the lock is taken: a `Display` that logs cannot deadlock. Signal handlers must
//! not log.

use std::env;
use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use log::{Level, LevelFilter};
use syslog::{Facility, Formatter3164, LogFormat, Severity};

use crate::proto::channel::{Log, LogLevel, LogTarget};
use crate::proto::text::Escaped;
use crate::sys::writable::is_writable;

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
    Ok(Prepared { name: name.to_owned(), target: Target::open(name, settings)?, level: filter(settings.level) })
}

/// Where log lines can go to.
#[must_use]
#[derive(Debug)]
pub struct Prepared {
    name: String,
    target: Target,
    level: LevelFilter,
}

impl Prepared {
    /// Sends them there from now on.
    pub fn commit(self) {
        output().turn_to(&self.name, self.target);
        // Fails from the second call on, and then there is nothing more to do.
        let _ = log::set_logger(&Facade);
        log::set_max_level(self.level);
    }
}

/// Writes lines of this importance and more from now on.
pub fn set_level(level: LogLevel) {
    log::set_max_level(filter(level));
}

/// Opens the log file again, after it was renamed. Does nothing when the target is none.
///
/// # Errors
/// When it cannot be opened; lines go on into the old one then.
pub fn reopen() -> io::Result<()> {
    output().reopen()
}

/// Lines that could not be written since this process began.
#[must_use]
pub fn errors() -> u64 {
    LOST.load(Ordering::Relaxed)
}

/// What the `log` crate calls.
struct Facade;

impl log::Log for Facade {
    fn enabled(&self, metadata: &log::Metadata) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &log::Record) {
        if self.enabled(record.metadata()) {
            let mut message = String::new();
            // A `Display` that fails has said what it could.
            let _ = write!(message, "{}", Escaped(record.args()));
            let mut output = output();
            output.line(record.level(), &message);
            LOST.store(output.lost_total, Ordering::Relaxed);
        }
    }

    fn flush(&self) {}
}

/// [`Output::lost_total`], to be read at every turn of a loop without the lock.
static LOST: AtomicU64 = AtomicU64::new(0);

static OUTPUT: Mutex<Output<Stderr>> = Mutex::new(Output::new(Stderr));

/// A thread that panicked here has written half a line at worst: that is no reason to be silent.
fn output() -> MutexGuard<'static, Output<Stderr>> {
    OUTPUT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where lines go, and what has become of them.
struct Output<E> {
    name: String,
    target: Target,
    stderr: E,
    /// The last write ended within a line.
    torn: bool,
    lost_total: u64,
    /// Lines lost since the last one that was written, and why the last of them was.
    gap: Option<(u64, io::Error)>,
}

impl<E: Write> Output<E> {
    const fn new(stderr: E) -> Output<E> {
        Output { name: String::new(), target: Target::Stderr, stderr, torn: false, lost_total: 0, gap: None }
    }

    fn turn_to(&mut self, name: &str, target: Target) {
        self.name = Escaped(name).to_string();
        self.target = target;
        self.torn = false;
    }

    fn reopen(&mut self) -> io::Result<()> {
        if let Target::File(path, file) = &mut self.target {
            *file = open_file(path)?;
            self.torn = false;
        }
        Ok(())
    }

    /// Writes one line, and before it how many could not be.
    fn line(&mut self, level: Level, message: &str) {
        let written = match &self.gap {
            None => self.write(level, message),
            Some((lines, cause)) => {
                let gap = format!("{lines} log lines before this one could not be written: {cause}");
                self.write(Level::Warn, &gap).and_then(|()| {
                    self.gap = None;
                    self.write(level, message)
                })
            }
        };
        if let Err(cause) = written {
            self.lost_total += 1;
            self.gap = Some((self.gap.take().map_or(0, |(lines, _)| lines) + 1, cause));
        }
    }

    fn write(&mut self, level: Level, message: &str) -> io::Result<()> {
        let now = SystemTime::now();
        match &mut self.target {
            Target::Stderr => write_line(&mut self.stderr, &mut self.torn, for_people(now, level, message)),
            Target::Journal => write_line(&mut self.stderr, &mut self.torn, for_journal(level, message)),
            Target::File(_, file) => write_line(file, &mut self.torn, for_file(now, &self.name, level, message)),
            Target::Syslog(syslog) => match syslog.send(level, message) {
                // A syslogd that is there and does not keep up loses lines; one that is not there has a stand-in.
                Err(e) if e.kind() != ErrorKind::WouldBlock => {
                    write_line(&mut self.stderr, &mut self.torn, for_people(now, level, message))
                }
                sent => sent,
            },
        }
    }
}

#[derive(Debug)]
enum Target {
    Stderr,
    Journal,
    Syslog(Syslog),
    File(PathBuf, File),
}

impl Target {
    fn open(name: &str, settings: &Log) -> io::Result<Target> {
        match (settings.target, &settings.file) {
            (LogTarget::Auto, _) if is_journal(env::var("JOURNAL_STREAM").ok().as_deref(), stderr_identity()) => {
                Ok(Target::Journal)
            }
            (LogTarget::Auto | LogTarget::Stderr, _) => Ok(Target::Stderr),
            (LogTarget::Syslog, _) => Syslog::open(name, DEV_LOG).map(Target::Syslog),
            (LogTarget::File, Some(path)) => Ok(Target::File(path.clone(), open_file(path)?)),
            (LogTarget::File, None) => {
                Err(io::Error::new(ErrorKind::InvalidInput, "lines are to go into a file, but into none"))
            }
        }
    }
}

fn open_file(path: &Path) -> io::Result<File> {
    let opened = OpenOptions::new().append(true).create(true).mode(0o640).open(path);
    opened.map_err(|e| io::Error::new(e.kind(), format!("open log file {}: {e}", path.display())))
}

/// syslogd on the other side of a datagram socket.
///
/// Not connected: each message finds the socket that is at the path then, also after a restart of syslogd.
/// The crate's own backend stays silent for ever after one, and blocks while nobody reads.
#[derive(Debug)]
struct Syslog {
    socket: UnixDatagram,
    path: PathBuf,
    format: Formatter3164,
}

impl Syslog {
    fn open(name: &str, path: impl Into<PathBuf>) -> io::Result<Syslog> {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        // The form of RFC 5424 is misread on this socket by journald and rsyslog alike.
        let process = Escaped(name).to_string();
        let format = Formatter3164 { facility: Facility::LOG_DAEMON, hostname: None, process, pid: process::id() };
        Ok(Syslog { socket, path: path.into(), format })
    }

    fn send(&self, level: Level, message: &str) -> io::Result<()> {
        let mut datagram = Vec::new();
        self.format.format(&mut datagram, severity(level), message).map_err(io::Error::other)?;
        self.socket.send_to(&datagram, &self.path).map(|_| ())
    }
}

/// [`io::stderr`] as a value that a static can hold. It has no buffer: a write is a write(2).
struct Stderr;

impl Write for Stderr {
    /// Never waits for a reader: a journal that hangs must not take the daemon with it.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let stderr = io::stderr();
        if is_writable(stderr.as_fd()) { stderr.lock().write(bytes) } else { Err(ErrorKind::WouldBlock.into()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes a line in one piece. What is left of one that a full disk cut off gets its end before the next.
fn write_line(to: &mut impl Write, torn: &mut bool, mut line: String) -> io::Result<()> {
    if *torn {
        line.insert(0, '\n');
    }
    loop {
        match to.write(line.as_bytes()) {
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
            Ok(written) if written == line.len() => {
                *torn = false;
                return Ok(());
            }
            Ok(written) => {
                *torn |= written > 0;
                return Err(io::Error::new(ErrorKind::WriteZero, "only a part of the line was taken"));
            }
        }
    }
}

fn for_people(now: SystemTime, level: Level, message: &str) -> String {
    format!("{} {} {message}\n", humantime::format_rfc3339_millis(now), word(level))
}

fn for_file(now: SystemTime, name: &str, level: Level, message: &str) -> String {
    format!("{} {name}[{}] {} {message}\n", humantime::format_rfc3339_millis(now), process::id(), word(level))
}

fn for_journal(level: Level, message: &str) -> String {
    format!("<{}>{message}\n", severity(level) as u8)
}

/// Whether standard error is the stream that systemd says it connected to the journal (systemd.exec(5));
/// both are device and inode.
fn is_journal(stream: Option<&str>, stderr: Option<(u64, u64)>) -> bool {
    let stream = stream.and_then(|stream| {
        let (device, inode) = stream.split_once(':')?;
        Some((device.parse().ok()?, inode.parse().ok()?))
    });
    stream.is_some() && stream == stderr
}

fn stderr_identity() -> Option<(u64, u64)> {
    let copy = File::from(io::stderr().as_fd().try_clone_to_owned().ok()?);
    copy.metadata().ok().map(|stderr| (stderr.dev(), stderr.ino()))
}

fn severity(level: Level) -> Severity {
    match level {
        Level::Error => Severity::LOG_ERR,
        Level::Warn => Severity::LOG_WARNING,
        Level::Info => Severity::LOG_INFO,
        Level::Debug | Level::Trace => Severity::LOG_DEBUG,
    }
}

fn word(level: Level) -> &'static str {
    match level {
        Level::Error => "error",
        Level::Warn => "warn",
        Level::Info => "info",
        Level::Debug => "debug",
        Level::Trace => "trace",
    }
}

fn filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Error => LevelFilter::Error,
        LogLevel::Warn => LevelFilter::Warn,
        LogLevel::Info => LevelFilter::Info,
        LogLevel::Debug => LevelFilter::Debug,
        LogLevel::Trace => LevelFilter::Trace,
    }
}

const DEV_LOG: &str = "/dev/log";

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::time::Duration;

    use tempfile::TempDir;

    fn to(target: Target) -> Output<Vec<u8>> {
        let mut output = Output::new(Vec::new());
        output.turn_to("fdpassd", target);
        output
    }

    fn to_file(path: &Path) -> Output<Vec<u8>> {
        let settings = Log { target: LogTarget::File, file: Some(path.to_owned()), level: LogLevel::Info };
        to(Target::open("fdpassd", &settings).expect("open"))
    }

    fn place() -> TempDir {
        tempfile::tempdir().expect("a directory")
    }

    /// The lines without their timestamps.
    fn lines(bytes: &[u8]) -> Vec<String> {
        let text = String::from_utf8(bytes.to_vec()).expect("UTF-8");
        text.lines().map(|line| line.split_once(' ').map_or(line, |(_, rest)| rest).to_owned()).collect()
    }

    #[test]
    fn each_place_has_its_form() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_millis(1_795_306_200_123);
        assert_eq!(for_people(now, Level::Warn, "worker 17"), "2026-11-22T00:10:00.123Z warn worker 17\n");
        let expected = format!("2026-11-22T00:10:00.123Z fdpassd[{}] error x\n", process::id());
        assert_eq!(for_file(now, "fdpassd", Level::Error, "x"), expected);
        let levels = [Level::Error, Level::Warn, Level::Info, Level::Debug, Level::Trace];
        assert_eq!(levels.map(|level| for_journal(level, "x")), ["<3>x\n", "<4>x\n", "<6>x\n", "<7>x\n", "<7>x\n"]);
    }

    #[test]
    fn standard_error_and_the_journal_get_whole_lines() {
        let mut output = to(Target::Stderr);
        output.line(Level::Info, "ready");
        output.turn_to("fdpassd", Target::Journal);
        output.line(Level::Warn, "worker 17");
        assert_eq!(lines(&output.stderr), ["info ready", "17"]);
        assert!(output.stderr.ends_with(b"\n<4>worker 17\n"));
    }

    #[test]
    fn the_journal_is_known_by_device_and_inode() {
        assert!(is_journal(Some("9:1234"), Some((9, 1234))));
        for stream in ["9:1235", "8:1234", "9", "", ":", "9:1234:1", "9:x"] {
            assert!(!is_journal(Some(stream), Some((9, 1234))), "{stream}");
        }
        assert!(!is_journal(Some("x"), None));
        assert!(!is_journal(None, None));
        assert!(stderr_identity().is_some());
    }

    #[test]
    fn a_file_is_opened_again_after_it_was_renamed() {
        let place = place();
        let (path, old) = (place.path().join("log"), place.path().join("log.1"));
        let mut output = to_file(&path);
        output.line(Level::Info, "one");
        fs::rename(&path, &old).expect("rename");
        output.line(Level::Info, "two");
        output.reopen().expect("reopen");
        output.line(Level::Info, "three");

        let prefix = format!("fdpassd[{}] info", process::id());
        assert_eq!(lines(&fs::read(&old).expect("read")), [format!("{prefix} one"), format!("{prefix} two")]);
        assert_eq!(lines(&fs::read(&path).expect("read")), [format!("{prefix} three")]);
        assert_eq!(fs::metadata(&path).expect("stat").permissions().mode() & 0o137, 0);
    }

    #[test]
    fn a_file_that_cannot_be_opened_again_is_kept() {
        let place = place();
        let (folder, moved) = (place.path().join("folder"), place.path().join("moved"));
        fs::create_dir(&folder).expect("mkdir");
        let mut output = to_file(&folder.join("log"));
        fs::rename(&folder, &moved).expect("rename");
        let error = output.reopen().expect_err("the folder is gone");
        assert!(error.to_string().starts_with("open log file /"), "{error}");
        output.line(Level::Info, "still here");
        assert_eq!(fs::read_to_string(moved.join("log")).expect("read").lines().count(), 1);
    }

    #[test]
    fn lines_that_a_full_disk_does_not_take_are_counted_and_told_of() {
        let place = place();
        let mut output = to_file(Path::new("/dev/full"));
        output.line(Level::Error, "one");
        output.line(Level::Error, "two");
        assert_eq!(output.lost_total, 2);

        let path = place.path().join("log");
        let Target::File(_, file) = &mut output.target else { panic!("the target is a file") };
        *file = open_file(&path).expect("open");
        output.line(Level::Info, "three");
        output.line(Level::Info, "four");
        let told = lines(&fs::read(&path).expect("read"));
        assert_eq!(told.len(), 3, "{told:?}");
        assert!(told[0].contains("warn 2 log lines before this one could not be written: No space left"), "{told:?}");
        assert!(told[1].ends_with("info three") && told[2].ends_with("info four"), "{told:?}");
        assert_eq!(output.lost_total, 2);
    }

    /// Takes as many bytes of each write as it was told to, interrupted before each.
    struct Stingy {
        takes: Vec<usize>,
        taken: Vec<u8>,
        interrupted: bool,
    }

    impl Write for Stingy {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.interrupted = !self.interrupted;
            if self.interrupted {
                return Err(ErrorKind::Interrupted.into());
            }
            let takes = self.takes.pop().unwrap_or(bytes.len());
            self.taken.extend_from_slice(&bytes[..takes]);
            Ok(takes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_that_was_cut_off_does_not_swallow_the_next() {
        let mut output = Output::new(Stingy { takes: vec![0, 3], taken: Vec::new(), interrupted: false });
        output.target = Target::Journal;
        output.line(Level::Info, "first");
        output.line(Level::Info, "second");
        assert_eq!((output.lost_total, output.torn), (2, true));
        output.line(Level::Info, "third");
        let told = String::from_utf8(output.stderr.taken).expect("UTF-8");
        assert_eq!(
            told,
            "<6>\n<4>2 log lines before this one could not be written: only a part of the line was taken\n<6>third\n"
        );
    }

    fn syslogd(path: &Path) -> UnixDatagram {
        let _ = fs::remove_file(path);
        let socket = UnixDatagram::bind(path).expect("bind");
        socket.set_nonblocking(true).expect("nonblocking");
        socket
    }

    fn received(by: &UnixDatagram) -> Option<String> {
        let mut datagram = [0; 1024];
        let length = by.recv(&mut datagram).ok()?;
        Some(String::from_utf8_lossy(&datagram[..length]).into_owned())
    }

    #[test]
    fn syslog_gets_one_datagram_a_line_with_priority_and_pid() {
        let place = place();
        let path = place.path().join("log");
        let here = syslogd(&path);
        let output = &mut to(Target::Syslog(Syslog::open("fdpassd", &path).expect("open")));
        let (daemon, pid) = (3 << 3, process::id());
        for (level, severity) in [(Level::Error, 3), (Level::Warn, 4), (Level::Info, 6), (Level::Trace, 7)] {
            output.line(level, "worker 17");
            let line = received(&here).expect("a datagram");
            assert!(line.starts_with(&format!("<{}>", daemon | severity)), "{line}");
            assert!(line.ends_with(&format!(" fdpassd[{pid}]: worker 17")), "{line}");
            assert_eq!(received(&here), None);
        }
    }

    #[test]
    fn a_syslogd_that_does_not_read_makes_nobody_wait() {
        let place = place();
        let path = place.path().join("log");
        let here = syslogd(&path);
        let output = &mut to(Target::Syslog(Syslog::open("fdpassd", &path).expect("open")));
        (0..1000).for_each(|n| output.line(Level::Info, &format!("line {n}")));
        let mut kept = 0;
        while received(&here).is_some() {
            kept += 1;
        }
        assert_eq!(output.lost_total + kept, 1000);
        assert!(output.lost_total > 0);
        output.line(Level::Info, "again");
        assert!(received(&here).expect("the gap").contains("log lines before this one could not be written"));
        assert!(received(&here).expect("the line").ends_with("again"));
    }

    #[test]
    fn a_syslogd_that_comes_back_gets_lines_again_and_standard_error_has_those_between() {
        let place = place();
        let path = place.path().join("log");
        let output = &mut to(Target::Syslog(Syslog::open("fdpassd", &path).expect("open")));
        output.line(Level::Info, "before it was there");
        drop(syslogd(&path));
        output.line(Level::Info, "while nobody had it open");
        let here = syslogd(&path);
        output.line(Level::Info, "after");
        assert!(received(&here).expect("a datagram").ends_with("after"));
        assert_eq!(lines(&output.stderr), ["info before it was there", "info while nobody had it open"]);
        assert_eq!(output.lost_total, 0);
    }

    /// A value whose text logs, fails, and would forge a line.
    struct Nasty;

    impl std::fmt::Display for Nasty {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            log::error!("from within");
            f.write_str("a\nb\x1b[2J\u{202e}")?;
            Err(std::fmt::Error)
        }
    }

    /// The only test that goes through the global logger; tests of other modules may log into its file.
    #[test]
    fn the_facade_filters_escapes_and_turns_to_other_targets() {
        let place = place();
        let file = |name: &str| Some(place.path().join(name));
        let settings = |name, level| Log { target: LogTarget::File, file: file(name), level };
        let read = |name: &str| fs::read_to_string(place.path().join(name)).expect("read");

        start("fdpassd", &settings("one", LogLevel::Info)).expect("start");
        log::info!("seen {}", Nasty);
        log::debug!("unseen");
        start("fdpassd", &settings("two", LogLevel::Debug)).expect("start again");
        log::debug!("seen too");
        start("fdpassd", &settings("no/such/folder", LogLevel::Error)).expect_err("no such folder");
        log::debug!("and still");
        let prepared = prepare("fdpassd", &settings("three", LogLevel::Info)).expect("a file that can be opened");
        log::debug!("and before it is wanted");
        prepared.commit();
        log::debug!("unseen");
        log::info!("there");
        reopen().expect("reopen");
        start("fdpassd", &Log { target: LogTarget::File, file: None, level: LogLevel::Info }).expect_err("no file");
        assert_eq!(errors(), 0);
        start("fdpassd", &Log { target: LogTarget::Auto, file: None, level: LogLevel::Error }).expect("start");

        let [one, two, three] = ["one", "two", "three"].map(read);
        assert!(one.contains("error from within\n"), "{one}");
        assert!(one.contains(r"info seen a\nb\x1b[2J\u{202e}"), "{one}");
        assert!(!one.contains("unseen") && !one.contains("seen too"), "{one}");
        assert!(two.contains("debug seen too\n") && two.contains("debug and still\n"), "{two}");
        assert!(two.contains("debug and before it is wanted\n") && !two.contains("there"), "{two}");
        assert!(three.contains("info there\n") && !three.contains("unseen"), "{three}");
    }
}
