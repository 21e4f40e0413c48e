//! The choice of the process that the kernel kills when memory runs out: `oom_score_adj` of proc_pid_oom_score_adj(5).

use std::sync::atomic::{AtomicI32, Ordering};
use std::{env, fs, io};

/// The score of a process that the kernel never kills.
const NEVER: i32 = -1000;

/// The variable that has the score of the master before it was protected, for its children and for the next program.
pub(super) const VARIABLE: &str = "FDPASSD_OOM_SCORE";

const FILE: &str = "/proc/self/oom_score_adj";

/// No score.
const NONE: i32 = i32::MIN;

/// The score of this process before it was protected.
static BEFORE: AtomicI32 = AtomicI32::new(NONE);

/// Protects this process: the kernel does not kill it when memory runs out, but fails its system calls with ENOMEM. A
/// child inherits this until it calls [`raise_oom_score`].
///
/// The workers are killed first in any case. But when all of them are dying and their memory is not free yet, the master
/// would be the only process left to kill.
///
/// # Errors
/// Those of open(2), read(2) and write(2): EACCES without CAP_SYS_RESOURCE.
pub fn protect_from_oom() -> io::Result<()> {
    let before = score_before()?;
    fs::write(FILE, NEVER.to_string())?;
    BEFORE.store(before, Ordering::Relaxed);
    Ok(())
}

/// Sets how much likelier than another process the kernel kills this one when memory runs out: 0 to 1000 thousandths of
/// all memory above the score that the master had at its start. This needs no privilege, and children inherit it.
///
/// # Errors
/// Those of open(2), read(2) and write(2).
pub fn raise_oom_score(by: i32) -> io::Result<()> {
    let score = score_before()?.saturating_add(by);
    fs::write(FILE, score.clamp(NEVER, -NEVER).to_string())
}

/// Returns the score that this process would have, had no master been protected.
fn score_before() -> io::Result<i32> {
    let noted = env::var(VARIABLE).ok().and_then(|noted| noted.parse().ok());
    match noted {
        Some(noted) => Ok(noted),
        None => fs::read_to_string(FILE)?
            .trim()
            .parse()
            .map_err(io::Error::other),
    }
}

/// Returns the value of [`VARIABLE`], if this process is protected.
pub(super) fn noted_score() -> Option<String> {
    let before = BEFORE.load(Ordering::Relaxed);
    (before != NONE).then(|| before.to_string())
}
