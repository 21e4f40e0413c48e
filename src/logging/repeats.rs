//! Counts repeated messages instead of writing them.

use std::time::{Duration, Instant};

use log::Level;

use super::line::Line;
use crate::proto::text::Counted;

/// The time after which a repeated message is written again, for readers who have just started to follow the log.
const REPEAT_INTERVAL: Duration = Duration::from_secs(10);

/// The last message that was written, and its repetitions.
#[derive(Debug)]
pub(super) struct Repeats(Option<Last>);

#[derive(Debug)]
struct Last {
    level: Level,
    /// With the fields that are shown: a line of a daemon's author may differ in these alone.
    text: String,
    written: Instant,
    times: u64,
}

impl Repeats {
    pub(super) const fn new() -> Repeats {
        Repeats(None)
    }

    /// Counts a line that repeats the last one, in level and text. Returns whether it was counted and must not be
    /// written.
    pub(super) fn count(&mut self, line: &Line, now: Instant) -> bool {
        let last = self.0.as_mut().filter(|last| {
            last.level == line.level
                && last.text == line.text()
                && now < last.written + REPEAT_INTERVAL
        });
        last.map(|last| last.times += 1).is_some()
    }

    /// Forgets the last message, and returns the line about its repetitions, if there were any.
    pub(super) fn take(&mut self) -> Option<Line> {
        let Last { level, times, .. } = self.0.take().filter(|last| last.times > 0)?;
        Some(Line::new(
            level,
            format!("last message repeated {}", Counted(times, "time")),
        ))
    }

    /// Notes a line that was written.
    pub(super) fn remember(&mut self, line: Line, now: Instant) {
        self.0 = Some(Last {
            level: line.level,
            text: line.text().into_owned(),
            written: now,
            times: 0,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the lines that are written for messages with their times in ms.
    fn written(messages: &[(u64, Level, &str)]) -> Vec<String> {
        let (mut repeats, mut written) = (Repeats::new(), Vec::new());
        let began = Instant::now();
        for (at, level, message) in messages {
            let (line, now) = (
                Line::new(*level, *message),
                began + Duration::from_millis(*at),
            );
            if !repeats.count(&line, now) {
                written.extend(repeats.take());
                written.push(Line::new(line.level, line.message.clone()));
                repeats.remember(line, now);
            }
        }
        written.extend(repeats.take());
        assert!(repeats.take().is_none());
        written
            .into_iter()
            .map(|line| format!("{} {}", line.level, line.message))
            .collect()
    }

    #[test]
    fn a_message_is_counted_until_a_different_one() {
        use Level::{Debug, Info, Warn};
        let more = |level, times| format!("{level} last message repeated {times} times");
        assert_eq!(
            written(&[(0, Info, "a"), (1, Info, "b"), (2, Info, "a")]),
            ["INFO a", "INFO b", "INFO a"]
        );
        let lines = written(&[
            (0, Warn, "a"),
            (1, Warn, "a"),
            (2, Warn, "a"),
            (3, Info, "b"),
            (4, Warn, "a"),
        ]);
        assert_eq!(lines, ["WARN a", &more(Warn, 2), "INFO b", "WARN a"]);
        assert_eq!(
            written(&[(0, Info, "a"), (0, Debug, "a"), (0, Debug, "a")]),
            ["INFO a", "DEBUG a", "DEBUG last message repeated 1 time"]
        );
    }

    #[test]
    fn lines_that_differ_in_a_field_are_not_repetitions() {
        let paid = |order: u64| {
            let fields = [("order", log::kv::Value::from(order))];
            let line = Line::from_parts(Level::Info, "paid", &fields);
            Line {
                shows_fields: true,
                ..line
            }
        };
        let (mut repeats, now) = (Repeats::new(), Instant::now());
        repeats.remember(paid(17), now);
        assert!(!repeats.count(&paid(18), now));
        assert!(repeats.count(&paid(17), now));
    }

    #[test]
    fn a_repeated_message_is_written_again_after_ten_seconds() {
        const ONCE: &str = "WARN last message repeated 1 time";
        let come = |at| (at, Level::Warn, "a");
        assert_eq!(
            written(&[come(0), come(9_999), come(10_000)]),
            ["WARN a", ONCE, "WARN a"]
        );
        assert_eq!(written(&[come(0), come(10_000)]), ["WARN a", "WARN a"]);
        let lines = written(&[
            come(0),
            come(5_000),
            come(9_000),
            come(12_000),
            come(21_999),
            come(22_000),
        ]);
        assert_eq!(
            lines,
            [
                "WARN a",
                "WARN last message repeated 2 times",
                "WARN a",
                ONCE,
                "WARN a"
            ]
        );
    }
}
