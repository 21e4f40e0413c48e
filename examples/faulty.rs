//! A daemon with every fault that a method, a state or its programmer can have. The tests run it; nobody else should.
//!
//! The variable `FAULTY` says what is wrong from the start: `fail`, `panic`, `exit` or `hang` instead of making the
//! state, in all seats or, as in `fail:1`, in that one; `fail-again` when the state is to be made anew; `two-methods`
//! and `bad-name` of one. Where it is `file:PATH`, the file says what is wrong with the workers made from then on.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::process::{self, ExitCode};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use std::{env, fs, hint, io};

use fdpassd::{Call, Daemon, Fault, WorkerInfo};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

/// What one worker process has.
struct State {
    worker: WorkerInfo,
    /// Calls of `whoami` since the state was made.
    calls: u64,
}

fn main() -> ExitCode {
    let daemon = Daemon::named("faulty")
        .state(make)
        .method("whoami", |state: &mut State, (): (), call: &Call| Ok::<Value, Fault>(whoami(state, call)))
        .method("exit", |_, status: i32, _| -> Result<(), Fault> { process::exit(status) })
        .method("abort", |_, (): (), _| -> Result<(), Fault> { process::abort() })
        // Ends the process at each attempt up to this one.
        .idempotent("exit_until", |_, attempt: u32, call| {
            if call.attempt < attempt {
                process::exit(3);
            }
            Ok(call.attempt)
        })
        // Ends the process as a bug in C does.
        .method("segv", |_, (): (), _| -> Result<(), Fault> {
            let _ = kill(Pid::this(), Signal::SIGSEGV);
            unreachable!("nobody survives that")
        })
        .method("panic", |_, words: String, _| -> Result<(), Fault> { panic!("{words}") })
        .method("nan", |_, (): (), _| Ok([f64::NAN, f64::INFINITY, 1.0]))
        .method("anything", |_, any: Value, _| Ok(any))
        .method("fault", |_, (code, message): (String, String), _| -> Result<(), Fault> {
            Err(Fault::new(code, message))
        })
        .method("spin", |_, milliseconds: u64, _| {
            spin(Duration::from_millis(milliseconds));
            Ok(())
        })
        .method("sleep", |_, milliseconds: u64, _| {
            block(Duration::from_millis(milliseconds));
            Ok(())
        })
        // Never comes back, although it has said that it takes microseconds.
        .method("livelock", |_, (): (), _| -> Result<(), Fault> {
            spin(Duration::MAX);
            Ok(())
        })
        .inline()
        // A side effect that can be counted: one more line in a file.
        .method("count", |_, (path, line): (String, String), _| append(&path, &line))
        // In how many milliseconds the process may be killed, if it may be.
        .method("deadline", |_, (): (), call| {
            Ok(call.deadline.map(|at| u64::try_from(at.saturating_duration_since(Instant::now()).as_millis()).ok()))
        })
        .method("spin_inline", |_, milliseconds: u64, _| {
            spin(Duration::from_millis(milliseconds));
            Ok(())
        })
        .inline()
        .idempotent("sleep_again", |_, milliseconds: u64, call| {
            block(Duration::from_millis(milliseconds));
            Ok(call.attempt)
        })
        // Whose FIFO it is decides when this ends.
        .method("read_line", |_, path: String, _| read_line(&path).map_err(|e| Fault::new("io", e.to_string())))
        // The same, but once only: a second attempt tells which one it is.
        .idempotent("read_line_once", |_, path: String, call| match call.attempt {
            1 => read_line(&path).map_err(|e| Fault::new("io", e.to_string())),
            attempt => Ok(format!("attempt {attempt}")),
        });
    match env::var("FAULTY").as_deref() {
        Ok("two-methods") => daemon.method("nan", |_, (): (), _| Ok(())).run(),
        Ok("bad-name") => daemon.method("Bad Name", |_, (): (), _| Ok(())).run(),
        _ => daemon.run(),
    }
}

fn whoami(state: &mut State, call: &Call) -> Value {
    state.calls += 1;
    let WorkerInfo { worker, seat, .. } = &state.worker;
    json!({
        "worker": worker, "seat": seat, "pid": process::id(), "calls": state.calls, "client": call.client,
        "attempt": call.attempt,
    })
}

fn make(worker: &WorkerInfo) -> Result<State, String> {
    static MADE: AtomicBool = AtomicBool::new(false);
    let fault = env::var("FAULTY").unwrap_or_default();
    let fault = fault.strip_prefix("file:").map_or(fault.clone(), |path| fs::read_to_string(path).unwrap_or_default());
    let (fault, seat) = fault.split_once(':').map_or((fault.as_str(), None), |(fault, seat)| (fault, Some(seat)));
    if seat.is_none_or(|seat| seat == worker.seat.to_string()) {
        match fault {
            "fail" => return Err("the model cannot be loaded".to_owned()),
            "panic" => panic!("the model is broken"),
            "exit" => process::exit(9),
            "hang" => spin(Duration::MAX),
            "fail-again" if MADE.swap(true, Ordering::Relaxed) => return Err("the model is gone".to_owned()),
            _ => {}
        }
    }
    Ok(State { worker: worker.clone(), calls: 0 })
}

fn append(path: &str, line: &str) -> Result<(), Fault> {
    let fault = |e: io::Error| Fault::new("io", e.to_string());
    let mut file = File::options().append(true).create(true).open(path).map_err(fault)?;
    // One write, so that a kill leaves a whole line or none.
    file.write_all(format!("{line}\n").as_bytes()).map_err(fault)
}

fn read_line(path: &str) -> io::Result<String> {
    let mut line = String::new();
    BufReader::new(File::open(path)?).read_line(&mut line)?;
    Ok(line)
}

/// Waits for something that never comes.
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
