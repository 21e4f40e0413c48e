//! A small daemon: `resized` computes how pictures fit into frames.
//!
//! ```sh
//! cargo run --example resized
//! cargo run --bin fdpassctl -- call fit '{"picture":[4000,3000],"frame":[800,800]}' --to 127.0.0.1:8080
//! ```
//!
//! It has all options of `fdpassd` and reads `/etc/resized.toml`. Its clients keep their connections whatever happens
//! to a worker.

use std::process::ExitCode;

use fdpassd::{Call, Daemon, Fault, Method, RawValue, Reply, WorkerInfo};
use serde::{Deserialize, Serialize};

/// The state of one worker process. One method at a time may change it.
struct Resizer {
    seat: u32,
    fitted: u64,
}

/// Width and height.
type Size = (u32, u32);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fit {
    picture: Size,
    frame: Size,
}

#[derive(Serialize)]
struct Report {
    seat: u32,
    fitted: u64,
}

fn main() -> ExitCode {
    Daemon::new("resized")
        .version(env!("CARGO_PKG_VERSION"))
        .state(open)
        // A second run returns the same result, so another worker may run it again if the first one dies in it.
        .method(Method::new("fit", fit).idempotent())
        .method(Method::new(
            "report",
            |resizer: &mut Resizer, (): (), _: &Call| report(resizer),
        ))
        .method(Method::raw("original", original).reply_name("picture"))
        .run()
}

/// Makes what every worker needs: a model, a connection, a cache. Here it is only a count of this worker process, which
/// starts at 0 whenever the state is rebuilt; `counterd.rs` keeps a count that does not.
fn open(worker: &WorkerInfo) -> Result<Resizer, Fault> {
    Ok(Resizer {
        seat: worker.seat,
        fitted: 0,
    })
}

/// Computes the largest size with the picture's shape that fits into the frame.
fn fit(resizer: &mut Resizer, Fit { picture, frame }: Fit, _: &Call) -> Result<Size, Fault> {
    let (width, height) = (u64::from(picture.0), u64::from(picture.1));
    if width == 0 || height == 0 {
        return Err(Fault::new(
            "no_pixels",
            format!("a picture of {width}×{height} has none"),
        ));
    }
    resizer.fitted += 1;
    let by_width = (u64::from(frame.0), height * u64::from(frame.0) / width);
    let by_height = (width * u64::from(frame.1) / height, u64::from(frame.1));
    let (width, height) = by_width.min(by_height);
    // Neither exceeds the frame's, which are 32 bits.
    Ok((width as u32, height as u32))
}

fn report(resizer: &Resizer) -> Result<Report, Fault> {
    Ok(Report {
        seat: resizer.seat,
        fitted: resizer.fitted,
    })
}

/// Returns a picture byte for byte. It is not parsed, and copied only once, into the reply.
fn original(_: &mut Resizer, picture: &RawValue, reply: &mut Reply<'_>) -> Result<(), Fault> {
    reply.raw(picture)
}
