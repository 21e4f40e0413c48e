//! The choice of the process that the kernel kills when memory runs out: `oom_score_adj` of proc_pid_oom_score_adj(5).

use std::sync::atomic::{AtomicI32, Ordering};
use std::{env, fs, io};

/// The score of a process that the kernel never kills.
const NEVER: i32 = -1000;

/// The variable that has the score from which those of the children are counted, for them and for the next program.
pub(super) const VARIABLE: &str = "FDPASSD_OOM_SCORE";

const FILE: &str = "/proc/self/oom_score_adj";

/// No score.
const NONE: i32 = i32::MIN;

/// The score from which those of the children are counted, once this process is protected.
static BASE: AtomicI32 = AtomicI32::new(NONE);

/// Protects this process: the kernel does not kill it when memory runs out, but fails its system calls with ENOMEM. A
/// child inherits this until it calls [`raise_oom_score`].
///
/// The workers are killed first in any case. But when all of them are dying and their memory is not free yet, the
/// master would be the only process left to kill.
///
/// # Errors
/// Those of open(2), read(2) and write(2): EACCES without CAP_SYS_RESOURCE.
pub fn protect_from_oom() -> io::Result<()> {
    let base = base()?;
    fs::write(FILE, NEVER.to_string())?;
    BASE.store(base, Ordering::Relaxed);
    Ok(())
}

/// Sets how much likelier than another process the kernel kills this one when memory runs out: 0 to 1000 thousandths of
/// all memory above the score that the master had at its start, or above 0 if that was less. This needs no privilege,
/// and children inherit it.
///
/// # Errors
/// Those of open(2), read(2) and write(2).
pub fn raise_oom_score(by: i32) -> io::Result<()> {
    let score = base()?.saturating_add(by);
    fs::write(FILE, score.min(-NEVER).to_string())
}

/// Returns the score from which those of the children are counted.
fn base() -> io::Result<i32> {
    let noted = env::var(VARIABLE).ok().and_then(|noted| noted.parse().ok());
    let score = match noted {
        Some(noted) => noted,
        None => fs::read_to_string(FILE)?
            .trim()
            .parse()
            .map_err(io::Error::other)?,
    };
    Ok(base_of(score))
}

/// Returns the base if the master had this score at its start. A service manager lowers a score to protect the master,
/// which holds the clients: a child that inherited the protection could use all memory and would not be killed.
fn base_of(score: i32) -> i32 {
    score.max(0)
}

/// Returns the value of [`VARIABLE`], if this process is protected.
pub(super) fn noted_score() -> Option<String> {
    let base = BASE.load(Ordering::Relaxed);
    (base != NONE).then(|| base.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lowered_score_is_not_for_the_children() {
        for (score, base) in [(0, 0), (200, 200), (-1, 0), (-500, 0), (NEVER, 0)] {
            assert_eq!(base_of(score), base);
        }
    }
}
