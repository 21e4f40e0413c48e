//! Counters and histograms that a daemon's author declares.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use super::reply::Fault;
use crate::shm::own_metrics::{
    self, MAX_BOUNDS, MAX_HELP_LEN, MAX_NAME_LEN, MAX_OWN_METRICS, OwnMetricPart, OwnMetricWords,
    OwnValues,
};

/// The counters and histograms of a worker: [`WorkerInfo::metrics`](crate::WorkerInfo::metrics).
///
/// These metrics are part of `fdpassctl metrics` and of `/metrics`, with the prefix `fdpassd_app_`, as sums over all
/// workers that there ever were: they survive kill -9 of a worker, reloads, restarts and upgrades like the daemon's
/// own. They are declared when the state is made; a name that is declared again is the same metric.
///
/// ```no_run
/// use fdpassd::{Call, Counter, Daemon, Fault, Histogram, Method, WorkerInfo};
///
/// struct Shop {
///     orders: Counter,
///     prices: Histogram,
/// }
///
/// fn open(worker: &WorkerInfo) -> Result<Shop, Fault> {
///     let metrics = &worker.metrics;
///     Ok(Shop {
///         orders: metrics.counter("orders_total", "Orders that were placed.")?,
///         prices: metrics.histogram("order_price_euros", "Prices of orders.", &[1.0, 10.0, 100.0])?,
///     })
/// }
///
/// fn order(shop: &mut Shop, price: f64, _: &Call) -> Result<(), Fault> {
///     shop.orders.add(1);
///     shop.prices.observe(price);
///     Ok(())
/// }
///
/// fn main() -> std::process::ExitCode {
///     Daemon::new("shopd").state(open).method(Method::new("order", order)).run()
/// }
/// ```
#[derive(Clone)]
pub struct WorkerMetrics(Arc<Declared>);

struct Declared {
    /// None in a unit test, where nothing reads them. Mapped when the first metric is declared.
    part: Option<OwnMetricPart>,
    declaring: Mutex<()>,
}

/// A count that only grows. Copies count together, from any thread.
#[derive(Clone, Debug)]
pub struct Counter {
    metrics: WorkerMetrics,
    index: usize,
}

/// Observations by size. Copies count together, from any thread.
#[derive(Clone, Debug)]
pub struct Histogram {
    metrics: WorkerMetrics,
    index: usize,
    bounds: Arc<[f64]>,
}

/// Why a metric cannot be declared, in one sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetricError(String);

impl WorkerMetrics {
    pub(crate) fn new(part: Option<OwnMetricPart>) -> WorkerMetrics {
        WorkerMetrics(Arc::new(Declared {
            part,
            declaring: Mutex::new(()),
        }))
    }

    /// Declares a counter. Its name follows Prometheus' rules, `[a-zA-Z_][a-zA-Z0-9_]{0,63}`, and ends in `_total`; the
    /// help is one sentence of up to 128 bytes.
    ///
    /// # Errors
    /// A name or help that is not valid, a name that is declared as a histogram, more than 64 metrics, and shared memory
    /// that cannot be mapped.
    pub fn counter(&self, name: &str, help: &str) -> Result<Counter, MetricError> {
        if !name.ends_with("_total") {
            return fail(format!(
                "the name of counter {name:?} does not end in _total"
            ));
        }
        let index = self.declare(name, help, None)?;
        let metrics = self.clone();
        Ok(Counter { metrics, index })
    }

    /// Declares a histogram, with the upper bounds of its buckets: 1 to 16, ascending. A last bucket without a bound is
    /// added. The name must not end as the samples of a metric do: `_total`, `_bucket`, `_sum`, `_count`.
    ///
    /// # Errors
    /// As [`WorkerMetrics::counter`], bounds that are not valid, and a name that is declared with other bounds.
    pub fn histogram(
        &self,
        name: &str,
        help: &str,
        bounds: &[f64],
    ) -> Result<Histogram, MetricError> {
        let reserved = ["_total", "_bucket", "_sum", "_count"];
        if let Some(end) = reserved.iter().find(|end| name.ends_with(*end)) {
            return fail(format!(
                "the name of histogram {name:?} must not end in {end}"
            ));
        }
        if !own_metrics::are_bounds(bounds) {
            return fail(format!(
                "histogram {name:?} needs 1 to {MAX_BOUNDS} bounds in ascending order"
            ));
        }
        Ok(Histogram {
            index: self.declare(name, help, Some(bounds))?,
            metrics: self.clone(),
            bounds: bounds.into(),
        })
    }

    /// Returns the words of the metrics that are declared.
    fn words(&self) -> Option<&OwnMetricWords> {
        self.0.part.as_ref()?.mapped()
    }

    fn declare(
        &self,
        name: &str,
        help: &str,
        bounds: Option<&[f64]>,
    ) -> Result<usize, MetricError> {
        if !own_metrics::is_metric_name(name) {
            return fail(format!(
                "{name:?} is not a valid name for a metric: [a-zA-Z_][a-zA-Z0-9_]{{0,{}}}",
                MAX_NAME_LEN - 1
            ));
        }
        if help.len() > MAX_HELP_LEN || help.contains(|c: char| c.is_control()) {
            return fail(format!(
                "the help of metric {name:?} must be one line of at most {MAX_HELP_LEN} bytes"
            ));
        }
        let Some(part) = &self.0.part else {
            return Ok(0);
        };
        let words = part.map().map_err(|e| {
            MetricError(format!(
                "metric {name:?}: cannot map the shared memory: {e}"
            ))
        })?;
        let declaring = self.0.declaring.lock();
        let _declaring = declaring.unwrap_or_else(PoisonError::into_inner);
        let is_same = |values: &OwnValues| match (values, bounds) {
            (OwnValues::Counter(_), None) => true,
            (OwnValues::Histogram { bounds: known, .. }, Some(bounds)) => known == bounds,
            _ => false,
        };
        match words.find(name) {
            Some((index, values)) if is_same(&values) => Ok(index),
            Some(_) => fail(format!(
                "metric {name:?} is declared twice, as another kind or with other bounds"
            )),
            None => words.declare(name, help, bounds).ok_or_else(|| {
                let message = format!("there are more than {MAX_OWN_METRICS} metrics: {name:?}");
                MetricError(message)
            }),
        }
    }
}

fn fail<T>(message: String) -> Result<T, MetricError> {
    Err(MetricError(message))
}

impl Counter {
    /// Adds to the count.
    pub fn add(&self, n: u64) {
        if let Some(words) = self.metrics.words() {
            words.add(self.index, n);
        }
    }
}

impl Histogram {
    /// Adds an observation. NaN and infinities are ignored.
    pub fn observe(&self, value: f64) {
        if let Some(words) = self.metrics.words()
            && value.is_finite()
        {
            let bucket = self.bounds.partition_point(|bound| *bound < value);
            let bucket = bucket.min(self.bounds.len());
            words.observe(self.index, bucket, value);
        }
    }
}

impl fmt::Debug for WorkerMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WorkerMetrics")
    }
}

impl fmt::Display for MetricError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for MetricError {}

impl From<MetricError> for Fault {
    fn from(error: MetricError) -> Fault {
        Fault::new("internal", error.0)
    }
}

impl From<MetricError> for io::Error {
    fn from(error: MetricError) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidInput, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shm::{Layout, MasterShm};

    #[test]
    fn a_metric_that_is_not_valid_is_one_sentence() {
        let metrics = WorkerMetrics::new(None);
        let message = |error: MetricError| error.to_string();
        for (name, help, words) in [
            ("", "", "does not end in _total"),
            ("orders", "", "does not end in _total"),
            (
                "0_total",
                "",
                "\"0_total\" is not a valid name for a metric",
            ),
            ("ordérs_total", "", "is not a valid name"),
            ("a_total", "a\nb", "must be one line of at most 128 bytes"),
        ] {
            let error = metrics.counter(name, help).map_err(message);
            let error = error.expect_err(name);
            assert!(error.contains(words), "{error}");
        }
        for (name, bounds, words) in [
            ("x_count", &[1.0][..], "must not end in _count"),
            ("x", &[], "1 to 16 bounds"),
            ("x", &[2.0, 1.0], "in ascending order"),
            ("x", &[f64::INFINITY], "in ascending order"),
            ("x", &[0.0; 17], "1 to 16 bounds"),
        ] {
            let error = metrics.histogram(name, "", bounds).map_err(message);
            let error = error.expect_err(name);
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn a_name_that_is_declared_again_is_the_same_metric() {
        let layout = Layout::new(1, 64);
        let master = MasterShm::new(layout).expect("memfd");
        let file = master.file().try_clone().expect("dup");
        let metrics = WorkerMetrics::new(Some(OwnMetricPart::new(file.into(), layout)));
        for _ in 0..3 {
            metrics.counter("a_total", "A.").expect("valid").add(1);
        }
        let histogram = metrics.histogram("b", "B.", &[1.0, 2.0]).expect("valid");
        for value in [0.5, 1.0, 1.5, 2.5, f64::NAN] {
            histogram.observe(value);
        }
        metrics
            .histogram("b", "B.", &[1.0])
            .expect_err("other bounds");
        let metrics = master.own_metrics().into_iter();
        let values: Vec<_> = metrics.map(|metric| metric.values).collect();
        let expected = OwnValues::Histogram {
            bounds: vec![1.0, 2.0],
            counts: vec![2, 1, 1],
            sum: 5.5,
        };
        assert_eq!(values, [OwnValues::Counter(3), expected]);
    }
}
