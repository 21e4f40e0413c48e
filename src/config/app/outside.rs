//! The context that the keys of an app refer to: programs, files, users. Read when a configuration is loaded, so that a
//! mistake is shown with its place before a worker is started.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::{AppConfig, AppContext, env_file};
use crate::config::check::Conflict;
use crate::config::read::{Pipes, read};
use crate::config::size;
use crate::proto::app::AppIdentity;
use crate::proto::hardening::{self, StartFailure};
use crate::sys::process;
use crate::sys::user::{Group, Identity, Login};

/// The longest command and environment, in bytes of JSON: both are sent to each worker in one message.
const MAX_SPEC_LEN: usize = 32 * 1024;

/// Reads and checks what the keys of an app refer to.
///
/// # Errors
/// The first key that refers to something that is missing or cannot be used.
pub(in crate::config) fn read_context(app: &mut AppConfig) -> Result<(), Conflict> {
    app.context = AppContext::default();
    if app.command.is_empty() {
        return Ok(());
    }
    check_directory(app)?;
    read_variables(app)?;
    check_program(app)?;
    set_identity(app)?;
    let length = app.spec().map_or(0, |spec| {
        serde_json::to_vec(&spec).map_or(0, |text| text.len())
    });
    if length > MAX_SPEC_LEN {
        let message = format!(
            "the command and the environment are too long: as JSON they have {length} bytes, at most {} are possible",
            size(MAX_SPEC_LEN as u64)
        );
        return conflict(message, &["environment-file", "environment", "command"]);
    }
    Ok(())
}

fn conflict<T>(message: String, keys: &[&str]) -> Result<T, Conflict> {
    Err(Conflict {
        message,
        places: keys.iter().map(|key| format!("app.{key}")).collect(),
        first: Vec::new(),
    })
}

fn check_directory(app: &AppConfig) -> Result<(), Conflict> {
    let Some(directory) = &app.directory else {
        return Ok(());
    };
    let why = match std::fs::metadata(directory) {
        Ok(found) if found.is_dir() => return Ok(()),
        Ok(_) => "it is not a directory".to_owned(),
        Err(error) => with_hint(&error, directory),
    };
    let message = format!(
        "the directory {:?} cannot be used: {why}",
        directory.display()
    );
    conflict(message, &["directory", "command"])
}

fn read_variables(app: &mut AppConfig) -> Result<(), Conflict> {
    let Some(path) = &app.environment_file else {
        return Ok(());
    };
    let fail = |why: String| conflict(why, &["environment-file"]);
    let bytes = match read(path, Pipes::Refuse) {
        Ok(bytes) => bytes,
        Err(error) => {
            let why = with_hint(&error, path);
            return fail(format!("cannot read {}: {why}", path.display()));
        }
    };
    let text = match String::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let valid = error.utf8_error().valid_up_to();
            let line = 1 + line_ends(&error.as_bytes()[..valid]);
            return fail(format!("{}:{line}: it is not UTF-8", path.display()));
        }
    };
    match env_file::parse(&text) {
        Ok(variables) => app.context.environment = variables,
        Err(mistake) => {
            let (line, message) = (mistake.line, mistake.message);
            return fail(format!("{}:{line}: {message}", path.display()));
        }
    }
    Ok(())
}

/// Returns the number of line ends.
fn line_ends(text: &[u8]) -> usize {
    text.iter().filter(|byte| **byte == b'\n').count()
}

/// Finds the program as execvp(3) will find it: in the `PATH` of the app.
fn check_program(app: &AppConfig) -> Result<(), Conflict> {
    let Some(spec) = app.spec() else {
        return Ok(());
    };
    let program = &app.command[0];
    let search = match spec.environment.get("PATH") {
        Some(path) => OsString::from(path),
        None => std::env::var_os("PATH").unwrap_or_else(|| "/bin:/usr/bin".into()),
    };
    let directory = app.directory.as_deref().unwrap_or(Path::new("/"));
    let message = match process::find_program(&spec.command[0], directory, &search) {
        Ok(_) => return Ok(()),
        Err((path, error)) if error.kind() == io::ErrorKind::NotFound => match path {
            Some(path) => format!(
                "the program {:?} cannot be started: {}",
                path.display(),
                with_hint(&error, &path)
            ),
            None if program.contains(' ') => {
                let words: Vec<&str> = program.split(' ').collect();
                format!(
                    "there is no program {program:?}; each argument is a string of its own: {words:?}"
                )
            }
            None if directory.join(program).is_file() => format!(
                "the program {program:?} is in no directory of PATH; the file in {directory:?} is \"./{program}\""
            ),
            None => format!(
                "the program {program:?} is in no directory of PATH: {}",
                search.display()
            ),
        },
        Err((path, error)) => {
            let path = path.unwrap_or_default();
            let mode = std::fs::metadata(&path).map(|found| found.permissions().mode() & 0o777);
            let why = match mode {
                Ok(mode) if mode & 0o111 == 0 => format!("it is not executable (mode {mode:04o})"),
                _ => with_hint(&error, &path),
            };
            format!("the program {:?} cannot be started: {why}", path.display())
        }
    };
    conflict(message, &["command.0", "command"])
}

fn with_hint(error: &io::Error, path: &Path) -> String {
    let is_service = std::env::var_os("INVOCATION_ID").is_some();
    match hardening::hint(StartFailure::Path(path, error.kind()), is_service) {
        Some(hint) => format!("{error}; {hint}"),
        None => error.to_string(),
    }
}

/// Resolves user and group.
fn set_identity(app: &mut AppConfig) -> Result<(), Conflict> {
    if app.user.is_none() && app.group.is_none() {
        return Ok(());
    }
    if process::user() != 0 {
        let message = "user and group need a daemon that runs as root: another one cannot start a process as another user";
        return conflict(message.to_owned(), &["user", "group"]);
    }
    let gid = match &app.group {
        None => None,
        Some(name) => match Group::find(name) {
            Ok(Some(group)) => Some(group.gid),
            Ok(None) => return conflict(format!("there is no group {name:?}"), &["group"]),
            Err(error) => {
                let message = format!("cannot look up the group {name:?}: {error}");
                return conflict(message, &["group"]);
            }
        },
    };
    let Some(name) = &app.user else {
        app.context.identity = gid.map(|gid| AppIdentity {
            uid: process::user(),
            gid,
            groups: vec![gid],
        });
        return Ok(());
    };
    let message = match Identity::find(name, gid) {
        Ok(Some(Identity {
            uid,
            gid: Some(gid),
            groups,
            login,
        })) => {
            app.context.identity = Some(AppIdentity { uid, gid, groups });
            app.context.login = login_variables(login);
            return Ok(());
        }
        Ok(Some(_)) => {
            format!("the user {name:?} has no entry with a group: the key `group` is needed")
        }
        Ok(None) => format!("there is no user {name:?}"),
        Err(error) => format!("cannot look up the user {name:?}: {error}"),
    };
    conflict(message, &["user"])
}

/// Returns the variables of a user, which systemd sets for `User=` as well.
fn login_variables(login: Login) -> BTreeMap<String, String> {
    let Login { name, home, shell } = login;
    let variables = [
        ("HOME", home),
        ("LOGNAME", name.clone()),
        ("SHELL", shell),
        ("USER", name),
    ];
    variables
        .map(|(name, value)| (name.to_owned(), value))
        .into()
}
