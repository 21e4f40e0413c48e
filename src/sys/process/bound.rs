//! Child processes that do not outlive this process.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{getpid, getppid, setsid};

/// Makes the kernel send SIGTERM to the child of this command when the thread ends that starts it (PR_SET_PDEATHSIG of
/// prctl(2)): also when this process is killed. A child that executes a set-user-ID program is not bound.
///
/// The child is in a session of its own (setsid(2)): neither does it read from the terminal of this process, nor does
/// the terminal send it signals, such as SIGINT, which are for this process.
///
/// Starting the command fails with ESRCH if this process ends before.
pub fn end_with_this_thread(command: &mut Command) {
    let parent = getpid();
    // SAFETY: the closure makes system calls only, and uses no memory but a copied number.
    unsafe {
        command.pre_exec(move || {
            prctl::set_pdeathsig(Signal::SIGTERM)?;
            setsid()?;
            match getppid() == parent {
                true => Ok(()),
                false => Err(io::Error::from(Errno::ESRCH)),
            }
        });
    }
}
