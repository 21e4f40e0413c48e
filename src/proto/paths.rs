//! Paths in JSON. JSON strings are Unicode, while a path is any bytes except NUL (path_resolution(7)).
//!
//! A path for people has U+FFFD for each byte that is not UTF-8 ([`shown`]). A path that is opened later keeps every
//! byte ([`Exact`]).

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Writes a path, or none, for people; for `serialize_with`.
///
/// # Errors
/// Those of the serializer.
pub fn shown<'a, S: Serializer>(
    path: impl Into<Option<&'a PathBuf>>,
    to: S,
) -> Result<S::Ok, S::Error> {
    path.into().map(|path| path.to_string_lossy()).serialize(to)
}

/// A path that keeps every byte: a string if it is UTF-8, else an array of its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exact(pub PathBuf);

#[derive(Deserialize)]
#[serde(untagged)]
enum Form {
    Text(String),
    Bytes(Vec<u8>),
}

impl Serialize for Exact {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.to_str() {
            Some(text) => text.serialize(serializer),
            None => self.0.as_os_str().as_bytes().serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Exact {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Exact, D::Error> {
        Ok(Exact(match Form::deserialize(deserializer)? {
            Form::Text(text) => PathBuf::from(text),
            Form::Bytes(bytes) => PathBuf::from(OsString::from_vec(bytes)),
        }))
    }
}

/// For `with` on a path, or none, or several, that keeps every byte.
pub mod exact {
    use super::{Deserialize, Deserializer, Exact, PathBuf, Serialize, Serializer};

    /// A path, or none, or several.
    pub trait Paths: Sized {
        /// The same number of [`Exact`] paths.
        type Exact: Serialize + for<'de> Deserialize<'de>;
        /// Returns exact paths.
        fn to_exact(&self) -> Self::Exact;
        /// Returns paths from exact ones.
        fn from_exact(exact: Self::Exact) -> Self;
    }

    impl Paths for PathBuf {
        type Exact = Exact;

        fn to_exact(&self) -> Exact {
            Exact(self.clone())
        }

        fn from_exact(exact: Exact) -> PathBuf {
            exact.0
        }
    }

    impl Paths for Option<PathBuf> {
        type Exact = Option<Exact>;

        fn to_exact(&self) -> Option<Exact> {
            self.clone().map(Exact)
        }

        fn from_exact(exact: Option<Exact>) -> Option<PathBuf> {
            exact.map(|exact| exact.0)
        }
    }

    impl Paths for Vec<PathBuf> {
        type Exact = Vec<Exact>;

        fn to_exact(&self) -> Vec<Exact> {
            self.iter().cloned().map(Exact).collect()
        }

        fn from_exact(exact: Vec<Exact>) -> Vec<PathBuf> {
            exact.into_iter().map(|exact| exact.0).collect()
        }
    }

    /// # Errors
    /// Those of the serializer.
    pub fn serialize<P: Paths, S: Serializer>(paths: &P, serializer: S) -> Result<S::Ok, S::Error> {
        paths.to_exact().serialize(serializer)
    }

    /// # Errors
    /// Those of the deserializer.
    pub fn deserialize<'de, P: Paths, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<P, D::Error> {
        P::Exact::deserialize(deserializer).map(P::from_exact)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Both {
        #[serde(with = "exact")]
        one: PathBuf,
        #[serde(with = "exact", default)]
        perhaps: Option<PathBuf>,
        #[serde(with = "exact", default)]
        many: Vec<PathBuf>,
    }

    #[test]
    fn a_path_keeps_every_byte() {
        let latin = PathBuf::from(OsString::from_vec(b"/\xe9t\xe9".to_vec()));
        for path in [PathBuf::from("/été"), latin] {
            let both = Both {
                one: path.clone(),
                perhaps: Some(path.clone()),
                many: vec![path],
            };
            let text = serde_json::to_string(&both).expect("it can be written");
            assert_eq!(
                serde_json::from_str::<Both>(&text).expect("it can be read"),
                both,
                "{text}"
            );
        }
        let before =
            serde_json::from_str::<Both>(r#"{"one":"/x"}"#).expect("as it was written before");
        assert_eq!(
            before,
            Both {
                one: "/x".into(),
                perhaps: None,
                many: Vec::new()
            }
        );
    }

    #[test]
    fn a_shown_path_is_text_for_any_bytes() {
        let path = Some(PathBuf::from(OsString::from_vec(b"/\xe9t".to_vec())));
        let mut text = Vec::new();
        shown(&path, &mut serde_json::Serializer::new(&mut text)).expect("it can be written");
        assert_eq!(text, "\"/\u{fffd}t\"".as_bytes());
    }
}
