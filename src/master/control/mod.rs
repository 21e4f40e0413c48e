//! The control socket: fdpassctl's requests and the replies.

use crate::master::control::server::ControlClients;
use crate::master::listeners::control_listener::ControlListener;
use crate::master::listeners::outage::Outage;

pub(crate) mod access;
pub(crate) mod dispatch;
pub(crate) mod inspect;
pub(crate) mod operate;
pub(crate) mod pending;
pub(crate) mod request;
pub(crate) mod server;
pub(crate) mod status;
pub(crate) mod verbs;

/// The control socket and its clients.
#[derive(Debug)]
pub(crate) struct ControlServer {
    pub(crate) listener: ControlListener,
    /// Set while the control socket is not open because another process has ended it.
    pub(crate) outage: Option<Outage>,
    pub(crate) clients: ControlClients,
}
