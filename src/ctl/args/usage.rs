//! Mistakes of the command line, as sentences.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command};

use crate::toml_text::most_like;

/// A mistake of the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UsageMistake {
    /// Names the argument, and the values that are valid.
    pub(crate) message: String,
    /// How the verb is used, if that helps.
    pub(crate) usage: Option<String>,
}

impl UsageMistake {
    /// Makes the sentence of an error of clap.
    pub(crate) fn new(error: &clap::Error) -> UsageMistake {
        let get = |kind| error.get(kind).map(texts).unwrap_or_default();
        let first = |kind| get(kind).into_iter().next().unwrap_or_default();
        let argument = name_of(&first(ContextKind::InvalidArg));
        let message = match error.kind() {
            ErrorKind::InvalidValue => {
                let known = get(ContextKind::ValidValue);
                invalid_value(&argument, &first(ContextKind::InvalidValue), &known)
            }
            ErrorKind::ValueValidation => {
                let value = first(ContextKind::InvalidValue);
                let why = std::error::Error::source(error).map(ToString::to_string);
                let why = why.unwrap_or_else(|| "it is not valid".to_owned());
                format!("invalid value {value:?} for {argument}: {why}")
            }
            ErrorKind::UnknownArgument => {
                let likely = first(ContextKind::SuggestedArg);
                format!(
                    "unexpected argument {argument:?}{}",
                    meant_if_like(&argument, &likely)
                )
            }
            ErrorKind::InvalidSubcommand => {
                let verb = first(ContextKind::InvalidSubcommand);
                let likely = first(ContextKind::SuggestedSubcommand);
                format!("unknown verb {verb:?}{}", meant_if_like(&verb, &likely))
            }
            ErrorKind::MissingRequiredArgument => {
                let missing: Vec<String> = get(ContextKind::InvalidArg)
                    .iter()
                    .map(|argument| name_of(argument))
                    .collect();
                format!("{} is missing", missing.join(" "))
            }
            ErrorKind::ArgumentConflict => match name_of(&first(ContextKind::PriorArg)) {
                other if other == argument => format!("{argument} is given twice"),
                other => format!("{argument} excludes {other}"),
            },
            _ => plain(error),
        };
        let usage = get(ContextKind::Usage).into_iter().next();
        UsageMistake { message, usage }
    }

    /// Returns the mistake of an option that is given twice, in front of the verb and after it: clap would take the
    /// second one only.
    pub(crate) fn given_twice(command: Command, arguments: &[OsString]) -> Option<UsageMistake> {
        let globals: Vec<Arg> = command
            .get_arguments()
            .filter(|argument| argument.is_global_set())
            .map(|argument| argument.clone().global(false))
            .collect();
        let command = command.mut_args(|argument| argument.global(false));
        let found = with_options(command, &globals)
            .try_get_matches_from(arguments)
            .ok()?;
        let twice = globals.iter().find(|option| {
            let mut level = Some(&found);
            let mut times = 0;
            while let Some(matches) = level {
                times += occurrences(matches, option.get_id().as_str());
                level = matches.subcommand().map(|(_, matches)| matches);
            }
            times > 1
        })?;
        let name = format!("--{}", twice.get_long().unwrap_or_default());
        let message = match name.as_str() {
            "--hosts" => "--hosts is given twice; one list has commas: --hosts a,b".to_owned(),
            _ => format!("{name} is given twice"),
        };
        Some(UsageMistake {
            message,
            usage: None,
        })
    }
}

/// Adds options to all verbs, and to theirs.
fn with_options(command: Command, options: &[Arg]) -> Command {
    command.mut_subcommands(|verb| {
        let verb = with_options(verb, options);
        match verb.get_name() {
            "help" => verb,
            _ => verb.args(options),
        }
    })
}

/// Returns how often an option is given at this level.
fn occurrences(matches: &ArgMatches, id: &str) -> usize {
    if matches.value_source(id) != Some(ValueSource::CommandLine) {
        return 0;
    }
    match id {
        "hosts" => matches
            .get_occurrences::<String>(id)
            .map_or(0, Iterator::count),
        _ => 1,
    }
}

fn texts(value: &ContextValue) -> Vec<String> {
    match value {
        ContextValue::String(text) => vec![text.clone()],
        ContextValue::Strings(texts) => texts.clone(),
        ContextValue::StyledStr(text) => vec![text.to_string()],
        _ => Vec::new(),
    }
}

/// Returns an argument as people name it: `--move`, `COUNT`.
fn name_of(argument: &str) -> String {
    let first = argument.split(' ').next().unwrap_or_default();
    match first.starts_with('-') {
        // An option whose value may be missing is `--watch[=<TIME>]`.
        true => first.split('[').next().unwrap_or_default().to_owned(),
        false => first.trim_matches(['<', '>', '[', ']', '.']).to_owned(),
    }
}

fn meant(likely: &str) -> String {
    match likely {
        "" => String::new(),
        _ => format!("; did you mean {likely:?}?"),
    }
}

/// Returns the suggestion of clap, which also has what is less like the given text.
fn meant_if_like(given: &str, likely: &str) -> String {
    let found = most_like(given, std::iter::once(likely));
    meant(found.map_or("", |(_, likely)| likely))
}

fn invalid_value(argument: &str, value: &str, known: &[String]) -> String {
    let expected = match known {
        [] => String::new(),
        [one] => format!(": expected {one}"),
        _ => format!(": expected one of {}", known.join(", ")),
    };
    if value.is_empty() {
        return format!("{argument} needs a value{expected}");
    }
    let likely = most_like(value, known.iter().map(String::as_str));
    let likely = likely.map_or("", |(_, known)| known);
    format!(
        "invalid value {value:?} for {argument}{expected}{}",
        meant(likely)
    )
}

/// Returns the first line of a message of clap.
fn plain(error: &clap::Error) -> String {
    let text = error.to_string();
    let line = text.lines().next().unwrap_or_default();
    line.strip_prefix("error: ").unwrap_or(line).to_owned()
}
