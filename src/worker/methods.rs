//! The methods of a daemon, and the state they share.

use std::cell::RefCell;
use std::panic::{self, AssertUnwindSafe, catch_unwind};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use super::builtin;
use super::reply::{Call, Fault, Reply};
use crate::proto::channel::MethodName;
use crate::proto::names::{Generation, WorkerId};
use crate::proto::rpc::{Code, is_method_name};
use crate::sys::fork;

/// The worker process that constructs a state.
#[derive(Clone, Debug)]
pub struct WorkerInfo {
    /// The daemon's name.
    pub name: String,
    /// The worker's id; never reused.
    pub worker: WorkerId,
    /// The worker's index, from 0 to the number of workers less one; a successor takes the same one.
    pub seat: u32,
    /// The configuration it serves.
    pub generation: Generation,
}

type Handler<S> = Box<dyn Fn(&mut S, &RawValue, &mut Reply<'_>) -> Result<(), Fault>>;
type Constructor<S> = Box<dyn Fn(&WorkerInfo) -> Result<S, String>>;

/// One method.
pub(crate) struct Method<S> {
    name: String,
    reply_name: String,
    idempotent: bool,
    inline: bool,
    handler: Handler<S>,
}

/// All methods of a daemon, in the order of their names, and the constructor of their state.
pub(crate) struct Methods<S> {
    all: Vec<Method<S>>,
    /// The method that was added last, to which further settings apply.
    last: usize,
    constructor: Constructor<S>,
    /// Errors of the program, reported when the daemon is started.
    mistakes: Vec<String>,
}

impl<S: 'static> Methods<S> {
    /// Returns the method `ping`, which every daemon has; [`Methods::complete`] adds `methods`.
    pub(crate) fn new(constructor: Constructor<S>) -> Methods<S> {
        let mut methods = Methods {
            all: Vec::new(),
            last: 0,
            constructor,
            mistakes: Vec::new(),
        };
        methods.add(
            "ping",
            true,
            Box::new(|_, params, out| builtin::ping(params, out)),
        );
        methods.rename_reply("pong");
        methods.make_inline();
        methods
    }

    /// Adds `methods`, which lists all methods, itself included.
    pub(crate) fn complete(mut self) -> Methods<S> {
        self.add("methods", true, Box::new(|_, _, _| Ok(())));
        let names = self.names();
        self.all[self.last].handler = Box::new(move |_, _, out| out.json(&names));
        self
    }

    pub(crate) fn add(&mut self, name: &str, idempotent: bool, handler: Handler<S>) {
        if !is_method_name(name) {
            self.mistakes.push(format!(
                "{name:?} is not a valid method name: [a-z][a-z0-9_.-]{{0,63}}, but not \"error\""
            ));
        }
        let method = Method {
            name: name.to_owned(),
            reply_name: format!("{name}_r"),
            idempotent,
            inline: false,
            handler,
        };
        match self
            .all
            .binary_search_by(|other| other.name.as_str().cmp(name))
        {
            Ok(_) => self.mistakes.push(format!("duplicate method {name:?}")),
            Err(place) => {
                self.all.insert(place, method);
                self.last = place;
            }
        }
    }

    pub(crate) fn add_typed<P, R>(
        &mut self,
        name: &str,
        idempotent: bool,
        call: impl Fn(&mut S, P, &Call) -> Result<R, Fault> + 'static,
    ) where
        P: DeserializeOwned,
        R: Serialize,
    {
        self.add(
            name,
            idempotent,
            Box::new(move |state, params, out| {
                let params = parse_params(params.get())?;
                let circumstances = *out.call();
                out.json(&call(state, params, &circumstances)?)
            }),
        );
    }

    /// Sets the name of the last method's replies.
    pub(crate) fn rename_reply(&mut self, reply_name: &str) {
        match is_method_name(reply_name) {
            true => self.all[self.last].reply_name = reply_name.to_owned(),
            false => self
                .mistakes
                .push(format!("{reply_name:?} is not a valid reply name")),
        }
    }

    /// Marks the last method as one that takes microseconds.
    pub(crate) fn make_inline(&mut self) {
        self.all[self.last].inline = true;
    }

    /// Returns whether no method has been added yet.
    pub(crate) fn has_no_own(&self) -> bool {
        self.all.len() == 1 && self.mistakes.is_empty()
    }

    /// Removes a method, if there is one of that name.
    pub(crate) fn remove(&mut self, name: &str) {
        self.all.retain(|method| method.name != name);
        self.last = 0;
    }

    /// Returns the errors of the program.
    pub(crate) fn mistakes(&self) -> &[String] {
        &self.mistakes
    }

    fn names(&self) -> Vec<MethodName> {
        let name = |method: &Method<S>| MethodName {
            name: method.name.clone(),
            idempotent: method.idempotent,
        };
        self.all.iter().map(name).collect()
    }
}

/// Parses params into a method's own type.
///
/// If that contains a [`serde_json::Value`], an object with the key `$serde_json::private::RawValue` would be parsed as
/// more JSON, with a fresh budget of recursion at each level: a frame of them overflows the stack. No valid request has
/// that key.
fn parse_params<P: DeserializeOwned>(params: &str) -> Result<P, Fault> {
    if params.contains("$serde_json::private::") {
        let message = "the key \"$serde_json::private::…\" is not accepted";
        return Err(Fault::bad_params(message));
    }
    serde_json::from_str(params).map_err(|e| Fault::bad_params(e.to_string()))
}

/// The methods as the worker's loop calls them, independent of the type of their state.
pub(crate) trait Service {
    /// Returns all methods, in the order of their indices.
    fn names(&self) -> Vec<MethodName>;

    /// Returns the index of a method.
    fn find(&mut self, name: &str) -> Option<usize>;

    /// Returns whether the method may run once more after a death.
    fn is_idempotent(&self, index: usize) -> bool;

    /// Returns whether the method takes microseconds, so that no clock is read around it.
    fn is_inline(&self, index: usize) -> bool;

    /// Runs the method. On success the buffer contains the reply as a whole frame, whose length is returned.
    fn call(
        &mut self,
        index: usize,
        params: &RawValue,
        call: Call,
        buffer: &mut [u8],
        order: Order,
    ) -> Result<usize, Failure>;

    /// Returns whether this process runs methods that are not inline. They may close descriptors that are not theirs.
    fn has_own_methods(&self) -> bool;

    /// Returns the method's name and that of its replies, if an app executes it.
    fn app_method(&self, index: usize) -> Option<(&str, &str)> {
        let _ = index;
        None
    }
}

pub(crate) use crate::proto::frame::ByteOrder as Order;

/// The reason why there is no result.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The method returned a fault.
    Fault(Fault),
    /// The method panicked; its state has been rebuilt.
    Panicked,
    /// The method panicked, and its state cannot be rebuilt: this process cannot continue.
    Broken(String),
}

/// Methods with their state.
pub(crate) struct RunningService<S> {
    methods: Methods<S>,
    state: S,
    info: WorkerInfo,
    /// The index of the method that was found last.
    last: usize,
}

impl<S: 'static> RunningService<S> {
    /// Constructs the state.
    pub(crate) fn start(
        methods: Methods<S>,
        info: WorkerInfo,
    ) -> Result<RunningService<S>, String> {
        let state = construct(&methods, &info)?;
        Ok(RunningService {
            methods,
            state,
            info,
            last: 0,
        })
    }
}

fn construct<S>(methods: &Methods<S>, info: &WorkerInfo) -> Result<S, String> {
    let made = catch_unwind(AssertUnwindSafe(|| (methods.constructor)(info)));
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

    fn find(&mut self, name: &str) -> Option<usize> {
        // Most requests call the same method as the one before.
        if self.methods.all[self.last].name != name {
            self.last = self
                .methods
                .all
                .binary_search_by(|method| method.name.as_str().cmp(name))
                .ok()?;
        }
        Some(self.last)
    }

    fn is_idempotent(&self, index: usize) -> bool {
        self.methods.all[index].idempotent
    }

    fn is_inline(&self, index: usize) -> bool {
        self.methods.all[index].inline
    }

    fn has_own_methods(&self) -> bool {
        // Each daemon has `ping` and `methods`.
        self.methods.all.len() > 2
    }

    fn call(
        &mut self,
        index: usize,
        params: &RawValue,
        call: Call,
        buffer: &mut [u8],
        order: Order,
    ) -> Result<usize, Failure> {
        let method = &self.methods.all[index];
        let mut reply = Reply::new(buffer, &method.reply_name, call);
        // A panic may leave the state inconsistent: it is replaced.
        let returned = catch_unwind(AssertUnwindSafe(|| {
            (method.handler)(&mut self.state, params, &mut reply)
        }));
        // A child forked by the method would answer a second time.
        fork::end_child();
        match returned {
            Ok(Ok(())) => reply.seal(order).map_err(Failure::Fault),
            Ok(Err(fault)) => Err(Failure::Fault(fault)),
            Err(_) => {
                log::error!(
                    "method {:?} {}; its state is created again",
                    method.name,
                    last_panic()
                );
                self.state = construct(&self.methods, &self.info).map_err(Failure::Broken)?;
                Err(Failure::Panicked)
            }
        }
    }
}

thread_local! {
    /// The place and message of the last panic, which only the hook receives.
    static LAST_PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Keeps the message of a panic, so that the worker logs it in one line with the consequence.
pub(crate) fn remember_panics() {
    panic::set_hook(Box::new(|info| {
        LAST_PANIC.with(|last| last.replace(info.to_string().replacen('\n', " ", 1)));
    }));
}

/// Returns "panicked at FILE:LINE:COLUMN: MESSAGE".
fn last_panic() -> String {
    LAST_PANIC.with(RefCell::take)
}

/// Returns the fault that a client receives.
impl From<Failure> for Fault {
    fn from(failure: Failure) -> Fault {
        match failure {
            Failure::Fault(fault) => fault,
            Failure::Panicked | Failure::Broken(_) => Fault::from_code(
                Code::Crashed,
                "the method crashed while it ran this request",
            ),
        }
    }
}
