//! The thread of the runtime.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use tokio::runtime::{Builder, Handle};
use tokio::task::{LocalSet, spawn_local};

use super::execution::{Tasks, execute};
use super::queues::{Command, Queues, Report};
use crate::sys::fork;
use crate::sys::signal::HeldBack;

/// The thread that runs.
#[derive(Debug)]
pub(super) struct Started {
    pub(super) handle: Handle,
    /// The number of the thread.
    pub(super) thread: u32,
}

/// Starts the thread, which blocks all signals, as its own threads do.
///
/// # Errors
/// Those of pthread_create(3), and of what the runtime opens.
pub(super) fn start(queues: &Arc<Queues>) -> io::Result<Started> {
    let (send, started) = mpsc::channel();
    let queues = Arc::clone(queues);
    let blocked = HeldBack::all();
    let named = thread::Builder::new().name("runtime".to_owned());
    let spawned = named.spawn(move || run(&queues, &send));
    drop(blocked);
    spawned?;
    started.recv().map_err(io::Error::other)?
}

fn run(queues: &Arc<Queues>, started: &mpsc::Sender<io::Result<Started>>) {
    let _end = End(queues);
    let runtime = match Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => return drop(started.send(Err(e))),
    };
    let _ = started.send(Ok(Started {
        handle: runtime.handle().clone(),
        thread: fork::thread_id(),
    }));
    let local = LocalSet::new();
    let within = local.block_on(&runtime, serve(queues));
    // A panic of a destructor must not affect other futures.
    let _context = runtime.enter();
    let _ = catch_unwind(AssertUnwindSafe(|| drop(local)));
    drop(_context);
    runtime.shutdown_timeout(within);
}

/// Records the end of the thread, however it ends.
struct End<'a>(&'a Queues);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// Obeys commands until one ends the thread. Returns how long blocking tasks may take then.
async fn serve(queues: &Arc<Queues>) -> Duration {
    let tasks: Tasks = Rc::new(RefCell::new(HashMap::new()));
    loop {
        for command in queues.commands().await {
            match command {
                Command::Begin {
                    id,
                    method,
                    client,
                    job,
                } => {
                    let about = (id, client, method);
                    let execution = execute(Arc::clone(queues), Rc::clone(&tasks), about, job);
                    // The task runs later, so it is in the map before it ends.
                    let task = spawn_local(execution);
                    tasks.borrow_mut().insert(id, task.abort_handle());
                }
                Command::Cancel(id) => {
                    let task = tasks.borrow().get(&id).cloned();
                    // It may have ended already.
                    if let Some(task) = task {
                        task.abort();
                    }
                }
                Command::Probe => queues.report(Report::Alive),
                Command::Stop(within) => return within,
            }
        }
    }
}
