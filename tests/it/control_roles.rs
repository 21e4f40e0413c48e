//! Access by role on the control socket: root, the daemon's user, members of groups, strangers.

mod connection;
mod users;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::Duration;

use fdpassd::proto::control::{Events, Kind, Status, Verb};
use fdpassd::testing::eventually;
use nix::sys::signal::Signal;

use crate::common::program::{FDPASSCTL, OtherUser, Program, Said, wait_for_clients};
use crate::common::{FDPASSD, kernel, let_pass};
use connection::Hand;

/// The user that the daemon runs as, and its group. Neither has a name, nor has any of the others.
const DAEMON: u32 = 61_200;
const ADMINS: u32 = 61_201;
const READERS: u32 = 61_202;
/// A user, and its own group.
const USER: u32 = 61_300;

const BOTH: &str = "admin-group = \"61201\", read-group = \"61202\"";

/// A user with a primary group and supplementary ones.
type Who<'a> = (u32, u32, &'a [u32]);

const ROOT: Who<'_> = (0, 0, &[]);
const OWNER: Who<'_> = (DAEMON, DAEMON, &[]);
const ADMIN: Who<'_> = (USER, ADMINS, &[]);
const SECOND_ADMIN: Who<'_> = (USER + 1, USER, &[7, ADMINS]);
const READER: Who<'_> = (USER + 2, USER, &[READERS, 7]);
const COLLEAGUE: Who<'_> = (USER + 3, USER, &[DAEMON]);
const STRANGER: Who<'_> = (USER + 4, USER, &[7]);

/// A daemon that is not root, and a directory that everybody reaches.
struct Daemon {
    program: Program,
    /// Last, so that its directory goes after the process.
    others: OtherUser,
}

impl Daemon {
    /// Starts it with these keys in `[control]`; skips the test where no process can change its user.
    fn start(control: &str) -> Option<Daemon> {
        let others = OtherUser::with_groups()?;
        let config = others.directory().join("config.toml");
        let mut command = others.command_in(FDPASSD, DAEMON, DAEMON, &[]);
        write_config(&others, control);
        let mut program = Program::start(command.arg("-c").arg(config));
        assert!(program.line().contains(" listens on "), "it serves");
        let daemon = Daemon { program, others };
        // Later, fdpassctl would print this among the replies.
        for worker in ["worker 1 ", "worker 2 "] {
            daemon.wait_for_log(&[worker, " is ready after "]);
        }
        Some(daemon)
    }

    fn socket(&self) -> PathBuf {
        self.others.directory().join("control.sock")
    }

    fn ctl(&self, (uid, gid, groups): Who<'_>, arguments: &[&str]) -> Command {
        let mut command = self.others.command_in(FDPASSCTL, uid, gid, groups);
        command.args(arguments).arg("--socket").arg(self.socket());
        command
    }

    #[track_caller]
    fn ask(&self, who: Who<'_>, arguments: &[&str]) -> Said {
        Program::start(&mut self.ctl(who, arguments)).finish()
    }

    #[track_caller]
    fn reload(&self, control: &str) {
        let said = self.begin_reload(control).finish();
        assert_eq!(said.code, Some(0), "{}", said.err);
    }

    #[track_caller]
    fn begin_reload(&self, control: &str) -> Program {
        write_config(&self.others, control);
        Program::start(&mut self.ctl(ROOT, &["reload"]))
    }

    /// Waits until a line of the log has all these words.
    #[track_caller]
    fn wait_for_log(&self, words: &[&str]) {
        let path = self.others.directory().join("log");
        eventually(&format!("{words:?} are logged"), || {
            let log = fs::read_to_string(&path).expect("the daemon made it");
            log.lines()
                .any(|line| words.iter().all(|words| line.contains(words)))
                .then_some(())
        });
    }
}

fn write_config(others: &OtherUser, control: &str) {
    let directory = others.directory();
    let (socket, log) = (directory.join("control.sock"), directory.join("log"));
    let comma = if control.is_empty() { "" } else { ", " };
    let text = format!(
        "listen = [\"127.0.0.1:0\"]\nworkers.count = 2\n\
         log = {{ target = \"file\", file = {log:?} }}\ncontrol = {{ socket = {socket:?}{comma}{control} }}\n"
    );
    fs::write(directory.join("config.toml"), text).expect("it is our directory");
}

#[test]
fn each_role_may_do_what_the_table_lists() {
    let Some(daemon) = Daemon::start("") else {
        return;
    };
    let askers = [
        ROOT,
        OWNER,
        ADMIN,
        SECOND_ADMIN,
        READER,
        COLLEAGUE,
        STRANGER,
    ];
    for (control, may) in [
        // Users that may change the daemon, users that may read, and users that may neither.
        ("", "AA---R-"),
        ("mode = \"0666\"", "AARRRRR"),
        ("admin-group = \"61201\"", "AAAA---"),
        ("read-group = \"61202\"", "AA--R--"),
        (BOTH, "AAAAR--"),
        (&format!("mode = \"0660\", {BOTH}"), "AA-----"),
        ("", "AA---R-"),
    ] {
        daemon.reload(control);
        let asked = |who, verb: &str| {
            let said = daemon.ask(who, &[verb]);
            let is_done = said.code == Some(0);
            assert!(
                is_done || said.code == Some(77) && said.err.contains("forbidden: "),
                "{who:?} {verb}: {said:?}"
            );
            is_done
        };
        let found: String = askers
            .map(|who| match (asked(who, "status"), asked(who, "undrain")) {
                (true, true) => 'A',
                (true, false) => 'R',
                (false, false) => '-',
                (false, true) => '!',
            })
            .iter()
            .collect();
        assert_eq!(found, may, "{control}");
    }
}

#[test]
fn a_refusal_names_the_required_role() {
    let Some(daemon) = Daemon::start(BOTH) else {
        return;
    };
    let changing = "only root, uid 61200 or the group 61201 may change this daemon";
    let looking =
        "only root, uid 61200, the group 61201 or the group 61202 may inspect this daemon";
    for (who, verb, sentence) in [
        (READER, "stop", changing),
        (STRANGER, "stop", looking),
        (STRANGER, "status", looking),
    ] {
        let said = daemon.ask(who, &[verb]);
        assert_eq!(
            (said.code, said.err),
            (Some(77), format!("fdpassctl: forbidden: {sentence}\n")),
            "{verb}"
        );
    }
    daemon.wait_for_log(&[
        "uid 61304 (pid ",
        ") rejected at the control socket: only root",
    ]);

    // fdpassctl explains a refusal of the kernel.
    let socket = daemon.socket();
    daemon.reload("mode = \"0660\"");
    let said = daemon.ask(STRANGER, &["status"]);
    let sentence = format!(
        "{} is for root, uid 61200 and the group 61200",
        socket.display()
    );
    assert_eq!(
        (said.code, said.err),
        (Some(77), format!("fdpassctl: forbidden: {sentence}\n"))
    );
    let hidden = tempfile::tempdir().expect("a directory");
    let inner = hidden.path().join("control.sock");
    fs::set_permissions(hidden.path(), PermissionsExt::from_mode(0o700)).expect("it is ours");
    let (uid, gid, groups) = STRANGER;
    let mut command = daemon.others.command_in(FDPASSCTL, uid, gid, groups);
    let said = Program::start(command.arg("status").arg("--socket").arg(&inner)).finish();
    let sentence = format!(
        "{} is in {}, which is for root only",
        inner.display(),
        hidden.path().display()
    );
    assert_eq!(
        (said.code, said.err),
        (Some(77), format!("fdpassctl: forbidden: {sentence}\n"))
    );
}

#[test]
fn one_of_very_many_groups_is_enough() {
    let Some(daemon) = Daemon::start(BOTH) else {
        return;
    };
    let others: Vec<u32> = (70_000..70_300).collect();
    let with = |group: u32| [&others[..], &[group]].concat();
    assert_eq!(
        daemon.ask((USER, USER, &with(ADMINS)), &["undrain"]).code,
        Some(0)
    );
    assert_eq!(
        daemon.ask((USER, USER, &with(80_000)), &["status"]).code,
        Some(77)
    );
}

#[test]
fn changes_and_refusals_are_logged_with_the_requester() {
    let Some(daemon) = Daemon::start(BOTH) else {
        return;
    };
    let changes = || Verb::ALL.into_iter().filter(|verb| verb.changes());
    let mut reader = Hand::of(&daemon, READER);
    for verb in changes() {
        let reply = reader.ask(&format!(r#"{{"in":"{}"}}"#, verb.as_str()));
        assert!(
            reply.is_some_and(|reply| reply.contains("\"forbidden\"")),
            "{verb:?}"
        );
        let by = format!(
            " {} by uid {} (pid {}): refused: only root",
            verb.as_str(),
            READER.0,
            reader.pid()
        );
        daemon.wait_for_log(&[&by]);
    }
    let reply = reader.ask(r#"{"in":"log-level","params":{"level":"debug"}}"#);
    assert!(reply.is_some_and(|reply| reply.contains("\"forbidden\"")));
    assert!(
        reader
            .ask(r#"{"in":"log-level"}"#)
            .is_some_and(|reply| reply.starts_with("log-level "))
    );
    // Before that connection, which would be closed after five seconds without a request.
    let status: Status =
        serde_json::from_str(&daemon.ask(ROOT, &["status", "--json"]).out).expect("a status");
    let worker = status.workers[0].id.expect("it is ready").0;
    let mut admin = Hand::of(&daemon, SECOND_ADMIN);
    let by = format!(" by uid {} (pid {}): ", SECOND_ADMIN.0, admin.pid());
    for verb in changes() {
        let reply = admin
            .ask(&format!(r#"{{"in":"{}","params":[]}}"#, verb.as_str()))
            .expect("a reply");
        assert!(
            !reply.contains("\"forbidden\"") && reply.starts_with("error "),
            "{verb:?}: {reply}"
        );
        daemon.wait_for_log(&[&format!(" {}{by}refused: ", verb.as_str())]);
    }
    for (verb, params, words) in [
        ("scale", r#"{"count":1}"#, "1 worker instead of 2"),
        ("recycle", "{}", "replacing all workers"),
        (
            "recycle",
            r#"{"worker":99}"#,
            "refused: there is no worker 99",
        ),
        ("hold", r#"{"worker":99}"#, "refused: there is no worker 99"),
        (
            "release",
            r#"{"method":"pi"}"#,
            "refused: method \"pi\" is not quarantined",
        ),
        ("drain", "{}", "new clients are refused"),
        ("undrain", "{}", "clients are accepted"),
        ("rebalance", "{}", "the workers are evenly loaded"),
        ("reload", "{}", "reloading; generation 2"),
        (
            "hold",
            &format!(r#"{{"worker":{worker}}}"#),
            "refused: there is no worker",
        ),
        ("stop", "{}", "stopping"),
    ] {
        admin
            .ask(&format!(r#"{{"in":"{verb}","params":{params}}}"#))
            .expect("a reply");
        daemon.wait_for_log(&[&format!(" {verb}{by}"), words]);
    }
}

#[test]
fn a_reload_changes_the_role_of_an_open_connection() {
    let Some(daemon) = Daemon::start(BOTH) else {
        return;
    };
    let mut hand = Hand::of(&daemon, SECOND_ADMIN);
    let (look, change) = (r#"{"in":"version"}"#, r#"{"in":"undrain"}"#);
    let is_error = |reply: &String| reply.starts_with("error ");
    let is_done = |hand: &mut Hand, request: &str| {
        let reply = hand.ask(request);
        reply.is_some_and(|reply| !is_error(&reply))
    };
    // The connection would be closed after five seconds without a request.
    let reload = |hand: &mut Hand, control: &str| {
        let mut reload = daemon.begin_reload(control);
        while reload.is_running() {
            assert!(is_done(hand, look));
            let_pass(Duration::from_millis(100));
        }
        assert_eq!(reload.finish().code, Some(0));
    };
    assert!(is_done(&mut hand, look) && is_done(&mut hand, change));
    reload(&mut hand, "read-group = \"61201\"");
    assert!(is_done(&mut hand, look) && !is_done(&mut hand, change));
    reload(&mut hand, "admin-group = \"61201\"");
    assert!(is_done(&mut hand, look) && is_done(&mut hand, change));

    let reload = daemon.begin_reload("admin-group = \"61203\"");
    let reply = eventually("it may not look any more", || {
        Some(hand.ask(look).expect("it is told")).filter(is_error)
    });
    assert!(
        reply.contains("only root, uid 61200 or the group 61203 may inspect this daemon"),
        "{reply}"
    );
    assert_eq!(hand.ask(look), None, "and the connection is closed");
    assert_eq!(reload.finish().code, Some(0));
}

#[test]
fn a_wait_for_events_ends_when_its_role_is_lost() {
    let Some(daemon) = Daemon::start(BOTH) else {
        return;
    };
    let mut hand = Hand::of(&daemon, READER);
    thread::scope(|threads| {
        // The connection would be closed after five seconds without a request, such as those until this has started.
        threads.spawn(|| daemon.reload("admin-group = \"61201\""));
        // It asks again as soon as it is answered, as the workers start, up to the moment when it may not any more.
        let mut after = 0;
        let refusal = loop {
            let request = format!(r#"{{"in":"events","params":{{"after":{after},"wait":9}}}}"#);
            let reply = hand.ask(&request).expect("a reply");
            let Some(events) = reply.strip_prefix("events ") else {
                break reply;
            };
            let events: Events = serde_json::from_str(events).expect("events");
            let mut kinds = events.events.iter().map(|event| event.event);
            assert!(kinds.all(|kind| kind != Kind::ReloadApplied), "{events:?}");
            after = events.last;
        };
        assert!(refusal.contains("only root"), "{refusal}");
    });
}

#[test]
fn limits_exclude_strangers_and_do_not_count_admins_by_user() {
    let Some(mut daemon) = Daemon::start(BOTH) else {
        return;
    };
    // All wait in the queue while the master stands still: it accepts them in one go, the first come first. Of the
    // strangers there are more than there may be clients at all.
    let master = daemon.program.pid();
    kernel::stop(master);
    let start = |who, count: usize| -> Vec<Program> {
        (0..count)
            .map(|_| Program::start(&mut daemon.ctl(who, &["version", "--timeout", "5m"])))
            .collect()
    };
    let strangers = start(STRANGER, 80);
    wait_for_clients(&daemon.socket(), 80);
    let admitted = [start(READER, 8), start(ADMIN, 20)]
        .into_iter()
        .flatten()
        .collect::<Vec<_>>();
    wait_for_clients(&daemon.socket(), 108);
    let excess = start(READER, 1);
    wait_for_clients(&daemon.socket(), 109);
    kernel::send(master, Signal::SIGCONT);
    let codes = |programs: Vec<Program>| {
        programs
            .into_iter()
            .map(|program| program.finish().code)
            .collect::<Vec<_>>()
    };
    assert_eq!(codes(strangers), [Some(77); 80]);
    assert_eq!(codes(admitted), [Some(0); 28]);
    assert_eq!(codes(excess), [Some(1)]);
    assert!(daemon.program.is_running());
}
