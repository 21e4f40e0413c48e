//! Random walks of the queue: sends in pieces, replies, errors, ends of connections and deadlines in random order. Each
//! outcome must be true of what a daemon has executed.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use super::super::queue::{Lost, RequestQueue};
use super::super::request::{Caller, RawOutcome, Unanswered};
use super::super::wire::ReplyBody;
use super::*;

const STEPS: u32 = 400;
const WALKS: u64 = 2_000;
const RETRIES: u32 = 2;
const FRAME: usize = 8;

/// The frame of the question for the methods.
const QUESTION: u64 = u64::MAX;

/// A daemon that executes requests in its own time, and the client's queue.
struct Walk {
    random: u64,
    queue: RequestQueue,
    /// Bytes that the connection has taken, of requests that the daemon has not executed.
    received: VecDeque<u8>,
    /// Replies on their way to the client.
    replies: VecDeque<ReplyBody>,
    /// Nothing is executed after an error that closes the connection.
    is_closing: bool,
    is_cut: bool,
    /// How often each request was executed, and whether that is allowed more than once.
    executed: BTreeMap<u64, u32>,
    idempotent: BTreeMap<u64, bool>,
    open: Vec<u64>,
    outcomes: BTreeMap<u64, RawOutcome>,
}

impl Walk {
    fn below(&mut self, n: usize) -> usize {
        self.random = self
            .random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) as usize % n
    }

    fn request(&self, frame: u64, method: &str, idempotent: Option<bool>) -> Unanswered {
        Unanswered {
            method: method.to_owned(),
            frame: frame.to_le_bytes().to_vec(),
            idempotent,
            asks: false,
            sent: 0,
            doubt: None,
            doubts: 0,
            begin: Instant::now(),
            caller: (frame != QUESTION).then(|| Caller::new(1)),
        }
    }

    fn add(&mut self) {
        let number = self.queue.all().end;
        let is_idempotent = self.below(2) == 0;
        let method = if is_idempotent { "again" } else { "once" };
        let declared = (self.below(2) == 0).then_some(is_idempotent);
        let request = self.request(number, method, declared);
        assert_eq!(self.queue.add(request), number);
        self.idempotent.insert(number, is_idempotent);
        self.open.push(number);
    }

    fn send(&mut self) {
        if self.is_cut || self.queue.has_abandoned() {
            return;
        }
        if self.queue.needs_question() {
            self.queue.ask(self.request(QUESTION, "methods", None));
        }
        let count = 4_usize.saturating_sub(self.queue.sent());
        let bytes = self.queue.to_send(count).concat();
        if !bytes.is_empty() {
            let taken = 1 + self.below(bytes.len());
            self.queue.note_sent(taken);
            self.received.extend(&bytes[..taken]);
        }
    }

    /// The daemon executes the next request, or refuses to.
    fn execute(&mut self) {
        if self.received.len() < FRAME || self.is_closing {
            return;
        }
        let frame: Vec<u8> = self.received.drain(..FRAME).collect();
        let number = u64::from_le_bytes(frame.try_into().expect("a frame"));
        let error = |code: &str| ReplyBody::Error {
            code: code.to_owned(),
            message: String::new(),
            place: None,
        };
        let result = |text: String| ReplyBody::Result {
            name: "x".to_owned(),
            result: RawValue::from_string(text).expect("JSON"),
        };
        let reply = match self.below(12) {
            0 => error("overloaded"),
            1 => error("too_large"),
            2 => error("unknown_method"),
            _ if number == QUESTION => result(
                r#"[{"name":"again","idempotent":true},{"name":"once","idempotent":false}]"#
                    .to_owned(),
            ),
            kind => {
                *self.executed.entry(number).or_default() += 1;
                match kind {
                    3 => error("crashed"),
                    _ => result(number.to_string()),
                }
            }
        };
        self.is_closing |= matches!(&reply, ReplyBody::Error { code, .. }
            if code == "overloaded" || code == "too_large");
        self.replies.push_back(reply);
    }

    fn receive(&mut self) {
        let Some(reply) = self.replies.pop_front() else {
            return;
        };
        if let Err(lost) = self.queue.answer(reply, "a") {
            self.lose(lost);
        }
    }

    /// The connection ends. The daemon may execute what it has received completely.
    fn lose(&mut self, lost: Lost) {
        for _ in 0..self.below(4) {
            self.execute();
        }
        let doubt = lost.may_have_run.then_some(("a", &lost.cause));
        self.queue.take_back(doubt, RETRIES);
        self.received.clear();
        self.replies.clear();
        (self.is_closing, self.is_cut) = (false, false);
    }

    fn end(&mut self) {
        let lost = match self.below(4) {
            0 => self.queue.broken("garbage", "a"),
            _ => Lost {
                cause: ConnectionError::Closed,
                may_have_run: true,
            },
        };
        self.lose(lost);
    }

    fn give_up(&mut self, number: u64) {
        let late = ConnectionError::Timeout(SHORT);
        let sent_to = Some(("a", &late, &late));
        let numbers = number..number + 1;
        self.is_cut |= self
            .queue
            .give_up(numbers, sent_to, Some(SHORT), |_| Vec::new());
        if (self.is_cut || self.queue.has_abandoned()) && !self.queue.has_live() {
            self.end();
        }
    }

    fn step(&mut self) {
        match self.below(20) {
            0..4 => self.add(),
            4..10 => self.send(),
            10..14 => self.execute(),
            14..18 => self.receive(),
            18 => self.end(),
            _ if self.open.is_empty() => {}
            _ => {
                let open = self.below(self.open.len());
                self.give_up(self.open[open]);
            }
        }
        self.collect();
    }

    fn collect(&mut self) {
        let (queue, outcomes) = (&mut self.queue, &mut self.outcomes);
        self.open.retain(|number| {
            let outcome = queue.take(*number..number + 1).pop();
            let is_open = outcome.is_none();
            outcomes.extend(outcome.map(|outcome| (*number, outcome)));
            is_open
        });
    }

    #[track_caller]
    fn check(&self) {
        for (number, outcome) in &self.outcomes {
            let runs = self.executed.get(number).copied().unwrap_or(0);
            let most = if self.idempotent[number] {
                1 + RETRIES
            } else {
                1
            };
            let is_true = match outcome {
                Ok(result) => runs >= 1 && result.get() == number.to_string(),
                Err(error) => error.may_have_run() || runs == 0,
            };
            assert!(
                is_true && runs <= most,
                "{number} ran {runs} times: {outcome:?}"
            );
        }
    }
}

#[test]
fn each_outcome_is_true_after_any_order_of_events() {
    let mut counts = BTreeMap::new();
    for seed in 0..WALKS {
        let mut walk = Walk {
            random: seed,
            queue: RequestQueue::default(),
            received: VecDeque::new(),
            replies: VecDeque::new(),
            is_closing: false,
            is_cut: false,
            executed: BTreeMap::new(),
            idempotent: BTreeMap::new(),
            open: Vec::new(),
            outcomes: BTreeMap::new(),
        };
        (0..STEPS).for_each(|_| walk.step());
        for number in walk.open.clone() {
            walk.give_up(number);
        }
        walk.collect();
        assert!(walk.open.is_empty(), "seed {seed}");
        walk.check();
        for outcome in walk.outcomes.values() {
            let kind = match outcome {
                Ok(_) => "result",
                Err(Error::UnknownOutcome { .. }) => "unknown",
                Err(Error::Unavailable { .. }) => "unavailable",
                Err(_) => "error",
            };
            *counts.entry(kind).or_insert(0) += 1;
        }
    }
    // Each kind occurs often, so that the walks show something.
    assert!(
        counts.len() == 4 && counts.values().all(|count| *count > 1000),
        "{counts:?}"
    );
}
