//! The door of a daemon: its methods, its arguments, its roles.

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::Write;
use std::panic;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use crate::config::Config;
use crate::exporter;
use crate::logging;
use crate::master::{self, Announce, Handed, Inherited, MasterSetup, Resumed};
use crate::proto::names::Address;
use crate::worker::{self, Call, Fault, Methods, Reply, WorkerInfo};

/// The daemon of this package, as against those that are written with its library.
const SHIPPED: &str = "fdpassd";

/// sysexits.h
const EX_USAGE: u8 = 64;
const EX_SOFTWARE: u8 = 70;
const EX_OSERR: u8 = 71;
const EX_CONFIG: u8 = 78;

/// A daemon with its own methods: `fdpassd` with another name.
///
/// It reads `/etc/NAME.toml`, has its control socket in `/run/NAME/`, and has all options of `fdpassd`. Each worker process
/// has one state, which [`Daemon::state`] makes and one method at a time may change. The state is rebuilt at every reload,
/// recycle, crash and panic: see *Where to keep state* in README.md.
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
    /// A daemon of this name, with the methods `ping` and `methods`.
    #[must_use]
    pub fn new(name: &str) -> Daemon<()> {
        let methods = Methods::new(Box::new(|_| Ok(())));
        Daemon {
            name: name.to_owned(),
            version: env!("CARGO_PKG_VERSION"),
            methods,
        }
    }

    /// Makes the state of each worker process, before it is ready. A worker whose state cannot be
    /// made is not ready: the reason is logged, and another worker is tried after a while. The
    /// state is rebuilt after a method panicked.
    ///
    /// # Panics
    /// When methods were added before: they would have been for another state.
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
    /// Sets the version that `-V` and the status show; the default is fdpassd's own.
    /// `env!("CARGO_PKG_VERSION")` is yours.
    #[must_use]
    pub fn version(mut self, version: &'static str) -> Daemon<S> {
        self.version = version;
        self
    }

    /// Adds a method: its `params` are parsed into `P`, and what it returns is the `result`.
    ///
    /// Names are `[a-z][a-z0-9_.-]{0,63}`, but not `error`. Replies are called NAME + `_r`, see [`Daemon::reply_name`].
    /// Params that are no `P` are answered with `bad_params`. A panic is answered with `crashed`.
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

    /// Adds a method that may be run once more when its worker died in it: one without side effects, or whose second
    /// run changes nothing.
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

    /// Adds a method that sees its params as the client wrote them, and writes its result itself: nothing is copied or
    /// parsed that it does not touch.
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

    /// Marks the method that was added last as one that takes microseconds: no clock is read around
    /// it, and replies to pipelined requests are sent together.
    #[must_use]
    pub fn inline(mut self) -> Daemon<S> {
        self.methods.make_inline();
        self
    }

    /// Returns the parts of a worker.
    pub(crate) fn into_parts(self) -> (String, Methods<S>) {
        (self.name, self.methods.complete())
    }

    /// Runs the daemon as its arguments say: as master, as one of its workers, as its exporter, or
    /// to test a configuration. Returns the exit code for `main`.
    ///
    /// To be called by the first thread of the process: of no other does the kernel keep account until the master looks, and
    /// a client of a Unix socket is closed if its worker is killed while it writes to it.
    #[must_use]
    pub fn run(self) -> ExitCode {
        let version = self.version;
        let (name, methods) = self.into_parts();
        if let Some(mistake) = methods.mistakes().first() {
            return fail(&name, EX_SOFTWARE, mistake);
        }
        if let Err(e) = logging::survive_file_size_limit() {
            return fail(&name, EX_OSERR, &format!("cannot catch SIGXFSZ: {e}"));
        }
        master::name_process(&name);
        let arguments: Vec<OsString> = std::env::args_os().collect();
        // Roles in which this program runs itself; operators do not type them.
        let role = |index: usize| arguments.get(index).and_then(|argument| argument.to_str());
        match (role(1), role(2)) {
            (Some("worker"), _) => return run_worker(&name, methods),
            (Some("metrics"), _) => return run_exporter(&name),
            (Some("check-handover"), Some(length)) => return check_handover(&name, length),
            (Some("read-configuration"), Some(length)) => return read_configuration(&name, length),
            (Some("resume"), Some(number)) => return resume_master(&name, version, number),
            _ => {}
        }
        let help =
            format!("Reads this configuration instead of /etc/{name}.toml, which need not exist");
        let command = Options::command().mut_arg("config", |config| config.help(help));
        match command
            .try_get_matches_from(arguments)
            .and_then(|found| Options::from_arg_matches(&found))
        {
            Ok(options) => {
                let mut is_awaited = false;
                let code = run_options(&options, &name, version, &mut is_awaited);
                if is_awaited && code != ExitCode::SUCCESS {
                    master::wait_before_failing();
                }
                code
            }
            Err(e) => usage(&e),
        }
    }
}

/// Serves a length-prefixed JSON RPC; every client's connection outlives the worker process that serves it.
#[derive(Debug, Parser)]
#[command(
    disable_version_flag = true,
    after_help = "Exit status: 0 done, 64 usage, 69 address unavailable, \
    70 no worker became ready, 71 system, 77 permission, 78 configuration."
)]
struct Options {
    // Its help names the daemon's own file.
    #[arg(short, long = "config", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Tests the configuration and exits
    #[arg(short)]
    test: bool,
    /// Tests the configuration, prints it with all defaults, and exits
    #[arg(short = 'T')]
    dump: bool,
    /// Prints the version and exits
    #[arg(short = 'V', long = "version")]
    version: bool,
}

fn usage(error: &clap::Error) -> ExitCode {
    // Help goes to standard output and is no error. A reader that has left misses nothing.
    let _ = error.print();
    if error.use_stderr() {
        ExitCode::from(EX_USAGE)
    } else {
        ExitCode::SUCCESS
    }
}

/// `is_awaited` becomes whether a client waits at a socket of systemd's.
fn run_options(
    options: &Options,
    name: &str,
    version: &'static str,
    is_awaited: &mut bool,
) -> ExitCode {
    if options.version {
        return say(&format!("{name} {version}\n"));
    }
    let standard = PathBuf::from(format!("/etc/{name}.toml"));
    let file = options
        .config
        .clone()
        .or_else(|| standard.exists().then(|| standard.clone()));
    let loaded = Config::load(file.as_deref(), &standard);
    match &loaded {
        Err(e) if options.dump || options.test => return fail(name, EX_CONFIG, e),
        Ok(loaded) if options.dump => return say(&loaded.config.dump()),
        Ok(loaded) if options.test => {
            return say(&format!(
                "{}: the configuration is good\n",
                named(&loaded.files)
            ));
        }
        _ => {}
    }
    // Before anything is opened that stays open, such as the log.
    let mut handed = match Handed::from_environment() {
        Ok(handed) => handed,
        Err(e) => return refuse(name, e.status(), &e),
    };
    let inherited = match Inherited::find(
        &mut handed,
        loaded.as_ref().ok().map(|loaded| &loaded.config),
    ) {
        Ok(inherited) => inherited,
        Err(e) => return refuse(name, e.status(), &e),
    };
    *is_awaited = handed.is_awaited();
    let (loaded, config_file, config_stale) = match loaded {
        Ok(loaded) => (loaded, file, None),
        Err(e) => {
            // Clients are not closed for a mistake in a file that others have been served by.
            let last = inherited.as_ref().and_then(Inherited::last_for_clients);
            master::say_why(&e.in_one_line());
            let Some(last) = last else {
                return fail(name, EX_CONFIG, &e);
            };
            (last, file, Some(e.in_one_line()))
        }
    };
    run_master(
        MasterSetup {
            name: name.to_owned(),
            version,
            config: loaded.config,
            config_keys: loaded.keys,
            config_file,
            config_files: loaded.files,
            standard_file: standard,
            announce: announcer(name.to_owned(), version),
            handed,
            inherited,
            config_stale,
            missing_log: None,
        },
        None,
    )
}

/// Files of a configuration, in one line.
fn named(files: &[PathBuf]) -> String {
    let names: Vec<String> = files
        .iter()
        .map(|file| file.display().to_string())
        .collect();
    if names.is_empty() {
        "the embedded default".to_owned()
    } else {
        names.join(", ")
    }
}

fn read_configuration(name: &str, length: &str) -> ExitCode {
    match master::read_configuration(length) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => fail(name, EX_SOFTWARE, &why),
    }
}

fn check_handover(name: &str, length: &str) -> ExitCode {
    match master::check_handover(length) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => fail(name, EX_SOFTWARE, &why),
    }
}

/// Continues as master after an upgrade: this process was a master and now runs this program.
fn resume_master(name: &str, version: &'static str, number: &str) -> ExitCode {
    match master::resume(number) {
        Ok(Resumed {
            name,
            loaded,
            config_file,
            standard_file,
            handed,
            inherited,
            log,
        }) => run_master(
            MasterSetup {
                announce: announcer(name.clone(), version),
                name,
                version,
                config: loaded.config,
                config_keys: loaded.keys,
                config_file,
                config_files: loaded.files,
                standard_file,
                handed,
                inherited: Some(inherited),
                config_stale: None,
                missing_log: None,
            },
            log,
        ),
        Err(why) => fail(
            name,
            EX_SOFTWARE,
            &format!("cannot continue as the previous program: {why}"),
        ),
    }
}

/// `log` is the file of the log, if it is open already.
fn run_master(mut setup: MasterSetup, log: Option<File>) -> ExitCode {
    let name = setup.name.clone();
    // After an upgrade that of before.
    master::name_process(&name);
    if let Err(e) = logging::start_with(&name, &setup.config.log, log) {
        // A missing log is no reason to close clients.
        if setup.inherited.is_none() {
            return refuse(&name, EX_CONFIG, &e);
        }
        setup.missing_log =
            logging::start_anyhow(&name, &setup.config.log).map(|e| format!("log: {e}"));
    }
    abort_on_panic();
    let code = match master::run(setup) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            log::error!("{e}");
            master::say_why(&e);
            ExitCode::from(e.status())
        }
    };
    log::logger().flush();
    code
}

/// A master that has panicked knows nothing for certain any more. Its workers leave when it is gone.
fn abort_on_panic() {
    panic::set_hook(Box::new(|panic| {
        log::error!("the master panicked: {panic}");
        std::process::abort();
    }));
}

fn run_worker<S: 'static>(name: &str, methods: Methods<S>) -> ExitCode {
    let ended = worker::run(methods);
    log::logger().flush();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        // Somebody typed this.
        Err(worker::Error::NoMaster(reason)) => fail(name, EX_USAGE, &reason),
        // The master has been told, and logs it.
        Err(worker::Error::Failed) => ExitCode::from(EX_SOFTWARE),
    }
}

fn run_exporter(name: &str) -> ExitCode {
    match exporter::run() {
        Ok(()) => ExitCode::SUCCESS,
        // Somebody typed this.
        Err(exporter::Error::NoMaster(reason)) => fail(name, EX_USAGE, &reason),
        Err(exporter::Error::Failed(reason)) => fail(name, EX_OSERR, &reason),
    }
}

/// Prints where the daemon listens and how to call it, in one line on standard output.
fn announcer(name: String, version: &'static str) -> Announce {
    Box::new(move |addresses| {
        let first = addresses.first().map_or("", String::as_str);
        let address = first.parse().map(Address::reachable);
        let address = address.map_or_else(|_| first.to_owned(), |address| address.to_string());
        let ctl = std::env::current_exe()
            .ok()
            .filter(|_| name == SHIPPED)
            .map_or("fdpassctl", |exe| ctl_command(&exe));
        let call = format!("{ctl} call ping '{{\"hello\":1}}' --to {address}");
        logging::announce(&format!(
            "{name} {version} listens on {}; call it: {call}\n",
            addresses.join(", ")
        ));
    })
}

/// How to run fdpassctl: by cargo, if that has built this program, or else by its name.
fn ctl_command(program: &Path) -> &'static str {
    let profile = program.parent();
    // Cargo keeps what it builds a program from beside it.
    let is_cargos = profile.is_some_and(|profile| profile.join("deps").is_dir());
    let profile = profile
        .and_then(Path::file_name)
        .and_then(|name| name.to_str());
    match profile {
        Some("release") if is_cargos => "cargo run --release --bin fdpassctl --",
        Some("debug") if is_cargos => "cargo run --bin fdpassctl --",
        _ => "fdpassctl",
    }
}

fn say(text: &str) -> ExitCode {
    let mut out = std::io::stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// As [`fail`], for the service manager as well.
fn refuse(name: &str, status: u8, reason: &dyn fmt::Display) -> ExitCode {
    master::say_why(reason);
    fail(name, status, reason)
}

fn fail(name: &str, status: u8, reason: &dyn fmt::Display) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "{name}: {reason}");
    ExitCode::from(status)
}

/// Runs `fdpassd`, from the arguments to the exit code for `main`: a [`Daemon`] with the methods
/// `ping`, `pi` and `methods`.
///
/// Its master runs this very program again for each worker, so `main` does nothing else before it.
#[must_use]
pub fn fdpassd_main() -> ExitCode {
    Daemon::new(SHIPPED)
        .idempotent("pi", worker::pi_method)
        .run()
}
