//! The import map. Every path in every file of src is checked against it.

mod calls;
mod circles;
mod imports;
mod sizes;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use crate::common::{read, root};
use imports::faults_of;

/// Each module of the crate's root, and which others of them it may know.
const MAY_IMPORT: [(&str, &[&str]); 22] = [
    ("proto", &[]),
    ("sys", &[]),
    ("table", &[]),
    ("toml_text", &["proto"]),
    ("loop_clock", &["sys"]),
    ("config", &["proto", "sys", "toml_text"]),
    ("logging", &["proto", "sys"]),
    ("channel", &["proto", "sys"]),
    ("client", &["proto", "sys"]),
    ("rpc_client", &["client", "proto", "sys"]),
    ("load", &["proto", "sys"]),
    ("shm", &["proto", "sys"]),
    ("pool", &["config", "proto"]),
    (
        "master",
        &[
            "pool",
            "channel",
            "shm",
            "config",
            "logging",
            "loop_clock",
            "proto",
            "sys",
            "table",
        ],
    ),
    (
        "worker",
        &[
            "channel",
            "shm",
            "logging",
            "loop_clock",
            "proto",
            "sys",
            "table",
        ],
    ),
    (
        "exporter",
        &["channel", "rpc_client", "logging", "proto", "sys"],
    ),
    ("dev", &["rpc_client", "proto", "sys"]),
    (
        "ctl",
        &["client", "rpc_client", "load", "proto", "sys", "toml_text"],
    ),
    (
        "daemon",
        &[
            "config", "dev", "exporter", "logging", "master", "worker", "proto",
        ],
    ),
    ("fuzzing", &["config", "shm", "exporter", "worker", "proto"]),
    ("testing", &["daemon", "proto", "sys", "worker"]),
    ("bin", &[]),
];

/// Each room of `master`, and the rooms that it may know, which all stand before it. Items of `master` itself are
/// open to all of them.
const ROOM_MAY_IMPORT: [(&str, &[&str]); 23] = [
    ("error", &[]),
    ("lifecycle", &[]),
    ("retry", &["error"]),
    ("token", &[]),
    ("capacity", &[]),
    ("service_manager", &[]),
    ("telemetry", &[]),
    ("clients", &["telemetry"]),
    ("memory", &["clients"]),
    ("settings", &["memory"]),
    ("workers", &["clients", "lifecycle", "memory", "telemetry"]),
    (
        "listeners",
        &[
            "clients",
            "error",
            "lifecycle",
            "retry",
            "telemetry",
            "workers",
        ],
    ),
    ("exporter", &["listeners", "retry", "telemetry"]),
    (
        "control",
        &[
            "capacity",
            "clients",
            "exporter",
            "lifecycle",
            "listeners",
            "memory",
            "retry",
            "service_manager",
            "settings",
            "telemetry",
            "workers",
        ],
    ),
    (
        "metrics",
        &[
            "clients",
            "control",
            "listeners",
            "settings",
            "telemetry",
            "workers",
        ],
    ),
    (
        "reload",
        &[
            "capacity",
            "clients",
            "control",
            "exporter",
            "lifecycle",
            "listeners",
            "memory",
            "service_manager",
            "settings",
            "telemetry",
            "workers",
        ],
    ),
    (
        "shutdown",
        &[
            "clients",
            "lifecycle",
            "listeners",
            "reload",
            "service_manager",
            "settings",
            "telemetry",
            "workers",
        ],
    ),
    (
        "handover",
        &[
            "capacity",
            "clients",
            "control",
            "exporter",
            "lifecycle",
            "listeners",
            "reload",
            "retry",
            "service_manager",
            "settings",
            "shutdown",
            "telemetry",
            "workers",
        ],
    ),
    (
        "requests",
        &[
            "clients",
            "control",
            "exporter",
            "handover",
            "lifecycle",
            "listeners",
            "metrics",
            "reload",
            "settings",
            "shutdown",
            "telemetry",
            "workers",
        ],
    ),
    (
        "reports",
        &[
            "control",
            "lifecycle",
            "listeners",
            "requests",
            "service_manager",
            "settings",
            "telemetry",
            "workers",
        ],
    ),
    (
        "children",
        &[
            "clients",
            "error",
            "exporter",
            "handover",
            "lifecycle",
            "listeners",
            "memory",
            "reload",
            "reports",
            "settings",
            "telemetry",
            "workers",
        ],
    ),
    (
        "signals",
        &[
            "children",
            "control",
            "handover",
            "reload",
            "requests",
            "service_manager",
            "shutdown",
            "telemetry",
            "workers",
        ],
    ),
    (
        "startup",
        &[
            "capacity",
            "clients",
            "control",
            "exporter",
            "handover",
            "lifecycle",
            "listeners",
            "memory",
            "reload",
            "service_manager",
            "settings",
            "signals",
            "telemetry",
            "workers",
        ],
    ),
];

/// Names that only these modules may use: foreign crates, and `unsafe`.
const ONLY_IN: [(&str, &[&str]); 14] = [
    ("nix", &["sys"]),
    ("libc", &["sys"]),
    ("signal_hook", &["sys"]),
    ("signal_hook_registry", &["sys"]),
    ("sd_notify", &["master"]),
    ("unsafe", &["sys"]),
    ("toml", &["config", "daemon", "testing", "toml_text"]),
    ("syslog", &["logging"]),
    ("tokio", &["worker"]),
    ("clap", &["daemon", "ctl"]),
    ("httparse", &["exporter"]),
    ("clap_complete", &["ctl"]),
    ("anstyle", &["ctl"]),
    ("ratatui_core", &["ctl"]),
];

#[test]
fn every_module_imports_only_what_the_map_allows() {
    let faults: Vec<String> = sources()
        .iter()
        .flat_map(|(file, text)| faults_of(file, text))
        .collect();
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn every_module_stands_on_the_map() {
    let on_disk: BTreeSet<String> = sources()
        .iter()
        .filter_map(|(file, _)| module_of(file).into_iter().next())
        .collect();
    assert_eq!(on_disk, keys(&MAY_IMPORT));
}

#[test]
fn every_room_stands_on_the_map() {
    let on_disk: BTreeSet<String> = sources()
        .iter()
        .map(|(file, _)| module_of(file))
        .filter(|module| module.len() > 1 && module[0] == "master")
        .map(|module| module[1].clone())
        .collect();
    assert_eq!(on_disk, keys(&ROOM_MAY_IMPORT));
}

/// Rooms that every room may use; the table of ARCHITECTURE.md does not repeat them.
const OPEN_ROOMS: [&str; 2] = ["error", "token"];

#[test]
fn the_architecture_shows_the_rooms_and_their_arrows() {
    let text = read("ARCHITECTURE.md");
    let header = text
        .lines()
        .find(|line| line.trim_start().starts_with("room ") && line.ends_with(" may use"))
        .expect("it has a table of rooms");
    let (purpose, others) = (
        header.find("purpose").expect("a column"),
        header.find("may use").expect("a column"),
    );
    let mut shown: Vec<(String, BTreeSet<String>)> = Vec::new();
    let rows = text.lines().skip_while(|line| *line != header).skip(2);
    for row in rows.take_while(|row| !row.starts_with("```")) {
        let room = row[..purpose.min(row.len())].trim();
        if !room.is_empty() {
            let room = room.trim_end_matches('/').to_owned();
            shown.push((room, BTreeSet::new()));
        }
        let names = row.get(others..).unwrap_or_default().split(',');
        let names = names
            .map(|name| name.trim().to_owned())
            .filter(|name| !name.is_empty() && name != "-");
        shown
            .last_mut()
            .expect("a room comes first")
            .1
            .extend(names);
    }
    let shown: BTreeMap<_, _> = shown.into_iter().collect();
    for (room, others) in ROOM_MAY_IMPORT {
        if OPEN_ROOMS.contains(&room) || room == "startup" {
            continue;
        }
        let allowed: BTreeSet<String> = others
            .iter()
            .filter(|other| !OPEN_ROOMS.contains(other))
            .map(|other| (*other).to_owned())
            .collect();
        assert_eq!(shown.get(room), Some(&allowed), "the row of {room}");
    }
}

#[test]
fn no_arrow_between_rooms_leads_back() {
    let mut before = BTreeSet::new();
    for (room, others) in ROOM_MAY_IMPORT {
        for other in others {
            assert!(
                before.contains(other),
                "{room} knows {other}, which stands below it"
            );
        }
        before.insert(room);
    }
}

/// Returns the names that begin the rows of a table.
fn keys(table: &[(&str, &[&str])]) -> BTreeSet<String> {
    table.iter().map(|(key, _)| (*key).to_owned()).collect()
}

/// Returns whether a table allows it; unknown names are allowed.
fn may(table: &[(&str, &[&str])], key: &str, value: &str) -> bool {
    table
        .iter()
        .find(|(known, _)| *known == key)
        .is_none_or(|(_, values)| values.contains(&value))
}

/// Returns the module of a file: `worker/turn.rs` is `["worker", "turn"]`, `lib.rs` is nothing.
fn module_of(file: &str) -> Vec<String> {
    let path = file.trim_end_matches(".rs").trim_end_matches("/mod");
    path.split('/')
        .filter(|word| *word != "lib")
        .map(str::to_owned)
        .collect()
}

/// All files of src by their paths in it, with their texts.
pub(crate) fn sources() -> Vec<(String, String)> {
    rust_files("src")
}

/// All files of Rust in a folder by their paths in it, with their texts.
pub(crate) fn rust_files(folder: &str) -> Vec<(String, String)> {
    let root = root().join(folder);
    let mut sources = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder can be read") {
            let path = entry.expect("an entry can be read").path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            if path.extension().is_none_or(|extension| extension != "rs") {
                continue;
            }
            let file = path
                .strip_prefix(&root)
                .expect("it is in the folder")
                .display()
                .to_string();
            sources.push((file, fs::read_to_string(&path).expect("a file can be read")));
        }
    }
    sources
}
