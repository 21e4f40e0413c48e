//! Connections of load balancers that have not become clients.

use crate::master::telemetry::by_kind::Label;
use crate::shm::CloseReason;

/// Reasons why a connection to a listener with the key `proxy` has not become a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoClient {
    /// Nothing came after its header, or it had none and sent nothing, or the header is that of a check.
    Check,
    /// The address is not in `proxy-from`.
    Outside,
    /// The connection did not begin with a header.
    Missing,
    /// The header was of another version.
    Version,
    /// The header was not valid.
    Malformed,
    /// The checksum of the header was wrong.
    Checksum,
    /// The connection ended in the middle of the header.
    Incomplete,
    /// The header was not complete in time.
    Timeout,
}

impl NoClient {
    /// Returns why a connection that ends for this reason has not become a client; `None` if the daemon has closed it
    /// for a reason of its own.
    pub(crate) fn from_reason(reason: CloseReason) -> Option<NoClient> {
        match reason {
            CloseReason::Left | CloseReason::Idle => Some(NoClient::Check),
            CloseReason::HeaderMissing => Some(NoClient::Missing),
            CloseReason::HeaderVersion => Some(NoClient::Version),
            CloseReason::HeaderMalformed => Some(NoClient::Malformed),
            CloseReason::HeaderChecksum => Some(NoClient::Checksum),
            CloseReason::HeaderIncomplete => Some(NoClient::Incomplete),
            CloseReason::HeaderTimeout => Some(NoClient::Timeout),
            CloseReason::FrameTimeout
            | CloseReason::SendTimeout
            | CloseReason::TooLarge
            | CloseReason::Overloaded
            | CloseReason::Stopping
            | CloseReason::Lost
            | CloseReason::Goaway
            | CloseReason::Kicked => None,
        }
    }
}

impl Label for NoClient {
    const ALL: &'static [(NoClient, &'static str)] = &[
        (NoClient::Check, "check"),
        (NoClient::Outside, "outside"),
        (NoClient::Missing, "missing"),
        (NoClient::Version, "version"),
        (NoClient::Malformed, "malformed"),
        (NoClient::Checksum, "checksum"),
        (NoClient::Incomplete, "incomplete"),
        (NoClient::Timeout, "timeout"),
    ];
}
