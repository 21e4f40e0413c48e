//! A worker with an app: the test is its master and its app.

use super::*;
use crate::proto::app::AppMethod;
use crate::worker::apps::{self, App, AppService};
use crate::worker::away::ExecutorKind;

/// The app's end of the wire.
struct AppEnd(UnixStream);

impl AppEnd {
    fn send(&mut self, body: &str) {
        self.0.write_all(&frame(body)).expect("the socket has room");
    }

    fn answer(&mut self, id: u64) {
        self.send(&format!(r#"{{"id":{id},"result":{id}}}"#));
    }

    /// Returns the bytes that the worker has written.
    fn read(&mut self) -> String {
        let mut bytes = Vec::new();
        let read = self.0.read_to_end(&mut bytes);
        let blocks = |e: std::io::Error| e.kind() == ErrorKind::WouldBlock;
        assert!(read.is_err_and(blocks), "the worker has closed the wire");
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// Gives the worker an app with this many permits.
fn add_app(worker: &mut WorkerLoop<'_>, permits: u32) -> AppEnd {
    let (app, theirs) = App::of_test(MAX_FRAME as usize).expect("a process and a socket pair");
    let theirs = UnixStream::from(theirs);
    theirs.set_nonblocking(true).expect("fcntl");
    let executor = Executor::new(ExecutorKind::App(app), permits);
    executor.watch(&worker.poller).expect("epoll");
    worker.executor = Some(Box::new(executor));
    AppEnd(theirs)
}

/// Adds the method `order` of the app.
fn with_orders(own: &mut RunningService<()>) -> AppService<'_> {
    let method = AppMethod {
        name: "order".to_owned(),
        idempotent: false,
        reply: None,
    };
    AppService::new(own, vec![method]).expect("a valid name")
}

fn order(params: &str) -> Vec<u8> {
    frame(&format!(r#"{{"in":"order","params":{params}}}"#))
}

/// Returns params of 110 KB: three of them do not fit into the wire.
fn long(number: usize) -> String {
    format!("\"{number} {}\"", "x".repeat(110_000))
}

/// Returns how many requests are away.
fn away(worker: &WorkerLoop<'_>) -> usize {
    let executor = worker.executor.as_ref().expect("it has an app");
    executor.requests.count()
}

/// Processes what the app has sent.
fn receive(worker: &mut WorkerLoop<'_>, service: &mut dyn Service) {
    let received = worker.attend_executor(apps::WIRE, service);
    received.expect("the wire can be read");
}

fn flush(worker: &mut WorkerLoop<'_>, service: &mut dyn Service) {
    worker.flush_executor(service).expect("the wire is open");
}

#[test]
fn a_request_that_was_taken_back_is_not_written_to_the_app() {
    let (mut master, mut theirs) = Master::new();
    let mut worker = master.worker(&mut theirs, settings());
    let mut own = service();
    let mut service = with_orders(&mut own);
    let mut app = add_app(&mut worker, 8);
    let mut client = master.lease_new(0);
    // Both are ready in one iteration of the loop: the request, and then a frame that ends the pair.
    client.send(&order("1"));
    app.send("no JSON");
    step(&mut worker, &mut service);
    assert_eq!(away(&worker), 1);
    receive(&mut worker, &mut service);
    assert!(worker.ending.broken.is_some());
    flush(&mut worker, &mut service);
    // The next worker executes it.
    assert_eq!(master.state(0), Some(LeaseState::Parked));
    assert_eq!(master.unread(0), order("1"));
    assert_eq!(app.read(), "", "the app lives on for a while");
}

#[test]
fn a_worker_that_breaks_off_takes_back_unwritten_requests() {
    let (mut master, mut theirs) = Master::new();
    let mut worker = master.worker(&mut theirs, settings());
    let mut own = service();
    let mut service = with_orders(&mut own);
    let mut app = add_app(&mut worker, 8);
    let mut client = master.lease_new(0);
    client.send(&order("1"));
    step(&mut worker, &mut service);
    assert_eq!(away(&worker), 1);
    worker.break_off("a test");
    flush(&mut worker, &mut service);
    assert_eq!(app.read(), "");
    worker.serve(&mut service).expect_err("it breaks off");
    assert_eq!(master.state(0), Some(LeaseState::Parked));
}

#[test]
fn what_an_app_has_answered_counts_although_the_master_is_gone() {
    let (mut master, mut theirs) = Master::new();
    let mut worker = master.worker(&mut theirs, settings());
    let mut own = service();
    let mut service = with_orders(&mut own);
    let mut app = add_app(&mut worker, 8);
    let mut clients: Vec<Client> = (0..5).map(|slot| master.lease_new(slot)).collect();
    for (slot, client) in clients.iter_mut().enumerate() {
        step(&mut worker, &mut service);
        let bytes = order(&long(slot));
        client.send_long(&bytes, slot as u32, &mut worker, &mut service);
        flush(&mut worker, &mut service);
    }
    // The wire is full. No byte of the last request is written.
    assert_eq!(away(&worker), 5);
    app.answer(1);
    // `restart-grace` is 0.
    worker
        .await_answers(&mut service)
        .expect("the wire is open");
    assert!(clients[0].read_replies().contains(r#""result":1"#));
    let states = [0, 1, 4].map(|slot| master.state(slot).expect("a lease"));
    assert_eq!(
        states,
        [LeaseState::Idle, LeaseState::Away, LeaseState::Parked]
    );
    assert!(master.unread(4) == order(&long(4)));
}

#[test]
fn a_worker_has_a_grace_that_no_clock_can_count() {
    let (master, mut theirs) = Master::new();
    let grace = Settings {
        restart_grace: Duration::MAX,
        ..settings()
    };
    let mut worker = master.worker(&mut theirs, grace);
    let mut own = service();
    let mut service = with_orders(&mut own);
    let _app = add_app(&mut worker, 8);
    let awaited = worker.await_answers(&mut service);
    awaited.expect("there are no requests");
}

#[test]
fn no_request_after_the_answer_of_an_app_exceeds_max_requests() {
    let (mut master, mut theirs) = Master::new();
    let limits = Settings {
        max_requests: Some(1),
        ..settings()
    };
    let mut worker = master.worker(&mut theirs, limits);
    let mut own = service();
    let mut service = with_orders(&mut own);
    let mut app = add_app(&mut worker, 8);
    let mut client = master.lease_new(0);
    client.send(&[order("1"), ping("2")].concat());
    step(&mut worker, &mut service);
    app.answer(1);
    receive(&mut worker, &mut service);
    assert!(worker.ending.is_retiring);
    let replies = client.read_replies();
    assert!(
        replies.contains("order_r") && !replies.contains("pong"),
        "{replies}"
    );
    // The next worker answers it.
    assert_eq!(master.unread(0), ping("2"));
}

#[test]
fn no_request_besides_one_that_is_away_exceeds_max_requests() {
    let (mut master, mut theirs) = Master::new();
    let limits = Settings {
        near_limit_at: Some(1),
        max_requests: Some(1),
        ..settings()
    };
    let mut worker = master.worker(&mut theirs, limits);
    let mut own = service();
    let mut service = with_orders(&mut own);
    let mut app = add_app(&mut worker, 8);
    let (mut first, mut second) = (master.lease_new(0), master.lease_new(1));
    first.send(&order("1"));
    second.send(&ping("2"));
    step(&mut worker, &mut service);
    assert_eq!((away(&worker), worker.ending.is_retiring), (1, true));
    // Its successor is needed at once, and the client that it gives up must not come back.
    let expected = [ToMaster::NearRequestLimit, ToMaster::Retiring];
    assert_eq!(master.received(), expected);
    step(&mut worker, &mut service);
    // The next worker answers it.
    assert_eq!(second.read_replies(), "");
    app.answer(1);
    receive(&mut worker, &mut service);
    assert!(first.read_replies().contains("order_r"));
    assert_eq!(worker.served, 1);
}

/// The write of the answer fails.
#[test]
fn an_app_answer_closes_a_client_that_has_shut_down_reading() {
    let (mut master, mut theirs) = Master::new();
    let mut worker = master.worker(&mut theirs, settings());
    let mut own = service();
    let mut service = with_orders(&mut own);
    let mut app = add_app(&mut worker, 8);
    let mut client = master.lease_new(0);
    client.0.shutdown(Shutdown::Read).expect("it is connected");
    client.send(&order("1"));
    step(&mut worker, &mut service);
    assert_eq!(away(&worker), 1);
    app.answer(1);
    receive(&mut worker, &mut service);
    worker.send_reports().expect("the channel is open");
    assert_eq!(master.received(), [ToMaster::Closed(vec![0])]);
    assert_eq!((away(&worker), worker.served, worker.leased), (0, 1, 0));
    let counters = Counters::read(master.shm.header());
    assert_eq!((counters.requests(), counters.lost), (1, 0));
}

#[test]
fn a_client_that_was_called_passes_the_queue_only_once() {
    let (mut master, mut theirs) = Master::new();
    let mut worker = master.worker(&mut theirs, settings());
    let mut own = service();
    let mut service = with_orders(&mut own);
    let mut app = add_app(&mut worker, 3);
    let mut clients: Vec<Client> = (0..7).map(|slot| master.lease_new(slot)).collect();
    for (slot, client) in clients.iter_mut().enumerate() {
        step(&mut worker, &mut service);
        let bytes = match slot {
            0..3 => order("0"),
            5 => [order(&long(5)), order("\"its second\"")].concat(),
            6 => order("\"the last\""),
            _ => order(&long(slot)),
        };
        client.send_long(&bytes, slot as u32, &mut worker, &mut service);
    }
    assert_eq!(away(&worker), 3);
    flush(&mut worker, &mut service);
    for id in 1..=3 {
        app.answer(id);
    }
    receive(&mut worker, &mut service);
    // The wire accepts no more after the third of the queue.
    worker.call_queued(&mut service);
    assert_eq!(away(&worker), 3);
    let mut written = String::new();
    while worker
        .executor
        .as_ref()
        .is_some_and(|executor| executor.has_unwritten())
    {
        flush(&mut worker, &mut service);
        written += &app.read();
    }
    assert!(written.contains("\"5 x"));
    app.answer(6);
    receive(&mut worker, &mut service);
    worker.call_queued(&mut service);
    flush(&mut worker, &mut service);
    let next = app.read();
    assert!(
        next.contains("the last") && !next.contains("its second"),
        "{next}"
    );
}
