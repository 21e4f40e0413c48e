//! The work of a client, which is done by the threads that call it.
//!
//! Any thread adds its requests and sends what the connection takes. One of those that wait for a reply connects,
//! receives, and waits for the connection: the *driver*. The others wait for it. When it has its own outcomes, or its
//! time is over, the thread with the oldest request is the next driver. So there is no thread of the client's own, an
//! idle client does nothing, and each call ends at its deadline whatever other threads wait for.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::address::Destination;
use super::connection::RpcConnection;
use super::options::{ClientOptions, random};
use super::plan::AddressPlan;
use super::queue::{Lost, RequestQueue};
use super::request::{Caller, ClientRequest, RawOutcome, Unanswered};
use super::wire::request_frame;
use super::{ConnectionError, Error};
use crate::sys::poll::{Interest, wait_for, wait_for_either};
use crate::sys::wakeup::Wakeup;

/// The shortest and the longest time between two looks at a connection without events.
const MIN_LOOK: Duration = Duration::from_millis(1);
const MAX_LOOK: Duration = Duration::from_secs(1);

/// The longest time for a call. The clock may not have more.
const MAX_TIMEOUT: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// A client, as its handles share it.
#[derive(Debug)]
pub(super) struct Hub {
    options: ClientOptions,
    destinations: Vec<Destination>,
    state: Mutex<HubState>,
    /// Wakes the driver.
    wakeup: Wakeup,
}

#[derive(Debug)]
struct HubState {
    requests: RequestQueue,
    connection: Option<RpcConnection>,
    plan: AddressPlan,
    has_driver: bool,
}

impl Hub {
    pub(super) fn new(
        mut destinations: Vec<Destination>,
        options: ClientOptions,
    ) -> Result<Hub, Error> {
        options.check()?;
        if destinations.is_empty() {
            return Err(Error::Usage("a client needs an address".to_owned()));
        }
        if options.shuffles {
            for last in (1..destinations.len()).rev() {
                destinations.swap(last, random() as usize % (last + 1));
            }
        }
        let wakeup = Wakeup::new()
            .map_err(|e| Error::Usage(format!("there is no descriptor for a client: {e}")))?;
        Ok(Hub {
            state: Mutex::new(HubState {
                requests: RequestQueue::default(),
                connection: None,
                plan: AddressPlan::new(destinations.len()),
                has_driver: false,
            }),
            options,
            destinations,
            wakeup,
        })
    }

    /// Returns the address to which the client is connected.
    pub(super) fn address(&self) -> Option<String> {
        let state = self.lock();
        let connection = state.connection.as_ref()?;
        Some(connection.daemon.to_string())
    }

    /// Performs requests. Returns their outcomes in the same order.
    pub(super) fn perform(
        &self,
        requests: Vec<ClientRequest>,
        timeout: Duration,
    ) -> Vec<RawOutcome> {
        let begin = Instant::now();
        let deadline = begin + timeout.min(MAX_TIMEOUT);
        let frames: Vec<_> = requests.iter().map(|request| self.frame(request)).collect();
        let caller = Caller::new(frames.iter().flatten().count());
        let mut state = self.lock();
        let mut numbers = state.requests.all().end..state.requests.all().end;
        for (request, frame) in requests.into_iter().zip(frames) {
            let number = match frame {
                Ok(frame) => {
                    let caller = Some(Arc::clone(&caller));
                    state
                        .requests
                        .add(self.unanswered(request, frame, begin, caller))
                }
                Err(error) => state.requests.add_outcome(Err(error)),
            };
            numbers.end = number + 1;
        }
        if state.has_driver {
            self.send(&mut state);
            if state
                .connection
                .as_ref()
                .is_none_or(RpcConnection::is_blocked)
            {
                self.wakeup.notify();
            }
        }
        self.wait(state, &caller, numbers, (deadline, timeout))
    }

    fn frame(&self, request: &ClientRequest) -> Result<Vec<u8>, Error> {
        let unusable = |why: &String| format!("the params cannot be written as JSON: {why}");
        let params = request.params.as_ref();
        let params = params.map_err(|why| Error::Usage(unusable(why)))?;
        let (order, limit) = (self.options.byte_order, self.options.max_request);
        request_frame(order, limit, &request.method, params.as_deref()).map_err(Error::Usage)
    }

    fn unanswered(
        &self,
        request: ClientRequest,
        frame: Vec<u8>,
        begin: Instant,
        caller: Option<Arc<Caller>>,
    ) -> Unanswered {
        let declared = self.options.is_idempotent(&request.method);
        Unanswered {
            idempotent: request.idempotent.or(declared),
            method: request.method,
            frame,
            asks: false,
            sent: 0,
            doubt: None,
            doubts: 0,
            begin,
            caller,
        }
    }

    /// Waits for the outcomes of the caller's requests, and does the work of the client if no other thread does.
    fn wait<'a>(
        &'a self,
        mut state: MutexGuard<'a, HubState>,
        caller: &Caller,
        numbers: Range<u64>,
        (deadline, timeout): (Instant, Duration),
    ) -> Vec<RawOutcome> {
        let mut is_late = false;
        while caller.is_waiting() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                self.give_up(&mut state, numbers.clone(), Some(timeout));
                is_late = true;
                break;
            }
            if state.has_driver {
                let waited = caller.news.wait_timeout(state, left);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
            } else {
                state.has_driver = true;
                state = self.work(state, deadline);
                state.has_driver = false;
            }
        }
        let outcomes = state.requests.take(numbers);
        if !state.has_driver {
            self.drop_unused(&mut state);
            let oldest = state.requests.oldest();
            if let Some(next) = oldest.and_then(|request| request.caller.as_ref()) {
                next.news.notify_one();
            }
        } else if is_late {
            // Perhaps nothing waits for its connection any more.
            self.wakeup.notify();
        }
        outcomes
    }

    /// Does one step of the work: connects, or waits once for the connection and receives what has arrived.
    fn work<'a>(
        &'a self,
        mut state: MutexGuard<'a, HubState>,
        deadline: Instant,
    ) -> MutexGuard<'a, HubState> {
        self.drop_unused(&mut state);
        self.send(&mut state);
        let Some(connection) = &state.connection else {
            return self.connect(state, deadline);
        };
        let (socket, interest) = (Arc::clone(&connection.socket), connection.interest());
        drop(state);
        let left = deadline.saturating_duration_since(Instant::now());
        let look = (self.options.silence / 4).clamp(MIN_LOOK, MAX_LOOK);
        let look = left.min(look);
        // An error is a shortage of memory, which passes.
        let ready = wait_for_either((&*socket, interest), &self.wakeup, look);
        let (is_ready, is_woken) = ready.unwrap_or((true, false));
        if is_woken {
            self.wakeup.clear();
        }
        let mut state = self.lock();
        let HubState {
            connection,
            requests,
            ..
        } = &mut *state;
        let Some(connection) = connection else {
            return state;
        };
        let result = match is_ready {
            true => connection.receive(requests),
            false => connection.check_silence(self.options.silence),
        };
        if let Err(lost) = result {
            self.lose(&mut state, lost);
        }
        state
    }

    /// Makes a connection, or waits until one may be made.
    fn connect<'a>(
        &'a self,
        state: MutexGuard<'a, HubState>,
        deadline: Instant,
    ) -> MutexGuard<'a, HubState> {
        let wait = state.plan.not_before.min(deadline);
        let wait = wait.saturating_duration_since(Instant::now());
        let (address, begin) = (state.plan.index, Instant::now());
        drop(state);
        if !wait.is_zero() {
            // An error is a shortage of memory, which passes.
            if wait_for(&self.wakeup, Interest::Read, wait).unwrap_or(false) {
                self.wakeup.clear();
            }
            return self.lock();
        }
        let connected = self.destinations[address].connect(&self.options, deadline);
        let mut state = self.lock();
        match connected {
            Ok(socket) => {
                state.connection = Some(RpcConnection::new(socket, address, &self.options))
            }
            Err(failures) => {
                // The reasons of this call count, and those of the calls that have begun before.
                let oldest = state.requests.oldest().map_or(begin, |oldest| oldest.begin);
                for (daemon, cause) in failures {
                    state.plan.note(address, &daemon, cause, oldest);
                }
                state.plan.leave(address);
                if state.plan.is_round_over() {
                    self.back_off(&mut state, false);
                }
            }
        }
        state
    }

    /// Sends what the connection takes. Asks the daemon for its methods first, if it must decide about a request.
    fn send(&self, state: &mut HubState) {
        let HubState {
            connection,
            requests,
            plan,
            ..
        } = state;
        let Some(connected) = connection else {
            return;
        };
        let is_idle = connected.has_replied && requests.sent() == 0;
        let is_new = requests.first_unsent().is_some_and(|first| first.sent == 0);
        if is_idle && is_new && !connected.is_usable() {
            // Perhaps it was a goaway: the daemon at this address may not accept connections any more.
            plan.turn_away_from(connected.address);
            self.destinations[connected.address].note_end(&connected.daemon, true);
            *connection = None;
            return;
        }
        if requests.needs_question() {
            let question = ClientRequest::without_params("methods");
            if let Ok(frame) = self.frame(&question) {
                requests.ask(self.unanswered(question, frame, Instant::now(), None));
            }
        }
        connected.send(requests);
    }

    /// Drops a connection on which nothing can be sent and for which nothing waits.
    fn drop_unused(&self, state: &mut HubState) {
        let Some(connection) = &state.connection else {
            return;
        };
        if connection.is_retired(&state.requests) && !state.requests.has_live() {
            let lost = Lost {
                cause: connection.late.clone().unwrap_or(ConnectionError::Closed),
                may_have_run: true,
            };
            self.lose(state, lost);
        }
    }

    /// Drops the connection, and decides about the requests that it has taken and when to connect again.
    fn lose(&self, state: &mut HubState, lost: Lost) {
        let Some(connection) = state.connection.take() else {
            return;
        };
        let (address, daemon) = (connection.address, &connection.daemon);
        let doubt = lost.may_have_run.then_some((&**daemon, &lost.cause));
        state.requests.take_back(doubt, self.options.retries);
        let oldest = state.requests.oldest().map(|oldest| oldest.begin);
        let begin = oldest.unwrap_or_else(Instant::now);
        state.plan.note(address, daemon, lost.cause, begin);
        state.plan.leave(address);
        self.destinations[address].note_end(daemon, connection.has_replied);
        self.back_off(state, connection.has_replied);
    }

    /// Sets when the next connection may be made. A client that fails fast gives up instead.
    fn back_off(&self, state: &mut HubState, has_replied: bool) {
        state.plan.back_off(has_replied, &self.options);
        if self.options.fails_fast {
            let all = state.requests.all();
            self.give_up(state, all, None);
        }
    }

    /// Ends requests without an outcome: at their deadline, or at the end of the only attempt.
    fn give_up(&self, state: &mut HubState, numbers: Range<u64>, timeout: Option<Duration>) {
        let HubState {
            requests,
            connection,
            plan,
            ..
        } = state;
        // The causes for the first outstanding reply, and for those after it.
        let late = connection
            .as_ref()
            .zip(timeout)
            .map(|(connection, timeout)| {
                let others = ConnectionError::Timeout(timeout);
                let daemon = Arc::clone(&connection.daemon);
                (daemon, connection.why_late(timeout), others)
            });
        let causes = |request: &Unanswered| -> Vec<(String, ConnectionError)> {
            let mut causes = plan.causes_since(request.begin);
            if let Some((daemon, _, others)) = &late
                && !causes.iter().any(|(known, _)| known == daemon)
            {
                causes.push((Arc::clone(daemon), others.clone()));
            }
            let named = causes.into_iter();
            named
                .map(|(daemon, cause)| (daemon.to_string(), cause))
                .collect()
        };
        let sent_to = late
            .as_ref()
            .map(|(daemon, first, others)| (&**daemon, first, others));
        let is_cut = requests.give_up(numbers, sent_to, timeout, causes);
        if let (Some(connection), Some((_, _, others))) = (connection, late) {
            connection.is_cut |= is_cut;
            connection.late = Some(others);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HubState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
