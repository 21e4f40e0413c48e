//! The arguments of `bench`.

use std::time::Duration;

use serde_json::value::RawValue;

use super::values::{address, json, number, rate, timeout, words};
use crate::load::{MIN_PARAMS, Pace};
use crate::proto::frame::ByteOrder;
use crate::proto::names::Address;

#[derive(Debug, clap::Args)]
pub(crate) struct BenchArguments {
    /// The method; a reply to "ping" must have its params
    #[arg(default_value = PING)]
    pub(crate) method: String,

    /// The params as JSON, the same for all requests
    #[arg(value_name = "PARAMS", value_parser = json, allow_negative_numbers = true)]
    #[arg(conflicts_with = "size")]
    pub(crate) params: Option<Box<RawValue>>,

    /// Listener: an IP address and a port, or unix:/path
    ///
    /// Default: the daemon's first listener without the key proxy.
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    pub(crate) to: Option<Address>,

    /// Put load on another machine, too
    #[arg(long)]
    pub(crate) yes_remote: bool,

    /// Connections at the same time
    #[arg(short, long, value_name = "N", default_value_t = 16, value_parser = number(1..=1_000_000))]
    pub(crate) connections: u64,

    /// Unanswered requests of each connection
    #[arg(short, long, value_name = "N", default_value_t = 1, value_parser = number(1..=100_000))]
    pub(crate) depth: u64,

    /// Close a connection after N requests and open another
    #[arg(long, value_name = "N", value_parser = number(1..=u64::MAX))]
    pub(crate) per_connection: Option<u64>,

    /// Bytes of the params of "ping", at least 16
    #[arg(long, value_name = "BYTES", value_parser = number(MIN_PARAMS as u64..=MAX_PARAMS))]
    pub(crate) size: Option<u64>,

    /// End after this time
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = timeout)]
    pub(crate) duration: Duration,

    /// End after N requests instead
    #[arg(long, value_name = "N", value_parser = number(1..=u64::MAX))]
    #[arg(conflicts_with_all = ["duration", "rate"])]
    pub(crate) count: Option<u64>,

    /// Send N requests a second, however late replies are
    ///
    /// Default: each as soon as a reply makes room for it.
    #[arg(long, value_name = "N", value_parser = rate)]
    pub(crate) rate: Option<f64>,

    /// Send requests for this time before any is counted
    #[arg(long, value_name = "TIME", value_parser = timeout)]
    pub(crate) warm_up: Option<Duration>,

    /// Byte order of the length prefix: little or big
    ///
    /// Default: that of the listener, else little.
    #[arg(long, value_name = "ORDER", hide_possible_values = true)]
    #[arg(value_parser = words([("little", ByteOrder::Little), ("big", ByteOrder::Big)]))]
    pub(crate) byte_order: Option<ByteOrder>,
}

/// The method without an argument.
pub(crate) const PING: &str = "ping";

/// The most bytes of the params of `ping`.
const MAX_PARAMS: u64 = 64 << 20;

impl BenchArguments {
    pub(crate) fn pace(&self) -> Pace {
        let time = self.duration;
        match (self.count, self.rate) {
            (Some(count), _) => Pace::Requests(count),
            (None, Some(per_second)) => Pace::Rate { per_second, time },
            (None, None) => Pace::Time(time),
        }
    }
}
