//! A listener of the exporter, with its outages.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use crate::master::listeners::exporter_listener::ExporterListener;
use crate::master::listeners::served::{FILE_GONE, Served};
use crate::master::retry::Outage;
use crate::master::{Error, Token};
use crate::proto::exporter::ExporterService;
use crate::proto::names::Address;
use crate::sys::poll::Poller;

/// A listener of the exporter.
#[derive(Debug)]
pub(super) struct ExporterSocket {
    pub(super) listener: ExporterListener,
    /// Set while the listener is not bound or not in the poller.
    pub(super) outage: Option<Outage>,
}

impl ExporterSocket {
    /// Creates one of a listener that is bound.
    pub(super) fn new(listener: ExporterListener) -> ExporterSocket {
        match listener.service {
            ExporterService::Metrics => log::info!("metrics are served on {}", listener.address),
            ExporterService::Agent => {
                log::info!("agent checks are answered on {}", listener.address);
            }
        }
        ExporterSocket {
            listener,
            outage: None,
        }
    }

    /// Binds the address. If this master follows another one, an address that cannot be bound is retried.
    ///
    /// # Errors
    /// Those of [`ExporterListener::bind`], unless this master follows another one.
    pub(super) fn open(
        service: ExporterService,
        address: &Address,
        follows_a_master: bool,
        now: Instant,
    ) -> Result<ExporterSocket, Error> {
        match ExporterListener::bind(service, address) {
            Err(e) if follows_a_master => {
                let missing = ExporterListener::missing(service, address);
                Ok(ExporterSocket {
                    listener: missing.map_err(Error::system("make a socket"))?,
                    outage: Some(Outage::from_error(&e, now)),
                })
            }
            bound => bound.map(ExporterSocket::new),
        }
    }

    /// Returns why no client can connect, if so. With `checks_file` the file of a Unix socket that is gone is a reason,
    /// too.
    pub(super) fn missing(&self, checks_file: bool) -> Option<&str> {
        match &self.outage {
            Some(outage) => Some(&outage.reason),
            None => (checks_file && self.listener.is_file_gone()).then_some(FILE_GONE),
        }
    }

    /// Removes the listener from the poller. The exporter's process may have the socket for longer, so that the poller
    /// would keep it.
    pub(super) fn unwatch(&self, poller: &Poller) {
        let _ = poller.remove(&self.listener);
    }
}

impl Served for ExporterSocket {
    fn token(&self) -> Token {
        Token::Exporter(self.listener.service)
    }

    fn name(&self) -> String {
        let purpose = match self.listener.service {
            ExporterService::Metrics => "metrics",
            ExporterService::Agent => "agent",
        };
        format!("{purpose} listener {}", self.listener.address)
    }

    fn outage_mut(&mut self) -> &mut Option<Outage> {
        &mut self.outage
    }

    fn is_reachable(&self) -> bool {
        !self.listener.is_file_gone()
    }
}

impl AsFd for ExporterSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}
