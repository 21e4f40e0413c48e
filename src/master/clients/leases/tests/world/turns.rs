//! The turns of the worker.

use super::*;

/// A write of replies to a client.
struct ReplyWrite<'a> {
    slot: u32,
    out_base: u64,
    replies: &'a [u8],
}

impl ReplyWrite<'_> {
    /// Writes between the two stores of the header. Returns the number of bytes that the client's socket accepted;
    /// `None` if the worker dies before the second store.
    fn run(
        self,
        header: Header<'_>,
        socket: &mut File,
        life: &mut Life,
        sum: &mut Writes,
        dies: impl FnOnce() -> bool,
    ) -> Option<u64> {
        header.begin_write(self.slot, self.out_base, Some(*sum));
        let sent = match self.replies {
            [] => 0,
            replies => moved(socket.write(replies)),
        };
        (*sum, life.written) = (and_a_call_of(sent, *sum), life.written + sent);
        if dies() {
            return None;
        }
        header.complete_write(sent);
        // A line of the log, for example.
        *sum = and_a_call_of(77, *sum);
        Some(sent)
    }
}

impl World {
    /// Does what `worker/turn.rs` does, with meaningless frames.
    pub(super) fn turn(&mut self, slot: u32, plan: &Plan) {
        let Held {
            id,
            lease_number,
            socket,
            is_unix,
        } = self.held.get_mut(&slot).expect("it is held");
        let (life, lease_number, is_unix) = (
            self.lives.get_mut(id).expect("there"),
            *lease_number,
            *is_unix,
        );
        let shared_slot = self.worker.slot(slot).expect("it is held");
        let lease = shared_slot.lease();
        if lease.is_some_and(|lease| lease.state == LeaseState::Away) {
            return;
        }
        let Some(found) = shared_slot.claim(lease_number) else {
            return self.keep(slot);
        };
        let dying = &mut self.dying;
        let mut dies = |point| {
            let dies = plan.dies_at == Some(point);
            if dies {
                *dying = Some((slot, point == Point::Method));
            }
            dies
        };
        if dies(Point::Claim) {
            return;
        }
        let (cursors, mut flags) = (shared_slot.cursors(), shared_slot.flags());
        let is_parked = found == Claim::Parked;
        if is_parked && cursors.replied > 0 {
            let open = self.worker.open(slot, Region::Shared, cursors.tx.0);
            let count = cursors.replied.min(plan.write.into()) as usize;
            let replies = &open.tx[cursors.tx.1 as usize..][..count];
            let write = ReplyWrite {
                slot,
                out_base: cursors.out_base,
                replies,
            };
            let Some(sent) = write.run(open.header, socket, life, &mut self.sum, || {
                dies(Point::Write)
            }) else {
                return;
            };
            let (out_base, sent) = (cursors.out_base + sent, sent as u32);
            let kept = Cursors {
                out_base,
                replied: cursors.replied - sent,
                tx: (cursors.tx.0, cursors.tx.1 + sent),
                ..cursors
            };
            open.slot.activate(&kept, flags);
            open.header.end_write();
            let is_idle = kept.replied == 0 && kept.have == 0;
            return open.slot.release(
                lease_number,
                if is_idle {
                    LeaseState::Idle
                } else {
                    LeaseState::Parked
                },
            );
        }
        let have = if is_parked { cursors.have as usize } else { 0 };
        if !is_parked {
            (flags.crash_count, flags.timed_out) = (0, false);
        }
        let (in_base, out_base) = if is_parked {
            (cursors.in_base, cursors.out_base)
        } else {
            cursors.ends()
        };
        if have > 0 {
            let begin = cursors.rx.1 as usize;
            self.worker
                .move_received(slot, cursors.rx.0, begin..begin + have, Region::Shared);
        }
        let open = self.worker.open(slot, Region::Shared, Region::Shared);
        open.slot.activate(
            &Cursors {
                have: have as u32,
                ..Cursors::idle(in_base, out_base)
            },
            flags,
        );
        if dies(Point::Begin) {
            return;
        }
        let room = plan.read.into();
        let count = moved(socket.read(&mut open.rx[have..][..room]));
        life.read += count;
        if dies(Point::Read) {
            return;
        }
        let (arrived, mut answered, mut replied) = (have + count as usize, 0, 0);
        for (frame, reply) in &plan.frames {
            if answered == arrived {
                break;
            }
            open.slot.execute(METHOD, answered as u32);
            if dies(Point::Method) {
                return;
            }
            // A fourth of the size, so that the reply buffer holds all replies.
            let (frame, reply) = (
                (arrived - answered).min(usize::from(*frame) + 1),
                usize::from(*reply) / 4,
            );
            let made = bytes_of(life.output, life.replied..life.replied + reply as u64);
            open.tx[replied..][..reply].copy_from_slice(&made);
            (answered, replied) = (answered + frame, replied + reply);
            let note = Note::new(open.header, open.slot, (METHOD, false), replied as u32);
            open.slot.commit(answered as u32, replied as u32);
            note.count(open.header, open.slot);
            open.slot.touch(2);
            (life.requests, life.faults) = (life.requests + 1, 0);
            (life.answered, life.replied) =
                (life.answered + frame as u64, life.replied + reply as u64);
            if dies(Point::Commit) {
                return;
            }
        }
        let replies = &open.tx[..replied.min(plan.write.into())];
        let write = ReplyWrite {
            slot,
            out_base,
            replies,
        };
        let Some(sent) = write.run(open.header, socket, life, &mut self.sum, || {
            dies(Point::Write)
        }) else {
            return;
        };
        let (unread, unsent) = (arrived - answered, replied - sent as usize);
        let is_idle = unread == 0 && unsent == 0;
        if !is_idle {
            let region = if unread <= SMALL_LEN {
                Region::Small
            } else {
                Region::Large
            };
            self.worker
                .move_received(slot, Region::Shared, answered..arrived, region);
            self.worker.park_replies(slot, sent as usize..replied);
            if answered > 0 {
                (flags.crash_count, flags.timed_out) = (0, false);
            }
            let kept = Cursors {
                rx: (region, 0),
                tx: (Region::Large, 0),
                have: unread as u32,
                replied: unsent as u32,
                ..Cursors::idle(in_base + answered as u64, out_base + sent)
            };
            self.worker
                .slot(slot)
                .expect("it is held")
                .activate(&kept, flags);
            if dies(Point::Park) {
                return;
            }
        }
        if is_idle && is_unix && sent > 0 {
            let rest = Cursors::idle(in_base + answered as u64, out_base + sent);
            (flags.crash_count, flags.timed_out) = (0, false);
            self.worker
                .slot(slot)
                .expect("it is held")
                .activate(&rest, flags);
        }
        self.worker.header().end_write();
        if dies(Point::End) {
            return;
        }
        let state = if is_idle {
            LeaseState::Idle
        } else {
            LeaseState::Parked
        };
        self.worker
            .slot(slot)
            .expect("it is held")
            .release(lease_number, state);
    }

    /// Does what `worker/turn/away.rs` does when a request departs, if the client has unread bytes and no unsent ones.
    pub(super) fn depart(&mut self, slot: u32, dies: bool) {
        let lease_number = self.held[&slot].lease_number;
        let shared_slot = self.worker.slot(slot).expect("it is held");
        let (cursors, flags) = (shared_slot.cursors(), shared_slot.flags());
        let lease = shared_slot.lease().expect("a worker writes no other");
        let may_go = lease.state == LeaseState::Parked && cursors.replied == 0 && cursors.have > 0;
        if !may_go || shared_slot.claim(lease_number).is_none() {
            return;
        }
        let parked = Cursors {
            tx: (Region::Shared, 0),
            ..cursors
        };
        shared_slot.activate(&parked, flags);
        shared_slot.execute(METHOD, 0);
        if dies {
            self.dying = Some((slot, true));
            return;
        }
        shared_slot.release(lease_number, LeaseState::Away);
    }

    /// Does what it does when the answer arrives.
    pub(super) fn answer(
        &mut self,
        slot: u32,
        sizes: [u16; 3],
        again: bool,
        dies_at: Option<Point>,
    ) {
        let held = self.held.get_mut(&slot).expect("it is held");
        let (lease_number, is_unix) = (held.lease_number, held.is_unix);
        let life = self.lives.get_mut(&held.id).expect("there");
        let shared_slot = self.worker.slot(slot).expect("it is held");
        assert!(shared_slot.claim_away(lease_number));
        let dying = &mut self.dying;
        let mut dies = |point, is_running| {
            let dies = dies_at == Some(point);
            if dies {
                *dying = Some((slot, is_running));
            }
            dies
        };
        if dies(Point::Claim, true) {
            return;
        }
        let (cursors, mut flags) = (shared_slot.cursors(), shared_slot.flags());
        let [frame, reply, write] = sizes.map(u32::from);
        let (answered, replied) = (cursors.have.min(frame + 1), reply / 4);
        let open = self.worker.open(slot, cursors.rx.0, Region::Shared);
        let made = bytes_of(life.output, life.replied..life.replied + u64::from(replied));
        open.tx[..replied as usize].copy_from_slice(&made);
        let note = Note::new(open.header, open.slot, (METHOD, false), replied);
        open.slot.commit(answered, replied);
        note.count(open.header, open.slot);
        (life.requests, life.faults) = (life.requests + 1, 0);
        (life.answered, life.replied) = (
            life.answered + u64::from(answered),
            life.replied + u64::from(replied),
        );
        if dies(Point::Commit, false) {
            return;
        }
        let replies = &open.tx[..replied.min(write) as usize];
        let write = ReplyWrite {
            slot,
            out_base: cursors.out_base,
            replies,
        };
        let dies_at_write = || dies(Point::Write, false);
        let Some(sent) = write.run(
            open.header,
            &mut held.socket,
            life,
            &mut self.sum,
            dies_at_write,
        ) else {
            return;
        };
        let (unread, unsent) = (cursors.have - answered, replied - sent as u32);
        self.worker
            .park_replies(slot, sent as usize..replied as usize);
        (flags.crash_count, flags.timed_out) = (0, false);
        let is_away = again && unread > 0 && unsent == 0;
        let tx = if is_away {
            Region::Shared
        } else {
            Region::Large
        };
        let kept = Cursors {
            rx: (cursors.rx.0, cursors.rx.1 + answered),
            tx: (tx, 0),
            have: unread,
            replied: unsent,
            ..Cursors::idle(
                cursors.in_base + u64::from(answered),
                cursors.out_base + sent,
            )
        };
        let is_idle = unread == 0 && unsent == 0;
        let shared_slot = self.worker.slot(slot).expect("it is held");
        if !is_idle || is_unix {
            shared_slot.activate(&kept, flags);
        }
        if dies(Point::Park, false) {
            return;
        }
        self.worker.header().end_write();
        let state = match (is_away, is_idle) {
            (true, _) => {
                shared_slot.execute(METHOD, 0);
                LeaseState::Away
            }
            (false, true) => LeaseState::Idle,
            (false, false) => LeaseState::Parked,
        };
        shared_slot.release(lease_number, state);
    }
}
