//! The hosts by which a request may name the exporter.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use fdpassd::proto::names::Address;

use crate::common::http::{ask, metrics_address};
use crate::common::start;

use super::{TCP, unix};

/// A page that has its own name lead here may ask, and must not learn anything.
#[test]
fn over_tcp_the_host_is_an_address_localhost_or_configured() {
    let daemon = start(TCP);
    let address = metrics_address(&daemon);
    let Address::Tcp(tcp) = &address else {
        panic!("{address}")
    };
    let with_host = |host: &str| {
        ask(
            &address,
            format!("GET /metrics HTTP/1.1\r\nHost: {host}\r\n\r\n"),
        )
    };
    let own = tcp.to_string();
    for host in [
        &own,
        "localhost",
        "LocalHost.:80",
        "[::1]:9464",
        "10.0.0.1",
        "node1.example.org:9464",
        "NODE1.Example.org.",
    ] {
        assert_eq!(with_host(host).status, 200, "{host}");
    }
    for host in [
        "evil.example",
        "evil.example:9464",
        "localhost.evil.example",
        "node2.example.org",
        "",
        "localhost:x",
        "::1",
    ] {
        let answer = with_host(host);
        assert!(
            answer.status == 403 && answer.body.contains("metrics.hosts"),
            "{host}: {answer:?}"
        );
        assert!(!answer.body.contains("fdpassd_"), "{host}: {answer:?}");
    }
    for path in ["/healthz", "/readyz", "/nothing"] {
        let answer = ask(
            &address,
            format!("GET {path} HTTP/1.1\r\nHost: evil.example\r\n\r\n"),
        );
        assert_eq!(answer.status, 403, "{path}");
    }
    for (request, status) in [
        (
            "GET http://localhost/healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
            200,
        ),
        ("GET http://node1.example.org/healthz HTTP/1.0\r\n\r\n", 200),
        (
            "GET http://evil.example/healthz HTTP/1.1\r\nHost: evil.example\r\n\r\n",
            403,
        ),
        ("GET http://evil.example/healthz HTTP/1.0\r\n\r\n", 403),
        ("POST /metrics HTTP/1.1\r\nHost: evil.example\r\n\r\n", 403),
        ("GET /healthz HTTP/1.1\r\n\r\n", 400),
        ("GET /healthz HTTP/1.0\r\n\r\n", 200),
        ("GET /healthz HTTP/1.0\r\nHost: evil.example\r\n\r\n", 403),
    ] {
        assert_eq!(ask(&address, request).status, status, "{request}");
    }
}

#[test]
fn over_a_unix_socket_any_host_is_served() {
    let mut daemon = start("metrics.listen = \"unix:{dir}/metrics.sock\"");
    let address = unix(&daemon, "metrics.sock");
    let file = daemon.directory().join("metrics.sock");
    assert_eq!(
        fs::metadata(&file)
            .expect("it is there")
            .permissions()
            .mode()
            & 0o777,
        0o660
    );
    for host in ["Host: evil.example\r\n", "Host:\r\n", ""] {
        let answer = ask(&address, format!("GET /metrics HTTP/1.1\r\n{host}\r\n"));
        assert!(
            answer.status == 200 && answer.body.contains("fdpassd_build_info"),
            "{host}: {answer:?}"
        );
    }
    daemon.ctl("stop").expect("it stops");
    assert_eq!(daemon.wait().code(), Some(0));
    assert!(!file.exists());
}
