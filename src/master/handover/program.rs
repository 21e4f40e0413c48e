//! The trust in a program that an upgrade executes.

use std::fs::{self, File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::sys::fd;
use crate::sys::user::Unmapped;

/// Opens a program that only root and this user can change: the file and every directory that leads to it.
///
/// # Errors
/// The reason why it cannot be opened or is not trusted.
pub(super) fn open_trusted(path: &Path, user: u32) -> Result<File, String> {
    let path = path
        .canonicalize()
        .map_err(|e| format!("cannot be opened: {e}"))?;
    // Opening a FIFO must not wait for its writer.
    let file = fd::open_at_once(&path).map_err(|e| format!("cannot be opened: {e}"))?;
    let found = file.metadata().map_err(|e| e.to_string())?;
    if !found.is_file() {
        return Err("is not a regular file".to_owned());
    }
    check_trust(&found, user, false).map_err(|why| format!("is not trusted: it {why}"))?;
    for folder in path.ancestors().skip(1) {
        let found = fs::symlink_metadata(folder).map_err(|e| e.to_string())?;
        check_trust(&found, user, true)
            .map_err(|why| format!("is not trusted: its directory {} {why}", folder.display()))?;
    }
    Ok(file)
}

/// Checks the owner and the mode. In a directory with the sticky bit, others can add files but cannot change existing
/// ones (chmod(1)).
fn check_trust(found: &Metadata, user: u32, is_folder: bool) -> Result<(), String> {
    let mode = found.mode();
    // An unmapped owner may be any user.
    if found.uid() != 0 && found.uid() != user || Unmapped::read().user == Some(found.uid()) {
        return Err(format!("belongs to uid {}", found.uid()));
    }
    if mode & 0o022 != 0 && !(is_folder && mode & 0o1000 != 0) {
        return Err(format!(
            "is writable by its group or by all users (mode {:04o})",
            mode & 0o7777
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::sys::process;

    #[test]
    fn programs_that_others_can_change_are_not_trusted() {
        let directory = tempfile::tempdir().expect("tempdir");
        let path = directory.path().join("program");
        fs::write(&path, "x").expect("write");
        let set = |path: &Path, mode| {
            fs::set_permissions(path, Permissions::from_mode(mode)).expect("chmod")
        };
        let opened = || open_trusted(&path, process::user());
        set(directory.path(), 0o755);
        set(&path, 0o755);
        opened().expect("no other user can change it");
        set(&path, 0o775);
        assert!(
            opened()
                .expect_err("its group can")
                .contains("is writable by its group or by all users (mode 0775)")
        );
        set(&path, 0o755);
        set(directory.path(), 0o777);
        assert!(
            opened()
                .expect_err("anybody can replace it")
                .contains("its directory")
        );
        set(directory.path(), 0o1777);
        opened().expect("no user can replace the file of another one there");
        assert!(
            open_trusted(directory.path(), process::user())
                .expect_err("a folder")
                .contains("is not a regular file")
        );
        assert!(open_trusted(&path.join("x"), process::user()).is_err());
        assert!(
            open_trusted(Path::new("/nowhere/at/all"), 0)
                .expect_err("nothing")
                .contains("No such file")
        );
        if process::user() == 0 {
            std::os::unix::fs::chown(&path, Some(61_234), None).expect("root may");
            assert!(
                opened()
                    .expect_err("it is another's")
                    .contains("belongs to uid 61234")
            );
            open_trusted(&path, 61_234).expect("it is that user's own");
        }
    }
}
