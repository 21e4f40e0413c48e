//! Messages that carry descriptors (SCM_RIGHTS of unix(7)).

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::{io, mem};

use nix::errno::Errno;
use nix::sys::socket::{
    self, AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, setsockopt, sockopt,
};
use nix::{libc, setsockopt_impl, sockopt_impl};

/// The most descriptors that one message can carry: `SCM_MAX_FD` (unix(7)).
pub const MAX_PASSED: usize = 253;

sockopt_impl!(
    /// Where in the queue MSG_PEEK begins, in bytes: SO_PEEK_OFF of socket(7).
    PeekOffset,
    SetOnly,
    libc::SOL_SOCKET,
    libc::SO_PEEK_OFF,
    libc::c_int
);

/// Returns two connected sockets that keep the borders of messages and report when the other end is gone.
///
/// # Errors
/// Those of socketpair(2).
pub fn message_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let (family, kind) = (AddressFamily::Unix, SockType::SeqPacket);
    Ok(socket::socketpair(family, kind, None, flags)?)
}

/// Asks for room for this many bytes of messages that have not been received yet. The kernel grants all of it with
/// CAP_NET_ADMIN, else up to net.core.wmem_max (socket(7)).
///
/// # Errors
/// Those of setsockopt(2).
pub fn set_send_buffer(socket: &impl AsFd, bytes: usize) -> io::Result<()> {
    if setsockopt(socket, sockopt::SndBufForce, &bytes).is_err() {
        setsockopt(socket, sockopt::SndBuf, &bytes)?;
    }
    Ok(())
}

/// The result of sending a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "an unsent message must be sent again, or abandoned with its purpose"]
pub enum Sent {
    /// The message is in the other end's queue, with copies of the descriptors.
    Queued,
    /// There is no room: the queue is full.
    Full,
    /// The kernel has no memory, or too many descriptors are in flight (ETOOMANYREFS, unix(7)). No poller reports the
    /// end of that.
    Shortage,
    /// The other end is closed.
    Closed,
}

impl Sent {
    /// Returns whether the message must be sent again.
    #[must_use]
    pub fn is_refused(self) -> bool {
        matches!(self, Sent::Full | Sent::Shortage)
    }
}

/// Sends one message with copies of some descriptors. An empty message would look like the end and is refused.
///
/// # Errors
/// Those of sendmsg(2) except these outcomes; `InvalidInput` for more than [`MAX_PASSED`] descriptors or no bytes.
pub fn send_message(
    channel: impl AsFd,
    message: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<Sent> {
    if message.is_empty() || descriptors.len() > MAX_PASSED {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let raw: Vec<libc::c_int> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control: &[_] = if raw.is_empty() { &[] } else { &rights };
    let parts = [io::IoSlice::new(message)];
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    loop {
        match socket::sendmsg::<()>(channel.as_fd().as_raw_fd(), &parts, control, flags, None) {
            Ok(_) => return Ok(Sent::Queued),
            Err(Errno::EAGAIN) => return Ok(Sent::Full),
            Err(Errno::ENOBUFS | Errno::ENOMEM | Errno::ETOOMANYREFS) => return Ok(Sent::Shortage),
            Err(Errno::EPIPE | Errno::ECONNRESET) => return Ok(Sent::Closed),
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// The result of receiving a message.
#[derive(Debug)]
pub enum Received {
    /// A message, in the buffer.
    Message {
        /// Length in bytes.
        length: usize,
        /// The descriptors that came with it.
        descriptors: Vec<OwnedFd>,
        /// Whether bytes or descriptors are missing: the buffer was too small, or this process is out of descriptors
        /// and the kernel closed the rest.
        cut: bool,
    },
    /// No message now.
    Nothing,
    /// No message now: the kernel has no memory to deliver one. No poller reports the end of that.
    Shortage,
    /// The other end is closed and nothing is left.
    Closed,
}

/// Space for the control message of [`MAX_PASSED`] descriptors, aligned as a cmsghdr must be (1,032 bytes).
#[repr(C, align(8))]
struct ControlBuffer([u8; ControlBuffer::SIZE]);

impl ControlBuffer {
    const SIZE: usize =
        mem::size_of::<libc::cmsghdr>() + MAX_PASSED * mem::size_of::<libc::c_int>() + 4;
}

/// Receives one message and all descriptors that it carries.
///
/// Does not use nix, which lists no descriptor when some were cut off: those that did arrive would leak, and their
/// clients would hang forever. ECONNRESET is not the end: it comes once, before the messages that are still queued.
///
/// # Errors
/// Those of recvmsg(2).
pub fn receive_message(channel: impl AsFd, buffer: &mut [u8]) -> io::Result<Received> {
    receive(channel, buffer, 0)
}

/// Has the next peek begin after that many bytes: the lengths of the messages before it.
///
/// # Errors
/// Those of setsockopt(2); `InvalidInput` for more bytes than a `c_int` can count.
pub fn peek_from(channel: impl AsFd, bytes: usize) -> io::Result<()> {
    let bytes = libc::c_int::try_from(bytes).map_err(|_| io::ErrorKind::InvalidInput)?;
    Ok(setsockopt(&channel, PeekOffset, &bytes)?)
}

/// Receives a message that stays in the queue: the one after the last that was received like this.
///
/// # Errors
/// Those of recvmsg(2).
pub fn peek_message(channel: impl AsFd, buffer: &mut [u8]) -> io::Result<Received> {
    receive(channel, buffer, libc::MSG_PEEK)
}

/// Does the same as [`peek_message`], but opens none of the message's descriptors, so `cut` means nothing.
///
/// # Errors
/// Those of recvmsg(2).
pub fn peek_bytes(channel: impl AsFd, buffer: &mut [u8]) -> io::Result<Received> {
    receive_with(channel, buffer, libc::MSG_PEEK, &mut [])
}

fn receive(channel: impl AsFd, buffer: &mut [u8], more: libc::c_int) -> io::Result<Received> {
    let mut control = ControlBuffer([0; ControlBuffer::SIZE]);
    receive_with(channel, buffer, more, &mut control.0)
}

/// Receives a message with as many of its descriptors as `control` has space for; it is aligned as a cmsghdr, or empty.
fn receive_with(
    channel: impl AsFd,
    buffer: &mut [u8],
    more: libc::c_int,
    control: &mut [u8],
) -> io::Result<Received> {
    let mut part = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    loop {
        // SAFETY: all-zero bytes are a msghdr (it has padding on some systems, hence no literal).
        let mut header: libc::msghdr = unsafe { mem::zeroed() };
        header.msg_iov = &raw mut part;
        header.msg_iovlen = 1;
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = control.len() as _;
        let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC | more;
        // SAFETY: every pointer in `header` points to live memory of the given length.
        let length = unsafe { libc::recvmsg(channel.as_fd().as_raw_fd(), &raw mut header, flags) };
        match Errno::result(length) {
            Ok(length) => {
                let descriptors = descriptors_in(&header);
                if length == 0 && descriptors.is_empty() {
                    return Ok(Received::Closed);
                }
                return Ok(Received::Message {
                    length: length.unsigned_abs(),
                    descriptors,
                    cut: header.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0,
                });
            }
            Err(Errno::EAGAIN) => return Ok(Received::Nothing),
            // With EFAULT for a page of the buffer.
            Err(Errno::ENOBUFS | Errno::ENOMEM | Errno::EFAULT) => return Ok(Received::Shortage),
            Err(Errno::EINTR | Errno::ECONNRESET) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// Takes over the descriptors that the kernel has installed for a message.
fn descriptors_in(header: &libc::msghdr) -> Vec<OwnedFd> {
    let mut found = Vec::new();
    // SAFETY: `header` is as recvmsg left it, and its control buffer is alive; the macros stay within it.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(header) };
    while !next.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR give null or a whole header in the buffer.
        let head = unsafe { &*next };
        if (head.cmsg_level, head.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
            // SAFETY: as above; the data of this message begins there.
            let data: *const libc::c_int = unsafe { libc::CMSG_DATA(next) }.cast();
            // SAFETY: pure arithmetic.
            let length = head.cmsg_len as usize - unsafe { libc::CMSG_LEN(0) } as usize;
            for i in 0..length / mem::size_of::<libc::c_int>() {
                // SAFETY: cmsg_len covers this element; each is a new descriptor without another owner.
                found.push(unsafe { OwnedFd::from_raw_fd(data.add(i).read_unaligned()) });
            }
        }
        // SAFETY: as for CMSG_FIRSTHDR.
        next = unsafe { libc::CMSG_NXTHDR(header, next) };
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::thread;
    use std::time::{Duration, Instant};

    fn null() -> OwnedFd {
        File::open("/dev/null").expect("/dev/null").into()
    }

    fn pair() -> (OwnedFd, OwnedFd) {
        message_pair().expect("socketpair")
    }

    fn send(to: &OwnedFd, message: &[u8], descriptors: &[BorrowedFd<'_>]) -> Sent {
        send_message(to, message, descriptors).expect("sendmsg")
    }

    /// Returns the bytes of the next message, the number of its descriptors, and whether it was cut.
    fn receive<const N: usize>(from: &OwnedFd) -> Option<(Vec<u8>, usize, bool)> {
        let mut buffer = [0; N];
        match receive_message(from, &mut buffer).expect("recvmsg") {
            Received::Message {
                length,
                descriptors,
                cut,
            } => Some((buffer[..length].to_vec(), descriptors.len(), cut)),
            Received::Nothing | Received::Shortage | Received::Closed => None,
        }
    }

    #[test]
    fn a_message_carries_as_many_descriptors_as_the_kernel_allows() {
        let (a, b) = pair();
        let all: Vec<OwnedFd> = (0..MAX_PASSED).map(|_| null()).collect();
        let lent: Vec<BorrowedFd> = all.iter().map(AsFd::as_fd).collect();
        assert_eq!(send(&a, b"x", &lent), Sent::Queued);
        assert_eq!(receive::<8>(&b), Some((b"x".to_vec(), MAX_PASSED, false)));
        assert!(send_message(&a, b"x", &[lent[0]; MAX_PASSED + 1]).is_err());
        assert!(send_message(&a, b"", &lent[..1]).is_err());
    }

    #[test]
    fn queued_messages_are_read_after_the_other_end_died() {
        let (a, b) = pair();
        assert_eq!(send(&a, b"unread", &[]), Sent::Queued);
        assert_eq!(send(&b, b"the last", &[null().as_fd()]), Sent::Queued);
        drop(b);
        assert_eq!(receive::<64>(&a), Some((b"the last".to_vec(), 1, false)));
        // A process that another test is starting may have a copy of the other end for a moment.
        let deadline = Instant::now() + Duration::from_secs(10);
        let end = || receive_message(&a, &mut [0; 64]).expect("recvmsg");
        while !matches!(end(), Received::Closed) {
            assert!(Instant::now() < deadline, "the other end is open");
            thread::yield_now();
        }
        assert_eq!(send(&a, b"x", &[]), Sent::Closed);
    }

    #[test]
    fn a_full_queue_is_reported_and_a_long_message_is_cut() {
        let (a, b) = pair();
        let queued = (0..).take_while(|_| send(&a, b"12345678", &[]) == Sent::Queued);
        assert!(queued.count() > 100);
        assert_eq!(receive::<4>(&b), Some((b"1234".to_vec(), 0, true)));
    }
}
