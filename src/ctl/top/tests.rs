//! The screen at several sizes, each compared with a file in `tests/screens`; and what keys and news change in it.
//!
//! With `UPDATE_SCREENS=1` the tests write the screens of now into the files, for review with `git diff`.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use ratatui_core::backend::TestBackend;
use ratatui_core::buffer::Cell;
use ratatui_core::style::Modifier;
use ratatui_core::terminal::Terminal;

use super::keys::KeyPress::{self, *};
use super::news::{ClientList, ClientsWanted, EventLine, News};
use super::state::{Top, TopRequest, View};
use super::view;
use crate::ctl::args::ChangeVerb;
use crate::ctl::tests::status;
use crate::proto::control::{
    AppStatus, ClientState, ClientStatus, DrainStatus, LeavingStatus, Recycle, Status, WorkerState,
    WorkerStatus,
};
use crate::proto::log::LogLevel;
use crate::proto::names::{ClientId, Generation, WorkerId};

/// Returns the status of a daemon with this number of workers.
fn status_of(count: u32) -> Box<Status> {
    let mut status = status();
    let kinds = status.workers.clone();
    let worker = |seat: u32| {
        let mut worker = match seat % 8 {
            3 => kinds[2].clone(),
            5 => kinds[1].clone(),
            _ => kinds[0].clone(),
        };
        worker.seat = seat;
        if worker.id.is_some() {
            worker.id = Some(WorkerId(u64::from(seat) + 1));
            worker.pid = Some(4712 + seat);
            worker.clients = u64::from(seat * 37 % 100);
            worker.requests_per_second = Some(f64::from(seat * 531 % 2000));
            worker.busy = Some(f64::from(seat % 10) / 10.0);
        }
        worker
    };
    status.workers = (0..count).map(worker).collect();
    status.count = count;
    Box::new(status)
}

/// Returns a daemon in which everything has a long name, and something acts on terminals.
fn hostile_status() -> Box<Status> {
    let mut status = status_of(3);
    status.name = "a-daemon-with-thirty-two-letters".to_owned();
    status.version = "10.20.30-beta\x1b[2J".to_owned();
    status.listeners[0].address = format!("unix:/{}\x1b]0;x\x07.sock", "long/".repeat(20));
    status.listeners[0].outage = Some("another process has ended it\n".to_owned());
    status.paused = Some("no descriptors\x1b[2J\nleft".to_owned());
    status.quarantined = vec!["resize\u{202e}".to_owned(), "crop".repeat(30)];
    status.missing = vec!["metrics: address in use".to_owned()];
    status.config_stale = Some("unknown key".to_owned());
    status.workers[0].app = Some(AppStatus {
        pid: 4713,
        name: Some("shop\x1b".to_owned()),
        version: Some("1.2".to_owned()),
        concurrency: 64,
        rss_bytes: Some(41 << 20),
    });
    (status.workers[0].away, status.workers[0].waiting) = (3, 12);
    status.workers[0].unhealthy = Some("the database\x07 is away".to_owned());
    status.leaving = vec![LeavingStatus {
        id: WorkerId(900_000),
        pid: 4_100_000,
        seat: 200,
        generation: Generation(1234),
        state: WorkerState::Held,
        reason: "held by uid 0\x1b".to_owned(),
        waits_for: "release".to_owned(),
        killed_in_seconds: None,
        clients: 12,
    }];
    status
}

fn client(id: u64) -> ClientStatus {
    ClientStatus {
        id: ClientId(id),
        peer: match id % 4 {
            0 => format!("[2001:db8:1234:5678:9abc:def0:1234:{id:x}]:50{id:03}"),
            1 => format!("pid {} (uid 1000)", 4000 + id),
            _ => format!("192.0.2.{}:50{id:03}", id % 256),
        },
        via: None,
        listener: Some("127.0.0.1:8080".to_owned()),
        worker: (!id.is_multiple_of(7)).then_some(WorkerId(id % 7)),
        state: Some(match id % 3 {
            0 => ClientState::Busy,
            _ => ClientState::Idle,
        }),
        method: id.is_multiple_of(3).then(|| "resize\x1b".to_owned()),
        age_seconds: 1000.0 - id as f64,
        idle_seconds: (id % 60) as f64,
        requests: id * id,
        moves: (id % 5) as u32,
        bytes: id * 100,
        wants_goaway: false,
        goaway: None,
    }
}

fn event(second: u32, message: &str, client: Option<u64>) -> EventLine {
    EventLine {
        at: 1_795_521_600.0 + f64::from(second),
        level: LogLevel::Info,
        message: message.to_owned(),
        client: client.map(ClientId),
    }
}

/// Returns a screen with the second status of a daemon, and with its events.
fn top(status: Box<Status>) -> Top {
    let mut later = status.clone();
    later.uptime_seconds += 1.0;
    later.requests_total += 12_345;
    later.errors_total += 2;
    later.accepted_total += 15;
    later.moved_total += 3;
    let mut top = Top::new(Duration::from_secs(1), status);
    top.receive(News::Status(later));
    let events = (0..30).map(|second| {
        let message = format!("worker {second} (pid 47{second:02}, gen 3) is ready after 3 ms");
        event(second, &message, None)
    });
    top.receive(News::Events {
        events: events.collect(),
        lost: 0,
        is_first: true,
    });
    top
}

/// Sends the clients that the screen wants, all of them once more a second later, with 10 requests each.
fn send_clients(top: &mut Top, count: u64) {
    let began = Instant::now();
    for second in 0..2 {
        let later = |mut client: ClientStatus| {
            client.age_seconds += second as f64;
            client.requests += second * (client.id.0 % 10);
            client
        };
        let of = top.clients_wanted();
        let belongs = |client: &ClientStatus| match of {
            ClientsWanted::Of(worker) => client.worker == Some(worker),
            _ => true,
        };
        let clients = (1..=count).map(client).filter(belongs).map(later).collect();
        top.receive(News::Clients(ClientList {
            of,
            at: began + Duration::from_secs(second),
            clients,
            is_complete: true,
            error: None,
        }));
    }
}

/// Presses keys, each after the screen was drawn.
fn press(top: &mut Top, keys: &[KeyPress]) -> Option<TopRequest> {
    let requests = keys.iter().filter_map(|key| {
        screen(top, 80, 24);
        top.press(&[*key], Instant::now())
    });
    requests.last()
}

/// Returns the screen as text.
fn screen(top: &mut Top, columns: u16, lines: u16) -> String {
    let backend = TestBackend::new(columns, lines);
    let mut terminal = Terminal::new(backend).expect("it has no errors");
    terminal
        .draw(|frame| view::draw(frame, top))
        .expect("it has no errors");
    if let Some(confirmation) = &mut top.confirmation {
        assert!(confirmation.is_drawn || columns < 40 || lines < 8);
        confirmation.answered_from.get_or_insert_with(Instant::now);
    }
    let buffer = terminal.backend().buffer();
    let cells = buffer.content().chunks(columns.into());
    let text = cells.map(|line| {
        let line: String = line.iter().map(|cell| cell.symbol()).collect();
        format!("{}\n", line.trim_end())
    });
    text.collect()
}

/// Compares the screen at three sizes with the files of this name.
#[track_caller]
fn check(name: &str, top: &mut Top) {
    for (columns, lines) in [(80, 24), (100, 30), (160, 50)] {
        let shown = screen(top, columns, lines);
        let acts = |c: char| c != '\n' && (c.is_control() || c == '\u{202e}');
        assert!(!shown.contains(acts), "{name}: {shown:?}");
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/screens")
            .join(format!("{name}-{columns}.txt"));
        if std::env::var_os("UPDATE_SCREENS").is_some() {
            fs::write(&path, &shown).expect("the file of a screen can be written");
        }
        let expected = fs::read_to_string(&path).expect("the file of a screen");
        assert_eq!(shown, expected, "{}", path.display());
    }
}

#[test]
fn any_number_of_workers_is_drawn_at_all_widths() {
    for count in [0, 1, 8, 64] {
        check(&format!("workers-{count}"), &mut top(status_of(count)));
    }
}

#[test]
fn long_and_hostile_names_are_escaped_and_shortened() {
    let mut top = top(hostile_status());
    check("hostile", &mut top);
    press(&mut top, &[Enter]);
    send_clients(&mut top, 120);
    check("hostile-worker", &mut top);
}

#[test]
fn clients_are_drawn_with_the_busiest_first() {
    let mut top = top(status_of(8));
    press(&mut top, &[Char('c')]);
    assert_eq!(top.clients_wanted(), ClientsWanted::All);
    send_clients(&mut top, 120);
    check("clients-120", &mut top);
    press(&mut top, &[PageDown, PageDown, Char('>')]);
    check("clients-120-by-requests", &mut top);
    press(&mut top, &[Enter]);
    assert!(matches!(top.view(), View::Client(_)));
    let View::Client(id) = top.view() else { return };
    let about = event(100, &format!("client {id} moved\x1b"), Some(id.0));
    top.receive(News::Events {
        events: vec![about],
        lost: 0,
        is_first: false,
    });
    check("client", &mut top);
}

#[test]
fn one_worker_is_drawn_with_its_clients() {
    let mut top = top(status_of(8));
    press(&mut top, &[Down, Enter]);
    assert_eq!(top.clients_wanted(), ClientsWanted::Of(WorkerId(2)));
    send_clients(&mut top, 120);
    check("worker", &mut top);
}

#[test]
fn the_other_views_are_drawn_at_all_widths() {
    let mut top = top(status_of(8));
    press(&mut top, &[Char('e'), PageUp]);
    check("events", &mut top);
    press(&mut top, &[Char('?')]);
    check("help", &mut top);
}

#[test]
fn figures_end_at_a_comma_where_they_do_not_fit() {
    let mut top = top(status_of(8));
    let mut lines = |columns| -> Vec<String> {
        let shown = screen(&mut top, columns, 24);
        shown.lines().skip(1).take(4).map(str::to_owned).collect()
    };
    assert_eq!(
        lines(40),
        [
            "requests  12k/s, p50 42µs to 250ms, …",
            "workers   6 of 8 ready; deaths 0, …",
            "clients   1,234 of 65,536; new 15/s, …",
            "queue     127.0.0.1:8080 0/4096",
        ]
    );
    assert_eq!(
        lines(64)[2],
        "clients   1,234 of 65,536; new 15/s, moved 3/s; refused 3, …"
    );
    assert_eq!(
        lines(65)[2],
        "clients   1,234 of 65,536; new 15/s, moved 3/s; refused 3, lost 1"
    );
}

#[test]
fn rows_are_sorted_only_by_columns_that_are_shown() {
    for view in ['w', 'c'] {
        let mut top = top(status_of(8));
        press(&mut top, &[Char(view)]);
        send_clients(&mut top, 20);
        let marks = (0..20).map(|_| {
            press(&mut top, &[Char('>')]);
            screen(&mut top, 80, 24).contains('▾')
        });
        let marks: Vec<bool> = marks.collect();
        // Without a mark, rows are in their own order; the next key sorts them again.
        let once_in_a_row = marks.windows(2).all(|pair| pair[0] || pair[1]);
        assert!(once_in_a_row && marks.contains(&false), "{marks:?}");
    }
}

#[test]
fn rows_out_of_sight_are_not_formatted() {
    // None of them has a long address, or one that is visible, or one that is not.
    let [none, visible, hidden] = [0, 3, 9999].map(|long| {
        let mut top = top(status_of(8));
        press(&mut top, &[Char('c')]);
        let clients = (1..=10_000).map(|id| ClientStatus {
            peer: match id == long {
                true => "x".repeat(60),
                false => format!("192.0.2.1:{id}"),
            },
            ..client(id)
        });
        // In the order of their numbers, as no rate is known.
        top.receive(News::Clients(ClientList {
            of: ClientsWanted::All,
            at: Instant::now(),
            clients: clients.collect(),
            is_complete: true,
            error: None,
        }));
        screen(&mut top, 160, 24)
    });
    // A column is as wide as its widest cell that was formatted.
    assert_ne!(visible, none);
    assert_eq!(hidden, none);
}

#[test]
fn every_size_is_drawn_and_small_ones_get_a_sentence() {
    for view in ['w', 'c', 'e', '?'] {
        let mut top = top(hostile_status());
        press(&mut top, &[Char(view)]);
        send_clients(&mut top, 120);
        for columns in (1..200).step_by(7) {
            for lines in 1..60 {
                let shown = screen(&mut top, columns, lines);
                let is_small = columns < 40 || lines < 8;
                let begins = shown.starts_with('T');
                assert_eq!(begins, is_small, "{columns}x{lines}: {shown}");
            }
        }
    }
    let mut top = top(status_of(1));
    let expected = "The terminal is too small: 40\ncolumns and 8 lines are needed";
    let shown = screen(&mut top, 30, 8);
    assert_eq!(shown.replace(" \n", "\n").trim_end(), expected);
    // All that matters is there at the smallest size.
    let shown = screen(&mut top, 40, 8);
    for words in ["fdpassd 0.1.0", "requests", "ID STATE", "q quit"] {
        assert!(shown.contains(words), "{words:?} is not in\n{shown}");
    }
}

#[test]
fn a_change_is_made_only_after_it_is_confirmed() {
    let mut top = top(status_of(8));
    for (keys, question) in [
        (
            &[Down, Char('r')][..],
            "(y/n) recycle worker 2 (pid 4713)? 37 clients will move",
        ),
        (
            &[Char('d')],
            "(y/n) drain fdpassd? New clients will be refused, 1,234 clients stay",
        ),
    ] {
        assert!(press(&mut top, keys).is_none());
        let shown = screen(&mut top, 80, 24);
        assert_eq!(shown.lines().last(), Some(question));
        // Other keys do not answer it.
        assert!(press(&mut top, &[Enter, Char('x'), Down]).is_none());
        assert!(top.confirmation.is_some());
        assert!(press(&mut top, &[Char('n')]).is_none() && top.confirmation.is_none());
    }
    let change = press(&mut top, &[Char('r'), Char('y')]);
    assert!(
        matches!(
            change,
            Some(TopRequest::Change(ChangeVerb::Recycle {
                which: Recycle {
                    worker: Some(WorkerId(2))
                }
            }))
        ),
        "{change:?}"
    );
    let last = |top: &mut Top| screen(top, 80, 24).lines().last().map(str::to_owned);
    assert_eq!(last(&mut top).as_deref(), Some("replacing worker 2 …"));
    // One change at a time.
    press(&mut top, &[Char('d')]);
    assert!(top.confirmation.is_none());
    top.receive(News::Changed(Err(
        "forbidden: recycle needs root".to_owned()
    )));
    assert_eq!(
        last(&mut top).as_deref(),
        Some("forbidden: recycle needs root")
    );
    press(&mut top, &[Down]);
    assert!(last(&mut top).is_some_and(|line| line.starts_with("q quit")));
}

#[test]
fn keys_before_a_question_is_drawn_do_not_answer_it() {
    let mut top = top(status_of(8));
    let early = Instant::now();
    for key in [Char('r'), Char('y'), Char('n')] {
        assert!(top.press(&[key], early).is_none());
    }
    screen(&mut top, 80, 24);
    // Pressed before it was drawn, and read after that.
    assert!(top.press(&[Char('y')], early).is_none());
    // A part of a text, which a terminal without marks around it sends.
    let text = ['h', 'e', 'y'].map(Char);
    assert!(top.press(&text, Instant::now()).is_none());
    assert!(top.confirmation.is_some());
    assert!(press(&mut top, &[Char('y')]).is_some());
}

#[test]
fn a_restart_withdraws_a_question() {
    for (pid, uptime) in [(5000, 100_000.0), (4711, 3.0)] {
        let mut top = top(status_of(8));
        press(&mut top, &[Char('c')]);
        send_clients(&mut top, 20);
        press(&mut top, &[Down, Enter, Char('k')]);
        assert!(top.confirmation.is_some());
        let mut status = status_of(8);
        (status.pid, status.uptime_seconds) = (pid, uptime);
        top.receive(News::Status(status));
        let shown = screen(&mut top, 80, 24);
        let words = format!("fdpassd was restarted: it is pid {pid}; the question is withdrawn\n");
        assert!(shown.ends_with(&words), "{shown}");
        assert!(press(&mut top, &[Char('y')]).is_none());
        // Another client may have this id now.
        assert_eq!(top.view(), View::Clients);
        assert!(top.client(ClientId(1)).is_none());
        assert!(press(&mut top, &[Char('k'), Char('y')]).is_none());
    }
}

#[test]
fn a_drained_daemon_is_undrained() {
    let mut status = status_of(1);
    status.drain = Some(DrainStatus {
        mode: Default::default(),
        notice: Some(7.0),
        over: None,
    });
    let mut top = top(status);
    assert!(screen(&mut top, 80, 24).contains("LEAVING   in 7s"));
    let change = press(&mut top, &[Char('d'), Char('y')]);
    assert!(
        matches!(change, Some(TopRequest::Change(ChangeVerb::Undrain))),
        "{change:?}"
    );
}

#[test]
fn one_client_stays_and_several_stay() {
    for (clients, words) in [(1, "1 client stays"), (2, "2 clients stay")] {
        let mut status = status_of(1);
        status.clients = clients;
        let mut top = top(status);
        press(&mut top, &[Char('d')]);
        let shown = screen(&mut top, 80, 24);
        assert!(shown.ends_with(&format!("{words}\n")), "{shown}");
    }
}

#[test]
fn a_waiting_seat_shows_when_its_worker_starts() {
    let mut top = top(status_of(4));
    press(&mut top, &[End]);
    let shown = screen(&mut top, 80, 24);
    assert!(
        shown.contains(" waiting ") && shown.contains(" in 4s\n"),
        "{shown}"
    );
    press(&mut top, &[Enter]);
    let shown = screen(&mut top, 80, 24);
    assert!(
        shown.contains("worker    none, waiting, starts in 4s; seat 3"),
        "{shown}"
    );
}

#[test]
fn a_seat_without_a_worker_is_not_recycled() {
    let mut top = top(status_of(4));
    assert!(press(&mut top, &[End, Char('r')]).is_none());
    let shown = screen(&mut top, 80, 24);
    assert!(
        shown.contains("no worker has this seat at the moment"),
        "{shown}"
    );
    assert!(press(&mut top, &[Char('y')]).is_none());
    // Nor is a client kicked among the workers.
    assert!(press(&mut top, &[Char('k'), Char('y')]).is_none());
}

#[test]
fn a_client_is_kicked_after_it_is_confirmed() {
    let mut top = top(status_of(8));
    press(&mut top, &[Tab]);
    send_clients(&mut top, 20);
    assert!(press(&mut top, &[Char('k')]).is_none());
    let shown = screen(&mut top, 80, 24);
    let question = "(y/n) kick client 9 (pid 4009 (uid 1000))? It will be closed";
    assert_eq!(shown.lines().last(), Some(question));
    let change = press(&mut top, &[Char('y')]);
    let kick = ChangeVerb::Kick {
        client: ClientId(9),
    };
    assert_eq!(
        format!("{change:?}"),
        format!("{:?}", Some(TopRequest::Change(kick)))
    );
}

#[test]
fn an_outage_is_shown_until_the_daemon_answers() {
    let mut top = top(status_of(1));
    top.receive(News::Outage("fdpassd is not running\x1b".to_owned()));
    let shown = screen(&mut top, 80, 24);
    assert!(
        shown.starts_with("NO ANSWER fdpassd is not running\\x1b\n"),
        "{shown}"
    );
    assert!(shown.contains("clients   1,234 of 65,536"), "{shown}");
    let mut status = status_of(1);
    status.pid = 5000;
    top.receive(News::Status(status));
    let shown = screen(&mut top, 80, 24);
    assert!(shown.starts_with("fdpassd 0.1.0, pid 5000"), "{shown}");
    assert!(
        shown.ends_with("fdpassd was restarted: it is pid 5000\n"),
        "{shown}"
    );
}

/// Returns the lines that are reversed from end to end.
fn reversed(top: &mut Top) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(80, 24)).expect("it has no errors");
    terminal
        .draw(|frame| view::draw(frame, top))
        .expect("it has no errors");
    let cells = terminal.backend().buffer().content().chunks(80);
    let is_reversed = |cell: &Cell| cell.modifier.contains(Modifier::REVERSED);
    let lines = cells.filter(|line| line.iter().all(is_reversed));
    lines
        .map(|line| line.iter().map(Cell::symbol).collect())
        .collect()
}

#[test]
fn the_selected_row_is_the_reversed_one() {
    let mut top = top(status_of(8));
    press(&mut top, &[Down, Down]);
    let lines = reversed(&mut top);
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].starts_with("   2   3"), "{lines:?}");
    press(&mut top, &[Char('c')]);
    send_clients(&mut top, 20);
    press(&mut top, &[Down]);
    let lines = reversed(&mut top);
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains("192.0.2."), "{lines:?}");
    press(&mut top, &[Char('?')]);
    assert!(reversed(&mut top).is_empty());
}

#[test]
fn a_list_that_is_refused_is_no_outage() {
    let mut top = top(status_of(8));
    press(&mut top, &[Char('c')]);
    send_clients(&mut top, 20);
    let of = top.clients_wanted();
    top.receive(News::Clients(ClientList {
        of,
        at: Instant::now(),
        clients: Vec::new(),
        is_complete: false,
        error: Some("busy: too many\x1b".to_owned()),
    }));
    let shown = screen(&mut top, 80, 24);
    assert!(shown.starts_with("fdpassd 0.1.0, pid 4711"), "{shown}");
    assert!(
        shown.contains("\nno list of clients: busy: too many\\x1b\n"),
        "{shown}"
    );
    // The last list stays below it.
    assert!(shown.contains("192.0.2."), "{shown}");
    send_clients(&mut top, 20);
    assert!(screen(&mut top, 80, 24).contains("\n20 clients, 1 to 16\n"));
}

#[test]
fn the_rate_of_a_client_is_of_half_a_second_at_least() {
    let mut top = top(status_of(1));
    press(&mut top, &[Char('c')]);
    let began = Instant::now();
    let mut rate_after = |milliseconds, requests| {
        let mut client = client(8);
        // The age is in whole seconds.
        (client.age_seconds, client.requests) = (7.0, requests);
        top.receive(News::Clients(ClientList {
            of: ClientsWanted::All,
            at: began + Duration::from_millis(milliseconds),
            clients: vec![client],
            is_complete: true,
            error: None,
        }));
        top.client(ClientId(8)).and_then(|client| client.rate)
    };
    for (milliseconds, requests, rate) in [
        (0, 100, None),
        (499, 150, None),
        (500, 200, Some(200.0)),
        // A second list at once, as in another view.
        (510, 210, Some(200.0)),
        (1500, 500, Some(300.0)),
        // Another client, or a count that begins again.
        (2500, 10, None),
    ] {
        assert_eq!(rate_after(milliseconds, requests), rate, "{milliseconds}");
    }
}

#[test]
fn one_client_needs_the_clients_of_its_worker() {
    let mut top = top(status_of(8));
    press(&mut top, &[Char('c')]);
    send_clients(&mut top, 20);
    press(&mut top, &[Enter]);
    // The busiest one.
    assert_eq!(top.view(), View::Client(ClientId(9)));
    let list = |of, worker: Option<u64>| {
        let mut shown = client(9);
        shown.worker = worker.map(WorkerId);
        let clients = worker.map(|_| shown).into_iter().collect();
        News::Clients(ClientList {
            of,
            at: Instant::now(),
            clients,
            is_complete: true,
            error: None,
        })
    };
    let of = |id| ClientsWanted::Of(WorkerId(id));
    assert_eq!(top.clients_wanted(), of(2));
    top.receive(list(of(2), Some(2)));
    assert_eq!(top.clients_wanted(), of(2));
    // It moves: all clients are asked for, and then those of its new worker. Until then the last state is shown.
    top.receive(list(of(2), None));
    assert_eq!(top.clients_wanted(), ClientsWanted::All);
    assert!(screen(&mut top, 80, 24).contains("client    9 ("));
    top.receive(list(ClientsWanted::All, Some(5)));
    assert_eq!(top.clients_wanted(), of(5));
    // It leaves.
    top.receive(list(of(5), None));
    assert_eq!(top.clients_wanted(), ClientsWanted::All);
    top.receive(list(ClientsWanted::All, None));
    assert_eq!(top.clients_wanted(), ClientsWanted::Nothing);
    assert!(screen(&mut top, 80, 24).contains("Client 9 has left."));
}

#[test]
fn a_listener_that_is_down_is_a_notice() {
    let mut status = status_of(1);
    status.listeners[0].address = format!("unix:/{}x.sock", "long/".repeat(30));
    status.listeners[0].outage = Some("another process has ended it\n".to_owned());
    let mut top = top(status);
    for (columns, lines) in [(80, 24), (40, 8)] {
        let shown = screen(&mut top, columns, lines);
        assert!(shown.contains("\nDOWN      another process has"), "{shown}");
    }
    assert!(screen(&mut top, 80, 24).contains("x.sock DOWN"));
    // The first notice has the number of the others, where there is one line for them.
    let mut status = top.status.clone();
    status.paused = Some("no descriptors".to_owned());
    top.receive(News::Status(status));
    let shown = screen(&mut top, 40, 8);
    assert!(shown.contains("\nPAUSED    (+1) no new clients"), "{shown}");
}

#[test]
fn forgotten_events_are_counted() {
    let mut top = top(status_of(1));
    top.receive(News::Events {
        events: Vec::new(),
        lost: 3,
        is_first: false,
    });
    assert!(screen(&mut top, 80, 24).ends_with("3 events are forgotten\n"));
}

#[test]
fn escape_returns_to_the_view_before_and_q_quits() {
    let mut top = top(status_of(8));
    press(&mut top, &[Enter]);
    send_clients(&mut top, 20);
    press(&mut top, &[Enter]);
    assert!(matches!(top.view(), View::Client(_)));
    press(&mut top, &[Escape]);
    assert!(matches!(top.view(), View::Worker(_)));
    press(&mut top, &[Backspace, Escape, Escape]);
    assert_eq!(top.view(), View::Workers);
    assert!(matches!(
        press(&mut top, &[Char('q')]),
        Some(TopRequest::Quit)
    ));
}

#[test]
fn workers_that_go_do_not_confuse_the_view() {
    let mut top = top(hostile_status());
    press(&mut top, &[End, Enter]);
    let shown = screen(&mut top, 80, 24);
    assert!(
        shown.contains("worker    900000, pid 4100000, held"),
        "{shown}"
    );
    let mut status = status_of(1);
    status.uptime_seconds += 2.0;
    let worker: &mut WorkerStatus = &mut status.workers[0];
    worker.id = None;
    top.receive(News::Status(status));
    assert!(screen(&mut top, 80, 24).contains("This worker has ended."));
    assert_eq!(top.clients_wanted(), ClientsWanted::Nothing);
    press(&mut top, &[Char('k'), Char('r'), Enter, Escape, Enter]);
    assert_eq!(top.view(), View::Worker(super::workers::WorkerKey::Seat(0)));
    assert!(screen(&mut top, 80, 24).contains("worker    none, ready"));
}
