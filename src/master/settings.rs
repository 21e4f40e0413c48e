//! The configuration in force, and what was changed since it was applied.

use std::num::NonZeroU32;
use std::path::PathBuf;

use crate::config::{Config, Count, GivenKeys, Loaded, standard_if_any};
use crate::master::memory::Memory;
use crate::proto::control::{COMMAND_LINE, LastReload, Origin};
use crate::proto::log::LogLevel;
use crate::proto::names::Generation;

/// The configuration in force.
#[derive(Debug)]
pub(super) struct SettingsInForce {
    pub(super) config: Config,
    /// The keys that its files and the environment have.
    pub(super) given: GivenKeys,
    /// The file; `None` if none was named and the standard one does not exist.
    pub(super) file: Option<PathBuf>,
    /// All files that it was read from, in their order.
    pub(super) files: Vec<PathBuf>,
    /// The standard file, which a reload reads in that case.
    pub(super) standard_file: PathBuf,
    /// The configuration that the daemon was given as arguments; then a reload reads it again, and no file.
    pub(super) command_line: Option<String>,
    /// Whether `fdpassd dev` has started the daemon.
    pub(super) is_dev: bool,
    /// Why it is not the configuration of the file.
    pub(super) stale: Option<String>,
    /// Why lines go to standard error instead of the log.
    pub(super) missing_log: Option<String>,
    /// The generation.
    pub(super) generation: Generation,
    /// The last generation that was given to any configuration.
    pub(super) last_generation: Generation,
    pub(super) last_reload: Option<LastReload>,
    /// The level of the log, if an operator has changed it.
    pub(super) log_level: Option<LogLevel>,
    /// Where the number of workers comes from.
    pub(super) count_origin: Origin,
    /// The last generation when an operator set the number of workers: that of a reload if it was under way.
    pub(super) scaled_in: Option<Generation>,
    /// The memory that the limits left when the configuration was applied.
    pub(super) memory: Option<Memory>,
}

impl SettingsInForce {
    /// Returns the settings of a master that starts with this configuration.
    pub(super) fn new(
        loaded: Loaded,
        file: Option<PathBuf>,
        standard_file: PathBuf,
        command_line: Option<String>,
        generation: Generation,
    ) -> SettingsInForce {
        SettingsInForce {
            config: loaded.config,
            given: loaded.given,
            file,
            files: loaded.files,
            standard_file,
            command_line,
            is_dev: false,
            stale: None,
            missing_log: None,
            generation,
            last_generation: generation,
            last_reload: None,
            log_level: None,
            count_origin: Origin::Config,
            scaled_in: None,
            memory: None,
        }
    }

    /// Puts a configuration into force. `file` is its first file.
    pub(super) fn apply(
        &mut self,
        loaded: Loaded,
        file: Option<PathBuf>,
        generation: Generation,
        memory: Option<Memory>,
    ) {
        (self.config, self.given, self.files) = (loaded.config, loaded.given, loaded.files);
        (self.file, self.generation, self.memory) = (file, generation, memory);
        (self.stale, self.missing_log) = (None, None);
        if !self.is_scaled_in(generation) {
            self.count_origin = Origin::Config;
        }
    }

    /// Returns whether an operator has set the number of workers while a reload started those of this generation.
    pub(super) fn is_scaled_in(&self, generation: Generation) -> bool {
        self.scaled_in == Some(generation)
    }

    /// Returns the file that a reload reads, if there is one.
    pub(super) fn next_file(&self) -> Option<PathBuf> {
        let standard = || standard_if_any(&self.standard_file);
        if self.command_line.is_some() {
            return None;
        }
        self.file.clone().or_else(standard)
    }

    /// Returns the first file of the configuration, or what stands for it; `None` if only the defaults are in force.
    pub(super) fn shown_file(&self) -> Option<PathBuf> {
        let arguments = self.command_line.as_ref().map(|_| COMMAND_LINE.into());
        let first = || self.files.first().cloned();
        self.file.clone().or(arguments).or_else(first)
    }

    /// Returns the configuration with the changes made at run time. `count` is the number of workers.
    pub(super) fn with_changes(&self, count: usize) -> Config {
        let mut config = self.config.clone();
        if let Some(count) = NonZeroU32::new(count as u32)
            && self.count_origin == Origin::Runtime
        {
            config.workers.count = Count::Exactly(count);
        }
        config.log.level = self.log_level();
        config
    }

    /// Returns the level of the log.
    pub(super) fn log_level(&self) -> LogLevel {
        self.log_level.unwrap_or(self.config.log.level)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::control::ENVIRONMENT;

    #[test]
    fn a_configuration_of_variables_is_not_the_default() {
        let shown = |files: &[&str]| {
            let loaded = Loaded {
                files: files.iter().map(PathBuf::from).collect(),
                ..Loaded::default()
            };
            let standard = PathBuf::from("/etc/x.toml");
            SettingsInForce::new(loaded, None, standard, None, Generation(1)).shown_file()
        };
        assert_eq!(shown(&[]), None);
        assert_eq!(shown(&[ENVIRONMENT]), Some(ENVIRONMENT.into()));
        let drop_in = "/etc/x.d/a.toml";
        assert_eq!(shown(&[drop_in, ENVIRONMENT]), Some(drop_in.into()));
    }
}
