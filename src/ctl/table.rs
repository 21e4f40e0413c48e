//! Tables for people.
//!
//! A column is as wide as its widest cell, in characters: characters of double width are counted as one. Cells
//! of unknown values are blank.

use std::borrow::Cow;
use std::io::{self, Write};
use std::{array, iter};

use anstyle::Style;

use super::style::Paint;
use crate::proto::text::Escaped;

/// A cell of a table.
#[derive(Clone, Debug, Default)]
pub(super) struct Cell {
    text: String,
    style: Style,
}

impl Cell {
    /// Creates a cell with a style.
    pub(super) fn styled(text: impl Into<String>, style: Style) -> Cell {
        Cell {
            text: text.into(),
            style,
        }
    }

    /// Creates a cell with a text from outside: escaped, and at most `most` characters.
    pub(super) fn foreign(text: &str, most: usize) -> Cell {
        Cell::from(shortened(&Escaped(text).to_string(), most).into_owned())
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    pub(super) fn style(&self) -> Style {
        self.style
    }

    pub(super) fn width(&self) -> usize {
        self.text.chars().count()
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Cell {
        Cell {
            text,
            style: Style::new(),
        }
    }
}

/// The layout of a table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Columns<'a, const N: usize> {
    pub(super) header: [&'a str; N],
    /// The columns of words, which are flush left; numbers are flush right.
    pub(super) words: &'a [usize],
    /// A column that is shortened if the table is wider than this, in characters.
    pub(super) gives_way: Option<(usize, usize)>,
    /// A column that is left out if no row has a value in it.
    pub(super) optional: Option<usize>,
}

impl<const N: usize> Columns<'_, N> {
    fn is_left_out(&self, column: usize, rows: &[[Cell; N]]) -> bool {
        self.optional == Some(column) && rows.iter().all(|row| row[column].text.is_empty())
    }

    /// Returns the width of each column, and `None` for one that is left out.
    fn widths(&self, rows: &[[Cell; N]]) -> [Option<usize>; N] {
        let mut widths = self.header.map(|name| name.chars().count());
        for row in rows {
            widths = array::from_fn(|column| widths[column].max(row[column].width()));
        }
        let mut widths: [Option<usize>; N] =
            array::from_fn(|column| (!self.is_left_out(column, rows)).then_some(widths[column]));
        let all: usize = widths.iter().flatten().map(|width| width + 1).sum();
        if let Some((column, most)) = self.gives_way
            && let Some(width) = &mut widths[column]
        {
            let excess = all.saturating_sub(most + 1);
            *width = width.saturating_sub(excess).max(self.header[column].len());
        }
        widths
    }
}

/// Writes a header and rows.
pub(super) fn write<const N: usize>(
    to: &mut impl Write,
    paint: Paint,
    columns: Columns<N>,
    rows: &[[Cell; N]],
) -> io::Result<()> {
    let header = columns.header.map(|name| Cell::from(name.to_owned()));
    let widths = columns.widths(rows);
    iter::once(&header).chain(rows).try_for_each(|row| {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(widths).enumerate() {
            let Some(width) = width else { continue };
            let text = shortened(&cell.text, width);
            let padding = " ".repeat(width - text.chars().count());
            let text = paint.on(cell.style, text);
            line.push_str(if column > 0 { " " } else { "" });
            line.push_str(&match columns.words.contains(&column) {
                true => format!("{text}{padding}"),
                false => format!("{padding}{text}"),
            });
        }
        writeln!(to, "{}", line.trim_end())
    })
}

/// Shortens a text to `most` characters: the middle is left out, because beginning and end matter.
pub(super) fn shortened(text: &str, most: usize) -> Cow<'_, str> {
    let length = text.chars().count();
    if length <= most {
        return text.into();
    }
    let front = (most - 1) / 2;
    let back = length - (most - 1 - front);
    let kept = |(at, c)| {
        (at < front || at >= back)
            .then_some(c)
            .or((at == front).then_some('…'))
    };
    text.chars().enumerate().filter_map(kept).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ctl::style::{BAD, Seen};

    fn written(paint: Paint, gives_way: Option<(usize, usize)>, rows: &[[Cell; 3]]) -> String {
        let mut out = Vec::new();
        let columns = Columns {
            header: ["N", "WORD", "LAST"],
            words: &[1],
            gives_way,
            optional: None,
        };
        write(&mut out, paint, columns, rows).expect("a Vec takes everything");
        String::from_utf8(out).expect("UTF-8")
    }

    #[test]
    fn words_align_left_and_numbers_right_with_or_without_colour() {
        let row = |[a, b, c]: [&str; 3]| {
            [
                Cell::from(a.to_owned()),
                Cell::styled(b, BAD),
                Cell::from(c.to_owned()),
            ]
        };
        let rows = [row(["1", "µ", "7"]), row(["1,234", "longer", ""])];
        let plain = "    N WORD   LAST\n    1 µ         7\n1,234 longer\n";
        assert_eq!(written(Paint::default(), None, &rows), plain);
        let painted = written(Seen::new(true, false, |_| None).paint(), None, &rows);
        assert!(painted.contains("\x1b[31mµ\x1b[0m      "), "{painted:?}");
        assert_eq!(
            painted.replace("\x1b[31m", "").replace("\x1b[0m", ""),
            plain
        );
    }

    #[test]
    fn one_column_is_shortened_down_to_its_name() {
        let rows = [["1", "unix:/rpc.sock", "7"].map(|text| Cell::from(text.to_owned()))];
        for (most, shown) in [
            (21, "N WORD           LAST\n1 unix:/rpc.sock    7\n"),
            (17, "N WORD       LAST\n1 unix….sock    7\n"),
            (3, "N WORD LAST\n1 u…ck    7\n"),
        ] {
            assert_eq!(
                written(Paint::default(), Some((1, most)), &rows),
                shown,
                "{most}"
            );
        }
    }

    #[test]
    fn foreign_text_is_escaped_and_shortened() {
        for (text, most, shown) in [
            ("127.0.0.1:8080", 14, "127.0.0.1:8080"),
            ("127.0.0.1:8080", 13, "127.0.…1:8080"),
            ("unix:/a\n/b", 20, "unix:/a\\n/b"),
            ("ππππππ", 5, "ππ…ππ"),
            ("abcdef", 1, "…"),
        ] {
            assert_eq!(Cell::foreign(text, most).text, shown);
        }
    }
}
