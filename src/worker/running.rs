//! The methods of a worker with their state.

#[cfg(feature = "tokio")]
use std::future::ready;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use serde_json::value::RawValue;

#[cfg(feature = "tokio")]
use super::futures::{AsyncCall, MethodJob};
use super::methods::{Failure, FoundMethod, Methods, Order, Service, WorkerInfo};
use super::panics::last_panic;
use super::reply::{Call, Reply};
use crate::logging::scope::Scope;
use crate::proto::channel::MethodName;
use crate::proto::names::ClientId;
#[cfg(feature = "tokio")]
use crate::proto::rpc::NULL;
use crate::sys::fork;

/// Methods with their state.
pub(crate) struct RunningService<S> {
    methods: Methods<S>,
    /// Missing only while it is created again.
    state: Option<S>,
    info: WorkerInfo,
    own_table: String,
    /// The index of the method that was found last.
    last: usize,
    /// Futures may use the state.
    is_shared: bool,
    /// A panic may have left the state inconsistent, and futures use it.
    is_spent: bool,
}

impl<S: 'static> RunningService<S> {
    /// Constructs the state.
    pub(crate) fn start(
        methods: Methods<S>,
        info: WorkerInfo,
        own_table: String,
    ) -> Result<RunningService<S>, String> {
        let state = construct(&methods, &info, &own_table)?;
        Ok(RunningService {
            is_shared: methods.has_async(),
            is_spent: false,
            methods,
            state: Some(state),
            info,
            own_table,
            last: 0,
        })
    }
}

fn construct<S>(methods: &Methods<S>, info: &WorkerInfo, table: &str) -> Result<S, String> {
    let made = catch_unwind(AssertUnwindSafe(|| (methods.constructor)(info, table)));
    fork::end_child();
    match made {
        Ok(made) => made,
        Err(_) => Err(format!("the state's constructor {}", last_panic())),
    }
}

impl<S: 'static> Service for RunningService<S> {
    fn names(&self) -> Vec<MethodName> {
        self.methods.names()
    }

    fn find(&mut self, name: &str) -> Option<FoundMethod> {
        let all = &self.methods.all;
        // Most requests call the same method as the one before.
        let mut method = &all[self.last];
        if method.name != name {
            let found = all.binary_search_by(|method| method.name.as_str().cmp(name));
            self.last = found.ok()?;
            method = &all[self.last];
        }
        Some(FoundMethod {
            index: self.last,
            is_inline: method.is_inline,
            is_away: method.is_async(),
        })
    }

    fn is_idempotent(&self, index: usize) -> bool {
        self.methods.all[index].is_idempotent
    }

    fn runs_other_code(&self) -> bool {
        // Each daemon has `ping` and `methods`. The others of fdpassd run only without an app.
        !self.methods.is_shipped || self.methods.all.len() > 2
    }

    fn call(
        &mut self,
        index: usize,
        params: &RawValue,
        call: Call<'_>,
        buffer: &mut [u8],
        order: Order,
    ) -> Result<usize, Failure> {
        let method = &self.methods.all[index];
        let Some(state) = &mut self.state else {
            return Err(Failure::Broken("there is no state".to_owned()));
        };
        let _scope = Scope::enter(call.client, Some(index));
        let mut reply = Reply::new(buffer, &method.reply_name, call);
        // A panic may leave the state inconsistent: it is replaced.
        let returned = catch_unwind(AssertUnwindSafe(|| {
            (method.handler)(state, params, &mut reply)
        }));
        // A child forked by the method would answer a second time.
        fork::end_child();
        match returned {
            Ok(Ok(())) => reply.seal(order).map_err(Failure::Fault),
            Ok(Err(fault)) => Err(Failure::Fault(method.permitted(fault))),
            Err(_) => {
                let (name, consequence) = (&method.name, self.consequence());
                log::error!("method {name:?} {}; {consequence}", last_panic());
                Err(self.renew_after_panic())
            }
        }
    }

    fn away_method(&self, index: usize) -> Option<(&str, &str)> {
        let method = &self.methods.all[index];
        method
            .is_async()
            .then_some((&method.name, &method.reply_name))
    }

    #[cfg(feature = "tokio")]
    fn begin(&mut self, index: usize, params: Option<&[u8]>, call: &AsyncCall) -> MethodJob {
        let method = &self.methods.all[index];
        let (starter, state) = method
            .starter
            .as_ref()
            .zip(self.state.as_ref())
            .expect("an asynchronous method, whose state is never taken");
        let scope = Scope::enter(call.client, Some(index));
        // It clones the state, which is code of the program.
        let started = catch_unwind(AssertUnwindSafe(|| {
            starter(state, params.unwrap_or(NULL.as_bytes()), call.clone())
        }));
        fork::end_child();
        drop(scope);
        match started {
            Ok(job) => job,
            Err(_) => {
                let (name, consequence) = (&method.name, self.consequence());
                log::error!(
                    "the clone of the state for method {name:?} {}; {consequence}",
                    last_panic()
                );
                self.is_spent = true;
                Box::new(|| Box::pin(ready(Err(Failure::Panicked.into()))))
            }
        }
    }

    fn take_spent(&mut self) -> bool {
        std::mem::take(&mut self.is_spent)
    }

    fn wants_left_clients(&self) -> bool {
        self.methods.hooks.on_close.is_some()
    }

    fn client_has_left(&mut self, client: ClientId) -> Result<(), String> {
        let (Some(call), Some(state)) = (&self.methods.hooks.on_close, &mut self.state) else {
            return Ok(());
        };
        let scope = Scope::enter(client, None);
        let returned = catch_unwind(AssertUnwindSafe(|| call(state, client)));
        fork::end_child();
        drop(scope);
        if returned.is_err() {
            log::error!("on_close {}; {}", last_panic(), self.consequence());
            self.renew()?;
        }
        Ok(())
    }

    fn health_interval(&self) -> Option<Duration> {
        let health = self.methods.hooks.health.as_ref();
        health.map(|(interval, _)| *interval)
    }

    fn check_health(&mut self) -> Result<Option<String>, String> {
        let (Some((_, check)), Some(state)) = (&self.methods.hooks.health, &mut self.state) else {
            return Ok(None);
        };
        let returned = catch_unwind(AssertUnwindSafe(|| check(state)));
        fork::end_child();
        match returned {
            Ok(found) => Ok(found.err()),
            Err(_) => {
                let panic = last_panic();
                log::error!("the health function {panic}; {}", self.consequence());
                self.renew()?;
                Ok(Some("the health function panicked".to_owned()))
            }
        }
    }
}

impl<S: 'static> RunningService<S> {
    /// Returns what follows from a panic, for messages.
    fn consequence(&self) -> &'static str {
        match self.is_shared {
            true => "this worker is replaced",
            false => "the state is created again",
        }
    }

    #[cold]
    fn renew_after_panic(&mut self) -> Failure {
        match self.renew() {
            Ok(()) => Failure::Panicked,
            Err(why) => Failure::Broken(why),
        }
    }

    /// Replaces the state after a panic. The old one is dropped first: it may hold a lock, a port or a file that the
    /// new one needs.
    ///
    /// If futures use the state as well, it cannot be dropped: the worker keeps it until another worker has taken its
    /// place.
    fn renew(&mut self) -> Result<(), String> {
        if self.is_shared {
            self.is_spent = true;
            return Ok(());
        }
        let old = self.state.take();
        let dropped = catch_unwind(AssertUnwindSafe(|| drop(old)));
        fork::end_child();
        if dropped.is_err() {
            log::error!("the drop of the old state {}", last_panic());
        }
        self.state = Some(construct(&self.methods, &self.info, &self.own_table)?);
        Ok(())
    }
}
