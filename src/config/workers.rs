//! `[workers]`: the worker processes.

use std::num::NonZeroU32;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::durations::Timeout;
use super::notation::{AutoWord, Keyword, Notation, OrAuto, OrNone, Rejection, WrittenValue, word};
use super::values::UpTo;
use crate::proto::names::MAX_WORKERS;

/// `[workers]`: the worker processes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct WorkerConfig {
    /// The number of workers; by default one per CPU.
    #[serde(with = "Count")]
    pub count: Count,
    /// The worker for a new client; by default the least loaded one.
    #[serde(deserialize_with = "word")]
    pub dispatch: Dispatch,
    /// When busy clients move to other workers; by default automatically.
    #[serde(deserialize_with = "word")]
    pub rebalance: RebalanceMode,
    /// How a worker process is made; by default by executing the program.
    #[serde(deserialize_with = "word")]
    pub start: StartMode,
    /// The time to become ready; 10 s by default.
    #[serde(with = "Timeout")]
    pub start_timeout: Duration,
    /// The number of requests after which a worker is replaced; `None`, the default, sets no limit.
    #[serde(with = "OrNone::<UpTo<{ u32::MAX }>>")]
    pub max_requests: Option<NonZeroU32>,
    /// The age at which a worker is replaced; `None`, the default, sets no limit.
    #[serde(with = "OrNone::<Timeout>")]
    pub max_lifetime: Option<Duration>,
}

impl Default for WorkerConfig {
    fn default() -> WorkerConfig {
        WorkerConfig {
            count: Count::Auto,
            dispatch: Dispatch::LeastLoaded,
            rebalance: RebalanceMode::Auto,
            start: StartMode::by_default(),
            start_timeout: Duration::from_secs(10),
            max_requests: None,
            max_lifetime: None,
        }
    }
}

/// The number of workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// One per CPU.
    Auto,
    /// At most 256.
    Exactly(NonZeroU32),
}

impl Notation for Count {
    type Value = Count;

    fn expected() -> String {
        OrAuto::<UpTo<MAX_WORKERS>>::expected()
    }

    fn read(written: &WrittenValue<'_>) -> Result<Count, Rejection> {
        Ok(OrAuto::<UpTo<MAX_WORKERS>>::read(written)?.map_or(Count::Auto, Count::Exactly))
    }

    fn write(value: &Count) -> WrittenValue<'_> {
        match value {
            Count::Auto => WrittenValue::Text(AutoWord::WORD.into()),
            Count::Exactly(count) => UpTo::<MAX_WORKERS>::write(count),
        }
    }
}

/// How the master chooses a worker for a new client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Dispatch {
    /// The one with the least to do.
    LeastLoaded,
    /// One after the other.
    RoundRobin,
}

impl Dispatch {
    /// Returns the name in the file and in the status.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Dispatch::LeastLoaded => "least-loaded",
            Dispatch::RoundRobin => "round-robin",
        }
    }
}

/// When busy clients move from a busy worker to an idle one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RebalanceMode {
    /// Whenever the load has been uneven for a while.
    Auto,
    /// Only at an operator's request.
    Manual,
}

/// How a worker process is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StartMode {
    /// The master executes the program for each worker.
    Exec,
    /// A zygote, which is executed once for each generation, forks each worker.
    Fork,
}

impl StartMode {
    /// Returns the mode of a file without the key. In builds with debug assertions, tests of all kinds run with forked
    /// workers if the variable `FDPASSD_START` is `fork`.
    fn by_default() -> StartMode {
        let is_forked = cfg!(debug_assertions)
            && std::env::var_os("FDPASSD_START").is_some_and(|mode| mode == "fork");
        match is_forked {
            true => StartMode::Fork,
            false => StartMode::Exec,
        }
    }

    /// Returns the name in the file and in the status.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            StartMode::Exec => "exec",
            StartMode::Fork => "fork",
        }
    }
}
