//! The verbs that change something: their requests and their results.

use serde_json::json;

use super::*;
use crate::proto::control::{DrainMode, DrainResult, Kicked, Upgraded};
use crate::proto::names::ClientId;

#[test]
fn stop_waits_for_the_end() {
    let stopped = |killed| reply("stop", &Stopped { pid: 4711, killed });
    let ran = Daemon::that_replies([daemons_version(), stopped(0)]).asked(&["stop"]);
    assert_eq!(
        (ran.exit, ran.out.as_str()),
        (ExitStatus::Done, "fdpassd (pid 4711) stopped\n")
    );
    let ran = Daemon::that_replies([daemons_version(), stopped(2)]).asked(&["stop"]);
    assert_eq!(
        ran.out,
        "fdpassd (pid 4711) stopped; killed 2 workers that did not finish in time\n"
    );
    let ran = Daemon::that_replies([daemons_version(), stopped(0)]).asked(&["stop", "--json"]);
    assert_eq!(ran.out, "{\"pid\":4711,\"killed\":0}\n");

    let ran = Daemon::start(move |mut client| {
        asked_for(&mut client);
        send_reply(&mut client, &daemons_version());
        asked_for(&mut client);
        send_reply(&mut client, &stopped(0));
        let _ = client.read_to_end(&mut Vec::new()); // still there until fdpassctl gives up
    })
    .asked(&["stop", "--timeout", "3s"]);
    let said = "fdpassctl: fdpassd (pid 4711) is still stopping; it continues, as the verb \"status\" shows\n";
    assert_eq!((ran.exit, ran.err.as_str()), (ExitStatus::StillGoing, said));
}

/// Returns the request after that of the version, and how fdpassctl ends after `result`.
fn asked(arguments: &[&str], verb: &str, result: &impl serde::Serialize) -> (String, Ran) {
    let (tell, told) = mpsc::channel();
    let reply = reply(verb, result);
    let ran = Daemon::start(move |mut client| {
        asked_for(&mut client);
        send_reply(&mut client, &daemons_version());
        tell.send(asked_for(&mut client))
            .expect("it is listened to");
        send_reply(&mut client, &reply);
    })
    .asked(arguments);
    (told.recv().expect("it told before"), ran)
}

#[test]
fn every_change_has_its_request_and_its_result_in_words() {
    let settled =
        |workers, clients| serde_json::to_value(Settled { workers, clients }).expect("plain data");
    let reloaded = |workers, seconds| {
        serde_json::to_value(Reloaded {
            generation: Generation(3),
            workers,
            seconds,
        })
        .expect("plain data")
    };
    let drained = |clients, notice, waiting_at: &[&str]| {
        let waiting_at = waiting_at.iter().map(|address| (*address).to_owned());
        let result = DrainResult {
            workers: 4,
            clients,
            mode: DrainMode::Refuse,
            notice,
            over: None,
            waiting_at: waiting_at.collect(),
        };
        serde_json::to_value(result).expect("plain data")
    };
    let moving = |over: f64| {
        let mut result = drained(7, None, &[]);
        result["move"] = over.into();
        result
    };
    let rebalanced =
        |moves, busy| serde_json::to_value(Rebalanced { moves, busy }).expect("plain data");
    let moves = |moves| rebalanced(moves, 0);
    let moved = |from, to, clients, load| MovedLoad {
        from: WorkerId(from),
        to: WorkerId(to),
        clients,
        load,
    };
    let some = || moves(vec![moved(1, 3, 12, 0.348), moved(1, 2, 1, 0.02)]);
    let upgraded = Upgraded {
        version: "0.2.0".to_owned(),
        workers: 4,
        clients: 1234,
        unchanged: false,
    };
    let kicked = Kicked {
        client: ClientId(17),
        peer: "127.0.0.1:4711\n".to_owned(),
        goaway: false,
    };
    let told = Kicked {
        goaway: true,
        ..kicked.clone()
    };
    let same = Upgraded {
        unchanged: true,
        ..upgraded.clone()
    };
    let cases = [
        (
            "reload",
            r#""reload""#,
            reloaded(4, 0.0352),
            "applied: generation 3, 4 workers ready, in 35 ms",
        ),
        (
            "reload",
            r#""reload""#,
            reloaded(1, 61.0),
            "applied: generation 3, 1 worker ready, in 61 s",
        ),
        (
            "scale 4",
            r#""scale","params":{"count":4}"#,
            settled(4, 0),
            "4 workers are ready",
        ),
        (
            "scale 1",
            r#""scale","params":{"count":1}"#,
            settled(1, 0),
            "1 worker is ready",
        ),
        (
            "recycle all",
            r#""recycle","params":{}"#,
            settled(4, 9),
            "all workers are replaced; 4 workers are ready",
        ),
        (
            "recycle 17",
            r#""recycle","params":{"worker":17}"#,
            settled(1, 9),
            "worker 17 is replaced; 1 worker is ready",
        ),
        (
            "hold 17",
            r#""hold","params":{"worker":17}"#,
            settled(4, 9),
            "worker 17 is held; its clients have moved to other workers",
        ),
        (
            "release 17",
            r#""release","params":{"worker":17}"#,
            settled(4, 9),
            "worker 17 is released",
        ),
        (
            "release r\u{202e}",
            "\"release\",\"params\":{\"method\":\"r\u{202e}\"}",
            settled(4, 9),
            r#"method "r\u{202e}" is released and run again"#,
        ),
        (
            "kick 17",
            r#""kick","params":{"client":17}"#,
            serde_json::to_value(&kicked).expect("plain data"),
            "client 17 (127.0.0.1:4711\\n) is closed",
        ),
        (
            "kick 18",
            r#""kick","params":{"client":18}"#,
            serde_json::to_value(&told).expect("plain data"),
            "client 17 (127.0.0.1:4711\\n) gets a goaway and is closed",
        ),
        (
            "drain --move 5m",
            r#""drain","params":{"wait":false,"move":300.0}"#,
            moving(300.0),
            "new clients are refused; 7 clients are still connected; \
             those that want a goaway get it within 5m",
        ),
        (
            "drain --move 0",
            r#""drain","params":{"wait":false,"move":0.0}"#,
            moving(0.0),
            "new clients are refused; 7 clients are still connected; those that want a goaway get it",
        ),
        (
            "drain",
            r#""drain","params":{"wait":false}"#,
            // Of version 0.1.0.
            settled(4, 2),
            "new clients are not accepted; 2 clients are still connected",
        ),
        (
            "drain --wait --refuse",
            r#""drain","params":{"wait":true,"mode":"refuse"}"#,
            drained(0, None, &[]),
            "new clients are refused; the last client has left",
        ),
        (
            "drain --notice 90s --queue",
            r#""drain","params":{"wait":false,"notice":90.0,"mode":"queue"}"#,
            drained(1, Some(89.1), &["unix:/a", "[::1]:80\x07"]),
            "new clients are served for another 1m30s, then refused; 1 client is still connected\n\
             new clients wait at unix:/a, because systemd has bound the socket\n\
             new clients wait at [::1]:80\\x07, because systemd has bound the socket",
        ),
        (
            "undrain",
            r#""undrain""#,
            settled(4, 1),
            "clients are accepted again",
        ),
        (
            "rebalance",
            r#""rebalance","params":{"dry_run":false}"#,
            some(),
            "12 clients moved from worker 1 to worker 3: 35% of a worker's time\n\
             1 client moved from worker 1 to worker 2: 2% of a worker's time",
        ),
        (
            "rebalance --dry-run",
            r#""rebalance","params":{"dry_run":true}"#,
            some(),
            "12 clients would move from worker 1 to worker 3: 35% of a worker's time\n\
             1 client would move from worker 1 to worker 2: 2% of a worker's time",
        ),
        (
            "rebalance",
            r#""rebalance","params":{"dry_run":false}"#,
            moves(vec![]),
            "already balanced; nothing to move",
        ),
        (
            "rebalance",
            r#""rebalance","params":{"dry_run":false}"#,
            rebalanced(vec![moved(1, 2, 1, 0.02)], 1),
            "1 client moved from worker 1 to worker 2: 2% of a worker's time\n\
             1 client stays, as its request is executing; try again",
        ),
        (
            "rebalance",
            r#""rebalance","params":{"dry_run":false}"#,
            rebalanced(vec![], 1200),
            "1,200 clients stay, as their requests are executing; try again",
        ),
        (
            "upgrade",
            r#""upgrade","params":{}"#,
            serde_json::to_value(&upgraded).expect("plain data"),
            "fdpassd is upgraded to 0.2.0; 4 workers ready, 1,234 clients kept",
        ),
        (
            "upgrade",
            r#""upgrade","params":{}"#,
            serde_json::to_value(&same).expect("plain data"),
            "fdpassd is still 0.2.0: the program has not changed; 4 workers ready, 1,234 clients kept",
        ),
        (
            "upgrade --binary /x",
            r#""upgrade","params":{"binary":"/x"}"#,
            serde_json::to_value(&upgraded).expect("plain data"),
            "fdpassd is upgraded to 0.2.0; 4 workers ready, 1,234 clients kept",
        ),
    ];
    for (line, request, result, said) in cases {
        let arguments: Vec<_> = line.split(' ').collect();
        let (got, ran) = asked(&arguments, arguments[0], &result);
        assert_eq!(got, format!("{{\"in\":{request}}}"));
        assert_eq!(
            (ran.exit, ran.out, ran.err.as_str()),
            (ExitStatus::Done, format!("{said}\n"), ""),
            "{line}"
        );

        // The daemon may be newer, with unknown members.
        let (_, ran) = asked(
            &[&arguments[..], &["--json"]].concat(),
            arguments[0],
            &serde_json::json!({"x": [result]}),
        );
        let json = format!("{}\n", serde_json::json!({"x": [result]}));
        assert_eq!(
            (ran.exit, ran.out, ran.err.as_str()),
            (ExitStatus::Done, json, ""),
            "{line}"
        );
    }
}

/// One of each change.
const CHANGES: [&[&str]; 9] = [
    &["reload"],
    &["scale", "2"],
    &["recycle", "all"],
    &["hold", "1"],
    &["drain", "--wait"],
    &["release", "1"],
    &["drain"],
    &["undrain"],
    &["rebalance"],
];

#[test]
fn a_long_change_continues_after_the_timeout() {
    let doing = [
        "reloading",
        "scaling",
        "replacing workers",
        "moving the worker's clients",
        "draining",
    ];
    let try_it = |change: &[&str], doing: Option<&&str>| {
        let ran = Daemon::start(move |mut client| {
            asked_for(&mut client);
            send_reply(&mut client, &daemons_version());
            asked_for(&mut client);
            let _ = client.read_to_end(&mut Vec::new());
        })
        .asked(&[change, &["--timeout", "3s"]].concat());
        let (exit, said) = match doing {
            Some(doing) => (
                ExitStatus::StillGoing,
                format!(
                    "fdpassd (pid 4711) is still {doing}; it continues, as the verb \"status\" shows"
                ),
            ),
            None => (ExitStatus::NoReply, "no reply within 3s".to_owned()),
        };
        assert_eq!((ran.exit, ran.out.as_str()), (exit, ""), "{change:?}");
        assert_eq!(ran.err, format!("fdpassctl: {said}\n"), "{change:?}");
    };
    thread::scope(|threads| {
        for (index, change) in CHANGES.into_iter().enumerate() {
            threads.spawn(move || try_it(change, doing.get(index)));
        }
    });
    // Whether a daemon continues is not known if it has never answered.
    let ran = Daemon::start(|mut client| drop(client.read_to_end(&mut Vec::new()))).asked(&[
        "reload",
        "--timeout",
        "1s",
    ]);
    assert_eq!(
        (ran.exit, ran.err.as_str()),
        (ExitStatus::NoReply, "fdpassctl: no reply within 1s\n")
    );
}

#[test]
fn a_change_that_fails_has_its_exit_code() {
    for change in CHANGES {
        for (reply, exit, said) in [
            (
                fault("busy", "a reload is going on"),
                ExitStatus::Failed,
                "busy: a reload is going on",
            ),
            (
                fault("refused", "there is no worker 1"),
                ExitStatus::Failed,
                "refused: there is no worker 1",
            ),
            (
                fault("forbidden", "only root may"),
                ExitStatus::Forbidden,
                "forbidden: only root may",
            ),
            (
                fault("rolled_back", "worker 9 failed"),
                ExitStatus::Failed,
                "rolled_back: worker 9 failed",
            ),
            (
                self::reply(change[0], &1),
                ExitStatus::NoReply,
                "the answer is not a valid reply: ",
            ),
        ] {
            let ran = Daemon::that_replies([daemons_version(), reply]).asked(change);
            assert_eq!((ran.exit, ran.out.as_str()), (exit, ""), "{change:?}");
            assert!(
                ran.err.starts_with(&format!("fdpassctl: {said}")),
                "{change:?}: {}",
                ran.err
            );
        }
        let ran = ctl(
            &[change, &["-s", "/nonexistent/control.sock"][..]].concat(),
            &[],
        );
        assert_eq!(ran.exit, ExitStatus::NotRunning, "{change:?}");
    }
}

#[test]
fn a_rejected_configuration_is_shown_with_its_caret() {
    let display =
        "error: unknown key `listne`\n --> /etc/\x1b[1m.toml:1:1\n  |\n1 | listne = []\n  | ^^^^^^";
    let place = control::Place {
        file: "/etc/x".into(),
        line: Some(1),
        column: Some(1),
        display: display.to_owned(),
    };
    let mut refusal = Refusal::new(RefusalCode::Rejected, "unknown key `listne`");
    refusal.place = Some(place);
    for json in [&[][..], &["--json"]] {
        let ran = Daemon::that_replies([daemons_version(), reply("error", &refusal)])
            .asked(&[&["reload"], json].concat());
        let out = match json {
            [] => String::new(),
            _ => format!("{}\n", json!({ "error": refusal })),
        };
        assert_eq!(ran.exit, ExitStatus::Failed);
        assert_eq!(ran.out.is_empty(), out.is_empty(), "{}", ran.out);
        if !out.is_empty() {
            let parsed = |text: &str| serde_json::from_str::<Value>(text).expect("JSON");
            assert_eq!(parsed(&ran.out), parsed(&out));
        }
        let shown = display.replace('\x1b', "\\x1b");
        assert_eq!(
            ran.err,
            format!("fdpassctl: rejected, and nothing was changed:\n{shown}\n")
        );
    }
    let ran = Daemon::that_replies([reply("error", &refusal)]).asked(&["config", "check"]);
    let shown = display.replace('\x1b', "\\x1b");
    assert_eq!(
        (ran.exit, ran.err),
        (
            ExitStatus::Failed,
            format!("fdpassctl: the configuration has a mistake:\n{shown}\n")
        )
    );
    // Errors of other programs may have a member of this name.
    for place in ["7", "{}", "[]", r#"{"display":7}"#] {
        let reply =
            format!(r#"{{"out":"error","result":{{"code":"x","message":"y","place":{place}}}}}"#);
        let ran = Daemon::that_replies([daemons_version(), reply]).asked(&["reload"]);
        assert_eq!(
            (ran.exit, ran.err.as_str()),
            (ExitStatus::Failed, "fdpassctl: x: y\n")
        );
    }
}
