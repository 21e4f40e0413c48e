//! The change of the exporter by a reload.

use std::time::Instant;

use super::socket::ExporterSocket;
use super::{Exporter, address_of};
use crate::config::Config;
use crate::master::Error;
use crate::master::listeners::exporter_listener::ExporterListener;
use crate::master::listeners::served::{FILE_GONE, Served};
use crate::proto::exporter::{ExporterService, StartExporter};
use crate::proto::names::Address;
use crate::sys::poll::{Interest, Poller};

/// The listeners of an exporter after a reload.
#[derive(Debug)]
pub(in crate::master) struct PlannedExporter(Vec<PlannedSocket>);

/// A listener of an exporter after a reload.
#[derive(Debug)]
enum PlannedSocket {
    /// The listener with this purpose stays.
    Keep(ExporterService),
    /// A new listener, where requests wait.
    New(Box<ExporterListener>),
}

impl PlannedExporter {
    /// Determines what a configuration needs, and binds new listeners.
    ///
    /// # Errors
    /// Those of [`ExporterListener::bind`], with the address.
    pub(in crate::master) fn new<'c>(
        next: &'c Config,
        in_force: &Config,
        current: Option<&Exporter>,
    ) -> Result<PlannedExporter, (Error, &'c Address)> {
        let mut planned = Vec::new();
        for service in ExporterService::ALL {
            let Some(address) = address_of(next, service) else {
                continue;
            };
            let is_kept = address_of(in_force, service) == Some(address)
                && current.is_some_and(|exporter| exporter.can_keep(service));
            planned.push(match is_kept {
                true => PlannedSocket::Keep(service),
                false => {
                    let bound = ExporterListener::bind(service, address);
                    PlannedSocket::New(Box::new(bound.map_err(|e| (e, address))?))
                }
            });
        }
        Ok(PlannedExporter(planned))
    }

    /// Applies the plan to the exporter that there is.
    pub(in crate::master) fn commit(
        self,
        exporter: &mut Option<Exporter>,
        start: StartExporter,
        poller: &Poller,
        now: Instant,
    ) {
        let mut before = match exporter {
            Some(exporter) => std::mem::take(&mut exporter.sockets),
            None => Vec::new(),
        };
        let count = before.len();
        let (mut sockets, mut has_new) = (Vec::new(), false);
        for planned in self.0 {
            match planned {
                PlannedSocket::Keep(service) => {
                    sockets.extend(before.extract_if(.., |s| s.listener.service == service));
                }
                PlannedSocket::New(listener) => {
                    has_new = true;
                    let mut new = ExporterSocket::new(*listener);
                    new.watch(Interest::End, poller, now);
                    sockets.push(new);
                }
            }
        }
        // Another process may hold a listener, so that it would stay in the poller.
        before.iter().for_each(|socket| socket.unwatch(poller));
        let is_changed = has_new || sockets.len() != count;
        match exporter {
            _ if sockets.is_empty() => *exporter = None,
            Some(exporter) => {
                exporter.sockets = sockets;
                if is_changed || exporter.start != start {
                    exporter.start = start;
                    exporter.replace(now);
                }
            }
            None => *exporter = Some(Exporter::new(sockets, start, now)),
        }
    }
}

impl Exporter {
    /// Returns whether there is a listener with this purpose that clients find.
    fn can_keep(&self, service: ExporterService) -> bool {
        self.sockets.iter().any(|socket| {
            socket.listener.service == service && socket.missing(true) != Some(FILE_GONE)
        })
    }
}
