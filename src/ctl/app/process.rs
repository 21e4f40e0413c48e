//! A program that runs as an app: its frames, its log and its end.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::proto::app::{DESCRIPTOR, DESCRIPTOR_VARIABLE, MAX_FRAME_VARIABLE};
use crate::proto::frame::PREFIX;
use crate::proto::text::Escaped;
use crate::sys::byte_counts::is_read;
use crate::sys::fd::{pipe, set_nonblocking};
use crate::sys::poll::{Interest, PollEvent, Poller};
use crate::sys::process::{
    self, AppProcess, AppProgram, AppStdio, Exit, ParentDeathSignal, collect, end_of, kill_app,
    spawn_app, wire,
};
use crate::sys::socket::{Transfer, finish_writing, receive, transmit};

/// The longest frame that the app may write.
pub(super) const MAX_FRAME: usize = 400_000;

/// A running program and the worker's ends of its descriptors. The program and its process group are killed when this
/// is dropped.
#[derive(Debug)]
pub(super) struct Process {
    app: AppProcess,
    poller: Poller,
    ready: Vec<PollEvent>,
    wire: UnixStream,
    has_wire_ended: bool,
    /// Bytes for the app, and how many of them are written.
    out: Vec<u8>,
    written: usize,
    input: Vec<u8>,
    /// Frames of the app, without their lengths.
    pub(super) frames: VecDeque<Vec<u8>>,
    pub(super) output: AppLog,
    pub(super) error: AppLog,
    exit: Option<Exit>,
}

/// The lines of standard output or standard error.
#[derive(Debug)]
pub(super) struct AppLog {
    /// The reading end; `None` after its end.
    pipe: Option<File>,
    partial: Vec<u8>,
    pub(super) lines: Vec<String>,
}

impl Process {
    /// Starts a program as a worker does.
    pub(super) fn start(command: &[String]) -> io::Result<Process> {
        let (wire, theirs) = wire()?;
        let (output, output_end) = pipe()?;
        let (error, error_end) = pipe()?;
        let environment = BTreeMap::from([
            (DESCRIPTOR_VARIABLE.to_owned(), DESCRIPTOR.to_string()),
            (MAX_FRAME_VARIABLE.to_owned(), MAX_FRAME.to_string()),
        ]);
        let program = AppProgram {
            command,
            directory: None,
            environment: &environment,
            identity: None,
            umask: None,
            cgroups: None,
            parent_death: ParentDeathSignal::Kill,
        };
        let poller = Poller::new(4)?;
        poller.add(&wire, WIRE, Interest::Read)?;
        for (log, token) in [(&output, OUTPUT), (&error, ERROR)] {
            set_nonblocking(log)?;
            poller.add(log, token, Interest::Read)?;
        }
        let app = spawn_app(program, theirs, AppStdio::Pipes(output_end, error_end))?;
        let process = Process {
            app,
            poller,
            ready: Vec::new(),
            wire,
            has_wire_ended: false,
            out: Vec::new(),
            written: 0,
            input: Vec::new(),
            frames: VecDeque::new(),
            output: AppLog::new(output.into()),
            error: AppLog::new(error.into()),
            exit: None,
        };
        process
            .poller
            .add(&process.app.pidfd, EXIT, Interest::Read)?;
        Ok(process)
    }

    pub(super) fn pid(&self) -> u32 {
        self.app.pid
    }

    /// Returns how the program has ended, after all that it has written was read.
    pub(super) fn exit(&self) -> Option<Exit> {
        self.exit
    }

    /// Returns whether the program has closed its descriptor.
    pub(super) fn has_wire_ended(&self) -> bool {
        self.has_wire_ended
    }

    /// Sends bytes, as far as the program reads them during the next turns.
    pub(super) fn send(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    /// Returns whether the program has not taken all bytes yet.
    pub(super) fn is_sending(&self) -> bool {
        self.written < self.out.len()
    }

    /// Returns whether the program has read everything that was sent.
    pub(super) fn has_read_all(&self) -> bool {
        !self.is_sending() && is_read(&self.wire).unwrap_or(true)
    }

    /// Ends the connection after what was sent, as a worker does: the program reads the end of its descriptor, and may
    /// still write.
    pub(super) fn end_wire(&mut self) -> Result<(), String> {
        self.write().map_err(|e| e.to_string())?;
        self.out.clear();
        self.written = 0;
        finish_writing(&self.wire);
        Ok(())
    }

    /// Sends a signal by its name, such as `TERM`.
    pub(super) fn signal(&self, name: &str) -> io::Result<()> {
        process::send(self.app.pid, name)
    }

    /// Waits for the next events, until `deadline` at most, and handles them.
    ///
    /// # Errors
    /// A frame that the worker would not accept, or an error of the system.
    pub(super) fn turn(&mut self, deadline: Instant) -> Result<(), String> {
        self.write().map_err(|e| e.to_string())?;
        let timeout = deadline.saturating_duration_since(Instant::now());
        let mut ready = std::mem::take(&mut self.ready);
        let waited = self.poller.wait(&mut ready, Some(timeout));
        let mut done = waited.map(drop).map_err(|e| e.to_string());
        for event in &ready {
            done = done.and_then(|()| match event.token {
                WIRE => self.read(),
                OUTPUT => self.output.read(&self.poller).map_err(|e| e.to_string()),
                ERROR => self.error.read(&self.poller).map_err(|e| e.to_string()),
                _ => self.notice_exit(),
            });
        }
        self.ready = ready;
        done
    }

    fn write(&mut self) -> io::Result<()> {
        while self.is_sending() && !self.has_wire_ended {
            match transmit(&self.wire, &self.out[self.written..])? {
                Transfer::Bytes(count) => self.written += count,
                Transfer::Nothing | Transfer::Shortage => break,
                // Its end is read, too.
                Transfer::End => self.written = self.out.len(),
            }
        }
        if !self.is_sending() {
            self.out.clear();
            self.written = 0;
        }
        if self.has_wire_ended {
            return Ok(());
        }
        let interest = match self.is_sending() {
            true => Interest::Both,
            false => Interest::Read,
        };
        self.poller.modify(&self.wire, WIRE, interest)
    }

    /// Reads what there is, and splits it into frames.
    fn read(&mut self) -> Result<(), String> {
        let mut buffer = vec![0; 64 << 10];
        while !self.has_wire_ended {
            match receive(&self.wire, &mut buffer) {
                Ok(Transfer::Bytes(count)) => self.input.extend_from_slice(&buffer[..count]),
                Ok(Transfer::Nothing | Transfer::Shortage) => break,
                // ECONNRESET: it has ended without reading everything.
                Ok(Transfer::End) | Err(_) => {
                    let _ = self.poller.remove(&self.wire);
                    self.has_wire_ended = true;
                }
            }
            self.split()?;
        }
        Ok(())
    }

    fn split(&mut self) -> Result<(), String> {
        while let Some(prefix) = self.input.first_chunk::<PREFIX>() {
            let length = u32::from_le_bytes(*prefix) as usize;
            if length > MAX_FRAME {
                let text = Escaped(String::from_utf8_lossy(prefix)).to_string();
                return Err(format!(
                    "it announced a frame of {length} bytes ({text:?}), more than {MAX_FRAME_VARIABLE} allows, {MAX_FRAME}"
                ));
            }
            if self.input.len() < PREFIX + length {
                break;
            }
            let rest = self.input.split_off(PREFIX + length);
            let mut frame = std::mem::replace(&mut self.input, rest);
            frame.drain(..PREFIX);
            self.frames.push_back(frame);
        }
        Ok(())
    }

    fn notice_exit(&mut self) -> Result<(), String> {
        if self.exit.is_some() {
            return Ok(());
        }
        let Some(exit) = end_of(&self.app.pidfd).map_err(|e| e.to_string())? else {
            return Ok(());
        };
        let _ = self.poller.remove(&self.app.pidfd);
        let read = self.read();
        for log in [&mut self.output, &mut self.error] {
            log.read(&self.poller).map_err(|e| e.to_string())?;
            log.end_line();
        }
        self.exit = Some(exit);
        read
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        kill_app(&self.app);
        let deadline = Instant::now() + Duration::from_secs(5);
        while self.exit.is_none() && Instant::now() < deadline {
            // Errors in its frames do not matter any more.
            if self.turn(deadline).is_err() && self.notice_exit().is_err() {
                break;
            }
        }
        let _ = collect(self.app.pid);
    }
}

impl AppLog {
    fn new(pipe: File) -> AppLog {
        AppLog {
            pipe: Some(pipe),
            partial: Vec::new(),
            lines: Vec::new(),
        }
    }

    /// Returns whether these words are in the log, also in a line that has not ended.
    pub(super) fn contains(&self, words: &str) -> bool {
        self.lines.iter().any(|line| line.contains(words))
            || String::from_utf8_lossy(&self.partial).contains(words)
    }

    fn read(&mut self, poller: &Poller) -> io::Result<()> {
        let mut buffer = vec![0; 16 << 10];
        while let Some(pipe) = &mut self.pipe {
            match pipe.read(&mut buffer) {
                Ok(0) => {
                    poller.remove(&*pipe)?;
                    self.pipe = None;
                }
                Ok(count) => self.take(&buffer[..count]),
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn take(&mut self, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.partial.extend_from_slice(piece);
            if self.partial.ends_with(b"\n") || self.partial.len() > MAX_LINE {
                self.end_line();
            }
        }
    }

    fn end_line(&mut self) {
        let line = String::from_utf8_lossy(&self.partial).trim_end().to_owned();
        self.partial.clear();
        // The last ones are enough for a report.
        if self.lines.len() == MAX_LINES {
            self.lines.remove(0);
        }
        if !line.is_empty() {
            self.lines.push(line);
        }
    }
}

/// The longest line of the log that is kept as one.
const MAX_LINE: usize = 4096;

/// Lines of the log that are kept.
const MAX_LINES: usize = 100;

const WIRE: u64 = 0;
const OUTPUT: u64 = 1;
const ERROR: u64 = 2;
const EXIT: u64 = 3;
