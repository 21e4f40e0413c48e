//! Completion scripts: those of clap_complete, and in addition the ids of workers and clients and the names of methods,
//! for which a script asks the daemon when they are wanted.

use clap::Command;
use clap_complete::Shell;

/// Returns the script of a shell for a program of this name. It is generated in memory because clap_complete panics when
/// it cannot write.
pub(super) fn script(command: &mut Command, program: &str, shell: Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, command, program, &mut script);
    let script = String::from_utf8_lossy(&script).into_owned();
    // A function of a shell has no other letters.
    let is_letter = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let letters = program.chars().map(|c| if is_letter(c) { c } else { '_' });
    let name = format!("_{}", letters.collect::<String>());
    let with_names = |text: &str| {
        let text = text.replace("command PROGRAM", &format!("command {program}"));
        text.replace("PROGRAM", &name).replace("FILE", program)
    };
    match shell {
        Shell::Bash => {
            let generated = between(&script, "complete -F ", " ").unwrap_or_default();
            let added = with_names(BASH).replace("GENERATED", generated);
            script + &added
        }
        Shell::Zsh => {
            let mut script = script;
            for (begin, action) in ZSH_ACTIONS {
                script = with_action(&script, begin, &format!("{name}{action}"));
            }
            match script.find("\nif [ \"$funcstack[1]\"") {
                Some(end) => {
                    let (front, back) = script.split_at(end + 1);
                    format!("{front}{}{back}", with_names(ZSH))
                }
                None => script,
            }
        }
        Shell::Fish => {
            let using =
                between(&script, "function __fish_", "_global_optspecs").unwrap_or_default();
            let using = format!("__fish_{using}_using_subcommand");
            script + &with_names(FISH).replace("USING", &using)
        }
        _ => script,
    }
}

fn between<'a>(text: &'a str, begin: &str, end: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(begin)?;
    rest.split_once(end).map(|(found, _)| found)
}

/// Replaces the usual action of arguments whose lines begin like this.
fn with_action(script: &str, begin: &str, action: &str) -> String {
    let lines = script
        .lines()
        .map(|line| match line.strip_suffix(":_default' \\") {
            Some(rest) if rest.starts_with(begin) => format!("{rest}:{action}' \\\n"),
            _ => format!("{line}\n"),
        });
    lines.collect()
}

/// The beginnings of the lines of arguments in the script for zsh, and the functions that complete them.
const ZSH_ACTIONS: [(&str, &str); 8] = [
    ("':which -- ", "_recycle"),
    ("':worker -- ", "_workers"),
    ("'--worker=[", "_workers"),
    ("':what -- ", "_release"),
    ("':client -- ", "_clients"),
    ("'::client -- ", "_clients"),
    ("':method -- ", "_methods"),
    ("'::method -- ", "_methods"),
];

const BASH: &str = include_str!("completions/bash.sh");
const ZSH: &str = include_str!("completions/zsh.sh");
const FISH: &str = include_str!("completions/fish.sh");
