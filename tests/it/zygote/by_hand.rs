//! A zygote whose master is a process of the test.

use std::io::{BufRead, BufReader, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{self, Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;

use fdpassd::testing::eventually;
use nix::sys::signal::Signal;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, recv, sendmsg, socketpair,
};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::{PARENT, stat};
use crate::common::needs::skip;
use crate::common::{FDPASSD, kernel};

/// The kinds of messages in src/proto/zygote.rs.
const START: u8 = 1;
const FORK: u8 = 2;
const READY: u8 = 1;
const FAILED: u8 = 2;
const FORKED: u8 = 3;

fn pair() -> (OwnedFd, OwnedFd) {
    socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )
    .expect("a pair")
}

fn send(channel: &OwnedFd, message: &[u8], descriptors: &[i32]) {
    let rights = [ControlMessage::ScmRights(descriptors)];
    let rights = if descriptors.is_empty() {
        &[][..]
    } else {
        &rights
    };
    let parts = [IoSlice::new(message)];
    let sent = sendmsg::<()>(
        channel.as_raw_fd(),
        &parts,
        rights,
        MsgFlags::MSG_NOSIGNAL,
        None,
    );
    assert_eq!(sent, Ok(message.len()));
}

/// Sends the first message, with the pid of the process that the zygote takes for its master.
fn send_start(channel: &OwnedFd, master: u32) {
    let log = json!({"target": "stderr", "file": null, "format": "text", "level": "info"});
    let start = json!({
        "name": "fdpassd", "generation": 1, "master": master, "log": log, "own_table": "",
    });
    let message = [&[START][..], start.to_string().as_bytes()].concat();
    send(channel, &message, &[]);
}

/// Returns the next message; an empty one is the end.
fn receive(channel: &OwnedFd) -> Vec<u8> {
    let mut message = vec![0; 1 << 16];
    let length = recv(channel.as_raw_fd(), &mut message, MsgFlags::empty()).expect("a message");
    message.truncate(length);
    message
}

/// Ends a process when it is dropped.
struct Parent(Child);

impl Parent {
    fn end(&mut self) {
        self.0.kill().expect("it is ours");
        self.0.wait().expect("it is ours");
    }
}

impl Drop for Parent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_zygote_that_is_no_child_of_its_master_fails() {
    let (ours, theirs) = pair();
    let mut command = Command::new(FDPASSD);
    command.arg("zygote").stdin(theirs);
    let zygote = Parent(command.spawn().expect("it runs"));
    drop(command);
    send_start(&ours, zygote.0.id());
    let message = receive(&ours);
    assert_eq!(message[0], FAILED);
    let failure: Value = serde_json::from_slice(&message[1..]).expect("JSON");
    assert_eq!(failure["reason"], "has no master any more");
    assert!(receive(&ours).is_empty());
}

/// The parent-death signal of a zygote is that of the thread that started it. Its workers have none: it is cleared when
/// they are forked.
#[test]
fn a_zygote_ends_with_the_thread_that_started_it() {
    let (ours, theirs) = pair();
    let (end, ends) = mpsc::channel::<()>();
    let starter = thread::spawn(move || {
        let mut command = Command::new(FDPASSD);
        let zygote = command.arg("zygote").stdin(theirs).spawn();
        drop(command);
        // The thread lives until the test ends it.
        let _ = ends.recv();
        Parent(zygote.expect("it runs"))
    });
    send_start(&ours, process::id());
    assert_eq!(receive(&ours), [READY]);
    let (worker, channel) = pair();
    let fork = [&[FORK][..], &7_u64.to_le_bytes()].concat();
    send(&ours, &fork, &[channel.as_raw_fd()]);
    drop(channel);
    let message = receive(&ours);
    assert_eq!(message[..9], [&[FORKED][..], &7_u64.to_le_bytes()].concat());
    let pid = u32::from_le_bytes(message[9..].try_into().expect("a pid"));
    // It lives although its master has no thread for it any more.
    drop(end);
    let mut zygote = starter.join().expect("no panic");
    eventually("the zygote has ended", || {
        kernel::is_over(zygote.0.id()).then_some(())
    });
    let ended = zygote.0.wait().expect("it is ours");
    assert_eq!(ended.signal(), Some(Signal::SIGKILL as i32));
    assert!(receive(&ours).is_empty());
    assert_eq!(stat(pid, PARENT), process::id().to_string());
    assert!(!kernel::is_over(pid), "its worker has not ended");
    drop(worker);
    let worker = Pid::from_raw(pid.cast_signed());
    let ended = waitpid(worker, None).expect("it is ours as well");
    assert!(matches!(ended, WaitStatus::Exited(..)), "{ended:?}");
}

/// Only without the parent-death signal, which otherwise ends the zygote first: strace(1) keeps the call from the
/// kernel. It is the second prctl(2) of a zygote.
#[test]
fn a_zygote_whose_parent_has_ended_forks_nothing() {
    // Only then the end of the zygote before it is ready is a failure.
    let mut trial = Command::new("strace");
    let trial = trial.args([
        "-qq",
        "-D",
        "-o",
        "/dev/null",
        "-e",
        "inject=prctl:retval=0",
        "true",
    ]);
    if !trial.status().is_ok_and(|status| status.success()) {
        return skip("strace", "there is no strace(1), or it may not trace");
    }
    let (ours, theirs) = pair();
    let mut command = Command::new("sh");
    let script = "exec 3<&0
        strace -qq -D -o /dev/null -e trace=prctl -e inject=prctl:retval=0:when=2 \"$0\" zygote <&3 3<&- &
        echo $!
        wait";
    command.args(["-c", script, FDPASSD]).stdin(theirs);
    let child = command.stdout(Stdio::piped()).spawn().expect("it runs");
    drop(command);
    let mut parent = Parent(child);
    let mut line = String::new();
    let mut output = BufReader::new(parent.0.stdout.take().expect("it is piped"));
    output.read_line(&mut line).expect("text");
    let zygote: u32 = line.trim().parse().expect("a pid");
    send_start(&ours, parent.0.id());
    assert_eq!(receive(&ours), [READY]);
    parent.end();
    let of_zygote = eventually("it has another parent", || {
        let pid = stat(zygote, PARENT);
        (pid != parent.0.id().to_string()).then_some(pid)
    });
    assert!(!kernel::is_over(zygote), "its parent is {of_zygote}");
    let (_worker, channel) = pair();
    let fork = [&[FORK][..], &7_u64.to_le_bytes()].concat();
    send(&ours, &fork, &[channel.as_raw_fd()]);
    assert!(receive(&ours).is_empty());
    eventually("it has ended", || kernel::is_over(zygote).then_some(()));
}
