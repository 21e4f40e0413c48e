//! The record of a listener, from which the next master restores it.

use serde::{Deserialize, Serialize};

use crate::master::listeners::socket_file::FileIdentity;

/// The record of a listener in the service manager's store.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct ListenerRecord {
    pub(crate) number: u32,
    /// The configured address, if that is known; `address` is the actual one.
    pub(crate) configured: String,
    pub(crate) address: String,
    pub(crate) accepted: u64,
    /// The file of a Unix socket.
    pub(crate) file: Option<FileIdentity>,
    /// User and group with which that file was created.
    pub(crate) file_owner: Option<(u32, u32)>,
}

impl ListenerRecord {
    /// Creates a record of which only the address is known.
    pub(crate) fn with_address(number: u32, address: String) -> ListenerRecord {
        ListenerRecord {
            number,
            address,
            ..ListenerRecord::default()
        }
    }
}
