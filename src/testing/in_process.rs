//! Methods without a daemon, in the process of the test.

use std::net::Ipv4Addr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::{RawValue, to_raw_value};

use crate::daemon::{Daemon, Parts};
use crate::proto::frame::{ByteOrder, PREFIX};
use crate::proto::names::{ClientId, Generation, Peer, WorkerId};
use crate::worker::{Call, Fault, RunningService, Service, WorkerInfo, WorkerMetrics};

/// The size of the reply buffer, in bytes: that of the default `max-frame`.
const REPLY: usize = 1 << 20;

/// The methods of a daemon with one state, in this process: a worker without clients. For unit tests of methods.
///
/// ```
/// use fdpassd::{Call, Daemon, Fault, Method};
/// use fdpassd::testing::InProcess;
///
/// let daemon = Daemon::new("spelld")
///     .state(|_| Ok::<Vec<String>, Fault>(vec!["lease".to_owned()]))
///     .method(Method::new("check", |words: &mut Vec<String>, word: String, _: &Call| Ok(words.contains(&word))));
/// let mut worker = InProcess::start(daemon).expect("the state can be made");
/// assert_eq!(worker.call("check", "lease").expect("a result"), true);
/// assert_eq!(worker.call("check", 2).expect_err("no word").code(), "bad_params");
/// ```
pub struct InProcess(Box<dyn Service>);

impl InProcess {
    /// Makes the state, without a configuration.
    ///
    /// # Errors
    /// The reason why the state cannot be made, or the errors of the program, such as an invalid name.
    pub fn start<S: 'static, C: 'static, P: Send + Sync + 'static>(
        daemon: Daemon<S, C, P>,
    ) -> Result<InProcess, String> {
        InProcess::start_with(daemon, "")
    }

    /// Makes the state. `table` has the keys of the daemon's own table in the configuration, as TOML.
    ///
    /// ```
    /// use fdpassd::{Daemon, Fault, Method, WorkerInfo};
    /// use fdpassd::testing::InProcess;
    ///
    /// #[derive(serde::Deserialize)]
    /// struct Settings {
    ///     greeting: String,
    /// }
    ///
    /// let daemon = || {
    ///     Daemon::new("greetd")
    ///         .config::<Settings>()
    ///         .state(|worker: &WorkerInfo<Settings>| Ok::<_, Fault>(worker.config.greeting.clone()))
    ///         .method(Method::new("greet", |greeting: &mut String, (): (), _| Ok(greeting.clone())))
    /// };
    /// let mut worker = InProcess::start_with(daemon(), "greeting = \"Hello\"").expect("it is good");
    /// assert_eq!(worker.call("greet", ()).expect("a result"), "Hello");
    /// let error = InProcess::start(daemon()).map(drop).expect_err("there is no greeting");
    /// assert_eq!(error, "table greetd: missing key `greeting`");
    /// ```
    ///
    /// # Errors
    /// Those of [`InProcess::start`], and that the table cannot be read.
    pub fn start_with<S: 'static, C: 'static, P: Send + Sync + 'static>(
        daemon: Daemon<S, C, P>,
        table: &str,
    ) -> Result<InProcess, String> {
        let parts = daemon.into_parts();
        let Parts { name, methods, .. } = parts.map_err(|mistakes| mistakes.join("\n"))?;
        let info = WorkerInfo {
            name,
            worker: WorkerId(1),
            seat: 0,
            generation: Generation(1),
            config: (),
            preloaded: Arc::default(),
            metrics: WorkerMetrics::new(None),
        };
        let service = RunningService::start(methods, info, table.to_owned())?;
        Ok(InProcess(Box::new(service)))
    }

    /// Calls a method as client 1 from 127.0.0.1, with attempt 1, and returns the result. A panic of the method returns
    /// the fault `crashed`, which a client would get as well.
    ///
    /// # Errors
    /// The fault that a client would get.
    ///
    /// # Panics
    /// If `params` cannot be serialized as JSON.
    pub fn call(&mut self, method: &str, params: impl Serialize) -> Result<Value, Fault> {
        let params: Box<RawValue> = to_raw_value(&params).expect("params can be written as JSON");
        let found = self
            .0
            .find(method)
            .ok_or_else(|| Fault::new("unknown_method", format!("unknown method {method:?}")))?;
        let peer = Peer::V4 {
            address: Ipv4Addr::LOCALHOST,
            port: 1,
        };
        let call = Call {
            client: ClientId(1),
            peer,
            via: None,
            attempt: 1,
            deadline: None,
            socket: None,
        };
        let mut buffer = vec![0; REPLY];
        let length = self
            .0
            .call(found.index, &params, call, &mut buffer, ByteOrder::Little)?;
        #[derive(Deserialize)]
        struct Envelope {
            result: Value,
        }
        let reply: Envelope =
            serde_json::from_slice(&buffer[PREFIX..length]).expect("a reply is JSON");
        Ok(reply.result)
    }
}
