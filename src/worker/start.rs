//! The start of a worker: it receives its identity and settings, prepares, and reports that it is ready.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::apps::birth::AppForker;
use super::apps::{App, AppService, StartingApp};
use super::away::{Executor, ExecutorKind};
#[cfg(feature = "tokio")]
use super::futures::Runtime;
use super::methods::{Methods, Service, WorkerInfo};
use super::metrics::WorkerMetrics;
use super::panics::{EndOnPanic, remember_panics};
use super::running::RunningService;
use super::{WorkerLoop, builtin, handoff, kill_points};
use crate::channel::{Channel, Incoming, Scratch, Sent};
use crate::logging::{self, scope};
use crate::proto::app::{AppSpec, EXCLUDED_BY_ASYNC, Hello};
use crate::proto::channel::{Failed, MAX_MESSAGE, Ready, Start, ToMaster, ToWorker, VERSION};
use crate::proto::message::Message;
use crate::proto::text::shortened;
use crate::shm::own_metrics::OwnMetricPart;
use crate::shm::{Layout, WorkerShm};
use crate::sys::poll::{self, Interest};
use crate::sys::{fd, fork, process, signal};

/// How much likelier the kernel kills a worker than its master when memory runs out: the worker is replaced and its
/// clients stay. It exceeds the share of the limit that a master's own memory takes.
pub(super) const OOM_SCORE: i32 = 500;

/// Why a worker ended without a request to stop.
#[derive(Debug)]
pub(crate) enum Error {
    /// The worker was not started by a master.
    NoMaster(String),
    /// The worker could not start or not continue. The master received the reason.
    Failed,
}

/// How the process of a worker was made.
#[derive(Debug)]
pub(crate) enum ProcessOrigin {
    /// The process executed the program.
    Executed,
    /// A zygote forked it. Another zygote forks its app, if there is one.
    Forked(Option<AppForker>),
}

/// The role of a process that was executed as a worker or as a zygote.
pub(crate) enum WorkerRole {
    /// A worker, with its end of its channel.
    Worker(OwnedFd, ProcessOrigin),
    /// A zygote that the master does not need any more.
    Zygote,
}

impl WorkerRole {
    /// Returns whether other processes have copies of what `main` owns.
    pub(crate) fn shares_main(&self) -> bool {
        match self {
            WorkerRole::Worker(_, origin) => matches!(origin, ProcessOrigin::Forked(_)),
            WorkerRole::Zygote => true,
        }
    }
}

/// Returns the role of a worker that was executed. Its channel is standard input.
///
/// # Errors
/// Those of [`fd::take_stdin`], in words.
pub(crate) fn take_channel() -> Result<WorkerRole, Error> {
    let channel = fd::take_stdin().map_err(no_master)?;
    Ok(WorkerRole::Worker(channel, ProcessOrigin::Executed))
}

fn no_master(error: io::Error) -> Error {
    Error::NoMaster(format!("workers are started by their master: {error}"))
}

/// Runs a worker to its end. `channel` is its end of the channel to its master.
pub(crate) fn run<S: 'static>(
    methods: Methods<S>,
    channel: OwnedFd,
    origin: ProcessOrigin,
) -> Result<(), Error> {
    let mut channel = Channel::new(channel);
    let _guard = EndOnPanic;
    let (start, descriptors) = match receive_start(&channel) {
        Ok(received) => received,
        // The master did not want it any more, or has ended.
        Err(_) if matches!(origin, ProcessOrigin::Forked(_)) => return Err(Error::Failed),
        Err(e) => return Err(no_master(e)),
    };
    // So that processes started by methods can be identified and end with this process. It fails for a worker that was
    // started by hand, which has no methods to run.
    let _ = process::begin_session();
    let served = serve(&mut channel, (start, origin), descriptors, methods).map_err(|reason| {
        let reason = shortened(reason);
        let failed = ToMaster::Failed(Failed { reason });
        matches!(send(&mut channel, &failed), Ok(Sent::Closed))
    });
    // It must close with the process: the master treats the end of the channel of a living process as an error.
    std::mem::forget(channel);
    let (Ok(is_master_gone) | Err(is_master_gone)) = served;
    if is_master_gone {
        log::logger().flush();
        // The master, which is gone, would kill the processes that methods have started.
        process::end_group_with_its_leader();
    }
    served.map(drop).map_err(|_| Error::Failed)
}

/// Waits for the first message.
fn receive_start(channel: &Channel<ToMaster, ToWorker>) -> io::Result<(Start, Vec<OwnedFd>)> {
    let mut scratch = Scratch::default();
    loop {
        match channel.receive(&mut scratch)? {
            Incoming::Message(ToWorker::Start(start), descriptors) if start.version == VERSION => {
                return Ok((*start, descriptors));
            }
            Incoming::Message(ToWorker::Start(start), _) => {
                let sentence = format!("its channel has version {}, not {VERSION}", start.version);
                return Err(io::Error::other(sentence));
            }
            Incoming::Nothing => {
                poll::wait_for(channel, Interest::Read, START_INTERVAL)?;
            }
            Incoming::Shortage => poll::pause(RETRY_INTERVAL),
            Incoming::Message(..) | Incoming::Garbage(_) | Incoming::Closed => {
                return Err(io::Error::other("standard input is not a channel to one"));
            }
        }
    }
}

/// Sends a message before or after the loop runs. No client waits for this process then.
fn send(channel: &mut Channel<ToMaster, ToWorker>, message: &ToMaster) -> io::Result<Sent> {
    loop {
        let sent = channel.send(message, &[])?;
        if !sent.is_refused() {
            return Ok(sent);
        }
        poll::pause(RETRY_INTERVAL);
    }
}

/// The time after which the channel is read although the poll did not return.
const START_INTERVAL: Duration = Duration::from_secs(3600);

/// The time between two attempts to send or receive a message.
pub(super) const RETRY_INTERVAL: Duration = Duration::from_millis(10);

/// Prepares the worker, reports that it is ready, and serves. Returns whether it ended because its master is gone.
fn serve<S: 'static>(
    channel: &mut Channel<ToMaster, ToWorker>,
    (mut start, origin): (Start, ProcessOrigin),
    mut descriptors: Vec<OwnedFd>,
    mut methods: Methods<S>,
) -> Result<bool, String> {
    prepare_process(&start, &origin)?;
    let layout = Layout::new(start.slots, start.longest);
    // The other descriptors are handoff queues.
    let shm_file = Arc::new(File::from(descriptors.remove(0)));
    let shm = WorkerShm::map(Arc::clone(&shm_file), layout)
        .map_err(|e| format!("cannot map the shared memory: {e}"))?;
    let metrics = OwnMetricPart::new(Arc::clone(&shm_file), layout);
    let metrics = WorkerMetrics::new(Some(metrics));
    let info = worker_info(&mut start, metrics.clone());
    if start.app.is_some() && methods.is_shipped {
        // The demonstration is not part of a service of its own.
        methods.remove(builtin::DEMONSTRATION);
    }
    let own_table = std::mem::take(&mut start.own_table);
    let names = methods.names().into_iter().map(|method| method.name);
    scope::set_worker(start.worker, names.collect());
    let executor = start_runtime(&methods, start.app.is_some())?;
    // The state, and everything else that this thread executes, may start tasks there.
    #[cfg(feature = "tokio")]
    let handle = executor.as_ref().and_then(Executor::handle);
    #[cfg(feature = "tokio")]
    let _context = handle.as_ref().map(tokio::runtime::Handle::enter);
    let mut own = RunningService::start(methods, info, own_table)?;
    if let Some(why) = own.check_health()? {
        return Err(format!("it is unhealthy: {why}"));
    }
    let Some(spec) = &start.app else {
        return serve_methods(
            channel,
            start,
            descriptors,
            &mut own,
            executor,
            (shm, shm_file),
        );
    };
    let cgroups = start.app_cgroups.as_deref();
    let forker = match origin {
        ProcessOrigin::Forked(forker) => forker,
        ProcessOrigin::Executed => None,
    };
    let (app, hello) = start_app(channel, (spec, forker), cgroups, layout, &metrics)?;
    let concurrency = app.info().concurrency;
    let mut service = AppService::new(&mut own, hello.methods)
        .map_err(|reason| format!("its app cannot be used: {reason}"))?;
    serve_methods(
        channel,
        start,
        descriptors,
        &mut service,
        Some(Executor::new(ExecutorKind::App(app), concurrency)),
        (shm, shm_file),
    )
}

/// Starts the runtime of asynchronous methods, if there are some.
fn start_runtime<S: 'static>(
    methods: &Methods<S>,
    has_app: bool,
) -> Result<Option<Executor>, String> {
    if !methods.has_async() {
        return Ok(None);
    }
    if has_app {
        // The master has checked the configuration, but perhaps by another program.
        return Err(EXCLUDED_BY_ASYNC.to_owned());
    }
    #[cfg(feature = "tokio")]
    {
        let started = Runtime::start();
        let runtime = started
            .map_err(|e| format!("cannot start the runtime of asynchronous methods: {e}"))?;
        let kind = ExecutorKind::Runtime(runtime);
        Ok(Some(Executor::new(kind, methods.concurrency)))
    }
    #[cfg(not(feature = "tokio"))]
    Ok(None)
}

/// Starts the app, reports its pid to the master, and waits for its hello.
fn start_app(
    channel: &mut Channel<ToMaster, ToWorker>,
    (spec, forker): (&AppSpec, Option<AppForker>),
    cgroups: Option<&Path>,
    layout: Layout,
    metrics: &WorkerMetrics,
) -> Result<(App, Hello), String> {
    let starting = StartingApp::spawn(spec, cgroups, layout.max_reply(), forker, &*channel);
    let starting = starting.map_err(|reason| format!("its app {reason}"))?;
    // If the master is gone, the wait for hello ends at once.
    let _ = send(channel, &ToMaster::AppStarted(starting.started()))
        .map_err(|e| format!("cannot report to the master: {e}"))?;
    let greeted = starting.await_hello(&*channel, metrics);
    greeted.map_err(|reason| format!("its app {reason}"))
}

/// Reports that the worker is ready, and serves. Returns whether it ended because its master is gone.
fn worker_info(start: &mut Start, metrics: WorkerMetrics) -> WorkerInfo {
    WorkerInfo {
        name: std::mem::take(&mut start.name),
        worker: start.worker,
        seat: start.seat,
        generation: start.generation,
        config: (),
        preloaded: Arc::default(),
        metrics,
    }
}

fn serve_methods(
    channel: &mut Channel<ToMaster, ToWorker>,
    start: Start,
    descriptors: Vec<OwnedFd>,
    service: &mut dyn Service,
    executor: Option<Executor>,
    (shm, shm_file): (WorkerShm, Arc<File>),
) -> Result<bool, String> {
    let (methods, layout) = (service.names(), shm.layout());
    let mut handoff = None;
    if !descriptors.is_empty() {
        let worker = (start.worker, start.seat, start.generation);
        let record = layout.record(worker, methods.clone());
        let grace = start.settings.restart_grace;
        let prepared = handoff::prepare(channel, descriptors, shm_file, &record, layout, grace);
        handoff = Some(prepared.map_err(|e| format!("cannot prepare the emergency handoff: {e}"))?);
    }
    let app = executor.as_ref().and_then(Executor::app);
    let ready = ToMaster::Ready(Ready {
        version: VERSION,
        methods,
        app: app.map(|app| app.info().clone()),
        runtime: executor.as_ref().and_then(Executor::runtime_info),
    });
    let mut datagram = Vec::new();
    ready.encode(&mut datagram);
    if datagram.len() > MAX_MESSAGE {
        return Err(
            "its methods, with the name and the version of its app, are too long together"
                .to_owned(),
        );
    }
    if let (Some(handoff), Some(app)) = (handoff, app) {
        let (pid, pidfd, cgroup) = app.process();
        handoff.guard_app(pid, pidfd, cgroup);
    }
    #[cfg(feature = "tokio")]
    if let (Some(handoff), Some(latch)) = (handoff, executor.as_ref().and_then(Executor::latch)) {
        handoff.guard_futures(latch);
    }
    let mut worker = WorkerLoop::new(channel, shm, start.settings, handoff, executor)
        .map_err(|e| format!("cannot create a poller: {e}"))?;
    worker
        .master
        .send_ready(&ready)
        .map_err(|e| format!("cannot report to the master: {e}"))?;
    worker.quarantine(&start.quarantined, service);
    worker.serve(service).map_err(|e| e.to_string())
}

/// Sets the name, signals, limits and log of this process. A forked worker has those of its zygote.
fn prepare_process(start: &Start, origin: &ProcessOrigin) -> Result<(), String> {
    kill_points::arm()?;
    fork::remember();
    remember_panics();
    match origin {
        // Those that the zygote has received are not this worker's.
        ProcessOrigin::Forked(_) => signal::forget_arrived(),
        ProcessOrigin::Executed => {
            process::set_name(&start.name);
            if let Err(e) = process::raise_oom_score(OOM_SCORE) {
                log::debug!("cannot raise the OOM score of this process: {e}");
            }
            signal::ignore_group_signals().map_err(|e| format!("cannot catch signals: {e}"))?;
            // The worker serves as many clients as its master may have; a lower limit shows when they arrive.
            let _ = fd::raise_limit();
        }
    }
    // The master has opened the log, or continues without it.
    let _ = logging::start_anyhow(&start.name, &start.settings.log);
    Ok(())
}
