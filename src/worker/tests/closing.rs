//! The end of a connection: clients that have shut down their reading, and the lingering close.

use super::*;

/// The worker gets no hang-up: the next write fails.
#[test]
fn a_client_that_has_shut_down_its_reading_is_closed_by_a_reply() {
    let (mut master, mut theirs) = Master::new();
    let (mut worker, mut service, mut client) =
        worker_with_client(&mut master, &mut theirs, settings());
    client.0.shutdown(Shutdown::Read).expect("it is connected");
    client.send(&ping("1"));
    worker.run_turn(0, &Purpose::Serve, &mut service);
    worker.send_reports().expect("the channel is open");
    assert_eq!(master.received(), [ToMaster::Closed(vec![0])]);
    assert_eq!((worker.served, worker.leased), (1, 0));
    let counters = Counters::read(master.shm.header());
    assert_eq!((counters.requests(), counters.lost), (1, 0));
}

/// The replies are parked, and the rest of them fails.
#[test]
fn a_parked_reply_closes_a_client_that_has_shut_down_reading() {
    let (mut master, mut theirs) = Master::new();
    let (mut worker, mut service, mut client) =
        worker_with_client(&mut master, &mut theirs, settings());
    let long = ping(&format!("\"{}\"", "x".repeat(900_000)));
    client.send_long(&long, 0, &mut worker, &mut service);
    let waits = |worker: &WorkerLoop<'_>| worker.connections.get(0).map(|client| client.waits);
    assert_eq!(waits(&worker), Some(WaitingFor::Writable));
    client.0.shutdown(Shutdown::Read).expect("it is connected");
    // It takes what was sent before, so that there is room for more.
    assert!(client.read_replies().contains("pong"));
    worker.run_turn(0, &Purpose::Serve, &mut service);
    worker.send_reports().expect("the channel is open");
    assert_eq!(master.received(), [ToMaster::Closed(vec![0])]);
    assert_eq!((worker.served, worker.leased), (1, 0));
}

#[test]
fn a_lingering_close_continues_with_the_time_that_is_left() {
    let (mut master, mut theirs) = Master::new();
    let mut worker = master.worker(&mut theirs, settings());
    let mut service = service();
    let closing = with(|flags: &mut Flags| flags.closing = true);
    let mut sent = master.lease(0, 1, &ClientBytes::default(), closing);
    let last = with(|bytes: &mut ClientBytes| {
        (bytes.unsent, bytes.in_base) = (b"the last".to_vec().into(), 7);
    });
    let mut unsent = master.lease(1, 1, &last, closing);
    sent.send(b"last words");
    let since = master.slot(0).since();
    step(&mut worker, &mut service);
    step(&mut worker, &mut service);
    assert_eq!(sent.read(), (String::new(), true));
    assert_eq!(unsent.read(), ("the last".to_owned(), true));
    for slot in [0, 1] {
        let connection = worker.connections.get(slot).expect("it has time to read");
        assert_eq!(connection.waits, WaitingFor::End);
        assert_eq!(master.state(slot), Some(LeaseState::Parked));
    }
    let connection = worker.connections.get(0).expect("it has time to read");
    assert_eq!(connection.armed, since + 1_000_000_000);
    // Discarded bytes count as answered: the positions stay true.
    assert_eq!(master.slot(0).cursors().ends(), (10, 0));
    worker.time.now = since + 3_600_000_000_000;
    worker.check_deadlines(worker.time.now, &mut service);
    worker.send_reports().expect("the channel is open");
    // In the order of their deadlines.
    assert_eq!(master.received(), [ToMaster::Closed(vec![1, 0])]);
}
