//! Upgrade in place: this process becomes another program, with the same children, descriptors and shared memory.
//!
//! ```text
//! check     the program is opened once and runs as a child, which reads a snapshot and replies whether it can continue with it
//! wait      until nothing is in progress that a snapshot cannot describe
//! execute   execve(2): the process runs the program, which takes over and replaces the workers as a reload does
//! ```
//!
//! If the check, the wait or execve(2) fails, nothing has changed. After execve(2) there is no way back: hence the
//! check.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::logging;
use crate::master::control::pending::PendingKind;
use crate::master::handover::program::open_trusted;
use crate::master::handover::upgrade_snapshot::UpgradeSnapshot;
use crate::master::lifecycle::Lifecycle;
use crate::master::telemetry::events::Asker;
use crate::master::{Master, exporter};
use crate::proto::control::{Kind, Refusal, RefusalCode};
use crate::proto::text::Escaped;
use crate::sys::fd;
use crate::sys::process::{self, Executable, Exit};

/// The roles of a program in an upgrade: its first argument.
pub(crate) const CHECK: &str = "check-handover";
pub(crate) const RESUME: &str = "resume";

/// How long the check may take, and how long the loop then waits until no operation is in progress.
const UPGRADE_TIMEOUT: Duration = Duration::from_secs(10);

/// The verdict of a program that can continue.
const FIT: &str = "fit";
/// The verdict of the program that the master already runs, if the snapshot asks for a comparison.
const FIT_AND_SAME: &str = "fit, and the same program";

/// Longest verdict, in bytes.
const MAX_REASON_LEN: u64 = 1000;

/// A program that this process will execute.
#[derive(Debug)]
pub(crate) struct Upgrade {
    executable: File,
    path: PathBuf,
    asker: Asker,
    until: Instant,
    check: Option<Check>,
    is_same: bool,
}

/// The program runs as a child and checks a snapshot.
#[derive(Debug)]
struct Check {
    pid: u32,
    /// The snapshot, and its length. The verdict follows it.
    snapshot: File,
    length: u64,
}

impl Upgrade {
    pub(crate) fn deadline(&self) -> Instant {
        self.until
    }

    /// Returns whether the program is the one that this process already runs.
    pub(crate) fn is_same(&self) -> bool {
        self.is_same
    }
}

impl Master {
    /// Begins an upgrade to the program at this path, or at the path that the running one was started from.
    ///
    /// # Errors
    /// When an upgrade may not begin now, or the program cannot be checked.
    pub(crate) fn begin_upgrade(
        &mut self,
        asker: Asker,
        to: Option<PathBuf>,
        now: Instant,
    ) -> Result<(), Refusal> {
        let refused = |sentence: String| Refusal::new(RefusalCode::Refused, sentence);
        self.lifecycle.check_upgrade()?;
        let nowhere = || refused("the path of the running program is unknown".to_owned());
        let path = to
            .or_else(|| self.handover.executable_path.clone())
            .ok_or_else(nowhere)?;
        let begun = open_trusted(&path, process::user()).and_then(|executable| {
            let check = self
                .start_check(&executable)
                .map_err(|e| format!("cannot be tried: {e}"))?;
            Ok((executable, check))
        });
        let (executable, check) =
            begun.map_err(|why| refused(format!("{} {why}", Escaped(path.display()))))?;
        let sentence = format_args!("{asker}: checking {} before the upgrade", path.display());
        self.telemetry
            .events
            .note(Kind::UpgradeBegun, asker.about(), sentence);
        self.lifecycle = Lifecycle::Upgrading;
        self.handover.upgrade = Some(Upgrade {
            executable,
            path,
            asker,
            until: now + UPGRADE_TIMEOUT,
            check: Some(check),
            is_same: false,
        });
        Ok(())
    }

    fn start_check(&self, executable: &File) -> io::Result<Check> {
        let snapshot = self.snapshot_to_check().write()?;
        let length = snapshot.metadata()?.len();
        let stdin = snapshot.try_clone()?.into();
        let arguments = [CHECK.to_owned(), length.to_string()];
        let pid = Executable::from_file(executable.try_clone()?).spawn(
            &self.name,
            &arguments,
            stdin,
            &[],
        )?;
        Ok(Check {
            pid,
            snapshot,
            length,
        })
    }

    /// Handles the exit of a child that is not a worker: possibly the one that checks a snapshot.
    pub(crate) fn candidate_ended(&mut self, pid: u32, exit: Exit, now: Instant) {
        let Some(upgrade) = &mut self.handover.upgrade else {
            return;
        };
        let Some(check) = upgrade.check.take_if(|check| check.pid == pid) else {
            return;
        };
        match check.verdict() {
            Some(verdict) if is_fit(&verdict) && exit == Exit::Status(0) => {
                (upgrade.until, upgrade.is_same) = (now + UPGRADE_TIMEOUT, verdict == FIT_AND_SAME);
            }
            Some(verdict) if !is_fit(&verdict) => self.abandon_upgrade(&verdict),
            _ => {
                let name = Escaped(&self.name);
                self.abandon_upgrade(&format!(
                    "its check {exit} and gave no result; it may not be a version of {name}"
                ));
            }
        }
    }

    /// Executes the program if its check has succeeded and nothing is in progress; then it does not return. Called at
    /// the end of each iteration of the loop.
    pub(crate) fn advance_upgrade(&mut self, now: Instant) {
        let Some(upgrade) = &self.handover.upgrade else {
            return;
        };
        let is_late = upgrade.until <= now;
        if self.lifecycle != Lifecycle::Upgrading {
            return self.abandon_upgrade("another operation began during its check");
        }
        if upgrade.check.is_some() {
            if is_late {
                self.abandon_upgrade("its check did not finish in time");
            }
            return;
        }
        match self.snapshot(now) {
            Some(snapshot) => self.execute_upgrade(snapshot, now),
            None if is_late && !self.listeners.have_followed_drain() => {
                self.abandon_upgrade("clients that wait at a listener cannot be accepted yet")
            }
            None if is_late => {
                self.abandon_upgrade("workers are being replaced, or clients have no worker")
            }
            None => {}
        }
    }

    fn execute_upgrade(&mut self, mut snapshot: UpgradeSnapshot, now: Instant) {
        let Some(upgrade) = self.handover.upgrade.take() else {
            return;
        };
        self.reloads.end_checks();
        // The program starts its own exporter, so the address must be free.
        let exporter = self.exporter.take().map(|exporter| exporter.start());
        // Its directory may not exist any more when the program would open it.
        let log = logging::copy_of_file();
        snapshot.log = log.as_ref().map(AsRawFd::as_raw_fd);
        let written = snapshot
            .write()
            .and_then(|file| Ok((file, upgrade.executable.try_clone()?)));
        let why = match written {
            Ok((file, executable)) => {
                log::logger().flush();
                let mut left_open = self.left_open();
                left_open.push(file.as_fd());
                left_open.extend(log.as_ref().map(AsFd::as_fd));
                let arguments = [RESUME.to_owned(), file.as_raw_fd().to_string()];
                Executable::from_file(executable).become_it(&self.name, &arguments, &left_open)
            }
            Err(e) => e,
        };
        self.handover.upgrade = Some(upgrade);
        if let Some(start) = exporter {
            let config = &self.settings.config;
            self.exporter = exporter::open_again(config, start, &self.poller, now);
        }
        self.abandon_upgrade(&format!("it cannot be executed: {why}"));
    }

    fn abandon_upgrade(&mut self, why: &str) {
        let Some(Upgrade { path, asker, .. }) = self.handover.upgrade.take() else {
            return;
        };
        self.lifecycle.end_upgrade();
        let sentence = format!("upgrade to {} refused: {why}", path.display());
        self.telemetry.events.note(
            Kind::UpgradeRefused,
            asker.about(),
            format_args!("{asker}: {sentence}"),
        );
        let refusal = Refusal::new(RefusalCode::Refused, Escaped(sentence).to_string());
        self.control
            .clients
            .resolve(|kind| matches!(kind, PendingKind::Upgraded), &Err(refusal));
    }
}

fn is_fit(verdict: &str) -> bool {
    [FIT, FIT_AND_SAME].contains(&verdict)
}

/// Kills the child, which has not been reaped and might never exit.
impl Drop for Check {
    fn drop(&mut self) {
        let _ = process::kill_child(self.pid);
    }
}

impl Check {
    /// Returns the verdict that the child wrote after the snapshot: exit status 0 alone proves nothing.
    fn verdict(&self) -> Option<String> {
        let written = self.snapshot.metadata().ok()?.len();
        let length = written.checked_sub(self.length)?.min(MAX_REASON_LEN);
        let mut text = vec![0; usize::try_from(length).ok()?];
        self.snapshot.read_exact_at(&mut text, self.length).ok()?;
        let reason = Escaped(String::from_utf8_lossy(&text)).to_string();
        (!reason.is_empty()).then_some(reason)
    }
}

/// Gives this process the daemon's name for ps(1), pgrep(1) and `systemctl status`: the kernel names a program that was
/// executed by descriptor after the number of the descriptor.
pub fn name_process(name: &str) {
    process::set_name(name);
}

/// Checks in the child whether this program can continue with the snapshot that is standard input, and writes the
/// verdict after it. Signals stay held back: one for all processes of the daemon must not end the check.
///
/// # Errors
/// The reason why it cannot.
pub fn check_handover(length: &str) -> Result<(), String> {
    // Undoes the master's protection from the OOM killer for this child.
    let _ = process::raise_oom_score(0);
    let shared = fd::take_stdin()
        .map(File::from)
        .map_err(|e| e.to_string())?;
    let length: u64 = length
        .parse()
        .map_err(|_| "the length of its input is missing".to_owned())?;
    let checked = UpgradeSnapshot::read(&shared, length).and_then(|snapshot| {
        snapshot.check()?.config.check_own()?;
        Ok(snapshot.same.is_some())
    });
    let verdict = match &checked {
        Err(why) => why,
        // The child compares the files: the master may not wait for so long.
        Ok(is_compared) if *is_compared && process::is_parents_program() => FIT_AND_SAME,
        Ok(_) => FIT,
    };
    shared
        .write_all_at(verdict.as_bytes(), length)
        .map_err(|e| e.to_string())?;
    checked.map(drop)
}
