//! The PROXY protocol header of a client behind a load balancer: read in the client's first turns, before its frames.
//!
//! The bytes of the header are bytes of the client's stream, as those of a frame: they are parked while the header is
//! incomplete, and one store of the cursors both passes over them and notes that the header is read. The address is
//! written to the shared memory before that store. So a worker that dies anywhere in here costs nothing.

use super::{Gone, Turn};
use crate::proto::frame::{ByteOrder, OrderRule, PREFIX};
use crate::proto::misread;
use crate::proto::names::Peer;
use crate::proto::proxy::{self, ProxyFault, ProxyHeader, ProxySource, ProxyVersion};
use crate::proto::rpc::Code;
use crate::shm::{CloseReason, ProxyState};
use crate::worker::kill_points::{self, Point};
use crate::worker::reply::Fault;

impl Turn<'_, '_> {
    /// Reads the header of a client whose listener expects one. Returns whether frames may be served.
    #[cold]
    #[inline(never)]
    pub(super) fn read_header(&mut self) -> Result<bool, Gone> {
        if self.flags.closing {
            return Ok(false);
        }
        let mut must_report = false;
        if let ProxyState::Awaited(version) = self.flags.proxy {
            match proxy::read(self.unread(), version) {
                Ok(None) => return Ok(false),
                Ok(Some(header)) => self.accept_header(header)?,
                Err(fault) => {
                    self.refuse_header(fault, version)?;
                    return Ok(false);
                }
            }
            must_report = self.flags.proxy == ProxyState::Read;
        }
        if self.flags.proxy == ProxyState::Read && self.must_be_counted() {
            // The master counts the client first.
            self.connection.awaits_count = true;
            return Ok(false);
        }
        let is_unused = matches!(self.flags.proxy, ProxyState::Read | ProxyState::Known);
        if is_unused && !self.unread().is_empty() {
            self.flags.proxy = ProxyState::Used;
            self.slot().set_flags(self.flags);
            must_report = true;
        }
        if must_report {
            self.context.proxied.push(self.index);
        }
        Ok(true)
    }

    /// Returns whether the lease of a client whose header is read is given up before its first request.
    fn must_be_counted(&self) -> bool {
        self.context.settings.counts_addresses && self.context.stop_by.is_none()
    }

    /// Accepts a complete header: stores its address, and moves the cursors after it. A client whose address cannot be
    /// stored is lost.
    fn accept_header(&mut self, header: ProxyHeader) -> Result<(), Gone> {
        let source = match header.source {
            ProxySource::Address(address) => Some(Peer::from(address)),
            ProxySource::Local | ProxySource::Unknown => None,
        };
        let is_local = header.source == ProxySource::Local;
        if !is_local && let Err(e) = self.context.shm.set_source(self.index, source) {
            log::error!("cannot store the address of a client: {e}; closing it");
            self.note_lost();
            return Err(Gone);
        }
        kill_points::pass(Point::BeforeHeader);
        let length = header.length;
        self.cursors.in_base += length as u64;
        self.cursors.rx.1 += length as u32;
        self.have -= length;
        self.cursors.have = self.have as u32;
        self.flags.proxy = match is_local {
            true => ProxyState::Local,
            false => ProxyState::Read,
        };
        self.activate_cursors();
        kill_points::pass(Point::AfterHeader);
        // The frame after it has its own time.
        self.slot().set_since(self.context.now);
        self.connection.awaits_header = false;
        self.connection.set_source(source);
        Ok(())
    }

    /// Rejects a client whose bytes are not a header that its listener accepts.
    fn refuse_header(&mut self, fault: ProxyFault, expected: ProxyVersion) -> Result<(), Gone> {
        let reason = match fault {
            ProxyFault::Missing => CloseReason::HeaderMissing,
            ProxyFault::Version(_) => CloseReason::HeaderVersion,
            ProxyFault::Malformed(_) => CloseReason::HeaderMalformed,
            ProxyFault::Checksum => CloseReason::HeaderChecksum,
        };
        let message = match fault {
            ProxyFault::Missing => misread::no_header(self.unread(), expected),
            fault => format!("{fault}; the listener expects one of {expected}"),
        };
        self.check_socket()?;
        self.reject_without_header(reason, Code::BadRequest, message);
        Ok(())
    }

    /// Notes and logs that a connection has ended in the middle of its header. One without a byte is a check.
    #[cold]
    pub(super) fn end_without_header(&mut self) {
        if self.have > 0 {
            self.flags.close_reason = CloseReason::HeaderIncomplete;
            let message = "the connection ended in the middle of the PROXY protocol header";
            self.connection.log_refused_header(message);
        }
    }

    /// Rejects a client whose header was not complete in time.
    pub(super) fn give_up_header(&mut self) {
        let message = "the PROXY protocol header was not complete within frame-timeout";
        self.reject_without_header(
            CloseReason::HeaderTimeout,
            Code::Timeout,
            message.to_owned(),
        );
    }

    fn reject_without_header(&mut self, reason: CloseReason, code: Code, message: String) {
        self.connection.log_refused_header(&message);
        if self.flags.order.is_none() {
            let prefix = self.unread().first_chunk::<PREFIX>().copied();
            let limit = self.context.settings.max_frame;
            self.flags.order = match (self.connection.order, prefix) {
                (OrderRule::Auto, Some(prefix)) => OrderRule::Auto.decide(prefix, limit),
                (OrderRule::Big, _) => Some(ByteOrder::Big),
                (OrderRule::Auto | OrderRule::Little, _) => None,
            };
        }
        self.reply_last_because(&Fault::from_code(code, message), reason);
    }
}
