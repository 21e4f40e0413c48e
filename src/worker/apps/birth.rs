//! The birth of an app: its worker executes it, or the zygote of the apps forks it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use log::Level;

use super::forked::{RETRY_INTERVAL, ZygoteLine};
use super::output::OutputStream;
use crate::proto::app::{AppOutput, FORK, RUN};
use crate::sys::cgroup::AppCgroups;
use crate::sys::poll::{self, Interest};
use crate::sys::process::{self, AppProcess, AppStdio, ProcessIdentity};
use crate::sys::socket::{self, Sent};

/// A new app, and what its worker has of it.
pub(super) struct BornApp {
    pub(super) process: AppProcess,
    /// The line to the zygote that has forked it.
    pub(super) line: Option<ZygoteLine>,
    pub(super) wire: UnixStream,
    pub(super) output: Option<[OutputStream; 2]>,
}

/// The connection of a forked worker to the zygote of the apps.
#[derive(Debug)]
pub(crate) struct AppForker {
    /// A copy of the descriptor that all workers of the generation have.
    requests: OwnedFd,
    zygote: u32,
}

impl AppForker {
    pub(super) fn new(requests: OwnedFd, zygote: u32) -> AppForker {
        AppForker { requests, zygote }
    }

    /// Has the zygote fork an app, and waits until it has done so. If `master`, the channel to the master, ends before,
    /// the wait ends.
    ///
    /// # Errors
    /// Why there is no app, for the operator: a sentence without its subject.
    pub(super) fn fork(
        self,
        output: AppOutput,
        cgroups: Option<&AppCgroups>,
        master: impl AsFd,
    ) -> Result<BornApp, String> {
        let failed = |e: io::Error| format!("cannot be forked: {e}");
        let (wire, their_wire) = process::wire().map_err(failed)?;
        let (output, stdio) = streams(output).map_err(failed)?;
        let (socket, their_end) = socket::message_pair().map_err(failed)?;
        let mut descriptors = vec![their_end.as_fd(), their_wire.as_fd()];
        if let AppStdio::Pipes(output, errors) = &stdio {
            descriptors.extend([output.as_fd(), errors.as_fd()]);
        }
        send(&self.requests, FORK, &descriptors, &master).map_err(failed)?;
        drop((their_wire, their_end, stdio));
        let line = ZygoteLine {
            socket,
            zygote: self.zygote,
        };
        let pid = line.await_fork(&master)?;
        // The zygote is a process of the app's user, so what it reports is checked.
        let process = ProcessIdentity::of_descendant(pid, self.zygote).ok_or_else(|| {
            format!("cannot be forked: process {pid} is not a child of its zygote")
        })?;
        let pidfd = process::open_pidfd(process.pid).map_err(failed)?;
        if let Some(cgroups) = cgroups {
            cgroups.adopt(pid);
        }
        send(&line.socket, RUN, &[], &master).map_err(failed)?;
        Ok(BornApp {
            process: AppProcess { pid, pidfd },
            line: Some(line),
            wire,
            output,
        })
    }
}

/// Sends a message to the zygote or to its app. While their socket is full, or the kernel has no memory, tries again.
fn send(
    socket: &OwnedFd,
    message: &[u8],
    descriptors: &[BorrowedFd<'_>],
    master: impl AsFd,
) -> io::Result<()> {
    loop {
        match socket::send_message(socket, message, descriptors)? {
            Sent::Queued => return Ok(()),
            Sent::Closed => return Err(io::Error::other("its zygote has ended")),
            Sent::Full | Sent::Shortage => {}
        }
        if poll::wait_for(&master, Interest::End, RETRY_INTERVAL)? {
            return Err(io::Error::other("the master has ended"));
        }
    }
}

/// Returns the ends of an app's standard output and standard error.
pub(super) fn streams(output: AppOutput) -> io::Result<(Option<[OutputStream; 2]>, AppStdio)> {
    Ok(match output {
        AppOutput::Inherit => (None, AppStdio::Inherit),
        AppOutput::Null => (None, AppStdio::Null),
        AppOutput::Log => {
            let (output, output_end) = OutputStream::new(Level::Info)?;
            let (errors, errors_end) = OutputStream::new(Level::Info)?;
            (
                Some([output, errors]),
                AppStdio::Pipes(output_end, errors_end),
            )
        }
    })
}
