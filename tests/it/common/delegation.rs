//! A cgroup that is delegated to the daemon that runs in it, as systemd does with `Delegate=yes`
//! (systemd.resource-control(5)).

use std::fs;
use std::path::{Path, PathBuf};

use fdpassd::testing::{ServiceManager, Setup, eventually};

use super::cgroup::{enter_and_execute, unique_name};
use super::needs::skip;
use super::program::run;

/// Places of cgroup v2: alone, and next to v1.
const HIERARCHIES: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

/// A cgroup for one daemon. When it is dropped, after the daemon, it is removed.
#[derive(Debug)]
pub struct DelegatedCgroup(PathBuf);

impl DelegatedCgroup {
    /// Makes one. Skips the test where none can be made.
    pub fn new() -> Option<DelegatedCgroup> {
        let name = unique_name();
        for hierarchy in HIERARCHIES.map(Path::new) {
            let directory = hierarchy.join(&name);
            if !hierarchy.join("cgroup.subtree_control").exists()
                || fs::create_dir(&directory).is_err()
            {
                continue;
            }
            let cgroup = DelegatedCgroup(directory);
            let mark = "import os, sys; os.setxattr(sys.argv[1], 'user.delegate', b'1')";
            let marked = run("python3", &["-c", mark, &cgroup.0.to_string_lossy()]);
            if cgroup.0.join("cgroup.kill").exists() && marked.code == Some(0) {
                return Some(cgroup);
            }
        }
        skip(
            "cgroups",
            "no cgroup of version 2 can be made: only root can, on Linux 5.14 and newer, and python3 marks it",
        );
        None
    }

    /// Returns its directory.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Returns the settings to run `program` in it, under this manager.
    pub fn setup(&self, manager: &ServiceManager, program: &str, config: &str) -> Setup {
        enter_and_execute(manager.setup("sh", config), &self.0, program)
    }

    /// Returns the cgroups in it, by name.
    pub fn children(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).expect("it is there").flatten();
        let directories = entries.filter(|entry| entry.path().is_dir());
        let names = directories.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.collect()
    }

    /// Returns all processes in it and in its children.
    pub fn processes(&self) -> Vec<u32> {
        let children = self.children().into_iter();
        let directories = children.map(|name| self.0.join(name));
        let pids = |directory: PathBuf| {
            // A cgroup may be removed during this.
            let pids = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
            let pids = pids.lines().filter_map(|pid| pid.parse().ok());
            pids.collect::<Vec<u32>>()
        };
        std::iter::once(self.0.clone())
            .chain(directories)
            .flat_map(pids)
            .collect()
    }
}

impl Drop for DelegatedCgroup {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            eventually("the processes of the cgroup have ended", || {
                self.processes().is_empty().then_some(())
            });
        }
        // After a failed test, what is left must not stay.
        let _ = fs::write(self.0.join("cgroup.kill"), "1");
        while !self.processes().is_empty() {
            std::thread::yield_now();
        }
        for name in self.children() {
            let _ = fs::remove_dir(self.0.join(name));
        }
        let _ = fs::remove_dir(&self.0);
    }
}
