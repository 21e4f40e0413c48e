//! The notations of single values: durations, sizes, counts, modes, paths, names.

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::names;
use super::notation::{AutoWord, Keyword, Notation, OrAuto, Rejection, WrittenValue};
use super::{Count, Mode, Source};
use crate::proto::names::{Address, MAX_WORKERS, check_unix_path};
use crate::sys::user::{Group, User};
use crate::sys::zone;

/// A duration, in milliseconds from `MIN` to `MAX`.
pub(super) struct Lasting<const MIN: u64, const MAX: u64>;

/// A year as humantime writes it, in milliseconds: 365.25 days.
const YEAR: u64 = 31_557_600_000;

/// How long to wait for something: zero would be never to wait at all.
pub(super) type Timeout = Lasting<1, YEAR>;

/// How long a worker may be stuck: not less than the longest turn of a worker that is not stuck at all.
pub(super) type StallTimeout = Lasting<10, YEAR>;

/// How long to wait for something that need not be waited for.
pub(super) type Patience = Lasting<0, YEAR>;

impl<const MIN: u64, const MAX: u64> Notation for Lasting<MIN, MAX> {
    type Value = Duration;

    fn expected() -> String {
        let [min, max] =
            [MIN, MAX].map(|millis| humantime::format_duration(Duration::from_millis(millis)));
        format!("a duration from {min} to {max} in quotes, such as \"30s\" or \"1m 30s\"")
    }

    fn read(written: &WrittenValue<'_>) -> Result<Duration, Rejection> {
        let range = Duration::from_millis(MIN)..=Duration::from_millis(MAX);
        duration(written)?
            .filter(|duration| range.contains(duration))
            .ok_or(Rejection::Unexpected)
    }

    fn write(value: &Duration) -> WrittenValue<'_> {
        WrittenValue::Text(humantime::format_duration(*value).to_string().into())
    }
}

/// What `TCP_KEEPIDLE` takes (tcp(7)): seconds up to a limit of Linux.
pub(super) struct KeepAlive;

impl Notation for KeepAlive {
    type Value = Duration;

    fn expected() -> String {
        "a duration in whole seconds from 1s to 32767s in quotes, such as \"5m\"".to_owned()
    }

    fn read(written: &WrittenValue<'_>) -> Result<Duration, Rejection> {
        let fits = |duration: &Duration| {
            (1..=32_767).contains(&duration.as_secs()) && duration.subsec_nanos() == 0
        };
        duration(written)?.filter(fits).ok_or(Rejection::Unexpected)
    }

    fn write(value: &Duration) -> WrittenValue<'_> {
        Timeout::write(value)
    }
}

/// `M` is humantime's unit for months, and a slip of the finger for minutes: months are written in full.
fn duration(written: &WrittenValue<'_>) -> Result<Option<Duration>, Rejection> {
    let WrittenValue::Text(text) = written else {
        return Ok(None);
    };
    let Ok(duration) = humantime::parse_duration(text) else {
        return Ok(None);
    };
    let minutes = with_minutes(text);
    if minutes != *text {
        return Err(Rejection::Because(format!(
            "{text:?}: M stands for months; did you mean {minutes:?}?"
        )));
    }
    Ok(Some(duration))
}

/// The text with `m` for each unit `M`.
fn with_minutes(text: &str) -> String {
    let is_letter = |at: usize| text.as_bytes().get(at).is_some_and(u8::is_ascii_alphabetic);
    let unit = |(at, c): (usize, char)| {
        let is_alone = !is_letter(at + 1) && (at == 0 || !is_letter(at - 1));
        if c == 'M' && is_alone { 'm' } else { c }
    };
    text.char_indices().map(unit).collect()
}

/// A number of bytes from `MIN` to `MAX`.
pub(super) struct Size<const MIN: u64, const MAX: u64>;

/// The length of a frame.
pub(super) struct FrameSize;

/// The room for what is parked. The upper limit is far above any machine; it keeps sums of sizes from overflowing.
pub(super) type BufferSize = Size<{ 4 * 64 }, { 1 << 40 }>;

impl<const MIN: u64, const MAX: u64> Notation for Size<MIN, MAX> {
    type Value = u64;

    fn expected() -> String {
        let [min, max] = [MIN, MAX].map(size);
        format!("a size from {min} to {max} such as \"64KiB\" or \"1MB\", or a number of bytes")
    }

    fn read(written: &WrittenValue<'_>) -> Result<u64, Rejection> {
        let bytes = match written {
            WrittenValue::Text(text) => text.parse().ok().map(|ByteSize(bytes)| bytes),
            WrittenValue::Number(number) => u64::try_from(*number).ok(),
        };
        bytes
            .filter(|bytes| (MIN..=MAX).contains(bytes))
            .ok_or(Rejection::Unexpected)
    }

    fn write(value: &u64) -> WrittenValue<'_> {
        WrittenValue::Text(size(*value).into())
    }
}

impl Notation for FrameSize {
    type Value = u32;

    fn expected() -> String {
        Size::<64, { 256 << 20 }>::expected()
    }

    fn read(written: &WrittenValue<'_>) -> Result<u32, Rejection> {
        Size::<64, { 256 << 20 }>::read(written)
            .and_then(|bytes| u32::try_from(bytes).or(Err(Rejection::Unexpected)))
    }

    fn write(value: &u32) -> WrittenValue<'_> {
        WrittenValue::Text(size((*value).into()).into())
    }
}

/// Writes a number of bytes as the file has it: exactly, unlike `ByteSize`, which rounds.
#[must_use]
pub fn size(bytes: u64) -> String {
    let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    let whole = units
        .into_iter()
        .find(|(shift, _)| bytes != 0 && bytes.trailing_zeros() >= *shift);
    whole.map_or_else(
        || format!("{bytes}B"),
        |(shift, unit)| format!("{}{unit}", bytes >> shift),
    )
}

/// A number from 1 to `MAX`.
pub(super) struct UpTo<const MAX: u32>;

impl<const MAX: u32> Notation for UpTo<MAX> {
    type Value = NonZeroU32;

    fn expected() -> String {
        format!("a number from 1 to {MAX}")
    }

    fn read(written: &WrittenValue<'_>) -> Result<NonZeroU32, Rejection> {
        let number = match written {
            WrittenValue::Text(_) => None,
            WrittenValue::Number(number) => u32::try_from(*number).ok().and_then(NonZeroU32::new),
        };
        number
            .filter(|number| number.get() <= MAX)
            .ok_or(Rejection::Unexpected)
    }

    fn write(value: &NonZeroU32) -> WrittenValue<'_> {
        WrittenValue::Number(value.get().into())
    }
}

impl Notation for Count {
    type Value = Count;

    fn expected() -> String {
        OrAuto::<UpTo<MAX_WORKERS>>::expected()
    }

    fn read(written: &WrittenValue<'_>) -> Result<Count, Rejection> {
        Ok(OrAuto::<UpTo<MAX_WORKERS>>::read(written)?.map_or(Count::Auto, Count::Exactly))
    }

    fn write(value: &Count) -> WrittenValue<'_> {
        match value {
            Count::Auto => WrittenValue::Text(AutoWord::WORD.into()),
            Count::Exactly(count) => UpTo::<MAX_WORKERS>::write(count),
        }
    }
}

impl Notation for Mode {
    type Value = Mode;

    fn expected() -> String {
        "an octal mode from \"0000\" to \"0777\" in quotes".to_owned()
    }

    fn read(written: &WrittenValue<'_>) -> Result<Mode, Rejection> {
        match written {
            WrittenValue::Text(text) if text.len() == 4 && text.starts_with('0') => {
                u32::from_str_radix(text, 8)
                    .map(Mode)
                    .or(Err(Rejection::Unexpected))
            }
            _ => Err(Rejection::Unexpected),
        }
    }

    fn write(value: &Mode) -> WrittenValue<'_> {
        WrittenValue::Text(value.to_string().into())
    }
}

impl Notation for Address {
    type Value = Address;

    fn expected() -> String {
        Source::expected()
    }

    fn read(written: &WrittenValue<'_>) -> Result<Address, Rejection> {
        let text = zone::numbered(text(written)?).map_err(Rejection::Because)?;
        text.parse().map_err(Rejection::Because)
    }

    fn write(value: &Address) -> WrittenValue<'_> {
        WrittenValue::Text(value.to_string().into())
    }
}

impl Notation for Source {
    type Value = Source;

    fn expected() -> String {
        "an address in quotes, such as \"127.0.0.1:8080\"".to_owned()
    }

    fn read(written: &WrittenValue<'_>) -> Result<Source, Rejection> {
        text(written)?.parse().map_err(Rejection::Because)
    }

    fn write(value: &Source) -> WrittenValue<'_> {
        WrittenValue::Text(value.to_string().into())
    }
}

/// Where a Unix socket can be.
pub(super) struct SocketPath;

impl Notation for SocketPath {
    type Value = PathBuf;

    fn expected() -> String {
        LogPath::expected()
    }

    fn read(written: &WrittenValue<'_>) -> Result<PathBuf, Rejection> {
        let text = text(written)?;
        if text.starts_with("unix:") {
            return Err(Rejection::Because(format!(
                "{text:?}: only a path is expected here, without \"unix:\""
            )));
        }
        check_unix_path(text).map_err(Rejection::Because)?;
        Ok(PathBuf::from(text))
    }

    fn write(value: &PathBuf) -> WrittenValue<'_> {
        WrittenValue::Text(value.to_string_lossy())
    }
}

/// Where a log file can be.
pub(super) struct LogPath;

impl Notation for LogPath {
    type Value = PathBuf;

    fn expected() -> String {
        "an absolute path in quotes".to_owned()
    }

    fn read(written: &WrittenValue<'_>) -> Result<PathBuf, Rejection> {
        let text = text(written)?;
        let fits = Path::new(text).is_absolute() && !text.contains('\0');
        fits.then(|| PathBuf::from(text))
            .ok_or(Rejection::Unexpected)
    }

    fn write(value: &PathBuf) -> WrittenValue<'_> {
        WrittenValue::Text(value.to_string_lossy())
    }
}

impl Notation for User {
    type Value = User;

    fn expected() -> String {
        "the name or the number of a user in quotes".to_owned()
    }

    fn read(written: &WrittenValue<'_>) -> Result<User, Rejection> {
        names::user(text(written)?)
    }

    fn write(value: &User) -> WrittenValue<'_> {
        WrittenValue::Text(value.name.as_str().into())
    }
}

impl Notation for Group {
    type Value = Group;

    fn expected() -> String {
        "the name or the number of a group in quotes".to_owned()
    }

    fn read(written: &WrittenValue<'_>) -> Result<Group, Rejection> {
        names::group(text(written)?)
    }

    fn write(value: &Group) -> WrittenValue<'_> {
        WrittenValue::Text(value.name.as_str().into())
    }
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

fn text<'a>(written: &'a WrittenValue<'_>) -> Result<&'a str, Rejection> {
    match written {
        WrittenValue::Text(text) => Ok(text),
        WrittenValue::Number(_) => Err(Rejection::Unexpected),
    }
}
