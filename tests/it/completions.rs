//! Shells accept the output of `fdpassctl completions` and complete with it.

use std::path::Path;
use std::process::Command;

use fdpassd::testing::Running;

use crate::common::needs::skip;
use crate::common::program::{FDPASSCTL, control_socket, run};
use crate::common::start;

/// Has a shell run this script with the completions at hand as `$1`. Skips the test without that shell.
fn completed(shell: &str, options: &[&str], script: &str) -> Option<Vec<String>> {
    if Command::new(shell).arg("--version").output().is_err() {
        skip("shells", &format!("there is no {shell}"));
        return None;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("completions");
    std::fs::write(&file, run(FDPASSCTL, &["completions", shell]).out)
        .expect("it is our directory");
    let script = script.replace("$1", &file.display().to_string());
    let said = run(shell, &[options, &["-c", &script]].concat());
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""), "{shell}");
    Some(said.out.lines().map(str::to_owned).collect())
}

#[test]
fn bash_completes_verbs_and_their_values() {
    let script = "
        source $1
        complete -p fdpassctl >/dev/null || exit
        ask() { COMP_WORDS=(\"$@\"); COMP_CWORD=$(($# - 1)); _fdpassctl_words fdpassctl \"${@: -1}\" \"${@: -2:1}\"; echo \"${COMPREPLY[@]}\"; }
        ask fdpassctl re
        ask fdpassctl clients --sort ''
        ask fdpassctl config ''
        ask fdpassctl app check --only ''
        ask fdpassctl --ho
        ask fdpassctl reload --one
        ask fdpassctl drain --";
    let Some(lines) = completed("bash", &["--norc", "--noprofile"], script) else {
        return;
    };
    let words = |line: &str| {
        let mut words: Vec<String> = line
            .split(' ')
            .filter(|word| !word.starts_with('-'))
            .map(str::to_owned)
            .collect();
        words.sort();
        words.join(" ")
    };
    assert_eq!(
        words(&lines[0]),
        "rebalance recycle release reload reopen-log"
    );
    assert_eq!(words(&lines[1]), "age bytes idle requests");
    assert_eq!(words(&lines[2]), "check show");
    assert!(
        words(&lines[3]).contains("cancel"),
        "the names of the checks: {}",
        lines[3]
    );
    assert_eq!(lines[4..6], ["--hosts", "--one-at-a-time"]);
    let options: Vec<&str> = lines[6].split(' ').collect();
    for option in ["--notice", "--refuse", "--queue", "--move", "--wait"] {
        assert!(options.contains(&option), "{option} is not in {options:?}");
    }
}

#[test]
fn zsh_loads_the_completions_of_fdpassctl() {
    let script = "autoload -Uz compinit && compinit -D -u && source $1 && print -- $_comps[fdpassctl] && whence -w _fdpassctl";
    let Some(lines) = completed("zsh", &["-f"], script) else {
        return;
    };
    assert_eq!(lines, ["_fdpassctl", "_fdpassctl: function"]);
}

#[test]
fn fish_completes_verbs_and_their_values() {
    let script = "source $1; complete -C 'fdpassctl re'; complete -C 'fdpassctl clients --sort '; complete -C 'fdpassctl config '";
    let Some(lines) = completed("fish", &["--no-config"], script) else {
        return;
    };
    let words: Vec<&str> = lines
        .iter()
        .filter_map(|line| line.split('\t').next())
        .collect();
    let expected = "rebalance recycle release reload reopen-log age bytes idle requests check show";
    assert_eq!(words.join(" "), expected);
}

/// The methods of that daemon.
const METHODS: &str = "methods pi ping";

/// Returns a daemon with two workers, the ids of its workers, and that of its first client.
fn daemon() -> (Running, String, String) {
    let daemon = start("workers.count = 2");
    let workers = daemon.wait_for_workers().workers;
    let ids: Vec<String> = workers
        .iter()
        .filter_map(|worker| Some(worker.id?.to_string()))
        .collect();
    assert_eq!(ids.len(), 2);
    (daemon, ids.join(" "), "1".to_owned())
}

/// Returns a script that finds the program and uses this daemon.
fn with_daemon(script: &str, daemon: &Running) -> String {
    let directory = Path::new(FDPASSCTL).parent().expect("a directory");
    let socket = control_socket(daemon).display().to_string();
    let script = script.replace("SOCKET", &socket);
    script.replace("DIRECTORY", &directory.display().to_string())
}

#[test]
fn bash_completes_words_before_options_and_the_ids_of_now() {
    let (daemon, workers, client) = daemon();
    let _client = daemon.connect();
    daemon.wait_until("the client is there", |status| status.clients == 1);
    let script = "
        PATH=DIRECTORY:$PATH
        source $1
        complete -p fdpassctl | grep -q _fdpassctl_words || exit
        ask() { COMP_WORDS=(\"$@\"); COMP_CWORD=$(($# - 1)); _fdpassctl_words fdpassctl \"${@: -1}\" \"${@: -2:1}\"; echo ${COMPREPLY[@]}; }
        ask fdpassctl -s SOCKET recycle ''
        ask fdpassctl --socket = SOCKET hold ''
        ask fdpassctl -s SOCKET release ''
        ask fdpassctl -s SOCKET kick ''
        ask fdpassctl clients -s SOCKET --worker ''
        ask fdpassctl -s SOCKET call ''
        ask fdpassctl -s SOCKET recycle --
        ask fdpassctl ''
        ask fdpassctl -s /no/such/socket kick ''
        ask fdpassctl -s /no/such/socket call ''
        true";
    let Some(lines) = completed(
        "bash",
        &["--norc", "--noprofile"],
        &with_daemon(script, &daemon),
    ) else {
        return;
    };
    let all = format!("all {workers}");
    assert_eq!(
        lines[..6],
        [
            all,
            workers.clone(),
            workers.clone(),
            client.clone(),
            workers,
            METHODS.to_owned()
        ]
    );
    assert!(
        lines[6].contains("--json") && !lines[6].contains("all"),
        "{}",
        lines[6]
    );
    assert!(
        lines[7].starts_with("status ") && !lines[7].contains(" -"),
        "{}",
        lines[7]
    );
    assert!(
        !lines[8].contains(&client),
        "no daemon, no ids: {}",
        lines[8]
    );
    assert_eq!(lines[9], "ping");
}

#[test]
fn zsh_completes_the_ids_of_now() {
    let (daemon, workers, _) = daemon();
    let script = "
        PATH=DIRECTORY:$PATH
        autoload -Uz compinit && compinit -D -u && source $1
        compadd() { shift; print -- $*; }
        words=(fdpassctl -s SOCKET recycle '')
        _fdpassctl_recycle && _fdpassctl_workers && _fdpassctl_release && _fdpassctl_methods
        autoload +X _fdpassctl
        print -r -- ${functions[_fdpassctl]} | grep -cE ':_fdpassctl_(recycle|workers|release|clients|methods)'";
    let Some(lines) = completed("zsh", &["-f"], &with_daemon(script, &daemon)) else {
        return;
    };
    assert_eq!(
        lines[..4],
        [
            format!("all {workers}"),
            workers.clone(),
            workers,
            METHODS.to_owned()
        ]
    );
    // recycle, hold, release, kick, call, bench, and clients --worker.
    assert_eq!(lines[4], "7");
}

#[test]
fn fish_completes_the_ids_of_now() {
    let (daemon, workers, client) = daemon();
    let _client = daemon.connect();
    daemon.wait_until("the client is there", |status| status.clients == 1);
    let script = "
        set PATH DIRECTORY $PATH
        source $1
        complete -C 'fdpassctl -s SOCKET recycle '
        echo -
        complete -C 'fdpassctl -s SOCKET kick '
        echo -
        complete -C 'fdpassctl clients -s SOCKET --worker '
        echo -
        complete -C 'fdpassctl -s SOCKET call '";
    let Some(lines) = completed("fish", &["--no-config"], &with_daemon(script, &daemon)) else {
        return;
    };
    let words: Vec<&str> = lines
        .iter()
        .filter_map(|line| line.split('\t').next())
        .collect();
    assert_eq!(
        words.join(" "),
        format!("all {workers} - {client} - {workers} - {METHODS}")
    );
}
