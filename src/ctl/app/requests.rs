//! Checks with requests, of the methods that an app has for them.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::dialog::{AppDialog, DialogFailure, excerpt};
use super::{CheckFinding, Suite};
use crate::proto::app::AppFault;

/// Returns its params as its result.
pub(super) const ECHO: &str = "check_echo";

/// Waits for a number of ms, its params.
pub(super) const SLEEP: &str = "check_sleep";

/// Answers with the error that its params are.
const FAULT: &str = "check_fault";

/// Raises an exception that it does not handle.
const CRASH: &str = "check_crash";

/// Prints its params, a string, as a line.
pub(super) const PRINT: &str = "check_print";

/// Returns nothing.
const NULL: &str = "check_null";

/// Starts a program, and returns whether that has the socket open.
const SPAWN: &str = "check_spawn";

/// Returns the finding of a check that needs a method, if the app has no such method.
pub(super) fn lacks(
    suite: &mut Suite<'_>,
    method: &str,
) -> Result<Option<CheckFinding>, DialogFailure> {
    let has = suite.app()?.has(method);
    Ok((!has).then(|| CheckFinding::Skipped(format!("the app has no method {method}"))))
}

/// A JSON value. `serde_json::Value` does not decode every text: see proto/rpc.rs.
#[derive(Debug, Deserialize, PartialEq)]
#[serde(untagged)]
enum AppJson {
    Null,
    Bool(bool),
    Number(f64),
    Text(String),
    List(Vec<AppJson>),
    Object(BTreeMap<String, AppJson>),
}

/// Checks that an answer is the JSON value that was sent.
pub(super) fn expect_echo(app: &mut AppDialog, id: u64, sent: &str) -> Result<(), String> {
    expect(app, id, sent, ECHO)
}

/// Checks that the answer of a method is this JSON value.
fn expect(app: &mut AppDialog, id: u64, sent: &str, method: &str) -> Result<(), String> {
    let got = app.answer(id)?.map_err(|fault| unwanted(&fault))?;
    let parse = |text: &str| serde_json::from_str::<AppJson>(text).map_err(|e| e.to_string());
    if parse(sent)? == parse(&got)? {
        return Ok(());
    }
    let (sent, got) = (excerpt(sent.as_bytes()), excerpt(got.as_bytes()));
    Err(format!("{method} returned {got}, not {sent}"))
}

/// Returns the sentence about an error that should be a result.
pub(super) fn unwanted(fault: &AppFault) -> String {
    format!("an error came, {}: {}", fault.code, fault.message)
}

/// Checks that params arrive as they were sent, and that each answer has the number of its request.
pub(super) fn params(suite: &mut Suite<'_>) -> Result<CheckFinding, DialogFailure> {
    const VALUES: [&str; 12] = [
        "true",
        "0",
        "-0.5e-3",
        "9007199254740991",
        "\"\"",
        "\"é \\u0000 \\\" \\\\ \\/ \\ud83d\\ude00 \u{1f600}\"",
        "\",\\\"params\\\":{\\\"id\\\":1}\"",
        "[]",
        "{}",
        "[ 1 ,\n[\t[ ] ], \"\" ]",
        "{\"params\":1,\"id\":2,\"in\":\"x\",\"cancel\":3}",
        "[[[[[[[[[[[[[[[[{\"a\":{\"b\":[null,false]}}]]]]]]]]]]]]]]]]",
    ];
    if let Some(skipped) = lacks(suite, ECHO)? {
        return Ok(skipped);
    }
    suite.with(|app| {
        VALUES.iter().try_for_each(|value| {
            let id = app.request(ECHO, Some(value));
            expect_echo(app, id, value)
        })
    })?;
    CheckFinding::passed("params arrive as they were sent")
}

/// Params that a JSON library may refuse get any answer, and the app continues.
pub(super) fn hard_params(suite: &mut Suite<'_>) -> Result<CheckFinding, DialogFailure> {
    const DEPTH: usize = 50_000;
    if let Some(skipped) = lacks(suite, ECHO)? {
        return Ok(skipped);
    }
    let nested =
        |open: &str, close: &str| format!("{}1{}", open.repeat(DEPTH), close.repeat(DEPTH));
    let (arrays, objects) = (nested("[", "]"), nested("{\"a\":", "}"));
    let number = "1".repeat(5000);
    for (what, params) in [
        ("params that are nested deeply", &arrays),
        ("objects that are nested deeply", &objects),
        ("a number of 5000 digits", &number),
    ] {
        let answered = |app: &mut AppDialog| app.call(ECHO, Some(params)).map(drop);
        suite.with(|app| answered(app).map_err(|text| format!("{what}: {text}")))?;
    }
    CheckFinding::passed("params that a JSON library may refuse are answered")
}

/// Checks that `null` is a result, and that a request may have no params.
pub(super) fn null(suite: &mut Suite<'_>) -> Result<CheckFinding, DialogFailure> {
    if let Some(skipped) = lacks(suite, ECHO)? {
        return Ok(skipped);
    }
    suite.with(|app| {
        let id = app.request(ECHO, Some("null"));
        expect_echo(app, id, "null")?;
        // Without params either answer is right.
        app.call(ECHO, None).map(drop)?;
        if app.has(NULL) {
            let id = app.request(NULL, None);
            expect(app, id, "null", NULL)?;
        }
        Ok(())
    })?;
    CheckFinding::passed("null is a result, and params may be missing")
}

/// Integers beyond 64 bits and 53 bits.
pub(super) fn integers(suite: &mut Suite<'_>) -> Result<CheckFinding, DialogFailure> {
    const LARGE: [&str; 2] = [
        "9007199254740993",
        "340282366920938463463374607431768211457",
    ];
    if let Some(skipped) = lacks(suite, ECHO)? {
        return Ok(skipped);
    }
    for sent in LARGE {
        match suite.with(|app| app.call(ECHO, Some(sent)))? {
            Ok(got) if got == sent => {}
            Ok(got) => {
                let got = excerpt(got.as_bytes());
                return CheckFinding::noted(format!(
                    "the app rounds large integers: {sent} became {got}"
                ));
            }
            Err(fault) => {
                return CheckFinding::noted(format!("the app refuses {sent}: {}", fault.message));
            }
        }
    }
    CheckFinding::passed("integers are exact")
}

/// Checks that as many requests as the app permits are out at a time.
pub(super) fn concurrency(suite: &mut Suite<'_>) -> Result<CheckFinding, DialogFailure> {
    if let Some(skipped) = lacks(suite, ECHO)? {
        return Ok(skipped);
    }
    let permitted = suite.app()?.hello.concurrency;
    suite.with(|app| {
        let sent: Vec<(u64, String)> = (0..permitted)
            .map(|n| {
                let params = format!("[{n}]");
                (app.request(ECHO, Some(&params)), params)
            })
            .collect();
        sent.iter()
            .try_for_each(|(id, params)| expect_echo(app, *id, params))
    })?;
    CheckFinding::passed(format!("{permitted} at a time are answered"))
}

/// Checks that a short request is answered while a longer one waits.
pub(super) fn overtaking(suite: &mut Suite<'_>) -> Result<CheckFinding, DialogFailure> {
    for method in [SLEEP, ECHO] {
        if let Some(skipped) = lacks(suite, method)? {
            return Ok(skipped);
        }
    }
    let permitted = suite.app()?.hello.concurrency;
    if permitted == 1 {
        return CheckFinding::skipped("the app has one request at a time");
    }
    if overtakes(suite)? {
        return CheckFinding::passed("a short request is answered while a longer one waits");
    }
    CheckFinding::noted(format!(
        "requests are answered one after another; with concurrency {permitted} each waits for all before it"
    ))
}

/// Returns whether a request and a probe are answered while another request waits.
pub(super) fn overtakes(suite: &mut Suite<'_>) -> Result<bool, DialogFailure> {
    suite.with(|app| {
        let slow = app.request(SLEEP, Some("3000"));
        let fast = app.request(ECHO, Some("1"));
        let overtakes = app.first_of([slow, fast])? == fast;
        if overtakes {
            app.probe()?;
            // Any answer will do.
            app.send(&format!("{{\"cancel\":{slow},\"why\":\"gone\"}}"));
        }
        app.answer(fast)?.map_err(|fault| unwanted(&fault))?;
        app.answer(slow)?.ok();
        Ok(overtakes)
    })
}

/// Checks that the error of a method has its code and message.
pub(super) fn fault(suite: &mut Suite<'_>) -> Result<CheckFinding, DialogFailure> {
    if let Some(skipped) = lacks(suite, FAULT)? {
        return Ok(skipped);
    }
    let (code, message) = ("no_such_item", "there is no \"tea\" in 茶");
    suite.with(|app| {
        let params = "{\"code\":\"no_such_item\",\"message\":\"there is no \\\"tea\\\" in 茶\"}";
        match app.call(FAULT, Some(params))? {
            Err(fault) if fault.code == code && fault.message == message => Ok(()),
            Err(fault) => Err(format!(
                "another error came, {}: {}",
                fault.code, fault.message
            )),
            Ok(result) => Err(format!("a result came: {}", excerpt(result.as_bytes()))),
        }
    })?;
    CheckFinding::passed("an error has its code and message")
}

/// Checks that an exception is `crashed`, with the name of its class only.
pub(super) fn crash(suite: &mut Suite<'_>) -> Result<CheckFinding, DialogFailure> {
    if let Some(skipped) = lacks(suite, CRASH)? {
        return Ok(skipped);
    }
    let mut app = suite.start()?;
    let checked = crash_of(&mut app);
    checked.map_err(|text| app.failure(text))
}

fn crash_of(app: &mut AppDialog) -> Result<CheckFinding, String> {
    let fault = match app.call(CRASH, None)? {
        Err(fault) => fault,
        Ok(result) => {
            let result = excerpt(result.as_bytes());
            return Err(format!("a result came: {result}"));
        }
    };
    if fault.code != "crashed" {
        return Err(format!("the code is {:?}, not \"crashed\"", fault.code));
    }
    if fault.message.contains(['\n', '/']) {
        let message = excerpt(fault.message.as_bytes());
        return Err(format!(
            "the client would read more than the class of the exception: {message}"
        ));
    }
    // It may end then, as Go does.
    let text = match app.probe() {
        Ok(()) => "an exception is \"crashed\", and the app continues",
        Err(_) if app.process.has_wire_ended() => "an exception is \"crashed\", and the app ends",
        Err(text) => return Err(text),
    };
    Ok(CheckFinding::Passed(text.to_owned()))
}

/// Checks that a request that is cancelled is answered, once.
pub(super) fn cancel(suite: &mut Suite<'_>) -> Result<CheckFinding, DialogFailure> {
    if let Some(skipped) = lacks(suite, SLEEP)? {
        return Ok(skipped);
    }
    for why in ["gone", "timeout"] {
        suite.with(|app| {
            let waiting = app.request(SLEEP, Some("1500"));
            app.send(&format!("{{\"cancel\":{waiting},\"why\":\"{why}\"}}"));
            app.answer(waiting).map(drop)?;
            app.settle()
        })?;
    }
    CheckFinding::passed("a cancelled request is answered, once")
}

/// Checks that a program that the app starts has no copy of its socket.
pub(super) fn spawn(suite: &mut Suite<'_>) -> Result<CheckFinding, DialogFailure> {
    #[derive(Deserialize)]
    struct Spawned {
        open: bool,
    }
    if let Some(skipped) = lacks(suite, SPAWN)? {
        return Ok(skipped);
    }
    suite.with(|app| {
        let got = app.call(SPAWN, None)?.map_err(|fault| unwanted(&fault))?;
        match serde_json::from_str::<Spawned>(&got) {
            Ok(Spawned { open: false }) => Ok(()),
            Ok(Spawned { open: true }) => {
                Err("a program that the app started has the socket open".to_owned())
            }
            Err(e) => Err(format!("{SPAWN} returned {}: {e}", excerpt(got.as_bytes()))),
        }
    })?;
    CheckFinding::passed("a program that the app starts has no copy of the socket")
}
