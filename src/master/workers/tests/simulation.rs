//! Simulates more clients than a process may have descriptors: the pool, dispatch, the leases and their slots in shared
//! memory are those of the daemon; there are no sockets, no worker processes, and nothing is sent.
//!
//! The test shows that no client is lost and how clients are spread. With `SIMULATED_CLIENTS=200000` it also measures,
//! prints a table, and fails if a decision costs much more with many clients than with few:
//!
//! ```sh
//! SIMULATED_CLIENTS=200000 cargo test --release --lib simulation -- --nocapture
//! ```

use std::fs::{self, File};
use std::mem;
use std::num::NonZeroU32;
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::channel::Channel;
use crate::config::{Config, Dispatch};
use crate::master::clients::Clients;
use crate::master::clients::client::{Client, Unleased};
use crate::master::clients::leases::Leases;
use crate::master::clients::leases::reports::SlotReport;
use crate::master::clients::place::OrphanedShm;
use crate::master::telemetry::Telemetry;
use crate::master::workers::Workers;
use crate::master::workers::worker::{Life, Worker};
use crate::pool::backoff::Jitter;
use crate::pool::{Action, MemberState, Pool, Target};
use crate::proto::channel::MAX_LEASES;
use crate::proto::names::{Generation, WorkerId};
use crate::shm::{Layout, LeaseState, MasterShm};
use crate::sys::clock;
use crate::sys::poll::Poller;
use crate::sys::process::Executable;

/// Clients that leave in one iteration of the loop while others connect.
const LEAVING: usize = 32;

/// How much more a decision may cost with many clients than with few before it counts as worse than linear. Slots that
/// are not in the caches of the CPU cost up to three times as much; a walk over all clients costs a hundred times.
const WORSE: f64 = 10.0;

/// A master without sockets, with what workers write into their shared memory.
pub(crate) struct Simulation {
    pub(crate) workers: Workers,
    pub(crate) clients: Clients,
    pub(crate) telemetry: Telemetry,
    pub(crate) poller: Poller,
    target: Target,
    next_client: u64,
    random: Jitter,
    pub(crate) now: Instant,
}

impl Simulation {
    /// Returns a daemon whose workers are ready.
    pub(crate) fn new(dispatch: Dispatch, workers: usize, most: usize) -> Simulation {
        let now = Instant::now();
        let target = Target {
            generation: Generation(1),
            count: workers,
            start_timeout: Duration::from_secs(60),
            drain_timeout: Duration::from_secs(3600),
            max_lifetime: None,
            tries: 3,
        };
        let pool = Pool::new(target.clone(), now, 1);
        let executable = Executable::from_file(File::open("/dev/null").expect("/dev/null"));
        let mut config = Config::default();
        config.workers.dispatch = dispatch;
        let slots = u32::try_from(most).expect("fits");
        let mut simulation = Simulation {
            workers: Workers::new(pool, executable, now),
            clients: Clients::new(&config, most as u64, Layout::new(slots, 4096)),
            telemetry: Telemetry::new(),
            poller: Poller::new(1).expect("epoll"),
            target,
            next_client: 1,
            random: Jitter::new(1),
            now,
        };
        // The pool paces the starts.
        while simulation.workers.ready().count() < workers {
            simulation.reconcile();
        }
        simulation
    }

    /// Carries out the decisions of the pool: a worker is ready at once.
    fn reconcile(&mut self) {
        self.now += Duration::from_secs(1);
        for action in self.workers.pool.reconcile(self.now) {
            match action {
                Action::Spawn {
                    seat,
                    id,
                    generation,
                } => self.start(id, seat, generation),
                Action::Drain { id, why, .. } => self.workers.retire(id, why, &mut self.telemetry),
                Action::Applied => {}
                other => panic!("{other:?}"),
            }
        }
    }

    fn start(&mut self, id: WorkerId, seat: usize, generation: Generation) {
        let shm = MasterShm::new(self.clients.layout).expect("memfd");
        let leases = Leases::new(shm.layout().slots());
        // The other end is closed, so that messages are dropped.
        let (channel, _) = Channel::pair().expect("socketpair");
        let identity = (id, std::process::id(), seat, generation);
        let mut worker = Worker::adopt(identity, channel, shm, leases, Vec::new(), self.now);
        worker.life = Life::Serving;
        self.workers.insert(worker);
        assert!(self.workers.pool.ready(id, self.now));
    }

    /// Workers pick up the leases of this iteration of the loop.
    fn pick_up(&mut self) {
        for id in mem::take(&mut self.workers.dispatch.to_flush) {
            let Some(worker) = self.workers.all.get_mut(&id) else {
                continue;
            };
            while let Some(batch) = worker.leases.next_batch() {
                let sent = worker.leases.records(&batch).count();
                assert_eq!(sent, batch.len());
                worker.leases.close_left_places(&batch);
                let _ = worker.shm.header().pick_up(sent as u64);
            }
        }
    }

    /// New clients connect: the loop of `listeners/accept.rs`, without the sockets.
    pub(crate) fn connect(&mut self, count: usize) {
        let mut left = count;
        while left > 0 {
            self.workers.begin_leasing(self.clients.dispatcher.policy());
            for _ in 0..left.min(MAX_LEASES) {
                let dispatcher = &mut self.clients.dispatcher;
                if !self.workers.can_pick_for_new(dispatcher, self.now) {
                    break;
                }
                let chosen = self.workers.pick_for_new(dispatcher);
                let chosen = chosen.expect("one has capacity");
                let client = Client::simulated(self.next_client);
                self.next_client += 1;
                self.clients.add(1);
                let unleased = Unleased::new(client, clock::monotonic());
                let (clients, telemetry) = (&mut self.clients, &mut self.telemetry);
                self.workers.lease_new(chosen, unleased, clients, telemetry);
                left -= 1;
            }
            self.pick_up();
        }
    }

    /// As many clients leave as new ones connect.
    fn replace(&mut self, count: usize) {
        let mut left = count;
        while left > 0 {
            let part = left.min(LEAVING);
            let ids: Vec<WorkerId> = self.workers.ready().map(|worker| worker.id).collect();
            let mut gone = 0;
            while gone < part {
                let id = ids[self.random.below(ids.len() as u64) as usize];
                gone += usize::from(self.close_one(id));
            }
            self.connect(part);
            left -= part;
        }
    }

    /// A worker closes one of its clients, and the master receives the message. Returns false for a free slot.
    fn close_one(&mut self, id: WorkerId) -> bool {
        let worker = self.workers.all.get_mut(&id).expect("it is ready");
        let slot = self.random.below(worker.leases.used().max(1).into()) as u32;
        let Some(shared) = worker.shm.slot(slot) else {
            return false;
        };
        let Some(lease) = shared
            .lease()
            .filter(|_| worker.leases.client(slot).is_some())
        else {
            return false;
        };
        shared.release(lease.number, LeaseState::Closed);
        let SlotReport::Ended(client, _) = worker.leases.closed(slot, &worker.shm) else {
            panic!("the lease is closed");
        };
        self.clients.remove(client, &self.telemetry);
        true
    }

    /// Leases all clients without a worker, in as many iterations of the loop as that takes.
    fn lease_all(&mut self) {
        while !self.clients.unleased.is_empty() {
            let (clients, telemetry) = (&mut self.clients, &mut self.telemetry);
            self.workers.lease_unleased(clients, telemetry);
            self.pick_up();
        }
    }

    /// All workers are replaced: each client moves once.
    fn reload(&mut self) {
        self.target.generation.0 += 1;
        assert!(self.workers.pool.reload(self.target.clone()));
        while !self.workers.pool.is_settled() {
            self.reconcile();
            while self.workers.is_moving() {
                let (clients, telemetry) = (&mut self.clients, &mut self.telemetry);
                self.workers
                    .move_part(clients, telemetry, &self.poller, self.now);
                self.lease_all();
            }
            self.end_retired();
        }
    }

    /// Workers that retire release their slots and exit.
    fn end_retired(&mut self) {
        let retired = self.workers.pool.members();
        let retired = retired.filter(|m| matches!(m.state, MemberState::Draining { .. }));
        for id in retired.map(|member| member.id).collect::<Vec<_>>() {
            let mut worker = self.workers.all.remove(&id).expect("it runs");
            for slot in 0..worker.leases.used() {
                let report = worker.leases.released(slot, &worker.shm);
                assert!(
                    matches!(
                        report,
                        SlotReport::AlreadyRevoked | SlotReport::Contradiction
                    ),
                    "{report:?}"
                );
            }
            assert_eq!(
                worker.leases.free_slots(),
                worker.shm.layout().slots() as usize
            );
            self.workers.pool.exited(id, true, self.now);
        }
    }

    /// A worker dies. Returns the number of its clients, which others get.
    pub(crate) fn kill(&mut self) -> usize {
        let first = self.workers.ready().next().expect("one is ready").id;
        let worker = self.workers.all.remove(&first).expect("it runs");
        let record = worker.shm_record();
        let orphan = Rc::new(OrphanedShm::new(record, worker.shm, None));
        let recovery = self
            .clients
            .recover_left(&orphan, worker.leases, None, false);
        let moved = self
            .clients
            .recover(recovery, &mut self.telemetry, self.now);
        self.workers.pool.exited(first, true, self.now);
        self.lease_all();
        moved
    }

    /// Returns the number of clients of each worker, in the order of their seats.
    fn shares(&self) -> Vec<usize> {
        let mut workers: Vec<&Worker> = self.workers.ready().collect();
        workers.sort_by_key(|worker| worker.seat);
        let clients = |worker: &&Worker| worker.leases.clients();
        workers.iter().map(clients).collect()
    }

    /// Fails unless each client has one lease.
    fn check(&self, clients: usize) {
        assert_eq!(self.clients.count(), clients as u64);
        assert_eq!(self.shares().iter().sum::<usize>(), clients);
        let mut ids: Vec<u64> = self.workers.leased().map(|client| client.id.0).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), clients);
    }
}

/// Costs of each decision, in ns of CPU time.
#[derive(Clone, Copy, Debug, Default)]
struct Costs {
    connect: f64,
    replace: f64,
    reload: f64,
    kill: f64,
}

impl Costs {
    /// The decisions, by name.
    fn decisions(&self) -> [(&'static str, f64); 4] {
        [
            ("connects", self.connect),
            ("leaves, another connects", self.replace),
            ("moves in a reload", self.reload),
            ("moves after a death", self.kill),
        ]
    }
}

/// Returns the result of `run`, with the ns of CPU time for each of `count` decisions.
fn timed<T>(count: impl Fn(&T) -> usize, run: impl FnOnce() -> T) -> (T, f64) {
    let before = clock::thread_cpu();
    let result = run();
    let time = clock::thread_cpu() - before;
    let count = count(&result);
    (result, time as f64 / count as f64)
}

/// Returns the memory of this process in bytes: the heap and pages of shared memory.
fn memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("/proc");
    let is_counted = |line: &&str| line.starts_with("RssAnon:") || line.starts_with("RssShmem:");
    let kib = |line: &str| line.split_whitespace().nth(1)?.parse::<u64>().ok();
    let lines = status.lines().filter(is_counted);
    lines.filter_map(kib).sum::<u64>() * 1024
}

/// Returns the bytes of each client, with the tables of the workers. None of it is freed:
/// the next simulation would use it, and seem to need less.
fn bytes_of(dispatch: Dispatch, workers: usize, clients: usize) -> f64 {
    let mut simulation = Simulation::new(dispatch, workers, clients);
    let before = memory();
    simulation.connect(clients);
    let bytes = memory().saturating_sub(before);
    mem::forget(simulation);
    bytes as f64 / clients as f64
}

/// Simulates the life of this number of clients, and checks it.
fn simulate(dispatch: Dispatch, workers: usize, clients: usize) -> Costs {
    let mut simulation = Simulation::new(dispatch, workers, clients);
    let (_, connect) = timed(|()| clients, || simulation.connect(clients));
    simulation.check(clients);
    let shares = simulation.shares();
    let (most, least) = (shares.iter().max(), shares.iter().min());
    let is_even = most
        .zip(least)
        .is_some_and(|(most, least)| most - least <= 1);
    assert!(is_even, "{dispatch:?}: {shares:?}");
    let (_, replace) = timed(|()| clients, || simulation.replace(clients));
    simulation.check(clients);
    let shares = simulation.shares();
    let (_, reload) = timed(|()| clients, || simulation.reload());
    simulation.check(clients);
    assert_eq!(simulation.shares(), shares, "each seat keeps its clients");
    let (moved, kill) = timed(|moved| *moved, || simulation.kill());
    assert_eq!(moved, shares[0]);
    simulation.check(clients);
    Costs {
        connect,
        replace,
        reload,
        kill,
    }
}

/// Returns the medians of several simulations: the shorter they are, the more.
fn medians(dispatch: Dispatch, workers: usize, clients: usize) -> Costs {
    let rounds = (100_000 / clients).clamp(3, 15);
    let all: Vec<Costs> = (0..rounds)
        .map(|_| simulate(dispatch, workers, clients))
        .collect();
    let median = |of: fn(&Costs) -> f64| {
        let mut values: Vec<f64> = all.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    Costs {
        connect: median(|costs| costs.connect),
        replace: median(|costs| costs.replace),
        reload: median(|costs| costs.reload),
        kill: median(|costs| costs.kill),
    }
}

/// The measured policies and numbers of workers.
const POLICIES: [Dispatch; 2] = [Dispatch::RoundRobin, Dispatch::LeastLoaded];
const WORKERS: [usize; 3] = [2, 16, 64];

/// Returns a row of the table, and what costs much more than with the fewest clients.
fn row(case: (Dispatch, usize, usize), bytes: f64, least: &mut Option<Costs>) -> Vec<String> {
    let (dispatch, workers, clients) = case;
    let costs = medians(dispatch, workers, clients);
    let least = least.get_or_insert(costs).decisions();
    let mut row = format!("| {dispatch:?} | {workers} | {clients} |");
    let mut worse = Vec::new();
    for ((name, cost), (_, least)) in costs.decisions().into_iter().zip(least) {
        let (thousands, ratio) = (1e6 / cost, cost / least);
        row.push_str(&format!(" {thousands:.0} ({ratio:.2}) |"));
        if ratio > WORSE {
            worse.push(format!("{case:?}: {name}: {ratio:.1}"));
        }
    }
    println!("{row} {bytes:.0} |");
    worse
}

/// Prints the table. Returns what grows worse than linearly.
fn measure(most: usize) -> Vec<String> {
    println!(
        "Thousands of decisions a second; the ratio of their costs to those with the fewest clients."
    );
    let names = Costs::default().decisions().map(|(name, _)| name);
    println!(
        "| dispatch | workers | clients | {} | bytes |",
        names.join(" | ")
    );
    println!("|{}", "---|".repeat(names.len() + 4));
    let numbers = [most / 100, most / 10, most];
    let cases = POLICIES.map(|dispatch| WORKERS.map(|workers| (dispatch, workers)));
    let cases: Vec<_> = cases.into_iter().flatten().collect();
    // First, before other simulations free memory.
    let bytes_of = |(dispatch, workers)| numbers.map(|n| bytes_of(dispatch, workers, n));
    let bytes: Vec<_> = cases.iter().copied().map(bytes_of).collect();
    let mut worse = Vec::new();
    for ((dispatch, workers), bytes) in cases.into_iter().zip(bytes) {
        let mut least = None;
        for (clients, bytes) in numbers.into_iter().zip(bytes) {
            worse.extend(row((dispatch, workers, clients), bytes, &mut least));
        }
    }
    worse
}

#[test]
fn simulated_clients_are_kept_and_spread_at_linear_costs() {
    let Ok(most) = std::env::var("SIMULATED_CLIENTS") else {
        for dispatch in POLICIES {
            simulate(dispatch, 2, 3_200);
            simulate(dispatch, 16, 3_200);
        }
        return;
    };
    let most: NonZeroU32 = most.parse().expect("a number");
    let worse = measure(most.get() as usize);
    assert!(worse.is_empty(), "worse than linear: {worse:#?}");
}
