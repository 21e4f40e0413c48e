//! Places in the text of a file.
//!
//! The text is parsed again to find a place, so that no configuration stores where its values came from.

use std::ops::Range;

use toml::de::{DeTable, DeValue};

/// A file that was read.
#[derive(Clone, Debug)]
pub struct SourceText {
    /// The name of the file in messages.
    pub origin: String,
    /// The contents.
    pub text: String,
}

impl SourceText {
    /// Finds a place, such as `limits.buffers` or `listen.1`: a key with its value, or an element of an array.
    #[must_use]
    pub fn find(&self, place: &str) -> Option<Range<usize>> {
        self.find_steps(&Vec::from_iter(place.split('.')))
    }

    /// Finds a place by its keys, which may contain dots, and indices of arrays.
    #[must_use]
    pub fn find_steps(&self, steps: &[&str]) -> Option<Range<usize>> {
        let document = DeValue::Table(DeTable::parse(&self.text).ok()?.into_inner());
        let (mut value, mut span) = (&document, None);
        for step in steps {
            let inner = match value {
                DeValue::Table(table) => {
                    let (key, inner) = table.iter().find(|(key, _)| key.get_ref() == step)?;
                    span = Some(key.span().start..inner.span().end);
                    inner
                }
                DeValue::Array(array) => {
                    let inner = array.get(step.parse::<usize>().ok()?)?;
                    span = Some(inner.span());
                    inner
                }
                _ => return None,
            };
            value = inner.get_ref();
        }
        span
    }

    /// Finds the key of the first level whose value is at this place. Returns its name, and the value if that is a
    /// string.
    #[must_use]
    pub fn top_key_at(&self, value: &Range<usize>) -> Option<(String, Option<String>)> {
        let (document, _) = DeTable::parse_recoverable(&self.text);
        let mut all = document.get_ref().iter();
        let (key, found) = all.find(|(_, found)| found.span() == *value)?;
        let text = found.get_ref().as_str().map(str::to_owned);
        Some((key.get_ref().to_string(), text))
    }

    /// Finds the first place of a key whose second place is `again`: the parser reports only that one.
    #[must_use]
    pub fn find_first(&self, again: Range<usize>) -> Option<Range<usize>> {
        let (document, _) = DeTable::parse_recoverable(&self.text);
        let name = self.text.get(again.clone())?;
        let mut found = Vec::new();
        keys_named(document.get_ref(), name, &mut found);
        // Other sections may have the key, too: the nearest one is in the same section.
        let first = found
            .into_iter()
            .filter(|span| span.end <= again.start)
            .max_by_key(|span| span.start);
        first.or_else(|| first_section(self.text.get(..again.start)?, name))
    }
}

/// Finds the first header or key of a section: of a section that is there twice the parser keeps the second place.
fn first_section(text: &str, name: &str) -> Option<Range<usize>> {
    let mut start = 0;
    text.split_inclusive('\n').find_map(|line| {
        let rest = line.trim_start().trim_start_matches('[').trim_start();
        let at = start + line.len() - rest.len();
        start += line.len();
        let behind = rest.strip_prefix(name)?.trim_start();
        behind
            .starts_with([']', '.', '='])
            .then(|| at..at + name.len())
    })
}

fn keys_named(table: &DeTable<'_>, name: &str, found: &mut Vec<Range<usize>>) {
    for (key, value) in table {
        if key.get_ref() == name {
            found.push(key.span());
        }
        match value.get_ref() {
            DeValue::Table(inner) => keys_named(inner, name, found),
            DeValue::Array(entries) => entries
                .iter()
                .filter_map(|entry| entry.get_ref().as_table())
                .for_each(|inner| keys_named(inner, name, found)),
            _ => {}
        }
    }
}
