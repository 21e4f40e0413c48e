//! The kernel's data on processes, see proc(5).

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process;
use std::time::{Duration, Instant};

use fdpassd::testing::eventually;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::let_pass;

/// CPU time that a process has used, in clock ticks: hundredths of a second.
#[track_caller]
pub fn cpu_ticks(pid: u32) -> u64 {
    cpu_ticks_if_there(pid).expect("the process is there")
}

/// As [`cpu_ticks`]; nothing if the process is gone.
pub fn cpu_ticks_if_there(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after_name) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    let ticks = fields[11..13].iter();
    Some(
        ticks
            .map(|ticks| ticks.parse::<u64>().expect("utime and stime are numbers"))
            .sum(),
    )
}

/// Returns the state of a process: `S` when it sleeps, `T` when it was stopped, `Z` when it has ended and is not
/// collected yet; `None` when it is gone.
pub fn state(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.trim_start().chars().next()
}

/// Returns whether a process has ended. In a container it may stay uncollected after its parent's death.
pub fn is_over(pid: u32) -> bool {
    matches!(state(pid), None | Some('Z' | 'X'))
}

/// Sends a process a signal.
#[track_caller]
pub fn send(pid: u32, signal: Signal) {
    kill(Pid::from_raw(pid.cast_signed()), signal).expect("the process is there");
}

/// Sends a process SIGSTOP and waits until it is stopped.
#[track_caller]
pub fn stop(pid: u32) {
    send(pid, Signal::SIGSTOP);
    eventually("the process is stopped", || {
        (state(pid) == Some('T')).then_some(())
    });
}

/// Returns how often each of these processes has gone to sleep, if all of them sleep or are stopped.
///
/// One that was preempted on its way to sleep is in that state already, but the kernel counts it only later. Its system
/// call can be read only when it sleeps, so that is waited for.
pub fn all_idle(processes: &[u32]) -> Option<Vec<u64>> {
    let asleep = |pid: &u32| {
        let call = fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default();
        let is_awake = call.starts_with("running") || !matches!(state(*pid)?, 'S' | 'T');
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        (!is_awake).then(|| field(&status, SLEEPS))
    };
    processes.iter().map(asleep).collect()
}

/// A process and its children.
pub fn family(pid: u32) -> Vec<u32> {
    [vec![pid], children(pid)].concat()
}

/// Returns the children of a process except zygotes, which forked workers need besides.
pub fn children(pid: u32) -> Vec<u32> {
    let mut children = all_children(pid);
    children.retain(|child| {
        let line = fs::read_to_string(format!("/proc/{child}/cmdline")).unwrap_or_default();
        line.split('\0').nth(1) != Some("zygote")
    });
    children
}

/// Returns the children of a process.
pub fn all_children(pid: u32) -> Vec<u32> {
    let all = fs::read_dir("/proc").expect("/proc can be read").flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_child = |child: &u32| {
        let stat = fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        let parent = stat
            .rsplit_once(')')
            .and_then(|(_, after)| after.split_whitespace().nth(1));
        parent.is_some_and(|parent| parent == pid.to_string())
    };
    pids.filter(is_child).collect()
}

/// Asserts that these processes together use at most this share of one CPU while this time passes, however long that
/// really takes.
#[track_caller]
pub fn assert_waits(processes: &[u32], time: Duration, share: f64) {
    let ticks = || -> u64 { processes.iter().map(|pid| cpu_ticks(*pid)).sum() };
    let (began, before) = (Instant::now(), ticks());
    let_pass(time);
    let spent = (ticks() - before) as f64 / 100.0;
    let passed = began.elapsed().as_secs_f64();
    assert!(
        spent <= share * passed,
        "{spent} s of CPU time in {passed} s of waiting"
    );
}

/// Returns how often a process has gone to sleep, and so how often it was woken.
pub fn sleeps(pid: u32) -> u64 {
    status(pid, SLEEPS)
}

const SLEEPS: &str = "voluntary_ctxt_switches:";

/// Bytes of memory that a process takes up, its memory files included.
pub fn memory(pid: u32) -> u64 {
    let files = descriptors(pid)
        .into_iter()
        .filter(|(_, name)| name.starts_with("/memfd:"));
    let blocks: u64 = files
        .map(|(link, _)| fs::metadata(link).expect("the descriptor is open").blocks())
        .sum();
    status(pid, "RssAnon:") * 1024 + blocks * 512
}

/// Descriptors that a process has: their links in /proc and what they are of.
pub fn descriptors(pid: u32) -> Vec<(PathBuf, String)> {
    let links = fs::read_dir(format!("/proc/{pid}/fd"))
        .expect("the process is ours")
        .flatten()
        .map(|entry| entry.path());
    // One may be closed between being listed and being looked at.
    links
        .filter_map(|link| {
            fs::read_link(&link)
                .ok()
                .map(|name| (link, name.display().to_string()))
        })
        .collect()
}

/// Names of what this process leaves open for programs that it runs: descriptors without close-on-exec.
pub fn inheritable() -> Vec<String> {
    let is_left_open = |link: &PathBuf| {
        let number = link.file_name().expect("a descriptor has a number");
        let info = fs::read_to_string(Path::new("/proc/self/fdinfo").join(number)).ok();
        let flags = info
            .as_deref()
            .and_then(|info| info.lines().find_map(|line| line.strip_prefix("flags:")))
            .and_then(|flags| i32::from_str_radix(flags.trim(), 8).ok());
        flags.is_some_and(|flags| flags & nix::libc::O_CLOEXEC == 0)
    };
    let descriptors = descriptors(process::id()).into_iter();
    descriptors
        .filter(|(link, _)| is_left_open(link))
        .map(|(_, name)| name)
        .collect()
}

/// How many sockets of a local TCP port over IPv4 are in this state, as /proc/net/tcp has it.
fn sockets_in(state: &str, port: u16) -> usize {
    let sockets = read("/proc/net/tcp".to_owned());
    let local = format!(":{port:04X}");
    let is_in = |line: &&str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields[1].ends_with(&local) && fields[3] == state
    };
    sockets.lines().skip(1).filter(is_in).count()
}

/// How many sockets of a local TCP port over IPv4 are in CLOSE_WAIT: their peers have closed and we have not.
pub fn close_waits(port: u16) -> usize {
    sockets_in("08", port)
}

/// How many connections a local TCP port over IPv4 has: neither end is closed.
pub fn established(port: u16) -> usize {
    sockets_in("01", port)
}

/// The kind of timer by which a silent connection is probed.
pub const KEEPALIVE: u8 = 2;

/// The timer of the one connection that a local TCP port over IPv4 has: its kind, and the seconds until it expires.
pub fn timer(port: u16) -> Option<(u8, u64)> {
    let sockets = read("/proc/net/tcp".to_owned());
    let local = format!(":{port:04X}");
    let connection = sockets
        .lines()
        .skip(1)
        .map(|line| line.split_whitespace().collect::<Vec<_>>());
    // 01 is ESTABLISHED; the listener is 0A, and a client's own end has the port on the other side.
    let fields = connection
        .into_iter()
        .find(|fields| fields[1].ends_with(&local) && fields[3] == "01")?;
    let (kind, ticks) = fields[5].split_once(':').expect("KIND:TICKS");
    let kind = u8::from_str_radix(kind, 16).expect("a number");
    (kind != 0).then(|| {
        (
            kind,
            u64::from_str_radix(ticks, 16).expect("hundredths of a second") / 100,
        )
    })
}

/// Whether a Unix socket can refuse descriptors: SO_PASSRIGHTS, Linux 6.16.
pub fn can_refuse_descriptors() -> bool {
    let version = read("/proc/sys/kernel/osrelease".to_owned());
    let mut numbers = version
        .split(['.', '-'])
        .map_while(|part| part.trim().parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(6), Some(16))
}

/// The user that the tests run as.
pub fn user() -> u32 {
    fs::metadata("/proc/self").expect("proc is mounted").uid()
}

fn status(pid: u32, key: &str) -> u64 {
    field(&read(format!("/proc/{pid}/status")), key)
}

fn field(status: &str, key: &str) -> u64 {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(key))
        .expect("the kernel tells it");
    line.trim()
        .trim_end_matches(" kB")
        .parse()
        .expect("it is a number")
}

fn read(path: String) -> String {
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("cannot read {path}: {e}"))
}
