//! The order in which targets are tried.

use super::super::options::random;
use super::answer::SrvRecord;

/// Returns a random number from 0 to this one, both included.
pub(super) fn up_to(last: u64) -> u64 {
    // The sum of the weights is below 2^32: there are fewer than 2^16 records, with weights below 2^16.
    (u64::from(random()) * last.saturating_add(1)) >> 32
}

/// Orders targets by their priority, lowest first, and those of a priority at random by their weight, as RFC 2782
/// describes: a target with a weight of 0 has only a small chance to be selected before others. `draw` returns a random
/// number from 0 to its argument.
pub(super) fn in_order<T>(
    mut targets: Vec<T>,
    record: impl Fn(&T) -> &SrvRecord,
    mut draw: impl FnMut(u64) -> u64,
) -> Vec<T> {
    // Those of the same weight have no order of their own: without a weight above 0, the first one is selected.
    for last in (1..targets.len()).rev() {
        let other = usize::try_from(draw(last as u64)).unwrap_or(last);
        targets.swap(last, other.min(last));
    }
    targets.sort_by_key(|target| (record(target).priority, record(target).weight > 0));
    let mut ordered = Vec::with_capacity(targets.len());
    while let Some(first) = targets.first() {
        let priority = record(first).priority;
        let same = targets
            .iter()
            .take_while(|target| record(target).priority == priority);
        let weights: Vec<u64> = same
            .map(|target| u64::from(record(target).weight))
            .collect();
        let drawn = draw(weights.iter().sum());
        let mut sum = 0;
        let selected = weights.iter().position(|weight| {
            sum += weight;
            sum >= drawn
        });
        ordered.push(targets.remove(selected.unwrap_or(0)));
    }
    ordered
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// A record of this priority and weight, with a port that is its number.
    fn records(of: &[(u16, u16)]) -> Vec<SrvRecord> {
        let of = of.iter().zip(0..);
        of.map(|(&(priority, weight), port)| SrvRecord {
            priority,
            weight,
            port,
            target: "a".to_owned(),
        })
        .collect()
    }

    fn ports(records: Vec<SrvRecord>, draw: impl FnMut(u64) -> u64) -> Vec<u16> {
        let ordered = in_order(records, |record| record, draw);
        ordered.iter().map(|record| record.port).collect()
    }

    /// Returns a reproducible sequence of random numbers up to a bound (splitmix64).
    fn random_of(mut seed: u64) -> impl FnMut(u64) -> u64 {
        move |last| {
            seed = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mixed = (seed ^ (seed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            (mixed ^ (mixed >> 31)) % (last + 1)
        }
    }

    #[test]
    fn a_lower_priority_always_comes_first() {
        let of = [(20, 9), (10, 0), (20, 0), (0, 1), (10, 65_535)];
        let mut random = random_of(1);
        for _ in 0..1000 {
            let ports = ports(records(&of), &mut random);
            assert_eq!(ports[0], 3);
            assert!(
                ports[1..3].contains(&1) && ports[1..3].contains(&4),
                "{ports:?}"
            );
            assert!(
                ports[3..].contains(&0) && ports[3..].contains(&2),
                "{ports:?}"
            );
        }
        assert_eq!(ports(Vec::new(), random), [0; 0]);
    }

    /// Counts how often each record is the first.
    fn first_of(of: &[(u16, u16)], draws: u32) -> BTreeMap<u16, f64> {
        let mut random = random_of(7);
        let mut firsts = BTreeMap::new();
        for _ in 0..draws {
            *firsts
                .entry(ports(records(of), &mut random)[0])
                .or_default() += 1.0;
        }
        firsts
    }

    #[test]
    fn the_first_target_is_drawn_by_its_weight() {
        let firsts = first_of(&[(1, 10), (1, 60), (1, 30)], 100_000);
        // With 0 included, the first in the list has one more of 101.
        for (port, expected) in [(0, 10_000.0), (1, 60_000.0), (2, 30_000.0)] {
            assert!((firsts[&port] - expected).abs() < 1_500.0, "{firsts:?}");
        }
        // Without weights, each as often as the others.
        let firsts = first_of(&[(1, 0); 4], 100_000);
        assert!(
            firsts.values().all(|n| (n - 25_000.0).abs() < 1_500.0),
            "{firsts:?}"
        );
        assert_eq!(firsts.len(), 4);
    }

    #[test]
    fn a_weight_of_0_is_drawn_rarely() {
        let firsts = first_of(&[(1, 99), (1, 0)], 100_000);
        // 1 of 100 draws is the number 0.
        assert!((firsts[&1] - 1_000.0).abs() < 300.0, "{firsts:?}");
        // Only the number 0 selects it.
        assert_eq!(ports(records(&[(1, 9), (1, 0)]), |_| 0)[0], 1);
        assert_eq!(ports(records(&[(1, 9), (1, 0)]), |last| last.min(1))[0], 0);
        assert_eq!(ports(records(&[(1, 9), (1, 0)]), |last| last)[0], 0);
    }

    #[test]
    fn a_random_number_is_up_to_its_bound() {
        assert_eq!(up_to(0), 0);
        let mut seen = [false; 3];
        for _ in 0..1000 {
            seen[up_to(2) as usize] = true;
        }
        assert_eq!(seen, [true; 3]);
        let most = 65_535 * 65_535;
        assert!((0..1000).all(|_| up_to(most) <= most));
    }
}
