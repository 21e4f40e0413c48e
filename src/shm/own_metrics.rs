//! The counters and histograms of a daemon's own, in the last part of shared memory.
//!
//! The part describes itself, so that a master counts them without a message: after a kill -9, in the shared memory of
//! an earlier master, and for programs that declare them at run time.
//!
//! ```text
//! word  0        the number of metrics
//!      64        metrics, of 64 words each
//!
//! metric  0      1 a counter, 2 a histogram
//!         1      name, of up to 64 bytes; then zeros        9   help, of up to 128 bytes; then zeros
//!        25      the number of upper bounds of buckets     26   up to 16 of them, ascending: bits of f64
//!        42      the counter, or requests in each bucket; the last one, after the bounds, has no bound
//!        59      sum of all observations: bits of f64
//! ```
//!
//! The number is stored last. Values change by one atomic addition each, from any thread.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use serde::{Deserialize, Serialize};

pub use crate::proto::own_metrics::{
    MAX_BOUNDS, MAX_HELP_LEN, MAX_NAME_LEN, MAX_OWN_METRICS, are_bounds, is_metric_name,
};

use super::layout::{AREA_WORDS, METRIC_WORDS};
use super::{Layout, MasterShm};
use crate::sys::memory::Words;

const NAME: usize = 1;
const HELP: usize = 9;
const BOUND_COUNT: usize = 25;
const BOUNDS: usize = 26;
const VALUES: usize = 42;
const SUM: usize = 59;

const COUNTER: u64 = 1;
const HISTOGRAM: u64 = 2;

/// A metric with its values.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OwnMetric {
    /// The name, without a prefix.
    pub name: String,
    /// One sentence for people.
    pub help: String,
    /// The values.
    pub values: OwnValues,
}

/// The values of a metric.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OwnValues {
    /// A count.
    Counter(u64),
    /// Observations by size.
    Histogram {
        /// Upper bounds of the buckets, ascending.
        #[serde(with = "bits")]
        bounds: Vec<f64>,
        /// Observations in each bucket, and in the last one without a bound.
        counts: Vec<u64>,
        /// All observations together.
        sum: f64,
    },
}

/// For `with`: numbers by their bits. JSON may change the last one, and other bounds would be another histogram.
mod bits {
    use super::{Deserialize, Serialize};
    use serde::{Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(numbers: &[f64], to: S) -> Result<S::Ok, S::Error> {
        let bits: Vec<u64> = numbers.iter().map(|number| number.to_bits()).collect();
        bits.serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<f64>, D::Error> {
        let bits = Vec::<u64>::deserialize(from)?;
        Ok(bits.into_iter().map(f64::from_bits).collect())
    }
}

impl OwnValues {
    /// Adds the values of the same metric in another worker. Returns whether they are of the same kind, with the same
    /// buckets; otherwise nothing changes.
    pub fn add(&mut self, other: &OwnValues) -> bool {
        match (self, other) {
            (OwnValues::Counter(count), OwnValues::Counter(more)) => {
                *count = count.saturating_add(*more);
                true
            }
            (
                OwnValues::Histogram {
                    bounds,
                    counts,
                    sum,
                },
                OwnValues::Histogram {
                    bounds: same,
                    counts: more,
                    sum: further,
                },
            ) if bounds == same && counts.len() == more.len() => {
                for (count, more) in counts.iter_mut().zip(more) {
                    *count = count.saturating_add(*more);
                }
                *sum = finite(*sum + *further);
                true
            }
            _ => false,
        }
    }
}

fn finite(value: f64) -> f64 {
    match value.is_finite() {
        true => value,
        false => 0.0,
    }
}

/// The worker's side, before a metric is declared: most daemons have no metrics of their own, and a worker that maps
/// nothing for them starts and ends faster.
#[derive(Debug)]
pub struct OwnMetricPart {
    file: Arc<File>,
    layout: Layout,
    words: OnceLock<OwnMetricWords>,
}

impl OwnMetricPart {
    /// Returns the part of the shared memory in `file`, which is not mapped yet.
    #[must_use]
    pub fn new(file: Arc<File>, layout: Layout) -> OwnMetricPart {
        OwnMetricPart {
            file,
            layout,
            words: OnceLock::new(),
        }
    }

    /// Returns the words, and maps them if that was not done before.
    ///
    /// # Errors
    /// Those of mmap(2).
    pub fn map(&self) -> io::Result<&OwnMetricWords> {
        if let Some(words) = self.words.get() {
            return Ok(words);
        }
        // If another thread does the same, one of the mappings is dropped.
        let words = OwnMetricWords::map(&self.file, self.layout)?;
        Ok(self.words.get_or_init(|| words))
    }

    /// Returns the words if they are mapped: a metric has been declared then.
    #[must_use]
    pub fn mapped(&self) -> Option<&OwnMetricWords> {
        self.words.get()
    }
}

/// The mapped part, in which a worker declares metrics and changes their values.
#[derive(Debug)]
pub struct OwnMetricWords(Words);

impl OwnMetricWords {
    /// Maps the part of the shared memory in `file`.
    ///
    /// # Errors
    /// Those of mmap(2).
    pub fn map(file: &File, layout: Layout) -> io::Result<OwnMetricWords> {
        Words::map_at(file, layout.own_metrics_at(), AREA_WORDS).map(OwnMetricWords)
    }

    /// Returns the index of the metric of this name, with its kind and bounds.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<(usize, OwnValues)> {
        (0..self.len()).find_map(|index| {
            let metric = read_metric(|word| self.word(index, word).load(Ordering::Relaxed))?;
            (metric.name == name).then_some((index, metric.values))
        })
    }

    /// Adds a metric and returns its index; `None` if there are too many. Only one thread may do so at a time. The
    /// caller has checked the lengths.
    #[must_use]
    pub fn declare(&self, name: &str, help: &str, bounds: Option<&[f64]>) -> Option<usize> {
        let index = self.len();
        if index == MAX_OWN_METRICS {
            return None;
        }
        let set = |word: usize, value: u64| self.word(index, word).store(value, Ordering::Relaxed);
        for (from, text) in [(NAME, name), (HELP, help)] {
            for (word, bytes) in text.as_bytes().chunks(8).enumerate() {
                let mut padded = [0; 8];
                padded[..bytes.len()].copy_from_slice(bytes);
                set(from + word, u64::from_le_bytes(padded));
            }
        }
        let list = bounds.unwrap_or_default();
        set(BOUND_COUNT, list.len() as u64);
        for (word, bound) in list.iter().enumerate() {
            set(BOUNDS + word, bound.to_bits());
        }
        set(0, bounds.map_or(COUNTER, |_| HISTOGRAM));
        self.0[0].store(index as u64 + 1, Ordering::Release);
        Some(index)
    }

    /// Adds to a counter.
    pub fn add(&self, index: usize, n: u64) {
        self.word(index, VALUES).fetch_add(n, Ordering::Relaxed);
    }

    /// Adds an observation to a histogram: first to its bucket, then to the sum.
    pub fn observe(&self, index: usize, bucket: usize, value: f64) {
        let count = self.word(index, VALUES + bucket.min(MAX_BOUNDS));
        count.fetch_add(1, Ordering::Relaxed);
        let add = |bits: u64| Some((f64::from_bits(bits) + value).to_bits());
        let sum = self.word(index, SUM);
        let _ = sum.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }

    fn len(&self) -> usize {
        let count = self.0[0].load(Ordering::Acquire);
        usize::try_from(count).map_or(MAX_OWN_METRICS, |count| count.min(MAX_OWN_METRICS))
    }

    fn word(&self, index: usize, word: usize) -> &AtomicU64 {
        &self.0[(1 + index) * METRIC_WORDS + word]
    }
}

impl MasterShm {
    /// Returns the worker's own metrics, as they are now. Entries that make no sense are left out: a broken worker may
    /// write anything. They are read through the file, because a mapping would allocate pages that no worker uses.
    #[must_use]
    pub fn own_metrics(&self) -> Vec<OwnMetric> {
        if !self.layout.has_own_metrics() {
            return Vec::new();
        }
        let at = self.layout.own_metrics_at();
        let read = |offset: usize, bytes: &mut [u8]| {
            let read = self.file.read_exact_at(bytes, at + offset as u64);
            read.is_ok()
        };
        let mut count = [0; 8];
        if !read(0, &mut count) {
            return Vec::new();
        }
        let count = usize::try_from(u64::from_le_bytes(count)).unwrap_or(MAX_OWN_METRICS);
        let mut bytes = vec![0; count.min(MAX_OWN_METRICS) * METRIC_WORDS * 8];
        if bytes.is_empty() || !read(METRIC_WORDS * 8, &mut bytes) {
            return Vec::new();
        }
        let words = bytes.as_chunks::<8>().0;
        let metrics = words.chunks(METRIC_WORDS);
        metrics
            .filter_map(|metric| read_metric(|word| u64::from_le_bytes(metric[word])))
            .collect()
    }
}

/// Reads a metric by its words.
fn read_metric(word: impl Fn(usize) -> u64) -> Option<OwnMetric> {
    let text = |from: usize, length: usize| -> Option<String> {
        let words = (from..from + length / 8).map(&word);
        let bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
        let end = bytes.iter().position(|byte| *byte == 0);
        let text = &bytes[..end.unwrap_or(bytes.len())];
        Some(std::str::from_utf8(text).ok()?.to_owned())
    };
    let name = text(NAME, MAX_NAME_LEN).filter(|name| is_metric_name(name))?;
    let help = text(HELP, MAX_HELP_LEN)?;
    let values = match word(0) {
        COUNTER => OwnValues::Counter(word(VALUES)),
        HISTOGRAM => {
            let count = usize::try_from(word(BOUND_COUNT)).ok()?;
            let bounds = BOUNDS..BOUNDS + count.min(MAX_BOUNDS);
            let bounds: Vec<f64> = bounds.map(|at| f64::from_bits(word(at))).collect();
            if !are_bounds(&bounds) {
                return None;
            }
            OwnValues::Histogram {
                counts: (0..=bounds.len()).map(|at| word(VALUES + at)).collect(),
                bounds,
                sum: finite(f64::from_bits(word(SUM))),
            }
        }
        _ => return None,
    };
    Some(OwnMetric { name, help, values })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shm() -> (MasterShm, OwnMetricWords) {
        let layout = Layout::new(2, 1 << 16);
        let master = MasterShm::new(layout).expect("memfd");
        let words = OwnMetricWords::map(master.file(), layout).expect("mmap");
        (master, words)
    }

    #[test]
    fn the_master_reads_what_a_worker_counts() {
        let (master, words) = shm();
        assert_eq!(master.own_metrics(), []);
        let orders = words.declare("orders_total", "Orders.", None);
        let sizes = words.declare(&"s".repeat(64), &"h".repeat(128), Some(&[1.0, 2.5]));
        assert_eq!((orders, sizes), (Some(0), Some(1)));
        words.add(0, 3);
        words.add(0, 4);
        for (bucket, value) in [(0, 1.0), (2, 100.0), (2, 3.0)] {
            words.observe(1, bucket, value);
        }
        let counter = OwnMetric {
            name: "orders_total".to_owned(),
            help: "Orders.".to_owned(),
            values: OwnValues::Counter(7),
        };
        let histogram = OwnMetric {
            name: "s".repeat(64),
            help: "h".repeat(128),
            values: OwnValues::Histogram {
                bounds: vec![1.0, 2.5],
                counts: vec![1, 0, 2],
                sum: 104.0,
            },
        };
        assert_eq!(master.own_metrics(), [counter, histogram]);
        assert_eq!(words.find("orders_total").map(|(index, _)| index), Some(0));
        for index in 2..MAX_OWN_METRICS {
            let name = format!("m{index}");
            assert_eq!(words.declare(&name, "", None), Some(index));
        }
        assert_eq!(words.declare("more", "", None), None);
        assert_eq!(master.own_metrics().len(), MAX_OWN_METRICS);
    }

    proptest! {
        #[test]
        fn random_words_do_no_harm(
            count in any::<u64>(),
            changes in proptest::collection::vec((0..AREA_WORDS, any::<u64>()), 0..40),
        ) {
            let (master, words) = shm();
            for index in 0..4 {
                let _ = words.declare(&format!("m{index}"), "x", Some(&[1.0]));
            }
            for (at, value) in changes {
                words.0[at].store(value, Ordering::Relaxed);
            }
            words.0[0].store(count, Ordering::Relaxed);
            for metric in master.own_metrics() {
                prop_assert!(is_metric_name(&metric.name));
                let json = serde_json::to_string(&metric).expect("JSON");
                let read: OwnMetric = serde_json::from_str(&json).expect("the same");
                let mut values = metric.values;
                prop_assert!(values.add(&read.values), "{json}");
            }
            let _ = words.find("m1");
        }
    }
}
