//! The files that make up a configuration: one, and beside the standard one those of its directory.
//!
//! ```text
//! /etc/NAME.toml            and then /etc/NAME.d/*.toml in the order of their names
//! /etc/NAME/INSTANCE.toml   and then /etc/NAME/INSTANCE.d/*.toml
//! any other file            alone
//! ```
//!
//! No key overrides another one: a key is given once in all of them, so that their order is only that of messages.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::{Table, Value};

use super::check::{self, Conflict};
use super::error::Error;
use super::keys::{Keys, keys_of};
use super::{Config, Loaded};

/// Most files beside the standard one.
const MAX_DROP_INS: usize = 64;

/// A file that was read.
#[derive(Clone, Debug)]
pub(super) struct SourceText {
    /// How messages call it.
    pub(super) origin: String,
    pub(super) text: String,
}

/// The files to read, in their order: `file` if one is named, else the standard one if it exists; then those beside it.
///
/// # Errors
/// When there is a directory of such files that cannot be listed, or more than [`MAX_DROP_INS`] are in it.
pub(super) fn list(file: Option<&Path>, standard: &Path) -> Result<Vec<PathBuf>, Error> {
    let base = file.unwrap_or(standard);
    let mut files: Vec<PathBuf> = Some(base)
        .filter(|base| file.is_some() || base.exists())
        .map(PathBuf::from)
        .into_iter()
        .collect();
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

/// Whether that is the file of the daemon, or that of an instance of its unit: directly in the directory of its name.
fn is_standard(file: &Path, standard: &Path) -> bool {
    let is_instance = || {
        file.parent() == Some(&standard.with_extension(""))
            && file.extension() == Some(OsStr::new("toml"))
    };
    file == standard || is_instance()
}

/// Those that end in `.toml`, in the order of the bytes of their names. What begins with a dot is an editor's.
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

/// Parses all of them as one configuration, and checks that.
pub(super) fn parse(
    texts: &[SourceText],
    check: impl Fn(&Config) -> Result<(), Conflict>,
) -> Result<Loaded, Error> {
    let mut keys = BTreeMap::new();
    let mut merged = Table::new();
    let mut config = Config::default();
    for source in texts {
        // For the types of all values, whose places are known here only.
        config = toml::from_str(&source.text).map_err(|error| Error::from_toml(source, &error))?;
        for key in keys_of(&source.text) {
            if let Some(first) = keys.insert(key.clone(), source) {
                return Err(Error::given_twice(first, source, &key));
            }
        }
        merge(
            &mut merged,
            toml::from_str(&source.text).map_err(|error| Error::from_toml(source, &error))?,
        );
    }
    if texts.len() > 1 {
        config = Config::deserialize(merged)
            .map_err(|error| Error::from_file(&texts[0].origin, error.message()))?;
    }
    check(&config).map_err(|fault| Error::from_conflict(texts, &fault))?;
    let files = texts
        .iter()
        .map(|text| PathBuf::from(&text.origin))
        .collect();
    Ok(Loaded {
        config,
        keys: keys.into_keys().collect(),
        files,
    })
}

/// Adds keys that are not there yet.
fn merge(merged: &mut Table, more: Table) {
    for (name, value) in more {
        match (merged.get_mut(&name), value) {
            (Some(Value::Table(section)), Value::Table(more)) => section.extend(more),
            (_, value) => drop(merged.insert(name, value)),
        }
    }
}

/// A set of files that leaves out keys of the configuration in force because a file is empty: that is how a file looks to a
/// reload while it is being written.
pub(super) fn check_not_emptied(
    texts: &[SourceText],
    keys: &Keys,
    in_force: &Keys,
) -> Result<(), Error> {
    let empty = texts
        .iter()
        .find(|source| keys.is_empty() || source.text.trim().is_empty());
    let gone: Vec<&str> = in_force.difference(keys).map(String::as_str).collect();
    match (empty, gone.as_slice()) {
        (Some(source), [first, rest @ ..]) => {
            let more = if rest.is_empty() {
                String::new()
            } else {
                format!(" and {} more", rest.len())
            };
            let what = if source.text.trim().is_empty() {
                "the file is empty"
            } else {
                "the file has no keys"
            };
            let message = format!(
                "{what}, as while it is being written; the configuration in force has {first}{more} from a file; \
                 \"reload --force\" takes the file as it is"
            );
            Err(Error::from_file(&source.origin, &message))
        }
        _ => Ok(()),
    }
}

/// Finds the first of a fault's places that one of the files has.
pub(super) fn locate<'s>(
    texts: &'s [SourceText],
    fault: &Conflict,
) -> Option<(&'s SourceText, std::ops::Range<usize>)> {
    fault.places.iter().find_map(|place| {
        texts
            .iter()
            .find_map(|source| check::locate(&source.text, place).map(|span| (source, span)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A standard file and its directory, each file with its text.
    fn set(files: &[(&str, &str)]) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().expect("a directory");
        for (name, text) in files {
            let path = directory.path().join(name);
            fs::create_dir_all(path.parent().expect("it is in the directory")).expect("it is ours");
            fs::write(path, text).expect("it is ours");
        }
        let standard = directory.path().join("x.toml");
        (directory, standard)
    }

    fn names(files: &[PathBuf], directory: &Path) -> Vec<String> {
        files
            .iter()
            .map(|file| {
                file.strip_prefix(directory)
                    .expect("inside")
                    .display()
                    .to_string()
            })
            .collect()
    }

    #[test]
    fn only_the_standard_file_and_instances_have_files_beside_them() {
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
        let listed = |file: Option<&str>| {
            let file = file.map(|file| directory.path().join(file));
            names(
                &list(file.as_deref(), &standard).expect("they can be listed"),
                directory.path(),
            )
        };
        let all = ["x.toml", "x.d/10-a.toml", "x.d/20-b.toml", "x.d/9.toml"];
        assert_eq!(listed(None), all);
        assert_eq!(listed(Some("x.toml")), all);
        assert_eq!(
            listed(Some("x/blue.toml")),
            ["x/blue.toml", "x/blue.d/a.toml"]
        );
        assert_eq!(listed(Some("other.toml")), ["other.toml"]);
        assert_eq!(listed(Some("missing.toml")), ["missing.toml"]);
        fs::remove_file(&standard).expect("it is ours");
        assert_eq!(listed(None), all[1..]);
        for number in 0..=MAX_DROP_INS {
            fs::write(directory.path().join(format!("x.d/{number:03}.toml")), "")
                .expect("it is ours");
        }
        let error = list(None, &standard).expect_err("too many");
        assert!(
            error.message().starts_with("at most 64 files are read"),
            "{error}"
        );
    }

    #[test]
    fn keys_of_several_files_make_one_configuration() {
        let (directory, standard) = set(&[
            (
                "x.toml",
                "listen = [\"127.0.0.1:1\"]\n[workers]\ncount = 3\n",
            ),
            (
                "x.d/a.toml",
                "workers.dispatch = \"round-robin\"\n[limits]\nmax-frame = \"64KiB\"\n",
            ),
            ("x.d/b.toml", "limits = { buffers = \"1MiB\" }\n"),
        ]);
        let whole = "listen = [\"127.0.0.1:1\"]\nworkers = { count = 3, dispatch = \"round-robin\" }\n\
                     limits = { max-frame = \"64KiB\", buffers = \"1MiB\" }";
        let loaded = Config::load(None, &standard).expect("it is good");
        assert_eq!(
            loaded.config,
            Config::parse(whole, "test").expect("it is good")
        );
        assert_eq!(loaded.keys, keys_of(whole));
        drop(directory);
        assert_eq!(
            Config::load(None, &standard).expect("there is none"),
            Loaded::default()
        );
    }

    #[test]
    fn a_mistake_is_shown_in_the_file_that_has_it() {
        for (text, place, message) in [
            ("[log]\nlevle = 1", "x.d/a.toml:2:1", "unknown key `levle`"),
            (
                "limits.buffers = \"64KiB\"",
                "x.d/a.toml:1:8",
                "buffers must be at least 4 times max-frame (4MiB)",
            ),
            (
                "[log]\nfile = \"/x\"",
                "x.d/a.toml:2:1",
                "`file` is only for target",
            ),
        ] {
            let (_directory, standard) = set(&[
                ("x.toml", "[limits]\nmax-frame = \"1MiB\"\n"),
                ("x.d/a.toml", text),
            ]);
            let error = Config::load(None, &standard).expect_err(text);
            assert!(error.message().contains(message), "{error}");
            assert!(
                error.in_one_line().contains(&format!("{place}: ")),
                "{}",
                error.in_one_line()
            );
        }
    }

    #[test]
    fn a_key_given_twice_is_shown_at_both_places() {
        let (directory, standard) = set(&[
            ("x.toml", "# mine\n[workers]\ncount = 3\n"),
            ("x.d/a.toml", "log.level = \"warn\"\n"),
            (
                "x.d/b.toml",
                "log.format = \"json\"\nworkers = { count = 4 }\n",
            ),
        ]);
        let error = Config::load(None, &standard).expect_err("it is there twice");
        let path = |name: &str| directory.path().join(name).display().to_string();
        let first = format!("{}:3:1", path("x.toml"));
        assert_eq!(
            error.message(),
            format!("`workers.count` is given twice, the first time at {first}")
        );
        assert_eq!(
            error.in_one_line(),
            format!("{}:2:13: {}", path("x.d/b.toml"), error.message())
        );
        for words in [
            &first,
            "3 | count = 3",
            "workers = { count = 4 }",
            "given here first",
            "and again here",
        ] {
            assert!(
                error.to_string().contains(words),
                "{words} is not in\n{error}"
            );
        }

        for (text, first, again, name) in [
            (
                "[control]\nmode = \"0600\"\n[workers]\ncount = 1\n\ncount = 2\n",
                "4:1",
                "6:1",
                "count",
            ),
            (
                "[workers]\ncount = 1\n\n[log]\n[workers]\ndispatch = \"round-robin\"\n",
                "1:2",
                "5:2",
                "workers",
            ),
            (
                "listen = [\"[::]:1\"]\nlisten = [\"[::]:2\"]\n",
                "1:1",
                "2:1",
                "listen",
            ),
            (
                "# x\nworkers.count = 1\n[log]\n[workers]\ndispatch = \"round-robin\"",
                "2:1",
                "4:2",
                "workers",
            ),
            (
                "workers.count = 1\nworkers.count = 1\n",
                "1:9",
                "2:9",
                "count",
            ),
            (
                "listen = [{ address = \"[::]:1\", backlog = 1, backlog = 2 }]",
                "1:33",
                "1:46",
                "backlog",
            ),
        ] {
            let error = Config::parse(text, "one.toml").expect_err(text);
            let message = format!("`{name}` is given twice, the first time at one.toml:{first}");
            assert_eq!(
                error.in_one_line(),
                format!("one.toml:{again}: {message}"),
                "\n{error}"
            );
            assert!(error.to_string().contains("given here first"), "{error}");
        }
    }

    #[test]
    fn a_file_that_is_being_written_is_no_reason_to_drop_what_is_in_force() {
        let (directory, standard) = set(&[
            ("x.toml", "listen = [\"[::]:1\"]"),
            ("x.d/a.toml", "workers.count = 1"),
        ]);
        let before = Config::load(None, &standard).expect("it is good");
        let next = |force| {
            before
                .config
                .load_next(&before.keys, None, &standard, force)
        };
        let write = |name: &str, text: &str| {
            fs::write(directory.path().join(name), text).expect("it is ours")
        };
        write("x.toml", "");
        let error = next(false).expect_err("it is empty");
        assert!(
            error.message().starts_with("the file is empty, as while"),
            "{error}"
        );
        assert!(
            error.message().contains("has listen from a file"),
            "{error}"
        );
        assert_eq!(
            next(true).expect("it is good").config.workers,
            before.config.workers
        );
        write("x.toml", "# soon\n");
        next(false).expect("it has a comment, and another file has keys");
        write("x.d/a.toml", "# soon\n");
        let error = next(false).expect_err("nothing has keys");
        assert!(
            error.message().starts_with("the file has no keys"),
            "{error}"
        );
        assert!(
            error
                .message()
                .contains("has listen and 1 more from a file"),
            "{error}"
        );
        write("x.toml", "listen = [\"[::]:1\"]\nworkers.count = 1");
        write("x.d/a.toml", "");
        next(false).expect("nothing is missing");
    }
}
