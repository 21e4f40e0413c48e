//! Needs of tests that a machine may lack, and the report of a skipped test.

use std::env;
use std::io::{self, Write};
use std::thread;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// The words that [`skip`] takes and `REQUIRE` may name.
const NEEDS: [&str; 26] = [
    "root",             // to become another user, to give files away
    "namespaces",       // of networks, mounts, processes and users, by unshare(1) and ip(8)
    "cgroups",          // of version 2, on Linux 5.14 or newer, where one can be made
    "memory-cgroups",   // of either version, where one with a limit can be made
    "lower-oom-score",  // CAP_SYS_RESOURCE
    "core-files",       // core_pattern names a file in the working directory
    "open-files",       // a hard limit of 11,500 descriptors or more
    "linux-6.16",       // SO_PASSRIGHTS
    "privileged-ports", // port 80 is for root alone
    "no-journal",       // journald does not run
    "fuse",             // /dev/fuse, and the right to mount it
    "strace",
    "ss",
    "setpriv",
    "prlimit",
    "script",
    "systemd-analyze",
    "dpkg-deb",
    "promtool",
    "sshd", // and ssh, of OpenSSH
    "mandoc",
    "man",
    "python3",
    "node", // 20 or newer
    "go",
    "shells", // bash, zsh, fish
];

/// Needs of tests/container/run, tests/fleet/run, tests/kubernetes/run and tests/rpm/run alone; `REQUIRE` may name them as
/// well.
const NEEDS_OF_OTHERS: [&str; 9] = [
    "runc", "ip", "cpus", "haproxy", "nginx", "kubectl", "rpmbuild", "rpmlint", "deb",
];

/// Reports that the calling test is skipped, because the machine lacks what it needs. The test returns then.
///
/// It is a failure instead if the variable `REQUIRE`, a list with commas, names the need; `all` names each of them.
#[track_caller]
pub fn skip(need: &str, reason: &str) {
    report("skipped", need, reason);
}

/// As [`skip`], for a part of the test; its other parts are still run.
#[track_caller]
pub fn skip_part(need: &str, reason: &str) {
    report("skipped in part", need, reason);
}

/// Returns `clients`, or fewer if this process and the daemon may not have as many descriptors.
pub fn room_for(clients: u64) -> u64 {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("the limit can be read");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("up to the hard limit everybody may");
    let room = hard.saturating_sub(1_500);
    if room < clients {
        skip_part(
            "open-files",
            &format!("with {hard} descriptors there are {room} idle clients instead of {clients}"),
        );
    }
    room.min(clients)
}

#[track_caller]
fn report(what: &str, need: &str, reason: &str) {
    assert!(NEEDS.contains(&need), "{need:?} is not in NEEDS");
    let required = env::var("REQUIRE").unwrap_or_default();
    for word in required.split(',').filter(|word| !word.is_empty()) {
        assert!(
            word == "all" || NEEDS.contains(&word) || NEEDS_OF_OTHERS.contains(&word),
            "REQUIRE names {word:?}, which is none of {NEEDS:?} and {NEEDS_OF_OTHERS:?}"
        );
        assert!(word != "all" && word != need, "needs {need}: {reason}");
    }
    let name = thread::current().name().unwrap_or("a test").to_owned();
    let line = format!("{what}: {name}: needs {need}: {reason}\n");
    // Not by a macro, whose output the harness keeps to itself; in one write, so that lines stay whole.
    let _ = io::stderr().write_all(line.as_bytes());
}
