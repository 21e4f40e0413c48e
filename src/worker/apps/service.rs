//! The methods of a worker with an app: its own, and those of the app.

#[cfg(any(test, fuzzing))]
mod fuzz;

use std::time::Duration;

#[cfg(any(test, fuzzing))]
pub(crate) use fuzz::fuzz_hello;
use serde_json::value::RawValue;

use crate::proto::app::{AppMethod, MAX_METHODS};
use crate::proto::channel::{MethodName, check_methods};
use crate::proto::names::ClientId;
use crate::proto::rpc::is_method_name;
use crate::worker::methods::{Failure, FoundMethod, Order, Service};
use crate::worker::reply::{Call, Reply};

/// The method that lists all others.
const LIST: &str = "methods";

/// The methods of a worker and of its app. Those of the app follow those of the worker.
pub(in crate::worker) struct AppService<'s> {
    own: &'s mut dyn Service,
    own_count: usize,
    /// The index of the method that lists all, and the name of its replies.
    list: Option<usize>,
    /// In the order of their names, each with the name of its replies.
    methods: Vec<(MethodName, String)>,
}

impl<'s> AppService<'s> {
    /// Adds the methods of an app to those of its worker.
    ///
    /// # Errors
    /// A method that cannot be added, for the operator.
    pub(in crate::worker) fn new(
        own: &'s mut dyn Service,
        methods: Vec<AppMethod>,
    ) -> Result<AppService<'s>, String> {
        if methods.len() > MAX_METHODS {
            let count = methods.len();
            return Err(format!("it has {count} methods, more than {MAX_METHODS}"));
        }
        let mut added: Vec<(MethodName, String)> = Vec::new();
        for AppMethod {
            name,
            idempotent,
            reply,
        } in methods
        {
            let reply = reply.unwrap_or_else(|| format!("{name}_r"));
            if !is_method_name(&name) {
                return Err(format!("its method {name:?} has no valid name"));
            }
            if !is_method_name(&reply) {
                return Err(format!("its method {name:?} has no valid reply name"));
            }
            if own.find(&name).is_some() {
                return Err(format!(
                    "its method {name:?} has the name of a built-in one"
                ));
            }
            added.push((MethodName { name, idempotent }, reply));
        }
        added.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
        if let Some(pair) = added
            .windows(2)
            .find(|pair| pair[0].0.name == pair[1].0.name)
        {
            return Err(format!("it has two methods {:?}", pair[0].0.name));
        }
        let service = AppService {
            own_count: own.names().len(),
            list: own.find(LIST).map(|method| method.index),
            own,
            methods: added,
        };
        check_methods(&service.names())?;
        Ok(service)
    }
}

impl Service for AppService<'_> {
    fn names(&self) -> Vec<MethodName> {
        let mut names = self.own.names();
        names.extend(self.methods.iter().map(|(method, _)| method.clone()));
        names
    }

    fn find(&mut self, name: &str) -> Option<FoundMethod> {
        let found = self
            .methods
            .binary_search_by(|(method, _)| method.name.as_str().cmp(name));
        match found {
            Ok(index) => Some(FoundMethod {
                index: self.own_count + index,
                is_inline: false,
                is_away: true,
            }),
            Err(_) => self.own.find(name),
        }
    }

    fn is_idempotent(&self, index: usize) -> bool {
        match index.checked_sub(self.own_count) {
            Some(index) => self.methods[index].0.idempotent,
            None => self.own.is_idempotent(index),
        }
    }

    fn runs_other_code(&self) -> bool {
        self.own.runs_other_code()
    }

    fn call(
        &mut self,
        index: usize,
        params: &RawValue,
        call: Call,
        buffer: &mut [u8],
        order: Order,
    ) -> Result<usize, Failure> {
        if self.list == Some(index) {
            let mut reply = Reply::new(buffer, "methods_r", call);
            reply.json(&self.names()).map_err(Failure::Fault)?;
            return reply.seal(order).map_err(Failure::Fault);
        }
        self.own.call(index, params, call, buffer, order)
    }

    fn wants_left_clients(&self) -> bool {
        self.own.wants_left_clients()
    }

    fn client_has_left(&mut self, client: ClientId) -> Result<(), String> {
        self.own.client_has_left(client)
    }

    fn health_interval(&self) -> Option<Duration> {
        self.own.health_interval()
    }

    fn check_health(&mut self) -> Result<Option<String>, String> {
        self.own.check_health()
    }

    fn away_method(&self, index: usize) -> Option<(&str, &str)> {
        let (method, reply) = self.methods.get(index.checked_sub(self.own_count)?)?;
        Some((&method.name, reply))
    }
}
