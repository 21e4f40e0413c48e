//! Patterns for paths: `*` and `?` stand for characters of a name, `**` for any number of directories.

use std::path::Path;

/// A pattern.
#[derive(Clone, Debug)]
pub(super) struct PathPattern(Vec<String>);

impl PathPattern {
    /// Returns the pattern of a text.
    pub(super) fn new(text: &str) -> PathPattern {
        PathPattern(text.split('/').map(str::to_owned).collect())
    }

    /// Returns whether it matches a relative path. Names that are not UTF-8 match lossily.
    pub(super) fn matches(&self, path: &Path) -> bool {
        let names: Vec<_> = path
            .iter()
            .map(|name| name.to_string_lossy().chars().collect())
            .collect();
        match_names(&self.0, &names)
    }
}

fn match_names(pattern: &[String], names: &[Vec<char>]) -> bool {
    match (pattern, names) {
        ([], []) => true,
        ([first, rest @ ..], _) if first == "**" => {
            // A file has a name: as the last part `**` matches all files below.
            let most = if rest.is_empty() {
                return !names.is_empty();
            } else {
                names.len()
            };
            (0..=most).any(|skipped| match_names(rest, &names[skipped..]))
        }
        ([first, rest @ ..], [name, names @ ..]) => {
            let first: Vec<char> = first.chars().collect();
            match_name(&first, name) && match_names(rest, names)
        }
        _ => false,
    }
}

fn match_name(pattern: &[char], name: &[char]) -> bool {
    match (pattern, name) {
        ([], []) => true,
        (['*', rest @ ..], _) => (0..=name.len()).any(|skipped| match_name(rest, &name[skipped..])),
        (['?', rest @ ..], [_, name @ ..]) => match_name(rest, name),
        ([one, rest @ ..], [other, name @ ..]) => one == other && match_name(rest, name),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_matches_names_and_directories() {
        for (pattern, good, bad) in [
            ("*.py", vec!["a.py", ".py"], vec!["a/b.py", "a.pyc", "py"]),
            (
                "**/*.py",
                vec!["a.py", "a/b.py", "a/b/c.py"],
                vec!["a/b", "a.py/b"],
            ),
            (
                "lib/**/?.py",
                vec!["lib/a.py", "lib/x/y/a.py"],
                vec!["lib/ab.py", "a.py"],
            ),
            ("a/**", vec!["a/b", "a/b/c"], vec!["a", "b/c"]),
            ("*a*b", vec!["ab", "xaxb", "aab"], vec!["aba", "b"]),
            ("ä?", vec!["äö"], vec!["ä", "äöü"]),
        ] {
            let glob = PathPattern::new(pattern);
            for path in good {
                assert!(glob.matches(Path::new(path)), "{pattern} {path}");
            }
            for path in bad {
                assert!(!glob.matches(Path::new(path)), "{pattern} {path}");
            }
        }
    }
}
