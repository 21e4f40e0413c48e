//! Starts programs that end with this one. A child must set its parent-death signal itself, so this program runs
//! itself, sets the signal and executes the wanted program: no code runs between fork and exec.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getppid};

use super::failure::{Context, Result};

/// A program to execute.
#[derive(clap::Args)]
pub(crate) struct Options {
    #[arg(long)]
    parent: i32,
    #[arg(last = true)]
    words: Vec<OsString>,
}

/// Makes this process the subreaper of the processes that its servers leave.
pub(crate) fn adopt_orphans() -> Result<()> {
    prctl::set_child_subreaper(true).context("cannot become a subreaper")
}

/// Returns a command for `program` with `arguments`, killed when this process dies.
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

/// Returns a command for this program with other arguments, killed when this process dies.
pub(crate) fn itself(arguments: &[&str]) -> Result<Command> {
    let this = std::env::current_exe().context("cannot find this program's file")?;
    program(
        &this.into(),
        &arguments.iter().map(OsString::from).collect::<Vec<_>>(),
    )
}

/// Executes the program, in the child.
pub(crate) fn become_program(options: &Options) -> Result<()> {
    let (program, arguments) = options.words.split_first().context("nothing to launch")?;
    prctl::set_pdeathsig(Signal::SIGKILL).context("cannot ask for the parent-death signal")?;
    if getppid() != Pid::from_raw(options.parent) {
        return Err("the parent is gone already".into());
    }
    Err(Command::new(program).args(arguments).exec()).context(program.display())
}
