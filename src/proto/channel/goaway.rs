//! The order to end clients politely.

use super::{GOAWAY_KIND, MAX_SLOTS};
use crate::proto::message::{Fields, Malformed};
use crate::proto::rpc::GoawayReason;

/// Clients of a worker that get a last frame, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Goaway {
    /// The reason.
    pub reason: GoawayReason,
    /// The slot and the lease number of each client; from 1 to [`MAX_SLOTS`]. The worker ignores leases that it does not
    /// have any more.
    pub leases: Vec<(u32, u32)>,
}

impl Goaway {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&[GOAWAY_KIND, self.reason.number()]);
        for (slot, lease_number) in &self.leases {
            out.extend_from_slice(&slot.to_le_bytes());
            out.extend_from_slice(&lease_number.to_le_bytes());
        }
    }

    pub(super) fn decode(body: &[u8]) -> Result<Goaway, Malformed> {
        let (reason, leases) = body.split_first().ok_or(Malformed("no reason"))?;
        let reason = GoawayReason::from_number(*reason).ok_or(Malformed("an unknown reason"))?;
        let (leases, rest) = leases.as_chunks::<8>();
        if !rest.is_empty() || leases.is_empty() || leases.len() > MAX_SLOTS {
            return Err(Malformed("leases of a wrong length"));
        }
        let read = |lease: &[u8; 8]| {
            let mut fields = Fields(lease);
            Ok((fields.u32()?, fields.u32()?))
        };
        let leases = leases.iter().map(read).collect::<Result<_, _>>()?;
        Ok(Goaway { reason, leases })
    }
}
