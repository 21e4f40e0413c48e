//! The configuration in force, and what was changed since it was applied.

use std::path::PathBuf;

use crate::config::{Config, Keys};
use crate::master::memory::Memory;
use crate::proto::channel::LogLevel;
use crate::proto::control::{LastReload, Origin};
use crate::proto::names::Generation;

/// The configuration in force.
#[derive(Debug)]
pub(super) struct SettingsInForce {
    pub(super) config: Config,
    /// The keys that its files have.
    pub(super) keys: Keys,
    /// Its file; `None` if none was named and the standard one does not exist.
    pub(super) file: Option<PathBuf>,
    /// All files that it was read from, in their order.
    pub(super) files: Vec<PathBuf>,
    /// The standard file, which a reload reads in that case.
    pub(super) standard_file: PathBuf,
    /// Why it is not the configuration of the file.
    pub(super) stale: Option<String>,
    /// Why lines go to standard error instead of the log.
    pub(super) missing_log: Option<String>,
    /// Its generation.
    pub(super) generation: Generation,
    /// The last generation that was given to any configuration.
    pub(super) last_generation: Generation,
    pub(super) last_reload: Option<LastReload>,
    /// The level of the log, if an operator has changed it.
    pub(super) log_level: Option<LogLevel>,
    /// Where the number of workers comes from.
    pub(super) count_origin: Origin,
    /// The memory that the limits left when the configuration was applied.
    pub(super) memory: Option<Memory>,
}
