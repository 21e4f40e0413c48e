//! Tables for people.
//!
//! A column is as wide as its widest cell, in characters: characters of double width are counted as one. Cells
//! of unknown values are blank. No row is wider than the terminal, as far as columns can be shortened or left out.

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
    /// The columns that are shortened, in this order, if the table is wider than the terminal. Each has the width below
    /// which it is shortened only after all of `goes` are left out.
    pub(super) gives_way: &'a [(usize, usize)],
    /// The columns that are left out, in this order, if that does not suffice.
    pub(super) goes: &'a [usize],
    /// A column that is left out if no row has a value in it.
    pub(super) optional: Option<usize>,
}

impl<const N: usize> Columns<'_, N> {
    fn is_left_out(&self, column: usize, rows: &[[Cell; N]]) -> bool {
        self.optional == Some(column) && rows.iter().all(|row| row[column].text.is_empty())
    }

    /// Returns the width of each column, and `None` for one that is left out.
    fn widths(&self, rows: &[[Cell; N]], most: Option<usize>) -> [Option<usize>; N] {
        let mut widths = self.header.map(|name| name.chars().count());
        for row in rows {
            widths = array::from_fn(|column| widths[column].max(row[column].width()));
        }
        let all: [Option<usize>; N] =
            array::from_fn(|column| (!self.is_left_out(column, rows)).then_some(widths[column]));
        let Some(most) = most else { return all };
        let mut widths = all;
        for gone in 0..=self.goes.len() {
            widths = all;
            for column in &self.goes[..gone] {
                widths[*column] = None;
            }
            self.shorten(&mut widths, most, |readable| readable);
            if total(&widths) <= most {
                return widths;
            }
        }
        self.shorten(&mut widths, most, |_| 0);
        widths
    }

    /// Shortens columns until all together are `most` wide, each to its name and the least width for its readable one
    /// at most.
    fn shorten(
        &self,
        widths: &mut [Option<usize>; N],
        most: usize,
        least: impl Fn(usize) -> usize,
    ) {
        for (column, readable) in self.gives_way {
            let excess = total(widths).saturating_sub(most);
            if let Some(width) = &mut widths[*column] {
                let least = least(*readable);
                let least = least.max(self.header[*column].len()).min(*width);
                *width = width.saturating_sub(excess).max(least);
            }
        }
    }
}

/// Returns the width of a table with these columns.
fn total<const N: usize>(widths: &[Option<usize>; N]) -> usize {
    let all: usize = widths.iter().flatten().map(|width| width + 1).sum();
    all.saturating_sub(1)
}

/// The width to which most columns are shortened before others are left out.
pub(super) const READABLE: usize = 14;
/// The same of columns of which no part is like another: the width of an IPv4 address with its port.
pub(super) const ADDRESS: usize = 21;

/// Writes a header and rows.
pub(super) fn write<const N: usize>(
    to: &mut impl Write,
    paint: Paint,
    columns: Columns<N>,
    rows: &[[Cell; N]],
) -> io::Result<()> {
    let header = columns.header.map(|name| Cell::from(name.to_owned()));
    let widths = columns.widths(rows, paint.width());
    iter::once(&header).chain(rows).try_for_each(|row| {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(widths).enumerate() {
            let Some(width) = width else { continue };
            let text = shortened(&cell.text, width);
            let padding = " ".repeat(width - text.chars().count());
            let text = paint.on(cell.style, text);
            line.push_str(if line.is_empty() { "" } else { " " });
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
    use std::ffi::OsString;

    use super::*;
    use crate::ctl::style::{BAD, Colour, Seen};

    fn written(paint: Paint, goes: &[usize], rows: &[[Cell; 3]]) -> String {
        let mut out = Vec::new();
        let columns = Columns {
            header: ["N", "WORD", "LAST"],
            words: &[1],
            gives_way: &[(1, READABLE)],
            goes,
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
        assert_eq!(written(Paint::default(), &[], &rows), plain);
        let painted = written(Seen::new(true, false, |_| None).paint(), &[], &rows);
        assert!(painted.contains("\x1b[31mµ\x1b[0m      "), "{painted:?}");
        assert_eq!(
            painted.replace("\x1b[31m", "").replace("\x1b[0m", ""),
            plain
        );
    }

    /// Returns an output without colours that is so wide.
    fn wide(width: usize) -> Paint {
        let width = width.to_string();
        let var = |name: &str| (name == "COLUMNS").then(|| OsString::from(&width));
        Seen::new(true, false, var)
            .with_colours(Colour::Never)
            .paint()
    }

    #[test]
    fn one_column_is_shortened_down_to_its_name() {
        let rows = [["1", "unix:/rpc.sock", "7"].map(|text| Cell::from(text.to_owned()))];
        for (most, shown) in [
            (21, "N WORD           LAST\n1 unix:/rpc.sock    7\n"),
            (17, "N WORD       LAST\n1 unix….sock    7\n"),
            (3, "N WORD LAST\n1 u…ck    7\n"),
        ] {
            assert_eq!(written(wide(most), &[], &rows), shown, "{most}");
        }
    }

    #[test]
    fn columns_are_left_out_before_others_become_unreadable() {
        let rows = [["1", "unix:/run/a/rpc.sock", "7"].map(|text| Cell::from(text.to_owned()))];
        for (most, shown) in [
            (
                27,
                "N WORD                 LAST\n1 unix:/run/a/rpc.sock    7\n",
            ),
            (21, "N WORD           LAST\n1 unix:/…pc.sock    7\n"),
            (20, "N WORD\n1 unix:/ru…/rpc.sock\n"),
            (9, "WORD\nunix…sock\n"),
        ] {
            assert_eq!(written(wide(most), &[2, 0], &rows), shown, "{most}");
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
