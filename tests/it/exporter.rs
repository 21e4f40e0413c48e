//! Metrics and health over HTTP: replies, allowed hosts, and clients that cannot delay others.

use std::fs;
use std::io::{ErrorKind, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use fdpassd::proto::names::Address;
use fdpassd::testing::{Running, eventually};
use nix::sys::signal::Signal;

use crate::common::faulty::{self, Execution, Switch};
use crate::common::http::{
    Answer, HttpClient, ask, exporter, exporters, get, metrics_address, request,
};
use crate::common::port::Reserved;
use crate::common::program::{control_socket, run};
use crate::common::{FDPASSD, at_rest, kernel, start};

/// On a free port.
const TCP: &str =
    "workers.count = 2\nmetrics = { listen = \"127.0.0.1:0\", hosts = [\"node1.example.org\"] }";

/// Longest wait for a reply that nothing delays: two seconds, which is less than any timeout of the exporter, and more on a
/// machine that is so busy that a reply takes long anyway.
fn soon(address: &Address) -> Duration {
    let began = Instant::now();
    assert_eq!(get(address, "/healthz").status, 200);
    Duration::from_secs(2) + 20 * began.elapsed()
}

/// Threads of a process.
fn tasks(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/task"))
        .expect("it is there")
        .count()
}

/// A foreign process in the place of a daemon's control socket, until this is dropped.
struct Stranger {
    listener: UnixListener,
    socket: PathBuf,
}

impl Stranger {
    fn instead_of(daemon: &Running) -> Stranger {
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
}

impl Drop for Stranger {
    fn drop(&mut self) {
        fs::rename(self.socket.with_extension("away"), &self.socket).expect("it is our directory");
    }
}

fn unix(daemon: &Running, name: &str) -> Address {
    Address::Unix(daemon.directory().join(name))
}

#[test]
fn each_path_has_its_answer_and_head_is_get_without_the_body() {
    let daemon = start(TCP);
    let address = metrics_address(&daemon);
    for (path, status, content_type, words) in [
        (
            "/metrics",
            200,
            "text/plain; version=0.0.4; charset=utf-8",
            "fdpassd_build_info{",
        ),
        (
            "/metrics?format=x",
            200,
            "text/plain; version=0.0.4; charset=utf-8",
            "fdpassd_build_info{",
        ),
        ("/healthz", 200, "text/plain; charset=utf-8", "ok\n"),
        ("/readyz", 200, "text/plain; charset=utf-8", "ok\n"),
        (
            "/",
            404,
            "text/plain; charset=utf-8",
            "there are /metrics, /healthz and /readyz\n",
        ),
        (
            "/metrics/",
            404,
            "text/plain; charset=utf-8",
            "there are /metrics, /healthz and /readyz\n",
        ),
        (
            "/../metrics",
            404,
            "text/plain; charset=utf-8",
            "there are /metrics, /healthz and /readyz\n",
        ),
    ] {
        let got = get(&address, path);
        assert!(
            got.status == status && got.body.contains(words),
            "{path}: {got:?}"
        );
        let request = request(path)
            .replace("GET", "HEAD")
            .replace("\r\n\r\n", "\r\nOrigin: http://localhost\r\n\r\n");
        let head = ask(&address, request);
        assert_eq!(head.said(), (status, ""), "{path}");
        for answer in [got, head] {
            assert_eq!(
                answer.field("Content-Type"),
                Some(content_type),
                "{path}: {answer:?}"
            );
            assert_eq!(
                answer.field("Cache-Control"),
                Some("no-store"),
                "{path}: {answer:?}"
            );
            assert_eq!(
                answer.field("X-Content-Type-Options"),
                Some("nosniff"),
                "{path}: {answer:?}"
            );
            assert_eq!(
                answer.field("Connection"),
                Some("close"),
                "{path}: {answer:?}"
            );
            assert_eq!(
                answer.field("Access-Control-Allow-Origin"),
                None,
                "{path}: {answer:?}"
            );
        }
    }
    let got = get(&address, "/healthz");
    assert_eq!(got.field("Content-Length"), Some("3"));
    assert_eq!(
        ask(&address, request("/healthz").replace("GET", "HEAD")).field("Content-Length"),
        Some("3")
    );
}

#[test]
fn metrics_are_those_of_now() {
    let daemon = start(TCP);
    let address = metrics_address(&daemon);
    assert!(
        get(&address, "/metrics")
            .body
            .contains("\nfdpassd_clients_accepted_total 0\n")
    );
    let _client = daemon.connect();
    daemon.wait_until("the client is there", |status| status.clients == 1);
    assert!(
        get(&address, "/metrics")
            .body
            .contains("\nfdpassd_clients_accepted_total 1\n")
    );
}

#[test]
fn each_bad_request_gets_its_status_and_the_next_is_served() {
    let daemon = start(TCP);
    let address = metrics_address(&daemon);
    let host = "HTTP/1.1\r\nHost: localhost\r\n";
    let long = "x".repeat(9000);
    for (request, status, words) in [
        (
            format!("POST /metrics {host}\r\n"),
            405,
            "only GET and HEAD",
        ),
        (
            format!("POST /metrics {host}Content-Length: 3\r\n\r\nabc"),
            405,
            "only GET and HEAD",
        ),
        (format!("OPTIONS * {host}\r\n"), 405, "only GET and HEAD"),
        (
            format!("TRACE /metrics {host}\r\n"),
            405,
            "only GET and HEAD",
        ),
        (
            format!("GET /metrics {host}Content-Length: 3\r\n\r\nabc"),
            413,
            "no body",
        ),
        (
            format!("GET /metrics {host}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
            413,
            "no body",
        ),
        (
            format!("GET /metrics {host}Content-Length: x\r\n\r\n"),
            400,
            "Content-Length",
        ),
        (
            "\x16\x03\x01\x02\0\x01\0\x01\u{fc}\x03\x03".to_owned(),
            400,
            "not a valid HTTP request",
        ),
        (
            "\x1a\0\0\0{\"in\":\"ping\",\"params\":[1]}".to_owned(),
            400,
            "not a valid HTTP request",
        ),
        (
            "GET /metrics\r\n\r\n".to_owned(),
            400,
            "not a valid HTTP request",
        ),
        (
            format!("GET /metrics {host}Host: localhost\r\n\r\n"),
            400,
            "one Host header",
        ),
        (
            format!("GET http://node1.example.org/metrics {host}\r\n"),
            400,
            "another host",
        ),
        ("GET /metrics HTTP/2.0\r\n\r\n".to_owned(), 505, "HTTP/1.1"),
        (format!("GET /{long} {host}\r\n"), 414, "8192"),
        (format!("GET /metrics {host}X: {long}\r\n\r\n"), 431, "8192"),
        (
            format!("GET /metrics {host}{}\r\n", "X: y\r\n".repeat(100)),
            431,
            "64 header fields",
        ),
    ] {
        let answer = ask(&address, &request);
        assert!(
            answer.status == status && answer.body.contains(words),
            "{request}: {answer:?}"
        );
        assert_eq!(
            answer.field("Allow"),
            (status == 405).then_some("GET, HEAD"),
            "{request}"
        );
    }
    let mut halfway = HttpClient::connect(&address);
    halfway
        .send("GET /metrics HTTP/1.1\r\nHo")
        .expect("it is taken");
    halfway.finish();
    assert_eq!(
        halfway.answer().said(),
        (400, "the request ends within its head\n")
    );
    let mut silent = HttpClient::connect(&address);
    silent.finish();
    assert_eq!(silent.receive().expect("the end"), "");
    assert_eq!(get(&address, "/healthz").status, 200);
}

#[test]
fn bytes_behind_a_request_do_not_destroy_the_reply() {
    let daemon = start(TCP);
    let address = metrics_address(&daemon);
    for garbage in [request("/readyz"), "\0\u{fc}\r\n\r\n".repeat(20_000)] {
        for _ in 0..10 {
            assert_eq!(
                ask(&address, format!("{}{garbage}", request("/healthz"))).said(),
                (200, "ok\n")
            );
        }
    }
}

/// A page that has its own name lead here may ask, and must not learn anything.
#[test]
fn over_tcp_the_host_is_an_address_localhost_or_configured() {
    let daemon = start(TCP);
    let address = metrics_address(&daemon);
    let Address::Tcp(tcp) = &address else {
        panic!("{address}")
    };
    let with_host = |host: &str| {
        ask(
            &address,
            format!("GET /metrics HTTP/1.1\r\nHost: {host}\r\n\r\n"),
        )
    };
    let own = tcp.to_string();
    for host in [
        &own,
        "localhost",
        "LocalHost.:80",
        "[::1]:9464",
        "10.0.0.1",
        "node1.example.org:9464",
        "NODE1.Example.org.",
    ] {
        assert_eq!(with_host(host).status, 200, "{host}");
    }
    for host in [
        "evil.example",
        "evil.example:9464",
        "localhost.evil.example",
        "node2.example.org",
        "",
        "localhost:x",
        "::1",
    ] {
        let answer = with_host(host);
        assert!(
            answer.status == 403 && answer.body.contains("metrics.hosts"),
            "{host}: {answer:?}"
        );
        assert!(!answer.body.contains("fdpassd_"), "{host}: {answer:?}");
    }
    for path in ["/healthz", "/readyz", "/nothing"] {
        let answer = ask(
            &address,
            format!("GET {path} HTTP/1.1\r\nHost: evil.example\r\n\r\n"),
        );
        assert_eq!(answer.status, 403, "{path}");
    }
    for (request, status) in [
        (
            "GET http://localhost/healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
            200,
        ),
        ("GET http://node1.example.org/healthz HTTP/1.0\r\n\r\n", 200),
        (
            "GET http://evil.example/healthz HTTP/1.1\r\nHost: evil.example\r\n\r\n",
            403,
        ),
        ("GET http://evil.example/healthz HTTP/1.0\r\n\r\n", 403),
        ("POST /metrics HTTP/1.1\r\nHost: evil.example\r\n\r\n", 403),
        ("GET /healthz HTTP/1.1\r\n\r\n", 400),
        ("GET /healthz HTTP/1.0\r\n\r\n", 200),
        ("GET /healthz HTTP/1.0\r\nHost: evil.example\r\n\r\n", 403),
    ] {
        assert_eq!(ask(&address, request).status, status, "{request}");
    }
}

#[test]
fn over_a_unix_socket_any_host_is_served() {
    let mut daemon = start("metrics.listen = \"unix:{dir}/metrics.sock\"");
    let address = unix(&daemon, "metrics.sock");
    let file = daemon.directory().join("metrics.sock");
    assert_eq!(
        fs::metadata(&file)
            .expect("it is there")
            .permissions()
            .mode()
            & 0o777,
        0o660
    );
    for host in ["Host: evil.example\r\n", "Host:\r\n", ""] {
        let answer = ask(&address, format!("GET /metrics HTTP/1.1\r\n{host}\r\n"));
        assert!(
            answer.status == 200 && answer.body.contains("fdpassd_build_info"),
            "{host}: {answer:?}"
        );
    }
    daemon.ctl("stop").expect("it stops");
    assert_eq!(daemon.wait().code(), Some(0));
    assert!(!file.exists());
}

#[test]
fn a_trickling_http_client_times_out_and_delays_no_other() {
    let daemon = start(TCP);
    let address = metrics_address(&daemon);
    let soon = soon(&address);
    let began = Instant::now();
    let mut slow = HttpClient::connect(&address);
    let mut silent = HttpClient::connect(&address);
    let late = thread::scope(|threads| {
        let late = threads.spawn(|| {
            // Too slow to be ready in time, and never quite silent.
            for byte in request("/healthz").bytes().cycle().take(1000) {
                let told = slow.send([byte]).is_err() || began.elapsed() > Duration::from_secs(6);
                if told {
                    break;
                }
                crate::common::let_pass(Duration::from_millis(300));
            }
            slow.answer()
        });
        while !late.is_finished() {
            let asked = Instant::now();
            assert_eq!(get(&address, "/healthz").said(), (200, "ok\n"));
            assert!(asked.elapsed() < soon, "it took {:?}", asked.elapsed());
            crate::common::let_pass(Duration::from_millis(100));
        }
        late.join().expect("it is answered")
    });
    assert_eq!(late.said(), (408, "the request did not arrive within 5s\n"));
    assert!(began.elapsed() > Duration::from_secs(5));
    assert_eq!(silent.answer().status, 408);
}

/// Three kinds of them: silent, halfway, and those who have asked and do not go.
#[test]
fn fifty_slow_http_clients_keep_no_other_out() {
    let daemon = start(TCP);
    let address = metrics_address(&daemon);
    let (exporter, soon) = (exporter(&daemon), soon(&address));
    for words in [
        "",
        "GET /metrics HTTP/1.1\r\nHost: loc",
        &request("/metrics"),
    ] {
        let mut hostile: Vec<HttpClient> = (0..50).map(|_| HttpClient::connect(&address)).collect();
        // Some are cut off before they have said it.
        hostile
            .iter_mut()
            .for_each(|http_client| drop(http_client.send(words)));
        for path in ["/metrics", "/healthz", "/readyz"] {
            let asked = Instant::now();
            assert_eq!(get(&address, path).status, 200, "{words:?}");
            assert!(
                asked.elapsed() < soon,
                "{words:?}: {path} took {:?}",
                asked.elapsed()
            );
        }
        assert!(tasks(exporter) <= 1 + 16, "{} threads", tasks(exporter));
        assert_eq!(daemon.call("ping", 1).expect("a result"), 1);
    }
}

#[test]
fn sixty_requests_at_once_are_answered_at_a_limited_rate() {
    let daemon = start(TCP);
    let address = metrics_address(&daemon);
    let began = Instant::now();
    let mut http_clients: Vec<HttpClient> =
        (0..60).map(|_| HttpClient::connect(&address)).collect();
    http_clients
        .iter_mut()
        .for_each(|http_client| http_client.send(request("/healthz")).expect("it is taken"));
    for mut http_client in http_clients {
        assert_eq!(http_client.answer().said(), (200, "ok\n"));
    }
    // A hundred a second, so that the master has time for others.
    assert!(
        began.elapsed() >= Duration::from_millis(590),
        "it took {:?}",
        began.elapsed()
    );
}

#[test]
fn reloads_start_move_and_end_the_exporter() {
    let reserved = Reserved::new();
    let bound = reserved.address;
    let daemon = start("workers.count = 1");
    let reload = |metrics: &str| {
        daemon
            .reload_with(&format!("workers.count = 1\n{metrics}"))
            .expect("it is applied")
    };
    assert!(exporters(&daemon).is_empty());
    reload(&format!("metrics.listen = \"{bound}\""));
    let tcp = metrics_address(&daemon);
    assert_eq!(get(&tcp, "/healthz").status, 200);

    let first = exporter(&daemon);
    reload(&format!(
        "metrics.listen = \"{bound}\"\nlimits.max-frame = \"64KiB\""
    ));
    assert_eq!(
        (get(&tcp, "/healthz").status, exporter(&daemon)),
        (200, first),
        "nothing about it has changed"
    );

    // There and back again: what is given up is free at once.
    for _ in 0..5 {
        reload("metrics.listen = \"unix:{dir}/metrics.sock\"");
        assert_eq!(get(&unix(&daemon, "metrics.sock"), "/healthz").status, 200);
        std::net::TcpStream::connect(bound).expect_err("nobody listens there any more");
        reload(&format!("metrics.listen = \"{bound}\""));
        assert_eq!(get(&tcp, "/healthz").status, 200);
        assert!(!daemon.directory().join("metrics.sock").exists());
    }
    eventually("only one is left", || {
        (exporters(&daemon).len() == 1).then_some(())
    });
    reload("");
    std::net::TcpStream::connect(bound).expect_err("nobody listens there any more");
    eventually("none is left", || {
        exporters(&daemon).is_empty().then_some(())
    });
}

#[test]
fn an_address_that_cannot_be_bound_is_reported_with_its_place() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let occupied = taken.local_addr().expect("it is bound");
    let metrics = format!("metrics.listen = \"{occupied}\"");
    let sentence = format!("cannot listen on {occupied} for metrics: Address already in use");
    let error = Running::start(FDPASSD, &metrics).expect_err("it is taken");
    assert!(
        error.code() == Some(69) && error.stderr().contains(&sentence),
        "{error}"
    );

    let daemon = start(TCP);
    let (address, first) = (metrics_address(&daemon), exporter(&daemon));
    let fault = daemon.reload_with(&metrics).expect_err("it is taken");
    assert!(
        fault.code() == "rejected" && fault.message().contains(&sentence),
        "{fault}"
    );
    // Bound sockets are closed again if another one cannot be bound.
    let other =
        format!("listen = [\"{occupied}\"]\nmetrics.listen = \"unix:{{dir}}/metrics.sock\"");
    let fault = daemon.reload_with(&other).expect_err("it is taken");
    assert!(
        fault.code() == "rejected" && !daemon.directory().join("metrics.sock").exists(),
        "{fault}"
    );
    let same =
        "control.socket = \"{dir}/control.sock\"\nmetrics.listen = \"unix:{dir}/control.sock\"";
    let fault = daemon
        .reload_with(same)
        .expect_err("it is the control socket");
    assert!(
        fault.code() == "rejected"
            && fault
                .message()
                .ends_with("control.sock is the control socket"),
        "{fault}"
    );
    assert_eq!(
        (get(&address, "/readyz").status, exporter(&daemon)),
        (200, first)
    );
}

#[test]
fn a_configuration_that_is_rolled_back_leaves_it_where_it_was() {
    let (daemon, switch) = faulty::start_with_switch(TCP);
    let (address, first) = (metrics_address(&daemon), exporter(&daemon));
    switch.set("fail");
    let next = "workers = { count = 2, start-timeout = \"5s\" }\nmetrics.listen = \"unix:{dir}/metrics.sock\"";
    assert_eq!(
        daemon
            .reload_with(next)
            .expect_err("no worker is ready")
            .code(),
        "rolled_back"
    );
    assert!(!daemon.directory().join("metrics.sock").exists());
    assert_eq!(
        (get(&address, "/metrics").status, exporter(&daemon)),
        (200, first)
    );
}

#[test]
fn changed_hosts_apply_at_once_and_waiting_ones_are_answered() {
    let daemon = start(TCP);
    let (address, first) = (metrics_address(&daemon), exporter(&daemon));
    let ask_as = |host: &str| {
        ask(
            &address,
            format!("GET /healthz HTTP/1.1\r\nHost: {host}\r\n\r\n"),
        )
        .status
    };
    assert_eq!((ask_as("node1.example.org"), ask_as("node2")), (200, 403));
    kernel::stop(first);
    let mut waiting: Vec<HttpClient> = (0..20).map(|_| HttpClient::connect(&address)).collect();
    waiting
        .iter_mut()
        .for_each(|http_client| http_client.send(request("/healthz")).expect("it is taken"));
    daemon
        .reload_with(&TCP.replace("node1.example.org", "node2"))
        .expect("it is applied");
    for http_client in &mut waiting {
        assert_eq!(http_client.answer().said(), (200, "ok\n"));
    }
    assert_eq!((ask_as("node1.example.org"), ask_as("node2")), (403, 200));
    eventually("the one before is gone", || {
        kernel::is_over(first).then_some(())
    });
}

#[test]
fn a_killed_exporter_is_restarted_and_is_no_worker_death() {
    let daemon = start(TCP);
    let address = metrics_address(&daemon);
    let mut client = daemon.connect();
    for (round, least) in [100, 150, 300].into_iter().enumerate() {
        let killed = exporter(&daemon);
        kernel::send(killed, Signal::SIGKILL);
        // A request waits until then.
        assert_eq!(get(&address, "/healthz").said(), (200, "ok\n"));
        assert_ne!(exporter(&daemon), killed);
        let words = format!(
            "exporter (pid {killed}) killed by signal 9 (SIGKILL); its successor starts in "
        );
        daemon.wait_for_log(&words);
        let wait: Option<u64> = daemon
            .stderr()
            .split(&words)
            .nth(1)
            .and_then(|rest| rest.split(' ').next()?.parse().ok());
        assert!(wait >= Some(least), "{wait:?} ms");
        assert_eq!(client.call("ping", round).expect("a result"), round);
    }
    let status = daemon.status();
    assert_eq!(
        (status.deaths_total, status.lost_total, status.moved_total),
        (0, 0, 0)
    );
    assert!(
        status
            .workers
            .iter()
            .all(|worker| worker.restarts == 0 && worker.last_death.is_none())
    );
}

#[test]
fn the_exporter_ends_with_its_master_only() {
    let daemon = start(TCP);
    // It has answered, so that it has begun in earnest.
    assert_eq!(get(&metrics_address(&daemon), "/healthz").status, 200);
    let pid = exporter(&daemon);
    for stray in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        kernel::send(pid, stray);
    }
    assert_eq!(get(&metrics_address(&daemon), "/healthz").status, 200);
    assert_eq!(
        exporter(&daemon),
        pid,
        "what a terminal sends to all is the master's to obey"
    );
    daemon.signal("KILL");
    eventually("the exporter is gone", || {
        kernel::is_over(pid).then_some(())
    });
}

#[test]
fn a_drained_daemon_is_healthy_and_not_ready() {
    let daemon = start(TCP);
    let address = metrics_address(&daemon);
    daemon.ctl("drain").expect("it is drained");
    assert_eq!(
        get(&address, "/readyz").said(),
        (503, "the daemon is drained\n")
    );
    assert_eq!(get(&address, "/healthz").said(), (200, "ok\n"));
    daemon.ctl("undrain").expect("it is not any more");
    assert_eq!(get(&address, "/readyz").said(), (200, "ok\n"));
}

#[test]
fn health_and_readiness_fail_without_a_ready_worker() {
    let (daemon, switch): (_, Switch) = faulty::start_with_switch(TCP);
    let address = metrics_address(&daemon);
    switch.set("hang");
    (0..2).for_each(|seat| daemon.signal_worker(seat, "KILL"));
    for path in ["/healthz", "/readyz"] {
        eventually("it is known that none is ready", || {
            (get(&address, path).status == 503).then_some(())
        });
        assert_eq!(get(&address, path).said(), (503, "no worker is ready\n"));
    }
    assert_eq!(get(&address, "/metrics").status, 200);
    switch.set("");
    kernel::children(daemon.pid())
        .iter()
        .filter(|pid| **pid != exporter(&daemon))
        .for_each(|pid| kernel::send(*pid, Signal::SIGKILL));
    eventually("one is ready again", || {
        (get(&address, "/healthz").said() == (200, "ok\n")).then_some(())
    });
    eventually("it can be sent clients again", || {
        (get(&address, "/readyz").said() == (200, "ok\n")).then_some(())
    });
}

#[test]
fn readiness_fails_during_a_stop() {
    let mut daemon = faulty::start(TCP);
    let (address, pid) = (metrics_address(&daemon), exporter(&daemon));
    let execution = Execution::start(&daemon);
    daemon.signal("TERM");
    let not_ready = |answer: &Answer| answer.said() == (503, "the daemon is stopping\n");
    eventually("it is told", || {
        Some(get(&address, "/readyz")).filter(not_ready)
    });
    assert_eq!(get(&address, "/metrics").status, 200);
    drop(execution.finish());
    assert_eq!(daemon.wait().code(), Some(0));
    eventually("the exporter is gone", || {
        kernel::is_over(pid).then_some(())
    });
}

#[test]
fn a_stopped_exporter_delays_no_other_and_a_reload_ends_it() {
    let daemon = start(TCP);
    let (address, stopped) = (metrics_address(&daemon), exporter(&daemon));
    let mut client = daemon.connect();
    let mut serve = |rounds: u64| {
        let began = Instant::now();
        for round in 0..rounds {
            assert_eq!(client.call("ping", round).expect("a result"), round);
            assert_eq!(daemon.status().clients, 1);
            daemon.signal("USR1");
        }
        daemon.kill_worker(0);
        began.elapsed()
    };
    let usual = serve(100);
    kernel::stop(stopped);
    let mut http_clients: Vec<HttpClient> =
        (0..100).map(|_| HttpClient::connect(&address)).collect();
    http_clients
        .iter_mut()
        .for_each(|http_client| http_client.send(request("/metrics")).expect("it is taken"));
    let took = serve(100);
    assert!(
        took < 10 * usual + Duration::from_secs(2),
        "it took {took:?} instead of {usual:?}"
    );
    daemon
        .reload_with("metrics.listen = \"unix:{dir}/metrics.sock\"")
        .expect("it is applied");
    eventually("it is gone", || kernel::is_over(stopped).then_some(()));
    assert_eq!(get(&unix(&daemon, "metrics.sock"), "/healthz").status, 200);
}

#[test]
fn a_master_that_does_not_answer_is_503_after_three_seconds() {
    let daemon = start(TCP);
    let address = metrics_address(&daemon);
    let soon = soon(&address);
    kernel::stop(daemon.pid());
    let began = Instant::now();
    let mut http_clients: Vec<HttpClient> = (0..8).map(|_| HttpClient::connect(&address)).collect();
    for (http_client, path) in http_clients
        .iter_mut()
        .zip(["/metrics", "/healthz", "/readyz"].into_iter().cycle())
    {
        http_client.send(request(path)).expect("it is taken");
    }
    for http_client in &mut http_clients {
        assert_eq!(
            http_client.answer().said(),
            (503, "the daemon does not answer: no reply within 3s\n")
        );
    }
    assert!(
        began.elapsed() < Duration::from_secs(3) + soon,
        "it took {:?}",
        began.elapsed()
    );
    daemon.signal("CONT");
    assert_eq!(get(&address, "/healthz").said(), (200, "ok\n"));
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
    assert_eq!(get(&address, "/healthz").said(), (200, "ok\n"));
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

#[test]
fn the_exporter_has_only_the_listener_of_the_master() {
    let daemon = start(&format!(
        "listen = [\"127.0.0.1:0\", \"unix:{{dir}}/rpc.sock\"]\n{TCP}"
    ));
    let _clients: Vec<_> = (0..4).map(|_| daemon.connect()).collect();
    daemon.wait_until("they are there", |status| status.clients == 4);
    let before = exporter(&daemon);
    kernel::send(before, Signal::SIGKILL);
    assert_eq!(get(&metrics_address(&daemon), "/healthz").status, 200);
    // Every process inherits what the caller of the tests left open.
    let names = |pid: u32| kernel::descriptors(pid).into_iter().map(|(_, name)| name);
    let inherited = kernel::inheritable();
    let standard = |pid: u32| {
        ["0", "1", "2"].map(|fd| fs::read_link(format!("/proc/{pid}/fd/{fd}")).expect("it is open"))
    };
    let own = |pid: u32| -> Vec<String> {
        let standard = standard(pid);
        let is_own = |name: &String| {
            !inherited.contains(name)
                && !standard
                    .iter()
                    .any(|other| other.as_os_str() == name.as_str())
        };
        names(pid).filter(is_own).collect()
    };
    let after = exporter(&daemon);
    eventually("the thread of the request is over", || {
        (tasks(after) == 1).then_some(())
    });
    let (masters, exporters) = at_rest(&daemon, || (own(daemon.pid()), own(after)));
    let shared: Vec<_> = exporters
        .iter()
        .filter(|name| name.starts_with("socket:") && masters.contains(name))
        .collect();
    assert_eq!(shared.len(), 1, "{exporters:?} of {masters:?}");
    let kinds = |kind: &str| {
        exporters
            .iter()
            .filter(|name| name.starts_with(kind))
            .count()
    };
    // Its channel and the listener; the two ends by which its threads say that they are done; the poller.
    assert_eq!(
        (
            kinds("socket:"),
            kinds("pipe:"),
            kinds("anon_inode:[eventpoll]")
        ),
        (2, 2, 1),
        "{exporters:?}"
    );
    assert_eq!(exporters.len(), 5, "{exporters:?}");
}

#[test]
fn the_exporter_reopens_the_log_with_the_others() {
    let config = "log = { target = \"file\", file = \"{dir}/log\" }\nmetrics.listen = \"unix:{dir}/metrics.sock\"";
    let daemon = start(config);
    let (log, first) = (daemon.directory().join("log"), exporter(&daemon));
    let writes_to = |name: &str| {
        let path = daemon.directory().join(name).display().to_string();
        let pid = exporter(&daemon);
        eventually(name, || {
            kernel::descriptors(pid)
                .iter()
                .any(|(_, found)| *found == path)
                .then_some(())
        });
    };
    writes_to("log");
    fs::rename(&log, daemon.directory().join("log.1")).expect("it is our directory");
    writes_to("log.1");
    daemon.signal("USR1");
    writes_to("log");
    assert_eq!(exporter(&daemon), first);
    daemon
        .reload_with(&config.replace("dir}/log", "dir}/log.2"))
        .expect("it is applied");
    eventually("the one before is gone", || {
        kernel::is_over(first).then_some(())
    });
    writes_to("log.2");
}

#[test]
fn an_exporter_without_a_master_exits_with_the_reason() {
    let said = run(FDPASSD, &["metrics"]);
    assert_eq!(said.code, Some(64));
    assert!(
        said.err.contains("the exporter is started by its master"),
        "{}",
        said.err
    );
}
