//! Handover: the state that outlives this process.

pub(crate) mod canary;
pub(crate) mod inherited;
pub(crate) mod queues;
pub(crate) mod restart;
pub(crate) mod snapshot;
pub(crate) mod state_file;
pub(crate) mod unpack;
pub(crate) mod upgrade;
