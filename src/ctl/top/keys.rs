//! Keys, from the bytes that a terminal sends for them (ECMA-48, and xterm's control sequences).

/// A key that was pressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeyPress {
    Char(char),
    Enter,
    Escape,
    Backspace,
    Tab,
    /// Ctrl-L.
    Redraw,
    Up,
    Down,
    PageUp,
    PageDown,
    Home,
    End,
}

/// Reads keys, also if the bytes of one arrive in several parts.
#[derive(Debug, Default)]
pub(crate) struct KeyReader {
    /// The beginning of a sequence.
    rest: Vec<u8>,
    /// Whether a pasted text has begun that has not ended.
    is_in_paste: bool,
}

impl KeyReader {
    /// Returns the keys that are complete. Keys without a meaning here are left out, and pasted texts.
    pub(crate) fn read(&mut self, bytes: &[u8]) -> Vec<KeyPress> {
        self.rest.extend_from_slice(bytes);
        let mut keys = Vec::new();
        loop {
            if self.is_in_paste {
                self.skip_paste();
            }
            let Some((key, length)) = first_key(&self.rest).filter(|_| !self.is_in_paste) else {
                return keys;
            };
            self.is_in_paste = &self.rest[..length] == BEGIN_OF_PASTE;
            keys.extend(key);
            self.rest.drain(..length);
        }
    }

    /// Drops a pasted text as far as it has arrived. Its bytes are not parsed: half of a sequence in it must not hide
    /// its end.
    fn skip_paste(&mut self) {
        let end = self
            .rest
            .windows(END_OF_PASTE.len())
            .position(|bytes| bytes == END_OF_PASTE);
        self.is_in_paste = end.is_none();
        let dropped = match end {
            Some(at) => at + END_OF_PASTE.len(),
            // The last bytes may be the beginning of the end.
            None => self.rest.len().saturating_sub(END_OF_PASTE.len() - 1),
        };
        self.rest.drain(..dropped);
    }

    /// Returns whether the beginning of a sequence has arrived, or the key Escape, which sends the same byte.
    pub(crate) fn is_in_sequence(&self) -> bool {
        !self.is_in_paste && !self.rest.is_empty()
    }

    /// Ends the sequence because nothing has followed: then its first byte was the key Escape. The beginning of a
    /// pasted text is awaited longer, because the text would be keys without it.
    pub(crate) fn finish(&mut self) -> Option<KeyPress> {
        if self.rest.len() > 2 && BEGIN_OF_PASTE.starts_with(&self.rest) {
            return None;
        }
        let rest = std::mem::take(&mut self.rest);
        (rest == [ESCAPE]).then_some(KeyPress::Escape)
    }
}

/// Returns the first key, if it has a meaning here, and the number of its bytes; `None` if bytes are missing.
fn first_key(bytes: &[u8]) -> Option<(Option<KeyPress>, usize)> {
    match bytes {
        [] | [ESCAPE] => None,
        [ESCAPE, b'[', rest @ ..] => {
            let last = rest.iter().position(|byte| matches!(byte, 0x40..=0x7e))?;
            Some((of_sequence(&rest[..=last]), last + 3))
        }
        [ESCAPE, b'O', rest @ ..] => Some((of_sequence(rest.get(..1)?), 3)),
        // Escape, and then another key; or a key with Alt, which has no meaning here.
        [ESCAPE, ESCAPE, ..] => Some((Some(KeyPress::Escape), 1)),
        [ESCAPE, _, ..] => Some((None, 2)),
        [byte, ..] => Some((of_byte(*byte), 1)),
    }
}

fn of_byte(byte: u8) -> Option<KeyPress> {
    match byte {
        b'\r' | b'\n' => Some(KeyPress::Enter),
        b'\t' => Some(KeyPress::Tab),
        0x0c => Some(KeyPress::Redraw),
        0x08 | 0x7f => Some(KeyPress::Backspace),
        b' '..=b'~' => Some(KeyPress::Char(byte.into())),
        _ => None,
    }
}

/// Returns the key of a control sequence, without its introducer.
fn of_sequence(sequence: &[u8]) -> Option<KeyPress> {
    match sequence {
        b"A" => Some(KeyPress::Up),
        b"B" => Some(KeyPress::Down),
        b"H" | b"1~" | b"7~" => Some(KeyPress::Home),
        b"F" | b"4~" | b"8~" => Some(KeyPress::End),
        b"5~" => Some(KeyPress::PageUp),
        b"6~" => Some(KeyPress::PageDown),
        b"M" => Some(KeyPress::Enter),
        _ => None,
    }
}

const ESCAPE: u8 = 0x1b;
/// The sequences around a pasted text (xterm's bracketed paste).
const BEGIN_OF_PASTE: &[u8] = b"\x1b[200~";
const END_OF_PASTE: &[u8] = b"\x1b[201~";

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(bytes: &[u8]) -> Vec<KeyPress> {
        let mut reader = KeyReader::default();
        let mut keys = reader.read(bytes);
        keys.extend(reader.finish());
        keys
    }

    #[test]
    fn keys_are_read_from_the_bytes_of_terminals() {
        use KeyPress::*;
        for (bytes, expected) in [
            (
                &b"q?R<"[..],
                &[Char('q'), Char('?'), Char('R'), Char('<')][..],
            ),
            (
                b"\r\n\t\x7f\x08",
                &[Enter, Enter, Tab, Backspace, Backspace],
            ),
            (b"\x1b[A\x1b[B\x1bOA\x1bOB", &[Up, Down, Up, Down]),
            (b"\x1b[5~\x1b[6~", &[PageUp, PageDown]),
            (
                b"\x1b[H\x1b[1~\x1b[F\x1b[4~\x1bOF",
                &[Home, Home, End, End, End],
            ),
            (b"\x1b", &[Escape]),
            (b"\x0c", &[Redraw]),
            (b"\x1b\x1b[A", &[Escape, Up]),
        ] {
            assert_eq!(keys(bytes), expected, "{bytes:?}");
        }
    }

    #[test]
    fn sequences_without_a_meaning_are_no_keys() {
        // Ctrl-Right, F5, Alt-x, the report of a mouse, a letter of another script, NUL, half of a sequence.
        for bytes in [
            &b"\x1b[1;5C"[..],
            b"\x1b[15~",
            b"\x1bx",
            b"\x1b[<0;10;20M",
            "é".as_bytes(),
            b"\0",
            b"\x1b[1",
        ] {
            assert!(keys(bytes).is_empty(), "{bytes:?}");
        }
    }

    #[test]
    fn a_pasted_text_presses_no_keys() {
        let text = b"k\x1b[200~dy\x1bO\x1b[A\x1b[\x1b[201~j";
        for part in 1..text.len() {
            let mut reader = KeyReader::default();
            let mut keys = Vec::new();
            for bytes in text.chunks(part) {
                keys.extend(reader.read(bytes));
                // As after a pause, which a slow line may make after `ESC [ 2`.
                if reader.is_in_sequence() && reader.rest.len() > 2 {
                    assert_eq!(reader.finish(), None);
                }
            }
            assert_eq!(keys, [KeyPress::Char('k'), KeyPress::Char('j')], "{part}");
        }
    }

    #[test]
    fn a_key_may_arrive_byte_by_byte() {
        let mut reader = KeyReader::default();
        for byte in *b"\x1b[5" {
            assert!(reader.read(&[byte]).is_empty());
            assert!(reader.is_in_sequence());
        }
        assert_eq!(reader.read(b"~k"), [KeyPress::PageUp, KeyPress::Char('k')]);
        assert!(!reader.is_in_sequence());
        assert_eq!(reader.finish(), None);
    }
}
