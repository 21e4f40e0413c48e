//! A daemon with every fault that a method, a state or its programmer can have. It is for the tests only.
//!
//! The variable `FAULTY` selects a fault from the start: `fail`, `panic`, `exit` or `hang` instead of making the state,
//! or `garbage` in the channel, or `long-failure` or `long-health`, a report there with a long text, in all seats or,
//! as in `fail:1`, in one; `fail-again` at the second making of the state; errors of the program, such as `two-methods`
//! of one name; `no-methods`, for an app; `mute` instead of the answer to `check-handover`. With `lock` a state has a
//! lock that no other state may have at the same time. With `thread-in-main` or `hang-in-main`, `main` of a zygote does
//! that. With `file:PATH` the file has the fault for workers made from then on. With `writer` the state has a thread
//! that always writes and starts programs; with `second-thread` the daemon does not run in the first thread.

use std::collections::BTreeMap;
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{IntoRawFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::Path;
use std::process::{self, Command, ExitCode};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use std::{env, fs, hint, io, thread};

use fdpassd::{Call, ClientId, Counter, Daemon, Fault, Histogram, Method, WorkerInfo};
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::pthread::{pthread_kill, pthread_self};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, sigaction};
use nix::sys::socket::{MsgFlags, send};
use nix::unistd::{Pid, close, fork};
use serde::Deserialize;
use serde_json::{Value, json};

/// The state of a worker process.
struct State {
    worker: WorkerInfo<Settings>,
    /// Calls of `whoami` since the state was made.
    calls: u64,
    asked: Counter,
    sizes: Histogram,
    /// Clients that called `keep` and have not left, and whether their departure causes a panic.
    kept: BTreeMap<ClientId, bool>,
    _lock: Option<UnixListener>,
}

/// The table `[faulty]` of the configuration.
#[derive(Clone, Default, Deserialize)]
#[serde(default)]
struct Settings {
    words: String,
    pair: Option<Pair>,
    /// The worker cannot make its state.
    fails: bool,
}

#[derive(Clone, Deserialize)]
struct Pair {
    left: u8,
    right: u8,
}

fn main() -> ExitCode {
    if env::var("FAULTY").as_deref() == Ok("second-thread") {
        return thread::spawn(run).join().unwrap_or(ExitCode::FAILURE);
    }
    run()
}

/// Appends the pid to a file when it is dropped.
struct NoteDrop(std::ffi::OsString);

impl Drop for NoteDrop {
    fn drop(&mut self) {
        let file = std::fs::File::options()
            .append(true)
            .create(true)
            .open(&self.0);
        let _ = file.and_then(|mut file| writeln!(file, "{}", std::process::id()));
    }
}

fn run() -> ExitCode {
    let _noted = env::var_os("FAULTY_DROPS").map(NoteDrop);
    if env::args().nth(1).is_some_and(|role| role == "zygote") {
        match fault_now().as_str() {
            "thread-in-main" => drop(thread::spawn(|| block(Duration::MAX))),
            "hang-in-main" => block(Duration::MAX),
            _ => {}
        }
    }
    let fault = env::var("FAULTY").unwrap_or_default();
    let name = match fault.as_str() {
        "bad-daemon-name" => "Faulty Daemon",
        _ => "faulty",
    };
    let daemon = Daemon::new(name).config::<Settings>().state(make);
    let daemon = daemon.on_close(forget);
    // Only then, as idle workers wake up for it.
    let daemon = match env::var_os("FAULTY_HEALTH") {
        Some(file) => daemon.health(Duration::from_millis(100), move |state| {
            health(Path::new(&file), state)
        }),
        None => daemon,
    };
    if fault == "no-methods" {
        return daemon.run();
    }
    let daemon = with_durations(with_results(with_ends(daemon)));
    let daemon = with_connections(with_waits(with_damage(daemon)));
    let is_check = || {
        let role = env::args().nth(1);
        role.is_some_and(|role| role == "check-handover")
    };
    match fault.as_str() {
        "two-methods" => daemon.method(nothing("nan")).run(),
        "bad-name" => daemon.method(nothing("Bad Name")).run(),
        "no-name" => daemon.method(nothing("")).run(),
        "taken-name" => daemon.method(nothing("ping")).run(),
        "bad-reply-name" => daemon.method(nothing("x").reply_name("error")).run(),
        "goaway-reply-name" => daemon.method(nothing("x").reply_name("goaway")).run(),
        "long-names" => {
            let names = (0..1000).map(|number| format!("{number:x>64}"));
            names
                .fold(daemon, |daemon, name| daemon.method(nothing(&name)))
                .run()
        }
        "mute" if is_check() => {
            block(Duration::MAX);
            ExitCode::FAILURE
        }
        _ => daemon.run(),
    }
}

/// Returns a method that does nothing.
fn nothing(name: &str) -> Method<State> {
    Method::new(name, |_, (): (), _| Ok(()))
}

/// Adds `whoami`, and methods that end the process.
fn with_ends(daemon: Daemon<State>) -> Daemon<State> {
    daemon
        .method(Method::new(
            "whoami",
            |state: &mut State, (): (), call: &Call| Ok::<Value, Fault>(whoami(state, call)),
        ))
        .method(Method::new(
            "exit",
            |_, status: i32, _| -> Result<(), Fault> { process::exit(status) },
        ))
        .method(Method::new("abort", |_, (): (), _| -> Result<(), Fault> {
            process::abort()
        }))
        // By a signal from another thread to the thread of the loop, for which the C library must know its number.
        .method(Method::new("abort_by_thread", |_, (): (), _| {
            let first = pthread_self();
            let sent = thread::spawn(move || pthread_kill(first, Signal::SIGABRT).is_ok());
            Ok(sent.join().unwrap_or(false))
        }))
        // As a library with a timer of its own.
        .method(Method::new("interrupt_every", |_, ms: u64, _| {
            interrupt_every(Duration::from_millis(ms)).map_err(|e| io_fault(e.into()))
        }))
        // Ends the process at each attempt up to this one.
        .method(
            Method::new("exit_until", |_, attempt: u32, call| {
                if call.attempt < attempt {
                    process::exit(3);
                }
                Ok(call.attempt)
            })
            .idempotent(),
        )
        // Ends the process as a bug in C would.
        .method(Method::new("segv", |_, (): (), _| -> Result<(), Fault> {
            // std's handler catches the first: it is not a stack overflow, so the handler lets the next one through.
            loop {
                let _ = kill(Pid::this(), Signal::SIGSEGV);
            }
        }))
        .method(Method::new(
            "panic",
            |_, words: String, _| -> Result<(), Fault> { panic!("{words}") },
        ))
        // Panics in another thread.
        .method(Method::new("panic_elsewhere", |_, words: String, _| {
            let thread = thread::Builder::new().name("fetcher".to_owned());
            let ended = thread.spawn(move || panic!("{words}")).map_err(io_fault)?;
            Ok(ended.join().is_err())
        }))
}

/// Adds methods with unusual results.
fn with_results(daemon: Daemon<State>) -> Daemon<State> {
    daemon
        .method(Method::new(
            "log",
            |_, (times, words): (u32, String), call| {
                (0..times)
                    .for_each(|_| log::warn!(event = "asked", client = call.client.0; "{words}"));
                Ok(())
            },
        ))
        // Counts, and observes this value.
        .method(Method::new("measure", |state: &mut State, size: f64, _| {
            state.asked.add(1);
            state.sizes.observe(size);
            Ok(())
        }))
        .method(Method::new("settings", |state: &mut State, (): (), _| {
            let Settings { words, pair, .. } = state.worker.config.clone();
            Ok((words, pair.map(|pair| (pair.left, pair.right))))
        }))
        .method(Method::new("nan", |_, (): (), _| {
            Ok([f64::NAN, f64::INFINITY, 1.0])
        }))
        // From the keys of this thread's hash tables.
        .method(Method::new("random", |_, (): (), _| {
            Ok(RandomState::new().hash_one(()).to_string())
        }))
        .method(Method::new("anything", |_, any: Value, _| Ok(any)))
        .method(Method::new(
            "fault",
            |_, (code, message): (String, String), _| -> Result<(), Fault> {
                Err(Fault::new(code, message))
            },
        ))
}

/// Adds methods that take time, and one that reports its deadline.
fn with_durations(daemon: Daemon<State>) -> Daemon<State> {
    daemon
        .method(Method::new("spin", |_, milliseconds: u64, _| {
            spin(Duration::from_millis(milliseconds));
            Ok(())
        }))
        .method(Method::new("sleep", |_, milliseconds: u64, _| {
            block(Duration::from_millis(milliseconds));
            Ok(())
        }))
        // Never returns, although it is declared to take microseconds.
        .method(
            Method::new("livelock", |_, (): (), _| -> Result<(), Fault> {
                spin(Duration::MAX);
                Ok(())
            })
            .inline(),
        )
        // A side effect that can be counted: one more line in a file.
        .method(Method::new(
            "count",
            |_, (path, line): (String, String), _| append(&path, &line).map_err(io_fault),
        ))
        // Returns the milliseconds after which the process may be killed, if it may.
        .method(Method::new("deadline", |_, (): (), call| {
            Ok(call.deadline.map(|at| {
                u64::try_from(at.saturating_duration_since(Instant::now()).as_millis()).ok()
            }))
        }))
}

/// Adds methods that damage what the process shares with others.
fn with_damage(daemon: Daemon<State>) -> Daemon<State> {
    daemon
        // Overwrites words of the shared memory, from this word on, as a broken worker may.
        .method(Method::new(
            "scribble",
            |_, (at, words): (u64, Vec<u64>), _| scribble(at, &words).map_err(io_fault),
        ))
        // The same, but not if another worker finds the request in what this one has left.
        .method(Method::new(
            "scribble_in",
            |_, (pid, at, words): (u32, u64, Vec<u64>), _| {
                let is_meant = pid == process::id();
                is_meant
                    .then(|| scribble(at, &words))
                    .transpose()
                    .map(drop)
                    .map_err(io_fault)
            },
        ))
        // Sends any datagram over the channel, or closes it and continues.
        .method(Method::new("send_datagram", |_, datagram: Vec<u8>, _| {
            let channel = channel().map_err(io_fault)?;
            send(channel, &datagram, MsgFlags::MSG_NOSIGNAL).map_err(|e| io_fault(e.into()))
        }))
        .method(Method::new("hang_up", |_, (): (), _| {
            let channel = channel().map_err(io_fault)?;
            close(channel).map_err(|e| io_fault(e.into()))
        }))
        // Closes the sockets of other clients. Their numbers may be reused.
        .method(Method::new(
            "close_others",
            |_, (how, count): (String, usize), _| close_others(&how, count).map_err(io_fault),
        ))
        // The same, when the writer of a FIFO decides. The numbers stay valid: in a debug build, the drop of one that
        // is not aborts the process.
        .method(Method::new("close_others_after", |_, path: String, _| {
            let read = read_line(&path);
            read.and_then(|_| close_others("file", 12))
                .map_err(io_fault)
        }))
        // Forks, and returns twice.
        .method(Method::new("fork", |_, (): (), _| {
            // SAFETY: that the child returns while its parent answers others is the purpose of this method.
            let forked = unsafe { fork() }.map_err(|e| io_fault(e.into()))?;
            if forked.is_child() {
                spin(Duration::from_millis(3));
            }
            Ok(())
        }))
}

/// Adds methods that wait for something else.
fn with_waits(daemon: Daemon<State>) -> Daemon<State> {
    daemon
        .method(
            Method::new("spin_inline", |_, milliseconds: u64, _| {
                spin(Duration::from_millis(milliseconds));
                Ok(())
            })
            .inline(),
        )
        .method(
            Method::new("sleep_again", |_, milliseconds: u64, call| {
                block(Duration::from_millis(milliseconds));
                Ok(call.attempt)
            })
            .idempotent(),
        )
        // Runs a script, and waits for it.
        .method(Method::new("shell", |_, script: String, _| {
            let status = process::Command::new("sh")
                .args(["-c", &script])
                .status()
                .map_err(io_fault)?;
            Ok(status.code())
        }))
        // The writer of the FIFO decides when this ends.
        .method(Method::new("read_line", |_, path: String, _| {
            read_line(&path).map_err(|e| Fault::new("io", e.to_string()))
        }))
        // The same, but only in the first attempt; a later one returns its number.
        .method(
            Method::new("read_line_once", |_, path: String, call| {
                match call.attempt {
                    1 => read_line(&path).map_err(|e| Fault::new("io", e.to_string())),
                    attempt => Ok(format!("attempt {attempt}")),
                }
            })
            .idempotent(),
        )
        // The same, but a later attempt ends the process.
        .method(
            Method::new("read_line_or_exit", |_, path: String, call| {
                match call.attempt {
                    1 => read_line(&path).map_err(|e| Fault::new("io", e.to_string())),
                    _ => process::exit(3),
                }
            })
            .idempotent(),
        )
}

/// Adds methods that concern the connection of their caller.
fn with_connections(daemon: Daemon<State>) -> Daemon<State> {
    daemon
        .method(Method::new(
            "keep",
            |state: &mut State, panics: bool, call: &Call| {
                state.kept.insert(call.client, panics);
                Ok(())
            },
        ))
        .method(Method::new("kept", |state: &mut State, (): (), _| {
            Ok(state.kept.keys().copied().collect::<Vec<_>>())
        }))
        // Ends when its caller has left, or has shut down its sending side.
        .method(Method::new("until_left", |_, (): (), call: &Call| {
            wait_while(|| call.is_connected());
            log::info!("client {} has left", call.client);
            Ok(())
        }))
        .method(Method::new(
            "until_half_closed",
            |_, (): (), call: &Call| {
                wait_while(|| !call.is_half_closed());
                log::info!("client {} sends nothing more", call.client);
                Ok(call.is_connected())
            },
        ))
}

/// Reads the file of `FAULTY_HEALTH`. It has the reason why a worker is unhealthy, in all seats or, as in
/// `1:the reason`, in one; or a frame for [`replace_last_socket`]; with `unplug` the worker closes its channel and hangs.
fn health(path: &Path, state: &State) -> Result<(), String> {
    static EXAMINED: AtomicBool = AtomicBool::new(false);
    let reason = fs::read_to_string(path).unwrap_or_default();
    if reason.starts_with('{') {
        let _ = fs::remove_file(path);
        return replace_last_socket(&reason).map_err(|e| e.to_string());
    }
    let (seat, reason) = reason.split_once(':').unwrap_or(("", &reason));
    let is_meant = seat.is_empty() || seat == state.worker.seat.to_string();
    match reason {
        "" => Ok(()),
        _ if !is_meant => Ok(()),
        "panic" => panic!("it cannot be examined"),
        // The first call is before the worker is ready.
        "unplug" if !EXAMINED.swap(true, Ordering::Relaxed) => Ok(()),
        "unplug" => {
            let closed = channel().and_then(|channel| Ok(close(channel)?));
            closed.map_err(|e| e.to_string())?;
            block(Duration::MAX);
            Ok(())
        }
        reason => Err(reason.to_owned()),
    }
}

fn forget(state: &mut State, client: ClientId) {
    if let Some(panics) = state.kept.remove(&client) {
        log::info!("worker {} forgets client {client}", state.worker.worker);
        assert!(!panics, "it cannot forget");
    }
}

fn wait_while(condition: impl Fn() -> bool) {
    while condition() {
        block(Duration::from_millis(1));
    }
}

fn whoami(state: &mut State, call: &Call) -> Value {
    state.calls += 1;
    let WorkerInfo { worker, seat, .. } = &state.worker;
    json!({
        "worker": worker, "seat": seat, "pid": process::id(), "calls": state.calls, "client": call.client,
        "attempt": call.attempt, "peer": call.peer.to_string(), "via": call.via.map(|via| via.to_string()),
    })
}

/// Returns the fault of processes that begin now.
fn fault_now() -> String {
    let fault = env::var("FAULTY").unwrap_or_default();
    fault.strip_prefix("file:").map_or(fault.clone(), |path| {
        fs::read_to_string(path).unwrap_or_default()
    })
}

fn make(worker: &WorkerInfo<Settings>) -> Result<State, String> {
    if worker.config.fails {
        return Err("the table has this reason".to_owned());
    }
    static MADE: AtomicBool = AtomicBool::new(false);
    let fault = fault_now();
    let (fault, seat) = fault
        .split_once(':')
        .map_or((fault.as_str(), None), |(fault, seat)| (fault, Some(seat)));
    if seat.is_none_or(|seat| seat == worker.seat.to_string()) {
        match fault {
            "fail" => return Err("the model cannot be loaded".to_owned()),
            "panic" => panic!("the model is broken"),
            "exit" => process::exit(9),
            "hang" => {
                log::info!("hangs");
                spin(Duration::MAX);
            }
            "garbage" => drop(channel().map(|to| send(to, b"xxx", MsgFlags::MSG_NOSIGNAL))),
            "long-failure" => {
                report(2, &json!({ "reason": "why ".repeat(15_000) }))?;
                process::exit(9);
            }
            "long-health" => report(7, &json!({ "unhealthy": "why ".repeat(15_000) }))?,
            "writer" => drop(thread::spawn(write_for_ever)),
            "fail-again" if MADE.swap(true, Ordering::Relaxed) => {
                return Err("the model is gone".to_owned());
            }
            _ => {}
        }
    }
    let metrics = &worker.metrics;
    let counter = metrics.counter("asked_total", "Calls of \"measure\".");
    let sizes = metrics.histogram("asked_size", "The values that they measured.", &[0.5, 10.0]);
    let lock = (fault == "lock").then(take_lock).transpose();
    Ok(State {
        worker: worker.clone(),
        calls: 0,
        asked: counter.map_err(|e| e.to_string())?,
        sizes: sizes.map_err(|e| e.to_string())?,
        kept: BTreeMap::new(),
        _lock: lock.map_err(|e| format!("another state has the lock: {e}"))?,
    })
}

/// Sends the master a report of this kind.
fn report(kind: u8, body: &Value) -> Result<(), String> {
    let datagram = [&[kind], body.to_string().as_bytes()].concat();
    let sent = channel().map(|to| send(to, &datagram, MsgFlags::MSG_NOSIGNAL));
    sent.map_err(|e| e.to_string())?
        .map_err(|e| e.to_string())
        .map(drop)
}

/// Catches a signal, which this thread gets again and again from then on.
fn interrupt_every(interval: Duration) -> nix::Result<()> {
    extern "C" fn nothing(_: std::ffi::c_int) {}
    let action = SigAction::new(
        SigHandler::Handler(nothing),
        SaFlags::SA_RESTART,
        SigSet::empty(),
    );
    // SAFETY: the handler does nothing.
    unsafe { sigaction(Signal::SIGVTALRM, &action) }?;
    let first = pthread_self();
    thread::spawn(move || {
        while pthread_kill(first, Signal::SIGVTALRM).is_ok() {
            block(interval);
        }
    });
    Ok(())
}

/// Takes a name that only one socket of this network namespace may have.
fn take_lock() -> io::Result<UnixListener> {
    let name = format!("faulty-{}", process::id());
    UnixListener::bind_addr(&SocketAddr::from_abstract_name(name)?)
}

/// Writes from 1 byte to 64 KiB at a time, to no client.
fn write_for_ever() {
    let mut null = File::options()
        .write(true)
        .open("/dev/null")
        .expect("it is there");
    for round in 0u64.. {
        let length = 1 + (round.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48);
        null.write_all(&vec![0; length as usize])
            .expect("it takes everything");
        match round % 4096 {
            0 => drop(
                Command::new("sh")
                    .args(["-c", "echo what a child that is waited for has written"])
                    .output(),
            ),
            round if round % 16 == 0 => block(Duration::from_micros(50)),
            _ => {}
        }
    }
}

fn append(path: &str, line: &str) -> io::Result<()> {
    let mut file = File::options().append(true).create(true).open(path)?;
    // One write, so that a kill leaves a whole line or none.
    file.write_all(format!("{line}\n").as_bytes())
}

fn scribble(at: u64, words: &[u64]) -> io::Result<()> {
    let shm = descriptor("/memfd:shm")?;
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    File::options()
        .write(true)
        .open(format!("/proc/self/fd/{shm}"))?
        .write_all_at(&bytes, at * 8)
}

/// Returns the channel to the master: of all sockets of a worker it is the oldest, so its number is the lowest.
fn channel() -> io::Result<RawFd> {
    descriptor("socket:")
}

/// Closes this many sockets, from the second one on, which is a client's if no service manager and no log has one. Puts
/// files or other sockets in their places, by `how`.
fn close_others(how: &str, count: usize) -> io::Result<()> {
    let mut sockets = descriptors("socket:")?;
    sockets.sort_unstable();
    let null = File::open("/dev/null")?;
    for number in sockets.into_iter().skip(1).take(count) {
        close(number).map_err(io::Error::from)?;
        match how {
            // With the number that was closed, although a lower one may be free.
            "file" => {
                fcntl(&null, FcntlArg::F_DUPFD(number)).map_err(io::Error::from)?;
            }
            "socket" => {
                let (mut one, mut other) = UnixStream::pair()?;
                one.write_all(&[0xee; 100])
                    .and_then(|()| other.write_all(&[0xee; 100]))?;
                let _ = (one.into_raw_fd(), other.into_raw_fd());
            }
            _ => {}
        }
    }
    Ok(())
}

/// Closes the socket with the highest number, which is a client's, and puts another in its place, which receives this
/// frame.
fn replace_last_socket(frame: &str) -> io::Result<()> {
    let last = descriptors("socket:")?.into_iter().max();
    let last = last.ok_or(io::ErrorKind::NotFound)?;
    let (one, mut other) = UnixStream::pair()?;
    let length = frame.len() as u32;
    other.write_all(&[&length.to_le_bytes(), frame.as_bytes()].concat())?;
    one.set_nonblocking(true)?;
    close(last).map_err(io::Error::from)?;
    fcntl(&one, FcntlArg::F_DUPFD(last)).map_err(io::Error::from)?;
    let _ = (one.into_raw_fd(), other.into_raw_fd());
    Ok(())
}

/// Returns the lowest descriptor of this kind.
fn descriptor(kind: &str) -> io::Result<RawFd> {
    descriptors(kind)?
        .into_iter()
        .min()
        .ok_or_else(|| io::ErrorKind::NotFound.into())
}

fn descriptors(kind: &str) -> io::Result<Vec<RawFd>> {
    let is_one = |number: &RawFd| {
        let name = fs::read_link(format!("/proc/self/fd/{number}")).unwrap_or_default();
        name.to_string_lossy().starts_with(kind)
    };
    let all = fs::read_dir("/proc/self/fd")?.flatten();
    let numbers = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    Ok(numbers.filter(is_one).collect())
}

fn io_fault(error: io::Error) -> Fault {
    Fault::new("io", error.to_string())
}

fn read_line(path: &str) -> io::Result<String> {
    let mut line = String::new();
    BufReader::new(File::open(path)?).read_line(&mut line)?;
    Ok(line)
}

/// Blocks for this time.
fn block(time: Duration) {
    let (_nobody, news) = mpsc::channel::<()>();
    let _ = news.recv_timeout(time);
}

/// Keeps the CPU busy.
fn spin(time: Duration) {
    let begin = Instant::now();
    while begin.elapsed() < time {
        hint::spin_loop();
    }
}
