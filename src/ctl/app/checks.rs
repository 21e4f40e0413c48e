//! The code of the checks, and the checks of a start.

use std::fs;
use std::io::{Read, Seek};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Instant;

use super::dialog::{AppDialog, CLIENT, DialogFailure};
use super::{CheckFinding, Suite, ends, frames, requests};
use crate::ctl::args::check::AppCheck;
use crate::proto::app::{DESCRIPTOR, DESCRIPTOR_VARIABLE, MAX_FRAME_VARIABLE};
use crate::proto::text::Counted;
use crate::sys::memory::plain_file;
use crate::sys::poll::{Interest, wait_for};
use crate::sys::process::open_pidfd;

/// The code of a check.
pub(super) type CheckCode = fn(&mut Suite<'_>) -> Result<CheckFinding, DialogFailure>;

/// Returns the code of a check.
pub(super) fn code_of(check: AppCheck) -> CheckCode {
    match check {
        AppCheck::Hello => hello,
        AppCheck::Descriptor => descriptor,
        AppCheck::Probe => probe,
        AppCheck::Unknown => unknown,
        AppCheck::Closed => closed,
        AppCheck::Signals => ends::signals,
        AppCheck::Log => log,
        AppCheck::Params => requests::params,
        AppCheck::HardParams => requests::hard_params,
        AppCheck::Null => requests::null,
        AppCheck::Integers => requests::integers,
        AppCheck::HalfFrames => frames::half_frames,
        AppCheck::ManyFrames => frames::many_frames,
        AppCheck::LargeFrames => frames::large_frames,
        AppCheck::TooLong => frames::too_long,
        AppCheck::Concurrency => requests::concurrency,
        AppCheck::Overtaking => requests::overtaking,
        AppCheck::Fault => requests::fault,
        AppCheck::Crash => requests::crash,
        AppCheck::Cancel => requests::cancel,
        AppCheck::Spawn => requests::spawn,
        AppCheck::Stop => ends::stop,
        AppCheck::StopLong => ends::stop_long,
        AppCheck::End => ends::end,
        AppCheck::EndBusy => ends::end_busy,
        AppCheck::ByHand => by_hand,
    }
}

/// Checks that the hello comes first, in time, and is right. Only an app with a right hello is kept for other checks.
fn hello(suite: &mut Suite<'_>) -> Result<CheckFinding, DialogFailure> {
    let begin = Instant::now();
    let app = suite.start().inspect_err(|_| suite.is_dead = true)?;
    let text = format!(
        "{} with concurrency {}, after {} ms",
        Counted(app.hello.methods.len(), "method"),
        app.hello.concurrency,
        begin.elapsed().as_millis()
    );
    suite.app = Some(app);
    CheckFinding::passed(text)
}

/// Checks that no program that the app starts inherits its end of the socket pair.
fn descriptor(suite: &mut Suite<'_>) -> Result<CheckFinding, DialogFailure> {
    let process = format!("/proc/{}", suite.app()?.process.pid());
    let target = |number: &str| fs::read_link(format!("{process}/fd/{number}"));
    let Ok(wire) = target(&DESCRIPTOR.to_string()) else {
        return CheckFinding::skipped("descriptor 3 has another number, or /proc cannot be read");
    };
    let Ok(open) = fs::read_dir(format!("{process}/fd")) else {
        return CheckFinding::skipped("/proc cannot be read");
    };
    for number in open.flatten().map(|entry| entry.file_name()) {
        let number = number.to_string_lossy();
        if target(&number).is_ok_and(|other| other == wire) && !is_closed_by_exec(&process, &number)
        {
            return Err(format!(
                "descriptor {number} is not close-on-exec: a program that the app starts would keep the socket open"
            )
            .into());
        }
    }
    CheckFinding::passed("descriptor 3 is close-on-exec")
}

/// Returns whether a descriptor is close-on-exec, by proc_pid_fdinfo(5).
fn is_closed_by_exec(process: &str, number: &str) -> bool {
    const CLOSE_ON_EXEC: u32 = 0o2_000_000;
    let info = fs::read_to_string(format!("{process}/fdinfo/{number}")).unwrap_or_default();
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok());
    flags.is_none_or(|flags| flags & CLOSE_ON_EXEC != 0)
}

fn probe(suite: &mut Suite<'_>) -> Result<CheckFinding, DialogFailure> {
    suite.with(AppDialog::probe)?;
    CheckFinding::passed("a probe is answered")
}

/// Messages and members of a later version are ignored.
fn unknown(suite: &mut Suite<'_>) -> Result<CheckFinding, DialogFailure> {
    suite.with(|app| {
        app.send("{\"weather\":{\"wind\":[1,2]}}");
        app.send("{\"cancel\":999999,\"why\":\"gone\"}");
        app.probe()
    })?;
    if !suite.app()?.has(requests::ECHO) {
        return CheckFinding::passed("an unknown message and a late cancel are ignored");
    }
    suite.with(|app| {
        let (id, frame) = app.frame(requests::ECHO, Some("1"));
        // The worker's members and one more, params still last.
        let body = String::from_utf8_lossy(&frame[4..]).into_owned();
        let body = body.replacen("\"attempt\"", "\"later\":{\"x\":[1]},\"attempt\"", 1);
        app.send(&body);
        requests::expect_echo(app, id, "1")
    })?;
    CheckFinding::passed("unknown messages and members and a late cancel are ignored")
}

/// Checks that the end of a client disturbs nothing.
fn closed(suite: &mut Suite<'_>) -> Result<CheckFinding, DialogFailure> {
    if !suite.app()?.hello.closes {
        return CheckFinding::skipped("the hello has no \"closes\"");
    }
    suite.with(|app| {
        app.send(&format!("{{\"closed\":{CLIENT}}}"));
        app.probe()
    })?;
    CheckFinding::passed("a closed client is accepted")
}

/// Checks that standard output is the log, written line by line.
fn log(suite: &mut Suite<'_>) -> Result<CheckFinding, DialogFailure> {
    const LINE: &str = "a line for the log";
    if let Some(skipped) = requests::lacks(suite, requests::PRINT)? {
        return Ok(skipped);
    }
    suite.with(|app| {
        app.call(requests::PRINT, Some(&format!("\"{LINE}\"")))?
            .map_err(|fault| requests::unwanted(&fault))?;
        app.wait_for("the line on standard output, flushed at its end,", |app| {
            let lines = &app.process.output.lines;
            lines.iter().any(|line| line.ends_with(LINE)).then_some(())
        })
    })?;
    CheckFinding::passed("a printed line is in the log at once")
}

/// Checks that the program ends without its descriptor, with a sentence on standard error.
fn by_hand(suite: &mut Suite<'_>) -> Result<CheckFinding, DialogFailure> {
    const USAGE: i32 = 64;
    const MAX_LINE: u64 = 1000;
    // A file, because the program may write more than a pipe takes, and a process that it leaves may keep a pipe open.
    let mut error = plain_file(c"stderr").map_err(|e| e.to_string())?;
    let theirs = error.try_clone().map_err(|e| e.to_string())?;
    let mut child = Command::new(&suite.command[0])
        .args(&suite.command[1..])
        .env_remove(DESCRIPTOR_VARIABLE)
        .env_remove(MAX_FRAME_VARIABLE)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(theirs)
        .process_group(0)
        .spawn()
        .map_err(|e| e.to_string())?;
    let ended = open_pidfd(child.id())
        .and_then(|pidfd| wait_for(pidfd.as_fd(), Interest::Read, suite.timeout));
    // The group, too: it may have children.
    let _ = crate::sys::process::kill_group(child.id());
    let _ = child.kill();
    let status = child.wait().map_err(|e| e.to_string())?;
    let mut said = Vec::new();
    let _ = error
        .rewind()
        .and_then(|()| error.take(MAX_LINE).read_to_end(&mut said));
    let said = String::from_utf8_lossy(&said);
    match ended {
        Ok(true) if status.code() == Some(USAGE) && !said.is_empty() => {
            CheckFinding::passed(format!(
                "started by hand, it prints: {}",
                said.lines().next().unwrap_or_default()
            ))
        }
        Ok(true) => CheckFinding::noted(format!(
            "started by hand, it ended with {status}; 64 and a sentence on standard error would help"
        )),
        _ => CheckFinding::noted("started by hand, it does not end"),
    }
}
