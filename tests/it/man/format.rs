//! The form of the pages: valid mdoc, 80 columns, text that can be pasted.

use std::process::Command;

use crate::common::needs::{skip, skip_part};
use crate::common::page::{self, PAGES, Page};
use crate::common::program::{Said, run};

#[test]
fn the_pages_are_good_mdoc() {
    if Command::new("mandoc").arg("/dev/null").output().is_err() {
        return skip("mandoc", "there is no mandoc");
    }
    for name in PAGES {
        let Said { out, err, .. } = run(
            "mandoc",
            &[
                "-T",
                "lint",
                "-W",
                "warning",
                &page::path(name).display().to_string(),
            ],
        );
        assert_eq!((out.as_str(), err.as_str()), ("", ""), "{name}");
    }
}

/// Text pasted from a page must work, and a page must fit on a terminal.
#[test]
fn the_pages_fit_into_80_columns_and_can_be_pasted_from() {
    let renderers: [(&str, &[&str]); 2] = [
        ("mandoc", &["-T", "utf8", "-O", "width=78"]),
        ("man", &["-l"]),
    ];
    for (renderer, arguments) in renderers {
        if Command::new(renderer).arg("/dev/null").output().is_err() {
            skip_part(renderer, &format!("there is no {renderer}"));
            continue;
        }
        for name in PAGES {
            let mut command = Command::new(renderer);
            command
                .args(arguments)
                .arg(page::path(name))
                .env("MANWIDTH", "80")
                .env("LC_ALL", "C.UTF-8");
            let output = command.output().expect("it ran a moment ago");
            let text = without_overstrike(&String::from_utf8(output.stdout).expect("UTF-8"));
            assert!(text.lines().count() > 50, "{renderer} {name}: {text}");
            for line in text.lines() {
                assert!(line.chars().count() <= 80, "{renderer} {name}: {line}");
            }
            for display in Page::of(name).displays() {
                let rendered = |line: &&str| {
                    text.lines()
                        .any(|shown| shown.trim_start() == line.trim_start())
                };
                let wrong = display.lines().find(|line| !rendered(line));
                assert!(
                    wrong.is_none(),
                    "{renderer} {name}: this is shown otherwise: {wrong:?}"
                );
            }
        }
    }
}

/// Returns bold and underlined text as a terminal shows it.
fn without_overstrike(text: &str) -> String {
    let mut shown = String::new();
    for letter in text.chars() {
        if letter == '\u{8}' {
            shown.pop();
        } else {
            shown.push(letter);
        }
    }
    shown
}
