//! A check of JSON text (RFC 8259) in about two thirds of the time that serde_json takes.
//!
//! [`raw_value`] accepts the same texts as `serde_json::from_str::<&RawValue>`, and returns the same value: numbers of
//! any size, doubled names, lone surrogates as escapes, and any depth. It has no errors: the caller gets the sentence
//! about any other text from serde_json.
//!
//! The check has no recursion. It keeps one bit for each open bracket: whether it is an object's. Strings and digits
//! are read eight bytes at a time, long strings 64 bytes at a time, in a loop that the compiler vectorizes. Each
//! function takes the text that is left and returns what is left after it, so that the length is the only bound.

use std::iter;

use serde::Deserialize;
use serde::de::value::{BorrowedStrDeserializer, Error, MapDeserializer};
use serde_json::value::RawValue;

/// The key under which a deserializer passes a `RawValue` its text (`serde_json::value::RawValue`). serde_json does not
/// promise the key. With another one the text is parsed a second time, as the tests would show.
const RAW_VALUE: &str = "$serde_json::private::RawValue";

/// Returns the value that a text consists of, without the whitespace around it; `None` if the text is not JSON.
pub(crate) fn raw_value(text: &str) -> Option<&RawValue> {
    let value = value(text)?;
    unchecked(value).or_else(|| serde_json::from_str(value).ok())
}

/// Returns a checked value as a `RawValue`, without another check.
#[inline]
fn unchecked(value: &str) -> Option<&RawValue> {
    let value = BorrowedStrDeserializer::<Error>::new(value);
    let members = MapDeserializer::new(iter::once((RAW_VALUE, value)));
    Deserialize::deserialize(members).ok()
}

/// Does the same as [`raw_value`].
#[inline]
fn value(text: &str) -> Option<&str> {
    let bytes = text.as_bytes();
    let value = after_spaces(bytes);
    let rest = after_value(value)?;
    let (begin, end) = (bytes.len() - value.len(), bytes.len() - rest.len());
    after_spaces(rest).is_empty().then(|| &text[begin..end])
}

/// The open brackets.
#[derive(Default)]
struct OpenBrackets {
    count: usize,
    /// Whether each is an object's: the innermost bracket is the lowest bit.
    are_objects: u64,
    /// The same of the brackets around these, 64 each.
    outer: Vec<u64>,
}

impl OpenBrackets {
    #[inline]
    fn push(&mut self, is_object: bool) {
        if self.count > 0 && self.count.is_multiple_of(64) {
            self.outer.push(self.are_objects);
        }
        self.count += 1;
        self.are_objects = self.are_objects << 1 | u64::from(is_object);
    }

    #[inline]
    fn pop(&mut self) {
        self.count -= 1;
        self.are_objects >>= 1;
        if self.count > 0 && self.count.is_multiple_of(64) {
            self.are_objects = self.outer.pop().unwrap_or_default();
        }
    }

    #[inline]
    fn is_in_object(&self) -> bool {
        self.are_objects & 1 == 1
    }
}

fn after_value(mut text: &[u8]) -> Option<&[u8]> {
    let mut open = OpenBrackets::default();
    loop {
        text = match after_spaces(text) {
            [b'"', rest @ ..] => after_string(rest)?,
            [b'-', rest @ ..] => after_number(rest)?,
            number @ [b'0'..=b'9', ..] => after_number(number)?,
            [b'{', rest @ ..] => match after_spaces(rest) {
                [b'}', rest @ ..] => rest,
                rest => {
                    open.push(true);
                    text = after_name(rest)?;
                    continue;
                }
            },
            [b'[', rest @ ..] => match after_spaces(rest) {
                [b']', rest @ ..] => rest,
                rest => {
                    open.push(false);
                    text = rest;
                    continue;
                }
            },
            [b't', b'r', b'u', b'e', rest @ ..]
            | [b'f', b'a', b'l', b's', b'e', rest @ ..]
            | [b'n', b'u', b'l', b'l', rest @ ..] => rest,
            _ => return None,
        };
        loop {
            if open.count == 0 {
                return Some(text);
            }
            text = match (after_spaces(text), open.is_in_object()) {
                ([b',', rest @ ..], true) => {
                    text = after_name(rest)?;
                    break;
                }
                ([b',', rest @ ..], false) => {
                    text = rest;
                    break;
                }
                ([b'}', rest @ ..], true) | ([b']', rest @ ..], false) => {
                    open.pop();
                    rest
                }
                _ => return None,
            }
        }
    }
}

/// Passes the name of a member and the colon.
#[inline]
fn after_name(text: &[u8]) -> Option<&[u8]> {
    let [b'"', name @ ..] = after_spaces(text) else {
        return None;
    };
    let [b':', rest @ ..] = after_spaces(after_string(name)?) else {
        return None;
    };
    Some(rest)
}

/// Passes a number without its sign. A digit after a leading zero is left, which no value may begin with.
#[inline]
fn after_number(mut text: &[u8]) -> Option<&[u8]> {
    text = match text {
        [b'0', rest @ ..] => rest,
        _ => after_digits(text)?,
    };
    if let [b'.', rest @ ..] = text {
        text = after_digits(rest)?;
    }
    if let [b'e' | b'E', b'+' | b'-', rest @ ..] | [b'e' | b'E', rest @ ..] = text {
        text = after_digits(rest)?;
    }
    Some(text)
}

/// Passes one digit or more.
#[inline]
fn after_digits(mut text: &[u8]) -> Option<&[u8]> {
    let [b'0'..=b'9', rest @ ..] = text else {
        return None;
    };
    text = rest;
    while let Some((word, rest)) = text.split_first_chunk() {
        // A digit becomes its value, and another byte becomes at least ten.
        let digits = u64::from_le_bytes(*word) ^ each(b'0');
        let others = (digits.wrapping_add(each(0x80 - 10)) | digits) & each(0x80);
        if others != 0 {
            return Some(&text[first(others)..]);
        }
        text = rest;
    }
    while let [b'0'..=b'9', rest @ ..] = text {
        text = rest;
    }
    Some(text)
}

/// Passes a string, from the byte after its opening quote.
#[inline]
fn after_string(mut text: &[u8]) -> Option<&[u8]> {
    loop {
        text = match after_plain(text) {
            [b'"', rest @ ..] => return Some(rest),
            [
                b'\\',
                b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't',
                rest @ ..,
            ] => rest,
            [b'\\', b'u', a, b, c, d, rest @ ..]
                if [a, b, c, d].iter().all(|digit| digit.is_ascii_hexdigit()) =>
            {
                rest
            }
            _ => return None,
        };
    }
}

/// Passes what stands for itself in a string.
#[inline]
fn after_plain(mut text: &[u8]) -> &[u8] {
    let mut words = 0;
    while let Some((word, rest)) = text.split_first_chunk() {
        let special = special(u64::from_le_bytes(*word));
        if special != 0 {
            return &text[first(special)..];
        }
        text = rest;
        words += 1;
        if words == 4 {
            text = after_long_plain(text);
        }
    }
    while let [byte, rest @ ..] = text
        && !is_special(*byte)
    {
        text = rest;
    }
    text
}

#[inline(never)]
fn after_long_plain(mut text: &[u8]) -> &[u8] {
    while let Some((chunk, rest)) = text.split_first_chunk::<64>() {
        // No early end: the compiler makes vectors of this.
        let special = chunk
            .iter()
            .fold(0, |any, byte| any | u8::from(is_special(*byte)));
        if special != 0 {
            break;
        }
        text = rest;
    }
    text
}

/// Returns whether a byte ends a string, begins an escape or must be written as one.
fn is_special(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == b'\\'
}

/// Returns bit 7 of each byte of a word that [`is_special`], from the lowest byte to the first such one. Above it,
/// bytes may have the bit because a subtraction borrows from them.
#[inline]
fn special(word: u64) -> u64 {
    let below = |word: u64, bound| word.wrapping_sub(each(bound)) & !word;
    let (quotes, escapes) = (word ^ each(b'"'), word ^ each(b'\\'));
    (below(word, 0x20) | below(quotes, 1) | below(escapes, 1)) & each(0x80)
}

/// Returns a word of eight bytes of this value.
const fn each(byte: u8) -> u64 {
    u64::from_ne_bytes([byte; 8])
}

/// Returns the index of the lowest byte of which a bit is set.
#[inline]
fn first(bits: u64) -> usize {
    bits.trailing_zeros() as usize / 8
}

#[inline]
fn after_spaces(text: &[u8]) -> &[u8] {
    match text {
        [..=b' ', ..] => after_some_spaces(text),
        _ => text,
    }
}

#[inline]
fn after_some_spaces(mut text: &[u8]) -> &[u8] {
    while let [b' ' | b'\n' | b'\t' | b'\r', rest @ ..] = text {
        text = rest;
        // An indent.
        while let Some((b"        ", rest)) = text.split_first_chunk() {
            text = rest;
        }
    }
    text
}

#[cfg(test)]
mod tests;
