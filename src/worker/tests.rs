//! A worker by itself: the test is its master, and takes every step of it by hand.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;

use super::connection::WaitingFor;
use super::*;
use crate::proto::frame::{ByteOrder, OrderRule};
use crate::proto::lease::{ClientRecord, Lease};
use crate::proto::log::{Log, LogFormat, LogLevel, LogTarget};
use crate::proto::names::{ClientId, Generation, Peer, WorkerId};
use crate::shm::{ClientBytes, Counters, Flags, Layout, LeaseState, MasterShm, Owner};

const MAX_FRAME: u32 = 1 << 20;

fn settings() -> Settings {
    Settings {
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
        },
    }
}

/// `ping`, and `deadline`, which tells in how many ms it is killed.
fn service() -> RunningService<()> {
    let mut methods = Methods::new(Box::new(|_| Ok(())));
    methods.add_typed("deadline", false, |(), (): (), call| {
        Ok(call
            .deadline
            .map(|deadline| (deadline - Instant::now()).as_millis() as u64))
    });
    let info = WorkerInfo {
        name: "test".to_owned(),
        worker: WorkerId(1),
        seat: 0,
        generation: Generation(1),
    };
    RunningService::start(methods.complete(), info).expect("the state can be made")
}

struct Master {
    shm: MasterShm,
    channel: Channel<ToWorker, ToMaster>,
    /// Its own copies of the clients' sockets.
    sockets: Vec<UnixStream>,
}

impl Master {
    /// With the other end of its channel.
    fn new() -> (Master, Channel<ToMaster, ToWorker>) {
        let shm = MasterShm::new(Layout::new(32, MAX_FRAME)).expect("memfd");
        let (channel, theirs) = Channel::pair().expect("socketpair");
        (
            Master {
                shm,
                channel,
                sockets: Vec::new(),
            },
            Channel::new(theirs),
        )
    }

    fn worker<'c>(
        &self,
        theirs: &'c mut Channel<ToMaster, ToWorker>,
        settings: Settings,
    ) -> WorkerLoop<'c> {
        let file = self.shm.file().try_clone().expect("dup");
        let shm = WorkerShm::map(file, Layout::new(32, MAX_FRAME)).expect("mmap");
        WorkerLoop::new(theirs, shm, settings, None).expect("epoll")
    }

    fn say(&mut self, message: &ToWorker) {
        assert_eq!(self.channel.send(message, &[]).expect("send"), Sent::Queued);
    }

    /// Leases a new client of which this much is in the shared memory; its other end.
    fn lease(&mut self, slot: u32, lease_number: u32, bytes: &ClientBytes, flags: Flags) -> Client {
        let (ours, client) = UnixStream::pair().expect("socketpair");
        [&ours, &client]
            .iter()
            .for_each(|socket| socket.set_nonblocking(true).expect("fcntl"));
        let is_parked = flags.closing || !(bytes.unread.is_empty() && bytes.unsent.is_empty());
        let state = if is_parked {
            LeaseState::Parked
        } else {
            LeaseState::Idle
        };
        let cursors = self.shm.store(slot, bytes).expect("room");
        let now = clock::monotonic();
        self.shm.slot(slot).expect("a slot").preset(
            state,
            lease_number,
            cursors,
            flags,
            (now, now),
            0,
        );
        let peer = Peer::Unix {
            pid: 1,
            uid: 2,
            gid: 3,
        };
        let (id, order) = (ClientId(slot.into()), OrderRule::Little);
        let record = ClientRecord {
            client: id,
            slot,
            lease_number,
            order,
            moves: 0,
            listener: 1,
            since: 0,
            offsets: Default::default(),
        };
        let lease = Lease { record, peer };
        let sent = self
            .channel
            .send(&ToWorker::Lease(vec![lease]), &[ours.as_fd()])
            .expect("send");
        assert_eq!(sent, Sent::Queued);
        self.sockets.push(ours);
        Client(client)
    }

    /// Leases one that is idle.
    fn lease_new(&mut self, slot: u32) -> Client {
        self.lease(slot, 1, &ClientBytes::default(), Flags::default())
    }

    fn state(&self, slot: u32) -> Option<LeaseState> {
        self.shm.slot(slot)?.lease().map(|lease| lease.state)
    }

    /// What is unread of a client in no turn: nothing of an idle client.
    fn unread(&self, slot: u32) -> Vec<u8> {
        match self.state(slot) {
            Some(LeaseState::Idle | LeaseState::Revoked) => Vec::new(),
            _ => {
                let bytes = self
                    .shm
                    .recover(slot, None, Owner::Alive)
                    .expect("the shared memory is whole");
                bytes.unread.to_vec().expect("pread")
            }
        }
    }

    /// All that the worker has said so far.
    fn heard(&mut self) -> Vec<ToMaster> {
        let mut all = Vec::new();
        while let Incoming::Message(message, _) =
            self.channel.receive(&mut Scratch::default()).expect("hear")
        {
            all.push(message);
        }
        all
    }
}

/// Hears one message of the master, and tells it what there is to tell.
fn step(worker: &mut WorkerLoop<'_>, service: &mut dyn Service) {
    worker
        .receive(&mut Scratch::default(), service)
        .expect("it is no nonsense");
    worker.send_reports().expect("the channel is open");
}

struct Client(UnixStream);

impl Client {
    fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).expect("the socket has room");
    }

    /// Sends more than a socket takes, in one turn after another.
    fn send_long(
        &mut self,
        bytes: &[u8],
        slot: u32,
        worker: &mut WorkerLoop<'_>,
        service: &mut dyn Service,
    ) {
        for piece in bytes.chunks(64 << 10) {
            self.send(piece);
            worker.give_turn(slot, &Purpose::Serve, service);
        }
    }

    /// What has come, and whether that is all that ever will.
    fn read(&mut self) -> (String, bool) {
        let (mut bytes, mut piece) = (Vec::new(), [0; 4096]);
        loop {
            match self.0.read(&mut piece) {
                Ok(0) => return (String::from_utf8_lossy(&bytes).into_owned(), true),
                Ok(n) => bytes.extend_from_slice(&piece[..n]),
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    return (String::from_utf8_lossy(&bytes).into_owned(), false);
                }
                Err(e) => panic!("{e}"),
            }
        }
    }

    fn read_replies(&mut self) -> String {
        self.read().0
    }
}

fn frame(body: &str) -> Vec<u8> {
    [
        &ByteOrder::Little.prefix(body.len() as u32)[..],
        body.as_bytes(),
    ]
    .concat()
}

fn ping(params: &str) -> Vec<u8> {
    frame(&format!(r#"{{"in":"ping","params":{params}}}"#))
}

fn count(text: &str, word: &str) -> usize {
    text.matches(word).count()
}

#[test]
fn a_drained_worker_gives_up_every_client_with_all_that_is_of_it_and_ends() {
    let (mut master, mut theirs) = Master::new();
    let worker = master.worker(&mut theirs, settings());
    let (mut idle, mut halfway) = (master.lease_new(0), master.lease_new(1));
    idle.send(&ping("1"));
    halfway.send(&ping("2")[..9]);
    master.say(&ToWorker::Retire);
    // One that comes later is given up as it is.
    let mut late = master.lease_new(2);
    late.send(&ping("3"));
    worker.serve(&mut service()).expect("it ends well");
    assert_eq!(master.heard(), [ToMaster::Released(vec![0, 1])]);
    assert_eq!(
        [0, 1, 2].map(|slot| master.state(slot)),
        [
            Some(LeaseState::Revoked),
            Some(LeaseState::RevokedParked),
            Some(LeaseState::Idle)
        ]
    );
    assert_eq!(
        (master.unread(0), master.unread(1)),
        (Vec::new(), ping("2")[..9].to_vec())
    );
    let (replies, is_over) = idle.read();
    assert!(replies.contains("pong") && !is_over, "{replies}");
    assert_eq!(halfway.read(), (String::new(), false));
}

#[test]
fn a_lease_that_comes_to_a_worker_that_is_leaving_is_given_up() {
    let (mut master, mut theirs) = Master::new();
    let mut worker = master.worker(&mut theirs, settings());
    let mut service = service();
    master.say(&ToWorker::Retire);
    let mut late = master.lease_new(2);
    late.send(&ping("3"));
    step(&mut worker, &mut service);
    step(&mut worker, &mut service);
    worker.give_up_leases();
    worker.send_reports().expect("the channel is open");
    assert_eq!(
        (master.heard(), master.state(2)),
        (vec![ToMaster::Released(vec![2])], Some(LeaseState::Revoked))
    );
    assert_eq!(late.read(), (String::new(), false));
}

#[test]
fn a_look_finds_the_leases_that_were_taken_and_no_others() {
    let (mut master, mut theirs) = Master::new();
    let mut worker = master.worker(&mut theirs, settings());
    let mut service = service();
    let (mut taken, mut kept) = (master.lease_new(0), master.lease_new(1));
    for client in [&mut taken, &mut kept] {
        client.send(&ping("1")[..9]);
        step(&mut worker, &mut service);
    }
    assert!(master.shm.slot(0).expect("a slot").revoke(1).is_some());
    master.say(&ToWorker::LeasesRevoked);
    step(&mut worker, &mut service);
    assert_eq!(
        (master.heard(), worker.leased),
        (vec![ToMaster::Released(vec![0])], 1)
    );
    assert_eq!(master.unread(0), ping("1")[..9]);
    kept.send(&ping("1")[9..]);
    taken.send(&ping("1")[9..]);
    worker.give_turn(0, &Purpose::Serve, &mut service);
    worker.give_turn(1, &Purpose::Serve, &mut service);
    assert_eq!(taken.read(), (String::new(), false));
    assert!(kept.read_replies().contains("pong"));
}

#[test]
fn a_worn_out_worker_has_answered_exactly_so_many_and_leaves_the_rest_where_it_is_found() {
    let (mut master, mut theirs) = Master::new();
    let worker = master.worker(
        &mut theirs,
        Settings {
            near_limit_at: Some(1),
            max_requests: Some(3),
            ..settings()
        },
    );
    let rest = [frame("{}"), ping("4"), ping("5")[..9].to_vec()].concat();
    let (mut first, mut second) = (master.lease_new(0), master.lease_new(1));
    first.send(
        &[
            frame("no JSON"),
            frame(r#"{"in":"no_method"}"#),
            ping("3"),
            rest.clone(),
        ]
        .concat(),
    );
    second.send(&ping("6"));
    // So that the end of its first client does not come before the second is there.
    drop(second.0.shutdown(std::net::Shutdown::Write));
    worker.serve(&mut service()).expect("it ends well");
    assert_eq!(
        master.heard(),
        [ToMaster::NearRequestLimit, ToMaster::Released(vec![0])]
    );
    assert_eq!(
        (master.unread(0), master.state(1)),
        (rest, Some(LeaseState::Idle))
    );
    let replies = first.read_replies();
    assert_eq!(
        (count(&replies, "\"out\""), count(&replies, "pong")),
        (3, 1),
        "{replies}"
    );
    assert_eq!(
        (
            Counters::read(master.shm.header()).requests(),
            master.shm.header().turn()
        ),
        (3, None)
    );
    assert_eq!(second.read(), (String::new(), false));
}

#[test]
fn the_end_of_a_client_in_its_frame_is_left_to_the_next_worker_by_one_that_is_worn_out() {
    let (mut master, mut theirs) = Master::new();
    let worker = master.worker(
        &mut theirs,
        Settings {
            max_requests: Some(1),
            ..settings()
        },
    );
    // The end is heard with a byte that waits, which takes a second turn.
    let bytes = ClientBytes {
        unread: ping("1")[..9].to_vec().into(),
        ..ClientBytes::default()
    };
    let mut client = master.lease(
        0,
        1,
        &bytes,
        Flags {
            half_closed: true,
            ..Flags::default()
        },
    );
    worker_answers_last(worker, &mut master, &mut client);
    let (mut master, mut theirs) = Master::new();
    let worker = master.worker(
        &mut theirs,
        Settings {
            max_requests: Some(1),
            ..settings()
        },
    );
    let bytes = ClientBytes {
        unread: [ping("1"), ping("2")[..9].to_vec()].concat().into(),
        ..ClientBytes::default()
    };
    let mut client = master.lease(
        0,
        1,
        &bytes,
        Flags {
            half_closed: true,
            ..Flags::default()
        },
    );
    worker.serve(&mut service()).expect("it ends well");
    assert_eq!(
        (master.unread(0), count(&client.read_replies(), "\"out\"")),
        (ping("2")[..9].to_vec(), 1)
    );
    assert!(master.shm.slot(0).expect("a slot").flags().half_closed);
}

/// The one request that the worker may answer is the client's last.
#[track_caller]
fn worker_answers_last(worker: WorkerLoop<'_>, master: &mut Master, client: &mut Client) {
    worker.serve(&mut service()).expect("it ends well");
    let (reply, is_over) = client.read();
    assert!(reply.contains("bad_request") && is_over, "{reply}");
    assert!(master.shm.slot(0).expect("a slot").flags().closing);
    assert_eq!(
        (master.heard(), master.state(0)),
        (
            vec![ToMaster::Released(vec![0])],
            Some(LeaseState::RevokedParked)
        )
    );
}

#[test]
fn a_request_that_took_too_long_is_not_run_again_and_the_one_behind_it_is() {
    let (mut master, mut theirs) = Master::new();
    let mut worker = master.worker(&mut theirs, settings());
    let bytes = ClientBytes {
        unread: [ping("1"), ping("2")].concat().into(),
        ..ClientBytes::default()
    };
    let mut client = master.lease(
        0,
        1,
        &bytes,
        Flags {
            timed_out: true,
            crash_count: 1,
            ..Flags::default()
        },
    );
    step(&mut worker, &mut service());
    let replies = client.read_replies();
    assert!(
        replies.contains("\"timeout\"") && replies.contains("request-timeout"),
        "{replies}"
    );
    assert!(
        replies.contains(r#""result":2"#) && !replies.contains(r#""result":1"#),
        "{replies}"
    );
    // A mark that is left in the shared memory was of a frame that is gone.
    client.send(&ping("3"));
    worker.give_turn(0, &Purpose::Serve, &mut service());
    assert!(client.read_replies().contains(r#""result":3"#));
}

#[test]
fn a_quarantined_method_is_not_run_until_it_is_not_quarantined_any_more() {
    let (mut master, mut theirs) = Master::new();
    let mut worker = master.worker(&mut theirs, settings());
    let mut service = service();
    let mut client = master.lease_new(0);
    step(&mut worker, &mut service);
    for (names, word) in [
        (vec!["methods", "ping", "gone"], "is quarantined"),
        (vec!["methods"], "pong"),
    ] {
        master.say(&ToWorker::Quarantine(
            names.into_iter().map(str::to_owned).collect(),
        ));
        step(&mut worker, &mut service);
        client.send(&ping("1"));
        worker.give_turn(0, &Purpose::Serve, &mut service);
        let reply = client.read_replies();
        assert!(
            reply.contains(word) && (word == "pong" || reply.contains("\"crashed\"")),
            "{reply}"
        );
    }
}

#[test]
fn a_method_is_told_the_earlier_end_of_its_request_and_of_its_worker() {
    let (mut master, mut theirs) = Master::new();
    let timeout = Some(Duration::from_secs(1_000));
    let mut worker = master.worker(
        &mut theirs,
        Settings {
            request_timeout: timeout,
            ..settings()
        },
    );
    let mut service = service();
    let mut client = master.lease_new(0);
    step(&mut worker, &mut service);
    let mut ask = |worker: &mut WorkerLoop<'_>| {
        client.send(&frame(r#"{"in":"deadline"}"#));
        worker.now = clock::monotonic();
        worker.give_one_turn(0, &Purpose::Serve, &mut service);
        let reply = client.read_replies();
        reply
            .rsplit(':')
            .next()
            .and_then(|ms| ms.trim_end_matches('}').parse::<u64>().ok())
    };
    assert!(ask(&mut worker).is_some_and(|ms| (900_000..=1_000_000).contains(&ms)));
    worker.stop_by = Some(Instant::now() + Duration::from_secs(100));
    assert!(ask(&mut worker).is_some_and(|ms| ms <= 100_000));
    (worker.stop_by, worker.settings.request_timeout) = (None, Some(Duration::MAX));
    assert_eq!(ask(&mut worker), None);
}

#[test]
fn a_client_that_was_told_all_goes_on_ending_with_the_time_that_it_has_left() {
    let (mut master, mut theirs) = Master::new();
    let mut worker = master.worker(&mut theirs, settings());
    let mut service = service();
    let closing = Flags {
        closing: true,
        ..Flags::default()
    };
    let mut told = master.lease(0, 1, &ClientBytes::default(), closing);
    let unsent = ClientBytes {
        unsent: b"the last".to_vec().into(),
        in_base: 7,
        ..ClientBytes::default()
    };
    let mut untold = master.lease(1, 1, &unsent, closing);
    told.send(b"last words");
    let since = master.shm.slot(0).expect("a slot").since();
    step(&mut worker, &mut service);
    step(&mut worker, &mut service);
    assert_eq!(
        (told.read(), untold.read()),
        ((String::new(), true), ("the last".to_owned(), true))
    );
    for slot in [0, 1] {
        let connection = worker.connections.get(slot).expect("it is given a while");
        assert_eq!(
            (connection.waits, master.state(slot)),
            (WaitingFor::End, Some(LeaseState::Parked))
        );
    }
    assert_eq!(
        worker.connections.get(0).expect("there").armed,
        since + 1_000_000_000
    );
    // What is thrown away counts as answered: the positions stay true.
    assert_eq!(
        master.shm.slot(0).expect("a slot").cursors().ends(),
        (10, 0)
    );
    worker.now = since + 3_600_000_000_000;
    worker.check_deadlines(worker.now, &mut service);
    worker.send_reports().expect("the channel is open");
    // In the order of their deadlines.
    assert_eq!(master.heard(), [ToMaster::Closed(vec![1, 0])]);
}

#[test]
fn bytes_stored_for_the_next_client_of_a_slot_are_not_destroyed_for_the_last_one() {
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
            worker.give_turn(slot, &Purpose::Serve, &mut service);
        }
        client
    };
    // A client had a large frame, and has left.
    drop(run(&mut worker, &mut master, 0));
    worker.give_turn(0, &Purpose::Serve, &mut self::service());
    worker.send_reports().expect("the channel is open");
    assert_eq!(
        (master.heard(), master.state(0)),
        (vec![ToMaster::Closed(vec![0])], Some(LeaseState::Closed))
    );
    assert!(blocks(&master) < 4, "its region was given back");
    // The next one's bytes are there before its worker hears of it, which has others meanwhile.
    let stored = ClientBytes {
        unread: long[..900_000].to_vec().into(),
        ..ClientBytes::default()
    };
    let cursors = master.shm.store(0, &stored).expect("room");
    master.shm.slot(0).expect("a slot").preset(
        LeaseState::Parked,
        2,
        cursors,
        Flags::default(),
        (1, 1),
        0,
    );
    let others: Vec<Client> = (1..12)
        .map(|slot| run(&mut worker, &mut master, slot))
        .collect();
    assert!(
        master.unread(0) == long[..900_000],
        "{} others",
        others.len()
    );
}
