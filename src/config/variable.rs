//! A variable of the environment that is a key, and its place in the text that is made of all of them.

use std::ops::Range;

/// The separator of tables, and of the daemon's name.
pub(super) const SEPARATOR: &str = "__";

/// The table of the variables of the app. Its names stay as they are, and its values are strings.
pub(super) const OF_APP: [&str; 2] = ["app", "environment"];

/// Returns a key, or the name of a daemon, as a variable has it.
pub(super) fn upper(key: &str) -> String {
    key.to_ascii_uppercase().replace('-', "_")
}

/// Returns the path of [`OF_APP`].
pub(super) fn app_table() -> [String; 2] {
    OF_APP.map(str::to_owned)
}

/// A variable, and its assignment in the text.
#[derive(Clone, Debug)]
pub(super) struct Variable {
    pub(super) name: String,
    /// The length of the daemon's name and the separator, in bytes.
    pub(super) prefix_len: usize,
    /// The key, with its tables.
    pub(super) path: Vec<String>,
    /// The value of the variable, without space around it.
    pub(super) value: String,
    /// The value is not TOML, and the text has it as a string.
    pub(super) is_bare: bool,
    /// The end of the assignment in the text.
    pub(super) end: usize,
    /// Where the value begins in the text.
    pub(super) value_at: usize,
}

impl Variable {
    /// Returns the variable whose assignment this offset in the text is in.
    pub(super) fn at(variables: &[Variable], offset: usize) -> Option<&Variable> {
        let found = |variable: &&Variable| offset < variable.end;
        variables.iter().find(found).or(variables.last())
    }

    /// Returns the assignment as a shell writes it, and where in it this place of the text is. The value, which may be a
    /// secret, is left out if the place is in the name, or if the value is of the app's environment.
    pub(super) fn shown(&self, place: &Range<usize>) -> (String, Range<usize>) {
        let Variable { name, value, .. } = self;
        let is_of_app = self.path.starts_with(&app_table()) || app_table().starts_with(&self.path);
        if is_of_app || !self.is_in_value(place) {
            return (format!("{name}=..."), 0..name.len());
        }
        let value_at = name.len() + 1;
        let text = format!("{name}={value}");
        let shift = |offset: usize| offset.saturating_sub(self.value_at) + value_at;
        let span = match self.is_bare {
            true => value_at..text.len(),
            false => shift(place.start)..shift(place.end).min(text.len()),
        };
        (text, span)
    }

    /// Returns whether a place is in the value, not in the name.
    pub(super) fn is_in_value(&self, place: &Range<usize>) -> bool {
        place.start >= self.value_at
    }

    /// Returns the name of the variable for a similar path, with another key in the place of `key`.
    pub(super) fn with_key(&self, key: &str, other: &str) -> Option<String> {
        let index = self.path.iter().position(|step| step == key)?;
        let prefix = self.name.get(..self.prefix_len)?;
        let mut steps: Vec<String> = self.path.iter().map(|step| upper(step)).collect();
        steps[index] = upper(other);
        Some(format!("{prefix}{}", steps.join(SEPARATOR)))
    }

    /// Returns the value if it is written as TOML and this place is in it; otherwise nothing.
    pub(super) fn written(&self, place: &Range<usize>) -> &str {
        match self.is_in_value(place) && !self.is_bare {
            true => self.value.as_str(),
            false => "",
        }
    }

    /// Returns the name of the variable for a key with its section.
    pub(super) fn of_key(&self, key: &str) -> Option<String> {
        let steps: Vec<String> = key.split('.').map(upper).collect();
        let prefix = self.name.get(..self.prefix_len)?;
        Some(format!("{prefix}{}", steps.join(SEPARATOR)))
    }

    /// Returns whether Kubernetes probably made the variable, for a Service whose name has two hyphens: for each Service of
    /// a namespace it makes `NAME_SERVICE_HOST`, `NAME_SERVICE_PORT`, `NAME_PORT=tcp://…` and more.
    pub(super) fn is_of_service(&self) -> bool {
        let Variable { name, value, .. } = self;
        let is_host_or_port = name.contains("_SERVICE_HOST") || name.contains("_SERVICE_PORT");
        let is_url = ["tcp://", "udp://", "sctp://"]
            .iter()
            .any(|scheme| value.starts_with(scheme));
        is_host_or_port || is_url && name.contains("_PORT")
    }

    /// Returns the name of the variable with one underscore instead of two after `key`, if that makes a known key:
    /// `MAX_CLIENTS` for `MAX__CLIENTS`.
    pub(super) fn with_joined_key(
        &self,
        key: &str,
        is_known: impl Fn(&str) -> bool,
    ) -> Option<String> {
        let index = self.path.iter().position(|step| step == key)?;
        let joined = format!("{key}-{}", self.path.get(index + 1)?);
        let prefix = self.name.get(..self.prefix_len)?;
        let mut steps: Vec<String> = self.path.iter().map(|step| upper(step)).collect();
        steps.splice(index..index + 2, [upper(&joined)]);
        is_known(&joined).then(|| format!("{prefix}{}", steps.join(SEPARATOR)))
    }

    /// Returns the name of the variable for a key in the table that this one names.
    pub(super) fn inner(&self, key: &str) -> String {
        format!("{}{SEPARATOR}{}", self.name, upper(key))
    }
}
