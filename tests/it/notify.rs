//! Notifications of the service manager, word for word, on a socket in the place of systemd's.

use std::fs;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use fdpassd::testing::{Running, Setup, TIMEOUT, eventually};
use tempfile::TempDir;

use crate::common::faulty::example;
use crate::common::program::{Program, ctl_command};
use crate::common::{FDPASSD, at_rest, kernel, let_pass};

/// A service manager that listens, and reads when it is asked what it was told.
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

    /// Waits for the next notification.
    #[track_caller]
    fn told(&self) -> String {
        self.socket
            .set_read_timeout(Some(TIMEOUT))
            .expect("it is a time");
        receive(&self.socket).expect("the manager is told something")
    }

    /// Returns a notification that is already there.
    fn told_by_now(&self) -> Option<String> {
        self.socket.set_nonblocking(true).expect("it is a socket");
        let told = receive(&self.socket);
        self.socket.set_nonblocking(false).expect("it is a socket");
        told
    }

    /// Waits for the next notification that is more than a status.
    #[track_caller]
    fn told_of_importance(&self) -> String {
        loop {
            let told = self.told();
            if !told.starts_with("STATUS=") {
                return told;
            }
        }
    }

    /// Waits for this notification.
    #[track_caller]
    fn wait_for(&self, awaited: &str) {
        eventually(&format!("the manager is told {awaited:?}"), || {
            std::iter::from_fn(|| self.told_by_now())
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

/// A message that begins with these words and the time, which is now; what comes behind.
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
        manager.told(),
        "READY=1\nSTATUS=1 worker, 0 clients, generation 1"
    );
    let mut client = daemon.connect();
    client.call("ping", 1).expect("a result");
    assert_eq!(manager.told(), "STATUS=1 worker, 1 client, generation 1");
    drop(client);
    assert_eq!(manager.told(), "STATUS=1 worker, 0 clients, generation 1");
    daemon.ctl("drain").expect("it is drained");
    manager.wait_for(
        "STATUS=1 worker, 0 clients, generation 1; new clients are not accepted: the daemon is drained",
    );
    daemon.signal("TERM");
    assert_eq!(
        manager.told(),
        "STOPPING=1\nEXTEND_TIMEOUT_USEC=40000000\nSTATUS=1 worker, 0 clients, generation 1; stopping"
    );
    assert!(daemon.wait().success());
    assert_eq!(manager.told_by_now(), None);
}

#[test]
fn a_changed_status_is_sent_at_most_once_a_second() {
    let manager = Manager::new();
    let daemon = manager.start("workers.count = 1");
    let mut told = vec![manager.told()];
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(2500) || told.len() < 2 {
        let mut client = daemon.connect();
        client.call("ping", 1).expect("a result");
        drop(client);
        told.extend(std::iter::from_fn(|| manager.told_by_now()));
    }
    let most = began.elapsed().as_secs() as usize + 2;
    assert!(told.len() <= most, "{} times: {told:?}", told.len());
    // The last status is the true one, and then no process wakes up.
    daemon.wait_until("it has left", |status| status.clients == 0);
    eventually("the last status is true", || {
        told.extend(std::iter::from_fn(|| manager.told_by_now()));
        told.last()?
            .ends_with("STATUS=1 worker, 0 clients, generation 1")
            .then_some(())
    });
    let_pass(Duration::from_millis(1100));
    assert_eq!(manager.told_by_now(), None);
    let sleeps = || kernel::sleeps(daemon.pid());
    let before = at_rest(&daemon, sleeps);
    let_pass(Duration::from_millis(1500));
    assert_eq!((sleeps(), manager.told_by_now()), (before, None));
}

#[test]
fn the_manager_is_notified_of_a_reload_before_its_reply() {
    let manager = Manager::new();
    let daemon = manager.start("workers.count = 1");
    manager.wait_for("READY=1\nSTATUS=1 worker, 0 clients, generation 1");
    let mut asked = daemon.ctl_request("reload", ());
    let began = manager.told_of_importance();
    let rest = after_time(&began, "RELOADING=1\nMONOTONIC_USEC=");
    assert_eq!(rest, "STATUS=1 worker, 0 clients, generation 1; reloading");
    asked.reply().value().expect("it is applied");
    let told: Vec<String> = std::iter::from_fn(|| manager.told_by_now()).collect();
    assert!(
        told.iter()
            .any(|told| told.starts_with("READY=1\nSTATUS=1 worker, 0 clients, generation 2")),
        "{told:?}"
    );

    // A signal has no reply.
    daemon.signal("HUP");
    after_time(
        &manager.told_of_importance(),
        "RELOADING=1\nMONOTONIC_USEC=",
    );
    assert!(manager.told_of_importance().starts_with("READY=1\nSTATUS="));
}

#[test]
fn a_rejected_file_ends_the_reload_for_the_manager() {
    let manager = Manager::new();
    let daemon = manager.start("workers.count = 1");
    manager.wait_for("READY=1\nSTATUS=1 worker, 0 clients, generation 1");
    for ask in ["reload", "HUP"] {
        daemon.write_config("\"\\nMAINPID=1\\n\\u001b[2J\" = 1");
        if ask == "HUP" {
            daemon.signal(ask);
        } else {
            daemon.ctl(ask).expect_err("it is rejected");
        }
        let told = manager.told_of_importance();
        let rest = after_time(&told, "RELOADING=1\nMONOTONIC_USEC=");
        let words = "READY=1\nSTATUS=1 worker, 0 clients, generation 1; last reload rejected: unknown key `";
        let message = rest
            .strip_prefix(words)
            .unwrap_or_else(|| panic!("{rest:?}"));
        assert!(!message.contains(|c: char| c.is_control()), "{message:?}");
    }
    // The next one that is applied is all that is left of it.
    daemon
        .reload_with("workers.count = 1")
        .expect("it is applied");
    let told = manager.told_of_importance();
    let rejected =
        "; reloading; last reload rejected: unknown key `\\nMAINPID=1\\n\\x1b[2J`, expected";
    assert!(told.contains(rejected), "{told:?}");
    assert_eq!(
        manager.told_of_importance(),
        "READY=1\nSTATUS=1 worker, 0 clients, generation 2"
    );
}

#[test]
fn a_reload_that_is_rolled_back_or_given_up_is_over_as_well() {
    let manager = Manager::new();
    let switch = manager.directory.path().join("fault");
    let setup = Setup::new(example("faulty"), "workers.count = 1");
    let setup = setup.variable("FAULTY", format!("file:{}", switch.display()));
    let mut daemon = setup
        .variable("NOTIFY_SOCKET", manager.path())
        .start()
        .expect("the daemon serves");
    manager.wait_for("READY=1\nSTATUS=1 worker, 0 clients, generation 1");
    fs::write(&switch, "fail").expect("it is our directory");
    let fault = daemon.reload().expect_err("no worker becomes ready");
    assert_eq!(fault.code(), "rolled_back");
    after_time(
        &manager.told_of_importance(),
        "RELOADING=1\nMONOTONIC_USEC=",
    );
    let told = manager.told_of_importance();
    let words = "READY=1\nSTATUS=1 worker, 0 clients, generation 1; last reload rolled back: its workers do not become";
    assert!(
        told.starts_with(words) && told.contains("the model cannot be loaded"),
        "{told}"
    );

    // One that is going on is neither begun again nor ended by another one that is refused.
    fs::write(&switch, "hang").expect("it is our directory");
    let _asked = daemon.ctl_request("reload", ());
    after_time(
        &manager.told_of_importance(),
        "RELOADING=1\nMONOTONIC_USEC=",
    );
    daemon.signal("HUP");
    let told = manager.told_of_importance();
    assert!(
        after_time(&told, "RELOADING=1\nMONOTONIC_USEC=").starts_with("READY=1\nSTATUS="),
        "{told}"
    );
    daemon.signal("TERM");
    let told = manager.told_of_importance();
    assert!(
        told.starts_with("READY=1\nSTATUS=")
            && told.contains("rolled back: the daemon is stopping"),
        "{told}"
    );
    let told = manager.told_of_importance();
    assert!(
        told.starts_with("STOPPING=1\nEXTEND_TIMEOUT_USEC="),
        "{told}"
    );
    assert!(daemon.wait().success());
}

#[test]
fn a_manager_that_does_not_read_delays_no_client() {
    let manager = Manager::new();
    let stuffing = UnixDatagram::unbound().expect("a socket");
    stuffing.set_nonblocking(true).expect("it is a socket");
    let mut stuffed = 0;
    while stuffing.send_to(b"stuffing", manager.path()).is_ok() {
        stuffed += 1;
    }
    let mut daemon = manager.start("workers.count = 1");
    let mut client = daemon.connect();
    for number in 0..100 {
        client.call("ping", number).expect("a result");
    }
    daemon.reload().expect("it is applied");
    daemon
        .reload_with("listne = []")
        .expect_err("it is rejected");
    assert_eq!(daemon.status().generation.0, 2);
    // It looks from time to time whether it is read, and does nothing else.
    kernel::assert_waits(&[daemon.pid()], Duration::from_secs(1), 0.2);

    (0..stuffed).for_each(|_| assert_eq!(manager.told(), "stuffing"));
    assert!(manager.told_of_importance().starts_with("READY=1\n"));
    assert!(manager.told_of_importance().starts_with("RELOADING=1\n"));
    assert!(manager.told_of_importance().starts_with("READY=1\n"));
    assert!(
        manager
            .told_of_importance()
            .contains("; last reload rejected: unknown key `listne`")
    );
    daemon.signal("TERM");
    assert!(manager.told_of_importance().starts_with("STOPPING=1\n"));
    assert!(daemon.wait().success());
}

#[test]
fn a_manager_that_is_gone_is_logged_once() {
    let manager = Manager::new();
    fs::remove_file(manager.path()).expect("it is there");
    let daemon = manager.start("workers.count = 1");
    daemon.wait_for_log("cannot notify the service manager: No such file or directory");
    daemon.reload().expect("it is applied");
    assert_eq!(
        daemon
            .stderr()
            .matches("cannot notify the service manager")
            .count(),
        1
    );
    for bad in ["relative", "@", "vsock:2:1"] {
        let daemon = Setup::new(FDPASSD, "")
            .variable("NOTIFY_SOCKET", bad)
            .start()
            .expect("the daemon serves");
        daemon.wait_for_log(&format!(
            "cannot notify the service manager: NOTIFY_SOCKET={bad}: "
        ));
    }
}

#[test]
fn an_abstract_address_is_as_good_as_a_path() {
    let name = format!("fdpassd-test-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).expect("a name");
    let manager = Manager {
        socket: UnixDatagram::bind_addr(&address).expect("bind"),
        directory: tempfile::tempdir().expect("a directory"),
    };
    let setup =
        Setup::new(FDPASSD, "workers.count = 1").variable("NOTIFY_SOCKET", format!("@{name}"));
    let _daemon = setup.start().expect("the daemon serves");
    assert_eq!(
        manager.told(),
        "READY=1\nSTATUS=1 worker, 0 clients, generation 1"
    );
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
        fed += usize::from(manager.told() == "WATCHDOG=1");
    }
    // The first one comes at once.
    assert!(
        began.elapsed() >= Duration::from_millis(600),
        "{:?}",
        began.elapsed()
    );
    kernel::stop(daemon.pid());
    while manager.told_by_now().is_some() {}
    let_pass(Duration::from_millis(600));
    assert_eq!(manager.told_by_now(), None);
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
    manager_of_another.told();
    let sleeps = || kernel::sleeps(another.pid());
    let before = at_rest(&another, sleeps);
    let_pass(Duration::from_millis(300));
    assert_eq!((sleeps(), manager_of_another.told_by_now()), (before, None));
}

#[test]
fn workers_have_no_variables_of_the_service_manager() {
    let manager = Manager::new();
    let setup = manager
        .setup("workers.count = 2")
        .variable("WATCHDOG_USEC", "30000000")
        .variable("WATCHDOG_PID", "1");
    let setup = setup
        .variable("LISTEN_PID", "1")
        .variable("LISTEN_FDS", "1")
        .variable("LISTEN_FDNAMES", "rpc");
    let daemon = setup
        .variable("KEPT", "yes")
        .start()
        .expect("the daemon serves");
    daemon.wait_for_workers();
    daemon.kill_worker(0);
    for pid in daemon.worker_pids() {
        let environment = fs::read(format!("/proc/{pid}/environ")).expect("it is ours");
        let environment = String::from_utf8_lossy(&environment).replace('\0', "\n");
        for key in [
            "NOTIFY_SOCKET",
            "WATCHDOG_USEC",
            "WATCHDOG_PID",
            "LISTEN_PID",
            "LISTEN_FDS",
            "LISTEN_FDNAMES",
        ] {
            assert!(!environment.contains(&format!("{key}=")), "{environment}");
        }
        assert!(environment.contains("KEPT=yes"), "{environment}");
    }
}

#[test]
fn a_failed_start_is_reported_in_one_line() {
    let manager = Manager::new();
    let fail = |config: &str| {
        let error = manager
            .setup(config)
            .start()
            .expect_err("it does not serve");
        (error.code(), manager.told())
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
    assert_eq!(manager.told_by_now(), None);
}

#[test]
fn fdpassctl_is_answered_after_the_notification() {
    let manager = Manager::new();
    let daemon = manager.start("workers.count = 1");
    manager.wait_for("READY=1\nSTATUS=1 worker, 0 clients, generation 1");
    for generation in 2..5 {
        let said = Program::start(&mut ctl_command(&daemon, &["reload"])).finish();
        assert_eq!(said.code, Some(0), "{}", said.err);
        let told: Vec<String> = std::iter::from_fn(|| manager.told_by_now()).collect();
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
    manager.told();
    let mut client = daemon.connect();
    client.request("x\nMAINPID=1", "\nREADY=0\nMAINPID=1\n");
    client.reply().value().expect_err("there is no such method");
    assert_eq!(manager.told(), "STATUS=1 worker, 1 client, generation 1");
    drop(client);
    assert_eq!(manager.told(), "STATUS=1 worker, 0 clients, generation 1");
}
