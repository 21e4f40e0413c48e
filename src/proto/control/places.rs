//! The paths of the control socket.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Returns the possible paths of the control socket of daemon `name`. The daemon binds the first unless it is
/// configured otherwise; fdpassctl tries all in this order. Both skip the one in [`temporary`] if another user owns it.
///
/// `var` reads the environment, `uid` is the effective user.
#[must_use]
pub fn places(name: &str, uid: u32, var: impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let set = |key| set(key, &var);
    let mut places = Vec::new();
    places.extend(runtime_directory(&var));
    if uid != 0 {
        places.extend(set("XDG_RUNTIME_DIR").map(|dir| dir.join(name)));
        places.push(temporary(name, uid));
        places.extend(
            set("HOME")
                .filter(|home| home.is_absolute())
                .map(|home| home.join(format!(".{name}"))),
        );
    }
    // Last for users other than root: the system's daemon, after one of their own.
    places.push(Path::new("/run").join(name));
    places.iter_mut().for_each(|dir| dir.push("control.sock"));
    places
}

/// Returns the directory that $RUNTIME_DIRECTORY names, the first if there are several.
#[must_use]
pub fn runtime_directory(var: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let list = set("RUNTIME_DIRECTORY", var)?;
    // systemd separates several directories of a unit by colons.
    let first = list.to_str().and_then(|list| list.split(':').next());
    Some(first.map(PathBuf::from).unwrap_or(list))
}

/// Returns the path in a variable, if it is not empty.
fn set(key: &str, var: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    var(key)
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
}

/// Returns the directory of the control socket in /tmp, where any user may have created it before.
#[must_use]
pub fn temporary(name: &str, uid: u32) -> PathBuf {
    PathBuf::from(format!("/tmp/{name}-{uid}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(uid: u32, vars: &[(&str, &str)]) -> Vec<String> {
        let var = |key: &str| {
            vars.iter()
                .find(|(k, _)| *k == key)
                .map(|(_, v)| OsString::from(v))
        };
        places("fdpassd", uid, var)
            .iter()
            .map(|path| path.display().to_string())
            .collect()
    }

    #[test]
    fn the_control_socket_has_a_path_for_each_environment() {
        assert_eq!(
            found(0, &[("XDG_RUNTIME_DIR", "/run/user/0")]),
            ["/run/fdpassd/control.sock"]
        );
        for directories in ["/run/x", "/run/x:/run/y"] {
            let found = found(0, &[("RUNTIME_DIRECTORY", directories)]);
            assert_eq!(found, ["/run/x/control.sock", "/run/fdpassd/control.sock"]);
        }
        assert_eq!(
            found(7, &[("XDG_RUNTIME_DIR", "/run/user/7")]),
            [
                "/run/user/7/fdpassd/control.sock",
                "/tmp/fdpassd-7/control.sock",
                "/run/fdpassd/control.sock"
            ]
        );
        assert_eq!(
            found(7, &[("XDG_RUNTIME_DIR", ""), ("HOME", "here")]).len(),
            2
        );
        let home = found(7, &[("HOME", "/users/x")]);
        assert_eq!(
            home[..2],
            [
                "/tmp/fdpassd-7/control.sock",
                "/users/x/.fdpassd/control.sock"
            ]
        );
    }
}
