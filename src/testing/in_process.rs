//! Methods without the daemon around them.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::{RawValue, to_raw_value};

use crate::daemon::Daemon;
use crate::proto::frame::{ByteOrder, PREFIX};
use crate::proto::names::{ClientId, Generation, Peer, WorkerId};
use crate::worker::{Call, Fault, Running, Service, WorkerInfo};

/// Room for a reply: as much as there is with the default `max-frame`.
const REPLY: usize = 1 << 20;

/// The methods of a daemon and one state, in this process: what a worker is without its clients.
///
/// ```
/// use fdpassd::{Call, Daemon, Fault};
/// use fdpassd::testing::InProcess;
///
/// let daemon = Daemon::named("counterd")
///     .state(|_| Ok::<u64, Fault>(40))
///     .method("add", |total: &mut u64, n: u64, _: &Call| -> Result<u64, Fault> { *total += n; Ok(*total) });
/// let mut worker = InProcess::start(daemon).expect("the state can be made");
/// assert_eq!(worker.call("add", 2).expect("a result"), 42);
/// assert_eq!(worker.call("add", "two").expect_err("no number").code(), "bad_params");
/// ```
pub struct InProcess(Box<dyn Service>);

impl InProcess {
    /// Makes the state.
    ///
    /// # Errors
    /// Why it cannot be made, or what is wrong with the methods.
    pub fn start<S: 'static>(daemon: Daemon<S>) -> Result<InProcess, String> {
        let (name, methods) = daemon.into_parts();
        if let Some(mistake) = methods.mistakes().first() {
            return Err(mistake.clone());
        }
        let info = WorkerInfo {
            name,
            worker: WorkerId(1),
            seat: 0,
            generation: Generation(1),
        };
        Ok(InProcess(Box::new(Running::start(methods, info)?)))
    }

    /// Calls a method, as the first attempt of client 1 on 127.0.0.1. A panic of it is the fault `crashed`, as it would be
    /// for a client.
    ///
    /// # Errors
    /// The fault that the client would be told.
    ///
    /// # Panics
    /// When `params` cannot be written as JSON.
    pub fn call(&mut self, method: &str, params: impl Serialize) -> Result<Value, Fault> {
        let params: Box<RawValue> = to_raw_value(&params).expect("params can be written as JSON");
        let found = self.0.find(method).ok_or_else(|| {
            Fault::new("unknown_method", format!("there is no method {method:?}"))
        })?;
        let peer = Peer::V4 {
            address: Ipv4Addr::LOCALHOST,
            port: 1,
        };
        let call = Call {
            client: ClientId(1),
            peer,
            attempt: 1,
            deadline: None,
        };
        let mut buffer = vec![0; REPLY];
        let length = self
            .0
            .call(found, &params, call, &mut buffer, ByteOrder::Little)?;
        #[derive(Deserialize)]
        struct Envelope {
            result: Value,
        }
        let reply: Envelope =
            serde_json::from_slice(&buffer[PREFIX..length]).expect("a reply is JSON");
        Ok(reply.result)
    }
}
