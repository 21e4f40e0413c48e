//! A connection of another user.

use std::env;
use std::io::{self, BufRead, BufReader, Lines, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use fdpassd::proto::names::Address;
use fdpassd::testing::Client;

use super::{Daemon, Who};

/// A connection of another user, which sends the requests that it reads: this program, run once more.
pub(super) struct Hand {
    child: Child,
    asks: ChildStdin,
    replies: Lines<BufReader<ChildStdout>>,
}

/// The variable with the socket to which the hand connects.
const SOCKET: &str = "FDPASSD_TEST_HAND";

impl Hand {
    #[track_caller]
    pub(super) fn of(daemon: &Daemon, (uid, gid, groups): Who<'_>) -> Hand {
        let program = env::current_exe().expect("/proc is mounted");
        let mut command = daemon.others.command_in(program, uid, gid, groups);
        command
            .args([
                "--exact",
                "control_roles::connection::child_sends_requests_of_its_standard_input",
                "--ignored",
                "--nocapture",
            ])
            .env(SOCKET, daemon.socket());
        // It panics when the connection is closed.
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut child = command.spawn().expect("it runs");
        let asks = child.stdin.take().expect("piped");
        let replies = BufReader::new(child.stdout.take().expect("piped")).lines();
        Hand {
            child,
            asks,
            replies,
        }
    }

    /// Returns the pid of the connection: setpriv(1) becomes the program.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The reply's name and result; nothing if the daemon closes the connection instead.
    #[track_caller]
    pub(super) fn ask(&mut self, request: &str) -> Option<String> {
        writeln!(self.asks, "{request}").ok()?;
        let says = |line: io::Result<String>| {
            line.expect("it says text")
                .strip_prefix('>')
                .map(str::to_owned)
        };
        self.replies.by_ref().find_map(says)
    }
}

impl Drop for Hand {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
#[ignore = "a helper of other tests, see Hand"]
fn child_sends_requests_of_its_standard_input() {
    let Some(socket) = env::var_os(SOCKET) else {
        return;
    };
    let mut client = Client::connect(&Address::Unix(PathBuf::from(socket)));
    for request in io::stdin().lines() {
        client.send_frame(request.expect("a line"));
        let reply = client.reply();
        // Past the harness, which may be in the middle of a line.
        writeln!(io::stdout(), "\n>{} {}", reply.name, reply.result).expect("somebody reads");
    }
}
