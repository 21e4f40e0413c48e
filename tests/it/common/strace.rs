//! strace(1), which has system calls of a process fail, or something happen to it at one.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use super::needs::skip;

/// A process that is traced, without its children, until this is dropped.
pub struct Traced {
    strace: Child,
    trace: tempfile::NamedTempFile,
}

impl Traced {
    /// Traces these calls of the process, with `inject` as in strace(1). Skips the test where that is impossible.
    #[track_caller]
    pub fn attach(pid: u32, calls: &str, inject: &str) -> Option<Traced> {
        Traced::attach_at(pid, None, calls, inject)
    }

    /// As [`Traced::attach`], for the calls of one descriptor alone if this is its name in /proc/PID/fd.
    #[track_caller]
    pub fn attach_at(
        pid: u32,
        descriptor: Option<&str>,
        calls: &str,
        inject: &str,
    ) -> Option<Traced> {
        let trace = tempfile::NamedTempFile::new().expect("a file");
        let mut command = Command::new("strace");
        command
            .arg("-o")
            .arg(trace.path())
            .args(["-e", &format!("trace={calls}"), "-e"])
            .arg(format!("inject={inject}"));
        if let Some(name) = descriptor {
            command.args(["-P", name]);
        }
        command
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
        BufReader::new(strace.stderr.take().expect("it is piped"))
            .read_line(&mut said)
            .expect("it says text");
        if !said.contains(" attached") {
            let _ = strace.wait();
            skip("strace", &format!("strace(1) cannot trace: {said}"));
            return None;
        }
        Some(Traced { strace, trace })
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
