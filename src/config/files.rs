//! The files of a configuration: one file, and for a standard file those in the directory of the same name.
//!
//! ```text
//! /etc/NAME.toml            and then /etc/NAME.d/*.toml in the order of their names
//! /etc/NAME/INSTANCE.toml   and then /etc/NAME/INSTANCE.d/*.toml
//! any other file            alone
//! ```

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::{fs, io};

use super::error::Error;
use super::read::{Pipes, read};
use super::text::ConfigText;
use crate::proto::control::COMMAND_LINE;

/// The most files in the directory.
const MAX_DROP_INS: usize = 64;

/// Where a configuration is read.
#[derive(Clone, Copy, Debug)]
pub enum ConfigPlace<'a> {
    /// In `file` if it is given, else in the standard file if it exists; and in the files in the directory of a
    /// standard file.
    Files {
        file: Option<&'a Path>,
        standard: &'a Path,
    },
    /// In this text, which was made from the arguments of the daemon; in no file.
    CommandLine(&'a str),
}

impl<'a> ConfigPlace<'a> {
    /// Returns the place of a daemon with these settings from its command line, or else with these files.
    #[must_use]
    pub fn new(
        command_line: Option<&'a str>,
        file: Option<&'a Path>,
        standard: &'a Path,
    ) -> ConfigPlace<'a> {
        command_line.map_or(
            ConfigPlace::Files { file, standard },
            ConfigPlace::CommandLine,
        )
    }

    /// Returns the name of the file that is read first if it exists.
    pub(super) fn main(self) -> String {
        match self {
            ConfigPlace::Files { file, standard } => file.unwrap_or(standard).display().to_string(),
            ConfigPlace::CommandLine(_) => COMMAND_LINE.to_owned(),
        }
    }

    /// Reads all texts.
    ///
    /// # Errors
    /// Those of [`read_all`].
    pub(super) fn read(self, pipes: Pipes) -> Result<Vec<ConfigText>, Error> {
        match self {
            ConfigPlace::Files { file, standard } => read_all(file, standard, pipes),
            ConfigPlace::CommandLine(text) => {
                let origin = COMMAND_LINE.to_owned();
                Ok(vec![ConfigText::new(origin, text.to_owned())])
            }
        }
    }
}

/// Reads all files: `file` if it is given, else the standard one if it exists, and those in its directory.
///
/// # Errors
/// A file that cannot be read, a directory that cannot be listed, or one with more than [`MAX_DROP_INS`] files.
fn read_all(file: Option<&Path>, standard: &Path, pipes: Pipes) -> Result<Vec<ConfigText>, Error> {
    let files = list(file, standard)?;
    files.iter().map(|path| read_text(path, pipes)).collect()
}

fn read_text(path: &Path, pipes: Pipes) -> Result<ConfigText, Error> {
    let origin = path.display().to_string();
    let bytes = read(path, pipes)
        .map_err(|error| Error::from_file(&origin, &format!("cannot read the file: {error}")))?;
    match String::from_utf8(bytes) {
        Ok(text) => Ok(ConfigText::new(origin, text)),
        Err(error) => Err(Error::not_utf8(
            &origin,
            error.as_bytes(),
            error.utf8_error().valid_up_to(),
        )),
    }
}

/// Returns the standard file, unless it does not exist. One that cannot be reached, such as a symbolic link into a file
/// system that is not mounted yet, does: reading it is an error, and the defaults do not replace it.
#[must_use]
pub fn standard_if_any(standard: &Path) -> Option<PathBuf> {
    let is_missing = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    let found = fs::symlink_metadata(standard);
    (!found.is_err_and(|error| is_missing(&error))).then(|| standard.to_owned())
}

fn list(file: Option<&Path>, standard: &Path) -> Result<Vec<PathBuf>, Error> {
    let base = file.unwrap_or(standard);
    let first = file.map(Path::to_owned);
    let mut files = Vec::from_iter(first.or_else(|| standard_if_any(standard)));
    if is_standard(base, standard) {
        let directory = base.with_extension("d");
        let fail = |why: &str| Error::from_file(&directory.display().to_string(), why);
        let found = drop_ins(&directory)
            .map_err(|error| fail(&format!("cannot list the directory: {error}")))?;
        if found.len() > MAX_DROP_INS {
            return Err(fail(&format!(
                "at most {MAX_DROP_INS} files are read, these are {}",
                found.len()
            )));
        }
        files.extend(found);
    }
    Ok(files)
}

/// Returns whether this is the standard file, or that of an instance: directly in the directory of the same name.
fn is_standard(file: &Path, standard: &Path) -> bool {
    let is_instance = || {
        file.parent() == Some(&standard.with_extension(""))
            && file.extension() == Some(OsStr::new("toml"))
    };
    file == standard || is_instance()
}

/// Returns the files that end in `.toml`, in the order of the bytes of their names. Hidden files are those of editors.
fn drop_ins(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut names = entries
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect::<io::Result<Vec<_>>>()?;
    names.retain(|name| name.as_bytes().ends_with(b".toml") && !name.as_bytes().starts_with(b"."));
    names.sort();
    Ok(names.into_iter().map(|name| directory.join(name)).collect())
}

#[cfg(test)]
pub(super) mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::config::Config;

    /// Creates a standard file `x.toml` and its directory, each file with its text.
    pub(crate) fn set(files: &[(&str, &str)]) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().expect("a directory");
        for (name, text) in files {
            let path = directory.path().join(name);
            fs::create_dir_all(path.parent().expect("it is in the directory")).expect("it is ours");
            fs::write(path, text).expect("it is ours");
        }
        let standard = directory.path().join("x.toml");
        (directory, standard)
    }

    #[test]
    fn only_the_standard_file_and_instances_have_a_directory() {
        let (directory, standard) = set(&[
            ("x.toml", ""),
            ("x.d/20-b.toml", ""),
            ("x.d/10-a.toml", ""),
            ("x.d/9.toml", ""),
            ("x.d/.hidden.toml", ""),
            ("x.d/10-a.toml.dpkg-old", ""),
            ("x/blue.toml", ""),
            ("x/blue.d/a.toml", ""),
            ("other.toml", ""),
            ("other.d/a.toml", ""),
        ]);
        let directory = directory.path();
        let listed = |file: Option<&str>| -> Vec<String> {
            let file = file.map(|file| directory.join(file));
            let files = list(file.as_deref(), &standard).expect("they can be listed");
            let name = |file: &PathBuf| {
                file.strip_prefix(directory)
                    .map(|name| name.display().to_string())
            };
            files
                .iter()
                .map(|file| name(file).expect("inside"))
                .collect()
        };
        let all = ["x.toml", "x.d/10-a.toml", "x.d/20-b.toml", "x.d/9.toml"];
        assert_eq!(listed(None), all);
        assert_eq!(listed(Some("x.toml")), all);
        let instance = ["x/blue.toml", "x/blue.d/a.toml"];
        assert_eq!(listed(Some("x/blue.toml")), instance);
        assert_eq!(listed(Some("other.toml")), ["other.toml"]);
        assert_eq!(listed(Some("missing.toml")), ["missing.toml"]);
        fs::remove_file(&standard).expect("it is ours");
        assert_eq!(listed(None), all[1..]);
        for number in 0..=MAX_DROP_INS {
            fs::write(directory.join(format!("x.d/{number:03}.toml")), "").expect("it is ours");
        }
        let error = list(None, &standard).expect_err("too many");
        assert!(
            error.message().starts_with("at most 64 files are read"),
            "{error}"
        );
    }

    #[test]
    fn a_standard_file_that_cannot_be_reached_is_an_error() {
        let (directory, standard) = set(&[("plain", "")]);
        for target in [
            directory.path().join("none"),
            directory.path().join("plain/x"),
        ] {
            symlink(&target, &standard).expect("it is ours");
            let error = Config::load(ConfigPlace::new(None, None, &standard));
            let message = error.expect_err("it is a link to nothing").in_one_line();
            assert!(
                message.contains("x.toml: cannot read the file: "),
                "{message}"
            );
            fs::remove_file(&standard).expect("it is ours");
        }
        let loaded = Config::load(ConfigPlace::new(None, None, &standard));
        assert_eq!(loaded.expect("the default").config, Config::default());
    }
}
