//! The notations of single values: sizes, numbers, addresses, paths.

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use bytesize::ByteSize;

use super::notation::{Notation, Rejection, WrittenValue};
use crate::proto::names::{Address, check_unix_path};
use crate::sys::zone;

/// A number of bytes from `MIN` to `MAX`.
pub(super) struct Size<const MIN: u64, const MAX: u64>;

/// The length of a frame.
pub(super) struct FrameSize;

/// The size of the buffers. The upper limit, far above any machine, keeps sums of sizes from overflowing.
pub(super) type BufferSize = Size<{ 4 * 64 }, { 1 << 40 }>;

impl<const MIN: u64, const MAX: u64> Notation for Size<MIN, MAX> {
    type Value = u64;

    fn expected() -> String {
        let [min, max] = [MIN, MAX].map(size);
        let example = if MIN > 64 << 10 { "64MiB" } else { "64KiB" };
        format!("a size from {min} to {max} such as \"{example}\" or \"1MB\", or a number of bytes")
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

/// Returns a number of bytes as in the file: exact, unlike `ByteSize`, which rounds.
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

impl Notation for Address {
    type Value = Address;

    fn expected() -> String {
        "an address in quotes, such as \"127.0.0.1:8080\"".to_owned()
    }

    fn read(written: &WrittenValue<'_>) -> Result<Address, Rejection> {
        let text = zone::numbered(text(written)?).map_err(Rejection::Because)?;
        text.parse().map_err(Rejection::Because)
    }

    fn write(value: &Address) -> WrittenValue<'_> {
        WrittenValue::Text(value.to_string().into())
    }
}

/// The path of a Unix socket.
pub(super) struct SocketPath;

impl Notation for SocketPath {
    type Value = PathBuf;

    fn expected() -> String {
        AbsolutePath::expected()
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

/// An absolute path.
pub(super) struct AbsolutePath;

impl Notation for AbsolutePath {
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

pub(super) fn text<'a>(written: &'a WrittenValue<'_>) -> Result<&'a str, Rejection> {
    match written {
        WrittenValue::Text(text) => Ok(text),
        WrittenValue::Number(_) => Err(Rejection::Unexpected),
    }
}
