//! Figures that change with every client. They are words of the state file, so the next master reads them even if this
//! one is killed.

use std::rc::Rc;
use std::sync::atomic::Ordering;

use crate::sys::memory::Words;

const NEXT_CLIENT: usize = 2;
const REFUSED: usize = 3;
const CLIENTS: usize = 4;
const WITHOUT_CLIENT: usize = 6;

/// The words of a state file that concern clients.
#[derive(Clone, Debug)]
pub(crate) struct ClientFigures(Rc<Words>);

impl ClientFigures {
    pub(crate) fn new(words: Rc<Words>) -> ClientFigures {
        ClientFigures(words)
    }

    pub(crate) fn set(&self, next_client: u64, refused: u64, clients: u64) {
        self.0[NEXT_CLIENT].store(next_client, Ordering::Relaxed);
        self.0[REFUSED].store(refused, Ordering::Relaxed);
        self.0[CLIENTS].store(clients.wrapping_add(1), Ordering::Relaxed);
    }

    /// Writes how many connections to listeners with the key `proxy` ended without becoming clients.
    pub(crate) fn set_without_client(&self, without_client: u64) {
        self.0[WITHOUT_CLIENT].store(without_client, Ordering::Relaxed);
    }

    pub(crate) fn without_client(&self) -> u64 {
        self.0[WITHOUT_CLIENT].load(Ordering::Relaxed)
    }

    /// Returns the number of clients; `None` if it is not known.
    pub(crate) fn clients(&self) -> Option<u64> {
        self.0[CLIENTS].load(Ordering::Relaxed).checked_sub(1)
    }

    pub(crate) fn next_client(&self) -> u64 {
        self.0[NEXT_CLIENT].load(Ordering::Relaxed).max(1)
    }

    pub(crate) fn refused(&self) -> u64 {
        self.0[REFUSED].load(Ordering::Relaxed)
    }
}
