//! Mistakes in the addresses of listeners.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const NO_PORT: &str = "it has no port";
const NO_HOST: &str = "it has no IP address (\"0.0.0.0\" and \"[::]\" are all addresses)";
const WRONG_PORT: &str = "a port is a number from 0 to 65535";
const NOT_RESOLVED: &str = "names are not resolved";
const NO_V4: &str = "an IPv4 address has four numbers from 0 to 255 without leading zeros";
const NO_V6: &str = "it has no IPv6 address in its brackets";
const NO_BRACKETS: &str = "an IPv6 address and its port are written as \"[::1]:8080\"";

/// Returns the mistake in a text that should be an IP address with a port; `None` if it has none of these.
pub(super) fn why_no_address(text: &str) -> Option<&'static str> {
    if text.is_empty() {
        return None;
    }
    if text.starts_with("systemd:") {
        return Some("sockets of systemd are for the key `listen` only");
    }
    if text.contains("://") {
        return Some("an address has no scheme such as \"tcp://\"");
    }
    if text.starts_with(['/', '.']) {
        return Some("the path of a Unix socket begins with \"unix:/\"");
    }
    if text.contains('/') {
        return Some("an address has no prefix length");
    }
    if text.contains(char::is_whitespace) {
        return Some("it contains a space");
    }
    match text.parse() {
        Ok(IpAddr::V4(_)) => return Some(NO_PORT),
        Ok(IpAddr::V6(_)) => return Some(NO_BRACKETS),
        Err(_) => {}
    }
    if let Some(rest) = text.strip_prefix('[') {
        let (host, port) = rest.split_once(']')?;
        let host = host.split('%').next().unwrap_or_default();
        return match host.parse::<Ipv6Addr>() {
            Ok(_) => why_no_port(port),
            Err(_) => Some(NO_V6),
        };
    }
    match text.rsplit_once(':') {
        Some(("" | "*", _)) => Some(NO_HOST),
        Some((host, _)) if host.parse::<Ipv6Addr>().is_ok() => Some(NO_BRACKETS),
        Some((host, port)) if host.parse::<Ipv4Addr>().is_ok() => {
            why_no_port(&text[text.len() - port.len() - 1..])
        }
        Some((host, _)) => Some(why_no_host(host)),
        None if text.bytes().all(|c| c.is_ascii_digit()) => Some(NO_HOST),
        None => Some(why_no_host(text)),
    }
}

/// Returns the mistake in the text after an IP address.
fn why_no_port(port: &str) -> Option<&'static str> {
    match port.strip_prefix(':') {
        None | Some("") => Some(NO_PORT),
        Some(port) if port.parse::<u16>().is_err() => Some(WRONG_PORT),
        Some(_) => None,
    }
}

fn why_no_host(host: &str) -> &'static str {
    match host.bytes().all(|c| c.is_ascii_digit() || c == b'.') {
        true => NO_V4,
        false => NOT_RESOLVED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_mistake_has_its_reason() {
        for (text, why) in [
            ("", None),
            ("localhost:8080", Some(NOT_RESOLVED)),
            ("localhost", Some(NOT_RESOLVED)),
            ("here", Some(NOT_RESOLVED)),
            ("a:b:c", Some(NOT_RESOLVED)),
            ("8080", Some(NO_HOST)),
            (":8080", Some(NO_HOST)),
            ("*:8080", Some(NO_HOST)),
            ("127.0.0.1", Some(NO_PORT)),
            ("127.0.0.1:", Some(NO_PORT)),
            ("[::1]", Some(NO_PORT)),
            ("[::1]:", Some(NO_PORT)),
            ("127.0.0.1:65536", Some(WRONG_PORT)),
            ("127.0.0.1:http", Some(WRONG_PORT)),
            ("127.0.0.1:-1", Some(WRONG_PORT)),
            ("[::1]:65536", Some(WRONG_PORT)),
            ("[fe80::1%3]:x", Some(WRONG_PORT)),
            ("[1.2.3.4]:80", Some(NO_V6)),
            ("[::1", None),
            ("::1", Some(NO_BRACKETS)),
            ("::1:8080", Some(NO_BRACKETS)),
            (":::8080", Some(NO_BRACKETS)),
            ("127.0.0.256:80", Some(NO_V4)),
            ("127.1:80", Some(NO_V4)),
            ("127.0.0.01:80", Some(NO_V4)),
            ("1.2.3", Some(NO_V4)),
        ] {
            assert_eq!(why_no_address(text), why, "{text}");
        }
    }
}
