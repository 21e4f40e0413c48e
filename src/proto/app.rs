//! Worker and app: frames of JSON objects over a stream socket, which is descriptor 3 of the app.
//!
//! An app is a process of any language that runs methods for one worker. A frame is a length of 4 bytes, little-endian,
//! then one JSON object in UTF-8. Unknown members are ignored on both sides. fdpassd-app(7) is the specification for
//! writers of apps.
//!
//! ```text
//! to the worker   {"hello":1,"methods":[…],…}           once, first: the app can serve      [`Hello`]
//!                 {"failed":REASON}                     in place of hello; the app exits
//!                 {"id":N,"result":ANY}                 the answer to a request
//!                 {"id":N,"error":{"code":…,"message":…}}
//!                 {"alive":N}                           the answer to a probe
//!                 {"health":REASON}                     unhealthy; null: healthy again
//!                 {"metrics":{NAME:NUMBER,…}}           added to a counter; an array is observed by a histogram
//! to the app      {"id":N,"in":METHOD,"client":N,"peer":ADDRESS,"attempt":N,"timeout":MS,"params":ANY}
//!                 {"cancel":N,"why":"gone"}             a hint; the app still answers
//!                 {"probe":N}                           asks for `alive`
//!                 {"closed":CLIENT}                     a client has left, if hello has `closes`
//!                 {"stop":MS}                           no request follows; the socket ends after this time
//! ```
//!
//! Results are not parsed: they stay the app's bytes ([`RawValue`]), and become the client's.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write};
use std::path::PathBuf;

use serde::de::{self, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::names::{ClientId, Peer};

/// The version of this protocol.
pub const VERSION: u32 = 1;

/// The number of the app's descriptor.
pub const DESCRIPTOR: i32 = 3;

/// The environment variable with the number of the descriptor.
pub const DESCRIPTOR_VARIABLE: &str = "FDPASSD_APP";

/// The environment variable with the length of the longest frame that the worker accepts, in bytes.
pub const MAX_FRAME_VARIABLE: &str = "FDPASSD_MAX_FRAME";

/// Bytes by which a frame with a result may exceed the longest reply: its other members.
pub const ENVELOPE_LEN: usize = 1024;

/// The most requests that one app has at a time.
pub const MAX_CONCURRENCY: u32 = 4096;

/// The most methods of an app.
pub const MAX_METHODS: usize = 1024;

/// How an app is started, from the master to the worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppSpec {
    /// The program and its arguments; at least the program.
    pub command: Vec<String>,
    /// The working directory.
    pub directory: Option<PathBuf>,
    /// Variables besides those of the daemon.
    pub environment: BTreeMap<String, String>,
    /// The most requests at a time; `None` is what the app wants.
    pub concurrency: Option<u32>,
    /// Resident bytes from which on the worker and its app are replaced.
    pub max_memory: Option<u64>,
    /// The user and groups that the app runs as; `None` is the daemon's.
    pub identity: Option<AppIdentity>,
    /// The file mode creation mask.
    pub umask: Option<u32>,
    /// What becomes of standard output and standard error.
    pub output: AppOutput,
}

/// The user and groups of an app.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppIdentity {
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// All supplementary groups.
    pub groups: Vec<u32>,
}

named_variants! {
    /// What becomes of an app's standard output and standard error.
    #[derive(Default)]
    AppOutput {
        /// Each line is a line of the daemon's log.
        #[default]
        Log = "log",
        /// They are the daemon's.
        Inherit = "inherit",
        /// They are discarded.
        Null = "null",
    }
}

/// What an app reports of itself, from the worker to the master.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppInfo {
    /// The app's pid.
    pub pid: u32,
    /// Its name, if it has one.
    pub name: Option<String>,
    /// Its version, if it has one.
    pub version: Option<String>,
    /// The most requests at a time.
    pub concurrency: u32,
}

/// The first frame of an app.
#[derive(Clone, Debug, Deserialize)]
pub struct Hello {
    /// Its methods.
    pub methods: Vec<AppMethod>,
    /// The most requests at a time.
    #[serde(default = "one")]
    pub concurrency: u32,
    /// The app's name.
    #[serde(default)]
    pub name: Option<String>,
    /// The app's version.
    #[serde(default)]
    pub version: Option<String>,
    /// Whether the app wants `closed` frames.
    #[serde(default)]
    pub closes: bool,
    /// Its counters and histograms.
    #[serde(default)]
    pub metrics: Vec<AppMetric>,
}

fn one() -> u32 {
    1
}

/// A method of an app.
#[derive(Clone, Debug, Deserialize)]
pub struct AppMethod {
    /// Its name.
    pub name: String,
    /// Whether a request may run once more after a crash.
    #[serde(default)]
    pub idempotent: bool,
    /// The name of its replies; `None` is the usual one.
    #[serde(default)]
    pub reply: Option<String>,
}

/// A counter or a histogram of an app.
#[derive(Clone, Debug, Deserialize)]
pub struct AppMetric {
    /// Its name.
    pub name: String,
    /// What it is.
    #[serde(rename = "type")]
    pub kind: MetricKind,
    /// What it counts.
    #[serde(default)]
    pub help: String,
    /// The upper bounds of a histogram's buckets.
    #[serde(default)]
    pub buckets: Vec<f64>,
}

named_variants! {
    /// The kind of a metric.
    MetricKind {
        /// A sum that only grows.
        Counter = "counter",
        /// A distribution.
        Histogram = "histogram",
    }
}

/// The error of a method.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct AppFault {
    /// The code, for programs.
    pub code: String,
    /// The sentence, for people.
    #[serde(default)]
    pub message: String,
}

/// A frame of an app.
#[derive(Debug)]
pub enum FromApp<'a> {
    /// The app can serve.
    Hello(Box<Hello>),
    /// The app will never serve, with the reason.
    Failed(String),
    /// The answer to a request.
    Answer {
        /// The request.
        id: u64,
        /// Its result, as the app wrote it, or why there is none.
        outcome: Result<&'a RawValue, AppError>,
    },
    /// The answer to a probe.
    Alive(u64),
    /// Why the app is unhealthy; `None` if it is healthy.
    Health(Option<String>),
    /// Increments of counters and observations of histograms.
    Metrics(BTreeMap<String, Samples>),
    /// An object without a known member.
    Nothing,
}

/// What is added to a metric.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum Samples {
    /// To a counter.
    Add(f64),
    /// To a histogram.
    Observe(Vec<f64>),
}

/// Why there is no result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AppError {
    /// The method's error.
    Fault(AppFault),
    /// What is wrong with the answer.
    Malformed(String),
}

impl<'a> FromApp<'a> {
    /// Reads the body of one frame.
    ///
    /// # Errors
    /// What is wrong with it, for the operator. An answer whose id is its first member is always an answer: what is
    /// wrong with the rest of it concerns only its caller.
    pub fn parse(body: &'a [u8]) -> Result<FromApp<'a>, String> {
        let text = std::str::from_utf8(body)
            .map_err(|e| format!("not UTF-8: bad byte at {}", e.valid_up_to()))?;
        if let Some((id, rest)) = split_id(text) {
            // This is the usual answer exactly if its result is one JSON value.
            if let Some(Ok(result)) = result_of(rest).map(serde_json::from_str) {
                let outcome = Ok(result);
                return Ok(FromApp::Answer { id, outcome });
            }
            return Ok(match serde_json::from_str(text) {
                Ok(Members(frame)) => frame,
                Err(e) => FromApp::Answer {
                    id,
                    outcome: Err(AppError::Malformed(format!("the answer is not JSON: {e}"))),
                },
            });
        }
        serde_json::from_str(text)
            .map(|Members(frame)| frame)
            .map_err(|e| e.to_string())
    }
}

/// Splits the usual beginning of an answer, `{"id":N,`, from the rest.
fn split_id(text: &str) -> Option<(u64, &str)> {
    let rest = text.strip_prefix("{\"id\":")?;
    let rest = rest.strip_prefix(' ').unwrap_or(rest);
    let digits = rest.find(|c: char| !c.is_ascii_digit())?;
    let (id, rest) = rest.split_at(digits);
    let rest = rest.strip_prefix(',')?;
    Some((id.parse().ok()?, rest.strip_prefix(' ').unwrap_or(rest)))
}

/// Returns the text of the result, if it is the last member.
fn result_of(rest: &str) -> Option<&str> {
    let rest = rest.strip_prefix("\"result\":")?;
    rest.strip_suffix('}')
}

/// A frame, by its members.
struct Members<'a>(FromApp<'a>);

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "lowercase")]
enum Member {
    Id,
    Result,
    Error,
    Hello,
    Methods,
    Concurrency,
    Name,
    Version,
    Closes,
    Failed,
    Alive,
    Health,
    Metrics,
    #[serde(other)]
    Other,
}

/// The value of `metrics`: declarations in a hello, samples in any other frame.
#[derive(Deserialize)]
#[serde(untagged)]
enum Metrics {
    Declared(Vec<AppMetric>),
    Samples(BTreeMap<String, Samples>),
}

/// The members of one frame, before it is known what it is.
#[derive(Default)]
struct Found<'a> {
    id: Option<u64>,
    result: Option<&'a RawValue>,
    error: Option<&'a RawValue>,
    hello: Option<u32>,
    methods: Option<Vec<AppMethod>>,
    concurrency: Option<u32>,
    name: Option<Option<String>>,
    version: Option<Option<String>>,
    closes: Option<bool>,
    failed: Option<String>,
    alive: Option<u64>,
    health: Option<Option<String>>,
    metrics: Option<Metrics>,
}

/// Sets a member, which must be the first of its name.
fn set<'de, T: Deserialize<'de>, A: MapAccess<'de>>(
    map: &mut A,
    member: &mut Option<T>,
    name: &'static str,
) -> Result<(), A::Error> {
    if member.is_some() {
        return Err(de::Error::duplicate_field(name));
    }
    *member = Some(map.next_value()?);
    Ok(())
}

// Not derived, because a derived struct accepts an array in place of the object.
impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Members<'de>, D::Error> {
        struct FrameVisitor;
        impl<'de> Visitor<'de> for FrameVisitor {
            type Value = Members<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
                let mut found = Found::default();
                while let Some(member) = map.next_key::<Member>()? {
                    match member {
                        Member::Id => set(&mut map, &mut found.id, "id")?,
                        Member::Result => set(&mut map, &mut found.result, "result")?,
                        Member::Error => set(&mut map, &mut found.error, "error")?,
                        Member::Hello => set(&mut map, &mut found.hello, "hello")?,
                        Member::Methods => set(&mut map, &mut found.methods, "methods")?,
                        Member::Concurrency => {
                            set(&mut map, &mut found.concurrency, "concurrency")?;
                        }
                        Member::Name => set(&mut map, &mut found.name, "name")?,
                        Member::Version => set(&mut map, &mut found.version, "version")?,
                        Member::Closes => set(&mut map, &mut found.closes, "closes")?,
                        Member::Failed => set(&mut map, &mut found.failed, "failed")?,
                        Member::Alive => set(&mut map, &mut found.alive, "alive")?,
                        Member::Health => set(&mut map, &mut found.health, "health")?,
                        Member::Metrics => set(&mut map, &mut found.metrics, "metrics")?,
                        Member::Other => {
                            map.next_value::<IgnoredAny>()?;
                        }
                    }
                }
                found.frame().map(Members).map_err(de::Error::custom)
            }
        }
        from.deserialize_map(FrameVisitor)
    }
}

impl<'a> Found<'a> {
    fn frame(self) -> Result<FromApp<'a>, String> {
        if let Some(version) = self.hello {
            if version != VERSION {
                return Err(format!("hello has version {version}, not {VERSION}"));
            }
            let metrics = match self.metrics {
                None => Vec::new(),
                Some(Metrics::Declared(metrics)) => metrics,
                Some(Metrics::Samples(samples)) if samples.is_empty() => Vec::new(),
                Some(Metrics::Samples(_)) => return Err("metrics is no array".to_owned()),
            };
            return Ok(FromApp::Hello(Box::new(Hello {
                methods: self.methods.ok_or("hello has no methods")?,
                concurrency: self.concurrency.unwrap_or(1),
                name: self.name.flatten(),
                version: self.version.flatten(),
                closes: self.closes.unwrap_or(false),
                metrics,
            })));
        }
        if let Some(id) = self.id {
            let outcome = match (self.result, self.error) {
                (Some(result), None) => Ok(result),
                (None, Some(error)) => Err(match serde_json::from_str(error.get()) {
                    Ok(fault) => AppError::Fault(fault),
                    Err(e) => AppError::Malformed(format!("the error is malformed: {e}")),
                }),
                (Some(_), Some(_)) => Err(both_or_neither("both")),
                (None, None) => Err(both_or_neither("neither")),
            };
            return Ok(FromApp::Answer { id, outcome });
        }
        Ok(match self {
            Found {
                failed: Some(reason),
                ..
            } => FromApp::Failed(reason),
            Found {
                alive: Some(probe), ..
            } => FromApp::Alive(probe),
            Found {
                health: Some(health),
                ..
            } => FromApp::Health(health),
            Found {
                metrics: Some(Metrics::Samples(samples)),
                ..
            } => FromApp::Metrics(samples),
            _ => FromApp::Nothing,
        })
    }
}

fn both_or_neither(which: &str) -> AppError {
    AppError::Malformed(format!("the answer has {which} of result and error"))
}

/// A request to an app, without its params.
#[derive(Clone, Copy, Debug)]
pub struct AppRequest<'a> {
    /// Counts the requests of one app; never reused.
    pub id: u64,
    /// The method's name, which needs no escapes.
    pub method: &'a str,
    /// The client.
    pub client: ClientId,
    /// The client's address.
    pub peer: Peer,
    /// 1, or more when the request runs again.
    pub attempt: u32,
    /// ms until the caller gets `timeout`, if there is a limit.
    pub timeout: Option<u64>,
}

impl AppRequest<'_> {
    /// Writes the body of the frame. Without params the member is missing.
    ///
    /// # Errors
    /// Those of `to`.
    pub fn write(&self, to: &mut impl Write, params: Option<&RawValue>) -> io::Result<()> {
        let (id, method, client) = (self.id, self.method, self.client);
        write!(
            to,
            "{{\"id\":{id},\"in\":\"{method}\",\"client\":{client},\"peer\":\""
        )?;
        match self.peer {
            // Nothing in it needs an escape.
            Peer::Unix { pid, uid, gid } => {
                write!(to, "\",\"pid\":{pid},\"uid\":{uid},\"gid\":{gid}")?;
            }
            peer => write!(to, "{peer}\"")?,
        }
        write!(to, ",\"attempt\":{}", self.attempt)?;
        if let Some(timeout) = self.timeout {
            write!(to, ",\"timeout\":{timeout}")?;
        }
        if let Some(params) = params {
            to.write_all(b",\"params\":")?;
            to.write_all(params.get().as_bytes())?;
        }
        to.write_all(b"}")
    }
}

named_variants! {
    /// Why a request is cancelled.
    CancelReason {
        /// Its client has left.
        Gone = "gone",
        /// Its time is over.
        Timeout = "timeout",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn answer(text: &str) -> (u64, Result<String, AppError>) {
        match FromApp::parse(text.as_bytes()) {
            Ok(FromApp::Answer { id, outcome }) => (id, outcome.map(|json| json.get().to_owned())),
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn a_result_stays_as_the_app_wrote_it() {
        for result in ["null", "1e400", "\"}\"", "[1, 2]", "{\"a\" : {}}", "-0.0"] {
            for text in [
                format!("{{\"id\":7,\"result\":{result}}}"),
                format!("{{\"id\": 7, \"result\": {result}}}"),
                format!("{{\"result\":{result},\"more\":[],\"id\":7}}"),
                format!("{{\"id\":7,\"x\":1,\"result\":{result}}}"),
                format!("{{\"id\":7,\"result\":{result},\"x\":1}}"),
            ] {
                assert_eq!(answer(&text), (7, Ok(result.to_owned())), "{text}");
            }
        }
    }

    #[test]
    fn an_answer_with_a_fault_in_it_concerns_its_caller_only() {
        for (text, expected) in [
            ("{\"id\":7,\"result\":NaN}", "not JSON"),
            ("{\"id\":7,\"result\":1,2}", "not JSON"),
            ("{\"id\":7,\"result\":", "not JSON"),
            ("{\"id\":7,\"result\":1,\"error\":{\"code\":\"x\"}}", "both"),
            ("{\"id\":7,\"other\":1}", "neither"),
            ("{\"id\":7,\"error\":\"x\"}", "malformed"),
            ("{\"id\":7,\"error\":{\"message\":\"x\"}}", "code"),
        ] {
            match answer(text) {
                (7, Err(AppError::Malformed(reason))) => {
                    assert!(reason.contains(expected), "{text}: {reason}");
                }
                other => panic!("{text}: {other:?}"),
            }
        }
        let (_, fault) = answer("{\"error\":{\"code\":\"no_item\",\"x\":1},\"id\":3}");
        let expected = AppFault {
            code: "no_item".to_owned(),
            message: String::new(),
        };
        assert_eq!(fault, Err(AppError::Fault(expected)));
    }

    #[test]
    fn other_frames_are_found_by_their_members() {
        let parse = |text: &'static str| FromApp::parse(text.as_bytes());
        let hello = "{\"hello\":1,\"methods\":[{\"name\":\"add\",\"idempotent\":true}],\"x\":{},\
            \"metrics\":[{\"name\":\"orders\",\"type\":\"counter\"}]}";
        match parse(hello) {
            Ok(FromApp::Hello(hello)) => {
                assert_eq!((hello.methods.len(), hello.concurrency), (1, 1));
                assert_eq!(hello.metrics[0].kind, MetricKind::Counter);
            }
            other => panic!("{other:?}"),
        }
        assert!(
            matches!(parse("{\"failed\":\"no\"}"), Ok(FromApp::Failed(reason)) if reason == "no")
        );
        assert!(matches!(parse("{\"alive\":9}"), Ok(FromApp::Alive(9))));
        assert!(matches!(
            parse("{\"health\":null}"),
            Ok(FromApp::Health(None))
        ));
        assert!(matches!(
            parse("{\"health\":\"no\"}"),
            Ok(FromApp::Health(Some(_)))
        ));
        assert!(matches!(parse("{\"later\":1}"), Ok(FromApp::Nothing)));
        match parse("{\"metrics\":{\"orders\":3,\"seconds\":[0.5,1]}}") {
            Ok(FromApp::Metrics(samples)) => {
                assert_eq!(samples["orders"], Samples::Add(3.0));
                assert_eq!(samples["seconds"], Samples::Observe(vec![0.5, 1.0]));
            }
            other => panic!("{other:?}"),
        }
        for wrong in [
            "",
            "7",
            "[]",
            "[1]",
            "{",
            "{\"hello\":2,\"methods\":[]}",
            "{\"hello\":1}",
            "print",
            "{\"alive\":1,\"alive\":2}",
            "{\"id\":-1,\"result\":1}",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_request_has_its_params_last_and_unchanged() {
        let mut out = Vec::new();
        let request = AppRequest {
            id: 1,
            method: "add",
            client: ClientId(4711),
            peer: Peer::Unix {
                pid: 1,
                uid: 2,
                gid: 3,
            },
            attempt: 2,
            timeout: Some(29_993),
        };
        let params: &RawValue = serde_json::from_str("[ 1e400 ]").expect("JSON");
        request.write(&mut out, Some(params)).expect("a Vec");
        let text = String::from_utf8(out).expect("UTF-8");
        assert_eq!(
            text,
            "{\"id\":1,\"in\":\"add\",\"client\":4711,\"peer\":\"\",\"pid\":1,\"uid\":2,\"gid\":3,\
             \"attempt\":2,\"timeout\":29993,\"params\":[ 1e400 ]}"
        );
    }

    proptest! {
        #[test]
        fn no_frame_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200), tail in "[ -~]{0,40}") {
            let _ = FromApp::parse(&bytes);
            let _ = FromApp::parse(format!("{{\"id\":1,{tail}").as_bytes());
        }
    }
}
