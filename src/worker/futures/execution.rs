//! The execution of one request: its future, with the scope of its log lines, its panics and its end.

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::task::AbortHandle;

use super::queues::{Queues, Report};
use super::{MethodFuture, MethodJob, MethodResult};
use crate::logging::scope;
use crate::proto::names::ClientId;
use crate::sys::fork;
use crate::sys::gate::ExecutionGate;
use crate::worker::methods::Failure;
use crate::worker::panics::{last_panic, remembering_panics};
use crate::worker::reply::Fault;

/// The tasks of the requests that execute, by their ids.
pub(super) type Tasks = Rc<RefCell<HashMap<u64, AbortHandle>>>;

/// Executes a request to its end, and reports that, also if the task is aborted.
pub(super) async fn execute(
    queues: Arc<Queues>,
    tasks: Tasks,
    (id, client, method): (u64, ClientId, usize),
    job: MethodJob,
) {
    // Dropped after the future, because it is declared before.
    let mut completion = Completion {
        queues,
        tasks,
        id,
        result: None,
        is_panic: false,
    };
    let mut execution = FutureExecution {
        gate: Arc::clone(&completion.queues.gate),
        client,
        method,
        job: Some(job),
        future: None,
    };
    match poll_fn(|context| execution.poll(context)).await {
        Ok(result) => completion.result = Some(result),
        Err(Panicked) => {
            completion.result = Some(Err(Fault::from(Failure::Panicked)));
            completion.is_panic = true;
        }
    }
}

/// Reports the end of a request when it is dropped.
struct Completion {
    queues: Arc<Queues>,
    tasks: Tasks,
    id: u64,
    result: Option<MethodResult>,
    is_panic: bool,
}

impl Drop for Completion {
    fn drop(&mut self) {
        self.tasks.borrow_mut().remove(&self.id);
        self.queues.report(Report::Ended {
            id: self.id,
            result: self.result.take(),
            is_panic: self.is_panic,
        });
    }
}

/// The code of a method, called so that a panic ends only its request.
struct FutureExecution {
    gate: Arc<ExecutionGate>,
    client: ClientId,
    method: usize,
    /// Makes the future. `None` after that.
    job: Option<MethodJob>,
    future: Option<MethodFuture>,
}

struct Panicked;

impl FutureExecution {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<MethodResult, Panicked>> {
        let about = (self.client, self.method);
        let (job, future) = (&mut self.job, &mut self.future);
        let polled = guard(&self.gate, about, || {
            if let Some(job) = job.take() {
                *future = Some(job());
            }
            match future {
                Some(future) => future.as_mut().poll(context),
                None => Poll::Pending,
            }
        });
        match polled {
            Ok(polled) => polled.map(Ok),
            Err(Panicked) => Poll::Ready(Err(Panicked)),
        }
    }
}

impl Drop for FutureExecution {
    fn drop(&mut self) {
        let (job, future) = (self.job.take(), self.future.take());
        let about = (self.client, self.method);
        let _ = guard(&self.gate, about, || drop((job, future)));
    }
}

/// Runs code of a method.
fn guard<T>(
    gate: &ExecutionGate,
    (client, method): (ClientId, usize),
    code: impl FnOnce() -> T,
) -> Result<T, Panicked> {
    let _inside = gate.enter();
    scope::enter(client, Some(method));
    let returned = remembering_panics(|| catch_unwind(AssertUnwindSafe(code)));
    // A child forked by the method would answer a second time.
    fork::end_child();
    let returned = returned.map_err(|_| {
        log::error!(
            "an asynchronous method {}; its worker is replaced",
            last_panic()
        );
        Panicked
    });
    scope::leave();
    returned
}
