//! Counters and histograms of an app: declared in its hello, counted in the worker's shared memory.

use std::collections::{BTreeMap, HashMap};

use crate::proto::app::{AppMetric, MetricKind, Samples};
use crate::proto::own_metrics::is_count;
use crate::worker::metrics::{Counter, Histogram, WorkerMetrics};

/// The bounds of a histogram that declares none: seconds, as Prometheus' libraries have them.
const USUAL_BOUNDS: [f64; 11] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

/// The end of a counter's name, which is added if it is missing.
const COUNTER_END: &str = "_total";

/// The metrics of an app, by the names that it uses.
#[derive(Debug, Default)]
pub(super) struct AppMetrics {
    counters: HashMap<String, Counter>,
    histograms: HashMap<String, Histogram>,
}

impl AppMetrics {
    /// Declares metrics.
    ///
    /// # Errors
    /// A metric that is not valid, for the operator.
    pub(super) fn declare(
        declared: &[AppMetric],
        metrics: &WorkerMetrics,
    ) -> Result<AppMetrics, String> {
        let mut all = AppMetrics::default();
        for metric in declared {
            let (name, help) = (metric.name.clone(), &metric.help);
            match metric.kind {
                MetricKind::Counter => {
                    let full = match name.ends_with(COUNTER_END) {
                        true => name.clone(),
                        false => format!("{name}{COUNTER_END}"),
                    };
                    let counter = metrics.counter(&full, help).map_err(|e| e.to_string())?;
                    all.counters.insert(name, counter);
                }
                MetricKind::Histogram => {
                    let bounds = match metric.buckets.as_slice() {
                        [] => &USUAL_BOUNDS,
                        bounds => bounds,
                    };
                    let histogram = metrics
                        .histogram(&name, help, bounds)
                        .map_err(|e| e.to_string())?;
                    all.histograms.insert(name, histogram);
                }
            }
        }
        Ok(all)
    }

    /// Counts samples. Those of a metric that was not declared, or is of the other kind, are logged and ignored.
    pub(super) fn count(&self, samples: &BTreeMap<String, Samples>) {
        for (name, samples) in samples {
            match (self.counters.get(name), self.histograms.get(name), samples) {
                (Some(counter), _, Samples::Add(n)) if is_count(*n) => counter.add(*n as u64),
                (_, Some(histogram), Samples::Observe(values)) => {
                    values.iter().for_each(|value| histogram.observe(*value));
                }
                _ => log::warn!(
                    "the app counts {name:?}, which its hello does not declare so, or by a number that is not a count"
                ),
            }
        }
    }
}
