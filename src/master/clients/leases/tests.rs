//! Random lifecycles of clients in shared memory: with a worker that does by hand what a worker does, and with a broken
//! one that writes anything.

mod actions;
mod corruption;
mod life;
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::Config;

use self::actions::{Act, Plan, Point, act};
use self::life::Life;
use self::world::World;
use super::recovery::*;
use super::reports::SlotReport;
use super::*;
use crate::proto::names::{ClientId, Offsets, Peer};
use crate::shm::{
    Claim, ClientBytes, Cursors, Header, Layout, Note, Region, SMALL_LEN, Stretch, WorkerShm,
};
use crate::sys::byte_counts::{self, Writes};

const SLOTS: u32 = 5;
const METHOD: u32 = 7;

/// Bytes of the header of shared memory and of its slots.
const WORDS: u64 = 16 * 1024 + SLOTS as u64 * 128;

fn shms() -> (MasterShm, WorkerShm) {
    let layout = Layout::new(SLOTS, 4096);
    let master = MasterShm::new(layout).expect("memfd");
    let worker = WorkerShm::map(master.file().try_clone().expect("dup"), layout).expect("mmap");
    worker.header().set_writer(1);
    (master, worker)
}

/// A quarter of the usual number of cases, which PROPTEST_CASES sets, because these are long.
fn few() -> Config {
    let usual = Config::default();
    Config {
        failure_persistence: None,
        cases: usual.cases.div_ceil(4),
        ..usual
    }
}

/// Returns the bytes of a part of a stream: each stream has its own.
fn bytes_of(stream: u64, part: Range<u64>) -> Vec<u8> {
    part.map(|position| (position.wrapping_mul(31) ^ (position >> 8) ^ (stream * 101)) as u8)
        .collect()
}

/// Returns what a thread has written in all after one more call.
fn and_a_call_of(bytes: u64, before: Writes) -> Writes {
    Writes {
        bytes: before.bytes + bytes,
        calls: before.calls + 1,
    }
}

/// Returns the number of bytes moved by a socket that may have none or accept none now.
fn moved(result: io::Result<usize>) -> u64 {
    match result {
        Ok(count) => count as u64,
        Err(e) if e.kind() == ErrorKind::WouldBlock => 0,
        Err(e) => panic!("{e}"),
    }
}

fn all(stretch: &Stretch) -> Vec<u8> {
    stretch.to_vec().expect("pread")
}

proptest! {
    #![proptest_config(few())]

    #[test]
    fn random_histories_keep_every_client_and_its_bytes(acts in vec(act(), 0..150)) {
        let mut world = World::new();
        for act in &acts {
            world.act(act);
            world.check();
        }
        world.die();
        world.check();
        let over = &world.over;
        for (_, life) in world.lives.iter_mut().filter(|(id, _)| !over.contains(id)) {
            let begin = Instant::now();
            while life.received < life.written && begin.elapsed() < Duration::from_secs(10) {
                life.receive();
            }
            assert_eq!(life.received, life.written);
        }
    }
}
