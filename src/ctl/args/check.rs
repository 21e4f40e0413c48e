//! The arguments of `app`.

use clap::{Subcommand, ValueEnum, ValueHint};

#[derive(Debug, Subcommand)]
pub(crate) enum AppVerb {
    /// Start a program as an app, and check what it answers
    ///
    /// It needs no daemon. Some checks need methods of the app: see fdpassd-app(7).
    Check(AppCheckArguments),
}

#[derive(Debug, clap::Args)]
pub(crate) struct AppCheckArguments {
    /// Only this check; may be given more than once
    #[arg(long, value_name = "CHECK", hide_possible_values = true)]
    pub(crate) only: Vec<AppCheck>,

    /// The program and its arguments
    #[arg(required = true, last = true, value_name = "COMMAND", value_hint = ValueHint::CommandWithArguments)]
    pub(crate) command: Vec<String>,
}

/// The checks of an app, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum AppCheck {
    Hello,
    Descriptor,
    Probe,
    Unknown,
    Closed,
    Signals,
    Log,
    Params,
    HardParams,
    Null,
    Integers,
    HalfFrames,
    ManyFrames,
    LargeFrames,
    TooLong,
    Concurrency,
    Overtaking,
    Fault,
    Crash,
    Cancel,
    Spawn,
    Stop,
    StopLong,
    End,
    EndBusy,
    ByHand,
}

impl AppCheck {
    /// Returns the name of the check.
    pub(crate) fn name(self) -> String {
        let value = self.to_possible_value();
        value.map_or_else(String::new, |value| value.get_name().to_owned())
    }
}
