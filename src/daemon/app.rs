//! `fdpassd app` and `fdpassd dev`: the settings of an app as arguments.
//!
//! They become a text like that of a file, so that mistakes are shown in the same way, and a reload, a restart or an
//! upgrade has the same settings.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue};
use clap::{ArgMatches, Args, Command, FromArgMatches};
use toml::{Table, Value};

use crate::config::AppConfig;
use crate::dev::{self, ServingReport, Watched};

/// The options of both commands.
#[derive(Debug, Args)]
struct AppOptions {
    /// Listens on this address instead of 127.0.0.1:8080; may be given several times
    #[arg(long, value_name = "ADDRESS")]
    listen: Vec<String>,
    /// Has an app execute at most this number of requests at a time
    #[arg(long, value_name = "N", value_parser = number, allow_negative_numbers = true)]
    concurrency: Option<i64>,
    /// The program of the app and its arguments
    #[arg(value_name = "COMMAND", required = true, last = true)]
    command: Vec<String>,
}

/// Parses a number, whose range is checked with the configuration.
fn number(text: &str) -> Result<i64, String> {
    text.parse().map_err(|_| "expected a number".to_owned())
}

/// Serves an app. No file is read, and all other settings have their defaults
#[derive(Debug, Args)]
struct ServeOptions {
    #[command(flatten)]
    app: AppOptions,
    /// Starts this number of workers, each with an app, instead of one per CPU
    #[arg(long, value_name = "N", value_parser = number, allow_negative_numbers = true)]
    workers: Option<i64>,
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
    workers: Option<i64>,
    /// The patterns of `dev`.
    watch: Option<Vec<String>>,
}

/// Adds both commands.
pub(super) fn add_commands(command: Command) -> Command {
    let usage = |name: &str, more: &str| {
        format!("fdpassd {name} [--listen ADDRESS]... [--concurrency N] {more}-- COMMAND...")
    };
    let app = ServeOptions::augment_args(Command::new("app"));
    let dev = DevOptions::augment_args(Command::new("dev"));
    command
        .args_conflicts_with_subcommands(true)
        .disable_help_subcommand(true)
        .subcommand(app.override_usage(usage("app", "[--workers N] ")))
        .subcommand(dev.override_usage(usage("dev", "[--watch PATTERN]... ")))
}

/// Adds, to the error of a command line whose program does not follow `--`, how it is written.
pub(super) fn suggest_separator(name: &str, arguments: &[OsString], error: &mut clap::Error) {
    let words: Vec<_> = arguments
        .iter()
        .map(|word| word.to_string_lossy())
        .collect();
    let (Some("app" | "dev"), Some(ContextValue::String(wrong))) = (
        words.get(1).map(|word| &**word),
        error.get(ContextKind::InvalidArg),
    ) else {
        return;
    };
    let first = words.iter().position(|word| word == wrong).unwrap_or(0);
    if wrong.starts_with('-') || first < 2 {
        return;
    }
    let (options, command) = words[1..].split_at(first - 1);
    let line = [&[name.into()], options, &["--".into()], command]
        .concat()
        .join(" ");
    let tip = format!("the program of the app follows \"--\": {line}");
    let tips = ContextValue::StyledStrs(vec![tip.into()]);
    error.insert(ContextKind::Suggested, tips);
}

impl AppArguments {
    /// Returns the arguments if one of the commands was given.
    pub(super) fn from_matches(found: &ArgMatches) -> Result<Option<AppArguments>, clap::Error> {
        Ok(match found.subcommand() {
            Some(("app", found)) => {
                let ServeOptions { app, workers } = ServeOptions::from_arg_matches(found)?;
                Some(AppArguments {
                    options: app,
                    workers,
                    watch: None,
                })
            }
            Some(("dev", found)) => {
                let DevOptions { app, watch } = DevOptions::from_arg_matches(found)?;
                Some(AppArguments {
                    options: app,
                    workers: Some(1),
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
        if let Some(watch) = self.watch.as_ref().filter(|watch| !watch.is_empty()) {
            app.insert("watch".to_owned(), strings(watch));
        }
        if let Some(count) = self.workers {
            let workers = Table::from_iter([("count".to_owned(), count.into())]);
            settings.insert("workers".to_owned(), workers.into());
        }
        settings.insert("app".to_owned(), app.into());
        Ok(settings.to_string())
    }
}

/// Starts the process that watches the files of an app and requests reloads from this process. Returns its pid, and how
/// this process reports to it that it serves.
///
/// # Errors
/// The reason why there is nothing to watch, or the process cannot be started.
pub(super) fn watch(name: &str, app: &AppConfig) -> Result<(u32, ServingReport), String> {
    let patterns = app.watch.iter().map(|pattern| pattern.0.clone()).collect();
    let directory = app.directory.clone().unwrap_or_else(|| PathBuf::from("/"));
    let watched = Watched::new(name, directory, &app.command, patterns)?;
    dev::start(name, &watched).map_err(|error| format!("cannot watch files: {error}"))
}
