//! The frames of an app, parsed.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{self, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::super::json;
use super::super::wording::{Vocabulary, plain};
use super::{AppFault, AppMethod, AppMetric, Hello, VERSION};

/// A frame of an app.
#[derive(Debug)]
pub enum FromApp<'a> {
    /// The app can serve.
    Hello(Box<Hello>),
    /// The app will never serve, with the reason.
    Failed(String),
    /// The answer to a request.
    Answer {
        /// The request.
        id: u64,
        /// The result, as the app wrote it, or why there is none.
        outcome: Result<&'a RawValue, AppError>,
    },
    /// The answer to a probe.
    Alive(u64),
    /// Why the app is unhealthy; `None` if it is healthy.
    Health(Option<String>),
    /// Increments of counters and observations of histograms.
    Metrics(BTreeMap<String, Samples>),
    /// An object without a known member.
    Nothing,
}

/// Samples of a metric.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum Samples {
    /// To a counter.
    Add(f64),
    /// To a histogram.
    Observe(Vec<f64>),
}

/// Why there is no result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AppError {
    /// The method's error.
    Fault(AppFault),
    /// The answer is malformed, for this reason.
    Malformed(String),
}

impl<'a> FromApp<'a> {
    /// Reads the body of one frame.
    ///
    /// # Errors
    /// The mistake in it, for the operator. An answer whose id is its first member is always an answer: what is
    /// wrong with the rest of it concerns only its caller.
    pub fn parse(body: &'a [u8]) -> Result<FromApp<'a>, String> {
        let text = std::str::from_utf8(body)
            .map_err(|e| format!("not UTF-8: bad byte at {}", e.valid_up_to()))?;
        if let Some((id, rest)) = split_id(text) {
            // This is the usual answer exactly if its result is one JSON value.
            if let Some(result) = result_of(rest).and_then(json::raw_value) {
                let outcome = Ok(result);
                return Ok(FromApp::Answer { id, outcome });
            }
            return Ok(match serde_json::from_str(text) {
                Ok(Members(frame)) => frame,
                Err(e) => FromApp::Answer {
                    id,
                    outcome: Err(AppError::Malformed(format!(
                        "the answer is not JSON: {}",
                        plain(&e.to_string(), Vocabulary::Json)
                    ))),
                },
            });
        }
        serde_json::from_str(text)
            .map(|Members(frame)| frame)
            .map_err(|e| plain(&e.to_string(), Vocabulary::Json))
    }
}

/// Splits the usual beginning of an answer, `{"id":N,`, from the rest.
fn split_id(text: &str) -> Option<(u64, &str)> {
    let rest = text.strip_prefix("{\"id\":")?;
    let rest = rest.strip_prefix(' ').unwrap_or(rest);
    let digits = rest.find(|c: char| !c.is_ascii_digit())?;
    let (id, rest) = rest.split_at(digits);
    // JSON has no number with a zero in front.
    if id.len() > 1 && id.starts_with('0') {
        return None;
    }
    let rest = rest.strip_prefix(',')?;
    Some((id.parse().ok()?, rest.strip_prefix(' ').unwrap_or(rest)))
}

/// Returns the text of the result, if it is the last member.
fn result_of(rest: &str) -> Option<&str> {
    let rest = rest.strip_prefix("\"result\":")?;
    rest.strip_suffix('}')
}

/// A frame, by its members.
struct Members<'a>(FromApp<'a>);

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "lowercase")]
enum FrameMember {
    Id,
    Result,
    Error,
    Hello,
    Methods,
    Concurrency,
    Name,
    Version,
    Closes,
    Failed,
    Alive,
    Health,
    Metrics,
    #[serde(other)]
    Other,
}

/// The value of `metrics`: declarations in a hello, samples in any other frame.
#[derive(Deserialize)]
#[serde(untagged)]
enum MetricsValue {
    Declared(Vec<AppMetric>),
    Samples(BTreeMap<String, Samples>),
}

/// The members of one frame, before it is known what it is.
#[derive(Default)]
struct FrameMembers<'a> {
    id: Option<u64>,
    result: Option<&'a RawValue>,
    error: Option<&'a RawValue>,
    hello: Option<u32>,
    methods: Option<Vec<AppMethod>>,
    concurrency: Option<u32>,
    name: Option<Option<String>>,
    version: Option<Option<String>>,
    closes: Option<bool>,
    failed: Option<String>,
    alive: Option<u64>,
    health: Option<Option<String>>,
    metrics: Option<MetricsValue>,
}

/// Sets a member, which must be the first of its name.
fn set<'de, T: Deserialize<'de>, A: MapAccess<'de>>(
    map: &mut A,
    member: &mut Option<T>,
    name: &'static str,
) -> Result<(), A::Error> {
    if member.is_some() {
        return Err(de::Error::duplicate_field(name));
    }
    *member = Some(map.next_value()?);
    Ok(())
}

// Not derived, because a derived struct accepts an array in place of the object.
impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Members<'de>, D::Error> {
        struct FrameVisitor;
        impl<'de> Visitor<'de> for FrameVisitor {
            type Value = Members<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
                let mut found = FrameMembers::default();
                while let Some(member) = map.next_key::<FrameMember>()? {
                    match member {
                        FrameMember::Id => set(&mut map, &mut found.id, "id")?,
                        FrameMember::Result => set(&mut map, &mut found.result, "result")?,
                        FrameMember::Error => set(&mut map, &mut found.error, "error")?,
                        FrameMember::Hello => set(&mut map, &mut found.hello, "hello")?,
                        FrameMember::Methods => set(&mut map, &mut found.methods, "methods")?,
                        FrameMember::Concurrency => {
                            set(&mut map, &mut found.concurrency, "concurrency")?;
                        }
                        FrameMember::Name => set(&mut map, &mut found.name, "name")?,
                        FrameMember::Version => set(&mut map, &mut found.version, "version")?,
                        FrameMember::Closes => set(&mut map, &mut found.closes, "closes")?,
                        FrameMember::Failed => set(&mut map, &mut found.failed, "failed")?,
                        FrameMember::Alive => set(&mut map, &mut found.alive, "alive")?,
                        FrameMember::Health => set(&mut map, &mut found.health, "health")?,
                        FrameMember::Metrics => set(&mut map, &mut found.metrics, "metrics")?,
                        FrameMember::Other => {
                            map.next_value::<IgnoredAny>()?;
                        }
                    }
                }
                found.frame().map(Members).map_err(de::Error::custom)
            }
        }
        from.deserialize_map(FrameVisitor)
    }
}

impl<'a> FrameMembers<'a> {
    fn frame(self) -> Result<FromApp<'a>, String> {
        if let Some(version) = self.hello {
            if version != VERSION {
                return Err(format!("hello has version {version}, not {VERSION}"));
            }
            let metrics = match self.metrics {
                None => Vec::new(),
                Some(MetricsValue::Declared(metrics)) => metrics,
                Some(MetricsValue::Samples(samples)) if samples.is_empty() => Vec::new(),
                Some(MetricsValue::Samples(_)) => return Err("metrics is not an array".to_owned()),
            };
            return Ok(FromApp::Hello(Box::new(Hello {
                methods: self.methods.ok_or("hello has no methods")?,
                concurrency: self.concurrency.unwrap_or(1),
                name: self.name.flatten(),
                version: self.version.flatten(),
                closes: self.closes.unwrap_or(false),
                metrics,
            })));
        }
        if let Some(id) = self.id {
            let outcome = match (self.result, self.error) {
                (Some(result), None) => Ok(result),
                (None, Some(error)) => Err(match serde_json::from_str(error.get()) {
                    Ok(fault) => AppError::Fault(fault),
                    Err(e) => AppError::Malformed(format!(
                        "the error is malformed: {}",
                        plain(&e.to_string(), Vocabulary::Json)
                    )),
                }),
                (Some(_), Some(_)) => Err(both_or_neither("both")),
                (None, None) => Err(both_or_neither("neither")),
            };
            return Ok(FromApp::Answer { id, outcome });
        }
        Ok(match self {
            FrameMembers {
                failed: Some(reason),
                ..
            } => FromApp::Failed(reason),
            FrameMembers {
                alive: Some(probe), ..
            } => FromApp::Alive(probe),
            FrameMembers {
                health: Some(health),
                ..
            } => FromApp::Health(health),
            FrameMembers {
                metrics: Some(MetricsValue::Samples(samples)),
                ..
            } => FromApp::Metrics(samples),
            _ => FromApp::Nothing,
        })
    }
}

fn both_or_neither(which: &str) -> AppError {
    AppError::Malformed(format!("the answer has {which} of result and error"))
}

/// Reads any bytes as the body of a frame: the usual form of an answer is read as any other form is, and a result is
/// one JSON value of the body.
#[cfg(any(test, fuzzing))]
pub fn fuzz(body: &[u8]) {
    let read = FromApp::parse(body);
    if let Ok(FromApp::Answer {
        id,
        outcome: Ok(result),
    }) = &read
    {
        let value: &RawValue = serde_json::from_str(result.get()).expect("a result is JSON");
        assert_eq!(value.get(), result.get(), "without space around it");
        assert!(body.as_ptr_range().contains(&result.get().as_ptr()));
        let object = std::str::from_utf8(body).map(serde_json::from_str);
        let Ok(Ok(Members(FromApp::Answer { id: again, outcome }))) = object else {
            panic!("only the short parser accepts this answer");
        };
        let outcome = outcome.map(RawValue::get);
        assert_eq!((again, outcome), (*id, Ok(result.get())));
    }
}

#[cfg(test)]
mod tests {
    use super::super::MetricKind;
    use super::*;
    use proptest::prelude::*;

    fn answer(text: &str) -> (u64, Result<String, AppError>) {
        match FromApp::parse(text.as_bytes()) {
            Ok(FromApp::Answer { id, outcome }) => (id, outcome.map(|json| json.get().to_owned())),
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn a_result_stays_as_the_app_wrote_it() {
        for result in ["null", "1e400", "\"}\"", "[1, 2]", "{\"a\" : {}}", "-0.0"] {
            for text in [
                format!("{{\"id\":7,\"result\":{result}}}"),
                format!("{{\"id\": 7, \"result\": {result}}}"),
                format!("{{\"result\":{result},\"more\":[],\"id\":7}}"),
                format!("{{\"id\":7,\"x\":1,\"result\":{result}}}"),
                format!("{{\"id\":7,\"result\":{result},\"x\":1}}"),
            ] {
                assert_eq!(answer(&text), (7, Ok(result.to_owned())), "{text}");
            }
        }
    }

    #[test]
    fn an_id_with_a_zero_in_front_is_no_number() {
        for id in ["00", "007"] {
            let text = format!("{{\"id\":{id},\"result\":1}}");
            FromApp::parse(text.as_bytes()).expect_err("JSON has no such number");
        }
    }

    #[test]
    fn an_answer_with_a_fault_in_it_concerns_its_caller_only() {
        for (text, expected) in [
            ("{\"id\":7,\"result\":NaN}", "not JSON"),
            ("{\"id\":7,\"result\":1,2}", "not JSON"),
            ("{\"id\":7,\"result\":", "not JSON"),
            ("{\"id\":7,\"result\":1,\"error\":{\"code\":\"x\"}}", "both"),
            ("{\"id\":7,\"other\":1}", "neither"),
            ("{\"id\":7,\"error\":\"x\"}", "malformed"),
            ("{\"id\":7,\"error\":{\"message\":\"x\"}}", "code"),
        ] {
            match answer(text) {
                (7, Err(AppError::Malformed(reason))) => {
                    assert!(reason.contains(expected), "{text}: {reason}");
                }
                other => panic!("{text}: {other:?}"),
            }
        }
        let (_, fault) = answer("{\"error\":{\"code\":\"no_item\",\"x\":1},\"id\":3}");
        let expected = AppFault {
            code: "no_item".to_owned(),
            message: String::new(),
        };
        assert_eq!(fault, Err(AppError::Fault(expected)));
    }

    #[test]
    fn other_frames_are_found_by_their_members() {
        let parse = |text: &'static str| FromApp::parse(text.as_bytes());
        let hello = "{\"hello\":1,\"methods\":[{\"name\":\"add\",\"idempotent\":true}],\"x\":{},\
            \"metrics\":[{\"name\":\"orders\",\"type\":\"counter\"}]}";
        match parse(hello) {
            Ok(FromApp::Hello(hello)) => {
                assert_eq!((hello.methods.len(), hello.concurrency), (1, 1));
                assert_eq!(hello.metrics[0].kind, MetricKind::Counter);
            }
            other => panic!("{other:?}"),
        }
        assert!(
            matches!(parse("{\"failed\":\"no\"}"), Ok(FromApp::Failed(reason)) if reason == "no")
        );
        assert!(matches!(parse("{\"alive\":9}"), Ok(FromApp::Alive(9))));
        assert!(matches!(
            parse("{\"health\":null}"),
            Ok(FromApp::Health(None))
        ));
        assert!(matches!(
            parse("{\"health\":\"no\"}"),
            Ok(FromApp::Health(Some(_)))
        ));
        assert!(matches!(parse("{\"later\":1}"), Ok(FromApp::Nothing)));
        match parse("{\"metrics\":{\"orders\":3,\"seconds\":[0.5,1]}}") {
            Ok(FromApp::Metrics(samples)) => {
                assert_eq!(samples["orders"], Samples::Add(3.0));
                assert_eq!(samples["seconds"], Samples::Observe(vec![0.5, 1.0]));
            }
            other => panic!("{other:?}"),
        }
        for wrong in [
            "",
            "7",
            "[]",
            "[1]",
            "{",
            "{\"hello\":2,\"methods\":[]}",
            "{\"hello\":1}",
            "print",
            "{\"alive\":1,\"alive\":2}",
            "{\"id\":-1,\"result\":1}",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn no_frame_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200), tail in "[ -~]{0,40}") {
            let _ = FromApp::parse(&bytes);
            let _ = FromApp::parse(format!("{{\"id\":1,{tail}").as_bytes());
        }
    }
}
