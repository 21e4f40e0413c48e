//! The reply to a control request.

use serde::Serialize;

use crate::proto::control::{Refusal, RefusalCode, Verb};
use crate::proto::frame::ByteOrder;
use crate::proto::rpc;

/// The reply to a request: a frame, complete with its prefix.
#[derive(Clone, Debug)]
pub(crate) struct ControlReply(Vec<u8>);

impl ControlReply {
    /// Serializes the result of a verb.
    ///
    /// # Errors
    /// `refused`, if that is not possible.
    pub(crate) fn new(verb: Verb, result: &impl Serialize) -> Result<ControlReply, Refusal> {
        frame(verb.as_str(), result).ok_or_else(|| {
            log::error!("the reply to {} cannot be serialized", verb.as_str());
            Refusal::new(RefusalCode::Refused, "the reply cannot be serialized")
        })
    }

    /// Serializes a refusal.
    pub(crate) fn from_refusal(refusal: &Refusal) -> ControlReply {
        frame("error", refusal).expect("a refusal has only strings and numbers")
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

fn frame(out: &str, result: &impl Serialize) -> Option<ControlReply> {
    let mut body = Vec::new();
    rpc::open(&mut body, out).ok()?;
    serde_json::to_writer(&mut body, result).ok()?;
    body.extend_from_slice(rpc::CLOSE);
    let prefix = ByteOrder::Little.prefix(u32::try_from(body.len()).ok()?);
    Some(ControlReply([&prefix[..], &body].concat()))
}
