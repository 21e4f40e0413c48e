//! A broken worker, which writes anything into the shared memory.

use super::*;

/// A value that a broken worker writes into a word.
#[derive(Clone, Debug)]
enum Scribble {
    Anything(u64),
    /// A lease word with this state: of the generation that it should have, or of this one.
    Lease(u8, Option<u32>),
    Small(u16),
    /// A high and a low half.
    Halves(u16, u16),
}

/// Returns words of the shared memory, as offsets from its beginning; most of them are words of slots.
fn scribbles() -> impl Strategy<Value = Vec<(u64, Scribble)>> {
    let word = prop_oneof![1 => 0..2048u64, 6 => 2048..WORDS / 8, 4 => (0..u64::from(SLOTS)).prop_map(|slot| 2048 + slot * 16)];
    let scribble = prop_oneof![
        2 => any::<u64>().prop_map(Scribble::Anything),
        4 => (0..9u8, proptest::option::weighted(0.2, any::<u32>())).prop_map(|(state, other)| Scribble::Lease(state, other)),
        2 => any::<u16>().prop_map(Scribble::Small),
        2 => any::<(u16, u16)>().prop_map(|(high, low)| Scribble::Halves(high, low)),
    ];
    vec((word, scribble), 0..60)
}

fn scribble(leases: &Leases, shm: &MasterShm, scribbles: &[(u64, Scribble)]) {
    for (word, scribble) in scribbles {
        let slot = u32::try_from(word.saturating_sub(2048) / 16).expect("there are few");
        let own = match leases.entries.get(slot) {
            Some(LeaseEntry::Leased(leased)) => leased.lease_number,
            Some(LeaseEntry::Revoked) | None => 0,
        };
        let value = match *scribble {
            Scribble::Anything(value) => value,
            Scribble::Lease(state, other) => {
                u64::from(other.unwrap_or(own)) << 8 | u64::from(state)
            }
            Scribble::Small(value) => value.into(),
            Scribble::Halves(high, low) => u64::from(high) << 32 | u64::from(low),
        };
        shm.file()
            .write_all_at(&value.to_ne_bytes(), word * 8)
            .expect("the shared memory is that long");
    }
}

proptest! {
    #![proptest_config(few())]

    /// The clients' state is unpredictable then, but all clients are there, and nothing outside the shared memory is
    /// read.
    #[test]
    fn corrupt_shared_memory_loses_no_client_and_does_not_panic(
        acts in vec(act(), 0..60),
        nonsense in vec((scribbles(), any::<Index>(), 0..9u8), 1..8),
        written in any::<Option<(u64, u64)>>(),
        is_timed_out: bool,
    ) {
        let mut world = World::new();
        acts.iter().for_each(|act| world.act(act));
        world.flush();
        let mut back: Vec<Recovered> = mem::take(&mut world.unleased).into_iter().map(Ok).collect();
        let mut ended: Vec<ClientId> = world.over.iter().copied().collect();
        let World { shm, leases, lives, .. } = &mut world;
        let clock = 5_000_000_000;
        for (scribbles, slot, what) in &nonsense {
            scribble(leases, shm, scribbles);
            let slot = slot.index(SLOTS as usize + 1) as u32;
            let report = match what {
                0 => leases.closed(slot, shm),
                1 | 2 => leases.released(slot, shm),
                3 => {
                    back.extend(leases.revoke_all(shm));
                    SlotReport::AlreadyRevoked
                }
                4 | 5 => {
                    back.extend(leases.revoke(slot, shm));
                    SlotReport::AlreadyRevoked
                }
                6 => {
                    leases.begin_request_count(shm);
                    let _ = (leases.counted_requests(shm), leases.in_turn(slot, shm));
                    let header = shm.header();
                    let _ = (header.busy(clock), header.recent(clock), header.turn(), header.executing());
                    SlotReport::AlreadyRevoked
                }
                _ => {
                    // One client is leased again, and perhaps revoked.
                    let next = back.iter().position(|recovered| recovered.is_ok() && leases.has_free_slot());
                    if let Some(Ok(unleased)) = next.map(|next| back.swap_remove(next)) {
                        back.extend(leases.grant(unleased, shm).err().map(Err));
                    }
                    if let Some(batch) = leases.next_batch().filter(|_| *what == 7) {
                        shm.file().write_all_at(&[0xee; 8], 2048 * 8).expect("the shared memory is that long");
                        back.extend(leases.withdraw(batch, shm));
                    }
                    SlotReport::AlreadyRevoked
                }
            };
            match report {
                SlotReport::AlreadyRevoked | SlotReport::Contradiction => {}
                SlotReport::Ended(client, _) => ended.push(client.id),
                SlotReport::GivenUp(recovered) => back.push(recovered),
            }
            assert_eq!(leases.clients(), leases.iter().count());
        }
        let leases = mem::replace(leases, Leases::new(SLOTS));
        let DeadWorkerClients { recovered, ended: also_ended, lost, .. } = leases.recover_clients(shm, written.map(|(bytes, calls)| Writes { bytes, calls }), is_timed_out);
        back.extend(recovered.into_iter().map(|(unleased, _)| Ok(unleased)));
        back.extend(lost.into_iter().map(Err));
        ended.extend(also_ended.iter().map(|(client, _)| client.id));

        let longest = Layout::new(SLOTS, 4096).max_reply().max(256 * 1024) + 64 * 1024;
        let (next, _) = shms();
        for recovered in back {
            match recovered {
                Err((_, client)) => ended.push(client.id),
                Ok(unleased) => {
                    let ClientBytes { unread, unsent, .. } = &unleased.bytes;
                    assert!(unread.len() <= longest && unsent.len() <= longest);
                    ended.push(unleased.client.id);
                    Leases::new(SLOTS).grant(unleased, &next).expect("what one shared memory held fits into another");
                }
            }
        }
        ended.sort_unstable_by_key(|id| id.0);
        prop_assert_eq!(ended, lives.keys().copied().collect::<Vec<_>>());
    }
}
