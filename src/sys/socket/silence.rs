//! The silence of the other end of a TCP connection: its kernel acknowledges nothing.

use std::io;
use std::os::fd::AsFd;
#[cfg(test)]
use std::os::fd::AsRawFd;
use std::time::Duration;

#[cfg(test)]
use nix::errno::Errno;
#[cfg(test)]
use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};

use super::listener::tcp_info;

/// Has the kernel probe the other end when nothing has arrived from it for `interval`, and then after each further
/// interval. A kernel that is there acknowledges each probe.
///
/// # Errors
/// Those of setsockopt(2).
pub fn probe_every(socket: impl AsFd, interval: Duration) -> io::Result<()> {
    // tcp(7): MAX_TCP_KEEPIDLE and MAX_TCP_KEEPINTVL.
    let seconds = u32::try_from(interval.as_secs()).unwrap_or(u32::MAX);
    let seconds = seconds.clamp(1, 32_767);
    setsockopt(&socket, sockopt::KeepAlive, &true)?;
    setsockopt(&socket, sockopt::TcpKeepIdle, &seconds)?;
    setsockopt(&socket, sockopt::TcpKeepInterval, &seconds)?;
    Ok(())
}

/// Returns whether nothing has arrived from the other end for `time`, although the kernel has asked it more than once,
/// by retransmissions or by probes.
///
/// TCP_USER_TIMEOUT of tcp(7) would also end a connection whose other end acknowledges, and has no room for more.
///
/// # Errors
/// Those of getsockopt(2): EOPNOTSUPP for a socket that is not TCP.
pub fn is_silent(socket: impl AsFd, time: Duration) -> io::Result<bool> {
    let info = tcp_info(socket)?;
    let asked = info.tcpi_retransmits.max(info.tcpi_probes);
    let quiet = info.tcpi_last_data_recv.min(info.tcpi_last_ack_recv);
    Ok(asked > 1 && Duration::from_millis(quiet.into()) >= time)
}

/// Makes the kernel drop what arrives for a socket, without an acknowledgement, as if its host were gone.
///
/// # Errors
/// Those of setsockopt(2).
#[cfg(test)]
pub fn drop_everything(socket: impl AsFd) -> io::Result<()> {
    // Returns 0 bytes of each packet.
    let mut code = libc::sock_filter {
        code: (libc::BPF_RET | libc::BPF_K) as u16,
        jt: 0,
        jf: 0,
        k: 0,
    };
    let program = libc::sock_fprog {
        len: 1,
        filter: &raw mut code,
    };
    let length = size_of_val(&program) as libc::socklen_t;
    let (fd, value) = (socket.as_fd().as_raw_fd(), (&raw const program).cast());
    let (level, option) = (libc::SOL_SOCKET, libc::SO_ATTACH_FILTER);
    // SAFETY: `value` points to a program of one instruction, which the kernel copies.
    Errno::result(unsafe { libc::setsockopt(fd, level, option, value, length) })?;
    Ok(())
}
