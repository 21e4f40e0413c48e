//! Opens the listener of control clients.

use std::env;
use std::path::PathBuf;
use std::time::Instant;

use crate::config::Config;
use crate::master::error::Error;
use crate::master::listeners::conflict::OwnListeners;
use crate::master::listeners::control_listener::ControlListener;
use crate::master::listeners::listener::Listener;
use crate::master::listeners::served::FILE_GONE;
use crate::master::retry::Outage;
use crate::proto::control::{places, temporary};
use crate::proto::names::Address;
use crate::sys::process;
use crate::sys::user::Holder;

/// Returns the place of the control socket if none is configured.
fn usual_place(name: &str, user: u32) -> PathBuf {
    let temporary = temporary(name, user);
    let mut places = places(name, user, |key| env::var_os(key));
    if places[0].parent() == Some(&temporary) && Holder::read(&temporary) == Holder::Others {
        places.remove(0);
        log::warn!(
            "{} is not a directory of uid {user} alone: the control socket is {}",
            temporary.display(),
            places[0].display()
        );
    }
    places.swap_remove(0)
}

/// Returns the control socket: the one that this process `had` before it became this program, or a new one. With
/// `retry_from`, a socket that cannot be opened is replaced by one that cannot be connected to, with an outage from
/// that instant.
pub(crate) fn open_control(
    name: &str,
    config: &Config,
    listeners: &[Listener],
    had: Option<ControlListener>,
    retry_from: Option<Instant>,
) -> Result<(ControlListener, Option<Outage>), Error> {
    if let Some(control) = had {
        let is_gone = !control.is_reachable();
        return Ok((
            control,
            retry_from
                .filter(|_| is_gone)
                .map(|now| Outage::new(now, FILE_GONE)),
        ));
    }
    let usual = || usual_place(name, process::user());
    let path = config.control.socket.clone().unwrap_or_else(usual);
    let bound = ControlListener::bind(
        &path,
        config.control.socket.is_none(),
        config.control.mode(),
    );
    match (bound, retry_from) {
        (Ok(control), _) => Ok((control, None)),
        (Err(e), Some(now)) => {
            let missing =
                ControlListener::missing(&path).map_err(Error::system("make a socket"))?;
            Ok((missing, Some(Outage::from_error(&e, now))))
        }
        (Err(e), None) => Err(OwnListeners::from_listeners(listeners, None, None)
            .explain(e, Some(&Address::Unix(path)))),
    }
}
