//! An intermediary in front of a daemon's control socket: it passes requests on, answers some of them itself, and closes
//! connections.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use fdpassd::testing::Running;
use serde_json::Value;
use tempfile::TempDir;

use crate::common::frame;
use crate::common::program::{FDPASSCTL, control_socket};

/// Decision about a request.
pub enum Fate {
    /// The daemon answers it.
    Passed,
    Answered(String),
    /// No reply is sent, and the connection stays open.
    Ignored,
}

/// The control socket of an intermediary, until this is dropped.
pub struct Intermediary {
    shared: Arc<Shared>,
    place: TempDir,
}

/// Decides what becomes of a request, by its verb and its arguments.
type Decide = dyn Fn(&str, &Value) -> Fate + Send + Sync;

struct Shared {
    daemon: PathBuf,
    decide: Box<Decide>,
    /// Both ends of each connection that was accepted since the last cut.
    streams: Mutex<Vec<UnixStream>>,
    accepted: AtomicUsize,
    is_over: AtomicBool,
}

impl Intermediary {
    /// Listens in front of a daemon, and decides about each request by its verb and params.
    pub fn start(
        daemon: &Running,
        decide: impl Fn(&str, &Value) -> Fate + Send + Sync + 'static,
    ) -> Intermediary {
        let place = tempfile::tempdir().expect("a directory");
        let listener = UnixListener::bind(place.path().join("control.sock")).expect("it is free");
        let shared = Arc::new(Shared {
            daemon: control_socket(daemon),
            decide: Box::new(decide),
            streams: Mutex::default(),
            accepted: AtomicUsize::new(0),
            is_over: AtomicBool::new(false),
        });
        let serving = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming() {
                if serving.is_over.load(Ordering::SeqCst) {
                    return;
                }
                let serving = Arc::clone(&serving);
                // An error: one of the two ends has closed.
                thread::spawn(move || serving.serve(client?));
            }
        });
        Intermediary { shared, place }
    }

    pub fn socket(&self) -> PathBuf {
        self.place.path().join("control.sock")
    }

    /// Returns `top` with these arguments, for the daemon.
    pub fn top(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(FDPASSCTL);
        command.arg("top").args(arguments);
        command.arg("--socket").arg(self.socket());
        command
    }

    /// Returns how many connections were accepted so far.
    pub fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    /// Closes all connections.
    pub fn cut(&self) {
        let streams = self.shared.streams.lock().expect("no thread has panicked");
        let streams = std::mem::take(&mut *{ streams });
        for stream in streams {
            // An error: it is closed already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Intermediary {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::SeqCst);
        // This ends a pending accept.
        drop(UnixStream::connect(self.socket()));
        self.cut();
    }
}

impl Shared {
    /// Serves one connection until either end closes it.
    fn serve(&self, mut client: UnixStream) -> io::Result<()> {
        let mut daemon = UnixStream::connect(Path::new(&self.daemon))?;
        let both = [client.try_clone()?, daemon.try_clone()?];
        let streams = self.streams.lock();
        streams.expect("no thread has panicked").extend(both);
        self.accepted.fetch_add(1, Ordering::SeqCst);
        loop {
            let request = read_frame(&mut client)?;
            let parsed: Value = serde_json::from_slice(&request)?;
            let verb = parsed["in"].as_str().unwrap_or_default();
            let reply = match (self.decide)(verb, &parsed["params"]) {
                Fate::Passed => {
                    daemon.write_all(&framed(&request))?;
                    read_frame(&mut daemon)?
                }
                Fate::Answered(reply) => reply.into_bytes(),
                Fate::Ignored => continue,
            };
            client.write_all(&framed(&reply))?;
        }
    }
}

fn read_frame(from: &mut UnixStream) -> io::Result<Vec<u8>> {
    let mut prefix = [0; 4];
    from.read_exact(&mut prefix)?;
    let mut body = vec![0; u32::from_le_bytes(prefix) as usize];
    from.read_exact(&mut body)?;
    Ok(body)
}

fn framed(body: &[u8]) -> Vec<u8> {
    frame(std::str::from_utf8(body).expect("JSON is UTF-8"))
}
