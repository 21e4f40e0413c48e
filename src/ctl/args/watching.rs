//! The arguments of `top`, and of `status`.

use std::time::Duration;

use super::values::interval;

#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct StatusArguments {
    /// Show it again every second, or at this interval
    ///
    /// A terminal shows the last one, other outputs get all of them.
    ///
    /// With --json each is one line. A daemon that is away is awaited.
    #[arg(long, value_name = "TIME", value_parser = interval, allow_negative_numbers = true)]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = SECOND)]
    pub(crate) watch: Option<Duration>,
}

#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct TopArguments {
    /// Ask the daemon at this interval
    #[arg(long, value_name = "TIME", value_parser = interval, allow_negative_numbers = true)]
    #[arg(default_value = SECOND)]
    pub(crate) interval: Duration,
}

/// The interval if none is given.
const SECOND: &str = "1s";
