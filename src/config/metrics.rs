//! `[metrics]`: metrics and health over HTTP.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::notation::{Given, Notation, Rejection, WrittenValue};
use super::values::text;
use crate::proto::names::Address;

/// `[metrics]`: metrics and health over HTTP.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct MetricsConfig {
    /// The address; `None`, the default, disables them.
    #[serde(with = "Given::<Address>")]
    pub listen: Option<Address>,
    /// The host names that requests over TCP may have, besides IP addresses and `localhost`: at most
    /// [`MAX_HOSTS`](super::MAX_HOSTS), by default none.
    pub hosts: Vec<HostName>,
}

/// The name of a host, as it stands in a URL: 1 to 253 bytes, without a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostName(pub String);

impl Notation for HostName {
    type Value = HostName;

    fn expected() -> String {
        "a host's name of letters, digits, \"-\", \"_\" and \".\" in quotes and without a port, such as \"node1.example.org\""
            .to_owned()
    }

    fn read(written: &WrittenValue<'_>) -> Result<HostName, Rejection> {
        let name = text(written)?;
        let is_within = |c: u8| c.is_ascii_alphanumeric() || c == b'-' || c == b'_';
        // RFC 1123, section 2.1, and the `_` that names of containers have.
        let is_label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(is_within)
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        let fits = name.len() <= 253 && name.split('.').all(is_label);
        fits.then(|| HostName(name.to_owned()))
            .ok_or(Rejection::Unexpected)
    }

    fn write(value: &HostName) -> WrittenValue<'_> {
        WrittenValue::Text(value.0.as_str().into())
    }
}

/// For arrays, whose elements no `with` can name.
impl<'de> Deserialize<'de> for HostName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<HostName, D::Error> {
        <HostName as Notation>::deserialize(deserializer)
    }
}

impl Serialize for HostName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        <HostName as Notation>::serialize(self, serializer)
    }
}
