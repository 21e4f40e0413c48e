//! Listeners: the sockets that clients connect to.

pub(crate) mod accept;
pub(crate) mod activation;
pub(crate) mod conflict;
pub(crate) mod listener;
pub(crate) mod outage;
pub(crate) mod yielding;
