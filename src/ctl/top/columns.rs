//! Tables on a screen: which columns fit, how rows are sorted, and which of them are visible.

use std::ops::Range;

use crate::ctl::table::{Cell, shortened};

/// A column of rows of this type.
#[derive(Debug)]
pub(crate) struct Column<R> {
    pub(crate) name: &'static str,
    /// Words are flush left, and shortened if there is little room; numbers are flush right.
    pub(crate) is_word: bool,
    /// The usual width, so that a table does not change with every figure.
    pub(crate) usual: usize,
    /// The columns with the highest ranks are left out first if there is little room, those with rank 0 never.
    pub(crate) rank: u8,
    pub(crate) cell: fn(&R) -> Cell,
    /// The figure by which rows can be sorted.
    pub(crate) figure: Option<fn(&R) -> Option<f64>>,
}

impl<R> Column<R> {
    /// Returns a column of numbers that rows can be sorted by.
    pub(crate) const fn figure(
        name: &'static str,
        usual: usize,
        rank: u8,
        cell: fn(&R) -> Cell,
        figure: fn(&R) -> Option<f64>,
    ) -> Column<R> {
        Column {
            figure: Some(figure),
            ..Column::plain(name, usual, rank, cell)
        }
    }

    /// Returns a column of numbers that rows are not sorted by.
    pub(crate) const fn plain(
        name: &'static str,
        usual: usize,
        rank: u8,
        cell: fn(&R) -> Cell,
    ) -> Column<R> {
        Column {
            name,
            is_word: false,
            usual,
            rank,
            cell,
            figure: None,
        }
    }

    /// Returns a column of words.
    pub(crate) const fn word(
        name: &'static str,
        usual: usize,
        rank: u8,
        cell: fn(&R) -> Cell,
    ) -> Column<R> {
        Column {
            is_word: true,
            ..Column::plain(name, usual, rank, cell)
        }
    }
}

/// A cell at its place in a line.
#[derive(Clone, Debug)]
pub(crate) struct PlacedCell {
    /// The position of its column among all.
    pub(crate) column: usize,
    pub(crate) at: usize,
    pub(crate) cell: Cell,
}

/// The columns of a table, and how it is sorted.
#[derive(Debug)]
pub(crate) struct Shape<'a, R> {
    pub(crate) columns: &'a [Column<R>],
    pub(crate) sorting: Sorting,
    /// A column that is left out in any case.
    pub(crate) without: Option<usize>,
}

impl<R> Shape<'_, R> {
    /// Returns the header and the rows as lines of a screen of this width. The name of the sorted column is marked.
    pub(crate) fn lines(
        &self,
        rows: &[&R],
        width: usize,
    ) -> (Vec<PlacedCell>, Vec<Vec<PlacedCell>>) {
        let (columns, sorting) = (self.columns, self.sorting);
        let names: Vec<Cell> = (0..columns.len())
            .map(|column| Cell::from(sorting.marked(column, columns[column].name)))
            .collect();
        let cells: Vec<Vec<Cell>> = rows
            .iter()
            .map(|row| columns.iter().map(|column| (column.cell)(row)).collect())
            .collect();
        let natural: Vec<usize> = (0..columns.len())
            .map(|column| {
                let cells = cells.iter().map(|row| row[column].width());
                let name = names[column].width();
                cells
                    .max()
                    .unwrap_or(0)
                    .max(name)
                    .max(columns[column].usual)
            })
            .collect();
        let fitted = self.fit(&natural, width);
        let place = |row: &[Cell]| placed(columns, &fitted, row);
        (place(&names), cells.iter().map(|row| place(row)).collect())
    }

    /// Returns the columns that fit, each with its width.
    fn fit(&self, natural: &[usize], width: usize) -> Vec<(usize, usize)> {
        let columns = self.columns;
        let least = |column: usize| match columns[column].is_word {
            true => natural[column].min(SHORT_WORD),
            false => natural[column],
        };
        let mut fitted: Vec<(usize, usize)> = (0..columns.len())
            .filter(|column| self.without != Some(*column))
            .map(|column| (column, least(column)))
            .collect();
        while total(&fitted) > width {
            let ranks = fitted.iter().map(|(column, _)| columns[*column].rank);
            let Some(highest) = ranks.max().filter(|rank| *rank > 0) else {
                break;
            };
            fitted.retain(|(column, _)| columns[*column].rank < highest);
        }
        let mut left = width.saturating_sub(total(&fitted));
        for (column, width) in &mut fitted {
            let more = (natural[*column] - *width).min(left);
            (*width, left) = (*width + more, left - more);
        }
        fitted
    }
}

fn total(fitted: &[(usize, usize)]) -> usize {
    let widths = fitted.iter().map(|(_, width)| width + 1);
    widths.sum::<usize>().saturating_sub(1)
}

fn placed<R>(columns: &[Column<R>], fitted: &[(usize, usize)], row: &[Cell]) -> Vec<PlacedCell> {
    let mut begin = 0;
    let mut cells = Vec::new();
    for &(column, width) in fitted {
        let text = shortened(row[column].text(), width);
        let padding = match columns[column].is_word {
            true => 0,
            false => width.saturating_sub(text.chars().count()),
        };
        cells.push(PlacedCell {
            column,
            at: begin + padding,
            cell: Cell::styled(text, row[column].style()),
        });
        begin += width + 1;
    }
    cells
}

/// How a table is sorted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sorting {
    /// The column; without one, rows keep their order.
    pub(crate) by: Option<usize>,
    pub(crate) is_reversed: bool,
}

impl Sorting {
    /// Sorts rows, the largest figure first, and those without one last.
    pub(crate) fn sort<R>(self, columns: &[Column<R>], rows: &mut [&R]) {
        if let Some(figure) = self.by.and_then(|column| columns[column].figure) {
            rows.sort_by(|a, b| match (figure(a), figure(b)) {
                (Some(a), Some(b)) if self.is_reversed => a.total_cmp(&b),
                (Some(a), Some(b)) => b.total_cmp(&a),
                (a, b) => b.is_some().cmp(&a.is_some()),
            });
        } else if self.is_reversed {
            rows.reverse();
        }
    }

    /// Sorts by the next one of these columns that has figures, or by the one before; after the last one, by none.
    pub(crate) fn step<R>(&mut self, columns: &[Column<R>], shown: &[usize], is_forward: bool) {
        let sortable = shown
            .iter()
            .filter(|column| columns[**column].figure.is_some());
        let mut choices: Vec<Option<usize>> = sortable.copied().map(Some).collect();
        choices.push(None);
        let now = choices.iter().position(|choice| *choice == self.by);
        let step = if is_forward { 1 } else { choices.len() - 1 };
        let next = (now.unwrap_or_default() + step) % choices.len();
        self.by = choices[next];
    }

    /// Returns the name of a column, with a mark if rows are sorted by it.
    fn marked(self, column: usize, name: &str) -> String {
        match (self.by == Some(column), self.is_reversed) {
            (false, _) => name.to_owned(),
            (true, false) => format!("{name}▾"),
            (true, true) => format!("{name}▴"),
        }
    }
}

/// The selected row of a table, and the rows that are visible.
#[derive(Clone, Debug)]
pub(crate) struct Selection<K> {
    /// The key of the row; none for the first row, whichever that is.
    key: Option<K>,
    /// Where the row was, for the time after it has gone.
    at: usize,
    /// The first visible row.
    first: usize,
    /// The number of rows that were visible.
    height: usize,
}

impl<K> Default for Selection<K> {
    fn default() -> Selection<K> {
        Selection {
            key: None,
            at: 0,
            first: 0,
            height: 1,
        }
    }
}

impl<K: Copy + PartialEq> Selection<K> {
    /// Returns the position of the selected row; `None` if there are no rows. If it has gone, the row that is now at
    /// its place is selected.
    pub(crate) fn settle(&mut self, keys: &[K]) -> Option<usize> {
        let last = keys.len().checked_sub(1)?;
        let Some(key) = self.key else {
            self.at = 0;
            return Some(0);
        };
        self.at = match keys.iter().position(|other| *other == key) {
            Some(at) => at,
            None => self.at.min(last),
        };
        self.key = Some(keys[self.at]);
        Some(self.at)
    }

    /// Selects another row.
    pub(crate) fn step(&mut self, keys: &[K], step: RowStep) {
        let Some(at) = self.settle(keys) else { return };
        let last = keys.len() - 1;
        let page = self.height.max(1);
        self.at = match step {
            RowStep::Up => at.saturating_sub(1),
            RowStep::Down => (at + 1).min(last),
            RowStep::PageUp => at.saturating_sub(page),
            RowStep::PageDown => (at + page).min(last),
            RowStep::First => 0,
            RowStep::Last => last,
        };
        // The first row is the first one also after the order has changed.
        self.key = (self.at > 0).then(|| keys[self.at]);
    }

    /// Returns the rows that are visible in a table of this height, the selected one among them.
    pub(crate) fn window(&mut self, count: usize, height: usize) -> Range<usize> {
        self.height = height.max(1);
        let at = self.at.min(count.saturating_sub(1));
        let first = self.first.min(count.saturating_sub(height));
        self.first = first.clamp((at + 1).saturating_sub(self.height), at);
        self.first..(self.first + height).min(count)
    }
}

/// A step through rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RowStep {
    Up,
    Down,
    PageUp,
    PageDown,
    First,
    Last,
}

/// The width to which a word may be shortened before columns are left out: that of an IPv4 address with its port.
const SHORT_WORD: usize = 21;

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: &[Column<(&str, f64)>] = &[
        Column::word("WORD", 0, 0, |row| Cell::from(row.0.to_owned())),
        Column::figure(
            "N",
            4,
            1,
            |row| Cell::from(row.1.to_string()),
            |row| (row.1 >= 0.0).then_some(row.1),
        ),
        Column::plain("RARE", 0, 2, |_| Cell::from("x".to_owned())),
    ];

    fn shown(width: usize, word: &'static str) -> String {
        shown_without(None, width, word)
    }

    fn shown_without(without: Option<usize>, width: usize, word: &'static str) -> String {
        let row = (word, 7.0);
        let shape = Shape {
            columns: COLUMNS,
            sorting: Sorting::default(),
            without,
        };
        let (header, rows) = shape.lines(&[&row], width);
        let line = |cells: &[PlacedCell]| {
            cells.iter().fold(String::new(), |line, placed| {
                let text = placed.cell.text();
                format!("{line:width$}{text}", width = placed.at)
            })
        };
        format!("{}|{}", line(&header), line(&rows[0]))
    }

    #[test]
    fn columns_are_left_out_by_rank_and_words_shortened() {
        let word = "0123456789abcdefghijklmnopqrstuv";
        for (width, expected) in [
            (
                60,
                "WORD                                N RARE|0123456789abcdefghijklmnopqrstuv    7    x",
            ),
            (
                33,
                "WORD                       N RARE|0123456789a…lmnopqrstuv    7    x",
            ),
            (
                30,
                "WORD                         N|0123456789ab…klmnopqrstuv    7",
            ),
            (25, "WORD|0123456789ab…klmnopqrstuv"),
            (5, "WORD|0123456789…mnopqrstuv"),
        ] {
            assert_eq!(shown(width, word), expected, "{width}");
        }
        assert_eq!(shown_without(Some(1), 60, "a"), "WORD RARE|a       x");
    }

    #[test]
    fn rows_are_sorted_by_each_figure_and_by_none() {
        let rows = [("a", 1.0), ("b", -1.0), ("c", 3.0), ("d", 1.0)];
        let mut sorting = Sorting::default();
        let sorted = |sorting: Sorting| {
            let mut sorted: Vec<&(&str, f64)> = rows.iter().collect();
            sorting.sort(COLUMNS, &mut sorted);
            sorted.iter().map(|row| row.0).collect::<String>()
        };
        assert_eq!(sorted(sorting), "abcd");
        sorting.is_reversed = true;
        assert_eq!(sorted(sorting), "dcba");
        sorting.step(COLUMNS, &[0, 2], true);
        assert_eq!(sorting.by, None, "the column is not shown");
        sorting.step(COLUMNS, &[0, 1], true);
        assert_eq!((sorting.by, sorted(sorting).as_str()), (Some(1), "adcb"));
        assert_eq!(
            (sorting.marked(1, "N"), sorting.marked(0, "W")),
            ("N▴".to_owned(), "W".to_owned())
        );
        sorting.is_reversed = false;
        assert_eq!(sorted(sorting), "cadb");
        sorting.step(COLUMNS, &[0, 1], true);
        assert_eq!(sorting.by, None);
        sorting.step(COLUMNS, &[0, 1], false);
        assert_eq!(sorting.by, Some(1));
    }

    #[test]
    fn a_selection_follows_its_row_and_stays_visible() {
        let mut selection = Selection::default();
        let keys: Vec<u32> = (0..10).collect();
        assert_eq!(selection.settle(&[]), None);
        selection.step(&[], RowStep::Down);
        assert_eq!(selection.settle(&keys), Some(0));
        assert_eq!(selection.window(10, 4), 0..4);
        (0..5).for_each(|_| selection.step(&keys, RowStep::Down));
        assert_eq!(
            (selection.settle(&keys), selection.window(10, 4)),
            (Some(5), 2..6)
        );
        // Its row moves, and goes; then the one at its place is selected.
        let reversed: Vec<u32> = (0..10).rev().collect();
        assert_eq!(
            (selection.settle(&reversed), selection.window(10, 4)),
            (Some(4), 2..6)
        );
        let fewer: Vec<u32> = (0..4).collect();
        assert_eq!(
            (selection.settle(&fewer), selection.window(4, 4)),
            (Some(3), 0..4)
        );
        selection.step(&keys, RowStep::PageUp);
        // The first row is not followed.
        assert_eq!(selection.settle(&reversed), Some(0));
        selection.step(&keys, RowStep::Last);
        assert_eq!(
            (selection.settle(&keys), selection.window(10, 4)),
            (Some(9), 6..10)
        );
        selection.step(&keys, RowStep::First);
        selection.step(&keys, RowStep::PageDown);
        assert_eq!(selection.settle(&keys), Some(4));
    }

    #[test]
    fn no_size_of_a_table_is_a_mistake() {
        let keys: Vec<u32> = (0..10).collect();
        for (count, height) in [(0, 0), (0, 5), (10, 0), (10, 1), (3, 50)] {
            let mut selection = Selection::default();
            selection.step(&keys, RowStep::Last);
            let window = selection.window(count, height);
            assert!(window.end <= count && window.len() <= height, "{window:?}");
        }
        assert_eq!(shown(0, "a"), "WORD|a");
    }
}
