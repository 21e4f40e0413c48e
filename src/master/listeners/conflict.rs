//! Addresses that cannot be bound because this daemon itself listens there.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::master::error::Error;
use crate::master::listeners::control_listener::ControlListener;
use crate::master::listeners::exporter_listener::ExporterListener;
use crate::master::listeners::listener::Listener;
use crate::master::listeners::socket_file::IN_USE_CAUSE;
use crate::proto::names::Address;

/// The addresses at which the daemon listens, each with its purpose.
#[derive(Debug, Default)]
pub(crate) struct OwnListeners(Vec<(Address, String)>);

impl OwnListeners {
    pub(crate) fn from_listeners<'l>(
        listeners: impl IntoIterator<Item = &'l Listener>,
        exporter: impl IntoIterator<Item = &'l ExporterListener>,
        control: Option<&ControlListener>,
    ) -> OwnListeners {
        let clients = listeners
            .into_iter()
            .map(|listener| (listener.address.clone(), "clients".to_owned()));
        let exporter = exporter
            .into_iter()
            .map(|listener| (listener.address.clone(), listener.service.to_string()));
        let control = control.map(|control| {
            let address = Address::Unix(control.path().to_owned());
            (address, "fdpassctl".to_owned())
        });
        OwnListeners(clients.chain(exporter).chain(control).collect())
    }

    /// Replaces [`IN_USE_CAUSE`] in an error if the daemon itself listens at the wanted address. `wanted` is `None` for
    /// a listener that the daemon does not bind.
    pub(crate) fn explain(&self, error: Error, wanted: Option<&Address>) -> Error {
        match self
            .0
            .iter()
            .find(|(own, _)| wanted.is_some_and(|wanted| exclude_each_other(own, wanted)))
        {
            Some((own, purpose)) => error.replace(
                IN_USE_CAUSE,
                &format!("the daemon itself listens there, at {own}, for {purpose}"),
            ),
            None => error,
        }
    }
}

/// Returns whether the second address cannot be bound while the first one is.
fn exclude_each_other(own: &Address, wanted: &Address) -> bool {
    match (own, wanted) {
        (Address::Tcp(own), Address::Tcp(wanted)) => share_port(own, wanted),
        // Two paths may lead to the same file.
        (Address::Unix(own), Address::Unix(wanted)) => {
            own == wanted || file(own).is_some_and(|own| file(wanted) == Some(own))
        }
        _ => false,
    }
}

/// Returns whether two sockets would have the same port of an address; IPv6 listeners accept IPv6 only.
fn share_port(own: &SocketAddr, wanted: &SocketAddr) -> bool {
    let is_any = own.ip().is_unspecified() || wanted.ip().is_unspecified();
    own.port() == wanted.port()
        && own.is_ipv4() == wanted.is_ipv4()
        && (own.ip() == wanted.ip() || is_any)
}

fn file(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path)
        .ok()
        .map(|found| (found.dev(), found.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_conflict_names_the_daemon_itself() {
        for (own, wanted, is_held) in [
            ("127.0.0.1:80", "127.0.0.1:80", true),
            ("127.0.0.1:80", "0.0.0.0:80", true),
            ("0.0.0.0:80", "127.0.0.1:80", true),
            ("[::]:80", "[::1]:80", true),
            ("[::]:80", "0.0.0.0:80", false),
            ("127.0.0.1:80", "127.0.0.2:80", false),
            ("127.0.0.1:80", "127.0.0.1:81", false),
            ("unix:/nowhere/a", "unix:/nowhere/a", true),
            ("unix:/nowhere/a", "unix:/nowhere/b", false),
        ] {
            let [own, wanted] =
                [own, wanted].map(|text| text.parse::<Address>().expect("an address"));
            let own = OwnListeners(vec![(own, "clients".to_owned())]);
            let error = own
                .explain(
                    Error::Unavailable(format!("no; {IN_USE_CAUSE}")),
                    Some(&wanted),
                )
                .to_string();
            assert_eq!(error.contains("the daemon itself"), is_held, "{error}");
        }
    }
}
