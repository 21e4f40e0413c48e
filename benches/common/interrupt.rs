//! Ctrl-C and SIGTERM: the run in hand fails, and every server started is ended on the way out.
//! A second one ends the program at once; the servers then go by their parent-death signal.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use super::failure::{Context, Result};

static ASKED: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// Starts to listen for the two signals.
pub(crate) fn watch() -> Result<()> {
    let asked = ASKED.get_or_init(Arc::default);
    for signal in [SIGINT, SIGTERM] {
        flag::register_conditional_shutdown(signal, 130, Arc::clone(asked))
            .context("cannot watch for signals")?;
        flag::register(signal, Arc::clone(asked)).context("cannot watch for signals")?;
    }
    Ok(())
}

/// Returns a flag that is set once a signal has come.
pub(crate) fn asked() -> &'static AtomicBool {
    ASKED.get_or_init(Arc::default)
}

/// Fails once a signal has come; called wherever something may take long.
pub(crate) fn check() -> Result<()> {
    match ASKED.get() {
        Some(asked) if asked.load(Ordering::Relaxed) => Err("interrupted".into()),
        _ => Ok(()),
    }
}
