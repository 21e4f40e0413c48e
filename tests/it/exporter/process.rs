//! The process: its restarts, its end, its descriptors and its log.

use std::fs;

use fdpassd::testing::eventually;
use nix::sys::signal::Signal;

use crate::common::http::{exporter, get, metrics_address};
use crate::common::program::run;
use crate::common::{FDPASSD, kernel, start, while_idle};

use super::{TCP, tasks};

#[test]
fn a_killed_exporter_is_restarted_and_is_no_worker_death() {
    let daemon = start(TCP);
    let address = metrics_address(&daemon);
    let mut client = daemon.connect();
    for (round, least) in [100, 150, 300].into_iter().enumerate() {
        let killed = exporter(&daemon);
        kernel::send(killed, Signal::SIGKILL);
        // A request waits until then.
        assert_eq!(get(&address, "/healthz").status_and_body(), (200, "ok\n"));
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
    let (masters, exporters) = while_idle(&daemon, || (own(daemon.pid()), own(after)));
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
    // The channel and the listener; both ends of the pipe by which threads report that they are done; the poller.
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
