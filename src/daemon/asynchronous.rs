//! Asynchronous methods of a daemon.

use serde::de::DeserializeOwned;

use crate::daemon::Daemon;
use crate::worker::{AsyncCall, Fault, Method};

impl<S: Clone + Send + 'static, C: 'static, L: Send + Sync + 'static> Daemon<S, C, L> {
    /// Adds a method that waits, such as for a database: [`Method::new_async`] is the same as a value, which can also
    /// be [idempotent](Method::idempotent). Needs the feature `tokio`.
    ///
    /// The method returns a future. A worker executes up to [`Daemon::concurrency`] of them at a time, in a thread of
    /// its own with a current-thread runtime of tokio. Other methods run in the thread of the worker's loop. A future
    /// need not be [`Send`]. It must not block its thread: all requests of the worker wait then, and after
    /// `stall-timeout` its other clients are moved. [`tokio::task::spawn_blocking`] is for what blocks.
    ///
    /// Each request gets a clone of the state. A type behind an [`Arc`](std::sync::Arc) is shared by all requests of
    /// the worker, also with methods that are not asynchronous. The state's constructor can wait for a future by
    /// [`tokio::runtime::Handle::block_on`], as in the example.
    ///
    /// * At most one request of a client executes at a time, so its replies have the order of its requests.
    /// * The future is dropped when its client leaves, and after `request-timeout`, when its caller gets `timeout`. A
    ///   task of its own ([`tokio::spawn`]) is for work that must not be interrupted.
    /// * A panic, also one in the clone of the state, is answered with `crashed`. The worker keeps the state, because
    ///   other futures use it, and serves until its successor is ready.
    /// * If the worker dies, each request that was executing runs once more if its method is idempotent. The callers of
    ///   the others get `crashed`.
    /// * All signals are blocked in the runtime's thread. Programs that it starts inherit that, unless they reset it.
    ///
    /// A daemon has either asynchronous methods or an app.
    ///
    /// ```no_run
    /// use std::sync::Arc;
    ///
    /// use fdpassd::{AsyncCall, Daemon, Fault};
    /// # struct Shop;
    /// # impl Shop {
    /// #     async fn open() -> Result<Shop, std::io::Error> { Ok(Shop) }
    /// #     async fn price(&self, item: &str) -> Option<f64> { None }
    /// # }
    ///
    /// async fn price(shop: Arc<Shop>, item: String, _: AsyncCall) -> Result<f64, Fault> {
    ///     let price = shop.price(&item).await;
    ///     price.ok_or_else(|| Fault::new("no_such_item", "there is no item of that name"))
    /// }
    ///
    /// fn main() -> std::process::ExitCode {
    ///     Daemon::new("shopd")
    ///         .state(|_worker| tokio::runtime::Handle::current().block_on(Shop::open()).map(Arc::new))
    ///         .async_method("price", price)
    ///         .concurrency(256)
    ///         .run()
    /// }
    /// ```
    #[must_use]
    pub fn async_method<P, R, F>(
        self,
        name: impl Into<String>,
        call: impl Fn(S, P, AsyncCall) -> F + Send + Sync + 'static,
    ) -> Daemon<S, C, L>
    where
        P: DeserializeOwned + 'static,
        R: serde::Serialize + 'static,
        F: Future<Output = Result<R, Fault>> + 'static,
    {
        self.method(Method::new_async(name, call))
    }

    /// Sets the most requests of asynchronous methods that one worker executes at a time: 1 to 4096; the default is 64.
    /// Further ones wait in the order in which they came, and may be moved to another worker.
    #[must_use]
    pub fn concurrency(mut self, most: u32) -> Daemon<S, C, L> {
        self.concurrency = Some(most);
        self
    }
}
