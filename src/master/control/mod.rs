//! The control socket: fdpassctl's requests and the replies.

pub(crate) mod access;
pub(crate) mod dispatch;
pub(crate) mod inspect;
pub(crate) mod operate;
pub(crate) mod pending;
pub(crate) mod server;
pub(crate) mod status;
