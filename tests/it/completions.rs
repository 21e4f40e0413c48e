//! Shells accept the output of `fdpassctl completions` and complete with it.

use std::process::Command;

use crate::common::needs::skip;
use crate::common::program::{FDPASSCTL, run};

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
        ask() { COMP_WORDS=(\"$@\"); COMP_CWORD=$(($# - 1)); _fdpassctl fdpassctl \"${@: -1}\" \"${@: -2:1}\"; echo \"${COMPREPLY[@]}\"; }
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
