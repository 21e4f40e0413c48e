//! A program that ends by itself.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use fdpassd::testing::{Running, eventually};

/// The operator's tool.
pub const FDPASSCTL: &str = env!("CARGO_BIN_EXE_fdpassctl");

/// How a program ended, and what it said.
#[derive(Debug)]
pub struct Said {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

/// A program that runs. When it is dropped, it and its children are killed.
#[derive(Debug)]
pub struct Program(Child);

impl Program {
    #[track_caller]
    pub fn start(command: &mut Command) -> Program {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        Program(command.spawn().unwrap_or_else(|e| panic!("cannot run {command:?}: {e}")))
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    pub fn is_running(&mut self) -> bool {
        self.0.try_wait().expect("it is our child").is_none()
    }

    /// Waits for its end. What it says has to fit into a pipe.
    #[track_caller]
    pub fn finish(mut self) -> Said {
        let status = eventually("the program ends", || self.0.try_wait().expect("it is our child"));
        let (mut out, mut err) = (String::new(), String::new());
        self.0.stdout.take().expect("piped").read_to_string(&mut out).expect("it says text");
        self.0.stderr.take().expect("piped").read_to_string(&mut err).expect("it says text");
        Said { code: status.code(), out, err }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait() {
            // By its group, for a daemon has workers.
            let _ = Command::new("kill").args(["-KILL", "--", &format!("-{}", self.0.id())]).status();
            let _ = self.0.wait();
        }
    }
}

/// Runs a program to its end.
#[track_caller]
pub fn run(program: impl AsRef<Path>, arguments: &[&str]) -> Said {
    Program::start(Command::new(program.as_ref()).args(arguments)).finish()
}

/// fdpassctl with these arguments, for this daemon.
pub fn ctl_command(daemon: &Running, arguments: &[&str]) -> Command {
    let mut command = Command::new(FDPASSCTL);
    command.args(arguments).arg("--socket").arg(control_socket(daemon));
    command
}

/// Runs fdpassctl with these arguments, for this daemon.
#[track_caller]
pub fn ctl(daemon: &Running, arguments: &[&str]) -> Said {
    Program::start(&mut ctl_command(daemon, arguments)).finish()
}

/// Where this daemon's control socket is, unless its configuration says something else.
pub fn control_socket(daemon: &Running) -> PathBuf {
    daemon.directory().join("control.sock")
}
