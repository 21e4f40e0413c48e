//! A worker alone: the test is its master, and runs every step of it.

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

/// The worker gets no hang-up: the next write fails.
#[test]
fn a_client_that_has_shut_down_its_reading_is_closed_by_a_reply() {
    let (mut master, mut theirs) = Master::new();
    let (mut worker, mut service, mut client) =
        worker_with_client(&mut master, &mut theirs, settings());
    client.0.shutdown(Shutdown::Read).expect("it is connected");
    client.send(&ping("1"));
    worker.run_turn(0, &Purpose::Serve, &mut service);
    worker.send_reports().expect("the channel is open");
    assert_eq!(master.received(), [ToMaster::Closed(vec![0])]);
    assert_eq!((worker.served, worker.leased), (1, 0));
    let counters = Counters::read(master.shm.header());
    assert_eq!((counters.requests(), counters.lost), (1, 0));
}

/// The replies are parked, and the rest of them fails.
#[test]
fn a_parked_reply_closes_a_client_that_has_shut_down_reading() {
    let (mut master, mut theirs) = Master::new();
    let (mut worker, mut service, mut client) =
        worker_with_client(&mut master, &mut theirs, settings());
    let long = ping(&format!("\"{}\"", "x".repeat(900_000)));
    client.send_long(&long, 0, &mut worker, &mut service);
    let waits = |worker: &WorkerLoop<'_>| worker.connections.get(0).map(|client| client.waits);
    assert_eq!(waits(&worker), Some(WaitingFor::Writable));
    client.0.shutdown(Shutdown::Read).expect("it is connected");
    // It takes what was sent before, so that there is room for more.
    assert!(client.read_replies().contains("pong"));
    worker.run_turn(0, &Purpose::Serve, &mut service);
    worker.send_reports().expect("the channel is open");
    assert_eq!(master.received(), [ToMaster::Closed(vec![0])]);
    assert_eq!((worker.served, worker.leased), (1, 0));
}

#[test]
fn a_retiring_worker_gives_up_every_client_and_ends() {
    let (mut master, mut theirs) = Master::new();
    let worker = master.worker(&mut theirs, settings());
    let (mut idle, mut halfway) = (master.lease_new(0), master.lease_new(1));
    idle.send(&ping("1"));
    halfway.send(&ping("2")[..9]);
    master.send(&ToWorker::Retire);
    // A lease that the worker does not receive any more stays as it is.
    let mut late = master.lease_new(2);
    late.send(&ping("3"));
    worker.serve(&mut service()).expect("it ends well");
    assert_eq!(master.received(), [ToMaster::Released(vec![0, 1])]);
    let states = [0, 1, 2].map(|slot| master.state(slot).expect("a lease"));
    use LeaseState::{Idle, Revoked, RevokedParked};
    assert_eq!(states, [Revoked, RevokedParked, Idle]);
    assert!(master.unread(0).is_empty() && master.unread(1) == ping("2")[..9]);
    let (replies, is_over) = idle.read();
    assert!(replies.contains("pong") && !is_over, "{replies}");
    assert_eq!(halfway.read(), (String::new(), false));
}

/// A message of the master may have any duration.
#[test]
fn a_worker_has_as_long_to_stop_as_no_clock_can_count() {
    let (mut master, mut theirs) = Master::new();
    let mut worker = master.worker(&mut theirs, settings());
    let within = Duration::MAX;
    master.send(&ToWorker::Stop(Stop { within }));
    step(&mut worker, &mut service());
    assert!(worker.ending.stop_by > Some(Instant::now()));
}

#[test]
fn a_retiring_worker_gives_up_a_new_lease() {
    let (mut master, mut theirs) = Master::new();
    let mut worker = master.worker(&mut theirs, settings());
    let mut service = service();
    master.send(&ToWorker::Retire);
    let mut late = master.lease_new(2);
    late.send(&ping("3"));
    step(&mut worker, &mut service);
    step(&mut worker, &mut service);
    worker.give_up_leases();
    worker.send_reports().expect("the channel is open");
    assert_eq!(master.received(), [ToMaster::Released(vec![2])]);
    assert_eq!(master.state(2), Some(LeaseState::Revoked));
    assert_eq!(late.read(), (String::new(), false));
}

#[test]
fn a_worker_releases_revoked_leases_and_no_others() {
    let (mut master, mut theirs) = Master::new();
    let mut worker = master.worker(&mut theirs, settings());
    let mut service = service();
    let (mut taken, mut kept) = (master.lease_new(0), master.lease_new(1));
    for client in [&mut taken, &mut kept] {
        client.send(&ping("1")[..9]);
        step(&mut worker, &mut service);
    }
    assert!(master.slot(0).revoke(1).is_some());
    master.send(&ToWorker::LeasesRevoked);
    step(&mut worker, &mut service);
    assert_eq!(master.received(), [ToMaster::Released(vec![0])]);
    assert_eq!(worker.leased, 1);
    assert_eq!(master.unread(0), ping("1")[..9]);
    kept.send(&ping("1")[9..]);
    taken.send(&ping("1")[9..]);
    worker.run_turn(0, &Purpose::Serve, &mut service);
    worker.run_turn(1, &Purpose::Serve, &mut service);
    assert_eq!(taken.read(), (String::new(), false));
    assert!(kept.read_replies().contains("pong"));
}

#[test]
fn a_worker_answers_no_request_beyond_its_limit() {
    let (mut master, mut theirs) = Master::new();
    let limits = Settings {
        near_limit_at: Some(1),
        max_requests: Some(3),
        ..settings()
    };
    let worker = master.worker(&mut theirs, limits);
    let rest = [frame("{}"), ping("4"), ping("5")[..9].to_vec()].concat();
    let (mut first, mut second) = (master.lease_new(0), master.lease_new(1));
    let wrong = [frame("no JSON"), frame(r#"{"in":"no_method"}"#)].concat();
    first.send(&[wrong, ping("3"), rest.clone()].concat());
    second.send(&ping("6"));
    // So that the first client does not end before the second is leased.
    drop(second.0.shutdown(std::net::Shutdown::Write));
    worker.serve(&mut service()).expect("it ends well");
    let reports = [ToMaster::NearRequestLimit, ToMaster::Released(vec![0])];
    assert_eq!(master.received(), reports);
    assert_eq!(master.unread(0), rest);
    assert_eq!(master.state(1), Some(LeaseState::Idle));
    let replies = first.read_replies();
    let counts = ["\"out\"", "pong"].map(|word| count(&replies, word));
    assert_eq!(counts, [3, 1], "{replies}");
    let header = master.shm.header();
    assert_eq!(Counters::read(header).requests(), 3);
    assert_eq!(header.turn(), None);
    assert_eq!(second.read(), (String::new(), false));
}

#[test]
fn a_worker_at_its_limit_answers_no_unfinished_frame() {
    let one_request = || Settings {
        max_requests: Some(1),
        ..settings()
    };
    let lease_half_closed = |master: &mut Master, unread: Vec<u8>| {
        let bytes = with(|bytes: &mut ClientBytes| bytes.unread = unread.into());
        let flags = with(|flags: &mut Flags| flags.half_closed = true);
        master.lease(0, 1, &bytes, flags)
    };
    // The worker's one request is the unfinished frame.
    let (mut master, mut theirs) = Master::new();
    let worker = master.worker(&mut theirs, one_request());
    let mut client = lease_half_closed(&mut master, ping("1")[..9].to_vec());
    worker.serve(&mut service()).expect("it ends well");
    let (reply, is_over) = client.read();
    assert!(reply.contains("bad_request") && is_over, "{reply}");
    assert!(master.slot(0).flags().closing);
    let state = master.state(0);
    assert_eq!(master.received(), [ToMaster::Released(vec![0])]);
    assert_eq!(state, Some(LeaseState::RevokedParked));

    // The worker's one request is before it.
    let (mut master, mut theirs) = Master::new();
    let worker = master.worker(&mut theirs, one_request());
    let unread = [ping("1"), ping("2")[..9].to_vec()].concat();
    let mut client = lease_half_closed(&mut master, unread);
    worker.serve(&mut service()).expect("it ends well");
    assert_eq!(master.unread(0), ping("2")[..9]);
    assert_eq!(count(&client.read_replies(), "\"out\""), 1);
    assert!(master.slot(0).flags().half_closed);
}

#[test]
fn a_request_that_timed_out_does_not_run_and_the_next_does() {
    let (mut master, mut theirs) = Master::new();
    let mut worker = master.worker(&mut theirs, settings());
    let unread = [ping("1"), ping("2")].concat();
    let bytes = with(|bytes: &mut ClientBytes| bytes.unread = unread.into());
    let flags = with(|flags: &mut Flags| (flags.timed_out, flags.crash_count) = (true, 1));
    let mut client = master.lease(0, 1, &bytes, flags);
    step(&mut worker, &mut service());
    let replies = client.read_replies();
    let words = ["\"timeout\"", "request-timeout", r#""result":2"#];
    assert!(words.iter().all(|word| replies.contains(word)), "{replies}");
    assert!(!replies.contains(r#""result":1"#), "{replies}");
    // A flag that is left in the shared memory belongs to an answered frame.
    client.send(&ping("3"));
    worker.run_turn(0, &Purpose::Serve, &mut service());
    assert!(client.read_replies().contains(r#""result":3"#));
}

#[test]
fn a_quarantined_method_does_not_run_until_it_is_released() {
    let (mut master, mut theirs) = Master::new();
    let (mut worker, mut service, mut client) =
        worker_with_client(&mut master, &mut theirs, settings());
    for (names, words) in [
        (
            vec!["methods", "ping", "gone"],
            ["\"crashed\"", "is quarantined"],
        ),
        (vec!["methods"], ["pong", "result"]),
    ] {
        let names = names.into_iter().map(str::to_owned).collect();
        master.send(&ToWorker::Quarantine(names));
        step(&mut worker, &mut service);
        client.send(&ping("1"));
        worker.run_turn(0, &Purpose::Serve, &mut service);
        let reply = client.read_replies();
        assert!(words.iter().all(|word| reply.contains(word)), "{reply}");
    }
}

#[test]
fn a_method_gets_the_earlier_deadline_of_request_and_worker() {
    let (mut master, mut theirs) = Master::new();
    let (mut worker, mut service, mut client) =
        worker_with_client(&mut master, &mut theirs, timeout_of_1000_s());
    let mut ask = |worker: &mut WorkerLoop<'_>| {
        client.send(&frame(r#"{"in":"deadline"}"#));
        worker.time.now = clock::monotonic();
        worker.run_one_turn(0, &Purpose::Serve, &mut service);
        let reply = client.read_replies();
        let (_, ms) = reply.rsplit_once(':')?;
        ms.trim_end_matches('}').parse::<u64>().ok()
    };
    assert!(ask(&mut worker).is_some_and(|ms| (900_000..=1_000_000).contains(&ms)));
    worker.ending.stop_by = Some(Instant::now() + Duration::from_secs(100));
    assert!(ask(&mut worker).is_some_and(|ms| ms <= 100_000));
    (worker.ending.stop_by, worker.settings.request_timeout) = (None, Some(Duration::MAX));
    assert_eq!(ask(&mut worker), None);
}

#[test]
fn each_request_of_a_turn_has_its_own_deadline() {
    let (mut master, mut theirs) = Master::new();
    let (mut worker, mut service, mut client) =
        worker_with_client(&mut master, &mut theirs, timeout_of_1000_s());
    let request = frame(r#"{"in":"killed_at"}"#);
    // A turn ends early if this thread had to wait for a CPU.
    let until = Instant::now() + Duration::from_secs(60);
    let of_one_turn = loop {
        client.send(&request.repeat(2));
        worker.run_one_turn(0, &Purpose::Serve, &mut service);
        let replies = client.read_replies();
        let times: Vec<u64> = replies
            .split("\"result\":")
            .filter_map(|reply| reply.split_once('}')?.0.parse().ok())
            .collect();
        if times.len() == 2 {
            break times;
        }
        assert!(Instant::now() < until, "{replies}");
        worker.run_one_turn(0, &Purpose::Serve, &mut service);
        client.read_replies();
    };
    assert!(of_one_turn[1] >= of_one_turn[0] + 3, "{of_one_turn:?}");
}

#[test]
fn a_lingering_close_continues_with_the_time_that_is_left() {
    let (mut master, mut theirs) = Master::new();
    let mut worker = master.worker(&mut theirs, settings());
    let mut service = service();
    let closing = with(|flags: &mut Flags| flags.closing = true);
    let mut sent = master.lease(0, 1, &ClientBytes::default(), closing);
    let last = with(|bytes: &mut ClientBytes| {
        (bytes.unsent, bytes.in_base) = (b"the last".to_vec().into(), 7);
    });
    let mut unsent = master.lease(1, 1, &last, closing);
    sent.send(b"last words");
    let since = master.slot(0).since();
    step(&mut worker, &mut service);
    step(&mut worker, &mut service);
    assert_eq!(sent.read(), (String::new(), true));
    assert_eq!(unsent.read(), ("the last".to_owned(), true));
    for slot in [0, 1] {
        let connection = worker.connections.get(slot).expect("it has time to read");
        assert_eq!(connection.waits, WaitingFor::End);
        assert_eq!(master.state(slot), Some(LeaseState::Parked));
    }
    let connection = worker.connections.get(0).expect("it has time to read");
    assert_eq!(connection.armed, since + 1_000_000_000);
    // Discarded bytes count as answered: the positions stay true.
    assert_eq!(master.slot(0).cursors().ends(), (10, 0));
    worker.time.now = since + 3_600_000_000_000;
    worker.check_deadlines(worker.time.now, &mut service);
    worker.send_reports().expect("the channel is open");
    // In the order of their deadlines.
    assert_eq!(master.received(), [ToMaster::Closed(vec![1, 0])]);
}

#[test]
fn bytes_of_the_next_client_of_a_slot_are_kept() {
    let (mut master, mut theirs) = Master::new();
    let mut worker = master.worker(&mut theirs, settings());
    let mut service = service();
    let long = ping(&format!("\"{}\"", "x".repeat(1_000_000)));
    let blocks = |master: &Master| master.shm.file().metadata().expect("fstat").blocks() / 2 / 1024;
    let mut run = |worker: &mut WorkerLoop<'_>, master: &mut Master, slot: u32| {
        let mut client = master.lease_new(slot);
        step(worker, &mut service);
        client.send_long(&long, slot, worker, &mut service);
        let mut reply = 0;
        while reply < long.len() {
            reply += client.read_replies().len();
            worker.run_turn(slot, &Purpose::Serve, &mut service);
        }
        client
    };
    // A client with a large frame has left.
    drop(run(&mut worker, &mut master, 0));
    worker.run_turn(0, &Purpose::Serve, &mut self::service());
    worker.send_reports().expect("the channel is open");
    assert_eq!(master.received(), [ToMaster::Closed(vec![0])]);
    assert_eq!(master.state(0), Some(LeaseState::Closed));
    assert!(blocks(&master) < 4, "its region was given back");
    // The bytes of the next client are there before the worker receives its lease, and it serves others in between.
    let unread = long[..900_000].to_vec();
    let stored = with(|bytes: &mut ClientBytes| bytes.unread = unread.clone().into());
    let cursors = master.shm.store(0, &stored).expect("room");
    let flags = Flags::default();
    master
        .slot(0)
        .preset(LeaseState::Parked, 2, cursors, flags, (1, 1), 0);
    let others = (1..12).map(|slot| run(&mut worker, &mut master, slot));
    let _others: Vec<Client> = others.collect();
    assert!(master.unread(0) == unread);
}

/// Of such a client no count is rearmed, however much it sends.
#[test]
fn a_tcp_client_may_send_any_number_of_bytes() {
    let (mut master, mut theirs) = Master::new();
    let (mut worker, mut service, mut client) =
        worker_with_client(&mut master, &mut theirs, settings());
    let connection = worker.connections.get_mut(0).expect("it was leased");
    connection.peer = Peer::from(std::net::SocketAddr::from(([127, 0, 0, 1], 1)));
    // Almost the count after 3.75 GiB.
    connection.unarmed = u32::MAX - 3;
    for number in 0..3 {
        client.send(&ping(&number.to_string()));
        worker.run_turn(0, &Purpose::Serve, &mut service);
        assert!(client.read_replies().contains("pong"));
    }
}

#[test]
fn an_event_gives_a_client_that_waits_for_its_turn_no_other() {
    let (mut master, mut theirs) = Master::new();
    let (mut worker, mut service, mut client) =
        worker_with_client(&mut master, &mut theirs, settings());
    let request = frame(r#"{"in":"killed_at"}"#);
    const REQUESTS: usize = 20;
    client.send(&request.repeat(REQUESTS));
    worker.run_turn(0, &Purpose::Serve, &mut service);
    let (mut replies, mut turns) = (client.read_replies(), 1);
    assert_eq!(worker.again, [0], "each request takes 3 ms");
    // The kernel has more bytes of it.
    client.send(&request);
    let event = PollEvent {
        token: 1 << 32,
        readable: true,
        writable: false,
        has_ended: false,
    };
    worker.serve_client(event, &mut service);
    assert_eq!(worker.again, [0]);
    assert_eq!(client.read_replies(), "");
    assert_eq!(worker.timeout(), Some(Duration::ZERO));
    while let [slot] = worker.again[..] {
        worker.again.clear();
        worker.run_turn(slot, &Purpose::Serve, &mut service);
        replies += &client.read_replies();
        turns += 1;
    }
    assert_eq!(count(&replies, "\"out\""), REQUESTS + 1);
    assert!(turns > 4, "{turns}");
    // When no frame is left, an event gives it a turn again.
    client.send(&request);
    worker.serve_client(event, &mut service);
    assert_eq!(count(&client.read_replies(), "\"out\""), 1);
    let connection = worker.connections.get(0).expect("it stays");
    assert_eq!(connection.waits, WaitingFor::Request);
}
