//! The status that `systemctl status` shows.

use std::fmt::{self, Write};

use crate::proto::control::{LastReload, Verdict};
use crate::proto::names::Generation;
use crate::proto::text::{Counted, Escaped};

/// Longest status, in bytes; systemd drops datagrams of more than 4 KiB.
const MAX_STATUS_LEN: usize = 1000;

/// The state of the daemon in a few numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Summary {
    /// Ready workers; once the daemon is stopping, all that are left.
    pub(crate) ready: usize,
    pub(crate) wanted: usize,
    pub(crate) clients: u64,
    pub(crate) generation: Generation,
    pub(crate) is_reloading: bool,
    pub(crate) is_stopping: bool,
    /// Number of listeners that clients cannot connect to.
    pub(crate) outages: usize,
    /// Number of other things that are configured and missing.
    pub(crate) missing: usize,
    /// The service manager does not keep the clients.
    pub(crate) is_unkept: bool,
    /// The notice of a drain has begun.
    pub(crate) is_leaving: bool,
    /// Why no client is accepted, if that lasts.
    pub(crate) pause: Option<String>,
}

impl fmt::Display for Summary {
    /// Writes, for example, `2 workers, 120 clients, generation 3`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Summary {
            ready,
            wanted,
            clients,
            generation,
            ..
        } = *self;
        if ready < wanted && !self.is_stopping {
            write!(f, "{ready} of ")?;
        }
        let workers = if self.is_stopping {
            ready
        } else {
            ready.max(wanted)
        };
        write!(
            f,
            "{}, {}, generation {generation}",
            Counted(workers, "worker"),
            Counted(clients, "client")
        )?;
        if self.is_stopping {
            return f.write_str("; stopping");
        }
        if self.is_reloading {
            f.write_str("; reloading")?;
        }
        if self.outages > 0 {
            write!(f, "; {} down", Counted(self.outages, "listener"))?;
        }
        if self.is_unkept {
            f.write_str("; a restart would lose all clients")?;
        }
        if self.is_leaving {
            f.write_str("; leaving: new clients are served until the notice of the drain is over")?;
        }
        if let Some(pause) = &self.pause {
            write!(f, "; new clients are not accepted: {pause}")?;
        }
        Ok(())
    }
}

/// The differences from the state that the operator wants.
pub(crate) struct Details<'a> {
    pub(crate) last_reload: Option<&'a LastReload>,
    /// Why the configuration in force is older than the file.
    pub(crate) stale: Option<&'a str>,
    pub(crate) missing: &'a [String],
}

impl fmt::Display for Details<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for missing in self.missing {
            write!(f, "; missing: {missing}")?;
        }
        if let Some(why) = self.stale {
            return write!(f, "; the previous configuration is in force: {why}");
        }
        let Some(LastReload {
            verdict, message, ..
        }) = self.last_reload
        else {
            return Ok(());
        };
        f.write_str(match verdict {
            Verdict::Applied => return Ok(()),
            Verdict::Rejected => "; last reload rejected",
            Verdict::RolledBack => "; last reload rolled back",
        })?;
        message
            .as_ref()
            .map_or(Ok(()), |message| write!(f, ": {message}"))
    }
}

/// Returns one escaped line of at most [`MAX_STATUS_LEN`] bytes and an ellipsis.
pub(crate) fn status_text(what: &dyn fmt::Display) -> String {
    let mut text = String::new();
    // A `Display` that fails has written a part.
    let _ = write!(text, "{}", Escaped(what));
    if text.len() > MAX_STATUS_LEN {
        let cut = (0..=MAX_STATUS_LEN)
            .rev()
            .find(|&at| text.is_char_boundary(at))
            .unwrap_or_default();
        text.truncate(cut);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_is_one_line() {
        let usual = Summary {
            ready: 2,
            wanted: 2,
            clients: 120,
            generation: Generation(3),
            is_reloading: false,
            is_stopping: false,
            outages: 0,
            missing: 0,
            is_unkept: false,
            is_leaving: false,
            pause: None,
        };
        for (summary, text) in [
            (usual.clone(), "2 workers, 120 clients, generation 3"),
            (
                Summary {
                    is_leaving: true,
                    ..usual.clone()
                },
                "2 workers, 120 clients, generation 3; leaving: new clients are served until the notice of the drain is over",
            ),
            (
                Summary {
                    ready: 1,
                    wanted: 1,
                    clients: 1,
                    ..usual.clone()
                },
                "1 worker, 1 client, generation 3",
            ),
            (
                Summary {
                    ready: 1,
                    clients: 0,
                    ..usual.clone()
                },
                "1 of 2 workers, 0 clients, generation 3",
            ),
            (
                Summary {
                    ready: 3,
                    ..usual.clone()
                },
                "3 workers, 120 clients, generation 3",
            ),
            (
                Summary {
                    outages: 1,
                    ..usual.clone()
                },
                "2 workers, 120 clients, generation 3; 1 listener down",
            ),
            (
                Summary {
                    outages: 2,
                    ..usual.clone()
                },
                "2 workers, 120 clients, generation 3; 2 listeners down",
            ),
            (
                Summary {
                    is_unkept: true,
                    ..usual.clone()
                },
                "2 workers, 120 clients, generation 3; a restart would lose all clients",
            ),
            (
                Summary {
                    is_reloading: true,
                    ..usual.clone()
                },
                "2 workers, 120 clients, generation 3; reloading",
            ),
            (
                Summary {
                    is_stopping: true,
                    ready: 1,
                    ..usual.clone()
                },
                "1 worker, 120 clients, generation 3; stopping",
            ),
            (
                Summary {
                    pause: Some("the daemon is drained".to_owned()),
                    ..usual.clone()
                },
                "2 workers, 120 clients, generation 3; new clients are not accepted: the daemon is drained",
            ),
        ] {
            assert_eq!(summary.to_string(), text);
        }
    }

    #[test]
    fn a_status_is_escaped_and_cut() {
        let reload = LastReload {
            at: 0,
            verdict: Verdict::Rejected,
            message: Some("bad\nMAINPID=1\x1b".to_owned()),
        };
        assert_eq!(
            status_text(&Details {
                last_reload: Some(&reload),
                stale: None,
                missing: &[]
            }),
            r"; last reload rejected: bad\nMAINPID=1\x1b"
        );
        let long = status_text(&"ä".repeat(MAX_STATUS_LEN));
        assert!(
            long.len() <= MAX_STATUS_LEN + '…'.len_utf8() && long.ends_with("ä…"),
            "{long}"
        );
    }
}
