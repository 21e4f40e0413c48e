//! The methods of a daemon, and the state they share.

use std::sync::Arc;
use std::time::Duration;

use serde_json::value::RawValue;

use super::builtin;
#[cfg(feature = "tokio")]
use super::futures::{AsyncCall, MethodJob};
use super::hooks::Hooks;
use super::method::Method;
use super::metrics::WorkerMetrics;
use super::preload::Preload;
use super::reply::{Call, Fault};
#[cfg(feature = "tokio")]
use crate::proto::app::MAX_CONCURRENCY;
use crate::proto::channel::{MethodName, check_methods};
use crate::proto::names::{ClientId, Generation, WorkerId};
use crate::proto::rpc::Code;

/// Methods that every daemon has.
const PING: &str = "ping";
const METHODS: &str = "methods";

/// The worker process that constructs a state. `C` is the type of the daemon's own table in the configuration, see
/// [`Daemon::config`](crate::Daemon::config).
#[derive(Clone, Debug)]
pub struct WorkerInfo<C = (), P = ()> {
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
    /// The value that [`Daemon::preload`](crate::Daemon::preload) has loaded; `()` without it.
    pub preloaded: Arc<P>,
    /// Counters and histograms of the daemon's own.
    pub metrics: WorkerMetrics,
}

impl WorkerInfo {
    /// Returns the same with a table, and with what was loaded before.
    pub(crate) fn with<C, P>(&self, config: C, preloaded: Arc<P>) -> WorkerInfo<C, P> {
        WorkerInfo {
            name: self.name.clone(),
            worker: self.worker,
            seat: self.seat,
            generation: self.generation,
            config,
            preloaded,
            metrics: self.metrics.clone(),
        }
    }
}

/// The most requests of asynchronous methods that one worker executes at a time, unless the program sets it.
#[cfg(feature = "tokio")]
const DEFAULT_CONCURRENCY: u32 = 64;

/// Makes a state, for a worker and the text of the daemon's own table.
pub(crate) type Constructor<S> = Box<dyn Fn(&WorkerInfo, &str) -> Result<S, String>>;

/// All methods of a daemon, in the order of their names, the constructor of their state, and its other functions.
pub(crate) struct Methods<S> {
    pub(super) all: Vec<Method<S>>,
    pub(super) constructor: Constructor<S>,
    pub(super) hooks: Hooks<S>,
    /// Loads what the workers of a generation share, if there is something.
    pub(super) preload: Option<Preload>,
    /// The program is fdpassd itself.
    pub(super) is_shipped: bool,
    /// The most requests of asynchronous methods that one worker executes at a time.
    #[cfg(feature = "tokio")]
    pub(super) concurrency: u32,
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
            preload: None,
            is_shipped: false,
            #[cfg(feature = "tokio")]
            concurrency: DEFAULT_CONCURRENCY,
        };
        let names = methods.names();
        check_methods(&names).map_err(|mistake| vec![mistake])?;
        let list = methods.all.iter_mut().find(|method| method.name == METHODS);
        list.expect("it was added").handler = Box::new(move |_, _, out| out.json(&names));
        Ok(methods)
    }

    /// Adds the function that loads what the workers of a generation share.
    pub(crate) fn with_preload(mut self, preload: Option<Preload>) -> Methods<S> {
        self.preload = preload;
        self
    }

    /// Records that the program is fdpassd itself, which runs no other code.
    pub(crate) fn set_shipped(&mut self) {
        self.is_shipped = true;
    }

    /// Sets the most requests of asynchronous methods that one worker executes at a time.
    ///
    /// # Errors
    /// The error of the program, in a sentence.
    #[cfg(feature = "tokio")]
    pub(crate) fn set_concurrency(&mut self, most: u32) -> Result<(), String> {
        if !(1..=MAX_CONCURRENCY).contains(&most) {
            return Err(format!(
                "a concurrency of {most} is outside of 1 to {MAX_CONCURRENCY}"
            ));
        }
        self.concurrency = most;
        Ok(())
    }

    /// Returns whether futures execute some of these methods.
    pub(crate) fn has_async(&self) -> bool {
        self.all.iter().any(Method::is_async)
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

/// A method that a request names.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FoundMethod {
    pub(crate) index: usize,
    /// The method takes microseconds, so that no clock is read around it.
    pub(crate) is_inline: bool,
    /// An app or a runtime executes it.
    pub(crate) is_away: bool,
}

/// The methods as the worker's loop calls them, independent of the type of their state.
pub(crate) trait Service {
    /// Returns all methods, in the order of their indices.
    fn names(&self) -> Vec<MethodName>;

    /// Returns the method of this name.
    fn find(&mut self, name: &str) -> Option<FoundMethod>;

    /// Returns whether the method may run once more after a death.
    fn is_idempotent(&self, index: usize) -> bool;

    /// Runs the method. On success the buffer contains the reply as a complete frame, whose length is returned.
    fn call(
        &mut self,
        index: usize,
        params: &RawValue,
        call: Call<'_>,
        buffer: &mut [u8],
        order: Order,
    ) -> Result<usize, Failure>;

    /// Returns whether this process runs code that is not fdpassd's: methods, functions such as those for health,
    /// threads of the state or of `main`. They may close descriptors that are not theirs.
    fn runs_other_code(&self) -> bool;

    /// Returns the method's name and that of its replies, if an app or a runtime executes it.
    fn away_method(&self, index: usize) -> Option<(&str, &str)> {
        let _ = index;
        None
    }

    /// Returns what executes a request of an asynchronous method in the runtime. `params` are JSON.
    #[cfg(feature = "tokio")]
    fn begin(&mut self, index: usize, params: Option<&[u8]>, call: &AsyncCall) -> MethodJob {
        let _ = (index, params, call);
        Box::new(|| {
            let fault = Fault::from_code(Code::Internal, "the method is not asynchronous");
            Box::pin(std::future::ready(Err(fault)))
        })
    }

    /// Returns whether this process should be replaced, because its state could not be replaced after a panic. Resets
    /// that.
    fn take_spent(&mut self) -> bool {
        false
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
