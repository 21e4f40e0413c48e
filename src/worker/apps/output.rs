//! Standard output and standard error of an app: each line becomes a line of the log.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use log::Level;

use crate::proto::text::Escaped;
use crate::sys::fd;

/// The longest line, in bytes; the rest of a longer one is further lines.
const MAX_LINE: usize = 4096;

/// The most bytes read from one stream in one iteration of the loop.
const MAX_READ: usize = 16 * 1024;

/// The lines kept for the reason of the app's end.
const LAST_LINES: usize = 8;

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

/// The last lines that an app has written.
#[derive(Debug, Default)]
pub(in crate::worker) struct LastLines(VecDeque<String>);

impl LastLines {
    fn push(&mut self, line: &str) {
        if self.0.len() == LAST_LINES {
            self.0.pop_front();
        }
        self.0.push_back(line.to_owned());
    }

    /// Returns the last line.
    pub(in crate::worker) fn last(&self) -> Option<&str> {
        self.0.back().map(String::as_str)
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
        log::log!(level, "app: {}", Escaped(text));
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
        assert_eq!(last.last(), Some("one"));
        app.write_all(b"o\n").expect("write");
        app.write_all(&[b'x'; MAX_LINE + 3]).expect("write");
        assert!(!stream.read(&mut last));
        assert_eq!(last.last().map(str::len), Some(MAX_LINE));
        drop(app);
        assert!(!stream.read(&mut last) && stream.has_ended());
        assert_eq!(last.last(), Some("xxx"));
        assert_eq!(last.0[1], "two");
    }
}
