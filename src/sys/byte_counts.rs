//! The kernel's byte counts: how many bytes were ever read from a client, and how many were queued to it.
//!
//! They are read after the death of the process that did so, which cannot store them in time: SIGKILL lets a send(2)
//! complete, and the next instruction never runs.
//!
//! * TCP has both ([`read`]); Linux 4.6 and newer (`tcpi_notsent_bytes`).
//! * A Unix stream socket decrements an offset with each byte that is read from it ([`arm`], [`received`]): SO_PEEK_OFF
//!   of socket(7), which is not used for peeking here.
//! * The bytes that were written to it by the call that a death interrupted are in the kernel's I/O account of the
//!   thread ([`ProcessWrites`]): `wchar` and `syscw` of proc_pid_io(5), where the kernel has task I/O accounting.

use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::{io, mem};

use nix::errno::Errno;
use nix::libc::{self, c_int};
use nix::sys::socket::{MsgFlags, getsockopt, recv, setsockopt};
use nix::{getsockopt_impl, setsockopt_impl, sockopt_impl};

nix::ioctl_read_bad!(
    /// Bytes received and not read: SIOCINQ of tcp(7), which is FIONREAD.
    unread_bytes,
    libc::FIONREAD,
    c_int
);
nix::ioctl_read_bad!(
    /// Bytes written and not acknowledged: SIOCOUTQ of tcp(7), which is TIOCOUTQ.
    unacknowledged_bytes,
    libc::TIOCOUTQ,
    c_int
);
sockopt_impl!(
    /// The offset at which a peek begins: SO_PEEK_OFF of socket(7).
    PeekOffset,
    Both,
    libc::SOL_SOCKET,
    libc::SO_PEEK_OFF,
    c_int
);

/// `TCP_ESTABLISHED`, `TCP_SYN_RECV` and `TCP_CLOSE_WAIT` of the kernel's net/tcp_states.h.
const ESTABLISHED: u8 = 1;
const SYN_RECV: u8 = 3;
const CLOSE_WAIT: u8 = 8;

/// Longest data that a SYN can carry, in bytes, and some more.
const SYN_DATA: usize = 64 * 1024;

/// The bytes of a TCP connection, over all processes that ever held a copy of its socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteCounts {
    /// Bytes that were ever read from it.
    pub received: u64,
    /// Bytes that were ever written to it.
    pub written: u64,
}

/// Reads the byte counts of a TCP connection that no process reads from or writes to any more. `None` if it is over:
/// reset, or shut down on this side, whose FIN counts as a byte written.
///
/// The client's FIN counts among the bytes received, and never among those to be read. The client may still send, so
/// the counts are read until two reads in a row agree.
///
/// A connection by TCP Fast Open serves before its handshake is complete, in SYN_RECV, where both queue ioctls are 0
/// whatever the queues contain. A peek returns the unread bytes then. The kernel does not count bytes that were written
/// and are in flight there.
///
/// # Errors
/// Those of getsockopt(2), ioctl(2) and recv(2); `WouldBlock` for a connection in SYN_RECV with bytes in flight: the
/// caller must wait for the end of the handshake, or of the connection.
pub fn read(socket: impl AsFd) -> io::Result<Option<ByteCounts>> {
    let fd = socket.as_fd().as_raw_fd();
    let mut before = Info::read(fd)?;
    loop {
        let (unread, unacknowledged) = match before.state {
            ESTABLISHED | CLOSE_WAIT => queues(fd)?,
            // Nothing of what was written is sent, so all of it is unsent.
            SYN_RECV if before.unacked_segments == 0 => (peek(fd)?, before.unsent.into()),
            SYN_RECV => return Err(io::ErrorKind::WouldBlock.into()),
            _ => return Ok(None),
        };
        let after = Info::read(fd)?;
        if before == after {
            let fin = u64::from(after.state == CLOSE_WAIT);
            let received = after.bytes_received.wrapping_sub(unread).wrapping_sub(fin);
            let written = after.bytes_acked.wrapping_add(unacknowledged);
            return Ok(Some(ByteCounts { received, written }));
        }
        before = after;
    }
}

/// Returns the bytes received and not read, and the bytes written and not acknowledged.
fn queues(fd: RawFd) -> io::Result<(u64, u64)> {
    let (mut unread, mut unacknowledged) = (0, 0);
    // SAFETY: the argument is a pointer to an int.
    unsafe { unread_bytes(fd, &raw mut unread) }?;
    // SAFETY: as above.
    unsafe { unacknowledged_bytes(fd, &raw mut unacknowledged) }?;
    let count = |n: c_int| u64::from(n.unsigned_abs());
    Ok((count(unread), count(unacknowledged)))
}

/// Returns whether the other end of a Unix stream socket has read everything that was written to this end.
///
/// # Errors
/// Those of ioctl(2).
pub fn is_read(socket: impl AsFd) -> io::Result<bool> {
    let mut unread = 0;
    // SAFETY: the argument is a pointer to an int.
    unsafe { unacknowledged_bytes(socket.as_fd().as_raw_fd(), &raw mut unread) }?;
    Ok(unread == 0)
}

/// Returns the bytes received and not read of a connection that has received its SYN only.
fn peek(fd: RawFd) -> io::Result<u64> {
    let mut bytes = [0u8; SYN_DATA];
    match recv(fd, &mut bytes, MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT) {
        Ok(count) => Ok(count as u64),
        Err(Errno::EAGAIN) => Ok(0),
        Err(e) => Err(e.into()),
    }
}

/// The needed members of the kernel's tcp_info, which is longer than the C library's.
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
    fn read(fd: c_int) -> io::Result<Info> {
        /// The beginning of struct tcp_info of linux/tcp.h; the kernel only appends members.
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
        let (level, option) = (libc::IPPROTO_TCP, libc::TCP_INFO);
        let value = (&raw mut info).cast();
        // SAFETY: `value` points to `length` bytes that this function may write. nix would panic where they are fewer.
        Errno::result(unsafe { libc::getsockopt(fd, level, option, value, &raw mut length) })?;
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

/// The count of a Unix socket is modulo this many bytes.
const ROUND: u64 = 1 << 30;

/// Starts the count of a Unix socket from which nothing has been read yet.
///
/// # Errors
/// Those of setsockopt(2).
pub fn arm(socket: impl AsFd) -> io::Result<()> {
    Ok(setsockopt(&socket, PeekOffset, &(ROUND as c_int))?)
}

/// Ensures that another half of a round can be read before the count reaches its end, where it would stay.
///
/// # Errors
/// Those of getsockopt(2) and setsockopt(2).
pub fn rearm(socket: impl AsFd) -> io::Result<()> {
    let left = getsockopt(&socket, PeekOffset)?;
    // -1: it was never armed, and a count that began now would be wrong.
    if (0..(ROUND / 2) as c_int).contains(&left) {
        setsockopt(&socket, PeekOffset, &(left + ROUND as c_int))?;
    }
    Ok(())
}

/// Returns how many bytes were ever read from a Unix socket; they are `at_least` this many and less than a round more.
///
/// # Errors
/// Those of getsockopt(2); `InvalidData` when it was never armed.
pub fn received(socket: impl AsFd, at_least: u64) -> io::Result<u64> {
    let left = getsockopt(&socket, PeekOffset)?;
    let left = u64::try_from(left).map_err(|_| io::ErrorKind::InvalidData)?;
    let count = ROUND.wrapping_sub(left) % ROUND;
    Ok(at_least.wrapping_add(count.wrapping_sub(at_least) % ROUND))
}

/// The writes of a thread by the system calls that the kernel counts: write(2), writev(2), pwrite(2), sendfile(2),
/// copy_file_range(2), an eventfd, a core dump. send(2), splice(2), io_submit(2) and io_uring are not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Writes {
    /// Bytes: `wchar` of proc_pid_io(5).
    pub bytes: u64,
    /// Calls, including those that wrote nothing: `syscw`.
    pub calls: u64,
}

impl Writes {
    /// Returns how many bytes one call has written since `before`, or 0 if there was no call. A thread that has called
    /// more often has written something else as well, and how much of it went where is unknown.
    ///
    /// # Errors
    /// `InvalidData` when it was more than one call, or this account does not continue `before`.
    pub fn by_one_call_since(self, before: Writes) -> io::Result<u64> {
        let calls = self.calls.checked_sub(before.calls);
        match (calls, self.bytes.checked_sub(before.bytes)) {
            (Some(0), Some(0)) => Ok(0),
            (Some(1), Some(bytes)) => Ok(bytes),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

/// The account of the first thread of another process, without other threads and children, opened while that runs. It
/// can be read until the process is collected.
///
/// The files of a process that has ended belong to root (proc_pid(5)), so other users can only read what they have
/// opened before.
#[derive(Debug)]
pub struct ProcessWrites {
    pid: u32,
    file: File,
}

impl ProcessWrites {
    /// Opens the account.
    ///
    /// # Errors
    /// Those of open(2): ENOENT where the kernel keeps no such account, EACCES if the process cannot be traced.
    pub fn open(pid: u32) -> io::Result<ProcessWrites> {
        let file = File::open(format!("/proc/{pid}/task/{pid}/io"))?;
        Ok(ProcessWrites { pid, file })
    }

    /// Returns what this thread of the process ever wrote.
    ///
    /// # Errors
    /// Those of pread(2); `NotFound` if this is not the first thread.
    pub fn sum_of(&self, thread: u32) -> io::Result<Writes> {
        if thread != self.pid {
            return Err(io::ErrorKind::NotFound.into());
        }
        sum(&self.file)
    }
}

/// Returns what one thread of a process ever wrote, without other threads and children. The account of the first thread
/// of a process that has ended exists until the process is collected; that of another thread ends with the thread.
///
/// # Errors
/// Those of reading /proc/PID/task/TID/io; `InvalidData` where the kernel keeps no such account.
pub fn written_by_thread(pid: u32, thread: u32) -> io::Result<Writes> {
    account_in(&fs::read_to_string(format!(
        "/proc/{pid}/task/{thread}/io"
    ))?)
}

/// Returns what all threads of a process and the children that it has waited for ever wrote, which workers of version 1
/// have noted.
///
/// # Errors
/// As for [`written_by_thread`].
pub fn written_by_process(pid: u32) -> io::Result<Writes> {
    account_in(&fs::read_to_string(format!("/proc/{pid}/io"))?)
}

/// The account of the thread that opened it, which can be read repeatedly.
#[derive(Debug)]
pub struct OwnWrites(File);

impl OwnWrites {
    /// Opens the account of the calling thread.
    ///
    /// # Errors
    /// Those of open(2): ENOENT where the kernel keeps no such account.
    pub fn open() -> io::Result<OwnWrites> {
        File::open("/proc/thread-self/io").map(OwnWrites)
    }

    /// Returns what the thread has written so far.
    ///
    /// # Errors
    /// Those of pread(2); `InvalidData` when the file is not an account.
    pub fn sum(&self) -> io::Result<Writes> {
        sum(&self.0)
    }
}

fn sum(account: &File) -> io::Result<Writes> {
    let mut text = [0; 512];
    let length = account.read_at(&mut text, 0)?;
    account_in(std::str::from_utf8(&text[..length]).map_err(|_| io::ErrorKind::InvalidData)?)
}

impl AsRawFd for OwnWrites {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

fn account_in(io: &str) -> io::Result<Writes> {
    let number = |name: &str| {
        let number = io
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .and_then(|sum| sum.trim().parse().ok());
        number.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
    };
    Ok(Writes {
        bytes: number("wchar:")?,
        calls: number("syscw:")?,
    })
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
    fn tcp_counts_bytes_read_and_written_whatever_is_in_flight() {
        let (mut client, mut server) = pair();
        let expect = |server: &TcpStream, received, written| {
            let counts = read(server).expect("tcp_info");
            assert_eq!(counts, Some(ByteCounts { received, written }));
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
        server.shutdown(Shutdown::Both).expect("shutdown");
        assert_eq!(read(&server).expect("tcp_info"), None);
    }

    #[test]
    fn a_unix_socket_counts_bytes_read_over_more_than_a_round() {
        let (mut client, mut server) = std::os::unix::net::UnixStream::pair().expect("socketpair");
        assert!(received(&server, 0).is_err(), "it was never armed");
        arm(&server).expect("armed");
        client.write_all(&[7; 1000]).expect("write");
        server.read_exact(&mut [0; 300]).expect("read");
        // The second as if three rounds had passed, and 300 bytes.
        for (at_least, count) in [(0, 300), (100, 300), (3 * ROUND + 5, 3 * ROUND + 300)] {
            assert_eq!(received(&server, at_least).expect("count"), count);
        }
        rearm(&server).expect("armed");
        let left = getsockopt(&server, PeekOffset).expect("SO_PEEK_OFF");
        assert_eq!(left, (ROUND - 300) as i32, "enough is left");
        setsockopt(&server, PeekOffset, &1000).expect("nearly at the end");
        rearm(&server).expect("armed");
        server.read_exact(&mut [0; 700]).expect("read");
        assert_eq!(received(&server, ROUND - 1000).expect("count"), ROUND - 300);
    }

    fn write_to_null(length: usize) {
        let null = File::options().write(true).open("/dev/null");
        null.and_then(|mut null| null.write_all(&vec![0; length]))
            .expect("/dev/null takes all");
    }

    #[test]
    fn the_account_of_a_thread_is_its_own() {
        let own = OwnWrites::open().expect("the kernel keeps the account");
        let (pid, thread) = (std::process::id(), super::super::fork::thread_id());
        let before = own.sum().expect("an account");
        let other = std::thread::spawn(|| (0..9).for_each(|_| write_to_null(777)));
        other.join().expect("no panic");
        let mut shell = std::process::Command::new("sh");
        let ended = shell.args(["-c", "echo 12345"]).output().expect("sh");
        assert!(ended.status.success());
        assert_eq!(own.sum().expect("an account"), before);
        write_to_null(12_345);
        let after = written_by_thread(pid, thread).expect("an account");
        let (bytes, calls) = (before.bytes + 12_345, before.calls + 1);
        assert_eq!(after, Writes { bytes, calls });
        assert!(written_by_process(pid).expect("an account").bytes >= bytes + 9 * 777);
    }

    #[test]
    fn a_socket_that_was_never_armed_has_no_count() {
        let (mut client, server) = std::os::unix::net::UnixStream::pair().expect("a pair");
        client.write_all(b"some bytes").expect("write");
        rearm(&server).expect("it is a socket");
        let error = received(&server, 0).expect_err("it was never armed");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn an_account_after_more_than_one_call_is_rejected() {
        let writes = |bytes, calls| Writes { bytes, calls };
        for (bytes, calls, written) in [
            (1000, 7, Some(0)),
            (1000, 8, Some(0)),
            (1005, 8, Some(5)),
            (1005, 7, None),
            (1005, 9, None),
            (999, 8, None),
            (1005, 6, None),
        ] {
            let found = writes(bytes, calls).by_one_call_since(writes(1000, 7));
            assert_eq!(found.ok(), written, "{bytes} {calls}");
        }
    }
}
