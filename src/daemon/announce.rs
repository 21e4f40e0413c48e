//! The line that names the addresses of a daemon and a command that calls it.

use std::ffi::OsStr;
use std::path::Path;

use super::SHIPPED;
use crate::dev::ServingReport;
use crate::logging;
use crate::master::Announce;
use crate::proto::text::Escaped;

/// Prints the daemon's addresses and how it can be called, in one line on standard output, and reports to the process
/// that watches files, if there is one, that the daemon serves. Listeners that expect a PROXY protocol header cannot be
/// called so.
pub(super) fn announcer(
    name: String,
    version: &'static str,
    watcher: Option<ServingReport>,
) -> Announce {
    Box::new(move |addresses, plain| {
        watcher.iter().for_each(ServingReport::send);
        let ctl = match &*name {
            SHIPPED => program_command("fdpassctl"),
            _ => "fdpassctl".to_owned(),
        };
        // A file name may contain any character.
        let listens = Escaped(addresses.join(", "));
        let call = plain.map_or(String::new(), |address| {
            let to = Escaped(address.clone().reachable().to_string());
            format!("; call it: {ctl} call ping '{{\"hello\":1}}' --to {to}")
        });
        logging::announce(&format!("{name} {version} listens on {listens}{call}\n"));
    })
}

/// Returns the command that runs fdpassd or fdpassctl as this program, fdpassd, was run: by cargo, if `cargo run` has
/// started it; by its path, if a path has; or else by its name.
pub(super) fn program_command(program: &str) -> String {
    let exe = std::env::current_exe().unwrap_or_default();
    let profile = exe.parent();
    // Cargo keeps the parts of a program in this directory.
    let is_cargos = profile.is_some_and(|profile| profile.join("deps").is_dir());
    // Other directories may have no Cargo.toml.
    let is_run_by_cargo = std::env::var_os("CARGO_MANIFEST_DIR").is_some();
    let option = match profile.and_then(Path::file_name).and_then(OsStr::to_str) {
        Some("release") if is_cargos && is_run_by_cargo => "--release ",
        Some("debug") if is_cargos && is_run_by_cargo => "",
        _ if is_cargos => return sibling(program).unwrap_or(program.to_owned()),
        _ => return program.to_owned(),
    };
    match program {
        // The default of `cargo run`.
        SHIPPED => format!("cargo run {option}--"),
        _ => format!("cargo run {option}--bin {program} --"),
    }
}

/// Returns the path of a program in the directory by which this program was started, if a shell can read it as one word.
fn sibling(program: &str) -> Option<String> {
    let started = std::env::args_os().next()?;
    let directory = Path::new(&started).parent()?;
    let path = directory.join(program);
    let is_path = !directory.as_os_str().is_empty() && path.is_file();
    let path = path.to_str().filter(|path| path.chars().all(is_plain))?;
    is_path.then(|| path.to_owned())
}

/// Returns whether a shell reads a character of a word as itself.
pub(super) fn is_plain(c: char) -> bool {
    c.is_alphanumeric() || "/._-+".contains(c)
}
