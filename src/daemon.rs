//! A daemon, defined by its name and methods.

mod run;

use std::fmt;
use std::process::ExitCode;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use crate::worker::{self, Call, Fault, Methods, Reply, WorkerInfo};

/// The name of the daemon of this package, unlike those that are written with its library.
const SHIPPED: &str = "fdpassd";

/// A daemon with its own methods: `fdpassd` with another name.
///
/// It reads `/etc/NAME.toml`, has its control socket in `/run/NAME/`, and has all options of `fdpassd`. Each worker
/// process has one state, which [`Daemon::state`] makes and one method at a time may change. The state is rebuilt at
/// every reload, recycle, crash and panic: see *Where to keep state* in README.md.
///
/// ```no_run
/// use fdpassd::{Call, Daemon, Fault};
///
/// fn main() -> std::process::ExitCode {
///     Daemon::new("primed")
///         .state(|_worker| Ok::<Vec<u64>, Fault>(vec![2, 3, 5, 7]))
///         .idempotent("is_small_prime", |primes: &mut Vec<u64>, n: u64, _call: &Call| {
///             Ok(primes.contains(&n))
///         })
///         .run()
/// }
/// ```
pub struct Daemon<S = ()> {
    name: String,
    version: &'static str,
    methods: Methods<S>,
}

impl Daemon<()> {
    /// Returns a daemon of this name, with the methods `ping` and `methods`.
    #[must_use]
    pub fn new(name: &str) -> Daemon<()> {
        let methods = Methods::new(Box::new(|_| Ok(())));
        Daemon {
            name: name.to_owned(),
            version: env!("CARGO_PKG_VERSION"),
            methods,
        }
    }

    /// Sets the constructor of the state, which each worker process calls before it is ready. If it fails, the reason
    /// is logged, and another worker is started after a while. It is called again after a method has panicked.
    ///
    /// # Panics
    /// When methods were added before: they belong to another state.
    #[must_use]
    pub fn state<S: 'static, E: fmt::Display>(
        self,
        make: impl Fn(&WorkerInfo) -> Result<S, E> + 'static,
    ) -> Daemon<S> {
        assert!(
            self.methods.has_no_own(),
            "state() comes before the first method"
        );
        let methods = Methods::new(Box::new(move |worker| {
            make(worker).map_err(|e| e.to_string())
        }));
        Daemon {
            name: self.name,
            version: self.version,
            methods,
        }
    }
}

impl<S: 'static> Daemon<S> {
    /// Sets the version that `-V` and the status show, such as `env!("CARGO_PKG_VERSION")`; the default is fdpassd's own.
    #[must_use]
    pub fn version(mut self, version: &'static str) -> Daemon<S> {
        self.version = version;
        self
    }

    /// Adds a method: its `params` are parsed into `P`, and its return value is the `result`.
    ///
    /// Names are `[a-z][a-z0-9_.-]{0,63}`, but not `error`. Replies are called NAME + `_r`, see [`Daemon::reply_name`].
    /// Params that are no `P` are answered with `bad_params`, a panic with `crashed`.
    #[must_use]
    pub fn method<P, R>(
        mut self,
        name: &str,
        call: impl Fn(&mut S, P, &Call) -> Result<R, Fault> + 'static,
    ) -> Daemon<S>
    where
        P: DeserializeOwned,
        R: Serialize,
    {
        self.methods.add_typed(name, false, call);
        self
    }

    /// Adds a method that may run once more if its worker died in it: one without side effects, or whose second run
    /// changes nothing.
    #[must_use]
    pub fn idempotent<P, R>(
        mut self,
        name: &str,
        call: impl Fn(&mut S, P, &Call) -> Result<R, Fault> + 'static,
    ) -> Daemon<S>
    where
        P: DeserializeOwned,
        R: Serialize,
    {
        self.methods.add_typed(name, true, call);
        self
    }

    /// Adds a method that gets its params as the client wrote them, and writes its result itself: nothing is copied or
    /// parsed unless it does so.
    ///
    /// ```no_run
    /// # use fdpassd::{Daemon, RawValue, Reply};
    /// Daemon::new("echod").raw("echo", |_, params: &RawValue, out: &mut Reply| out.raw(params)).run();
    /// ```
    #[must_use]
    pub fn raw(
        mut self,
        name: &str,
        call: impl Fn(&mut S, &RawValue, &mut Reply<'_>) -> Result<(), Fault> + 'static,
    ) -> Daemon<S> {
        self.methods.add(name, false, Box::new(call));
        self
    }

    /// Names the replies of the method that was added last.
    #[must_use]
    pub fn reply_name(mut self, name: &str) -> Daemon<S> {
        self.methods.rename_reply(name);
        self
    }

    /// Marks the method that was added last as one that takes microseconds: no clock is read around it, and replies to
    /// pipelined requests are sent together.
    #[must_use]
    pub fn inline(mut self) -> Daemon<S> {
        self.methods.make_inline();
        self
    }

    /// Returns the parts of a worker.
    pub(crate) fn into_parts(self) -> (String, Methods<S>) {
        (self.name, self.methods.complete())
    }

    /// Runs the daemon in the role that its arguments select: as master, as one of its workers, as its exporter, or to
    /// test a configuration. Returns the exit code for `main`.
    ///
    /// It should be called by the first thread of the process. The kernel keeps the account of no other thread until
    /// the master reads it, and a client of a Unix socket is closed if its worker is killed while it writes to it.
    #[must_use]
    pub fn run(self) -> ExitCode {
        let version = self.version;
        let (name, methods) = self.into_parts();
        run::run(&name, version, methods)
    }
}

/// Runs `fdpassd`, from the arguments to the exit code for `main`: a [`Daemon`] with the methods `ping`, `pi` and
/// `methods`.
///
/// Its master runs the same program again for each worker, so `main` must do nothing else before it.
#[must_use]
pub fn fdpassd_main() -> ExitCode {
    Daemon::new(SHIPPED)
        .idempotent("pi", worker::pi_method)
        .run()
}
