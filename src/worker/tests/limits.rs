//! Limits of a worker: requests, deadlines, quarantined methods.

use super::*;

#[test]
fn a_worker_answers_no_request_beyond_its_limit() {
    let (mut master, mut theirs) = Master::new();
    let limits = Settings {
        near_limit_at: Some(1),
        max_requests: Some(3),
        ..settings()
    };
    let worker = master.worker(&mut theirs, limits);
    let rest = [frame("{}"), ping("4"), ping("5")[..9].to_vec()].concat();
    let (mut first, mut second) = (master.lease_new(0), master.lease_new(1));
    let wrong = [frame("no JSON"), frame(r#"{"in":"no_method"}"#)].concat();
    first.send(&[wrong, ping("3"), rest.clone()].concat());
    second.send(&ping("6"));
    // So that the first client does not end before the second is leased.
    drop(second.0.shutdown(std::net::Shutdown::Write));
    worker.serve(&mut service()).expect("it ends well");
    let reports = [ToMaster::NearRequestLimit, ToMaster::Released(vec![0])];
    assert_eq!(master.received(), reports);
    assert_eq!(master.unread(0), rest);
    assert_eq!(master.state(1), Some(LeaseState::Idle));
    let replies = first.read_replies();
    let counts = ["\"out\"", "pong"].map(|word| count(&replies, word));
    assert_eq!(counts, [3, 1], "{replies}");
    let header = master.shm.header();
    assert_eq!(Counters::read(header).requests(), 3);
    assert_eq!(header.turn(), None);
    assert_eq!(second.read(), (String::new(), false));
}

#[test]
fn a_worker_at_its_limit_answers_no_unfinished_frame() {
    let one_request = || Settings {
        max_requests: Some(1),
        ..settings()
    };
    let lease_half_closed = |master: &mut Master, unread: Vec<u8>| {
        let bytes = with(|bytes: &mut ClientBytes| bytes.unread = unread.into());
        let flags = with(|flags: &mut Flags| flags.half_closed = true);
        master.lease(0, 1, &bytes, flags)
    };
    // The worker's one request is the unfinished frame.
    let (mut master, mut theirs) = Master::new();
    let worker = master.worker(&mut theirs, one_request());
    let mut client = lease_half_closed(&mut master, ping("1")[..9].to_vec());
    worker.serve(&mut service()).expect("it ends well");
    let (reply, is_over) = client.read();
    assert!(reply.contains("bad_request") && is_over, "{reply}");
    assert!(master.slot(0).flags().closing);
    let state = master.state(0);
    assert_eq!(master.received(), [ToMaster::Released(vec![0])]);
    assert_eq!(state, Some(LeaseState::RevokedParked));

    // The worker's one request is before it.
    let (mut master, mut theirs) = Master::new();
    let worker = master.worker(&mut theirs, one_request());
    let unread = [ping("1"), ping("2")[..9].to_vec()].concat();
    let mut client = lease_half_closed(&mut master, unread);
    worker.serve(&mut service()).expect("it ends well");
    assert_eq!(master.unread(0), ping("2")[..9]);
    assert_eq!(count(&client.read_replies(), "\"out\""), 1);
    assert!(master.slot(0).flags().half_closed);
}

#[test]
fn a_request_that_timed_out_does_not_run_and_the_next_does() {
    let (mut master, mut theirs) = Master::new();
    let mut worker = master.worker(&mut theirs, settings());
    let unread = [ping("1"), ping("2")].concat();
    let bytes = with(|bytes: &mut ClientBytes| bytes.unread = unread.into());
    let flags = with(|flags: &mut Flags| (flags.timed_out, flags.crash_count) = (true, 1));
    let mut client = master.lease(0, 1, &bytes, flags);
    step(&mut worker, &mut service());
    let replies = client.read_replies();
    let words = ["\"timeout\"", "request-timeout", r#""result":2"#];
    assert!(words.iter().all(|word| replies.contains(word)), "{replies}");
    assert!(!replies.contains(r#""result":1"#), "{replies}");
    // A flag that is left in the shared memory belongs to an answered frame.
    client.send(&ping("3"));
    worker.run_turn(0, &Purpose::Serve, &mut service());
    assert!(client.read_replies().contains(r#""result":3"#));
}

#[test]
fn a_quarantined_method_does_not_run_until_it_is_released() {
    let (mut master, mut theirs) = Master::new();
    let (mut worker, mut service, mut client) =
        worker_with_client(&mut master, &mut theirs, settings());
    for (names, words) in [
        (
            vec!["methods", "ping", "gone"],
            ["\"crashed\"", "is quarantined"],
        ),
        (vec!["methods"], ["pong", "result"]),
    ] {
        let names = names.into_iter().map(str::to_owned).collect();
        master.send(&ToWorker::Quarantine(names));
        step(&mut worker, &mut service);
        client.send(&ping("1"));
        worker.run_turn(0, &Purpose::Serve, &mut service);
        let reply = client.read_replies();
        assert!(words.iter().all(|word| reply.contains(word)), "{reply}");
    }
}

#[test]
fn a_method_gets_the_earlier_deadline_of_request_and_worker() {
    let (mut master, mut theirs) = Master::new();
    let (mut worker, mut service, mut client) =
        worker_with_client(&mut master, &mut theirs, timeout_of_1000_s());
    let mut ask = |worker: &mut WorkerLoop<'_>| {
        client.send(&frame(r#"{"in":"deadline"}"#));
        worker.time.now = clock::monotonic();
        worker.run_one_turn(0, &Purpose::Serve, &mut service);
        let reply = client.read_replies();
        let (_, ms) = reply.rsplit_once(':')?;
        ms.trim_end_matches('}').parse::<u64>().ok()
    };
    assert!(ask(&mut worker).is_some_and(|ms| (900_000..=1_000_000).contains(&ms)));
    worker.ending.stop_by = Some(Instant::now() + Duration::from_secs(100));
    assert!(ask(&mut worker).is_some_and(|ms| ms <= 100_000));
    (worker.ending.stop_by, worker.settings.request_timeout) = (None, Some(Duration::MAX));
    assert_eq!(ask(&mut worker), None);
}

#[test]
fn each_request_of_a_turn_has_its_own_deadline() {
    let (mut master, mut theirs) = Master::new();
    let (mut worker, mut service, mut client) =
        worker_with_client(&mut master, &mut theirs, timeout_of_1000_s());
    let request = frame(r#"{"in":"killed_at"}"#);
    // A turn ends early if this thread had to wait for a CPU.
    let until = Instant::now() + Duration::from_secs(60);
    let of_one_turn = loop {
        client.send(&request.repeat(2));
        worker.run_one_turn(0, &Purpose::Serve, &mut service);
        let replies = client.read_replies();
        let times: Vec<u64> = replies
            .split("\"result\":")
            .filter_map(|reply| reply.split_once('}')?.0.parse().ok())
            .collect();
        if times.len() == 2 {
            break times;
        }
        assert!(Instant::now() < until, "{replies}");
        worker.run_one_turn(0, &Purpose::Serve, &mut service);
        client.read_replies();
    };
    assert!(of_one_turn[1] >= of_one_turn[0] + 3, "{of_one_turn:?}");
}
