//! A memory cgroup of a test's own, v1 or v2, whichever is there and can be written (cgroups(7)).

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{self, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use fdpassd::testing::{Setup, eventually};

use super::needs::skip;

/// Places of the memory controller: v2, v1, and v2 next to v1.
const HIERARCHIES: [&str; 3] = [
    "/sys/fs/cgroup",
    "/sys/fs/cgroup/memory",
    "/sys/fs/cgroup/unified",
];

/// Returns a name that no other cgroup of a test has.
pub fn unique_name() -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    format!("fdpassd-test-{}-{number}", process::id())
}

/// Lets the shell of this setup enter a cgroup, and then execute `program`.
pub fn enter_and_execute(shell: Setup, cgroup: &Path, program: impl AsRef<OsStr>) -> Setup {
    let script = "echo $$ > \"$0/cgroup.procs\" && exec \"$@\"";
    let shell = shell.argument("-c").argument(script);
    shell.argument(cgroup).argument(program.as_ref())
}

/// A cgroup with a limit of memory, and one below it without a limit of its own, in which a daemon runs. When it is
/// dropped, after the daemon, both are removed.
#[derive(Debug)]
pub struct MemoryCgroup {
    outer: PathBuf,
    inner: PathBuf,
}

impl MemoryCgroup {
    /// Makes one. Skips the test where no memory cgroup can be made.
    pub fn new(limit: u64) -> Option<MemoryCgroup> {
        let name = unique_name();
        for hierarchy in HIERARCHIES.map(Path::new) {
            let cgroup = MemoryCgroup {
                outer: hierarchy.join(&name),
                inner: hierarchy.join(&name).join("daemon"),
            };
            if !hierarchy.join("cgroup.procs").exists() || fs::create_dir(&cgroup.outer).is_err() {
                continue;
            }
            if cgroup.limit_file().is_some() && fs::create_dir(&cgroup.inner).is_ok() {
                cgroup.set_limit(limit);
                return Some(cgroup);
            }
        }
        skip(
            "memory-cgroups",
            "no memory cgroup can be made: only root can, where the memory controller is there",
        );
        None
    }

    fn limit_file(&self) -> Option<PathBuf> {
        let files = ["memory.max", "memory.limit_in_bytes"].map(|name| self.outer.join(name));
        files.into_iter().find(|file| file.exists())
    }

    /// Bytes that all in it may have together.
    pub fn set_limit(&self, bytes: u64) {
        let file = self.limit_file().expect("it was there before");
        fs::write(&file, bytes.to_string())
            .unwrap_or_else(|e| panic!("cannot write {}: {e}", file.display()));
    }

    /// Returns the setup of a program that runs in the cgroup.
    pub fn setup(&self, program: impl AsRef<Path>, config: &str) -> Setup {
        enter_and_execute(Setup::new("sh", config), &self.inner, program.as_ref())
    }

    /// Has the kernel kill a process of this cgroup alone, for lack of memory.
    pub fn kill_one(&self) {
        // tail(1) keeps a line until its end.
        let script = "echo $$ > \"$0/cgroup.procs\" && head -c 1G /dev/zero | tail -n 1";
        let mut command = Command::new("sh");
        command.args(["-c", script]).arg(&self.inner);
        let status = command.stdout(Stdio::null()).status().expect("sh runs");
        assert!(!status.success(), "nothing was killed");
    }

    /// Processes in it.
    fn processes(&self) -> usize {
        fs::read_to_string(self.inner.join("cgroup.procs")).map_or(0, |pids| pids.lines().count())
    }
}

impl Drop for MemoryCgroup {
    fn drop(&mut self) {
        if self.inner.exists() && !std::thread::panicking() {
            eventually("the processes of the cgroup have ended", || {
                (self.processes() == 0).then_some(())
            });
        }
        let _ = fs::remove_dir(&self.inner);
        let _ = fs::remove_dir(&self.outer);
    }
}
