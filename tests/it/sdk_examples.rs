//! Examples of the package for Python: a cache in SQLite, and a method that computes. `shop.py`, whose methods wait, is
//! called by `tests/apps/run`.

use std::process::Command;

use fdpassd::testing::Running;
use serde_json::json;
use tempfile::TempDir;

use crate::common::needs::skip;
use crate::common::{FDPASSD, root};

/// Starts a daemon with two workers and this example. None without python3.
fn start(example: &str, place: &TempDir) -> Option<Running> {
    let version = "import sys; sys.exit(sys.version_info < (3, 11))";
    let output = Command::new("python3").args(["-c", version]).output();
    if !output.is_ok_and(|output| output.status.success()) {
        skip("python3", "there is no Python 3.11");
        return None;
    }
    let package = root().join("sdk/python");
    let app = package.join("examples").join(example);
    let sources = package.join("src");
    let cache = place.path().join("cache.sqlite");
    let config = format!(
        "workers.count = 2\nlimits.stall-timeout = \"1h\"\n[app]\ncommand = [\"python3\", {app:?}]\n\
         environment = {{ PYTHONPATH = {sources:?}, CACHE = {cache:?} }}\n"
    );
    let daemon = Running::start(FDPASSD, &config).expect("the daemon serves");
    daemon.wait_for_workers();
    Some(daemon)
}

#[test]
fn the_cache_in_sqlite_is_shared_and_outlives_its_workers() {
    let place = tempfile::tempdir().expect("a directory");
    let Some(daemon) = start("cache.py", &place) else {
        return;
    };
    let value = json!({"tea": [1, "ü"]});
    let mut client = daemon.connect();
    let put = json!({"key": "a", "value": value, "seconds": 3600});
    assert_eq!(client.call("put", put), Ok(json!(null)));
    for seat in 0..2 {
        daemon.kill_worker(seat);
    }
    assert_eq!(client.call("get", json!({"key": "a"})), Ok(value));
    assert_eq!(client.call("get", json!({"key": "b"})), Ok(json!(null)));
    let old = json!({"key": "old", "value": 1, "seconds": -1});
    assert_eq!(client.call("put", old), Ok(json!(null)));
    assert_eq!(client.call("get", json!({"key": "old"})), Ok(json!(null)));
    assert_eq!(client.call("expire", ()), Ok(json!(1)));
    let fault = client.call("get", json!({"key": 1})).expect_err("a number");
    assert_eq!(fault.code(), "bad_params");
}

#[test]
fn the_method_that_computes_counts_primes() {
    let place = tempfile::tempdir().expect("a directory");
    let Some(daemon) = start("primes.py", &place) else {
        return;
    };
    let mut client = daemon.connect();
    for (below, count) in [(2, 0), (3, 1), (1_000, 168), (100_000, 9_592)] {
        assert_eq!(
            client.call("primes", json!({"below": below})),
            Ok(json!(count))
        );
    }
    let fault = client.call("primes", json!({"below": 1})).expect_err("few");
    assert_eq!(fault.code(), "bad_params");
}
