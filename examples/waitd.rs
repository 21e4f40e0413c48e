//! A daemon whose methods wait: `waitd` executes many requests at a time in each worker.
//!
//! ```sh
//! cargo run --features tokio --example waitd
//! cargo run --bin fdpassctl -- call sleep 300 --to 127.0.0.1:8080
//! ```
//!
//! `record` appends to the file that the key `record` of the table `[waitd]` names. With the key `start_after`, a
//! worker becomes ready only when that file exists.

use std::fs::File;
use std::io::{self, Write};
use std::ops::Deref;
use std::path::PathBuf;
use std::process::{self, ExitCode};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use std::{env, hint, thread};

use fdpassd::{AsyncCall, Call, Daemon, Fault, Method, WorkerInfo};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::runtime::Handle;
use tokio::time::sleep;

/// The state of a worker, which all its requests share.
struct Shared {
    worker: u64,
    waited: AtomicU64,
    /// The words of the panic in the next clone.
    panic_in_clone: Mutex<Option<String>>,
    settings: Settings,
}

/// The table `[waitd]` of the configuration.
#[derive(Clone, Default, Deserialize)]
#[serde(default)]
struct Settings {
    record: Option<PathBuf>,
    start_after: Option<PathBuf>,
}

/// Each request gets a clone of it.
struct State(Arc<Shared>);

impl Clone for State {
    fn clone(&self) -> State {
        let words = self
            .panic_in_clone
            .lock()
            .ok()
            .and_then(|mut words| words.take());
        if let Some(words) = words {
            panic!("{words}");
        }
        State(Arc::clone(&self.0))
    }
}

impl Deref for State {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

fn main() -> ExitCode {
    Daemon::new("waitd")
        .config::<Settings>()
        .state(|worker: &WorkerInfo<Settings>| {
            // A constructor can wait as methods do.
            Handle::current().block_on(start_after(&worker.config));
            Ok::<State, Fault>(State(Arc::new(Shared {
                worker: worker.worker.0,
                waited: AtomicU64::new(0),
                panic_in_clone: Mutex::new(None),
                settings: worker.config.clone(),
            })))
        })
        .method(Method::new_async("sleep", wait).idempotent())
        .async_method("record", record)
        .async_method("until_dropped", until_dropped)
        .async_method("circumstances", circumstances)
        .async_method("panic", panics)
        .async_method("block", block)
        .async_method("compute", compute)
        .async_method("record_often", record_often)
        .async_method("write", write)
        .async_method("fault", fault)
        .async_method("die", die)
        .method(Method::new_async("die_once", die_once).idempotent())
        .method(Method::new_async("until_rerun", until_rerun).idempotent())
        // These run in the thread of the worker's loop, while others wait.
        .method(Method::new("waited", |state: &mut State, (): (), _| {
            Ok(state.waited.load(Ordering::Relaxed))
        }))
        .method(Method::new(
            "whoami",
            |state: &mut State, (): (), call: &Call| {
                Ok(json!({ "worker": state.worker, "pid": process::id(), "client": call.client }))
            },
        ))
        .method(Method::new("busy_threads", busy_threads))
        .method(Method::new("block_in_loop", block_in_loop))
        .method(Method::new(
            "panic_in_loop",
            |_: &mut State, words: String, _| -> Result<(), Fault> { panic!("{words}") },
        ))
        .method(Method::new("panic_in_clone", panic_in_clone))
        .concurrency(concurrency())
        .run()
}

async fn start_after(settings: &Settings) {
    while settings
        .start_after
        .as_ref()
        .is_some_and(|path| !path.exists())
    {
        sleep(Duration::from_millis(5)).await;
    }
}

/// Returns `$WAITD_CONCURRENCY`, or 64.
fn concurrency() -> u32 {
    let set = env::var("WAITD_CONCURRENCY").ok();
    set.and_then(|most| most.parse().ok()).unwrap_or(64)
}

/// Waits for this many milliseconds. Returns the number of the attempt.
async fn wait(state: State, milliseconds: u64, call: AsyncCall) -> Result<u32, Fault> {
    sleep(Duration::from_millis(milliseconds)).await;
    state.waited.fetch_add(1, Ordering::Relaxed);
    Ok(call.attempt)
}

/// Has a side effect that can be counted: writes one line before the wait, and one after it.
async fn record(
    state: State,
    (words, milliseconds): (String, u64),
    _: AsyncCall,
) -> Result<String, Fault> {
    append(&state, &format!("begun {words}"))?;
    sleep(Duration::from_millis(milliseconds)).await;
    append(&state, &format!("done {words}"))?;
    Ok(words)
}

/// Never returns: it is dropped, and records that.
async fn until_dropped(state: State, words: String, call: AsyncCall) -> Result<(), Fault> {
    struct OnDrop(State, String, AsyncCall);
    impl Drop for OnDrop {
        fn drop(&mut self) {
            let OnDrop(state, words, call) = self;
            let is_connected = call.is_connected();
            let _ = append(state, &format!("dropped {words} {is_connected}"));
            log::info!("the future is dropped");
        }
    }
    append(&state, &format!("begun {words}"))?;
    let _dropped = OnDrop(state, words, call);
    std::future::pending().await
}

/// Returns what a method knows of its request.
async fn circumstances(_: State, (): (), call: AsyncCall) -> Result<Value, Fault> {
    let left = call
        .deadline
        .map(|at| at.saturating_duration_since(Instant::now()));
    Ok(json!({
        "client": call.client, "peer": call.peer.to_string(),
        "via": call.via.map(|via| via.to_string()), "attempt": call.attempt,
        "left": left.map(|left| left.as_secs()), "connected": call.is_connected(),
    }))
}

async fn panics(_: State, words: String, _: AsyncCall) -> Result<(), Fault> {
    sleep(Duration::from_millis(1)).await;
    panic!("{words}")
}

/// Blocks the thread that all requests share, as no method should.
async fn block(_: State, milliseconds: u64, _: AsyncCall) -> Result<(), Fault> {
    thread::sleep(Duration::from_millis(milliseconds));
    Ok(())
}

/// Computes without a pause, as no method should.
async fn compute(_: State, milliseconds: u64, _: AsyncCall) -> Result<(), Fault> {
    let end = Instant::now() + Duration::from_millis(milliseconds);
    while Instant::now() < end {
        hint::spin_loop();
    }
    Ok(())
}

/// Writes without a pause.
async fn write(_: State, milliseconds: u64, _: AsyncCall) -> Result<(), Fault> {
    let end = Instant::now() + Duration::from_millis(milliseconds);
    let fault = |e: io::Error| Fault::new("io", e.to_string());
    let null = File::options().write(true).open("/dev/null");
    let mut null = null.map_err(fault)?;
    while Instant::now() < end {
        null.write_all(&[0; 4096]).map_err(fault)?;
    }
    Ok(())
}

/// Has a side effect every millisecond, and never returns.
async fn record_often(state: State, words: String, _: AsyncCall) -> Result<(), Fault> {
    append(&state, &format!("begun {words}"))?;
    loop {
        sleep(Duration::from_millis(1)).await;
        append(&state, "again")?;
    }
}

/// Blocks the thread of the worker's loop.
fn block_in_loop(_: &mut State, milliseconds: u64, _: &Call) -> Result<(), Fault> {
    thread::sleep(Duration::from_millis(milliseconds));
    Ok(())
}

/// Makes the next clone of the state panic.
fn panic_in_clone(state: &mut State, words: String, _: &Call) -> Result<(), Fault> {
    if let Ok(mut next) = state.panic_in_clone.lock() {
        *next = Some(words);
    }
    Ok(())
}

async fn fault(_: State, (code, message): (String, String), _: AsyncCall) -> Result<(), Fault> {
    Err(Fault::new(code, message))
}

/// Starts threads that never wait.
fn busy_threads(_: &mut State, count: u32, _: &Call) -> Result<(), Fault> {
    for _ in 0..count {
        let named = thread::Builder::new().name("busy".to_owned());
        let spawned = named.spawn(|| {
            loop {
                hint::spin_loop();
            }
        });
        spawned.map_err(|e| Fault::new("thread", e.to_string()))?;
    }
    Ok(())
}

/// Ends the worker.
async fn die(_: State, status: i32, _: AsyncCall) -> Result<(), Fault> {
    process::exit(status)
}

/// Ends the worker in the first attempt.
async fn die_once(_: State, (): (), call: AsyncCall) -> Result<u32, Fault> {
    if call.attempt == 1 {
        process::abort();
    }
    Ok(call.attempt)
}

/// Never returns in the first attempt.
async fn until_rerun(_: State, (): (), call: AsyncCall) -> Result<u32, Fault> {
    if call.attempt == 1 {
        std::future::pending::<()>().await;
    }
    Ok(call.attempt)
}

/// Appends a line to the record.
fn append(state: &Shared, line: &str) -> Result<(), Fault> {
    let Some(path) = &state.settings.record else {
        return Ok(());
    };
    let file = File::options().append(true).create(true).open(path);
    // One write, so that a kill leaves a whole line or none.
    let written: io::Result<()> =
        file.and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()));
    written.map_err(|e| Fault::new("io", e.to_string()))
}
