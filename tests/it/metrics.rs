//! The metrics: in a form that Prometheus reads, and true over deaths, respawns and reloads.

mod clients;

use std::io::Write;
use std::process::{Command, Stdio};

use fdpassd::testing::{Client, eventually};
use serde_json::json;

use crate::common::faulty::{self, Execution};
use crate::common::metrics::{samples, sum, text};
use crate::common::needs::skip;
use crate::common::{kernel, start};

#[test]
fn requests_are_counted_by_method_and_result() {
    let daemon = faulty::start("workers.count = 2");
    daemon.wait_for_workers();
    let ask = |client: &mut Client| {
        for method in [
            "ping",
            "ping",
            "whoami",
            "no_such_method",
            "panic",
            "methods",
        ] {
            let _ = client.call(
                method,
                if method == "panic" {
                    json!("oh")
                } else {
                    json!(null)
                },
            );
        }
    };
    // How long a request took is recorded after the sending of its reply, which the client may have before.
    let noted = |count: u32| {
        eventually("all requests are noted", || {
            let now = samples(&daemon);
            (now["fdpassd_request_duration_seconds_count"] == f64::from(count)).then_some(now)
        })
    };
    let mut client = daemon.connect();
    ask(&mut client);
    let mut before = noted(6);
    for round in 2..5 {
        match round {
            2 => (0..2).for_each(|seat| daemon.kill_worker(seat)),
            3 => drop(daemon.reload().expect("it is applied")),
            _ => drop(
                daemon
                    .ctl_with("scale", json!({ "count": 1 }))
                    .expect("it is done"),
            ),
        }
        ask(&mut client);
        let now = noted(6 * round);
        for (method, result, each) in [
            ("ping", "ok", 2),
            ("whoami", "ok", 1),
            ("panic", "error", 1),
            ("methods", "ok", 1),
            ("other", "error", 1),
            ("other", "ok", 0),
        ] {
            let name = format!("fdpassd_requests_total{{method=\"{method}\",result=\"{result}\"}}");
            assert_eq!(
                now.get(&name).copied(),
                Some(f64::from(each * round)),
                "{name}"
            );
        }
        assert_eq!(
            now["fdpassd_request_duration_seconds_bucket{le=\"+Inf\"}"],
            f64::from(6 * round)
        );
        assert_eq!(now["fdpassd_handler_panics_total"], f64::from(round));
        // But for seats that there are no more, nothing that is counted goes away or goes back.
        for (name, value) in before
            .iter()
            .filter(|(name, _)| is_counter(name) && !name.contains("worker="))
        {
            assert!(
                now.get(name).is_some_and(|now| now >= value),
                "{name} was {value}, is {:?}",
                now.get(name)
            );
        }
        before = now;
    }
}

#[test]
fn deaths_are_counted_by_cause_and_moves_by_reason() {
    // Only where a worker must be found stuck: on a busy machine another one may be taken for it, and its clients move.
    let with_stalls_after = |time: &str| {
        let limits = format!("{{ request-timeout = \"4s\", stall-timeout = \"{time}\" }}");
        format!("workers.count = 2\nlimits = {limits}")
    };
    let daemon = faulty::start(&with_stalls_after("1h"));
    daemon.wait_for_workers();
    let mut idle: Vec<Client> = Vec::new();
    let mut client = daemon.connect();
    client.call("ping", 1).expect("a pong");
    (0..2).for_each(|seat| daemon.kill_worker(seat));
    daemon
        .reload_with(&with_stalls_after("100ms"))
        .expect("it is applied");
    for (method, params) in [
        ("abort", json!(null)),
        ("exit", json!(7)),
        ("livelock", json!(null)),
    ] {
        // So that the worker with the least to do, which is the next one to be harmed, has some.
        idle.extend((0..5).map(|_| daemon.connect()));
        idle.iter_mut()
            .for_each(|client| drop(client.call("ping", 1).expect("a pong")));
        let deaths = daemon.status().deaths_total;
        client.call(method, params).expect_err("its worker ends");
        daemon.wait_until("its worker is collected", |status| {
            status.deaths_total > deaths
        });
        daemon.wait_for_workers();
        client = daemon.connect();
    }
    daemon
        .reload_with(&with_stalls_after("1h"))
        .expect("it is applied");
    let now = samples(&daemon);
    for (cause, count) in [
        ("signal", 2.0),
        ("crash", 1.0),
        ("exit", 1.0),
        ("timeout", 1.0),
    ] {
        assert_eq!(
            now[&format!("fdpassd_worker_deaths_total{{cause=\"{cause}\"}}")],
            count,
            "{cause}"
        );
    }
    assert!(now["fdpassd_rescues_total{cause=\"signal\"}"] > 0.0);
    let rescued: f64 = sum(&now, "fdpassd_rescues_total");
    assert_eq!(rescued, now["fdpassd_moves_total{reason=\"death\"}"]);
    assert!(
        now["fdpassd_moves_total{reason=\"stall\"}"] > 0.0
            && now["fdpassd_worker_stalls_total"] >= 1.0
    );
    assert_eq!(
        sum(&now, "fdpassd_moves_total"),
        daemon.status().moved_total as f64
    );
    let before = now["fdpassd_moves_total{reason=\"drain\"}"];
    daemon.ctl("recycle").expect("it is done");
    let held = daemon
        .status()
        .workers
        .iter()
        .max_by_key(|worker| worker.clients)
        .and_then(|worker| worker.id);
    daemon
        .ctl_with("hold", json!({ "worker": held }))
        .expect("it is done");
    let now = samples(&daemon);
    assert!(now["fdpassd_moves_total{reason=\"drain\"}"] >= before + 10.0);
    assert!(now["fdpassd_moves_total{reason=\"hold\"}"] > 0.0);
    assert_eq!(now["fdpassd_workers{state=\"held\"}"], 1.0);
}

#[test]
fn reloads_limits_and_current_values_are_in_the_metrics() {
    let daemon = start("workers.count = 1\nlimits.max-clients-per-address = 2");
    daemon.wait_for_workers();
    let before = samples(&daemon);
    assert_eq!(
        (
            before["fdpassd_config_last_reload_successful"],
            before["fdpassd_config_generation"]
        ),
        (1.0, 1.0)
    );
    daemon
        .reload_with("workers.count = 0")
        .expect_err("it is rejected");
    let rejected = samples(&daemon);
    assert_eq!(rejected["fdpassd_config_last_reload_successful"], 0.0);
    assert_eq!(rejected["fdpassd_reloads_total{result=\"rejected\"}"], 1.0);
    let applied_at = "fdpassd_config_last_reload_success_timestamp_seconds";
    assert_eq!(rejected[applied_at], before[applied_at]);
    daemon
        .reload_with("workers.count = 2\nlimits.max-clients-per-address = 2")
        .expect("it is applied");
    let held: Vec<Client> = (0..2)
        .map(|_| {
            let mut client = daemon.connect();
            client.call("ping", 1).expect("a pong");
            client
        })
        .collect();
    daemon
        .connect()
        .replies()
        .iter()
        .for_each(|reply| assert_eq!(reply.name, "error"));
    let now = samples(&daemon);
    assert_eq!(now["fdpassd_config_last_reload_successful"], 1.0);
    assert_eq!(now["fdpassd_reloads_total{result=\"applied\"}"], 1.0);
    assert_eq!(
        now["fdpassd_clients_rejected_total{reason=\"per_address\"}"],
        1.0
    );
    assert_eq!(
        (
            now["fdpassd_clients{state=\"leased\"}"],
            now["fdpassd_clients_accepted_total"]
        ),
        (2.0, 3.0)
    );
    assert_eq!(
        (now["fdpassd_client_skew_ratio"], now["fdpassd_accepting"]),
        (1.0, 1.0)
    );
    // The worker that is replaced has descriptors of the master until it has ended.
    eventually("as many descriptors are open as are counted", || {
        let now = samples(&daemon);
        let open = now.get("fdpassd_open_fds").copied();
        let counted = kernel::descriptors(daemon.pid()).len() as f64;
        open.is_none_or(|open| (open - counted).abs() <= 3.0)
            .then_some(())
    });
    daemon.ctl("drain").expect("it is done");
    let now = samples(&daemon);
    assert_eq!(
        (now["fdpassd_accepting"], now["fdpassd_draining"]),
        (0.0, 1.0)
    );
    drop(held);
}

#[test]
fn a_hung_worker_does_not_delay_the_metrics() {
    let daemon = faulty::start("workers.count = 2\nlimits.stall-timeout = \"10m\"");
    daemon.wait_for_workers();
    let blocked = Execution::start(&daemon);
    let text = text(&daemon);
    for pid in daemon.worker_pids() {
        assert!(!text.contains(&format!("=\"{pid}\"")), "{text}");
    }
    let workers: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("fdpassd_worker_clients{"))
        .collect();
    assert_eq!(workers.len(), 2, "{workers:?}");
    drop(blocked.finish());
}

#[test]
fn prometheus_own_checker_finds_nothing_wrong() {
    let daemon =
        faulty::start("listen = [\"127.0.0.1:0\", \"unix:{dir}/rpc.sock\"]\nworkers.count = 2");
    daemon.wait_for_workers();
    let mut client = daemon.connect();
    (0..20).for_each(|i| drop(client.call("whoami", i)));
    let mut command = Command::new("promtool");
    command
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let Ok(mut promtool) = command.spawn() else {
        return skip(
            "promtool",
            "there is no promtool (Debian's package prometheus)",
        );
    };
    promtool
        .stdin
        .take()
        .expect("piped")
        .write_all(text(&daemon).as_bytes())
        .expect("it reads all");
    let said = promtool.wait_with_output().expect("it ends");
    let words =
        String::from_utf8_lossy(&said.stdout).into_owned() + &String::from_utf8_lossy(&said.stderr);
    assert!(said.status.success() && words.trim().is_empty(), "{words}");
}

#[test]
fn every_family_is_described_once_and_before_its_samples() {
    let daemon = start("workers.count = 1");
    daemon.wait_for_workers();
    let (mut described, mut family) = (Vec::new(), String::new());
    for line in text(&daemon).lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            family = help.split(' ').next().expect("a name").to_owned();
            assert!(help.len() > family.len() + 5, "{line}");
            assert!(!described.contains(&family), "{family} is described twice");
            described.push(family.clone());
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').expect("a name and a kind");
            assert_eq!(name, family);
            assert_eq!(kind == "counter", is_counter(name), "{line}");
        } else {
            assert!(line.starts_with(&family), "{line} stands under {family}");
        }
    }
    assert!(described.len() > 30, "{described:?}");
}

fn is_counter(name: &str) -> bool {
    let name = name.split('{').next().unwrap_or_default();
    name.ends_with("_total")
}
