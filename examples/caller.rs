//! Adds a number at the daemon of `counterd.rs`, which may have several addresses.
//!
//! ```sh
//! cargo run --example counterd
//! cargo run --example caller -- 5 127.0.0.1:8080
//! ```
//!
//! Each addition has a number of its own, so that it counts once although the client may send it more than once: `add`
//! is idempotent.

#![expect(clippy::print_stderr, reason = "it is for a terminal")]

use std::env;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use fdpassd::client::{Client, ClientOptions, Error};
use serde_json::json;

fn main() -> ExitCode {
    let mut arguments = env::args().skip(1);
    let Some(Ok(n)) = arguments.next().map(|n| n.parse::<u64>()) else {
        eprintln!("usage: caller NUMBER ADDRESS...");
        return ExitCode::from(64);
    };
    match add(n, arguments) {
        Ok(total) => {
            println!("the total is {total}");
            ExitCode::SUCCESS
        }
        Err(error) if error.may_have_run() => {
            eprintln!("perhaps {n} was added: {error}");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("nothing was added: {error}");
            ExitCode::FAILURE
        }
    }
}

fn add(n: u64, addresses: impl Iterator<Item = String>) -> Result<u64, Error> {
    let options = ClientOptions::new().timeout(Duration::from_secs(5));
    let client = Client::with_options(addresses, options)?;
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    let number = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
    client.call(
        "add",
        json!({ "sender": "caller", "number": number, "n": n }),
    )
}
