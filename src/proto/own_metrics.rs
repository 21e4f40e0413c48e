//! Limits of the counters and histograms that a daemon or an app declares.

/// The most metrics of a worker.
pub const MAX_OWN_METRICS: usize = 64;
/// The longest name, in bytes.
pub const MAX_NAME_LEN: usize = 64;
/// The longest help, in bytes.
pub const MAX_HELP_LEN: usize = 128;
/// The most bounds of a histogram.
pub const MAX_BOUNDS: usize = 16;

/// The largest number that is added to a counter at once: no larger one is exact in JSON's usual numbers.
const MAX_COUNT: f64 = (1u64 << 53) as f64;

/// The end of the name of a counter as it is shown.
pub const COUNTER_END: &str = "_total";

/// Ends of names of samples, which the name of a histogram must not have.
pub const RESERVED_ENDS: [&str; 4] = ["_total", "_bucket", "_sum", "_count"];

/// Returns whether this may be the name of a metric, by the rules of Prometheus for names without a colon.
#[must_use]
pub fn is_metric_name(name: &str) -> bool {
    matches!(name.as_bytes(), [b'a'..=b'z' | b'A'..=b'Z' | b'_', rest @ ..]
        if rest.len() < MAX_NAME_LEN && rest.iter().all(|c| c.is_ascii_alphanumeric() || *c == b'_'))
}

/// Returns whether these may be the bounds of a histogram.
#[must_use]
pub fn are_bounds(bounds: &[f64]) -> bool {
    let is_ascending = bounds.windows(2).all(|pair| pair[0] < pair[1]);
    !bounds.is_empty()
        && bounds.len() <= MAX_BOUNDS
        && is_ascending
        && bounds.iter().all(|bound| bound.is_finite())
}

/// Returns whether this may be the help of a metric: one line.
#[must_use]
pub fn is_help(help: &str) -> bool {
    help.len() <= MAX_HELP_LEN && !help.contains(|c: char| c.is_control())
}

/// Returns whether a number of an app may be added to a counter: an exact count.
#[must_use]
pub fn is_count(n: f64) -> bool {
    (0.0..=MAX_COUNT).contains(&n) && n.fract() == 0.0
}
