//! Counts by kind.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Index;

use serde::{Deserialize, Serialize};

/// A quantity of a few kinds, each with its name in the figures.
pub(crate) trait Label: Copy + PartialEq + 'static {
    const ALL: &'static [(Self, &'static str)];
}

/// A count for each kind. The next master reads the counts by name, because it may know other kinds.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(from = "BTreeMap<String, u64>", into = "BTreeMap<&'static str, u64>")]
pub(crate) struct By<L: Label> {
    counts: Vec<u64>,
    kind: std::marker::PhantomData<L>,
}

impl<L: Label> Default for By<L> {
    fn default() -> By<L> {
        By {
            counts: vec![0; L::ALL.len()],
            kind: std::marker::PhantomData,
        }
    }
}

impl<L: Label> From<BTreeMap<String, u64>> for By<L> {
    fn from(named: BTreeMap<String, u64>) -> By<L> {
        let counts = L::ALL
            .iter()
            .map(|(_, name)| named.get(*name).copied().unwrap_or_default())
            .collect();
        By {
            counts,
            kind: std::marker::PhantomData,
        }
    }
}

impl<L: Label> From<By<L>> for BTreeMap<&'static str, u64> {
    fn from(counts: By<L>) -> BTreeMap<&'static str, u64> {
        counts.iter().collect()
    }
}

impl<L: Label> By<L> {
    pub(crate) fn add(&mut self, kind: L, n: u64) {
        let count = &mut self.counts[place(kind)];
        *count = count.saturating_add(n);
    }

    /// Adds all counts of another set.
    pub(crate) fn add_all(&mut self, other: &By<L>) {
        self.counts
            .iter_mut()
            .zip(&other.counts)
            .for_each(|(count, n)| *count = count.saturating_add(*n));
    }

    /// Returns the counts since `before`.
    pub(crate) fn since(&self, before: &By<L>) -> By<L> {
        let counts = self
            .counts
            .iter()
            .zip(&before.counts)
            .map(|(now, before)| now.saturating_sub(*before))
            .collect();
        By {
            counts,
            kind: std::marker::PhantomData,
        }
    }

    pub(crate) fn total(&self) -> u64 {
        self.counts
            .iter()
            .fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// Returns each kind's name with its count.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        L::ALL
            .iter()
            .map(|(_, name)| *name)
            .zip(self.counts.iter().copied())
    }
}

impl<L: Label> Index<L> for By<L> {
    type Output = u64;

    fn index(&self, kind: L) -> &u64 {
        &self.counts[place(kind)]
    }
}

/// Lists the kinds with a count above zero: `descriptors 3, store 1`.
impl<L: Label> fmt::Display for By<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (name, count)) in self.iter().filter(|(_, count)| *count > 0).enumerate() {
            write!(f, "{}{name} {count}", if index > 0 { ", " } else { "" })?;
        }
        Ok(())
    }
}

fn place<L: Label>(kind: L) -> usize {
    L::ALL
        .iter()
        .position(|(other, _)| *other == kind)
        .expect("every kind has a name")
}
