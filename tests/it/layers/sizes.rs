//! Sizes of functions, files and structs in src, without tests. Lines and fields are counted as rustfmt writes them.

use super::sources;

/// The most lines of a function, of a file, and the most fields of a struct.
const MAX_FUNCTION: usize = 60;
const MAX_FILE: usize = 400;
const MAX_FIELDS: usize = 20;

/// Structs with more fields, because each field is a key of a format that other programs read.
const RECORDS: [&str; 3] = ["SavedState", "Status", "WorkerStatus"];

/// The size of a part of a file.
#[derive(Debug, PartialEq, Eq)]
enum Size {
    Function(String, usize),
    Struct(String, usize),
    File(usize),
}

#[test]
fn functions_files_and_structs_are_small() {
    let mut records = Vec::new();
    let too_large = |size: &Size| match size {
        Size::Function(_, lines) => *lines > MAX_FUNCTION,
        Size::File(lines) => *lines > MAX_FILE,
        Size::Struct(_, fields) => *fields > MAX_FIELDS,
    };
    let mut faults = Vec::new();
    for (file, text) in sources().iter().filter(|(file, _)| !is_of_tests(file)) {
        for size in sizes(text).into_iter().filter(too_large) {
            match size {
                Size::Struct(name, _) if RECORDS.contains(&name.as_str()) => records.push(name),
                _ => faults.push(format!("{file}: {size:?}")),
            }
        }
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
    records.sort();
    assert_eq!(records, RECORDS, "exceptions that are needed");
}

#[test]
fn sizes_are_counted_without_tests() {
    let text = "\
pub(crate) struct Pair {
    /// The first.
    pub a: u8,
    pub(crate) b: fn(
        u8,
    ) -> u8,
}

impl Pair {
    pub const fn one(&self) -> u8 {
        fn inner() {}
        if self.a > 0 {
            return 1;
        }
        0
    }

    fn declared(&self);

    unsafe fn long(
        &self,
    ) {
    }
}

#[cfg(test)]
mod tests {
    fn not_counted() {
    }
}
";
    let function = |name: &str, lines| Size::Function(name.to_owned(), lines);
    let expected = [
        Size::File(25),
        Size::Struct("Pair".to_owned(), 2),
        function("one", 7),
        function("inner", 1),
        function("declared", 1),
        function("long", 4),
    ];
    assert_eq!(sizes(text), expected);
}

/// Returns whether a file has only tests.
fn is_of_tests(file: &str) -> bool {
    let mut parts = file.trim_end_matches(".rs").split('/');
    parts.any(|part| part == "tests" || part == "model")
}

/// Returns the sizes of a file, its functions and its structs.
fn sizes(text: &str) -> Vec<Size> {
    let all: Vec<&str> = text.lines().collect();
    let tests = all
        .windows(2)
        .position(|two| two[0] == "#[cfg(test)]" && two[1].ends_with("mod tests {"));
    let lines = &all[..tests.unwrap_or(all.len())];
    let mut found = vec![Size::File(lines.len())];
    for (number, line) in lines.iter().enumerate() {
        let indent = line.len() - line.trim_start().len();
        let words = line.split([' ', '(', '<']).filter(|word| !word.is_empty());
        let words: Vec<&str> = words.collect();
        let keyword = words.iter().position(|word| !is_qualifier(word));
        let Some((keyword, name)) = keyword.and_then(|at| Some((words[at], words.get(at + 1)?)))
        else {
            continue;
        };
        let item = &lines[number..];
        let is_end = |line: &&str| {
            let ends = line.ends_with('}') || line.ends_with(';');
            ends && line.len() - line.trim_start().len() == indent
        };
        let Some(end) = item.iter().position(is_end) else {
            continue;
        };
        match keyword {
            "fn" => found.push(Size::Function((*name).to_owned(), end + 1)),
            "struct" if line.ends_with('{') => {
                let is_field = |line: &&&str| {
                    let field = line.trim_start();
                    line.len() - field.len() == indent + 4
                        && !field.starts_with(['/', '#', ')', '}'])
                };
                let fields = item[1..end].iter().filter(is_field).count();
                found.push(Size::Struct((*name).to_owned(), fields));
            }
            _ => {}
        }
    }
    found
}

/// Returns whether a word stands before `fn` or `struct`.
fn is_qualifier(word: &str) -> bool {
    let words = [
        "pub", "crate)", "super)", "in", "const", "async", "unsafe", "extern", "\"C\"",
    ];
    words.contains(&word) || word.starts_with("crate::") || word.starts_with("super::")
}
