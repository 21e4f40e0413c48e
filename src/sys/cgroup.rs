//! The cgroups of this process. Its limits of memory are those of its memory cgroup and of each ancestor (cgroups(7);
//! cgroup-v2.rst and cgroup-v1/memory.rst of the kernel's documentation).

mod apps;
mod oom;

use std::fs;
use std::path::{Component, Path, PathBuf};

pub use apps::{AppCgroup, AppCgroupGuard, AppCgroups};
pub use oom::OomCount;

/// Greater limits of v1 mean no limit, which v1 shows as the largest multiple of a page.
const NO_LIMIT: u64 = 1 << 60;

/// The limit of one memory cgroup, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryLimit {
    /// `memory.max`, or `memory.limit_in_bytes` on v1.
    pub limit: u64,
    /// The memory of its processes, less the page cache of files, which the kernel drops before it kills a process.
    pub used: u64,
}

/// Returns the limits of this process's cgroup and of all visible ancestors. Empty without a limit, or where no memory
/// cgroup is mounted.
#[must_use]
pub fn memory_limits() -> Vec<MemoryLimit> {
    own_directories()
        .iter()
        .filter_map(|directory| limit_of(|file| fs::read_to_string(directory.join(file)).ok()))
        .collect()
}

/// Returns the directories of this process's cgroup and of its visible ancestors, the nearest first.
fn own_directories() -> Vec<PathBuf> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    directories(&read("/proc/self/cgroup"), &read("/proc/self/mountinfo"))
}

/// Returns the directories of the cgroups that may limit memory, by /proc/PID/cgroup and /proc/PID/mountinfo (proc(5)).
fn directories(cgroups: &str, mounts: &str) -> Vec<PathBuf> {
    let of_line = |line: &str| {
        let mut fields = line.splitn(3, ':');
        let (number, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let is_v2 = number == "0" && controllers.is_empty();
        let is_v1 = controllers
            .split(',')
            .any(|controller| controller == "memory");
        let (root, point) = mounts
            .lines()
            .find_map(|mount| mounted(mount, is_v2).filter(|_| is_v1 || is_v2))?;
        Some(levels(Path::new(path), &root, &point))
    };
    cgroups.lines().filter_map(of_line).flatten().collect()
}

/// Returns the directory of the v2 cgroup of a process, and whether it is the root of its cgroup namespace
/// (cgroup_namespaces(7)).
fn own_v2(cgroups: &str, mounts: &str) -> Option<(PathBuf, bool)> {
    let path = cgroups.lines().find_map(|line| line.strip_prefix("0::"))?;
    let (root, point) = mounts.lines().find_map(|mount| mounted(mount, true))?;
    let own = levels(Path::new(path), &root, &point).into_iter().next()?;
    Some((own, path == "/"))
}

/// Returns the part of the hierarchy that a mount shows, and the mount point; none for other mounts.
fn mounted(mount: &str, is_v2: bool) -> Option<(PathBuf, PathBuf)> {
    let (before, after) = mount.split_once(" - ")?;
    let (mut before, mut after) = (before.split(' ').skip(3), after.split(' '));
    let (root, point) = (before.next()?, before.next()?);
    let (kind, options) = (after.next()?, after.nth(1)?);
    let is_it = match is_v2 {
        true => kind == "cgroup2",
        false => kind == "cgroup" && options.split(',').any(|option| option == "memory"),
    };
    is_it.then(|| (unescape(root), unescape(point)))
}

/// Replaces the bytes of a path that mountinfo shows as octal numbers.
fn unescape(path: &str) -> PathBuf {
    path.replace("\\040", " ")
        .replace("\\011", "\t")
        .replace("\\012", "\n")
        .replace("\\134", "\\")
        .into()
}

/// Returns the directory of a cgroup, and those of its ancestors up to the mount point.
fn levels(path: &Path, root: &Path, point: &Path) -> Vec<PathBuf> {
    // In a container its own cgroup may be the mount's root, while its path is that outside. The path of a cgroup
    // outside of the mount starts with "/..".
    let below = path.strip_prefix(root).unwrap_or(Path::new(""));
    let is_below = below
        .components()
        .all(|part| matches!(part, Component::Normal(_)));
    let own = if is_below && below != Path::new("") {
        point.join(below)
    } else {
        point.to_owned()
    };
    own.ancestors()
        .take_while(|level| level.starts_with(point))
        .map(Path::to_owned)
        .collect()
}

/// Returns the limit of the cgroup whose files `read` reads.
fn limit_of(read: impl Fn(&str) -> Option<String>) -> Option<MemoryLimit> {
    let number = |file: &str| read(file)?.trim().parse::<u64>().ok();
    let stat = |names: &[&str]| {
        let stat = read("memory.stat").unwrap_or_default();
        let of_line = |line: &str| {
            let (name, value) = line.split_once(' ')?;
            names
                .contains(&name)
                .then(|| value.trim().parse::<u64>().ok())?
        };
        stat.lines().filter_map(of_line).collect::<Vec<u64>>()
    };
    let (limit, used, cache) = match number("memory.max") {
        Some(limit) => (
            limit,
            number("memory.current")?,
            stat(&["active_file", "inactive_file"]),
        ),
        None => {
            // If the mount shows only a part of the hierarchy, only this contains the limits above it.
            let own = number("memory.limit_in_bytes")?;
            let limit = stat(&["hierarchical_memory_limit"])
                .into_iter()
                .fold(own, u64::min);
            let cache = stat(&["total_active_file", "total_inactive_file"]);
            (limit, number("memory.usage_in_bytes")?, cache)
        }
    };
    let used = cache.into_iter().fold(used, u64::saturating_sub);
    (limit < NO_LIMIT).then_some(MemoryLimit { limit, used })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(cgroups: &str, mounts: &str) -> Vec<String> {
        directories(cgroups, mounts)
            .iter()
            .map(|directory| directory.display().to_string())
            .collect()
    }

    #[test]
    fn own_cgroup_and_ancestors_are_found_in_v1_and_v2() {
        let v2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
        let v1 = "36 33 0:30 / /sys/fs/cgroup/cpu rw - cgroup cpu rw,cpu\n\
                  37 33 0:31 / /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory\n";
        let levels = [
            "/sys/fs/cgroup/system.slice/a b.service",
            "/sys/fs/cgroup/system.slice",
            "/sys/fs/cgroup",
        ];
        assert_eq!(found("0::/system.slice/a b.service\n", v2), levels);
        assert_eq!(
            found("5:cpu:/x\n4:memory:/y\n", v1),
            ["/sys/fs/cgroup/memory/y", "/sys/fs/cgroup/memory"]
        );
        assert_eq!(found("4:memory:/\n0::/\n", v1), ["/sys/fs/cgroup/memory"]);
        assert_eq!(found("", v1), [""; 0]);
        assert_eq!(found("nonsense\n0::\n", "nonsense\n - x\n"), [""; 0]);
        // In a container the mount shows only its own part, by the path outside or below its own root.
        let part = "30 23 0:26 /docker/1f /sys/fs/cgroup ro shared:1 - cgroup2 cgroup rw\n";
        assert_eq!(
            found("0::/docker/1f/x\n", part),
            ["/sys/fs/cgroup/x", "/sys/fs/cgroup"]
        );
        assert_eq!(found("0::/\n", part), ["/sys/fs/cgroup"]);
        assert_eq!(found("0::/../other\n", v2), ["/sys/fs/cgroup"]);
        let escaped = "30 23 0:26 / /a\\040b rw - cgroup2 cgroup rw\n";
        assert_eq!(found("0::/\n", escaped), ["/a b"]);
    }

    #[test]
    fn own_cgroup_of_v2_is_found_where_v1_is_mounted_too() {
        let mounts = "37 33 0:31 / /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory\n\
                      41 33 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let found = |cgroups| {
            own_v2(cgroups, mounts).map(|(path, is_root)| (path.display().to_string(), is_root))
        };
        let own = ("/sys/fs/cgroup/unified/a.service".to_owned(), false);
        assert_eq!(found("4:memory:/y\n0::/a.service\n"), Some(own));
        let root = ("/sys/fs/cgroup/unified".to_owned(), true);
        assert_eq!(found("4:memory:/y\n0::/\n"), Some(root), "of a container");
        assert_eq!(found("4:memory:/y\n"), None);
        assert_eq!(own_v2("0::/a.service\n", ""), None);
    }

    #[test]
    fn page_cache_of_files_does_not_count_as_used() {
        let limit = |files: &[(&str, &str)]| {
            let read = |name: &str| files.iter().find(|(file, _)| *file == name);
            let found = limit_of(|file| read(file).map(|(_, text)| (*text).to_owned()));
            found.map(|MemoryLimit { limit, used }| (limit, used))
        };
        let stat = "shmem 500\ninactive_file 100\nactive_file 50\n";
        let v2 = [("memory.current", "900\n"), ("memory.stat", stat)];
        let with = |max| limit(&[v2[0], v2[1], ("memory.max", max)]);
        assert_eq!(with("1000\n"), Some((1000, 750)));
        assert_eq!((with("max\n"), limit(&v2)), (None, None));
        let stat = "cache 700\nhierarchical_memory_limit 800\nactive_file 9\ntotal_inactive_file 100\ntotal_active_file 50\n";
        let v1 = |own, stat| {
            limit(&[
                ("memory.usage_in_bytes", "900\n"),
                ("memory.limit_in_bytes", own),
                ("memory.stat", stat),
            ])
        };
        assert_eq!(v1("1000\n", stat), Some((800, 750)));
        assert_eq!(v1("700\n", stat), Some((700, 750)));
        assert_eq!(v1("9223372036854771712\n", ""), None);
        assert_eq!(limit(&[]), None);
    }
}
