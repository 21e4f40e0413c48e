//! The output of the daemon's processes.

use std::borrow::Cow;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use super::TIMEOUT;
use crate::sys::poll::{self, Interest};
use crate::sys::process::FileId;

/// The output of processes through a pipe, which a thread reads. It ends when all processes with the pipe have exited.
#[derive(Debug)]
pub(super) struct ProcessOutput {
    /// The identity of the pipe.
    pub(super) pipe: FileId,
    written: Mutex<WrittenOutput>,
    more: Condvar,
}

#[derive(Debug)]
pub(super) struct WrittenOutput {
    source: File,
    /// A character may be read in two parts.
    bytes: Vec<u8>,
    pub(super) ended: bool,
}

impl WrittenOutput {
    /// Returns all that was written.
    pub(super) fn text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.bytes)
    }
}

impl ProcessOutput {
    pub(super) fn from_pipe(pipe: impl Into<OwnedFd>) -> Arc<ProcessOutput> {
        let source = File::from(pipe.into());
        let readable = source.try_clone().expect("there is room for a descriptor");
        let written = WrittenOutput {
            source,
            bytes: Vec::new(),
            ended: false,
        };
        let output = Arc::new(ProcessOutput {
            pipe: FileId::from_fd(&readable).expect("it is open"),
            written: Mutex::new(written),
            more: Condvar::new(),
        });
        let shared = Arc::clone(&output);
        thread::spawn(move || {
            while !shared.has_ended() {
                let _ = poll::wait_for(&readable, Interest::Read, TIMEOUT);
                shared.read();
            }
        });
        output
    }

    /// Reads what is in the pipe now, without waiting. Only one thread at a time does so, with the text locked.
    fn read(&self) {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let mut buffer = [0; 4096];
        while !written.ended
            && poll::wait_for(&written.source, Interest::Read, Duration::ZERO).unwrap_or(true)
        {
            match written.source.read(&mut buffer) {
                Ok(n @ 1..) => written.bytes.extend_from_slice(&buffer[..n]),
                _ => written.ended = true,
            }
        }
        drop(written);
        self.more.notify_all();
    }

    /// Waits until `is_so` is true and returns whether it is.
    pub(super) fn wait(&self, is_so: impl Fn(&WrittenOutput) -> bool) -> bool {
        self.wait_for(TIMEOUT, is_so)
    }

    pub(super) fn wait_for(&self, time: Duration, is_so: impl Fn(&WrittenOutput) -> bool) -> bool {
        let written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self
            .more
            .wait_timeout_while(written, time, |written| !is_so(written));
        let (written, _) = waited.unwrap_or_else(PoisonError::into_inner);
        is_so(&written)
    }

    /// Returns all that was written before this call.
    pub(super) fn text(&self) -> String {
        self.read();
        self.written
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .text()
            .into_owned()
    }

    pub(super) fn has_ended(&self) -> bool {
        self.written
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .ended
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::sys::fd;

    #[test]
    fn a_character_may_be_written_in_parts() {
        let (reader, writer) = fd::pipe().expect("a pipe");
        let output = ProcessOutput::from_pipe(reader);
        let mut writer = File::from(writer);
        let (first, rest) = "é\n".as_bytes().split_at(1);
        writer.write_all(first).expect("there is room");
        assert_eq!(output.text(), "\u{fffd}");
        writer.write_all(rest).expect("there is room");
        drop(writer);
        assert!(output.wait(|output| output.ended));
        assert_eq!(output.text(), "é\n");
    }
}
