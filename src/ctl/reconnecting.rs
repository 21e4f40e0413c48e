//! A connection to the daemon for a verb that watches it: it is made again after the daemon has closed it, as at a
//! restart or an upgrade.

use super::error::Error;
use super::session::Session;
use crate::rpc_client::{self, Deadline, RpcClient};

/// A connection that is made when it is needed.
#[derive(Debug)]
pub(super) struct Reconnecting {
    session: Session,
    daemon: Option<RpcClient>,
}

impl Reconnecting {
    pub(super) fn new(session: &Session) -> Reconnecting {
        Reconnecting {
            session: session.clone(),
            daemon: None,
        }
    }

    /// Sends requests, with a timeout for all of them. If the daemon has closed the connection since the last ones,
    /// sends them again on a new one.
    ///
    /// # Errors
    /// Those of the requests, and why there is no connection.
    pub(super) fn ask<T>(
        &mut self,
        requests: impl Fn(&mut RpcClient) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let deadline = Deadline::new(self.session.timeout);
        if let Some(mut daemon) = self.daemon.take() {
            daemon.extend(deadline);
            match requests(&mut daemon) {
                Err(Error::Connection(rpc_client::Error::Closed)) => {}
                done => return self.keep(daemon, done),
            }
        }
        let mut daemon = self.session.connect_until(deadline)?;
        let done = requests(&mut daemon);
        self.keep(daemon, done)
    }

    /// Keeps the connection if no reply is outstanding.
    fn keep<T>(&mut self, daemon: RpcClient, done: Result<T, Error>) -> Result<T, Error> {
        let is_answered = match &done {
            Ok(_) => true,
            Err(Error::Connection(error)) => matches!(
                error,
                rpc_client::Error::Refused { .. } | rpc_client::Error::Forbidden(_)
            ),
            Err(_) => false,
        };
        self.daemon = is_answered.then_some(daemon);
        done
    }
}
