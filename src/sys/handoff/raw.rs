//! sendmsg(2) and recvmsg(2) with descriptors, without waiting and without allocating, and setitimer(2): for signal
//! handlers.

use std::mem::{self, MaybeUninit};
use std::os::fd::RawFd;
use std::time::Duration;

use nix::libc;

use super::MAX_PASSED;

/// Space for the control message of [`MAX_PASSED`] descriptors, aligned as cmsghdr requires.
#[repr(C, align(8))]
struct RawControlBuffer([MaybeUninit<u8>; 1040]);

/// The time between two attempts that fail because the kernel is out of memory, in ms, and the most attempts.
const RETRY_INTERVAL: libc::c_int = 20;
const MAX_ATTEMPTS: u32 = 50;

/// Returns whether a call that has failed with this error is made again, after a while if the kernel was out of memory.
fn is_repeated(errno: libc::c_int, attempts: &mut u32) -> bool {
    if !matches!(errno, libc::ENOMEM | libc::ENOBUFS) {
        return errno == libc::EINTR;
    }
    *attempts += 1;
    // SAFETY: without descriptors it only waits.
    unsafe { libc::poll(std::ptr::null_mut(), 0, RETRY_INTERVAL) };
    *attempts < MAX_ATTEMPTS
}

/// Sends a datagram; nix would allocate. Returns whether the queue has accepted it.
pub(super) fn send_raw(to: RawFd, payload: &[u8], descriptors: &[RawFd]) -> bool {
    let mut control = RawControlBuffer([MaybeUninit::uninit(); 1040]);
    let bytes = size_of_val(descriptors);
    let mut part = libc::iovec {
        iov_base: payload.as_ptr().cast_mut().cast(),
        iov_len: payload.len(),
    };
    // SAFETY: all-zero bytes are a msghdr without anything in it.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    // SAFETY: it only calculates.
    message.msg_controllen = unsafe { libc::CMSG_SPACE(bytes as u32) } as _;
    // SAFETY: the control buffer is aligned and longer than that space, at most 1,032 bytes; a header and the
    // descriptors that the space is for are written into it.
    unsafe {
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(bytes as u32) as _;
        std::ptr::copy_nonoverlapping(descriptors.as_ptr().cast(), libc::CMSG_DATA(header), bytes);
    }
    let mut attempts = 0;
    loop {
        // SAFETY: everything that the message points to is on this stack or is never freed.
        let sent = unsafe {
            libc::sendmsg(
                to,
                &raw const message,
                libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
            )
        };
        // SAFETY: the address of this thread's errno.
        let errno = unsafe { *libc::__errno_location() };
        if sent >= 0 || !is_repeated(errno, &mut attempts) {
            return sent >= 0;
        }
    }
}

/// Receives a datagram. Returns its length, and the number of descriptors that came with it.
pub(super) fn receive_raw(
    from: RawFd,
    datagram: &mut [u8],
    descriptors: &mut [RawFd; MAX_PASSED],
) -> Option<(usize, usize)> {
    let mut control = RawControlBuffer([MaybeUninit::uninit(); 1040]);
    let mut part = libc::iovec {
        iov_base: datagram.as_mut_ptr().cast(),
        iov_len: datagram.len(),
    };
    // SAFETY: all-zero bytes are a msghdr without anything in it.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    let mut attempts = 0;
    let received = loop {
        message.msg_control = control.0.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control) as _;
        // SAFETY: every pointer in the message refers to live memory of the length next to it.
        let received = unsafe {
            libc::recvmsg(
                from,
                &raw mut message,
                libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC,
            )
        };
        // SAFETY: the address of this thread's errno.
        let errno = unsafe { *libc::__errno_location() };
        // ECONNRESET comes once, before the queued datagrams.
        if received >= 0 || (errno != libc::ECONNRESET && !is_repeated(errno, &mut attempts)) {
            break received;
        }
    };
    let length = usize::try_from(received)
        .ok()
        .filter(|length| *length > 0)?;
    // SAFETY: the message is as recvmsg left it, and its control buffer is alive.
    let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    if header.is_null() {
        return Some((length, 0));
    }
    // SAFETY: it is a whole header in the buffer.
    let head = unsafe { &*header };
    if (head.cmsg_level, head.cmsg_type) != (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
        return Some((length, 0));
    }
    // SAFETY: pure arithmetic.
    let bytes = (head.cmsg_len as usize).saturating_sub(unsafe { libc::CMSG_LEN(0) } as usize);
    let count = (bytes / size_of::<RawFd>()).min(MAX_PASSED);
    // SAFETY: by cmsg_len this many descriptors are there, and `descriptors` has space for them.
    unsafe {
        std::ptr::copy_nonoverlapping(
            libc::CMSG_DATA(header),
            descriptors.as_mut_ptr().cast(),
            count * size_of::<RawFd>(),
        );
    }
    Some((length, count))
}

/// Sets the alarm of this process.
pub(super) fn set_timer(after: Duration) {
    let timer = libc::itimerval {
        it_interval: libc::timeval {
            tv_sec: 0,
            tv_usec: 0,
        },
        it_value: libc::timeval {
            tv_sec: after.as_secs() as libc::time_t,
            tv_usec: after.subsec_micros().max(1) as libc::suseconds_t,
        },
    };
    // SAFETY: it reads one struct.
    unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const timer, std::ptr::null_mut()) };
}
