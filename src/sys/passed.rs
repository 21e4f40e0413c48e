//! Descriptors that a client passes (SCM_RIGHTS of unix(7)) although nobody wants them.
//!
//! A descriptor that is passed is closed by whoever reads past it or closes the socket with it unread, and that close(2) can
//! take as long as the sender likes: a TCP socket with SO_LINGER and bytes unsent waits for its peer. So Unix sockets of
//! clients take none: SO_PASSRIGHTS (Linux 6.16) is off, and the sender gets EPERM.
//!
//! On an older kernel they are received, also before a socket is closed, SO_LINGER of those that are sockets is switched off,
//! and a thread that does nothing else closes them. Nothing waits for that thread. With `FDPASSD_PASSRIGHTS=unavailable` in the
//! environment builds with debug assertions do so on any kernel.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{self, Sender};
use std::thread;

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{SigSet, SigmaskHow};
use nix::sys::socket::{setsockopt, sockopt};

use super::socket::{self, Moved, Received};

/// Most descriptors that one connection may pass before it is ended.
const MAX_PASSED: u32 = 16;

/// SO_PASSRIGHTS of the kernel's asm-generic/socket.h, which libc has not; that of sparc has other numbers.
const SO_PASSRIGHTS: libc::c_int = if cfg!(target_arch = "sparc64") {
    0x005c
} else {
    83
};

/// Has a Unix socket take no descriptors. Of a listener it holds for all that connect from then on.
pub fn refuse_descriptors(socket: impl AsFd) {
    if is_refusal_available() {
        // It can only fail for a socket of another family, which takes none.
        let _ = set_passrights(socket.as_fd());
    }
}

fn set_passrights(socket: BorrowedFd<'_>) -> nix::Result<()> {
    let off: libc::c_int = 0;
    let length = size_of_val(&off) as libc::socklen_t;
    // SAFETY: the value is one int that outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PASSRIGHTS,
            (&raw const off).cast(),
            length,
        )
    };
    Errno::result(result).map(drop)
}

/// Whether the kernel can refuse descriptors for us. It is asked once.
fn is_refusal_available() -> bool {
    static IS_AVAILABLE: OnceLock<bool> = OnceLock::new();
    *IS_AVAILABLE.get_or_init(|| {
        let is_hidden = cfg!(debug_assertions) && std::env::var_os("FDPASSD_PASSRIGHTS").is_some();
        !is_hidden
            && socket::message_pair().is_ok_and(|(one, _)| set_passrights(one.as_fd()).is_ok())
    })
}

/// RPC clients have been left to another process, which has copies of their sockets: nothing is taken out of these any more.
static ARE_CLIENTS_LEFT: AtomicBool = AtomicBool::new(false);

/// From now on dropping the socket of an RPC client leaves alone what is in it. For a process that is about to exit.
pub fn leave_clients() {
    ARE_CLIENTS_LEFT.store(true, Ordering::Relaxed);
}

/// The socket of a client. When it is dropped the connection is over, and no descriptor in it makes that close wait.
#[derive(Debug)]
pub struct ClientSocket {
    socket: OwnedFd,
    is_unix: bool,
    /// A copy of it may go to another process.
    is_shared: bool,
}

impl ClientSocket {
    /// The socket of an RPC client. One of TCP costs nothing here.
    #[must_use]
    pub fn shared(socket: OwnedFd, is_unix: bool) -> ClientSocket {
        if is_unix {
            refuse_descriptors(&socket);
        }
        ClientSocket {
            socket,
            is_unix,
            is_shared: true,
        }
    }

    /// One that this process alone has.
    #[must_use]
    pub fn own(socket: OwnedFd) -> ClientSocket {
        refuse_descriptors(&socket);
        let is_unix = matches!(socket::local_address(&socket), Ok(None));
        ClientSocket {
            socket,
            is_unix,
            is_shared: false,
        }
    }
}

impl AsFd for ClientSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for ClientSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl Drop for ClientSocket {
    fn drop(&mut self) {
        let is_left = self.is_shared && ARE_CLIENTS_LEFT.load(Ordering::Relaxed);
        if !self.is_unix || is_left || is_refusal_available() {
            return;
        }
        // So that no more of them come after the last look.
        socket::end(&self.socket);
        let mut rest = [0; 4096];
        while let Ok(Received::Message { descriptors, .. }) =
            socket::receive_message(&self.socket, &mut rest)
        {
            close(descriptors);
        }
    }
}

/// How many descriptors a connection has passed.
#[derive(Debug, Default)]
pub struct Passed(AtomicU32);

impl Passed {
    /// Reads what is there into `buffer`, which is not empty, from a socket that may be a Unix socket.
    ///
    /// # Errors
    /// As [`socket::receive`]; ETOOMANYREFS when the client has passed more than 16 descriptors.
    pub fn receive(&self, socket: impl AsFd, buffer: &mut [u8]) -> io::Result<Moved> {
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
                if self
                    .0
                    .fetch_add(count, Ordering::Relaxed)
                    .saturating_add(count)
                    > MAX_PASSED
                {
                    return Err(Errno::ETOOMANYREFS.into());
                }
                Ok(Moved::Bytes(length))
            }
            Received::Nothing => Ok(Moved::Nothing),
            Received::Closed => Ok(Moved::End),
        }
    }
}

/// Closes descriptors without waiting for it.
fn close(descriptors: Vec<OwnedFd>) {
    if descriptors.is_empty() {
        return;
    }
    for descriptor in &descriptors {
        // ENOTSOCK of all others.
        let _ = setsockopt(
            descriptor,
            sockopt::Linger,
            &libc::linger {
                l_onoff: 0,
                l_linger: 0,
            },
        );
    }
    static THREAD: OnceLock<Option<Sender<Vec<OwnedFd>>>> = OnceLock::new();
    match THREAD.get_or_init(|| start_closing().ok()) {
        // It never ends, so it takes them. Without a thread they are closed here.
        Some(thread) => drop(thread.send(descriptors)),
        None => drop(descriptors),
    }
}

/// Starts the thread, with all signals blocked: they are for the others.
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
    fn where_the_kernel_can_refuse_descriptors_the_sender_is_told() {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        if set_passrights(ours.as_fd()).is_err() {
            // tests/it/passed_descriptors.rs says so, too.
            return;
        }
        let _client = ClientSocket::own(ours.into());
        let refused =
            socket::send_message(&theirs, b"x", &[theirs.as_fd()]).expect_err("it takes none");
        assert_eq!(refused.raw_os_error(), Some(libc::EPERM));
        assert_eq!(
            socket::send_message(&theirs, b"x", &[]).expect("bytes are taken"),
            socket::Sent::Queued
        );
    }
}
