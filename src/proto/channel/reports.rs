//! The bodies of the messages to the master that are JSON. A text that is too long is shortened when it is read: the
//! master keeps it, in the state for the next one as well.

use serde::{Deserialize, Serialize};

use super::MAX_MESSAGE;
use crate::proto::app::AppInfo;
use crate::proto::text::{read_shortened, read_shortened_option};

/// The worker can serve.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// [`VERSION`](super::VERSION).
    pub version: u32,
    /// The worker's methods; a method's number in the shared memory is its index here plus one.
    pub methods: Vec<MethodName>,
    /// The report of its app on itself, if it has one.
    #[serde(default)]
    pub app: Option<AppInfo>,
    /// The runtime of its asynchronous methods, if it has one.
    #[serde(default)]
    pub runtime: Option<RuntimeInfo>,
}

/// The runtime of asynchronous methods, which executes their requests in a thread of the worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuntimeInfo {
    /// The number of the thread (gettid(2)).
    pub thread: u32,
    /// The most requests at a time.
    pub concurrency: u32,
}

/// A method, as the master knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MethodName {
    /// The method's name.
    pub name: String,
    /// Whether it may be run once more after a crash.
    pub idempotent: bool,
}

/// The longest list of a worker's methods, in bytes of JSON. [`Ready`] and the first datagram of a handoff have it, and
/// other fields, in one message.
const MAX_METHOD_LIST: usize = MAX_MESSAGE - 8 * 1024;

/// Checks that a worker's messages can have these methods.
///
/// # Errors
/// The reason why not, for the operator.
pub fn check_methods(methods: &[MethodName]) -> Result<(), String> {
    let length = serde_json::to_vec(methods).map_or(usize::MAX, |list| list.len());
    if length <= MAX_METHOD_LIST {
        return Ok(());
    }
    Err(format!(
        "the list of its {} methods is too long: {length} bytes as JSON, more than {MAX_METHOD_LIST}",
        methods.len()
    ))
}

/// There will be no [`Ready`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    /// Why, for the operator.
    #[serde(deserialize_with = "read_shortened")]
    pub reason: String,
}

/// The health of a worker that is ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// Why the worker is not healthy; none if it is.
    #[serde(default, deserialize_with = "read_shortened_option")]
    pub unhealthy: Option<String>,
}

/// Why a worker should be replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spent {
    /// The reason.
    pub reason: SpentReason,
}

/// A reason to replace a worker that serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SpentReason {
    /// The app uses more memory than `max-memory`.
    Memory,
    /// A panic in a daemon with asynchronous methods may have broken the state.
    Panic,
}

/// A worker's app was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppStarted {
    /// The app's pid: a child of the worker, or of its zygote, which does not collect it.
    pub pid: u32,
    /// The app's parent, if that is a zygote.
    #[serde(default)]
    pub zygote: Option<u32>,
}

/// The end of an app, and with it of its worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppGone {
    /// How the app ended.
    pub end: AppEnd,
    /// The part that ended: "app", or "runtime" for that of asynchronous methods.
    #[serde(default = "app", deserialize_with = "read_shortened")]
    pub subject: String,
    /// Why, for the operator: a sentence without its subject.
    #[serde(deserialize_with = "read_shortened")]
    pub reason: String,
}

fn app() -> String {
    "app".to_owned()
}

/// How an app ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AppEnd {
    /// The app exited with this status, on its own; -1 if it has ended and its status is not known.
    Exited(i32),
    /// The app was killed by this signal, which its worker had not sent.
    Killed(i32),
    /// The worker killed it, because it has broken the protocol.
    BrokeProtocol,
    /// The worker killed it, because a request was not answered in time, or its loop did not turn.
    Unresponsive,
    /// The worker retires or stops, and the app ends with it.
    Finished,
}

#[cfg(test)]
mod tests {
    use super::super::{ToMaster, VERSION};
    use super::*;
    use crate::proto::handoff::{HandoffMessage, ShmRecord};
    use crate::proto::message::Message;
    use crate::proto::names::{Generation, WorkerId};

    fn methods(count: usize) -> Vec<MethodName> {
        let method = |number| MethodName {
            name: format!("{number:x>64}"),
            idempotent: false,
        };
        (0..count).map(method).collect()
    }

    #[test]
    fn the_longest_list_of_methods_fits_into_each_message() {
        let fits = |count: &usize| check_methods(&methods(*count)).is_ok();
        let most = (0..2000).take_while(fits).last().expect("a number");
        assert!(most > 500, "{most}");
        let methods = methods(most);
        let ready = ToMaster::Ready(Ready {
            version: VERSION,
            methods: methods.clone(),
            app: Some(AppInfo {
                pid: u32::MAX,
                name: Some("\u{1}".repeat(512)),
                version: Some("\u{1}".repeat(512)),
                concurrency: u32::MAX,
            }),
            runtime: Some(RuntimeInfo {
                thread: u32::MAX,
                concurrency: u32::MAX,
            }),
        });
        let shm = HandoffMessage::Shm(Box::new(ShmRecord {
            worker: WorkerId(u64::MAX),
            seat: u32::MAX,
            generation: Generation(u64::MAX),
            slots: u32::MAX,
            longest: u32::MAX,
            methods,
            is_counted: false,
            layout: u32::MAX,
        }));
        let (mut first, mut second) = (Vec::new(), Vec::new());
        ready.encode(&mut first);
        shm.encode(&mut second);
        let lengths = [first.len(), second.len()];
        assert!(
            lengths.iter().all(|length| *length <= MAX_MESSAGE),
            "{lengths:?}"
        );
    }
}
