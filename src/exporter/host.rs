//! Checks the Host header against DNS rebinding.
//!
//! A page from evil.example may let its own name resolve to this address. For the browser the reply then has the page's
//! own origin, so the page may read it. Only the name in the request shows this, and the page cannot hide it. An IP
//! address or `localhost` cannot be made to resolve elsewhere.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::http::{HttpReply, HttpRequest, HttpStatus};

/// Checks whether an exporter with these names may answer a request over TCP.
///
/// # Errors
/// The reply with the reason.
pub(super) fn check(request: &HttpRequest, names: &[String]) -> Result<(), HttpReply> {
    match &request.host {
        Some(host) if is_ours(host, names) => Ok(()),
        Some(_) => Err(HttpReply::sentence(
            HttpStatus::Forbidden,
            "Host header not allowed: use an IP address, localhost, or add the name to metrics.hosts",
        )),
        // Simple probes use HTTP/1.0; no browser does.
        None if request.is_1_0 => Ok(()),
        None => Err(HttpReply::bad_request(
            "an HTTP/1.1 request must have a Host header",
        )),
    }
}

/// Returns whether the host is an allowed `NAME`, `IPv4` or `[IPv6]`, with a port or without.
fn is_ours(host: &str, names: &[String]) -> bool {
    if let Some((address, port)) = host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        return address.parse::<Ipv6Addr>().is_ok() && is_port(port);
    }
    let (name, port) = host.split_at(host.find(':').unwrap_or(host.len()));
    // A trailing dot marks a fully qualified name.
    let name = name.strip_suffix('.').unwrap_or(name);
    let is_known = |known: &str| known.eq_ignore_ascii_case(name);
    let is_one = name.parse::<Ipv4Addr>().is_ok()
        || is_known("localhost")
        || names.iter().any(|known| is_known(known));
    is_one && is_port(port)
}

/// Returns whether the text may follow a host: nothing, or a colon with or without a number.
fn is_port(text: &str) -> bool {
    let is_number =
        |digits: &str| digits.len() <= 5 && digits.bytes().all(|digit| digit.is_ascii_digit());
    text.is_empty() || text.strip_prefix(':').is_some_and(is_number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_localhost_and_configured_names_are_allowed() {
        let names = ["node1".to_owned(), "Node1.example.org".to_owned()];
        let ours = "127.0.0.1 127.0.0.1:9464 127.0.0.1.:9464 10.1.2.3:1 [::1] [::1]:9464 [2001:db8::1]: \
             [::ffff:127.0.0.1] localhost LOCALHOST:9464 localhost. localhost.:80 node1 node1: NODE1.:80 \
             node1.example.org:65535 node1.EXAMPLE.org.";
        for host in ours.split_whitespace() {
            assert!(is_ours(host, &names), "{host}");
        }
        let others = ":80 . evil.example evil.example:9464 localhost.evil.example 127.0.0.1.evil.example \
             evil.localhost localhost.. localhost:80:80 localhost:a localhost:-1 localhost:123456 \
             user@localhost node2 xnode1 example.org ::1 [::1 [::1]x [::1]. [fe80::1%eth0] [127.0.0.1] \
             [localhost] 127.1 2130706433 0x7f.0.0.1 0127.0.0.1 256.0.0.1 n\u{f6}de1 \u{fffd}";
        for host in others.split_whitespace().chain(["", "localhost "]) {
            assert!(!is_ours(host, &names), "{host}");
        }
    }
}
