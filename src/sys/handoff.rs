//! The last thing that a worker does when its master is gone: it packs its clients' sockets into handoff queues.
//!
//! It can be in the middle of a call that does not return, so this can be done from within a signal handler: everything
//! that is needed for it is written down beforehand, and nothing here allocates, locks or panics (signal-safety(7)).
//!
//! ```text
//! SIGTERM   an alarm after the grace, for the loop might find out by itself
//! SIGALRM   the master is there: nothing           it is gone: pack, and exit
//! ```
//!
//! The thread that serves packs, once: a signal that another thread gets goes on to that one, so that no write of it is under
//! way; one that interrupts the loop while that packs changes nothing; and a child that a method forked does nothing.

use std::fs::File;
use std::io;
use std::mem::{self, MaybeUninit};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use nix::libc;
use signal_hook::consts::{SIGALRM, SIGTERM};
use signal_hook::low_level;

use super::byte_counts::{OwnWrites, Writes};
use super::clock;
use super::fork;
use super::memory::{Words, sealed_file};
use super::socket::{MAX_PASSED, raw_cookie};

/// Words that are written down of a client: which descriptor, its record, and what the kernel calls its socket.
const CLIENT_WORDS: usize = 7;

/// Bytes of a record with all fields, and of one whose last fields are 0, and need not be told.
const RECORD_LEN: usize = 44;
const SHORT_RECORD_LEN: usize = 28;

/// Most records with all fields in a datagram, whose memory would be twice as much with more.
const MAX_LONG_RECORDS: usize = 172;

/// Bytes that a datagram of clients begins with; the last two are the length of its records.
pub const HEADER_LEN: usize = 11;

/// Where what lies in the shared memory of the clients.
#[derive(Clone, Copy, Debug)]
pub struct ShmOffsets {
    /// All words up to the end of the slots.
    pub words: usize,
    /// The lease word of the first slot.
    pub first_lease: usize,
    /// Words from one lease word to the next.
    pub stride: usize,
    /// How many slots there are.
    pub slots: u32,
    /// Where what the thread has written in all goes at the end: bytes and 1,
    pub final_writes: usize,
    /// and calls.
    pub final_write_calls: usize,
    /// Where the number of clients goes that found no room in any handoff queue.
    pub left_behind: usize,
    /// Where the time goes at which it is packed.
    pub packed_at: usize,
    /// Whether a lease word says that the client of this lease is still with this worker.
    pub is_here: fn(word: u64, lease_number: u32) -> bool,
}

/// What is needed to pack.
#[derive(Debug)]
pub struct EmergencyHandoff {
    channel: RawFd,
    queues: Vec<OwnedFd>,
    shm: File,
    /// The datagram that the shared memory goes with.
    first: Vec<u8>,
    /// What each datagram of clients begins with.
    header: [u8; HEADER_LEN],
    /// [`CLIENT_WORDS`] words a slot: descriptor + 1 and `since`; client; slot and lease number; moves and listener; offsets.
    registered: Words,
    words: Words,
    offsets: ShmOffsets,
    writes: Option<OwnWrites>,
    /// The process, and the thread of it that serves.
    pid: u32,
    thread: u32,
    grace: Duration,
    unread: Unread,
    /// Slots that were ever used are below this.
    used: AtomicU64,
    /// Packing has begun.
    has_begun: AtomicBool,
}

/// What a datagram of the channel that nobody has read tells of the client whose socket is the descriptor of this index.
pub type Unread = fn(datagram: &[u8], index: usize) -> Option<[u8; RECORD_LEN]>;

/// What came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packed {
    /// Clients that are in a handoff queue.
    pub packed: usize,
    /// Clients that are in none: there was no room, or their descriptor was not their socket any more.
    pub left: usize,
}

impl EmergencyHandoff {
    /// Gets all ready for the clients of shared memory, which the calling thread serves, and catches the two signals. `channel` is
    /// what the master is at the other end of, and stays open for as long as this process lives.
    ///
    /// # Errors
    /// Those of memfd_create(2), mmap(2) and sigaction(2).
    pub fn prepare(
        channel: &impl AsRawFd,
        queues: Vec<OwnedFd>,
        shm: File,
        (first, header): (Vec<u8>, [u8; HEADER_LEN]),
        offsets: ShmOffsets,
        (grace, unread): (Duration, Unread),
    ) -> io::Result<&'static EmergencyHandoff> {
        let count = offsets.slots as usize * CLIENT_WORDS;
        let registered = Words::map(&sealed_file(c"handoff-clients", count as u64 * 8)?, count)?;
        let words = Words::map(&shm, offsets.words)?;
        let handoff: &'static EmergencyHandoff = Box::leak(Box::new(EmergencyHandoff {
            channel: channel.as_raw_fd(),
            queues,
            shm,
            first,
            header,
            registered,
            words,
            offsets,
            writes: OwnWrites::open().ok(),
            pid: fork::process_id(),
            thread: fork::thread_id(),
            grace,
            unread,
            used: AtomicU64::new(0),
            has_begun: AtomicBool::new(false),
        }));
        // SAFETY: all that the two handlers do is getpid(2), gettid(2), tgkill(2), poll(2), setitimer(2), atomic loads and
        // stores, pread(2), getsockopt(2), recvmsg(2), sendmsg(2) and _exit(2), on memory that is there for good.
        unsafe {
            low_level::register(SIGTERM, move || handoff.set_alarm())?;
            low_level::register(SIGALRM, move || handoff.hand_off())?;
        }
        Ok(handoff)
    }

    /// From now on this client is here. `cookie` is that of its socket, if the kernel has one; `record` is how the handoff queues tell of
    /// it, see `proto/handoff.rs`.
    pub fn register(
        &self,
        slot: u32,
        socket: &OwnedFd,
        cookie: Option<u64>,
        record: &[u8; RECORD_LEN],
    ) {
        let Some(entry) = self.entry(slot) else {
            return;
        };
        let [client, at, moved] = [0, 8, 16].map(|at| u64::from_le_bytes(chunk(record, at)));
        let since = u64::from(u32::from_le_bytes(chunk(record, 24)));
        let [received, sent] = [28, 36].map(|at| u64::from_le_bytes(chunk(record, at)));
        for (word, value) in
            entry[1..]
                .iter()
                .zip([client, at, moved, received, sent, cookie.unwrap_or(0)])
        {
            word.store(value, Ordering::Relaxed);
        }
        // Last, for from then on it counts.
        entry[0].store(
            (socket.as_raw_fd() as u64 + 1) | since << 32,
            Ordering::Release,
        );
        self.used.fetch_max(u64::from(slot) + 1, Ordering::Relaxed);
    }

    /// It is not any more. To be said before its socket is closed, as its number may be another's then.
    pub fn unregister(&self, slot: u32) {
        if let Some(entry) = self.entry(slot) {
            entry[0].store(0, Ordering::Release);
        }
    }

    fn entry(&self, slot: u32) -> Option<&[AtomicU64]> {
        let begin = slot as usize * CLIENT_WORDS;
        self.registered
            .get(begin..begin + CLIENT_WORDS)
            .filter(|_| slot < self.offsets.slots)
    }

    /// Whether the master is gone is asked then, not now: it may be about to be.
    fn set_alarm(&self) {
        if !self.is_ours() || self.has_begun.load(Ordering::Acquire) {
            return;
        }
        let grace = libc::timeval {
            tv_sec: self.grace.as_secs() as libc::time_t,
            tv_usec: self.grace.subsec_micros().max(1) as libc::suseconds_t,
        };
        let never = libc::timeval {
            tv_sec: 0,
            tv_usec: 0,
        };
        let timer = libc::itimerval {
            it_interval: never,
            it_value: grace,
        };
        // SAFETY: it reads one struct.
        unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const timer, std::ptr::null_mut()) };
    }

    fn has_lost_its_master(&self) -> bool {
        let mut poll = libc::pollfd {
            fd: self.channel,
            events: 0,
            revents: 0,
        };
        // SAFETY: one struct that is ours.
        let found = unsafe { libc::poll(&raw mut poll, 1, 0) };
        found == 1 && poll.revents & libc::POLLHUP != 0
    }

    fn hand_off(&self) {
        if !self.is_ours() {
            return;
        }
        if fork::thread_id() != self.thread {
            return fork::signal_thread(self.thread, SIGALRM);
        }
        // The loop that this interrupts packs, or has packed, and then ends by itself. To exit here would leave the rest of
        // its clients behind.
        if self.has_begun.load(Ordering::Acquire) {
            return;
        }
        // Somebody else's alarm is none of ours.
        if self.has_lost_its_master() {
            self.pack();
            // SAFETY: it runs nothing of this process any more, as a handler must not.
            unsafe { libc::_exit(0) };
        }
    }

    /// Whether this process is the worker, and not a child that it forked.
    fn is_ours(&self) -> bool {
        fork::process_id() == self.pid
    }

    /// Packs the shared memory and all clients that are still here. Once: a second time there is nothing to do, nor for a child.
    pub fn pack(&self) -> Packed {
        let mut outcome = Packed::default();
        if !self.is_ours() || self.has_begun.swap(true, Ordering::AcqRel) {
            return outcome;
        }
        self.note_final_writes();
        if let Some(word) = self.words.get(self.offsets.packed_at) {
            word.store(clock::monotonic(), Ordering::Release);
        }
        let mut queue = 0;
        let is_off = self.send(&mut queue, &self.first, &[self.shm.as_raw_fd()]);
        let mut batches =
            [SHORT_RECORD_LEN, RECORD_LEN].map(|length| Batch::new(self.header, length));
        let mut pack = |socket: RawFd, record: [u8; RECORD_LEN]| {
            let batch =
                &mut batches[usize::from(record[SHORT_RECORD_LEN..].iter().any(|byte| *byte != 0))];
            if self.is_here(&record) && batch.add(socket, &record) {
                outcome.add(
                    batch.count,
                    is_off && self.send(&mut queue, batch.payload(), batch.sockets()),
                );
                batch.count = 0;
            }
        };
        let mut foreign = 0;
        for slot in 0..self.used.load(Ordering::Acquire) as u32 {
            if let Some((socket, record)) = self.client(slot) {
                // One descriptor that other code has closed would keep back all that are sent with it.
                if self.has_its_socket(slot, socket) {
                    pack(socket, record);
                } else if self.is_here(&record) {
                    foreign += 1;
                }
            }
        }
        // Leases that are still in the channel. Their copies end with this process.
        let (mut datagram, mut sockets) = ([0; MAX_DATAGRAM_LEN], [0; MAX_PASSED]);
        while let Some((length, count)) = receive_raw(self.channel, &mut datagram, &mut sockets) {
            for (index, socket) in sockets[..count].iter().enumerate() {
                if let Some(record) = (self.unread)(&datagram[..length], index) {
                    pack(*socket, record);
                }
            }
        }
        for batch in batches.iter().filter(|batch| batch.count > 0) {
            outcome.add(
                batch.count,
                is_off && self.send(&mut queue, batch.payload(), batch.sockets()),
            );
        }
        outcome.left += foreign;
        if let Some(word) = self.words.get(self.offsets.left_behind) {
            word.store(outcome.left as u64, Ordering::Release);
        }
        outcome
    }

    /// Whether the descriptor still is the socket that was registered.
    fn has_its_socket(&self, slot: u32, socket: RawFd) -> bool {
        let cookie = self
            .entry(slot)
            .map_or(0, |entry| entry[CLIENT_WORDS - 1].load(Ordering::Acquire));
        raw_cookie(socket).is_ok_and(|now| now.unwrap_or(0) == cookie)
    }

    fn note_final_writes(&self) {
        let Some(Ok(Writes { bytes, calls })) = self.writes.as_ref().map(OwnWrites::sum) else {
            return;
        };
        let ShmOffsets {
            final_writes,
            final_write_calls,
            ..
        } = self.offsets;
        if let (Some(bytes_word), Some(calls_word)) = (
            self.words.get(final_writes),
            self.words.get(final_write_calls),
        ) {
            calls_word.store(calls, Ordering::Relaxed);
            bytes_word.store(bytes.wrapping_add(1), Ordering::Release);
        }
    }

    /// Whether the shared memory says so, too.
    fn is_here(&self, record: &[u8; RECORD_LEN]) -> bool {
        let [slot, lease_number] = [8, 12].map(|at| u32::from_le_bytes(chunk(record, at)));
        let lease = self
            .words
            .get(self.offsets.first_lease + slot as usize * self.offsets.stride);
        let is_there = slot < self.offsets.slots;
        is_there
            && lease.is_some_and(|lease| {
                (self.offsets.is_here)(lease.load(Ordering::Acquire), lease_number)
            })
    }

    /// A client that was registered.
    fn client(&self, slot: u32) -> Option<(RawFd, [u8; RECORD_LEN])> {
        let entry = self.entry(slot)?;
        let word = |index: usize| entry[index].load(Ordering::Acquire);
        let socket = (word(0) as u32).checked_sub(1)?;
        let mut record = [0; RECORD_LEN];
        for (at, index) in [0, 8, 16].into_iter().zip(1..) {
            record[at..at + 8].copy_from_slice(&word(index).to_le_bytes());
        }
        record[24..SHORT_RECORD_LEN].copy_from_slice(&((word(0) >> 32) as u32).to_le_bytes());
        for (at, index) in [28, 36].into_iter().zip(4..) {
            record[at..at + 8].copy_from_slice(&word(index).to_le_bytes());
        }
        Some((socket as RawFd, record))
    }

    /// Sends into the first handoff queue from `queue` on that has room.
    fn send(&self, queue: &mut usize, payload: &[u8], descriptors: &[RawFd]) -> bool {
        while let Some(to) = self.queues.get(*queue) {
            if send_raw(to.as_raw_fd(), payload, descriptors) {
                return true;
            }
            *queue += 1;
        }
        false
    }
}

/// Bytes of the longest datagram of clients.
const MAX_BATCH_LEN: usize = HEADER_LEN + MAX_LONG_RECORDS * RECORD_LEN;
const _: () = assert!(MAX_BATCH_LEN >= HEADER_LEN + MAX_PASSED * SHORT_RECORD_LEN);

/// Bytes of the longest datagram that comes with sockets. What is longer is none of these, and cut off.
const MAX_DATAGRAM_LEN: usize = 16 * 1024;

/// A datagram of clients under way.
struct Batch {
    payload: [u8; MAX_BATCH_LEN],
    sockets: [RawFd; MAX_PASSED],
    count: usize,
    /// Bytes of a record.
    length: usize,
}

impl Batch {
    fn new(header: [u8; HEADER_LEN], length: usize) -> Batch {
        let mut batch = Batch {
            payload: [0; MAX_BATCH_LEN],
            sockets: [0; MAX_PASSED],
            count: 0,
            length,
        };
        batch.payload[..HEADER_LEN].copy_from_slice(&header);
        batch.payload[HEADER_LEN - 2..HEADER_LEN].copy_from_slice(&(length as u16).to_le_bytes());
        batch
    }

    /// Whether it is full with that.
    fn add(&mut self, socket: RawFd, record: &[u8; RECORD_LEN]) -> bool {
        let begin = HEADER_LEN + self.count * self.length;
        self.payload[begin..begin + self.length].copy_from_slice(&record[..self.length]);
        self.sockets[self.count] = socket;
        self.count += 1;
        self.count
            == if self.length == RECORD_LEN {
                MAX_LONG_RECORDS
            } else {
                MAX_PASSED
            }
    }

    fn payload(&self) -> &[u8] {
        &self.payload[..HEADER_LEN + self.count * self.length]
    }

    fn sockets(&self) -> &[RawFd] {
        &self.sockets[..self.count]
    }
}

impl Packed {
    fn add(&mut self, count: usize, is_packed: bool) {
        *(if is_packed {
            &mut self.packed
        } else {
            &mut self.left
        }) += count;
    }
}

fn chunk<const N: usize>(record: &[u8; RECORD_LEN], at: usize) -> [u8; N] {
    record[at..].first_chunk().copied().unwrap_or([0; N])
}

/// Room for the control message of [`MAX_PASSED`] descriptors, aligned as cmsghdr wants it.
#[repr(C, align(8))]
struct RawControlBuffer([MaybeUninit<u8>; 1040]);

/// Sends without waiting, and without allocating, which nix does; whether it was taken.
fn send_raw(to: RawFd, payload: &[u8], descriptors: &[RawFd]) -> bool {
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
    // SAFETY: the control buffer is aligned and longer than that space, at most 1,032 bytes; what is written into it is a
    // header and as many descriptors as the space is for.
    unsafe {
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(bytes as u32) as _;
        std::ptr::copy_nonoverlapping(descriptors.as_ptr().cast(), libc::CMSG_DATA(header), bytes);
    }
    loop {
        // SAFETY: everything that the message points to is on this stack or lives for good.
        let sent = unsafe {
            libc::sendmsg(
                to,
                &raw const message,
                libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
            )
        };
        // SAFETY: the address of this thread's errno.
        if sent >= 0 || unsafe { *libc::__errno_location() } != libc::EINTR {
            return sent >= 0;
        }
    }
}

/// Receives a datagram without waiting, and without allocating; its length, and how many descriptors came with it.
fn receive_raw(
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
    let received = loop {
        message.msg_control = control.0.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control) as _;
        // SAFETY: every pointer in the message is to live memory of the length that stands beside it.
        let received = unsafe {
            libc::recvmsg(
                from,
                &raw mut message,
                libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC,
            )
        };
        // SAFETY: the address of this thread's errno.
        let errno = unsafe { *libc::__errno_location() };
        // ECONNRESET comes once, before what is queued.
        if received >= 0 || (errno != libc::EINTR && errno != libc::ECONNRESET) {
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
    // SAFETY: cmsg_len says that so many descriptors are there, and there is room for as many.
    unsafe {
        std::ptr::copy_nonoverlapping(
            libc::CMSG_DATA(header),
            descriptors.as_mut_ptr().cast(),
            count * size_of::<RawFd>(),
        );
    }
    Some((length, count))
}

#[cfg(test)]
mod tests {
    use std::env;
    use std::process::{Command, exit};
    use std::thread;

    use nix::sys::signal::{Signal, raise};
    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::{ForkResult, fork};

    use super::super::signal::HeldBack;
    use super::super::socket::{self, message_pair};
    use super::*;

    /// Set in the process that may end.
    const INSIDE: &str = "HANDOFF_INSIDE";

    /// The status of a process in which nothing has been packed but what was to be.
    const AS_EXPECTED: i32 = 42;

    /// Runs the scenario in a process of its own: one whose master is gone, with a client and a handoff queue.
    #[track_caller]
    fn inside(name: &str, scenario: fn(&'static EmergencyHandoff, RawFd)) {
        if env::var_os(INSIDE).is_some() {
            let (channel, master) = message_pair().expect("socketpair");
            let (queue, next_master) = message_pair().expect("socketpair");
            let (client, _peer) = message_pair().expect("socketpair");
            let offsets = ShmOffsets {
                words: 64,
                first_lease: 32,
                stride: 16,
                slots: 2,
                final_writes: 15,
                final_write_calls: 23,
                left_behind: 18,
                packed_at: 19,
                is_here: |_, _| true,
            };
            let shm = sealed_file(c"shm", 4096).expect("memfd");
            let header = (vec![1], [2; HEADER_LEN]);
            let handoff = EmergencyHandoff::prepare(
                &channel,
                vec![queue],
                shm,
                header,
                offsets,
                (Duration::ZERO, |_, _| None),
            );
            let handoff = handoff.expect("sigaction");
            handoff.register(
                0,
                &client,
                socket::cookie(&client).expect("a socket"),
                &[0; RECORD_LEN],
            );
            drop(master);
            scenario(handoff, next_master.as_raw_fd());
            exit(AS_EXPECTED);
        }
        let own = env::current_exe().expect("a test knows itself");
        let arguments = [
            "--exact",
            &format!("sys::handoff::tests::{name}"),
            "--nocapture",
        ];
        let output = Command::new(own)
            .args(arguments)
            .env(INSIDE, "1")
            .output()
            .expect("it runs");
        assert_eq!(
            output.status.code(),
            Some(AS_EXPECTED),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// Datagrams in the handoff queue: one with the shared memory and one with the client, once.
    fn datagrams(queue: RawFd) -> usize {
        let (mut datagram, mut sockets) = ([0; MAX_DATAGRAM_LEN], [0; MAX_PASSED]);
        std::iter::from_fn(|| receive_raw(queue, &mut datagram, &mut sockets)).count()
    }

    #[test]
    fn the_handler_returns_to_a_loop_that_packs() {
        inside(
            "the_handler_returns_to_a_loop_that_packs",
            |handoff, queue| {
                assert_eq!(handoff.pack(), Packed { packed: 1, left: 0 });
                raise(Signal::SIGALRM).expect("it can be raised");
                raise(Signal::SIGTERM).expect("it can be raised");
                assert_eq!((handoff.pack(), datagrams(queue)), (Packed::default(), 2));
            },
        );
    }

    #[test]
    fn a_descriptor_of_something_else_is_not_packed() {
        inside(
            "a_descriptor_of_something_else_is_not_packed",
            |handoff, queue| {
                let (other, _peer) = message_pair().expect("socketpair");
                let mut record = [0; RECORD_LEN];
                record[8] = 1;
                handoff.register(1, &other, Some(u64::MAX), &record);
                assert_eq!(
                    (handoff.pack(), datagrams(queue)),
                    (Packed { packed: 1, left: 1 }, 2)
                );
            },
        );
    }

    #[test]
    fn a_forked_child_packs_nothing() {
        inside("a_forked_child_packs_nothing", |handoff, queue| {
            // SAFETY: the child raises signals, makes system calls and exits.
            match unsafe { fork() }.expect("fork") {
                ForkResult::Child => {
                    let is_raised = raise(Signal::SIGALRM)
                        .and_then(|()| raise(Signal::SIGTERM))
                        .is_ok();
                    let is_packed = handoff.pack() != Packed::default();
                    // SAFETY: it ends the process.
                    unsafe { libc::_exit(if is_raised && !is_packed { 7 } else { 8 }) };
                }
                ForkResult::Parent { child } => {
                    assert_eq!(waitpid(child, None), Ok(WaitStatus::Exited(child, 7)));
                    assert_eq!((datagrams(queue), handoff.pack().packed), (0, 1));
                }
            }
        });
    }

    #[test]
    fn a_signal_that_another_thread_gets_goes_on() {
        inside("a_signal_that_another_thread_gets_goes_on", |_, queue| {
            // As during a write of this thread.
            let held_back = HeldBack::all();
            let other = thread::spawn(|| {
                let all = nix::sys::signal::SigSet::all();
                all.thread_unblock()
                    .and_then(|()| raise(Signal::SIGALRM))
                    .expect("it can be raised");
            });
            other.join().expect("no panic");
            if datagrams(queue) == 0 {
                exit(AS_EXPECTED);
            }
            drop(held_back);
        });
    }
}
