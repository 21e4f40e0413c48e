//! Standard output and standard error of an app: each line becomes a line of the log.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use log::Level;

use crate::proto::text::Escaped;
use crate::sys::fd;

/// The longest line, in bytes; the rest of a longer one is further lines.
const MAX_LINE: usize = 4096;

/// The most bytes read from one stream in one iteration of the loop.
const MAX_READ: usize = 16 * 1024;

/// The number of last lines that are kept to find the reason of the app's end. In traces of Node.js and Go, other lines
/// follow the one with the reason.
const LAST_LINES: usize = 32;

/// How old a line may be to explain the app's end.
const MAX_AGE: Duration = Duration::from_secs(5);

/// The target of the lines in the log.
const TARGET: &str = "app";

/// The most reads of what an app has written before its end.
const MAX_LAST_READS: usize = 64;

/// One output stream of an app.
#[derive(Debug)]
pub(in crate::worker) struct OutputStream {
    pipe: File,
    /// The beginning of a line.
    partial: Vec<u8>,
    /// The level of lines without a prefix.
    level: Level,
    has_ended: bool,
}

/// The last lines that an app has written, and when the worker read them.
#[derive(Debug, Default)]
pub(in crate::worker) struct LastLines(VecDeque<(Instant, String)>);

impl LastLines {
    fn push(&mut self, line: &str) {
        if self.0.len() == LAST_LINES {
            self.0.pop_front();
        }
        self.0.push_back((Instant::now(), line.to_owned()));
    }

    /// Returns the line that explains the app's end, if it has written lines shortly before, and the place in its sources
    /// that they name: `SyntaxError: invalid syntax (/srv/app.py:16)`.
    ///
    /// The line is the last `panic: ` or `fatal error: ` of Go, whose trace follows; otherwise the last line that begins
    /// a sentence, as traces of Node.js end with indented lines, braces and a version, those of Rust with a note, those
    /// of Python with the exception.
    pub(in crate::worker) fn reason(&self, now: Instant) -> Option<String> {
        let recent: Vec<&str> = self
            .0
            .iter()
            .filter(|(read, _)| *read + MAX_AGE >= now)
            .map(|(_, line)| line.as_str())
            .collect();
        let is_of_go =
            |line: &&str| line.starts_with("panic: ") || line.starts_with("fatal error: ");
        let is_sentence = |line: &&str| {
            let is_added = line.starts_with("Node.js v") || line.starts_with("note: ");
            line.starts_with(char::is_alphanumeric) && !is_added
        };
        let (line, place) = match recent.iter().rposition(is_of_go) {
            // The first frame is the innermost one.
            Some(index) => {
                let place = recent[index..].iter().find_map(|line| go_frame(line));
                (recent[index], place)
            }
            None => {
                let mut latest = recent.iter().rev().copied();
                let line = latest.clone().find(is_sentence).or(latest.next())?;
                (line, recent.iter().rev().find_map(|line| place_in(line)))
            }
        };
        Some(match place.filter(|place| !line.contains(place)) {
            Some(place) => format!("{line} ({place})"),
            None => line.to_owned(),
        })
    }
}

/// Returns the place that a line of a trace names, as `FILE:LINE`, in Python, Node.js or Rust.
fn place_in(line: &str) -> Option<String> {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if let Some(frame) = line.trim_start().strip_prefix("File \"") {
        let (file, rest) = frame.split_once("\", line ")?;
        let number = rest.split(',').next().filter(|number| is_number(number))?;
        return Some(format!("{file}:{number}"));
    }
    if let Some((_, place)) = line.split_once(" panicked at ") {
        return Some(place.trim_end_matches(':').to_owned());
    }
    // Above the code that Node.js shows, alone in its line.
    let place = line.strip_prefix("file://").unwrap_or(line);
    let (file, number) = place.rsplit_once(':')?;
    let is_alone = file.starts_with('/') && is_number(number);
    is_alone.then(|| place.to_owned())
}

/// Returns the place that a line of a trace of Go names, as `FILE:LINE`.
fn go_frame(line: &str) -> Option<String> {
    let (place, _) = line.strip_prefix('\t')?.split_once(" +0x")?;
    Some(place.to_owned())
}

/// Logs what the app has written, up to a limit.
pub(super) fn read_to_end(streams: &mut Option<[OutputStream; 2]>, last: &mut LastLines) {
    for stream in streams.iter_mut().flatten() {
        for _ in 0..MAX_LAST_READS {
            if !stream.read(last) {
                break;
            }
        }
    }
}

impl OutputStream {
    /// Returns the stream of a new pipe, and the end of the pipe for the app.
    ///
    /// # Errors
    /// Those of pipe2(2) and fcntl(2).
    pub(in crate::worker) fn new(level: Level) -> io::Result<(OutputStream, OwnedFd)> {
        let (read, write) = fd::pipe()?;
        // Only this end: an app whose end did not block would lose lines.
        fd::set_nonblocking(&read)?;
        let stream = OutputStream {
            pipe: File::from(read),
            partial: Vec::new(),
            level,
            has_ended: false,
        };
        Ok((stream, write))
    }

    /// Returns whether every holder of the other end has closed it.
    pub(in crate::worker) fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// Logs the lines that have arrived, up to a limit. Returns whether there may be more.
    pub(in crate::worker) fn read(&mut self, last: &mut LastLines) -> bool {
        let mut buffer = [0; MAX_READ];
        match self.pipe.read(&mut buffer) {
            Ok(0) => {
                self.has_ended = true;
                self.end_line(last);
                false
            }
            Ok(count) => {
                self.take(&buffer[..count], last);
                count == MAX_READ
            }
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => false,
            Err(_) => {
                self.has_ended = true;
                false
            }
        }
    }

    fn take(&mut self, mut bytes: &[u8], last: &mut LastLines) {
        while !bytes.is_empty() {
            let space = MAX_LINE - self.partial.len();
            let newline = bytes.iter().position(|byte| *byte == b'\n');
            let end = newline.unwrap_or(bytes.len()).min(space);
            self.partial.extend_from_slice(&bytes[..end]);
            let is_line = newline == Some(end);
            bytes = &bytes[end + usize::from(is_line)..];
            if is_line || self.partial.len() == MAX_LINE {
                self.end_line(last);
            }
        }
    }

    fn end_line(&mut self, last: &mut LastLines) {
        if self.partial.is_empty() {
            return;
        }
        let line = String::from_utf8_lossy(&self.partial);
        let (level, text) = level_of(&line).unwrap_or((self.level, &line));
        // With this target, the text format appends the fields, such as the number of the worker.
        log::log!(target: TARGET, level, "app: {}", Escaped(text));
        last.push(text);
        self.partial.clear();
    }
}

impl AsFd for OutputStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}

/// Splits the level from a line that begins with one, such as `<4>` (sd-daemon(3)).
fn level_of(line: &str) -> Option<(Level, &str)> {
    let rest = line.strip_prefix('<')?;
    let (digit, text) = rest.split_once('>')?;
    let level = match digit {
        "0" | "1" | "2" | "3" => Level::Error,
        "4" => Level::Warn,
        "5" | "6" => Level::Info,
        "7" => Level::Debug,
        _ => return None,
    };
    Some((level, text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_prefix_is_the_level_of_its_line() {
        assert_eq!(level_of("<3>no"), Some((Level::Error, "no")));
        assert_eq!(level_of("<6>"), Some((Level::Info, "")));
        for other in ["<8>no", "<33>no", "<>no", "<3 no", "3>no"] {
            assert_eq!(level_of(other), None, "{other}");
        }
    }

    #[test]
    fn lines_are_cut_at_newlines_and_at_the_limit() {
        let (mut stream, end) = OutputStream::new(Level::Info).expect("a pipe");
        let (mut app, mut last) = (File::from(end), LastLines::default());
        app.write_all(b"one\n\ntw").expect("write");
        assert!(!stream.read(&mut last));
        assert_eq!(last.0[0].1, "one");
        app.write_all(b"o\n").expect("write");
        app.write_all(&[b'x'; MAX_LINE + 3]).expect("write");
        assert!(!stream.read(&mut last));
        assert_eq!(last.0[2].1.len(), MAX_LINE);
        drop(app);
        assert!(!stream.read(&mut last) && stream.has_ended());
        assert_eq!(last.0[3].1, "xxx");
        assert_eq!(last.0[1].1, "two");
    }

    #[test]
    fn a_read_of_a_flood_ends_at_the_limit() {
        let (mut stream, end) = OutputStream::new(Level::Debug).expect("a pipe");
        let (mut app, mut last) = (File::from(end), LastLines::default());
        app.write_all(&[b'\n'; 2 * MAX_READ]).expect("write");
        for may_be_more in [true, true, false] {
            assert_eq!(stream.read(&mut last), may_be_more);
        }
    }

    #[test]
    fn the_reason_of_an_end_is_the_error_of_each_runtime() {
        let reason = |text: &str| {
            let mut last = LastLines::default();
            text.lines()
                .filter(|line| !line.is_empty())
                .for_each(|line| last.push(line));
            last.reason(Instant::now())
        };
        let python = "Traceback (most recent call last):\n  File \"app.py\", line 1, in <module>\n    import shop\n\
                      ModuleNotFoundError: No module named 'shop'\n";
        let node = "file:///srv/app.js:3\nconst x = ;\n          ^\n\nSyntaxError: Unexpected token ';'\n    \
                    at compile (node:internal)\n\nNode.js v20.20.2\n";
        let code = "node:internal:217\nError: Cannot find module\n    at run (node:internal) {\n  code: 'E'\n}\n\n\
                    Node.js v20.20.2\n";
        let go = "starting\npanic: no database\n\ngoroutine 1 [running]:\nmain.main()\n\t/srv/main.go:17 +0xaf\n";
        for (text, expected) in [
            (
                python,
                "ModuleNotFoundError: No module named 'shop' (app.py:1)",
            ),
            (node, "SyntaxError: Unexpected token ';' (/srv/app.js:3)"),
            (code, "Error: Cannot find module"),
            (go, "panic: no database (/srv/main.go:17)"),
            (
                "thread 'main' panicked at a.rs:1:1:\nno database\nnote: run with\n",
                "no database (a.rs:1:1)",
            ),
            ("File \"app.py\", line x\na: b\n", "a: b"),
            (":1\n:\nFile \"\nno database", "no database"),
            ("no database\n", "no database"),
            ("    ...\n", "    ..."),
        ] {
            assert_eq!(reason(text).as_deref(), Some(expected), "{text}");
        }
        assert_eq!(reason(""), None);
        let mut old = LastLines::default();
        old.push("long ago");
        assert_eq!(old.reason(Instant::now() + 2 * MAX_AGE), None);
    }
}
