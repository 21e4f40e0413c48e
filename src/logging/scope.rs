//! The worker, the client and the method of a line, which a worker sets around the code of a daemon's author.

use std::cell::Cell;
use std::sync::OnceLock;

use serde_json::Value;

use crate::proto::names::{ClientId, WorkerId};

/// The worker of this process, and the names of its methods.
static WORKER: OnceLock<(WorkerId, Vec<String>)> = OnceLock::new();

thread_local! {
    /// The client, and the method's index plus one, of the code that this thread runs; 0 is none.
    static SCOPE: Cell<(u64, u32)> = const { Cell::new((0, 0)) };
}

/// Sets the worker of all lines of this process. Only the first call counts.
pub fn set_worker(worker: WorkerId, methods: Vec<String>) {
    let _ = WORKER.set((worker, methods));
}

/// The scope of this thread's lines, until this is dropped.
#[derive(Debug)]
pub struct Scope(());

impl Scope {
    /// Sets the client, and the method by its index.
    #[must_use]
    pub fn enter(client: ClientId, method: Option<usize>) -> Scope {
        SCOPE.set((client.0, method.map_or(0, |index| index as u32 + 1)));
        Scope(())
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        SCOPE.set((0, 0));
    }
}

/// Adds the fields of the scope to those of a line, which come first.
pub(super) fn add(fields: &mut Vec<(String, Value)>) {
    let Some((worker, methods)) = WORKER.get() else {
        return;
    };
    let (client, method) = SCOPE.get();
    let method = (method as usize).checked_sub(1);
    let method = method.and_then(|index| methods.get(index));
    let scope = [
        ("worker", Some(Value::from(worker.0))),
        ("client", (client != 0).then(|| Value::from(client))),
        ("method", method.map(|name| Value::from(name.as_str()))),
    ];
    for (name, value) in scope {
        let is_new = fields.iter().all(|(earlier, _)| earlier != name);
        fields.extend(
            value
                .filter(|_| is_new)
                .map(|value| (name.to_owned(), value)),
        );
    }
}
