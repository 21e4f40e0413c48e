//! The files of an app, in a directory and those below it.

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};
use std::{fs, io};

use super::glob::PathPattern;
use crate::sys::watch::{DirectoryChange, DirectoryWatch, WatchId};

/// The most directories that are watched.
const MAX_DIRECTORIES: usize = 8192;

/// The longest wait of one system call.
const LONG: Duration = Duration::from_secs(3600);

/// The longest wait for the end of changes: a file that is written all the time must not delay the reload for ever.
const MAX_WAIT: Duration = Duration::from_secs(2);

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

    /// Waits until a file has changed and none has changed for `quiet` since, or for [`MAX_WAIT`] since the change.
    /// Returns the first one.
    ///
    /// # Errors
    /// Those of watching directories, and the end of the root.
    pub(super) fn wait_for_change(&mut self, quiet: Duration) -> io::Result<PathBuf> {
        let mut changed = None;
        let mut until: Option<Instant> = None;
        let mut last = None;
        loop {
            let timeout = match until {
                None => LONG,
                Some(until) => {
                    let left = until.saturating_duration_since(Instant::now());
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
                let last = *last.get_or_insert_with(|| Instant::now() + MAX_WAIT);
                until = Some(last.min(Instant::now() + quiet));
                changed.get_or_insert(path);
            }
        }
    }

    /// Waits for this time. Returns whether a file has changed in it; that is not reported again.
    ///
    /// # Errors
    /// Those of watching directories.
    pub(super) fn skip_changes(&mut self, time: Duration) -> io::Result<bool> {
        let until = Instant::now() + time;
        let mut matching = None;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(matching.is_some());
            }
            for change in self.watch.wait(left)? {
                self.take(change, &mut matching)?;
            }
        }
    }

    /// Handles a change. `matching` is the first file that matches.
    fn take(&mut self, change: DirectoryChange, matching: &mut Option<PathBuf>) -> io::Result<()> {
        match change {
            DirectoryChange::Moved(directory) => {
                if self.directories.get(&directory) == Some(&self.root) {
                    return Err(self.root_gone());
                }
            }
            DirectoryChange::Gone(directory) => {
                if self.directories.remove(&directory).as_ref() == Some(&self.root) {
                    return Err(self.root_gone());
                }
            }
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

    fn root_gone(&self) -> io::Error {
        io::Error::other(format!("{} was removed or replaced", self.root.display()))
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

/// Returns the directory and the patterns for an app without any: all files in the language of its script, below
/// `directory` or else below that of the script, or the program itself. A program that is named by an absolute path in
/// another directory may be an interpreter, so it is not watched.
pub(super) fn default_patterns(
    directory: &Path,
    command: &[String],
) -> Option<(PathBuf, Vec<String>)> {
    // A program without a slash is not one of the directory.
    let (program, arguments) = command.split_first()?;
    let program = Some(program).filter(|program| program.contains('/'));
    let named = || {
        let named = arguments.iter().chain(program);
        named.filter(|name| directory.join(name).is_file())
    };
    let inside = || named().find_map(|name| Some((directory.to_owned(), below(directory, name)?)));
    let elsewhere = || {
        let is_absolute = |name: &String| Path::new(name).is_absolute();
        let mut named = named().filter(|name| Some(*name) != program || !is_absolute(name));
        // The parent of `../app.py` is another one than its text suggests if a directory is a symbolic link.
        let path = directory.join(named.next()?);
        let parent = fs::canonicalize(path.parent()?).ok()?;
        Some((parent, PathBuf::from(path.file_name()?)))
    };
    let (root, script) = inside().or_else(elsewhere)?;
    let patterns = match script.extension().and_then(|extension| extension.to_str()) {
        None => vec![normal(&script)],
        Some(extension) => match FAMILIES.iter().find(|family| family.contains(&extension)) {
            Some(family) => family.iter().map(|name| format!("**/*.{name}")).collect(),
            None => vec![format!("**/*.{extension}")],
        },
    };
    Some((root, patterns))
}

/// Returns the path of a file below a directory, relative to it.
fn below(directory: &Path, name: &str) -> Option<PathBuf> {
    let inside = directory.join(name);
    let inside = inside.strip_prefix(directory).ok()?;
    let is_up = |part| part == Component::ParentDir;
    (!inside.components().any(is_up)).then(|| inside.to_owned())
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
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(20);

    fn write(root: &Path, name: &str) {
        let path = root.join(name);
        fs::create_dir_all(path.parent().expect("it is below")).expect("it is ours");
        fs::write(path, "").expect("it is ours");
    }

    #[test]
    fn files_with_the_extension_of_the_script_are_watched() {
        let place = tempfile::tempdir().expect("a directory");
        let here = place.path().join("here");
        for name in ["app.py", "src/main.mjs", "server", "x.rb"] {
            write(&here, name);
        }
        let patterns = |command: &[&str]| {
            let command: Vec<String> = command.iter().map(|part| (*part).to_owned()).collect();
            let (root, patterns) = default_patterns(&here, &command)?;
            assert_eq!(root, here);
            Some(patterns.join(" "))
        };
        let python = patterns(&["python3", "-u", "app.py", "x.rb"]);
        assert_eq!(python.as_deref(), Some("**/*.py"));
        assert_eq!(patterns(&["./x.rb"]).as_deref(), Some("**/*.rb"));
        let server = patterns(&["./server", "--port"]);
        assert_eq!(server.as_deref(), Some("server"));
        let node = patterns(&["node", "./src/main.mjs"]).expect("a script");
        assert!(node.contains("**/*.ts") && node.contains("**/*.mjs"));
        for none in [&["server"][..], &["python3", "-m", "shop"], &["sh"], &[]] {
            assert_eq!(patterns(none), None, "{none:?}");
        }
    }

    #[test]
    fn a_script_in_another_directory_is_watched_there() {
        let place = tempfile::tempdir().expect("a directory");
        let place = fs::canonicalize(place.path()).expect("it exists");
        let [here, there] = ["here", "there"].map(|name| place.join(name));
        for name in ["here/app.py", "there/main.js", "there/server"] {
            write(&place, name);
        }
        let absolute = |name: &str| there.join(name).display().to_string();
        let patterns = |command: &[&str]| {
            let command: Vec<String> = command.iter().map(|part| (*part).to_owned()).collect();
            default_patterns(&here, &command)
        };
        for name in [absolute("main.js"), "../there/main.js".to_owned()] {
            let (root, patterns) = patterns(&["node", &name]).expect("a script");
            assert_eq!(root, there);
            assert!(patterns.contains(&"**/*.ts".to_owned()), "{patterns:?}");
        }
        let server = patterns(&["../there/server"]);
        assert_eq!(server, Some((there.clone(), vec!["server".to_owned()])));
        // A script of this directory comes first, and a program elsewhere may be an interpreter.
        let first = patterns(&["python3", &absolute("main.js"), "app.py"]);
        assert_eq!(first, Some((here.clone(), vec!["**/*.py".to_owned()])));
        assert_eq!(patterns(&[&absolute("server"), "-m", "shop"]), None);
    }

    #[test]
    fn a_file_that_is_always_written_is_reported() {
        let place = tempfile::tempdir().expect("a directory");
        let root = place.path().to_owned();
        let mut files = Files::new(&root, vec![PathPattern::new("*.py")]).expect("inotify");
        let (tell, told) = mpsc::channel();
        thread::spawn(move || {
            let quiet = Duration::from_millis(500);
            // The test does not wait for it after a failure.
            let _ = tell.send(files.wait_for_change(quiet));
        });
        let begin = Instant::now();
        let found = loop {
            write(&root, "app.py");
            match told.recv_timeout(Duration::from_millis(10)) {
                Ok(found) => break found,
                Err(_) => assert!(begin.elapsed() < TIMEOUT, "the change is not reported"),
            }
        };
        assert_eq!(found.expect("it is watched"), Path::new("app.py"));
    }

    #[test]
    fn the_end_of_the_root_is_an_error() {
        let place = tempfile::tempdir().expect("a directory");
        let changes: [fn(&Path) -> io::Result<()>; 2] = [
            |root| fs::remove_dir_all(root),
            |root| fs::rename(root, root.with_extension("old")),
        ];
        for change in changes {
            let root = place.path().join("root");
            fs::create_dir_all(root.join("sub")).expect("it is ours");
            let mut files = Files::new(&root, vec![PathPattern::new("*.py")]).expect("inotify");
            let (tell, told) = mpsc::channel();
            let quiet = Duration::from_millis(1);
            thread::spawn(move || tell.send(files.wait_for_change(quiet)));
            change(&root).expect("it is ours");
            let waited = told.recv_timeout(TIMEOUT).expect("the watching ends");
            let error = waited.expect_err("the root is gone").to_string();
            assert!(error.contains("/root was removed or replaced"), "{error}");
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
