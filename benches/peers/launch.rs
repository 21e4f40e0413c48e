//! Programs that end with this one. A child must ask for its parent-death signal itself, so this
//! program runs itself again, asks, and becomes the program wanted: no code between fork and exec.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getppid};

use crate::failure::{Context, Result};

/// Makes this process the one that reaps what its servers leave behind.
pub(crate) fn adopt_orphans() -> Result<()> {
    prctl::set_child_subreaper(true).context("cannot become a subreaper")
}

/// `program` with `arguments`, killed when this process dies.
pub(crate) fn program(program: &OsString, arguments: &[OsString]) -> Result<Command> {
    let mut command =
        Command::new(std::env::current_exe().context("cannot find this program's file")?);
    command
        .arg("launch")
        .arg("--parent")
        .arg(std::process::id().to_string())
        .arg("--")
        .arg(program)
        .args(arguments);
    Ok(command)
}

/// This program with other arguments, killed when this process dies.
pub(crate) fn itself(arguments: &[&str]) -> Result<Command> {
    let this = std::env::current_exe().context("cannot find this program's file")?;
    program(
        &this.into(),
        &arguments.iter().map(OsString::from).collect::<Vec<_>>(),
    )
}

/// The second half, in the child: becomes the program.
pub(crate) fn become_program(parent: i32, words: &[OsString]) -> Result<()> {
    let (program, arguments) = words.split_first().context("nothing to launch")?;
    prctl::set_pdeathsig(Signal::SIGKILL).context("cannot ask for the parent-death signal")?;
    if getppid() != Pid::from_raw(parent) {
        return Err("the parent is gone already".into());
    }
    Err(Command::new(program).args(arguments).exec()).context(program.display())
}
