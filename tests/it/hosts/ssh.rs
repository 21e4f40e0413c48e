//! The file and the names that fdpassctl accepts for `--hosts`, and how it runs ssh.

use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;

use super::lab::Lab;
use super::{lines, two_daemons};
use crate::common::program::{FDPASSCTL, Program, Said, run};

/// Runs fdpassctl with this text as `hosts.toml`.
fn with_file(text: &str, arguments: &[&str]) -> Said {
    let write = |path: &Path| fs::write(path, text).expect("it is ours");
    with_file_by(write, &env::temp_dir(), arguments)
}

/// Runs fdpassctl with the `hosts.toml` that a function creates, and with this directory for temporary files.
fn with_file_by(create: impl FnOnce(&Path), tmp: &Path, arguments: &[&str]) -> Said {
    let config = tempfile::tempdir().expect("a directory");
    fs::create_dir(config.path().join("fdpassctl")).expect("it is ours");
    create(&config.path().join("fdpassctl/hosts.toml"));
    let mut command = Command::new(FDPASSCTL);
    command
        .args(arguments)
        .env("XDG_CONFIG_HOME", config.path())
        .env("TMPDIR", tmp);
    Program::start(&mut command).finish()
}

#[test]
fn a_pipe_in_the_place_of_the_file_is_refused() {
    let create = |path: &Path| {
        let made = Command::new("mkfifo").arg(path).status();
        assert!(made.expect("it is there").success());
    };
    let said = with_file_by(create, &env::temp_dir(), &["status", "--hosts", "a"]);
    assert_eq!((said.code, said.out.as_str()), (Some(64), ""));
    assert!(said.err.contains("it is not a regular file"), "{said:?}");
}

#[test]
fn a_directory_that_is_too_long_for_sockets_is_named_once() {
    let directory = tempfile::tempdir().expect("a directory");
    let long = directory.path().join("x".repeat(100));
    fs::create_dir(&long).expect("it is ours");
    let create = |path: &Path| fs::write(path, "ssh = [\"false\"]").expect("it is ours");
    let said = with_file_by(create, &long, &["status", "--hosts", "a,b"]);
    assert_eq!((said.code, said.out.as_str()), (Some(1), ""));
    let words = "too long for the path of a socket; set TMPDIR to a shorter one\n";
    assert!(said.err.ends_with(words), "{said:?}");
    assert_eq!(fs::read_dir(&long).expect("it is ours").count(), 0);
}

#[test]
fn options_of_the_user_neither_keep_ssh_nor_drop_the_socket() {
    let Some(mut lab) = Lab::start() else {
        return;
    };
    let [_a, _b] = two_daemons(&mut lab);
    lab.ssh_config("Host a\nClearAllForwardings yes\nHost b\nForkAfterAuthentication yes\n");
    let rows = lines(&lab.ctl(&["status", "--hosts", "web"]), 0);
    assert!(
        rows[1].starts_with("a serving ") && rows[2].starts_with("b serving "),
        "{rows:?}"
    );
    // The directory of its socket is among the arguments of an ssh in the background.
    let tmp = lab.tmp().display().to_string();
    let is_left = |pid: u32| {
        let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&arguments).contains(&tmp)
    };
    let all = fs::read_dir("/proc").expect("the kernel has it");
    let mut all = all.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    assert_eq!(all.find(|pid| is_left(*pid)), None);
}

#[test]
fn the_last_lines_of_ssh_are_the_reason() {
    let script = "printf '%s\\n' banner 'no route' '' closed 'closed by UNKNOWN' >&2; exit 255";
    let file = format!("ssh = [\"sh\", \"-c\", {script:?}]\n");
    let rows = lines(&with_file(&file, &["status", "--hosts", "a"]), 4);
    assert_eq!(rows[2], "a: no route; closed; closed by UNKNOWN");
}

#[test]
fn an_ssh_without_the_newest_option_is_started_without_it() {
    let script = "case \"$*\" in *ForkAfter*) echo 'command-line: line 0: Bad configuration option: \
                  forkafterauthentication' >&2; exit 255;; esac; echo older >&2; exit 1";
    let file = format!("ssh = [\"sh\", \"-c\", {script:?}, \"ssh\"]\n");
    let rows = lines(&with_file(&file, &["status", "--hosts", "a"]), 4);
    assert_eq!(rows[1..], ["a unreachable", "a: older"]);
}

#[test]
fn ssh_gets_safe_options_and_the_host_behind_them() {
    let directory = tempfile::tempdir().expect("a directory");
    let list = directory.path().join("arguments");
    let script = format!(
        "printf '%s\\n' \"$@\" >{}; echo no >&2; exit 1",
        list.display()
    );
    let file = format!("ssh = [\"sh\", \"-c\", {script:?}, \"ssh\", \"-v\"]\n");
    let said = with_file(&file, &["status", "--hosts", "root@web1"]);
    assert_eq!(
        lines(&said, 4)[1..],
        ["root@web1 unreachable", "root@web1: no"]
    );
    let given = fs::read_to_string(&list).expect("it was written");
    let given: Vec<&str> = given.lines().collect();
    assert_eq!(given[0], "-v");
    assert_eq!(given[given.len() - 2..], ["--", "root@web1"]);
    for option in [
        "BatchMode=yes",
        "ConnectTimeout=10",
        "ControlMaster=no",
        "ExitOnForwardFailure=yes",
        "StreamLocalBindUnlink=yes",
    ] {
        assert!(
            given.windows(2).any(|pair| pair == ["-o", option]),
            "{option}"
        );
    }
    let forward = given[given.len() - 3];
    let (own, remote) = forward.split_once(':').expect("two sockets");
    assert_eq!(remote, "/run/fdpassd/control.sock");
    assert!(
        !Path::new(own).parent().expect("a directory").exists(),
        "{own}"
    );
    for (arguments, socket) in [
        (&["-n", "counterd"][..], "/run/counterd/control.sock"),
        (&["-i", "blue"], "/run/fdpassd-blue/control.sock"),
        (&["-s", "/x/y.sock"], "/x/y.sock"),
    ] {
        let all = [&["status", "--hosts", "web1"], arguments].concat();
        lines(&with_file(&file, &all), 4);
        let given = fs::read_to_string(&list).expect("it was written");
        assert!(given.contains(&format!(":{socket}\n")), "{given}");
    }
}

#[test]
fn names_verbs_and_files_that_cannot_be_are_refused() {
    for verb in [
        "call ping",
        "app check -- true",
        "config show",
        "events",
        "metrics",
        "version",
        "completions bash",
        "log-level",
        "scale 2",
        "kick 1",
    ] {
        let mut arguments: Vec<&str> = vec!["--hosts", "a"];
        arguments.extend(verb.split(' '));
        let said = run(FDPASSCTL, &arguments);
        assert_eq!(
            (said.code, said.out.as_str()),
            (Some(64), ""),
            "{verb}: {said:?}"
        );
        assert!(
            said.err
                .starts_with("fdpassctl: this verb is for one host; "),
            "{said:?}"
        );
    }
    for (file, arguments, words) in [
        (
            "",
            &["status", "--hosts=-oProxyCommand=x"][..],
            "it begins with \"-\"",
        ),
        (
            "",
            &["status", "--hosts", "a,root@-x"],
            "it begins with \"-\"",
        ),
        ("", &["status", "--hosts", "a;b"], "it contains ';'"),
        ("", &["status", "--hosts", ""], "is not the name of a host"),
        (
            "groups.none = []",
            &["status", "--hosts", "none"],
            "the list has no hosts",
        ),
        (
            "",
            &["status", "--hosts", "a", "--one-at-a-time"],
            "is for verbs that make changes",
        ),
        (
            "",
            &["reload", "--one-at-a-time"],
            "is for the hosts of --hosts",
        ),
        ("", &["status", "--hosts", "a", "-s", "x"], "absolute"),
        (
            "",
            &["stop", "--hosts", "a", "--if-stopping", "x.service"],
            "--if-stopping asks",
        ),
        (
            "[groups]\nweb = [\"a\", \"-b\"]",
            &["status", "--hosts", "a"],
            "hosts.toml:2:13",
        ),
        (
            "grops = {}",
            &["status", "--hosts", "a"],
            "did you mean `groups`?",
        ),
    ] {
        let said = with_file(file, arguments);
        assert_eq!((said.code, said.out.as_str()), (Some(64), ""), "{said:?}");
        assert!(said.err.contains(words), "{said:?}");
        assert_eq!(
            said.err.contains('^'),
            !file.is_empty() && !words.starts_with("the list"),
            "{said:?}"
        );
    }
}
