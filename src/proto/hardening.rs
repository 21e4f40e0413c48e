//! Why an app that works elsewhere does not start in a unit of systemd: the directive that is the likely cause.

use std::io::ErrorKind;
use std::path::Path;

/// How an app has failed to start.
#[derive(Clone, Copy, Debug)]
pub enum StartFailure<'a> {
    /// A program, directory or file at this path could not be used.
    Path(&'a Path, ErrorKind),
    /// The app was killed by a signal of this number before it was ready.
    Signal(i32),
}

/// On all architectures that fdpassd runs on.
const SIGTRAP: i32 = 5;
const SIGSYS: i32 = 31;

/// Returns the likely cause, as a sentence without a period. `is_service` is whether systemd has started the daemon: it
/// sets `INVOCATION_ID`.
#[must_use]
pub fn hint(failure: StartFailure<'_>, is_service: bool) -> Option<&'static str> {
    if !is_service {
        return None;
    }
    match failure {
        StartFailure::Path(path, ErrorKind::NotFound | ErrorKind::PermissionDenied) => {
            let is_below = |directories: &[&str]| directories.iter().any(|d| path.starts_with(d));
            if is_below(&["/home", "/root", "/run/user"]) {
                Some("ProtectHome= of the unit may hide it, see the drop-in apps.conf")
            } else if is_below(&["/tmp", "/var/tmp"]) {
                Some("PrivateTmp= of the unit may hide it")
            } else if is_below(&["/dev"]) {
                Some("PrivateDevices= of the unit may hide it")
            } else {
                None
            }
        }
        StartFailure::Signal(SIGTRAP) => Some(
            "MemoryDenyWriteExecute= of the unit may be the cause, because it forbids compilation at run time, as in \
             Node.js: see the drop-in apps.conf",
        ),
        StartFailure::Signal(SIGSYS) => Some(
            "SystemCallFilter= or MemoryDenyWriteExecute= of the unit may be the cause: see the drop-in apps.conf",
        ),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directive_is_named_where_it_can_be_known() {
        let path = |directory: &str, kind| {
            let path = Path::new(directory).join("x/app");
            hint(StartFailure::Path(&path, kind), true)
        };
        let signal = |number| hint(StartFailure::Signal(number), true);
        for (found, directive) in [
            (path("/home", ErrorKind::NotFound), "ProtectHome="),
            (path("/root", ErrorKind::PermissionDenied), "ProtectHome="),
            (path("/tmp", ErrorKind::NotFound), "PrivateTmp="),
            (path("/dev/shm", ErrorKind::NotFound), "PrivateDevices="),
            (signal(SIGTRAP), "MemoryDenyWriteExecute="),
            (signal(SIGSYS), "SystemCallFilter="),
        ] {
            let found = found.expect(directive);
            assert!(found.contains(directive), "{found}");
        }
        for none in [
            path("/srv", ErrorKind::NotFound),
            path("/homes", ErrorKind::NotFound),
            path("/home", ErrorKind::OutOfMemory),
            signal(9),
            hint(StartFailure::Signal(SIGTRAP), false),
            hint(
                StartFailure::Path(Path::new("/root"), ErrorKind::NotFound),
                false,
            ),
        ] {
            assert_eq!(none, None);
        }
    }
}
