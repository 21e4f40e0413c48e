//! The bytes of a configuration file, without waiting for what is at its path.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::path::Path;
use std::time::{Duration, Instant};

use super::MAX_FILE;
use crate::sys::fd;
use crate::sys::poll::{Interest, wait_for};

/// How long the writer of a pipe may take.
const PIPE_TIMEOUT: Duration = Duration::from_secs(10);

/// What may be at the path beside a regular file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pipes {
    /// A pipe, which is read to its end: `/dev/stdin`, `<(…)`, a FIFO. For a process that serves no clients yet.
    Read,
    /// Nothing. The bytes of a pipe are there once only.
    Refuse,
}

/// Reads the file at `path`, of at most [`MAX_FILE`] bytes.
///
/// # Errors
/// When it cannot be opened or read, is longer, or is neither a regular file nor what `pipes` says; `TimedOut` when the
/// writer of a pipe takes longer than 10 s.
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
                "it is a pipe, whose content is there once only: a reload needs a regular file",
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

/// The pipe does not block. Without a writer that has ever been there poll(2) waits, while read(2) would report the end.
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
