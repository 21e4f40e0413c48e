//! Apps and everything at once, at random: and every request of every client is answered once, in order.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fdpassd::proto::control::Status;
use fdpassd::testing::{Client, Running, ServiceManager, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use super::variable;
use crate::app_deaths::{Habits, LISTEN, Shoppers, apps, config, end, journal, kill_9};
use crate::common::random::Random;
use crate::common::restart::{self, How, wait_for_confirmed_store};
use crate::common::{FDPASSD, kernel, let_pass, while_idle};

const CLIENTS: u64 = 144;

/// Requests that one app has at a time.
const CONCURRENCY: usize = 64;

/// The fewest processes that even a short run kills.
const LEAST_KILLED: u64 = 10;

const LIMITS: &str = "limits.stall-timeout = \"1s\"\nlimits.request-timeout = \"none\"\n\
    limits.drain-timeout = \"20s\"\nlimits.restart-grace = \"50ms\"\n";

/// The source of the faults.
struct Havoc<'a> {
    random: Random,
    manager: &'a ServiceManager,
    shoppers: &'a Shoppers,
    /// How often what was done.
    done: BTreeMap<String, u64>,
    /// Processes that were killed.
    killed: u64,
    /// Processes killed after the last master that was. Some may not have ended yet.
    victims: Vec<u32>,
    /// The most requests that were away at one worker.
    most_away: u64,
    /// The most clients without a worker when a master was killed.
    most_waiting: u64,
    /// The most workers that were leaving when a master was killed.
    most_leaving: usize,
    /// Workers that have ended with their masters.
    ended: u64,
    /// Clients of the control socket that wait for a reply.
    waiting: Vec<Client>,
    held: Vec<u64>,
}

impl Havoc<'_> {
    /// Does something.
    fn act(&mut self, daemon: Running) -> Running {
        let status = daemon.status();
        let away = status.workers.iter().map(|worker| worker.away).max();
        self.most_away = self.most_away.max(away.unwrap_or(0));
        match self.random.below(32) {
            0..6 => self.kill_one(&daemon, "app"),
            6..11 => self.kill_one(&daemon, "worker"),
            11..15 => self.kill_one(&daemon, "worker and app"),
            15..17 => self.kill_all(&daemon, "all apps"),
            17..19 => self.kill_all(&daemon, "all"),
            19..21 => self.ask(&daemon, "reload", json!({})),
            21 => self.ask(&daemon, "recycle", json!({})),
            22 => {
                let count = 1 + self.random.below(3);
                self.ask(&daemon, "scale", json!({ "count": count }));
            }
            23 => self.hold(&daemon, &status),
            24 => {
                let _ = daemon.ctl_with("drain", json!({ "mode": "queue" }));
                let_pass(Duration::from_millis(self.random.below(20)));
                let _ = daemon.ctl("undrain");
                self.note("drain");
            }
            25 => self.ask(&daemon, "rebalance", json!({})),
            26..29 => self.stop(&daemon),
            _ => return self.restart(daemon),
        }
        let_pass(Duration::from_millis(self.random.below(40)));
        daemon
    }

    fn note(&mut self, what: &str) {
        *self.done.entry(what.to_owned()).or_default() += 1;
    }

    fn kill(&mut self, pids: &[u32]) {
        self.killed += pids.len() as u64;
        self.victims.extend(pids);
        pids.iter().copied().for_each(kill_9);
    }

    fn kill_one(&mut self, daemon: &Running, what: &str) {
        let status = daemon.status();
        let pairs: Vec<[Option<u32>; 2]> = status
            .workers
            .iter()
            .map(|worker| [worker.pid, worker.app.as_ref().map(|app| app.pid)])
            .collect();
        let [worker, app] = self.random.pick(&pairs);
        let mut victims: Vec<u32> = match what {
            "app" => vec![app],
            "worker" => vec![worker],
            _ => vec![worker, app],
        }
        .into_iter()
        .flatten()
        .collect();
        if self.random.once_in(2) {
            victims.reverse();
        }
        self.kill(&victims);
        self.note(what);
    }

    fn kill_all(&mut self, daemon: &Running, what: &str) {
        let mut victims = apps(daemon.directory());
        if what == "all" {
            victims.extend(daemon.worker_pids());
        }
        if self.random.once_in(2) {
            victims.reverse();
        }
        self.kill(&victims);
        self.note(what);
    }

    /// The reply comes at the end; this does not wait for it.
    fn ask(&mut self, daemon: &Running, verb: &'static str, params: serde_json::Value) {
        self.note(verb);
        if self.waiting.len() > 2 {
            self.waiting.remove(0);
        }
        self.waiting.push(daemon.ctl_request(verb, params));
    }

    fn hold(&mut self, daemon: &Running, status: &Status) {
        let ids = status.workers.iter().filter_map(|worker| worker.id);
        let ids: Vec<u64> = ids.map(|id| id.0).collect();
        if let Some(id) = self.held.pop() {
            self.ask(daemon, "release", json!({ "worker": id }));
        } else if !ids.is_empty() {
            let id = self.random.pick(&ids);
            self.ask(daemon, "hold", json!({ "worker": id }));
            self.held.push(id);
        }
    }

    /// Stops a process for a while.
    fn stop(&mut self, daemon: &Running) {
        let processes = [apps(daemon.directory()), daemon.worker_pids()].concat();
        if processes.is_empty() {
            return;
        }
        let pid = Pid::from_raw(self.random.pick(&processes).cast_signed());
        // It may have ended by now.
        let _ = kill(pid, Signal::SIGSTOP);
        let_pass(Duration::from_millis(20 + self.random.below(200)));
        let _ = kill(pid, Signal::SIGCONT);
        self.note("stop");
    }

    /// Ends all that it has begun.
    fn settle(&mut self, daemon: &Running) {
        for id in std::mem::take(&mut self.held) {
            self.ask(daemon, "release", json!({ "worker": id }));
        }
        for mut client in std::mem::take(&mut self.waiting) {
            // Some requests are refused, such as that of a worker that is gone.
            let _ = client.reply();
        }
        // Its requester may have left.
        daemon.wait_until("no reload is in progress", |status| !status.reloading);
        daemon.wait_for_workers();
    }

    /// Has another master take over.
    fn restart(&mut self, daemon: Running) -> Running {
        self.settle(&daemon);
        let how = self.random.pick(&How::ALL);
        let _door = self.shoppers.close_door();
        if how == How::Kill {
            wait_for_confirmed_store(&daemon);
            match self.random.below(6) {
                0 => self.kill_one(&daemon, "worker"),
                1 => self.kill_one(&daemon, "worker and app"),
                2 => self.kill_all(&daemon, "all"),
                // Workers leave when the master dies.
                3 => self.ask(&daemon, "recycle", json!({})),
                4 => self.ask(&daemon, "reload", json!({})),
                _ => {}
            }
            let_pass(Duration::from_millis(self.random.below(150)));
            // Only the master has the clients of a dead worker until it has packed them. It need not have leased them,
            // and their apps need not have ended.
            let victims = std::mem::take(&mut self.victims);
            daemon.wait_until("each death is known", |status| {
                let pids = status.workers.iter().flat_map(|worker| {
                    let app = worker.app.as_ref().map(|app| app.pid);
                    [worker.pid, app].into_iter().flatten()
                });
                let mut pids = pids.chain(status.leaving.iter().map(|worker| worker.pid));
                let is_dead = |pid| victims.contains(&pid) || kernel::is_over(pid);
                !pids.any(is_dead)
            });
            let status = daemon.status();
            let workers = status.workers.iter().map(|worker| worker.clients);
            self.most_waiting = self
                .most_waiting
                .max(status.clients.saturating_sub(workers.sum()));
            self.killed += 1;
            self.most_leaving = self.most_leaving.max(status.leaving.len());
            // Their replies would be those of a master that is dead.
            self.waiting.clear();
        }
        let status = daemon.status();
        self.ended += (status.workers.len() + status.leaving.len()) as u64;
        self.note(&format!("{how:?} the master"));
        restart::restart(self.manager, daemon, how, Path::new(FDPASSD))
    }
}

/// Kills of apps, workers, both, all and masters, with stops, reloads, recycling, holding, draining, scaling,
/// rebalancing, restarts and upgrades among them, under clients whose requests take up to 60 ms in their apps. Some
/// leave before the answer.
///
/// Idempotent requests are answered right and in order, but for one that was executing at two deaths, which has
/// crashed. Others are answered with their result or `crashed`, and have run at most once, and once if there is a
/// result. No client is lost; no process and no descriptor is left.
///
/// `CHAOS_SEED`, `CHAOS_SECONDS`: as in the test of native methods.
#[test]
fn requests_of_apps_are_answered_once_under_random_faults() {
    let Some(config) = config(2, CONCURRENCY, &format!("{LIMITS}{LISTEN}")) else {
        return;
    };
    let random = Random::new("CHAOS_SEED");
    let duration = Duration::from_secs(variable("CHAOS_SECONDS").unwrap_or(6));
    let manager = ServiceManager::new();
    let mut daemon = manager.setup(FDPASSD, &config).start().expect("it serves");
    wait_for_confirmed_store(&daemon);
    // At the end the last master has taken over as well.
    daemon = restart::restart(&manager, daemon, How::Term, Path::new(FDPASSD));
    // Before, the master has the pipe of the question to the service manager.
    wait_for_confirmed_store(&daemon);
    let descriptors = while_idle(&daemon, || kernel::descriptors(daemon.pid()));
    let habits = Habits {
        longest: 60,
        largest: 300_000,
        leaves_once_in: 100,
    };
    let shoppers = Shoppers::start_with(&daemon, CLIENTS, habits, &random);
    let mut havoc = Havoc {
        random: random.part(CLIENTS),
        manager: &manager,
        shoppers: &shoppers,
        done: BTreeMap::new(),
        killed: 0,
        victims: Vec::new(),
        most_away: 0,
        most_waiting: 0,
        most_leaving: 0,
        ended: 0,
        waiting: Vec::new(),
        held: Vec::new(),
    };
    shoppers.wait_for(CLIENTS);
    let begin = Instant::now();
    while (begin.elapsed() < duration || havoc.killed < LEAST_KILLED) && !shoppers.has_failed() {
        daemon = havoc.act(daemon);
    }
    havoc.settle(&daemon);
    let _ = daemon.ctl_with("scale", json!({"count": 2}));
    let (done, killed, most_away) = (havoc.done, havoc.killed, havoc.most_away);
    let (most_waiting, most_leaving, ended) = (havoc.most_waiting, havoc.most_leaving, havoc.ended);
    let connections = shoppers.connections();
    let outcome = shoppers.finish(&journal(&daemon));
    let status = daemon.wait_until("all clients have left", |status| {
        (status.clients, status.leaving.len(), status.workers.len()) == (0, 0, 2)
    });
    println!(
        "{done:?}\n{killed} processes killed; {outcome:?} on {connections} connections; {} run again, {} deaths, {} moves, \
         {most_away} away at once. When a master was killed, {most_waiting} clients had no worker, and {most_leaving} \
         workers were leaving",
        status.reruns_total, status.deaths_total, status.moved_total
    );
    outcome.assert_rerun(status.reruns_total, CONCURRENCY as u64 * ended);
    assert!(most_away > 1, "{most_away}");
    assert!(status.reruns_total > 0 && outcome.crashed > 0);
    daemon = restart::restart(&manager, daemon, How::Term, Path::new(FDPASSD));
    check_rest(&daemon, &descriptors);
    end(daemon, CLIENTS);
}

/// There is one app for each worker, and the master has no descriptor more than at first.
fn check_rest(daemon: &Running, descriptors: &[(PathBuf, String)]) {
    daemon.wait_for_workers();
    wait_for_confirmed_store(daemon);
    eventually("each process has its place", || {
        let mut running = apps(daemon.directory());
        let status = daemon.status();
        let known = status
            .workers
            .iter()
            .filter_map(|worker| worker.app.as_ref());
        let mut known: Vec<u32> = known.map(|app| app.pid).collect();
        running.sort_unstable();
        known.sort_unstable();
        (running == known && running.len() == 2).then_some(())
    });
    let left = while_idle(daemon, || kernel::descriptors(daemon.pid()));
    assert_eq!(left.len(), descriptors.len(), "{descriptors:?}\n{left:?}");
}
