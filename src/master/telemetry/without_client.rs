//! Connections of load balancers that have not become clients.

use crate::master::telemetry::by_kind::Label;
use crate::shm::CloseReason;

/// Reasons why a connection to a listener with the key `proxy` has not become a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WithoutClient {
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

impl WithoutClient {
    /// Returns why a connection that ends for this reason has not become a client; `None` if the daemon has closed it
    /// for a reason of its own.
    pub(crate) fn from_reason(reason: CloseReason) -> Option<WithoutClient> {
        match reason {
            CloseReason::Left | CloseReason::Idle => Some(WithoutClient::Check),
            CloseReason::HeaderMissing => Some(WithoutClient::Missing),
            CloseReason::HeaderVersion => Some(WithoutClient::Version),
            CloseReason::HeaderMalformed => Some(WithoutClient::Malformed),
            CloseReason::HeaderChecksum => Some(WithoutClient::Checksum),
            CloseReason::HeaderIncomplete => Some(WithoutClient::Incomplete),
            CloseReason::HeaderTimeout => Some(WithoutClient::Timeout),
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

impl Label for WithoutClient {
    const ALL: &'static [(WithoutClient, &'static str)] = &[
        (WithoutClient::Check, "check"),
        (WithoutClient::Outside, "outside"),
        (WithoutClient::Missing, "missing"),
        (WithoutClient::Version, "version"),
        (WithoutClient::Malformed, "malformed"),
        (WithoutClient::Checksum, "checksum"),
        (WithoutClient::Incomplete, "incomplete"),
        (WithoutClient::Timeout, "timeout"),
    ];
}
