//! Inputs of the screen: keys, signals, and news of the daemon. Each source has a thread of its own, which sleeps
//! while there is nothing; all of them send to one channel.

use std::any::Any;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::Sender;
use std::thread;
use std::time::{Duration, Instant};

use super::keys::{KeyPress, KeyReader};
use super::news::News;
use super::terminal;
use crate::sys::poll::{self, Interest};
use crate::sys::terminal::{ScreenSignal, ScreenSignals};

/// Something that has happened.
pub(super) enum Input {
    /// Keys that were read together, which were pressed before this time or shortly after it.
    Keys(Vec<KeyPress>, Instant),
    /// The terminal is gone.
    NoMoreKeys,
    Signal(ScreenSignal),
    News(News),
    /// The confirmed change is sent to the daemon at this time.
    ChangeRequested(Instant),
    /// A thread has panicked.
    Panicked(Box<dyn Any + Send>),
}

/// Starts a thread that sends inputs. Its panic is an input.
///
/// # Errors
/// Those of starting a thread.
pub(super) fn start(
    inputs: &Sender<Input>,
    work: impl FnOnce(&Sender<Input>) + Send + 'static,
) -> io::Result<()> {
    let inputs = inputs.clone();
    let run = move || {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| work(&inputs))) {
            let _ = inputs.send(Input::Panicked(panic));
        }
    };
    thread::Builder::new().spawn(run).map(drop)
}

/// Sends the keys that are pressed, until the terminal is gone.
///
/// # Errors
/// Those of dup(2).
pub(super) fn keyboard() -> io::Result<impl FnOnce(&Sender<Input>) + Send + 'static> {
    // Not the buffer of standard input, in which keys would wait unseen.
    let mut terminal = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    Ok(move |inputs: &Sender<Input>| {
        let mut reader = KeyReader::default();
        while let Ok(keys) = read_keys(&mut terminal, &mut reader) {
            if inputs.send(keys).is_err() {
                return;
            }
        }
        let _ = inputs.send(Input::NoMoreKeys);
    })
}

/// Waits for keys. The key Escape is one if nothing follows it.
fn read_keys(terminal: &mut File, reader: &mut KeyReader) -> io::Result<Input> {
    while !poll::wait_for(&*terminal, Interest::Read, LONG_WAIT)? {}
    // Before the bytes are read: those that were there already are not taken for later ones.
    let now = Instant::now();
    let mut bytes = [0; 256];
    let length = match terminal.read(&mut bytes) {
        Ok(0) if poll::wait_for(&*terminal, Interest::HangUp, Duration::ZERO)? => {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(length) => length,
        Err(e) if e.kind() == io::ErrorKind::Interrupted => 0,
        Err(e) => return Err(e),
    };
    let mut keys = reader.read(&bytes[..length]);
    let follows = |terminal: &File| poll::wait_for(terminal, Interest::Read, SEQUENCE_TIMEOUT);
    if reader.is_in_sequence() && !follows(terminal)? {
        keys.extend(reader.finish());
    }
    Ok(Input::Keys(keys, now))
}

/// Sends the signals that arrive. A second one to end is not left to the screen, which may wait for its terminal.
pub(super) fn signals(mut signals: ScreenSignals) -> impl FnOnce(&Sender<Input>) + Send + 'static {
    move |inputs| {
        let mut is_ending = false;
        while let Ok(arrived) = signals.wait() {
            for signal in arrived {
                let ends = matches!(signal, ScreenSignal::End(_));
                if ends && is_ending {
                    terminal::leave_at_once();
                    signal.take_effect();
                }
                is_ending |= ends;
                if inputs.send(Input::Signal(signal)).is_err() {
                    return;
                }
            }
        }
    }
}

/// How long the rest of a sequence may take, on a slow line.
const SEQUENCE_TIMEOUT: Duration = Duration::from_millis(50);
/// The longest wait in one call.
const LONG_WAIT: Duration = Duration::from_secs(3600);
