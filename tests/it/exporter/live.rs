//! The streams of the page: what they show, how many there are, and what they cost the daemon.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use fdpassd::testing::{Running, Setup, eventually};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::common::faulty::example;
use crate::common::http::{
    EventStream, HttpClient, agent_address, ask, exporter, get, metrics_address, request,
    stream_request,
};
use crate::common::{kernel, let_pass, start, while_idle};

use super::master_replies::Stranger;
use super::{TCP, tasks, unix};

/// The most streams.
const STREAMS: usize = 8;

/// Answers in the place of the daemon while something is done.
fn while_answering<T>(
    stranger: &Stranger,
    answer: impl Fn(UnixStream) + Sync,
    act: impl FnOnce() -> T,
) -> T {
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let (answer, is_over) = (&answer, &is_over);
        // Also if the test fails.
        let _end = SetWhenDropped(is_over);
        scope.spawn(move || {
            while !is_over.load(Ordering::Relaxed) {
                match stranger.listener.accept() {
                    Ok((query, _)) => drop(scope.spawn(move || answer(query))),
                    Err(_) => let_pass(Duration::from_millis(5)),
                }
            }
        });
        act()
    })
}

struct SetWhenDropped<'a>(&'a AtomicBool);

impl Drop for SetWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Passes on what one end sends, until it ends.
fn pass_on(mut from: &UnixStream, mut to: &UnixStream) {
    // Each end may close first.
    let _ = io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
}

#[test]
fn a_stream_has_the_history_and_then_an_update_a_second() {
    let daemon = start(TCP);
    let address = metrics_address(&daemon);
    let mut stream = EventStream::open(&address).expect("a stream");
    assert!(
        stream
            .head
            .contains("\r\nContent-Type: text/event-stream\r\n")
            && !stream.head.contains("Content-Length"),
        "{}",
        stream.head
    );
    let history = stream.history();
    assert_eq!(history["span"], 3600);
    let _client = daemon.connect();
    daemon.wait_until("the client is there", |status| status.clients == 1);
    let update = stream.until("the client is shown", |_, data| {
        data["daemon"]["figures"]["clients"] == 1
    });
    let shown = &update["daemon"];
    assert_eq!(
        (&shown["name"], &shown["unready"], &shown["generation"]),
        (&json!("fdpassd"), &Value::Null, &json!(1))
    );
    assert_eq!(shown["workers"].as_array().map(Vec::len), Some(2));
    assert_eq!(shown["workers"][0]["state"], "ready");
    let clients = &update["points"][0]["clients"];
    assert_eq!(clients.as_array().map(Vec::len), Some(2));
    // Nothing that the metrics do not have.
    let text = update.to_string();
    for hidden in ["127.0.0.1", "\"pid\"", "config"] {
        assert!(!text.contains(hidden), "{hidden}: {text}");
    }
    let mut uptime = || {
        stream.update()["daemon"]["uptime"]
            .as_f64()
            .expect("a time")
    };
    let first = uptime();
    let last = (0..5).map(|_| uptime()).last().expect("a time");
    assert!(last - first > 3.0, "5 updates in {} s", last - first);
}

#[test]
fn a_stream_has_rates_percentiles_and_clients() {
    let daemon = start(TCP);
    let address = metrics_address(&daemon);
    let mut stream = EventStream::open(&address).expect("a stream");
    stream.history();
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let _end = SetWhenDropped(&is_over);
        let mut client = daemon.connect();
        let is_over = &is_over;
        scope.spawn(move || {
            while !is_over.load(Ordering::Relaxed) {
                client.call("ping", 1).expect("a pong");
                let_pass(Duration::from_millis(20));
            }
        });
        let figure = |data: &Value, name: &str| data["daemon"]["figures"][name].as_f64();
        let update = stream.until("rates are shown", |_, data| {
            figure(data, "requests").is_some_and(|rate| rate > 0.0) && figure(data, "p50").is_some()
        });
        let (p50, p99) = (figure(&update, "p50"), figure(&update, "p99"));
        assert!(p50 > Some(0.0) && p50 <= p99, "{p50:?} {p99:?}");
        assert_eq!(figure(&update, "errors"), Some(0.0));
    });
    let before = daemon.status().events_total;
    daemon.reload().expect("the configuration is good");
    assert!(daemon.status().events_total > before);
}

#[test]
fn a_killed_worker_and_a_reload_are_seen_in_a_stream() {
    let daemon = start(TCP);
    let mut stream = EventStream::open(&metrics_address(&daemon)).expect("a stream");
    stream.history();
    stream.update();
    let killed = daemon.status().workers[0].id.expect("a worker");
    daemon.kill_worker(0);
    let update = stream.until_event(&format!("worker {killed} died (seat 0"));
    assert_eq!(update["daemon"]["totals"]["deaths"], 1);
    daemon.reload().expect("the configuration is good");
    let update = stream.until_event("reload applied (generation 2");
    assert_eq!(update["daemon"]["generation"], 2);
}

#[test]
fn a_stream_has_the_name_of_its_daemon() {
    let directory = tempfile::tempdir().expect("a directory");
    let config = format!(
        "counterd.directory = {:?}\nmetrics.listen = \"127.0.0.1:0\"",
        directory.path()
    );
    let daemon = Setup::new(example("counterd"), &config)
        .start()
        .expect("it starts");
    let mut stream = EventStream::open(&metrics_address(&daemon)).expect("a stream");
    stream.history();
    assert_eq!(stream.update()["daemon"]["name"], "counterd");
}

#[test]
fn the_ninth_stream_is_refused_and_requests_are_answered() {
    let daemon = start(TCP);
    let address = metrics_address(&daemon);
    let open = || EventStream::open(&address);
    let mut streams: Vec<EventStream> = (0..STREAMS)
        .map(|_| open().expect("a stream is free"))
        .collect();
    let refused = open().expect_err("all are open");
    assert_eq!(
        refused.status_and_body(),
        (503, "8 pages are open, and no more are updated at a time\n")
    );
    // Silent connections are closed for others, streams are not.
    let _silent: Vec<HttpClient> = (0..30).map(|_| HttpClient::connect(&address)).collect();
    for path in ["/", "/metrics", "/healthz", "/readyz"] {
        assert_eq!(get(&address, path).status, 200, "{path}");
    }
    for stream in &mut streams {
        stream.history();
        stream.update();
        stream.update();
    }
    assert!(tasks(exporter(&daemon)) <= 1 + 16 + STREAMS);
    streams.pop();
    eventually("its place is free", || open().ok());
}

#[test]
fn all_streams_share_one_query_a_second() {
    let daemon = start(TCP);
    let address = metrics_address(&daemon);
    let stranger = Stranger::instead_of(&daemon);
    let queries = AtomicUsize::new(0);
    let relay = |query: UnixStream| {
        queries.fetch_add(1, Ordering::Relaxed);
        let real = stranger.connect_to_daemon();
        thread::scope(|scope| {
            scope.spawn(|| pass_on(&query, &real));
            pass_on(&real, &query);
        });
    };
    while_answering(&stranger, relay, || {
        let began = Instant::now();
        let mut streams: Vec<EventStream> = (0..STREAMS)
            .map(|_| EventStream::open(&address).expect("a stream is free"))
            .collect();
        let uptimes = |stream: &mut EventStream| -> BTreeSet<String> {
            stream.history();
            let update = |_| stream.update()["daemon"]["uptime"].to_string();
            (0..5).map(update).collect()
        };
        let seen: BTreeSet<String> = streams.iter_mut().flat_map(uptimes).collect();
        let made = queries.load(Ordering::Relaxed);
        let seconds = began.elapsed().as_secs_f64();
        assert!(
            made as f64 <= seconds + 1.0 && seen.len() <= made,
            "{made} queries and {} updates in {seconds} s",
            seen.len()
        );
    });
}

/// Returns a reply of a daemon whose updates have this many bytes, about.
fn long_reply(daemon: &Running, length: usize) -> Vec<u8> {
    let mut status = serde_json::to_value(daemon.status()).expect("JSON");
    status["events_total"] = json!(0);
    status["quarantined"] = json!(vec!["m".repeat(1000); length / 1000]);
    let reply = json!({ "out": "status", "result": status }).to_string();
    [&(reply.len() as u32).to_le_bytes(), reply.as_bytes()].concat()
}

#[test]
fn a_stream_that_is_not_read_is_dropped_and_delays_no_other() {
    let daemon = start("metrics.listen = \"unix:{dir}/metrics.sock\"");
    let (address, pid) = (unix(&daemon, "metrics.sock"), exporter(&daemon));
    let reply = long_reply(&daemon, 300_000);
    let stranger = Stranger::instead_of(&daemon);
    // The exporter may have given up.
    let answer = |mut query: UnixStream| drop(query.write_all(&reply));
    while_answering(&stranger, answer, || {
        let mut unread = HttpClient::connect(&address);
        unread.send(stream_request()).expect("it is taken");
        eventually("it has a thread", || (tasks(pid) == 2).then_some(()));
        let mut other = EventStream::open(&address).expect("a stream is free");
        other.history();
        other.until("the first stream is dropped", |_, _| tasks(pid) == 2);
        let got = unread.receive().expect("the bytes that were sent");
        assert!(got.len() < 3 * 64 * 1024, "{} bytes", got.len());
        other.update();
    });
    drop(stranger);
    assert_eq!(get(&address, "/healthz").status, 200);
}

/// 64 KiB may take 5 s, and not the whole event.
#[test]
fn a_slow_reader_gets_a_long_event() {
    let daemon = start("metrics.listen = \"unix:{dir}/metrics.sock\"");
    let address = unix(&daemon, "metrics.sock");
    let reply = long_reply(&daemon, 1_500_000);
    let stranger = Stranger::instead_of(&daemon);
    let answer = |mut query: UnixStream| drop(query.write_all(&reply));
    while_answering(&stranger, answer, || {
        let mut slow = HttpClient::connect(&address);
        slow.send(stream_request()).expect("it is taken");
        let mut got = 0;
        while got < 1_500_000 {
            let_pass(Duration::from_millis(400));
            let more = slow.receive_some().expect("more");
            assert!(!more.is_empty(), "it is dropped after {got} bytes");
            got += more.len();
        }
    });
}

#[test]
fn without_streams_no_process_wakes_up() {
    let daemon = start(TCP);
    let address = metrics_address(&daemon);
    let mut stream = EventStream::open(&address).expect("a stream");
    stream.history();
    stream.update();
    stream.update();
    drop(stream);
    let exporter = exporter(&daemon);
    eventually("its thread has ended", || {
        (tasks(exporter) == 1).then_some(())
    });
    assert_no_wake_up(&daemon);
    assert_eq!(get(&address, "/metrics").status, 200);
    eventually("the request is over", || {
        (tasks(exporter) == 1).then_some(())
    });
    assert_no_wake_up(&daemon);
}

/// Asserts that no process of the daemon wakes up.
#[track_caller]
fn assert_no_wake_up(daemon: &Running) {
    let family = kernel::family(daemon.pid());
    let sleeps = || -> Vec<u64> { family.iter().map(|pid| kernel::sleeps(*pid)).collect() };
    let before = while_idle(daemon, sleeps);
    let_pass(Duration::from_millis(3_500));
    assert_eq!(sleeps(), before);
}

#[test]
fn each_kind_of_request_leaves_one_sample() {
    for path in ["", "/metrics", "/healthz", "/readyz", "agent"] {
        let daemon = start(&format!("{TCP}\nagent.listen = \"127.0.0.1:0\""));
        let address = metrics_address(&daemon);
        match path {
            "" => {}
            "agent" => {
                let line = HttpClient::connect(&agent_address(&daemon)).receive();
                assert!(line.is_ok_and(|line| !line.is_empty()));
            }
            path => assert_eq!(get(&address, path).status, 200),
        }
        // The sample of a request for metrics is taken after the reply.
        eventually("the request is over", || {
            (tasks(exporter(&daemon)) == 1).then_some(())
        });
        let mut stream = EventStream::open(&address).expect("a stream");
        let points = &stream.history()["points"];
        let expected = usize::from(!path.is_empty());
        assert_eq!(points.as_array().map(Vec::len), Some(expected), "{path:?}");
    }
}

#[test]
fn a_page_of_another_origin_takes_no_place() {
    let daemon = start(TCP);
    let address = metrics_address(&daemon);
    let with = |request: String, field: &str| {
        let reply = ask(
            &address,
            request.replace("\r\n\r\n", &format!("{field}\r\n\r\n")),
        );
        assert_eq!(
            reply.field("Cross-Origin-Resource-Policy"),
            Some("same-origin")
        );
        reply.status
    };
    for _ in 0..=STREAMS {
        // As browsers send it with `mode: "no-cors"`, to loopback and elsewhere.
        for site in ["", "\r\nSec-Fetch-Site: cross-site"] {
            assert_eq!(with(request("/live"), site), 403, "{site}");
        }
        for site in ["cross-site", "same-site"] {
            let site = format!("\r\nSec-Fetch-Site: {site}");
            assert_eq!(with(stream_request(), &site), 403, "{site}");
        }
    }
    // The request before the field may be sent.
    let preflight = stream_request().replace("GET", "OPTIONS");
    assert_eq!(with(preflight, "\r\nOrigin: http://evil.example"), 405);
    let page = with(request("/"), "\r\nSec-Fetch-Site: cross-site");
    assert_eq!(page, 200, "a link to the page");
    let head = stream_request().replace("GET", "HEAD");
    assert_eq!(with(head, "\r\nSec-Fetch-Site: same-origin"), 200);
    let streams = (0..STREAMS).map(|_| EventStream::open(&address));
    let streams: Vec<_> = streams.collect();
    assert!(streams.iter().all(Result::is_ok), "all are free");
}

#[test]
fn streams_end_with_the_exporter_and_begin_again() {
    let daemon = start(TCP);
    let address = metrics_address(&daemon);
    let mut stream = EventStream::open(&address).expect("a stream");
    stream.history();
    daemon
        .reload_with(&TCP.replace("node1.example.org", "node2"))
        .expect("it is applied");
    stream.until_end();
    let mut stream = EventStream::open(&address).expect("a stream");
    stream.history();
    assert_eq!(stream.update()["daemon"]["generation"], 2);
    kernel::send(exporter(&daemon), Signal::SIGKILL);
    stream.until_end();
    let mut stream = EventStream::open(&address).expect("it waits for the next exporter");
    stream.history();
}

#[test]
fn a_stream_shows_why_the_daemon_does_not_answer() {
    let daemon = start(TCP);
    let mut stream = EventStream::open(&metrics_address(&daemon)).expect("a stream");
    stream.history();
    stream.update();
    kernel::stop(daemon.pid());
    let trouble = stream.until("the reason is shown", |name, _| name == "trouble");
    assert_eq!(
        trouble,
        json!({ "message": "the daemon does not answer: no reply within 3s" })
    );
    daemon.signal("CONT");
    stream.update();
}
