//! A daemon, defined by its name and methods.

mod announce;
mod app;
#[cfg(feature = "tokio")]
mod asynchronous;
mod init;
mod preload;
mod run;

use std::fmt;
use std::process::ExitCode;
use std::time::Duration;

use serde::de::DeserializeOwned;

use crate::config::Config;
use crate::config::own::{self, TableType};
use crate::proto::names::{ClientId, is_daemon_name};
use crate::worker::{self, Constructor, Hooks, Method, Methods, Preloaded, WorkerInfo};

/// The name of the daemon of this package, unlike those that are written with its library.
const SHIPPED: &str = "fdpassd";

/// A daemon with its own methods: `fdpassd` with another name.
///
/// It reads `/etc/NAME.toml`, has its control socket in `/run/NAME/`, and has all options of `fdpassd`. Each worker
/// process has one state, which [`Daemon::state`] makes and one method at a time may change. The state lasts as long as
/// the worker or until a method panics: see *Where to keep state* in README.md.
///
/// ```no_run
/// use fdpassd::{Call, Daemon, Fault, Method};
///
/// fn is_prime(primes: &mut Vec<u64>, n: u64, _: &Call) -> Result<bool, Fault> {
///     Ok(primes.contains(&n))
/// }
///
/// fn main() -> std::process::ExitCode {
///     Daemon::new("primed")
///         .state(|_worker| Ok::<Vec<u64>, Fault>(vec![2, 3, 5, 7]))
///         .method(Method::new("is_small_prime", is_prime).idempotent())
///         .run()
/// }
/// ```
pub struct Daemon<S = (), C = (), P = ()> {
    name: String,
    version: &'static str,
    /// The type of the daemon's own table; none if every key in it is unknown.
    table: Option<TableType>,
    parse: fn(&str) -> Result<C, String>,
    shared: Preloaded<P>,
    constructor: Constructor<S>,
    methods: Vec<Method<S>>,
    hooks: Hooks<S>,
    #[cfg(feature = "tokio")]
    concurrency: Option<u32>,
}

/// The settings of a daemon that its roles need.
pub(crate) struct Parts<S> {
    pub(crate) name: String,
    version: &'static str,
    table: Option<TableType>,
    pub(crate) methods: Methods<S>,
}

impl Daemon {
    /// Returns a daemon of this name, with the methods `ping` and `methods`.
    ///
    /// The name is `[a-z][a-z0-9_-]{0,31}`: it is also that of files, directories, processes and the user of a unit.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Daemon {
        Daemon {
            name: name.into(),
            version: env!("CARGO_PKG_VERSION"),
            table: None,
            parse: |_| Ok(()),
            shared: Preloaded::nothing(),
            constructor: Box::new(|_, _| Ok(())),
            methods: Vec::new(),
            hooks: Hooks::default(),
            #[cfg(feature = "tokio")]
            concurrency: None,
        }
    }

    /// Reads a table of the daemon's own from the configuration: `[NAME]`, for a daemon of that name. [`Daemon::state`]
    /// receives it as [`WorkerInfo::config`].
    ///
    /// The table is checked wherever the configuration is: at the start, by `-t`, `fdpassctl config check` and each
    /// reload. A value that `C` refuses, a missing key, and a key that `C` ignores are errors with their places, and a
    /// reload with one changes nothing. `config show` and `-T` show the keys that the files have; `C` knows the others.
    /// A table that is missing is an empty one, so defaults belong in the type. It has at most 16 KiB. Keys may be
    /// environment variables, such as `SPELLD__SPELLD__WORDS`; `_` stands for `_` or `-`, whichever the type has.
    ///
    /// A reload starts new workers, which read the new table. The table of a running worker does not change.
    ///
    /// ```no_run
    /// use std::path::PathBuf;
    ///
    /// use fdpassd::{Daemon, Fault, WorkerInfo};
    /// use serde::Deserialize;
    ///
    /// /// ```toml
    /// /// [spelld]
    /// /// words = "/usr/share/dict/words"
    /// /// ```
    /// #[derive(Deserialize)]
    /// #[serde(default, rename_all = "kebab-case")]
    /// struct Settings {
    ///     words: PathBuf,
    /// }
    ///
    /// impl Default for Settings {
    ///     fn default() -> Settings {
    ///         let words = "/usr/share/dict/words".into();
    ///         Settings { words }
    ///     }
    /// }
    ///
    /// fn main() -> std::process::ExitCode {
    ///     Daemon::new("spelld")
    ///         .config::<Settings>()
    ///         .state(|worker: &WorkerInfo<Settings>| std::fs::read_to_string(&worker.config.words))
    ///         .run()
    /// }
    /// ```
    #[must_use]
    pub fn config<C: DeserializeOwned + 'static>(self) -> Daemon<(), C> {
        Daemon {
            name: self.name,
            version: self.version,
            table: Some(TableType::of::<C>()),
            parse: own::parse::<C>,
            shared: self.shared,
            constructor: Box::new(|_, _| Ok(())),
            methods: self.methods,
            hooks: self.hooks,
            #[cfg(feature = "tokio")]
            concurrency: self.concurrency,
        }
    }
}

impl<C: 'static, P: Send + Sync + 'static> Daemon<(), C, P> {
    /// Sets the constructor of the state, which each worker process calls before it is ready. If it fails, the reason
    /// is logged, and another worker is started after a while. After a method has panicked, the worker drops the state
    /// and calls the constructor again, unless the daemon has asynchronous methods.
    ///
    /// Methods that were added before use no state.
    #[must_use]
    pub fn state<S: 'static, E: fmt::Display>(
        self,
        make: impl Fn(&WorkerInfo<C, P>) -> Result<S, E> + 'static,
    ) -> Daemon<S> {
        let (parse, shared) = (self.parse, self.shared);
        let preload = shared.preload();
        Daemon {
            name: self.name,
            version: self.version,
            table: self.table,
            parse: |_| Ok(()),
            shared: Preloaded::preloaded_by(preload),
            constructor: Box::new(move |worker, table| {
                let config = parse(table).map_err(|why| format!("table {}: {why}", worker.name))?;
                let preloaded = shared.get(table)?;
                make(&worker.with(config, preloaded)).map_err(|e| e.to_string())
            }),
            methods: self
                .methods
                .into_iter()
                .map(Method::for_any_state)
                .collect(),
            hooks: self.hooks.for_any_state(),
            #[cfg(feature = "tokio")]
            concurrency: self.concurrency,
        }
    }
}

impl<S: 'static, C: 'static, P: Send + Sync + 'static> Daemon<S, C, P> {
    /// Sets the version that `-V` and the status show, such as `env!("CARGO_PKG_VERSION")`; the default is fdpassd's
    /// own.
    #[must_use]
    pub fn version(mut self, version: &'static str) -> Daemon<S, C, P> {
        self.version = version;
        self
    }

    /// Adds a method. The order in which methods are added has no meaning.
    #[must_use]
    pub fn method(mut self, method: Method<S>) -> Daemon<S, C, P> {
        self.methods.push(method);
        self
    }

    /// Sets a function that a worker calls when it does not serve a client any more, for what its state keeps for each
    /// client: the client has left, was closed, or was moved to another worker. The last call counts.
    ///
    /// It is called after the last request of the client in this worker. After a move, the next request of the client
    /// runs in another worker, whose state knows nothing of it; the client may also come back. So the state is the
    /// place for what can be rebuilt: a cache, a prepared statement. The function is not called when the worker dies,
    /// as its state dies as well. It has no deadline and should take microseconds: all clients of the worker wait for
    /// it.
    ///
    /// ```no_run
    /// use std::collections::HashMap;
    ///
    /// use fdpassd::{Call, ClientId, Daemon, Fault, Method};
    ///
    /// type Last = HashMap<ClientId, String>;
    ///
    /// fn swap(last: &mut Last, text: String, call: &Call) -> Result<Option<String>, Fault> {
    ///     Ok(last.insert(call.client, text))
    /// }
    ///
    /// fn main() -> std::process::ExitCode {
    ///     Daemon::new("swapd")
    ///         .state(|_worker| Ok::<Last, Fault>(Last::new()))
    ///         .method(Method::new("swap", swap))
    ///         .on_close(|last, client| drop(last.remove(&client)))
    ///         .run()
    /// }
    /// ```
    #[must_use]
    pub fn on_close(mut self, call: impl Fn(&mut S, ClientId) + 'static) -> Daemon<S, C, P> {
        self.hooks.on_close = Some(Box::new(call));
        self
    }

    /// Sets a function by which a worker finds out whether it can do its work: whether it reaches its database, for
    /// example. The last call counts.
    ///
    /// A worker calls it before it is ready, and from then on at this interval, of 100 ms or more, between two turns.
    /// An error at the start is that of a constructor that fails: the worker does not become ready, and a reload is
    /// rolled back. Later, an unhealthy worker gives its clients to healthy ones and gets new ones only if no healthy
    /// worker has capacity. While no worker is healthy, clients stay and are served, so that methods can return faults
    /// of their own; `/readyz` answers 503, so that a load balancer sends new clients elsewhere. `fdpassctl status` and
    /// the events `worker_unhealthy` and `worker_healthy` have the reason.
    ///
    /// The function should take microseconds, as all clients of the worker wait for it. One that waits for a server
    /// belongs in a thread of the state, whose last result the function returns. An idle worker wakes up for it.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use fdpassd::{Daemon, Fault};
    /// # struct Pool { last_error: Option<String> }
    /// Daemon::new("shopd")
    ///     .state(|_| Ok::<Pool, Fault>(Pool { last_error: None }))
    ///     .health(Duration::from_secs(5), |pool| match &pool.last_error {
    ///         None => Ok(()),
    ///         Some(why) => Err(format!("no database: {why}")),
    ///     })
    ///     .run();
    /// ```
    #[must_use]
    pub fn health<E: fmt::Display>(
        mut self,
        interval: Duration,
        check: impl Fn(&mut S) -> Result<(), E> + 'static,
    ) -> Daemon<S, C, P> {
        let check = move |state: &mut S| check(state).map_err(|e| e.to_string());
        self.hooks.health = Some((interval, Box::new(check)));
        self
    }

    /// Returns what the roles need.
    ///
    /// # Errors
    /// All errors of the program, each in a sentence.
    pub(crate) fn into_parts(self) -> Result<Parts<S>, Vec<String>> {
        let mut mistakes = Vec::new();
        if !is_daemon_name(&self.name) {
            mistakes.push(format!(
                "{:?} is not a valid name for a daemon: [a-z][a-z0-9_-]{{0,31}}",
                self.name
            ));
        }
        if self.table.is_some() && Config::has_section(&self.name) {
            mistakes.push(format!(
                "{:?} is a table of every configuration; a daemon with a table of its own needs another name",
                self.name
            ));
        }
        let methods = Methods::new(self.methods, self.constructor, self.hooks);
        let preload = self.shared.preload();
        let methods = methods.map(|methods| methods.with_preload(preload));
        #[cfg(feature = "tokio")]
        let methods = methods.and_then(|mut methods| {
            let set = self.concurrency.map(|most| methods.set_concurrency(most));
            set.transpose().map_err(|mistake| vec![mistake])?;
            Ok(methods)
        });
        match methods {
            Ok(methods) if mistakes.is_empty() => Ok(Parts {
                name: self.name,
                version: self.version,
                table: self.table,
                methods,
            }),
            Ok(_) => Err(mistakes),
            Err(more) => Err([mistakes, more].concat()),
        }
    }

    /// Runs the daemon in the role that its arguments select: as master, as one of its workers, as its exporter, or to
    /// test a configuration. Returns the exit code for `main`. An error of the program, such as two methods of one
    /// name, is printed, and the exit code is 70.
    ///
    /// It should be called by the first thread of the process. The kernel keeps the account of no other thread until
    /// the master reads it, and a client of a Unix socket is closed if its worker is killed while it writes to it.
    #[must_use]
    pub fn run(self) -> ExitCode {
        self.run_program(false)
    }

    /// Runs the program in one of its roles. fdpassd itself (`is_shipped`) runs no other code.
    fn run_program(self, is_shipped: bool) -> ExitCode {
        let name = self.name.clone();
        match self.into_parts() {
            Ok(mut parts) => {
                own::set(&name, parts.table, parts.methods.has_async());
                if is_shipped {
                    parts.methods.set_shipped();
                }
                run::run(&name, parts.version, parts.methods)
            }
            Err(mistakes) => run::refuse_program(&name, &mistakes),
        }
    }
}
/// Runs `fdpassd`, from the arguments to the exit code for `main`: a [`Daemon`] with the methods `ping`, `pi` and
/// `methods`.
///
/// Its master runs the same program again for each worker, so `main` must do nothing else before it.
#[must_use]
pub fn daemon_main() -> ExitCode {
    Daemon::new(SHIPPED)
        .method(Method::new("pi", worker::pi_method).idempotent())
        .run_program(true)
}
