//! The notations of fields in the file, where they differ from serde's.
//!
//! serde's `with` takes a type: `#[serde(with = "OrNone::<Timeout>")]` reads and writes a field in that notation. The
//! notations of single values are in `values` and `durations`. Errors have the span of the refused value, from toml.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use serde::de::value::{Error as ValueError, MapAccessDeserializer, StrDeserializer};
use serde::de::{
    Deserialize, DeserializeOwned, Deserializer, IntoDeserializer, MapAccess, Unexpected, Visitor,
};
use serde::ser::Serializer;

/// A way to write values of one type.
pub(super) trait Notation: Sized {
    type Value;

    /// Returns what is valid, for the error message.
    fn expected() -> String;

    fn read(written: &WrittenValue<'_>) -> Result<Self::Value, Rejection>;

    fn write(value: &Self::Value) -> WrittenValue<'_>;

    fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(Reader::<Self>(PhantomData))
    }

    fn serialize<S: Serializer>(value: &Self::Value, serializer: S) -> Result<S::Ok, S::Error> {
        match Self::write(value) {
            WrittenValue::Text(text) => serializer.serialize_str(&text),
            WrittenValue::Number(number) => serializer.serialize_i64(number),
        }
    }
}

/// A value in the file.
pub(super) enum WrittenValue<'a> {
    Text(Cow<'a, str>),
    Number(i64),
}

/// Why a value is refused.
pub(super) enum Rejection {
    /// The value differs from [`Notation::expected`].
    Unexpected,
    /// The whole message.
    Because(String),
}

/// A value, or a word instead.
pub(super) struct Or<W, N>(PhantomData<(W, N)>);

/// A value, or "none".
pub(super) type OrNone<N> = Or<NoneWord, N>;

/// A value, or "auto" if it is chosen later.
pub(super) type OrAuto<N> = Or<AutoWord, N>;

pub(super) trait Keyword {
    const WORD: &'static str;
}

pub(super) struct NoneWord;

impl Keyword for NoneWord {
    const WORD: &'static str = "none";
}

pub(super) struct AutoWord;

impl Keyword for AutoWord {
    const WORD: &'static str = "auto";
}

impl<W: Keyword, N: Notation> Notation for Or<W, N> {
    type Value = Option<N::Value>;

    fn expected() -> String {
        format!("\"{}\" or {}", W::WORD, N::expected())
    }

    fn read(written: &WrittenValue<'_>) -> Result<Option<N::Value>, Rejection> {
        match written {
            WrittenValue::Text(text) if text == W::WORD => Ok(None),
            _ => N::read(written).map(Some),
        }
    }

    fn write(value: &Option<N::Value>) -> WrittenValue<'_> {
        value
            .as_ref()
            .map_or(WrittenValue::Text(W::WORD.into()), N::write)
    }
}

/// An optional key without a word such as "none".
pub(super) struct Given<N>(PhantomData<N>);

impl<N: Notation> Given<N> {
    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<N::Value>, D::Error> {
        N::deserialize(deserializer).map(Some)
    }

    pub(super) fn serialize<S: Serializer>(
        value: &Option<N::Value>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => N::serialize(value, serializer),
            None => serializer.serialize_none(),
        }
    }
}

/// Reads a table. serde's derived code would also accept an array, as the fields in their order.
pub(super) fn table<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    deserializer.deserialize_any(TableOf(PhantomData))
}

/// Reads an enum of words. serde's derived code would also accept a table with a word as its key.
pub(super) fn word<'de, T: DeserializeOwned, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    deserializer.deserialize_any(WordOf(PhantomData))
}

struct Reader<N>(PhantomData<N>);

impl<N: Notation> Reader<N> {
    fn read<E: serde::de::Error>(self, written: &WrittenValue<'_>) -> Result<N::Value, E> {
        N::read(written).map_err(|rejection| match (rejection, written) {
            (Rejection::Because(sentence), _) => E::custom(sentence),
            (Rejection::Unexpected, WrittenValue::Text(text)) => {
                E::invalid_value(Unexpected::Str(text), &self)
            }
            (Rejection::Unexpected, WrittenValue::Number(number)) => {
                E::invalid_value(Unexpected::Signed(*number), &self)
            }
        })
    }
}

impl<N: Notation> Visitor<'_> for Reader<N> {
    type Value = N::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&N::expected())
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<N::Value, E> {
        self.read(&WrittenValue::Text(text.into()))
    }

    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<N::Value, E> {
        self.read(&WrittenValue::Number(number))
    }
}

struct TableOf<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for TableOf<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a table")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map))
    }
}

struct WordOf<T>(PhantomData<T>);

impl<T: DeserializeOwned> Visitor<'_> for WordOf<T> {
    type Value = T;

    /// Writes the words, which only the error of a wrong one has.
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let none: StrDeserializer<'_, ValueError> = "".into_deserializer();
        let error = T::deserialize(none).err().map(|error| error.to_string());
        let words = error
            .as_deref()
            .and_then(|error| error.split_once(", expected "));
        f.write_str(&words.map_or("a word".to_owned(), |(_, words)| words.replace('`', "\"")))
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<T, E> {
        T::deserialize(text.into_deserializer())
    }
}
