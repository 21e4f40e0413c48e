//! The arguments of a daemon, its roles, and its exit codes.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::{fmt, panic};

use clap::{CommandFactory, FromArgMatches, Parser};

use super::SHIPPED;
use super::announce::announcer;
use super::app::{self, AppArguments};
use super::init::{self, InitArguments};
use crate::config::{self, Config, ConfigPlace, Identities, Loaded};
use crate::dev::{self, ServingReport};
use crate::master::{self, MasterOrigin, MasterSetup};
use crate::worker::{self, Methods, WorkerRole};
use crate::{exporter, logging};

/// sysexits.h
const EX_USAGE: u8 = 64;
const EX_SOFTWARE: u8 = 70;
const EX_OSERR: u8 = 71;
const EX_CONFIG: u8 = 78;

/// Statuses after which a service manager should not start the daemon again (`RestartPreventExitStatus=` of the units):
/// usage, address, permission, configuration.
const FINAL: [u8; 4] = [EX_USAGE, 69, 77, EX_CONFIG];

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

/// Reports errors of the program, in which no role can run.
pub(super) fn refuse_program(name: &str, mistakes: &[String]) -> ExitCode {
    for mistake in mistakes {
        refuse(name, EX_SOFTWARE, mistake);
    }
    wait_before_failing(ExitCode::from(EX_SOFTWARE), false)
}

/// Runs a daemon from its arguments to its exit code.
pub(super) fn run<S: 'static>(name: &str, version: &'static str, methods: Methods<S>) -> ExitCode {
    if let Err(e) = logging::survive_file_size_limit() {
        return fail(name, EX_OSERR, &format!("cannot catch SIGXFSZ: {e}"));
    }
    master::name_process(name);
    let arguments: Vec<OsString> = std::env::args_os().collect();
    // Roles in which this program runs itself; operators do not type them.
    let role = |index: usize| arguments.get(index).and_then(|argument| argument.to_str());
    match (role(1), role(2)) {
        (Some("worker"), _) => run_worker(name, methods, worker::take_channel()),
        (Some(master::ZYGOTE), _) => {
            let role = worker::run_zygote(&methods);
            run_worker(name, methods, role)
        }
        (Some("metrics"), _) => run_exporter(name),
        (Some("check-handover"), Some(length)) => checked(name, master::check_handover(length)),
        (Some("read-configuration"), Some(length)) => {
            checked(name, master::read_configuration(length))
        }
        (Some("resume"), Some(number)) => resume_master(name, version, number),
        (Some(dev::WATCH), Some(watched)) => checked(name, dev::run(watched)),
        (Some(dev::AWAIT_CHANGE), Some(watcher)) => {
            let own = std::env::args().skip(3).collect::<Vec<_>>();
            checked(name, dev::run_again(name, watcher, &own))
        }
        _ => run_arguments(name, version, arguments),
    }
}

fn run_arguments(name: &str, version: &'static str, arguments: Vec<OsString>) -> ExitCode {
    let help = format!("Reads this file, which must exist, instead of /etc/{name}.toml");
    let mut command = Options::command().mut_arg("config", |config| config.help(help));
    if name == SHIPPED {
        command = init::add_command(app::add_commands(command));
    }
    let parsed = command.try_get_matches_from(&arguments).and_then(|found| {
        let options = Options::from_arg_matches(&found)?;
        let init = InitArguments::from_matches(&found)?;
        Ok((options, AppArguments::from_matches(&found)?, init))
    });
    match parsed {
        Ok((_, _, Some(init))) => match init.run() {
            Ok(text) => print(&text),
            Err(reason) => fail(name, EX_OSERR, &reason),
        },
        Ok((_, Some(app), None)) => run_app(&app, name, version),
        Ok((options, None, None)) => run_options(&options, name, version),
        Err(mut error) => {
            app::suggest_separator(name, &arguments, &mut error);
            // Help goes to standard output and is not an error. If it is closed, nothing is lost.
            if error.use_stderr() {
                let _ = write!(std::io::stderr(), "{name}: ");
            }
            let _ = error.print();
            if error.use_stderr() {
                ExitCode::from(EX_USAGE)
            } else {
                ExitCode::SUCCESS
            }
        }
    }
}

fn run_options(options: &Options, name: &str, version: &'static str) -> ExitCode {
    if options.version {
        return print(&format!("{name} {version}\n"));
    }
    let standard_file = standard_file(name);
    let standard = || config::standard_if_any(&standard_file);
    let config_file = options.config.clone().or_else(standard);
    let place = ConfigPlace::new(None, config_file.as_deref(), &standard_file);
    let loaded = Config::load(place);
    match &loaded {
        Err(e) if options.dump || options.test => return fail(name, EX_CONFIG, e),
        Ok(loaded) if options.dump => return print(&loaded.config.dump()),
        Ok(loaded) if options.test => {
            let files = list(&loaded.files);
            return print(&format!("{files}: the configuration is good\n"));
        }
        _ => {}
    }
    start(
        name,
        version,
        loaded,
        Sources {
            config_file,
            command_line: None,
            watcher: None,
        },
    )
}

/// Serves an app whose settings are arguments. No file is read.
fn run_app(app: &AppArguments, name: &str, version: &'static str) -> ExitCode {
    let command_line = match app.settings() {
        Ok(text) => text,
        Err(reason) => return fail(name, EX_USAGE, &reason),
    };
    let standard_file = standard_file(name);
    let loaded = Config::load(ConfigPlace::new(Some(&command_line), None, &standard_file));
    let (watcher, report) = match &loaded {
        Ok(loaded) if app.is_dev() => match app::watch(name, &loaded.config.app) {
            Ok((pid, report)) => (Some(pid), Some(report)),
            Err(reason) => return fail(name, EX_USAGE, &reason),
        },
        _ => (None, None),
    };
    let code = start(
        name,
        version,
        loaded,
        Sources {
            config_file: None,
            command_line: Some(command_line),
            watcher: report,
        },
    );
    match watcher {
        Some(watcher) if code == ExitCode::from(EX_SOFTWARE) => {
            fail(name, EX_OSERR, &dev::await_change(name, watcher))
        }
        _ => code,
    }
}

fn standard_file(name: &str) -> PathBuf {
    PathBuf::from(format!("/etc/{name}.toml"))
}

/// Where a configuration was read, and is read again.
struct Sources {
    config_file: Option<PathBuf>,
    command_line: Option<String>,
    /// How to report to the process that watches files that the daemon serves.
    watcher: Option<ServingReport>,
}

/// Starts a master with a configuration, or with the last one in force if there is an error and there are clients.
fn start(
    name: &str,
    version: &'static str,
    loaded: Result<Loaded, config::Error>,
    sources: Sources,
) -> ExitCode {
    // Before anything is opened that stays open, such as the log.
    let config = loaded.as_ref().ok().map(|loaded| &loaded.config);
    let (activated, origin) = match MasterOrigin::from_environment(config) {
        Ok(found) => found,
        Err(e) => return wait_before_failing(refuse(name, e.status(), &e), false),
    };
    let is_awaited = activated.is_awaited();
    let code = match in_force(loaded, &origin) {
        Err(e) => fail(name, EX_CONFIG, &e),
        Ok((loaded, config_stale)) => run_master(
            MasterSetup {
                name: name.to_owned(),
                version,
                loaded,
                config_file: sources.config_file,
                standard_file: standard_file(name),
                command_line: sources.command_line,
                is_dev: sources.watcher.is_some(),
                announce: announcer(name.to_owned(), version, sources.watcher),
                activated,
                origin,
                config_stale,
                missing_log: None,
            },
            None,
        ),
    };
    wait_before_failing(code, is_awaited)
}

/// Waits before a start fails, so that the service manager does not give the daemon up, which would close its clients.
/// `is_awaited` is whether a client waits at a socket of a socket unit. Returns the exit code.
fn wait_before_failing(code: ExitCode, is_awaited: bool) -> ExitCode {
    if code != ExitCode::SUCCESS {
        let is_final = FINAL.map(ExitCode::from).contains(&code);
        master::wait_before_failing(!is_final, is_awaited);
    }
    code
}

/// Returns the configuration to start with, and the error of the file if it is the last one in force before a restart:
/// clients are not closed for an error in a file.
fn in_force(
    loaded: Result<Loaded, config::Error>,
    origin: &MasterOrigin,
) -> Result<(Loaded, Option<String>), config::Error> {
    let error = match loaded {
        Ok(loaded) => return Ok((loaded, None)),
        Err(error) => error,
    };
    let reason = error.in_one_line();
    master::report_failure(&reason);
    match origin.last_for_clients() {
        Some(last) => Ok((last, Some(reason))),
        None => Err(error),
    }
}

/// Lists the files of a configuration in one line.
fn list(files: &[PathBuf]) -> String {
    if files.is_empty() {
        return "the embedded default".to_owned();
    }
    let names: Vec<_> = files
        .iter()
        .map(|file| file.display().to_string())
        .collect();
    names.join(", ")
}

/// Returns the exit code of a role that checks something.
fn checked(name: &str, result: Result<(), String>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => fail(name, EX_SOFTWARE, &why),
    }
}

/// Continues as master after an upgrade: this process was a master and now runs this program.
fn resume_master(name: &str, version: &'static str, number: &str) -> ExitCode {
    match master::resume(number, version, |name| announcer(name, version, None)) {
        Ok((setup, log)) => run_master(setup, log),
        Err(why) => {
            let why = format!("cannot continue as the previous program: {why}");
            fail(name, EX_SOFTWARE, &why)
        }
    }
}

/// Runs a master. `log` is the log file, if it is open already.
fn run_master(mut setup: MasterSetup, log: Option<File>) -> ExitCode {
    let name = setup.name.clone();
    // After an upgrade, the name of the previous program.
    master::name_process(&name);
    if let Err(e) = logging::start_with(&name, &setup.loaded.config.log, log) {
        // A missing log is not a reason to close clients.
        if setup.origin.is_fresh() {
            return refuse(&name, EX_CONFIG, &e);
        }
        let error = logging::start_anyhow(&name, &setup.loaded.config.log);
        setup.missing_log = error.map(|e| format!("log: {e}"));
    }
    Identities::from_config(&setup.loaded.config).log_unresolved();
    abort_on_panic();
    let code = match master::run(setup) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            log::error!("{e}");
            master::report_failure(&e);
            ExitCode::from(e.status())
        }
    };
    log::logger().flush();
    code
}

/// Makes a panic of the master abort: its state is uncertain then. Its workers pack their clients and exit.
fn abort_on_panic() {
    panic::set_hook(Box::new(|panic| {
        log::error!("the master panicked: {panic}");
        std::process::abort();
    }));
}

/// Runs a worker, in the process that begins as one. A zygote has nothing left to do.
///
/// A zygote and forked workers end here: what `main` owns exists once and is used by all of them, so that none may drop
/// it.
fn run_worker<S: 'static>(
    name: &str,
    methods: Methods<S>,
    role: Result<WorkerRole, worker::Error>,
) -> ExitCode {
    let shares_main = match &role {
        Ok(role) => role.shares_main(),
        Err(_) => false,
    };
    let ended = role.and_then(|role| match role {
        WorkerRole::Worker(channel, origin) => worker::run(methods, channel, origin),
        WorkerRole::Zygote => Ok(()),
    });
    log::logger().flush();
    let code = match ended {
        Ok(()) => 0,
        // It was started by hand.
        Err(worker::Error::NoMaster(reason)) => return fail(name, EX_USAGE, &reason),
        // The master has received the reason, and logs it.
        Err(worker::Error::Failed) => EX_SOFTWARE,
    };
    if shares_main {
        worker::exit_without_destructors(code);
    }
    ExitCode::from(code)
}

fn run_exporter(name: &str) -> ExitCode {
    match exporter::run() {
        Ok(()) => ExitCode::SUCCESS,
        // It was started by hand.
        Err(exporter::Error::NoMaster(reason)) => fail(name, EX_USAGE, &reason),
        Err(exporter::Error::Failed(reason)) => fail(name, EX_OSERR, &reason),
    }
}

fn print(text: &str) -> ExitCode {
    let mut out = std::io::stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Fails like [`fail`], and reports the reason to the service manager as well.
fn refuse(name: &str, status: u8, reason: &dyn fmt::Display) -> ExitCode {
    master::report_failure(reason);
    fail(name, status, reason)
}

fn fail(name: &str, status: u8, reason: &dyn fmt::Display) -> ExitCode {
    // One write: other processes may write there as well.
    let _ = std::io::stderr().write_all(format!("{name}: {reason}\n").as_bytes());
    ExitCode::from(status)
}
