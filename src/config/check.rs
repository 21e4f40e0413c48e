//! What no single value shows: whether the values go with each other.

use std::ops::Range;

use toml::de::{DeTable, DeValue};

use super::values::size;
use super::{Config, Limits, Listen, MAX_HOSTS, MAX_LISTENERS, MetricsConfig, Source};
use crate::proto::frame::OrderRule;
use crate::proto::log::{Log, LogFormat, LogTarget};
use crate::proto::names::Address;

/// Values that do not go with each other.
#[derive(Debug)]
pub(super) struct Conflict {
    /// Why not, for the operator.
    pub(super) message: String,
    /// Keys to blame, such as `limits.buffers` or `listen.1.mode`; the first that the file has is pointed at.
    pub(super) places: Vec<String>,
}

pub(super) fn check(config: &Config) -> Result<(), Conflict> {
    check_listeners(&config.listen)?;
    check_orders(&config.listen, &config.limits)?;
    check_buffers(&config.limits)?;
    check_control(config)?;
    check_metrics(config)?;
    check_log(&config.log)
}

/// What only a restart can change must be in `next` what it is now.
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
    fault(message, ["control.socket"])
}

fn check_listeners(listeners: &[Listen]) -> Result<(), Conflict> {
    if listeners.is_empty() {
        return fault(
            "there must be at least one address to listen on".to_owned(),
            ["listen"],
        );
    }
    if listeners.len() > MAX_LISTENERS {
        let message = format!(
            "at most {MAX_LISTENERS} addresses can be listened on, these are {}",
            listeners.len()
        );
        return fault(message, [format!("listen.{MAX_LISTENERS}")]);
    }
    for (
        index,
        Listen {
            source,
            access,
            freebind,
            ..
        },
    ) in listeners.iter().enumerate()
    {
        if *freebind && !matches!(source, Source::Bound(Address::Tcp(_))) {
            let message =
                format!("freebind is for TCP addresses that the daemon binds, {source} is none");
            return fault(message, [format!("listen.{index}.freebind")]);
        }
        let has_no_access = match source {
            Source::Bound(Address::Unix(_)) => None,
            Source::Bound(Address::Tcp(_)) => Some("is a TCP address"),
            Source::Handed(_) => {
                Some("is made by systemd (SocketMode=, SocketUser=, SocketGroup=)")
            }
        };
        if let Some(why) = has_no_access.filter(|_| access.is_some()) {
            let message = format!("mode, owner and group are for Unix sockets, {source} {why}");
            return fault(
                message,
                ["mode", "owner", "group"].map(|key| format!("listen.{index}.{key}")),
            );
        }
        if is_among(source, &listeners[..index]) {
            let places = [format!("listen.{index}.address"), format!("listen.{index}")];
            return fault(
                format!("{source} is already listened on by an earlier entry"),
                places,
            );
        }
    }
    Ok(())
}

/// Whether that is the address of a listener. Port 0 is a free port, another one each time.
fn is_among(source: &Source, listeners: &[Listen]) -> bool {
    let is_any = matches!(source, Source::Bound(Address::Tcp(address)) if address.port() == 0);
    !is_any && listeners.iter().any(|listen| listen.source == *source)
}

/// From 2^24 bytes on, the big-endian prefix 00 00 00 01 is within the limit as a little-endian one too.
fn check_orders(listeners: &[Listen], limits: &Limits) -> Result<(), Conflict> {
    let automatic = listeners
        .iter()
        .position(|listen| listen.byte_order == OrderRule::Auto);
    match automatic {
        Some(index) if limits.max_frame >= 1 << 24 => {
            let message = "byte-order \"auto\" needs a max-frame below 16MiB: with longer frames, \
                           the length of a short big-endian one is valid in little-endian order too";
            fault(message.to_owned(), [format!("listen.{index}.byte-order")])
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
    fault(message, ["limits.buffers", "limits.max-frame"])
}

fn check_control(config: &Config) -> Result<(), Conflict> {
    let Some(socket) = &config.control.socket else {
        return Ok(());
    };
    let source = Source::Bound(Address::Unix(socket.clone()));
    if is_among(&source, &config.listen) {
        return fault(
            format!("{source} is already listened on for clients"),
            ["control.socket"],
        );
    }
    Ok(())
}

fn check_metrics(
    Config {
        listen: listeners,
        control,
        metrics,
        ..
    }: &Config,
) -> Result<(), Conflict> {
    let MetricsConfig { listen, hosts } = metrics;
    if hosts.len() > MAX_HOSTS {
        let message = format!(
            "there can be at most {MAX_HOSTS} names, these are {}",
            hosts.len()
        );
        return fault(message, [format!("metrics.hosts.{MAX_HOSTS}")]);
    }
    match listen {
        Some(address) if is_among(&Source::Bound(address.clone()), listeners) => fault(
            format!("{address} is already listened on for clients"),
            ["metrics.listen"],
        ),
        Some(Address::Unix(path)) if Some(path) == control.socket.as_ref() => fault(
            format!("unix:{} is the control socket", path.display()),
            ["metrics.listen"],
        ),
        _ => Ok(()),
    }
}

fn check_log(log: &Log) -> Result<(), Conflict> {
    if (log.target, log.format) == (LogTarget::Syslog, LogFormat::Json) {
        let message = "format \"json\" is for standard error and files: lines of syslog have a form of their own";
        return fault(message.to_owned(), ["log.format"]);
    }
    match (log.target, &log.file) {
        (LogTarget::File, None) => fault(
            "target \"file\" needs the key `file`".to_owned(),
            ["log.target"],
        ),
        (LogTarget::Auto | LogTarget::Stderr | LogTarget::Syslog, Some(_)) => fault(
            "`file` is only for target \"file\"".to_owned(),
            ["log.file"],
        ),
        (LogTarget::File, Some(_)) | (_, None) => Ok(()),
    }
}

fn fault<T: Into<String>>(
    message: String,
    places: impl IntoIterator<Item = T>,
) -> Result<(), Conflict> {
    Err(Conflict {
        message,
        places: places.into_iter().map(T::into).collect(),
    })
}

/// Finds a place in `text`: a key with its value, or an element of an array.
///
/// The text is parsed once more for it, so that no [`Config`] has to remember where it came from.
pub(super) fn locate(text: &str, place: &str) -> Option<Range<usize>> {
    let document = DeValue::Table(DeTable::parse(text).ok()?.into_inner());
    span(&document, place)
}

/// Finds where a key is given first that is given again at `again`. TOML's own parser tells of the second place only.
pub(super) fn locate_first(text: &str, again: Range<usize>) -> Option<Range<usize>> {
    let (document, _) = DeTable::parse_recoverable(text);
    let name = text.get(again.clone())?;
    let mut found = Vec::new();
    keys_named(document.get_ref(), name, &mut found);
    // Of those in other sections, the nearest one is in the same.
    let first = found
        .into_iter()
        .filter(|span| span.end <= again.start)
        .max_by_key(|span| span.start);
    first.or_else(|| section_before(text.get(..again.start)?, name))
}

/// The first head or key of a section: of one that is there twice the parser keeps the second place.
fn section_before(text: &str, name: &str) -> Option<Range<usize>> {
    let mut start = 0;
    text.split_inclusive('\n').find_map(|line| {
        let rest = line.trim_start().trim_start_matches('[').trim_start();
        let at = start + line.len() - rest.len();
        start += line.len();
        let is_it = rest
            .strip_prefix(name)?
            .trim_start()
            .starts_with([']', '.', '=']);
        is_it.then(|| at..at + name.len())
    })
}

fn keys_named(table: &DeTable<'_>, name: &str, found: &mut Vec<Range<usize>>) {
    for (key, value) in table {
        if key.get_ref() == name {
            found.push(key.span());
        }
        match value.get_ref() {
            DeValue::Table(inner) => keys_named(inner, name, found),
            DeValue::Array(entries) => {
                entries
                    .iter()
                    .filter_map(|entry| entry.get_ref().as_table())
                    .for_each(|inner| keys_named(inner, name, found));
            }
            _ => {}
        }
    }
}

fn span(document: &DeValue<'_>, place: &str) -> Option<Range<usize>> {
    let mut value = document;
    let mut span = None;
    for step in place.split('.') {
        let inner = match value {
            DeValue::Table(table) => {
                let (key, inner) = table.iter().find(|(key, _)| key.get_ref() == step)?;
                span = Some(key.span().start..inner.span().end);
                inner
            }
            DeValue::Array(array) => {
                let inner = array.get(step.parse::<usize>().ok()?)?;
                span = Some(inner.span());
                inner
            }
            _ => return None,
        };
        value = inner.get_ref();
    }
    span
}
