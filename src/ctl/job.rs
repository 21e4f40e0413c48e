//! The job that systemd performs on a unit: a stop, or a restart.
//!
//! Both begin with `ExecStop=`, with the same environment and the same SIGTERM; only the manager's list of jobs
//! (systemctl(1), `list-jobs`) has the difference.

use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;
use std::{env, fmt, thread};

/// How long systemctl may take.
const SYSTEMCTL_TIMEOUT: Duration = Duration::from_secs(5);

/// The job of a unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Job {
    /// The unit is stopped.
    Stop,
    /// Another job, such as `restart`.
    Other(String),
    /// No job: the daemon has ended by itself.
    None,
    /// Not known, for this reason.
    Unknown(String),
}

impl Job {
    /// Asks systemd, unless the main process of the unit has ended: then `$MAINPID` (systemd.exec(5)) is not set.
    pub(super) fn read(unit: &str) -> Job {
        if env::var_os("MAINPID").is_none_or(|pid| pid.is_empty()) {
            return Job::None;
        }
        match list_jobs() {
            Ok(list) => find(unit, &list),
            Err(why) => Job::Unknown(why),
        }
    }
}

impl fmt::Display for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Job::Stop => f.write_str("its unit is stopped"),
            Job::Other(kind) => write!(f, "the job of its unit is {kind}"),
            Job::None => f.write_str("its unit has no job"),
            Job::Unknown(why) => write!(f, "systemctl list-jobs: {why}"),
        }
    }
}

/// Returns the output of `systemctl list-jobs`. A thread waits for it, so that a systemctl that hangs does not.
fn list_jobs() -> Result<String, String> {
    let mut command = Command::new("systemctl");
    command.args([
        "list-jobs",
        "--full",
        "--plain",
        "--no-legend",
        "--no-pager",
    ]);
    command.stdin(Stdio::null()).stderr(Stdio::null());
    let (send, receive) = mpsc::channel();
    thread::spawn(move || send.send(command.output()));
    match receive.recv_timeout(SYSTEMCTL_TIMEOUT) {
        Ok(Ok(output)) if output.status.success() => {
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        }
        Ok(Ok(output)) => Err(output.status.to_string()),
        Ok(Err(e)) => Err(e.to_string()),
        Err(RecvTimeoutError::Timeout) => Err(format!("no answer within {SYSTEMCTL_TIMEOUT:?}")),
        Err(RecvTimeoutError::Disconnected) => Err("no answer".to_owned()),
    }
}

/// Finds the job of a unit in lines of number, unit, type and state.
fn find(unit: &str, list: &str) -> Job {
    let fields = |line: &str| -> Option<String> {
        let mut fields = line.split_whitespace().skip(1);
        (fields.next()? == unit).then(|| fields.next().map(str::to_owned))?
    };
    match list.lines().find_map(fields) {
        Some(kind) if kind == "stop" => Job::Stop,
        Some(kind) => Job::Other(kind),
        None => Job::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_found_by_the_full_name_of_its_unit() {
        let list = "\
            2701 fdpassd@blue.service restart running\n\
            2702 fdpassd.service      stop    running\n\
            2703 shutdown.target      start   waiting\n";
        for (unit, job) in [
            ("fdpassd.service", Job::Stop),
            ("fdpassd@blue.service", Job::Other("restart".to_owned())),
            ("shutdown.target", Job::Other("start".to_owned())),
            ("fdpassd", Job::None),
            ("fdpassd@green.service", Job::None),
        ] {
            assert_eq!(find(unit, list), job, "{unit}");
        }
        assert_eq!(find("fdpassd.service", "2702 fdpassd.service"), Job::None);
        assert_eq!(find("fdpassd.service", ""), Job::None);
    }
}
