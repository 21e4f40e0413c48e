//! strace(1), which has system calls of a process fail, or something happen to it at one.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStderr, Command, Stdio};

use super::needs::skip;

/// A process that is traced until this is dropped.
pub struct Traced {
    strace: Child,
    trace: tempfile::NamedTempFile,
    /// strace(1) reports each child there, and would end if this was closed.
    _messages: BufReader<ChildStderr>,
}

impl Traced {
    /// Traces these calls of the process and not of its children, with `inject` as in strace(1). Skips the test where
    /// that is impossible.
    #[track_caller]
    pub fn attach(pid: u32, calls: &str, inject: &str) -> Option<Traced> {
        let inject = format!("inject={inject}");
        Traced::attach_with(&["-e", &inject], pid, calls)
    }

    /// Traces these calls of the process, and changes none.
    #[track_caller]
    pub fn watch(pid: u32, calls: &str) -> Option<Traced> {
        Traced::attach_with(&[], pid, calls)
    }

    /// As [`Traced::attach`], for the calls of one descriptor alone if this is its name in /proc/PID/fd.
    #[track_caller]
    pub fn attach_at(
        pid: u32,
        descriptor: Option<&str>,
        calls: &str,
        inject: &str,
    ) -> Option<Traced> {
        let inject = format!("inject={inject}");
        let mut options = descriptor.map_or_else(Vec::new, |name| vec!["-P", name]);
        options.extend(["-e", &inject]);
        Traced::attach_with(&options, pid, calls)
    }

    /// As [`Traced::attach`], and traces children that the process starts from then on.
    #[track_caller]
    pub fn attach_with_children(pid: u32, calls: &str, inject: &str) -> Option<Traced> {
        let inject = format!("inject={inject}");
        Traced::attach_with(&["-f", "-e", &inject], pid, calls)
    }

    #[track_caller]
    fn attach_with(options: &[&str], pid: u32, calls: &str) -> Option<Traced> {
        let trace = tempfile::NamedTempFile::new().expect("a file");
        let mut command = Command::new("strace");
        command
            .args(options)
            .arg("-o")
            .arg(trace.path())
            .args(["-e", &format!("trace={calls}")])
            .args(["-p", &pid.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut strace = match command.spawn() {
            Ok(strace) => strace,
            Err(e) => {
                skip("strace", &format!("strace(1) cannot be run: {e}"));
                return None;
            }
        };
        let mut said = String::new();
        // It prints that once it sees every call.
        let mut messages = BufReader::new(strace.stderr.take().expect("it is piped"));
        messages.read_line(&mut said).expect("it says text");
        if !said.contains(" attached") {
            let _ = strace.wait();
            skip("strace", &format!("strace(1) cannot trace: {said}"));
            return None;
        }
        Some(Traced {
            strace,
            trace,
            _messages: messages,
        })
    }

    /// Returns the trace so far.
    pub fn text(&self) -> String {
        fs::read_to_string(self.trace.path()).expect("strace writes it")
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        // The kernel lets go of what is traced, as it is.
        let _ = self.strace.kill();
        let _ = self.strace.wait();
    }
}
