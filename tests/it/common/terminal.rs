//! A program on a pseudo-terminal, whose screen is read back as a terminal shows it.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::num::NonZeroU16;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use fdpassd::testing::eventually;
use nix::pty::{Winsize, openpty};
use nix::unistd::ttyname;
use vt100::{Parser, Screen};

/// A program with a terminal of its own, which is its controlling one.
pub struct OnTerminal {
    program: Child,
    keyboard: File,
    /// Keeps the terminal open after the program has ended.
    _slave: OwnedFd,
    path: String,
    shown: Arc<Mutex<Shown>>,
}

/// The output of a program, and the screen after it.
struct Shown {
    parser: Parser,
    bytes: usize,
    /// The first lines that were shown, each once in a row.
    titles: Vec<String>,
}

/// How a program has ended: by an exit code, or by a signal.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    Code(i32),
    Signal(i32),
}

impl OnTerminal {
    /// Starts a program, on a terminal with this many columns and lines.
    #[track_caller]
    pub fn start(program: &Command, columns: u16, lines: u16) -> OnTerminal {
        let size = Winsize {
            ws_row: lines,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let terminal = openpty(&size, None).expect("a terminal");
        let path = ttyname(&terminal.slave).expect("it has a name");
        let copy = || terminal.slave.try_clone().expect("a descriptor is free");
        // A shell makes programs in the background ignore SIGINT and SIGQUIT, and nohup(1) SIGHUP, the tests among them.
        let mut command = Command::new("env");
        command.args(["--default-signal=INT,QUIT,HUP", "setsid", "--ctty"]);
        // SIGQUIT must not leave a core file.
        command.args(["sh", "-c", "ulimit -c 0 && exec \"$@\"", "sh"]);
        command.arg(program.get_program());
        command.args(program.get_args());
        command.envs(
            program
                .get_envs()
                .filter_map(|(key, value)| Some((key, value?))),
        );
        command.env("TERM", "xterm").env_remove("NO_COLOR");
        command.stdin(copy()).stdout(copy()).stderr(copy());
        let program = command.spawn().expect("env(1) runs");
        let shown = Arc::new(Mutex::new(Shown {
            parser: Parser::new(not_zero(lines), not_zero(columns), 0),
            bytes: 0,
            titles: Vec::new(),
        }));
        let master = File::from(terminal.master);
        let output = master.try_clone().expect("a descriptor is free");
        read_all(output, Arc::clone(&shown));
        OnTerminal {
            program,
            keyboard: master,
            _slave: terminal.slave,
            path: path.display().to_string(),
            shown,
        }
    }

    pub fn pid(&self) -> u32 {
        self.program.id()
    }

    /// Presses keys, as the bytes that a terminal sends for them.
    pub fn press(&mut self, keys: &str) {
        self.keyboard
            .write_all(keys.as_bytes())
            .expect("the terminal is open");
    }

    /// Gives the terminal another size.
    pub fn resize(&self, columns: u16, lines: u16) {
        let mut shown = self.shown();
        shown.parser.set_size(not_zero(lines), not_zero(columns));
        drop(shown);
        let [columns, lines] = [columns, lines].map(|size| size.to_string());
        self.stty(&["cols", &columns, "rows", &lines]);
    }

    /// Returns the modes of the terminal, as one word.
    pub fn modes(&self) -> String {
        self.stty(&["-g"])
    }

    fn stty(&self, arguments: &[&str]) -> String {
        let mut command = Command::new("stty");
        let run = command.arg("-F").arg(&self.path).args(arguments).output();
        let run = run.expect("stty(1) runs");
        assert!(run.status.success(), "{run:?}");
        String::from_utf8(run.stdout).expect("text")
    }

    /// Returns the text that the terminal shows.
    pub fn text(&self) -> String {
        self.with_screen(Screen::contents)
    }

    pub fn with_screen<T>(&self, read: impl FnOnce(&Screen) -> T) -> T {
        read(self.shown().parser.screen())
    }

    /// Returns the first lines that the terminal has shown, as often as they have changed.
    pub fn titles(&self) -> Vec<String> {
        self.shown().titles.clone()
    }

    /// Returns how many bytes the program has written.
    pub fn bytes(&self) -> usize {
        self.shown().bytes
    }

    fn shown(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the terminal shows these words, and returns its text.
    #[track_caller]
    pub fn wait_for(&self, words: &str) -> String {
        self.wait_until(words, |text| text.contains(words))
    }

    /// Waits until the text of the terminal is as described.
    #[track_caller]
    pub fn wait_until(&self, what: &str, is_shown: impl Fn(&str) -> bool) -> String {
        // The deadline has the text in its message.
        let mut last = String::new();
        let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            eventually(&format!("the terminal shows {what:?}"), || {
                last = self.text();
                is_shown(&last).then(|| last.clone())
            })
        }));
        found.unwrap_or_else(|_| panic!("{what:?} is not shown, but:\n{last}"))
    }

    /// Waits for the end of the program.
    #[track_caller]
    pub fn wait_for_end(&mut self) -> End {
        let status = eventually("the program ends", || {
            self.program.try_wait().expect("it is our child")
        });
        match (status.code(), status.signal()) {
            (Some(code), _) => End::Code(code),
            (None, signal) => End::Signal(signal.expect("a code or a signal")),
        }
    }
}

impl Drop for OnTerminal {
    fn drop(&mut self) {
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}

/// Reads what the program writes, until all copies of the terminal are closed.
fn read_all(mut output: File, shown: Arc<Mutex<Shown>>) {
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        loop {
            let length = match output.read(&mut buffer) {
                Ok(length @ 1..) => length,
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Ok(0) | Err(_) => return,
            };
            let mut shown = shown.lock().unwrap_or_else(PoisonError::into_inner);
            shown.bytes += length;
            shown.parser.process(&buffer[..length]);
            let text = shown.parser.screen().contents();
            let title = text.lines().next().unwrap_or_default().to_owned();
            if shown.titles.last() != Some(&title) {
                shown.titles.push(title);
            }
        }
    });
}

fn not_zero(size: u16) -> NonZeroU16 {
    NonZeroU16::new(size).expect("a terminal has a size")
}
