//! Checks of frames: in pieces, many, large, and too long.

use super::dialog::{AppDialog, DialogFailure};
use super::process::MAX_FRAME;
use super::requests::{ECHO, expect_echo, lacks};
use super::{CheckFinding, Suite};

/// Checks that a frame may arrive in any pieces.
pub(super) fn half_frames(suite: &mut Suite<'_>) -> Result<CheckFinding, DialogFailure> {
    // Within the length, at its end, within the body.
    const CUTS: [usize; 4] = [1, 3, 4, 30];
    if let Some(skipped) = lacks(suite, ECHO)? {
        return Ok(skipped);
    }
    suite.with(|app| {
        for cut in CUTS {
            let (id, frame) = app.frame(ECHO, Some("\"half\""));
            let (begin, rest) = frame.split_at(cut);
            app.process.send(begin);
            app.read_all()?;
            app.process.send(rest);
            expect_echo(app, id, "\"half\"")?;
        }
        Ok(())
    })?;
    CheckFinding::passed("a frame may arrive in pieces")
}

/// Checks that many messages may arrive together, and the last of them in part.
pub(super) fn many_frames(suite: &mut Suite<'_>) -> Result<CheckFinding, DialogFailure> {
    if let Some(skipped) = lacks(suite, ECHO)? {
        return Ok(skipped);
    }
    suite.with(|app| {
        let (first, mut together) = app.frame(ECHO, Some("1"));
        for _ in 0..100 {
            together.extend_from_slice(&super::dialog::framed(b"{\"later\":1}"));
        }
        if app.hello.concurrency == 1 {
            app.process.send(&together);
            return expect_echo(app, first, "1");
        }
        let (second, frame) = app.frame(ECHO, Some("2"));
        let (begin, rest) = frame.split_at(frame.len() / 2);
        together.extend_from_slice(begin);
        app.process.send(&together);
        expect_echo(app, first, "1")?;
        app.process.send(rest);
        expect_echo(app, second, "2")
    })?;
    CheckFinding::passed("many frames may arrive together")
}

/// Checks that frames of 300 KB pass in both directions, followed by another one.
pub(super) fn large_frames(suite: &mut Suite<'_>) -> Result<CheckFinding, DialogFailure> {
    if let Some(skipped) = lacks(suite, ECHO)? {
        return Ok(skipped);
    }
    let large = text_of(300_000);
    suite.with(|app| {
        let first = app.request(ECHO, Some(&large));
        let second = (app.hello.concurrency > 1).then(|| app.request(ECHO, Some("2")));
        expect_echo(app, first, &large)?;
        second.map_or(Ok(()), |id| expect_echo(app, id, "2"))
    })?;
    CheckFinding::passed("frames of 300 KB pass in both directions")
}

/// Checks that a result that would be too long is an error of its caller.
pub(super) fn too_long(suite: &mut Suite<'_>) -> Result<CheckFinding, DialogFailure> {
    if let Some(skipped) = lacks(suite, ECHO)? {
        return Ok(skipped);
    }
    let long = text_of(MAX_FRAME);
    suite.with(|app| match app.call(ECHO, Some(&long))? {
        Err(_) => Ok(()),
        Ok(_) => Err("a result came that cannot be the one that was sent".to_owned()),
    })?;
    suite.with(AppDialog::probe)?;
    CheckFinding::passed("a result above FDPASSD_MAX_FRAME is an error of its caller")
}

/// Returns a JSON string of this length.
fn text_of(length: usize) -> String {
    format!("\"{}\"", "x".repeat(length - 2))
}
