//! One connection, shared by threads, while the processes that serve it are replaced.

use std::path::Path;

use fdpassd::testing::{Running, ServiceManager};

use super::crowd::Crowd;
use super::{client, options};
use crate::common::FDPASSD;
use crate::common::restart::{How, restart};

const CONFIG: &str = "workers.count = 2";

#[test]
fn reloads_and_kills_of_workers_fail_no_call() {
    let daemon = crate::common::start(CONFIG);
    daemon.wait_for_workers();
    let client = client(&[&daemon], options());
    let crowd = Crowd::start(&client);
    crowd.wait_for(200);
    for seat in [0, 1, 0, 1, 0, 1] {
        daemon.kill_worker(seat);
        crowd.wait_for(50);
        daemon.reload().expect("it is applied");
        crowd.wait_for(50);
    }
    let answered = crowd.finish();
    let status = daemon.status();
    // The connection has outlived all of them.
    assert_eq!(
        (
            status.accepted_total,
            status.lost_total,
            status.errors_total
        ),
        (1, 0, 0)
    );
    assert!(status.requests_total >= answered);
}

#[test]
fn restarts_of_the_daemon_fail_no_call() {
    for how in [How::Term, How::Kill, How::Upgrade] {
        let manager = ServiceManager::new();
        let daemon = manager.setup(FDPASSD, CONFIG).start().expect("it serves");
        daemon.wait_for_workers();
        let client = client(&[&daemon], options());
        let crowd = Crowd::start(&client);
        crowd.wait_for(200);
        let daemon: Running = restart(&manager, daemon, how, Path::new(FDPASSD));
        crowd.wait_for(200);
        crowd.finish();
        let status = daemon.status();
        assert_eq!(
            (status.accepted_total, status.lost_total),
            (1, 0),
            "{how:?}"
        );
    }
}
