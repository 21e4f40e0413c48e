//! Errors of the benchmark: one sentence each, for the person at the terminal.

use std::error::Error;
use std::fmt::Display;

/// What everything here returns.
pub(crate) type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Says what was being done when something failed.
pub(crate) trait Context<T> {
    /// Puts `doing` in front of the reason.
    fn context(self, doing: impl Display) -> Result<T>;
}

impl<T, E: Display> Context<T> for std::result::Result<T, E> {
    fn context(self, doing: impl Display) -> Result<T> {
        self.map_err(|reason| format!("{doing}: {reason}").into())
    }
}

impl<T> Context<T> for Option<T> {
    fn context(self, doing: impl Display) -> Result<T> {
        self.ok_or_else(|| doing.to_string().into())
    }
}
