//! Listeners: the sockets that clients connect to.

pub(crate) mod accept;
pub(crate) mod activation;
pub(crate) mod conflict;
pub(crate) mod control_link;
pub(crate) mod control_listener;
pub(crate) mod exporter_listener;
pub(crate) mod listener;
pub(crate) mod open;
pub(crate) mod outage;
pub(crate) mod plan;
pub(crate) mod socket_file;
pub(crate) mod yielding;
