//! Tables in Markdown.

use std::io::{self, Write, stdout};

use super::failure::{Context, Result};
use super::spread::Spread;

/// Formats a median with its range.
pub(crate) fn with_range(spread: Spread, digits: usize, unit: &str) -> String {
    let Spread {
        median,
        least,
        most,
        ..
    } = spread;
    format!("{median:.digits$}{unit} ({least:.digits$}-{most:.digits$})")
}

pub(crate) fn row(first: &str, rest: impl IntoIterator<Item = String>) -> Vec<String> {
    std::iter::once(first.to_owned()).chain(rest).collect()
}

/// Writes a grid to standard output.
pub(crate) fn write_out(rows: &[Vec<String>]) -> Result<()> {
    write_grid(&mut stdout().lock(), rows).context("cannot write the table")
}

/// Writes a grid, whose first row is the head.
pub(crate) fn write_grid(out: &mut impl Write, rows: &[Vec<String>]) -> io::Result<()> {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| {
        rows.iter()
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for (number, row) in rows.iter().enumerate() {
        for (cell, &width) in row.iter().zip(&widths) {
            write!(out, "| {cell:<width$} ")?;
        }
        writeln!(out, "|")?;
        if number == 0 {
            for &width in &widths {
                write!(out, "|{}", "-".repeat(width + 2))?;
            }
            writeln!(out, "|")?;
        }
    }
    Ok(())
}
