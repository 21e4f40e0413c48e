//! The messages of the parser in the words of TOML, and what helps.

/// Replaces the words of Rust in serde's messages by those of TOML.
#[must_use]
pub fn reword(message: &str) -> String {
    let words = [
        ("unknown field", "unknown key"),
        ("missing field", "missing key"),
        ("unknown variant", "unknown word"),
        ("invalid type: sequence", "invalid type: array"),
        ("invalid type: map", "invalid type: table"),
    ];
    let reworded = words
        .iter()
        .find_map(|(theirs, ours)| Some(format!("{ours}{}", message.strip_prefix(theirs)?)));
    let message = reworded.unwrap_or_else(|| message.to_owned());
    let expected = [("a sequence", "an array"), ("a map", "a table")];
    for (theirs, ours) in expected {
        if let Some(rest) = message.strip_suffix(&format!(", expected {theirs}")) {
            return format!("{rest}, expected {ours}");
        }
    }
    match message.rsplit_once(", expected struct ") {
        Some((rest, name)) if !name.contains(' ') => format!("{rest}, expected a table"),
        _ => message,
    }
}

/// Returns the help for a value without its quotes at this position, such as `level = info` or `max-frame = 1MiB`.
#[must_use]
pub fn in_quotes(text: &str, position: usize) -> Option<String> {
    let begin = text[..position]
        .rfind('\n')
        .map_or(0, |newline| newline + 1);
    let (_, value) = text[begin..].lines().next()?.split_once('=')?;
    let value = value.split('#').next()?.trim();
    let is_word = |c: char| c.is_ascii_alphanumeric() || "_./:-+%".contains(c);
    let is_bare = !value.is_empty() && value.chars().all(is_word);
    let is_valid = || format!("x = {value}").parse::<toml::Table>().is_ok();
    (is_bare && !is_valid())
        .then(|| format!("a text, a size or a duration is written in quotes: \"{value}\""))
}

/// Returns the help for an unknown name, if a known one is like it.
#[must_use]
pub fn did_you_mean(message: &str) -> Option<String> {
    let (_, known) = likely_name(message)?;
    Some(format!("did you mean \"{known}\"?"))
}

/// Returns the unknown name in serde's message, "unknown key `x`, expected one of `y`, `z`", and a known one like it.
#[must_use]
pub fn likely_name(message: &str) -> Option<(&str, &str)> {
    let mut quoted = message.split('`').skip(1).step_by(2);
    let wrong = quoted.next()?;
    quoted
        .map(|known| (strsim::jaro_winkler(wrong, known), known))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|(one, _), (other, _)| one.total_cmp(other))
        .map(|(_, known)| (wrong, known))
}
