//! The value that the workers of a generation share: loaded once in their zygote, or by each worker that is executed.

use std::sync::{Arc, OnceLock};

/// Loads from the text of the daemon's own table.
pub(crate) type Preload = Arc<dyn Fn(&str) -> Result<(), String> + Send + Sync>;

/// A value that is loaded at most once in a process, and in those that it forks not again.
pub(crate) struct Preloaded<P> {
    value: Arc<OnceLock<Arc<P>>>,
    preload: Option<Preload>,
}

impl Preloaded<()> {
    /// Returns the value of a daemon that loads nothing.
    pub(crate) fn nothing() -> Preloaded<()> {
        Preloaded::preloaded_by(None)
    }

    /// Returns no value, of a daemon whose state takes the one that this loads.
    pub(crate) fn preloaded_by(preload: Option<Preload>) -> Preloaded<()> {
        Preloaded {
            value: Arc::new(OnceLock::from(Arc::default())),
            preload,
        }
    }
}

impl<P: Send + Sync + 'static> Preloaded<P> {
    /// Returns the value that `load` loads.
    pub(crate) fn new(
        load: impl Fn(&str) -> Result<P, String> + Send + Sync + 'static,
    ) -> Preloaded<P> {
        let value = Arc::new(OnceLock::new());
        let loaded = Arc::clone(&value);
        let preload = move |table: &str| {
            if loaded.get().is_none() {
                let _ = loaded.set(Arc::new(load(table)?));
            }
            Ok(())
        };
        Preloaded {
            value,
            preload: Some(Arc::new(preload)),
        }
    }

    /// Returns the function that loads it.
    pub(crate) fn preload(&self) -> Option<Preload> {
        self.preload.clone()
    }

    /// Returns the value, which is loaded if it was not yet.
    pub(crate) fn get(&self, table: &str) -> Result<Arc<P>, String> {
        if let Some(preload) = &self.preload {
            preload(table).map_err(|why| format!("its preload failed: {why}"))?;
        }
        let value = self.value.get().cloned();
        value.ok_or_else(|| "its preload has loaded nothing".to_owned())
    }
}
