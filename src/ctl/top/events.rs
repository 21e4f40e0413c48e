//! The last events of a daemon.

use std::collections::VecDeque;
use std::ops::Range;

use super::columns::RowStep;
use super::news::EventLine;
use crate::proto::names::ClientId;

/// The last events, as many as a daemon keeps.
#[derive(Debug, Default)]
pub(crate) struct EventLines {
    /// The oldest first.
    lines: VecDeque<EventLine>,
    /// The number of events after the last one that is shown.
    newer: usize,
    /// The number of events that were visible.
    height: usize,
}

impl EventLines {
    /// Adds events. The first ones of a connection may be those that are here already.
    pub(crate) fn add(&mut self, events: Vec<EventLine>, is_first: bool) {
        let last = self.lines.back().map(|event| event.at);
        let is_new = |event: &EventLine| !is_first || last.is_none_or(|last| event.at > last);
        let before = self.lines.len();
        self.lines.extend(events.into_iter().filter(is_new));
        // Events that the user has gone back to stay where they are.
        if self.newer > 0 {
            self.newer += self.lines.len() - before;
        }
        let excess = self.lines.len().saturating_sub(MAX_EVENTS);
        self.lines.drain(..excess);
        self.newer = self.newer.min(self.lines.len());
    }

    /// Goes back and forth.
    pub(crate) fn scroll(&mut self, step: RowStep) {
        let newer = match step {
            RowStep::Up => self.newer + 1,
            RowStep::Down => self.newer.saturating_sub(1),
            RowStep::PageUp => self.newer + self.height.max(1),
            RowStep::PageDown => self.newer.saturating_sub(self.height.max(1)),
            RowStep::First => usize::MAX,
            RowStep::Last => 0,
        };
        self.newer = newer.min(self.lines.len().saturating_sub(self.height.max(1)));
    }

    /// Forgets which clients the events are about, as another run of the daemon gives their ids to others.
    pub(crate) fn forget_clients(&mut self) {
        self.lines.iter_mut().for_each(|line| line.client = None);
    }

    /// Shows the newest again.
    pub(crate) fn return_to_last(&mut self) {
        self.newer = 0;
    }

    /// Returns the last events, in their order.
    pub(crate) fn last(&self, most: usize) -> impl Iterator<Item = &EventLine> {
        let all = self.lines.len();
        self.lines.range(all.saturating_sub(most)..all)
    }

    /// Returns the number of all events, and which of them the user has gone back to, on a screen of this height.
    pub(crate) fn window(&mut self, height: usize) -> (usize, Range<usize>) {
        self.height = height;
        // The oldest ones fill the screen.
        self.newer = self.newer.min(self.lines.len().saturating_sub(height));
        let end = self.lines.len() - self.newer;
        (self.lines.len(), end.saturating_sub(height)..end)
    }

    /// Returns events by their positions.
    pub(crate) fn range(&self, range: Range<usize>) -> impl Iterator<Item = &EventLine> {
        self.lines.range(range)
    }

    /// Returns the last events about a client, in their order.
    pub(crate) fn about(&self, client: ClientId, most: usize) -> Vec<&EventLine> {
        let about = self.lines.iter().rev();
        let about = about.filter(|event| event.client == Some(client));
        let mut about: Vec<&EventLine> = about.take(most).collect();
        about.reverse();
        about
    }
}

/// The most events that are kept.
const MAX_EVENTS: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::log::LogLevel;

    fn events(times: std::ops::Range<u32>) -> Vec<EventLine> {
        let event = |at: u32| EventLine {
            at: at.into(),
            level: LogLevel::Info,
            message: at.to_string(),
            client: at.is_multiple_of(10).then_some(ClientId(7)),
        };
        times.map(event).collect()
    }

    fn shown(lines: &mut EventLines, height: usize) -> Vec<f64> {
        let (_, window) = lines.window(height);
        times(lines.range(window))
    }

    fn times<'a>(events: impl IntoIterator<Item = &'a EventLine>) -> Vec<f64> {
        events.into_iter().map(|event| event.at).collect()
    }

    #[test]
    fn events_of_a_new_connection_are_not_kept_twice() {
        let mut lines = EventLines::default();
        lines.add(events(0..30), true);
        lines.add(events(20..32), true);
        assert_eq!(times(lines.last(3)), [29.0, 30.0, 31.0]);
        assert_eq!(lines.lines.len(), 32);
        assert_eq!(times(lines.about(ClientId(7), 2)), [20.0, 30.0]);
        // Later ones have a number, and are new even if the clock was set back.
        lines.add(events(5..6), false);
        assert_eq!(times(lines.last(1)), [5.0]);
    }

    #[test]
    fn only_the_last_events_are_kept() {
        let mut lines = EventLines::default();
        lines.scroll(RowStep::PageUp);
        lines.add(events(0..2000), true);
        shown(&mut lines, 2);
        lines.scroll(RowStep::First);
        assert_eq!(shown(&mut lines, 2), [976.0, 977.0]);
        // Those that the user had gone back to are no longer there.
        lines.add(events(2000..4000), false);
        assert_eq!(shown(&mut lines, 2), [2976.0, 2977.0]);
        lines.scroll(RowStep::Down);
        assert_eq!(shown(&mut lines, 2), [2977.0, 2978.0]);
        assert_eq!(times(lines.last(1)), [3999.0]);
    }

    #[test]
    fn events_that_the_user_has_gone_back_to_stay() {
        let mut lines = EventLines::default();
        lines.add(events(0..30), true);
        shown(&mut lines, 2);
        lines.scroll(RowStep::PageUp);
        assert_eq!(shown(&mut lines, 2), [26.0, 27.0]);
        lines.add(events(30..40), false);
        assert_eq!(shown(&mut lines, 2), [26.0, 27.0]);
        lines.scroll(RowStep::PageDown);
        lines.scroll(RowStep::Up);
        assert_eq!(shown(&mut lines, 2), [27.0, 28.0]);
        lines.return_to_last();
        assert_eq!(shown(&mut lines, 2), [38.0, 39.0]);
    }

    #[test]
    fn the_oldest_events_fill_the_screen() {
        let mut lines = EventLines::default();
        lines.add(events(0..30), true);
        shown(&mut lines, 9);
        lines.scroll(RowStep::First);
        assert_eq!(lines.window(9), (30, 0..9));
        lines.scroll(RowStep::PageDown);
        assert_eq!(lines.window(9), (30, 9..18));
        // On a screen with room for all of them, none is hidden.
        assert_eq!(lines.window(40), (30, 0..30));
        lines.scroll(RowStep::First);
        assert_eq!(lines.window(40), (30, 0..30));
    }
}
