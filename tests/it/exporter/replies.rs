//! The replies to valid and to bad requests.

use crate::common::http::{HttpClient, ask, get, metrics_address, request};
use crate::common::start;

use super::TCP;

#[test]
fn each_path_has_its_answer_and_head_is_get_without_the_body() {
    let daemon = start(TCP);
    let address = metrics_address(&daemon);
    for (path, status, content_type, words) in [
        (
            "/metrics",
            200,
            "text/plain; version=0.0.4; charset=utf-8",
            "fdpassd_build_info{",
        ),
        (
            "/metrics?format=x",
            200,
            "text/plain; version=0.0.4; charset=utf-8",
            "fdpassd_build_info{",
        ),
        ("/healthz", 200, "text/plain; charset=utf-8", "ok\n"),
        ("/readyz", 200, "text/plain; charset=utf-8", "ok\n"),
        ("/", 200, "text/html; charset=utf-8", "<!doctype html>"),
        ("/?x", 200, "text/html; charset=utf-8", "<!doctype html>"),
        (
            "/metrics/",
            404,
            "text/plain; charset=utf-8",
            "there are /, /metrics, /healthz and /readyz\n",
        ),
        (
            "/../metrics",
            404,
            "text/plain; charset=utf-8",
            "there are /, /metrics, /healthz and /readyz\n",
        ),
    ] {
        let got = get(&address, path);
        assert!(
            got.status == status && got.body.contains(words),
            "{path}: {got:?}"
        );
        let request = request(path)
            .replace("GET", "HEAD")
            .replace("\r\n\r\n", "\r\nOrigin: http://localhost\r\n\r\n");
        let head = ask(&address, request);
        assert_eq!(head.status_and_body(), (status, ""), "{path}");
        for answer in [got, head] {
            assert_eq!(
                answer.field("Content-Type"),
                Some(content_type),
                "{path}: {answer:?}"
            );
            assert_eq!(
                answer.field("Cache-Control"),
                Some("no-store"),
                "{path}: {answer:?}"
            );
            assert_eq!(
                answer.field("X-Content-Type-Options"),
                Some("nosniff"),
                "{path}: {answer:?}"
            );
            assert_eq!(
                answer.field("Connection"),
                Some("close"),
                "{path}: {answer:?}"
            );
            assert_eq!(
                answer.field("Access-Control-Allow-Origin"),
                None,
                "{path}: {answer:?}"
            );
        }
    }
    let got = get(&address, "/healthz");
    assert_eq!(got.field("Content-Length"), Some("3"));
    assert_eq!(
        ask(&address, request("/healthz").replace("GET", "HEAD")).field("Content-Length"),
        Some("3")
    );
}

#[test]
fn metrics_are_current_at_each_request() {
    let daemon = start(TCP);
    let address = metrics_address(&daemon);
    assert!(
        get(&address, "/metrics")
            .body
            .contains("\nfdpassd_clients_accepted_total 0\n")
    );
    let _client = daemon.connect();
    daemon.wait_until("the client is there", |status| status.clients == 1);
    assert!(
        get(&address, "/metrics")
            .body
            .contains("\nfdpassd_clients_accepted_total 1\n")
    );
}

#[test]
fn each_bad_request_gets_its_status_and_the_next_is_served() {
    let daemon = start(TCP);
    let address = metrics_address(&daemon);
    let host = "HTTP/1.1\r\nHost: localhost\r\n";
    let long = "x".repeat(9000);
    for (request, status, words) in [
        (
            format!("POST /metrics {host}\r\n"),
            405,
            "only GET and HEAD",
        ),
        (
            format!("POST /metrics {host}Content-Length: 3\r\n\r\nabc"),
            405,
            "only GET and HEAD",
        ),
        (format!("OPTIONS * {host}\r\n"), 405, "only GET and HEAD"),
        (
            format!("TRACE /metrics {host}\r\n"),
            405,
            "only GET and HEAD",
        ),
        (
            format!("GET /metrics {host}Content-Length: 3\r\n\r\nabc"),
            413,
            "no body",
        ),
        (
            format!("GET /metrics {host}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
            413,
            "no body",
        ),
        (
            format!("GET /metrics {host}Content-Length: x\r\n\r\n"),
            400,
            "Content-Length",
        ),
        (
            "\x16\x03\x01\x02\0\x01\0\x01\u{fc}\x03\x03".to_owned(),
            400,
            "not a valid HTTP request",
        ),
        (
            "\x1a\0\0\0{\"in\":\"ping\",\"params\":[1]}".to_owned(),
            400,
            "not a valid HTTP request",
        ),
        (
            "GET /metrics\r\n\r\n".to_owned(),
            400,
            "not a valid HTTP request",
        ),
        (
            format!("GET /metrics {host}Host: localhost\r\n\r\n"),
            400,
            "one Host header",
        ),
        (
            format!("GET http://node1.example.org/metrics {host}\r\n"),
            400,
            "another host",
        ),
        ("GET /metrics HTTP/2.0\r\n\r\n".to_owned(), 505, "HTTP/1.1"),
        (format!("GET /{long} {host}\r\n"), 414, "8192"),
        (format!("GET /metrics {host}X: {long}\r\n\r\n"), 431, "8192"),
        (
            format!("GET /metrics {host}{}\r\n", "X: y\r\n".repeat(100)),
            431,
            "64 header fields",
        ),
    ] {
        let answer = ask(&address, &request);
        assert!(
            answer.status == status && answer.body.contains(words),
            "{request}: {answer:?}"
        );
        assert_eq!(
            answer.field("Allow"),
            (status == 405).then_some("GET, HEAD"),
            "{request}"
        );
    }
    let mut halfway = HttpClient::connect(&address);
    halfway
        .send("GET /metrics HTTP/1.1\r\nHo")
        .expect("it is taken");
    halfway.finish();
    assert_eq!(
        halfway.answer().status_and_body(),
        (400, "the request ends within its head\n")
    );
    let mut silent = HttpClient::connect(&address);
    silent.finish();
    assert_eq!(silent.receive().expect("the end"), "");
    assert_eq!(get(&address, "/healthz").status, 200);
}

#[test]
fn bytes_behind_a_request_do_not_destroy_the_reply() {
    let daemon = start(TCP);
    let address = metrics_address(&daemon);
    for garbage in [request("/readyz"), "\0\u{fc}\r\n\r\n".repeat(20_000)] {
        for _ in 0..10 {
            assert_eq!(
                ask(&address, format!("{}{garbage}", request("/healthz"))).status_and_body(),
                (200, "ok\n")
            );
        }
    }
}
