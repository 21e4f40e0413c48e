//! The page: its policy, and that it is one reply. `tests/page/run` shows it in a browser.

use crate::common::http::{ask, get, metrics_address, request};
use crate::common::start;

use super::TCP;

#[test]
fn the_page_allows_nothing_but_itself() {
    let daemon = start(TCP);
    let address = metrics_address(&daemon);
    let page = get(&address, "/");
    let policy = page.field("Content-Security-Policy").expect("a policy");
    for directive in [
        "default-src 'none'",
        "script-src 'sha256-",
        "style-src 'sha256-",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    ] {
        assert!(policy.contains(directive), "{directive}: {policy}");
    }
    assert!(
        !policy.contains("unsafe") && !policy.contains('*'),
        "{policy}"
    );
    assert_eq!(page.field("Referrer-Policy"), Some("no-referrer"));
    for external in [" src=", "@import", "href=\"http", "url("] {
        assert!(!page.body.contains(external), "{external}");
    }
    assert!(page.body.ends_with("</html>\n"));
}

#[test]
fn the_page_can_only_be_read() {
    let daemon = start(TCP);
    let address = metrics_address(&daemon);
    let length = get(&address, "/").body.len().to_string();
    let head = ask(&address, request("/").replace("GET", "HEAD"));
    assert_eq!(head.status_and_body(), (200, ""));
    assert_eq!(head.field("Content-Length"), Some(length.as_str()));
    for path in ["/", "/live"] {
        for method in ["POST", "PUT", "DELETE"] {
            let answer = ask(&address, request(path).replace("GET", method));
            assert_eq!(answer.status, 405, "{method} {path}");
        }
        let foreign = request(path).replace("localhost", "evil.example");
        assert_eq!(ask(&address, foreign).status, 403, "{path}");
    }
}
