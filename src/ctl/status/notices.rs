//! Notices of unusual states of a daemon, each with a word in capitals.

use anstyle::Style;

use super::within;
use crate::ctl::figures::in_letters;
use crate::ctl::style::{BAD, NOTED};
use crate::proto::control::{DrainStatus, ListenerStatus, Status};

/// Something unusual.
#[derive(Debug)]
pub(crate) struct Notice {
    pub(crate) word: &'static str,
    pub(crate) style: Style,
    /// Not escaped.
    pub(crate) text: String,
}

/// Returns everything unusual, what the daemon does at the moment first.
pub(crate) fn notices(status: &Status) -> Vec<Notice> {
    let mut all = of_state(status);
    all.extend(status.listeners.iter().filter_map(of_listener));
    all.extend(of_config(status));
    all
}

/// Returns why clients cannot connect to a listener; the reason before an address that may be long.
fn of_listener(listener: &ListenerStatus) -> Option<Notice> {
    let why = listener.outage.as_ref()?;
    Some(Notice {
        word: "DOWN",
        style: BAD,
        text: format!("{why}: {}", listener.address),
    })
}

/// Returns what the daemon does at the moment.
pub(super) fn of_state(status: &Status) -> Vec<Notice> {
    let mut all = Vec::new();
    let mut add = |style, word, text| all.push(Notice { word, style, text });
    if status.stopping {
        let text = "no new clients; workers finish what they have".to_owned();
        add(NOTED, "STOPPING", text);
    }
    if let Some(DrainStatus {
        notice: Some(left), ..
    }) = status.drain
    {
        let left = in_letters(left.ceil());
        let text = format!("in {left}; new clients are served until then");
        add(NOTED, "LEAVING", text);
    }
    if let Some(over) = status.drain.and_then(|drain| drain.over) {
        let text = format!("clients that want a goaway get it{}", within(over));
        add(NOTED, "MOVING", text);
    }
    if let Some(reason) = &status.paused {
        add(NOTED, "PAUSED", format!("no new clients: {reason}"));
    }
    if status.reloading {
        let text = "workers are replaced one by one".to_owned();
        add(NOTED, "RELOADING", text);
    }
    if !status.quarantined.is_empty() {
        let methods = status.quarantined.join(", ");
        let text = format!("quarantined: {methods}; lifted by the verb \"release\"");
        add(BAD, "METHODS", text);
    }
    all
}

/// Returns what differs from the configuration.
pub(super) fn of_config(status: &Status) -> Vec<Notice> {
    let mut all = Vec::new();
    let mut add = |word, text| {
        all.push(Notice {
            word,
            style: BAD,
            text,
        });
    };
    if let Some(why) = &status.config_stale {
        add(
            "STALE",
            format!("the previous configuration is in force: {why}"),
        );
    }
    for missing in &status.missing {
        add("MISSING", missing.clone());
    }
    if let Some(why) = &status.store_outage {
        add("RESTART", format!("would lose all clients: {why}"));
    }
    all
}
