//! The needed part of HTTP/1.1 (RFC 9112): parses the head of one request, and encodes one reply. Pure.

use std::borrow::Cow;

use httparse::{EMPTY_HEADER, Error, Header, Status as Parsed};

/// The longest head of a request, in bytes.
pub(super) const MAX_HEAD: usize = 8 * 1024;

/// The most header fields of a request.
const MAX_FIELDS: usize = 64;

/// The field that the script of the page sends.
const PAGE_FIELD: &str = "Fdpassd-Page";

/// The result of parsing what has arrived of a request.
#[derive(Debug, PartialEq)]
pub(super) enum HeadParse {
    /// The head is not complete.
    Partial,
    /// The whole head.
    Whole(HttpRequest),
    /// There is no valid request; this is the reply.
    Refused(HttpReply),
}

/// The needed parts of a request.
#[derive(Debug, PartialEq)]
pub(super) struct HttpRequest {
    pub(super) method: String,
    /// The path of the target, without the query.
    pub(super) path: String,
    /// The requested host, from the field `Host` or the target, which must agree.
    pub(super) host: Option<String>,
    /// Whether the version is HTTP/1.0, in which a request need not name its host.
    pub(super) is_1_0: bool,
    pub(super) has_body: bool,
    /// Whether it has [`PAGE_FIELD`], and no browser reports a page of another origin. Before such a page may send the
    /// field, the browser sends another request (WHATWG Fetch, section 4.8), which is refused.
    pub(super) is_of_page: bool,
}

/// A reply. All other fields are the same for every request.
#[derive(Debug, PartialEq)]
pub(super) struct HttpReply {
    pub(super) status: HttpStatus,
    content_type: &'static str,
    /// Further header fields, each a line.
    fields: &'static str,
    /// `None` for a stream, which ends with the connection.
    body: Option<Cow<'static, str>>,
}

/// Status codes of RFC 9110 and RFC 6585.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HttpStatus {
    Ok = 200,
    BadRequest = 400,
    Forbidden = 403,
    NotFound = 404,
    MethodNotAllowed = 405,
    RequestTimeout = 408,
    ContentTooLarge = 413,
    UriTooLong = 414,
    HeadTooLarge = 431,
    BadGateway = 502,
    Unavailable = 503,
    VersionNotSupported = 505,
}

/// Parses what has arrived so far, at most [`MAX_HEAD`] bytes. Bytes after the head are ignored, because the connection
/// ends with the reply.
pub(super) fn parse(received: &[u8]) -> HeadParse {
    let mut fields = [EMPTY_HEADER; MAX_FIELDS];
    let mut head = httparse::Request::new(&mut fields);
    let refused =
        |status, sentence: &str| HeadParse::Refused(HttpReply::sentence(status, sentence));
    match head.parse(received) {
        Ok(Parsed::Complete(_)) => {
            HttpRequest::from_head(&head).map_or_else(HeadParse::Refused, HeadParse::Whole)
        }
        Ok(Parsed::Partial) if received.len() < MAX_HEAD => HeadParse::Partial,
        Ok(Parsed::Partial) if received.contains(&b'\n') => refused(
            HttpStatus::HeadTooLarge,
            &format!("the head of a request is at most {MAX_HEAD} bytes"),
        ),
        Ok(Parsed::Partial) => refused(
            HttpStatus::UriTooLong,
            &format!("the target is longer than {MAX_HEAD} bytes"),
        ),
        Err(Error::TooManyHeaders) => refused(
            HttpStatus::HeadTooLarge,
            &format!("a request has at most {MAX_FIELDS} header fields"),
        ),
        Err(Error::Version) => refused(
            HttpStatus::VersionNotSupported,
            "only HTTP/1.1 and HTTP/1.0 are supported",
        ),
        Err(e) => refused(
            HttpStatus::BadRequest,
            &format!("not a valid HTTP request: {e}"),
        ),
    }
}

impl HttpRequest {
    fn from_head(head: &httparse::Request<'_, '_>) -> Result<HttpRequest, HttpReply> {
        let fields = || head.headers.iter();
        let bad = HttpReply::bad_request;
        let mut hosts = fields()
            .filter(is_named("Host"))
            .map(|field| String::from_utf8_lossy(field.value));
        let (host, second) = (hosts.next(), hosts.next());
        if second.is_some() {
            return Err(bad("a request must have one Host header, not several"));
        }
        let (authority, path) = split(head.path.unwrap_or_default());
        // By RFC 9112, section 3.2.2, the target wins. No honest client sends two different hosts.
        if let (Some(authority), Some(host)) = (authority, &host)
            && !authority.eq_ignore_ascii_case(host)
        {
            return Err(bad("the Host header names another host than the target"));
        }
        Ok(HttpRequest {
            method: head.method.unwrap_or_default().to_owned(),
            path: path.to_owned(),
            host: authority.map(str::to_owned).or(host.map(Into::into)),
            is_1_0: head.version == Some(0),
            has_body: has_body(fields())?,
            is_of_page: fields().any(|field| is_named(PAGE_FIELD)(&field))
                && is_of_this_origin(fields()),
        })
    }
}

fn is_named<'a>(name: &'static str) -> impl Fn(&&'a Header<'a>) -> bool {
    move |field| field.name.eq_ignore_ascii_case(name)
}

/// Returns whether no page of another origin has sent the request, as far as the browser reports it: only to a host on its
/// machine, or with TLS (W3C Fetch Metadata).
fn is_of_this_origin<'a>(fields: impl Iterator<Item = &'a Header<'a>>) -> bool {
    fields
        .filter(is_named("Sec-Fetch-Site"))
        .all(|site| matches!(site.value, b"same-origin" | b"none"))
}

/// Returns the authority of a target, if it is in absolute form, and its path.
fn split(target: &str) -> (Option<&str>, &str) {
    const SCHEME: &str = "http://";
    let (authority, rest) = match target.split_at_checked(SCHEME.len()) {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case(SCHEME) => {
            let (authority, rest) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
            (Some(authority), rest)
        }
        _ => (None, target),
    };
    (authority, rest.split('?').next().unwrap_or_default())
}

/// Returns whether a body follows the head: RFC 9112, section 6.3.
fn has_body<'a>(
    mut fields: impl Iterator<Item = &'a Header<'a>> + Clone,
) -> Result<bool, HttpReply> {
    for length in fields.clone().filter(is_named("Content-Length")) {
        if length.value.is_empty() || !length.value.iter().all(u8::is_ascii_digit) {
            return Err(HttpReply::bad_request(
                "the field Content-Length is a number",
            ));
        }
    }
    let is_something = |field: &Header<'_>| field.value.iter().any(|digit| *digit != b'0');
    Ok(fields.any(|field| {
        is_named("Transfer-Encoding")(&field)
            || is_named("Content-Length")(&field) && is_something(field)
    }))
}

impl HttpReply {
    /// Returns a reply for people, of one line.
    pub(super) fn sentence(status: HttpStatus, sentence: &str) -> HttpReply {
        HttpReply {
            status,
            content_type: "text/plain; charset=utf-8",
            fields: match status {
                HttpStatus::MethodNotAllowed => "Allow: GET, HEAD\r\n",
                _ => "",
            },
            body: Some(format!("{sentence}\n").into()),
        }
    }

    pub(super) fn bad_request(sentence: &str) -> HttpReply {
        HttpReply::sentence(HttpStatus::BadRequest, sentence)
    }

    /// Returns a reply for Prometheus, in its text format.
    pub(super) fn metrics(text: String) -> HttpReply {
        HttpReply {
            status: HttpStatus::Ok,
            content_type: "text/plain; version=0.0.4; charset=utf-8",
            fields: "",
            body: Some(text.into()),
        }
    }

    /// Returns a page for browsers, with further header fields.
    pub(super) fn page(html: &'static str, fields: &'static str) -> HttpReply {
        HttpReply {
            status: HttpStatus::Ok,
            content_type: "text/html; charset=utf-8",
            fields,
            body: Some(html.into()),
        }
    }

    /// Returns the reply that a stream of server-sent events begins with.
    pub(super) fn event_stream() -> HttpReply {
        HttpReply {
            status: HttpStatus::Ok,
            content_type: "text/event-stream",
            // A reverse proxy such as nginx would collect events before it sends them.
            fields: "X-Accel-Buffering: no\r\n",
            body: None,
        }
    }

    /// Returns the text of a reply for people.
    pub(super) fn text(&self) -> &str {
        self.body.as_deref().unwrap_or_default().trim_end()
    }

    /// Encodes the reply. The reply to HEAD is that to GET without its body.
    pub(super) fn encode(&self, is_to_head: bool) -> Vec<u8> {
        let HttpReply {
            content_type,
            fields,
            ..
        } = self;
        let (code, reason) = (self.status as u16, self.status.reason());
        let length = self.body.as_ref().map_or_else(String::new, |body| {
            format!("Content-Length: {}\r\n", body.len())
        });
        let body = self.body.as_deref().filter(|_| !is_to_head);
        let body = body.unwrap_or_default();
        format!(
            "HTTP/1.1 {code} {reason}\r\n\
             Content-Type: {content_type}\r\n\
             {length}\
             Cache-Control: no-store\r\n\
             X-Content-Type-Options: nosniff\r\n\
             Cross-Origin-Resource-Policy: same-origin\r\n\
             Connection: close\r\n\
             {fields}\r\n{body}"
        )
        .into_bytes()
    }
}

impl HttpStatus {
    fn reason(self) -> &'static str {
        match self {
            HttpStatus::Ok => "OK",
            HttpStatus::BadRequest => "Bad Request",
            HttpStatus::Forbidden => "Forbidden",
            HttpStatus::NotFound => "Not Found",
            HttpStatus::MethodNotAllowed => "Method Not Allowed",
            HttpStatus::RequestTimeout => "Request Timeout",
            HttpStatus::ContentTooLarge => "Content Too Large",
            HttpStatus::UriTooLong => "URI Too Long",
            HttpStatus::HeadTooLarge => "Request Header Fields Too Large",
            HttpStatus::BadGateway => "Bad Gateway",
            HttpStatus::Unavailable => "Service Unavailable",
            HttpStatus::VersionNotSupported => "HTTP Version Not Supported",
        }
    }
}

/// Parses any bytes as the head of a request. A final result must not change when more bytes arrive.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(received: &[u8]) {
    let received = &received[..received.len().min(MAX_HEAD - 1)];
    let result = parse(received);
    if let HeadParse::Refused(reply) = &result {
        let _ = (reply.encode(false), reply.encode(true));
    }
    if result != HeadParse::Partial {
        assert_eq!(parse(&[received, b"x"].concat()), result);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn whole(head: &str) -> HttpRequest {
        match parse(head.as_bytes()) {
            HeadParse::Whole(request) => request,
            other => panic!("{head:?}: {other:?}"),
        }
    }

    fn refusal(head: impl AsRef<[u8]>) -> HttpStatus {
        match parse(head.as_ref()) {
            HeadParse::Refused(reply) => reply.status,
            other => panic!("{:?}: {other:?}", String::from_utf8_lossy(head.as_ref())),
        }
    }

    #[test]
    fn requests_are_parsed_in_every_spelling() {
        for (request, expected) in [
            (
                "GET /metrics HTTP/1.1\r\nHost: a:1\r\n\r\n",
                "GET /metrics a:1",
            ),
            (
                "\r\nGET /metrics HTTP/1.1\nhOST:  a \nX: \u{fc}\n\nrest",
                "GET /metrics a",
            ),
            ("HEAD /healthz?x=/y?z HTTP/1.0\r\n\r\n", "HEAD /healthz -"),
            ("GET /a HTTP/1.1\r\nHost:\r\n\r\n", "GET /a "),
            (
                "GET HTTP://a:1/metrics?x HTTP/1.1\r\nHost: A:1\r\n\r\n",
                "GET /metrics a:1",
            ),
            ("GET http://a HTTP/1.1\r\nHost: a\r\n\r\n", "GET  a"),
            ("GET http://a?/metrics HTTP/1.0\r\n\r\n", "GET  a"),
            (
                "GET https://a/metrics HTTP/1.1\r\nHost: b\r\n\r\n",
                "GET https://a/metrics b",
            ),
            ("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", "OPTIONS * a"),
            ("CONNECT b:80 HTTP/1.1\r\nHost: a\r\n\r\n", "CONNECT b:80 a"),
        ] {
            let HttpRequest {
                method, path, host, ..
            } = whole(request);
            let host = host.as_deref().unwrap_or("-");
            assert_eq!(format!("{method} {path} {host}"), expected);
            let is_1_0 = request.contains("HTTP/1.0");
            assert_eq!(whole(request).is_1_0, is_1_0, "{request:?}");
            assert!(!whole(request).has_body, "{request:?}");
        }
        for (fields, has_body) in [
            ("Content-Length: 1", true),
            ("content-length: 0\r\nContent-Length: 20", true),
            ("Transfer-Encoding: chunked", true),
            ("Content-Length: 0", false),
            ("Content-Length: 00\r\nContent-Length: 0", false),
            ("Content: 7", false),
        ] {
            let request = whole(&format!("GET / HTTP/1.0\r\n{fields}\r\n\r\n"));
            assert_eq!(request.has_body, has_body, "{fields}");
        }
    }

    #[test]
    fn each_kind_of_invalid_request_has_its_status() {
        for bad in [
            "\x16\x03\x01\x02\x00",
            "GET\r\n",
            "GET /metrics\r\n",
            " GET / HTTP/1.1\r\n",
            "G\u{fc}T / HTTP/1.1\r\n",
            "GET / HTTP/1.1\r\n Host: a\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n folded\r\n",
            "GET / HTTP/1.1\r\nHost : a\r\n",
            "GET / HTTP/1.1\r\nHost\r\n",
            "GET / HTTP/1.1\r\nHost: a\0\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nhost: a\r\n\r\n",
            "GET http://a/ HTTP/1.1\r\nHost: b\r\n\r\n",
            "GET http://a:80/ HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET http:///metrics HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.0\r\nContent-Length: -1\r\n\r\n",
            "GET / HTTP/1.0\r\nContent-Length: 0, 0\r\n\r\n",
            "GET / HTTP/1.0\r\nContent-Length:\r\n\r\n",
        ] {
            assert_eq!(refusal(bad), HttpStatus::BadRequest, "{bad:?}");
        }
        for head in [
            "GET / HTTP/2.0\r\n",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            "GET / FTP",
        ] {
            assert_eq!(refusal(head), HttpStatus::VersionNotSupported, "{head:?}");
        }
        let with_fields = |count| format!("GET / HTTP/1.0\r\n{}\r\n", "X: y\r\n".repeat(count));
        whole(&with_fields(MAX_FIELDS));
        assert_eq!(
            refusal(with_fields(MAX_FIELDS + 1)),
            HttpStatus::HeadTooLarge
        );
    }

    #[test]
    fn a_head_is_partial_until_it_is_complete_or_too_long() {
        let head = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nX: y\r\n\r\n";
        for cut in 0..head.len() {
            assert_eq!(parse(&head[..cut]), HeadParse::Partial, "{cut}");
        }
        let longest = |front: &str, back: &str| {
            let filler = "x".repeat(MAX_HEAD - front.len() - back.len());
            [front, &filler, back].concat()
        };
        whole(&longest("GET /", " HTTP/1.0\r\n\r\n"));
        whole(&longest("GET / HTTP/1.0\r\nX: ", "\r\n\r\n"));
        for (front, back, status) in [
            ("GET /", " HTTP/1.0\r\n\r", HttpStatus::HeadTooLarge),
            ("GET / HTTP/1.0\r\nX: ", "\r\n\r", HttpStatus::HeadTooLarge),
            ("GET /", "", HttpStatus::UriTooLong),
        ] {
            assert_eq!(refusal(longest(front, back)), status, "{front}…{back}");
        }
        assert_eq!(refusal([b'\n'; MAX_HEAD]), HttpStatus::HeadTooLarge);
    }

    #[test]
    fn a_reply_to_head_is_that_to_get_without_its_body() {
        let reply = HttpReply::sentence(HttpStatus::MethodNotAllowed, "no");
        let text = String::from_utf8(reply.encode(false)).expect("text");
        let (head, body) = text.split_once("\r\n\r\n").expect("an empty line");
        assert_eq!(body, "no\n");
        assert!(
            head.starts_with("HTTP/1.1 405 Method Not Allowed\r\n")
                && head.ends_with("\r\nAllow: GET, HEAD"),
            "{head}"
        );
        assert!(head.contains("\r\nContent-Length: 3\r\n"), "{head}");
        assert_eq!(reply.encode(true), format!("{head}\r\n\r\n").into_bytes());
        assert_eq!(reply.text(), "no");
    }

    #[test]
    fn a_stream_has_no_length() {
        let head = HttpReply::event_stream().encode(false);
        let head = String::from_utf8(head).expect("text");
        assert!(head.starts_with("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"));
        assert!(
            head.ends_with("\r\n\r\n") && !head.contains("Content-Length"),
            "{head}"
        );
    }

    #[test]
    fn a_request_of_the_page_has_its_field_and_no_other_origin() {
        for (fields, expected) in [
            ("X: y", false),
            ("Sec-Fetch-Site: same-origin", false),
            ("Fdpassd-Page: 1", true),
            ("fdpassd-page:\r\nSec-Fetch-Site: same-origin", true),
            ("Fdpassd-Page: 1\r\nsec-fetch-site: none", true),
            ("Fdpassd-Page: 1\r\nSec-Fetch-Site: same-site", false),
            ("Sec-Fetch-Site: cross-site\r\nFdpassd-Page: 1", false),
            ("Fdpassd-Page: 1\r\nSec-Fetch-Site: \u{fc}", false),
        ] {
            let request = whole(&format!("GET /live HTTP/1.0\r\n{fields}\r\n\r\n"));
            assert_eq!(request.is_of_page, expected, "{fields}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            parse(&bytes);
            parse(&[&b"GET http://"[..], &bytes, b" HTTP/1.1\r\n\r\n"].concat());
            parse(&[&b"GET / HTTP/1.1\r\nHost: "[..], &bytes, b"\r\n\r\n"].concat());
        }
    }
}
