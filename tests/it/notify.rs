//! Notifications of the service manager, word for word, on a socket in the place of systemd's.

mod reload;
mod socket;
mod start;

use std::fs;
use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use fdpassd::testing::{Running, Setup, TIMEOUT, eventually};
use tempfile::TempDir;

use crate::common::program::{Program, ctl_command};
use crate::common::{FDPASSD, kernel, let_pass, while_idle};

/// How the notification begins that a start may take longer.
const EXTENSION: &str = "EXTEND_TIMEOUT_USEC=";

/// A service manager that receives notifications, and reads them when a test asks for them.
struct Manager {
    socket: UnixDatagram,
    directory: TempDir,
}

impl Manager {
    fn new() -> Manager {
        let directory = tempfile::tempdir().expect("a directory");
        let socket = UnixDatagram::bind(directory.path().join("notify")).expect("the path is free");
        Manager { socket, directory }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("notify")
    }

    /// A daemon that it starts.
    fn setup(&self, config: &str) -> Setup {
        Setup::new(FDPASSD, config).variable("NOTIFY_SOCKET", self.path())
    }

    #[track_caller]
    fn start(&self, config: &str) -> Running {
        self.setup(config).start().expect("the daemon serves")
    }

    /// Waits for the next notification, that of a longer start aside.
    #[track_caller]
    fn next(&self) -> String {
        loop {
            let told = self.next_of_all();
            if !told.starts_with(EXTENSION) {
                return told;
            }
        }
    }

    /// Waits for the next notification.
    #[track_caller]
    fn next_of_all(&self) -> String {
        self.socket
            .set_read_timeout(Some(TIMEOUT))
            .expect("it is a time");
        receive(&self.socket).expect("the manager is told something")
    }

    /// Returns a notification that is already there, that of a longer start aside.
    fn pending(&self) -> Option<String> {
        self.socket.set_nonblocking(true).expect("it is a socket");
        let mut all = std::iter::from_fn(|| receive(&self.socket));
        let told = all.find(|told| !told.starts_with(EXTENSION));
        self.socket.set_nonblocking(false).expect("it is a socket");
        told
    }

    /// Waits for the next notification that is more than a status.
    #[track_caller]
    fn next_but_statuses(&self) -> String {
        loop {
            let told = self.next();
            if !told.starts_with("STATUS=") {
                return told;
            }
        }
    }

    /// Waits for this notification.
    #[track_caller]
    fn wait_for(&self, awaited: &str) {
        eventually(&format!("the manager is told {awaited:?}"), || {
            std::iter::from_fn(|| self.pending())
                .any(|told| told == awaited)
                .then_some(())
        });
    }
}

fn receive(socket: &UnixDatagram) -> Option<String> {
    let mut datagram = [0; 8192];
    // With a timeout a call is interrupted when the process is stopped and continued, see signal(7).
    let received = loop {
        match socket.recv(&mut datagram) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            received => break received,
        }
    };
    let length = received.ok()?;
    Some(String::from_utf8(datagram[..length].to_vec()).expect("it is text"))
}

/// A message that begins with these words and the time, which is now; what comes after.
#[track_caller]
fn after_time<'t>(told: &'t str, words: &str) -> &'t str {
    let rest = told
        .strip_prefix(words)
        .unwrap_or_else(|| panic!("{told:?} does not begin with {words:?}"));
    let (time, rest) = rest.split_once('\n').expect("there is more");
    let uptime = fs::read_to_string("/proc/uptime").expect("Linux has it");
    let now: f64 = uptime
        .split_once('.')
        .expect("seconds and hundredths")
        .0
        .parse()
        .expect("a number");
    let then = time.parse::<u64>().expect("microseconds") as f64 / 1e6;
    assert!(
        (now - 60.0..=now + 2.0).contains(&then),
        "{then} is not now, which is {now}"
    );
    rest
}

#[test]
fn the_manager_is_notified_of_start_clients_and_stop_in_order() {
    let manager = Manager::new();
    let mut daemon = manager.start("workers.count = 1");
    assert_eq!(
        manager.next(),
        "READY=1\nSTATUS=1 worker, 0 clients, generation 1"
    );
    let mut client = daemon.connect();
    client.call("ping", 1).expect("a result");
    assert_eq!(manager.next(), "STATUS=1 worker, 1 client, generation 1");
    drop(client);
    assert_eq!(manager.next(), "STATUS=1 worker, 0 clients, generation 1");
    daemon.ctl("drain").expect("it is drained");
    manager.wait_for(
        "STATUS=1 worker, 0 clients, generation 1; new clients are not accepted: the daemon is drained",
    );
    daemon.signal("TERM");
    assert_eq!(
        manager.next(),
        "STOPPING=1\nEXTEND_TIMEOUT_USEC=40000000\nSTATUS=1 worker, 0 clients, generation 1; stopping"
    );
    assert!(daemon.wait().success());
    // A stop that takes longer than a second has another status.
    let rest: Vec<String> = std::iter::from_fn(|| manager.pending()).collect();
    let late = "STATUS=0 workers, 0 clients, generation 1; stopping";
    assert!(rest.iter().all(|told| told == late), "{rest:?}");
}

#[test]
fn a_changed_status_is_sent_at_most_once_a_second() {
    let manager = Manager::new();
    let daemon = manager.start("workers.count = 1");
    let mut told = vec![manager.next()];
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(2500) || told.len() < 2 {
        let mut client = daemon.connect();
        client.call("ping", 1).expect("a result");
        drop(client);
        told.extend(std::iter::from_fn(|| manager.pending()));
    }
    let most = began.elapsed().as_secs() as usize + 2;
    assert!(told.len() <= most, "{} times: {told:?}", told.len());
    // The last status is the true one, and then no process wakes up.
    daemon.wait_until("it has left", |status| status.clients == 0);
    eventually("the last status is true", || {
        told.extend(std::iter::from_fn(|| manager.pending()));
        told.last()?
            .ends_with("STATUS=1 worker, 0 clients, generation 1")
            .then_some(())
    });
    let_pass(Duration::from_millis(1100));
    assert_eq!(manager.pending(), None);
    let sleeps = || kernel::sleeps(daemon.pid());
    let before = while_idle(&daemon, sleeps);
    let_pass(Duration::from_millis(1500));
    assert_eq!((sleeps(), manager.pending()), (before, None));
}

#[test]
fn the_watchdog_is_fed_while_the_loop_turns_and_only_then() {
    let manager = Manager::new();
    let began = Instant::now();
    let daemon = manager
        .setup("workers.count = 1")
        .variable("WATCHDOG_USEC", "400000")
        .start()
        .expect("it serves");
    let mut fed = 0;
    while fed < 5 {
        fed += usize::from(manager.next() == "WATCHDOG=1");
    }
    // The first one comes at once.
    assert!(
        began.elapsed() >= Duration::from_millis(600),
        "{:?}",
        began.elapsed()
    );
    kernel::stop(daemon.pid());
    while manager.pending().is_some() {}
    let_pass(Duration::from_millis(600));
    assert_eq!(manager.pending(), None);
    daemon.signal("CONT");
    manager.wait_for("WATCHDOG=1");

    let another = manager
        .setup("workers.count = 1")
        .variable("WATCHDOG_USEC", "100000")
        .variable("WATCHDOG_PID", "1");
    let manager_of_another = Manager::new();
    let another = another
        .variable("NOTIFY_SOCKET", manager_of_another.path())
        .start()
        .expect("it serves");
    manager_of_another.next();
    let sleeps = || kernel::sleeps(another.pid());
    let before = while_idle(&another, sleeps);
    let_pass(Duration::from_millis(300));
    assert_eq!((sleeps(), manager_of_another.pending()), (before, None));
}

#[test]
fn a_failed_start_is_reported_in_one_line() {
    let manager = Manager::new();
    let fail = |config: &str| {
        let error = manager
            .setup(config)
            .start()
            .expect_err("it does not serve");
        (error.code(), manager.next())
    };
    let (code, told) = fail("levle = 1");
    assert_eq!(code, Some(78));
    assert!(
        told.starts_with("STATUS=/") && told.contains("config.toml:1:1: unknown key `levle`"),
        "{told}"
    );
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("it is bound");
    let (code, told) = fail(&format!("listen = [\"{address}\"]"));
    assert_eq!(code, Some(69));
    assert!(
        told.starts_with(&format!(
            "STATUS=cannot listen on {address}: Address already in use"
        )),
        "{told}"
    );
    let (code, told) = fail("log = { target = \"file\", file = \"/no/such/log\" }");
    assert_eq!(code, Some(78));
    assert!(
        told.starts_with("STATUS=cannot open log file /no/such/log: "),
        "{told}"
    );
    assert_eq!(manager.pending(), None);
}

#[test]
fn fdpassctl_is_answered_after_the_notification() {
    let manager = Manager::new();
    let daemon = manager.start("workers.count = 1");
    manager.wait_for("READY=1\nSTATUS=1 worker, 0 clients, generation 1");
    for generation in 2..5 {
        let said = Program::start(&mut ctl_command(&daemon, &["reload"])).finish();
        assert_eq!(said.code, Some(0), "{}", said.err);
        let told: Vec<String> = std::iter::from_fn(|| manager.pending()).collect();
        let is_end = |told: &&String| {
            told.starts_with("READY=1\n") && told.contains(&format!("generation {generation}"))
        };
        assert_eq!(told.iter().filter(is_end).count(), 1, "{told:?}");
    }
}

#[test]
fn bytes_of_clients_are_in_no_notification() {
    let manager = Manager::new();
    let daemon = manager.start("workers.count = 1");
    manager.next();
    let mut client = daemon.connect();
    client.request("x\nMAINPID=1", "\nREADY=0\nMAINPID=1\n");
    client.reply().value().expect_err("there is no such method");
    assert_eq!(manager.next(), "STATUS=1 worker, 1 client, generation 1");
    drop(client);
    assert_eq!(manager.next(), "STATUS=1 worker, 0 clients, generation 1");
}
