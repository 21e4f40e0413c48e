//! The keys that a type reads, found by deserializing it from nothing but the steps of a path.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

use serde::de::value::{Error, StrDeserializer};
use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, Error as _, IntoDeserializer, MapAccess,
    SeqAccess, Visitor,
};
use serde::forward_to_deserialize_any;

/// The names of fields, as serde passes them.
pub(super) type FieldNames = &'static [&'static str];

/// Returns the keys of the table at this path in a `T`, such as those of `[counterd.store]` for `["store"]`. Empty if
/// that is not a struct, or serde does not pass its keys, as with `#[serde(flatten)]`.
pub(super) fn fields_at<T: DeserializeOwned>(steps: &[&str]) -> FieldNames {
    let found = Cell::default();
    let probe = FieldProbe {
        steps,
        found: &found,
    };
    // The program's code may not expect such a table. A panic must not end a master that takes over clients.
    let _ = catch_unwind(AssertUnwindSafe(|| T::deserialize(probe).is_ok()));
    found.get()
}

/// A table that contains the next step of the path and nothing else. At the end of the path it notes the keys that it
/// should have.
#[derive(Clone, Copy, Debug)]
struct FieldProbe<'p> {
    steps: &'p [&'p str],
    found: &'p Cell<FieldNames>,
}

impl FieldProbe<'_> {
    fn nothing<T>(self) -> Result<T, Error> {
        Err(Error::custom("there is no value"))
    }
}

impl<'de> Deserializer<'de> for FieldProbe<'_> {
    type Error = Error;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: FieldNames,
        visitor: V,
    ) -> Result<V::Value, Error> {
        if self.steps.is_empty() {
            self.found.set(fields);
            return self.nothing();
        }
        visitor.visit_map(NextStep(self))
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_map(NextStep(self))
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_seq(NextStep(self))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_any<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, Error> {
        self.nothing()
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct tuple
        tuple_struct enum identifier ignored_any
    }
}

/// The key or the index of the next step, and its value, which is always an error.
#[derive(Debug)]
struct NextStep<'p>(FieldProbe<'p>);

impl<'p> NextStep<'p> {
    fn behind(&self) -> FieldProbe<'p> {
        FieldProbe {
            steps: self.0.steps.get(1..).unwrap_or_default(),
            ..self.0
        }
    }
}

impl<'de> MapAccess<'de> for NextStep<'_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Error> {
        let Some(step) = self.0.steps.first() else {
            return self.0.nothing();
        };
        let key: StrDeserializer<'_, Error> = step.into_deserializer();
        seed.deserialize(key).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        seed.deserialize(self.behind())?;
        // A key that the type ignores has a value; no field follows.
        self.0.nothing()
    }
}

impl<'de> SeqAccess<'de> for NextStep<'_> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Error> {
        if self.0.steps.is_empty() {
            return self.0.nothing();
        }
        seed.deserialize(self.behind())?;
        self.0.nothing()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize)]
    #[allow(dead_code)]
    struct Shop {
        url: String,
        store: Option<Box<Store>>,
        #[serde(rename = "price-lists")]
        lists: Vec<Store>,
        by_name: BTreeMap<String, Wrapped>,
    }

    #[derive(Deserialize)]
    #[allow(dead_code)]
    struct Store {
        size: u8,
    }

    #[derive(Deserialize)]
    #[allow(dead_code)]
    struct Wrapped(Store);

    #[derive(Deserialize)]
    #[allow(dead_code)]
    struct Flat {
        #[serde(flatten)]
        store: Store,
    }

    #[test]
    fn the_keys_of_inner_tables_are_found() {
        let shop = ["url", "store", "price-lists", "by_name"];
        assert_eq!(fields_at::<Shop>(&[]), shop);
        for steps in [
            &["store"][..],
            &["price-lists", "7"],
            &["by_name", "anything"],
        ] {
            assert_eq!(fields_at::<Shop>(steps), ["size"], "{steps:?}");
        }
        for steps in [&["url"][..], &["other"], &["store", "size"], &["by_name"]] {
            assert_eq!(fields_at::<Shop>(steps), [""; 0], "{steps:?}");
        }
        assert_eq!(fields_at::<Flat>(&[]), [""; 0]);
        assert_eq!(fields_at::<toml::Table>(&["a"]), [""; 0]);
    }
}
