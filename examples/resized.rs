//! A daemon of your own, in one file: `resized` computes how pictures fit into frames.
//!
//! ```sh
//! cargo run --example resized
//! cargo run --bin fdpassctl -- call fit '{"picture":[4000,3000],"frame":[800,800]}' --to 127.0.0.1:8080
//! ```
//!
//! It takes all the options of `fdpassd`, reads `/etc/resized.toml`, and keeps every client's connection whatever
//! happens to a worker.

use std::process::ExitCode;

use fdpassd::{Call, Daemon, Fault, RawValue, Reply, WorkerInfo};
use serde::{Deserialize, Serialize};

/// What one worker process has. Its methods get to change it, one at a time.
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
    Daemon::named("resized")
        .version(env!("CARGO_PKG_VERSION"))
        .state(open)
        // Run a second time it would give the same: another worker may do so if the first one dies in it.
        .idempotent("fit", fit)
        .method("report", |resizer: &mut Resizer, (): (), _: &Call| {
            report(resizer)
        })
        .raw("original", original)
        .reply_name("picture")
        .run()
}

/// Loads what every worker needs: a model, a connection, a cache. Here it is only a count.
fn open(worker: &WorkerInfo) -> Result<Resizer, Fault> {
    Ok(Resizer {
        seat: worker.seat,
        fitted: 0,
    })
}

/// The largest size with the picture's shape that the frame holds.
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
    // Neither is larger than the frame's.
    Ok((width as u32, height as u32))
}

fn report(resizer: &Resizer) -> Result<Report, Fault> {
    Ok(Report {
        seat: resizer.seat,
        fitted: resizer.fitted,
    })
}

/// Gives a picture back byte for byte: nothing is parsed, nothing is copied but into the reply.
fn original(_: &mut Resizer, picture: &RawValue, reply: &mut Reply<'_>) -> Result<(), Fault> {
    reply.raw(picture)
}
