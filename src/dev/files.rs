//! The files of an app, in a directory and those below it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{fs, io};

use super::glob::PathPattern;
use crate::sys::watch::{DirectoryChange, DirectoryWatch, WatchId};

/// The most directories that are watched.
const MAX_DIRECTORIES: usize = 8192;

/// The longest wait of one system call.
const LONG: Duration = Duration::from_secs(3600);

/// Extensions that stand for one language.
const FAMILIES: [&[&str]; 1] = [&["js", "mjs", "cjs", "ts", "mts", "cts"]];

/// The files whose changes are reported.
pub(super) struct Files {
    root: PathBuf,
    patterns: Vec<PathPattern>,
    watch: DirectoryWatch,
    directories: HashMap<WatchId, PathBuf>,
}

impl Files {
    /// Returns the files below `root` that match one of the patterns. Not searched are hidden directories, directories
    /// of packages (`node_modules`, virtual environments of Python) and `__pycache__`.
    ///
    /// # Errors
    /// A directory that cannot be watched, or too many of them.
    pub(super) fn new(root: &Path, patterns: Vec<PathPattern>) -> io::Result<Files> {
        let mut files = Files {
            root: root.to_owned(),
            patterns,
            watch: DirectoryWatch::new()?,
            directories: HashMap::new(),
        };
        files.add(root, &mut None)?;
        Ok(files)
    }

    /// Waits until a file has changed and none has changed for `quiet` since. Returns the first one.
    ///
    /// # Errors
    /// Those of watching directories.
    pub(super) fn wait_for_change(&mut self, quiet: Duration) -> io::Result<PathBuf> {
        let mut changed = None;
        let mut until = None;
        loop {
            let timeout = match until {
                None => LONG,
                Some(until) => {
                    let left = Instant::saturating_duration_since(&until, Instant::now());
                    if left.is_zero()
                        && let Some(first) = changed.take()
                    {
                        return Ok(first);
                    }
                    left
                }
            };
            let mut matching = None;
            for change in self.watch.wait(timeout)? {
                self.take(change, &mut matching)?;
            }
            if let Some(path) = matching {
                until = Some(Instant::now() + quiet);
                changed.get_or_insert(path);
            }
        }
    }

    /// Waits for this time, and does not report changes that occur in it.
    ///
    /// # Errors
    /// Those of watching directories.
    pub(super) fn skip_changes(&mut self, time: Duration) -> io::Result<()> {
        let until = Instant::now() + time;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            for change in self.watch.wait(left)? {
                self.take(change, &mut None)?;
            }
        }
    }

    /// Handles a change. `matching` is the first file that matches.
    fn take(&mut self, change: DirectoryChange, matching: &mut Option<PathBuf>) -> io::Result<()> {
        match change {
            DirectoryChange::Gone(directory) => drop(self.directories.remove(&directory)),
            DirectoryChange::Overflow => {
                let root = self.root.clone();
                self.add(&root, matching)?;
                matching.get_or_insert(PathBuf::from("."));
            }
            DirectoryChange::Entry {
                directory,
                name,
                is_directory,
            } => {
                let Some(path) = self.directories.get(&directory).map(|at| at.join(name)) else {
                    return Ok(());
                };
                match is_directory {
                    true if path.is_dir() => self.add(&path, matching)?,
                    true => {}
                    false => self.check(&path, matching),
                }
            }
        }
        Ok(())
    }

    fn check(&self, path: &Path, matching: &mut Option<PathBuf>) {
        if let Ok(relative) = path.strip_prefix(&self.root)
            && self
                .patterns
                .iter()
                .any(|pattern| pattern.matches(relative))
        {
            matching.get_or_insert(relative.to_owned());
        }
    }

    /// Adds a directory and those below. The files in it may have been written before it was watched.
    fn add(&mut self, directory: &Path, matching: &mut Option<PathBuf>) -> io::Result<()> {
        let mut rest = vec![directory.to_owned()];
        while let Some(directory) = rest.pop() {
            if directory != self.root && is_skipped(&directory) {
                continue;
            }
            let id = match self.watch.add(&directory) {
                Ok(id) => id,
                // It was removed since.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                // It has no files that the app could read, such as the data of a database.
                Err(error)
                    if error.kind() == io::ErrorKind::PermissionDenied
                        && directory != self.root =>
                {
                    continue;
                }
                Err(error) => {
                    let text = format!("{}: {error}", directory.display());
                    return Err(io::Error::new(error.kind(), text));
                }
            };
            if self.directories.len() >= MAX_DIRECTORIES && !self.directories.contains_key(&id) {
                return Err(io::Error::other(format!(
                    "{} has more than {MAX_DIRECTORIES} directories",
                    self.root.display()
                )));
            }
            let entries = fs::read_dir(&directory).into_iter().flatten().flatten();
            for entry in entries {
                match entry.file_type() {
                    Ok(kind) if kind.is_dir() => rest.push(entry.path()),
                    Ok(_) => self.check(&entry.path(), matching),
                    Err(_) => {}
                }
            }
            self.directories.insert(id, directory);
        }
        Ok(())
    }
}

fn is_skipped(directory: &Path) -> bool {
    let name = directory.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with('.')
        || ["node_modules", "__pycache__"].contains(&name.as_ref())
        || directory.join("pyvenv.cfg").exists()
}

/// Returns the patterns for an app without any: all files in the language of its script, or the program itself.
pub(super) fn default_patterns(directory: &Path, command: &[String]) -> Option<Vec<String>> {
    let relative = |argument: &String| {
        let path = directory.join(argument);
        let inside = path.strip_prefix(directory).ok()?.to_owned();
        path.is_file().then_some(inside)
    };
    // A program without a slash is not one of the directory.
    let (program, arguments) = command.split_first()?;
    let program = Some(program).filter(|program| program.contains('/'));
    let mut found = arguments.iter().chain(program).filter_map(relative);
    let script = found.next()?;
    let Some(extension) = script.extension().and_then(|extension| extension.to_str()) else {
        return Some(vec![normal(&script)]);
    };
    let family = FAMILIES
        .into_iter()
        .find(|family| family.contains(&extension));
    Some(match family {
        Some(family) => family.iter().map(|name| format!("**/*.{name}")).collect(),
        None => vec![format!("**/*.{extension}")],
    })
}

/// Returns a relative path without `.`.
fn normal(path: &Path) -> String {
    let names: Vec<_> = path
        .components()
        .map(|part| part.as_os_str().to_string_lossy())
        .filter(|name| name != ".")
        .collect();
    names.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, name: &str) {
        let path = root.join(name);
        fs::create_dir_all(path.parent().expect("it is below")).expect("it is ours");
        fs::write(path, "").expect("it is ours");
    }

    #[test]
    fn files_with_the_extension_of_the_script_are_watched() {
        let place = tempfile::tempdir().expect("a directory");
        for name in ["app.py", "src/main.mjs", "server", "x.rb"] {
            write(place.path(), name);
        }
        let patterns = |command: &[&str]| {
            let command: Vec<String> = command.iter().map(|part| (*part).to_owned()).collect();
            default_patterns(place.path(), &command)
        };
        let some = |patterns: &[&str]| {
            Some(
                patterns
                    .iter()
                    .map(|pattern| (*pattern).to_owned())
                    .collect::<Vec<_>>(),
            )
        };
        assert_eq!(
            patterns(&["python3", "-u", "app.py", "x.rb"]),
            some(&["**/*.py"])
        );
        assert_eq!(patterns(&["./x.rb"]), some(&["**/*.rb"]));
        assert_eq!(patterns(&["./server", "--port"]), some(&["server"]));
        let node = patterns(&["node", "./src/main.mjs"]).expect("a script");
        assert!(node.contains(&"**/*.ts".to_owned()) && node.contains(&"**/*.mjs".to_owned()));
        for none in [&["server"][..], &["python3", "-m", "shop"], &["sh"], &[]] {
            assert_eq!(patterns(none), None, "{none:?}");
        }
    }

    #[test]
    fn a_change_is_reported_once_it_is_quiet() {
        let place = tempfile::tempdir().expect("a directory");
        let root = place.path();
        for name in [
            "app.py",
            ".git/x.py",
            "node_modules/a/x.py",
            "venv/pyvenv.cfg",
        ] {
            write(root, name);
        }
        let patterns = vec![PathPattern::new("**/*.py"), PathPattern::new("templates/*")];
        let mut files = Files::new(root, patterns).expect("it can be watched");
        let quiet = Duration::from_millis(20);
        let mut next = |names: &[&str]| {
            names.iter().for_each(|name| write(root, name));
            files.wait_for_change(quiet).expect("it is watched")
        };
        let ignored = [".git/x.py", "node_modules/a/x.py", "venv/x.py", "x.txt"];
        assert_eq!(
            next(&[&ignored[..], &["app.py", "b.py"]].concat()),
            Path::new("app.py")
        );
        // Also in directories that were not there.
        assert_eq!(next(&["new/deep/c.py"]), Path::new("new/deep/c.py"));
        assert_eq!(next(&["new/deep/d.py"]), Path::new("new/deep/d.py"));
        assert_eq!(next(&["templates/a.html"]), Path::new("templates/a.html"));
        fs::rename(root.join("b.py"), root.join("b.txt")).expect("it is ours");
        assert_eq!(next(&[]), Path::new("b.py"));
    }
}
