//! The executor of requests that are away, as the master knows it: the app of the worker, or its runtime.

use crate::master::workers::worker::Worker;
use crate::proto::channel::{AppStarted, RuntimeInfo};
use crate::sys::process::ProcessIdentity;

impl Worker {
    /// Returns what executes its requests that are away, for messages; none if no request can be away.
    pub(super) fn describe_executor(&self) -> Option<String> {
        let of_runtime = || {
            let RuntimeInfo { concurrency, .. } = self.runtime?;
            Some(format!("runtime (concurrency {concurrency})"))
        };
        self.app.describe().or_else(of_runtime)
    }

    /// Returns what executes its requests that are away, in one word.
    pub(crate) fn executor_name(&self) -> &'static str {
        match self.runtime {
            Some(_) => "runtime",
            None => "app",
        }
    }

    /// Notes the app that the worker has started. It is in the shared memory as well, where the next master finds it.
    pub(super) fn set_app(&mut self, AppStarted { pid, zygote }: AppStarted) {
        self.app.pid = Some(pid);
        match ProcessIdentity::of_descendant(pid, zygote.unwrap_or(self.pid)) {
            Some(app) => {
                self.shm.header().set_app(app);
                log::debug!("{}: its app is process {pid}", self.name());
            }
            // The worker does not collect its app. If the app cannot be found, both have ended and the app was
            // collected before this message was read; or the worker has reported a wrong pid. In both cases the shared
            // memory names no app.
            None => log::debug!("{}: its app {pid} is not a process of its own", self.name()),
        }
    }
}
