//! The decoders of bytes from outside the process, as functions that must never panic whatever the bytes are.
//!
//! Compiled for tests and with `--cfg fuzzing`; not part of the public API. The programs in `fuzz/` call these
//! functions with bytes that a fuzzer searches for, and the tests below with those of `fuzz/corpus`. Each function also
//! checks what else must hold for its decoder, such as that a decoded message is the same after it was encoded and
//! decoded again.

use serde_json::value::RawValue;

use crate::config::{Config, Identities};
use crate::proto::app::{self, AppRequest, FromAppZygote};
use crate::proto::channel::{MAX_LEASES, MAX_MESSAGE, ToMaster, ToWorker};
use crate::proto::frame::{self, ByteOrder, Next, OrderRule, PREFIX};
use crate::proto::handoff::{self, HandoffMessage};
use crate::proto::json::raw_value;
use crate::proto::message::Message;
use crate::proto::misread::{self, Sender};
use crate::proto::names::{ClientId, Peer};
use crate::proto::rpc::Request;
use crate::worker;

/// The name of a target and its function.
pub type FuzzTarget = (&'static str, fn(&[u8]));

/// All targets: each has a program and a corpus of this name in `fuzz/`.
pub const TARGETS: [FuzzTarget; 11] = [
    ("frame", frame),
    ("envelope", envelope),
    ("json", json),
    ("channel", channel),
    ("client_record", client_record),
    ("cursors", cursors),
    ("http_head", http_head),
    ("config", config),
    ("app_frame", app_frame),
    ("app_hello", app_hello),
    ("app_zygote", app_zygote),
];

/// Finds the end of a frame. The first byte of the input selects the limit of its length, 2 to the power of that.
pub fn frame(input: &[u8]) {
    let Some((limit, bytes)) = input.split_first() else {
        return;
    };
    let limit = 1 << (limit % 32);
    for order in [ByteOrder::Little, ByteOrder::Big] {
        let found = frame::next(bytes, order, limit);
        if let Next::Complete { total } = found {
            assert!((PREFIX..=bytes.len()).contains(&total));
            let cut = frame::next(&bytes[..total - 1], order, limit);
            let total = (total > PREFIX).then_some(total);
            assert_eq!(cut, Next::Partial { total }, "all but one byte of a frame");
        }
        for sender in [Sender::Client, Sender::Server] {
            let _ = misread::of_part(sender, bytes, order);
        }
        let longer = [bytes, &[0]].concat();
        if !matches!(found, Next::Partial { .. }) {
            assert_eq!(frame::next(&longer, order, limit), found);
        }
    }
    if let Some(prefix) = bytes.first_chunk::<PREFIX>()
        && let Some(order) = OrderRule::Auto.decide(*prefix, limit)
    {
        assert!(order.length(*prefix) <= limit || order.other().length(*prefix) > limit);
    }
}

/// Reads the envelope of a request. The short parser must accept only requests that the general one accepts, with the
/// same result.
pub fn envelope(body: &[u8]) {
    fn parts<'a>(request: &'a Request<'_>) -> (&'a str, Option<&'a str>) {
        (&request.method, request.params.map(|params| params.get()))
    }
    let read = Request::parse(body);
    let general = std::str::from_utf8(body)
        .ok()
        .and_then(|text| serde_json::from_str(text).ok());
    assert_eq!(read.as_ref().ok().map(parts), general.as_ref().map(parts));
}

/// Checks JSON text: the result must be that of serde_json.
pub fn json(text: &[u8]) {
    let Ok(text) = std::str::from_utf8(text) else {
        return;
    };
    let general = serde_json::from_str::<&RawValue>(text).ok();
    assert_eq!(
        raw_value(text).map(RawValue::get),
        general.map(RawValue::get)
    );
}

/// Decodes a message between master and worker, in both directions.
pub fn channel(datagram: &[u8]) {
    again::<ToWorker>(datagram);
    again::<ToMaster>(datagram);
    for index in [0, 1, MAX_LEASES] {
        let _ = handoff::client_record_in(datagram, index);
    }
}

/// Decodes a message about clients that wait for the next master.
pub fn client_record(datagram: &[u8]) {
    again::<HandoffMessage>(datagram);
}

fn again<M: Message + PartialEq + std::fmt::Debug>(datagram: &[u8]) {
    let datagram = &datagram[..datagram.len().min(MAX_MESSAGE)];
    let Ok(message) = M::decode(datagram) else {
        return;
    };
    let _ = message.descriptors();
    let mut encoded = Vec::new();
    message.encode(&mut encoded);
    assert_eq!(M::decode(&encoded).as_ref(), Ok(&message));
}

/// Recovers a client from the shared memory of a worker.
pub fn cursors(input: &[u8]) {
    crate::shm::fuzz(input);
}

/// Reads the head of an HTTP request.
pub fn http_head(received: &[u8]) {
    crate::exporter::fuzz_http(received);
}

/// Reads a configuration file. No user or group is looked up.
pub fn config(text: &[u8]) {
    const ORIGIN: &str = "fuzz.toml";
    let text = String::from_utf8_lossy(text);
    let parse = |text: &str| Config::parse_kept(text, ORIGIN, Some(&Identities::default()));
    match parse(&text) {
        Ok(config) => {
            let written = config.to_toml();
            assert_eq!(parse(&written).as_ref(), Ok(&config), "{written}");
        }
        Err(error) => {
            let shown = error.to_string();
            if let Some((line, column)) = error.line().zip(error.column()) {
                let place = format!("--> {ORIGIN}:{line}:{column}\n");
                assert!(shown.contains(&place), "{shown}");
            }
        }
    }
}

/// Reads the frame of an app, and writes a frame for an app with the input as its params.
pub fn app_frame(body: &[u8]) {
    app::fuzz(body);
    let params: Option<&RawValue> = serde_json::from_slice(body).ok();
    let request = AppRequest {
        id: body.len() as u64,
        method: "add",
        client: ClientId(u64::MAX),
        peer: Peer::Unix {
            pid: 1,
            uid: 0,
            gid: 0,
        },
        via: None,
        attempt: 1,
        timeout: None,
    };
    let params = params.map(|json| json.get().as_bytes());
    let mut frame = Vec::new();
    request.write(&mut frame, params).expect("a Vec");
    let object: std::collections::BTreeMap<&str, &RawValue> =
        serde_json::from_slice(&frame).expect("a frame is one JSON object");
    assert_eq!(object["id"].get(), body.len().to_string());
    let written = object.get("params").map(|json| json.get().as_bytes());
    assert_eq!(written, params, "byte for byte");
}

/// Reads the first frame of an app, and checks its methods and metrics.
pub fn app_hello(body: &[u8]) {
    worker::fuzz_hello(body);
}

/// Reads a message of a zygote of apps. A datagram is one frame, so that no longer or shorter one is a message.
pub fn app_zygote(datagram: &[u8]) {
    if FromAppZygote::parse(datagram).is_ok() {
        let longer = [datagram, b" "].concat();
        let shorter = &datagram[..datagram.len() - 1];
        for other in [&longer[..], shorter] {
            FromAppZygote::parse(other).expect_err("its length is wrong");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    #[test]
    fn no_input_of_the_corpus_causes_a_panic() {
        for (name, target) in TARGETS {
            let mut inputs = 0;
            for entry in fs::read_dir(fuzz().join("corpus").join(name)).expect("a corpus") {
                let path = entry.expect("an entry").path();
                println!("{}", path.display());
                target(&fs::read(&path).expect("an input"));
                inputs += 1;
            }
            assert!(inputs > 4, "the corpus of {name} has {inputs} inputs");
            target(&[]);
        }
    }

    #[test]
    fn every_target_has_a_program() {
        let manifest = fs::read_to_string(fuzz().join("Cargo.toml")).expect("a manifest");
        let (_, programs) = manifest.split_once("[[bin]]").expect("programs");
        let names: Vec<&str> = programs
            .lines()
            .filter_map(|line| line.strip_prefix("name = \"")?.strip_suffix('"'))
            .collect();
        assert_eq!(names, TARGETS.map(|(name, _)| name));
        for name in names {
            let program = fs::read_to_string(fuzz().join(format!("targets/{name}.rs")));
            let call = format!("fdpassd::fuzzing::{name}(");
            assert!(program.expect("a program").contains(&call), "{name}");
        }
    }

    fn fuzz() -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
    }
}
