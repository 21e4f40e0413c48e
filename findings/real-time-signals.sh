#!/usr/bin/env bash
# The result of the crate nix for a child that a real-time signal has killed (signal(7): 34 to 64 on Linux).
#
# waitid(2) and waitpid(2) report such a child as any other: si_status, or the status, has the number of the signal. nix
# converts the number into its enum `Signal`, which has no real-time signals, after the system call. Observed with
# nix 0.31.3 on Linux 6.18:
#  - waitid with WNOWAIT returns EINVAL, and returns it again each time, because the kernel reports the same child first:
#    a loop that collects all children never gets to another one that has ended later;
#  - waitpid returns EINVAL although it has collected the child: the next call returns ECHILD, and the status is lost;
#  - the standard library's `Child::wait` returns the number.
#
# Needs cargo and a network.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir "$folder/src"
cat > "$folder/Cargo.toml" <<'T'
[package]
name = "children"
version = "0.0.0"
edition = "2021"

[dependencies]
nix = { version = "=0.31.3", default-features = false, features = ["process", "signal"] }
T
cat > "$folder/src/main.rs" <<'R'
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command};

use nix::errno::Errno;
use nix::sys::wait::{waitid, waitpid, Id, WaitPidFlag};
use nix::unistd::Pid;

/// Starts a child that a signal kills.
fn child(signal: i32) -> (Child, Pid) {
    let script = format!("kill -{signal} $$");
    let child = Command::new("sh").args(["-c", &script]).spawn().expect("sh");
    let pid = Pid::from_raw(child.id() as i32);
    (child, pid)
}

fn main() {
    let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
    let (_first, first) = child(34);
    println!("waitid of one child: {:?}", waitid(Id::Pid(first), look));
    let (_second, second) = child(15);
    waitid(Id::Pid(second), look).expect("a signal with a name");
    for _ in 0..2 {
        println!("waitid of all children: {:?}", waitid(Id::All, look));
    }
    println!("waitpid: {:?}", waitpid(first, None));
    println!("waitpid once more: {:?}", waitpid(first, None));
    assert_eq!(waitpid(first, None), Err(Errno::ECHILD));
    let found = waitid(Id::All, look).map(|status| status.pid() == Some(second));
    println!("waitid of all children finds the second: {found:?}");
    let (mut third, _) = child(34);
    println!("Child::wait: {:?}", third.wait().expect("it is a child").signal());
}
R
printf "nix 0.31.3, %s, Linux %s\n" "$(rustc --version)" "$(uname -r)"
cargo run --quiet --manifest-path "$folder/Cargo.toml" > "$folder/output"
cat "$folder/output"
diff - "$folder/output" <<'O'
waitid of one child: Err(EINVAL)
waitid of all children: Err(EINVAL)
waitid of all children: Err(EINVAL)
waitpid: Err(EINVAL)
waitpid once more: Err(ECHILD)
waitid of all children finds the second: Ok(true)
Child::wait: Some(34)
O
