//! Leases: how they end, and how the clients of a worker get their turns.

use super::*;

#[test]
fn a_retiring_worker_gives_up_every_client_and_ends() {
    let (mut master, mut theirs) = Master::new();
    let worker = master.worker(&mut theirs, settings());
    let (mut idle, mut halfway) = (master.lease_new(0), master.lease_new(1));
    idle.send(&ping("1"));
    halfway.send(&ping("2")[..9]);
    master.send(&ToWorker::Retire);
    // A lease that the worker does not receive any more stays as it is.
    let mut late = master.lease_new(2);
    late.send(&ping("3"));
    worker.serve(&mut service()).expect("it ends well");
    assert_eq!(master.received(), [ToMaster::Released(vec![0, 1])]);
    let states = [0, 1, 2].map(|slot| master.state(slot).expect("a lease"));
    use LeaseState::{Idle, Revoked, RevokedParked};
    assert_eq!(states, [Revoked, RevokedParked, Idle]);
    assert!(master.unread(0).is_empty() && master.unread(1) == ping("2")[..9]);
    let (replies, is_over) = idle.read();
    assert!(replies.contains("pong") && !is_over, "{replies}");
    assert_eq!(halfway.read(), (String::new(), false));
}

/// A message of the master may have any duration.
#[test]
fn a_worker_has_as_long_to_stop_as_no_clock_can_count() {
    let (mut master, mut theirs) = Master::new();
    let mut worker = master.worker(&mut theirs, settings());
    let within = Duration::MAX;
    master.send(&ToWorker::Stop(Stop { within }));
    step(&mut worker, &mut service());
    assert!(worker.ending.stop_by > Some(Instant::now()));
}

#[test]
fn a_retiring_worker_gives_up_a_new_lease() {
    let (mut master, mut theirs) = Master::new();
    let mut worker = master.worker(&mut theirs, settings());
    let mut service = service();
    master.send(&ToWorker::Retire);
    let mut late = master.lease_new(2);
    late.send(&ping("3"));
    step(&mut worker, &mut service);
    step(&mut worker, &mut service);
    worker.give_up_leases();
    worker.send_reports().expect("the channel is open");
    assert_eq!(master.received(), [ToMaster::Released(vec![2])]);
    assert_eq!(master.state(2), Some(LeaseState::Revoked));
    assert_eq!(late.read(), (String::new(), false));
}

#[test]
fn a_worker_releases_revoked_leases_and_no_others() {
    let (mut master, mut theirs) = Master::new();
    let mut worker = master.worker(&mut theirs, settings());
    let mut service = service();
    let (mut taken, mut kept) = (master.lease_new(0), master.lease_new(1));
    for client in [&mut taken, &mut kept] {
        client.send(&ping("1")[..9]);
        step(&mut worker, &mut service);
    }
    assert!(master.slot(0).revoke(1).is_some());
    master.send(&ToWorker::LeasesRevoked);
    step(&mut worker, &mut service);
    assert_eq!(master.received(), [ToMaster::Released(vec![0])]);
    assert_eq!(worker.leased, 1);
    assert_eq!(master.unread(0), ping("1")[..9]);
    kept.send(&ping("1")[9..]);
    taken.send(&ping("1")[9..]);
    worker.run_turn(0, &Purpose::Serve, &mut service);
    worker.run_turn(1, &Purpose::Serve, &mut service);
    assert_eq!(taken.read(), (String::new(), false));
    assert!(kept.read_replies().contains("pong"));
}

#[test]
fn bytes_of_the_next_client_of_a_slot_are_kept() {
    let (mut master, mut theirs) = Master::new();
    let mut worker = master.worker(&mut theirs, settings());
    let mut service = service();
    let long = ping(&format!("\"{}\"", "x".repeat(1_000_000)));
    let blocks = |master: &Master| master.shm.file().metadata().expect("fstat").blocks() / 2 / 1024;
    let mut run = |worker: &mut WorkerLoop<'_>, master: &mut Master, slot: u32| {
        let mut client = master.lease_new(slot);
        step(worker, &mut service);
        client.send_long(&long, slot, worker, &mut service);
        let mut reply = 0;
        while reply < long.len() {
            reply += client.read_replies().len();
            worker.run_turn(slot, &Purpose::Serve, &mut service);
        }
        client
    };
    // A client with a large frame has left.
    drop(run(&mut worker, &mut master, 0));
    worker.run_turn(0, &Purpose::Serve, &mut self::service());
    worker.send_reports().expect("the channel is open");
    assert_eq!(master.received(), [ToMaster::Closed(vec![0])]);
    assert_eq!(master.state(0), Some(LeaseState::Closed));
    assert!(blocks(&master) < 4, "its region was given back");
    // The bytes of the next client are there before the worker receives its lease, and it serves others in between.
    let unread = long[..900_000].to_vec();
    let stored = with(|bytes: &mut ClientBytes| bytes.unread = unread.clone().into());
    let cursors = master.shm.store(0, &stored).expect("room");
    let flags = Flags::default();
    master
        .slot(0)
        .preset(LeaseState::Parked, 2, cursors, flags, (1, 1), 0);
    let others = (1..12).map(|slot| run(&mut worker, &mut master, slot));
    let _others: Vec<Client> = others.collect();
    assert!(master.unread(0) == unread);
}

/// The kernel's count is rearmed long before that, but that may fail.
#[test]
fn a_unix_client_may_send_any_number_of_bytes() {
    let (mut master, mut theirs) = Master::new();
    let (mut worker, mut service, mut client) =
        worker_with_client(&mut master, &mut theirs, settings());
    let connection = worker.connections.get_mut(0).expect("it was leased");
    for bytes in [usize::MAX, 1, 1 << 28] {
        connection.count_for_rearm(bytes);
    }
    for number in 0..3 {
        client.send(&ping(&number.to_string()));
        worker.run_turn(0, &Purpose::Serve, &mut service);
        assert!(client.read_replies().contains("pong"));
    }
}

#[test]
fn an_event_gives_a_client_that_waits_for_its_turn_no_other() {
    let (mut master, mut theirs) = Master::new();
    let (mut worker, mut service, mut client) =
        worker_with_client(&mut master, &mut theirs, settings());
    let request = frame(r#"{"in":"killed_at"}"#);
    const REQUESTS: usize = 20;
    client.send(&request.repeat(REQUESTS));
    worker.run_turn(0, &Purpose::Serve, &mut service);
    let (mut replies, mut turns) = (client.read_replies(), 1);
    assert_eq!(worker.again, [0], "each request takes 3 ms");
    // The kernel has more bytes of it.
    client.send(&request);
    let event = PollEvent {
        token: 1 << 32,
        readable: true,
        writable: false,
        has_ended: false,
    };
    worker.serve_client(event, &mut service);
    assert_eq!(worker.again, [0]);
    assert_eq!(client.read_replies(), "");
    assert_eq!(worker.timeout(), Some(Duration::ZERO));
    while let [slot] = worker.again[..] {
        worker.again.clear();
        worker.run_turn(slot, &Purpose::Serve, &mut service);
        replies += &client.read_replies();
        turns += 1;
    }
    assert_eq!(count(&replies, "\"out\""), REQUESTS + 1);
    assert!(turns > 4, "{turns}");
    // When no frame is left, an event gives it a turn again.
    client.send(&request);
    worker.serve_client(event, &mut service);
    assert_eq!(count(&client.read_replies(), "\"out\""), 1);
    let connection = worker.connections.get(0).expect("it stays");
    assert_eq!(connection.waits, WaitingFor::Request);
}
