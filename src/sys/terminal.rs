//! The terminal of a program that uses the whole screen: its modes, its size, and the signals about it.

use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::libc;
use nix::pty::Winsize;
use nix::sys::signal::{self, SaFlags, SigAction, SigHandler, SigSet, Signal};
use nix::sys::termios::{
    FlushArg, LocalFlags, SetArg, SpecialCharacterIndices, Termios, tcflush, tcgetattr, tcsetattr,
};
use nix::unistd::{getpgrp, tcgetpgrp};
use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGWINCH};
use signal_hook::low_level::{emulate_default_handler, pipe};

use super::signal::{HeldBack, is_number_ignored};

/// The modes of a terminal before a program changed them (termios(3)).
#[derive(Debug)]
pub struct TerminalModes(Termios);

impl TerminalModes {
    /// Makes a terminal deliver each key at once and without echo. Keys such as Ctrl-C and Ctrl-Z still send signals.
    /// In the background it stops the process until that is in the foreground: the modes before are those of the shell
    /// until then, while it edits a command line.
    ///
    /// # Errors
    /// Those of tcsetattr(3): ENOTTY if it is not a terminal, EIO in the background of a terminal without job control.
    pub fn deliver_keys(terminal: impl AsFd) -> io::Result<TerminalModes> {
        wait_for_foreground(&terminal)?;
        let before = tcgetattr(&terminal)?;
        let mut modes = before.clone();
        modes
            .local_flags
            .remove(LocalFlags::ICANON | LocalFlags::ECHO);
        // A read returns at once: what poll(2) has reported may be discarded before it.
        modes.control_chars[SpecialCharacterIndices::VMIN as usize] = 0;
        modes.control_chars[SpecialCharacterIndices::VTIME as usize] = 0;
        tcsetattr(&terminal, SetArg::TCSANOW, &modes)?;
        Ok(TerminalModes(before))
    }

    /// Sets the modes again, in the background as well.
    ///
    /// # Errors
    /// Those of tcsetattr(3): EIO if the terminal is gone.
    pub fn restore(&self, terminal: impl AsFd) -> io::Result<()> {
        let _held_back = HeldBack::terminal_output();
        Ok(tcsetattr(terminal, SetArg::TCSANOW, &self.0)?)
    }
}

/// Waits until this process is in the foreground of its terminal. The kernel stops it by SIGTTOU until then, or returns
/// EIO if no shell could continue it.
fn wait_for_foreground(terminal: &impl AsFd) -> io::Result<()> {
    // An error: it is not the terminal that controls this process.
    while tcgetpgrp(terminal).is_ok_and(|foreground| foreground != getpgrp()) {
        match discard_typed(terminal) {
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            done => return done,
        }
    }
    Ok(())
}

/// Discards what was typed and is not read yet.
///
/// # Errors
/// Those of tcflush(3): EIO if the terminal is gone.
pub fn discard_typed(terminal: impl AsFd) -> io::Result<()> {
    Ok(tcflush(terminal, FlushArg::TCIFLUSH)?)
}

/// Returns the columns and lines of a terminal, at most [`MAX_SIZE`] each; 80 and 24 of one that does not know its size.
///
/// # Errors
/// Those of `TIOCGWINSZ` (`ioctl_tty(2)`): ENOTTY if it is not a terminal.
pub fn size(terminal: impl AsFd) -> io::Result<(u16, u16)> {
    let mut size = Winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the kernel writes a winsize to this address, which is that of one.
    unsafe { winsize_of(terminal.as_fd().as_raw_fd(), &raw mut size) }?;
    Ok(match (size.ws_col, size.ws_row) {
        (0, _) | (_, 0) => (80, 24),
        (columns, lines) => (columns.min(MAX_SIZE), lines.min(MAX_SIZE)),
    })
}

/// The largest size that is believed: a screen of 65,535 columns and lines would need too much memory.
pub const MAX_SIZE: u16 = 1000;

nix::ioctl_read_bad!(
    /// Reads the size of a terminal.
    winsize_of,
    libc::TIOCGWINSZ,
    Winsize
);

/// A signal about the terminal or to the program in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScreenSignal {
    /// SIGWINCH: the terminal has another size.
    Resized,
    /// SIGTSTP: the user suspends the program.
    Suspend,
    /// SIGCONT: the program was stopped and continues.
    Continued,
    /// SIGINT, SIGTERM, SIGHUP or SIGQUIT: the program must end.
    End(i32),
}

impl ScreenSignal {
    fn from_number(number: i32) -> ScreenSignal {
        match number {
            SIGWINCH => ScreenSignal::Resized,
            SIGTSTP => ScreenSignal::Suspend,
            SIGCONT => ScreenSignal::Continued,
            number => ScreenSignal::End(number),
        }
    }

    /// Does to this process what the signal does if it is not caught: SIGTSTP stops it, others end it.
    pub fn take_effect(self) {
        // Each fails for a bad signal only.
        match self {
            ScreenSignal::Suspend => drop(suspend()),
            ScreenSignal::End(number) => drop(emulate_default_handler(number)),
            ScreenSignal::Resized | ScreenSignal::Continued => {}
        }
    }
}

/// Stops this process by SIGTSTP until it is continued. Not by SIGSTOP: the kernel ignores SIGTSTP where no shell could
/// continue the process, as below `ssh -t HOST COMMAND`.
fn suspend() -> nix::Result<()> {
    let usual = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    // SAFETY: no handler is installed that could run: the default action is that of the kernel.
    let caught = unsafe { signal::sigaction(Signal::SIGTSTP, &usual) }?;
    let raised = signal::raise(Signal::SIGTSTP);
    // SAFETY: this is the earlier action; its handler is signal-hook's, which any thread can run.
    unsafe { signal::sigaction(Signal::SIGTSTP, &caught) }?;
    raised
}

/// The caught signals of a program with a whole screen.
#[derive(Debug)]
pub struct ScreenSignals {
    pipe: UnixStream,
    arrived: Vec<(i32, Arc<AtomicBool>)>,
}

impl ScreenSignals {
    /// Catches the signals. One that is ignored, as by nohup(1), stays ignored.
    ///
    /// # Errors
    /// Those of socketpair(2) and sigaction(2).
    pub fn catch() -> io::Result<ScreenSignals> {
        let (read, write) = UnixStream::pair()?;
        let mut arrived = Vec::new();
        for number in CAUGHT {
            if is_number_ignored(number) {
                continue;
            }
            let flag = Arc::new(AtomicBool::new(false));
            // Flag before byte: a reader of the byte must find the flag.
            signal_hook::flag::register(number, Arc::clone(&flag))?;
            pipe::register(number, write.try_clone()?)?;
            arrived.push((number, flag));
        }
        Ok(ScreenSignals {
            pipe: read,
            arrived,
        })
    }

    /// Waits for signals; several of a kind are one.
    ///
    /// # Errors
    /// Those of read(2).
    pub fn wait(&mut self) -> io::Result<Vec<ScreenSignal>> {
        let mut bytes = [0; 64];
        match self.pipe.read(&mut bytes) {
            Err(e) if e.kind() != ErrorKind::Interrupted => return Err(e),
            _ => {}
        }
        let arrived = self.arrived.iter();
        let set = arrived.filter(|(_, flag)| flag.swap(false, Ordering::SeqCst));
        let mut arrived: Vec<ScreenSignal> = set
            .map(|(number, _)| ScreenSignal::from_number(*number))
            .collect();
        // Their order is not known: a process that was continued must not be stopped after that.
        if arrived.contains(&ScreenSignal::Continued) {
            arrived.retain(|signal| *signal != ScreenSignal::Suspend);
        }
        Ok(arrived)
    }
}

const CAUGHT: [i32; 7] = [SIGWINCH, SIGTSTP, SIGCONT, SIGINT, SIGTERM, SIGHUP, SIGQUIT];

#[cfg(test)]
mod tests {
    use std::fs::File;

    use nix::pty::openpty;

    use super::*;

    #[test]
    fn restored_modes_are_the_earlier_ones() {
        let terminal = openpty(None, None).expect("a terminal");
        let before = tcgetattr(&terminal.slave).expect("it is a terminal");
        let modes = TerminalModes::deliver_keys(&terminal.slave).expect("it is a terminal");
        let during = tcgetattr(&terminal.slave).expect("it is a terminal");
        let line = LocalFlags::ICANON | LocalFlags::ECHO;
        assert!(before.local_flags.contains(line) && !during.local_flags.intersects(line));
        assert!(during.local_flags.contains(LocalFlags::ISIG));
        modes.restore(&terminal.slave).expect("it is a terminal");
        let after = tcgetattr(&terminal.slave).expect("it is a terminal");
        assert_eq!(after, before);
        let file = File::open("/dev/null").expect("every system has it");
        TerminalModes::deliver_keys(&file).expect_err("it is not a terminal");
    }

    #[test]
    fn a_terminal_has_a_size_and_other_files_have_none() {
        let size_of = |ws_col, ws_row| {
            let winsize = Winsize {
                ws_row,
                ws_col,
                ws_xpixel: 0,
                ws_ypixel: 0,
            };
            let terminal = openpty(&winsize, None).expect("a terminal");
            size(&terminal.slave).expect("it is a terminal")
        };
        assert_eq!(size_of(132, 43), (132, 43));
        assert_eq!(size_of(0, 0), (80, 24));
        assert_eq!(size_of(u16::MAX, u16::MAX), (MAX_SIZE, MAX_SIZE));
        let file = File::open("/dev/null").expect("every system has it");
        size(&file).expect_err("it is not a terminal");
    }
}
