//! Lists of clients, page by page, and the configuration, key by key; kick and log level.

use std::collections::BTreeMap;

use fdpassd::proto::control::{Checked, ClientStatus, ClientsPage, Effective, KeyOrigin, PAGE_LEN};
use fdpassd::testing::{Client, Running, eventually};
use serde_json::{Value, json};

use crate::common::faulty::{self, Execution};
use crate::common::{kernel, start};

#[test]
fn a_client_is_shown_with_its_details_also_after_a_move() {
    let daemon = start(
        "listen = [\"127.0.0.1:0\", \"unix:{dir}/rpc.sock\"]\nworkers.count = 2\nlimits.stall-timeout = \"1h\"",
    );
    daemon.wait_for_workers();
    let mut asking = daemon.connect();
    (0..5).for_each(|i| drop(asking.call("ping", i).expect("a pong")));
    let mut halfway = daemon.connect();
    halfway.call("ping", 1).expect("a pong");
    let frame = halfway.frame("{\"in\":\"ping\",\"params\":7}");
    halfway.send(&frame[..9]);
    let mut local = Client::connect(&daemon.addresses()[1]);
    local.call("ping", 1).expect("a pong");

    let shown = eventually("half a frame is in the shared memory", || {
        let shown = all(&daemon);
        shown
            .iter()
            .any(|client| client.bytes == 9)
            .then_some(shown)
    });
    assert_eq!(shown.len(), 3);
    let tcp = daemon.addresses()[0].to_string();
    assert_eq!(shown[0].id.0, 1);
    let busy = shown
        .iter()
        .find(|client| client.requests == 5)
        .expect("five pings");
    assert_eq!(
        (busy.listener.as_deref(), busy.moves, busy.bytes),
        (Some(tcp.as_str()), 0, 0)
    );
    assert!(
        busy.peer.starts_with("127.0.0.1:") && busy.worker.is_some(),
        "{busy:?}"
    );
    assert!(
        busy.idle_seconds < 10.0 && busy.age_seconds < 10.0,
        "{busy:?}"
    );
    let unix = shown
        .iter()
        .find(|client| client.peer.starts_with("pid "))
        .expect("the Unix client");
    assert_eq!(
        unix.peer,
        format!("pid {} (uid {})", std::process::id(), kernel::user())
    );
    assert!(
        unix.listener
            .as_deref()
            .is_some_and(|address| address.ends_with("rpc.sock")),
        "{unix:?}"
    );

    daemon.ctl("recycle").expect("it is done");
    let moved = all(&daemon);
    // A client that moved to the other worker before its replacement has moved twice.
    assert!(
        moved.iter().all(|client| (1..=2).contains(&client.moves)),
        "{moved:?}"
    );
    let bytes = moved.iter().map(|client| client.bytes).sum::<u64>();
    assert_eq!(
        (
            bytes,
            moved.iter().map(|client| client.requests).sum::<u64>()
        ),
        (9, 7)
    );
    halfway.send(&frame[9..]);
    assert_eq!(halfway.reply().value().expect("a pong"), 7);

    daemon
        .reload_with("listen = [\"unix:{dir}/rpc.sock\"]\nworkers.count = 2")
        .expect("it is applied");
    daemon.wait_until("the TCP listener is gone", |status| {
        status.listeners.len() == 1
    });
    let left = all(&daemon);
    assert_eq!(
        left.iter()
            .filter(|client| client.listener.is_none())
            .count(),
        2,
        "{left:?}"
    );
}

#[test]
fn clients_come_in_pages_of_a_thousand() {
    let daemon =
        start("workers = { count = 3, dispatch = \"round-robin\" }\nlimits.stall-timeout = \"1h\"");
    daemon.wait_for_workers();
    // One after the other, so that the workers really take turns.
    let serve = |_| {
        let mut client = daemon.connect();
        client.call("ping", 1).expect("a result");
        client
    };
    let _held: Vec<Client> = (0..2500).map(serve).collect();
    let (mut after, mut pages, mut found) = (Value::Null, 0, BTreeMap::new());
    loop {
        let page = page(&daemon, json!({ "after": after }));
        assert!(page.clients.len() <= PAGE_LEN);
        pages += 1;
        found.extend(page.clients.into_iter().map(|client| (client.id, client)));
        let Some(next) = page.next else { break };
        after = serde_json::to_value(next).expect("a cursor");
    }
    assert_eq!((pages, found.len()), (3, 2500));
    let worker = daemon.status().workers[1].id.expect("it is ready");
    let of_one = page(&daemon, json!({ "worker": worker }));
    let expected = found
        .values()
        .filter(|client| client.worker == Some(worker))
        .count();
    assert_eq!((of_one.clients.len(), of_one.next), (expected, None));
    assert_eq!(expected, 833, "the second of three workers, in turn");
    assert_eq!(
        page(
            &daemon,
            json!({ "after": { "worker": u64::MAX, "slot": u32::MAX } })
        )
        .clients,
        []
    );
    // The worker that was asked for is before the position, or after it.
    for after in [u64::MAX, worker.0 + 1] {
        let params = json!({ "worker": worker, "after": { "worker": after, "slot": 0 } });
        let behind = page(&daemon, params);
        assert_eq!((behind.clients, behind.next), (vec![], None), "{after}");
    }
    let params = json!({ "worker": worker, "after": { "worker": 0, "slot": u32::MAX } });
    assert_eq!(page(&daemon, params).clients.len(), expected);
    let fault = daemon
        .ctl_with("clients", json!({ "worker": 999 }))
        .expect_err("there is none");
    assert_eq!(fault.to_string(), "refused: there is no worker 999");
    for params in [
        json!({ "after": 1 }),
        json!({ "after": { "worker": 1 } }),
        json!({ "sort": "age" }),
    ] {
        assert_eq!(
            daemon
                .ctl_with("clients", params)
                .expect_err("it is refused")
                .code(),
            "bad_params"
        );
    }
}

#[test]
fn a_kicked_client_is_closed_at_once_and_no_other_notices() {
    let daemon = faulty::start("workers.count = 1\nlimits.stall-timeout = \"10m\"");
    daemon.wait_for_workers();
    let mut other = daemon.connect();
    other.call("ping", 1).expect("a pong");
    let mut idle = daemon.connect();
    idle.call("ping", 1).expect("a pong");
    let blocked = Execution::start(&daemon);
    let ids: Vec<u64> = all(&daemon).iter().map(|client| client.id.0).collect();
    assert_eq!(ids.len(), 3);
    for client in &ids[1..] {
        let told = daemon
            .ctl_with("kick", json!({ "client": client }))
            .expect("it is done");
        assert_eq!(told["client"], *client);
    }
    idle.expect_end();
    // It is in a turn: the connection ends, the method continues, and then the worker detects it.
    let mut executing = blocked.into_client();
    executing.expect_end();
    let fault = daemon
        .ctl_with("kick", json!({ "client": ids[1] }))
        .expect_err("it is gone");
    assert_eq!(
        fault.to_string(),
        format!("refused: there is no client {}", ids[1])
    );
    daemon.kill_worker(0);
    assert_eq!(other.call("ping", 2).expect("a pong"), 2);
    let status = daemon.wait_until("one client is left", |status| status.clients == 1);
    assert_eq!(status.lost_total, 0);
    assert_eq!(
        daemon
            .ctl_with("kick", json!({}))
            .expect_err("which?")
            .code(),
        "bad_params"
    );
}

#[test]
fn the_configuration_is_shown_with_where_each_value_comes_from() {
    let daemon = start("workers.count = 2\n[limits]\nmax-frame = \"64KiB\"");
    let of = |key: &str| {
        let shown: Effective =
            serde_json::from_value(daemon.ctl("config").expect("it is told")).expect("keys");
        let key = shown
            .keys
            .into_iter()
            .find(|other| other.key == key)
            .expect("there is such a key");
        (key.value, key.origin)
    };
    assert_eq!(of("workers.count"), (Some("2".to_owned()), KeyOrigin::File));
    assert_eq!(
        of("limits.max-frame"),
        (Some("\"64KiB\"".to_owned()), KeyOrigin::File)
    );
    assert_eq!(
        of("limits.drain-timeout"),
        (Some("\"30s\"".to_owned()), KeyOrigin::Default)
    );
    assert_eq!(
        of("control.mode"),
        (Some("\"0660\"".to_owned()), KeyOrigin::Default)
    );
    assert_eq!(of("metrics.listen"), (None, KeyOrigin::Default));
    daemon
        .ctl_with("scale", json!({ "count": 3 }))
        .expect("it is done");
    daemon
        .ctl_with("log-level", json!({ "level": "debug" }))
        .expect("it is done");
    assert_eq!(
        of("workers.count"),
        (Some("3".to_owned()), KeyOrigin::Runtime)
    );
    assert_eq!(
        of("log.level"),
        (Some("\"debug\"".to_owned()), KeyOrigin::Runtime)
    );
    daemon
        .reload_with("log.level = \"info\"")
        .expect("it is applied");
    assert_eq!(
        of("workers.count"),
        (
            Some(format!("\"auto\" # {}", daemon.status().count)),
            KeyOrigin::Default
        )
    );
    assert_eq!(
        of("limits.max-clients").0,
        Some(format!("\"auto\" # {}", daemon.status().max_clients))
    );
    assert_eq!(
        of("log.level"),
        (Some("\"info\"".to_owned()), KeyOrigin::File)
    );
}

#[test]
fn a_check_shows_what_a_reload_would_change() {
    let daemon = start("workers.count = 2");
    let check = || -> Checked {
        serde_json::from_value(daemon.ctl("check").expect("it is good")).expect("changes")
    };
    assert_eq!(check().changes, []);
    daemon.write_config("workers.count = 2\nlimits.max-frame = \"2MiB\"\nlog.level = \"warn\"");
    let changes: Vec<String> = check()
        .changes
        .iter()
        .map(|c| format!("{} {:?} {:?}", c.key, c.from, c.to))
        .collect();
    assert_eq!(
        changes,
        [
            r#"limits.max-frame Some("\"1MiB\"") Some("\"2MiB\"")"#,
            r#"log.level Some("\"info\"") Some("\"warn\"")"#
        ]
    );
    for (config, words) in [
        ("workers.cuont = 2", "unknown key `cuont`"),
        (
            "control.socket = \"/tmp/elsewhere.sock\"",
            "control.socket cannot be changed by a reload",
        ),
    ] {
        daemon.write_config(config);
        let mut client = daemon.ctl_request("check", ());
        let result: Value = serde_json::from_str(client.reply().result.get()).expect("JSON");
        assert_eq!(result["code"], "rejected", "{result}");
        assert!(
            result["message"]
                .as_str()
                .is_some_and(|message| message.contains(words)),
            "{result}"
        );
        assert!(
            result["place"]["display"]
                .as_str()
                .is_some_and(|display| display.contains('^')),
            "{result}"
        );
    }
    let status = daemon.status();
    assert_eq!((status.generation.0, status.last_reload), (1, None));

    // A reload undoes what was changed since.
    daemon.write_config("workers.count = 2");
    daemon
        .ctl_with("scale", json!({ "count": 1 }))
        .expect("it is done");
    daemon
        .ctl_with("log-level", json!({ "level": "debug" }))
        .expect("it is done");
    let changes: Vec<_> = check()
        .changes
        .into_iter()
        .map(|change| (change.key, change.from, change.to))
        .collect();
    let change = |key: &str, from: &str, to: &str| {
        (key.to_owned(), Some(from.to_owned()), Some(to.to_owned()))
    };
    assert_eq!(
        changes,
        [
            change("workers.count", "1", "2"),
            change("log.level", "\"debug\"", "\"info\"")
        ]
    );
}

#[test]
fn log_level_applies_to_all_processes_until_the_next_reload() {
    let daemon = faulty::start("workers.count = 1\nlimits.frame-timeout = \"100ms\"");
    daemon.wait_for_workers();
    let level =
        |params: Value| daemon.ctl_with("log-level", params).expect("it is told")["level"].clone();
    assert_eq!(level(json!({})), "info");
    assert_eq!(level(json!({ "level": "debug" })), "debug");
    // Both log at this level only: the worker a client whose frame is late, the master every client.
    let trickle = || {
        let mut client = daemon.connect();
        client.send([3, 0]);
        let mut rest = Vec::new();
        client
            .replies()
            .iter()
            .for_each(|reply| rest.push(reply.name.clone()));
        assert_eq!(rest, ["error"]);
    };
    trickle();
    daemon.wait_for_log("exceeded its timeout (");
    daemon.wait_for_log(" accepted on ");
    daemon.kill_worker(0);
    let before = count(&daemon, "exceeded its timeout (");
    trickle();
    eventually("a worker that came later does so, too", || {
        (count(&daemon, "exceeded its timeout (") > before).then_some(())
    });
    daemon.reload().expect("it is applied");
    assert_eq!(level(json!({})), "info");
    let before = count(&daemon, "exceeded its timeout (");
    trickle();
    assert_eq!(count(&daemon, "exceeded its timeout ("), before);
    let fault = daemon
        .ctl_with("log-level", json!({ "level": "loud" }))
        .expect_err("there is no such level");
    assert_eq!(fault.code(), "bad_params", "{fault}");
}

fn count(daemon: &Running, words: &str) -> usize {
    daemon.stderr().matches(words).count()
}

#[track_caller]
fn page(daemon: &Running, params: Value) -> ClientsPage {
    serde_json::from_value(daemon.ctl_with("clients", params).expect("they are told"))
        .expect("a page")
}

/// All of them, in the order of their ids. There are not many.
#[track_caller]
fn all(daemon: &Running) -> Vec<ClientStatus> {
    let page = page(daemon, json!({}));
    assert_eq!(page.next, None);
    let mut clients = page.clients;
    clients.sort_by_key(|client| client.id);
    clients
}
