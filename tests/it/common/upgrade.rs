//! Helpers of tests of upgrades.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use fdpassd::testing::{Client, Running};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::program::{install, install_text};

/// Programs in a directory that other users cannot change.
pub struct Programs(TempDir);

impl Programs {
    pub fn new() -> Programs {
        let directory = tempfile::tempdir().expect("a directory");
        fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).expect("it is ours");
        Programs(directory)
    }

    pub fn directory(&self) -> &Path {
        self.0.path()
    }

    /// A directory among them.
    pub fn folder(&self, name: &str, mode: u32) -> PathBuf {
        let path = self.0.path().join(name);
        fs::create_dir(&path).expect("it is new");
        fs::set_permissions(&path, Permissions::from_mode(mode)).expect("it is ours");
        path
    }

    pub fn copy(&self, program: &Path) -> PathBuf {
        let name = program.file_name().expect("a program has a name");
        self.copy_to(program, name)
    }

    /// A copy of that name, which may be in a directory among them.
    pub fn copy_to(&self, program: &Path, name: impl AsRef<Path>) -> PathBuf {
        let copy = self.0.path().join(name);
        install(program, &copy, 0o755);
        copy
    }

    pub fn write(&self, name: &str, text: &str, mode: u32) -> PathBuf {
        let path = self.0.path().join(name);
        install_text(text, &path, mode);
        path
    }
}

/// Upgrades to this program, or to what is where the running one was; the reply's result, or that of the error reply.
#[track_caller]
pub fn upgrade(daemon: &Running, to: Option<&Path>) -> Result<Value, Value> {
    verdict(&mut begin(daemon, to))
}

/// Asks for it and does not wait.
#[track_caller]
pub fn begin(daemon: &Running, to: Option<&Path>) -> Client {
    daemon.ctl_request(
        "upgrade",
        to.map_or(json!({}), |path| json!({ "binary": path })),
    )
}

/// Waits for the verdict.
#[track_caller]
pub fn verdict(asker: &mut Client) -> Result<Value, Value> {
    let reply = asker.reply();
    let result = serde_json::from_str(reply.result.get()).expect("JSON");
    if reply.name == "error" {
        Err(result)
    } else {
        Ok(result)
    }
}

/// Asserts that an upgrade is refused with this code and these words.
#[track_caller]
pub fn assert_refused(told: Result<Value, Value>, code: &str, words: &str) {
    let fault = told.expect_err("it is refused");
    assert!(
        fault["code"] == code && fault["message"].as_str().is_some_and(|m| m.contains(words)),
        "{fault}"
    );
}
