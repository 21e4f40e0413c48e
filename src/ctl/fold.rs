//! Lines that are longer than the terminal is wide, continued on further lines.

use std::io::{self, Write};

/// Writes lines of at most `width` columns. A longer one continues below it, indented by `indent`; it is broken at
/// spaces after that column, and within a word that is longer than a line. Without a width, lines stay as they are.
pub(super) fn write(
    to: &mut impl Write,
    width: Option<usize>,
    indent: usize,
    text: &str,
) -> io::Result<()> {
    let Some(width) = width else {
        return to.write_all(text.as_bytes());
    };
    let lines = text.lines();
    lines
        .flat_map(|line| folded(line, width, indent))
        .try_for_each(|line| writeln!(to, "{line}"))
}

/// Returns the lines of at most `width` columns that a line is broken into.
pub(super) fn folded(line: &str, width: usize, indent: usize) -> Vec<String> {
    let indent = indent.min(width / 2);
    let (mut lines, mut rest) = (Vec::new(), line);
    loop {
        let (margin, least) = match lines.is_empty() {
            true => ("".to_owned(), indent),
            false => (" ".repeat(indent), 0),
        };
        match cut(rest, (width - margin.len()).max(1), least) {
            None => {
                lines.push(margin + rest);
                return lines;
            }
            Some((end, next)) => {
                lines.push(margin + rest[..end].trim_end());
                rest = rest[next..].trim_start();
            }
        }
    }
}

/// Returns where the first `room` columns of a text end and where the next line begins, at the last space after column
/// `least` if there is one; `None` if the text is not longer.
fn cut(text: &str, room: usize, least: usize) -> Option<(usize, usize)> {
    let (mut column, mut space, mut is_sequence) = (0, None, false);
    for (at, c) in text.trim_end().char_indices() {
        if is_sequence || c == '\x1b' {
            // Sequences of colours have no width; foreign ones are escaped before.
            is_sequence = c != 'm';
            continue;
        }
        if c == ' ' && column > least {
            space = Some((at, at + 1));
        }
        if column == room {
            return space.or(Some((at, at)));
        }
        column += 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lines_continue_below_at_spaces() {
        for (line, width, indent, lines) in [
            ("", 10, 4, &[""][..]),
            ("one two", 7, 2, &["one two"]),
            ("one two  ", 7, 2, &["one two  "]),
            ("one two three", 8, 2, &["one two", "  three"]),
            (
                "one two three four",
                10,
                2,
                &["one two", "  three", "  four"],
            ),
            (
                "word      text more",
                15,
                10,
                &["word      text", "       more"],
            ),
            ("abcdefghijkl", 5, 2, &["abcde", "  fgh", "  ijk", "  l"]),
            ("π πππ", 4, 0, &["π", "πππ"]),
            ("ab", 1, 9, &["a", "b"]),
            ("\x1b[31mred\x1b[0m and", 7, 0, &["\x1b[31mred\x1b[0m and"]),
            (
                "\x1b[31mred\x1b[0m and",
                6,
                0,
                &["\x1b[31mred\x1b[0m", "and"],
            ),
        ] {
            assert_eq!(folded(line, width, indent), lines, "{line:?} in {width}");
        }
    }
}
