//! A program that ends by itself.

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use fdpassd::proto::names::Address;
use fdpassd::testing::{Client, Running, TIMEOUT, eventually};
use tempfile::{NamedTempFile, TempDir};

use super::needs::skip;

/// The operator's tool.
pub const FDPASSCTL: &str = env!("CARGO_BIN_EXE_fdpassctl");

/// The exit code and the output of a program.
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
        Program::start_with_stderr(command, Stdio::piped())
    }

    #[track_caller]
    pub fn start_with_stderr(command: &mut Command, stderr: impl Into<Stdio>) -> Program {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .process_group(0);
        Program(
            command
                .spawn()
                .unwrap_or_else(|e| panic!("cannot run {command:?}: {e}")),
        )
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    pub fn is_running(&mut self) -> bool {
        self.0.try_wait().expect("it is our child").is_none()
    }

    /// Waits until its first argument is this one: the process may become another program.
    #[track_caller]
    pub fn wait_for_argument(&self, first: &str) {
        eventually("the program has this argument", || {
            let arguments = fs::read(format!("/proc/{}/cmdline", self.pid())).expect("it runs");
            let argument = arguments.split(|byte| *byte == 0).nth(1);
            (argument == Some(first.as_bytes())).then_some(())
        });
    }

    /// Waits for the first line of its standard output.
    #[track_caller]
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        let stdout = self.0.stdout.as_mut().expect("piped");
        BufReader::new(stdout)
            .read_line(&mut line)
            .expect("it says text");
        line
    }

    /// Waits for its end and reads its output. A program may take long as a whole, so the deadline is for each output.
    #[track_caller]
    pub fn finish(mut self) -> Said {
        let (sender, pieces) = mpsc::channel();
        let err = self.0.stderr.take().expect("piped");
        forward(self.0.stdout.take().expect("piped"), sender.clone(), 0);
        forward(err, sender, 1);
        let mut written = [Vec::new(), Vec::new()];
        loop {
            match pieces.recv_timeout(TIMEOUT) {
                Ok((output, piece)) => written[output].extend(piece),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    let [out, err] =
                        written.map(|text| String::from_utf8_lossy(&text).into_owned());
                    panic!("for {TIMEOUT:?} the program neither wrote nor ended: {out:?}, {err:?}")
                }
            }
        }
        let status = eventually("the program ends", || {
            self.0.try_wait().expect("it is our child")
        });
        let [out, err] = written.map(|text| String::from_utf8(text).expect("it says text"));
        Said {
            code: status.code(),
            out,
            err,
        }
    }
}

/// Forwards what comes from a pipe, with the number of the output, until its end.
fn forward(mut pipe: impl Read + Send + 'static, to: Sender<(usize, Vec<u8>)>, output: usize) {
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = pipe.read(&mut buffer) {
            let _ = to.send((output, buffer[..length].to_vec()));
        }
    });
}

impl Drop for Program {
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait() {
            // By its group, for a daemon has workers.
            let _ = Command::new("kill")
                .args(["-KILL", "--", &format!("-{}", self.0.id())])
                .status();
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
    command
        .args(arguments)
        .arg("--socket")
        .arg(control_socket(daemon));
    command
}

/// Runs fdpassctl with these arguments, for this daemon.
#[track_caller]
pub fn ctl(daemon: &Running, arguments: &[&str]) -> Said {
    Program::start(&mut ctl_command(daemon, arguments)).finish()
}

/// A value of `--timeout` that ends soon, and not before fdpassctl has sent its request: it is measured how long that
/// takes.
pub fn short_timeout(daemon: &Running) -> String {
    let began = Instant::now();
    let said = ctl(daemon, &["rebalance", "--dry-run"]);
    assert_eq!(said.code, Some(0), "{said:?}");
    let timeout = Duration::from_secs(2) + 5 * began.elapsed();
    timeout.as_secs_f64().to_string()
}

/// Returns the path of this daemon's control socket, unless its configuration has another one.
pub fn control_socket(daemon: &Running) -> PathBuf {
    daemon.directory().join("control.sock")
}

/// Connects a client to the control socket.
#[track_caller]
pub fn control_client(daemon: &Running) -> Client {
    Client::connect(&Address::Unix(control_socket(daemon)))
}

/// Copies a program with this mode, in the place of what has this name: that may still run.
///
/// By a process of its own: a program that is open for writing cannot be run, and a child that another test starts at
/// that time has a copy of all that is open here.
#[track_caller]
pub fn install(program: &Path, copy: &Path, mode: u32) {
    let mode = format!("--mode={mode:o}");
    let mut command = Command::new("install");
    let installed = command.arg(mode).arg(program).arg(copy).status();
    let installed = installed.expect("install(1) runs");
    assert!(installed.success(), "install {}", program.display());
}

/// As [`install`], a program of this text.
#[track_caller]
pub fn install_text(text: &str, path: &Path, mode: u32) {
    let mut written = NamedTempFile::new().expect("a file");
    written.write_all(text.as_bytes()).expect("there is room");
    install(written.path(), path, mode);
}

/// Waits until exactly this number is connected to a Unix socket, accepted or not: the kernel lists each of them by the
/// listener's path.
#[track_caller]
pub fn wait_for_clients(path: &Path, count: usize) {
    eventually(&format!("{count} clients are connected"), || {
        (connections_to(path) == count).then_some(())
    });
}

/// Returns how many clients are connected to a Unix socket, accepted or not.
pub fn connections_to(path: &Path) -> usize {
    let name = format!(" {}", path.display());
    let sockets = fs::read_to_string("/proc/net/unix").expect("Linux has it");
    let found = sockets.lines().filter(|line| line.ends_with(&name)).count();
    // One is the listener.
    found.saturating_sub(1)
}

/// Programs for another user, in a directory that all users can read. Only root can become another user.
#[derive(Debug)]
pub struct OtherUser {
    directory: TempDir,
}

impl OtherUser {
    /// Skips the test if it does not run as root.
    pub fn new() -> Option<OtherUser> {
        let other = OtherUser::if_root();
        if other.is_none() {
            skip("root", "only root can run programs as another user");
        }
        other
    }

    /// Skips the test also without setpriv(1), for [`OtherUser::command_in`].
    pub fn with_groups() -> Option<OtherUser> {
        let other = OtherUser::new()?;
        let found = Command::new("setpriv")
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if !found.is_ok_and(|status| status.success()) {
            skip("setpriv", "there is no setpriv(1)");
            return None;
        }
        Some(other)
    }

    /// Returns none if this test does not run as root.
    pub fn if_root() -> Option<OtherUser> {
        if fs::metadata("/proc/self").expect("/proc is mounted").uid() != 0 {
            return None;
        }
        let directory = tempfile::tempdir().expect("a directory");
        fs::set_permissions(directory.path(), Permissions::from_mode(0o777)).expect("it is ours");
        Some(OtherUser { directory })
    }

    /// A directory in which everybody may do everything.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Returns a command that runs this program as the user of that number.
    pub fn command(&self, program: impl AsRef<Path>, uid: u32) -> Command {
        let mut command = Command::new(self.copy(program.as_ref()));
        command.uid(uid).gid(uid);
        command
    }

    /// Returns a command that runs a program by setpriv(1) as a user, with this primary group and these supplementary
    /// ones.
    pub fn command_in(
        &self,
        program: impl AsRef<Path>,
        uid: u32,
        gid: u32,
        groups: &[u32],
    ) -> Command {
        let groups: Vec<String> = groups.iter().map(u32::to_string).collect();
        let groups = if groups.is_empty() {
            "--clear-groups".to_owned()
        } else {
            format!("--groups={}", groups.join(","))
        };
        let mut command = Command::new("setpriv");
        command
            .arg(format!("--reuid={uid}"))
            .arg(format!("--regid={gid}"))
            .arg(groups);
        command.arg(self.copy(program.as_ref()));
        command
    }

    fn copy(&self, program: &Path) -> PathBuf {
        let name = program.file_name().expect("a program has a name");
        let copy = self.directory.path().join(name);
        if !copy.exists() {
            install(program, &copy, 0o755);
        }
        copy
    }
}
