//! The line, the column and the caret of an error.

use super::*;

#[test]
fn a_byte_order_mark_and_carriage_returns_move_no_caret() {
    let message = "invalid value: integer `0`, expected \"auto\" or a number from 1 to 256";
    for (text, column) in [
        ("workers.count = 0\r\n", 17),
        ("# ü\r\n[workers]\r\ncount = 0\r\n", 9),
    ] {
        let line = text.lines().count();
        for text in [
            text.to_owned(),
            format!("\u{feff}{text}"),
            text.replace("\r\n", "\n"),
        ] {
            let error = Config::parse(&text, ORIGIN).expect_err(message);
            assert_eq!(error.message(), message);
            assert_eq!(
                (error.line(), error.column()),
                (Some(line), Some(column)),
                "{text:?}\n{error}"
            );
            assert_shown(
                &error,
                text.lines()
                    .last()
                    .expect("a line")
                    .trim_start_matches('\u{feff}'),
            );
        }
    }
    assert_eq!(
        parse(&format!("\u{feff}{}", SHIPPED.replace('\n', "\r\n"))),
        Config::default()
    );
    refused(
        "log = { file = \"/ü\", «levle = 1 }",
        "unknown key `levle`, expected one of `target`, `file`, `format`, `level`, `slow-request`",
    );
}

#[test]
fn an_error_at_the_end_is_shown_behind_the_last_line() {
    for end in ["", "\n", "\r\n"] {
        let error =
            Config::parse(&format!("x = \"\"\"abc{end}"), ORIGIN).expect_err("an open string");
        assert_eq!(
            (error.line(), error.column()),
            (Some(1), Some(11)),
            "\n{error}"
        );
        assert_shown(&error, "x = \"\"\"abc");
    }
}
