//! A daemon with a raw method: `echo` returns its params byte for byte.
//!
//! ```sh
//! cargo run --example echo_raw
//! cargo run --bin fdpassctl -- call echo '{"price": 1.10}' --to 127.0.0.1:8080
//! ```
//!
//! A typed method would parse `1.10` and write `1.1`. A raw method reads its params as the client wrote them and writes
//! its result itself, so that bytes it does not touch are neither parsed nor copied.

use std::process::ExitCode;

use fdpassd::{Daemon, Fault, Method, RawValue, Reply};

fn main() -> ExitCode {
    Daemon::new("echod")
        // An inline method takes microseconds: no clock is read around it, and replies to pipelined requests are sent
        // together.
        .method(Method::raw("echo", echo).inline())
        .run()
}

fn echo(_: &mut (), params: &RawValue, out: &mut Reply<'_>) -> Result<(), Fault> {
    out.raw(params)
}
