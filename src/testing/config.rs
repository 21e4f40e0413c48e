//! The configuration of a daemon in its own directory.

use std::path::{Path, PathBuf};

/// The configuration's name in the daemon's directory.
pub(super) const CONFIG: &str = "config.toml";

/// The control socket's name in the daemon's directory.
pub(super) const CONTROL: &str = "control.sock";

/// Adds the keys that every test needs. A text that is not TOML is returned unchanged, so that the daemon rejects it.
pub(super) fn complete(config: &str, directory: &Path) -> String {
    let text = config.replace("{dir}", &directory.display().to_string());
    let Ok(mut table) = text.parse::<toml::Table>() else {
        return text;
    };
    table
        .entry("listen")
        .or_insert_with(|| vec!["127.0.0.1:0"].into());
    if let toml::Value::Table(control) = table
        .entry("control")
        .or_insert_with(|| toml::Table::new().into())
    {
        control
            .entry("socket")
            .or_insert_with(|| directory.join(CONTROL).display().to_string().into());
    }
    table.to_string()
}

pub(super) fn control_socket(config: &str) -> Option<PathBuf> {
    config
        .parse::<toml::Table>()
        .ok()?
        .get("control")?
        .get("socket")?
        .as_str()
        .map(PathBuf::from)
}
