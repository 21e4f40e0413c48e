//! The arguments of `drain`.

use std::time::Duration;

use super::values::notice;
use crate::proto::control::{Drain, DrainMode};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::Args)]
pub(crate) struct DrainArguments {
    /// Serve new clients for this time, while /readyz is 503
    ///
    /// Default: drain-notice of the configuration.
    #[arg(long, value_name = "TIME", value_parser = notice, allow_negative_numbers = true)]
    pub(crate) notice: Option<Duration>,

    /// Then refuse new clients (the default)
    #[arg(long)]
    pub(crate) refuse: bool,

    /// Then let new clients connect and wait in the accept queue
    #[arg(long, conflicts_with = "refuse")]
    pub(crate) queue: bool,

    /// Then send clients a goaway, spread over this time
    ///
    /// Only clients that have asked for it get one; see fdpassd-rpc(7).
    #[arg(long = "move", value_name = "TIME", value_parser = notice, allow_negative_numbers = true)]
    pub(crate) over: Option<Duration>,

    /// Wait until the last client has left
    #[arg(long)]
    pub(crate) wait: bool,
}

impl DrainArguments {
    /// Returns the params of the request.
    pub(crate) fn params(&self) -> Drain {
        let mode = match (self.refuse, self.queue) {
            (false, false) => None,
            (true, _) => Some(DrainMode::Refuse),
            (false, true) => Some(DrainMode::Queue),
        };
        Drain {
            wait: self.wait,
            notice: self.notice.map(|notice| notice.as_secs_f64()),
            mode,
            over: self.over.map(|over| over.as_secs_f64()),
        }
    }
}
