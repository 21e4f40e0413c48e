//! The text format: families of samples, each with its type and its help.
//!
//! The exposition formats are described in Prometheus' documentation, "Exposition formats", text-based format.

use std::fmt::{Display, Write};

use crate::master::telemetry::by_kind::{By, Label};

pub(super) const COUNTER: &str = "counter";
pub(super) const GAUGE: &str = "gauge";
pub(super) const HISTOGRAM: &str = "histogram";

/// The prefix of each name.
const PREFIX: &str = "fdpassd_";

/// A text that is being written.
#[derive(Debug, Default)]
pub(super) struct MetricsText(String);

impl MetricsText {
    pub(super) fn into_string(self) -> String {
        self.0
    }

    /// Begins a family. `help` is one line, and not escaped.
    pub(super) fn family(&mut self, name: &str, kind: &str, help: &str) {
        self.line(format_args!(
            "# HELP {PREFIX}{name} {help}\n# TYPE {PREFIX}{name} {kind}\n"
        ));
    }

    /// Adds a sample to the family that was begun last.
    pub(super) fn sample(
        &mut self,
        name: &str,
        labels: &[(&str, &dyn Display)],
        value: impl Display,
    ) {
        self.line(format_args!("{PREFIX}{name}"));
        for (index, (label, of)) in labels.iter().enumerate() {
            let before = if index == 0 { '{' } else { ',' };
            self.line(format_args!(
                "{before}{label}=\"{}\"",
                escaped(&of.to_string())
            ));
        }
        let end = if labels.is_empty() { "" } else { "}" };
        self.line(format_args!("{end} {value}\n"));
    }

    pub(super) fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.family(name, GAUGE, help);
        self.sample(name, &[], value);
    }

    pub(super) fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.family(name, COUNTER, help);
        self.sample(name, &[], value);
    }

    /// Adds a counter with a sample for each kind.
    pub(super) fn by<L: Label>(&mut self, name: &str, help: &str, label: &str, counts: &By<L>) {
        self.family(name, COUNTER, help);
        for (kind, count) in counts.iter() {
            self.sample(name, &[(label, &kind)], count);
        }
    }

    fn line(&mut self, arguments: std::fmt::Arguments<'_>) {
        self.0
            .write_fmt(arguments)
            .expect("a String takes everything");
    }
}

/// Escapes a value between quotes.
fn escaped(value: &str) -> String {
    value
        .replace('\\', r"\\")
        .replace('"', "\\\"")
        .replace('\n', r"\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped() {
        let mut text = MetricsText::default();
        text.family("x_total", COUNTER, "Some.");
        text.sample(
            "x_total",
            &[("method", &"a\"}\n1 \\"), ("result", &"ok")],
            3,
        );
        text.sample("x_total", &[], 0.5);
        let expected = "# HELP fdpassd_x_total Some.\n# TYPE fdpassd_x_total counter\n\
                        fdpassd_x_total{method=\"a\\\"}\\n1 \\\\\",result=\"ok\"} 3\nfdpassd_x_total 0.5\n";
        assert_eq!(text.into_string(), expected);
    }
}
