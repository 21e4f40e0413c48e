//! The metrics of a daemon's own.

use super::text::{HISTOGRAM, MetricsText};
use crate::shm::own_metrics::{OwnMetric, OwnValues};

/// Follows the prefix of all metrics; no metric of fdpassd ever begins with it.
const PREFIX: &str = "app_";

pub(super) fn write(text: &mut MetricsText, metric: &OwnMetric) {
    let name = format!("{PREFIX}{}", metric.name);
    let help = metric.help.replace('\\', r"\\").replace('\n', r"\n");
    match &metric.values {
        OwnValues::Counter(count) => text.counter(&name, &help, *count),
        OwnValues::Histogram {
            bounds,
            counts,
            sum,
        } => {
            text.family(&name, HISTOGRAM, &help);
            let bucket = format!("{name}_bucket");
            let mut all = 0u64;
            for (bound, count) in bounds.iter().zip(counts) {
                all = all.saturating_add(*count);
                text.sample(&bucket, &[("le", bound)], all);
            }
            all = all.saturating_add(counts.last().copied().unwrap_or_default());
            text.sample(&bucket, &[("le", &"+Inf")], all);
            text.sample(&format!("{name}_sum"), &[], sum);
            text.sample(&format!("{name}_count"), &[], all);
        }
    }
}
