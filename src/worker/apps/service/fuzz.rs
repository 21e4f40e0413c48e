//! The checks of an app's hello, for the fuzzer.

use std::time::Duration;

use serde_json::value::RawValue;

use super::AppService;
use crate::proto::app::FromApp;
use crate::proto::channel::{MethodName, check_methods};
use crate::proto::names::ClientId;
use crate::proto::rpc::Code;
use crate::worker::apps::metrics::AppMetrics;
use crate::worker::methods::{Failure, FoundMethod, Order, Service};
use crate::worker::metrics::WorkerMetrics;
use crate::worker::reply::{Call, Fault};

/// The methods of a worker that has none of its own.
struct NoMethods;

impl Service for NoMethods {
    fn names(&self) -> Vec<MethodName> {
        Vec::new()
    }

    fn find(&mut self, _: &str) -> Option<FoundMethod> {
        None
    }

    fn is_idempotent(&self, _: usize) -> bool {
        false
    }

    fn call(
        &mut self,
        _: usize,
        _: &RawValue,
        _: Call,
        _: &mut [u8],
        _: Order,
    ) -> Result<usize, Failure> {
        let fault = Fault::from_code(Code::Internal, "there is no method");
        Err(Failure::Fault(fault))
    }

    fn runs_other_code(&self) -> bool {
        false
    }

    fn wants_left_clients(&self) -> bool {
        false
    }

    fn client_has_left(&mut self, _: ClientId) -> Result<(), String> {
        Ok(())
    }

    fn health_interval(&self) -> Option<Duration> {
        None
    }

    fn check_health(&mut self) -> Result<Option<String>, String> {
        Ok(None)
    }
}

/// Checks any bytes as the body of a hello. Methods that are accepted must be found by their names, and must fit into
/// the worker's message to the master.
pub(crate) fn fuzz_hello(body: &[u8]) {
    let Ok(FromApp::Hello(hello)) = FromApp::parse(body) else {
        return;
    };
    let _ = AppMetrics::declare(&hello.metrics, &WorkerMetrics::new(None));
    let declared = hello.methods.clone();
    let mut own = NoMethods;
    let Ok(mut service) = AppService::new(&mut own, hello.methods) else {
        return;
    };
    assert!(check_methods(&service.names()).is_ok());
    assert_eq!(service.names().len(), declared.len());
    for method in declared {
        let found = service.find(&method.name).expect("it was accepted");
        assert_eq!(service.is_idempotent(found.index), method.idempotent);
        let (name, reply) = service.away_method(found.index).expect("it is the app's");
        assert_eq!(name, method.name);
        assert!(method.reply.is_none_or(|wanted| wanted == reply));
    }
}
