//! A control request and its params.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use crate::master::control::access::ControlPeer;
use crate::master::control::pending::PendingKind;
use crate::master::control::reply::ControlReply;
use crate::master::telemetry::events::Asker;
use crate::proto::control::{Refusal, RefusalCode, SetLogLevel, Verb};
use crate::proto::rpc::{NULL, Request};
use crate::proto::wording::{Vocabulary, plain};

/// A request of a control client.
#[derive(Debug)]
pub(crate) struct ControlRequest {
    /// The number of the client.
    pub(crate) client: u64,
    pub(crate) peer: ControlPeer,
    pub(crate) verb: Verb,
    /// `null` if the request has none.
    params: String,
}

/// The answer to a request that is permitted and possible.
#[derive(Debug)]
pub(crate) enum Answer {
    Reply(ControlReply),
    /// The reply follows when its condition is met.
    Pending(PendingKind),
}

impl ControlRequest {
    /// Parses the body of a frame.
    ///
    /// # Errors
    /// `bad_request` and `unknown_verb`.
    pub(crate) fn parse(
        client: u64,
        peer: ControlPeer,
        body: &[u8],
    ) -> Result<ControlRequest, Refusal> {
        let request = Request::parse(body).map_err(|e| Refusal::new(RefusalCode::BadRequest, e))?;
        let method = &request.method;
        let verb = Verb::from_name(method).ok_or_else(|| {
            let sentence = format!("there is no verb {method:?}");
            Refusal::new(RefusalCode::UnknownVerb, sentence)
        })?;
        let params = request.params.map_or(NULL, RawValue::get).to_owned();
        Ok(ControlRequest {
            client,
            peer,
            verb,
            params,
        })
    }

    /// Returns the origin of the request.
    pub(crate) fn asker(&self) -> Asker {
        Asker {
            what: self.verb.as_str(),
            who: Some(self.peer.credentials),
        }
    }

    /// Returns whether the request changes anything.
    pub(crate) fn changes(&self) -> bool {
        // Unreadable parameters are refused anyway.
        let sets_level = || {
            self.params_or_default::<SetLogLevel>()
                .is_ok_and(|asked| asked.level.is_some())
        };
        self.verb.changes() || (self.verb == Verb::LogLevel && sets_level())
    }

    /// Parses the parameters. Only an object is accepted, because serde would also read a struct from an array.
    pub(crate) fn params<T: DeserializeOwned>(&self) -> Result<T, Refusal> {
        let found = match self.params.starts_with('{') {
            true => serde_json::from_str(&self.params)
                .map_err(|e| plain(&e.to_string(), Vocabulary::Json)),
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

    /// Returns the reply with this result.
    ///
    /// # Errors
    /// `refused`, if the result cannot be serialized.
    pub(crate) fn reply(&self, result: &impl Serialize) -> Result<Answer, Refusal> {
        ControlReply::new(self.verb, result).map(Answer::Reply)
    }
}
