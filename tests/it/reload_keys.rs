//! Each key of the configuration has its effect after a reload, and loses it again by the next one.

mod control_and_log;
mod limits;
mod listeners;
mod metrics;
mod workers;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use fdpassd::testing::{Running, eventually};

use crate::app_keys;
use crate::common::faulty::{self, Switch};
use crate::common::let_pass;

/// A key, two configurations that differ in nothing but it, and what shows that each is in force.
struct Row {
    key: &'static str,
    configs: [&'static str; 2],
    /// Shows the effect of the key. The last argument is whether the second configuration is in force: then the effect
    /// is waited for.
    probe: fn(&Running, &Switch, bool) -> String,
    shows: [&'static str; 2],
}

/// All that the shipped file shows is there: in it a line begins with `#` and the key.
#[test]
fn the_rows_cover_every_key() {
    let text = include_str!("../../config/fdpassd.toml");
    let key = |line: &'static str| {
        let (key, _) = line.strip_prefix('#')?.split_once(" = ")?;
        key.trim().rsplit('.').next()
    };
    let mut keys: BTreeSet<&str> = text
        .lines()
        .filter_map(key)
        .filter(|key| !key.contains([' ', '"']))
        .collect();
    // Keys of an entry of `listen`, which has a sentence for a change, or with a name that two sections share. One must
    // not change: see reload.rs.
    keys.extend([
        "byte-order",
        "backlog",
        "freebind",
        "proxy",
        "proxy-from",
        "mode",
        "owner",
        "group",
        "control.mode",
        "metrics.listen",
        "agent.listen",
    ]);
    keys.retain(|key| !["socket", "address"].contains(key));
    let rows = [
        listeners::LISTEN,
        listeners::OWNERS,
        workers::WORKERS,
        limits::LIMITS,
        metrics::METRICS,
        control_and_log::CONTROL_AND_LOG,
        control_and_log::GROUPS,
    ];
    let rows = rows.into_iter().flatten().map(|row| row.key);
    // Those have tests of their own: restart-grace above, rebalance in rebalance.rs, ipv6-prefix in limits.rs, freebind
    // in listeners.rs, and those of an app in app_keys.rs.
    let covered: BTreeSet<&str> = rows
        .chain(["restart-grace", "rebalance", "ipv6-prefix", "freebind"])
        .chain(app_keys::KEYS)
        .collect();
    assert_eq!(covered, keys.into_iter().collect());
}

/// From the first configuration to the second and back.
#[track_caller]
fn check(rows: &[Row]) {
    let (daemon, switch) = faulty::start_with_switch("workers.count = 2");
    daemon.wait_for_workers();
    for Row {
        key,
        configs,
        probe,
        shows,
    } in rows
    {
        for i in [0, 1, 0] {
            let count = if configs[i].contains("workers.count") {
                ""
            } else {
                "workers.count = 2\n"
            };
            let reloaded = daemon.reload_with(&format!("{count}{}", configs[i]));
            assert!(reloaded.is_ok(), "{key}: {reloaded:?}");
            let shown = || {
                daemon.wait_until("no client is there", |status| {
                    status.clients == 0 && status.leaving.is_empty()
                });
                probe(&daemon, &switch, i == 1)
            };
            assert_eq!(shown(), shows[i], "{key}: {:?}", configs[i]);
        }
        daemon.wait_until("nobody is there", |status| status.clients == 0);
    }
    assert_eq!(daemon.status().lost_total, 0);
}

fn mode(daemon: &Running, name: &str) -> String {
    let found = fs::metadata(daemon.directory().join(name)).expect("it is there");
    format!("{:o}", found.permissions().mode() & 0o777)
}

/// Whether that comes true: it is waited for if it is expected, else it may not have come after a while.
#[track_caller]
pub fn comes_true(is_expected: bool, mut is_so: impl FnMut() -> bool) -> String {
    if is_expected {
        eventually("the key has its effect", || is_so().then_some(()));
        return true.to_string();
    }
    let_pass(Duration::from_millis(300));
    is_so().to_string()
}
