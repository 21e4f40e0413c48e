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
//!                 {"stop":MS}                           no request follows; the app is killed after this time
//! ```
//!
//! Results are not parsed: the client gets the bytes of the app.

mod from_app;
mod preload;

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

#[cfg(any(test, fuzzing))]
pub use self::from_app::fuzz;
pub use self::from_app::{AppError, FromApp, Samples};
pub use self::preload::{FORK, FromAppZygote, RUN};

use super::names::{ClientId, Peer};
use super::text::read_shortened_option;

/// The version of this protocol.
pub const VERSION: u32 = 1;

/// The number of the app's descriptor.
pub const DESCRIPTOR: i32 = 3;

/// The environment variable with the number of the descriptor.
pub const DESCRIPTOR_VARIABLE: &str = "FDPASSD_APP";

/// The environment variable with the length of the longest frame that the worker accepts, in bytes.
pub const MAX_FRAME_VARIABLE: &str = "FDPASSD_MAX_FRAME";

/// The environment variable of a program that loads what its copies share, and forks them. Its value is 1.
pub const PRELOAD_VARIABLE: &str = "FDPASSD_PRELOAD";

/// Bytes by which a frame with a result may exceed the longest reply: its other members.
pub const ENVELOPE_LEN: usize = 1024;

/// The most requests that one app has at a time.
pub const MAX_CONCURRENCY: u32 = 4096;

/// The most methods of an app.
pub const MAX_METHODS: usize = 1024;

/// Why an app is refused by a daemon with asynchronous methods.
pub const EXCLUDED_BY_ASYNC: &str =
    "a daemon with asynchronous methods has no app: remove app.command";

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
    /// The use of standard output and standard error.
    pub output: AppOutput,
}

/// The zygote of the apps of a generation, from the master to the zygote of its workers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppZygoteSpec {
    /// The app.
    pub app: AppSpec,
    /// The longest reply of a worker, in bytes.
    pub max_reply: usize,
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

/// The use of an app's standard output and standard error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AppOutput {
    /// Each line is a line of the daemon's log.
    #[default]
    Log,
    /// The daemon's.
    Inherit,
    /// Discarded.
    Null,
}

/// The report of an app on itself, from the worker to the master.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppInfo {
    /// The app's pid.
    pub pid: u32,
    /// The app's name, if it has one.
    #[serde(default, deserialize_with = "read_shortened_option")]
    pub name: Option<String>,
    /// The app's version, if it has one.
    #[serde(default, deserialize_with = "read_shortened_option")]
    pub version: Option<String>,
    /// The most requests at a time.
    pub concurrency: u32,
}

/// The first frame of an app.
#[derive(Clone, Debug, Deserialize)]
pub struct Hello {
    /// The app's methods.
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
    /// The app's counters and histograms.
    #[serde(default)]
    pub metrics: Vec<AppMetric>,
}

fn one() -> u32 {
    1
}

/// A method of an app.
#[derive(Clone, Debug, Deserialize)]
pub struct AppMethod {
    /// The method's name.
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
    /// The metric's name.
    pub name: String,
    /// The metric's kind.
    #[serde(rename = "type")]
    pub kind: MetricKind,
    /// The sentence that explains the metric.
    #[serde(default)]
    pub help: String,
    /// The upper bounds of a histogram's buckets.
    #[serde(default)]
    pub buckets: Vec<f64>,
}

/// The kind of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MetricKind {
    /// A sum that only grows.
    Counter,
    /// A distribution.
    Histogram,
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
    /// The load balancer that the client came through, if it has reported that address.
    pub via: Option<Peer>,
    /// 1, or more when the request runs again.
    pub attempt: u32,
    /// ms until the caller gets `timeout`, if there is a limit.
    pub timeout: Option<u64>,
}

impl AppRequest<'_> {
    /// Writes the body of the frame. `params` are JSON; without them the member is missing.
    ///
    /// # Errors
    /// Those of `to`.
    pub fn write(&self, to: &mut impl Write, params: Option<&[u8]>) -> io::Result<()> {
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
        match self.via {
            None => {}
            // Its process is the balancer's, which no app needs.
            Some(Peer::Unix { .. }) => write!(to, ",\"via\":\"\"")?,
            Some(via) => write!(to, ",\"via\":\"{via}\"")?,
        }
        write!(to, ",\"attempt\":{}", self.attempt)?;
        if let Some(timeout) = self.timeout {
            write!(to, ",\"timeout\":{timeout}")?;
        }
        if let Some(params) = params {
            to.write_all(b",\"params\":")?;
            to.write_all(params)?;
        }
        to.write_all(b"}")
    }
}

/// Why a request is cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CancelReason {
    /// The client has left.
    Gone,
    /// The time is over.
    Timeout,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_its_params_last_and_unchanged() {
        let mut out = Vec::new();
        let request = AppRequest {
            id: 1,
            method: "add",
            client: ClientId(4711),
            peer: Peer::UNIX,
            via: None,
            attempt: 2,
            timeout: Some(29_993),
        };
        request.write(&mut out, Some(b"[ 1e400 ]")).expect("a Vec");
        let text = String::from_utf8(out).expect("UTF-8");
        assert_eq!(
            text,
            "{\"id\":1,\"in\":\"add\",\"client\":4711,\"peer\":\"\",\"pid\":1,\"uid\":2,\"gid\":3,\
             \"attempt\":2,\"timeout\":29993,\"params\":[ 1e400 ]}"
        );
    }
}
