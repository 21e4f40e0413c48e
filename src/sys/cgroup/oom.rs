//! The kernel's count of processes that it killed for lack of memory.

use std::fs;
use std::path::PathBuf;

use super::{AppCgroups, own_directories};

/// Files of a memory cgroup with a line `oom_kill N`: of v2 (cgroup-v2.rst) and of v1 (cgroup-v1/memory.rst).
const FILES: [&str; 2] = ["memory.events", "memory.oom_control"];

/// The count of processes of this process's memory cgroup that the kernel has killed for lack of memory, whether that
/// of the cgroup or of the system.
#[derive(Debug)]
pub struct OomCount(PathBuf);

impl OomCount {
    /// Finds the count: that of the cgroup which has the apps' cgroups as well, else of the own cgroup or of the
    /// nearest one above it with the memory controller. Without any, the count is that of the system, in /proc/vmstat.
    #[must_use]
    pub fn of_process() -> OomCount {
        let with_apps = AppCgroups::of_process().ok();
        let with_apps = with_apps.map(|cgroups| cgroups.path().to_owned());
        let found = with_apps
            .into_iter()
            .chain(own_directories())
            .flat_map(|directory| FILES.map(|file| directory.join(file)))
            .find(|file| file.exists());
        OomCount(found.unwrap_or_else(|| "/proc/vmstat".into()))
    }

    /// Reads the count. None where the kernel does not count.
    #[must_use]
    pub fn read(&self) -> Option<u64> {
        count_in(&fs::read_to_string(&self.0).ok()?)
    }
}

fn count_in(counters: &str) -> Option<u64> {
    let line = |line: &str| line.strip_prefix("oom_kill ")?.trim().parse().ok();
    counters.lines().find_map(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_is_found_in_each_kind_of_file() {
        let v2 = "low 0\nhigh 0\nmax 7\noom 2\noom_kill 3\noom_group_kill 1\n";
        let v1 = "oom_kill_disable 0\nunder_oom 0\noom_kill 4\n";
        assert_eq!((count_in(v2), count_in(v1)), (Some(3), Some(4)));
        assert_eq!(count_in("oom_kill_disable 0\n"), None);
        let vmstat = fs::read_to_string("/proc/vmstat").unwrap_or_default();
        assert_eq!(
            count_in(&vmstat).is_some(),
            vmstat.contains("\noom_kill "),
            "where the kernel counts"
        );
    }

    #[test]
    fn this_process_has_a_count_where_the_kernel_counts() {
        let vmstat = OomCount("/proc/vmstat".into());
        assert!(OomCount::of_process().read().is_some() || vmstat.read().is_none());
    }
}
