//! How a master ends, and the next one begins with what it has left.

use std::path::Path;

use fdpassd::proto::control::Status;
use fdpassd::testing::{Running, ServiceManager};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::upgrade::upgrade;

/// The cause of the next master.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// SIGTERM to the master.
    Term,
    /// SIGTERM to all processes of the daemon at once.
    TermAll,
    /// SIGKILL to the master; its workers get SIGTERM then, as by systemd.
    Kill,
    /// An upgrade in place, to the same program.
    Upgrade,
}

impl How {
    pub const ALL: [How; 4] = [How::Term, How::Kill, How::TermAll, How::Upgrade];
}

/// Waits until the service manager has confirmed what the next master needs. A master that is killed before may leave
/// an incomplete store, and loses its clients.
#[track_caller]
pub fn wait_for_confirmed_store(daemon: &Running) -> Status {
    daemon.wait_until("the store is confirmed", |status| {
        status.restart_keeps_clients
    })
}

/// Sends SIGTERM to a worker, if it still runs.
#[track_caller]
pub fn terminate(worker: u32) {
    let sent = kill(Pid::from_raw(worker.cast_signed()), Signal::SIGTERM);
    assert!(matches!(sent, Ok(()) | Err(Errno::ESRCH)), "{sent:?}");
}

/// Has the daemon become the next one of this program.
#[track_caller]
pub fn restart(manager: &ServiceManager, mut daemon: Running, how: How, program: &Path) -> Running {
    if how == How::Upgrade {
        upgrade(&daemon, Some(program)).expect("the program is fit");
        return daemon;
    }
    let mut workers = daemon.worker_pids();
    let leaving = daemon.status().leaving;
    workers.extend(leaving.iter().map(|worker| worker.pid));
    if how == How::Kill {
        wait_for_confirmed_store(&daemon);
        daemon.signal("KILL");
        daemon.wait();
    } else {
        daemon.signal("TERM");
    }
    if how != How::Term {
        for worker in workers {
            terminate(worker);
        }
    }
    daemon.wait();
    // Shown if the test fails: the next master has a log of its own.
    println!(
        "--- the log of a master that ended by {how:?}\n{}---",
        daemon.stderr()
    );
    let daemon = manager
        .setup(program, "")
        .start_after(daemon)
        .expect("the next master serves");
    daemon.wait_for_workers();
    daemon
}
