//! Functions of a daemon that no request calls: what it does when a client has left, and whether it is healthy.

use std::time::Duration;

use crate::proto::names::ClientId;

pub(super) type OnClose<S> = Box<dyn Fn(&mut S, ClientId)>;
pub(super) type HealthCheck<S> = Box<dyn Fn(&mut S) -> Result<(), String>>;

/// The shortest time between two health checks.
const MIN_INTERVAL: Duration = Duration::from_millis(100);

/// The functions of a daemon that no request calls.
pub(crate) struct Hooks<S> {
    pub(crate) on_close: Option<OnClose<S>>,
    /// With the time between two calls.
    pub(crate) health: Option<(Duration, HealthCheck<S>)>,
}

impl<S> Default for Hooks<S> {
    fn default() -> Hooks<S> {
        Hooks {
            on_close: None,
            health: None,
        }
    }
}

impl<S> Hooks<S> {
    /// Returns the error of the program, if there is one.
    pub(super) fn mistake(&self) -> Option<String> {
        let (interval, _) = self.health.as_ref()?;
        (*interval < MIN_INTERVAL).then(|| {
            format!(
                "the interval of health checks is {interval:?}; the shortest is {MIN_INTERVAL:?}"
            )
        })
    }
}

impl Hooks<()> {
    /// Returns the functions for workers with any state, which they do not use.
    pub(crate) fn for_any_state<S: 'static>(self) -> Hooks<S> {
        let on_close = self
            .on_close
            .map(|call| -> OnClose<S> { Box::new(move |_: &mut S, client| call(&mut (), client)) });
        let health = self.health.map(|(interval, check)| {
            let check: HealthCheck<S> = Box::new(move |_: &mut S| check(&mut ()));
            (interval, check)
        });
        Hooks { on_close, health }
    }
}
