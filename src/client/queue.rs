//! The requests of all threads: which are sent, in which order they are answered, and their outcomes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::time::Duration;

use serde::Deserialize;

use super::request::{RawOutcome, Unanswered};
use super::wire::{ReplyBody, ask_for_goaway};
use super::{ConnectionError, Error};
use crate::proto::frame::ByteOrder;

/// The codes of requests that the daemon surely has not executed. No method can send them.
const NOT_RUN: [&str; 5] = [
    "bad_request",
    "unknown_method",
    "too_large",
    "overloaded",
    "shutting_down",
];

/// Of these, the ones after which the same request may succeed later or on another host. The daemon closes the
/// connection.
const TRANSIENT: [&str; 2] = ["overloaded", "shutting_down"];

/// The codes after which the daemon closes the connection, whatever is pending on it.
const CLOSING: [&str; 3] = ["overloaded", "shutting_down", "too_large"];

/// The codes of a frame that the daemon has not received completely.
const OF_A_PART: [&str; 5] = [
    "overloaded",
    "shutting_down",
    "too_large",
    "bad_request",
    "timeout",
];

/// The end of a connection.
#[derive(Debug)]
pub(super) struct Lost {
    pub(super) cause: ConnectionError,
    /// Whether requests that were sent completely, and are not answered, may have been executed.
    pub(super) may_have_run: bool,
}

/// All requests without an outcome, and the outcomes that are not fetched yet. Requests are numbered in their
/// order.
#[derive(Debug, Default)]
pub(super) struct RequestQueue {
    next: u64,
    unanswered: BTreeMap<u64, Unanswered>,
    /// The requests that this connection has not taken completely. Some may have an outcome.
    unsent: VecDeque<u64>,
    /// The requests that it has taken, in the order of their replies. Some may have an outcome: nothing waits for their
    /// replies.
    sent: VecDeque<u64>,
    /// How many of the sent ones have an outcome.
    abandoned: usize,
    outcomes: BTreeMap<u64, RawOutcome>,
    /// The request by which the daemon is asked for its methods.
    question: Option<u64>,
}

impl RequestQueue {
    /// Adds a request at the end. Returns its number.
    pub(super) fn add(&mut self, request: Unanswered) -> u64 {
        let number = self.next;
        self.next += 1;
        self.unanswered.insert(number, request);
        self.unsent.push_back(number);
        number
    }

    /// Adds an outcome instead of a request.
    pub(super) fn add_outcome(&mut self, outcome: RawOutcome) -> u64 {
        let number = self.next;
        self.next += 1;
        self.outcomes.insert(number, outcome);
        number
    }

    /// Returns the outcomes of these requests, which have them.
    pub(super) fn take(&mut self, numbers: Range<u64>) -> Vec<RawOutcome> {
        numbers
            .filter_map(|number| self.outcomes.remove(&number))
            .collect()
    }

    /// Returns the oldest request for which a thread waits.
    pub(super) fn oldest(&self) -> Option<&Unanswered> {
        self.unanswered
            .values()
            .find(|request| request.caller.is_some())
    }

    /// Returns how many replies are outstanding.
    pub(super) fn sent(&self) -> usize {
        self.sent.len()
    }

    /// Returns whether nothing waits for some of the outstanding replies.
    pub(super) fn has_abandoned(&self) -> bool {
        self.abandoned > 0
    }

    /// Returns whether a thread waits for an outstanding reply.
    pub(super) fn has_live(&self) -> bool {
        let question = usize::from(self.question.is_some_and(|n| self.sent.contains(&n)));
        self.sent.len() > self.abandoned + question
    }

    /// Returns the first request that is not sent completely.
    pub(super) fn first_unsent(&mut self) -> Option<&mut Unanswered> {
        while let Some(number) = self.unsent.front() {
            if self.unanswered.contains_key(number) {
                break;
            }
            self.unsent.pop_front();
        }
        self.unanswered.get_mut(self.unsent.front()?)
    }

    /// Has the first request of which nothing is sent ask for a goaway. Returns whether one asks.
    pub(super) fn ask_for_goaway(&mut self, order: ByteOrder, limit: u32) -> bool {
        let Some(first) = self.first_unsent().filter(|first| first.sent == 0) else {
            return false;
        };
        first.asks = first.asks || ask_for_goaway(&mut first.frame, order, limit);
        first.asks
    }

    /// Returns the rests of the frames that may be sent now, at most this number.
    pub(super) fn to_send(&self, count: usize) -> Vec<&[u8]> {
        let unsent = self.unsent.iter().filter_map(|n| self.unanswered.get(n));
        unsent
            .take_while(|request| !request.is_undecided())
            .take(count)
            .map(|request| &request.frame[request.sent..])
            .collect()
    }

    /// Notes that the connection has taken this number of bytes.
    pub(super) fn note_sent(&mut self, mut bytes: usize) {
        while let Some(first) = self.first_unsent() {
            let taken = bytes.min(first.frame.len() - first.sent);
            first.sent += taken;
            bytes -= taken;
            if !first.is_sent() {
                return;
            }
            self.sent.extend(self.unsent.pop_front());
            if bytes == 0 {
                return;
            }
        }
    }

    /// Returns whether the daemon must be asked for its methods before the next request is sent, and is not.
    pub(super) fn needs_question(&mut self) -> bool {
        self.question.is_none()
            && self
                .first_unsent()
                .is_some_and(|first| first.is_undecided())
    }

    /// Adds the question for the methods before all requests that are not sent.
    pub(super) fn ask(&mut self, question: Unanswered) {
        let number = self.add(question);
        self.unsent.pop_back();
        self.unsent.push_front(number);
        self.question = Some(number);
    }

    /// Gives a reply of the daemon at this address to the first request that waits for one.
    ///
    /// # Errors
    /// It is the last one of the connection.
    pub(super) fn answer(&mut self, reply: ReplyBody, address: &str) -> Result<(), Lost> {
        let rejected = match &reply {
            ReplyBody::Error { code, message, .. } => Some((code.clone(), message.clone())),
            ReplyBody::Result { .. } => None,
        };
        let lost = |(code, message)| Lost {
            cause: ConnectionError::Rejected { code, message },
            may_have_run: false,
        };
        let is_one_of = |codes: &[&str]| {
            let rejected = rejected.as_ref();
            rejected.is_some_and(|(code, _)| codes.contains(&code.as_str()))
        };
        let is_last = is_one_of(&CLOSING);
        if self.sent.is_empty() {
            if !is_one_of(&OF_A_PART) {
                return Err(self.broken("there is a reply without a request", address));
            }
            if is_one_of(&["bad_request", "too_large"])
                && self.first_unsent().is_some_and(|first| first.sent > 0)
                && let Some(number) = self.unsent.pop_front()
            {
                self.settle(number, reply);
            }
        } else if !is_one_of(&TRANSIENT)
            && let Some(number) = self.sent.pop_front()
        {
            self.settle(number, reply);
            if !is_last {
                return Ok(());
            }
        }
        match rejected {
            Some(rejected) => Err(lost(rejected)),
            None => Ok(()),
        }
    }

    /// Gives a request the outcome of its reply.
    fn settle(&mut self, number: u64, reply: ReplyBody) {
        if self.question == Some(number) {
            self.question = None;
            self.unanswered.remove(&number);
            self.decide(&idempotent_of(&reply));
            return;
        }
        let Some(request) = self.unanswered.get(&number) else {
            self.abandoned = self.abandoned.saturating_sub(1);
            return;
        };
        let outcome = match reply {
            ReplyBody::Result { result, .. } => Ok(result),
            ReplyBody::Error { code, message, .. } => {
                let may_have_run = request.doubt.is_some() || !NOT_RUN.contains(&code.as_str());
                Err(Error::Reply {
                    code,
                    message,
                    may_have_run,
                })
            }
        };
        self.finish(number, outcome);
    }

    /// Decides which of the requests that may have run are sent once more.
    fn decide(&mut self, idempotent: &BTreeSet<String>) {
        let mut ended = Vec::new();
        for (number, request) in &mut self.unanswered {
            if request.is_undecided() {
                let is_idempotent = idempotent.contains(&request.method);
                request.idempotent = Some(is_idempotent);
                if !is_idempotent {
                    ended.extend(request.doubtful_outcome().map(|outcome| (*number, outcome)));
                }
            }
        }
        for (number, outcome) in ended {
            self.finish(number, outcome);
        }
    }

    /// Fails the request whose reply would be next: what has arrived instead breaks the protocol. Returns the end of
    /// the connection.
    pub(super) fn broken(&mut self, why: &str, address: &str) -> Lost {
        if let Some(number) = self.sent.pop_front() {
            let cause = ConnectionError::BadReply(why.to_owned());
            match self.unanswered.get_mut(&number) {
                Some(request) if request.caller.is_some() => {
                    request.doubt = Some((address.to_owned(), cause));
                    if let Some(outcome) = request.doubtful_outcome() {
                        self.finish(number, outcome);
                    }
                }
                // The question for the methods is asked again.
                Some(_) => {}
                None => self.abandoned = self.abandoned.saturating_sub(1),
            }
        }
        Lost {
            cause: ConnectionError::BrokenProtocol(why.to_owned()),
            may_have_run: true,
        }
    }

    /// Takes back what the connection that has ended has not answered. With a doubt, requests that were sent completely
    /// may have run; those that may not run once more fail.
    pub(super) fn take_back(&mut self, doubt: Option<(&str, &ConnectionError)>, retries: u32) {
        if let Some(question) = self.question.take() {
            self.unanswered.remove(&question);
        }
        let sent: Vec<u64> = self.sent.drain(..).collect();
        self.abandoned = 0;
        for number in sent.into_iter().rev() {
            let Some(request) = self.unanswered.get_mut(&number) else {
                continue;
            };
            if let Some((address, cause)) = doubt {
                request.doubt = Some((address.to_owned(), cause.clone()));
                request.doubts += 1;
                if (request.idempotent == Some(false) || request.doubts > retries)
                    && let Some(outcome) = request.doubtful_outcome()
                {
                    self.finish(number, outcome);
                    continue;
                }
            }
            self.unsent.push_front(number);
        }
        for request in self.unanswered.values_mut() {
            request.sent = 0;
        }
    }

    /// Ends these requests. `sent_to` has the address of the connection, the cause for the first outstanding reply, and
    /// the cause for those after it; `causes` returns why a request was not executed.
    ///
    /// Returns whether a frame was left incomplete.
    pub(super) fn give_up(
        &mut self,
        numbers: Range<u64>,
        sent_to: Option<(&str, &ConnectionError, &ConnectionError)>,
        timeout: Option<Duration>,
        causes: impl Fn(&Unanswered) -> Vec<(String, ConnectionError)>,
    ) -> bool {
        let ended: Vec<u64> = self.unanswered.range(numbers).map(|(n, _)| *n).collect();
        let mut is_cut = false;
        for number in ended {
            let Some(request) = self.unanswered.get_mut(&number) else {
                continue;
            };
            if request.caller.is_none() {
                continue;
            }
            if request.is_sent()
                && let Some((address, first, others)) = sent_to
            {
                let is_first = self.sent.front() == Some(&number);
                let cause = if is_first { first } else { others };
                request.doubt = Some((address.to_owned(), cause.clone()));
                self.abandoned += 1;
            } else {
                is_cut |= request.sent > 0;
            }
            let outcome = request.doubtful_outcome();
            let outcome = outcome.unwrap_or_else(|| {
                Err(Error::Unavailable {
                    method: request.method.clone(),
                    timeout,
                    causes: causes(request),
                })
            });
            self.finish(number, outcome);
        }
        is_cut
    }

    /// Returns the numbers of all requests so far.
    pub(super) fn all(&self) -> Range<u64> {
        0..self.next
    }

    fn finish(&mut self, number: u64, outcome: RawOutcome) {
        let request = self.unanswered.remove(&number);
        if let Some(caller) = request.and_then(|request| request.caller) {
            self.outcomes.insert(number, outcome);
            caller.take_one();
        }
    }
}

/// Returns the names of the idempotent methods in the reply to `methods`; none if it is not such a reply.
fn idempotent_of(reply: &ReplyBody) -> BTreeSet<String> {
    #[derive(Deserialize)]
    struct Declared {
        name: String,
        #[serde(default)]
        idempotent: bool,
    }
    let ReplyBody::Result { result, .. } = reply else {
        return BTreeSet::new();
    };
    let declared: Vec<Declared> = serde_json::from_str(result.get()).unwrap_or_default();
    declared
        .into_iter()
        .filter(|method| method.idempotent)
        .map(|method| method.name)
        .collect()
}
