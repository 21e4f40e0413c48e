//! Events: followed, and as the progress of a change.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::*;
use crate::proto::control::{About, Event, Events, Kind};
use crate::proto::log::LogLevel;

/// The events of a daemon, which may grow until the end.
#[derive(Default)]
struct Happening {
    events: Mutex<Vec<Event>>,
    is_over: AtomicBool,
    more: Condvar,
}

impl Happening {
    fn happens(&self, kind: Kind, message: &str, about: About) {
        let mut events = self.events.lock().expect("no thread panicked");
        let id = events.len() as u64 + 1;
        // From 12:00:01 on.
        let at = 1_795_521_600.0 + id as f64;
        events.push(Event {
            id,
            at,
            level: LogLevel::Info,
            event: kind,
            message: message.to_owned(),
            about,
        });
        self.more.notify_all();
    }

    /// Ends all waits.
    fn ends(&self) {
        let _events = self.events.lock().expect("no thread panicked");
        self.is_over.store(true, Ordering::Relaxed);
        self.more.notify_all();
    }

    /// Answers `events`, after a wait of at most the requested time.
    fn answer(&self, params: &Value) -> String {
        let after = params["after"].as_u64().unwrap_or(0) as usize;
        let wait = Duration::from_secs_f64(params["wait"].as_f64().unwrap_or(0.0));
        let events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        let is_idle = |events: &mut Vec<Event>| {
            events.len() <= after && !self.is_over.load(Ordering::Relaxed)
        };
        let waited = self.more.wait_timeout_while(events, wait, is_idle);
        let (events, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let events = events[after.min(events.len())..].to_vec();
        let last = (after + events.len()) as u64;
        reply(
            "events",
            &Events {
                events,
                last,
                lost: 0,
                workers: 4,
                clients: 1234,
            },
        )
    }
}

fn reload(happening: &Happening) -> String {
    let of = |generation| About {
        generation: Some(Generation(generation)),
        ..About::default()
    };
    happening.happens(
        Kind::ReloadBegun,
        "reload by uid 0: reloading",
        About {
            workers: Some(4),
            ..of(3)
        },
    );
    happening.happens(
        Kind::WorkerReady,
        "worker 5 (pid 77, gen 3) is ready\n",
        of(3),
    );
    happening.happens(
        Kind::WorkerFinished,
        "worker 1 (pid 70, gen 2) finished",
        of(2),
    );
    happening.happens(Kind::ReloadApplied, "reloaded", of(3));
    happening.ends();
    reply(
        "reload",
        &Reloaded {
            generation: Generation(3),
            workers: 4,
            seconds: 0.035,
        },
    )
}

const TOLD: &str = "\
12:00:02 reload by uid 0: reloading
12:00:03 worker 5 (pid 77, gen 3) is ready\\n
12:00:04 worker 1 (pid 70, gen 2) finished
12:00:05 reloaded
";

const APPLIED: &str = "applied: generation 3, 4 workers ready, in 35 ms\n";

/// Returns a daemon that reloads at once and has an older event.
fn reloading() -> Daemon {
    let happening = Happening::default();
    happening.happens(Kind::Started, "long ago", About::default());
    Daemon::that_answers(move |verb, params| match verb {
        "events" => Some(happening.answer(params)),
        "version" => Some(daemons_version()),
        "reload" => {
            let reply = reload(&happening);
            Some(reply)
        }
        other => panic!("{other}"),
    })
}

#[test]
fn each_event_of_a_change_is_a_line_unless_quiet_or_json() {
    let ran = reloading().asked(&["reload"]);
    assert_eq!(
        (ran.exit, ran.out.as_str(), ran.err.as_str()),
        (ExitStatus::Done, APPLIED, TOLD)
    );
    let ran = reloading().asked(&["reload", "--quiet"]);
    assert_eq!(
        (ran.exit, ran.out.as_str(), ran.err.as_str()),
        (ExitStatus::Done, APPLIED, "")
    );
    let ran = reloading().asked(&["reload", "--json"]);
    assert_eq!((ran.exit, ran.err.as_str()), (ExitStatus::Done, ""));
}

#[test]
fn on_a_terminal_progress_is_one_line_that_is_erased() {
    let ran = reloading().asked_seen(&["reload"], Seen::new(false, true, |_| None));
    assert_eq!((ran.exit, ran.out.as_str()), (ExitStatus::Done, APPLIED));
    let drawn: Vec<_> = ran.err.split('\r').collect();
    assert_eq!(drawn[..2], ["", "reloading\x1b[K"], "{:?}", ran.err);
    let last = [
        "reloading: 1 of 4 workers ready, 1 of 4 old workers gone\x1b[K",
        "\x1b[K",
    ];
    assert_eq!(drawn[drawn.len() - 2..], last, "{:?}", ran.err);
    assert!(!ran.err.contains('\n'));

    let narrow = Seen::new(false, true, |key| (key == "COLUMNS").then(|| "20".into()));
    let ran = reloading().asked_seen(&["reload"], narrow);
    assert!(
        ran.err
            .split('\r')
            .all(|line| line.trim_end_matches("\x1b[K").chars().count() < 20),
        "{:?}",
        ran.err
    );
    assert!(
        ran.err.contains("\rreloading: 1 of 4 w\x1b[K"),
        "{:?}",
        ran.err
    );
}

#[test]
fn progress_is_shown_as_it_happens() {
    // The daemon ends its reload only after its first event was received.
    let (tell, told) = mpsc::channel();
    let (happening, told) = (Happening::default(), Mutex::new(told));
    let ran = Daemon::that_answers(move |verb, params| match verb {
        "events" => {
            let begun = params["after"] == 1;
            if begun {
                tell.send(()).expect("it is waited for");
            }
            Some(happening.answer(params))
        }
        "version" => Some(daemons_version()),
        _ => {
            happening.happens(Kind::ReloadBegun, "it begins", About::default());
            let told = told.lock().expect("no thread panicked");
            told.recv_timeout(Duration::from_secs(10))
                .expect("it was heard");
            happening.happens(Kind::ReloadRolledBack, "the end", About::default());
            happening.ends();
            Some(fault("rolled_back", "no"))
        }
    })
    .asked(&["reload"]);
    assert_eq!((ran.exit, ran.out.as_str()), (ExitStatus::Failed, ""));
    assert_eq!(
        ran.err,
        "12:00:01 it begins\n12:00:02 the end\nfdpassctl: rolled_back: no\n"
    );
}

#[test]
fn a_daemon_without_events_performs_the_change() {
    let done = || {
        reply(
            "reload",
            &Reloaded {
                generation: Generation(3),
                workers: 4,
                seconds: 0.035,
            },
        )
    };
    for events in [
        fault("unknown_verb", "there is no verb"),
        fault("forbidden", "only root may"),
        fault("busy", "too many"),
        reply("events", &1),
        reply("events", &serde_json::json!({"events": []})),
    ] {
        let ran = Daemon::that_answers(move |verb, _| match verb {
            "events" => Some(events.clone()),
            "version" => Some(daemons_version()),
            _ => Some(done()),
        })
        .asked(&["reload"]);
        assert_eq!(
            (ran.exit, ran.out.as_str(), ran.err.as_str()),
            (ExitStatus::Done, APPLIED, "")
        );
    }
}

#[test]
fn without_a_second_connection_events_come_at_the_end() {
    let (happening, is_second) = (Happening::default(), AtomicBool::new(false));
    let ran = Daemon::serving(move |mut client| {
        if is_second.swap(true, Ordering::Relaxed) {
            // fdpassctl may have closed it.
            let refusal = fault("busy", "there are too many control clients");
            return drop(send(&mut client, ByteOrder::Little, &refusal));
        }
        while let Some(request) = next_request(&mut client) {
            let request: Value = serde_json::from_str(&request).expect("JSON");
            let reply = match request["in"].as_str().expect("a verb") {
                "events" => happening.answer(&request["params"]),
                "version" => daemons_version(),
                _ => reload(&happening),
            };
            send_reply(&mut client, &reply);
        }
    })
    .asked(&["reload"]);
    let told = TOLD
        .replace("12:00:02", "12:00:01")
        .replace("12:00:03", "12:00:02")
        .replace("12:00:04", "12:00:03");
    assert_eq!((ran.exit, ran.out.as_str()), (ExitStatus::Done, APPLIED));
    assert_eq!(ran.err, told.replace("12:00:05", "12:00:04"));
}

#[test]
fn the_result_does_not_wait_for_the_second_connection() {
    let (tell, told) = mpsc::channel::<()>();
    let told = Mutex::new(told);
    let happening = Happening::default();
    let daemon = Daemon::that_answers(move |verb, params| match verb {
        "events" if params["wait"].is_null() => Some(happening.answer(params)),
        // Not before the end of the test.
        "events" => told
            .lock()
            .ok()
            .and_then(|told| told.recv().err())
            .and(None),
        "version" => Some(daemons_version()),
        _ => Some(reload(&happening)),
    });
    let began = Instant::now();
    let ran = ctl(&["reload", "-s", &daemon.socket], &[]);
    assert_eq!(
        (ran.exit, ran.out.as_str()),
        (ExitStatus::Done, APPLIED),
        "{}",
        ran.err
    );
    assert!(
        began.elapsed() < Duration::from_secs(30),
        "the minute that a reload has is not over"
    );
    assert_eq!(ran.err.lines().count(), TOLD.lines().count());
    drop(tell);
    assert_eq!(daemon.asked(&["version"]).exit, ExitStatus::Done);
}

#[test]
fn the_timeout_ends_the_progress_too() {
    let (tell, told) = mpsc::channel::<()>();
    let told = Mutex::new(told);
    let happening = Happening::default();
    let daemon = Daemon::that_answers(move |verb, params| match verb {
        "events" if params["wait"].is_null() => Some(happening.answer(params)),
        "version" => Some(daemons_version()),
        // Neither is answered before the end of the test.
        _ => told
            .lock()
            .ok()
            .and_then(|told| told.recv().err())
            .and(None),
    });
    let socket = daemon.socket.clone();
    let ran = ctl(&["reload", "--timeout", "3s", "-s", &socket], &[]);
    let said = "fdpassctl: fdpassd (pid 4711) is still reloading; it continues, as the verb \"status\" shows\n";
    assert_eq!((ran.exit, ran.err.as_str()), (ExitStatus::StillGoing, said));
    drop(tell);
    assert_eq!(daemon.asked(&["version"]).exit, ExitStatus::Done);
}

/// An event of a newer daemon, with an unknown kind and an unknown member.
const NEWER: &str =
    r#"{"id":3,"at":3e0,"level":"info","event":"teleported","message":"x","to":[1]}"#;
const DIED: &str = r#"{"id":2,"at":1795521601.123,"level":"warn","event":"worker_died","message":"worker 17 died\u001b","worker":17}"#;

fn events(events: &[&str], last: u64, lost: u64) -> String {
    let events = events.join(",");
    format!(
        r#"{{"out":"events","result":{{"events":[{events}],"last":{last},"lost":{lost},"workers":1,"clients":0}}}}"#
    )
}

#[test]
fn events_are_lines_and_dropped_ones_are_counted() {
    let said = || [events(&[DIED, NEWER], 3, 12)];
    let ran = Daemon::listening(move |listener| {
        let mut client = listener.accept().expect("accept").0;
        let request = next_request(&mut client).expect("a request");
        assert_eq!(request, r#"{"in":"events","params":{"after":1}}"#);
        send_reply(&mut client, &said()[0]);
    })
    .asked(&["events", "--after", "1"]);
    let expected = format!(
        "… 12 events are forgotten\n\
         2 2026-11-24T12:00:01.123Z warn  worker_died      worker 17 died\\x1b\n{NEWER}\n"
    );
    assert_eq!(
        (ran.exit, ran.out, ran.err.as_str()),
        (ExitStatus::Done, expected, "")
    );
    let ran = Daemon::that_answers(|_, _| Some(events(&[DIED, NEWER], 3, 12)))
        .asked(&["events", "--json"]);
    assert_eq!(
        (ran.exit, ran.out),
        (
            ExitStatus::Done,
            format!("{{\"lost\":12}}\n{DIED}\n{NEWER}\n")
        )
    );
    let seen = Daemon::that_answers(|_, _| Some(events(&[DIED], 3, 0)))
        .asked_seen(&["events"], Seen::new(true, true, |_| None));
    assert!(
        seen.out
            .ends_with("2026-11-24 (UTC)\x1b[0m\n2 12:00:01 \x1b[33mwarn \x1b[0m worker_died      worker 17 died\\x1b\n"),
        "{:?}",
        seen.out
    );
}

#[test]
fn events_are_followed_until_the_daemon_ends() {
    for (arguments, out) in [
        (
            &["events", "-f"][..],
            "2 2026-11-24T12:00:01.123Z warn  worker_died      worker 17 died\\x1b\n… 1 event is forgotten\n",
        ),
        (
            &["events", "--follow", "--json"],
            &format!("{DIED}\n{{\"lost\":1}}\n"),
        ),
    ] {
        let ran = Daemon::start(|mut client| {
            let mut expect = |request: &str, reply: &str| {
                assert_eq!(next_request(&mut client).as_deref(), Some(request));
                send_reply(&mut client, reply);
            };
            expect(r#"{"in":"version"}"#, &daemons_version());
            expect(r#"{"in":"events","params":{}}"#, &events(&[DIED], 2, 0));
            expect(
                r#"{"in":"events","params":{"after":2,"wait":60.0}}"#,
                &events(&[], 2, 0),
            );
            expect(
                r#"{"in":"events","params":{"after":2,"wait":60.0}}"#,
                &events(&[], 4, 1),
            );
            assert!(next_request(&mut client).is_some());
        })
        .asked(arguments);
        assert_eq!((ran.exit, ran.out.as_str()), (ExitStatus::NotRunning, out));
        assert_eq!(ran.err, "fdpassctl: fdpassd (pid 4711) has ended\n");
    }
}

#[test]
fn following_continues_with_the_same_daemon_only() {
    let version = |pid| {
        reply(
            "version",
            &Version {
                name: "fdpassd".to_owned(),
                version: "0.1.0".to_owned(),
                pid,
            },
        )
    };
    // Serves one connection for each pid, with one event.
    let served = move |pids: [u32; 3]| {
        Daemon::listening(move |listener| {
            for pid in pids {
                let mut client = listener.accept().expect("accept").0;
                next_request(&mut client).expect("it asks who this is");
                send_reply(&mut client, &version(pid));
                // fdpassctl leaves if this is another daemon.
                if let Some(request) = next_request(&mut client) {
                    assert!(request.starts_with(r#"{"in":"events""#), "{request}");
                    send_reply(&mut client, &events(&[NEWER], 3, 0));
                }
            }
        })
        .asked(&["events", "--follow", "--json"])
    };
    let ran = served([1, 1, 2]);
    assert_eq!(
        (ran.exit, ran.out),
        (ExitStatus::NotRunning, format!("{NEWER}\n{NEWER}\n"))
    );
    assert_eq!(ran.err, "fdpassctl: fdpassd (pid 1) has ended\n");
}

#[test]
fn following_ends_if_the_daemon_does_not_answer() {
    let ran = Daemon::that_answers(|verb, _| (verb == "version").then(daemons_version))
        .asked(&["events", "-f"]);
    assert_eq!((ran.exit, ran.out.as_str()), (ExitStatus::NoReply, ""));
    assert_eq!(
        ran.err,
        "fdpassctl: the connection was closed before the reply\n"
    );
    // The first page is due at once; only later ones may take longer than the timeout.
    let daemon = Daemon::start(|mut client| {
        next_request(&mut client).expect("a request");
        send_reply(&mut client, &daemons_version());
        next_request(&mut client).expect("a request");
        assert_eq!(next_request(&mut client), None);
    });
    let ran = daemon.asked(&["events", "-f", "--timeout", "1s"]);
    assert_eq!(
        (ran.exit, ran.err.as_str()),
        (ExitStatus::NoReply, "fdpassctl: no reply within 1s\n")
    );
}
