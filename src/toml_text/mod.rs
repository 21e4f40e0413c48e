//! The text of a TOML file, places in it, and messages that show them.

mod excerpt;
mod source;
mod wording;

pub use self::excerpt::{Excerpt, excerpt_of_file, position, visible};
pub use self::source::SourceText;
pub use self::wording::{did_you_mean, in_quotes, reword};
