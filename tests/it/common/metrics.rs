//! The metrics that the daemon publishes.

use std::collections::BTreeMap;

use fdpassd::testing::{Running, eventually};

/// The text for Prometheus.
#[track_caller]
pub fn text(daemon: &Running) -> String {
    let told = daemon.ctl("metrics").expect("they are told");
    told["text"].as_str().expect("a text").to_owned()
}

/// Each sample by its name and labels.
#[track_caller]
pub fn samples(daemon: &Running) -> BTreeMap<String, f64> {
    let text = text(daemon);
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    samples
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').expect("a name and a value");
            (name.to_owned(), value.parse().expect("a number"))
        })
        .collect()
}

/// The sum over a family.
pub fn sum(samples: &BTreeMap<String, f64>, family: &str) -> f64 {
    let is_of = |name: &str| {
        name.strip_prefix(family)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('{'))
    };
    samples
        .iter()
        .filter(|(name, _)| is_of(name))
        .map(|(_, value)| value)
        .sum()
}

/// Checks the number of requests and of errors in the status, by seat, by method and in the histogram.
#[track_caller]
pub fn assert_counted(daemon: &Running, requests: u64, errors: u64) {
    let status = daemon.status();
    assert_eq!(
        (status.requests_total, status.errors_total),
        (requests, errors)
    );
    // A request's duration is recorded after the sending of its reply, which the client may have before.
    let samples = eventually("the durations of all requests are recorded", || {
        let of_histogram = [
            "fdpassd_request_duration_seconds_count",
            "fdpassd_request_duration_seconds_bucket{le=\"+Inf\"}",
        ];
        let samples = samples(daemon);
        (of_histogram.map(|name| samples[name]) == [requests as f64; 2]).then_some(samples)
    });
    assert_eq!(
        sum(&samples, "fdpassd_requests_total"),
        requests as f64,
        "by method"
    );
    let with_error = samples
        .iter()
        .filter(|(name, _)| name.contains("result=\"error\""));
    assert_eq!(
        with_error.map(|(_, count)| count).sum::<f64>(),
        errors as f64,
        "errors by method"
    );
}
