//! The kernel as the ledger: how many bytes were ever read from a client, and how many queued to it.
//!
//! Asked after the death of the process that did so, because nobody can store it in time: SIGKILL lets a send(2) complete,
//! and the next instruction never runs.
//!
//! * TCP tells by itself ([`read`]); Linux 4.6 and newer (`tcpi_notsent_bytes`).
//! * A Unix stream socket counts down an offset with each byte that is read from it ([`arm`], [`received`]): SO_PEEK_OFF of
//!   socket(7), which nobody peeks by here.
//! * What was written to it stands among all that its writer ever wrote with write(2), of which the kernel keeps a sum
//!   ([`written_by`]): `wchar` of proc(5), where the kernel has task I/O accounting.

use std::fs::File;
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;

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

/// `TCP_ESTABLISHED`, `TCP_SYN_RECV` and `TCP_CLOSE_WAIT` of the kernel's net/tcp_states.h.
const ESTABLISHED: u8 = 1;
const SYN_RECV: u8 = 3;
const CLOSE_WAIT: u8 = 8;

/// Longest data that a SYN can carry, in bytes, and some more.
const SYN_DATA: usize = 64 * 1024;

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
/// A connection by TCP Fast Open serves before its handshake is complete, in SYN_RECV, where both queue ioctls are 0
/// whatever lies in the queues. What is unread then is what a peek finds. What was written and is in flight the kernel
/// does not count there.
///
/// # Errors
/// Those of getsockopt(2), ioctl(2) and recv(2); `WouldBlock` for a connection in SYN_RECV with bytes in flight: the end of
/// the handshake, or of the connection, has to be waited for.
pub fn read(socket: impl AsFd) -> io::Result<Option<Ledger>> {
    let fd = socket.as_fd().as_raw_fd();
    let mut before = Info::of(fd)?;
    loop {
        let (unread, unacknowledged) = match before.state {
            ESTABLISHED | CLOSE_WAIT => queues(fd)?,
            // Nothing of what was written is sent, so all of it is unsent.
            SYN_RECV if before.unacked_segments == 0 => (peek(fd)?, before.unsent.into()),
            SYN_RECV => return Err(io::ErrorKind::WouldBlock.into()),
            _ => return Ok(None),
        };
        let after = Info::of(fd)?;
        if before == after {
            let fin = u64::from(after.state == CLOSE_WAIT);
            let received = after.bytes_received.wrapping_sub(unread).wrapping_sub(fin);
            let written = after.bytes_acked.wrapping_add(unacknowledged);
            return Ok(Some(Ledger { received, written }));
        }
        before = after;
    }
}

/// Bytes received and not read, and bytes written and not acknowledged.
fn queues(fd: libc::c_int) -> io::Result<(u64, u64)> {
    let (mut unread, mut unacknowledged) = (0, 0);
    // SAFETY: both want a pointer to an int, which these are.
    unsafe { unread_bytes(fd, &raw mut unread) }?;
    // SAFETY: as above.
    unsafe { unacknowledged_bytes(fd, &raw mut unacknowledged) }?;
    Ok((unread.unsigned_abs().into(), unacknowledged.unsigned_abs().into()))
}

/// Bytes received and not read of a connection that has received its SYN only.
fn peek(fd: libc::c_int) -> io::Result<u64> {
    let mut bytes = [0u8; SYN_DATA];
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    // SAFETY: the buffer has that many bytes that are ours to write.
    match Errno::result(unsafe { libc::recv(fd, bytes.as_mut_ptr().cast(), bytes.len(), flags) }) {
        Ok(count) => Ok(count.unsigned_abs() as u64),
        Err(Errno::EAGAIN) => Ok(0),
        Err(e) => Err(e.into()),
    }
}

/// What is needed of the kernel's tcp_info, which is longer than the C library's.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Info {
    state: u8,
    /// Segments that are sent and not acknowledged.
    unacked_segments: u32,
    /// Bytes that are written and not sent.
    unsent: u32,
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
            // Timeouts and sizes of segments.
            timing: [u32; 4],
            unacked: u32,
            more: [u32; 19],
            pacing_rate: u64,
            max_pacing_rate: u64,
            bytes_acked: u64,
            bytes_received: u64,
            segs_out: u32,
            segs_in: u32,
            notsent_bytes: u32,
            min_rtt: u32,
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
        Ok(Info {
            state: info.state,
            unacked_segments: info.unacked,
            unsent: info.notsent_bytes,
            bytes_acked: info.bytes_acked,
            bytes_received: info.bytes_received,
        })
    }
}

/// Bytes after which the count of a Unix socket begins anew. All of it is modulo this.
const ROUND: u64 = 1 << 30;

/// Sets the count of a Unix socket from which nothing has been read yet.
///
/// # Errors
/// Those of setsockopt(2).
pub fn arm(socket: impl AsFd) -> io::Result<()> {
    set_peek_offset(socket.as_fd().as_raw_fd(), ROUND as libc::c_int)
}

/// Sees to it that another half of a round can be read before the count is at its end, where it would stay.
///
/// # Errors
/// Those of getsockopt(2) and setsockopt(2).
pub fn rearm(socket: impl AsFd) -> io::Result<()> {
    let fd = socket.as_fd().as_raw_fd();
    let left = peek_offset(fd)?;
    if u64::from(left.unsigned_abs()) < ROUND / 2 { set_peek_offset(fd, left + ROUND as libc::c_int) } else { Ok(()) }
}

/// Bytes that were ever read from a Unix socket, which are `at_least` so many and less than a round more.
///
/// # Errors
/// Those of getsockopt(2); `InvalidData` when it was never armed.
pub fn received(socket: impl AsFd, at_least: u64) -> io::Result<u64> {
    let left = u64::try_from(peek_offset(socket.as_fd().as_raw_fd())?).map_err(|_| io::ErrorKind::InvalidData)?;
    let count = ROUND.wrapping_sub(left) % ROUND;
    Ok(at_least.wrapping_add(count.wrapping_sub(at_least) % ROUND))
}

fn peek_offset(fd: libc::c_int) -> io::Result<libc::c_int> {
    let mut left: libc::c_int = -1;
    let mut length = mem::size_of_val(&left) as libc::socklen_t;
    let value = (&raw mut left).cast();
    // SAFETY: `value` points to `length` bytes that are ours to write.
    Errno::result(unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF, value, &raw mut length) })?;
    Ok(left)
}

fn set_peek_offset(fd: libc::c_int, left: libc::c_int) -> io::Result<()> {
    let length = mem::size_of_val(&left) as libc::socklen_t;
    let value = (&raw const left).cast();
    // SAFETY: the value is one int that outlives the call.
    Errno::result(unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF, value, length) })?;
    Ok(())
}

/// Bytes that a process ever wrote with write(2), to whatever. It is told of one that has ended, too, until that is
/// collected.
///
/// # Errors
/// Those of reading /proc/PID/io; `InvalidData` where the kernel keeps no such sum.
pub fn written_by(pid: u32) -> io::Result<u64> {
    sum_in(&std::fs::read_to_string(format!("/proc/{pid}/io"))?)
}

/// The sum of what this process wrote, to be looked at again and again.
#[derive(Debug)]
pub struct OwnWrites(File);

impl OwnWrites {
    /// Opens it.
    ///
    /// # Errors
    /// Those of open(2): ENOENT where the kernel keeps no such sum.
    pub fn open() -> io::Result<OwnWrites> {
        File::open("/proc/self/io").map(OwnWrites)
    }

    /// Bytes that this process has written by now.
    ///
    /// # Errors
    /// Those of pread(2).
    pub fn sum(&self) -> io::Result<u64> {
        let mut text = [0; 512];
        let length = self.0.read_at(&mut text, 0)?;
        sum_in(&String::from_utf8_lossy(&text[..length]))
    }
}

fn sum_in(io: &str) -> io::Result<u64> {
    let sum = io.lines().find_map(|line| line.strip_prefix("wchar:")).and_then(|sum| sum.trim().parse().ok());
    sum.ok_or_else(|| io::ErrorKind::InvalidData.into())
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
    fn a_unix_socket_counts_what_is_read_from_it_over_more_than_a_round() {
        let (mut client, mut server) = std::os::unix::net::UnixStream::pair().expect("socketpair");
        assert!(received(&server, 0).is_err(), "it was never armed");
        arm(&server).expect("armed");
        client.write_all(&[7; 1000]).expect("write");
        assert_eq!(received(&server, 0).expect("count"), 0);
        server.read_exact(&mut [0; 300]).expect("read");
        assert_eq!(received(&server, 0).expect("count"), 300);
        assert_eq!(received(&server, 100).expect("count"), 300);
        // As if three rounds had gone by, and 300 bytes.
        assert_eq!(received(&server, 3 * ROUND + 5).expect("count"), 3 * ROUND + 300);
        rearm(&server).expect("armed");
        assert_eq!(peek_offset(server.as_raw_fd()).expect("left"), (ROUND - 300) as i32, "there is enough left");
        set_peek_offset(server.as_raw_fd(), 1000).expect("nearly at the end");
        rearm(&server).expect("armed");
        server.read_exact(&mut [0; 700]).expect("read");
        assert_eq!(received(&server, ROUND - 1000).expect("count"), ROUND - 300);
    }

    #[test]
    fn what_a_process_writes_is_summed_up() {
        let own = OwnWrites::open().expect("the kernel keeps the sum");
        let before = own.sum().expect("sum");
        File::options().write(true).open("/dev/null").expect("open").write_all(&[0; 12_345]).expect("write");
        assert!(own.sum().expect("sum") >= before + 12_345);
        assert!(written_by(std::process::id()).expect("sum") >= before + 12_345);
    }

    #[test]
    fn a_connection_that_was_shut_down_is_over() {
        let (_client, server) = pair();
        server.shutdown(Shutdown::Both).expect("shutdown");
        assert_eq!(read(&server).expect("tcp_info"), None);
    }
}
