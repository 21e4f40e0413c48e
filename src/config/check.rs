//! Checks of values against each other.

use super::values::size;
use super::{
    AppConfig, Config, Limits, Listen, MAX_HOSTS, MAX_LISTENERS, MAX_NETWORKS, MAX_SAVED_LEN,
    MetricsConfig, Source, StartMode,
};
use crate::proto::frame::OrderRule;
use crate::proto::log::{Log, LogFormat, LogTarget};
use crate::proto::names::Address;

/// Values that contradict each other.
#[derive(Debug)]
pub(super) struct Conflict {
    /// The reason, for the operator.
    pub(super) message: String,
    /// The keys, such as `limits.buffers` or `listen.1.mode`; the first that a file has is marked.
    pub(super) places: Vec<String>,
    /// The keys with the same value, of which the first that a file has is shown as well.
    pub(super) first: Vec<String>,
}

pub(super) fn check(config: &Config) -> Result<(), Conflict> {
    check_listeners(&config.listen)?;
    check_orders(&config.listen, &config.limits)?;
    check_buffers(&config.limits)?;
    check_control(config)?;
    check_metrics(config)?;
    check_agent(config)?;
    check_app(&config.app)?;
    check_preload(config)?;
    check_log(&config.log)?;
    check_length(config)
}

/// Checks that `next` has the same value for what only a restart can change.
pub(super) fn check_next(current: &Config, next: &Config) -> Result<(), Conflict> {
    if next.control.socket == current.control.socket {
        return Ok(());
    }
    let place = match &current.control.socket {
        Some(path) => path.display().to_string(),
        None => "at its default place".to_owned(),
    };
    let message = format!(
        "control.socket cannot be changed by a reload; it stays {place} until the daemon is restarted"
    );
    conflict(message, ["control.socket"])
}

/// Checks that the state for the next master has space for the configuration.
fn check_length(config: &Config) -> Result<(), Conflict> {
    let text = serde_json::to_string(&config.to_toml());
    let length = text.map_or(0, |text| text.len());
    if length <= MAX_SAVED_LEN {
        return Ok(());
    }
    let message = format!(
        "the configuration is too long: its values have {length} bytes, at most {} are possible",
        size(MAX_SAVED_LEN as u64)
    );
    conflict(message, [longest_key(config)])
}

/// Returns the key with the longest value.
fn longest_key(config: &Config) -> String {
    let mut keys: Vec<(usize, String)> = Vec::new();
    for (name, value) in toml::Table::try_from(config).unwrap_or_default() {
        let mut add = |key: String, value: &toml::Value| keys.push((value.to_string().len(), key));
        match &value {
            toml::Value::Table(table) => table
                .iter()
                .for_each(|(key, value)| add(format!("{name}.{key}"), value)),
            _ => add(name, &value),
        }
    }
    keys.into_iter()
        .max()
        .map_or_else(String::new, |(_, key)| key)
}

fn check_listeners(listeners: &[Listen]) -> Result<(), Conflict> {
    if listeners.is_empty() {
        return conflict(
            "there must be at least one address to listen on",
            ["listen"],
        );
    }
    if listeners.len() > MAX_LISTENERS {
        let message = format!(
            "at most {MAX_LISTENERS} addresses can be listened on, these are {}",
            listeners.len()
        );
        return conflict(message, [format!("listen.{MAX_LISTENERS}")]);
    }
    for (index, listen) in listeners.iter().enumerate() {
        let source = &listen.source;
        check_listener(listen, index)?;
        if let Some(earlier) = index_among(source, &listeners[..index]) {
            let message = format!("{source} is already listened on by an earlier entry");
            let found = conflict(message, places_of_listener(index));
            return same_as(found, places_of_listener(earlier));
        }
    }
    Ok(())
}

/// Checks that the keys of a listener are for an address of its kind.
fn check_listener(listen: &Listen, index: usize) -> Result<(), Conflict> {
    let source = &listen.source;
    if listen.freebind && !matches!(source, Source::Bound(Address::Tcp(_))) {
        let message =
            format!("freebind is for TCP addresses that the daemon binds, {source} is none");
        return conflict(message, [format!("listen.{index}.freebind")]);
    }
    let has_no_access = match source {
        Source::Bound(Address::Unix(_)) => None,
        Source::Bound(Address::Tcp(_)) => Some("is a TCP address"),
        Source::Activated(_) => Some("is made by systemd (SocketMode=, SocketUser=, SocketGroup=)"),
    };
    if let Some(why) = has_no_access.filter(|_| listen.access.is_some()) {
        let message = format!("mode, owner and group are for Unix sockets, {source} {why}");
        return conflict(
            message,
            ["mode", "owner", "group"].map(|key| format!("listen.{index}.{key}")),
        );
    }
    check_proxy(listen, index)
}

/// Checks that load balancers are named where they connect over TCP, and only there.
fn check_proxy(listen: &Listen, index: usize) -> Result<(), Conflict> {
    let source = &listen.source;
    let [proxy, from] = ["proxy", "proxy-from"].map(|key| format!("listen.{index}.{key}"));
    match (listen.proxy, source, listen.proxy_from.as_slice()) {
        (None, _, [_, ..]) => conflict("proxy-from needs the key `proxy`", [from]),
        (Some(_), Source::Bound(Address::Unix(_)), [_, ..]) => {
            let message = format!(
                "proxy-from is for TCP addresses, {source} is a Unix socket: its mode decides who connects"
            );
            conflict(message, [from])
        }
        (Some(_), Source::Bound(Address::Tcp(_)), []) => {
            let message = "proxy needs the key `proxy-from` with the addresses of the load balancers: any other client \
                           could claim any address";
            conflict(message, [proxy])
        }
        (_, _, from_all) if from_all.len() > MAX_NETWORKS => {
            let message = format!(
                "there can be at most {MAX_NETWORKS} networks, these are {}",
                from_all.len()
            );
            conflict(message, [format!("{from}.{MAX_NETWORKS}"), from])
        }
        _ => Ok(()),
    }
}

/// Returns the listener that has this address. Port 0 is a different free port each time.
fn index_among(source: &Source, listeners: &[Listen]) -> Option<usize> {
    let is_any = matches!(source, Source::Bound(Address::Tcp(address)) if address.port() == 0);
    let mut sources = listeners.iter().map(|listen| &listen.source);
    sources
        .position(|other| other == source)
        .filter(|_| !is_any)
}

/// Checks that byte orders can be distinguished: from 2^24 bytes on, the big-endian prefix 00 00 00 01 is a valid
/// little-endian one, too.
fn check_orders(listeners: &[Listen], limits: &Limits) -> Result<(), Conflict> {
    let automatic = listeners
        .iter()
        .position(|listen| listen.byte_order == OrderRule::Auto);
    match automatic {
        Some(index) if limits.max_frame >= 1 << 24 => {
            let message = "byte-order \"auto\" needs a max-frame below 16MiB: with longer frames, \
                           the length of a short big-endian one is valid in little-endian order too";
            conflict(message, [format!("listen.{index}.byte-order")])
        }
        _ => Ok(()),
    }
}

fn check_buffers(limits: &Limits) -> Result<(), Conflict> {
    let least = limits.least_buffers();
    if limits.buffers.is_none_or(|buffers| buffers >= least) {
        return Ok(());
    }
    let message = format!(
        "buffers must be at least 4 times max-frame ({}), so that one client can never fill them",
        size(least)
    );
    conflict(message, ["limits.buffers", "limits.max-frame"])
}

fn check_control(config: &Config) -> Result<(), Conflict> {
    let Some(socket) = &config.control.socket else {
        return Ok(());
    };
    let source = Source::Bound(Address::Unix(socket.clone()));
    match index_among(&source, &config.listen) {
        Some(index) => of_clients(&source, index, "control.socket"),
        None => Ok(()),
    }
}

fn check_metrics(config: &Config) -> Result<(), Conflict> {
    let MetricsConfig { listen, hosts } = &config.metrics;
    if hosts.len() > MAX_HOSTS {
        let message = format!(
            "there can be at most {MAX_HOSTS} names, these are {}",
            hosts.len()
        );
        return conflict(message, [format!("metrics.hosts.{MAX_HOSTS}")]);
    }
    check_exporter_address(config, listen.as_ref(), "metrics.listen")
}

fn check_agent(config: &Config) -> Result<(), Conflict> {
    let listen = config.agent.listen.as_ref();
    if let (Some(address), Some(of_metrics)) = (listen, &config.metrics.listen) {
        let of_metrics = [Listen::new(Source::Bound(of_metrics.clone()))];
        if index_among(&Source::Bound(address.clone()), &of_metrics).is_some() {
            let message = format!("{address} is already listened on for metrics");
            let found = conflict(message, ["agent.listen"]);
            return same_as(found, vec!["metrics.listen".to_owned()]);
        }
    }
    check_exporter_address(config, listen, "agent.listen")
}

/// Checks that the exporter can listen at the address of this key.
fn check_exporter_address(
    config: &Config,
    listen: Option<&Address>,
    key: &str,
) -> Result<(), Conflict> {
    let Some(address) = listen else {
        return Ok(());
    };
    let source = Source::Bound(address.clone());
    if let Some(index) = index_among(&source, &config.listen) {
        return of_clients(&source, index, key);
    }
    match address {
        Address::Unix(path) if Some(path) == config.control.socket.as_ref() => {
            let message = format!("unix:{} is the control socket", path.display());
            same_as(conflict(message, [key]), vec!["control.socket".to_owned()])
        }
        _ => Ok(()),
    }
}

/// Returns the conflict of a key with the listener of this index, which has its address.
fn of_clients(source: &Source, index: usize, key: &str) -> Result<(), Conflict> {
    let message = format!("{source} is already listened on for clients");
    same_as(conflict(message, [key]), places_of_listener(index))
}

/// Checks that no other key of the app is given without a command.
fn check_app(app: &AppConfig) -> Result<(), Conflict> {
    if !app.command.is_empty() {
        return Ok(());
    }
    let default = AppConfig::default();
    let given = [
        ("directory", app.directory != default.directory),
        ("environment", app.environment != default.environment),
        (
            "environment-file",
            app.environment_file != default.environment_file,
        ),
        ("concurrency", app.concurrency != default.concurrency),
        ("max-memory", app.max_memory != default.max_memory),
        ("user", app.user != default.user),
        ("group", app.group != default.group),
        ("umask", app.umask != default.umask),
        ("output", app.output != default.output),
        ("preload", app.preload),
        ("watch", app.watch != default.watch),
    ];
    match given.iter().find(|(_, is_given)| *is_given) {
        Some((key, _)) => conflict(
            format!("`{key}` needs the key `command`: there is no app without one"),
            [format!("app.{key}")],
        ),
        None => Ok(()),
    }
}

/// Checks that a preload of apps has a zygote of workers, of which the zygote of the apps is a child.
fn check_preload(config: &Config) -> Result<(), Conflict> {
    if !config.app.preload || config.workers.start == StartMode::Fork {
        return Ok(());
    }
    let message = "`preload` needs workers.start = \"fork\": the zygote of the workers starts that of the apps";
    conflict(message, ["app.preload"])
}

fn check_log(log: &Log) -> Result<(), Conflict> {
    if (log.target, log.format) == (LogTarget::Syslog, LogFormat::Json) {
        let message = "format \"json\" is for standard error and files: lines of syslog have a form of their own";
        return conflict(message, ["log.format"]);
    }
    match (log.target, &log.file) {
        (LogTarget::File, None) => conflict("target \"file\" needs the key `file`", ["log.target"]),
        (LogTarget::Auto | LogTarget::Stderr | LogTarget::Syslog, Some(_)) => {
            conflict("`file` is only for target \"file\"", ["log.file"])
        }
        (LogTarget::File, Some(_)) | (_, None) => Ok(()),
    }
}

fn conflict<T: Into<String>>(
    message: impl Into<String>,
    places: impl IntoIterator<Item = T>,
) -> Result<(), Conflict> {
    Err(Conflict {
        message: message.into(),
        places: places.into_iter().map(T::into).collect(),
        first: Vec::new(),
    })
}

/// Adds the keys that have the same value.
fn same_as(conflict: Result<(), Conflict>, first: Vec<String>) -> Result<(), Conflict> {
    conflict.map_err(|conflict| Conflict { first, ..conflict })
}

/// Returns the places of a listener's address.
fn places_of_listener(index: usize) -> Vec<String> {
    vec![format!("listen.{index}.address"), format!("listen.{index}")]
}
