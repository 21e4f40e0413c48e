//! `fdpassd init`: writes a daemon or an app of the user's own, from the files in `templates`.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::{ArgMatches, Args, Command, FromArgMatches, ValueEnum};

use super::{SHIPPED, announce};
use crate::config::Config;
use crate::proto::names::is_daemon_name;

/// The name of the daemon in the templates.
const TEMPLATE_NAME: &str = "hellod";

/// Stands for the directory of fdpassd's sources in the templates.
const SOURCES: &str = "@SOURCES@";

/// Introduces the last command.
const WATCH: &str =
    "Watch it (with metrics.listen in the configuration, also on a page for browsers)";

/// The directory of the libraries below `/usr`, if a package has installed them.
const INSTALLED: &str = "share/fdpassd";

/// Writes a configuration and a daemon or an app of your own
#[derive(Debug, Args)]
struct InitOptions {
    /// The language: rust (the default), python, node or go
    #[arg(
        long,
        value_name = "LANGUAGE",
        value_enum,
        default_value_t = Language::Rust,
        hide_possible_values = true,
        hide_default_value = true
    )]
    language: Language,
    /// The directory of fdpassd's sources, if it is not found
    #[arg(long, value_name = "SOURCES")]
    sources: Option<PathBuf>,
    /// The directory to write into; in Rust, its name is that of the daemon
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

/// The arguments of `fdpassd init`.
#[derive(Debug)]
pub(super) struct InitArguments(InitOptions);

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Language {
    Rust,
    Python,
    Node,
    Go,
}

/// A file to write: its path in the directory, and its text.
type Template = (&'static str, &'static str);

impl Language {
    fn templates(self) -> &'static [Template] {
        match self {
            Language::Rust => &[
                (
                    "Cargo.toml",
                    include_str!("../../templates/rust/Cargo.toml.in"),
                ),
                ("src/main.rs", include_str!("../../templates/rust/main.rs")),
                (
                    "hellod.toml",
                    include_str!("../../templates/rust/hellod.toml"),
                ),
            ],
            Language::Python => &[
                ("app.py", include_str!("../../templates/python/app.py")),
                (
                    "fdpassd.toml",
                    include_str!("../../templates/python/fdpassd.toml"),
                ),
            ],
            Language::Node => &[
                (
                    "package.json",
                    include_str!("../../templates/node/package.json.in"),
                ),
                ("app.js", include_str!("../../templates/node/app.js")),
                (
                    "fdpassd.toml",
                    include_str!("../../templates/node/fdpassd.toml"),
                ),
            ],
            Language::Go => &[
                ("go.mod", include_str!("../../templates/go/go.mod.in")),
                ("main.go", include_str!("../../templates/go/main.go")),
                (
                    "fdpassd.toml",
                    include_str!("../../templates/go/fdpassd.toml"),
                ),
            ],
        }
    }

    /// Returns a file of the library in the sources, and words that it contains.
    fn library(self) -> (&'static str, &'static str) {
        match self {
            Language::Rust => ("Cargo.toml", "name = \"fdpassd\""),
            Language::Python => ("sdk/python/pyproject.toml", "name = \"fdpassd\""),
            Language::Node => ("sdk/node/package.json", "\"name\": \"fdpassd\""),
            Language::Go => ("sdk/go/go.mod", "module fdpassd"),
        }
    }

    /// Returns the commands that prepare, start and call what was written.
    fn steps(self, directory: &str, name: &str) -> Vec<(&'static str, String)> {
        let daemon = announce::program_command(SHIPPED);
        let ctl = announce::program_command("fdpassctl");
        let start = format!("{daemon} -c {directory}/fdpassd.toml");
        let call = |options: &str| format!("{ctl}{options} call hello '{{\"name\":\"you\"}}'");
        let change = |options: &str| format!("{ctl}{options} reload");
        let watch = |options: &str| format!("{ctl}{options} top");
        let prepare = match self {
            Language::Rust => {
                let start = format!(
                    "cargo run --manifest-path {directory}/Cargo.toml -- -c {directory}/{name}.toml"
                );
                return vec![
                    ("Build and start it", start),
                    ("Call it, in another terminal", call(&format!(" -n {name}"))),
                    (
                        "Apply a change of its configuration, while clients stay connected",
                        change(&format!(" -n {name}")),
                    ),
                    (WATCH, watch(&format!(" -n {name}"))),
                ];
            }
            Language::Python => None,
            Language::Node => Some((
                "Install its package",
                format!("npm --prefix {directory} install"),
            )),
            Language::Go => Some(("Build it", format!("(cd {directory} && go build -o app .)"))),
        };
        let common = [
            ("Start it", start),
            ("Call it, in another terminal", call("")),
            (
                "Apply a change of the app or its configuration, while clients stay connected",
                change(""),
            ),
            (WATCH, watch("")),
        ];
        prepare.into_iter().chain(common).collect()
    }
}

/// Adds the command.
pub(super) fn add_command(command: Command) -> Command {
    let init = InitOptions::augment_args(Command::new("init"));
    let usage = "fdpassd init [--language rust|python|node|go] [--sources SOURCES] DIR";
    command.subcommand(init.override_usage(usage))
}

impl InitArguments {
    /// Returns the arguments if the command was given.
    pub(super) fn from_matches(found: &ArgMatches) -> Result<Option<InitArguments>, clap::Error> {
        match found.subcommand() {
            Some(("init", found)) => {
                InitOptions::from_arg_matches(found).map(|options| Some(InitArguments(options)))
            }
            _ => Ok(None),
        }
    }

    /// Writes the files. Returns the text for standard output: the files, and the commands that follow.
    ///
    /// # Errors
    /// The reason why nothing was written, or the file that could not be written.
    pub(super) fn run(&self) -> Result<String, String> {
        let InitOptions {
            language,
            sources,
            directory,
        } = &self.0;
        let name = match language {
            Language::Rust => daemon_name(directory)?,
            _ => SHIPPED.to_owned(),
        };
        let sources = match sources {
            Some(given) => given_sources(*language, given)?,
            None => find_sources(*language)?,
        };
        let files: Vec<(PathBuf, String)> = language
            .templates()
            .iter()
            .map(|(path, text)| {
                let text = text
                    .replace(TEMPLATE_NAME, &name)
                    .replace(SOURCES, &sources);
                (directory.join(path.replace(TEMPLATE_NAME, &name)), text)
            })
            .collect();
        refuse_existing(&files)?;
        let mut shown = String::new();
        for (path, text) in &files {
            write_new(path, text)
                .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
            shown.push_str(&format!("wrote {}\n", path.display()));
        }
        for (what, command) in language.steps(&shell_word(directory), &name) {
            shown.push_str(&format!("\n{what}:\n  {command}\n"));
        }
        Ok(shown)
    }
}

/// Returns the name of a daemon in this directory: that of the directory.
fn daemon_name(directory: &Path) -> Result<String, String> {
    let path = fs::canonicalize(directory).or_else(|_| std::path::absolute(directory));
    let path = path.map_err(|error| format!("{}: {error}", directory.display()))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if !is_daemon_name(&name) {
        return Err(format!(
            "{name:?} is not a valid name for a daemon: the last part of DIR must be [a-z][a-z0-9_-]{{0,31}}"
        ));
    }
    if name == SHIPPED || Config::has_section(&name) {
        return Err(format!(
            "{name:?} is a name of fdpassd's own: choose another name for the last part of DIR"
        ));
    }
    Ok(name.into_owned())
}

/// Returns whether a directory has the library for this language.
fn has_library(language: Language, directory: &Path) -> bool {
    let (file, words) = language.library();
    fs::read_to_string(directory.join(file)).is_ok_and(|text| text.contains(words))
}

/// Returns the sources that were given, as text for the templates.
fn given_sources(language: Language, given: &Path) -> Result<String, String> {
    if !has_library(language, given) {
        let (file, _) = language.library();
        return Err(format!(
            "{} is not the directory of fdpassd's sources: it has no {file} of fdpassd",
            given.display()
        ));
    }
    source_text(given)
}

/// Searches for the sources: in the current directory, in that of this program, and in all above them; also in
/// `share/fdpassd` there, where the Debian package has the libraries for other languages than Rust.
fn find_sources(language: Language) -> Result<String, String> {
    let places = [std::env::current_dir(), std::env::current_exe()];
    let above = places.iter().flatten().flat_map(|place| place.ancestors());
    let mut candidates =
        above.flat_map(|directory| [directory.to_owned(), directory.join(INSTALLED)]);
    match candidates.find(|directory| has_library(language, directory)) {
        Some(found) => source_text(&found),
        None => Err(
            "the sources of fdpassd, which have the library, were not found: name their directory with --sources"
                .to_owned(),
        ),
    }
}

/// Returns an absolute path as it is between double quotes in TOML, JSON and `go.mod`.
fn source_text(directory: &Path) -> Result<String, String> {
    let path =
        fs::canonicalize(directory).map_err(|error| format!("{}: {error}", directory.display()))?;
    let is_plain = |c: char| !c.is_control() && c != '"' && c != '\\';
    match path.to_str() {
        Some(text) if text.chars().all(is_plain) => Ok(text.to_owned()),
        _ => Err(format!(
            "the path of the sources, {}, contains characters that cannot be quoted",
            path.display()
        )),
    }
}

/// Refuses to write if one of the files exists, even as a broken link.
fn refuse_existing(files: &[(PathBuf, String)]) -> Result<(), String> {
    let existing: Vec<String> = files
        .iter()
        .filter(|(path, _)| path.symlink_metadata().is_ok())
        .map(|(path, _)| path.display().to_string())
        .collect();
    match &*existing {
        [] => Ok(()),
        [one] => Err(format!("{one} exists already; no file was written")),
        more => Err(format!(
            "{} exist already; no file was written",
            more.join(", ")
        )),
    }
}

/// Writes a file that does not exist, and creates the directories above it.
fn write_new(path: &Path, text: &str) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
    file.write_all(text.as_bytes())
}

/// Returns a path as a shell reads it as one word.
fn shell_word(path: &Path) -> String {
    let text = path.display().to_string();
    if text.chars().all(announce::is_plain) && !text.starts_with('-') {
        return text;
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}
