//! The app of a worker, as the worker reports it, and what the end of the app means for the end of the worker.

use serde::{Deserialize, Serialize};

use crate::master::telemetry::counters::Cause;
use crate::proto::app::AppInfo;
use crate::proto::channel::{AppEnd, AppGone};
use crate::proto::text::Escaped;
use crate::sys::process::Exit;

/// The app of a worker; empty if it has none.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct WorkerApp {
    /// The app's pid.
    pub(crate) pid: Option<u32>,
    /// The app's report of itself.
    pub(crate) info: Option<AppInfo>,
    /// How it ended. The worker ends because of that.
    pub(crate) gone: Option<AppGone>,
}

impl WorkerApp {
    /// Returns what a worker that is not ready waits for, for messages, if the master knows it. The hello of its app is
    /// the last thing that it waits for.
    pub(super) fn awaited_hello(&self) -> &'static str {
        match self.pid {
            Some(_) => ": its app has not sent its hello",
            None => "",
        }
    }

    /// Returns the app's name, version, pid and concurrency, for messages.
    pub(crate) fn describe(&self) -> Option<String> {
        let info = self.info.as_ref()?;
        let name = info
            .name
            .as_ref()
            .map(|name| format!(" {:?}", Escaped(name).to_string()));
        let version = info
            .version
            .as_ref()
            .map(|version| format!(" {}", Escaped(version)));
        Some(format!(
            "app{}{} (pid {}, concurrency {})",
            name.unwrap_or_default(),
            version.unwrap_or_default(),
            info.pid,
            info.concurrency
        ))
    }
}

/// The end of a worker: of its process, and of its app if that came first.
#[derive(Clone, Copy, Debug)]
pub(super) struct WorkerEnd<'a> {
    pub(super) exit: Exit,
    pub(super) app: Option<&'a AppGone>,
    /// Whether the master killed the worker. Then lack of memory does not explain the end, even if the kernel killed
    /// another process at that time.
    pub(super) is_by_master: bool,
}

impl<'a> WorkerEnd<'a> {
    pub(super) fn new(exit: Exit, app: Option<&'a AppGone>, is_by_master: bool) -> WorkerEnd<'a> {
        WorkerEnd {
            exit,
            app,
            is_by_master,
        }
    }

    /// Returns how the process ended that ended first: a worker exits because its app has ended.
    pub(super) fn first_exit(&self) -> Exit {
        match self.app.map(|gone| gone.end) {
            Some(AppEnd::Exited(status)) => Exit::Status(status),
            Some(AppEnd::Killed(number)) => Exit::Signal {
                number,
                core: false,
            },
            Some(AppEnd::BrokeProtocol | AppEnd::Unresponsive | AppEnd::Finished) | None => {
                self.exit
            }
        }
    }

    /// Returns whether a request may have caused the end. If the worker ended the app because that had broken the
    /// protocol, the app itself is the cause. If the worker ended it because of a timeout, the slot of the late request
    /// is marked, and nothing else is needed to find the cause.
    pub(super) fn may_be_of_a_request(&self) -> bool {
        let end = self.app.map(|gone| gone.end);
        let is_by_worker = matches!(end, Some(AppEnd::BrokeProtocol | AppEnd::Unresponsive));
        !is_by_worker && self.first_exit().is_own_doing()
    }

    /// Returns whether the worker ended by itself. If it has answered nothing, its successor will probably end in the
    /// same way.
    pub(super) fn is_own_doing(&self) -> bool {
        let end = self.app.map(|gone| gone.end);
        end != Some(AppEnd::Unresponsive) && self.first_exit().is_own_doing()
    }

    /// Returns whether the worker ended as it should.
    pub(super) fn is_orderly(&self) -> bool {
        let is_apps_doing = self.app.is_some_and(|gone| gone.end != AppEnd::Finished);
        self.exit == Exit::Status(0) && !is_apps_doing
    }

    /// Returns the cause of the death, for the counters. `killed_for` is why the master killed the worker, if it did.
    pub(super) fn cause(&self, is_out_of_memory: bool, killed_for: Option<Cause>) -> Cause {
        match self.app.map(|gone| gone.end) {
            Some(AppEnd::Unresponsive) => Cause::Timeout,
            _ => Cause::from_exit(self.first_exit(), is_out_of_memory, killed_for),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gone(end: AppEnd) -> AppGone {
        AppGone {
            end,
            subject: "app".to_owned(),
            reason: String::new(),
        }
    }

    #[test]
    fn the_end_of_an_app_counts_and_not_that_of_its_worker() {
        let exit = Exit::Status(70);
        for (end, is_of_request, is_own, cause) in [
            (AppEnd::Exited(1), true, true, Cause::Exit),
            (AppEnd::Exited(0), true, true, Cause::Exit),
            (AppEnd::Killed(11), true, true, Cause::Crash),
            (AppEnd::Killed(9), false, false, Cause::Signal),
            (AppEnd::Killed(15), false, false, Cause::Signal),
            (AppEnd::BrokeProtocol, false, true, Cause::Exit),
            (AppEnd::Unresponsive, false, false, Cause::Timeout),
        ] {
            let gone = gone(end);
            let end = WorkerEnd::new(exit, Some(&gone), false);
            assert_eq!(end.may_be_of_a_request(), is_of_request, "{end:?}");
            assert_eq!(end.is_own_doing(), is_own, "{end:?}");
            assert_eq!(end.cause(false, None), cause, "{end:?}");
            assert!(!end.is_orderly());
        }
        let finished = gone(AppEnd::Finished);
        let end = WorkerEnd::new(Exit::Status(0), Some(&finished), false);
        assert!(end.is_orderly());
    }

    #[test]
    fn an_app_is_described_by_what_it_reports() {
        let mut app = WorkerApp::default();
        assert_eq!(app.describe(), None);
        app.info = Some(AppInfo {
            pid: 7,
            name: Some("shop\x1b".to_owned()),
            version: Some("1.4".to_owned()),
            concurrency: 64,
        });
        assert_eq!(
            app.describe().as_deref(),
            Some(r#"app "shop\\x1b" 1.4 (pid 7, concurrency 64)"#)
        );
    }
}
