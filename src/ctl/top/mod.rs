//! `top`: a daemon on the whole terminal, until the user quits.
//!
//! ```text
//! keyboard, signals ──▶ Input ──▶ Top ──▶ view ──▶ ratatui ──▶ terminal
//! watch (daemon)    ──▶            state, pure       differences only
//! ```
//!
//! All threads but the one that draws sleep until their source has something; that one sleeps until one of them sends.

mod clients;
mod columns;
mod events;
mod header;
mod history;
mod inputs;
mod keys;
mod news;
mod pressing;
mod question;
mod state;
mod terminal;
mod text;
mod view;
mod watch;
mod workers;

use std::io::{self, Write};
use std::panic::resume_unwind;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use ratatui_core::terminal::Terminal;

use super::args::ChangeVerb;
use super::args::watching::TopArguments;
use super::change::DaemonRun;
use super::error::Error;
use super::session::Session;
use crate::sys::terminal::{ScreenSignal, ScreenSignals, discard_typed};
use inputs::Input;
use news::{ClientsWanted, FiguresRequest, News};
use question::Confirmation;
use state::{Top, TopRequest};
use terminal::{Ansi, LEAVE_TIMEOUT, ScreenGuard};
use watch::FiguresWatch;

/// Shows the daemon until the user quits, or a signal ends the program.
pub(super) fn show(
    arguments: &TopArguments,
    session: &Session,
    out: &mut impl Write,
) -> Result<(), Error> {
    check(session)?;
    let interval = arguments.interval;
    let mut figures = FiguresWatch::new(session, interval);
    let mut top = Top::new(interval, figures.status()?);
    let (inputs, received) = mpsc::channel();
    let (requests, receiver) = mpsc::channel();
    let unable = |e: std::io::Error| Error::Unable(format!("cannot watch the daemon: {e}"));
    let signals = ScreenSignals::catch().map_err(unable)?;
    let keyboard = inputs::keyboard().map_err(unable)?;
    let own = session.clone();
    // Before the screen, which may wait for the terminal: a signal ends the program then as well.
    inputs::start(&inputs, inputs::signals(signals)).map_err(unable)?;
    let guard = ScreenGuard::enter(out).map_err(Error::Output)?;
    inputs::start(&inputs, keyboard)
        .and_then(|()| inputs::start(&inputs, move |inputs| figures.run(&receiver, inputs)))
        .and_then(|()| {
            inputs::start(&inputs, move |inputs| {
                watch::follow_events(&own, interval, inputs);
            })
        })
        .map_err(unable)?;
    let mut screen = Screen {
        terminal: Terminal::new(Ansi::new(out, session.seen.paint())).map_err(Error::Output)?,
        session,
        inputs,
        requests,
        requested_at: None,
    };
    let ended = screen.run(&mut top, &received);
    drop(guard);
    let ended_later = screen.finish_change(&mut top, &received);
    if let Some(signal) = ended?.or(ended_later) {
        signal.take_effect();
    }
    Ok(())
}

/// Checks that there is a terminal, and that nothing else is wanted.
///
/// # Errors
/// In a sentence, why there cannot be a screen.
fn check(session: &Session) -> Result<(), Error> {
    let usage = |why: String| Err(Error::Usage(why));
    if session.json {
        return usage("top is for people; \"status --watch --json\" is for programs".to_owned());
    }
    match terminal::missing() {
        Some(stream) => usage(format!(
            "top needs a terminal, and {stream} is not one; \"status --watch\" needs none"
        )),
        None if !session.seen.out => {
            usage("top needs a terminal that can move its cursor, and TERM is \"dumb\"".to_owned())
        }
        None => Ok(()),
    }
}

/// The terminal, and the ways to the other threads.
struct Screen<'a, W: Write> {
    terminal: Terminal<Ansi<W>>,
    session: &'a Session,
    inputs: Sender<Input>,
    requests: Sender<FiguresRequest>,
    /// When the change under way was sent to the daemon; none before.
    requested_at: Option<Instant>,
}

impl<W: Write> Screen<'_, W> {
    /// Draws, and acts on what happens, until the end. Returns the signal that has ended it.
    fn run(
        &mut self,
        top: &mut Top,
        received: &Receiver<Input>,
    ) -> Result<Option<ScreenSignal>, Error> {
        let mut wanted = ClientsWanted::Nothing;
        loop {
            self.draw(top)?;
            let Ok(first) = received.recv() else {
                return Ok(None);
            };
            // Inputs that have arrived at the same time are drawn once.
            for input in std::iter::once(first).chain(received.try_iter()) {
                match self.act(top, input)? {
                    AfterInput::Continue => {}
                    AfterInput::End(signal) => return Ok(signal),
                }
            }
            if wanted != top.clients_wanted() {
                wanted = top.clients_wanted();
                self.request(FiguresRequest::Clients(wanted));
            }
        }
    }

    fn draw(&mut self, top: &mut Top) -> Result<(), Error> {
        // A panic in another thread has left the screen, and its input arrives.
        if !terminal::is_entered() {
            return Ok(());
        }
        let is_new = |confirmation: &Confirmation| confirmation.answered_from.is_none();
        if top.confirmation.as_ref().is_some_and(is_new) {
            // Keys that were pressed before do not answer the question. An error: the terminal is gone.
            let _ = discard_typed(io::stdin());
        }
        // Before the frame: a key after it must not be taken for an earlier one.
        let began = Instant::now();
        let drawn = self.terminal.draw(|frame| view::draw(frame, top));
        drawn.map_err(Error::Output)?;
        if let Some(confirmation) = &mut top.confirmation
            && confirmation.is_drawn
        {
            confirmation.answered_from.get_or_insert(began);
        }
        Ok(())
    }

    fn request(&self, request: FiguresRequest) {
        // The thread has panicked otherwise, and its input arrives.
        let _ = self.requests.send(request);
    }

    fn act(&mut self, top: &mut Top, input: Input) -> Result<AfterInput, Error> {
        match input {
            Input::News(news) => {
                let is_change = matches!(news, News::Changed(_));
                top.receive(news);
                if is_change {
                    self.request(FiguresRequest::Status);
                }
            }
            Input::Keys(keys, read_at) => match top.press(&keys, read_at) {
                Some(TopRequest::Quit) => return Ok(AfterInput::End(None)),
                Some(TopRequest::Change(change)) => self.begin(top, change),
                Some(TopRequest::Redraw) => self.terminal.clear().map_err(Error::Output)?,
                None => {}
            },
            Input::ChangeRequested(at) => self.requested_at = Some(at),
            // The size may be the same again after a smaller one, at which the terminal has cut the screen.
            Input::Signal(ScreenSignal::Resized) => {
                self.terminal.clear().map_err(Error::Output)?;
            }
            Input::Signal(signal @ ScreenSignal::Suspend) => {
                terminal::leave_within(LEAVE_TIMEOUT);
                signal.take_effect();
                // At once, not after the signal that continues: something else may be drawn before.
                self.enter_again()?;
            }
            Input::Signal(ScreenSignal::Continued) => self.enter_again()?,
            Input::Signal(signal @ ScreenSignal::End(_)) => {
                return Ok(AfterInput::End(Some(signal)));
            }
            Input::NoMoreKeys => return Ok(AfterInput::End(None)),
            Input::Panicked(panic) => resume_unwind(panic),
        }
        Ok(AfterInput::Continue)
    }

    /// Shows the screen after the process was stopped: another program may have used the terminal.
    fn enter_again(&mut self) -> Result<(), Error> {
        let entered = terminal::enter(self.terminal.backend_mut().out());
        entered
            .and_then(|()| self.terminal.clear())
            .map_err(Error::Output)
    }

    /// Makes a change in a thread of its own.
    fn begin(&mut self, top: &mut Top, change: ChangeVerb) {
        let session = self.session.clone();
        self.requested_at = None;
        // A status of another run would have withdrawn the question.
        let of = DaemonRun::of(&top.status);
        let work = move |inputs: &Sender<Input>| watch::make_change(&change, of, &session, inputs);
        if let Err(e) = inputs::start(&self.inputs, work) {
            top.receive(News::Changed(Err(e.to_string())));
        }
    }

    /// Waits, after the screen was left, until a confirmed change is sent, and a moment for its result, and prints
    /// that. Returns the signal that has ended the wait.
    fn finish_change(&mut self, top: &mut Top, received: &Receiver<Input>) -> Option<ScreenSignal> {
        let under_way = top.under_way.clone()?;
        self.print(&format!("{under_way} …"));
        loop {
            // Before the change is sent, its thread waits for the daemon, and reports when that does not answer.
            let input = match self.requested_at {
                None => received.recv().ok(),
                Some(at) => {
                    let left = (at + RESULT_TIMEOUT).saturating_duration_since(Instant::now());
                    received.recv_timeout(left).ok()
                }
            };
            match input {
                Some(Input::ChangeRequested(at)) => self.requested_at = Some(at),
                Some(Input::News(news @ News::Changed(_))) => {
                    top.receive(news);
                    if let Some(message) = &top.message {
                        self.print(&message.text);
                    }
                    return None;
                }
                Some(Input::Signal(signal @ ScreenSignal::End(_))) => return Some(signal),
                Some(Input::Signal(signal)) => signal.take_effect(),
                Some(Input::Panicked(panic)) => resume_unwind(panic),
                Some(Input::News(_) | Input::Keys(..) | Input::NoMoreKeys) => {}
                None => {
                    self.print("the daemon continues");
                    return None;
                }
            }
        }
    }

    /// Prints a line after the screen was left, if the terminal is still there.
    fn print(&mut self, text: &str) {
        let out = self.terminal.backend_mut().out();
        let _ = writeln!(out, "{text}").and_then(|()| out.flush());
    }
}

/// How long an end waits for the result of a change that is sent.
const RESULT_TIMEOUT: Duration = Duration::from_secs(1);

/// The consequence of an input.
enum AfterInput {
    Continue,
    End(Option<ScreenSignal>),
}

#[cfg(test)]
mod tests;
