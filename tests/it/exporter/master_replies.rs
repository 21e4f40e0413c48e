//! The master's replies to the exporter: late, invalid, or longer than an HTTP client reads.

use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use fdpassd::testing::{Running, eventually};

use crate::common::http::{Answer, HttpClient, exporter, get, metrics_address, request};
use crate::common::program::control_socket;
use crate::common::{kernel, start};

use super::{TCP, assert_below, soon, tasks, unix};

/// A foreign process in the place of a daemon's control socket, until this is dropped.
pub struct Stranger {
    pub listener: UnixListener,
    socket: PathBuf,
}

impl Stranger {
    pub fn instead_of(daemon: &Running) -> Stranger {
        let socket = control_socket(daemon);
        fs::rename(&socket, socket.with_extension("away")).expect("it is our directory");
        let listener = UnixListener::bind(&socket).expect("the path is free");
        listener.set_nonblocking(true).expect("a socket takes it");
        Stranger { listener, socket }
    }

    /// The next one that asks.
    #[track_caller]
    fn asked(&self) -> UnixStream {
        eventually("it asks", || self.listener.accept().ok()).0
    }

    /// Connects to the daemon itself.
    pub fn connect_to_daemon(&self) -> UnixStream {
        UnixStream::connect(self.socket.with_extension("away")).expect("it listens")
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        fs::rename(self.socket.with_extension("away"), &self.socket).expect("it is our directory");
    }
}

#[test]
fn a_master_that_does_not_answer_is_503_after_three_seconds() {
    let daemon = start(TCP);
    let address = metrics_address(&daemon);
    let soon = soon(&address);
    kernel::stop(daemon.pid());
    assert_below(Duration::from_secs(3) + soon, || {
        let began = Instant::now();
        let mut http_clients: Vec<HttpClient> =
            (0..8).map(|_| HttpClient::connect(&address)).collect();
        for (http_client, path) in http_clients
            .iter_mut()
            .zip(["/metrics", "/healthz", "/readyz"].into_iter().cycle())
        {
            http_client.send(request(path)).expect("it is taken");
        }
        for http_client in &mut http_clients {
            assert_eq!(
                http_client.answer().status_and_body(),
                (503, "the daemon does not answer: no reply within 3s\n")
            );
        }
        began.elapsed()
    });
    daemon.signal("CONT");
    assert_eq!(get(&address, "/healthz").status_and_body(), (200, "ok\n"));
}

/// A foreign process listens in the place of the control socket.
#[test]
fn a_nonsense_reply_of_the_master_is_reported() {
    let daemon = start(TCP);
    let (address, pid) = (metrics_address(&daemon), exporter(&daemon));
    let socket = control_socket(&daemon);
    fs::rename(&socket, socket.with_extension("away")).expect("it is our directory");
    let refused = get(&address, "/metrics");
    assert!(
        refused.status == 503 && refused.body.starts_with("cannot connect to the daemon: "),
        "{refused:?}"
    );
    let ready = get(&address, "/readyz");
    assert_eq!(ready.status, 503, "{ready:?}");
    // The daemon serves its clients: a liveness probe must not end it.
    let health = get(&address, "/healthz");
    let expected = "ok; missing: control socket: nothing listens at its path, so the state of the workers is unknown\n";
    assert_eq!(health.status_and_body(), (200, expected));
    fs::rename(socket.with_extension("away"), &socket).expect("it is our directory");

    let stranger = Stranger::instead_of(&daemon);
    let mut http_clients: Vec<HttpClient> =
        (0..10).map(|_| HttpClient::connect(&address)).collect();
    http_clients
        .iter_mut()
        .for_each(|http_client| http_client.send(request("/healthz")).expect("it is taken"));
    let asked = stranger.asked();
    eventually("all are attended", || (tasks(pid) == 11).then_some(()));
    crate::common::let_pass(Duration::from_millis(200));
    assert_eq!(
        stranger
            .listener
            .accept()
            .expect_err("the others wait")
            .kind(),
        ErrorKind::WouldBlock
    );
    drop(asked);
    let nonsense = [&b"\x02\0\0\0{}"[..], b"HTTP/1.1 400 Bad Request\r\n\r\n"]
        .into_iter()
        .cycle()
        .take(9);
    let asked: Vec<UnixStream> = nonsense
        .map(|nonsense| {
            let mut asked = stranger.asked();
            asked.write_all(nonsense).expect("it is taken");
            asked
        })
        .collect();
    let answers: Vec<Answer> = http_clients.iter_mut().map(HttpClient::answer).collect();
    assert!(
        answers
            .iter()
            .all(|answer| answer.body.starts_with("the daemon does not answer: ")),
        "{answers:?}"
    );
    let mut statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
    statuses.sort_unstable();
    assert_eq!(
        statuses,
        [[502; 9].as_slice(), &[503]].concat(),
        "no answer, and answers that are none"
    );
    drop((stranger, asked));
    assert_eq!(get(&address, "/healthz").status_and_body(), (200, "ok\n"));
}

#[test]
fn a_client_that_does_not_read_a_long_reply_is_cut_off() {
    // Over a Unix socket the kernel takes a fifth of a mebibyte, and not the whole reply.
    let daemon = start("metrics.listen = \"unix:{dir}/metrics.sock\"");
    let (address, pid) = (unix(&daemon, "metrics.sock"), exporter(&daemon));
    let stranger = Stranger::instead_of(&daemon);
    let text = "# a comment\n".repeat(100_000);
    let reply = serde_json::json!({ "out": "metrics", "result": { "text": text } }).to_string();
    let reply = [&(reply.len() as u32).to_le_bytes(), reply.as_bytes()].concat();
    let ask = || {
        let mut http_client = HttpClient::connect(&address);
        http_client.send(request("/metrics")).expect("it is taken");
        stranger.asked().write_all(&reply).expect("it is taken");
        http_client
    };
    let (mut deaf, mut other) = (ask(), ask());
    let got = other.answer();
    assert!(
        got.status == 200 && got.body == text,
        "{} bytes",
        got.body.len()
    );
    drop((other, stranger));
    assert_eq!(
        (get(&address, "/healthz").status, tasks(pid) > 1),
        (200, true),
        "it is still waited for"
    );
    eventually("it is cut", || (tasks(pid) == 1).then_some(()));
    assert!(deaf.receive().is_ok_and(|got| got.len() < text.len()));
}
