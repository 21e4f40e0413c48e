//! The one output of a process: each line in one piece, or counted.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::RawFd;
use std::time::{Instant, SystemTime};

use log::Level;

use super::format::{for_file, for_journal_stream, for_machines, for_people};
use super::line::Line;
use super::repeats::Repeats;
use super::target::{LogDestination, open_file, write_line};
use crate::proto::channel::LogFormat;
use crate::proto::text::Counted;

/// Where lines go, and what has become of them.
pub(super) struct Output<E> {
    name: String,
    target: LogDestination,
    stderr: E,
    /// The last write ended within a line.
    torn: bool,
    pub(super) lost_total: u64,
    /// Lines lost since the last one that was written, and why the last of them was.
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

    pub(super) fn turn_to(&mut self, name: &str, target: LogDestination) {
        self.tell_repeats();
        self.name = name.to_owned();
        self.target = target;
        self.torn = false;
    }

    pub(super) fn descriptor(&self) -> Option<RawFd> {
        self.target.descriptor()
    }

    /// Another descriptor of the file that lines go to.
    pub(super) fn copy_of_file(&self) -> Option<File> {
        if let LogDestination::File(_, file, _) = &self.target {
            file.copy().ok()
        } else {
            None
        }
    }

    pub(super) fn reopen(&mut self) -> io::Result<()> {
        self.tell_repeats();
        if let LogDestination::File(path, file, _) = &mut self.target {
            *file = open_file(path)?;
            self.torn = false;
        }
        Ok(())
    }

    /// Writes a line, unless it is one more of the same.
    pub(super) fn line(&mut self, line: Line, now: Instant) {
        if self.repeats.count(&line, now) {
            return;
        }
        self.tell_repeats();
        // One that was lost would be missed when only those after it are counted.
        if self.put(&line) {
            self.repeats.remember(line, now);
        }
    }

    /// Writes how often the last line came again. The next one is written in any case.
    pub(super) fn tell_repeats(&mut self) {
        if let Some(line) = self.repeats.take() {
            self.put(&line);
        }
    }

    /// Writes one line, and before it how many could not be; whether it was written.
    fn put(&mut self, line: &Line) -> bool {
        let written = match &self.gap {
            None => self.write(line),
            Some((lines, cause)) => {
                let gap = format!(
                    "{} before this one could not be written: {cause}",
                    Counted(*lines, "log line")
                );
                self.write(&Line::new(Level::Warn, gap)).and_then(|()| {
                    self.gap = None;
                    self.write(line)
                })
            }
        };
        let Err(cause) = written else { return true };
        self.lost_total += 1;
        self.gap = Some((self.gap.take().map_or(0, |(lines, _)| lines) + 1, cause));
        false
    }

    fn write(&mut self, line: &Line) -> io::Result<()> {
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
                // Standard error leads there as well, by another way.
                Err(_) => write_line(stderr, torn, for_journal_stream(line)),
                sent => sent,
            },
            LogDestination::Syslog(syslog) => match syslog.send(line) {
                // A syslogd that is there and does not keep up loses lines; one that is not there has a stand-in.
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
    use std::path::Path;
    use std::process;

    use tempfile::TempDir;

    use super::super::journal::Journal;
    use super::super::syslog::Syslog;
    use crate::proto::channel::{Log, LogLevel, LogTarget};

    impl<E: Write> Output<E> {
        fn say(&mut self, level: Level, message: impl Into<String>) {
            self.line(Line::new(level, message), Instant::now());
        }
    }

    fn to(target: LogDestination) -> Output<Vec<u8>> {
        let mut output = Output::new(Vec::new());
        output.turn_to("fdpassd", target);
        output
    }

    fn to_file(path: &Path) -> Output<Vec<u8>> {
        let settings = Log {
            target: LogTarget::File,
            file: Some(path.to_owned()),
            format: LogFormat::Text,
            level: LogLevel::Info,
        };
        to(LogDestination::open("fdpassd", &settings).expect("open"))
    }

    fn place() -> TempDir {
        tempfile::tempdir().expect("a directory")
    }

    /// The lines without their timestamps.
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
        output.say(Level::Info, "ready");
        output.turn_to("fdpassd", LogDestination::Stderr(LogFormat::Json));
        output.say(Level::Warn, "worker 17");
        assert_eq!(lines(&output.stderr)[0], "info ready");
        assert!(output.stderr.ends_with(b",\"message\":\"worker 17\"}\n"));
    }

    #[test]
    fn a_file_is_opened_again_after_it_was_renamed() {
        let place = place();
        let (path, old) = (place.path().join("log"), place.path().join("log.1"));
        let mut output = to_file(&path);
        output.say(Level::Info, "one");
        fs::rename(&path, &old).expect("rename");
        output.say(Level::Info, "two");
        output.reopen().expect("reopen");
        output.say(Level::Info, "three");

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
    fn a_file_that_cannot_be_opened_again_is_kept() {
        let place = place();
        let (folder, moved) = (place.path().join("folder"), place.path().join("moved"));
        fs::create_dir(&folder).expect("mkdir");
        let mut output = to_file(&folder.join("log"));
        fs::rename(&folder, &moved).expect("rename");
        let error = output.reopen().expect_err("the folder is gone");
        assert!(
            error.to_string().starts_with("cannot open log file /"),
            "{error}"
        );
        output.say(Level::Info, "still here");
        assert_eq!(
            fs::read_to_string(moved.join("log"))
                .expect("read")
                .lines()
                .count(),
            1
        );
    }

    #[test]
    fn lines_that_a_full_disk_does_not_take_are_counted_and_told_of() {
        let place = place();
        let mut output = to_file(Path::new("/dev/full"));
        output.say(Level::Error, "one");
        output.say(Level::Error, "two");
        assert_eq!(output.lost_total, 2);

        let path = place.path().join("log");
        let LogDestination::File(_, file, _) = &mut output.target else {
            panic!("the target is a file")
        };
        *file = open_file(&path).expect("open");
        output.say(Level::Info, "three");
        output.say(Level::Info, "four");
        let told = lines(&fs::read(&path).expect("read"));
        assert_eq!(told.len(), 3, "{told:?}");
        assert!(
            told[0]
                .contains("warn 2 log lines before this one could not be written: No space left"),
            "{told:?}"
        );
        assert!(
            told[1].ends_with("info three") && told[2].ends_with("info four"),
            "{told:?}"
        );
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
        let place = place();
        let mut output = Output::new(Stingy {
            takes: vec![0, 3],
            taken: Vec::new(),
            interrupted: false,
        });
        output.target = journal_at(&place.path().join("nobody"));
        output.say(Level::Info, "first");
        output.say(Level::Info, "second");
        assert_eq!((output.lost_total, output.torn), (2, true));
        output.say(Level::Info, "third");
        let told = String::from_utf8(output.stderr.taken).expect("UTF-8");
        assert_eq!(
            told,
            "<6>\n<4>2 log lines before this one could not be written: only a part of the line was taken\n<6>third\n"
        );
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
        let place = place();
        let path = place.path().join("log");
        let here = listen(&path);
        let output = &mut to(LogDestination::Syslog(
            Syslog::open("fdpassd", &path).expect("open"),
        ));
        let (daemon, pid) = (3 << 3, process::id());
        for (level, severity) in [
            (Level::Error, 3),
            (Level::Warn, 4),
            (Level::Info, 6),
            (Level::Trace, 7),
        ] {
            output.say(level, "worker 17");
            let line = received(&here).expect("a datagram");
            assert!(
                line.starts_with(&format!("<{}>", daemon | severity)),
                "{line}"
            );
            assert!(
                line.ends_with(&format!(" fdpassd[{pid}]: worker 17")),
                "{line}"
            );
            assert_eq!(received(&here), None);
        }
    }

    #[test]
    fn a_syslogd_that_does_not_read_makes_nobody_wait() {
        let place = place();
        let path = place.path().join("log");
        let here = listen(&path);
        let output = &mut to(LogDestination::Syslog(
            Syslog::open("fdpassd", &path).expect("open"),
        ));
        (0..1000).for_each(|n| output.say(Level::Info, format!("line {n}")));
        let mut kept = 0;
        while received(&here).is_some() {
            kept += 1;
        }
        assert_eq!(output.lost_total + kept, 1000);
        assert!(output.lost_total > 0);
        output.say(Level::Info, "again");
        assert!(
            received(&here)
                .expect("the gap")
                .contains("log lines before this one could not be written")
        );
        assert!(received(&here).expect("the line").ends_with("again"));
    }

    #[test]
    fn a_syslogd_that_comes_back_gets_lines_again_and_standard_error_has_those_between() {
        let place = place();
        let path = place.path().join("log");
        let output = &mut to(LogDestination::Syslog(
            Syslog::open("fdpassd", &path).expect("open"),
        ));
        output.say(Level::Info, "before it was there");
        drop(listen(&path));
        output.say(Level::Info, "while nobody had it open");
        let here = listen(&path);
        output.say(Level::Info, "after");
        assert!(received(&here).expect("a datagram").ends_with("after"));
        assert_eq!(
            lines(&output.stderr),
            ["info before it was there", "info while nobody had it open"]
        );
        assert_eq!(output.lost_total, 0);
    }

    #[test]
    fn syslogd_on_a_stream_gets_each_line_with_its_end() {
        use std::io::Read;
        use std::os::unix::net::UnixListener;

        let place = place();
        let path = place.path().join("log");
        let listener = UnixListener::bind(&path).expect("bind");
        let output = &mut to(LogDestination::Syslog(
            Syslog::open("fdpassd", &path).expect("open"),
        ));
        output.say(Level::Info, "one");
        output.say(Level::Info, "two");
        let (mut first, _) = listener.accept().expect("it has connected");
        let mut bytes = vec![0; 200];
        let n = first.read(&mut bytes).expect("lines");
        let text = String::from_utf8_lossy(&bytes[..n]).into_owned();
        let messages: Vec<&str> = text
            .split_terminator('\0')
            .map(|line| &line[line.len() - 5..])
            .collect();
        assert_eq!(messages, [": one", ": two"], "{text:?}");
        // syslogd is started again.
        drop((first, listener));
        fs::remove_file(&path).expect("it is our directory");
        let listener = UnixListener::bind(&path).expect("bind");
        output.say(Level::Info, "three");
        let (mut second, _) = listener.accept().expect("it has connected again");
        let n = second.read(&mut bytes).expect("a line");
        assert!(
            bytes[..n].ends_with(b": three\0"),
            "{:?}",
            String::from_utf8_lossy(&bytes[..n])
        );
        assert_eq!((output.lost_total, output.stderr.len()), (0, 0));
    }

    fn journal_at(path: &Path) -> LogDestination {
        LogDestination::Journal(Journal::open("fdpassd", path).expect("open"))
    }

    #[test]
    fn the_journal_gets_one_datagram_a_line_and_standard_error_nothing() {
        let place = place();
        let path = place.path().join("journal");
        let here = listen(&path);
        let output = &mut to(journal_at(&path));
        output.line(
            Line::from_parts(Level::Warn, "worker 17 died", &[("worker", 17_u64.into())]),
            Instant::now(),
        );
        let entry = received(&here).expect("a datagram");
        assert!(
            entry.starts_with("MESSAGE=worker 17 died\nPRIORITY=4\n"),
            "{entry}"
        );
        assert!(
            entry.ends_with("\nSYSLOG_IDENTIFIER=fdpassd\nFDPASSD_WORKER=17\n"),
            "{entry}"
        );
        assert_eq!(
            (received(&here), output.stderr.as_slice(), output.lost_total),
            (None, &b""[..], 0)
        );
    }

    #[test]
    fn what_the_journal_does_not_take_goes_to_standard_error() {
        let place = place();
        let path = place.path().join("journal");
        let output = &mut to(journal_at(&path));
        output.say(Level::Info, "before it was there");
        drop(listen(&path));
        output.say(Level::Warn, "while nobody had it open");
        assert_eq!(
            output.stderr,
            b"<6>before it was there\n<4>while nobody had it open\n"
        );

        let here = listen(&path);
        output.stderr.clear();
        output.say(Level::Error, "x".repeat(1 << 20));
        assert_eq!(
            (output.stderr.len(), received(&here)),
            ("<3>\n".len() + (1 << 20), None)
        );
        output.stderr.clear();
        (0..1000).for_each(|n| output.say(Level::Info, format!("line {n}")));
        let taken = std::iter::from_fn(|| received(&here)).count();
        assert!(
            taken > 0 && output.stderr.starts_with(b"<6>line "),
            "{taken}"
        );
        assert_eq!(lines(&output.stderr).len() + taken, 1000);
        output.say(Level::Info, "after");
        assert!(
            received(&here)
                .expect("a datagram")
                .starts_with("MESSAGE=after\n")
        );
        assert_eq!(output.lost_total, 0);
    }

    #[test]
    fn a_line_is_lost_when_neither_the_journal_nor_standard_error_takes_it() {
        let place = place();
        let path = place.path().join("journal");
        let mut output = Output::new(Stingy {
            takes: vec![0],
            taken: Vec::new(),
            interrupted: false,
        });
        output.turn_to("fdpassd", journal_at(&path));
        output.say(Level::Info, "lost");
        let here = listen(&path);
        output.say(Level::Info, "after");
        let gap = "MESSAGE=1 log line before this one could not be written: only a part of the line was taken\n";
        assert!(received(&here).expect("the gap").starts_with(gap));
        assert!(
            received(&here)
                .expect("the line")
                .starts_with("MESSAGE=after\n")
        );
        assert_eq!((output.lost_total, output.stderr.taken), (1, Vec::new()));
    }

    #[test]
    fn a_line_is_counted_while_it_is_the_same_and_told_of_where_it_was_written() {
        let place = place();
        let (path, old) = (place.path().join("log"), place.path().join("log.1"));
        let mut output = to_file(&path);
        let same = |output: &mut Output<_>| (0..3).for_each(|_| output.say(Level::Warn, "a"));
        same(&mut output);
        fs::rename(&path, &old).expect("rename");
        output.reopen().expect("reopen");
        same(&mut output);
        output.turn_to("fdpassd", LogDestination::Stderr(LogFormat::Text));
        same(&mut output);
        output.tell_repeats();
        output.tell_repeats();
        for bytes in [
            fs::read(&old).expect("read"),
            fs::read(&path).expect("read"),
            output.stderr,
        ] {
            let told = lines(&bytes);
            assert_eq!(told.len(), 2, "{told:?}");
            assert!(
                told[0].ends_with("warn a")
                    && told[1].ends_with("warn last message repeated 2 times"),
                "{told:?}"
            );
        }
    }

    #[test]
    fn a_line_that_was_lost_does_not_have_those_after_it_counted() {
        let mut output = to_file(Path::new("/dev/full"));
        (0..3).for_each(|_| output.say(Level::Error, "a"));
        assert_eq!(output.lost_total, 3);
        output.tell_repeats();
        assert_eq!(output.lost_total, 3);
    }
}
