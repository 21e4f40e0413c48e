//! Unwanted descriptors that clients pass (SCM_RIGHTS of unix(7)).
//!
//! A passed descriptor is closed by the process that reads past it or closes the socket with it unread. That close(2)
//! can take as long as the sender likes: a TCP socket with SO_LINGER and bytes unsent waits for its peer. So Unix
//! sockets of clients accept none: SO_PASSRIGHTS (Linux 6.16) is off, and the sender gets EPERM.
//!
//! On an older kernel they are received, also before a socket is closed; SO_LINGER of those that are sockets is
//! switched off, and a thread that does nothing else closes them. No other thread waits for it. Builds with debug
//! assertions do so on any kernel if `FDPASSD_PASSRIGHTS=unavailable` is in the environment.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{self, Sender};
use std::{io, thread};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow};
use nix::sys::socket::{setsockopt, sockopt};
use nix::{libc, setsockopt_impl, sockopt_impl};

use super::socket::{self, Received, Transfer};

/// The most descriptors that one connection may pass before it is ended.
const MAX_PASSED: u32 = 16;

/// SO_PASSRIGHTS of the kernel's asm-generic/socket.h, which libc lacks; sparc has other numbers.
const SO_PASSRIGHTS: libc::c_int = if cfg!(target_arch = "sparc64") {
    0x005c
} else {
    83
};

sockopt_impl!(
    /// Whether a Unix socket accepts descriptors.
    PassRights,
    SetOnly,
    libc::SOL_SOCKET,
    SO_PASSRIGHTS,
    bool
);

/// Makes a Unix socket accept no descriptors. Sockets inherit this from the listener that accepts them.
pub fn refuse_descriptors(socket: impl AsFd) {
    if is_refusal_available() {
        // It can only fail for a socket of another family, which accepts none.
        let _ = setsockopt(&socket, PassRights, &false);
    }
}

/// Returns whether the kernel can refuse descriptors, which is found out once.
fn is_refusal_available() -> bool {
    static IS_AVAILABLE: OnceLock<bool> = OnceLock::new();
    *IS_AVAILABLE.get_or_init(|| {
        let is_hidden = cfg!(debug_assertions) && std::env::var_os("FDPASSD_PASSRIGHTS").is_some();
        !is_hidden
            && socket::message_pair()
                .is_ok_and(|(one, _)| setsockopt(&one, PassRights, &false).is_ok())
    })
}

/// Whether RPC clients were left to another process, which has copies of their sockets: nothing may be received from
/// them.
static ARE_CLIENTS_LEFT: AtomicBool = AtomicBool::new(false);

/// Makes the drop of an RPC client's socket leave its contents alone. For a process that is about to exit.
pub fn leave_clients() {
    ARE_CLIENTS_LEFT.store(true, Ordering::Relaxed);
}

/// The descriptor of a client's socket.
#[derive(Debug)]
enum Descriptor {
    Owned(OwnedFd),
    /// One descriptor for all clients of a simulation, which are more than a process may have descriptors.
    #[cfg(test)]
    Simulated(BorrowedFd<'static>),
}

/// The socket of a client. Its drop closes the connection, without waiting for descriptors that were passed through it.
#[derive(Debug)]
pub struct ClientSocket {
    socket: Descriptor,
    is_unix: bool,
    /// Whether another process may get a copy of it.
    is_shared: bool,
}

impl ClientSocket {
    /// Returns the socket of an RPC client, which other processes may share.
    #[must_use]
    pub fn shared(socket: OwnedFd, is_unix: bool) -> ClientSocket {
        if is_unix {
            refuse_descriptors(&socket);
        }
        ClientSocket {
            socket: Descriptor::Owned(socket),
            is_unix,
            is_shared: true,
        }
    }

    /// Returns a socket of a simulation, which no process can use. Its drop closes nothing.
    #[cfg(test)]
    pub fn simulated() -> ClientSocket {
        static NULL: OnceLock<std::fs::File> = OnceLock::new();
        let null = NULL.get_or_init(|| std::fs::File::open("/dev/null").expect("/dev/null"));
        ClientSocket {
            socket: Descriptor::Simulated(null.as_fd()),
            is_unix: false,
            is_shared: true,
        }
    }

    /// Returns a socket that only this process has.
    #[must_use]
    pub fn own(socket: OwnedFd) -> ClientSocket {
        refuse_descriptors(&socket);
        let is_unix = matches!(socket::local_address(&socket), Ok(None));
        ClientSocket {
            socket: Descriptor::Owned(socket),
            is_unix,
            is_shared: false,
        }
    }
}

impl AsFd for ClientSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            Descriptor::Owned(socket) => socket.as_fd(),
            #[cfg(test)]
            Descriptor::Simulated(null) => *null,
        }
    }
}

impl AsRawFd for ClientSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

impl Drop for ClientSocket {
    fn drop(&mut self) {
        let is_left = self.is_shared && ARE_CLIENTS_LEFT.load(Ordering::Relaxed);
        if !self.is_unix || is_left || is_refusal_available() {
            return;
        }
        // So that no more of them arrive after the last receive.
        socket::end(&*self);
        let mut rest = [0; 4096];
        while let Ok(Received::Message { descriptors, .. }) =
            socket::receive_message(&*self, &mut rest)
        {
            close(descriptors);
        }
    }
}

/// The number of descriptors that a connection has passed.
#[derive(Debug, Default)]
pub struct Passed(AtomicU32);

impl Passed {
    /// Reads available bytes into `buffer`, which must not be empty, from a socket that may be a Unix socket.
    ///
    /// # Errors
    /// As [`socket::receive`]; ETOOMANYREFS when the client has passed more than 16 descriptors.
    pub fn receive(&self, socket: impl AsFd, buffer: &mut [u8]) -> io::Result<Transfer> {
        if is_refusal_available() {
            return socket::receive(socket, buffer);
        }
        match socket::receive_message(socket, buffer)? {
            Received::Message {
                length,
                descriptors,
                ..
            } => {
                let count = u32::try_from(descriptors.len()).unwrap_or(u32::MAX);
                close(descriptors);
                let before = self.0.fetch_add(count, Ordering::Relaxed);
                if before.saturating_add(count) > MAX_PASSED {
                    return Err(Errno::ETOOMANYREFS.into());
                }
                Ok(Transfer::Bytes(length))
            }
            Received::Nothing => Ok(Transfer::Nothing),
            Received::Shortage => Ok(Transfer::Shortage),
            Received::Closed => Ok(Transfer::End),
        }
    }
}

/// Closes descriptors in another thread.
fn close(descriptors: Vec<OwnedFd>) {
    if descriptors.is_empty() {
        return;
    }
    let off = libc::linger {
        l_onoff: 0,
        l_linger: 0,
    };
    for descriptor in &descriptors {
        // ENOTSOCK for all others.
        let _ = setsockopt(descriptor, sockopt::Linger, &off);
    }
    static THREAD: OnceLock<Option<Sender<Vec<OwnedFd>>>> = OnceLock::new();
    match THREAD.get_or_init(|| start_closing().ok()) {
        // The thread never ends, so it receives them. Without a thread they are closed here.
        Some(thread) => drop(thread.send(descriptors)),
        None => drop(descriptors),
    }
}

/// Starts the thread, with all signals blocked: other threads handle them.
fn start_closing() -> io::Result<Sender<Vec<OwnedFd>>> {
    let (sender, receiver) = mpsc::channel::<Vec<OwnedFd>>();
    let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
    let closing = move || receiver.into_iter().for_each(drop);
    let started = thread::Builder::new()
        .name("closing".to_owned())
        .stack_size(64 * 1024)
        .spawn(closing);
    before.thread_set_mask()?;
    started.map(|_| sender)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn refused_descriptors_are_an_error_of_the_sender() {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        if setsockopt(&ours, PassRights, &false).is_err() {
            // tests/it/passed_descriptors.rs reports it.
            return;
        }
        let _client = ClientSocket::own(ours.into());
        let refused = socket::send_message(&theirs, b"x", &[theirs.as_fd()]);
        let refused = refused.expect_err("it accepts none");
        assert_eq!(refused.raw_os_error(), Some(libc::EPERM));
        let sent = socket::send_message(&theirs, b"x", &[]);
        assert_eq!(sent.expect("bytes are accepted"), socket::Sent::Queued);
    }
}
