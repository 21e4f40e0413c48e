//! One method: its name, its function, and what the daemon must know about it.

use std::fmt;
#[cfg(feature = "tokio")]
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
#[cfg(feature = "tokio")]
use serde_json::value::to_raw_value;

#[cfg(feature = "tokio")]
use super::futures::{AsyncCall, MethodJob};
use super::reply::{Call, Fault, Reply};
use crate::proto::rpc::{Code, GOAWAY, is_fault_code, is_method_name};
use crate::proto::wording::{Vocabulary, plain};

/// Makes the future of a request, from the state and the params.
#[cfg(feature = "tokio")]
pub(super) type Starter<S> = Box<dyn Fn(&S, &[u8], AsyncCall) -> MethodJob>;

pub(super) type Handler<S> = Box<dyn Fn(&mut S, &RawValue, &mut Reply<'_>) -> Result<(), Fault>>;

/// A method of a daemon whose workers have the state `S`: a name, a function and its settings. [`Daemon::method`] adds
/// it.
///
/// ```
/// use fdpassd::{Call, Fault, Method};
///
/// fn half(_: &mut (), n: u64, _: &Call) -> Result<u64, Fault> {
///     match n % 2 {
///         0 => Ok(n / 2),
///         _ => Err(Fault::new("odd", "only even numbers have a half")),
///     }
/// }
///
/// let method = Method::new("half", half).idempotent().inline();
/// # let _ = method;
/// ```
///
/// A name is `[a-z][a-z0-9_.-]{0,63}`, but not `error`, nor `ping` or `methods`, which every daemon has. A daemon with
/// another name, or with two methods of one name, reports that and does not start.
///
/// [`Daemon::method`]: crate::Daemon::method
pub struct Method<S = ()> {
    pub(super) name: String,
    pub(super) reply_name: String,
    pub(super) is_idempotent: bool,
    pub(super) is_inline: bool,
    pub(super) handler: Handler<S>,
    /// Makes the future of a request, if the method is asynchronous.
    #[cfg(feature = "tokio")]
    pub(super) starter: Option<Starter<S>>,
}

impl<S: 'static> Method<S> {
    /// Returns a method whose `params` are parsed into `P`, and whose return value is the `result`.
    ///
    /// Params that are not a `P` are answered with `bad_params`, a panic with `crashed`. If its worker dies in it, the
    /// method does not run again, and its caller gets `crashed`.
    ///
    /// The type of the state must be known where a closure uses it: `|store: &mut Store, n: u64, _: &Call| …`.
    #[must_use]
    pub fn new<P, R>(
        name: impl Into<String>,
        call: impl Fn(&mut S, P, &Call) -> Result<R, Fault> + 'static,
    ) -> Method<S>
    where
        P: DeserializeOwned,
        R: Serialize,
    {
        Method::from_handler(
            name.into(),
            Box::new(move |state, params, out| {
                let params = parse_params(params.get())?;
                let circumstances = *out.call();
                out.json(&call(state, params, &circumstances)?)
            }),
        )
    }

    /// Returns a method that gets its params as the client wrote them, and writes its result itself: nothing is copied
    /// or parsed unless it does so.
    ///
    /// ```
    /// # use fdpassd::{Method, RawValue, Reply};
    /// let echo: Method = Method::raw("echo", |_, params: &RawValue, out: &mut Reply| out.raw(params));
    /// # let _ = echo;
    /// ```
    #[must_use]
    pub fn raw(
        name: impl Into<String>,
        call: impl Fn(&mut S, &RawValue, &mut Reply<'_>) -> Result<(), Fault> + 'static,
    ) -> Method<S> {
        Method::from_handler(name.into(), Box::new(call))
    }

    fn from_handler(name: String, handler: Handler<S>) -> Method<S> {
        Method {
            reply_name: default_reply_name(&name),
            name,
            is_idempotent: false,
            is_inline: false,
            handler,
            #[cfg(feature = "tokio")]
            starter: None,
        }
    }

    /// Returns whether the runtime executes it.
    pub(super) fn is_async(&self) -> bool {
        #[cfg(feature = "tokio")]
        return self.starter.is_some();
        #[cfg(not(feature = "tokio"))]
        return false;
    }

    /// Allows that the method runs once more if its worker died in it: it has no side effects, or its second run
    /// changes nothing.
    #[must_use]
    pub fn idempotent(mut self) -> Method<S> {
        self.is_idempotent = true;
        self
    }

    /// Marks the method as one that takes microseconds: no clock is read around it, and replies to pipelined requests
    /// are sent together.
    #[must_use]
    pub fn inline(mut self) -> Method<S> {
        self.is_inline = true;
        self
    }

    /// Sets the name of its replies, which follows the rule for names of methods and is not `goaway`; the default is NAME + `_r`.
    #[must_use]
    pub fn reply_name(mut self, name: impl Into<String>) -> Method<S> {
        self.reply_name = name.into();
        self
    }

    /// Returns the errors of the program in this method alone.
    pub(super) fn mistakes(&self) -> impl Iterator<Item = String> {
        const RULE: &str = "[a-z][a-z0-9_.-]{0,63}, but not \"error\"";
        let name = &self.name;
        let own =
            (!is_method_name(name)).then(|| format!("{name:?} is not a valid method name: {RULE}"));
        let reply = &self.reply_name;
        let is_set = *reply != default_reply_name(name);
        let is_taken = (reply == GOAWAY).then(|| {
            format!("{reply:?} is the last frame of a connection; replies of method {name:?} need another name")
        });
        let reply = (is_set && !is_method_name(reply)).then(|| {
            format!("{reply:?} is not a valid name for replies of method {name:?}: {RULE}")
        });
        let inline = (self.is_inline && self.is_async())
            .then(|| format!("method {name:?} is asynchronous, so it cannot be inline"));
        [own, reply, is_taken, inline].into_iter().flatten()
    }
}

fn default_reply_name(name: &str) -> String {
    format!("{name}_r")
}

impl Method<()> {
    /// Returns the method for workers with any state, which it does not use.
    pub(crate) fn for_any_state<S: 'static>(self) -> Method<S> {
        let handler = self.handler;
        Method {
            name: self.name,
            reply_name: self.reply_name,
            is_idempotent: self.is_idempotent,
            is_inline: self.is_inline,
            handler: Box::new(move |_, params, out| handler(&mut (), params, out)),
            #[cfg(feature = "tokio")]
            starter: self.starter.map(|starter| -> Starter<S> {
                Box::new(move |_, params, call| starter(&(), params, call))
            }),
        }
    }
}

impl<S> Method<S> {
    /// Returns the fault that the method's caller gets. A code that clients could take for another event in the daemon,
    /// or that is not a code, becomes `internal`, and the log names it: the code may be made at run time, so it cannot be
    /// refused before.
    pub(super) fn permitted(&self, fault: Fault) -> Fault {
        permitted(&self.name, fault)
    }
}

/// Does the same as [`Method::permitted`].
fn permitted(method: &str, fault: Fault) -> Fault {
    let code = fault.code();
    let of_daemon = Code::ALL.into_iter().find(|known| known.as_str() == code);
    let why = match of_daemon {
        Some(Code::BadParams | Code::Internal) => return fault,
        Some(_) => "only the daemon itself uses it",
        None if is_fault_code(code) => return fault,
        None => "a code is [a-z][a-z0-9_]{0,63}",
    };
    let code: String = code.chars().take(64).collect();
    log::error!(
        "method {:?} returned a fault with the code {code:?}: {why}; its caller got \"internal\"",
        method
    );
    Fault::from_code(Code::Internal, fault.message())
}

impl<S> fmt::Debug for Method<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut method = f.debug_struct("Method");
        method.field("name", &self.name);
        method.field("is_idempotent", &self.is_idempotent);
        method.field("is_inline", &self.is_inline);
        method.finish_non_exhaustive()
    }
}

#[cfg(feature = "tokio")]
impl<S: Clone + Send + 'static> Method<S> {
    /// Returns a method that waits without keeping its worker from other clients: it returns a future, and a worker has
    /// many of them at a time, see [`Daemon::concurrency`](crate::Daemon::concurrency). Its state, and what it may do,
    /// are described at [`Daemon::async_method`](crate::Daemon::async_method).
    ///
    /// Params that are not a `P` are answered with `bad_params`, a panic with `crashed`. If its worker dies in it, the
    /// method does not run again, and its caller gets `crashed`, unless it is [idempotent](Method::idempotent).
    #[must_use]
    pub fn new_async<P, R, F>(
        name: impl Into<String>,
        call: impl Fn(S, P, AsyncCall) -> F + Send + Sync + 'static,
    ) -> Method<S>
    where
        P: DeserializeOwned + 'static,
        R: Serialize + 'static,
        F: Future<Output = Result<R, Fault>> + 'static,
    {
        let name: String = name.into();
        let shared = Arc::new((name.clone(), call));
        let starter: Starter<S> = Box::new(move |state, params, circumstances| {
            let (shared, state) = (Arc::clone(&shared), state.clone());
            let params = String::from_utf8_lossy(params).into_owned();
            Box::new(move || {
                Box::pin(async move {
                    let (name, call) = &*shared;
                    let parsed = parse_params(&params)?;
                    drop(params);
                    let called = call(state, parsed, circumstances).await;
                    let result = called.map_err(|fault| permitted(name, fault))?;
                    to_raw_value(&result).map_err(|e| {
                        let message = format!("the result cannot be written as JSON: {e}");
                        Fault::from_code(Code::Internal, message)
                    })
                })
            })
        });
        let never: Handler<S> = Box::new(|_, _, _| {
            Err(Fault::from_code(
                Code::Internal,
                "the method is asynchronous",
            ))
        });
        Method {
            starter: Some(starter),
            ..Method::from_handler(name, never)
        }
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
    serde_json::from_str(params)
        .map_err(|e| Fault::bad_params(plain(&e.to_string(), Vocabulary::Json)))
}
