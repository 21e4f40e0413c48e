//! The tokens that identify the sources of events in the poller.

use crate::proto::exporter::ExporterService;
use crate::proto::names::{Generation, WorkerId};

/// Where an event comes from. In the order in which an iteration of the loop handles them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token {
    Signals,
    Worker(WorkerId),
    Control,
    ControlClient(u64),
    Listener(u32),
    /// A listener of the exporter, whose end alone is reported.
    Exporter(ExporterService),
    /// Something that the service manager has closed.
    Store,
    /// The zygote of a generation.
    Zygote(Generation),
}

/// The number that a poller keeps: the kind in the upper eight bits, so that it sorts like the kinds.
impl From<Token> for u64 {
    fn from(token: Token) -> u64 {
        let (kind, index) = match token {
            Token::Signals => (0, 0),
            Token::Worker(id) => (1, id.0),
            Token::Control => (2, 0),
            Token::ControlClient(number) => (3, number),
            Token::Listener(number) => (4, number.into()),
            Token::Exporter(ExporterService::Metrics) => (5, 0),
            Token::Exporter(ExporterService::Agent) => (5, 1),
            Token::Store => (6, 0),
            Token::Zygote(generation) => (7, generation.0),
        };
        kind << 56 | index
    }
}

impl Token {
    pub(super) fn from_number(number: u64) -> Option<Token> {
        let index = number & ((1 << 56) - 1);
        match number >> 56 {
            0 => Some(Token::Signals),
            1 => Some(Token::Worker(WorkerId(index))),
            2 => Some(Token::Control),
            3 => Some(Token::ControlClient(index)),
            4 => Some(Token::Listener(index as u32)),
            5 if index == 0 => Some(Token::Exporter(ExporterService::Metrics)),
            5 if index == 1 => Some(Token::Exporter(ExporterService::Agent)),
            6 => Some(Token::Store),
            7 => Some(Token::Zygote(Generation(index))),
            _ => None,
        }
    }
}
