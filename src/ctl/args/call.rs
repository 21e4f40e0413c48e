//! The arguments of `call`.

use std::path::PathBuf;

use serde_json::value::RawValue;

use super::target::{CallTarget, target};
use super::values::{json, words};
use crate::proto::frame::ByteOrder;

#[derive(Debug, clap::Args)]
pub(crate) struct CallArguments {
    /// The method, for example "ping"
    pub(crate) method: String,

    /// The params as JSON; "-" for standard input, "@FILE" for a file
    #[arg(value_name = "PARAMS", value_parser = params, allow_negative_numbers = true)]
    pub(crate) params: Option<CallParams>,

    /// Listener: an IP address and a port, or unix:/path
    ///
    /// Default: the daemon's first listener without the key proxy.
    ///
    /// With the Cargo feature srv also srv:_SERVICE._PROTOCOL.NAME.
    #[arg(long, value_name = "ADDRESS", value_parser = target)]
    pub(crate) to: Option<CallTarget>,

    /// Byte order of the length prefix: little or big
    ///
    /// Default: that of the listener, else little.
    #[arg(long, value_name = "ORDER", hide_possible_values = true)]
    #[arg(value_parser = words([("little", ByteOrder::Little), ("big", ByteOrder::Big)]))]
    pub(crate) byte_order: Option<ByteOrder>,
}

/// The params of a call, or where they are.
#[derive(Clone, Debug)]
pub(crate) enum CallParams {
    Given(Box<RawValue>),
    StandardInput,
    File(PathBuf),
}

/// Parses JSON, `-` or `@FILE`; no JSON begins with these.
fn params(text: &str) -> Result<CallParams, String> {
    match (text, text.strip_prefix('@')) {
        ("-", _) => Ok(CallParams::StandardInput),
        (_, Some("")) => Err("expected the name of a file after \"@\"".to_owned()),
        (_, Some(file)) => Ok(CallParams::File(PathBuf::from(file))),
        (text, None) => json(text).map(CallParams::Given),
    }
}
