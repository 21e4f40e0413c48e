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
use crate::common::http::{EventStream, HttpClient, ask, exporter, get, metrics_address, request};
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
                    Ok((asked, _)) => drop(scope.spawn(move || answer(asked))),
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
    let history = stream.expect("history");
    assert_eq!(history["span"], 3600);
    let _client = daemon.connect();
    daemon.wait_until("the client is there", |status| status.clients == 1);
    let update = loop {
        let update = stream.expect("update");
        if update["figures"]["clients"] == 1 {
            break update;
        }
    };
    assert_eq!(
        (&update["name"], &update["unready"], &update["generation"]),
        (&json!("fdpassd"), &Value::Null, &json!(1))
    );
    assert_eq!(update["workers"].as_array().map(Vec::len), Some(2));
    assert_eq!(update["workers"][0]["state"], "ready");
    assert_eq!(update["point"]["clients"].as_array().map(Vec::len), Some(2));
    // Nothing that the metrics do not have.
    let text = update.to_string();
    for hidden in ["127.0.0.1", "\"pid\"", "config"] {
        assert!(!text.contains(hidden), "{hidden}: {text}");
    }
}

#[test]
fn a_killed_worker_and_a_reload_are_seen_in_a_stream() {
    let daemon = start(TCP);
    let mut stream = EventStream::open(&metrics_address(&daemon)).expect("a stream");
    stream.expect("history");
    stream.expect("update");
    let killed = daemon.status().workers[0].id.expect("a worker");
    daemon.kill_worker(0);
    let update = stream.expect_event(&format!("worker {killed} died (seat 0"));
    assert_eq!(update["totals"]["deaths"], 1);
    daemon.reload().expect("the configuration is good");
    let update = stream.expect_event("reload applied (generation 2");
    assert_eq!(update["generation"], 2);
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
    stream.expect("history");
    assert_eq!(stream.expect("update")["name"], "counterd");
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
        stream.expect("history");
        stream.expect("update");
        stream.expect("update");
    }
    assert!(tasks(exporter(&daemon)) <= 1 + 16 + STREAMS);
    streams.pop();
    eventually("its place is free", || open().ok());
}

#[test]
fn all_streams_share_one_question_a_second() {
    let daemon = start(TCP);
    let address = metrics_address(&daemon);
    let stranger = Stranger::instead_of(&daemon);
    let questions = AtomicUsize::new(0);
    let relay = |asked: UnixStream| {
        questions.fetch_add(1, Ordering::Relaxed);
        let real = stranger.connect_to_daemon();
        thread::scope(|scope| {
            scope.spawn(|| pass_on(&asked, &real));
            pass_on(&real, &asked);
        });
    };
    while_answering(&stranger, relay, || {
        let mut streams: Vec<EventStream> = (0..STREAMS)
            .map(|_| EventStream::open(&address).expect("a stream is free"))
            .collect();
        streams.iter_mut().for_each(|stream| {
            stream.expect("history");
            stream.expect("update");
        });
        let asked = || questions.load(Ordering::Relaxed);
        let (began, before) = (Instant::now(), asked());
        let uptimes = |stream: &mut EventStream| -> BTreeSet<String> {
            let update = |_| stream.expect("update")["uptime"].to_string();
            (0..5).map(update).collect()
        };
        let seen: BTreeSet<String> = streams.iter_mut().flat_map(uptimes).collect();
        let (asked, seconds) = (asked() - before, began.elapsed().as_secs_f64());
        assert!(
            asked as f64 <= seconds + 2.0 && seen.len() <= asked + 1,
            "{asked} questions and {} updates in {seconds} s",
            seen.len()
        );
    });
}

#[test]
fn a_stream_that_is_not_read_is_dropped_and_delays_no_other() {
    let daemon = start("metrics.listen = \"unix:{dir}/metrics.sock\"");
    let (address, pid) = (unix(&daemon, "metrics.sock"), exporter(&daemon));
    // Updates that do not fit into the buffers of the kernel.
    let mut status = serde_json::to_value(daemon.status()).expect("JSON");
    status["events_total"] = json!(0);
    status["quarantined"] = json!(vec!["m".repeat(1000); 300]);
    let reply = json!({ "out": "status", "result": status }).to_string();
    let reply = [&(reply.len() as u32).to_le_bytes(), reply.as_bytes()].concat();
    let stranger = Stranger::instead_of(&daemon);
    let answer = |mut asked: UnixStream| asked.write_all(&reply).expect("it is taken");
    while_answering(&stranger, answer, || {
        let mut deaf = HttpClient::connect(&address);
        deaf.send(request("/live")).expect("it is taken");
        eventually("it is streamed to", || (tasks(pid) == 2).then_some(()));
        let mut other = EventStream::open(&address).expect("a stream is free");
        other.expect("history");
        eventually("it is dropped", || {
            other.expect("update");
            (tasks(pid) == 2).then_some(())
        });
        let got = deaf.receive().expect("the bytes that were sent");
        assert!(got.len() < 10 * reply.len(), "{} bytes", got.len());
        other.expect("update");
    });
    drop(stranger);
    assert_eq!(get(&address, "/healthz").status, 200);
}

#[test]
fn without_streams_no_process_wakes_up() {
    let daemon = start(TCP);
    let address = metrics_address(&daemon);
    let mut stream = EventStream::open(&address).expect("a stream");
    stream.expect("history");
    stream.expect("update");
    stream.expect("update");
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
fn requests_for_metrics_and_health_leave_samples() {
    for path in ["/metrics", "/healthz", "/readyz"] {
        let daemon = start(TCP);
        let address = metrics_address(&daemon);
        assert_eq!(get(&address, path).status, 200);
        eventually("there is a sample", || {
            let mut stream = EventStream::open(&address).ok()?;
            let history = stream.expect("history");
            (!history["points"].as_array()?.is_empty()).then_some(())
        });
    }
}

#[test]
fn a_page_of_another_origin_gets_no_stream() {
    let daemon = start(TCP);
    let address = metrics_address(&daemon);
    for (site, status) in [("cross-site", 403), ("same-site", 403), ("none", 200)] {
        let field = format!("\r\nSec-Fetch-Site: {site}\r\n\r\n");
        let head = request("/live").replace("GET", "HEAD");
        let answer = ask(&address, head.replace("\r\n\r\n", &field));
        assert_eq!(answer.status, status, "{site}");
        let page = ask(&address, request("/").replace("\r\n\r\n", &field));
        assert_eq!(page.status, 200, "a link to the page: {site}");
    }
}

#[test]
fn streams_end_with_the_exporter_and_begin_again() {
    let daemon = start(TCP);
    let address = metrics_address(&daemon);
    let mut stream = EventStream::open(&address).expect("a stream");
    stream.expect("history");
    daemon
        .reload_with(&TCP.replace("node1.example.org", "node2"))
        .expect("it is applied");
    while stream.next().is_some() {}
    let mut stream = EventStream::open(&address).expect("a stream");
    stream.expect("history");
    assert_eq!(stream.expect("update")["generation"], 2);
    kernel::send(exporter(&daemon), Signal::SIGKILL);
    while stream.next().is_some() {}
    let mut stream = EventStream::open(&address).expect("it waits for the next exporter");
    stream.expect("history");
}

#[test]
fn a_stream_shows_why_the_daemon_does_not_answer() {
    let daemon = start(TCP);
    let mut stream = EventStream::open(&metrics_address(&daemon)).expect("a stream");
    stream.expect("history");
    stream.expect("update");
    kernel::stop(daemon.pid());
    let trouble = loop {
        match stream.next().expect("the stream goes on") {
            (name, data) if name == "trouble" => break data,
            (name, _) => assert_eq!(name, "update"),
        }
    };
    assert_eq!(
        trouble,
        json!({ "message": "the daemon does not answer: no reply within 3s" })
    );
    daemon.signal("CONT");
    while stream.next().expect("the stream goes on").0 != "update" {}
}
