//! The targets of log lines.

use std::env;
use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::journal::{self, Journal};
use super::syslog::{DEV_LOG, Syslog};
use crate::proto::log::{Log, LogFormat, LogTarget};
use crate::sys::fd;
use crate::sys::writable::write_at_once;

#[derive(Debug)]
pub(super) enum LogDestination {
    Stderr(LogFormat),
    Journal(Journal),
    Syslog(Syslog),
    File(PathBuf, LogFile, LogFormat),
}

impl LogDestination {
    /// Returns the descriptor that lines are written to, if it is not standard error.
    pub(super) fn descriptor(&self) -> Option<RawFd> {
        match self {
            LogDestination::Stderr(_) => None,
            LogDestination::Journal(journal) => Some(journal.socket.descriptor()),
            LogDestination::Syslog(syslog) => Some(syslog.socket.descriptor()),
            LogDestination::File(_, file, _) => Some(file.file.as_raw_fd()),
        }
    }

    pub(super) fn open(name: &str, settings: &Log) -> io::Result<LogDestination> {
        match (settings.target, &settings.file) {
            (LogTarget::Auto, _)
                if is_journal(
                    env::var("JOURNAL_STREAM").ok().as_deref(),
                    stderr_identity(),
                ) =>
            {
                Journal::open(name, journal::SOCKET)
                    .map(LogDestination::Journal)
                    .map_err(|e| cannot_open("the journal", &e))
            }
            (LogTarget::Auto | LogTarget::Stderr, _) => Ok(LogDestination::Stderr(settings.format)),
            (LogTarget::Syslog, _) => Syslog::open(name, DEV_LOG)
                .map(LogDestination::Syslog)
                .map_err(|e| cannot_open("syslog", &e)),
            (LogTarget::File, Some(path)) => Ok(LogDestination::File(
                path.clone(),
                open_file(path)?,
                settings.format,
            )),
            (LogTarget::File, None) => Err(io::Error::new(
                ErrorKind::InvalidInput,
                "target \"file\" needs a file",
            )),
        }
    }
}

fn cannot_open(what: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot open {what}: {error}"))
}

pub(super) fn open_file(path: &Path) -> io::Result<LogFile> {
    LogFile::open(path).map_err(|e| cannot_open(&format!("log file {}", path.display()), &e))
}

/// An open log file.
#[derive(Debug)]
pub(super) struct LogFile {
    file: File,
    /// Whether the file is a regular one, which never blocks a write; everything else may be slow.
    is_regular: bool,
}

impl LogFile {
    /// Opens a regular file or a character device. `/dev/stdout` and `/dev/stderr` mean the descriptor itself: opening
    /// them would open its file again, and a socket cannot be opened.
    fn open(path: &Path) -> io::Result<LogFile> {
        let file = match path.to_str() {
            Some("/dev/stdout" | "/dev/fd/1" | "/proc/self/fd/1") => copy_of(io::stdout())?,
            Some("/dev/stderr" | "/dev/fd/2" | "/proc/self/fd/2") => copy_of(io::stderr())?,
            _ => {
                let file = fd::append_at_once(path, 0o640)?;
                match fd::kind(&file.metadata()?) {
                    "a regular file" | "a character device" => file,
                    other => {
                        return Err(io::Error::other(format!(
                            "it is {other}, not a regular file"
                        )));
                    }
                }
            }
        };
        LogFile::from_file(file)
    }

    /// Returns a log file that is already open.
    pub(super) fn from_file(file: File) -> io::Result<LogFile> {
        let is_regular = file.metadata()?.is_file();
        Ok(LogFile { file, is_regular })
    }

    /// Returns another descriptor of the file.
    pub(super) fn copy(&self) -> io::Result<File> {
        self.file.try_clone()
    }
}

impl Write for LogFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.is_regular {
            self.file.write(bytes)
        } else {
            write_at_once(&self.file, bytes)
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn copy_of(descriptor: impl AsFd) -> io::Result<File> {
    descriptor.as_fd().try_clone_to_owned().map(File::from)
}

/// [`io::stderr`] as a value for a static. It has no buffer: each write is one write(2).
pub(super) struct Stderr;

impl Write for Stderr {
    /// Never waits for a reader: a journal that hangs must not stop the daemon.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        write_at_once(io::stderr(), bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes a line in one write. If a full disk cut off the last one, its line is ended first.
pub(super) fn write_line(to: &mut impl Write, torn: &mut bool, mut line: String) -> io::Result<()> {
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
                return Err(io::Error::new(
                    ErrorKind::WriteZero,
                    "only a part of the line was taken",
                ));
            }
        }
    }
}

/// Returns whether standard error is the stream that systemd connected to the journal, by its JOURNAL_STREAM
/// (systemd.exec(5)); both are device and inode.
fn is_journal(stream: Option<&str>, stderr: Option<(u64, u64)>) -> bool {
    let stream = stream.and_then(|stream| {
        let (device, inode) = stream.split_once(':')?;
        Some((device.parse().ok()?, inode.parse().ok()?))
    });
    stream.is_some() && stream == stderr
}

fn stderr_identity() -> Option<(u64, u64)> {
    identity(io::stderr())
}

/// Returns whether standard output and standard error are the same file.
pub(super) fn is_stdout_stderr() -> bool {
    identity(io::stdout()).is_some_and(|stdout| Some(stdout) == stderr_identity())
}

/// Returns the device and the inode of an open file.
fn identity(file: impl AsFd) -> Option<(u64, u64)> {
    let file = copy_of(file).ok()?.metadata().ok()?;
    Some((file.dev(), file.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_journal_is_recognized_by_device_and_inode() {
        assert!(is_journal(Some("9:1234"), Some((9, 1234))));
        for stream in ["9:1235", "8:1234", "9", "", ":", "9:1234:1", "9:x"] {
            assert!(!is_journal(Some(stream), Some((9, 1234))), "{stream}");
        }
        assert!(!is_journal(Some("x"), None));
        assert!(!is_journal(None, None));
        assert!(stderr_identity().is_some());
    }
}
