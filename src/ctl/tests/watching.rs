//! `status --watch` until its output ends, and `top` without a terminal.

use std::sync::atomic::AtomicUsize;

use super::*;

/// An output whose reader goes after some blocks.
struct Reader {
    text: Vec<u8>,
    blocks: usize,
}

impl Write for Reader {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        self.blocks = self.blocks.saturating_sub(1);
        match self.blocks {
            0 => Err(ErrorKind::BrokenPipe.into()),
            _ => Ok(()),
        }
    }
}

/// Watches a daemon that closes the connection of the second request, and is busy at the next one.
fn watched(arguments: &[&str]) -> String {
    let asked = AtomicUsize::new(0);
    let daemon = Daemon::that_answers(move |verb, _| match verb {
        "status" => match asked.fetch_add(1, Ordering::Relaxed) {
            1 => None,
            2 => Some(fault("busy", r"too many\u001b")),
            _ => Some(reply("status", &status())),
        },
        _ => Some(daemons_version()),
    });
    let mut out = Reader {
        text: Vec::new(),
        blocks: 3,
    };
    let mut err = Vec::new();
    let common = ["fdpassctl", "status", "--watch=100ms", "-s", &daemon.socket];
    let line = common.iter().chain(arguments).map(OsString::from);
    let seen = Seen::default();
    let exit = run(FDPASSCTL, line, |_| None, seen, &mut out, &mut err);
    assert_eq!((exit, err.as_slice()), (ExitStatus::Failed, &b""[..]));
    assert_eq!(daemon.asked(&["version"]).exit, ExitStatus::Done);
    String::from_utf8(out.text).expect("UTF-8")
}

#[test]
fn the_status_is_repeated_while_a_daemon_is_away_and_after() {
    let text = watched(&[]);
    let blocks: Vec<&str> = text.split("\n\nfdpassd ").collect();
    assert_eq!(blocks.len(), 2, "{text}");
    assert!(text.starts_with("fdpassd 0.1.0, pid 4711"), "{text}");
    assert!(blocks[0].ends_with("\n\nbusy: too many\\x1b"), "{text}");

    let text = watched(&["--json"]);
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    assert_eq!(lines.len(), 3, "{text}");
    assert_eq!(
        (&lines[0]["pid"], &lines[2]["pid"]),
        (&4711.into(), &4711.into())
    );
    assert_eq!(lines[1]["error"]["code"], "busy");
}

#[test]
fn a_status_that_cannot_be_read_is_an_outage() {
    // As one of a daemon of another version.
    let asked = AtomicUsize::new(0);
    let daemon = Daemon::that_answers(move |verb, _| match verb {
        "status" => match asked.fetch_add(1, Ordering::Relaxed) {
            1 => Some(reply("status", &serde_json::json!({}))),
            _ => Some(reply("status", &status())),
        },
        _ => Some(daemons_version()),
    });
    let mut out = Reader {
        text: Vec::new(),
        blocks: 3,
    };
    let line = ["fdpassctl", "status", "--watch=100ms", "-s", &daemon.socket];
    let line = line.iter().map(OsString::from);
    let exit = run(
        FDPASSCTL,
        line,
        |_| None,
        Seen::default(),
        &mut out,
        &mut Vec::new(),
    );
    assert_eq!(exit, ExitStatus::Failed);
    let text = String::from_utf8(out.text).expect("UTF-8");
    assert_eq!(text.matches("fdpassd 0.1.0, pid 4711").count(), 2, "{text}");
    assert_eq!(text.split("\n\nfdpassd 0.1.0").count(), 2, "{text}");
}

#[test]
fn without_a_first_status_watching_fails_at_once() {
    let ran = ctl(
        &["status", "--watch", "-s", "/nonexistent/control.sock"],
        &[],
    );
    assert_eq!((ran.exit, ran.out.as_str()), (ExitStatus::NotRunning, ""));
}

#[test]
fn top_makes_no_json() {
    let ran = ctl(&["top", "--json"], &[]);
    assert_eq!(ran.exit, ExitStatus::Usage);
    assert!(
        ran.err
            .contains("\"status --watch --json\" is for programs"),
        "{}",
        ran.err
    );
}
