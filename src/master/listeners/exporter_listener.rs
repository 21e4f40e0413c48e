//! The listener of the exporter.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::config::{Access, Mode};
use crate::master::error::Error;
use crate::master::listeners::socket_file::{SocketFile, bind, cannot_bind};
use crate::proto::exporter::ExporterService;
use crate::proto::names::Address;
use crate::sys::listening::listen;
use crate::sys::socket;

/// A listener of the exporter. Dropping it ends the listening, even if another process has a copy of the socket.
#[derive(Debug)]
pub(crate) struct ExporterListener {
    socket: OwnedFd,
    pub(crate) service: ExporterService,
    /// The actual address.
    pub(crate) address: Address,
    /// The file of a Unix socket.
    file: Option<SocketFile>,
}

impl ExporterListener {
    /// Binds and listens.
    pub(crate) fn bind(
        service: ExporterService,
        wanted: &Address,
    ) -> Result<ExporterListener, Error> {
        let access = Access {
            mode: Mode(0o660),
            owner: None,
            group: None,
        };
        let fail =
            |e: io::Error| cannot_bind(&format!("listen on {wanted} for {service}"), wanted, &e);
        let (socket, address, file) = bind(wanted, Some(&access), false).map_err(fail)?;
        listen(&socket, 128).map_err(fail)?;
        Ok(ExporterListener {
            socket,
            service,
            address,
            file,
        })
    }

    /// Returns whether the file was removed, or replaced by another one.
    pub(crate) fn is_file_gone(&self) -> bool {
        self.file
            .as_ref()
            .is_some_and(|file| file.metadata().is_none())
    }

    /// Creates a placeholder for a listener that cannot be bound now.
    ///
    /// # Errors
    /// Those of socket(2).
    pub(crate) fn missing(
        service: ExporterService,
        address: &Address,
    ) -> io::Result<ExporterListener> {
        Ok(ExporterListener {
            socket: socket::unbound()?,
            service,
            address: address.clone(),
            file: None,
        })
    }

    /// Replaces a socket that has ended by another one at the same address.
    pub(crate) fn bind_again(&mut self) -> Result<(), Error> {
        let another = ExporterListener::bind(self.service, &self.address)?;
        // The earlier file was replaced. Its inode number may be that of the new one.
        drop(self.file.take().map(SocketFile::left));
        *self = another;
        Ok(())
    }
}

impl Drop for ExporterListener {
    fn drop(&mut self) {
        // Otherwise the address would be in use until the exporter is gone.
        socket::end(&self.socket);
    }
}

impl AsFd for ExporterListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::listening::{AcceptResult, AcceptTry, accept};

    #[test]
    fn dropping_the_exporter_listener_frees_a_shared_port() {
        let bind = |address: &Address| ExporterListener::bind(ExporterService::Metrics, address);
        let listener = bind(&"127.0.0.1:0".parse().expect("an address")).expect("bind");
        let (address, copy) = (
            listener.address.clone(),
            listener.as_fd().try_clone_to_owned().expect("dup"),
        );
        assert!(bind(&address).is_err(), "{address}");
        drop(listener);
        bind(&address).expect("it is free");
        assert!(
            matches!(
                accept(&copy, AcceptTry::First).expect("accept"),
                AcceptResult::Ended
            ),
            "{address}"
        );
    }
}
