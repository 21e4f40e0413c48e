//! Chooses the clients that move after a start. Pure functions of how many clients the workers have.
//!
//! While no worker is ready, clients wait. The first one that is ready gets all of them, because a client that waits
//! for another worker would wait for longer. The other workers become ready some milliseconds later, or much later if
//! their app loads for long; then each gets its share.

use crate::proto::names::WorkerId;

/// The most moves at a time: the master does nothing else during them.
const MAX_MOVES: usize = 256;

/// Clients that move from one worker to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// The worker with the most clients.
    pub from: WorkerId,
    /// The worker with the fewest clients.
    pub to: WorkerId,
    /// The number of clients, at least 1.
    pub count: usize,
}

/// Returns the clients that move next, by the number of clients of each worker; `None` if there are none. Of `wanted`
/// workers some may not be ready: their shares stay where they are.
#[must_use]
pub fn next_share(workers: &[(WorkerId, usize)], wanted: usize) -> Option<Share> {
    let (from, most) = *workers.iter().max_by_key(|(_, clients)| *clients)?;
    let (to, least) = *workers.iter().min_by_key(|(_, clients)| *clients)?;
    let all: usize = workers.iter().map(|(_, clients)| clients).sum();
    let wanted = wanted.max(workers.len());
    let (low, high) = (all / wanted, all.div_ceil(wanted));
    let count = if least < low {
        (most - low).min(low - least)
    } else if workers.len() == wanted && most > high {
        (most - high).min(high - least)
    } else {
        return None;
    };
    let count = count.min(MAX_MOVES);
    Some(Share { from, to, count })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn workers(clients: &[usize]) -> Vec<(WorkerId, usize)> {
        (0..).map(WorkerId).zip(clients.iter().copied()).collect()
    }

    /// Moves clients until no more should move. Returns the number of moves.
    fn spread(workers: &mut [(WorkerId, usize)], wanted: usize) -> usize {
        let mut moved = 0;
        while let Some(Share { from, to, count }) = next_share(workers, wanted) {
            assert!((1..=MAX_MOVES).contains(&count));
            workers[from.0 as usize].1 -= count;
            workers[to.0 as usize].1 += count;
            moved += count;
        }
        moved
    }

    #[test]
    fn each_worker_gets_its_share_when_it_is_ready() {
        let mut all = workers(&[10]);
        for (expected, moves) in [
            (vec![10], 0),
            (vec![8, 2], 2),
            (vec![6, 2, 2], 2),
            (vec![3, 3, 2, 2], 3),
        ] {
            all.extend(
                workers(&[0; 4])
                    .get(all.len()..expected.len())
                    .unwrap_or(&[]),
            );
            assert_eq!(spread(&mut all, 4), moves);
            assert_eq!(all, workers(&expected));
        }
    }

    #[test]
    fn many_clients_move_in_parts() {
        let share = next_share(&workers(&[18_000, 0]), 2).expect("the second has none");
        assert_eq!(share.count, MAX_MOVES);
        assert_eq!(next_share(&[], 2), None);
    }

    proptest! {
        #[test]
        fn clients_are_even_after_hardly_more_moves_than_needed(
            clients in proptest::collection::vec(0..2_000_usize, 1..9),
        ) {
            let mut all = workers(&clients);
            let moved = spread(&mut all, clients.len());
            let mean = clients.iter().sum::<usize>() / clients.len();
            prop_assert!(all.iter().all(|(_, clients)| (mean..=mean + 1).contains(clients)), "{all:?}");
            let above = |bound: usize| clients.iter().map(|c| c.saturating_sub(bound)).sum::<usize>();
            let below = clients.iter().map(|c| mean.saturating_sub(*c)).sum::<usize>();
            let fewest = above(mean + 1).max(below);
            prop_assert!(moved <= fewest + clients.len(), "{} instead of {}", moved, fewest);
        }

        #[test]
        fn workers_that_are_not_ready_keep_their_shares_elsewhere(
            clients in 0..5_000_usize, ready in 1..8_usize,
        ) {
            let mut all = workers(&vec![0; ready]);
            all[0].1 = clients;
            spread(&mut all, 8);
            let share = clients / 8;
            prop_assert!(all[1..].iter().all(|(_, clients)| *clients == share), "{all:?}");
        }
    }
}
