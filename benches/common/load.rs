//! The load of the benchmarks: that of `fdpassctl bench`, on a server of this machine, until the benchmark is
//! interrupted.

use std::net::SocketAddrV4;
use std::time::Duration;

use fdpassd::load::{Framing, LoadMessage, LoadPlan, NumberedParams};
pub(crate) use fdpassd::load::{LoadReport as Report, Pace, ReplyCheck as Check};
use fdpassd::proto::frame::ByteOrder;
use fdpassd::proto::names::Address;

use super::failure::Result;
use super::interrupt;

/// A run without a reply for this long has failed.
const SILENCE: Duration = Duration::from_secs(10);

/// The params of each request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Payload {
    /// An object of one number: 16 bytes.
    Ping,
    /// An object of nested records: exactly 1 KiB.
    #[value(name = "1k")]
    Kilo,
    /// The same, exactly 64 KiB.
    #[value(name = "64k")]
    Large,
    /// A string of exactly 64 KiB.
    #[value(name = "64k-string")]
    Text,
}

impl Payload {
    fn params(self) -> NumberedParams {
        match self {
            Payload::Ping => NumberedParams::Object(16),
            Payload::Kilo => NumberedParams::Object(1 << 10),
            Payload::Large => NumberedParams::Object(64 << 10),
            Payload::Text => NumberedParams::Text(64 << 10),
        }
    }
}

/// The target of a load, and its requests.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) to: SocketAddrV4,
    /// Connections at the same time.
    pub(crate) connections: usize,
    /// Requests on the way at the same time on each connection.
    pub(crate) depth: usize,
    /// Requests after which a connection is closed and another opened; `None` keeps it.
    pub(crate) per_connection: Option<u64>,
    pub(crate) payload: Payload,
    /// The method that is called; its replies are named `pong`.
    pub(crate) method: &'static str,
    pub(crate) framing: Framing,
    pub(crate) check: Check,
}

/// Frames of the protocol's own byte order.
pub(crate) const LITTLE: Framing = Framing::Frames(ByteOrder::Little);

impl Plan {
    fn message(&self) -> Result<LoadMessage> {
        let params = self.payload.params();
        Ok(LoadMessage::numbered(
            self.method,
            params,
            self.framing,
            self.check,
        )?)
    }

    /// Returns the frames of the first request and its reply, for callers without a load.
    #[allow(dead_code, reason = "only `peers` needs it")]
    pub(crate) fn first_exchange(&self) -> Result<(Vec<u8>, Vec<u8>)> {
        Ok(self.message()?.into_frames())
    }
}

/// A load that can be run again and again.
pub(crate) struct Load(fdpassd::load::Load);

impl Load {
    pub(crate) fn new(plan: Plan) -> Result<Load> {
        let plan = LoadPlan {
            to: Address::Tcp(plan.to.into()),
            connections: plan.connections,
            depth: plan.depth,
            per_connection: plan.per_connection,
            message: plan.message()?,
            silence: SILENCE,
        };
        Ok(Load(fdpassd::load::Load::new(plan)?))
    }

    /// Sends requests at this pace, and waits for all replies.
    pub(crate) fn run(&mut self, pace: Pace) -> Result<Report> {
        let report = self.0.run(pace, interrupt::asked())?;
        interrupt::check()?;
        Ok(report)
    }
}
