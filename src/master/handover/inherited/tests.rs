//! The state that version 0.1.0 leaves, read from samples that its own program wrote: two clients over TCP and two over
//! Unix sockets, of each kind one idle and one with half a frame.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;

use super::super::upgrade_snapshot::UpgradeSnapshot;
use super::*;
use crate::channel::Scratch;
use crate::master::clients::client::Unleased;
use crate::master::telemetry::counters::Loss;
use crate::proto::frame::OrderRule;
use crate::proto::lease::ClientRecord;
use crate::proto::names::{ClientId, Generation, Offsets};
use crate::shm::{Cursors, Flags, LAYOUT_VERSION, Layout, LeaseState, MasterShm};
use crate::sys::memory::{plain_file, sealed_file};
use crate::sys::socket;

const STATE: &str = include_str!("../../../../tests/formats/0.1.0/state.hex");
const SHM: &str = include_str!("../../../../tests/formats/0.1.0/shm.hex");
const HANDOFF: &str = include_str!("../../../../tests/formats/0.1.0/handoff.hex");
const SNAPSHOT: &str = include_str!("../../../../tests/formats/0.1.0/snapshot.json");

/// Bytes of the state file and of the shared memory.
const STATE_LENGTH: u64 = 4096 + (2 << 20);
const SHM_LENGTH: u64 = 2_834_432;

fn unhex(text: &str) -> Vec<u8> {
    let digit = |byte: u8| (byte as char).to_digit(16).expect("a hexadecimal digit") as u8;
    text.as_bytes()
        .as_chunks()
        .0
        .iter()
        .map(|[high, low]| digit(*high) << 4 | digit(*low))
        .collect()
}

/// A file of these bytes: lines of an offset and of what is there, all hexadecimal, and nothing elsewhere.
fn file_of(text: &str, length: u64) -> File {
    let file = sealed_file(c"format", length).expect("memfd");
    for line in text.lines() {
        let (offset, bytes) = line.split_once(' ').expect("two words");
        let offset = u64::from_str_radix(offset, 16).expect("a number");
        file.write_all_at(&unhex(bytes), offset)
            .expect("it is as long as that");
    }
    file
}

/// Connected sockets for the four clients: theirs and ours.
fn sockets() -> Vec<(OwnedFd, OwnedFd)> {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let tcp = || {
        let theirs =
            TcpStream::connect(listener.local_addr().expect("an address")).expect("connect");
        (theirs.into(), listener.accept().expect("accept").0.into())
    };
    let unix = || {
        UnixStream::pair()
            .map(|(theirs, ours)| (theirs.into(), ours.into()))
            .expect("socketpair")
    };
    vec![tcp(), tcp(), unix(), unix()]
}

#[test]
fn a_state_file_of_0_1_0_is_read() {
    let state_file = StateFile::open(file_of(STATE, STATE_LENGTH)).expect("it can be read");
    let read = state_file.read().expect("it is whole");
    assert_eq!(
        (
            state_file.figures().next_client(),
            state_file.figures().refused(),
            state_file.figures().clients()
        ),
        (5, 0, None)
    );
    assert_eq!(
        (read.last_generation, read.next_worker, read.listener_number),
        (1, WorkerId(2), 2)
    );
    let listeners: Vec<_> = read
        .listeners
        .iter()
        .map(|l| (l.number, l.address.as_str(), l.accepted))
        .collect();
    assert_eq!(
        listeners,
        [
            (1, "127.0.0.1:18080", 2),
            (2, "unix:/tmp/fdpassd-0.1.0/rpc.sock", 2)
        ]
    );
    assert!(read.events > 0 && read.seats[0].spawned == 1);
    let config = last_config(&read).expect("its configuration is good");
    assert_eq!(
        (config.limits.max_frame, config.listen.len()),
        (64 << 10, 2)
    );
    // From then on it is of this version.
    state_file.figures().set(9, 1, 4);
    state_file.write(&read).expect("there is room");
    let again =
        StateFile::open(state_file.file().try_clone().expect("dup")).expect("it can be read");
    assert_eq!(
        (again.figures().next_client(), again.figures().clients()),
        (9, Some(4))
    );
}

#[test]
fn a_queue_and_shared_memory_of_0_1_0_are_recovered() {
    let shm = file_of(SHM, SHM_LENGTH);
    let sockets = sockets();
    let mut queues = HandoffQueues::new(1).expect("socketpair");
    for line in HANDOFF.lines() {
        let (count, datagram) = line.split_once(' ').expect("two words");
        let ours: Vec<BorrowedFd<'_>> = match count {
            "1" => vec![shm.as_fd()],
            _ => sockets.iter().map(|(_, ours)| ours.as_fd()).collect(),
        };
        let sent =
            socket::send_message(&queues.ends()[0].into, &unhex(datagram), &ours).expect("sendmsg");
        assert_eq!(sent, socket::Sent::Queued);
    }
    let mut unpacked = ReceivedHandoff::unpack(
        std::mem::take(&mut queues),
        &[],
        &UnpackSpace::for_clients(100),
    )
    .take_over()
    .1;
    assert!(
        unpacked.faults.is_empty() && unpacked.lost.total() == 0,
        "{unpacked:?}"
    );
    let OrphanedShm {
        record: shm_record,
        shm,
    } = unpacked.shms().next().expect("there is one");
    assert_eq!(
        (shm_record.layout, shm_record.worker, shm.layout().version()),
        (1, WorkerId(1), 1)
    );
    let recovery = unpacked.recover_all().pop().expect("there is one");
    assert!(
        recovery.lost.is_empty() && recovery.ended.is_empty(),
        "{recovery:?}"
    );
    let mut found: Vec<_> = recovery
        .recovered
        .into_iter()
        .map(|(unleased, _)| unleased)
        .collect();
    found.sort_by_key(|unleased| unleased.client.id);
    let frame = |params: String| {
        let body = format!("{{\"in\":\"ping\",\"params\":\"{params}\"}}");
        [&(body.len() as u32).to_le_bytes(), body.as_bytes()].concat()
    };
    let unread = [
        Vec::new(),
        frame("a".repeat(40))[..30].to_vec(),
        frame("b".repeat(1000))[..700].to_vec(),
        Vec::new(),
    ];
    for ((unleased, unread), (number, requests)) in
        found.iter().zip(unread).zip((1..).zip([2, 1, 1, 1]))
    {
        assert_eq!(unleased.client.id, ClientId(number));
        assert_eq!(
            (unleased.requests, unleased.bytes.unsent.len()),
            (requests, 0),
            "{number}"
        );
        assert!(
            unleased.bytes.unread.to_vec().expect("pread") == unread,
            "{number}: {unleased:?}"
        );
        assert!(
            unleased.bytes.in_base > 0 && unleased.bytes.out_base > 0 && unleased.times.1 > 0,
            "{number}"
        );
        assert!(unleased.client.rare.offsets().is_zero());
    }
}

#[test]
fn a_snapshot_of_0_1_0_is_readable_and_its_workers_are_foreign() {
    let read = |text: &str| {
        let file = plain_file(c"snapshot").expect("memfd");
        (&file).write_all(text.as_bytes()).expect("it grows");
        UpgradeSnapshot::read(&file, text.len() as u64)
    };
    let snapshot = read(SNAPSHOT).expect("it can be read");
    assert!(snapshot.has_foreign_workers());
    assert_eq!(
        snapshot
            .check()
            .expect("this program can go on")
            .config
            .limits
            .max_frame,
        64 << 10
    );
    for (member, words) in [
        ("\"channel\":2,\"layout\":999", "has layout 999"),
        (
            "\"channel\":2,\"oldest\":0,\"version\":216172782113783808",
            "it has no version of fdpassd",
        ),
    ] {
        let changed = SNAPSHOT.replace("\"channel\":2", member).replacen(
            "\"version\":100332031102182502,",
            "",
            usize::from(member.contains("version")),
        );
        let why = read(&changed)
            .and_then(|snapshot| snapshot.check().map(drop))
            .expect_err("it cannot go on");
        assert!(why.contains(words), "{why}");
    }
}

#[test]
fn shared_memory_of_a_later_version_is_rejected() {
    let shm = MasterShm::new(Layout::new(3, 64)).expect("memfd");
    let layout = Layout::with_version(LAYOUT_VERSION, 3, 64).expect("it is this one");
    MasterShm::from_file(shm.file().try_clone().expect("dup"), layout).expect("it is one");
    assert!(
        Layout::with_version(LAYOUT_VERSION + 1, 3, 64).is_none()
            && Layout::with_version(0, 3, 64).is_none()
    );
}

#[test]
fn a_handoff_stays_in_the_queues_until_it_is_packed_again() {
    let shm = MasterShm::new(Layout::new(400, 64)).expect("memfd");
    let worker = WorkerId(7);
    let shm_record = shm.layout().record((worker, 0, Generation(1)), Vec::new());
    let sockets: Vec<(UnixStream, UnixStream)> = (0..400)
        .map(|_| UnixStream::pair().expect("socketpair"))
        .collect();
    let record = |slot: u32| {
        let offsets = if slot % 100 == 3 {
            Offsets {
                received: 1 << 40,
                sent: slot.into(),
            }
        } else {
            Offsets::default()
        };
        let (client, order) = (ClientId(slot.into()), OrderRule::Auto);
        ClientRecord {
            client,
            slot,
            lease_number: 1,
            order,
            moves: 2,
            listener: 3,
            since: 4,
            offsets,
        }
    };
    let preset = |slot: u32| {
        let idle = Cursors::idle(slot.into(), 9);
        let times = (1, u64::from(slot) + 1);
        shm.slot(slot).expect("a slot").preset(
            LeaseState::Idle,
            1,
            idle,
            Flags::default(),
            times,
            5,
        );
    };
    (0..400).for_each(preset);
    let mut queues = HandoffQueues::new(1).expect("socketpair");
    let packed = (0..)
        .zip(&sockets)
        .map(|(slot, (_, ours))| (record(slot), ours.as_fd()))
        .collect();
    assert_eq!(queues.pack_all(&shm_record, &shm, packed), 0);
    let copy = |queues: &HandoffQueues| {
        let dup = |channel: &Channel<HandoffMessage, HandoffMessage>| {
            Channel::new(channel.as_fd().try_clone_to_owned().expect("dup"))
        };
        HandoffQueues::from_ends(
            queues
                .ends()
                .iter()
                .map(|ends| QueueEnds::from_channels(dup(&ends.into), dup(&ends.out)))
                .collect(),
        )
    };
    for _ in 0..3 {
        drop(ReceivedHandoff::unpack(
            copy(&queues),
            &[],
            &UnpackSpace::for_clients(1000),
        ));
        // As a master that is killed then.
        std::mem::forget(ReceivedHandoff::unpack(
            copy(&queues),
            &[],
            &UnpackSpace::for_clients(1000),
        ));
    }
    let mut unpacked = ReceivedHandoff::unpack(copy(&queues), &[], &UnpackSpace::for_clients(1000))
        .take_over()
        .1;
    let recovery = unpacked.recover_all().pop().expect("there is one");
    assert_eq!(
        (
            recovery.recovered.len(),
            recovery.lost.len(),
            unpacked.lost.total()
        ),
        (400, 0, 0)
    );
    for (
        Unleased {
            client,
            bytes,
            requests,
            ..
        },
        _,
    ) in recovery.recovered
    {
        let expected = record(u32::try_from(client.id.0).expect("it is one of these"));
        assert_eq!(
            (client.rare.offsets(), client.moves, client.order),
            (expected.offsets, 2, OrderRule::Auto)
        );
        assert_eq!(
            (bytes.in_base, bytes.out_base, requests),
            (client.id.0, 9, 5)
        );
    }
    queues.remove_first(&unpacked.datagrams, &mut Scratch::default());
    let emptied = ReceivedHandoff::unpack(copy(&queues), &[], &UnpackSpace::for_clients(1000));
    assert_eq!(emptied.unpacked().shms().count(), 0);
    let pack = |queues: &mut HandoffQueues| {
        (0..400).for_each(preset);
        let packed = (0..)
            .zip(&sockets)
            .map(|(slot, (_, ours))| (record(slot), ours.as_fd()))
            .collect();
        assert_eq!(queues.pack_all(&shm_record, &shm, packed), 0);
    };
    pack(&mut queues);
    let unpack = |space: UnpackSpace| {
        let handoff = ReceivedHandoff::unpack(copy(&queues), &[], &space);
        let mut unpacked = handoff.take_over().1;
        let recoveries = unpacked.recover_all().into_iter();
        let recovered = recoveries.flat_map(|recovery| recovery.recovered);
        let mut kept: Vec<u64> = recovered
            .map(|(unleased, _)| unleased.client.id.0)
            .collect();
        kept.sort_unstable();
        (kept, unpacked.lost[Loss::Descriptors])
    };
    let space = |clients, shms, open| UnpackSpace {
        clients,
        shms,
        open,
    };
    // With fewer descriptors, the shared memory among them, the latest stay.
    assert_eq!(unpack(space(101, 0, 1000)), ((300..400).collect(), 300));
    (0..400).for_each(preset);
    // All fit, but only just: no descriptor is kept free.
    assert_eq!(unpack(space(400, 1, 401)), ((0..400).collect(), 0));
    (0..400).for_each(preset);
    assert_eq!(unpack(space(400, 1, 400)), ((1..400).collect(), 1));
    // One datagram of 172 needs more than all: those that are kept are not closed for it.
    (0..400).for_each(preset);
    assert_eq!(unpack(space(60, 1, 100)), ((340..400).collect(), 340));
}
