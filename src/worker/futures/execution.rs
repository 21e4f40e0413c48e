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
use crate::logging::scope::Scope;
use crate::proto::names::ClientId;
use crate::sys::fork;
use crate::sys::latch::ExecutionLatch;
use crate::worker::methods::Failure;
use crate::worker::panics::{last_panic, remembering_panics};
use crate::worker::reply::Fault;

/// The tasks of the requests that execute, by their ids.
pub(super) type Tasks = Rc<RefCell<HashMap<u64, AbortHandle>>>;

/// Returns the task that executes a request and reports its end. The drop of the task reports the end, because a task
/// that is aborted before its first poll is only dropped.
pub(super) fn execute(
    queues: Arc<Queues>,
    tasks: Tasks,
    (id, client, method): (u64, ClientId, usize),
    job: MethodJob,
) -> impl Future<Output = ()> + 'static {
    let mut execution = FutureExecution {
        queues,
        tasks,
        id,
        client,
        method,
        job: Some(job),
        future: None,
        result: None,
        is_panic: false,
    };
    poll_fn(move |context| execution.poll(context))
}

/// The code of a method, called so that a panic ends only its request. The drop reports the end of the request.
struct FutureExecution {
    queues: Arc<Queues>,
    tasks: Tasks,
    id: u64,
    client: ClientId,
    method: usize,
    /// Makes the future. `None` after that.
    job: Option<MethodJob>,
    future: Option<MethodFuture>,
    result: Option<MethodResult>,
    is_panic: bool,
}

struct Panicked;

impl FutureExecution {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let about = (self.client, self.method);
        let (job, future) = (&mut self.job, &mut self.future);
        let polled = guard(&self.queues.latch, about, || {
            if let Some(job) = job.take() {
                *future = Some(job());
            }
            match future {
                Some(future) => future.as_mut().poll(context),
                None => Poll::Pending,
            }
        });
        match polled {
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(result)) => self.result = Some(result),
            Err(Panicked) => {
                self.result = Some(Err(Fault::from(Failure::Panicked)));
                self.is_panic = true;
            }
        }
        Poll::Ready(())
    }
}

impl Drop for FutureExecution {
    fn drop(&mut self) {
        let code = (self.job.take(), self.future.take());
        let about = (self.client, self.method);
        self.is_panic |= guard(&self.queues.latch, about, || drop(code)).is_err();
        // After the drop of the code nothing of the request executes any more.
        self.tasks.borrow_mut().remove(&self.id);
        self.queues.report(Report::Ended {
            id: self.id,
            result: self.result.take(),
            is_panic: self.is_panic,
        });
    }
}

/// Runs code of a method.
fn guard<T>(
    latch: &ExecutionLatch,
    (client, method): (ClientId, usize),
    code: impl FnOnce() -> T,
) -> Result<T, Panicked> {
    let _inside = latch.enter();
    let _scope = Scope::enter(client, Some(method));
    let returned = remembering_panics(|| catch_unwind(AssertUnwindSafe(code)));
    // A child forked by the method would answer a second time.
    fork::end_child();
    returned.map_err(|_| {
        log::error!(
            "an asynchronous method {}; its worker is replaced",
            last_panic()
        );
        Panicked
    })
}
