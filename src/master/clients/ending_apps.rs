//! Clients whose requests an app was executing when its worker died, while the app has not ended.
//!
//! An app is killed with its worker, but it ends a moment later, or much later if a system call does not return. Its
//! requests may run again, and later requests of the same clients may run, only when the first run is over. So these
//! clients wait here; all other clients of the worker are leased at once. If the app has not ended after
//! [`KILL_TIMEOUT`], its requests are answered with `timeout` and do not run again.
//!
//! If the app has a cgroup of its own, everything in it is killed, and must end as well: what the app has started may
//! do its work. Such an app waits here until its cgroup is removed, also without clients.

use std::io;
use std::time::{Duration, Instant};

use crate::master::clients::Clients;
use crate::master::clients::client::Unleased;
use crate::master::telemetry::Telemetry;
use crate::master::telemetry::counters::Reason;
use crate::proto::names::ClientId;
use crate::proto::text::Counted;
use crate::sys::cgroup::AppCgroup;
use crate::sys::process::{ProcessHandle, ProcessIdentity};

/// The first wait and the longest wait between two checks. The end of a child, by SIGCHLD, is another reason to check.
const FIRST_WAIT: Duration = Duration::from_millis(2);
const MAX_WAIT: Duration = Duration::from_millis(100);

/// How long an app that was killed may take to end.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

/// The app of a dead worker, and the clients whose requests it was executing.
#[derive(Debug)]
pub(crate) struct EndingApp {
    pid: u32,
    /// The app's process; `None` if it has ended, and only processes that it has started may still run.
    process: Option<ProcessHandle>,
    cgroup: Option<AppCgroup>,
    clients: Vec<Unleased>,
    /// Why the clients will be leased again.
    reason: Reason,
    until: Instant,
    due: Instant,
    wait: Duration,
}

impl EndingApp {
    fn new(pid: u32, clients: Vec<Unleased>, reason: Reason, now: Instant) -> EndingApp {
        EndingApp {
            pid,
            process: None,
            cgroup: None,
            clients,
            reason,
            until: now + KILL_TIMEOUT,
            due: now + FIRST_WAIT,
            wait: FIRST_WAIT,
        }
    }

    /// Returns the log line for an app that has not ended in time.
    fn late_line(&self) -> String {
        let subject = match self.process {
            None => "a process in the cgroup of app",
            Some(_) => "app",
        };
        let (pid, seconds) = (self.pid, KILL_TIMEOUT.as_secs());
        let line = format!("{subject} {pid} was killed and has not ended after {seconds} s");
        match self.clients.len() {
            0 => line,
            1 => format!("{line}; 1 request gets timeout"),
            count => format!("{line}; {count} requests get timeout"),
        }
    }

    /// Schedules the next check, which is not the first one.
    fn postpone(&mut self, now: Instant) {
        self.wait = self.wait.saturating_mul(2).min(MAX_WAIT);
        self.due = self.until.min(now + self.wait);
    }

    /// Returns whether the app has ended, with everything in its cgroup, which is removed then.
    fn has_ended(&self) -> bool {
        let process = self.process.as_ref();
        process.is_none_or(ProcessHandle::has_ended)
            && self.cgroup.as_ref().is_none_or(AppCgroup::try_remove)
    }
}

/// Kills an app whose worker has died, with its process group. Returns `None` if it has ended.
fn kill(app: ProcessIdentity) -> io::Result<Option<ProcessHandle>> {
    let process = ProcessHandle::open(app)?;
    if let Some(process) = &process {
        process.kill();
    }
    Ok(process.filter(|process| !process.has_ended()))
}

/// Has the next worker answer the requests with `timeout`, without running them.
fn give_up(clients: &mut [Unleased]) {
    for unleased in clients {
        unleased.flags.timed_out = true;
    }
}

impl Clients {
    /// Queues clients whose requests were executing when their worker died: at once, or when the worker's app, if it
    /// has one, has ended.
    pub(super) fn requeue_interrupted(
        &mut self,
        mut clients: Vec<Unleased>,
        app: Option<ProcessIdentity>,
        reason: Reason,
        telemetry: &mut Telemetry,
        now: Instant,
    ) {
        let Some(app) = app else {
            // An app that its worker could not report has no requests.
            self.end_left_apps(now);
            self.requeue(clients.into_iter().map(Ok), reason, telemetry);
            return;
        };
        let cgroup = self.cgroups_of_apps.kill(app.pid);
        let process = kill(app).unwrap_or_else(|e| {
            log::error!("cannot watch the end of an app, so its requests do not run again: {e}");
            give_up(&mut clients);
            None
        });
        let has_ended = process.is_none() && cgroup.is_none();
        if has_ended || self.is_closing {
            let clients = std::mem::take(&mut clients);
            self.requeue(clients.into_iter().map(Ok), reason, telemetry);
        }
        if !clients.is_empty() || cgroup.is_some() {
            log::debug!(
                "{} until app {} has ended",
                Counted(clients.len(), "waiting client"),
                app.pid
            );
            self.ending_apps.push(EndingApp {
                process,
                cgroup,
                ..EndingApp::new(app.pid, clients, reason, now)
            });
        }
    }

    /// Kills an app whose clients are left to the next master, with everything in its cgroup.
    pub(crate) fn end_app(&mut self, app: Option<ProcessIdentity>, now: Instant) {
        let Some(app) = app else {
            return self.end_left_apps(now);
        };
        let _ = kill(app);
        if let Some(cgroup) = self.cgroups_of_apps.kill(app.pid) {
            self.push_cgroup(cgroup, now);
        }
    }

    /// Ends what is left of apps that are gone: of a daemon that was killed, or of a worker that could not report its
    /// app.
    pub(crate) fn end_left_apps(&mut self, now: Instant) {
        for cgroup in self.cgroups_of_apps.kill_left() {
            if self.ending_apps.iter().all(|app| app.pid != cgroup.pid()) {
                self.push_cgroup(cgroup, now);
            }
        }
    }

    fn push_cgroup(&mut self, cgroup: AppCgroup, now: Instant) {
        let ending = EndingApp::new(cgroup.pid(), Vec::new(), Reason::Death, now);
        self.ending_apps.push(EndingApp {
            cgroup: Some(cgroup),
            ..ending
        });
    }

    /// Returns when these apps must be checked next.
    pub(crate) fn ending_apps_deadline(&self) -> Option<Instant> {
        self.ending_apps.iter().map(|ending| ending.due).min()
    }

    /// Has all apps checked at once, because a child of the master has ended.
    pub(crate) fn note_end_of_child(&mut self, now: Instant) {
        for ending in &mut self.ending_apps {
            (ending.due, ending.wait) = (now, FIRST_WAIT);
        }
    }

    /// Queues the clients of apps that have ended, or have not ended in time. A check costs system calls, so an app is
    /// checked only if that is due.
    pub(crate) fn check_ending_apps(&mut self, telemetry: &mut Telemetry, now: Instant) {
        if self.ending_apps_deadline().is_none_or(|due| due > now) {
            return;
        }
        for mut ending in std::mem::take(&mut self.ending_apps) {
            if ending.due > now {
                self.ending_apps.push(ending);
                continue;
            }
            if !ending.has_ended() {
                if ending.until > now {
                    ending.postpone(now);
                    self.ending_apps.push(ending);
                    continue;
                }
                log::error!("{}", ending.late_line());
                give_up(&mut ending.clients);
            }
            self.requeue(ending.clients.into_iter().map(Ok), ending.reason, telemetry);
        }
    }

    /// Queues the clients of all apps: the master exits, and the next one could not wait for them.
    pub(crate) fn give_up_ending_apps(&mut self, telemetry: &mut Telemetry, now: Instant) {
        for ending in &mut self.ending_apps {
            (ending.until, ending.due) = (now, now);
        }
        self.check_ending_apps(telemetry, now);
    }

    /// Returns the clients without a worker whose bytes are known: those that can be leased, and those that wait for
    /// the end of an app.
    pub(crate) fn all_unleased(&self) -> impl Iterator<Item = &Unleased> {
        let ending = self.ending_apps.iter().flat_map(|ending| &ending.clients);
        self.unleased.iter().chain(ending)
    }

    /// Returns the same clients, to be changed.
    pub(crate) fn all_unleased_mut(&mut self) -> impl Iterator<Item = &mut Unleased> {
        let ending = self.ending_apps.iter_mut();
        let clients = ending.flat_map(|ending| &mut ending.clients);
        self.unleased.iter_mut().chain(clients)
    }

    /// Returns whether a client waits for the end of an app.
    pub(crate) fn awaits_app(&self) -> bool {
        let mut ending = self.ending_apps.iter();
        ending.any(|ending| !ending.clients.is_empty())
    }

    /// Removes and returns one of these clients.
    pub(crate) fn take_unleased(&mut self, id: ClientId) -> Option<Unleased> {
        let is_it = |unleased: &Unleased| unleased.client.id == id;
        if let Some(index) = self.unleased.iter().position(is_it) {
            return self.unleased.remove(index);
        }
        let mut ending_apps = self.ending_apps.iter_mut();
        ending_apps.find_map(|ending| {
            let index = ending.clients.iter().position(is_it)?;
            Some(ending.clients.remove(index))
        })
    }

    /// Removes and returns all clients that wait for the end of an app. The apps with cgroups stay.
    pub(super) fn take_ending(&mut self) -> Vec<Unleased> {
        let ending = self.ending_apps.iter_mut();
        let clients = ending.flat_map(|ending| std::mem::take(&mut ending.clients));
        let clients = clients.collect();
        self.ending_apps.retain(|ending| ending.cgroup.is_some());
        clients
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::process::CommandExt;
    use std::process::{Child, Command};

    use super::*;
    use crate::config::Config;
    use crate::master::clients::app_cgroups::CgroupsOfApps;
    use crate::master::clients::client::Client;
    use crate::master::clients::leases::recovery::Interrupted;
    use crate::shm::Layout;

    fn app() -> (Child, ProcessIdentity) {
        let mut sleep = Command::new("sleep");
        let child = sleep.arg("1000").process_group(0).spawn().expect("sleep");
        let identity = ProcessIdentity::of_descendant(child.id(), std::process::id());
        (child, identity.expect("it is a child"))
    }

    fn clients() -> Clients {
        let mut clients = Clients::new(&Config::default(), 10, Layout::new(4, 4096));
        clients.add(4);
        clients
    }

    fn unleased(id: u64) -> Unleased {
        Unleased::new(Client::on_null(id), 0)
    }

    fn interrupted() -> Option<Interrupted> {
        Some(Interrupted {
            method: 1,
            crash_count: 1,
            is_timed_out: false,
        })
    }

    #[test]
    fn interrupted_requests_wait_for_the_end_of_their_app() {
        let (mut child, identity) = app();
        let (mut clients, mut telemetry, now) = (clients(), Telemetry::new(), Instant::now());
        let left = vec![(unleased(1), interrupted()), (unleased(2), None)];
        let kept = clients.requeue_left(left, Some(identity), Reason::Death, &mut telemetry, now);
        assert_eq!((kept, clients.all_unleased().count()), (2, 2));
        assert_eq!(
            clients.unleased[0].client.id,
            ClientId(2),
            "it waits for no app"
        );
        while clients.unleased.len() < 2 {
            assert!(now.elapsed() < Duration::from_secs(10), "it was killed");
            clients.note_end_of_child(now);
            clients.check_ending_apps(&mut telemetry, now);
        }
        let status = child.wait().expect("it is ours");
        assert!(!status.success() && clients.ending_apps.is_empty());
        assert!(!clients.unleased[1].flags.timed_out, "it may run again");
        // Its app is gone, so the client does not wait.
        let left = vec![(unleased(3), interrupted())];
        clients.requeue_left(left, Some(identity), Reason::Death, &mut telemetry, now);
        assert_eq!(clients.unleased.len(), 3);
    }

    #[test]
    fn interrupted_requests_wait_for_all_in_the_cgroup() {
        let (mut child, identity) = app();
        let (mut clients, mut telemetry, now) = (clients(), Telemetry::new(), Instant::now());
        // A directory that looks like the cgroup of an app that has started another process.
        let place = tempfile::tempdir().expect("a directory");
        let cgroup = place.path().join(format!("app-{}", identity.pid));
        let populate = |count: u32| {
            let text = format!("populated {count}\nfrozen 0\n");
            fs::write(cgroup.join("cgroup.events"), text).expect("it is ours");
        };
        fs::create_dir(&cgroup).expect("it is ours");
        populate(1);
        clients.cgroups_of_apps = CgroupsOfApps::below(place.path());
        let left = vec![(unleased(1), interrupted()), (unleased(2), None)];
        clients.requeue_left(left, Some(identity), Reason::Death, &mut telemetry, now);
        child.wait().expect("it is ours");
        clients.note_end_of_child(now);
        clients.check_ending_apps(&mut telemetry, now);
        assert_eq!(
            clients.unleased.len(),
            1,
            "its app has ended, another has not"
        );
        populate(0);
        clients.check_ending_apps(&mut telemetry, now);
        assert_eq!(clients.unleased.len(), 1, "the next check is not due");
        let now = now + MAX_WAIT;
        clients.check_ending_apps(&mut telemetry, now);
        assert_eq!((clients.unleased.len(), clients.ending_apps.len()), (2, 0));
        assert!(!clients.unleased[1].flags.timed_out, "it may run again");

        populate(1);
        let left = vec![(unleased(3), interrupted())];
        clients.requeue_left(left, Some(identity), Reason::Death, &mut telemetry, now);
        clients.close_without_worker(&mut telemetry);
        assert_eq!(clients.all_unleased().count(), 0, "closed at the stop");
        assert_eq!(clients.ending_apps.len(), 1, "which waits for the cgroup");
        clients.check_ending_apps(&mut telemetry, now + KILL_TIMEOUT);
        assert!(clients.ending_apps.is_empty(), "not for ever");
    }

    #[test]
    fn requests_of_an_app_that_does_not_end_are_given_up() {
        let (mut child, identity) = app();
        let (mut clients, mut telemetry, now) = (clients(), Telemetry::new(), Instant::now());
        let process = ProcessHandle::open(identity).expect("a pidfd");
        assert!(process.is_some(), "it runs");
        let callers = vec![unleased(1), unleased(2)];
        clients.ending_apps.push(EndingApp {
            process,
            due: now,
            ..EndingApp::new(identity.pid, callers, Reason::Death, now)
        });
        let half = now + KILL_TIMEOUT / 2;
        clients.check_ending_apps(&mut telemetry, half);
        assert!(clients.unleased.is_empty());
        assert!(clients.ending_apps_deadline() <= Some(half + MAX_WAIT));
        assert!(clients.take_unleased(ClientId(2)).is_some(), "kicked");
        clients.check_ending_apps(&mut telemetry, now + KILL_TIMEOUT);
        assert_eq!((clients.unleased.len(), clients.ending_apps.len()), (1, 0));
        assert!(clients.unleased[0].flags.timed_out, "it never runs again");
        child
            .kill()
            .and_then(|()| child.wait())
            .expect("it is ours");
    }
}
