//! `[limits]`: what clients may use.

use std::num::NonZeroU32;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::durations::{KeepAlive, Patience, StallTimeout, Timeout};
use super::notation::{Notation, OrAuto, OrNone};
use super::values::{BufferSize, FrameSize, UpTo};

/// `[limits]`: what clients may use.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Limits {
    /// The most clients; `None`, the default, is `"auto"`: what the limit on open files allows.
    #[serde(with = "OrAuto::<UpTo<{ u32::MAX }>>")]
    pub max_clients: Option<NonZeroU32>,
    /// The most clients from one IP address; `None`, the default, sets no limit.
    #[serde(with = "OrNone::<UpTo<{ u32::MAX }>>")]
    pub max_clients_per_address: Option<NonZeroU32>,
    /// The leading bits of IPv6 addresses that `max_clients_per_address` counts as one, from 1 to 128; 64 by default.
    #[serde(with = "UpTo::<128>")]
    pub ipv6_prefix: NonZeroU32,
    /// The longest body of a frame, in bytes, from 64 to 256 MiB; 1 MiB by default.
    #[serde(with = "FrameSize")]
    pub max_frame: u32,
    /// The most bytes that a worker parks for all clients; at least four frames. `None`, the default, is `"auto"`: what
    /// the memory limits of the daemon's cgroups allow, at most 256 MiB.
    #[serde(with = "OrAuto::<BufferSize>")]
    pub buffers: Option<u64>,
    /// The idle time after which a client is closed; `None`, the default, sets no limit.
    #[serde(with = "OrNone::<Timeout>")]
    pub idle_timeout: Option<Duration>,
    /// The time to receive a complete frame; 30 s by default.
    #[serde(with = "OrNone::<Timeout>")]
    pub frame_timeout: Option<Duration>,
    /// The time in which a client must read a byte of its replies; 30 s by default.
    #[serde(with = "OrNone::<Timeout>")]
    pub send_timeout: Option<Duration>,
    /// The execution time after which a request gets the error `timeout` and its worker is killed; 30 s by default,
    /// `None` sets no limit.
    #[serde(with = "OrNone::<Timeout>")]
    pub request_timeout: Option<Duration>,
    /// The time after which the other clients of a stuck worker move to other workers; 1 s by default, at least 10 ms.
    /// If it is longer than `request_timeout`, they move when the worker is killed.
    #[serde(with = "StallTimeout")]
    pub stall_timeout: Duration,
    /// The time in which a departing worker may finish its request; 30 s by default, may be zero.
    #[serde(with = "Patience")]
    pub drain_timeout: Duration,
    /// The time in which new clients are still served after an operator has begun a drain; zero by default.
    #[serde(with = "Patience")]
    pub drain_notice: Duration,
    /// The time in which requests may finish when the daemon is restarted and keeps its clients; 200 ms by default.
    #[serde(with = "Patience")]
    pub restart_grace: Duration,
    /// The silence of a TCP client after which the kernel probes it, in whole seconds up to 32,767; 5 min by default,
    /// `None` never probes.
    #[serde(with = "OrNone::<KeepAlive>")]
    pub tcp_keepalive: Option<Duration>,
}

impl Limits {
    /// Returns the smallest `buffers`, in bytes: four frames, so that one client can never fill them.
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
            drain_notice: Duration::ZERO,
            restart_grace: Duration::from_millis(200),
            tcp_keepalive: Some(Duration::from_secs(300)),
        }
    }
}
