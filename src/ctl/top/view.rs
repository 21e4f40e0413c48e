//! Draws the state of the screen. On a small one it leaves out events, figures and columns.

use std::ops::Range;

use anstyle::Style;
use ratatui_core::buffer::Buffer;
use ratatui_core::layout::Rect;
use ratatui_core::style::Modifier;
use ratatui_core::terminal::Frame;
use ratatui_core::text::{Line, Span};

use super::columns::{PlacedCell, Shape};
use super::news::EventLine;
use super::state::{Top, View};
use super::text::{event, styled};
use super::workers::{WorkerKey, WorkerRow};
use super::{clients, header, workers};
use crate::ctl::figures::{counted, grouped};
use crate::ctl::style::{BAD, FAINT, NOTED};
use crate::proto::names::ClientId;
use crate::proto::text::Escaped;

/// Draws the whole screen.
pub(super) fn draw(frame: &mut Frame<'_>, top: &mut Top) {
    let area = frame.area();
    let mut page = Page {
        buffer: frame.buffer_mut(),
        width: area.width,
        next: 0,
        end: area.height,
    };
    if area.width < MIN_COLUMNS || area.height < MIN_LINES {
        draw_too_small(&mut page);
        return;
    }
    let footer = footer(top, area.width.into());
    if let Some(confirmation) = &mut top.confirmation {
        confirmation.is_drawn = true;
    }
    page.set_line(area.height - 1, &footer);
    page.end -= 1;
    draw_header(&mut page, top, area.height);
    match top.view() {
        View::Workers => draw_workers(&mut page, top),
        View::Clients => draw_clients(&mut page, top, None),
        View::Worker(key) => draw_worker(&mut page, top, key),
        View::Client(id) => draw_client(&mut page, top, id),
        View::Events => draw_all_events(&mut page, top),
        View::Help => HELP.iter().for_each(|line| page.write(&Line::raw(*line))),
    }
}

/// The lines of a screen that are still free.
struct Page<'a> {
    buffer: &'a mut Buffer,
    width: u16,
    next: u16,
    end: u16,
}

impl Page<'_> {
    fn left(&self) -> usize {
        self.end.saturating_sub(self.next).into()
    }

    /// Writes the next line, if there is room.
    fn write(&mut self, line: &Line<'_>) {
        if self.left() > 0 {
            self.set_line(self.next, line);
            self.next += 1;
        }
    }

    /// Writes a line, and marks that its end is missing.
    fn set_line(&mut self, y: u16, line: &Line<'_>) {
        self.buffer.set_line(0, y, line, self.width);
        if line.width() > self.width.into() {
            let last = self.width.saturating_sub(1);
            self.buffer.set_string(last, y, "…", Style::new());
        }
    }

    /// Writes the cells of the next line, if there is room.
    fn write_cells(&mut self, cells: &[PlacedCell], style: Style, is_selected: bool) {
        if self.left() == 0 {
            return;
        }
        for PlacedCell { at, cell, .. } in cells {
            let Ok(at) = u16::try_from(*at) else { continue };
            if at < self.width {
                let style = if cell.style() == Style::new() {
                    style
                } else {
                    cell.style()
                };
                self.buffer.set_string(at, self.next, cell.text(), style);
            }
        }
        if is_selected {
            let line = Rect::new(0, self.next, self.width, 1);
            self.buffer.set_style(line, Modifier::REVERSED);
        }
        self.next += 1;
    }
}

fn draw_too_small(page: &mut Page<'_>) {
    let words = format!(
        "The terminal is too small: {MIN_COLUMNS} columns and {MIN_LINES} lines are needed"
    );
    let width = usize::from(page.width).max(1);
    let letters: Vec<char> = words.chars().collect();
    for part in letters.chunks(width) {
        page.write(&Line::raw(part.iter().collect::<String>()));
    }
}

fn draw_header(page: &mut Page<'_>, top: &Top, height: u16) {
    page.write(&header::title(top));
    let pace = header::pace(top);
    let column = usize::from(page.width).saturating_sub(pace.len());
    if top.outage.is_none() && header::title(top).width() + 1 < column {
        let style = FAINT;
        page.buffer.set_string(column as u16, 0, pace, style);
    }
    let most = if height < ROOMY_LINES { 1 } else { 3 };
    let notices = header::unusual(top, most);
    notices.iter().for_each(|line| page.write(line));
    let figures = header::figures(top, page.width.into());
    let most = if height < ROOMY_LINES {
        1
    } else {
        figures.len()
    };
    figures.iter().take(most).for_each(|line| page.write(line));
}

fn draw_workers(page: &mut Page<'_>, top: &mut Top) {
    let rows = top.worker_rows();
    let mut rows: Vec<&WorkerRow> = rows.iter().collect();
    let sorting = top.worker_table.sorting;
    sorting.sort(workers::COLUMNS, &mut rows);
    let keys: Vec<WorkerKey> = rows.iter().map(|row| row.key).collect();
    let selected = top.worker_table.selection.settle(&keys);
    let events = match page.left() {
        lines if lines < ROOMY_LINES.into() => 0,
        lines => (lines / 4).max(MIN_EVENTS) + 1,
    };
    // A title and a header.
    let height = page.left().saturating_sub(events + 2).min(rows.len());
    let window = top.worker_table.selection.window(rows.len(), height);
    let title = title("worker", rows.len(), &window);
    page.write(&styled(title, FAINT));
    let at = selected.map(|at| at.saturating_sub(window.start));
    let shape = Shape {
        columns: workers::COLUMNS,
        sorting,
        without: None,
    };
    top.worker_table.shown = draw_table(page, &shape, &rows[window], at);
    if events > 0 {
        page.write(&Line::default());
        draw_events(page, top.events.last(page.left()));
    }
}

/// Draws the clients, without one of the columns if that is given.
fn draw_clients(page: &mut Page<'_>, top: &mut Top, without: Option<usize>) {
    let rows = top.client_rows();
    let keys: Vec<ClientId> = rows.iter().map(|client| client.status.id).collect();
    // A title and a header.
    let height = page.left().saturating_sub(2);
    let mut selection = top.client_table.selection.clone();
    let selected = selection.settle(&keys);
    let window = selection.window(rows.len(), height);
    let at = selected.map(|at| at.saturating_sub(window.start));
    page.write(&clients_title(top, &window));
    let shape = Shape {
        columns: clients::COLUMNS,
        sorting: top.client_table.sorting,
        without,
    };
    let shown = draw_table(page, &shape, &rows[window], at);
    top.client_table.selection = selection;
    top.client_table.shown = shown;
}

/// Draws a header and rows, and returns the columns that have room. `selected` is a position in the rows.
fn draw_table<R>(
    page: &mut Page<'_>,
    shape: &Shape<'_, R>,
    rows: &[&R],
    selected: Option<usize>,
) -> Vec<usize> {
    let (header, rows) = shape.lines(rows, page.width.into());
    page.write_cells(&header, Style::new().bold(), false);
    for (at, row) in rows.iter().enumerate() {
        page.write_cells(row, Style::new(), selected == Some(at));
    }
    header.iter().map(|placed| placed.column).collect()
}

fn draw_worker(page: &mut Page<'_>, top: &mut Top, key: WorkerKey) {
    let Some(row) = top.worker(key) else {
        page.write(&Line::raw("This worker has ended."));
        return;
    };
    page.write(&Line::default());
    for line in workers::details(&top.status, &row) {
        page.write(&line);
    }
    // Their worker is the one above.
    draw_clients(page, top, Some(clients::WORKER));
}

fn draw_client(page: &mut Page<'_>, top: &Top, id: ClientId) {
    page.write(&Line::default());
    match top.client(id) {
        Some(client) => {
            for line in clients::details(client) {
                page.write(&line);
            }
        }
        None if top.has_left(id) => page.write(&Line::raw(format!("Client {id} has left."))),
        None => page.write(&Line::raw(format!(
            "Client {id} is not among those that are shown."
        ))),
    }
    page.write(&Line::default());
    draw_events(page, top.events.about(id, page.left()));
}

fn draw_events<'a>(page: &mut Page<'_>, events: impl IntoIterator<Item = &'a EventLine>) {
    for shown in events {
        page.write(&event(shown));
    }
}

fn draw_all_events(page: &mut Page<'_>, top: &mut Top) {
    let (all, window) = top.events.window(page.left().saturating_sub(1));
    page.write(&styled(title("event", all, &window), FAINT));
    draw_events(page, top.events.range(window));
}

/// Returns `64 workers`, or `64 workers, 12 to 21` if these are visible.
fn title(noun: &str, all: usize, window: &Range<usize>) -> String {
    counted(all as u64, noun) + &visible(all, window)
}

/// Returns `, 12 to 21` if these rows are visible, and nothing if all are, or none.
fn visible(all: usize, window: &Range<usize>) -> String {
    match window.len() < all && !window.is_empty() {
        false => String::new(),
        true => {
            let [first, last] = [window.start + 1, window.end].map(|at| grouped(at as u64));
            format!(", {first} to {last}")
        }
    }
}

/// Returns the line above clients, of which these are visible.
fn clients_title(top: &Top, window: &Range<usize>) -> Line<'static> {
    let rows = top.clients.clients.len();
    let text = match (&top.clients.error, top.clients.of == top.clients_wanted()) {
        (_, false) => "clients".to_owned(),
        (Some(why), true) => {
            return Line::from(vec![
                Span::styled("no list of clients: ", BAD),
                Span::raw(Escaped(why).to_string()),
            ]);
        }
        (None, true) if top.clients.is_complete => title("client", rows, window),
        (None, true) => format!(
            "the first {} of {}{}",
            grouped(rows as u64),
            counted(top.status.clients, "client"),
            visible(rows, window)
        ),
    };
    styled(text, FAINT)
}

/// Returns the last line: a question, a message, the change under way, or the keys.
fn footer(top: &Top, width: usize) -> Line<'static> {
    if let Some(confirmation) = &top.confirmation {
        return styled(confirmation.question.clone(), NOTED.bold());
    }
    if let Some(message) = &top.message {
        let style = if message.is_bad { BAD } else { Style::new() };
        return styled(message.text.clone(), style);
    }
    if let Some(under_way) = &top.under_way {
        return styled(format!("{under_way} …"), NOTED);
    }
    keys(top.view(), width)
}

/// Returns the keys of a view, as many as fit.
fn keys(view: View, width: usize) -> Line<'static> {
    let keys: &[(&str, &str)] = match view {
        View::Workers => &[
            ("q", "quit"),
            ("?", "help"),
            ("Enter", "details"),
            ("c", "clients"),
            ("r", "recycle"),
            ("d", "drain"),
            ("<>", "sort"),
            ("R", "reverse"),
            ("e", "events"),
        ],
        View::Clients => &[
            ("q", "quit"),
            ("?", "help"),
            ("Enter", "details"),
            ("w", "workers"),
            ("k", "kick"),
            ("<>", "sort"),
            ("R", "reverse"),
            ("e", "events"),
        ],
        View::Worker(_) => &[
            ("q", "quit"),
            ("Esc", "back"),
            ("Enter", "details"),
            ("r", "recycle"),
            ("k", "kick"),
            ("<>", "sort"),
        ],
        View::Client(_) => &[("q", "quit"), ("Esc", "back"), ("k", "kick")],
        View::Events => &[("q", "quit"), ("Esc", "back"), ("↑↓", "scroll")],
        View::Help => &[("q", "quit"), ("Esc", "back")],
    };
    let mut line = Line::default();
    for (key, meaning) in keys {
        let space = if line.spans.is_empty() { "" } else { "  " };
        let text = format!(" {meaning}");
        if line.width() + space.len() + key.chars().count() + text.len() > width {
            break;
        }
        line.push_span(Span::raw(space));
        line.push_span(Span::styled(*key, Style::new().bold()));
        line.push_span(Span::raw(text));
    }
    line
}

/// The keys, with Esc back to the view before.
const HELP: &[&str] = &[
    "",
    "w, c, e      the workers, the clients, the events",
    "Tab          the clients, or the workers again",
    "arrows, PgUp, PgDn, Home, End   select a row; scroll the events",
    "Enter        details of the selected worker or client",
    "Esc          back; Backspace does the same",
    "< >          sort by another column, which is marked; R reverses the order",
    "r            recycle the worker: another process takes its place",
    "k            kick the client: its connection is closed",
    "d            drain the daemon, or accept clients again",
    "             r, k and d ask first: y confirms, n does not",
    "Ctrl-Z       suspend; the command fg of the shell continues",
    "Ctrl-L       draw the screen again",
    "q            quit",
    "",
    "REQ/S is of the last 10 seconds, or of as many as there are; P50 and P99 are",
    "of the last 10, and blank before.",
    "p50 and p99 above are those of the fastest and the slowest worker.",
];

/// The smallest screen on which something is drawn.
const MIN_COLUMNS: u16 = 40;
const MIN_LINES: u16 = 8;
/// The height from which on there are all figures and events.
const ROOMY_LINES: u16 = 14;
/// The least events below the workers.
const MIN_EVENTS: usize = 4;
