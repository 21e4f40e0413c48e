//! Reads a configuration file without blocking on a special file at its path.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::path::Path;
use std::time::{Duration, Instant};

use super::MAX_FILE;
use crate::sys::fd;
use crate::sys::poll::{Interest, wait_for};

/// The time for the writer of a pipe.
const PIPE_TIMEOUT: Duration = Duration::from_secs(10);

/// Whether a pipe is read, besides regular files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pipes {
    /// A pipe is read to its end: `/dev/stdin`, `<(…)`, a FIFO. For a process that does not serve clients yet.
    Read,
    /// A pipe is refused: its content can be read only once.
    Refuse,
}

/// Reads the file at `path`, of at most [`MAX_FILE`] bytes.
///
/// # Errors
/// A file that cannot be opened or read, is longer, or is neither a regular file nor what `pipes` allows; `TimedOut` if
/// the writer of a pipe takes longer than 10 s.
pub(super) fn read(path: &Path, pipes: Pipes) -> io::Result<Vec<u8>> {
    let file = fd::open_at_once(path)?;
    let found = file.metadata()?;
    let is_pipe = fd::kind(&found) == "a pipe";
    let bytes = match pipes {
        _ if found.is_file() => {
            let mut bytes = Vec::new();
            file.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
            bytes
        }
        Pipes::Read if is_pipe => read_pipe(file, Instant::now() + PIPE_TIMEOUT)?,
        Pipes::Refuse if is_pipe => {
            return Err(io::Error::other(
                "it is a pipe, whose content can be read only once: a reload needs a regular file",
            ));
        }
        _ => {
            return Err(io::Error::other(format!(
                "it is {}, not a regular file",
                fd::kind(&found)
            )));
        }
    };
    if bytes.len() as u64 > MAX_FILE {
        return Err(io::Error::other(format!(
            "it is longer than {MAX_FILE} bytes"
        )));
    }
    Ok(bytes)
}

/// Reads a non-blocking pipe. Before the first writer opens it, poll(2) waits, while read(2) would report the end.
fn read_pipe(mut pipe: File, until: Instant) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    while bytes.len() as u64 <= MAX_FILE {
        let left = until.saturating_duration_since(Instant::now());
        if !wait_for(&pipe, Interest::Read, left)? {
            let why = format!(
                "its writer did not end it within {} s",
                PIPE_TIMEOUT.as_secs()
            );
            return Err(io::Error::new(ErrorKind::TimedOut, why));
        }
        match pipe.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => bytes.extend_from_slice(&buffer[..n]),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(bytes)
}
