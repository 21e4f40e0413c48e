//! The page: HTML, CSS and JavaScript in one reply, without any other resource. It is the same for every daemon and has
//! no data: the script shows what the stream at `/live` sends, always as text and never as markup.

use super::http::HttpReply;

/// The version of the page. Its script loads the page again when the stream is that of another version.
pub(super) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The page.
const PAGE: &str = concat!(
    include_str!("page/head.html"),
    "<meta name=\"version\" content=\"",
    env!("CARGO_PKG_VERSION"),
    "\">\n<style>",
    include_str!("page/page.css"),
    "</style>\n",
    include_str!("page/body.html"),
    "<script>",
    include_str!("page/text.js"),
    include_str!("page/stream.js"),
    include_str!("page/plots.js"),
    include_str!("page/page.js"),
    "</script>\n</body>\n</html>\n"
);

/// The header fields of the page. Only this style and this script work in it; after a change, the test prints their
/// hashes. The script may connect to this address only, and cannot make markup of text. No other page may show this one.
const FIELDS: &str = "Content-Security-Policy: default-src 'none'; \
    style-src 'sha256-VL5Q8tkTiVAB5gX/ahrEZg6+RawPUQNyYYtI+iYyquc='; \
    script-src 'sha256-A63ERmy3KE/OMQ112Ex5FIdlQWOcvWcLvWadhzd0K1Q='; \
    connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
    require-trusted-types-for 'script'; trusted-types 'none'\r\n\
    Referrer-Policy: no-referrer\r\n";

/// Returns the page.
pub(super) fn reply() -> HttpReply {
    HttpReply::page(PAGE, FIELDS)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;

    /// Returns the text of the only element with this name.
    fn element(name: &str) -> &'static str {
        let (begin, end) = (format!("<{name}>"), format!("</{name}>"));
        let parts: Vec<&str> = PAGE.split(&begin).collect();
        let [_, rest] = parts[..] else {
            panic!("there is one {begin}")
        };
        rest.split_once(&end).expect("its end").0
    }

    /// Returns the SHA-256 of a text in base64.
    fn hash(text: &str) -> String {
        let mut program = Command::new("sha256sum")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("coreutils");
        let mut input = program.stdin.take().expect("a pipe");
        input.write_all(text.as_bytes()).expect("it reads");
        drop(input);
        let output = program.wait_with_output().expect("its output");
        let digits = String::from_utf8(output.stdout).expect("text");
        let byte = |at: usize| u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).expect("hex");
        base64(&(0..32).map(byte).collect::<Vec<u8>>())
    }

    fn base64(bytes: &[u8]) -> String {
        const DIGITS: &[u8; 64] =
            b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let mut text = String::new();
        for three in bytes.chunks(3) {
            let bits = (0..3).fold(0, |bits, at| {
                bits << 8 | u32::from(*three.get(at).unwrap_or(&0))
            });
            let digit = |at: usize| DIGITS[(bits >> (18 - 6 * at) & 63) as usize] as char;
            text.extend((0..=three.len()).map(digit));
            text.extend(std::iter::repeat_n('=', 3 - three.len()));
        }
        text
    }

    #[test]
    fn the_policy_allows_this_style_and_this_script() {
        assert_eq!(base64(b"fdpassd"), "ZmRwYXNzZA==");
        for (directive, name) in [("style-src", "style"), ("script-src", "script")] {
            let expected = format!("{directive} 'sha256-{}';", hash(element(name)));
            assert!(FIELDS.contains(&expected), "it is not {expected}");
        }
    }

    #[test]
    fn nothing_in_the_page_needs_what_the_policy_forbids() {
        let page = PAGE.to_lowercase();
        for forbidden in [
            "style=",
            "javascript:",
            "innerhtml",
            "outerhtml",
            "insertadjacenthtml",
            "document.write",
            "eval(",
            "new function",
            "@import",
            "url(",
        ] {
            assert!(!page.contains(forbidden), "{forbidden}");
        }
        // No handler in an attribute.
        let words = page.split_whitespace();
        let is_handler = |word: &&str| {
            let name = word.split('=').next().unwrap_or_default();
            word.contains("=\"") && name.starts_with("on")
        };
        assert_eq!(words.filter(is_handler).collect::<Vec<_>>(), [""; 0]);
        let addresses = page.matches("http").count();
        assert_eq!(addresses, 2, "only the namespace of SVG");
        assert!(!page.contains(" src="));
    }
}
