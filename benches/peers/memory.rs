//! Memory of a server's processes, and the descriptors to fill it with clients.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::Pid;

use crate::common::cpu::family;
use crate::common::failure::{Context, Result};

/// Raises the limit of open files to the hard limit, for this process and its children. Returns the limit.
pub(crate) fn raise_descriptor_limit() -> Result<u64> {
    let (_, hard) =
        getrlimit(Resource::RLIMIT_NOFILE).context("cannot ask for the limit of open files")?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
        .context("cannot raise the limit of open files")?;
    Ok(hard)
}

/// The memory of a server's processes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    /// Mapped: proportional set size, a shared page counted once over all.
    pub(crate) pss: i64,
    /// Pages of memfds, mapped or not: PSS does not contain pages used by pread and pwrite only.
    pub(crate) memfds: i64,
}

impl Memory {
    /// Reads the memory of the process and its descendants.
    pub(crate) fn now(root: Pid) -> Result<Self> {
        let mut memory = Memory { pss: 0, memfds: 0 };
        let mut memfds = HashMap::new();
        for pid in family(root)? {
            memory.pss += pss(pid)?;
            collect_memfds(pid, &mut memfds)?;
        }
        memory.memfds = memfds.values().sum();
        Ok(memory)
    }
}

fn pss(pid: Pid) -> Result<i64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).context(&path)?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("Pss:"))
        .context(format!("{path} has no Pss"))?;
    let kib: i64 = line
        .trim()
        .trim_end_matches("kB")
        .trim_end()
        .parse()
        .context(&path)?;
    Ok(kib << 10)
}

/// Collects the allocated bytes by inode: the processes of a server share their memfds.
fn collect_memfds(pid: Pid, found: &mut HashMap<u64, i64>) -> Result<()> {
    let path = format!("/proc/{pid}/fd");
    for entry in fs::read_dir(&path).context(&path)?.flatten() {
        // A descriptor may be closed by now.
        let Ok(target) = fs::read_link(entry.path()) else {
            continue;
        };
        if target.to_string_lossy().starts_with("/memfd:")
            && let Ok(metadata) = fs::metadata(entry.path())
        {
            found.insert(metadata.ino(), metadata.blocks().cast_signed() * 512);
        }
    }
    Ok(())
}
