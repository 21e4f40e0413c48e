//! Signals: read from a descriptor, held back, or ignored.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use nix::libc::{self, SI_KERNEL};
use nix::sys::signal::{self, SigSet, SigmaskHow};
use signal_hook::consts::{
    SIGALRM, SIGCHLD, SIGCONT, SIGHUP, SIGINT, SIGTERM, SIGTTIN, SIGTTOU, SIGUSR1, SIGUSR2, SIGXFSZ,
};
use signal_hook::low_level::pipe;

/// A signal that the daemon acts on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Signal {
    /// SIGTERM.
    Terminate = SIGTERM,
    /// SIGINT.
    Interrupt = SIGINT,
    /// SIGCHLD.
    Child = SIGCHLD,
    /// SIGCONT: this process was stopped and continues.
    Continue = SIGCONT,
    /// SIGUSR1.
    User1 = SIGUSR1,
    /// SIGUSR2.
    User2 = SIGUSR2,
    /// SIGHUP.
    Hangup = SIGHUP,
    /// SIGTTIN.
    TerminalInput = SIGTTIN,
    /// SIGTTOU.
    TerminalOutput = SIGTTOU,
}

impl Signal {
    /// Returns whether the kernel sent it because a background process used its terminal (sigaction(2)).
    fn is_of_terminal(self, code: i32) -> bool {
        matches!(self, Signal::TerminalInput | Signal::TerminalOutput) && code == SI_KERNEL
    }
}

/// A descriptor that becomes readable when one of the caught signals has arrived.
#[derive(Debug)]
pub struct Signals {
    pipe: UnixStream,
    arrived: Vec<(Signal, Arc<AtomicBool>)>,
}

impl Signals {
    /// Catches these signals.
    ///
    /// # Errors
    /// Those of socketpair(2) and sigaction(2).
    pub fn catch(signals: &[Signal]) -> io::Result<Signals> {
        let (read, write) = UnixStream::pair()?;
        read.set_nonblocking(true)?;
        let mut arrived = Vec::new();
        for &signal in signals {
            let flag = Arc::new(AtomicBool::new(false));
            // Flag before byte: a reader of the byte must find the flag.
            let noted = Arc::clone(&flag);
            // SAFETY: the action reads a field of its siginfo_t and stores a flag: a signal handler may do both
            // (signal-safety(7)).
            unsafe {
                // The terminal's own SIGTTIN and SIGTTOU are not commands.
                signal_hook_registry::register_sigaction(signal as i32, move |info| {
                    noted.fetch_or(!signal.is_of_terminal(info.si_code), Ordering::SeqCst);
                })?;
            }
            pipe::register(signal as i32, write.try_clone()?)?;
            arrived.push((signal, flag));
        }
        Ok(Signals {
            pipe: read,
            arrived,
        })
    }

    /// Returns the signals that have arrived since the last call; several of a kind are one.
    pub fn take(&mut self) -> Vec<Signal> {
        // The pipe is emptied before the flags are read, so that no signal is missed.
        let mut bytes = [0; 64];
        while matches!(self.pipe.read(&mut bytes), Ok(n) if n > 0) {}
        let set = self
            .arrived
            .iter()
            .filter(|(_, flag)| flag.swap(false, Ordering::SeqCst));
        set.map(|(signal, _)| *signal).collect()
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}

/// Blocks signals of the calling thread until it is dropped; they wait, or are delivered to another thread.
#[derive(Debug)]
pub struct HeldBack(Option<SigSet>);

impl HeldBack {
    /// Holds back every signal except SIGKILL and SIGSTOP, which cannot be.
    #[must_use]
    pub fn all() -> HeldBack {
        // It fails for a bad argument only.
        HeldBack(SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK).ok())
    }

    /// Holds back SIGTTOU: the thread may write to a terminal from the background, also with `stty tostop`. A handler
    /// with SA_RESTART would make the write be retried forever.
    #[must_use]
    pub fn terminal_output() -> HeldBack {
        let output = SigSet::from(signal::Signal::SIGTTOU);
        HeldBack(output.thread_swap_mask(SigmaskHow::SIG_BLOCK).ok())
    }
}

impl Drop for HeldBack {
    fn drop(&mut self) {
        let _ = self.0.map(|before| before.thread_set_mask());
    }
}

/// Returns a flag that the first SIGINT or SIGTERM sets. The second one ends the process, with exit status 128 and its
/// number.
///
/// # Errors
/// Those of sigaction(2).
pub fn set_at_interrupt() -> io::Result<Arc<AtomicBool>> {
    let is_interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        let (status, flag) = (128 + signal, Arc::clone(&is_interrupted));
        signal_hook::flag::register_conditional_shutdown(signal, status, flag)?;
        signal_hook::flag::register(signal, Arc::clone(&is_interrupted))?;
    }
    Ok(is_interrupted)
}

/// Returns whether this process ignores a signal (SIG_IGN), as nohup(1) makes a program do.
#[must_use]
pub fn is_ignored(signal: Signal) -> bool {
    is_number_ignored(signal as i32)
}

/// Returns whether this process ignores the signal of this number.
pub(super) fn is_number_ignored(number: i32) -> bool {
    action_of(number) == Some(libc::SIG_IGN)
}

/// Ends this process by a signal, as if it had not been caught.
pub fn end_by(signal: Signal) {
    // It fails for a bad signal only.
    let _ = signal_hook::low_level::emulate_default_handler(signal as i32);
}

/// Makes a write beyond the limit on the size of files fail with EFBIG, instead of ending this process (setrlimit(2)).
/// By a handler that does nothing, not by SIG_IGN, which programs started by a method would inherit.
///
/// # Errors
/// Those of sigaction(2).
pub fn survive_file_size_limit() -> io::Result<()> {
    signal_hook::flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false))).map(drop)
}

/// Whether an ignored signal has arrived.
static IGNORED: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// Whether this process was continued (SIGCONT).
static CONTINUED: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// The address of the handler of all signals that this process ignores.
static HANDLER: OnceLock<usize> = OnceLock::new();

/// Whether this process catches SIGALRM.
static CATCHES_ALARMS: AtomicBool = AtomicBool::new(false);

/// Ignores the signals that a terminal or an operator sends to a whole group: a worker ends when its master requests
/// it.
///
/// By handlers that do nothing, not by SIG_IGN, which programs started by a method would inherit. SIGTTIN and SIGTTOU
/// are blocked instead: with a handler, a method's write to a terminal with `stty tostop` would be retried forever.
/// All other signals are let through: they were held back since this process was started.
///
/// # Errors
/// Those of sigaction(2) and pthread_sigmask(3).
pub fn ignore_group_signals() -> io::Result<()> {
    let arrived = IGNORED.get_or_init(Arc::default);
    for signal in GROUP_SIGNALS {
        signal_hook::flag::register(signal, Arc::clone(arrived))?;
    }
    signal_hook::flag::register(SIGCONT, Arc::clone(CONTINUED.get_or_init(Arc::default)))?;
    if let Some(handler) = handler_of(SIGINT) {
        let _ = HANDLER.set(handler);
    }
    let terminal = SigSet::from_iter([signal::Signal::SIGTTIN, signal::Signal::SIGTTOU]);
    Ok(terminal.thread_set_mask()?)
}

/// The signals that are ignored.
const GROUP_SIGNALS: [i32; 5] = [SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2];

/// Notes SIGALRM, for which this process has a handler, as an ignored signal.
///
/// # Errors
/// Those of sigaction(2).
pub fn note_alarms() -> io::Result<()> {
    let arrived = Arc::clone(IGNORED.get_or_init(Arc::default));
    signal_hook::flag::register(SIGALRM, arrived)?;
    CATCHES_ALARMS.store(true, Ordering::Relaxed);
    Ok(())
}

/// Forgets the signals that have arrived so far.
pub fn forget_arrived() {
    take(&IGNORED);
    take(&CONTINUED);
}

/// Returns whether a wait that was interrupted just now (EINTR), and has begun after [`forget_arrived`], was interrupted
/// because this process was stopped. Signals that other code of this process catches interrupt a wait as well. A freezer
/// (cgroups(7)) sends no SIGCONT, so that it is noticed only if no other code catches signals.
#[must_use]
pub fn was_stopped() -> bool {
    let (was_ignored, was_continued) = (take(&IGNORED), take(&CONTINUED));
    was_continued || (!was_ignored && !are_others_caught())
}

fn take(flag: &OnceLock<Arc<AtomicBool>>) -> bool {
    // Most calls find none, and only a write takes the cache line.
    flag.get()
        .is_some_and(|flag| flag.load(Ordering::Relaxed) && flag.swap(false, Ordering::Relaxed))
}

/// Returns whether other code of this process has a handler for some signal.
fn are_others_caught() -> bool {
    let is_own = |signal: i32| {
        GROUP_SIGNALS.contains(&signal)
            || [SIGCONT, SIGXFSZ].contains(&signal)
            || (signal == SIGALRM && CATCHES_ALARMS.load(Ordering::Relaxed))
    };
    // The Rust runtime catches these two. They interrupt no wait.
    (1..=libc::SIGRTMAX())
        .filter(|signal| ![libc::SIGSEGV, libc::SIGBUS].contains(signal))
        .any(|signal| {
            let handler = handler_of(signal);
            handler.is_some() && !(is_own(signal) && handler.as_ref() == HANDLER.get())
        })
}

/// Returns the address of the handler of a signal; `None` if there is none.
fn handler_of(signal: i32) -> Option<usize> {
    action_of(signal).filter(|handler| ![libc::SIG_DFL, libc::SIG_IGN].contains(handler))
}

/// Returns the handler of a signal, SIG_DFL or SIG_IGN; `None` if there is no such signal.
fn action_of(signal: i32) -> Option<usize> {
    // SAFETY: all-zero bytes are a sigaction; without a new action sigaction(2) only writes the struct.
    let action = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        if libc::sigaction(signal, std::ptr::null(), &raw mut action) != 0 {
            return None;
        }
        action
    };
    Some(action.sa_sigaction)
}
