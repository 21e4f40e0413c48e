//! A daemon of the test, which has the replies that the test gives it.

use super::*;

/// A daemon's control socket.
pub(super) struct Daemon {
    pub(super) socket: String,
    serving: JoinHandle<()>,
    is_done: Arc<AtomicBool>,
    _place: TempDir,
}

impl Daemon {
    pub(super) fn listening(serve: impl FnOnce(UnixListener) + Send + 'static) -> Daemon {
        let place = tempfile::tempdir().expect("a directory");
        let path = place.path().join("control.sock");
        let listener = UnixListener::bind(&path).expect("bind");
        let is_done = Arc::default();
        let serving = thread::spawn(move || serve(listener));
        Daemon {
            socket: path.display().to_string(),
            serving,
            is_done,
            _place: place,
        }
    }

    /// Serves any number of connections until fdpassctl has ended.
    pub(super) fn serving(serve: impl Fn(UnixStream) + Send + Sync + 'static) -> Daemon {
        let is_done = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&is_done);
        let daemon = Daemon::listening(move |listener| {
            let serve = &serve;
            thread::scope(|threads| {
                let clients = listener
                    .incoming()
                    .take_while(|_| !until.load(Ordering::Relaxed));
                clients
                    .for_each(|client| drop(threads.spawn(move || serve(client.expect("accept")))));
            });
        });
        Daemon { is_done, ..daemon }
    }

    /// Answers requests by verb and params on any number of connections, and closes one for whose request it has no
    /// answer.
    pub(super) fn that_answers(
        answer: impl Fn(&str, &Value) -> Option<String> + Send + Sync + 'static,
    ) -> Daemon {
        Daemon::serving(move |mut client| {
            while let Some(request) = next_request(&mut client) {
                let request: Value = serde_json::from_str(&request).expect("JSON");
                let verb = request["in"].as_str().expect("a verb");
                let Some(reply) = answer(verb, &request["params"]) else {
                    return;
                };
                // fdpassctl may have ended.
                let _ = send(&mut client, ByteOrder::Little, &reply);
            }
        })
    }

    /// Serves one connection.
    pub(super) fn start(serve: impl FnOnce(UnixStream) + Send + 'static) -> Daemon {
        Daemon::listening(|listener| serve(listener.accept().expect("accept").0))
    }

    /// Answers each request with the next of `replies`, then closes. It has no events, like an old daemon.
    pub(super) fn that_replies(replies: impl IntoIterator<Item = String>) -> Daemon {
        let replies: Vec<_> = replies.into_iter().collect();
        Daemon::start(move |mut client| {
            for reply in replies {
                asked_for(&mut client);
                send_reply(&mut client, &reply);
            }
        })
    }

    pub(super) fn asked(self, arguments: &[&str]) -> Ran {
        self.asked_seen(arguments, Seen::default())
    }

    pub(super) fn asked_seen(self, arguments: &[&str], seen: Seen) -> Ran {
        let ran = ctl_seen(arguments, &[("FDPASSD_SOCKET", &self.socket)], seen);
        self.is_done.store(true, Ordering::Relaxed);
        // This ends a pending accept.
        drop(UnixStream::connect(&self.socket));
        self.serving.join().expect("the daemon went as expected");
        ran
    }
}

/// Returns the next request to a daemon; `None` at the end of the connection.
pub(super) fn next_request(client: &mut UnixStream) -> Option<String> {
    receive(client, ByteOrder::Little)
}

pub(super) fn receive(from: &mut impl Read, order: ByteOrder) -> Option<String> {
    let mut prefix = [0; PREFIX];
    from.read_exact(&mut prefix).ok()?;
    let mut body = vec![0; order.length(prefix) as usize];
    from.read_exact(&mut body).expect("a body");
    Some(String::from_utf8(body).expect("UTF-8"))
}

/// Returns the next request to a daemon without events.
pub(super) fn asked_for(client: &mut UnixStream) -> String {
    loop {
        let request = next_request(client).expect("a request");
        if !request.starts_with(r#"{"in":"events""#) {
            return request;
        }
        send_reply(client, &fault("unknown_verb", "there is no verb"));
    }
}

pub(super) fn send(to: &mut impl Write, order: ByteOrder, body: &str) -> io::Result<()> {
    to.write_all(&order.prefix(body.len() as u32))?;
    to.write_all(body.as_bytes())
}

/// Sends a daemon's reply.
pub(super) fn send_reply(client: &mut UnixStream, reply: &str) {
    send(client, ByteOrder::Little, reply).expect("fdpassctl reads");
}

pub(super) fn reply(name: &str, result: &impl serde::Serialize) -> String {
    format!(
        r#"{{"out":"{name}","result":{}}}"#,
        serde_json::to_string(result).expect("plain data")
    )
}

pub(super) fn fault(code: &str, message: &str) -> String {
    format!(r#"{{"out":"error","result":{{"code":"{code}","message":"{message}"}}}}"#)
}

pub(super) fn daemons_version() -> String {
    reply(
        "version",
        &Version {
            name: "fdpassd".to_owned(),
            version: "0.1.0".to_owned(),
            pid: 4711,
        },
    )
}
