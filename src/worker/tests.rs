//! A worker alone: the test is its master, and runs every step of it.

mod closing;
mod leases;
mod limits;
mod of_app;

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;

use super::connection::WaitingFor;
use super::*;
use crate::channel::Sent;
use crate::proto::channel::Stop;
use crate::proto::frame::{ByteOrder, OrderRule};
use crate::proto::lease::{ClientRecord, Lease};
use crate::proto::log::{Log, LogFormat, LogLevel, LogTarget};
use crate::proto::names::{ClientId, Generation, Peer, WorkerId};
use crate::shm::{ClientBytes, Counters, Flags, Layout, LeaseState, MasterShm, Owner, Slot};

const MAX_FRAME: u32 = 1 << 20;

fn settings() -> Settings {
    Settings {
        stall_timeout: Duration::from_secs(1),
        max_frame: MAX_FRAME,
        buffers: 64 << 20,
        idle_timeout: None,
        frame_timeout: None,
        send_timeout: None,
        request_timeout: None,
        restart_grace: Duration::ZERO,
        near_limit_at: None,
        max_requests: None,
        counts_addresses: false,
        log: Log {
            target: LogTarget::Stderr,
            file: None,
            format: LogFormat::Text,
            level: LogLevel::Error,
            slow_request: None,
        },
    }
}

/// Returns a changed default.
fn with<T: Default>(change: impl FnOnce(&mut T)) -> T {
    let mut value = T::default();
    change(&mut value);
    value
}

/// Returns `ping`, `deadline`, which returns in how many ms it is killed, and `killed_at`, which returns the time, in
/// ms after the start of the service, and takes 3 ms.
fn service() -> RunningService<()> {
    let started = Instant::now();
    let killed_at = Method::new("killed_at", move |(), (): (), call: &Call| {
        let began = Instant::now();
        while began.elapsed() < Duration::from_millis(3) {
            std::hint::spin_loop();
        }
        let after_start = |deadline: Instant| (deadline - started).as_millis() as u64;
        Ok(call.deadline.map(after_start))
    });
    let deadline = Method::new("deadline", |(), (): (), call: &Call| {
        let left = |deadline: Instant| (deadline - Instant::now()).as_millis() as u64;
        Ok(call.deadline.map(left))
    });
    let methods = Methods::new(
        vec![deadline, killed_at],
        Box::new(|_, _| Ok(())),
        Hooks::default(),
    )
    .expect("they are valid");
    let info = WorkerInfo {
        name: "test".to_owned(),
        worker: WorkerId(1),
        seat: 0,
        generation: Generation(1),
        config: (),
        preloaded: std::sync::Arc::default(),
        metrics: WorkerMetrics::new(None),
    };
    RunningService::start(methods, info, String::new()).expect("the state can be made")
}

struct Master {
    shm: MasterShm,
    channel: Channel<ToWorker, ToMaster>,
    /// The master's copies of the clients' sockets.
    sockets: Vec<UnixStream>,
}

impl Master {
    /// Returns a master and the other end of its channel.
    fn new() -> (Master, Channel<ToMaster, ToWorker>) {
        let (channel, theirs) = Channel::pair().expect("socketpair");
        let master = Master {
            shm: MasterShm::new(Layout::new(32, MAX_FRAME)).expect("memfd"),
            channel,
            sockets: Vec::new(),
        };
        (master, Channel::new(theirs))
    }

    fn worker<'c>(
        &self,
        theirs: &'c mut Channel<ToMaster, ToWorker>,
        settings: Settings,
    ) -> WorkerLoop<'c> {
        let file = self.shm.file().try_clone().expect("dup");
        let shm = WorkerShm::map(file, Layout::new(32, MAX_FRAME)).expect("mmap");
        WorkerLoop::new(theirs, shm, settings, None, None).expect("epoll")
    }

    fn send(&mut self, message: &ToWorker) {
        assert_eq!(self.channel.send(message, &[]).expect("send"), Sent::Queued);
    }

    /// Leases a new client with these bytes in the shared memory. Returns its other end.
    fn lease(&mut self, slot: u32, lease_number: u32, bytes: &ClientBytes, flags: Flags) -> Client {
        let (ours, client) = UnixStream::pair().expect("socketpair");
        for socket in [&ours, &client] {
            socket.set_nonblocking(true).expect("fcntl");
        }
        let is_parked = flags.closing || !(bytes.unread.is_empty() && bytes.unsent.is_empty());
        let state = if is_parked {
            LeaseState::Parked
        } else {
            LeaseState::Idle
        };
        let cursors = self.shm.store(slot, bytes).expect("room");
        let now = clock::monotonic();
        let times = (now, now);
        self.slot(slot)
            .preset(state, lease_number, cursors, flags, times, 0);
        let (pid, uid, gid) = (1, 2, 3);
        let record = ClientRecord {
            client: ClientId(slot.into()),
            slot,
            lease_number,
            order: OrderRule::Little,
            moves: 0,
            listener: 1,
            since: 0,
            offsets: Default::default(),
        };
        let peer = Peer::Unix { pid, uid, gid };
        let message = ToWorker::Lease(vec![Lease { record, peer }]);
        let sent = self.channel.send(&message, &[ours.as_fd()]);
        assert_eq!(sent.expect("send"), Sent::Queued);
        self.sockets.push(ours);
        Client(client)
    }

    /// Leases an idle client.
    fn lease_new(&mut self, slot: u32) -> Client {
        self.lease(slot, 1, &ClientBytes::default(), Flags::default())
    }

    fn slot(&self, slot: u32) -> Slot<'_> {
        self.shm.slot(slot).expect("a slot")
    }

    fn state(&self, slot: u32) -> Option<LeaseState> {
        self.shm.slot(slot)?.lease().map(|lease| lease.state)
    }

    /// Returns the unread bytes of a client in no turn: none of an idle client.
    fn unread(&self, slot: u32) -> Vec<u8> {
        match self.state(slot) {
            Some(LeaseState::Idle | LeaseState::Revoked) => Vec::new(),
            _ => {
                let bytes = self.shm.recover(slot, None, Owner::Alive);
                let unread = bytes.expect("the shared memory is valid").unread;
                unread.to_vec().expect("pread")
            }
        }
    }

    /// Returns all messages of the worker so far.
    fn received(&mut self) -> Vec<ToMaster> {
        let mut scratch = Scratch::default();
        let mut next = || match self.channel.receive(&mut scratch).expect("receive") {
            Incoming::Message(message, _) => Some(message),
            _ => None,
        };
        std::iter::from_fn(&mut next).collect()
    }
}

/// Returns a worker with an idle client in slot 0, and its service.
fn worker_with_client<'c>(
    master: &mut Master,
    theirs: &'c mut Channel<ToMaster, ToWorker>,
    settings: Settings,
) -> (WorkerLoop<'c>, RunningService<()>, Client) {
    let mut worker = master.worker(theirs, settings);
    let mut service = service();
    let client = master.lease_new(0);
    step(&mut worker, &mut service);
    (worker, service, client)
}

/// Returns the settings of a worker whose requests may take 1000 s.
fn timeout_of_1000_s() -> Settings {
    Settings {
        request_timeout: Some(Duration::from_secs(1_000)),
        ..settings()
    }
}

/// Makes the worker receive one message and send its reports.
fn step(worker: &mut WorkerLoop<'_>, service: &mut dyn Service) {
    let received = worker.receive(&mut Scratch::default(), service);
    received.expect("it is valid");
    worker.send_reports().expect("the channel is open");
}

struct Client(UnixStream);

impl Drop for Client {
    /// Leaves at once, also if a process that another test has just forked has a copy of the socket until its execve.
    fn drop(&mut self) {
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

impl Client {
    fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).expect("the socket has room");
    }

    /// Sends more bytes than fit into a socket, in several turns.
    fn send_long(
        &mut self,
        bytes: &[u8],
        slot: u32,
        worker: &mut WorkerLoop<'_>,
        service: &mut dyn Service,
    ) {
        for piece in bytes.chunks(64 << 10) {
            self.send(piece);
            worker.run_turn(slot, &Purpose::Serve, service);
        }
    }

    /// Returns the bytes received, and whether the stream has ended.
    fn read(&mut self) -> (String, bool) {
        let mut bytes = Vec::new();
        let has_ended = match self.0.read_to_end(&mut bytes) {
            Ok(_) => true,
            Err(e) if e.kind() == ErrorKind::WouldBlock => false,
            Err(e) => panic!("{e}"),
        };
        (String::from_utf8_lossy(&bytes).into_owned(), has_ended)
    }

    fn read_replies(&mut self) -> String {
        self.read().0
    }
}

fn frame(body: &str) -> Vec<u8> {
    let prefix = ByteOrder::Little.prefix(body.len() as u32);
    [&prefix[..], body.as_bytes()].concat()
}

fn ping(params: &str) -> Vec<u8> {
    frame(&format!(r#"{{"in":"ping","params":{params}}}"#))
}

fn count(text: &str, word: &str) -> usize {
    text.matches(word).count()
}
