//! A man page as its source has it: as much of mdoc(7) as the pages in `man/` use.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use super::root;

/// All pages.
pub const PAGES: [&str; 6] = [
    "fdpassctl.8",
    "fdpassd-app.7",
    "fdpassd-control.7",
    "fdpassd-rpc.7",
    "fdpassd.8",
    "fdpassd.toml.5",
];

/// A page, or a part of one.
#[derive(Clone, Debug)]
pub struct Page(String);

/// An item of a list.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The rest of the line after `.It`, macros included.
    pub head: Vec<String>,
    /// The text below it.
    pub body: String,
}

pub fn path(name: &str) -> PathBuf {
    root().join("man").join(name)
}

impl Page {
    #[track_caller]
    pub fn of(name: &str) -> Page {
        Page(fs::read_to_string(path(name)).unwrap_or_else(|e| panic!("cannot read {name}: {e}")))
    }

    /// The source.
    pub fn text(&self) -> &str {
        &self.0
    }

    /// A section, by its title.
    #[track_caller]
    pub fn section(&self, title: &str) -> Page {
        self.part(".Sh ", title)
    }

    /// A subsection, by its title.
    #[track_caller]
    pub fn subsection(&self, title: &str) -> Page {
        self.part(".Ss ", title)
    }

    #[track_caller]
    fn part(&self, title_macro: &str, title: &str) -> Page {
        let head = format!("\n{title_macro}{title}\n");
        let (_, rest) = self
            .0
            .split_once(&head)
            .unwrap_or_else(|| panic!("there is no {head:?}"));
        let ends = ["\n.Sh ", title_macro].map(|end| format!("\n{}", end.trim_start()));
        let end = ends.iter().filter_map(|end| rest.find(end.as_str())).min();
        Page(format!("\n{}\n", &rest[..end.unwrap_or(rest.len())]))
    }

    /// The titles of its subsections.
    pub fn subsections(&self) -> Vec<&str> {
        self.0
            .lines()
            .filter_map(|line| line.strip_prefix(".Ss "))
            .collect()
    }

    /// The items of all its lists whose heads begin with this macro.
    pub fn entries(&self, of: &str) -> Vec<Entry> {
        let items = self.0.split("\n.It ").skip(1);
        items
            .map(|item| {
                let (head, body) = item.split_once('\n').unwrap_or((item, ""));
                let body = body.split("\n.El").next().unwrap_or_default().to_owned();
                Entry {
                    head: head.split(' ').map(plain).collect(),
                    body,
                }
            })
            .filter(|entry| entry.head[0] == of)
            .collect()
    }

    /// The first words of such items; `a , b` are two.
    pub fn words(&self, of: &str) -> BTreeSet<String> {
        self.entries(of).iter().flat_map(Entry::words).collect()
    }

    /// Every option in it, in items and in prose: `-c`, `--config`.
    pub fn options(&self) -> BTreeSet<String> {
        self.0
            .lines()
            .filter(|line| line.starts_with('.'))
            .flat_map(|line| options(line[1..].split(' ')))
            .collect()
    }

    /// The text of all its displays, as it can be pasted.
    pub fn displays(&self) -> Vec<String> {
        let displays = self.0.split("\n.Bd -literal").skip(1);
        displays
            .map(|display| {
                let (_, text) = display.split_once('\n').expect("it has lines");
                plain(text.split("\n.Ed").next().unwrap_or_default()) + "\n"
            })
            .collect()
    }

    /// The display that follows this line.
    #[track_caller]
    pub fn display_after(&self, line: &str) -> String {
        let (_, rest) = self
            .0
            .split_once(&format!("\n{line}\n.Bd"))
            .unwrap_or_else(|| panic!("there is no {line:?}"));
        Page(format!("\n.Bd{rest}")).displays().remove(0)
    }
}

impl Entry {
    /// Words before the first macro of another kind.
    pub fn words(&self) -> Vec<String> {
        let words = self.head[1..].iter().take_while(|word| !is_macro(word));
        words
            .filter(|word| !matches!(word.as_str(), "," | "|"))
            .cloned()
            .collect()
    }

    /// The options in its head.
    pub fn options(&self) -> BTreeSet<String> {
        options(self.head.iter().map(String::as_str))
    }

    /// Returns the text in parentheses at the end of its head; quotes stay.
    pub fn parenthesis(&self) -> Option<String> {
        let at = self.head.iter().position(|word| word == "Pq")?;
        let mut words = &self.head[at + 1..];
        let (mut open, mut close) = (String::new(), String::new());
        while let [quote, rest @ ..] = words {
            let (begin, end) = match quote.as_str() {
                "Qq" => ('"', '"'),
                "Bq" => ('[', ']'),
                _ => break,
            };
            open.push(begin);
            close.insert(0, end);
            words = rest;
        }
        Some(format!("{open}{}{close}", words.join(" ")))
    }
}

/// `Fl c`, `Fl \-config` and `Fl f | \-follow` among the words of a line.
fn options<'a>(words: impl Iterator<Item = &'a str>) -> BTreeSet<String> {
    let mut options = BTreeSet::new();
    let mut is_option = false;
    for word in words.map(plain) {
        if is_macro(&word) {
            is_option = word == "Fl";
        } else if is_option && word.starts_with('-') {
            options.insert(format!("-{word}"));
        } else if is_option {
            options.extend(
                word.chars()
                    .filter(char::is_ascii_alphabetic)
                    .map(|letter| format!("-{letter}")),
            );
        }
    }
    options
}

/// `Ar`, `Fl`, `Brq`.
fn is_macro(word: &str) -> bool {
    let mut letters = word.chars();
    (2..=3).contains(&word.len())
        && letters
            .next()
            .is_some_and(|letter| letter.is_ascii_uppercase())
        && letters.all(|letter| letter.is_ascii_lowercase())
}

/// Source as it is read, as far as it is escaped in the pages. See mandoc_char(7).
pub fn plain(text: &str) -> String {
    let escapes = [
        (r"\-", "-"),
        (r"\(aq", "'"),
        (r"\(ha", "^"),
        (r"\(lq", "\u{201c}"),
        (r"\(rq", "\u{201d}"),
        (r"\(S2", "\u{b2}"),
        (r"\ ", " "),
        (r"\&", ""),
        (r"\%", ""),
        (r"\fB", ""),
        (r"\fR", ""),
        // Last, for it makes a backslash.
        (r"\e", "\\"),
    ];
    escapes
        .iter()
        .fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}
