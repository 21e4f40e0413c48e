//! Counters and histograms of a daemon's own: `fdpassd_app_asked_total` and `fdpassd_app_asked_size` of
//! `examples/faulty.rs`.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use fdpassd::testing::{Running, ServiceManager, eventually};

use crate::common::faulty::{self, example};
use crate::common::http::{get, metrics_address};
use crate::common::program::ctl;
use crate::common::restart::wait_for_confirmed_store;
use crate::common::start;

/// Returns the value of a sample, by its name and labels.
fn sample(text: &str, name: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line?.trim().parse().ok()
}

fn asked(daemon: &Running) -> f64 {
    let text = ctl(daemon, &["metrics"]).out;
    sample(&text, "fdpassd_app_asked_total").unwrap_or_else(|| panic!("not in {text}"))
}

#[test]
fn metrics_of_a_daemon_are_shown_with_the_others() {
    let daemon = faulty::start("workers.count = 2\nmetrics.listen = \"127.0.0.1:0\"");
    for size in [0.25, 0.5, 3.0, 100.0] {
        daemon.call("measure", size).expect("a result");
    }
    for text in [
        ctl(&daemon, &["metrics"]).out,
        get(&metrics_address(&daemon), "/metrics")
            .status_and_body()
            .1
            .to_owned(),
    ] {
        for lines in [
            "# HELP fdpassd_app_asked_total Calls of \"measure\".\n\
             # TYPE fdpassd_app_asked_total counter\nfdpassd_app_asked_total 4\n",
            "# TYPE fdpassd_app_asked_size histogram\n\
             fdpassd_app_asked_size_bucket{le=\"0.5\"} 2\n\
             fdpassd_app_asked_size_bucket{le=\"10\"} 3\n\
             fdpassd_app_asked_size_bucket{le=\"+Inf\"} 4\n\
             fdpassd_app_asked_size_sum 103.75\nfdpassd_app_asked_size_count 4\n",
        ] {
            assert!(text.contains(lines), "{lines} is not in {text}");
        }
    }
}

/// Returns the length of a worker's shared memory, and where in it the part ends that the worker maps.
#[track_caller]
fn mapped_part(pid: u32) -> (u64, u64) {
    let is_shm = |path: &str| path.starts_with("/memfd:shm ");
    let open = fs::read_dir(format!("/proc/{pid}/fd")).expect("it runs");
    let mut open = open.map(|entry| entry.expect("it runs").path());
    let shm = open.find(|fd| fs::read_link(fd).is_ok_and(|file| is_shm(&file.to_string_lossy())));
    let length = fs::metadata(shm.expect("shared memory is open"))
        .expect("it runs")
        .len();
    let number = |digits: &str| u64::from_str_radix(digits, 16).expect("hexadecimal");
    let end_in_file = |line: &str| {
        let (fields, path) = line.split_at_checked(line.find('/')?)?;
        let mut fields = fields.split_whitespace();
        let (begin, end) = fields.next().filter(|_| is_shm(path))?.split_once('-')?;
        let offset = number(fields.nth(1)?);
        Some(offset + number(end) - number(begin))
    };
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("it runs");
    let last = maps.lines().filter_map(end_in_file).max();
    (length, last.expect("shared memory is mapped"))
}

#[test]
fn a_worker_without_metrics_of_its_own_maps_nothing_for_them() {
    let [without, with] = [
        start("workers.count = 1"),
        faulty::start("workers.count = 1"),
    ]
    .map(|daemon| {
        daemon.wait_for_workers();
        mapped_part(daemon.worker_pids()[0])
    });
    assert_eq!(without.0, with.0, "the length does not depend on it");
    let metrics = 36 << 10;
    assert!(without.1 + metrics <= with.1, "{without:?}, {with:?}");
}

#[test]
fn a_kill_of_a_worker_loses_no_count() {
    let daemon = faulty::start("workers.count = 2");
    let (is_over, answered, crashed) =
        (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut client = daemon.connect();
                while !is_over.load(Ordering::Relaxed) {
                    let count = match client.call("measure", 1.0) {
                        Ok(_) => &answered,
                        Err(_) => &crashed,
                    };
                    count.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for round in 0..20 {
            let before = answered.load(Ordering::Relaxed);
            eventually("requests are answered", || {
                (answered.load(Ordering::Relaxed) > before + 50).then_some(())
            });
            daemon.kill_worker(round % 2);
        }
        daemon.reload().expect("it is good");
        daemon.ctl("recycle").expect("there are workers");
        is_over.store(true, Ordering::Relaxed);
    });
    let (answered, crashed) = (answered.into_inner(), crashed.into_inner());
    let counted = asked(&daemon) as u64;
    // A request that crashed may have counted before.
    assert!(
        (answered..=answered + crashed).contains(&counted),
        "{counted} of {answered} and {crashed}"
    );
}

#[test]
fn counts_outlive_panics_upgrades_and_restarts() {
    let (manager, program) = (ServiceManager::new(), example("faulty"));
    let config = "workers.count = 2";
    let mut daemon = manager.setup(&program, config).start().expect("it serves");
    let mut client = daemon.connect();
    let mut count = 0.0;
    for event in ["panic", "upgrade", "TERM", "KILL", "TERM"] {
        client.call("measure", 1.0).expect("a result");
        count += 1.0;
        assert_eq!(asked(&daemon), count, "before {event}");
        match event {
            "panic" => drop(client.call("panic", "x").expect_err("it panics")),
            "upgrade" => {
                let upgraded = ctl(&daemon, &["upgrade"]);
                assert_eq!(upgraded.code, Some(0), "{upgraded:?}");
            }
            signal => {
                wait_for_confirmed_store(&daemon);
                daemon.signal(signal);
                let next = manager.setup(&program, config);
                daemon = next.start_after(daemon).expect("the next master serves");
            }
        }
        assert_eq!(asked(&daemon), count, "after {event}");
    }
    assert_eq!(daemon.status().lost_total, 0);
}
