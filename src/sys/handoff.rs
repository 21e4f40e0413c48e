//! The last thing that a worker does when its master is gone: it packs its clients' sockets into the handoff queues.
//!
//! A worker can be in a call that does not return, so a signal handler must be able to do this: everything that it
//! needs is prepared, and nothing here allocates, locks or panics (signal-safety(7)).
//!
//! ```text
//! SIGTERM   sets an alarm after the grace, as the loop may notice by itself
//! SIGALRM   the master exists: nothing             it is gone: packs, and exits
//! ```
//!
//! The thread that serves packs, once. A signal that another thread receives is forwarded to it, so that no write of
//! that thread is in progress; one that interrupts the loop while it packs changes nothing; and a child that a method
//! forked does nothing.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use nix::libc;
use signal_hook::consts::{SIGALRM, SIGTERM};
use signal_hook::low_level;

use self::batch::Batch;
use self::clients::CLIENT_WORDS;
use self::format::RECORD_LEN;
use self::raw::{receive_raw, send_raw, set_timer};
use super::byte_counts::{OwnWrites, Writes};
use super::cgroup::AppCgroup;
#[cfg(feature = "tokio")]
use super::latch::ExecutionLatch;
use super::memory::{Words, sealed_file};
use super::process::kill_with_group;
use super::socket::{MAX_PASSED, raw_cookie};
use super::{clock, fork, signal};

mod batch;
mod clients;
mod format;
mod raw;

pub use format::{Record, RecordFormat, ShmOffsets};

/// Bytes at the beginning of a datagram of clients; the last two are the length of its records.
pub const HEADER_LEN: usize = 11;

/// Bytes of the longest datagram that arrives with sockets; a longer one is cut off.
const MAX_DATAGRAM_LEN: usize = 16 * 1024;

/// How long packing waits for the death of an app that was killed, in ms.
const APP_END_TIMEOUT: libc::c_int = 1000;

/// The time after which the handler tries again while it is held off.
const HELD_OFF: Duration = Duration::from_millis(1);

/// Holds the signal handler off. See [`EmergencyHandoff::hold_off`].
#[derive(Debug)]
pub struct HeldOff(&'static AtomicBool);

impl Drop for HeldOff {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// Everything that is needed to pack.
#[derive(Debug)]
pub struct EmergencyHandoff {
    channel: RawFd,
    queues: Vec<OwnedFd>,
    shm: Arc<File>,
    /// The datagram that carries the shared memory.
    first: Vec<u8>,
    /// The beginning of each datagram of clients.
    header: [u8; HEADER_LEN],
    /// [`CLIENT_WORDS`] words a slot.
    registered: Words,
    words: Words,
    offsets: ShmOffsets,
    writes: Option<Arc<OwnWrites>>,
    /// The process, and its thread that serves.
    pid: u32,
    thread: u32,
    grace: Duration,
    format: RecordFormat,
    /// Slots that were ever used are below this.
    used: AtomicU64,
    /// Packing has begun.
    has_begun: AtomicBool,
    /// Leases have been received and are not registered yet, so that the signal handler would lose them.
    is_held_off: AtomicBool,
    /// The pid of the worker's app and its descriptor + 1; 0 without an app.
    app: [AtomicU64; 2],
    app_cgroup: OnceLock<Arc<AppCgroup>>,
    /// The latch of the worker's futures, if it has some.
    #[cfg(feature = "tokio")]
    futures: OnceLock<Arc<ExecutionLatch>>,
}

/// The result of packing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packed {
    /// Clients that are in a handoff queue.
    pub packed: usize,
    /// Clients that are in none: there was no space, or their descriptor was no longer their socket.
    pub left: usize,
}

impl EmergencyHandoff {
    /// Prepares for the clients of shared memory that the calling thread serves, and catches both signals. `channel`
    /// leads to the master and must stay open as long as this process lives.
    ///
    /// # Errors
    /// Those of memfd_create(2), mmap(2) and sigaction(2).
    pub fn prepare(
        channel: &impl AsRawFd,
        queues: Vec<OwnedFd>,
        shm: Arc<File>,
        (first, header): (Vec<u8>, [u8; HEADER_LEN]),
        offsets: ShmOffsets,
        format: RecordFormat,
        grace: Duration,
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
            writes: OwnWrites::open().ok().map(Arc::new),
            pid: fork::process_id(),
            thread: fork::thread_id(),
            grace,
            format,
            used: AtomicU64::new(0),
            has_begun: AtomicBool::new(false),
            is_held_off: AtomicBool::new(false),
            app: [AtomicU64::new(0), AtomicU64::new(0)],
            app_cgroup: OnceLock::new(),
            #[cfg(feature = "tokio")]
            futures: OnceLock::new(),
        }));
        // SAFETY: the two handlers call only getpid(2), gettid(2), tgkill(2), kill(2), pidfd_send_signal(2), poll(2),
        // openat(2), write(2), close(2), unlinkat(2), setitimer(2), clock_gettime(2), atomic loads and stores,
        // pread(2), getsockopt(2), recvmsg(2), sendmsg(2) and _exit(2), on memory that is never freed.
        unsafe {
            low_level::register(SIGTERM, move || handoff.set_alarm())?;
            low_level::register(SIGALRM, move || handoff.hand_off())?;
        }
        signal::note_alarms()?;
        Ok(handoff)
    }

    /// Returns the account of the thread that serves, if the kernel keeps one.
    pub fn writes(&self) -> Option<Arc<OwnWrites>> {
        self.writes.clone()
    }

    /// Registers the worker's app, which is ended before clients are packed: a request that it executes may be executed
    /// again. With it ends what is in its cgroup. `pidfd` must stay open as long as this process lives.
    pub fn guard_app(&self, pid: u32, pidfd: &OwnedFd, cgroup: Option<Arc<AppCgroup>>) {
        if let Some(cgroup) = cgroup {
            let _ = self.app_cgroup.set(cgroup);
        }
        self.app[1].store(pidfd.as_raw_fd() as u64 + 1, Ordering::Relaxed);
        self.app[0].store(pid.into(), Ordering::Release);
    }

    /// Registers the latch of the worker's futures, which is closed before clients are packed, as for an app.
    #[cfg(feature = "tokio")]
    pub fn guard_futures(&self, latch: Arc<ExecutionLatch>) {
        let _ = self.futures.set(latch);
    }

    /// Kills the app and all that is in its cgroup, and waits until they are dead.
    fn end_app(&self) {
        let pid = self.app[0].load(Ordering::Acquire) as u32;
        let pidfd = self.app[1].load(Ordering::Relaxed);
        if pid == 0 || pidfd == 0 {
            return;
        }
        let mut poll = libc::pollfd {
            fd: (pidfd - 1) as RawFd,
            events: libc::POLLIN,
            revents: 0,
        };
        kill_with_group(pid, poll.fd);
        // SAFETY: one struct that is ours.
        unsafe { libc::poll(&raw mut poll, 1, APP_END_TIMEOUT) };
        if let Some(cgroup) = self.app_cgroup.get() {
            cgroup.end();
        }
    }

    /// Lets the signal handler wait until the result is dropped, so that it finds each lease in the channel or
    /// registered. The thread that serves must not wait for anything before that.
    pub fn hold_off(&'static self) -> HeldOff {
        self.is_held_off.store(true, Ordering::Release);
        HeldOff(&self.is_held_off)
    }

    /// Sets the alarm. Whether the master is gone is checked then, not now: it may be about to exit.
    fn set_alarm(&self) {
        if !self.is_ours() || self.has_begun.load(Ordering::Acquire) {
            return;
        }
        set_timer(self.grace);
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
        // The interrupted loop packs or has packed, and then ends by itself. An exit here would lose the rest of its
        // clients.
        if self.has_begun.load(Ordering::Acquire) {
            return;
        }
        // An alarm that other code has set is ignored.
        if self.has_lost_its_master() {
            if self.is_held_off.load(Ordering::Acquire) {
                return set_timer(HELD_OFF);
            }
            self.pack();
            // SAFETY: it runs nothing of this process any more, as a handler must not.
            unsafe { libc::_exit(0) };
        }
    }

    /// Returns whether this process is the worker, and not a child that it forked.
    fn is_ours(&self) -> bool {
        fork::process_id() == self.pid
    }

    /// Packs the shared memory and all clients that are still here. Only the first call does so, and only in the
    /// worker, not in a child.
    pub fn pack(&self) -> Packed {
        let mut outcome = Packed::default();
        if !self.is_ours() || self.has_begun.swap(true, Ordering::AcqRel) {
            return outcome;
        }
        self.end_app();
        #[cfg(feature = "tokio")]
        if let Some(latch) = self.futures.get() {
            latch.close();
        }
        self.note_final_writes();
        // In a restart the master has packed everything, and a second time might be more than there is space for.
        let is_packed = self.has(self.offsets.packed_at);
        self.note(self.offsets.packed_at, clock::monotonic());
        let mut queue = 0;
        let is_off = is_packed || self.send(&mut queue, &self.first, &[self.shm.as_raw_fd()]);
        let short_len = self.format.short_len;
        let mut batches = [short_len, RECORD_LEN].map(|length| Batch::new(self.header, length));
        let mut send = |batch: &mut Batch| {
            let is_sent =
                is_off && (is_packed || self.send(&mut queue, batch.payload(), batch.sockets()));
            outcome.add(batch.count, is_sent);
            batch.count = 0;
        };
        let mut pack = |socket: RawFd, record: Record| {
            let is_long = record[short_len..].iter().any(|byte| *byte != 0);
            let batch = &mut batches[usize::from(is_long)];
            if self.is_here(&record) && batch.add(socket, &record) {
                send(batch);
            }
        };
        let mut without_socket = 0;
        for slot in 0..self.used.load(Ordering::Acquire) as u32 {
            if let Some((socket, cookie, record)) = self.client(slot) {
                // One descriptor that other code has closed would keep back all that are sent with it.
                if raw_cookie(socket).is_ok_and(|now| now.unwrap_or(0) == cookie) {
                    pack(socket, record);
                } else if self.is_here(&record) {
                    without_socket += 1;
                }
            }
        }
        without_socket += self.pack_unread(pack);
        for batch in batches.iter_mut().filter(|batch| batch.count > 0) {
            send(batch);
        }
        outcome.left += without_socket;
        self.note(self.offsets.left_behind, outcome.left as u64);
        outcome
    }

    /// Packs the leases that are still in the channel. The copies of their sockets end with this process. Returns how
    /// many have no socket: without free descriptors the kernel closes the last ones of a message (MSG_CTRUNC of
    /// recvmsg(2)).
    fn pack_unread(&self, mut pack: impl FnMut(RawFd, Record)) -> usize {
        let mut without_socket = 0;
        let (mut datagram, mut sockets) = ([0; MAX_DATAGRAM_LEN], [0; MAX_PASSED]);
        while let Some((length, count)) = receive_raw(self.channel, &mut datagram, &mut sockets) {
            let unread = |index| (self.format.unread)(&datagram[..length], index);
            for (index, socket) in sockets[..count].iter().enumerate() {
                if let Some(record) = unread(index) {
                    pack(*socket, record);
                }
            }
            let missing = (count..MAX_PASSED).map_while(unread);
            without_socket += missing.filter(|record| self.is_here(record)).count();
        }
        without_socket
    }

    fn note_final_writes(&self) {
        if let Some(Ok(Writes { bytes, calls })) = self.writes.as_deref().map(OwnWrites::sum) {
            self.note(self.offsets.final_write_calls, calls);
            self.note(self.offsets.final_writes, bytes.wrapping_add(1));
        }
    }

    /// Returns whether a word of the shared memory is set.
    fn has(&self, index: usize) -> bool {
        let word = self.words.get(index);
        word.is_some_and(|word| word.load(Ordering::Acquire) != 0)
    }

    /// Writes a word of the shared memory.
    fn note(&self, index: usize, value: u64) {
        if let Some(word) = self.words.get(index) {
            word.store(value, Ordering::Release);
        }
    }

    /// Sends into the first handoff queue with space, from `queue` on.
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

impl Packed {
    fn add(&mut self, count: usize, is_packed: bool) {
        *(if is_packed {
            &mut self.packed
        } else {
            &mut self.left
        }) += count;
    }
}

#[cfg(test)]
mod tests {
    use std::env;
    use std::os::fd::AsFd;
    use std::process::{Command, exit};
    use std::thread;

    use nix::sys::resource::{Resource, setrlimit};
    use nix::sys::signal::{Signal, raise};
    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::{ForkResult, fork};

    use super::super::signal::HeldBack;
    use super::super::socket::{self, message_pair};
    use super::*;

    /// Set in the process that may end.
    const INSIDE: &str = "HANDOFF_INSIDE";

    /// The status of a process in which exactly what must be packed was packed.
    const AS_EXPECTED: i32 = 42;

    /// Runs the scenario in a process of its own: one whose master is gone, with a client and a handoff queue.
    #[track_caller]
    fn inside(name: &str, scenario: fn(&'static EmergencyHandoff, RawFd)) {
        inside_after(name, |_| (), scenario);
    }

    /// The same, after what the master has sent.
    #[track_caller]
    fn inside_after(
        name: &str,
        sends: fn(&OwnedFd),
        scenario: fn(&'static EmergencyHandoff, RawFd),
    ) {
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
                Arc::new(shm),
                header,
                offsets,
                RecordFormat {
                    short_len: 28,
                    lease_in: |record| (u32::from(record[8]), 0),
                    // Each byte of a message of the test is a lease.
                    unread: |message, index| {
                        let byte = *message.get(index)?;
                        let mut record = [0; RECORD_LEN];
                        record[8] = byte;
                        Some(record)
                    },
                },
                Duration::ZERO,
            );
            let handoff = handoff.expect("sigaction");
            handoff.register(
                0,
                &client,
                socket::cookie(&client).expect("a socket"),
                &[0; RECORD_LEN],
            );
            sends(&master);
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
    fn leases_whose_sockets_the_kernel_has_closed_are_counted() {
        inside_after(
            "leases_whose_sockets_the_kernel_has_closed_are_counted",
            |master| {
                let (one, other) = message_pair().expect("socketpair");
                let sockets = [one.as_fd(), other.as_fd(), one.as_fd()];
                let sent = socket::send_message(master, &[1, 1, 1], &sockets);
                assert_eq!(sent.expect("sendmsg"), socket::Sent::Queued);
            },
            |handoff, queue| {
                // There is a descriptor for one of the three.
                let free = handoff.shm.try_clone().expect("one is free").as_raw_fd();
                let free = u64::try_from(free).expect("a number");
                setrlimit(Resource::RLIMIT_NOFILE, free + 1, free + 1).expect("a lower limit");
                assert_eq!(handoff.pack(), Packed { packed: 2, left: 2 });
                assert_eq!(datagrams(queue), 2);
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
    fn a_signal_to_another_thread_is_forwarded() {
        inside("a_signal_to_another_thread_is_forwarded", |_, queue| {
            // As during a write of this thread.
            let _held_back = HeldBack::all();
            let other = thread::spawn(|| {
                let all = nix::sys::signal::SigSet::all();
                all.thread_unblock()
                    .and_then(|()| raise(Signal::SIGALRM))
                    .expect("it can be raised");
            });
            other.join().expect("no panic");
            // SAFETY: both calls only write or read the set, whose all-zero bytes are a value.
            let is_pending = unsafe {
                let mut pending = std::mem::zeroed();
                libc::sigpending(&raw mut pending);
                libc::sigismember(&raw const pending, libc::SIGALRM)
            };
            assert_eq!((is_pending, datagrams(queue)), (1, 0));
            exit(AS_EXPECTED);
        });
    }
}
