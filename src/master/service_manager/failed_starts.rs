//! Starts that fail one after another, while a service manager starts the daemon again each time.
//!
//! Something that the daemon needs may come later, such as the database of an app at boot. The manager must restart a
//! killed master at once, so it cannot wait between starts; without a wait, it would try so often that it gives the
//! daemon up. So the daemon waits itself before it exits. The number of failures is in a file of the runtime directory,
//! which the manager keeps for the next start (`RuntimeDirectoryPreserve=restart`, systemd.exec(5)).

use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{env, fs};

/// The name of the file.
const FILE: &str = "failed-starts";

/// The wait after the second failure. The first one is reported without a wait.
const FIRST_WAIT: Duration = Duration::from_secs(1);

/// The longest wait, and that of `systemctl restart` for the error.
const MAX_WAIT: Duration = Duration::from_secs(10);

/// Returns the file. None without a service manager or a runtime directory.
fn file() -> Option<PathBuf> {
    let set = |name| env::var(name).ok().filter(|value| !value.is_empty());
    set("NOTIFY_SOCKET")?;
    // systemd lists several with colons.
    let directories = set("RUNTIME_DIRECTORY")?;
    Some(Path::new(directories.split(':').next()?).join(FILE))
}

/// Counts a failure. Returns how long the daemon must wait before it exits.
pub(super) fn count() -> Duration {
    file().map_or(Duration::ZERO, |file| count_in(&file))
}

fn count_in(file: &Path) -> Duration {
    let before = fs::read_to_string(file).ok();
    let before: u32 = before
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(0);
    // Without the file each failure counts as the first one.
    let _ = fs::write(file, before.saturating_add(1).to_string());
    match before {
        0 => Duration::ZERO,
        _ => FIRST_WAIT
            .saturating_mul(1 << (before - 1).min(8))
            .min(MAX_WAIT),
    }
}

/// Forgets the failures: the daemon serves.
pub(super) fn forget() {
    if let Some(file) = file() {
        let _ = fs::remove_file(file);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_doubles_the_wait_up_to_a_limit() {
        let place = tempfile::tempdir().expect("a directory");
        let file = place.path().join(FILE);
        let waits = || {
            (0..7)
                .map(|_| count_in(&file).as_secs())
                .collect::<Vec<_>>()
        };
        assert_eq!(waits(), [0, 1, 2, 4, 8, 10, 10]);
        fs::write(&file, u32::MAX.to_string()).expect("it is ours");
        assert_eq!(count_in(&file), MAX_WAIT);
        fs::write(&file, "nonsense").expect("it is ours");
        assert_eq!(waits()[..2], [0, 1]);
    }
}
