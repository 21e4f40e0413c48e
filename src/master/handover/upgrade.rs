//! Upgrade in place: this process becomes another program, with the same children, descriptors and shared memory.
//!
//! ```text
//! check   the file is opened, once; it runs as a child that is told all, and says whether it could go on with that
//! wait    until nothing is under way that a snapshot does not tell of
//! become  execve(2): from here on it is that program, which takes over and replaces the workers one by one
//! ```
//!
//! Whatever goes wrong before the last step changes nothing, and if that step fails nothing has changed either.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::logging;
use crate::master::control::pending::PendingKind;
use crate::master::handover::snapshot::UpgradeSnapshot;
use crate::master::lifecycle::Lifecycle;
use crate::master::telemetry::events::Asker;
use crate::master::{Master, exporter};
use crate::proto::control::{About, Kind, Refusal, RefusalCode};
use crate::proto::text::{Counted, Escaped};
use crate::sys::fd;
use crate::sys::process::{self, Executable, Exit};
use crate::sys::user::Unmapped;

/// The roles that a program is run in, by what stands first on its command line.
pub(crate) const CHECK: &str = "check-handover";
pub(crate) const RESUME: &str = "resume";

/// How long a candidate may take to say whether it is one, and how long what is under way may take.
const UPGRADE_TIMEOUT: Duration = Duration::from_secs(10);

/// What a candidate says that can go on with a master.
const FIT: &str = "fit";
/// The same, of one that the master already runs, if the master asks for that.
const FIT_AND_SAME: &str = "fit, and the same program";

/// Longest reason that a candidate may give, in bytes.
const MAX_REASON_LEN: u64 = 1000;

/// A program that this process is to become.
#[derive(Debug)]
pub(crate) struct Upgrade {
    executable: File,
    path: PathBuf,
    asker: Asker,
    until: Instant,
    check: Option<Check>,
    is_same: bool,
}

/// The candidate runs as a child.
#[derive(Debug)]
struct Check {
    pid: u32,
    /// What it was told, behind which it writes why it is not fit.
    told: File,
    length: u64,
}

impl Upgrade {
    pub(crate) fn deadline(&self) -> Instant {
        self.until
    }

    /// Whether the program is the one that this process runs already.
    pub(crate) fn is_same(&self) -> bool {
        self.is_same
    }
}

impl Master {
    /// Begins to look at the program that this process is to become: the one at this path, or where it was started from.
    ///
    /// # Errors
    /// Why it is not even looked at.
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
        // What is under way now does not matter to whether it could.
        let snapshot = self.snapshot_to_check();
        let told = snapshot.write()?;
        let length = told.metadata()?.len();
        let stdin = told.try_clone()?.into();
        let arguments = [CHECK.to_owned(), length.to_string()];
        let pid =
            Executable::from_file(executable.try_clone()?).spawn(&self.name, &arguments, stdin)?;
        Ok(Check { pid, told, length })
    }

    /// A child has ended that is no worker: the candidate, perhaps.
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
            Some(verdict) if !is_fit(&verdict) => self.give_upgrade_up(&verdict),
            _ => self.give_upgrade_up(&format!("its check {exit} without a result")),
        }
    }

    /// At the end of a turn of the loop: becomes the program, if it has been found fit and nothing is under way. Then this
    /// does not return.
    pub(crate) fn upgrade(&mut self, now: Instant) {
        let Some(upgrade) = &self.handover.upgrade else {
            return;
        };
        let is_late = upgrade.until <= now;
        if self.lifecycle != Lifecycle::Upgrading {
            return self.give_upgrade_up("another operation began during its check");
        }
        if upgrade.check.is_some() {
            if is_late {
                self.give_upgrade_up("its check did not finish in time");
            }
            return;
        }
        match self.snapshot(now) {
            Some(snapshot) => self.become_it(snapshot, now),
            None if is_late => {
                self.give_upgrade_up("workers are being replaced, or clients have none")
            }
            None => {}
        }
    }

    fn become_it(&mut self, mut snapshot: UpgradeSnapshot, now: Instant) {
        let Some(upgrade) = self.handover.upgrade.take() else {
            return;
        };
        self.reloads.end_checks();
        // It is told another program by then, and its address must be free.
        let exporter = self.exporter.take().map(|exporter| exporter.start());
        // Its directory may be gone when the program would open it.
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
        if let (Some(start), Some(address)) = (exporter, &self.settings.config.metrics.listen) {
            self.exporter = exporter::open_again(address, start, &self.poller, now);
        }
        self.give_upgrade_up(&format!("it cannot be run: {why}"));
    }

    fn give_upgrade_up(&mut self, why: &str) {
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

    /// This process has become this program.
    pub(crate) fn note_upgraded(&mut self) {
        let about = About {
            clients: Some(self.clients.count()),
            ..About::default()
        };
        let sentence = format_args!(
            "upgraded: this is {} {} {}; {} and {} were kept; replacing the workers",
            self.name,
            self.version,
            if self.handover.is_same_program {
                "still, the same program as before"
            } else {
                "now"
            },
            Counted(self.workers.all.len(), "worker"),
            Counted(self.clients.count(), "client")
        );
        self.telemetry.events.note(Kind::Upgraded, about, sentence);
    }
}

fn is_fit(verdict: &str) -> bool {
    [FIT, FIT_AND_SAME].contains(&verdict)
}

/// Not collected yet: what is collected was taken out before. One that never says anything would be there for ever.
impl Drop for Check {
    fn drop(&mut self) {
        let _ = process::kill_child(self.pid);
    }
}

impl Check {
    /// What the candidate wrote behind what it was told. Any program can exit with 0, so one that is fit says so.
    fn verdict(&self) -> Option<String> {
        let length = self
            .told
            .metadata()
            .ok()?
            .len()
            .checked_sub(self.length)?
            .min(MAX_REASON_LEN);
        let mut text = vec![0; usize::try_from(length).ok()?];
        self.told.read_exact_at(&mut text, self.length).ok()?;
        let reason = Escaped(String::from_utf8_lossy(&text)).to_string();
        (!reason.is_empty()).then_some(reason)
    }
}

/// Gives this process the daemon's name for ps(1), pgrep(1) and `systemctl status`: the kernel calls a program that was run by
/// its descriptor by the number of that.
pub fn name_process(name: &str) {
    process::set_name(name);
}

/// The candidate's side: whether this program could go on with the master whose snapshot is standard input. What it says if not
/// is written behind that.
///
/// # Errors
/// Why not.
pub fn check_handover(length: &str) -> Result<(), String> {
    let told = fd::take_stdin()
        .map(File::from)
        .map_err(|e| e.to_string())?;
    let length: u64 = length
        .parse()
        .map_err(|_| "the length of its input is missing".to_owned())?;
    let checked = UpgradeSnapshot::read(&told, length)
        .and_then(|snapshot| snapshot.check().map(|_| snapshot.same.is_some()));
    let verdict = match &checked {
        Err(why) => why,
        // Here, as reading both files may take longer than the master may wait.
        Ok(is_compared) if *is_compared && process::is_parents_program() => FIT_AND_SAME,
        Ok(_) => FIT,
    };
    told.write_all_at(verdict.as_bytes(), length)
        .map_err(|e| e.to_string())?;
    checked.map(drop)
}

/// Opens a program that nobody can have changed but root and this user: not the file, nor what leads there.
fn open_trusted(path: &Path, user: u32) -> Result<File, String> {
    let path = path
        .canonicalize()
        .map_err(|e| format!("cannot be opened: {e}"))?;
    // Nobody waits here for who writes into a FIFO.
    let file = fd::open_at_once(&path).map_err(|e| format!("cannot be opened: {e}"))?;
    let found = file.metadata().map_err(|e| e.to_string())?;
    if !found.is_file() {
        return Err("is no file".to_owned());
    }
    check_trust(&found, user, false).map_err(|why| format!("is not trusted: it {why}"))?;
    for folder in path.ancestors().skip(1) {
        let found = fs::symlink_metadata(folder).map_err(|e| e.to_string())?;
        check_trust(&found, user, true)
            .map_err(|why| format!("is not trusted: its directory {} {why}", folder.display()))?;
    }
    Ok(file)
}

/// Others may add to a directory with the sticky bit, and change nothing that is there (chmod(1)).
fn check_trust(found: &Metadata, user: u32, is_folder: bool) -> Result<(), String> {
    let mode = found.mode();
    // Nor is a file trusted that may be anybody's.
    if found.uid() != 0 && found.uid() != user || Unmapped::read().user == Some(found.uid()) {
        return Err(format!("belongs to uid {}", found.uid()));
    }
    if mode & 0o022 != 0 && !(is_folder && mode & 0o1000 != 0) {
        return Err(format!(
            "can be written by others (mode {:04o})",
            mode & 0o7777
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_program_that_others_can_change_is_not_trusted() {
        let directory = tempfile::tempdir().expect("tempdir");
        let path = directory.path().join("program");
        fs::write(&path, "x").expect("write");
        let set = |path: &Path, mode| {
            fs::set_permissions(path, Permissions::from_mode(mode)).expect("chmod")
        };
        let opened = || open_trusted(&path, process::user());
        set(directory.path(), 0o755);
        set(&path, 0o755);
        opened().expect("nobody else can change it");
        set(&path, 0o775);
        assert!(
            opened()
                .expect_err("its group can")
                .contains("can be written by others (mode 0775)")
        );
        set(&path, 0o755);
        set(directory.path(), 0o777);
        assert!(
            opened()
                .expect_err("anybody can replace it")
                .contains("its directory")
        );
        set(directory.path(), 0o1777);
        opened().expect("nobody can replace what is another's there");
        assert!(
            open_trusted(directory.path(), process::user())
                .expect_err("a folder")
                .contains("is no file")
        );
        assert!(open_trusted(&path.join("x"), process::user()).is_err());
        assert!(
            open_trusted(Path::new("/nowhere/at/all"), 0)
                .expect_err("nothing")
                .contains("No such file")
        );
        if process::user() == 0 {
            std::os::unix::fs::chown(&path, Some(61_234), None).expect("root may");
            assert!(
                opened()
                    .expect_err("it is another's")
                    .contains("belongs to uid 61234")
            );
            open_trusted(&path, 61_234).expect("it is that user's own");
        }
    }
}
