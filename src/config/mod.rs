//! The configuration file: what the operator wants, in types that cannot hold nonsense.
//!
//! ```text
//! text ─ toml + serde ──▶ Config ─ check ──▶ Config that holds together
//!           │                        │
//!           ╰── the first error ─────╯──▶ Error: file, line, column, caret, "did you mean"
//! ```
//!
//! Everything is checked before anything is bound, so a bad file never hurts a running daemon. Every key has
//! a default; `config/fdpassd.toml` shows all of them. Nothing here opens, binds or creates anything but the
//! file itself; users and groups are looked up, as whoever waits for a verdict wants to know of a wrong one.

mod check;
mod error;
mod files;
mod keys;
mod listen;
mod names;
mod notation;
mod read;
#[cfg(test)]
mod tests;
mod values;

use std::fmt;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use self::error::Error;
use self::files::SourceText;
pub use self::keys::{Keys, Loaded, quoted};
pub use self::listen::{Access, Listen, Source};
pub use self::names::Identities;
use self::names::Names;
use self::notation::{Given, Notation, OrAuto, OrNone, table, word};
use self::read::{Pipes, read};
use self::values::{
    BufferSize, FrameSize, KeepAlive, LogPath, Patience, SocketPath, StallTimeout, Timeout, UpTo,
};
pub use self::values::{HostName, size};
use crate::proto::log::{Log, LogFormat, LogLevel, LogTarget};
use crate::proto::names::Address;
use crate::sys::user::Group;

/// Longest configuration file, in bytes.
pub const MAX_FILE: u64 = 1024 * 1024;

/// Most entries of `listen`.
pub const MAX_LISTENERS: usize = 64;

/// Most entries of `metrics.hosts`.
pub const MAX_HOSTS: usize = 64;

/// The whole configuration.
///
/// Get one from [`Config::load`], [`Config::parse`] or [`Config::default`]; going around them through serde
/// leaves out the checks of keys against each other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// Where clients connect: 1 to [`MAX_LISTENERS`] different addresses.
    pub listen: Vec<Listen>,
    /// The worker processes.
    #[serde(deserialize_with = "table")]
    pub workers: WorkerConfig,
    /// What clients may take up.
    #[serde(deserialize_with = "table")]
    pub limits: Limits,
    /// The control socket.
    #[serde(deserialize_with = "table")]
    pub control: ControlConfig,
    /// Metrics over HTTP.
    #[serde(deserialize_with = "table")]
    pub metrics: MetricsConfig,
    /// Where log lines go.
    #[serde(with = "log")]
    pub log: Log,
}

impl Config {
    /// Reads and checks the files of a daemon: `file` if one is named, else `standard` if it exists, and those in the
    /// directory beside a standard file. Each has at most [`MAX_FILE`] bytes, and may be a pipe. Without a file it is the default.
    ///
    /// # Errors
    /// When a file cannot be read, when a key is in two of them, and as [`Config::parse`].
    pub fn load(file: Option<&Path>, standard: &Path) -> Result<Loaded, Error> {
        files::parse(&read_all(file, standard, Pipes::Read)?, check::check)
    }

    /// Reads and checks the files for a daemon that runs with this configuration, whose files had `keys`, and is to go on
    /// with that one.
    ///
    /// # Errors
    /// As [`Config::load`]; when a key has another value that only a restart can change: that of the control socket, which
    /// whoever waits for the verdict is connected to; and, unless `force`, when a file is empty and keys are gone.
    pub fn load_next(
        &self,
        keys: &Keys,
        file: Option<&Path>,
        standard: &Path,
        force: bool,
    ) -> Result<Loaded, Error> {
        let texts = read_all(file, standard, Pipes::Refuse)?;
        let loaded = files::parse(&texts, |next| {
            check::check(next).and_then(|()| check::check_next(self, next))
        })?;
        if !force {
            files::check_not_emptied(&texts, &loaded.keys, keys)?;
        }
        Ok(loaded)
    }

    /// As [`Config::load_next`] without `force`, for what does not depend on users and groups: none is looked up, each is
    /// that of nobody.
    ///
    /// # Errors
    /// As [`Config::load_next`], but for names.
    pub fn load_next_unresolved(
        &self,
        keys: &Keys,
        file: Option<&Path>,
        standard: &Path,
    ) -> Result<Loaded, Error> {
        Names::Known(Identities::default()).during(|| self.load_next(keys, file, standard, false))
    }

    /// Reads and checks `text`; errors call it `origin`.
    ///
    /// # Errors
    /// The first thing in it that is not TOML, not a key or not a value of its key, then the first value that
    /// does not go with another one.
    pub fn parse(text: &str, origin: &str) -> Result<Config, Error> {
        let text = SourceText {
            origin: origin.to_owned(),
            text: text.to_owned(),
        };
        files::parse(&[text], check::check).map(|loaded| loaded.config)
    }

    /// Parses the configuration that a master before this one had in force. Users and groups have the numbers of `known`;
    /// without it they are looked up, and what cannot be resolved is nobody's.
    ///
    /// # Errors
    /// As [`Config::parse`], but for names.
    pub fn parse_kept(
        text: &str,
        origin: &str,
        known: Option<&Identities>,
    ) -> Result<Config, Error> {
        known
            .map_or(Names::Lenient, |known| Names::Known(known.clone()))
            .during(|| Config::parse(text, origin))
    }

    /// Writes the file that [`Config::parse`] makes the same configuration of, with every key that has a value.
    ///
    /// A path that is not UTF-8, which no file can bring in, is written lossily.
    #[must_use]
    pub fn to_toml(&self) -> String {
        toml::to_string(self).unwrap_or_else(|e| format!("# cannot be written: {e}\n"))
    }
}

impl Default for Config {
    /// One listener on 127.0.0.1:8080; what each other field's type says.
    fn default() -> Config {
        Config {
            listen: vec![Listen::new(listen::default_source())],
            workers: WorkerConfig::default(),
            limits: Limits::default(),
            control: ControlConfig::default(),
            metrics: MetricsConfig::default(),
            log: log::default(),
        }
    }
}

/// `[workers]`: the worker processes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct WorkerConfig {
    /// How many; by default one per CPU.
    #[serde(with = "Count")]
    pub count: Count,
    /// Which of them a new client goes to; by default the least loaded one.
    #[serde(deserialize_with = "word")]
    pub dispatch: Dispatch,
    /// Whether busy clients move to other workers unasked; by default they do.
    #[serde(deserialize_with = "word")]
    pub rebalance: RebalanceMode,
    /// How long one may take to become ready; 10 s by default.
    #[serde(with = "Timeout")]
    pub start_timeout: Duration,
    /// A worker that has answered so many requests is replaced; `None`, the default, keeps it.
    #[serde(with = "OrNone::<UpTo<{ u32::MAX }>>")]
    pub max_requests: Option<NonZeroU32>,
    /// A worker is replaced at that age at the latest; `None`, the default, keeps it.
    #[serde(with = "OrNone::<Timeout>")]
    pub max_lifetime: Option<Duration>,
}

impl Default for WorkerConfig {
    fn default() -> WorkerConfig {
        WorkerConfig {
            count: Count::Auto,
            dispatch: Dispatch::LeastLoaded,
            rebalance: RebalanceMode::Auto,
            start_timeout: Duration::from_secs(10),
            max_requests: None,
            max_lifetime: None,
        }
    }
}

/// A number of workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// As many as there are CPUs; the master finds out.
    Auto,
    /// That many, at most 256.
    Exactly(NonZeroU32),
}

/// How the worker for a client is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Dispatch {
    /// The one with the least to do.
    LeastLoaded,
    /// Each in its turn.
    RoundRobin,
}

impl Dispatch {
    /// Its name in the file and in the status.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Dispatch::LeastLoaded => "least-loaded",
            Dispatch::RoundRobin => "round-robin",
        }
    }
}

/// When busy clients move from a worker with much to do to one with little.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RebalanceMode {
    /// Whenever the load has been uneven for a while.
    Auto,
    /// Only at an operator's request.
    Manual,
}

/// `[limits]`: what clients may take up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Limits {
    /// Most clients; `None`, the default, is `"auto"`: what the limit on open files allows.
    #[serde(with = "OrAuto::<UpTo<{ u32::MAX }>>")]
    pub max_clients: Option<NonZeroU32>,
    /// Most clients from one IP address; `None`, the default, sets no limit.
    #[serde(with = "OrNone::<UpTo<{ u32::MAX }>>")]
    pub max_clients_per_address: Option<NonZeroU32>,
    /// Leading bits of IPv6 addresses that `max_clients_per_address` takes for one, from 1 to 128; 64 by default.
    #[serde(with = "UpTo::<128>")]
    pub ipv6_prefix: NonZeroU32,
    /// Longest body of a frame, in bytes, from 64 to 256 MiB; 1 MiB by default.
    #[serde(with = "FrameSize")]
    pub max_frame: u32,
    /// Bytes that may be parked over all clients, for each worker; at least four frames. `None`, the default, is `"auto"`:
    /// what the limits of memory of the daemon's cgroups allow, at most 256 MiB.
    #[serde(with = "OrAuto::<BufferSize>")]
    pub buffers: Option<u64>,
    /// A client idle for longer is closed; `None`, the default, lets it rest.
    #[serde(with = "OrNone::<Timeout>")]
    pub idle_timeout: Option<Duration>,
    /// From the first byte of a frame to its last; 30 s by default.
    #[serde(with = "OrNone::<Timeout>")]
    pub frame_timeout: Option<Duration>,
    /// How long a client may take no byte of its replies; 30 s by default.
    #[serde(with = "OrNone::<Timeout>")]
    pub send_timeout: Option<Duration>,
    /// A request that executes for longer gets the error `timeout`, and its worker is killed; 30 s by default, `None` lets
    /// it go on.
    #[serde(with = "OrNone::<Timeout>")]
    pub request_timeout: Option<Duration>,
    /// A worker that is stuck for longer loses all clients but the one that it is stuck with to the others; 1 s by default,
    /// at least 10 ms. Where it is longer than `request_timeout`, they move when the worker is killed.
    #[serde(with = "StallTimeout")]
    pub stall_timeout: Duration,
    /// How long a worker that is to exit may go on with what it is executing; 30 s by default, may be zero.
    #[serde(with = "Patience")]
    pub drain_timeout: Duration,
    /// How long requests may go on executing when the daemon is restarted and keeps its clients; 200 ms by default.
    #[serde(with = "Patience")]
    pub restart_grace: Duration,
    /// Silence of a TCP client before the kernel asks whether it is there, in whole seconds up to 32,767;
    /// 5 min by default, `None` never asks.
    #[serde(with = "OrNone::<KeepAlive>")]
    pub tcp_keepalive: Option<Duration>,
}

impl Limits {
    /// The smallest `buffers`, in bytes: four frames, so that one client can never fill them.
    #[must_use]
    pub fn least_buffers(&self) -> u64 {
        4 * u64::from(self.max_frame)
    }
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            max_clients: None,
            max_clients_per_address: None,
            ipv6_prefix: const { NonZeroU32::new(64).expect("not zero") },
            max_frame: 1 << 20,
            buffers: None,
            idle_timeout: None,
            frame_timeout: Some(Duration::from_secs(30)),
            send_timeout: Some(Duration::from_secs(30)),
            request_timeout: Some(Duration::from_secs(30)),
            stall_timeout: Duration::from_secs(1),
            drain_timeout: Duration::from_secs(30),
            restart_grace: Duration::from_millis(200),
            tcp_keepalive: Some(Duration::from_secs(300)),
        }
    }
}

/// `[control]`: the socket that fdpassctl talks to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct ControlConfig {
    /// Its absolute path; `None`, the default, is the first of [`places`](crate::proto::control::places).
    #[serde(with = "Given::<SocketPath>")]
    pub socket: Option<PathBuf>,
    /// Its permissions; `None`, the default, is what [`ControlConfig::mode`] says.
    #[serde(with = "Given::<Mode>")]
    pub mode: Option<Mode>,
    /// Whose members may change things, beside root and the daemon's user; `None`, the default, is nobody's.
    #[serde(with = "Given::<Group>")]
    pub admin_group: Option<Group>,
    /// Whose members may look, beside those who may change things. `None`, the default, is whoever can connect if there is
    /// no `admin_group` either, else nobody.
    #[serde(with = "Given::<Group>")]
    pub read_group: Option<Group>,
}

impl ControlConfig {
    /// The permissions in force. Unless they are given: 0660, or 0666 if a group is named, for then the master looks
    /// itself at who connects.
    #[must_use]
    pub fn mode(&self) -> Mode {
        let names_a_group = self.admin_group.is_some() || self.read_group.is_some();
        self.mode.unwrap_or(if names_a_group {
            Mode(0o666)
        } else {
            Mode(0o660)
        })
    }
}

/// `[metrics]`: where metrics and the daemon's health are asked for over HTTP.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct MetricsConfig {
    /// The address; `None`, the default, is nowhere.
    #[serde(with = "Given::<Address>")]
    pub listen: Option<Address>,
    /// Names by which they may be asked for over TCP, beside IP addresses and `localhost`: at most [`MAX_HOSTS`], by default
    /// none.
    pub hosts: Vec<HostName>,
}

/// The permissions of a file, from 0 to 0o777; displayed as `0660`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode(pub u32);

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

/// `[log]`, for the vocabulary's [`Log`], which has no defaults and takes what the file must not have.
mod log {
    use serde::{Deserializer, Serializer};

    use super::*;

    #[derive(Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
    struct Section {
        #[serde(deserialize_with = "word")]
        target: LogTarget,
        #[serde(with = "Given::<LogPath>")]
        file: Option<PathBuf>,
        #[serde(deserialize_with = "word")]
        format: LogFormat,
        #[serde(deserialize_with = "word")]
        level: LogLevel,
    }

    impl Default for Section {
        fn default() -> Section {
            let Log {
                target,
                file,
                format,
                level,
            } = default();
            Section {
                target,
                file,
                format,
                level,
            }
        }
    }

    pub(super) fn default() -> Log {
        Log {
            target: LogTarget::default(),
            file: None,
            format: LogFormat::default(),
            level: LogLevel::default(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Log, D::Error> {
        table(deserializer).map(
            |Section {
                 target,
                 file,
                 format,
                 level,
             }| Log {
                target,
                file,
                format,
                level,
            },
        )
    }

    pub(super) fn serialize<S: Serializer>(log: &Log, serializer: S) -> Result<S::Ok, S::Error> {
        let Log {
            target,
            file,
            format,
            level,
        } = log.clone();
        Section {
            target,
            file,
            format,
            level,
        }
        .serialize(serializer)
    }
}

fn read_all(file: Option<&Path>, standard: &Path, pipes: Pipes) -> Result<Vec<SourceText>, Error> {
    files::list(file, standard)?
        .iter()
        .map(|path| text_of(path, pipes))
        .collect()
}

fn text_of(path: &Path, pipes: Pipes) -> Result<SourceText, Error> {
    let origin = path.display().to_string();
    let bytes = read(path, pipes)
        .map_err(|error| Error::from_file(&origin, &format!("cannot read the file: {error}")))?;
    match String::from_utf8(bytes) {
        Ok(text) => Ok(SourceText { origin, text }),
        Err(error) => Err(Error::not_utf8(
            &origin,
            error.as_bytes(),
            error.utf8_error().valid_up_to(),
        )),
    }
}
