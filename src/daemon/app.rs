//! `fdpassd app` and `fdpassd dev`: the settings of an app as arguments.
//!
//! They become a text like that of a file, so that mistakes are shown in the same way, and a reload, a restart or an
//! upgrade has the same settings.

use std::path::PathBuf;

use clap::{ArgMatches, Args, Command, FromArgMatches};
use toml::{Table, Value};

use crate::config::AppConfig;
use crate::dev::{self, Watched};

/// Serves an app. No file is read, and all other settings have their defaults
#[derive(Debug, Args)]
struct AppOptions {
    /// Listens on this address instead of 127.0.0.1:8080; may be given several times
    #[arg(long, value_name = "ADDRESS")]
    listen: Vec<String>,
    /// Has an app execute at most this number of requests at a time
    #[arg(long, value_name = "N")]
    concurrency: Option<i64>,
    /// The program of the app and its arguments
    #[arg(value_name = "COMMAND", required = true, last = true)]
    command: Vec<String>,
}

/// Serves an app with one worker, and reloads it when one of its files changes
#[derive(Debug, Args)]
struct DevOptions {
    #[command(flatten)]
    app: AppOptions,
    /// Watches the files of this pattern, such as "lib/**/*.py", instead of those with the extension of the script; may
    /// be given several times
    #[arg(long, value_name = "PATTERN")]
    watch: Vec<String>,
}

/// The arguments of `fdpassd app` or `fdpassd dev`.
#[derive(Debug)]
pub(super) struct AppArguments {
    options: AppOptions,
    /// The patterns of `dev`.
    watch: Option<Vec<String>>,
}

/// Adds both commands.
pub(super) fn add_commands(command: Command) -> Command {
    let usage = |name: &str, more: &str| {
        format!("fdpassd {name} [--listen ADDRESS]... [--concurrency N] {more}-- COMMAND...")
    };
    let app = AppOptions::augment_args(Command::new("app"));
    let dev = DevOptions::augment_args(Command::new("dev"));
    command
        .args_conflicts_with_subcommands(true)
        .disable_help_subcommand(true)
        .subcommand(app.override_usage(usage("app", "")))
        .subcommand(dev.override_usage(usage("dev", "[--watch PATTERN]... ")))
}

impl AppArguments {
    /// Returns the arguments if one of the commands was given.
    pub(super) fn from_matches(found: &ArgMatches) -> Result<Option<AppArguments>, clap::Error> {
        Ok(match found.subcommand() {
            Some(("app", found)) => Some(AppArguments {
                options: AppOptions::from_arg_matches(found)?,
                watch: None,
            }),
            Some(("dev", found)) => {
                let DevOptions { app, watch } = DevOptions::from_arg_matches(found)?;
                Some(AppArguments {
                    options: app,
                    watch: Some(watch),
                })
            }
            _ => None,
        })
    }

    /// Returns whether files are watched.
    pub(super) fn is_dev(&self) -> bool {
        self.watch.is_some()
    }

    /// Returns the settings as the text of a configuration. The directory of the app is the current one.
    ///
    /// # Errors
    /// The reason why the current directory cannot be used.
    pub(super) fn settings(&self) -> Result<String, String> {
        let directory = std::env::current_dir()
            .map_err(|error| format!("cannot find the current directory: {error}"))?;
        let directory = directory
            .to_str()
            .ok_or("the path of the current directory is not UTF-8")?;
        let strings = |strings: &[String]| Value::from(strings.to_vec());
        let AppOptions {
            listen,
            concurrency,
            command,
        } = &self.options;
        let mut app = Table::new();
        app.insert("command".to_owned(), strings(command));
        app.insert("directory".to_owned(), directory.into());
        if let Some(concurrency) = concurrency {
            app.insert("concurrency".to_owned(), (*concurrency).into());
        }
        let mut settings = Table::new();
        if !listen.is_empty() {
            settings.insert("listen".to_owned(), strings(listen));
        }
        if let Some(watch) = &self.watch {
            if !watch.is_empty() {
                app.insert("watch".to_owned(), strings(watch));
            }
            let one = Table::from_iter([("count".to_owned(), 1.into())]);
            settings.insert("workers".to_owned(), one.into());
        }
        settings.insert("app".to_owned(), app.into());
        Ok(settings.to_string())
    }
}

/// Starts the process that watches the files of an app and requests reloads from this process. Returns its pid.
///
/// # Errors
/// The reason why there is nothing to watch, or the process cannot be started.
pub(super) fn watch(name: &str, app: &AppConfig) -> Result<u32, String> {
    let patterns = app.watch.iter().map(|pattern| pattern.0.clone()).collect();
    let directory = app.directory.clone().unwrap_or_else(|| PathBuf::from("/"));
    let watched = Watched::new(name, directory, &app.command, patterns)?;
    dev::start(name, &watched).map_err(|error| format!("cannot watch files: {error}"))
}
