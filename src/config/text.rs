//! A text of the configuration: a file, or what stands for one.

use std::ops::{Deref, Range};

use super::variable::Variable;
use crate::toml_text::SourceText;

/// A text, and the variables that it was made from.
#[derive(Clone, Debug)]
pub(super) struct ConfigText {
    pub(super) source: SourceText,
    /// The variables, in their order in the text; none for a file.
    pub(super) variables: Vec<Variable>,
}

impl ConfigText {
    pub(super) fn new(origin: String, text: String) -> ConfigText {
        ConfigText {
            source: SourceText { origin, text },
            variables: Vec::new(),
        }
    }

    /// Returns the variable whose line has this place.
    pub(super) fn variable(&self, place: &Range<usize>) -> Option<&Variable> {
        Variable::at(&self.variables, place.start)
    }
}

impl Deref for ConfigText {
    type Target = SourceText;

    fn deref(&self) -> &SourceText {
        &self.source
    }
}
