//! A value that all workers of a configuration share.

use std::fmt;

use crate::daemon::Daemon;
use crate::worker::Preloaded;

impl<C: 'static> Daemon<(), C> {
    /// Sets a function that loads what all workers of a configuration share, and never change: a model, a table, a
    /// dictionary. [`Daemon::state`] receives it as [`WorkerInfo::preloaded`](crate::WorkerInfo::preloaded).
    ///
    /// With `workers.start = "fork"` the function is called once for each configuration, in the zygote that forks the
    /// workers. They share the memory that it has filled, as long as no worker writes to it: 1 GiB for any number of
    /// workers costs about 1 GiB. With `workers.start = "exec"` each worker calls it before its state is made.
    ///
    /// The function receives the daemon's own table of the configuration. A reload calls it again, for the new
    /// generation; if it fails or panics, the reload is rolled back. `start-timeout` includes its time.
    ///
    /// In a zygote it runs in a thread of its own, which then ends: so nothing that is kept for each thread, such as
    /// the keys of hash tables or a random generator, is copied to the workers. A generator in the value itself is
    /// copied and must be seeded again by [`Daemon::state`]. A connection or file that it opens is open in all workers.
    /// If it leaves a thread behind, the zygote does not become ready, because a forked process has one thread.
    ///
    /// ```no_run
    /// use std::collections::BTreeSet;
    /// use std::fs;
    /// use std::sync::Arc;
    ///
    /// use fdpassd::{Call, Daemon, Fault, Method, WorkerInfo};
    ///
    /// type Words = BTreeSet<String>;
    ///
    /// fn is_word(words: &mut Arc<Words>, word: String, _: &Call) -> Result<bool, Fault> {
    ///     Ok(words.contains(&word))
    /// }
    ///
    /// fn main() -> std::process::ExitCode {
    ///     Daemon::new("spelld")
    ///         .preload(|()| -> Result<Words, std::io::Error> {
    ///             let text = fs::read_to_string("/usr/share/dict/words")?;
    ///             Ok(text.lines().map(str::to_owned).collect())
    ///         })
    ///         .state(|worker: &WorkerInfo<(), Words>| Ok::<_, Fault>(Arc::clone(&worker.preloaded)))
    ///         .method(Method::new("is_word", is_word).idempotent())
    ///         .run()
    /// }
    /// ```
    #[must_use]
    pub fn preload<P: Send + Sync + 'static, E: fmt::Display>(
        self,
        load: impl Fn(&C) -> Result<P, E> + Send + Sync + 'static,
    ) -> Daemon<(), C, P> {
        let parse = self.parse;
        Daemon {
            name: self.name,
            version: self.version,
            table: self.table,
            parse: self.parse,
            shared: Preloaded::new(move |table| {
                let config = parse(table)?;
                load(&config).map_err(|e| e.to_string())
            }),
            constructor: self.constructor,
            methods: self.methods,
            hooks: self.hooks,
            #[cfg(feature = "tokio")]
            concurrency: self.concurrency,
        }
    }
}
