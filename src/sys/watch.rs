//! Changes in directories, by inotify(7).

use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};

use super::poll::{Interest, wait_for};

/// A set of directories.
#[derive(Debug)]
pub struct DirectoryWatch(Inotify);

/// A directory of the set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WatchId(WatchDescriptor);

/// A change in a directory.
#[derive(Debug)]
pub enum DirectoryChange {
    /// The entry of this name was created, written, moved or removed.
    Entry {
        /// The directory.
        directory: WatchId,
        /// The name in it.
        name: OsString,
        /// Whether it is a directory.
        is_directory: bool,
    },
    /// The directory has another path now.
    Moved(WatchId),
    /// The directory is no longer watched, because it was removed.
    Gone(WatchId),
    /// The kernel has dropped changes.
    Overflow,
}

impl DirectoryWatch {
    /// Returns an empty set.
    ///
    /// # Errors
    /// Those of inotify_init1(2): EMFILE at the limit `fs.inotify.max_user_instances`.
    pub fn new() -> io::Result<DirectoryWatch> {
        let flags = InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK;
        Ok(DirectoryWatch(Inotify::init(flags)?))
    }

    /// Adds a directory, but not those in it. A directory that is in the set already has the same id.
    ///
    /// # Errors
    /// Those of inotify_add_watch(2): ENOSPC at the limit `fs.inotify.max_user_watches`.
    pub fn add(&self, directory: &Path) -> io::Result<WatchId> {
        let flags = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ONLYDIR;
        Ok(WatchId(self.0.add_watch(directory, flags)?))
    }

    /// Waits for changes, at most for `timeout`. Returns those that have occurred.
    ///
    /// # Errors
    /// Those of poll(2) and read(2) on inotify's descriptor.
    pub fn wait(&self, timeout: Duration) -> io::Result<Vec<DirectoryChange>> {
        wait_for(self.0.as_fd(), Interest::Read, timeout)?;
        let events = match self.0.read_events() {
            Ok(events) => events,
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        };
        let change = |event: nix::sys::inotify::InotifyEvent| {
            let directory = WatchId(event.wd);
            if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
                return Some(DirectoryChange::Overflow);
            }
            if event.mask.contains(AddWatchFlags::IN_IGNORED) {
                return Some(DirectoryChange::Gone(directory));
            }
            if event.mask.contains(AddWatchFlags::IN_MOVE_SELF) {
                return Some(DirectoryChange::Moved(directory));
            }
            let is_directory = event.mask.contains(AddWatchFlags::IN_ISDIR);
            // A file that was created is not complete before it is closed.
            if event.mask.contains(AddWatchFlags::IN_CREATE) && !is_directory {
                return None;
            }
            Some(DirectoryChange::Entry {
                directory,
                name: event.name?,
                is_directory,
            })
        };
        Ok(events.into_iter().filter_map(change).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn changes_of_a_directory_are_reported() {
        let place = tempfile::tempdir().expect("a directory");
        let watch = DirectoryWatch::new().expect("inotify");
        let id = watch.add(place.path()).expect("it is there");
        assert!(
            watch
                .wait(Duration::ZERO)
                .expect("it can be read")
                .is_empty()
        );
        let names = || -> Vec<(String, bool)> {
            let changes = watch.wait(Duration::from_secs(10)).expect("it can be read");
            let name = |change: DirectoryChange| match change {
                DirectoryChange::Entry {
                    directory,
                    name,
                    is_directory,
                } => {
                    assert_eq!(directory, id);
                    (name.into_string().expect("UTF-8"), is_directory)
                }
                other => panic!("{other:?}"),
            };
            changes.into_iter().map(name).collect()
        };
        let entry = |name: &str, is_directory| (name.to_owned(), is_directory);
        fs::write(place.path().join("a"), "x").expect("it is ours");
        assert_eq!(names(), [entry("a", false)]);
        fs::rename(place.path().join("a"), place.path().join("b")).expect("it is ours");
        assert_eq!(names(), [entry("a", false), entry("b", false)]);
        fs::create_dir(place.path().join("c")).expect("it is ours");
        assert_eq!(names(), [entry("c", true)]);
        fs::remove_file(place.path().join("b")).expect("it is ours");
        assert_eq!(names(), [entry("b", false)]);
    }
}
