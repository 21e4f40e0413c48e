//! The actions of a random history.

use super::*;

/// The point at which a turn may be cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Point {
    Claim,
    Begin,
    Read,
    Method,
    Commit,
    Write,
    Park,
    End,
}

/// The course of a turn, as far as there are bytes.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) read: u16,
    /// Bytes of each frame and of its reply.
    pub(super) frames: Vec<(u16, u16)>,
    pub(super) write: u16,
    pub(super) dies_at: Option<Point>,
}

/// The next action, and its client.
#[derive(Clone, Debug)]
pub(super) enum Act {
    Accept {
        is_unix: bool,
    },
    Send(Index, u16),
    Receive(Index),
    Give,
    Flush,
    /// The channel is full.
    FlushFails,
    Take(Index),
    TakeAll,
    Turn(Index, Plan),
    /// The worker hands a request over to its app, and perhaps dies before that is complete.
    Depart(Index, bool),
    /// The app answers: bytes of the frame and of its reply, and how many of the reply are written. The next request
    /// may go away in the same turn, and the worker may die in it.
    Answer(Index, [u16; 3], bool, Option<Point>),
    /// The worker looks for revoked leases.
    Look,
    GiveUp(Index),
    Close(Index),
    /// The master reads the worker's messages.
    Listen,
    Die,
}

pub(super) fn act() -> impl Strategy<Value = Act> {
    let points = [
        Point::Claim,
        Point::Begin,
        Point::Read,
        Point::Method,
        Point::Commit,
        Point::Write,
        Point::Park,
        Point::End,
    ];
    let dies_at = proptest::option::weighted(0.15, select(points.to_vec()));
    let in_answer = vec![Point::Claim, Point::Commit, Point::Write, Point::Park];
    let dies_in_answer = proptest::option::weighted(0.15, select(in_answer));
    let size = || prop_oneof![3 => 0..40u16, 2 => 0..2000u16, 1 => any::<u16>()];
    let plan = (size(), vec((size(), size()), 0..5), size(), dies_at);
    let plan = plan.prop_map(|(read, frames, write, dies_at)| Plan {
        read,
        frames,
        write,
        dies_at,
    });
    prop_oneof![
        3 => any::<bool>().prop_map(|is_unix| Act::Accept { is_unix }),
        6 => (any::<Index>(), size()).prop_map(|(client, count)| Act::Send(client, count)),
        2 => any::<Index>().prop_map(Act::Receive),
        6 => Just(Act::Give),
        6 => Just(Act::Flush),
        1 => Just(Act::FlushFails),
        2 => any::<Index>().prop_map(Act::Take),
        1 => Just(Act::TakeAll),
        20 => (any::<Index>(), plan).prop_map(|(slot, plan)| Act::Turn(slot, plan)),
        6 => (any::<Index>(), proptest::bool::weighted(0.1)).prop_map(|(slot, dies)| Act::Depart(slot, dies)),
        6 => (any::<Index>(), [size(), size(), size()], any::<bool>(), dies_in_answer)
            .prop_map(|(slot, sizes, again, dies_at)| Act::Answer(slot, sizes, again, dies_at)),
        2 => Just(Act::Look),
        1 => any::<Index>().prop_map(Act::GiveUp),
        1 => any::<Index>().prop_map(Act::Close),
        4 => Just(Act::Listen),
        1 => Just(Act::Die),
    ]
}
