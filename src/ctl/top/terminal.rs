//! The terminal as ratatui draws on it, and how it is left: as it was before, also after a signal, an error or a panic.

use std::io::{self, IsTerminal, Write};
use std::panic;
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::time::Duration;

use anstyle::{AnsiColor, Effects};
use ratatui_core::backend::{Backend, ClearType, WindowSize};
use ratatui_core::buffer::Cell;
use ratatui_core::layout::{Position, Size};
use ratatui_core::style::Modifier;

use crate::ctl::style::Paint;
use crate::sys::terminal::{self, TerminalModes};
use crate::sys::writable::write_within;

/// The modes of the terminal before the screen, while there is one. Not a part of [`ScreenGuard`], because a panic and
/// a second signal leave the screen from another thread.
static BEFORE: Mutex<Option<TerminalModes>> = Mutex::new(None);

fn before() -> MutexGuard<'static, Option<TerminalModes>> {
    BEFORE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Leaves the screen when it is dropped.
#[derive(Debug)]
pub(super) struct ScreenGuard(());

impl ScreenGuard {
    /// Shows an empty screen, and keeps what the terminal shows for later.
    ///
    /// # Errors
    /// Those of tcsetattr(3), and of writing.
    pub(super) fn enter(out: &mut impl Write) -> io::Result<ScreenGuard> {
        static HOOK: Once = Once::new();
        HOOK.call_once(leave_at_panic);
        enter(out).map(|()| ScreenGuard(()))
    }
}

impl Drop for ScreenGuard {
    fn drop(&mut self) {
        leave_within(LEAVE_TIMEOUT);
    }
}

/// Enters the screen, also once more after the process was stopped.
pub(super) fn enter(out: &mut impl Write) -> io::Result<()> {
    let modes = TerminalModes::deliver_keys(io::stdin())?;
    // Modes that are there already are older: those of now may be the screen's own.
    before().get_or_insert(modes);
    let entered = out.write_all(ENTER).and_then(|()| out.flush());
    entered.inspect_err(|_| leave_at_once())
}

/// Returns whether there is a screen: it was entered, and not left since.
pub(super) fn is_entered() -> bool {
    before().is_some()
}

/// Leaves the screen, if there is one. Waits up to this time for a terminal whose output is slow, or was stopped by the
/// user.
pub(super) fn leave_within(timeout: Duration) {
    // Not locked during the wait: a second signal does not wait.
    let modes = before().take();
    if let Some(modes) = modes {
        // If the terminal is gone, its modes are as well.
        let _ = modes.restore(io::stdin());
        let _ = write_within(io::stdout(), LEAVE, timeout);
    }
}

/// Leaves the screen, if there is one, without waiting for the terminal.
pub(super) fn leave_at_once() {
    leave_within(Duration::ZERO);
}

/// Leaves the screen before the message of a panic is written.
fn leave_at_panic() {
    let usual = panic::take_hook();
    panic::set_hook(Box::new(move |about| {
        leave_within(LEAVE_TIMEOUT);
        usual(about);
    }));
}

/// Returns why there cannot be a screen: standard input or output is not a terminal.
pub(super) fn missing() -> Option<&'static str> {
    match (io::stdin().is_terminal(), io::stdout().is_terminal()) {
        (true, true) => None,
        (_, false) => Some("standard output"),
        (false, true) => Some("standard input"),
    }
}

/// Writes the control sequences of ECMA-48 that all terminals of today understand. The cursor stays hidden.
///
/// A frame is written at once: a panic within one leaves nothing behind that would be written later.
#[derive(Debug)]
pub(super) struct Ansi<W> {
    out: W,
    paint: Paint,
    frame: Vec<u8>,
}

impl<W: Write> Ansi<W> {
    pub(super) fn new(out: W, paint: Paint) -> Ansi<W> {
        Ansi {
            out,
            paint,
            frame: Vec::new(),
        }
    }

    pub(super) fn out(&mut self) -> &mut W {
        &mut self.out
    }

    fn style_of(&self, cell: &Cell) -> anstyle::Style {
        let colour = AnsiColor::try_from(cell.fg).ok();
        let colour = colour.filter(|_| self.paint.is_on());
        let effects =
            Effects::from(cell.modifier & (Modifier::BOLD | Modifier::DIM | Modifier::REVERSED));
        anstyle::Style::new()
            .fg_color(colour.map(anstyle::Color::from))
            .effects(effects)
    }
}

impl<W: Write> Backend for Ansi<W> {
    type Error = io::Error;

    fn draw<'a, I>(&mut self, content: I) -> io::Result<()>
    where
        I: Iterator<Item = (u16, u16, &'a Cell)>,
    {
        let plain = anstyle::Style::new();
        let (mut style, mut next) = (plain, None);
        for (x, y, cell) in content {
            if next != Some((x, y)) {
                write!(self.frame, "\x1b[{};{}H", y + 1, x + 1)?;
            }
            // After a character of double width, the next cell gets a sequence of its own.
            next = x.checked_add(1).map(|next| (next, y));
            let wanted = self.style_of(cell);
            if wanted != style {
                write!(self.frame, "{}{}", style.render_reset(), wanted.render())?;
                style = wanted;
            }
            self.frame.extend_from_slice(cell.symbol().as_bytes());
        }
        write!(self.frame, "{}", style.render_reset())
    }

    fn hide_cursor(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn show_cursor(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn get_cursor_position(&mut self) -> io::Result<Position> {
        Ok(Position::ORIGIN)
    }

    fn set_cursor_position<P: Into<Position>>(&mut self, _: P) -> io::Result<()> {
        Ok(())
    }

    fn clear(&mut self) -> io::Result<()> {
        self.frame.extend_from_slice(CLEAR);
        Ok(())
    }

    /// Clears everything: no other kind of clearing is used.
    fn clear_region(&mut self, _: ClearType) -> io::Result<()> {
        self.clear()
    }

    fn size(&self) -> io::Result<Size> {
        let (columns, lines) = terminal::size(io::stdout())?;
        Ok(Size::new(columns, lines))
    }

    fn window_size(&mut self) -> io::Result<WindowSize> {
        Ok(WindowSize {
            columns_rows: self.size()?,
            pixels: Size::ZERO,
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.frame.is_empty() {
            return Ok(());
        }
        let written = self.out.write_all(&self.frame);
        self.frame.clear();
        written.and_then(|()| self.out.flush())
    }
}

/// The alternate screen (xterm), no cursor (DECTCEM), lines that do not wrap (DECAWM), marks around pasted texts
/// (xterm), empty.
const ENTER: &[u8] = b"\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[?2004h\x1b[H\x1b[2J";
/// No style, no marks, lines that wrap, a cursor, the usual screen.
const LEAVE: &[u8] = b"\x1b[0m\x1b[?2004l\x1b[?7h\x1b[?25h\x1b[?1049l";
const CLEAR: &[u8] = b"\x1b[H\x1b[2J";
/// How long an end waits for a terminal that takes no bytes.
pub(super) const LEAVE_TIMEOUT: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use std::env;
    use std::process::{Command, Stdio};
    use std::sync::mpsc;

    use ratatui_core::style::{Color, Style};

    use super::*;
    use crate::ctl::style::Seen;
    use crate::ctl::top::inputs::{self, Input};

    fn drawn(paint: Paint, cells: &[(u16, u16, Cell)]) -> String {
        let mut out = Vec::new();
        let mut ansi = Ansi::new(&mut out, paint);
        let cells = cells.iter().map(|(x, y, cell)| (*x, *y, cell));
        ansi.draw(cells).expect("a Vec takes everything");
        ansi.flush().expect("a Vec takes everything");
        String::from_utf8(out).expect("UTF-8")
    }

    fn cell(symbol: &'static str, style: Style) -> Cell {
        let mut cell = Cell::new(symbol);
        cell.set_style(style);
        cell
    }

    #[test]
    fn cells_become_moves_styles_and_characters() {
        let red = Style::new().fg(Color::Red).add_modifier(Modifier::REVERSED);
        let cells = [
            (4, 2, cell("a", Style::new())),
            (5, 2, cell("µ", red)),
            (6, 2, cell("c", red)),
            (0, 3, cell("d", Style::new())),
        ];
        let coloured = Seen::new(true, false, |_| None).paint();
        assert_eq!(
            drawn(coloured, &cells),
            "\x1b[3;5Ha\x1b[7m\x1b[31mµc\x1b[4;1H\x1b[0md"
        );
        // Without colours, the selection is still seen.
        assert_eq!(
            drawn(Paint::default(), &cells),
            "\x1b[3;5Ha\x1b[7mµc\x1b[4;1H\x1b[0md"
        );
        assert_eq!(
            drawn(coloured, &cells[1..2]),
            "\x1b[3;6H\x1b[7m\x1b[31mµ\x1b[0m"
        );
    }

    /// The variable with which the tests below run themselves, on a terminal.
    const ON_TERMINAL: &str = "PANIC_ON_A_TERMINAL";

    /// Runs a test of this module on a terminal, in which it panics with the words "on the screen", and checks what is
    /// left of the screen.
    fn check_panic(test: &str) {
        let program = env::current_exe().expect("it runs");
        let test = format!("{}::{test}", module_path!().replacen("fdpassd::", "", 1));
        let run = format!("{} --exact {test} --nocapture", program.display());
        let line = format!("stty -g; {ON_TERMINAL}=1 {run}; stty -g");
        let mut script = Command::new("script");
        script.args(["-qec", &line, "/dev/null"]);
        script.env("SHELL", "/bin/sh").stdin(Stdio::null());
        let Ok(output) = script.output() else {
            return; // There is no script(1).
        };
        let text = String::from_utf8_lossy(&output.stdout);
        let at = |words: &str| {
            let found = text.find(words);
            found.unwrap_or_else(|| panic!("{words:?} is not in {text:?}"))
        };
        assert!(at("\x1b[?1049h") < at("\x1b[?1049l"), "{text:?}");
        assert!(at("\x1b[?1049l") < at("on the screen"), "{text:?}");
        assert_eq!(text.matches("on the screen").count(), 1, "{text:?}");
        let mut modes = text.lines().map(str::trim);
        let (before, after) = (modes.next(), modes.next_back());
        assert!(before.is_some_and(|modes| modes.contains(':')), "{text:?}");
        assert_eq!(before, after);
        assert!(text.contains("test result: FAILED"), "{text:?}");
    }

    #[test]
    fn a_panic_leaves_the_screen_before_its_message() {
        if env::var_os(ON_TERMINAL).is_some() {
            let _guard = ScreenGuard::enter(&mut io::stdout()).expect("a terminal");
            panic!("on the screen");
        }
        check_panic("a_panic_leaves_the_screen_before_its_message");
    }

    #[test]
    fn a_panic_in_another_thread_ends_the_program() {
        if env::var_os(ON_TERMINAL).is_some() {
            let _guard = ScreenGuard::enter(&mut io::stdout()).expect("a terminal");
            let (inputs, received) = mpsc::channel();
            inputs::start(&inputs, |_| panic!("on the screen")).expect("a thread");
            drop(inputs);
            if let Ok(Input::Panicked(panic)) = received.recv() {
                assert!(!is_entered());
                panic::resume_unwind(panic);
            }
            return;
        }
        check_panic("a_panic_in_another_thread_ends_the_program");
    }

    #[test]
    fn a_frame_without_changes_writes_nothing() {
        assert_eq!(drawn(Paint::default(), &[]), "");
    }
}
