//! A program on a pseudo-terminal, whose screen is read back as a terminal shows it.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::num::NonZeroU16;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use fdpassd::testing::eventually;
use nix::fcntl::OFlag;
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use vt100::{Parser, Screen};

/// A program with a terminal of its own, which is its controlling one.
pub struct OnTerminal {
    program: Child,
    /// The side of the terminal where a user sits; none after it was closed.
    keyboard: Option<File>,
    reader: Option<JoinHandle<()>>,
    is_closed: Arc<AtomicBool>,
    /// The side of the program, which keeps the terminal open after that has ended.
    slave: File,
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
        let (master, slave, path) = open();
        stty(
            &path,
            &["cols", &columns.to_string(), "rows", &lines.to_string()],
        );
        let copy = || slave.try_clone().expect("a descriptor is free");
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
        let output = master.try_clone().expect("a descriptor is free");
        let is_closed = Arc::default();
        let reader = read_all(output, Arc::clone(&shown), Arc::clone(&is_closed));
        OnTerminal {
            program,
            keyboard: Some(master),
            reader: Some(reader),
            is_closed,
            slave,
            path,
            shown,
        }
    }

    pub fn pid(&self) -> u32 {
        self.program.id()
    }

    /// Presses keys, as the bytes that a terminal sends for them.
    pub fn press(&mut self, keys: &str) {
        let mut keyboard = self.keyboard.as_ref().expect("the terminal is open");
        keyboard
            .write_all(keys.as_bytes())
            .expect("the terminal is open");
    }

    /// Closes the terminal, as when its window is closed.
    pub fn hang_up(&mut self) {
        self.is_closed.store(true, Ordering::SeqCst);
        // It wakes the reader up, which closes its copy.
        self.slave.write_all(b"\0").expect("the terminal is open");
        let reader = self.reader.take().expect("it is closed once");
        reader.join().expect("the reader ends");
        self.keyboard = None;
    }

    /// Gives the terminal another size.
    pub fn resize(&self, columns: u16, lines: u16) {
        let mut shown = self.shown();
        shown.parser.set_size(not_zero(lines), not_zero(columns));
        drop(shown);
        let [columns, lines] = [columns, lines].map(|size| size.to_string());
        stty(&self.path, &["cols", &columns, "rows", &lines]);
    }

    /// Returns the modes of the terminal, as one word.
    pub fn modes(&self) -> String {
        stty(&self.path, &["-g"])
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

/// Opens a terminal: its two sides, and its path. No program that another test starts has a copy of one.
fn open() -> (File, File, String) {
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let master = posix_openpt(flags).expect("a terminal");
    grantpt(&master).expect("the terminal is ours");
    unlockpt(&master).expect("the terminal is ours");
    let path = ptsname_r(&master).expect("it has a name");
    let mut options = File::options();
    options.read(true).write(true);
    let slave = options.custom_flags(OFlag::O_NOCTTY.bits()).open(&path);
    let master = File::from(OwnedFd::from(master));
    (master, slave.expect("the terminal is ours"), path)
}

fn stty(path: &str, arguments: &[&str]) -> String {
    let mut command = Command::new("stty");
    let run = command.arg("-F").arg(path).args(arguments).output();
    let run = run.expect("stty(1) runs");
    assert!(run.status.success(), "{run:?}");
    String::from_utf8(run.stdout).expect("text")
}

/// Reads what the program writes, until this side of the terminal is closed, or all copies of the other one.
fn read_all(
    mut output: File,
    shown: Arc<Mutex<Shown>>,
    is_closed: Arc<AtomicBool>,
) -> JoinHandle<()> {
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        loop {
            let length = match output.read(&mut buffer) {
                Ok(length @ 1..) => length,
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Ok(0) | Err(_) => return,
            };
            if is_closed.load(Ordering::SeqCst) {
                return;
            }
            let mut shown = shown.lock().unwrap_or_else(PoisonError::into_inner);
            shown.bytes += length;
            shown.parser.process(&buffer[..length]);
            let text = shown.parser.screen().contents();
            let title = text.lines().next().unwrap_or_default().to_owned();
            if shown.titles.last() != Some(&title) {
                shown.titles.push(title);
            }
        }
    })
}

fn not_zero(size: u16) -> NonZeroU16 {
    NonZeroU16::new(size).expect("a terminal has a size")
}
