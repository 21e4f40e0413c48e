//! Random faults and changes for the daemon.

use std::path::Path;
use std::time::{Duration, Instant};

use fdpassd::proto::control::{WorkerState, WorkerStatus};
use fdpassd::testing::{Client, Running, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use super::plan::Plan;
use super::witness::Witness;
use crate::common::let_pass;
use crate::common::random::Random;

/// Within this time a client may be blamed for two deaths, and not for a third.
const MINUTE: Duration = Duration::from_secs(61);

/// Configurations that must be rejected.
const BAD: [&str; 6] = [
    "workers.count = 0",
    "listen = [",
    "limits.max-frame = \"1TB\"",
    "x = 1",
    "listen = [\"127.0.0.1:0\", \"192.0.2.1:1\"]",
    "control.socket = \"{dir}/another.sock\"",
];

/// The source of the faults, with the changes under way.
pub struct Havoc<'a> {
    pub daemon: &'a Running,
    pub plan: Plan,
    pub random: Random,
    pub witness: &'a mut Witness,
    /// Stopped workers, and until when.
    stopped: Vec<(u32, Instant)>,
    /// Held workers, and until when.
    held: Vec<(u64, Instant)>,
    /// A reload whose verdict has not come yet.
    reload: Option<(Client, Instant)>,
    /// A client that waits for another reply.
    waiting: Vec<Client>,
    /// A worker whose death the daemon must attribute to itself.
    doomed: Option<u32>,
}

impl Havoc<'_> {
    pub fn new<'a>(
        daemon: &'a Running,
        plan: Plan,
        random: Random,
        witness: &'a mut Witness,
    ) -> Havoc<'a> {
        let (stopped, held, waiting) = (Vec::new(), Vec::new(), Vec::new());
        Havoc {
            daemon,
            plan,
            random,
            witness,
            stopped,
            held,
            reload: None,
            waiting,
            doomed: None,
        }
    }

    /// Does something.
    pub fn act(&mut self) {
        self.catch_up(Instant::now());
        match self.random.below(32) {
            0..7 => self.signal("kill", Signal::SIGKILL),
            7 => self.kill_all(),
            8..10 => self.fault(),
            10..14 => self.stop(),
            14..18 => self.reload(),
            18 => self.reload_badly(),
            19..21 => {
                let count = 1 + self.random.below(4);
                self.ask("scale", json!({ "count": count }));
            }
            21 => {
                let name = self.random.pick(&["TTIN", "TTOU"]);
                self.daemon.signal(name);
                self.witness.note("step", name);
            }
            22..24 => self.ask("recycle", json!({})),
            24 => {
                if let Some((id, _)) = self.ready() {
                    self.ask("recycle", json!({ "worker": id }));
                }
            }
            25..28 => self.hold(),
            28..30 => self.ask(
                "rebalance",
                json!({ "dry_run": self.random.clone().once_in(2) }),
            ),
            _ => {
                // No wait for clients here: they never all leave.
                let _ = self.daemon.ctl_with("drain", json!({ "mode": "queue" }));
                let_pass(Duration::from_millis(self.random.below(20)));
                let _ = self.daemon.ctl("undrain");
                self.witness.note("drain", "and undrain");
            }
        }
        let longest = self.random.pick(&[1, 30, 100]);
        let_pass(Duration::from_millis(self.random.below(longest)));
    }

    /// Ends all that it has begun.
    pub fn finish(mut self) {
        self.stopped
            .iter_mut()
            .for_each(|(_, until)| *until = Instant::now());
        self.held
            .iter_mut()
            .for_each(|(_, until)| *until = Instant::now());
        eventually("the last reload has its verdict", || {
            self.catch_up(Instant::now());
            self.reload.is_none().then_some(())
        });
    }

    /// Ends the faults that have lasted long enough.
    fn catch_up(&mut self, now: Instant) {
        self.witness.log.read();
        for (pid, _) in self.stopped.extract_if(.., |(_, until)| *until <= now) {
            // It may have been killed by now.
            let _ = kill(pid_of(pid), Signal::SIGCONT);
            self.witness.note("continue", pid);
        }
        let released: Vec<(u64, Instant)> = self
            .held
            .extract_if(.., |(_, until)| *until <= now)
            .collect();
        for (id, _) in released {
            self.ask("release", json!({ "worker": id }));
        }
        // Some hang up before there is an answer.
        let is_done = |client: &mut Client| client.has_something();
        self.waiting
            .retain_mut(|client| !is_done(client) && !self.random.once_in(10));
        if let Some((client, began)) = &mut self.reload {
            if client.has_something() {
                let verdict = client.reply().value();
                self.witness.note(
                    "verdict",
                    format!("after {:?}: {verdict:?}", began.elapsed()),
                );
                match verdict {
                    Ok(_) => *self.witness.done.entry("applied").or_default() += 1,
                    // Its workers were killed before they were ready, or stopped for longer than they may take.
                    Err(fault) => assert_eq!(fault.code(), "rolled_back", "{fault}"),
                }
                self.reload = None;
            } else {
                assert!(
                    began.elapsed() < Duration::from_secs(120),
                    "a reload has no verdict after 120 s"
                );
            }
        }
    }

    /// A process of the daemon: mostly one that serves, sometimes one that starts, or is on its way out.
    fn victim(&mut self) -> Option<u32> {
        let status = self.daemon.status();
        let any = self.random.once_in(6);
        let is_wanted = |state| any || matches!(state, WorkerState::Ready | WorkerState::Stalled);
        let seated = status
            .workers
            .iter()
            .filter(|worker| is_wanted(worker.state))
            .filter_map(|worker| worker.pid);
        let leaving = status
            .leaving
            .iter()
            .filter(|_| any)
            .map(|worker| worker.pid);
        let pids: Vec<u32> = seated.chain(leaving).collect();
        (!pids.is_empty()).then(|| self.random.pick(&pids))
    }

    /// A process that executes a request, if one can be seen.
    fn busy(&mut self) -> Option<u32> {
        let executing = |worker: &WorkerStatus| worker.pid.filter(|_| worker.executing > 0);
        let look = |_| self.daemon.status().workers.iter().find_map(executing);
        (0..20).find_map(look).or_else(|| self.victim())
    }

    /// A worker that serves: its id and its process.
    fn ready(&mut self) -> Option<(u64, u32)> {
        let ready = |status: fdpassd::proto::control::Status| -> Vec<(u64, u32)> {
            let ready = status
                .workers
                .into_iter()
                .filter(|worker| worker.state == WorkerState::Ready);
            ready
                .filter_map(|worker| Some((worker.id?.0, worker.pid?)))
                .collect()
        };
        let workers = ready(self.daemon.status());
        (!workers.is_empty()).then(|| self.random.pick(&workers))
    }

    fn signal(&mut self, what: &'static str, signal: Signal) {
        if let Some(pid) = self.victim() {
            // It may have ended by itself.
            let _ = kill(pid_of(pid), signal);
            self.witness.note(what, pid);
        }
    }

    fn kill_all(&mut self) {
        let pids = self.daemon.worker_pids();
        pids.iter().for_each(|pid| {
            let _ = kill(pid_of(*pid), Signal::SIGKILL);
        });
        self.witness.note("kill all", format!("{pids:?}"));
    }

    /// Whether a client may be blamed for what comes now: it was not lately, nor is it about to be.
    fn may_blame(&mut self) -> bool {
        let is_doomed = self
            .doomed
            .take_if(|pid| !Path::new(&format!("/proc/{pid}")).exists());
        let is_going_on = is_doomed.is_none() && self.doomed.is_some();
        self.witness.log.read();
        !is_going_on
            && self
                .witness
                .log
                .blamed
                .is_none_or(|at| at.elapsed() > MINUTE)
    }

    /// A fault of the process: the doing of the request that it executes.
    fn fault(&mut self) {
        if self.may_blame() {
            self.doomed = self.victim();
            if let Some(pid) = self.doomed {
                let _ = kill(pid_of(pid), Signal::SIGSEGV);
                self.witness.note("fault", pid);
            }
        }
    }

    /// May be longer than `request-timeout`, if no request was blamed lately.
    fn stop(&mut self) {
        let mut time = self.random.pick(&[5, 20, 60, 60, 150, 400]);
        let is_long = self.random.once_in(10) && self.may_blame();
        if is_long {
            time = 1_500;
        }
        let victim = if is_long { self.busy() } else { self.victim() };
        let Some(pid) = victim.filter(|pid| self.stopped.iter().all(|(stopped, _)| stopped != pid))
        else {
            return;
        };
        if is_long {
            self.doomed = Some(pid);
        }
        if kill(pid_of(pid), Signal::SIGSTOP).is_ok() {
            self.stopped
                .push((pid, Instant::now() + Duration::from_millis(time)));
            self.witness.note("stop", format!("{pid} for {time} ms"));
        }
    }

    fn reload(&mut self) {
        if self.reload.is_none() {
            let config = self.plan.config(&mut self.random);
            self.daemon.write_config(&config);
            self.reload = Some((self.daemon.ctl_request("reload", ()), Instant::now()));
            let words: Vec<&str> = config.split_whitespace().collect();
            self.witness.note("reload", words.join(" "));
        }
    }

    fn reload_badly(&mut self) {
        if self.reload.is_none() {
            let bad = self.random.pick(&BAD);
            let generation = self.daemon.status().generation;
            let fault = self.daemon.reload_with(bad).expect_err("it is bad");
            self.witness.note("bad reload", &fault);
            assert_eq!(fault.code(), "rejected", "{bad}: {fault}");
            assert_eq!(
                self.daemon.status().generation,
                generation,
                "{bad} was rejected"
            );
        }
    }

    /// For a while. It may be stopped, or in a long request, and then the answer takes its time.
    fn hold(&mut self) {
        if let Some((id, _)) = self.ready() {
            self.ask("hold", json!({ "worker": id }));
            self.held.push((
                id,
                Instant::now() + Duration::from_millis(self.random.below(300)),
            ));
        }
    }

    /// The reply comes at the end; this test does not wait for it.
    fn ask(&mut self, verb: &'static str, params: serde_json::Value) {
        self.witness.note(verb, &params);
        if self.waiting.len() > 2 {
            self.waiting.remove(0);
        }
        self.waiting.push(self.daemon.ctl_request(verb, params));
    }
}

impl Drop for Havoc<'_> {
    fn drop(&mut self) {
        for (pid, _) in &self.stopped {
            let _ = kill(pid_of(*pid), Signal::SIGCONT);
        }
    }
}

fn pid_of(pid: u32) -> Pid {
    Pid::from_raw(pid.cast_signed())
}
