//! The kernel as the ledger: how many bytes were ever read from a TCP client, and how many queued to it.
//!
//! Asked after the death of the process that did so, because nobody can store it in time: SIGKILL lets a send(2) complete,
//! and the next instruction never runs. Linux 4.1 and newer (`tcpi_bytes_acked`, `tcpi_bytes_received`).

use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use nix::libc;

nix::ioctl_read_bad!(
    /// Bytes received and not read: SIOCINQ of tcp(7), which is FIONREAD.
    unread_bytes,
    libc::FIONREAD,
    libc::c_int
);
nix::ioctl_read_bad!(
    /// Bytes written and not acknowledged: SIOCOUTQ of tcp(7), which is TIOCOUTQ.
    unacknowledged_bytes,
    libc::TIOCOUTQ,
    libc::c_int
);

/// `TCP_ESTABLISHED` and `TCP_CLOSE_WAIT` of the kernel's net/tcp_states.h.
const ESTABLISHED: u8 = 1;
const CLOSE_WAIT: u8 = 8;

/// What has gone over a TCP connection, for all who ever held a copy of its socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ledger {
    /// Bytes that were ever read from it.
    pub received: u64,
    /// Bytes that were ever written to it.
    pub written: u64,
}

/// Reads the ledger of a TCP connection that nobody reads from or writes to any more. `None` if it is over: reset, or shut
/// down by whoever had it, whose FIN counts as a byte written.
///
/// The client's FIN counts among the bytes received, and never among those to be read. The client goes on meanwhile, so
/// it is read until two looks agree.
///
/// # Errors
/// Those of getsockopt(2) and ioctl(2).
pub fn read(socket: impl AsFd) -> io::Result<Option<Ledger>> {
    let fd = socket.as_fd().as_raw_fd();
    let mut before = Info::of(fd)?;
    loop {
        if ![ESTABLISHED, CLOSE_WAIT].contains(&before.state) {
            return Ok(None);
        }
        let (mut unread, mut unacknowledged) = (0, 0);
        // SAFETY: both want a pointer to an int, which these are.
        unsafe { unread_bytes(fd, &raw mut unread) }?;
        // SAFETY: as above.
        unsafe { unacknowledged_bytes(fd, &raw mut unacknowledged) }?;
        let after = Info::of(fd)?;
        if before == after {
            let fin = u64::from(after.state == CLOSE_WAIT);
            let received = after.bytes_received.wrapping_sub(u64::from(unread.unsigned_abs())).wrapping_sub(fin);
            let written = after.bytes_acked.wrapping_add(u64::from(unacknowledged.unsigned_abs()));
            return Ok(Some(Ledger { received, written }));
        }
        before = after;
    }
}

/// What is needed of the kernel's tcp_info, which is longer than the C library's.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Info {
    state: u8,
    bytes_acked: u64,
    bytes_received: u64,
}

impl Info {
    fn of(fd: libc::c_int) -> io::Result<Info> {
        /// The beginning of struct tcp_info of linux/tcp.h; members are only ever added behind.
        #[repr(C)]
        struct TcpInfo {
            state: u8,
            others: [u8; 7],
            more: [u32; 24],
            pacing_rate: u64,
            max_pacing_rate: u64,
            bytes_acked: u64,
            bytes_received: u64,
        }
        // SAFETY: all-zero bytes are a TcpInfo.
        let mut info: TcpInfo = unsafe { mem::zeroed() };
        let mut length = mem::size_of::<TcpInfo>() as libc::socklen_t;
        let value = (&raw mut info).cast();
        // SAFETY: `value` points to `length` bytes that are ours to write.
        Errno::result(unsafe { libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, value, &raw mut length) })?;
        if (length as usize) < mem::size_of::<TcpInfo>() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        Ok(Info { state: info.state, bytes_acked: info.bytes_acked, bytes_received: info.bytes_received })
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpListener, TcpStream};

    use super::*;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let client = TcpStream::connect(listener.local_addr().expect("address")).expect("connect");
        (client, listener.accept().expect("accept").0)
    }

    #[test]
    fn the_ledger_counts_what_was_read_and_written_whatever_is_on_its_way() {
        let (mut client, mut server) = pair();
        let expect = |server: &TcpStream, received, written| {
            assert_eq!(read(server).expect("tcp_info"), Some(Ledger { received, written }));
        };
        expect(&server, 0, 0);
        client.write_all(b"13 bytes sent").expect("write");
        expect(&server, 0, 0);
        server.read_exact(&mut [0; 5]).expect("read");
        expect(&server, 5, 0);
        server.write_all(&[7; 1000]).expect("write");
        expect(&server, 5, 1000);
        client.read_exact(&mut [0; 400]).expect("read");
        client.shutdown(Shutdown::Write).expect("shutdown");
        expect(&server, 5, 1000);
        let mut rest = Vec::new();
        server.read_to_end(&mut rest).expect("read");
        expect(&server, 13, 1000);
    }

    #[test]
    fn a_connection_that_was_shut_down_is_over() {
        let (_client, server) = pair();
        server.shutdown(Shutdown::Both).expect("shutdown");
        assert_eq!(read(&server).expect("tcp_info"), None);
    }
}
