//! A daemon that follows scripts: each connection is performed by the next one.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use serde_json::Value;
use tempfile::TempDir;

use super::TIMEOUT;
use crate::proto::frame::ByteOrder;
use crate::proto::names::Address;
use crate::sys::socket::{bind_tcp, connect_tcp, connect_unix, local_address};

/// The part of a daemon in one connection.
pub(super) type Script = Box<dyn FnOnce(&mut Peer) + Send>;

pub(super) fn script(act: impl FnOnce(&mut Peer) + Send + 'static) -> Script {
    Box::new(act)
}

/// One connection of a client.
pub(super) struct Peer {
    pub(super) stream: UnixStream,
    order: ByteOrder,
}

impl Peer {
    /// Returns the body of the next request; `None` at the end.
    pub(super) fn read(&mut self) -> Option<String> {
        let mut prefix = [0; 4];
        self.stream.read_exact(&mut prefix).ok()?;
        let body = self.read_bytes(self.order.length(prefix) as usize);
        let body = String::from_utf8(body).expect("a request is text");
        // The first request of a connection asks for a goaway.
        Some(match body.strip_suffix(",\"goaway\":true}") {
            Some(rest) => format!("{rest}}}"),
            None => body,
        })
    }

    /// Expects this request.
    #[track_caller]
    pub(super) fn expect(&mut self, request: &str) {
        assert_eq!(self.read().as_deref(), Some(request));
    }

    /// Reads exactly this number of bytes.
    pub(super) fn read_bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.stream.read_exact(&mut bytes).expect("these bytes");
        bytes
    }

    pub(super) fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the client reads");
    }

    pub(super) fn send(&mut self, body: &str) {
        let frame = [&self.order.prefix(body.len() as u32), body.as_bytes()].concat();
        self.write(&frame);
    }

    pub(super) fn reply(&mut self, result: &str) {
        self.send(&format!(r#"{{"out":"any_r","result":{result}}}"#));
    }

    pub(super) fn error(&mut self, code: &str) {
        self.send(&format!(
            r#"{{"out":"error","result":{{"code":"{code}","message":"a reason"}}}}"#
        ));
    }

    /// Ends the connection politely, after this number of requests.
    pub(super) fn goaway(&mut self, read: &str) {
        self.send(&format!(
            r#"{{"out":"goaway","result":{{"read":{read},"reason":"draining","more":1}}}}"#
        ));
        self.finish();
    }

    /// Answers each request by its params, until the client leaves.
    pub(super) fn echo(&mut self) {
        while let Some(request) = self.read() {
            let request: Value = serde_json::from_str(&request).expect("a request is JSON");
            self.reply(&request["params"].to_string());
        }
    }

    /// Closes the connection as the daemon does after an error: what was sent arrives, and the rest is discarded.
    pub(super) fn finish(&mut self) {
        // The client may have closed it already.
        let _ = self.stream.shutdown(Shutdown::Write);
        self.discard();
    }

    /// Reads until the client closes the connection.
    pub(super) fn discard(&mut self) {
        let _ = self.stream.read_to_end(&mut Vec::new());
    }

    /// Waits until the client closes the connection, and shows that it sends nothing more.
    #[track_caller]
    pub(super) fn expect_end(&mut self) {
        let mut rest = [0];
        assert_eq!(self.stream.read(&mut rest).unwrap_or(0), 0, "{rest:?}");
    }
}

enum Listening {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// A listener.
pub(super) struct Server {
    address: Address,
    ended: Arc<AtomicBool>,
    accepting: Option<JoinHandle<Vec<JoinHandle<()>>>>,
    _directory: Option<TempDir>,
}

impl Server {
    /// Listens on TCP.
    pub(super) fn start(scripts: impl IntoIterator<Item = Script>) -> Server {
        Server::start_tcp(ByteOrder::Little, scripts)
    }

    pub(super) fn start_big(scripts: impl IntoIterator<Item = Script>) -> Server {
        Server::start_tcp(ByteOrder::Big, scripts)
    }

    fn start_tcp(order: ByteOrder, scripts: impl IntoIterator<Item = Script>) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = Address::Tcp(listener.local_addr().expect("it is bound"));
        Server::of(Listening::Tcp(listener), address, order, None, scripts)
    }

    /// Listens on a Unix socket, which takes less than TCP while the server does not read.
    pub(super) fn start_unix(scripts: impl IntoIterator<Item = Script>) -> Server {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("rpc.sock");
        let listener = UnixListener::bind(&path).expect("the path is free");
        let (listener, address) = (Listening::Unix(listener), Address::Unix(path));
        Server::of(
            listener,
            address,
            ByteOrder::Little,
            Some(directory),
            scripts,
        )
    }

    fn of(
        listener: Listening,
        address: Address,
        order: ByteOrder,
        directory: Option<TempDir>,
        scripts: impl IntoIterator<Item = Script>,
    ) -> Server {
        let scripts: Vec<Script> = scripts.into_iter().collect();
        let ended = Arc::new(AtomicBool::new(false));
        let is_over = Arc::clone(&ended);
        Server {
            address,
            ended,
            accepting: Some(thread::spawn(move || {
                accept(&listener, order, scripts, &is_over)
            })),
            _directory: directory,
        }
    }

    pub(super) fn address(&self) -> String {
        self.address.to_string()
    }

    /// Waits for all scripts. Each must have been used, and there may be no other connection.
    #[track_caller]
    pub(super) fn finish(mut self) {
        let scripts = self.end().expect("each script was used once");
        for script in scripts {
            script.join().expect("no script has failed");
        }
    }

    fn end(&mut self) -> thread::Result<Vec<JoinHandle<()>>> {
        let Some(accepting) = self.accepting.take() else {
            return Ok(Vec::new());
        };
        self.ended.store(true, Ordering::SeqCst);
        let woken = match &self.address {
            Address::Tcp(address) => connect_tcp(address, TIMEOUT),
            Address::Unix(path) => connect_unix(path, TIMEOUT),
        };
        // It fails if the thread has ended already.
        drop(woken);
        accepting.join()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

fn accept(
    listener: &Listening,
    order: ByteOrder,
    scripts: Vec<Script>,
    is_over: &AtomicBool,
) -> Vec<JoinHandle<()>> {
    let mut scripts = scripts.into_iter();
    let mut running = Vec::new();
    loop {
        let stream: UnixStream = match listener {
            Listening::Tcp(listener) => {
                OwnedFd::from(listener.accept().expect("a client").0).into()
            }
            Listening::Unix(listener) => listener.accept().expect("a client").0,
        };
        if is_over.load(Ordering::SeqCst) {
            assert_eq!(scripts.len(), 0, "connections were not made");
            return running;
        }
        let script = scripts.next().expect("a connection more than scripts");
        stream
            .set_read_timeout(Some(TIMEOUT))
            .expect("it is a socket");
        running.push(thread::spawn(move || script(&mut Peer { stream, order })));
    }
}

/// An address that refuses connections: it is taken, and nothing listens there.
pub(super) struct Refusing(OwnedFd);

impl Refusing {
    pub(super) fn new() -> Refusing {
        let any = "127.0.0.1:0".parse().expect("an address");
        Refusing(bind_tcp(any, false).expect("a free port"))
    }

    pub(super) fn address(&self) -> String {
        let bound = local_address(&self.0).expect("it is bound");
        bound.expect("it is TCP").to_string()
    }
}

/// Values that scripts have seen, in their order.
#[derive(Clone, Default)]
pub(super) struct Seen(Arc<Mutex<Vec<String>>>);

impl Seen {
    pub(super) fn add(&self, value: impl Into<String>) {
        self.0.lock().expect("no panic").push(value.into());
    }

    pub(super) fn all(&self) -> Vec<String> {
        self.0.lock().expect("no panic").clone()
    }
}
