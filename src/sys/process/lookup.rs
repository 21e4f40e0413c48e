//! Finds programs as execvp(3) does.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

use nix::fcntl::AT_FDCWD;
use nix::fcntl::AtFlags;
use nix::unistd::{AccessFlags, faccessat};

/// Returns the path of a program: `name` itself if it has a slash, else in the first directory of `search` that has it,
/// where relative paths are those of `directory`.
///
/// # Errors
/// The reason, with the path that it concerns: `None` if no directory has the program.
pub fn find_program(
    name: &str,
    directory: &Path,
    search: &OsStr,
) -> Result<PathBuf, (Option<PathBuf>, io::Error)> {
    if name.contains('/') {
        let path = directory.join(name);
        return match check_executable(&path) {
            Ok(()) => Ok(path),
            Err(error) => Err((Some(path), error)),
        };
    }
    let mut refused = None;
    for place in std::env::split_paths(search) {
        let path = directory.join(place).join(name);
        match check_executable(&path) {
            Ok(()) => return Ok(path),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                refused.get_or_insert((Some(path), error));
            }
            Err(_) => {}
        }
    }
    Err(refused.unwrap_or((None, io::ErrorKind::NotFound.into())))
}

fn check_executable(path: &Path) -> io::Result<()> {
    let found = std::fs::metadata(path)?;
    if found.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    Ok(faccessat(
        AT_FDCWD,
        path,
        AccessFlags::X_OK,
        AtFlags::AT_EACCESS,
    )?)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_program_is_found_by_its_path_or_in_the_search_path() {
        let place = tempfile::tempdir().expect("a directory");
        let directory = place.path();
        for (name, mode) in [("a/run", 0o644), ("b/run", 0o755), ("a/plain", 0o644)] {
            let path = directory.join(name);
            fs::create_dir_all(path.parent().expect("it has one")).expect("it is ours");
            fs::write(&path, "").expect("it is ours");
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("it is ours");
        }
        let find = |name: &str, search: &str| find_program(name, directory, OsStr::new(search));
        let error = |name, search| find(name, search).expect_err(name);
        assert_eq!(
            find("run", "a:b").expect("it is there"),
            directory.join("b/run")
        );
        assert_eq!(
            find("./b/run", "").expect("it is there"),
            directory.join("./b/run")
        );
        let (path, why) = error("plain", "a:b");
        assert_eq!(
            (path, why.kind()),
            (
                Some(directory.join("a/plain")),
                io::ErrorKind::PermissionDenied
            )
        );
        let (path, why) = error("missing", "a:b");
        assert_eq!((path, why.kind()), (None, io::ErrorKind::NotFound));
        let (path, why) = error("a/missing", "a:b");
        assert_eq!(
            (path, why.kind()),
            (Some(directory.join("a/missing")), io::ErrorKind::NotFound)
        );
        assert_eq!(error("./a", "").1.kind(), io::ErrorKind::IsADirectory);
    }
}
