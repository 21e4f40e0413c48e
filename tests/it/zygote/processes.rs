//! A forked worker as a process.

use std::collections::BTreeMap;
use std::fs;

use fdpassd::testing::{Running, Setup};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, getpgid};

use super::{FORK, PARENT, arguments, start, stat, zygote};
use crate::common::faulty::{self, whoami};
use crate::common::needs::skip;
use crate::common::program::run;
use crate::common::{kernel, ping_all};

const EXEC: &str = "workers = { count = 2, start = \"exec\" }\n";

/// Numbers of the exit signal, the process group and the session in proc_pid_stat(5).
const EXIT_SIGNAL: usize = 38;
const GROUP: usize = 5;
const SESSION: usize = 6;

#[test]
fn a_forked_worker_is_a_child_with_name_and_arguments() {
    let daemon = start();
    let zygote = zygote(&daemon, None);
    assert_eq!(arguments(zygote), ["fdpassd", "zygote", "1"]);
    for worker in daemon.status().workers {
        let (id, pid) = (worker.id.expect("it runs"), worker.pid.expect("it runs"));
        assert_eq!(arguments(pid), ["fdpassd", "worker", &id.to_string()]);
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).expect("it is there");
        assert_eq!(name, "fdpassd\n");
        let of_worker = [PARENT, GROUP, SESSION, EXIT_SIGNAL].map(|field| stat(pid, field));
        let (master, own) = (daemon.pid().to_string(), pid.to_string());
        assert_eq!(of_worker, [master, own.clone(), own, "17".to_owned()]);
    }
    assert_eq!(stat(zygote, PARENT), daemon.pid().to_string());
    assert_eq!(stat(zygote, SESSION), stat(daemon.pid(), SESSION));
}

/// The properties of a worker that another kind of birth could change.
#[derive(Debug, PartialEq)]
struct Circumstances {
    /// How often each kind of file is open.
    files: BTreeMap<String, usize>,
    /// Masks of signals, the number of threads, limits and capabilities.
    status: Vec<String>,
    limits: String,
    oom_score: String,
    variables: Vec<String>,
    directory: std::path::PathBuf,
}

fn circumstances(pid: u32) -> Circumstances {
    let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).expect("it is ours");
    let mut files = BTreeMap::new();
    for (_, name) in kernel::descriptors(pid) {
        let kind = name.trim_end_matches("/io");
        let kind = kind.split([':', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9']);
        let kind = kind.into_iter().next().expect("the first part");
        *files.entry(kind.to_owned()).or_default() += 1;
    }
    let keys = [
        "Name:",
        "Threads:",
        "SigBlk:",
        "SigIgn:",
        "SigCgt:",
        "ShdPnd:",
        "CapEff:",
        "NoNewPrivs:",
        "Umask:",
        "Uid:",
        "Gid:",
        "Groups:",
        "CoreDumping:",
    ];
    let status = read("status");
    let status = status
        .lines()
        .filter(|line| keys.iter().any(|key| line.starts_with(key)));
    let of_setup = |variable: &&str| {
        !["RUNTIME_DIRECTORY=", "FAULTY="]
            .iter()
            .any(|name| variable.starts_with(name))
    };
    let environment = read("environ");
    let mut variables: Vec<String> = environment
        .split('\0')
        .filter(of_setup)
        .map(str::to_owned)
        .collect();
    variables.sort();
    Circumstances {
        files,
        status: status.map(str::to_owned).collect(),
        limits: read("limits"),
        oom_score: read("oom_score_adj"),
        variables,
        directory: fs::read_link(format!("/proc/{pid}/cwd")).expect("it is ours"),
    }
}

#[test]
fn a_forked_worker_has_what_an_executed_one_has() {
    let [executed, forked] = [EXEC, FORK].map(|config| {
        let log = "log = { target = \"file\", file = \"{dir}/log\" }\n";
        // Each has two of the clients.
        let config = config.replace(" }", ", dispatch = \"round-robin\" }");
        let limits = "limits.stall-timeout = \"1h\"\n";
        let daemon = crate::common::start(&format!("{config}{limits}{log}"));
        daemon.wait_for_workers();
        let mut clients: Vec<_> = (0..4).map(|_| daemon.connect()).collect();
        ping_all(&mut clients);
        let pids = daemon.worker_pids();
        let all = pids.into_iter().map(circumstances).collect::<Vec<_>>();
        assert_eq!(all[0].status, all[1].status);
        all
    });
    // Also the last one, whose zygote was followed by more births.
    assert_eq!(executed, forked);
}

#[test]
fn a_forked_worker_has_the_thread_id_that_its_c_library_uses() {
    let daemon = faulty::start(FORK);
    daemon.wait_for_workers();
    let pids = daemon.worker_pids();
    // pthread_kill(3) uses the number that the C library has stored.
    let fault = daemon.call("abort_by_thread", ());
    let fault = fault.expect_err("its worker dies");
    assert_eq!(fault.code(), "crashed");
    daemon.wait_for_log("killed by signal 6 (SIGABRT)");
    daemon.wait_until("there is another one", |status| {
        let now = status.workers.iter().filter_map(|worker| worker.pid);
        now.clone().count() == 2 && now.collect::<Vec<_>>() != pids
    });
}

/// Other processes have copies of it, and may use what its destructor would remove.
#[test]
fn no_forked_worker_and_no_zygote_drops_what_main_owns() {
    let place = tempfile::tempdir().expect("a directory");
    let drops = place.path().join("drops");
    let setup = Setup::new(faulty::example("faulty"), FORK);
    let daemon = setup.variable("FAULTY_DROPS", &drops).start();
    let mut daemon = daemon.expect("it serves");
    daemon.wait_for_workers();
    let mut forked = daemon.worker_pids();
    let first = zygote(&daemon, None);
    daemon.ctl("recycle").expect("all are replaced");
    forked.extend(daemon.worker_pids());
    daemon.ctl("reload").expect("so is the zygote");
    forked.extend(daemon.worker_pids());
    let zygotes = [first, zygote(&daemon, Some(first))];
    let master = daemon.pid();
    daemon.signal("INT");
    assert!(daemon.wait().success());
    // The master has dropped it, and a child that has read the configuration.
    let dropped = fs::read_to_string(drops).expect("it is written");
    let dropped: Vec<u32> = dropped.lines().filter_map(|pid| pid.parse().ok()).collect();
    let is_dropped = |pid: &&u32| dropped.contains(pid);
    assert!(is_dropped(&&master), "{dropped:?}");
    let others = forked.iter().chain(&zygotes).filter(is_dropped);
    assert_eq!(others.count(), 0, "{dropped:?}, {forked:?}, {zygotes:?}");
}

/// Prints whether the first thread of a process has registered a list of robust mutexes: get_robust_list(2).
const ROBUST_LIST: &str = "import ctypes, sys
number, pid = int(sys.argv[1]), int(sys.argv[2])
head, length = ctypes.c_void_p(), ctypes.c_size_t()
failed = ctypes.CDLL(None).syscall(number, pid, ctypes.byref(head), ctypes.byref(length))
print('failed' if failed else bool(head.value))
";

/// Without the list, others wait for ever for a robust mutex that a killed worker held.
#[test]
fn a_forked_worker_has_the_robust_mutexes_of_its_c_library() {
    if run("python3", &["--version"]).code != Some(0) {
        return skip("python3", "there is no python3");
    }
    let daemon = faulty::start(FORK);
    daemon.wait_for_workers();
    let number = nix::libc::SYS_get_robust_list.to_string();
    for pid in daemon.worker_pids() {
        let found = run("python3", &["-c", ROBUST_LIST, &number, &pid.to_string()]);
        assert_eq!(found.out, "True\n", "{}", found.err);
    }
}

#[test]
fn forked_workers_have_different_random_numbers() {
    let daemon = faulty::start(&FORK.replace(" }", ", dispatch = \"round-robin\" }"));
    daemon.wait_for_workers();
    let mut numbers = Vec::new();
    for _ in 0..2 {
        let mut clients: Vec<_> = (0..6).map(|_| daemon.connect()).collect();
        for client in &mut clients {
            let pid = whoami(client).pid;
            let number = client.call("random", ()).expect("a number");
            numbers.push((pid, number.to_string()));
        }
        daemon.ctl("recycle").expect("all are replaced");
    }
    numbers.sort();
    numbers.dedup_by_key(|(pid, _)| *pid);
    assert!(numbers.len() >= 3, "{numbers:?}");
    let mut different: Vec<&String> = numbers.iter().map(|(_, number)| number).collect();
    different.sort();
    different.dedup();
    assert_eq!(different.len(), numbers.len(), "{numbers:?}");
}

#[test]
fn the_zygote_ignores_signals_of_the_terminal() {
    let daemon = start();
    let first = zygote(&daemon, None);
    let group = getpgid(Some(Pid::from_raw(first.cast_signed()))).expect("it runs");
    let of_master = getpgid(Some(Pid::from_raw(daemon.pid().cast_signed()))).expect("it runs");
    assert_eq!(group, of_master);
    for signal in ["HUP", "USR1", "USR2", "TTIN", "TTOU"] {
        let number: Signal = format!("SIG{signal}").parse().expect("a name");
        kernel::send(first, number);
    }
    assert_forks(&daemon);
    assert_eq!(daemon.status().zygote, Some(first));
    // As Ctrl-C does.
    if group.as_raw().cast_unsigned() == daemon.pid() {
        killpg(group, Signal::SIGINT).expect("it is ours");
    } else {
        daemon.signal("INT");
    }
    daemon.wait_for_log("stopped");
}

/// Asserts that a killed worker is replaced.
#[track_caller]
pub fn assert_forks(daemon: &Running) {
    let before = daemon.worker_pids();
    daemon.kill_worker(0);
    let after = daemon.wait_for_workers();
    let pid = after.workers[0].pid.expect("it is ready");
    assert!(!before.contains(&pid));
}

#[test]
fn the_zygote_and_its_workers_end_with_the_master() {
    let mut daemon = start();
    let processes = [vec![zygote(&daemon, None)], daemon.worker_pids()].concat();
    daemon.signal("KILL");
    daemon.wait();
    for pid in processes {
        fdpassd::testing::eventually("it has ended", || kernel::is_over(pid).then_some(()));
    }
}
