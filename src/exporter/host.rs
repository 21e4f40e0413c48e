//! By which names the exporter may be asked.
//!
//! A page from evil.example may have its own name lead to this address (DNS rebinding). What it asks for then is of its own
//! origin for the browser, so that it may read the reply: all that tells is the name, which it cannot hide. Nobody can
//! have an IP address or `localhost` lead elsewhere.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::http::{HttpReply, HttpRequest, HttpStatus};

/// Whether a request over TCP may be answered by an exporter that has these names.
///
/// # Errors
/// The reply that says why not.
pub(super) fn check(request: &HttpRequest, names: &[String]) -> Result<(), HttpReply> {
    match &request.host {
        Some(host) if is_ours(host, names) => Ok(()),
        Some(_) => Err(HttpReply::sentence(
            HttpStatus::Forbidden,
            "Host header not allowed: use an IP address, localhost, or add the name to metrics.hosts",
        )),
        // No browser speaks it; simple probes do.
        None if request.is_1_0 => Ok(()),
        None => Err(HttpReply::sentence(
            HttpStatus::BadRequest,
            "an HTTP/1.1 request must have a Host header",
        )),
    }
}

/// Whether that is `NAME`, `IPv4` or `[IPv6]`, with a port or without.
fn is_ours(host: &str, names: &[String]) -> bool {
    if let Some((address, port)) = host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        return address.parse::<Ipv6Addr>().is_ok() && is_port(port);
    }
    let (name, port) = host.split_at(host.find(':').unwrap_or(host.len()));
    // The name as the root of all names knows it.
    let name = name.strip_suffix('.').unwrap_or(name);
    let is_known = |known: &str| known.eq_ignore_ascii_case(name);
    let is_one = name.parse::<Ipv4Addr>().is_ok()
        || is_known("localhost")
        || names.iter().any(|known| is_known(known));
    is_one && is_port(port)
}

/// What may stand behind a host: nothing, or a colon with or without a number.
fn is_port(text: &str) -> bool {
    let is_number =
        |digits: &str| digits.len() <= 5 && digits.bytes().all(|digit| digit.is_ascii_digit());
    text.is_empty() || text.strip_prefix(':').is_some_and(is_number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_localhost_and_the_names_that_were_configured_are_ours_and_no_others() {
        let names = ["node1".to_owned(), "Node1.example.org".to_owned()];
        for host in [
            "127.0.0.1",
            "127.0.0.1:9464",
            "127.0.0.1.:9464",
            "10.1.2.3:1",
            "[::1]",
            "[::1]:9464",
            "[2001:db8::1]:",
            "[::ffff:127.0.0.1]",
            "localhost",
            "LOCALHOST:9464",
            "localhost.",
            "localhost.:80",
            "node1",
            "node1:",
            "NODE1.:80",
            "node1.example.org:65535",
            "node1.EXAMPLE.org.",
        ] {
            assert!(is_ours(host, &names), "{host}");
        }
        for host in [
            "",
            ":80",
            ".",
            "evil.example",
            "evil.example:9464",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "evil.localhost",
            "localhost..",
            "localhost:80:80",
            "localhost:a",
            "localhost:-1",
            "localhost:123456",
            "localhost ",
            "user@localhost",
            "node2",
            "xnode1",
            "example.org",
            "::1",
            "[::1",
            "[::1]x",
            "[::1].",
            "[fe80::1%eth0]",
            "[127.0.0.1]",
            "[localhost]",
            "127.1",
            "2130706433",
            "0x7f.0.0.1",
            "0127.0.0.1",
            "256.0.0.1",
            "n\u{f6}de1",
            "\u{fffd}",
        ] {
            assert!(!is_ours(host, &names), "{host}");
        }
    }
}
