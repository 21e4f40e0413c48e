//! A thread that hardly gets a CPU, because others use the only one that it may run on.

use nix::errno::Errno;
use nix::libc;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// A thread that is starved of CPU time until this is dropped.
pub struct Starved<'a> {
    thread: u32,
    rivals: &'a [u32],
    allowed: CpuSet,
}

impl Starved<'_> {
    /// Starves a thread by rivals that never wait. All must be in one session, as the kernel divides the CPU among
    /// sessions first (sched(7), autogroup).
    #[track_caller]
    pub fn start(thread: u32, rivals: &[u32]) -> Starved<'_> {
        let allowed = sched_getaffinity(id(thread)).expect("the thread runs");
        let mut cpus = (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap_or(false));
        let mut one = CpuSet::new();
        one.set(cpus.next().expect("a CPU")).expect("a CPU");
        for rival in rivals {
            sched_setaffinity(id(*rival), &one).expect("the thread runs");
            // The tests themselves may run at a lower priority.
            let _ = set_policy(*rival, libc::SCHED_OTHER);
            let _ = reset_niceness(*rival);
        }
        // The kernel gives it a few milliseconds of several seconds.
        sched_setaffinity(id(thread), &one).expect("the thread runs");
        set_policy(thread, libc::SCHED_IDLE).expect("a lower priority is allowed");
        Starved {
            thread,
            rivals,
            allowed,
        }
    }
}

impl Drop for Starved<'_> {
    fn drop(&mut self) {
        // A process without privileges may only lower priorities.
        for rival in self.rivals {
            let _ = set_policy(*rival, libc::SCHED_IDLE);
        }
        let _ = sched_setaffinity(id(self.thread), &self.allowed);
    }
}

fn id(thread: u32) -> Pid {
    Pid::from_raw(thread.cast_signed())
}

fn set_policy(thread: u32, policy: libc::c_int) -> nix::Result<()> {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: it reads one struct.
    let set =
        unsafe { libc::sched_setscheduler(id(thread).as_raw(), policy, &raw const parameters) };
    Errno::result(set).map(drop)
}

/// Sets the nice value of a thread to 0.
fn reset_niceness(thread: u32) -> nix::Result<()> {
    // SAFETY: it has no pointers.
    let set = unsafe { libc::setpriority(libc::PRIO_PROCESS, thread, 0) };
    Errno::result(set).map(drop)
}
