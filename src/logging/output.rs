//! The log output of a process: each line is written in one piece, or counted.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::RawFd;
use std::time::{Instant, SystemTime};

use log::Level;

use super::format::{for_file, for_journal_stream, for_machines, for_people};
use super::line::Line;
use super::repeats::Repeats;
use super::target::{LogDestination, open_file, write_line};
use crate::proto::log::LogFormat;
use crate::proto::text::Counted;

/// The target of log lines, and counts of lost and repeated ones.
pub(super) struct Output<E> {
    name: String,
    target: LogDestination,
    stderr: E,
    /// Whether the last write ended within a line.
    torn: bool,
    pub(super) lost_total: u64,
    /// The number of lines lost since the last one that was written, and the last cause.
    gap: Option<(u64, io::Error)>,
    repeats: Repeats,
}

impl<E: Write> Output<E> {
    pub(super) const fn new(stderr: E) -> Output<E> {
        let target = LogDestination::Stderr(LogFormat::Text);
        Output {
            name: String::new(),
            target,
            stderr,
            torn: false,
            lost_total: 0,
            gap: None,
            repeats: Repeats::new(),
        }
    }

    pub(super) fn set_target(&mut self, name: &str, target: LogDestination) {
        self.write_repeats();
        self.name = name.to_owned();
        self.target = target;
        self.torn = false;
    }

    /// Returns whether lines are text on standard error.
    pub(super) fn is_text_on_stderr(&self) -> bool {
        matches!(self.target, LogDestination::Stderr(LogFormat::Text))
    }

    /// Returns whether lines go to the journal.
    pub(super) fn is_journal(&self) -> bool {
        matches!(self.target, LogDestination::Journal(_))
    }

    pub(super) fn descriptor(&self) -> Option<RawFd> {
        self.target.descriptor()
    }

    /// Returns another descriptor of the file that lines go to.
    pub(super) fn copy_of_file(&self) -> Option<File> {
        if let LogDestination::File(_, file, _) = &self.target {
            file.copy().ok()
        } else {
            None
        }
    }

    pub(super) fn reopen(&mut self) -> io::Result<bool> {
        self.write_repeats();
        let LogDestination::File(path, file, _) = &mut self.target else {
            return Ok(false);
        };
        *file = open_file(path)?;
        self.torn = false;
        Ok(true)
    }

    /// Writes a line, or counts it if it repeats the last one.
    pub(super) fn write(&mut self, line: Line, now: Instant) {
        if self.repeats.count(&line, now) {
            return;
        }
        self.write_repeats();
        // If a lost line were remembered, the log would have its repetitions and not the line.
        if self.write_or_count(&line) {
            self.repeats.remember(line, now);
        }
    }

    /// Writes the number of repetitions of the last line. The next line is written even if it is another repetition.
    pub(super) fn write_repeats(&mut self) {
        if let Some(line) = self.repeats.take() {
            self.write_or_count(&line);
        }
    }

    /// Writes a line, preceded by the number of lost ones, or counts it as lost. Returns whether it was written.
    fn write_or_count(&mut self, line: &Line) -> bool {
        let written = match &self.gap {
            None => self.send(line),
            Some((lines, cause)) => {
                let gap = format!(
                    "{} before this one could not be written: {cause}",
                    Counted(*lines, "log line")
                );
                self.send(&Line::new(Level::Warn, gap)).and_then(|()| {
                    self.gap = None;
                    self.send(line)
                })
            }
        };
        let Err(cause) = written else { return true };
        self.lost_total += 1;
        self.gap = Some((self.gap.take().map_or(0, |(lines, _)| lines) + 1, cause));
        false
    }

    fn send(&mut self, line: &Line) -> io::Result<()> {
        let Output {
            name,
            target,
            stderr,
            torn,
            ..
        } = self;
        let now = SystemTime::now();
        match target {
            LogDestination::Stderr(LogFormat::Text) => {
                write_line(stderr, torn, for_people(now, line))
            }
            LogDestination::Stderr(LogFormat::Json) => {
                write_line(stderr, torn, for_machines(now, name, line))
            }
            LogDestination::File(_, file, LogFormat::Text) => {
                write_line(file, torn, for_file(now, name, line))
            }
            LogDestination::File(_, file, LogFormat::Json) => {
                write_line(file, torn, for_machines(now, name, line))
            }
            LogDestination::Journal(journal) => match journal.send(line) {
                // Standard error is connected to the journal as well.
                Err(_) => write_line(stderr, torn, for_journal_stream(line)),
                sent => sent,
            },
            LogDestination::Syslog(syslog) => match syslog.send(line) {
                // A running syslogd that does not keep up loses lines; standard error replaces one that does not run.
                Err(e) if e.kind() != ErrorKind::WouldBlock => {
                    write_line(stderr, torn, for_people(now, line))
                }
                sent => sent,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixDatagram;
    use std::path::{Path, PathBuf};
    use std::process;

    use tempfile::TempDir;

    use super::super::journal::Journal;
    use super::super::syslog::Syslog;
    use crate::proto::log::{Log, LogLevel, LogTarget};

    impl<E: Write> Output<E> {
        fn log(&mut self, level: Level, message: impl Into<String>) {
            self.write(Line::new(level, message), Instant::now());
        }
    }

    fn to(target: LogDestination) -> Output<Vec<u8>> {
        let mut output = Output::new(Vec::new());
        output.set_target("fdpassd", target);
        output
    }

    fn to_file(path: &Path) -> Output<Vec<u8>> {
        let settings = Log {
            target: LogTarget::File,
            file: Some(path.to_owned()),
            format: LogFormat::Text,
            level: LogLevel::Info,
            slow_request: None,
        };
        to(LogDestination::open("fdpassd", &settings).expect("open"))
    }

    fn directory() -> TempDir {
        tempfile::tempdir().expect("a directory")
    }

    fn file_in_directory(name: &str) -> (TempDir, PathBuf) {
        let directory = directory();
        let path = directory.path().join(name);
        (directory, path)
    }

    /// Returns the lines without their timestamps.
    fn lines(bytes: &[u8]) -> Vec<String> {
        let text = String::from_utf8(bytes.to_vec()).expect("UTF-8");
        text.lines()
            .map(|line| {
                line.split_once(' ')
                    .map_or(line, |(_, rest)| rest)
                    .to_owned()
            })
            .collect()
    }

    #[test]
    fn standard_error_gets_whole_lines() {
        let mut output = to(LogDestination::Stderr(LogFormat::Text));
        output.log(Level::Info, "ready");
        output.set_target("fdpassd", LogDestination::Stderr(LogFormat::Json));
        output.log(Level::Warn, "worker 17");
        assert_eq!(lines(&output.stderr)[0], "info ready");
        assert!(output.stderr.ends_with(b",\"message\":\"worker 17\"}\n"));
    }

    #[test]
    fn reopen_follows_a_renamed_file() {
        let directory = directory();
        let (path, old) = (directory.path().join("log"), directory.path().join("log.1"));
        let mut output = to_file(&path);
        output.log(Level::Info, "one");
        fs::rename(&path, &old).expect("rename");
        output.log(Level::Info, "two");
        output.reopen().expect("reopen");
        output.log(Level::Info, "three");

        let prefix = format!("fdpassd[{}] info", process::id());
        assert_eq!(
            lines(&fs::read(&old).expect("read")),
            [format!("{prefix} one"), format!("{prefix} two")]
        );
        assert_eq!(
            lines(&fs::read(&path).expect("read")),
            [format!("{prefix} three")]
        );
        assert_eq!(
            fs::metadata(&path).expect("stat").permissions().mode() & 0o137,
            0
        );
    }

    #[test]
    fn a_file_that_cannot_be_reopened_stays_open() {
        let directory = directory();
        let (folder, moved) = (
            directory.path().join("folder"),
            directory.path().join("moved"),
        );
        fs::create_dir(&folder).expect("mkdir");
        let mut output = to_file(&folder.join("log"));
        fs::rename(&folder, &moved).expect("rename");
        let error = output.reopen().expect_err("the folder is gone");
        assert!(
            error.to_string().starts_with("cannot open log file /"),
            "{error}"
        );
        output.log(Level::Info, "still here");
        assert_eq!(
            fs::read_to_string(moved.join("log"))
                .expect("read")
                .lines()
                .count(),
            1
        );
    }

    #[test]
    fn lines_lost_to_a_full_disk_are_counted_and_reported() {
        let directory = directory();
        let mut output = to_file(Path::new("/dev/full"));
        output.log(Level::Error, "one");
        output.log(Level::Error, "two");
        assert_eq!(output.lost_total, 2);

        let path = directory.path().join("log");
        let LogDestination::File(_, file, _) = &mut output.target else {
            panic!("the target is a file")
        };
        *file = open_file(&path).expect("open");
        output.log(Level::Info, "three");
        output.log(Level::Info, "four");
        let text = lines(&fs::read(&path).expect("read"));
        assert_eq!(text.len(), 3, "{text:?}");
        assert!(
            text[0]
                .contains("warn 2 log lines before this one could not be written: No space left"),
            "{text:?}"
        );
        assert!(
            text[1].ends_with("info three") && text[2].ends_with("info four"),
            "{text:?}"
        );
        assert_eq!(output.lost_total, 2);
    }

    /// Accepts the given number of bytes of each write, interrupted before each.
    #[derive(Default)]
    struct PartialWriter {
        takes: Vec<usize>,
        taken: Vec<u8>,
        interrupted: bool,
    }

    impl Write for PartialWriter {
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
    fn a_truncated_line_does_not_join_the_next() {
        let directory = directory();
        let mut output = Output::new(PartialWriter {
            takes: vec![0, 3],
            ..PartialWriter::default()
        });
        output.target = journal(&directory.path().join("nobody"));
        output.log(Level::Info, "first");
        output.log(Level::Info, "second");
        assert_eq!((output.lost_total, output.torn), (2, true));
        output.log(Level::Info, "third");
        let text = String::from_utf8(output.stderr.taken).expect("UTF-8");
        assert_eq!(
            text,
            "<6>\n<4>2 log lines before this one could not be written: only a part of the line was taken\n<6>third\n"
        );
    }

    fn syslog_at(path: &Path) -> Output<Vec<u8>> {
        to(LogDestination::Syslog(
            Syslog::open("fdpassd", path).expect("open"),
        ))
    }

    fn journal(path: &Path) -> LogDestination {
        LogDestination::Journal(Journal::open("fdpassd", path).expect("open"))
    }

    fn journal_at(path: &Path) -> Output<Vec<u8>> {
        to(journal(path))
    }

    fn listen(path: &Path) -> UnixDatagram {
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
        let (_directory, path) = file_in_directory("log");
        let server = listen(&path);
        let output = &mut syslog_at(&path);
        let (daemon, pid) = (3 << 3, process::id());
        for (level, severity) in Level::iter().zip([3, 4, 6, 7, 7]) {
            output.log(level, "worker 17");
            let line = received(&server).expect("a datagram");
            assert!(
                line.starts_with(&format!("<{}>", daemon | severity)),
                "{line}"
            );
            assert!(
                line.ends_with(&format!(" fdpassd[{pid}]: worker 17")),
                "{line}"
            );
            assert_eq!(received(&server), None);
        }
    }

    #[test]
    fn a_syslogd_that_does_not_read_causes_no_wait() {
        let (_directory, path) = file_in_directory("log");
        let server = listen(&path);
        let output = &mut syslog_at(&path);
        (0..1000).for_each(|n| output.log(Level::Info, format!("line {n}")));
        let mut kept = 0;
        while received(&server).is_some() {
            kept += 1;
        }
        assert_eq!(output.lost_total + kept, 1000);
        assert!(output.lost_total > 0);
        output.log(Level::Info, "again");
        assert!(
            received(&server)
                .expect("the gap")
                .contains("log lines before this one could not be written")
        );
        assert!(received(&server).expect("the line").ends_with("again"));
    }

    #[test]
    fn standard_error_replaces_syslogd_until_it_is_back() {
        let (_directory, path) = file_in_directory("log");
        let output = &mut syslog_at(&path);
        output.log(Level::Info, "before it existed");
        drop(listen(&path));
        output.log(Level::Info, "while it was closed");
        let server = listen(&path);
        output.log(Level::Info, "after");
        assert!(received(&server).expect("a datagram").ends_with("after"));
        assert_eq!(
            lines(&output.stderr),
            ["info before it existed", "info while it was closed"]
        );
        assert_eq!(output.lost_total, 0);
    }

    #[test]
    fn syslogd_on_a_stream_gets_terminated_lines() {
        use std::io::Read;
        use std::os::unix::net::UnixListener;

        let (_directory, path) = file_in_directory("log");
        let listener = UnixListener::bind(&path).expect("bind");
        let output = &mut syslog_at(&path);
        output.log(Level::Info, "one");
        output.log(Level::Info, "two");
        let (mut first, _) = listener.accept().expect("it has connected");
        let mut bytes = vec![0; 200];
        let n = first.read(&mut bytes).expect("lines");
        let text = String::from_utf8_lossy(&bytes[..n]).into_owned();
        let messages: Vec<&str> = text
            .split_terminator('\0')
            .map(|line| &line[line.len() - 5..])
            .collect();
        assert_eq!(messages, [": one", ": two"], "{text:?}");
        // syslogd restarts.
        drop((first, listener));
        fs::remove_file(&path).expect("it is our directory");
        let listener = UnixListener::bind(&path).expect("bind");
        output.log(Level::Info, "three");
        let (mut second, _) = listener.accept().expect("it has connected again");
        let n = second.read(&mut bytes).expect("a line");
        assert!(
            bytes[..n].ends_with(b": three\0"),
            "{:?}",
            String::from_utf8_lossy(&bytes[..n])
        );
        assert_eq!((output.lost_total, output.stderr.len()), (0, 0));
    }

    #[test]
    fn the_journal_gets_one_datagram_for_each_line() {
        let (_directory, path) = file_in_directory("journal");
        let server = listen(&path);
        let output = &mut journal_at(&path);
        output.write(
            Line::from_parts(Level::Warn, "worker 17 died", &[("worker", 17_u64.into())]),
            Instant::now(),
        );
        let entry = received(&server).expect("a datagram");
        assert!(
            entry.starts_with("MESSAGE=worker 17 died\nPRIORITY=4\n"),
            "{entry}"
        );
        assert!(
            entry.ends_with("\nSYSLOG_IDENTIFIER=fdpassd\nFDPASSD_WORKER=17\n"),
            "{entry}"
        );
        assert_eq!(
            (
                received(&server),
                output.stderr.as_slice(),
                output.lost_total
            ),
            (None, &b""[..], 0)
        );
    }

    #[test]
    fn standard_error_gets_lines_that_the_journal_rejects() {
        let (_directory, path) = file_in_directory("journal");
        let output = &mut journal_at(&path);
        output.log(Level::Info, "before it existed");
        drop(listen(&path));
        output.log(Level::Warn, "while it was closed");
        assert_eq!(
            output.stderr,
            b"<6>before it existed\n<4>while it was closed\n"
        );

        let server = listen(&path);
        output.stderr.clear();
        output.log(Level::Error, "x".repeat(1 << 20));
        assert_eq!(
            (output.stderr.len(), received(&server)),
            ("<3>\n".len() + (1 << 20), None)
        );
        output.stderr.clear();
        (0..1000).for_each(|n| output.log(Level::Info, format!("line {n}")));
        let taken = std::iter::from_fn(|| received(&server)).count();
        assert!(
            taken > 0 && output.stderr.starts_with(b"<6>line "),
            "{taken}"
        );
        assert_eq!(lines(&output.stderr).len() + taken, 1000);
        output.log(Level::Info, "after");
        assert!(
            received(&server)
                .expect("a datagram")
                .starts_with("MESSAGE=after\n")
        );
        assert_eq!(output.lost_total, 0);
    }

    #[test]
    fn a_line_that_neither_journal_nor_stderr_takes_is_lost() {
        let (_directory, path) = file_in_directory("journal");
        let mut output = Output::new(PartialWriter {
            takes: vec![0],
            ..PartialWriter::default()
        });
        output.set_target("fdpassd", journal(&path));
        output.log(Level::Info, "lost");
        let server = listen(&path);
        output.log(Level::Info, "after");
        let gap = "MESSAGE=1 log line before this one could not be written: only a part of the line was taken\n";
        assert!(received(&server).expect("the gap").starts_with(gap));
        assert!(
            received(&server)
                .expect("the line")
                .starts_with("MESSAGE=after\n")
        );
        assert_eq!((output.lost_total, output.stderr.taken), (1, Vec::new()));
    }

    #[test]
    fn repetitions_are_reported_where_their_line_was_written() {
        let directory = directory();
        let (path, old) = (directory.path().join("log"), directory.path().join("log.1"));
        let mut output = to_file(&path);
        let same = |output: &mut Output<_>| (0..3).for_each(|_| output.log(Level::Warn, "a"));
        same(&mut output);
        fs::rename(&path, &old).expect("rename");
        output.reopen().expect("reopen");
        same(&mut output);
        output.set_target("fdpassd", LogDestination::Stderr(LogFormat::Text));
        same(&mut output);
        output.write_repeats();
        output.write_repeats();
        for bytes in [
            fs::read(&old).expect("read"),
            fs::read(&path).expect("read"),
            output.stderr,
        ] {
            let text = lines(&bytes);
            assert_eq!(text.len(), 2, "{text:?}");
            assert!(
                text[0].ends_with("warn a")
                    && text[1].ends_with("warn last message repeated 2 times"),
                "{text:?}"
            );
        }
    }

    #[test]
    fn lines_after_a_lost_one_do_not_count_as_repetitions() {
        let mut output = to_file(Path::new("/dev/full"));
        (0..3).for_each(|_| output.log(Level::Error, "a"));
        assert_eq!(output.lost_total, 3);
        output.write_repeats();
        assert_eq!(output.lost_total, 3);
    }
}
