//! The target of `call`.

use std::fmt;

use super::values::address;
use crate::client::{check_address, srv_name};
use crate::proto::names::Address;

/// A listener, or a name whose SRV records have the daemons.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum CallTarget {
    Listener(Address),
    Srv(String),
}

/// Parses an address of a listener, or `srv:` and a name.
pub(super) fn target(text: &str) -> Result<CallTarget, String> {
    if srv_name(text).is_none() {
        return address(text).map(CallTarget::Listener);
    }
    check_address(text)?;
    Ok(CallTarget::Srv(text.to_owned()))
}

impl fmt::Display for CallTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CallTarget::Listener(address) => address.fmt(f),
            CallTarget::Srv(name) => f.write_str(name),
        }
    }
}
