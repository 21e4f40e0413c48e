//! A service manager for tests: it stores descriptors for a daemon, as systemd does, and passes them to the next one.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};

use super::Setup;
use super::directory::Directory;
use super::stored::{ManagerState, StoredCopies, lock};
use crate::sys::listening::{is_listening, share_address};
use crate::sys::poll::{Interest, Poller};
use crate::sys::socket::{self, Received};

/// The beginning of the names of canaries.
const CANARY_NAME: &str = "fdpassd-canary";

/// A service manager with a descriptor store (sd_notify(3), `FDSTORE=1`).
#[derive(Debug)]
pub struct ServiceManager {
    path: PathBuf,
    state: Arc<Mutex<ManagerState>>,
    /// Ends the thread when it is dropped.
    end: Option<OwnedFd>,
    thread: Option<JoinHandle<()>>,
    _directory: Directory,
}

impl ServiceManager {
    /// Creates a service manager with an empty store.
    ///
    /// # Panics
    /// If no descriptors are left.
    #[must_use]
    #[expect(
        clippy::new_without_default,
        reason = "it starts a thread and creates a socket"
    )]
    pub fn new() -> ServiceManager {
        let directory = Directory::new().expect("a directory");
        let path = directory.0.join("notify");
        let socket = UnixDatagram::bind(&path).expect("the path is free");
        let (ours, theirs) = socket::message_pair().expect("a pair of sockets");
        let state = Arc::new(Mutex::new(ManagerState::default()));
        let shared = Arc::clone(&state);
        let thread = thread::spawn(move || listen(&socket, &theirs, &shared));
        ServiceManager {
            path,
            state,
            end: Some(ours),
            thread: Some(thread),
            _directory: directory,
        }
    }

    /// Returns the settings of a daemon that this manager starts. It is passed copies of everything that is stored when
    /// it starts: [`Setup::start_after`] waits for the end of the previous daemon first.
    #[must_use]
    pub fn setup(&self, program: impl AsRef<OsStr>, config: &str) -> Setup {
        Setup::new(program, config)
            .variable("NOTIFY_SOCKET", &self.path)
            .variable("FDPASSD_KEEP_CLIENTS", "1")
            .stored(StoredCopies {
                path: self.path.clone(),
                state: Arc::clone(&self.state),
            })
    }

    /// Returns all messages received so far.
    #[must_use]
    pub fn told(&self) -> Vec<String> {
        self.lock().told.clone()
    }

    /// Returns the names of all stored descriptors.
    #[must_use]
    pub fn stored(&self) -> Vec<String> {
        self.lock()
            .stored
            .iter()
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// Calls `act` with a copy of the first descriptor stored under this name.
    ///
    /// # Panics
    /// If there is none.
    pub fn with_stored(&self, name: &str, act: impl FnOnce(OwnedFd)) {
        let state = self.lock();
        let (_, stored) = state
            .stored
            .iter()
            .find(|(other, _)| other == name)
            .expect("a stored descriptor has this name");
        act(stored.try_clone().expect("a descriptor can be copied"));
    }

    /// Closes all stored descriptors, as systemd does when a service is stopped.
    pub fn forget(&self) {
        self.forget_those(|_| true);
    }

    /// Closes the stored descriptors whose names satisfy `is_forgotten`, as systemd does when `FileDescriptorStoreMax`
    /// is lowered.
    pub fn forget_those(&self, is_forgotten: impl Fn(&str) -> bool) {
        let stored = &mut self.lock().stored;
        let forgotten = stored.extract_if(.., |(name, _)| is_forgotten(name));
        forgotten.for_each(close);
    }

    /// Does the same as [`ServiceManager::forget_those`] when no daemon runs. Listeners end at once, even if a process
    /// that another test just starts still has copies of them: it closes them when it executes its program.
    pub fn forget_after_end(&self, is_forgotten: impl Fn(&str) -> bool) {
        let stored = &mut self.lock().stored;
        for (_, listener) in stored.extract_if(.., |(name, _)| is_forgotten(name)) {
            if is_listening(&listener) {
                socket::end(&listener);
                // It fails for a Unix socket, which does not need it.
                let _ = share_address(&listener);
            }
        }
    }

    /// Sets the most descriptors to store, as `FileDescriptorStoreMax` does; descriptors above that are closed.
    pub fn limit(&self, most: impl Into<Option<usize>>) {
        self.lock().most = most.into();
    }

    fn lock(&self) -> MutexGuard<'_, ManagerState> {
        lock(&self.state)
    }
}

impl Drop for ServiceManager {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = fs::remove_file(&self.path);
    }
}

fn listen(socket: &UnixDatagram, end: &OwnedFd, state: &Mutex<ManagerState>) {
    let mut poller = Poller::new(2).expect("a poller");
    poller
        .add(socket, 0, Interest::Read)
        .and_then(|()| poller.add(end, 1, Interest::Read))
        .expect("they are watched");
    let (mut events, mut datagram) = (Vec::new(), vec![0; 8192]);
    loop {
        poller.wait(&mut events, None).expect("the poller works");
        while let Ok(Received::Message {
            length,
            descriptors,
            ..
        }) = receive(socket, &mut datagram)
        {
            let text = String::from_utf8_lossy(&datagram[..length]).into_owned();
            lock(state).receive(text, descriptors);
        }
        lock(state).rejected.drain(..).for_each(close);
        if events.iter().any(|event| event.token == 1) {
            return;
        }
    }
}

fn receive(socket: &UnixDatagram, datagram: &mut [u8]) -> io::Result<Received> {
    socket::receive_message(socket.as_fd(), datagram)
}

impl ManagerState {
    /// Stores a descriptor. As in systemd, one that is stored already is ignored, and one above the limit is closed.
    fn store(&mut self, name: &str, descriptor: OwnedFd) {
        let is_there = self
            .stored
            .iter()
            .any(|(_, stored)| identity(stored) == identity(&descriptor));
        if is_there {
            return;
        }
        if self.most.is_none_or(|most| self.stored.len() < most) {
            self.stored.push((name.to_owned(), descriptor));
        } else {
            self.rejected.push((name.to_owned(), descriptor));
        }
    }

    fn receive(&mut self, text: String, descriptors: Vec<OwnedFd>) {
        let named = text
            .lines()
            .find_map(|line| line.strip_prefix("FDNAME="))
            .unwrap_or("stored")
            .to_owned();
        let has_line = |what: &str| text.lines().any(|line| line == what);
        if has_line("FDSTORE=1") {
            descriptors
                .into_iter()
                .for_each(|descriptor| self.store(&named, descriptor));
        } else if has_line("FDSTOREREMOVE=1") {
            self.stored.retain(|(name, _)| *name != named);
        }
        // A BARRIER is answered by closing its descriptor, which happens here.
        self.told.push(text);
    }
}

/// Closes a descriptor. The daemon waits for the end of a canary, which comes at once even if a process that another
/// test just starts still has a copy of it.
fn close((name, descriptor): (String, OwnedFd)) {
    if name.starts_with(CANARY_NAME) {
        socket::end(&descriptor);
    }
}

/// Returns device and inode of an open file.
fn identity(descriptor: &OwnedFd) -> (u64, u64) {
    let file = File::from(descriptor.try_clone().expect("a descriptor can be copied"));
    let metadata = file.metadata().expect("it is open");
    (metadata.dev(), metadata.ino())
}
