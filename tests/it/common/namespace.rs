//! Network namespaces for tests, by unshare(1): a test runs itself once more in one.

use std::env;
use std::process::Command;

use super::needs::skip;

/// Set in the process that is in the namespace.
const INSIDE: &str = "FDPASSD_TEST_INSIDE";

/// The name of the test that this stands in, as `--exact` wants it.
macro_rules! this_test {
    () => {{
        fn here() {}
        let path = std::any::type_name_of_val(&here);
        path.strip_suffix("::here")
            .and_then(|path| path.split_once("::"))
            .map(|(_, test)| test)
            .expect("a function has a path")
    }};
}
pub(crate) use this_test;

/// Runs a test once more, in a user namespace and a network namespace that the shell commands of `prepare` have set up.
/// Returns true in that process and false in the caller's, where the test is then over. Skips the test where the
/// namespace cannot be made.
#[track_caller]
pub fn is_inside(test: &str, prepare: &str) -> bool {
    if env::var_os(INSIDE).is_some() {
        return true;
    }
    let tried = Command::new("unshare")
        .args(["-rn", "sh", "-c", prepare])
        .output();
    if !tried.as_ref().is_ok_and(|output| output.status.success()) {
        skip(
            "namespaces",
            &format!("no network namespace can be made by {prepare:?}: {tried:?}"),
        );
        return false;
    }
    let run = format!("{prepare} && exec \"$0\" --exact {test} --nocapture");
    let output = Command::new("unshare")
        .args(["-rn", "sh", "-c", &run])
        .arg(env::current_exe().expect("/proc is mounted"))
        .env(INSIDE, "1")
        .output()
        .expect("unshare(1) ran before");
    // By print!, so that the harness shows it when the test fails.
    print!("{}", String::from_utf8_lossy(&output.stdout));
    print!("{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{test} failed in its namespace");
    false
}
