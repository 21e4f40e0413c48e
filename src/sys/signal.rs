//! Signals, as something to read.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use nix::sys::signal::{SigSet, SigmaskHow};
use signal_hook::consts::{SIGCHLD, SIGCONT, SIGHUP, SIGINT, SIGTERM, SIGTTIN, SIGTTOU, SIGUSR1, SIGUSR2};
use signal_hook::low_level::pipe;

/// The signals that mean something here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM.
    Terminate,
    /// SIGINT.
    Interrupt,
    /// SIGCHLD.
    Child,
    /// SIGCONT: this process was stopped, and goes on.
    Continue,
    /// SIGUSR1.
    User1,
    /// SIGUSR2.
    User2,
    /// SIGHUP.
    Hangup,
    /// SIGTTIN.
    TerminalInput,
    /// SIGTTOU.
    TerminalOutput,
}

impl Signal {
    fn number(self) -> i32 {
        match self {
            Signal::Terminate => SIGTERM,
            Signal::Interrupt => SIGINT,
            Signal::Child => SIGCHLD,
            Signal::Continue => SIGCONT,
            Signal::User1 => SIGUSR1,
            Signal::User2 => SIGUSR2,
            Signal::Hangup => SIGHUP,
            Signal::TerminalInput => SIGTTIN,
            Signal::TerminalOutput => SIGTTOU,
        }
    }
}

/// A descriptor that becomes readable when one of some signals has arrived.
#[derive(Debug)]
pub struct Signals {
    pipe: UnixStream,
    arrived: Vec<(Signal, Arc<AtomicBool>)>,
}

impl Signals {
    /// Catches these signals from now on.
    ///
    /// # Errors
    /// Those of socketpair(2) and sigaction(2).
    pub fn catch(signals: &[Signal]) -> io::Result<Signals> {
        let (read, write) = UnixStream::pair()?;
        read.set_nonblocking(true)?;
        let mut arrived = Vec::new();
        for &signal in signals {
            let flag = Arc::new(AtomicBool::new(false));
            // Flag before byte: who reads the byte finds the flag.
            signal_hook::flag::register(signal.number(), Arc::clone(&flag))?;
            pipe::register(signal.number(), write.try_clone()?)?;
            arrived.push((signal, flag));
        }
        Ok(Signals { pipe: read, arrived })
    }

    /// What has arrived since the last call; several of a kind are one.
    pub fn take(&mut self) -> Vec<Signal> {
        // Emptied before the flags are looked at, so that none that comes meanwhile is forgotten.
        let mut bytes = [0; 64];
        while matches!(self.pipe.read(&mut bytes), Ok(n) if n > 0) {}
        let set = self.arrived.iter().filter(|(_, flag)| flag.swap(false, Ordering::SeqCst));
        set.map(|(signal, _)| *signal).collect()
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}

/// The calling thread runs no signal handler while this is there; signals wait for it, or for another thread.
#[derive(Debug)]
pub struct HeldBack(Option<SigSet>);

impl HeldBack {
    /// Holds back every signal but SIGKILL and SIGSTOP, which cannot be.
    #[must_use]
    pub fn all() -> HeldBack {
        // It fails for a bad argument only.
        HeldBack(SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK).ok())
    }
}

impl Drop for HeldBack {
    fn drop(&mut self) {
        let _ = self.0.map(|before| before.thread_set_mask());
    }
}

/// Makes this process deaf to what a terminal or an operator sends to a whole group: a worker ends when its
/// master says so. Handlers that do nothing, not SIG_IGN, because that would be inherited by the programs
/// that a method starts.
///
/// # Errors
/// Those of sigaction(2).
pub fn ignore_group_signals() -> io::Result<()> {
    let arrived = IGNORED.get_or_init(Arc::default);
    for signal in [SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2, SIGTTIN, SIGTTOU] {
        signal_hook::flag::register(signal, Arc::clone(arrived))?;
    }
    Ok(())
}

/// Whether one of the signals that this process is deaf to has arrived since the last call.
pub fn take_ignored() -> bool {
    IGNORED.get().is_some_and(|arrived| arrived.swap(false, Ordering::Relaxed))
}

static IGNORED: OnceLock<Arc<AtomicBool>> = OnceLock::new();
