//! The form of a line in each place.

use std::process;
use std::time::SystemTime;

use log::Level;
use syslog::Severity;

pub(super) fn for_people(now: SystemTime, level: Level, message: &str) -> String {
    format!("{} {} {message}\n", humantime::format_rfc3339_millis(now), word(level))
}

pub(super) fn for_file(now: SystemTime, name: &str, level: Level, message: &str) -> String {
    format!("{} {name}[{}] {} {message}\n", humantime::format_rfc3339_millis(now), process::id(), word(level))
}

pub(super) fn for_journal(level: Level, message: &str) -> String {
    format!("<{}>{message}\n", severity(level) as u8)
}

pub(super) fn severity(level: Level) -> Severity {
    match level {
        Level::Error => Severity::LOG_ERR,
        Level::Warn => Severity::LOG_WARNING,
        Level::Info => Severity::LOG_INFO,
        Level::Debug | Level::Trace => Severity::LOG_DEBUG,
    }
}

fn word(level: Level) -> &'static str {
    match level {
        Level::Error => "error",
        Level::Warn => "warn",
        Level::Info => "info",
        Level::Debug => "debug",
        Level::Trace => "trace",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn each_place_has_its_form() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_millis(1_795_306_200_123);
        assert_eq!(for_people(now, Level::Warn, "worker 17"), "2026-11-22T00:10:00.123Z warn worker 17\n");
        let expected = format!("2026-11-22T00:10:00.123Z fdpassd[{}] error x\n", process::id());
        assert_eq!(for_file(now, "fdpassd", Level::Error, "x"), expected);
        let levels = [Level::Error, Level::Warn, Level::Info, Level::Debug, Level::Trace];
        assert_eq!(levels.map(|level| for_journal(level, "x")), ["<3>x\n", "<4>x\n", "<6>x\n", "<7>x\n", "<7>x\n"]);
    }
}
