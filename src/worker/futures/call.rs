//! The circumstances of one request of an asynchronous method.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crate::proto::names::{ClientId, Peer};

/// The circumstances of one request of an asynchronous method; [`Call`](crate::Call) is that of the others.
#[derive(Clone, Debug)]
pub struct AsyncCall {
    /// The client: the same for all requests of a connection, in every worker, and never reused.
    pub client: ClientId,
    /// The client's address, as the kernel reported it when the client connected, or as a load balancer has reported it
    /// by the PROXY protocol.
    pub peer: Peer,
    /// The address of the load balancer that has reported `peer`; none without one.
    pub via: Option<Peer>,
    /// 1; 2 if the request is executed once more, because its worker or app died.
    pub attempt: u32,
    /// When the future is dropped and its caller gets `timeout`; none while no deadline applies.
    pub deadline: Option<Instant>,
    connected: Arc<AtomicBool>,
}

impl AsyncCall {
    pub(in crate::worker) fn new(
        client: ClientId,
        (peer, via): (Peer, Option<Peer>),
        attempt: u32,
        deadline: Option<Instant>,
    ) -> AsyncCall {
        AsyncCall {
            client,
            peer,
            via,
            attempt,
            deadline,
            connected: Arc::new(AtomicBool::new(true)),
        }
    }

    /// Returns whether the client could still receive the reply. It makes no system call.
    ///
    /// The future is dropped when the client leaves, at its next `.await`. So this is for what does not wait there: a
    /// long calculation, or a closure of `spawn_blocking`, which continues after its future is dropped.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Relaxed)
    }

    pub(super) fn into_connected(self) -> Arc<AtomicBool> {
        self.connected
    }
}
