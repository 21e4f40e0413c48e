//! A control request and its params.

use serde::de::DeserializeOwned;

use crate::proto::control::{Refusal, RefusalCode, SetLogLevel, Verb};
use crate::proto::rpc::NULL;

/// A request that is permitted.
#[derive(Clone, Copy)]
pub(crate) struct Asked<'a> {
    pub(crate) verb: Verb,
    /// `null` if the request has none.
    pub(crate) params: &'a str,
}

impl Asked<'_> {
    /// Returns whether the request changes anything.
    pub(crate) fn changes(&self) -> bool {
        // Unreadable parameters are refused anyway.
        let sets_level = || {
            self.params_or_default::<SetLogLevel>()
                .is_ok_and(|asked| asked.level.is_some())
        };
        self.verb.changes() || (self.verb == Verb::LogLevel && sets_level())
    }

    /// Parses the parameters. Only an object is accepted, because serde would also read a struct
    /// from an array.
    pub(crate) fn params<T: DeserializeOwned>(&self) -> Result<T, Refusal> {
        let found = match self.params.starts_with('{') {
            true => serde_json::from_str(self.params).map_err(|e| e.to_string()),
            false => Err("expected an object".to_owned()),
        };
        found.map_err(|why| {
            Refusal::new(
                RefusalCode::BadParams,
                format!("params of {}: {why}", self.verb.as_str()),
            )
        })
    }

    pub(crate) fn params_or_default<T: DeserializeOwned + Default>(&self) -> Result<T, Refusal> {
        if self.params == NULL {
            Ok(T::default())
        } else {
            self.params()
        }
    }

    pub(crate) fn no_params(&self) -> Result<(), Refusal> {
        #[derive(Default, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        struct NoParams {}
        self.params_or_default::<NoParams>().map(|NoParams {}| ())
    }
}
