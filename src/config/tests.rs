//! The file: each error has its message and its place.

mod agent;
mod app;
mod control;
mod files;
mod generated;
mod listen;
mod log;
mod metrics;
mod positions;
mod values;

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::*;
use crate::proto::frame::OrderRule;
use crate::proto::log::{LogFormat, LogLevel, LogTarget};
use crate::proto::proxy::ProxyVersion;
use crate::sys::user::{Group, User};

const SHIPPED: &str = include_str!("../../config/fdpassd.toml");
const ORIGIN: &str = "/etc/fdpassd.toml";

fn parse(text: &str) -> Config {
    Config::parse(text, ORIGIN).unwrap_or_else(|error| panic!("{error}"))
}

fn place(file: &Path) -> ConfigPlace<'_> {
    ConfigPlace::new(None, Some(file), Path::new(ORIGIN))
}

/// Parses `marked`, in which `«` marks the place of the error, and checks that the caret is there.
fn refused(marked: &str, message: &str) -> Error {
    let (before, _) = marked.split_once('«').expect("a mark");
    let text = marked.replacen('«', "", 1);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().expect("a line").chars().count() + 1;

    let error = Config::parse(&text, ORIGIN).expect_err(&text);
    // A message about a value that is there twice also has the place of the first one.
    let (found, _) = error
        .message()
        .split_once(&format!(", at {ORIGIN}:"))
        .unwrap_or((error.message(), ""));
    assert_eq!(found, message, "\n{error}");
    assert_eq!(
        (error.line(), error.column()),
        (Some(line), Some(column)),
        "\n{error}"
    );
    assert_shown(&error, text.lines().nth(line - 1).expect("the line"));
    error
}

/// Checks that the error as displayed has the origin, the line of the file and a caret under the place.
fn assert_shown(error: &Error, source: &str) {
    let (line, column) = error.line().zip(error.column()).expect("a place");
    let display = error.to_string();
    assert!(
        display.contains(&format!("--> {ORIGIN}:{line}:{column}\n")),
        "\n{error}"
    );
    let numbered = format!("{line} | {source}");
    let mut rest = display
        .lines()
        .skip_while(|shown| shown.trim_end() != numbered.trim_end());
    let caret = rest
        .nth(1)
        .and_then(|carets| carets.find('^'))
        .expect("the line and a caret");
    assert_eq!(
        caret,
        numbered.find('|').expect("a bar") + 2 + column - 1,
        "\n{error}"
    );
}

/// Returns a configuration in which every key has a value.
pub(super) fn everything() -> Config {
    let mut config = Config::default();
    config.listen.push(Listen {
        source: "unix:/run/rpc.sock".parse().expect("an address"),
        byte_order: OrderRule::Auto,
        backlog: 1,
        access: Some(Access {
            mode: Mode(0o7),
            owner: User::find("0").expect("users"),
            group: Group::find("0").expect("groups"),
        }),
        freebind: false,
        proxy: Some(ProxyVersion::V1),
        proxy_from: Vec::new(),
    });
    config.workers.max_requests = NonZeroU32::new(1000);
    config.workers.max_lifetime = Some(Duration::from_secs(3600));
    config.app = app::everything();
    config.control = ControlConfig {
        socket: Some(PathBuf::from("/run/control.sock")),
        mode: Some(Mode(0o640)),
        admin_group: Group::find("0").expect("groups"),
        read_group: Group::find("3999999999").expect("groups"),
    };
    config.metrics.listen = Some("127.0.0.1:9464".parse().expect("an address"));
    config.metrics.hosts = ["node1", "node1.example.org"]
        .map(|name| HostName(name.to_owned()))
        .to_vec();
    config.agent.listen = Some("127.0.0.1:9999".parse().expect("an address"));
    config.log = Log {
        target: LogTarget::File,
        file: Some(PathBuf::from("/var/log/x")),
        format: LogFormat::Json,
        level: LogLevel::Trace,
        slow_request: Some(Duration::from_millis(1500)),
    };
    config
}
