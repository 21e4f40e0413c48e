//! Memory for the bytes of clients, if the daemon's cgroup or one above it has a limit.
//!
//! The bytes of clients are in memory that workers share with the master, so they outlive a worker that the kernel
//! kills because memory is out, and its death frees hardly any memory. So the daemon itself must give up bytes: with
//! `buffers = "auto"` workers do so before the limit is reached. If the kernel has killed a worker nevertheless, the
//! oldest unfinished frames that it left are dropped here, down to three quarters of the limit.

use super::clients::client::Unleased;
use crate::config::Limits;
use crate::master::clients::Clients;
use crate::proto::text::Counted;
use crate::sys::cgroup::{MemoryLimit, memory_limits};

/// Most bytes with `buffers = "auto"`.
const MAX_AUTO: u64 = 256 << 20;

/// Bytes that no client must give up: less would not help.
const FREE: usize = 4096;

/// The tightest limit of memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Memory {
    pub(super) limit: u64,
    /// The memory left, with the parked bytes counted as free.
    room: u64,
}

impl Memory {
    /// Reads the limits; `parked` is the bytes that all workers have parked. `None` without a limit.
    pub(super) fn read(parked: u64) -> Option<Memory> {
        tightest(&memory_limits(), parked)
    }
}

fn tightest(limits: &[MemoryLimit], parked: u64) -> Option<Memory> {
    let room = |limit: &MemoryLimit| {
        limit
            .limit
            .saturating_sub(limit.used.saturating_sub(parked))
    };
    limits
        .iter()
        .map(|limit| Memory {
            limit: limit.limit,
            room: room(limit),
        })
        .min_by_key(|memory| memory.room)
}

/// Returns the bytes of its clients that each of this many workers may keep.
pub(super) fn buffers(limits: &Limits, memory: Option<Memory>, workers: usize) -> u64 {
    let auto = || {
        let each = memory.map_or(MAX_AUTO, |memory| memory.room / 2 / (workers as u64).max(1));
        // Whole MiB, for people.
        (each >> 20 << 20).min(MAX_AUTO).max(limits.least_buffers())
    };
    limits.buffers.unwrap_or_else(auto)
}

/// Warns if workers may keep more bytes than the limit permits.
pub(super) fn warn_if_short(limits: &Limits, memory: Option<Memory>, workers: usize) {
    let Some(memory) = memory else { return };
    let all = buffers(limits, Some(memory), workers).saturating_mul(workers as u64);
    if all > memory.limit {
        log::warn!(
            "{} may buffer {} MiB of clients' bytes, but the cgroup allows only {} MiB of memory: the kernel \
             will kill workers",
            Counted(workers, "worker"),
            all >> 20,
            memory.limit >> 20
        );
    }
}

/// Returns the bytes above three quarters of a limit.
fn excess(limits: &[MemoryLimit]) -> u64 {
    limits
        .iter()
        .map(|MemoryLimit { limit, used }| used.saturating_sub(limit / 4 * 3))
        .max()
        .unwrap_or(0)
}

/// Drops the unread bytes of those clients without a worker whose frames have been unfinished for longest, until there
/// is memory again: the kernel has killed a worker because it was out. These clients are closed after a reply
/// `overloaded`. Returns their number.
pub(super) fn relieve(clients: &mut Clients) -> usize {
    drop_oldest(clients.unleased.iter_mut(), excess(&memory_limits()))
}

fn drop_oldest<'a>(clients: impl Iterator<Item = &'a mut Unleased>, excess: u64) -> usize {
    // A request that was executing gets its own reply.
    let is_unfinished = |client: &&mut Unleased| {
        let flags = client.flags;
        client.bytes.unread.len() > FREE
            && !flags.closing
            && !flags.timed_out
            && flags.crash_count == 0
    };
    let mut unfinished: Vec<&mut Unleased> = clients.filter(is_unfinished).collect();
    unfinished.sort_by_key(|client| client.times.0);
    let (mut dropped, mut count) = (0, 0);
    for client in unfinished {
        if dropped >= excess {
            break;
        }
        // It has these bytes.
        client.place = None;
        let unread = std::mem::take(&mut client.bytes.unread);
        client.bytes.in_base = client.bytes.in_base.saturating_add(unread.len() as u64);
        client.flags.overloaded = true;
        (dropped, count) = (dropped + unread.len() as u64, count + 1);
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::master::clients::client::Client;
    use crate::shm::{ClientBytes, Flags};

    const MIB: u64 = 1 << 20;

    #[test]
    fn automatic_buffers_are_half_of_the_memory_left() {
        let limits = Limits::default();
        let at = |limits: &[(u64, u64)], parked: u64| {
            let limits: Vec<_> = limits
                .iter()
                .map(|(limit, used)| MemoryLimit {
                    limit: limit * MIB,
                    used: used * MIB,
                })
                .collect();
            tightest(&limits, parked * MIB)
        };
        let auto = |memory, workers| buffers(&limits, memory, workers) / MIB;
        assert_eq!((auto(None, 1), auto(None, 200)), (256, 256));
        assert_eq!(auto(at(&[(4096, 0)], 0), 4), 256);
        assert_eq!(auto(at(&[(520, 20), (1000, 900)], 0), 2), 25);
        assert_eq!(
            auto(at(&[(520, 120)], 100), 5),
            50,
            "what is parked is not in its own way"
        );
        assert_eq!(buffers(&limits, at(&[(100, 0)], 0), 3), 16 * MIB);
        assert_eq!(auto(at(&[(100, 300)], 0), 5), 4, "four frames at least");
        let given = Limits {
            buffers: Some(7 * MIB),
            ..Limits::default()
        };
        assert_eq!(buffers(&given, at(&[(1, 1)], 0), 9), 7 * MIB);
        let long = Limits {
            max_frame: 100 << 20,
            ..Limits::default()
        };
        assert_eq!(buffers(&long, None, 1), 400 * MIB);
    }

    #[test]
    fn the_oldest_unfinished_frames_are_dropped_first() {
        let limit = |limit, used| MemoryLimit { limit, used };
        assert_eq!(
            excess(&[limit(1000, 750), limit(4000, 3100), limit(400, 350)]),
            100
        );
        assert_eq!(excess(&[]), 0);
        let client = |since: u64, unread: usize, flags: Flags| {
            let bytes = ClientBytes {
                in_base: 7,
                unread: vec![0; unread].into(),
                ..ClientBytes::default()
            };
            Unleased {
                flags,
                times: (since, 0),
                bytes,
                ..Unleased::new(Client::on_null(since), 0)
            }
        };
        let spared = [
            Flags {
                closing: true,
                ..Flags::default()
            },
            Flags {
                timed_out: true,
                ..Flags::default()
            },
            Flags {
                crash_count: 1,
                ..Flags::default()
            },
        ];
        let mut clients: Vec<Unleased> = (1..9)
            .rev()
            .map(|since| client(since, 5000, Flags::default()))
            .collect();
        clients.extend(spared.map(|flags| client(0, 5000, flags)));
        clients.push(client(0, FREE, Flags::default()));
        assert_eq!(drop_oldest(clients.iter_mut(), 0), 0);
        assert_eq!(drop_oldest(clients.iter_mut(), 10_001), 3);
        let gone: Vec<u64> = clients
            .iter()
            .filter(|c| c.flags.overloaded)
            .map(|c| c.client.id.0)
            .collect();
        assert_eq!(gone, [3, 2, 1]);
        for client in &clients {
            let (in_base, length) = (client.bytes.in_base, client.bytes.unread.len());
            assert_eq!(
                (in_base == 5007, length == 0),
                (client.flags.overloaded, client.flags.overloaded)
            );
        }
        assert_eq!(drop_oldest(clients.iter_mut(), u64::MAX), 5);
    }
}
