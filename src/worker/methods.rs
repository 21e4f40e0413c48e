//! The methods of a daemon, and the state they share.

use std::cell::RefCell;
use std::panic::{self, AssertUnwindSafe, catch_unwind};
use std::thread;
use std::time::Duration;

use serde_json::value::RawValue;

use super::builtin;
use super::hooks::Hooks;
use super::method::Method;
use super::metrics::WorkerMetrics;
use super::reply::{Call, Fault, Reply};
use crate::logging::scope;
use crate::proto::channel::MethodName;
use crate::proto::names::{ClientId, Generation, WorkerId};
use crate::proto::rpc::Code;
use crate::sys::fork;

/// Methods that every daemon has.
const PING: &str = "ping";
const METHODS: &str = "methods";

/// The worker process that constructs a state. `C` is the type of the daemon's own table in the configuration, see
/// [`Daemon::config`](crate::Daemon::config).
#[derive(Clone, Debug)]
pub struct WorkerInfo<C = ()> {
    /// The daemon's name.
    pub name: String,
    /// The worker's id; never reused.
    pub worker: WorkerId,
    /// The worker's index, from 0 to the number of workers less one; a successor takes the same one.
    pub seat: u32,
    /// The configuration it serves.
    pub generation: Generation,
    /// The daemon's own table in that configuration.
    pub config: C,
    /// Counters and histograms of the daemon's own.
    pub metrics: WorkerMetrics,
}

impl WorkerInfo {
    /// Returns the same with a table.
    pub(crate) fn with_config<C>(&self, config: C) -> WorkerInfo<C> {
        WorkerInfo {
            name: self.name.clone(),
            worker: self.worker,
            seat: self.seat,
            generation: self.generation,
            config,
            metrics: self.metrics.clone(),
        }
    }
}

/// Makes a state, for a worker and the text of the daemon's own table.
pub(crate) type Constructor<S> = Box<dyn Fn(&WorkerInfo, &str) -> Result<S, String>>;

/// All methods of a daemon, in the order of their names, the constructor of their state, and its other functions.
pub(crate) struct Methods<S> {
    all: Vec<Method<S>>,
    constructor: Constructor<S>,
    hooks: Hooks<S>,
}

impl<S: 'static> Methods<S> {
    /// Adds the methods that every daemon has: `ping`, and `methods`, which lists all methods, itself included.
    ///
    /// # Errors
    /// All errors of the program in these methods, each in a sentence.
    pub(crate) fn new(
        own: Vec<Method<S>>,
        constructor: Constructor<S>,
        hooks: Hooks<S>,
    ) -> Result<Methods<S>, Vec<String>> {
        let mut mistakes: Vec<String> = own.iter().flat_map(Method::mistakes).collect();
        mistakes.extend(hooks.mistake());
        let ping = Method::raw(PING, |_, params, out| builtin::ping(params, out));
        let list = Method::raw(METHODS, |_, _, _| Ok(()));
        let mut all = vec![
            ping.idempotent().inline().reply_name("pong"),
            list.idempotent(),
        ];
        for method in own {
            let name = &method.name;
            if [PING, METHODS].contains(&name.as_str()) {
                mistakes.push(format!(
                    "every daemon has a method {name:?}; yours needs another name"
                ));
            } else if all.iter().any(|other| other.name == *name) {
                mistakes.push(format!("duplicate method {name:?}"));
            } else {
                all.push(method);
            }
        }
        if !mistakes.is_empty() {
            return Err(mistakes);
        }
        all.sort_by(|one, other| one.name.cmp(&other.name));
        let mut methods = Methods {
            all,
            constructor,
            hooks,
        };
        let names = methods.names();
        let list = methods.all.iter_mut().find(|method| method.name == METHODS);
        list.expect("it was added").handler = Box::new(move |_, _, out| out.json(&names));
        Ok(methods)
    }

    /// Removes a method, if there is one of that name.
    pub(crate) fn remove(&mut self, name: &str) {
        self.all.retain(|method| method.name != name);
    }

    pub(super) fn names(&self) -> Vec<MethodName> {
        let name = |method: &Method<S>| MethodName {
            name: method.name.clone(),
            idempotent: method.is_idempotent,
        };
        self.all.iter().map(name).collect()
    }
}

/// The methods as the worker's loop calls them, independent of the type of their state.
pub(crate) trait Service {
    /// Returns all methods, in the order of their indices.
    fn names(&self) -> Vec<MethodName>;

    /// Returns the index of a method.
    fn find(&mut self, name: &str) -> Option<usize>;

    /// Returns whether the method may run once more after a death.
    fn is_idempotent(&self, index: usize) -> bool;

    /// Returns whether the method takes microseconds, so that no clock is read around it.
    fn is_inline(&self, index: usize) -> bool;

    /// Runs the method. On success the buffer contains the reply as a whole frame, whose length is returned.
    fn call(
        &mut self,
        index: usize,
        params: &RawValue,
        call: Call<'_>,
        buffer: &mut [u8],
        order: Order,
    ) -> Result<usize, Failure>;

    /// Returns whether this process runs methods that are not inline. They may close descriptors that are not theirs.
    fn has_own_methods(&self) -> bool;

    /// Returns the method's name and that of its replies, if an app executes it.
    fn app_method(&self, index: usize) -> Option<(&str, &str)> {
        let _ = index;
        None
    }

    /// Returns whether the state is notified of clients that have left.
    fn wants_left_clients(&self) -> bool;

    /// Notifies the state that this worker does not serve the client any more.
    ///
    /// # Errors
    /// Why this process cannot continue: the function panicked, and the state cannot be rebuilt.
    fn client_has_left(&mut self, client: ClientId) -> Result<(), String>;

    /// Returns the time between two health checks, if the daemon has a health function.
    fn health_interval(&self) -> Option<Duration>;

    /// Calls the health function. Returns why the worker is unhealthy, if it is.
    ///
    /// # Errors
    /// As [`Service::client_has_left`].
    fn check_health(&mut self) -> Result<Option<String>, String>;
}

pub(crate) use crate::proto::frame::ByteOrder as Order;

/// The reason why there is no result.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The method returned a fault.
    Fault(Fault),
    /// The method panicked; its state has been rebuilt.
    Panicked,
    /// The method panicked, and its state cannot be rebuilt: this process cannot continue.
    Broken(String),
}

/// Methods with their state.
pub(crate) struct RunningService<S> {
    methods: Methods<S>,
    /// Missing only while it is created again.
    state: Option<S>,
    info: WorkerInfo,
    own_table: String,
    /// The index of the method that was found last.
    last: usize,
}

impl<S: 'static> RunningService<S> {
    /// Constructs the state.
    pub(crate) fn start(
        methods: Methods<S>,
        info: WorkerInfo,
        own_table: String,
    ) -> Result<RunningService<S>, String> {
        let state = construct(&methods, &info, &own_table)?;
        Ok(RunningService {
            methods,
            state: Some(state),
            info,
            own_table,
            last: 0,
        })
    }
}

fn construct<S>(methods: &Methods<S>, info: &WorkerInfo, table: &str) -> Result<S, String> {
    let made = catch_unwind(AssertUnwindSafe(|| (methods.constructor)(info, table)));
    fork::end_child();
    match made {
        Ok(made) => made,
        Err(_) => Err(format!("the state's constructor {}", last_panic())),
    }
}

impl<S: 'static> Service for RunningService<S> {
    fn names(&self) -> Vec<MethodName> {
        self.methods.names()
    }

    fn find(&mut self, name: &str) -> Option<usize> {
        // Most requests call the same method as the one before.
        if self.methods.all[self.last].name != name {
            self.last = self
                .methods
                .all
                .binary_search_by(|method| method.name.as_str().cmp(name))
                .ok()?;
        }
        Some(self.last)
    }

    fn is_idempotent(&self, index: usize) -> bool {
        self.methods.all[index].is_idempotent
    }

    fn is_inline(&self, index: usize) -> bool {
        self.methods.all[index].is_inline
    }

    fn has_own_methods(&self) -> bool {
        // Each daemon has `ping` and `methods`.
        self.methods.all.len() > 2
    }

    fn call(
        &mut self,
        index: usize,
        params: &RawValue,
        call: Call<'_>,
        buffer: &mut [u8],
        order: Order,
    ) -> Result<usize, Failure> {
        let method = &self.methods.all[index];
        let Some(state) = &mut self.state else {
            return Err(Failure::Broken("there is no state".to_owned()));
        };
        scope::enter(call.client, Some(index));
        let mut reply = Reply::new(buffer, &method.reply_name, call);
        // A panic may leave the state inconsistent: it is replaced.
        let returned = catch_unwind(AssertUnwindSafe(|| {
            (method.handler)(state, params, &mut reply)
        }));
        // A child forked by the method would answer a second time.
        fork::end_child();
        let result = match returned {
            Ok(Ok(())) => reply.seal(order).map_err(Failure::Fault),
            Ok(Err(fault)) => Err(Failure::Fault(method.permitted(fault))),
            Err(_) => {
                log::error!(
                    "method {:?} {}; its state is created again",
                    method.name,
                    last_panic()
                );
                match self.renew() {
                    Ok(()) => Err(Failure::Panicked),
                    Err(why) => Err(Failure::Broken(why)),
                }
            }
        };
        scope::leave();
        result
    }

    fn wants_left_clients(&self) -> bool {
        self.methods.hooks.on_close.is_some()
    }

    fn client_has_left(&mut self, client: ClientId) -> Result<(), String> {
        let (Some(call), Some(state)) = (&self.methods.hooks.on_close, &mut self.state) else {
            return Ok(());
        };
        scope::enter(client, None);
        let returned = catch_unwind(AssertUnwindSafe(|| call(state, client)));
        fork::end_child();
        scope::leave();
        if returned.is_err() {
            log::error!("on_close {}; the state is created again", last_panic());
            self.renew()?;
        }
        Ok(())
    }

    fn health_interval(&self) -> Option<Duration> {
        let health = self.methods.hooks.health.as_ref();
        health.map(|(interval, _)| *interval)
    }

    fn check_health(&mut self) -> Result<Option<String>, String> {
        let (Some((_, check)), Some(state)) = (&self.methods.hooks.health, &mut self.state) else {
            return Ok(None);
        };
        let returned = catch_unwind(AssertUnwindSafe(|| check(state)));
        fork::end_child();
        match returned {
            Ok(found) => Ok(found.err()),
            Err(_) => {
                let panic = last_panic();
                log::error!("the health function {panic}; the state is created again");
                self.renew()?;
                Ok(Some("the health function panicked".to_owned()))
            }
        }
    }
}

impl<S: 'static> RunningService<S> {
    /// Replaces the state after a panic. The old one is dropped first: it may hold a lock, a port or a file that the new
    /// one needs.
    fn renew(&mut self) -> Result<(), String> {
        let old = self.state.take();
        let dropped = catch_unwind(AssertUnwindSafe(|| drop(old)));
        fork::end_child();
        if dropped.is_err() {
            log::error!("the drop of the old state {}", last_panic());
        }
        self.state = Some(construct(&self.methods, &self.info, &self.own_table)?);
        Ok(())
    }
}

thread_local! {
    /// The place and message of the last panic, which only the hook receives.
    static LAST_PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Keeps the message of a panic of this thread, so that the worker logs it in one line with the consequence. A panic of
/// another thread is logged with the name of the thread: it ends that thread only.
pub(crate) fn remember_panics() {
    let serving = thread::current().id();
    panic::set_hook(Box::new(move |info| {
        let panic = info.to_string().replacen('\n', " ", 1);
        if thread::current().id() == serving {
            LAST_PANIC.with(|last| last.replace(panic));
        } else {
            let name = thread::current()
                .name()
                .unwrap_or("without a name")
                .to_owned();
            log::error!("thread {name:?} {panic}");
        }
    }));
}

/// Returns "panicked at FILE:LINE:COLUMN: MESSAGE".
fn last_panic() -> String {
    LAST_PANIC.with(RefCell::take)
}

/// Returns the fault that a client receives.
impl From<Failure> for Fault {
    fn from(failure: Failure) -> Fault {
        match failure {
            Failure::Fault(fault) => fault,
            Failure::Panicked | Failure::Broken(_) => Fault::from_code(
                Code::Crashed,
                "the method crashed while it ran this request",
            ),
        }
    }
}
